//! Patch matrices: a convolution as a matrix product over a few images at a time.
//!
//! The patches of a tile of images become the columns of a matrix (`gather`), which the weight is
//! multiplied with; backward, a matrix of patches is added back onto the images (`scatter`). A tile
//! is as many images as keep the matrix in the second-level cache.

use burn::backend::TensorMetadata;

use super::flex::Dense;

/// Patches gathered at a time, in floats: 1 MiB, half of a server core's second-level cache.
const PATCH_FLOATS: usize = 1 << 18;

/// Sizes of one convolution and the moves between images and patch matrices.
#[derive(Clone, Copy)]
pub(super) struct Geometry {
    pub(super) n: usize,
    pub(super) c_in: usize,
    pub(super) h: usize,
    pub(super) w: usize,
    pub(super) c_out: usize,
    pub(super) k_h: usize,
    pub(super) k_w: usize,
    pub(super) h_out: usize,
    pub(super) w_out: usize,
    stride: usize,
    padding: usize,
}

impl Geometry {
    pub(super) fn new(x: &Dense, weight: &Dense, stride: usize, padding: usize) -> Self {
        let [n, c_in, h, w] = x.shape().dims();
        let [c_out, c_weight, k_h, k_w] = weight.shape().dims();
        assert_eq!(
            c_in, c_weight,
            "a convolution's weight must have its input's channels"
        );
        let h_out = (h + 2 * padding - k_h) / stride + 1;
        let w_out = (w + 2 * padding - k_w) / stride + 1;
        Self {
            n,
            c_in,
            h,
            w,
            c_out,
            k_h,
            k_w,
            h_out,
            w_out,
            stride,
            padding,
        }
    }

    pub(super) fn patch(&self) -> usize {
        self.c_in * self.k_h * self.k_w
    }

    pub(super) fn out_plane(&self) -> usize {
        self.h_out * self.w_out
    }

    pub(super) fn in_image(&self) -> usize {
        self.c_in * self.h * self.w
    }

    pub(super) fn out_image(&self) -> usize {
        self.c_out * self.out_plane()
    }

    /// Images whose patches are gathered together.
    pub(super) fn tile(&self) -> usize {
        (PATCH_FLOATS / (self.patch() * self.out_plane())).max(1)
    }

    /// Calls `visit` for each tap of the kernel in each image of a tile.
    fn taps(&self, images: usize, mut visit: impl FnMut(Tap)) {
        let columns = images * self.out_plane();
        // Outputs `first..end` of a row or column read inside the image.
        let range = |tap: usize, side: usize, out: usize| {
            let first = self
                .padding
                .saturating_sub(tap)
                .div_ceil(self.stride)
                .min(out);
            let end = (side + self.padding)
                .saturating_sub(tap)
                .div_ceil(self.stride)
                .min(out);
            (first, end.max(first))
        };
        for c in 0..self.c_in {
            for ky in 0..self.k_h {
                let rows = range(ky, self.h, self.h_out);
                for kx in 0..self.k_w {
                    let row = ((c * self.k_h + ky) * self.k_w + kx) * columns;
                    let outs = range(kx, self.w, self.w_out);
                    for image in 0..images {
                        visit(Tap {
                            patch: row + image * self.out_plane(),
                            plane: (image * self.c_in + c) * self.h * self.w,
                            shift: ky as isize * self.w as isize + kx as isize
                                - (self.padding * (self.w + 1)) as isize,
                            rows,
                            outs,
                        });
                    }
                }
            }
        }
    }

    /// Position in a tap's image plane that output `(y, x)` of its patch row reads.
    fn source(&self, tap: &Tap, y: usize, x: usize) -> usize {
        ((y * self.w + x) * self.stride)
            .checked_add_signed(tap.shift)
            .expect("rows and columns lie in the image")
    }

    /// Patch matrix of a tile: `[patch, images * out_plane]`, zero where the padding is.
    pub(super) fn gather(&self, x: &[f32]) -> Vec<f32> {
        let images = x.len() / self.in_image();
        let size = self.patch() * images * self.out_plane();
        // Taps come in the order of the matrix: it is written once, from its start to its end.
        let mut patches = Vec::with_capacity(size);
        self.taps(images, |tap| {
            let plane = &x[tap.plane..][..self.h * self.w];
            let ((top, bottom), (left, right)) = (tap.rows, tap.outs);
            if top == bottom || left == right {
                return;
            }
            if self.same_size() {
                // One copy of all rows, shifted; then the columns that wrapped around are cleared.
                let (first, last) = (
                    self.source(&tap, top, left),
                    self.source(&tap, bottom - 1, right - 1),
                );
                patches.resize(tap.patch + top * self.w + left, 0.0);
                patches.extend_from_slice(&plane[first..=last]);
                patches.resize(tap.patch + self.out_plane(), 0.0);
                if right - left < self.w {
                    for row in patches[tap.patch..].chunks_exact_mut(self.w) {
                        row[..left].fill(0.0);
                        row[right..].fill(0.0);
                    }
                }
                return;
            }
            for y in top..bottom {
                let source = plane[self.source(&tap, y, left)..].iter();
                patches.resize(tap.patch + y * self.w_out + left, 0.0);
                patches.extend(source.step_by(self.stride).take(right - left));
            }
        });
        patches.resize(size, 0.0);
        patches
    }

    /// Adds a patch matrix back onto the images: the transpose of [`Self::gather`].
    pub(super) fn scatter(&self, patches: &mut [f32], x: &mut [f32]) {
        let images = x.len() / self.in_image();
        self.taps(images, |tap| {
            let patch = &mut patches[tap.patch..][..self.out_plane()];
            let plane = &mut x[tap.plane..][..self.h * self.w];
            let ((top, bottom), (left, right)) = (tap.rows, tap.outs);
            if top == bottom || left == right {
                return;
            }
            if self.same_size() {
                if right - left < self.w {
                    for row in patch.chunks_exact_mut(self.w) {
                        row[..left].fill(0.0);
                        row[right..].fill(0.0);
                    }
                }
                let (first, last) = (
                    self.source(&tap, top, left),
                    self.source(&tap, bottom - 1, right - 1),
                );
                let start = top * self.w + left;
                for (v, p) in plane[first..=last].iter_mut().zip(&patch[start..]) {
                    *v += p;
                }
                return;
            }
            for y in top..bottom {
                let target = plane[self.source(&tap, y, left)..]
                    .iter_mut()
                    .step_by(self.stride);
                for (p, v) in patch[y * self.w_out + left..y * self.w_out + right]
                    .iter()
                    .zip(target)
                {
                    *v += p;
                }
            }
        });
    }

    /// True if outputs and inputs lie one to one, so that a tap is a shift of the whole plane.
    fn same_size(&self) -> bool {
        self.stride == 1 && self.w_out == self.w && self.h_out == self.h
    }

    /// `[c_out, images, plane]` to `[images, c_out, plane]`.
    pub(super) fn interleave(&self, y: &[f32], out: &mut [f32]) {
        let plane = self.out_plane();
        let images = out.len() / self.out_image();
        for (index, chunk) in out.chunks_exact_mut(plane).enumerate() {
            let (image, channel) = (index / self.c_out, index % self.c_out);
            chunk.copy_from_slice(&y[(channel * images + image) * plane..][..plane]);
        }
    }

    /// `[images, c_out, plane]` to `[c_out, images, plane]`.
    pub(super) fn deinterleave(&self, y: &[f32]) -> Vec<f32> {
        let plane = self.out_plane();
        let images = y.len() / self.out_image();
        let mut out = Vec::with_capacity(y.len());
        for channel in 0..self.c_out {
            for image in 0..images {
                out.extend_from_slice(&y[(image * self.c_out + channel) * plane..][..plane]);
            }
        }
        out
    }
}

/// A tap of the kernel over an image plane.
struct Tap {
    /// Start of its row of patches for this image.
    patch: usize,
    /// Start of the image plane.
    plane: usize,
    /// Position read by output (0, 0), relative to the plane: negative in the padding.
    shift: isize,
    /// Output rows that read inside the image.
    rows: (usize, usize),
    /// Output columns that read inside the image.
    outs: (usize, usize),
}
