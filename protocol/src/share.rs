//! Additive shares over `F_p` and their truncation without interaction.
//!
//! A value is `x = c + d mod p`, with `c` at the client and `d` at the server. Let `|x| <= B -
//! 2^f`, where `B` is a power of two and `2^f | B`. Then `x + B = (c + B) - (p - d)` over the
//! integers, unless that sum wraps, which has probability `(x + B) / p`. Each party shifts its own
//! term right. The result is `x >> f` or one more, and it is one more with the probability of the
//! fraction.
//!
//! It is no secret coin that decides: the result is `ceil((x - u) / 2^f)` with `u = (c + B) mod
//! 2^f`, and the client knows `u`. An answer is thus the network at known perturbations of its
//! activations, which is more than the network's output alone.
//!
//! The server's truncated share is a *negative integer*, and the sign circuit reduces that integer
//! modulo `2^m`, not its representative in `F_p`.

use pi_core::fp::{self, P};

/// The client's truncated share, `((c + B) mod p) >> f`, a non-negative integer below `2^(60 - f)`.
#[inline]
pub(crate) fn truncate_client(c: u64, truncate: u8, bound_bits: u8) -> u64 {
    fp::add(c, 1 << bound_bits) >> truncate
}

/// The server's truncated share, the integer `-(((p - d) mod p) >> f) - (B >> f)`.
#[inline]
pub(crate) fn truncate_server(d: u64, truncate: u8, bound_bits: u8) -> i64 {
    -((fp::neg(d) >> truncate) as i64) - (1i64 << (bound_bits - truncate))
}

/// A truncated server's share as a field element.
#[inline]
pub(crate) fn to_field(d: i64) -> u64 {
    // Between -2p and 0 for every bound below p: the sum is between 0 and 2p.
    debug_assert!(d <= 0 && -(d as i128) < 2 * P as i128);
    fp::reduce_u64((d + 2 * P as i64) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::ChaCha20Rng;
    use rand_core::{RngCore, SeedableRng};

    #[test]
    fn circuits_and_shares_have_one_modulus() {
        assert_eq!(P, pi_ir::P);
    }

    #[test]
    fn truncation_is_off_by_at_most_one_unit_up_to_the_bound() {
        let mut rng = ChaCha20Rng::seed_from_u64(3);
        for (f, bound_bits) in [(0u8, 10u8), (1, 10), (8, 23), (8, 30), (13, 28), (20, 40)] {
            let (b, unit) = (1i64 << bound_bits, 1i64 << f);
            let mut edges = vec![0, 1, -1, unit - 1, -unit, -unit - 1, b - unit, unit - b];
            edges.extend(
                (0..500)
                    .map(|_| (rng.next_u64() >> 1) as i64 % (2 * b - 2 * unit + 1) - (b - unit)),
            );
            for x in edges {
                let c = fp::uniform(&mut rng);
                let d = fp::sub(fp::from_i64(x), c);
                let t =
                    truncate_client(c, f, bound_bits) as i64 + truncate_server(d, f, bound_bits);
                assert!(t == x >> f || t == (x >> f) + 1, "x = {x}, f = {f}: {t}");
                // The sign circuit's m = bound_bits - f + 1 bits hold it, at the edges too.
                assert!(t >= -(1 << (bound_bits - f)) && t < 1 << (bound_bits - f));
            }
        }
    }

    #[test]
    fn a_zero_share_of_the_server_is_no_special_case() {
        for x in [-300i64, -1, 0, 1, 300] {
            let t = truncate_client(fp::from_i64(x), 4, 20) as i64 + truncate_server(0, 4, 20);
            assert_eq!(t, x >> 4);
        }
    }

    #[test]
    fn truncation_is_a_quantiser_whose_dither_the_client_knows() {
        let mut rng = ChaCha20Rng::seed_from_u64(4);
        for (f, bound_bits) in [(0u8, 10u8), (1, 10), (8, 30), (20, 40)] {
            for _ in 0..1000 {
                let x = (rng.next_u64() as i64) >> (65 - bound_bits);
                let c = fp::uniform(&mut rng);
                let d = fp::sub(fp::from_i64(x), c);
                let t =
                    truncate_client(c, f, bound_bits) as i64 + truncate_server(d, f, bound_bits);
                let u = (fp::add(c, 1 << bound_bits) % (1 << f)) as i64;
                assert_eq!(t, -((u - x) >> f), "x = {x}, c = {c}, f = {f}");
            }
        }
    }

    #[test]
    fn truncation_is_unbiased_stochastic_rounding() {
        let mut rng = ChaCha20Rng::seed_from_u64(5);
        let (x, f) = (77i64, 8u8); // 77 / 256 = 0.30
        let n = 20_000;
        let ups: i64 = (0..n)
            .map(|_| {
                let c = fp::uniform(&mut rng);
                truncate_client(c, f, 20) as i64
                    + truncate_server(fp::sub(fp::from_i64(x), c), f, 20)
            })
            .sum();
        let rate = ups as f64 / n as f64;
        // Standard deviation 0.0032; five of them.
        assert!((rate - 77.0 / 256.0).abs() < 0.017, "{rate}");
    }
}
