//! Fuzz targets: see `tests/`. They run as ordinary tests, and under a fuzzer with `fuzz/run`.
//!
//! Arbitrary bytes seldom pass a length, a digest or a range. So most targets take an input as a
//! list of changes to valid bytes ([`changed`], [`edited`]), and what lies behind the first checks
//! is reached too.
#![forbid(unsafe_code)]

pub mod session;

/// Bytes of an input that make one change.
const CHANGE: usize = 5;

/// Returns `valid` with bytes changed where `input` says so; the length stays.
pub fn changed(valid: &[u8], input: &[u8]) -> Vec<u8> {
    let mut bytes = valid.to_vec();
    for change in input.chunks_exact(CHANGE) {
        let Some(position) = position(change, bytes.len()) else {
            break;
        };
        match change[0] % 2 {
            0 => bytes[position] ^= change[4],
            _ => bytes[position] = change[4],
        }
    }
    bytes
}

/// Returns `valid` with bytes changed, inserted and removed where `input` says so.
pub fn edited(valid: &[u8], input: &[u8]) -> Vec<u8> {
    let mut bytes = valid.to_vec();
    for change in input.chunks_exact(CHANGE) {
        let Some(position) = position(change, bytes.len()) else {
            break;
        };
        match change[0] % 5 {
            0 => bytes[position] ^= change[4],
            1 => bytes[position] = change[4],
            2 => bytes.insert(position, change[4]),
            3 => {
                bytes.remove(position);
            }
            _ => bytes.truncate(position),
        }
    }
    bytes
}

/// Returns the bytes of `input`, repeated to this length; zeros if it is empty.
pub fn repeated(input: &[u8], length: usize) -> Vec<u8> {
    let or_zero = if input.is_empty() { &[0] } else { input };
    or_zero.iter().copied().cycle().take(length).collect()
}

/// Returns bytes of this length: `valid` with changes, or, of every eighth input, its own bytes.
pub fn message(valid: &[u8], input: &[u8]) -> Vec<u8> {
    match input.split_first() {
        Some((first, rest)) if first % 8 == 7 => repeated(rest, valid.len()),
        Some((_, rest)) => changed(valid, rest),
        None => valid.to_vec(),
    }
}

fn position(change: &[u8], length: usize) -> Option<usize> {
    let number = u32::from_le_bytes([change[1], change[2], change[3], 0]);
    (number as usize).checked_rem(length)
}
