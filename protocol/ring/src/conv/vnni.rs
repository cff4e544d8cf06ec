//! Convolution with AVX-512 VNNI (and F, BW) by 8-bit weights that were packed once.
//!
//! An input of 60 bits is eight bytes and a weight of at most seven bits and a sign is one:
//! `vpdpbusd` multiplies 64 bytes by 64 weights and adds fours of the products to 32-bit sums. That
//! is eight products over `F_p` per instruction, twice what `f64` gives. Sums are exact integers as
//! long as `taps * 255 * 127 < 2^31`, which follows from the shape.
//!
//! # Layout
//! A *column* is one limb of one output position, a *tile* eight positions: 64 columns in four
//! vectors. The sum runs over *groups* of four taps. Inputs are first copied into planes with their
//! padding, one plane for each remainder of row and column modulo the stride, so that a tap of
//! neighbouring positions is neighbouring memory. Eight positions of four taps are then 256 bytes,
//! which byte and word interleaving turns into the four vectors of a group:
//!
//! | vector | positions | limbs, one to a 32-bit lane |
//! | --- | --- | --- |
//! | 0, 1 | even | 0 to 3, 4 to 7 |
//! | 2, 3 | odd | 0 to 3, 4 to 7 |
//!
//! Weights are six rows (output channels) to a block, group by group, four taps together; rows and
//! taps that do not exist have weight zero.

use super::ConvShape;
use pi_core::fp::P;
use rayon::prelude::*;
use std::arch::x86_64::*;
use std::sync::atomic::{AtomicUsize, Ordering};
use zeroize::{Zeroize, Zeroizing};

/// Positions of a tile.
const POSITIONS: usize = 8;
/// Vectors of a tile.
const VECTORS: usize = 4;
/// Output channels of a block: 24 sums stay in registers.
const ROWS: usize = 6;
/// Taps of a group.
const TAPS: usize = 4;
/// Groups multiplied at a time: their inputs, 18 KiB, stay in the first cache while all blocks
/// read them.
const DEPTH: usize = 72;
/// Multiplications that a task should have, tens of microseconds, unless threads would go
/// without.
const TASK: usize = 1 << 19;

/// The weights of one block and group.
type Weights = [[i8; TAPS]; ROWS];

/// The sums of one block and tile, vector by vector.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Sums([[[i32; 16]; VECTORS]; ROWS]);

/// The inputs of one group and tile.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Inputs([[u8; 64]; VECTORS]);

/// Weights and index tables.
pub(super) struct Packed {
    shape: ConvShape,
    /// Block by block, group by group.
    weights: Zeroizing<Vec<Weights>>,
    blocks: usize,
    groups: usize,
    /// Offset of each tap of position 0 in the copy; four a group.
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
#[derive(Default)]
pub(super) struct Scratch {
    copied: Zeroizing<Vec<u64>>,
    workers: Vec<Worker>,
}

#[derive(Default)]
struct Worker {
    sums: Vec<Sums>,
    inputs: Vec<Inputs>,
}

impl Drop for Worker {
    fn drop(&mut self) {
        for sums in &mut self.sums {
            sums.0.zeroize();
        }
        for inputs in &mut self.inputs {
            inputs.0.zeroize();
        }
    }
}

/// True if weights of this many bits fit and no sum can overflow.
pub(super) fn is_exact(shape: &ConvShape, weight_bits: u8) -> bool {
    // |sum| <= taps * 255 * 127 < 2^31.
    weight_bits <= 7 && shape.taps() <= (i32::MAX / (255 * 127)) as usize
}

impl Packed {
    /// Packs the weights.
    ///
    /// # Safety
    /// AVX-512F, BW and VNNI are present.
    /// # Preconditions
    /// The weights have the shape and the bits for which [`is_exact`] holds.
    pub(super) unsafe fn new(weights: &[i16], shape: &ConvShape) -> Self {
        let (taps, groups) = (shape.taps(), shape.taps().div_ceil(TAPS));
        let blocks = shape.channels_out.div_ceil(ROWS);
        let mut packed = Zeroizing::new(vec![[[0; TAPS]; ROWS]; blocks * groups]);
        for (o, row) in weights.chunks_exact(taps).enumerate() {
            for (t, &w) in row.iter().enumerate() {
                let at = o / ROWS * groups + t / TAPS;
                packed[at][o % ROWS][t % TAPS] =
                    i8::try_from(w).expect("weights have at most seven bits");
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
        let mut offsets = Vec::with_capacity(groups * TAPS);
        for c in 0..shape.channels_in {
            for k in 0..shape.kernel_height {
                for l in 0..shape.kernel_width {
                    let phase = (c * phases.0 + k % stride) * phases.1 + l % stride;
                    let row = phase * plane.0 + k / stride;
                    offsets.push((row * plane.1 + l / stride) as u32);
                }
            }
        }
        offsets.resize(groups * TAPS, 0);
        let (height, width) = (shape.out_height(), shape.out_width());
        let places = (0..height).flat_map(|i| (0..width).map(move |j| i * plane.1 + j));
        let mut positions: Vec<u32> = places.map(|place| place as u32).collect();
        let last = *positions.last().expect("an output has a position");
        positions.resize(positions.len().next_multiple_of(POSITIONS), last);
        let copied_len = shape.channels_in * phases.0 * phases.1 * plane.0 * plane.1;
        assert!(copied_len < i32::MAX as usize, "input is too large");
        let furthest = offsets.iter().max().map_or(0, |tap| tap + last) as usize;
        assert!(furthest < copied_len, "every tap lies in the copy");
        Packed {
            shape: *shape,
            weights: packed,
            blocks,
            groups,
            taps: offsets,
            positions,
            copied_len,
            plane,
            phases,
        }
    }

    pub(super) fn add_to(&self, input: &[u64], scratch: &mut Scratch, sum: &mut [u64]) {
        self.copy(input, &mut scratch.copied);
        let threads = rayon::current_num_threads();
        let tiles = self.positions.len() / POSITIONS;
        // As few blocks to a task as give every thread several, but no tiny ones: each task
        // gathers its inputs.
        let per_block = self.groups * VECTORS * ROWS;
        let wanted = (4 * threads).div_ceil(tiles);
        let parts = wanted.min((self.blocks * per_block).div_ceil(TASK)).max(1);
        let part = self.blocks.div_ceil(parts).max(1);
        let parts = self.blocks.div_ceil(part);
        let workers = threads.min(tiles * parts);
        if scratch.workers.len() < workers {
            scratch.workers.resize_with(workers, Worker::default);
        }
        let output = Output {
            sum: sum.as_mut_ptr(),
            positions: self.shape.out_height() * self.shape.out_width(),
        };
        debug_assert_eq!(sum.len(), output.positions * self.shape.channels_out);
        let (next, copied) = (AtomicUsize::new(0), &scratch.copied[..]);
        let work = |worker: &mut Worker| {
            worker.grow(part, self.groups.min(DEPTH));
            loop {
                let task = next.fetch_add(1, Ordering::Relaxed);
                if task >= tiles * parts {
                    break;
                }
                let (tile, first) = (task / parts, task % parts * part);
                let blocks = first..self.blocks.min(first + part);
                // SAFETY: `new` was promised the instructions, `copied` has `copied_len` elements,
                // and no other task has this tile and these blocks, so that no other writes
                // their outputs.
                unsafe { self.task(copied, tile, blocks, worker, &output) };
            }
        };
        match &mut scratch.workers[..workers] {
            [only] => work(only),
            workers => workers.par_iter_mut().with_max_len(1).for_each(work),
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
                        out[skipped..][..width].copy_from_slice(row);
                    } else if from < width {
                        let values = row[from..].iter().step_by(stride);
                        for (out, &x) in out[skipped..].iter_mut().zip(values) {
                            *out = x;
                        }
                    }
                }
            }
        }
    }

    /// Adds the outputs of some blocks at one tile.
    ///
    /// # Safety
    /// The instructions are present; `copied` has `copied_len` elements; `output` is valid for
    /// the shape, and nobody else uses the outputs of these blocks at this tile.
    #[target_feature(enable = "avx512f,avx512bw,avx512vnni")]
    unsafe fn task(
        &self,
        copied: &[u64],
        tile: usize,
        blocks: std::ops::Range<usize>,
        worker: &mut Worker,
        output: &Output,
    ) {
        let sums = &mut worker.sums[..blocks.len()];
        sums.fill(Sums([[[0; 16]; VECTORS]; ROWS]));
        let positions = &self.positions[tile * POSITIONS..][..POSITIONS];
        for from in (0..self.groups).step_by(DEPTH) {
            let depth = DEPTH.min(self.groups - from);
            let inputs = &mut worker.inputs[..depth];
            let taps = &self.taps[from * TAPS..][..depth * TAPS];
            // SAFETY: as promised by the caller, and `new` checked the largest tap and
            // position.
            unsafe { gather(copied, taps, positions, inputs) };
            for (block, sums) in blocks.clone().zip(&mut *sums) {
                let weights = &self.weights[block * self.groups + from..][..depth];
                multiply(weights, inputs, sums);
            }
        }
        for (block, sums) in blocks.zip(&*sums) {
            let rows = ROWS.min(self.shape.channels_out - block * ROWS);
            for (r, sums) in sums.0[..rows].iter().enumerate() {
                let values = recombine(sums);
                let (row, at) = (block * ROWS + r, tile * POSITIONS);
                let count = POSITIONS.min(output.positions - at);
                let mask = (0xffu32 >> (POSITIONS - count)) as __mmask8;
                // SAFETY: row and `count` positions from `at` on are the shape's, and this
                // task's alone.
                unsafe {
                    let to = output.sum.add(row * output.positions + at);
                    let old = _mm512_maskz_loadu_epi64(mask, to.cast());
                    let new = subtract_once(_mm512_add_epi64(old, values));
                    _mm512_mask_storeu_epi64(to.cast(), mask, new);
                }
            }
        }
    }
}

impl Worker {
    fn grow(&mut self, blocks: usize, depth: usize) {
        if self.sums.len() < blocks {
            self.sums.resize(blocks, Sums([[[0; 16]; VECTORS]; ROWS]));
        }
        if self.inputs.len() < depth {
            self.inputs.resize(depth, Inputs([[0; 64]; VECTORS]));
        }
    }
}

/// The result, of which each task writes its own part.
struct Output {
    sum: *mut u64,
    positions: usize,
}

// SAFETY: tasks write disjoint elements, and the slice it was made from is borrowed until all
// of them have ended.
unsafe impl Sync for Output {}

/// Interleaves the bytes of four taps at eight positions.
///
/// # Safety
/// The sums of each tap and each position are indices of `copied`.
#[target_feature(enable = "avx512f,avx512bw")]
unsafe fn gather(copied: &[u64], taps: &[u32], positions: &[u32], out: &mut [Inputs]) {
    let first = positions[0];
    let run = |p: &[u32]| p.iter().zip(p[0]..).all(|(&p, expected)| p == expected);
    let base = copied.as_ptr();
    let place = |tap: u32, position: u32| {
        debug_assert!(((tap + position) as usize) < copied.len());
        // SAFETY: an index of `copied`.
        unsafe { base.add(tap as usize + position as usize) }
    };
    if run(positions) {
        // SAFETY: eight neighbours, of which the last is an index too.
        interleave(taps, out, |tap| unsafe {
            _mm512_loadu_si512(place(tap, first).cast())
        });
    } else if run(&positions[..4]) && run(&positions[4..]) {
        let second = positions[4];
        // SAFETY: twice four neighbours.
        interleave(taps, out, |tap| unsafe {
            let low = _mm256_loadu_si256(place(tap, first).cast());
            let high = _mm256_loadu_si256(place(tap, second).cast());
            _mm512_inserti64x4::<1>(_mm512_castsi256_si512(low), high)
        });
    } else {
        // SAFETY: eight indices of four bytes.
        let indices = unsafe { _mm256_loadu_si256(positions.as_ptr().cast()) };
        // SAFETY: eight indices of `copied`, of eight bytes each.
        interleave(taps, out, |tap| unsafe {
            _mm512_i32gather_epi64::<8>(indices, place(tap, 0).cast())
        });
    }
}

/// Interleaves what `load` returns for each tap.
#[allow(
    clippy::needless_range_loop,
    reason = "one index runs over several arrays of registers"
)]
#[inline]
#[target_feature(enable = "avx512f,avx512bw")]
fn interleave(taps: &[u32], out: &mut [Inputs], load: impl Fn(u32) -> __m512i) {
    for (taps, out) in taps.chunks_exact(TAPS).zip(out) {
        let [a, b, c, d] = [load(taps[0]), load(taps[1]), load(taps[2]), load(taps[3])];
        let (ab, cd) = (_mm512_unpacklo_epi8(a, b), _mm512_unpacklo_epi8(c, d));
        let even = [_mm512_unpacklo_epi16(ab, cd), _mm512_unpackhi_epi16(ab, cd)];
        let (ab, cd) = (_mm512_unpackhi_epi8(a, b), _mm512_unpackhi_epi8(c, d));
        let odd = [_mm512_unpacklo_epi16(ab, cd), _mm512_unpackhi_epi16(ab, cd)];
        let vectors = [even[0], even[1], odd[0], odd[1]];
        for v in 0..VECTORS {
            // SAFETY: 64 bytes.
            unsafe { _mm512_storeu_si512(out.0[v].as_mut_ptr().cast(), vectors[v]) };
        }
    }
}

/// Adds the products of a block's weights and the inputs.
#[allow(
    clippy::needless_range_loop,
    reason = "one index runs over several arrays of registers"
)]
#[target_feature(enable = "avx512f,avx512vnni")]
fn multiply(weights: &[Weights], inputs: &[Inputs], sums: &mut Sums) {
    // Loops instead of `array::from_fn`: a closure is not inlined into a function without these
    // instructions.
    let mut total = [[_mm512_setzero_si512(); VECTORS]; ROWS];
    for r in 0..ROWS {
        for v in 0..VECTORS {
            // SAFETY: 64 bytes.
            total[r][v] = unsafe { _mm512_loadu_si512(sums.0[r][v].as_ptr().cast()) };
        }
    }
    for (weights, inputs) in weights.iter().zip(inputs) {
        let mut vectors = [_mm512_setzero_si512(); VECTORS];
        for v in 0..VECTORS {
            // SAFETY: 64 bytes.
            vectors[v] = unsafe { _mm512_loadu_si512(inputs.0[v].as_ptr().cast()) };
        }
        for r in 0..ROWS {
            let [a, b, c, d] = weights[r];
            let taps = i32::from_le_bytes([a as u8, b as u8, c as u8, d as u8]);
            let taps = _mm512_set1_epi32(taps);
            for v in 0..VECTORS {
                total[r][v] = _mm512_dpbusd_epi32(total[r][v], vectors[v], taps);
            }
        }
    }
    for r in 0..ROWS {
        for v in 0..VECTORS {
            // SAFETY: 64 bytes.
            unsafe { _mm512_storeu_si512(sums.0[r][v].as_mut_ptr().cast(), total[r][v]) };
        }
    }
}

/// The values of eight positions from the sums of their limbs.
#[inline]
#[target_feature(enable = "avx512f")]
fn recombine(sums: &[[i32; 16]; VECTORS]) -> __m512i {
    // Four limbs, each below 2^31: the value is below 2^55 + 2^47 + ... < 2^56.
    let scale = |low, high| _mm512_set_epi64(high, low, high, low, high, low, high, low);
    let (even_scale, odd_scale) = (scale(1, 1 << 16), scale(1 << 8, 1 << 24));
    let halves = |vector: &[i32; 16]| {
        // SAFETY: 64 bytes.
        let limbs = unsafe { _mm512_loadu_si512(vector.as_ptr().cast()) };
        let even = _mm512_mul_epi32(limbs, even_scale);
        let odd = _mm512_mul_epi32(_mm512_srli_epi64::<32>(limbs), odd_scale);
        _mm512_add_epi64(even, odd)
    };
    let join = |even: &[i32; 16], odd: &[i32; 16]| {
        let (even, odd) = (halves(even), halves(odd));
        _mm512_add_epi64(
            _mm512_unpacklo_epi64(even, odd),
            _mm512_unpackhi_epi64(even, odd),
        )
    };
    let (low, high) = (join(&sums[0], &sums[2]), join(&sums[1], &sums[3]));
    // 2^32 high = 2^60 h + 2^32 l = (2^18 - 1) h + 2^32 l mod p, with |h| < 2^28 and 0 <= l <
    // 2^28: the total lies above -2^57 and below 2^60 + 2^57.
    let h = _mm512_srai_epi64::<28>(high);
    let l = _mm512_and_si512(high, _mm512_set1_epi64((1 << 28) - 1));
    let folded = _mm512_sub_epi64(_mm512_slli_epi64::<18>(h), h);
    let total = _mm512_add_epi64(_mm512_add_epi64(low, folded), _mm512_slli_epi64::<32>(l));
    let negative = _mm512_srai_epi64::<63>(total);
    let modulus = _mm512_set1_epi64(P as i64);
    subtract_once(_mm512_add_epi64(total, _mm512_and_si512(negative, modulus)))
}

/// `x` modulo `p`, lane by lane, for `x < 2 p`.
#[inline]
#[target_feature(enable = "avx512f")]
fn subtract_once(x: __m512i) -> __m512i {
    // The difference wraps to a large number where it is negative.
    _mm512_min_epu64(x, _mm512_sub_epi64(x, _mm512_set1_epi64(P as i64)))
}
