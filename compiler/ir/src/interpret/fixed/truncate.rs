//! Truncation as integers: rounding to nearest, and as two parties do it on shares.

use crate::P;

/// `(x + 2^(f-1)) >> f`.
pub(super) fn round_to_nearest(x: i128, f: u8) -> i128 {
    if f == 0 { x } else { (x + (1 << (f - 1))) >> f }
}

/// The two parties' truncation of `x` with client's share `c`, as an integer:
/// `((c + B) mod p >> f) - (((p - d) mod p) >> f) - (B >> f)` with `d = (x - c) mod p`.
pub(crate) fn truncate_shares(x: i128, c: u64, f: u8, bound_bits: u8) -> i128 {
    let (p, c, b) = (i128::from(P), i128::from(c), 1i128 << bound_bits);
    let d = (x - c).rem_euclid(p);
    (((c + b) % p) >> f) - (((p - d) % p) >> f) - (b >> f)
}

/// The integer of `bits` bits, in two's complement, that the lowest bits of another are.
pub(super) fn low_bits(x: i128, bits: u8) -> i128 {
    let unused = i128::BITS - u32::from(bits);
    x << unused >> unused
}

/// The residue of smallest magnitude.
pub(super) fn centred(x: i128) -> i128 {
    let p = i128::from(P);
    let r = x.rem_euclid(p);
    if r > p / 2 { r - p } else { r }
}

/// The largest magnitude allowed before a truncation: `2^bound_bits - 2^truncate`.
pub(super) fn bound(bound_bits: u8, truncate: u8) -> i128 {
    (1i128 << bound_bits) - (1i128 << truncate)
}
