//! Convolution as a matrix product of packed weights and gathered inputs, tile by tile: what the
//! integer back ends share.
//!
//! # Layout
//! A *tile* is a few neighbouring output positions, a *block* a few rows (output channels), and the
//! sum runs over *groups* of taps. Inputs are first copied into planes with their padding, one
//! plane for each remainder of row and column modulo the stride, so that a tap of neighbouring
//! positions is neighbouring memory. A task gathers the inputs of one or more tiles, a number of
//! groups at a time, and multiplies them by the weights of many blocks while they stay in a cache.
//! Rows and taps that do not exist have weight zero.
//!
//! [`Kernel`] says how many positions, rows and taps these are, and has the inner loops.

use super::ConvShape;
use rayon::prelude::*;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use zeroize::{Zeroize, Zeroizing};

/// Vector multiplications that a task should have, unless threads would go without.
const TASK: usize = 1 << 19;

/// The inner loops of a back end.
pub(super) trait Kernel {
    /// Positions of a tile.
    const POSITIONS: usize;
    /// Output channels of a block.
    const ROWS: usize;
    /// Taps of a group.
    const TAPS: usize;
    /// Tiles of a task: more make better use of weights and of the cache lines of the result, as
    /// long as the second cache holds their inputs.
    const TILES: usize;
    /// Vector multiplications for each row, tile and group.
    const VECTORS: usize;
    /// Zeros, to fill memory with.
    const NO_WEIGHTS: Self::Weights;
    const NO_INPUTS: Self::Inputs;
    const NO_SUMS: Self::Sums;

    /// The weights of one block and group.
    type Weights: Copy + Zeroize + Send + Sync;
    /// The inputs of one group and tile.
    type Inputs: Copy + Zeroize + Send + Sync;
    /// The sums of one block and tile.
    type Sums: Copy + Zeroize + Send + Sync;

    /// Sets one weight, of as many bits as the kernel serves, among those of a block.
    fn set(block: &mut [Self::Weights], group: usize, row: usize, tap: usize, weight: i16);

    /// An input as the copy holds it; 0 for 0.
    fn limbs(x: u64) -> u64;

    /// Brings together what each group of `taps` reads at the positions of a tile.
    ///
    /// # Safety
    /// The instructions are present; there are `TAPS` taps for each of `out`, and `POSITIONS`
    /// positions; the sum of each tap and each position is an index of `copied`.
    unsafe fn gather(copied: &[u64], taps: &[u32], positions: &[u32], out: &mut [Self::Inputs]);

    /// Adds the products of a block's weights and the inputs to the sums, or to zeros instead of
    /// what is there if the sums are `fresh`. `exact` is that of [`Depth`].
    ///
    /// # Safety
    /// The instructions are present; there are as many groups of weights as of inputs.
    unsafe fn multiply(
        weights: &[Self::Weights],
        inputs: &[Self::Inputs],
        exact: usize,
        sums: &mut Self::Sums,
        fresh: bool,
    );

    /// Adds the first rows of sums to these rows of the output, at the first `count` positions of
    /// the tile from position `at` on, modulo `p`.
    ///
    /// # Safety
    /// The instructions are present; at most `ROWS` rows, `1 <= count <= POSITIONS`; the rows have
    /// the positions, and nobody else uses them there.
    unsafe fn add_sums(
        sums: &Self::Sums,
        output: &Output,
        rows: Range<usize>,
        at: usize,
        count: usize,
    );
}

/// Numbers of groups.
#[derive(Clone, Copy)]
pub(super) struct Depth {
    /// Multiplied at a time, while their inputs stay in a cache.
    pub(super) gathered: usize,
    /// Whose products fit into one word of a sum: after so many, kernels whose sums have two make
    /// room in the first.
    pub(super) exact: usize,
}

/// Weights and index tables.
pub(super) struct Packed<K: Kernel> {
    shape: ConvShape,
    /// Rows and columns of an output plane.
    plane_out: (usize, usize),
    /// Block by block, group by group.
    weights: Zeroizing<Vec<K::Weights>>,
    blocks: usize,
    groups: usize,
    depth: Depth,
    /// Offset of each tap of position 0 in the copy; `TAPS` a group.
    taps: Vec<u32>,
    /// Offset of each position from position 0; positions behind the last repeat it.
    positions: Vec<u32>,
    /// Elements of the copy.
    copied_len: usize,
    /// Rows and columns of one of its planes.
    plane: (usize, usize),
    /// Planes of one channel, vertically and horizontally.
    phases: (usize, usize),
}

/// Buffers that a computation writes besides its result.
pub(super) struct Scratch<K: Kernel> {
    copied: Zeroizing<Vec<u64>>,
    workers: Vec<Worker<K>>,
}

impl<K: Kernel> Default for Scratch<K> {
    fn default() -> Self {
        Scratch {
            copied: Zeroizing::default(),
            workers: Vec::new(),
        }
    }
}

struct Worker<K: Kernel> {
    sums: Zeroizing<Vec<K::Sums>>,
    inputs: Zeroizing<Vec<K::Inputs>>,
}

impl<K: Kernel> Worker<K> {
    fn new() -> Self {
        Worker {
            sums: Zeroizing::default(),
            inputs: Zeroizing::default(),
        }
    }

    fn grow(&mut self, blocks: usize, depth: usize) {
        if self.sums.len() < blocks {
            self.sums.resize(blocks, K::NO_SUMS);
        }
        if self.inputs.len() < depth {
            self.inputs.resize(depth, K::NO_INPUTS);
        }
    }
}

impl<K: Kernel> Packed<K> {
    /// Packs the weights. A plane of the output has `plane_out` rows and columns.
    ///
    /// # Safety
    /// The instructions of the kernel are present.
    /// # Preconditions
    /// The weights have the shape and bits that the kernel serves at this depth.
    pub(super) unsafe fn new(
        weights: &[i16],
        shape: &ConvShape,
        plane_out: (usize, usize),
        depth: Depth,
    ) -> Self {
        let (taps, groups) = (shape.taps(), shape.taps().div_ceil(K::TAPS));
        let blocks = shape.channels_out.div_ceil(K::ROWS);
        let mut packed = Zeroizing::new(vec![K::NO_WEIGHTS; blocks * groups]);
        for (o, row) in weights.chunks_exact(taps).enumerate() {
            let block = &mut packed[o / K::ROWS * groups..][..groups];
            for (t, &w) in row.iter().enumerate() {
                K::set(block, t / K::TAPS, o % K::ROWS, t % K::TAPS, w);
            }
        }
        let stride = shape.stride;
        let padding = shape.padding;
        let plane = (
            (shape.height + padding.top + padding.bottom).div_ceil(stride),
            (shape.width + padding.left + padding.right).div_ceil(stride),
        );
        let phases = (
            stride.min(shape.kernel_height),
            stride.min(shape.kernel_width),
        );
        let mut offsets = Vec::with_capacity(groups * K::TAPS);
        for c in 0..shape.channels_in {
            for k in 0..shape.kernel_height {
                for l in 0..shape.kernel_width {
                    let phase = (c * phases.0 + k % stride) * phases.1 + l % stride;
                    let row = phase * plane.0 + k / stride;
                    offsets.push((row * plane.1 + l / stride) as u32);
                }
            }
        }
        offsets.resize(groups * K::TAPS, 0);
        let (height, width) = (shape.out_height(), shape.out_width());
        let places = (0..height).flat_map(|i| (0..width).map(move |j| i * plane.1 + j));
        let mut positions: Vec<u32> = places.map(|place| place as u32).collect();
        let last = *positions.last().expect("an output has a position");
        positions.resize(positions.len().next_multiple_of(K::POSITIONS), last);
        let copied_len = shape.channels_in * phases.0 * phases.1 * plane.0 * plane.1;
        assert!(copied_len < i32::MAX as usize, "input is too large");
        let furthest = offsets.iter().max().map_or(0, |tap| tap + last) as usize;
        assert!(furthest < copied_len, "every tap lies in the copy");
        Packed {
            shape: *shape,
            plane_out,
            weights: packed,
            blocks,
            groups,
            depth,
            taps: offsets,
            positions,
            copied_len,
            plane,
            phases,
        }
    }

    pub(super) fn add_to(&self, input: &[u64], scratch: &mut Scratch<K>, sum: &mut [u64]) {
        self.copy(input, &mut scratch.copied);
        let threads = rayon::current_num_threads();
        let tiles = self.positions.len() / K::POSITIONS;
        let spans = tiles.div_ceil(K::TILES);
        // As few blocks to a task as give every thread several, but no tiny ones: each task
        // gathers its inputs.
        let per_block = self.groups * K::VECTORS * K::ROWS * K::TILES.min(tiles);
        let wanted = (2 * threads).div_ceil(spans);
        let parts = wanted.min((self.blocks * per_block).div_ceil(TASK)).max(1);
        let part = self.blocks.div_ceil(parts).max(1);
        let parts = self.blocks.div_ceil(part);
        let workers = threads.min(spans * parts);
        if scratch.workers.len() < workers {
            scratch.workers.resize_with(workers, Worker::new);
        }
        let output = Output {
            sum: sum.as_mut_ptr(),
            height: self.plane_out.0,
            width: self.plane_out.1,
        };
        assert_eq!(sum.len(), output.row_len() * self.shape.channels_out);
        let (next, copied) = (AtomicUsize::new(0), &scratch.copied[..]);
        let work = |worker: &mut Worker<K>| {
            worker.grow(
                self.sums(part) * K::TILES,
                self.groups.min(self.depth.gathered) * K::TILES,
            );
            loop {
                let task = next.fetch_add(1, Ordering::Relaxed);
                if task >= spans * parts {
                    break;
                }
                let (span, first) = (task / parts, task % parts * part);
                let span = span * K::TILES..tiles.min((span + 1) * K::TILES);
                let blocks = first..self.blocks.min(first + part);
                // SAFETY: `new` was promised the instructions, `copied` has `copied_len` elements,
                // and no other task has these tiles and these blocks, so that no other writes
                // their outputs.
                unsafe { self.task(copied, span, blocks, worker, &output) };
            }
        };
        match &mut scratch.workers[..workers] {
            [only] => work(only),
            workers => workers.par_iter_mut().with_max_len(1).for_each(work),
        }
    }

    /// Sums that a tile of this many blocks needs: those of one block if they are complete when the
    /// next begins.
    fn sums(&self, blocks: usize) -> usize {
        if self.groups > self.depth.gathered {
            blocks
        } else {
            1
        }
    }

    /// Copies the input into planes with their padding.
    fn copy(&self, input: &[u64], copied: &mut Vec<u64>) {
        let ConvShape {
            height,
            width,
            stride,
            padding,
            ..
        } = self.shape;
        copied.clear();
        copied.resize(self.copied_len, 0);
        let area = height * width;
        let planes =
            copied.chunks_exact_mut(self.phases.0 * self.phases.1 * self.plane.0 * self.plane.1);
        for (planes, input) in planes.zip(input.chunks_exact(area)) {
            for (i, row) in input.chunks_exact(width).enumerate() {
                let i = i + padding.top;
                if i % stride >= self.phases.0 {
                    continue;
                }
                for phase in 0..self.phases.1 {
                    let at = (i % stride * self.phases.1 + phase) * self.plane.0 + i / stride;
                    let out = &mut planes[at * self.plane.1..][..self.plane.1];
                    // The first column of this phase that is no padding.
                    let skipped = padding.left.saturating_sub(phase).div_ceil(stride);
                    let from = skipped * stride + phase - padding.left;
                    if stride == 1 {
                        for (out, &x) in out[skipped..][..width].iter_mut().zip(row) {
                            *out = K::limbs(x);
                        }
                    } else if from < width {
                        let values = row[from..].iter().step_by(stride);
                        for (out, &x) in out[skipped..].iter_mut().zip(values) {
                            *out = K::limbs(x);
                        }
                    }
                }
            }
        }
    }

    /// Adds the outputs of some blocks at some tiles.
    ///
    /// # Safety
    /// The instructions are present; `copied` has `copied_len` elements; `output` is valid for
    /// the shape, and nobody else uses the outputs of these blocks at these tiles.
    unsafe fn task(
        &self,
        copied: &[u64],
        tiles: Range<usize>,
        blocks: Range<usize>,
        worker: &mut Worker<K>,
        output: &Output,
    ) {
        let existing = self.shape.out_height() * self.shape.out_width();
        // Block by block, tile by tile.
        let all_sums = &mut worker.sums[..self.sums(blocks.len()) * tiles.len()];
        let Depth { gathered, exact } = self.depth;
        for from in (0..self.groups).step_by(gathered) {
            let depth = gathered.min(self.groups - from);
            let inputs = &mut worker.inputs[..depth * tiles.len()];
            let taps = &self.taps[from * K::TAPS..][..depth * K::TAPS];
            for (tile, inputs) in tiles.clone().zip(inputs.chunks_exact_mut(depth)) {
                let positions = &self.positions[tile * K::POSITIONS..][..K::POSITIONS];
                // SAFETY: as promised by the caller, and `new` checked the largest tap and
                // position.
                unsafe { K::gather(copied, taps, positions, inputs) };
            }
            for (i, block) in blocks.clone().enumerate() {
                let first = (self.sums(i + 1) - 1) * tiles.len();
                let sums = &mut all_sums[first..][..tiles.len()];
                let weights = &self.weights[block * self.groups + from..][..depth];
                for (inputs, sums) in inputs.chunks_exact(depth).zip(&mut *sums) {
                    // SAFETY: as promised by the caller.
                    unsafe { K::multiply(weights, inputs, exact, sums, from == 0) };
                }
                if from + depth < self.groups {
                    continue;
                }
                let rows = block * K::ROWS..self.shape.channels_out.min((block + 1) * K::ROWS);
                for (tile, sums) in tiles.clone().zip(&*sums) {
                    let at = tile * K::POSITIONS;
                    let count = K::POSITIONS.min(existing - at);
                    // SAFETY: rows and `count` positions from `at` on are the shape's, and this
                    // task's alone.
                    unsafe { K::add_sums(sums, output, rows.clone(), at, count) };
                }
            }
        }
    }
}

/// The result, of which each task writes its own part.
pub(super) struct Output {
    sum: *mut u64,
    pub(super) height: usize,
    pub(super) width: usize,
}

// SAFETY: tasks write disjoint elements, and the slice it was made from is borrowed until all
// of them have ended.
unsafe impl Sync for Output {}

impl Output {
    /// A result of one channel and one row of elements.
    #[cfg(all(test, target_arch = "x86_64"))]
    pub(super) fn of_row(row: &mut [u64]) -> Self {
        Output {
            sum: row.as_mut_ptr(),
            height: 1,
            width: row.len(),
        }
    }

    /// Elements of an output channel.
    fn row_len(&self) -> usize {
        self.height * self.width
    }

    /// `count` elements of an output channel from `at` on.
    ///
    /// # Safety
    /// The channel is one of the result, and nobody else uses these elements meanwhile.
    #[inline(always)]
    #[allow(clippy::mut_from_ref, reason = "tasks write disjoint elements")]
    pub(super) unsafe fn elements(&self, channel: usize, at: usize, count: usize) -> &mut [u64] {
        debug_assert!(at + count <= self.row_len());
        // SAFETY: elements of the result, as promised by the caller; their plane has them.
        unsafe {
            let first = self.sum.add(channel * self.row_len() + at);
            std::slice::from_raw_parts_mut(first, count)
        }
    }
}
