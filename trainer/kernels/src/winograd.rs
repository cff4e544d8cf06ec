//! Convolutions of 3x3 at stride 1 by Winograd's F(4x4, 3x3): 36 products for sixteen outputs
//! instead of 144, in all three directions.
//!
//! A tile of 6x6 inputs becomes values at 36 points, `V = B^T d B`; at each they are multiplied
//! with the weights `U = G g G^T`; the products come back as 4x4 outputs, `A^T M A`. Backward the
//! gradient goes the same way in reverse: `D = A dy A^T`, `dU = V^T D` and `dV = D U^T`.

mod transform;

use std::cell::Cell;
use std::ops::Range;

use rayon::prelude::*;

use self::transform::*;

use crate::matrix::{self, Product, ROWS, Shape, TransposedProduct};
use crate::simd::{self, Kernel, LANES, Lane, Simd};
use crate::{Backend, Convolution};

/// Products of a tile.
const POINTS: usize = 36;

/// Most tiles transformed at a time: their values stay in the second- and third-level cache.
const TILES: usize = 144;

/// Weights `G g G^T` in blocks: `[blocks][36][depth][16]`.
pub(crate) struct Weights {
    lanes: Vec<Lane>,
    /// Vectors from one block to the next.
    stride: usize,
    /// Rows of a block's matrices, a multiple of sixteen.
    depth: usize,
}

impl Weights {
    /// Transforms `[c_out, c_in, 3, 3]` weights for products with inputs.
    pub(crate) fn forward(backend: Backend, g: &Convolution, weight: &[f32]) -> Self {
        Self::new(backend, weight, [g.c_out, g.c_in], [g.c_in, 1])
    }

    /// Transforms them for products with gradients of outputs.
    pub(crate) fn transposed(backend: Backend, g: &Convolution, weight: &[f32]) -> Self {
        Self::new(backend, weight, [g.c_in, g.c_out], [1, g.c_in])
    }

    /// `counts`: of lanes and of rows; `strides`: 3x3 kernels from one to the next.
    fn new(backend: Backend, weight: &[f32], counts: [usize; 2], strides: [usize; 2]) -> Self {
        let [lanes, rows] = counts;
        let depth = matrix::blocks(rows) * LANES;
        let stride = POINTS * depth;
        let mut out = vec![[0.0; LANES]; matrix::blocks(lanes) * stride];
        out.par_chunks_mut(stride)
            .enumerate()
            .for_each(|(block, out)| {
                let first = block * LANES;
                let weight = &weight[first * strides[0] * 9..];
                let lanes = LANES.min(lanes - first);
                simd::run(
                    backend,
                    PackWeights {
                        out,
                        depth,
                        rows,
                        lanes,
                        weight,
                        strides,
                    },
                );
            });
        Self {
            lanes: out,
            stride,
            depth,
        }
    }

    /// The matrices of one point, from its first block on.
    fn point(&self, point: usize) -> &[Lane] {
        &self.lanes[point * self.depth..]
    }
}

struct PackWeights<'a> {
    out: &'a mut [Lane],
    depth: usize,
    rows: usize,
    lanes: usize,
    /// The first lane's kernels.
    weight: &'a [f32],
    /// Kernels from one lane and from one row to the next.
    strides: [usize; 2],
}

impl Kernel for PackWeights<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        for row in 0..self.rows {
            let mut taps = [[0.0; LANES]; 9];
            for lane in 0..self.lanes {
                let kernel = lane * self.strides[0] + row * self.strides[1];
                let kernel = &self.weight[kernel * 9..][..9];
                for tap in 0..9 {
                    taps[tap][lane] = kernel[tap];
                }
            }
            let mut half = [[s.zero(); 3]; 6];
            for j in 0..3 {
                let column = [&taps[j], &taps[3 + j], &taps[6 + j]];
                let column = [s.load(column[0]), s.load(column[1]), s.load(column[2])];
                let column = Weight::apply(s, column);
                for i in 0..6 {
                    half[i][j] = column[i];
                }
            }
            for i in 0..6 {
                let values = Weight::apply(s, half[i]);
                for j in 0..6 {
                    s.store(&mut self.out[(6 * i + j) * self.depth + row], values[j]);
                }
            }
        }
    }
}

/// Tiles of some images.
#[derive(Clone, Copy)]
struct Tiles {
    /// Tiles of a row and rows of tiles of an image.
    side: [usize; 2],
    /// Height and width of the images.
    size: [usize; 2],
}

impl Tiles {
    fn new(g: &Convolution) -> Self {
        Self {
            side: [g.w.div_ceil(4), g.h.div_ceil(4)],
            size: [g.h, g.w],
        }
    }

    fn per_image(self) -> usize {
        self.side[0] * self.side[1]
    }

    /// Image, first row and first column of a tile's outputs.
    #[inline(always)]
    fn place(self, tile: usize) -> (usize, usize, usize) {
        let (image, tile) = (tile / self.per_image(), tile % self.per_image());
        (image, tile / self.side[0] * 4, tile % self.side[0] * 4)
    }

    /// Number of images whose tiles are transformed together.
    fn group(self) -> usize {
        (TILES / self.per_image()).max(1)
    }
}

/// Values of some tiles at all points: `[36][blocks][rows][16]`.
#[derive(Default)]
struct Values {
    lanes: Vec<Lane>,
    blocks: usize,
    rows: usize,
}

impl Values {
    fn resize(&mut self, channels: usize, tiles: usize) {
        self.blocks = matrix::blocks(channels);
        self.rows = tiles.next_multiple_of(ROWS);
        // All is written before it is read, but for the rows that fill up the last tile.
        self.lanes.resize(self.stride() * POINTS, [0.0; LANES]);
        for block in 0..POINTS * self.blocks {
            let (point, block) = (block / self.blocks, block % self.blocks);
            let start = point * self.stride() + block * self.rows;
            self.lanes[start + tiles..start + self.rows].fill([0.0; LANES]);
        }
    }

    /// Vectors from one point to the next: odd, so that the 36 do not fall on the same cache lines.
    #[inline(always)]
    fn stride(&self) -> usize {
        self.blocks * self.rows + 1
    }

    #[inline(always)]
    fn point(&self, point: usize) -> &[Lane] {
        &self.lanes[point * self.stride()..][..self.blocks * self.rows]
    }

    #[inline(always)]
    fn point_mut(&mut self, point: usize) -> &mut [Lane] {
        let stride = self.stride();
        &mut self.lanes[point * stride..][..self.blocks * self.rows]
    }

    /// `V = B^T d B` of the 6x6 inputs of each tile.
    #[inline(always)]
    fn of_inputs<S: Simd>(
        &mut self,
        s: S,
        tiles: Tiles,
        range: Range<usize>,
        (x, c): (&[f32], usize),
    ) {
        let [h, w] = tiles.size;
        self.resize(c, range.len());
        let stride = self.stride();
        for (row, tile) in range.enumerate() {
            let (image, top, left) = tiles.place(tile);
            let image = &x[image * h * w * c..][..h * w * c];
            for block in 0..self.blocks {
                let channels = Channels::new(block, c);
                let mut half = [[s.zero(); 6]; 6];
                for j in 0..6 {
                    let column = left + j;
                    let mut d = [s.zero(); 6];
                    if column > 0 && column <= w {
                        for i in 0..6 {
                            let row = top + i;
                            if row > 0 && row <= h {
                                d[i] = channels.load(s, image, (row - 1) * w + column - 1);
                            }
                        }
                        let d = Input::apply(s, d);
                        for i in 0..6 {
                            half[i][j] = d[i];
                        }
                    }
                }
                let lanes = &mut self.lanes[block * self.rows + row..];
                for i in 0..6 {
                    let v = Input::apply(s, half[i]);
                    for j in 0..6 {
                        s.store(&mut lanes[(6 * i + j) * stride], v[j]);
                    }
                }
            }
        }
    }

    /// Adds `B v B^T` to the inputs of each tile.
    #[inline(always)]
    fn add_to_inputs<S: Simd>(
        &self,
        s: S,
        tiles: Tiles,
        range: Range<usize>,
        (x, c): (&mut [f32], usize),
    ) {
        let [h, w] = tiles.size;
        let stride = self.stride();
        for (row, tile) in range.enumerate() {
            let (image, top, left) = tiles.place(tile);
            let image = &mut x[image * h * w * c..][..h * w * c];
            for block in 0..self.blocks {
                let channels = Channels::new(block, c);
                let lanes = &self.lanes[block * self.rows + row..];
                let mut half = [[s.zero(); 6]; 6];
                for j in 0..6 {
                    let mut v = [s.zero(); 6];
                    for i in 0..6 {
                        v[i] = s.load(&lanes[(6 * i + j) * stride]);
                    }
                    let v = InputAdjoint::apply(s, v);
                    for i in 0..6 {
                        half[i][j] = v[i];
                    }
                }
                for i in 0..6 {
                    let row = top + i;
                    if row == 0 || row > h {
                        continue;
                    }
                    let d = InputAdjoint::apply(s, half[i]);
                    for j in 0..6 {
                        let column = left + j;
                        if column > 0 && column <= w {
                            let pixel = (row - 1) * w + column - 1;
                            let sum = s.add(channels.load(s, image, pixel), d[j]);
                            channels.store(s, image, pixel, sum);
                        }
                    }
                }
            }
        }
    }

    /// Writes `A^T m A` to the outputs of each tile.
    #[inline(always)]
    fn to_outputs<S: Simd>(
        &self,
        s: S,
        tiles: Tiles,
        range: Range<usize>,
        (y, c): (&mut [f32], usize),
    ) {
        let [h, w] = tiles.size;
        let stride = self.stride();
        for (row, tile) in range.enumerate() {
            let (image, top, left) = tiles.place(tile);
            let image = &mut y[image * h * w * c..][..h * w * c];
            for block in 0..self.blocks {
                let channels = Channels::new(block, c);
                let lanes = &self.lanes[block * self.rows + row..];
                let mut half = [[s.zero(); 6]; 4];
                for j in 0..6 {
                    let mut m = [s.zero(); 6];
                    for i in 0..6 {
                        m[i] = s.load(&lanes[(6 * i + j) * stride]);
                    }
                    let m = Output::apply(s, m);
                    for i in 0..4 {
                        half[i][j] = m[i];
                    }
                }
                for i in 0..4.min(h - top) {
                    let y = Output::apply(s, half[i]);
                    for j in 0..4.min(w - left) {
                        channels.store(s, image, (top + i) * w + left + j, y[j]);
                    }
                }
            }
        }
    }

    /// `D = A dy A^T` of the 4x4 outputs of each tile.
    #[inline(always)]
    fn of_outputs<S: Simd>(
        &mut self,
        s: S,
        tiles: Tiles,
        range: Range<usize>,
        (grad, c): (&[f32], usize),
    ) {
        let [h, w] = tiles.size;
        self.resize(c, range.len());
        let stride = self.stride();
        for (row, tile) in range.enumerate() {
            let (image, top, left) = tiles.place(tile);
            let image = &grad[image * h * w * c..][..h * w * c];
            for block in 0..self.blocks {
                let channels = Channels::new(block, c);
                let mut half = [[s.zero(); 4]; 6];
                for j in 0..4.min(w - left) {
                    let mut y = [s.zero(); 4];
                    for i in 0..4 {
                        if top + i < h {
                            y[i] = channels.load(s, image, (top + i) * w + left + j);
                        }
                    }
                    let y = OutputAdjoint::apply(s, y);
                    for i in 0..6 {
                        half[i][j] = y[i];
                    }
                }
                let lanes = &mut self.lanes[block * self.rows + row..];
                for i in 0..6 {
                    let d = OutputAdjoint::apply(s, half[i]);
                    for j in 0..6 {
                        s.store(&mut lanes[(6 * i + j) * stride], d[j]);
                    }
                }
            }
        }
    }

    /// Multiplies each point's values with its weights.
    #[inline(always)]
    fn times<S: Simd>(&self, s: S, weights: &Weights, channels: usize, out: &mut Values) {
        out.blocks = matrix::blocks(channels);
        out.rows = self.rows;
        out.lanes.resize(out.stride() * POINTS, [0.0; LANES]);
        let shape = Shape {
            rows: self.rows,
            depth: self.blocks,
            columns: out.blocks,
        };
        for point in 0..POINTS {
            s.product(Product {
                shape,
                a: self.point(point),
                b: weights.point(point),
                b_stride: weights.stride,
                c: out.point_mut(point),
            });
        }
    }
}

/// Sixteen channels of a map, or those that are left.
#[derive(Clone, Copy)]
struct Channels {
    /// Channels of the map.
    all: usize,
    first: usize,
    count: usize,
}

impl Channels {
    #[inline(always)]
    fn new(block: usize, all: usize) -> Self {
        let first = block * LANES;
        Self {
            all,
            first,
            count: LANES.min(all - first),
        }
    }

    #[inline(always)]
    fn load<S: Simd>(self, s: S, map: &[f32], pixel: usize) -> S::V {
        s.load_first(&map[pixel * self.all + self.first..][..self.count])
    }

    #[inline(always)]
    fn store<S: Simd>(self, s: S, map: &mut [f32], pixel: usize, v: S::V) {
        s.store_first(&mut map[pixel * self.all + self.first..][..self.count], v);
    }
}

/// Memory that a thread keeps from one layer to the next: fresh memory would cost as much as the
/// transforms.
#[derive(Default)]
struct Scratch {
    v: Values,
    d: Values,
    /// Gradient by the transformed weights: `[c_out / 16][36][c_in][16]`.
    u: Vec<Lane>,
}

thread_local! {
    static SCRATCH: Cell<Scratch> = Cell::default();
}

/// Outputs of a group of images.
struct Forward<'a> {
    g: &'a Convolution,
    weights: &'a Weights,
    x: &'a [f32],
    out: &'a mut [f32],
}

impl Kernel for Forward<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Forward { g, weights, x, out } = self;
        let Scratch { mut v, mut d, u } = SCRATCH.take();
        let tiles = Tiles::new(g);
        let all = x.len() / g.in_image() * tiles.per_image();
        let step = matrix::step(all, TILES);
        for start in (0..all).step_by(step) {
            let range = start..all.min(start + step);
            v.of_inputs(s, tiles, range.clone(), (x, g.c_in));
            v.times(s, weights, g.c_out, &mut d);
            d.to_outputs(s, tiles, range, (out, g.c_out));
        }
        SCRATCH.set(Scratch { v, d, u });
    }
}

/// Returns the number of tiles of an image.
pub(crate) fn tiles(g: &Convolution) -> usize {
    Tiles::new(g).per_image()
}

/// Computes the outputs `[n, h, w, c_out]` of inputs `[n, h, w, c_in]`.
pub(crate) fn forward(
    backend: Backend,
    g: &Convolution,
    x: &[f32],
    weight: &[f32],
    out: &mut [f32],
) {
    let weights = Weights::forward(backend, g, weight);
    let group = Tiles::new(g).group();
    out.par_chunks_mut(group * g.out_image())
        .zip(x.par_chunks(group * g.in_image()))
        .for_each(|(out, x)| {
            let weights = &weights;
            simd::run(backend, Forward { g, weights, x, out });
        });
}

/// Both gradients of a share of the images.
pub(crate) struct Share<'a> {
    pub(crate) g: &'a Convolution,
    pub(crate) x: &'a [f32],
    pub(crate) grad: &'a [f32],
    /// Transposed weights, and the gradient by the inputs, zero at first.
    pub(crate) by_input: Option<(&'a Weights, &'a mut [f32])>,
    /// The gradient by the weights, `[c_out, c_in, 3, 3]`, overwritten.
    pub(crate) by_weight: Option<&'a mut [f32]>,
}

impl Kernel for Share<'_> {
    #[inline(always)]
    fn run<S: Simd>(self, s: S) {
        let Share {
            g,
            x,
            grad,
            mut by_input,
            by_weight,
        } = self;
        let tiles = Tiles::new(g);
        let all = x.len() / g.in_image() * tiles.per_image();
        let step = matrix::step(all, TILES);
        let Scratch {
            mut v,
            mut d,
            mut u,
        } = SCRATCH.take();
        let depth = matrix::blocks(g.c_in) * LANES;
        let u_stride = POINTS * depth;
        if by_weight.is_some() {
            u.resize(matrix::blocks(g.c_out) * u_stride, [0.0; LANES]);
        }
        for start in (0..all).step_by(step) {
            let range = start..all.min(start + step);
            d.of_outputs(s, tiles, range.clone(), (grad, g.c_out));
            if by_weight.is_some() {
                v.of_inputs(s, tiles, range.clone(), (x, g.c_in));
                let shape = Shape {
                    rows: v.rows,
                    depth: v.blocks,
                    columns: d.blocks,
                };
                for point in 0..POINTS {
                    s.transposed_product(TransposedProduct {
                        shape,
                        v: v.point(point),
                        d: d.point(point),
                        u: &mut u[point * depth..],
                        u_stride,
                        adds: start > 0,
                    });
                }
            }
            if let Some((weights, out)) = &mut by_input {
                d.times(s, weights, g.c_in, &mut v);
                v.add_to_inputs(s, tiles, range, (out, g.c_in));
            }
        }
        if let Some(out) = by_weight {
            unpack(s, g, &u, out);
        }
        SCRATCH.set(Scratch { v, d, u });
    }
}

/// Writes `G^T u G` as weights.
#[inline(always)]
fn unpack<S: Simd>(s: S, g: &Convolution, u: &[Lane], out: &mut [f32]) {
    let depth = matrix::blocks(g.c_in) * LANES;
    for (block, u) in u.chunks_exact(POINTS * depth).enumerate() {
        let first = block * LANES;
        for c in 0..g.c_in {
            let mut half = [[s.zero(); 6]; 3];
            for j in 0..6 {
                let mut column = [s.zero(); 6];
                for i in 0..6 {
                    column[i] = s.load(&u[(6 * i + j) * depth + c]);
                }
                let column = WeightAdjoint::apply(s, column);
                for i in 0..3 {
                    half[i][j] = column[i];
                }
            }
            let mut lanes = [[0.0; LANES]; 9];
            for i in 0..3 {
                let taps = WeightAdjoint::apply(s, half[i]);
                for j in 0..3 {
                    s.store(&mut lanes[3 * i + j], taps[j]);
                }
            }
            for lane in 0..LANES.min(g.c_out - first) {
                let kernel = (first + lane) * g.c_in + c;
                for (tap, lanes) in out[kernel * 9..][..9].iter_mut().zip(&lanes) {
                    *tap = lanes[lane];
                }
            }
        }
    }
}
