//! Sums of columns with 512-bit registers: the streams of up to four levels are read once.

use super::{add_masked_portable, fold_once};
use std::arch::x86_64::*;

/// Bytes in a register.
const BYTES: usize = 64;

/// See [`super::fold`].
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn fold(streams: &mut [u8], columns: &mut [u8], stride: usize, used: usize) {
    let levels = columns.len() / stride;
    let mut count = streams.len() / stride;
    // 2^4 streams fit the registers; what is above them is summed level by level.
    let (above, last) = columns.split_at_mut(levels.saturating_sub(4) * stride);
    for column in above.chunks_exact_mut(stride) {
        fold_once(streams, count, &mut column[..used], stride);
        count /= 2;
    }
    let streams = &mut streams[..count * stride];
    match last.len() / stride {
        1 => fold_registers::<2, 1>(streams, last, stride, used),
        2 => fold_registers::<4, 2>(streams, last, stride, used),
        3 => fold_registers::<8, 3>(streams, last, stride, used),
        _ => fold_registers::<16, 4>(streams, last, stride, used),
    }
}

/// The portable code, compiled for wider registers.
#[target_feature(enable = "avx512f,avx512bw")]
pub(super) fn add_masked(column: &mut [u8], other: &[u8], bit: u8) {
    add_masked_portable(column, other, bit);
}

/// Folds `S = 2^K` streams, a register of each at a time.
#[target_feature(enable = "avx512f,avx512bw")]
#[inline]
fn fold_registers<const S: usize, const K: usize>(
    streams: &mut [u8],
    columns: &mut [u8],
    stride: usize,
    used: usize,
) {
    assert!(streams.len() == S * stride && columns.len() == K * stride && used <= stride);
    for start in (0..used).step_by(BYTES) {
        let mask = u64::MAX >> (BYTES - BYTES.min(used - start));
        let mut x = [_mm512_setzero_si512(); S];
        for (i, x) in x.iter_mut().enumerate() {
            // SAFETY: the mask selects bytes before `used`, which is at most `stride`, of stream
            // `i` of the `S` in `streams`; what it does not select is not read.
            *x = unsafe {
                let stream = streams.as_ptr().add(i * stride + start);
                _mm512_maskz_loadu_epi8(mask, stream.cast())
            };
        }
        for l in 0..K {
            let count = S >> l;
            let mut column = x[1];
            for i in (3..count).step_by(2) {
                column = _mm512_xor_si512(column, x[i]);
            }
            // SAFETY: as above, for column `l` of `K`, borrowed mutably; what the mask does not
            // select is not written.
            unsafe {
                let place = columns.as_mut_ptr().add(l * stride + start);
                _mm512_mask_storeu_epi8(place.cast(), mask, column);
            }
            for i in 0..count / 2 {
                x[i] = _mm512_xor_si512(x[2 * i], x[2 * i + 1]);
            }
        }
        // SAFETY: as above, for stream 0.
        unsafe {
            let place = streams.as_mut_ptr().add(start);
            _mm512_mask_storeu_epi8(place.cast(), mask, x[0]);
        }
    }
}
