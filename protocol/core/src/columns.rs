//! Sums of columns of bits: those that the OT extension forms from its streams.

use crate::vector::Code;

#[cfg(target_arch = "x86_64")]
mod avx512;
mod vector;

/// Sums streams by the bits of their indices: column `l` becomes the sum of the streams whose index
/// has bit `l` set, stream 0 the sum of all. The other streams are left in an unspecified state.
///
/// # Shapes
/// `columns`: `k` times `stride` bytes; `streams`: `2^k` times `stride` bytes; of each the first
/// `used` bytes count.
/// # Panics
/// If the shapes do not fit together.
/// # Cost
/// Two additions per stream: after bit `l` is summed, streams that differ in it only are merged.
pub fn fold(streams: &mut [u8], columns: &mut [u8], stride: usize, used: usize) {
    assert!(used <= stride && stride > 0 && columns.len().is_multiple_of(stride));
    assert_eq!(
        streams.len(),
        stride << (columns.len() / stride),
        "a stream for every set of columns"
    );
    fold_by(Code::get(), streams, columns, stride, used);
}

/// Does the same as [`fold`], whose shapes must hold, by a version that must be supported.
#[inline]
fn fold_by(code: Code, streams: &mut [u8], columns: &mut [u8], stride: usize, used: usize) {
    match code {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a back end in use is supported, so the features of its level are present.
        Code::Avx512 => unsafe { avx512::fold(streams, columns, stride, used) },
        Code::Vector(instructions) => instructions.run(vector::Fold {
            streams,
            columns,
            stride,
            used,
        }),
        Code::Portable => fold_portable(streams, columns, stride, used),
    }
}

#[inline(always)]
fn fold_portable(streams: &mut [u8], columns: &mut [u8], stride: usize, used: usize) {
    let mut count = streams.len() / stride;
    for column in columns.chunks_exact_mut(stride) {
        fold_once(streams, count, &mut column[..used], stride);
        count /= 2;
    }
}

/// Sums the odd ones of `count` streams into `column`, and pairs of them into half as many.
#[inline(always)]
fn fold_once(streams: &mut [u8], count: usize, column: &mut [u8], stride: usize) {
    let used = column.len();
    column.fill(0);
    for i in 0..count / 2 {
        let (before, pair) = streams.split_at_mut(2 * i * stride);
        let (even, odd) = pair.split_at_mut(stride);
        let (even, odd) = (&mut even[..used], &odd[..used]);
        add(column, odd);
        add(even, odd);
        if i > 0 {
            before[i * stride..][..used].copy_from_slice(even);
        }
    }
}

/// Adds `other` to `column` if `bit` is 1, without branching on it.
///
/// # Panics
/// If the lengths differ.
pub fn add_masked(column: &mut [u8], other: &[u8], bit: u8) {
    assert_eq!(column.len(), other.len(), "columns of one length");
    add_masked_by(Code::get(), column, other, bit);
}

/// Does the same as [`add_masked`], by a version that must be supported.
#[inline]
fn add_masked_by(code: Code, column: &mut [u8], other: &[u8], bit: u8) {
    match code {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a back end in use is supported, so the features of its level are present.
        Code::Avx512 => unsafe { avx512::add_masked(column, other, bit) },
        Code::Vector(instructions) => instructions.run(vector::AddMasked { column, other, bit }),
        Code::Portable => add_masked_portable(column, other, bit),
    }
}

#[inline(always)]
fn add_masked_portable(column: &mut [u8], other: &[u8], bit: u8) {
    let mask = 0u8.wrapping_sub(bit & 1);
    for (byte, other) in column.iter_mut().zip(other) {
        *byte ^= other & mask;
    }
}

#[inline(always)]
fn add(sum: &mut [u8], other: &[u8]) {
    for (sum, byte) in sum.iter_mut().zip(other) {
        *sum ^= byte;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::ChaCha20Rng;
    use rand_core::{RngCore, SeedableRng};

    /// Bytes of a stream and how many of them are used. Under Miri the longest are left out.
    const LENGTHS: &[(usize, usize)] = if cfg!(miri) {
        &[(1, 1), (16, 0), (20, 18)]
    } else {
        &[
            (1, 1),
            (16, 0),
            (96, 80),
            (96, 95),
            (128, 128),
            (1024, 1000),
        ]
    };

    #[test]
    fn columns_are_sums_by_the_bits_of_the_index() {
        let mut rng = ChaCha20Rng::seed_from_u64(51);
        for code in Code::supported() {
            for k in if cfg!(miri) { 1..=3 } else { 1..=6 } {
                for &(stride, used) in LENGTHS {
                    let mut streams = vec![0; stride << k];
                    rng.fill_bytes(&mut streams);
                    let original = streams.clone();
                    let sum = |member: &dyn Fn(usize) -> bool, byte: usize| {
                        (0..1 << k)
                            .filter(|&x| member(x))
                            .fold(0, |sum, x| sum ^ original[x * stride + byte])
                    };
                    let mut columns = vec![0xee; k * stride];
                    fold_by(code, &mut streams, &mut columns, stride, used);
                    for byte in 0..used {
                        assert_eq!(streams[byte], sum(&|_| true, byte), "{code:?}");
                        for l in 0..k {
                            let expected = sum(&|x| x >> l & 1 == 1, byte);
                            assert_eq!(columns[l * stride + byte], expected, "{code:?}, {l}");
                        }
                    }
                    for l in 0..k {
                        let behind = &columns[l * stride + used..(l + 1) * stride];
                        assert!(
                            behind.iter().all(|&b| b == 0xee),
                            "{code:?}: behind the end"
                        );
                    }
                }
            }
        }
    }

    #[test]
    fn a_column_is_added_if_the_bit_says_so() {
        for (bit, expected) in [(0, [1, 2, 3]), (1, [5, 7, 5])] {
            for code in Code::supported() {
                let mut column = [1, 2, 3].repeat(100);
                add_masked_by(code, &mut column, &[4, 5, 6].repeat(100), bit);
                assert_eq!(column, expected.repeat(100));
            }
        }
    }
}
