//! Matrix products on matrices in blocks of sixteen columns.
//!
//! A matrix of `rows` rows and `16 b` columns lies as `b` blocks of `rows` vectors: element
//! `(r, c)` is lane `c % 16` of vector `(c / 16) * rows + r`. The innermost loops then read vectors
//! and single factors one after the other, and nothing is packed for them.

use crate::simd::{LANES, Lane, Simd};

/// Rows of left factors come in multiples of this, which every back end's tile divides.
pub(crate) const ROWS: usize = 12;

/// Depth of the part of a product that keeps its sums in registers: the columns of the right
/// factor's part stay in the first-level cache.
const DEPTH: usize = 256;

/// Returns the number of blocks that hold `count` columns.
pub(crate) const fn blocks(count: usize) -> usize {
    count.div_ceil(LANES)
}

/// Returns how many of `all` rows to take at a time: as even parts as rows allow, of about `most`.
pub(crate) fn step(all: usize, most: usize) -> usize {
    let parts = all.div_ceil(most).max(1);
    all.div_ceil(parts).next_multiple_of(ROWS).max(ROWS)
}

/// The product `c = a b`.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    /// Rows of `a` and `c`, a multiple of [`ROWS`].
    pub(crate) rows: usize,
    /// Blocks of columns of `a`: sixteen rows of `b` each.
    pub(crate) depth: usize,
    /// Blocks of columns of `b` and `c`.
    pub(crate) columns: usize,
}

/// The product `c = a b`, and how far apart the blocks of each matrix lie.
pub(crate) struct Product<'a> {
    pub(crate) shape: Shape,
    /// `[depth][rows]`
    pub(crate) a: &'a [Lane],
    /// `[columns][16 depth]`, each block `b_stride` vectors after the one before.
    pub(crate) b: &'a [Lane],
    pub(crate) b_stride: usize,
    /// `[columns][rows]`, overwritten.
    pub(crate) c: &'a mut [Lane],
}

/// The product `u = v^T d`, or `u += v^T d`, summed over the rows of `v` and `d`.
pub(crate) struct TransposedProduct<'a> {
    /// `rows`: those of `v` and `d`; `depth`: blocks of columns of `v`; `columns`: of `d`.
    pub(crate) shape: Shape,
    /// `[depth][rows]`
    pub(crate) v: &'a [Lane],
    /// `[columns][rows]`
    pub(crate) d: &'a [Lane],
    /// `[columns][16 depth]`, each block `u_stride` vectors after the one before.
    pub(crate) u: &'a mut [Lane],
    pub(crate) u_stride: usize,
    /// True if `u` is added to, false if it is overwritten.
    pub(crate) adds: bool,
}

/// Computes a product by tiles of `R` rows and `N` blocks of columns.
#[inline(always)]
pub(crate) fn product<S: Simd, const R: usize, const N: usize>(s: S, product: Product<'_>) {
    const { assert!(ROWS.is_multiple_of(R)) };
    let Product {
        shape,
        a,
        b,
        b_stride,
        c,
    } = product;
    let Shape {
        rows,
        depth,
        columns,
    } = shape;
    let part = DEPTH / LANES;
    for k in (0..depth).step_by(part) {
        let end = depth.min(k + part);
        let a = &a[k * rows..end * rows];
        let mut column = 0;
        while column + N <= columns {
            let b: [&[Lane]; N] =
                std::array::from_fn(|n| &b[(column + n) * b_stride..][k * LANES..end * LANES]);
            let c = &mut c[column * rows..][..N * rows];
            for row in (0..rows).step_by(R) {
                tile::<S, R, N>(
                    s,
                    a,
                    b,
                    c,
                    Tile {
                        rows,
                        row,
                        adds: k > 0,
                    },
                );
            }
            column += N;
        }
        while column < columns {
            let b = [&b[column * b_stride..][k * LANES..end * LANES]];
            let c = &mut c[column * rows..][..rows];
            for row in (0..rows).step_by(R) {
                tile::<S, R, 1>(
                    s,
                    a,
                    b,
                    c,
                    Tile {
                        rows,
                        row,
                        adds: k > 0,
                    },
                );
            }
            column += 1;
        }
    }
}

/// Place of a tile in its matrices.
struct Tile {
    /// Rows of the matrices.
    rows: usize,
    /// First row of the tile.
    row: usize,
    /// True if the tile's values are added to.
    adds: bool,
}

#[inline(always)]
fn tile<S: Simd, const R: usize, const N: usize>(
    s: S,
    a: &[Lane],
    b: [&[Lane]; N],
    c: &mut [Lane],
    Tile { rows, row, adds }: Tile,
) {
    let mut sums = [[s.zero(); N]; R];
    if adds {
        for n in 0..N {
            let c: &[Lane; R] = c[n * rows + row..].first_chunk().expect("rows of a tile");
            for i in 0..R {
                sums[i][n] = s.load(&c[i]);
            }
        }
    }
    for (block, a) in a.chunks_exact(rows).enumerate() {
        let a: &[Lane; R] = a[row..].first_chunk().expect("rows of a tile");
        let b: [&[Lane; LANES]; N] = std::array::from_fn(|n| {
            b[n][block * LANES..]
                .first_chunk()
                .expect("rows of a block")
        });
        for k in 0..LANES {
            let mut row = [s.zero(); N];
            for n in 0..N {
                row[n] = s.load(&b[n][k]);
            }
            for i in 0..R {
                let factor = s.splat(a[i][k]);
                for n in 0..N {
                    sums[i][n] = s.mul_add(factor, row[n], sums[i][n]);
                }
            }
        }
    }
    for n in 0..N {
        let c: &mut [Lane; R] = c[n * rows + row..]
            .first_chunk_mut()
            .expect("rows of a tile");
        for i in 0..R {
            s.store(&mut c[i], sums[i][n]);
        }
    }
}

/// Computes or adds a transposed product by tiles of `R` columns of `v` and `N` blocks of columns
/// of `d`.
#[inline(always)]
pub(crate) fn transposed_product<S: Simd, const R: usize, const N: usize>(
    s: S,
    product: TransposedProduct<'_>,
) {
    const { assert!(LANES.is_multiple_of(R)) };
    let TransposedProduct {
        shape,
        v,
        d,
        u,
        u_stride,
        adds,
    } = product;
    let Shape {
        rows,
        depth,
        columns,
    } = shape;
    let mut column = 0;
    while column + N <= columns {
        let d = std::array::from_fn(|n| &d[(column + n) * rows..][..rows]);
        for block in 0..depth {
            let v = &v[block * rows..][..rows];
            for part in 0..LANES / R {
                let start = column * u_stride + block * LANES + part * R;
                transposed_tile::<S, R, N>(s, v, part, d, (&mut u[start..], u_stride, adds));
            }
        }
        column += N;
    }
    while column < columns {
        let d = [&d[column * rows..][..rows]];
        for block in 0..depth {
            let v = &v[block * rows..][..rows];
            for part in 0..LANES / R {
                let start = column * u_stride + block * LANES + part * R;
                transposed_tile::<S, R, 1>(s, v, part, d, (&mut u[start..], u_stride, adds));
            }
        }
        column += 1;
    }
}

#[inline(always)]
fn transposed_tile<S: Simd, const R: usize, const N: usize>(
    s: S,
    v: &[Lane],
    part: usize,
    d: [&[Lane]; N],
    (u, stride, adds): (&mut [Lane], usize, bool),
) {
    let d = d.map(|d| &d[..v.len()]);
    let mut sums = [[s.zero(); N]; R];
    if adds {
        for n in 0..N {
            let u: &[Lane; R] = u[n * stride..].first_chunk().expect("rows of a tile");
            for i in 0..R {
                sums[i][n] = s.load(&u[i]);
            }
        }
    }
    for (row, v) in v.iter().enumerate() {
        let factors = &v.as_chunks::<R>().0[part];
        let mut vectors = [s.zero(); N];
        for n in 0..N {
            vectors[n] = s.load(&d[n][row]);
        }
        for i in 0..R {
            let factor = s.splat(factors[i]);
            for n in 0..N {
                sums[i][n] = s.mul_add(factor, vectors[n], sums[i][n]);
            }
        }
    }
    for n in 0..N {
        let u: &mut [Lane; R] = u[n * stride..].first_chunk_mut().expect("rows of a tile");
        for i in 0..R {
            s.store(&mut u[i], sums[i][n]);
        }
    }
}
