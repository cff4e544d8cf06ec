//! Convolutions over `F_p` in the clear: what the server computes online for each linear layer.
//!
//! The result is exact modulo `p`. [`conv2d_fp_scalar`] is the definition; [`PreparedConv`] packs
//! the weights once, for a server that computes the convolution for every inference.
//!
//! # Back ends
//! [`PreparedConv::new`] chooses once, by the machine and the public bound on the weights:
//! - `vnni`: weights of up to seven bits and a sign; needs AVX-512F, BW and VNNI;
//! - `madd`: weights of up to thirteen bits and a sign; needs AVX-512 with VNNI, AVX2 or NEON. Its
//!   3x3 kernels with stride 1 and weights of up to eleven bits multiply less, and are the first
//!   choice if there are many channels;
//! - `limbs`: any weights, in `f64`; its matrix product has separate back ends.
//!
//! The first two share `tiles`: packing, gathering and the division into tasks.
//!
//! # Timing
//! Weights are secret: no branch and no skipped work depends on inputs or weights, not even which
//! of the ways is taken.

mod limbs;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod madd;
mod scalar;
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
mod tiles;
#[cfg(target_arch = "x86_64")]
mod vnni;

pub use scalar::conv2d_fp_scalar;

use pi_core::{Backend, fp};
use zeroize::Zeroizing;

/// A convolution over `F_p` whose weights were packed once; see [`PreparedConv::add_to`].
pub struct PreparedConv {
    shape: ConvShape,
    kernel: Kernel,
}

enum Kernel {
    /// The weights as they came, with a bound on their absolute sum for an output channel.
    Words {
        weights: Zeroizing<Vec<i16>>,
        row_sum_bound: u64,
        multiply: limbs::Multiply,
    },
    #[cfg(target_arch = "x86_64")]
    Vnni(tiles::Packed<vnni::Vnni>),
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    Winograd(tiles::Packed<madd::Winograd<madd::Madd>>),
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    Madd(tiles::Packed<madd::Madd>),
    #[cfg(target_arch = "x86_64")]
    WideWinograd(tiles::Packed<madd::Winograd<madd::WideMadd>>),
    #[cfg(target_arch = "x86_64")]
    WideMadd(tiles::Packed<madd::WideMadd>),
}

/// Memory that convolutions of any shape work in; grown by the first use, erased when dropped.
#[derive(Default)]
pub struct ConvScratch {
    #[cfg(target_arch = "x86_64")]
    vnni: tiles::Scratch<vnni::Vnni>,
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    winograd: tiles::Scratch<madd::Winograd<madd::Madd>>,
    #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
    madd: tiles::Scratch<madd::Madd>,
    #[cfg(target_arch = "x86_64")]
    wide_winograd: tiles::Scratch<madd::Winograd<madd::WideMadd>>,
    #[cfg(target_arch = "x86_64")]
    wide_madd: tiles::Scratch<madd::WideMadd>,
}

/// Input and output channels from which fewer multiplications outweigh transformations: on Zen 3
/// and 4 they gain a tenth to a quarter with 64 channels, half to two thirds with 128 and 256.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
const WINOGRAD_CHANNELS: usize = 64;

impl PreparedConv {
    /// Packs the weights (`O C kh kw`), for which `|w| < 2^weight_bits` holds publicly.
    ///
    /// # Panics
    /// If the number of weights is not the shape's, the kernel exceeds the padded input, the stride
    /// is 0, or `weight_bits` exceeds 15.
    pub fn new(weights: &[i16], shape: ConvShape, weight_bits: u8) -> Self {
        shape.check_weights(weights);
        assert!(weight_bits <= 15, "weights of {weight_bits} bits");
        debug_assert!(weights.iter().all(|w| w.unsigned_abs() < 1 << weight_bits));
        Self::on(Backend::get(), weights, shape, weight_bits)
    }

    /// [`PreparedConv::new`] on a back end that the machine supports, checked before.
    fn on(backend: Backend, weights: &[i16], shape: ConvShape, weight_bits: u8) -> Self {
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        {
            let many = shape.channels_in.min(shape.channels_out) >= WINOGRAD_CHANNELS;
            let kernel = many
                .then(|| winograd(backend, weights, &shape, weight_bits))
                .flatten()
                .or_else(|| direct(backend, weights, &shape, weight_bits));
            if let Some(kernel) = kernel {
                return Self { shape, kernel };
            }
        }
        Self::words(backend, weights, shape, weight_bits)
    }

    /// What it is called where it is measured.
    #[cfg(test)]
    fn kind(&self) -> &'static str {
        match self.kernel {
            Kernel::Words { .. } => "f64",
            #[cfg(target_arch = "x86_64")]
            Kernel::Vnni(_) => "vnni",
            #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
            Kernel::Winograd(_) => "winograd",
            #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
            Kernel::Madd(_) => "madd",
            #[cfg(target_arch = "x86_64")]
            Kernel::WideWinograd(_) => "winograd, 512 bits",
            #[cfg(target_arch = "x86_64")]
            Kernel::WideMadd(_) => "madd, 512 bits",
        }
    }

    fn words(backend: Backend, weights: &[i16], shape: ConvShape, weight_bits: u8) -> Self {
        let row_sum_bound = (shape.taps() as u64) << weight_bits;
        let kernel = Kernel::Words {
            weights: Zeroizing::new(weights.to_vec()),
            row_sum_bound,
            multiply: limbs::multiply_on(backend),
        };
        Self { shape, kernel }
    }

    /// The shape.
    pub fn shape(&self) -> &ConvShape {
        &self.shape
    }

    /// Adds the convolution of `input` (`C H W`) to `sum` (`O H' W'`), modulo `p`.
    ///
    /// # Cost
    /// `output_len * taps / 8` instructions with AVX-512 VNNI, one a cycle on Zen 4, twice as many
    /// with AVX2, two a cycle on Zen 3; 3x3 kernels with stride 1 and many channels need 16 for 36
    /// of them. No allocation once `scratch` has seen the shape; the work is shared among
    /// the threads of the current rayon pool.
    /// # Panics
    /// If lengths do not match the shape.
    pub fn add_to(&self, input: &[u64], scratch: &mut ConvScratch, sum: &mut [u64]) {
        assert_eq!(input.len(), self.shape.input_len(), "input length");
        assert_eq!(sum.len(), self.shape.output_len(), "output length");
        match &self.kernel {
            Kernel::Words {
                weights,
                row_sum_bound,
                multiply,
            } => {
                let (shape, bound) = (&self.shape, *row_sum_bound);
                let product = limbs::conv2d(input, weights, shape, bound, *multiply);
                for (sum, product) in sum.iter_mut().zip(product) {
                    *sum = fp::add(*sum, product);
                }
            }
            #[cfg(target_arch = "x86_64")]
            Kernel::Vnni(packed) => packed.add_to(input, &mut scratch.vnni, sum),
            #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
            Kernel::Winograd(packed) => packed.add_to(input, &mut scratch.winograd, sum),
            #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
            Kernel::Madd(packed) => packed.add_to(input, &mut scratch.madd, sum),
            #[cfg(target_arch = "x86_64")]
            Kernel::WideWinograd(packed) => packed.add_to(input, &mut scratch.wide_winograd, sum),
            #[cfg(target_arch = "x86_64")]
            Kernel::WideMadd(packed) => packed.add_to(input, &mut scratch.wide_madd, sum),
        }
        #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
        let _ = scratch;
    }
}

/// The kernel that multiplies less, if the back end has it and it is exact.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn winograd(
    backend: Backend,
    weights: &[i16],
    shape: &ConvShape,
    weight_bits: u8,
) -> Option<Kernel> {
    // SAFETY: the machine supports the back end, and AVX2 and NEON exist on one architecture each.
    unsafe {
        match backend {
            #[cfg(target_arch = "x86_64")]
            Backend::Avx512 => {
                madd::pack_winograd(weights, shape, weight_bits).map(Kernel::WideWinograd)
            }
            Backend::Avx2 | Backend::Neon => {
                madd::pack_winograd(weights, shape, weight_bits).map(Kernel::Winograd)
            }
            _ => None,
        }
    }
}

/// The kernel that multiplies by each weight, if the back end has one that is exact.
#[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
fn direct(backend: Backend, weights: &[i16], shape: &ConvShape, weight_bits: u8) -> Option<Kernel> {
    let plane_out = (shape.out_height(), shape.out_width());
    let depth = madd::depth(shape, weight_bits);
    // SAFETY: the machine supports the back end, and AVX2 and NEON exist on one architecture each.
    unsafe {
        match backend {
            #[cfg(target_arch = "x86_64")]
            Backend::Avx512 if vnni::is_exact(shape, weight_bits) => Some(Kernel::Vnni(
                tiles::Packed::new(weights, shape, plane_out, vnni::DEPTH),
            )),
            #[cfg(target_arch = "x86_64")]
            Backend::Avx512 => Some(Kernel::WideMadd(tiles::Packed::new(
                weights, shape, plane_out, depth?,
            ))),
            Backend::Avx2 | Backend::Neon => Some(Kernel::Madd(tiles::Packed::new(
                weights, shape, plane_out, depth?,
            ))),
            _ => None,
        }
    }
}

/// Zeros around an input plane.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Padding {
    /// Rows above.
    pub top: usize,
    /// Columns to the left.
    pub left: usize,
    /// Rows below.
    pub bottom: usize,
    /// Columns to the right.
    pub right: usize,
}

/// The shape of a convolution: `(channels_in, height, width)` to `(channels_out, out_height(),
/// out_width())`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConvShape {
    /// Input channels.
    pub channels_in: usize,
    /// Input rows.
    pub height: usize,
    /// Input columns.
    pub width: usize,
    /// Output channels.
    pub channels_out: usize,
    /// Kernel rows.
    pub kernel_height: usize,
    /// Kernel columns.
    pub kernel_width: usize,
    /// Step in both directions.
    pub stride: usize,
    /// Zeros around the input.
    pub padding: Padding,
}

impl ConvShape {
    /// Output rows.
    pub fn out_height(&self) -> usize {
        (self.height + self.padding.top + self.padding.bottom - self.kernel_height) / self.stride
            + 1
    }

    /// Output columns.
    pub fn out_width(&self) -> usize {
        (self.width + self.padding.left + self.padding.right - self.kernel_width) / self.stride + 1
    }

    /// Input values.
    pub fn input_len(&self) -> usize {
        self.channels_in * self.height * self.width
    }

    /// Weights of one output channel.
    pub fn taps(&self) -> usize {
        self.channels_in * self.kernel_height * self.kernel_width
    }

    /// Weights.
    pub fn weights_len(&self) -> usize {
        self.channels_out * self.taps()
    }

    /// Output values.
    pub fn output_len(&self) -> usize {
        self.channels_out * self.out_height() * self.out_width()
    }

    fn check(&self, input: &[u64], weights: &[i16]) {
        self.check_weights(weights);
        assert_eq!(input.len(), self.input_len(), "input length");
    }

    pub(crate) fn check_weights(&self, weights: &[i16]) {
        assert!(self.stride > 0, "stride 0");
        assert!(
            self.kernel_height > 0
                && self.kernel_height <= self.height + self.padding.top + self.padding.bottom
        );
        assert!(
            self.kernel_width > 0
                && self.kernel_width <= self.width + self.padding.left + self.padding.right
        );
        assert_eq!(weights.len(), self.weights_len(), "weights length");
    }

    /// The input index of tap `(c, k, l)` at output position `(i, j)`, unless it is padding.
    #[inline(always)]
    fn source(&self, c: usize, k: usize, l: usize, i: usize, j: usize) -> Option<usize> {
        let row = (i * self.stride + k).checked_sub(self.padding.top)?;
        let column = (j * self.stride + l).checked_sub(self.padding.left)?;
        (row < self.height && column < self.width)
            .then(|| (c * self.height + row) * self.width + column)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::ChaCha20Rng;
    use rand_core::{RngCore, SeedableRng};

    fn shape(
        (channels_in, height, width): (usize, usize, usize),
        channels_out: usize,
        kernel: (usize, usize),
        stride: usize,
        [top, left, bottom, right]: [usize; 4],
    ) -> ConvShape {
        ConvShape {
            channels_in,
            height,
            width,
            channels_out,
            kernel_height: kernel.0,
            kernel_width: kernel.1,
            stride,
            padding: Padding {
                top,
                left,
                bottom,
                right,
            },
        }
    }

    /// Rows of eight, of four and of other lengths; strides below, at and above the kernel; one and
    /// many blocks and depths.
    fn shapes() -> Vec<ConvShape> {
        vec![
            shape((3, 8, 8), 5, (3, 3), 1, [1; 4]),
            shape((64, 4, 4), 14, (3, 3), 1, [1; 4]),
            shape((40, 4, 4), 7, (3, 3), 1, [1; 4]),
            shape((4, 7, 5), 9, (3, 3), 2, [1; 4]),
            shape((4, 16, 16), 13, (3, 3), 2, [1; 4]),
            shape((2, 6, 9), 33, (2, 2), 2, [0, 2, 1, 0]),
            shape((2, 9, 9), 6, (2, 3), 3, [2, 1, 0, 3]),
            shape((5, 11, 10), 3, (1, 1), 4, [0, 3, 2, 0]),
            shape((7, 4, 4), 36, (1, 1), 2, [0; 4]),
            shape((2, 5, 5), 3, (3, 1), 1, [1; 4]),
            shape((65, 7, 10), 64, (3, 3), 1, [1, 0, 0, 1]),
            shape((58, 5, 9), 7, (3, 3), 1, [2, 1, 1, 3]),
            shape((1, 3, 3), 1, (3, 3), 1, [0; 4]),
            shape((16, 1, 1), 10, (1, 1), 1, [0; 4]),
            shape((1, 1, 1), 1, (1, 1), 1, [0; 4]),
            shape((1, 1, 3), 2, (1, 5), 1, [0, 4, 0, 4]),
        ]
    }

    fn check(
        shape: ConvShape,
        weight_bits: u8,
        weight: impl Fn(u64) -> i16,
        x: impl Fn(u64) -> u64,
    ) {
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        let input: Vec<u64> = (0..shape.input_len()).map(|_| x(rng.next_u64())).collect();
        let weights: Vec<i16> = (0..shape.weights_len())
            .map(|_| weight(rng.next_u64()))
            .collect();
        let start = fp::uniform_vec(shape.output_len(), &mut rng);
        let mut expected = conv2d_fp_scalar(&input, &weights, &shape);
        for (e, &s) in expected.iter_mut().zip(&start) {
            *e = fp::add(*e, s);
        }
        let mut scratch = ConvScratch::default();
        for prepared in crate::supported_backends()
            .flat_map(|backend| all_on(backend, &weights, shape, weight_bits))
        {
            // Twice, so that what the first use left in the scratch is no part of the result.
            for _ in 0..2 {
                let mut sum = start.clone();
                prepared.add_to(&input, &mut scratch, &mut sum);
                assert_eq!(sum, expected, "{shape:?}");
            }
        }
    }

    /// All that a back end can do, the choice first.
    fn all_on(
        backend: Backend,
        weights: &[i16],
        shape: ConvShape,
        weight_bits: u8,
    ) -> Vec<PreparedConv> {
        let mut all = vec![
            PreparedConv::on(backend, weights, shape, weight_bits),
            PreparedConv::words(backend, weights, shape, weight_bits),
        ];
        #[cfg(any(target_arch = "x86_64", target_arch = "aarch64"))]
        {
            let mut kernels = vec![
                winograd(backend, weights, &shape, weight_bits),
                direct(backend, weights, &shape, weight_bits),
            ];
            // What serves wider weights serves narrow ones.
            #[cfg(target_arch = "x86_64")]
            if backend == Backend::Avx512 && weight_bits <= 7 {
                kernels.push(direct(backend, weights, &shape, 8));
            }
            let kernels = kernels.into_iter().flatten();
            all.extend(kernels.map(|kernel| PreparedConv { shape, kernel }));
        }
        all
    }

    #[test]
    fn prepared_convolution_equals_the_definition() {
        for shape in shapes() {
            check(shape, 7, |r| (r % 255) as i16 - 127, |r| r % fp::P);
            check(
                shape,
                15,
                |r| ((r % 65_535) as i32 - 32_767) as i16,
                |r| r % fp::P,
            );
        }
    }

    #[test]
    fn extreme_values_are_exact() {
        for shape in shapes() {
            for w in [127, -127] {
                check(shape, 7, |_| w, |_| fp::P - 1);
                // All bytes as large as they can be in an element.
                check(shape, 7, |_| w, |_| fp::P - (1 << 18));
            }
            check(
                shape,
                7,
                |r| 127 * (r as i16 & 2) - 127,
                |r| (r & 1) * (fp::P - 1),
            );
            check(shape, 15, |_| i16::MAX, |_| fp::P - 1);
        }
    }

    #[test]
    fn most_taps_that_fit_and_one_more_are_exact() {
        let most = i32::MAX as usize / (255 * 127);
        for taps in [most, most + 1] {
            let shape = shape((taps, 1, 1), 2, (1, 1), 1, [0; 4]);
            for w in [127, -127] {
                check(shape, 7, |_| w, |_| 0xeff_ffff_ffff_ffff);
            }
        }
    }

    #[test]
    fn most_taps_before_sums_move_and_one_more_are_exact() {
        // With each number of bits, around a multiple of the taps after which `madd` moves sums.
        for weight_bits in 7..=15 {
            let most = (1usize << 31) / ((1 << 14) * ((1 << weight_bits) - 1));
            for taps in [
                most.max(2) - 1,
                most,
                most + 1,
                most + 2,
                3 * most + 1,
                1031,
            ] {
                let shape = shape((taps, 1, 5), 7, (1, 1), 1, [0; 4]);
                let largest = ((1 << weight_bits) - 1) as i16;
                for w in [largest, -largest] {
                    // With all limbs of 15 bits as far below zero as they can be, almost as far
                    // above, and as large as they are without signs.
                    let far = 1 << 14 | 1 << 29 | 1 << 44 | 1 << 59;
                    for x in [fp::P - far, far - (1 << 18), fp::P - (1 << 18), fp::P - 1] {
                        check(shape, weight_bits, |_| w, |_| x);
                    }
                }
                check(
                    shape,
                    weight_bits,
                    |r| if r & 2 == 0 { largest } else { -largest },
                    |r| (r & 1) * (fp::P - (1 << 18)),
                );
            }
        }
    }

    #[test]
    fn squares_of_outputs_with_the_largest_sums_are_exact() {
        // With each number of bits, around the channels after which sums move; a patch of equal
        // inputs becomes four times one at a point whose weight is nine times one.
        let far = 1 << 14 | 1 << 29 | 1 << 44 | 1 << 59;
        for weight_bits in 7..=11 {
            let largest = ((1 << weight_bits) - 1) as i16;
            let most = (1usize << 31) / ((9 << 14) * largest as usize);
            for channels in [most - 1, most, most + 1, most + 2, 2 * most + 1] {
                let shape = shape((channels, 4, 9), 7, (3, 3), 1, [0, 1, 1, 0]);
                for x in [fp::P - far, far - (1 << 18)].map(|x| fp::mul(x, fp::inv(4))) {
                    for w in [largest, -largest] {
                        check(shape, weight_bits, |_| w, |_| x);
                    }
                    let either = |r| if r & 2 == 0 { largest } else { -largest };
                    check(shape, weight_bits, either, |_| x);
                }
            }
        }
    }

    #[test]
    fn scratch_serves_shapes_in_any_order() {
        let mut rng = ChaCha20Rng::seed_from_u64(2);
        let mut scratch = ConvScratch::default();
        for shape in shapes().into_iter().chain(shapes().into_iter().rev()) {
            let input = fp::uniform_vec(shape.input_len(), &mut rng);
            let weights: Vec<i16> = (0..shape.weights_len()).map(|i| (i % 100) as i16).collect();
            for backend in crate::supported_backends() {
                let mut sum = vec![0; shape.output_len()];
                let prepared = PreparedConv::on(backend, &weights, shape, 7);
                prepared.add_to(&input, &mut scratch, &mut sum);
                assert_eq!(sum, conv2d_fp_scalar(&input, &weights, &shape), "{shape:?}");
            }
        }
    }

    /// The layers of ResNet-18 for images of 32 pixels, on one thread: what the back end chooses,
    /// then all that it can do, with weights of 7 to 11 bits.
    #[test]
    #[ignore = "measures"]
    fn rates_of_the_layers_of_a_resnet() {
        let layers = [
            ((3, 32, 32), 64, (3, 3), 1, [1; 4]),
            ((64, 32, 32), 64, (3, 3), 1, [1; 4]),
            ((64, 32, 32), 128, (3, 3), 2, [1; 4]),
            ((64, 32, 32), 128, (1, 1), 2, [0; 4]),
            ((128, 16, 16), 128, (3, 3), 1, [1; 4]),
            ((128, 16, 16), 256, (3, 3), 2, [1; 4]),
            ((256, 8, 8), 256, (3, 3), 1, [1; 4]),
            ((256, 8, 8), 512, (3, 3), 2, [1; 4]),
            ((256, 8, 8), 512, (1, 1), 2, [0; 4]),
            ((512, 4, 4), 512, (3, 3), 1, [1; 4]),
            ((512, 1, 1), 100, (1, 1), 1, [0; 4]),
            ((64, 56, 56), 256, (1, 1), 1, [0; 4]),
            ((1, 56, 56), 1, (3, 3), 1, [1; 4]),
        ];
        let mut rng = ChaCha20Rng::seed_from_u64(3);
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build();
        pool.expect("one thread can be started").install(|| {
            for (input, out, kernel, stride, padding) in layers {
                let shape = shape(input, out, kernel, stride, padding);
                let x = fp::uniform_vec(shape.input_len(), &mut rng);
                let weights: Vec<i16> = (0..shape.weights_len())
                    .map(|_| (rng.next_u32() % 255) as i16 - 127)
                    .collect();
                let bits = [7, 8, 9, 10, 11];
                let kinds: Vec<Vec<PreparedConv>> = bits
                    .map(|bits| all_on(Backend::get(), &weights, shape, bits))
                    .into();
                let mut scratch = ConvScratch::default();
                let mut sum = vec![0; shape.output_len()];
                let kinds: Vec<&PreparedConv> = kinds.iter().flatten().collect();
                let mut least = vec![f64::INFINITY; kinds.len()];
                for _ in 0..(1 << 30) / (shape.output_len() * shape.taps()).max(1 << 24) {
                    for (prepared, least) in kinds.iter().zip(&mut least) {
                        let start = std::time::Instant::now();
                        prepared.add_to(&x, &mut scratch, &mut sum);
                        *least = least.min(start.elapsed().as_nanos() as f64);
                    }
                }
                let products = (shape.output_len() * shape.taps()) as f64;
                println!("{input:?} to {out}, {kernel:?} by {stride}, products/ns:");
                for (prepared, ns) in kinds.iter().zip(least) {
                    println!("  {:5.1} {}", products / ns, prepared.kind());
                }
            }
        });
    }
}
