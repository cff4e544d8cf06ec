//! Sums of columns over [`Vector`]: the streams of up to four levels are read once.

use super::{add_masked_portable, fold_once};
use crate::block::BLOCK_BYTES;
use crate::vector::{Kernel, Vector};

/// See [`super::fold`]; the shapes hold.
pub(super) struct Fold<'a> {
    pub(super) streams: &'a mut [u8],
    pub(super) columns: &'a mut [u8],
    pub(super) stride: usize,
    pub(super) used: usize,
}

impl Kernel for Fold<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Vector>(self, s: S) {
        let Fold {
            streams,
            columns,
            stride,
            used,
        } = self;
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
            0 => {}
            1 => fold_registers::<S, 2, 1>(s, streams, last, stride, used),
            2 => fold_registers::<S, 4, 2>(s, streams, last, stride, used),
            3 => fold_registers::<S, 8, 3>(s, streams, last, stride, used),
            _ => fold_registers::<S, 16, 4>(s, streams, last, stride, used),
        }
    }
}

/// Folds `T = 2^K` streams, a register of each at a time, and the bytes behind the last whole
/// register one by one.
#[inline(always)]
fn fold_registers<S: Vector, const T: usize, const K: usize>(
    s: S,
    streams: &mut [u8],
    columns: &mut [u8],
    stride: usize,
    used: usize,
) {
    assert!(streams.len() == T * stride && columns.len() == K * stride && used <= stride);
    let width = S::BLOCKS * BLOCK_BYTES;
    let whole = used - used % width;
    for start in (0..whole).step_by(width) {
        let mut x = [s.splat(0); T];
        for (i, x) in x.iter_mut().enumerate() {
            // SAFETY: the register's bytes end at `whole` or before it, which is at most `stride`,
            // in stream `i` of the `T` in `streams`.
            *x = unsafe { s.load(streams.as_ptr().add(i * stride + start)) };
        }
        for l in 0..K {
            let count = T >> l;
            let mut column = x[1];
            for i in (3..count).step_by(2) {
                column = s.xor(column, x[i]);
            }
            // SAFETY: as above, for column `l` of `K`, borrowed mutably.
            unsafe { s.store(columns.as_mut_ptr().add(l * stride + start), column) }
            for i in 0..count / 2 {
                x[i] = s.xor(x[2 * i], x[2 * i + 1]);
            }
        }
        // SAFETY: as above, for stream 0, borrowed mutably.
        unsafe { s.store(streams.as_mut_ptr().add(start), x[0]) }
    }
    for byte in whole..used {
        let mut x = [0; T];
        for (i, x) in x.iter_mut().enumerate() {
            *x = streams[i * stride + byte];
        }
        for l in 0..K {
            let odd = x[..T >> l].iter().skip(1).step_by(2);
            columns[l * stride + byte] = odd.fold(0, |sum, x| sum ^ x);
            for i in 0..T >> (l + 1) {
                x[i] = x[2 * i] ^ x[2 * i + 1];
            }
        }
        streams[byte] = x[0];
    }
}

/// See [`super::add_masked`].
pub(super) struct AddMasked<'a> {
    pub(super) column: &'a mut [u8],
    pub(super) other: &'a [u8],
    pub(super) bit: u8,
}

impl Kernel for AddMasked<'_> {
    type Output = ();

    /// The portable code, compiled for these registers.
    #[inline(always)]
    fn run<S: Vector>(self, _: S) {
        add_masked_portable(self.column, self.other, self.bit);
    }
}
