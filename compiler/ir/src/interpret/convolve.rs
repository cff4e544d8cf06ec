//! Cross-correlation over any number type: what it means, in one place.

use crate::shape::{Padding, Shape};
use std::ops::{AddAssign, Mul};

/// A type in which sums of products are exact for the values at hand (the caller's promise).
pub(crate) trait Number: Copy + Default + AddAssign + Mul<Output = Self> {}

impl Number for f32 {}
impl Number for f64 {}
impl Number for i64 {}
impl Number for i128 {}

/// Positions of windows on the input.
pub(crate) struct Windows {
    pub(crate) input: Shape,
    pub(crate) output: Shape,
    pub(crate) groups: u32,
    pub(crate) kernel: (u32, u32),
    pub(crate) stride: (u32, u32),
    pub(crate) padding: Padding,
}

/// Positions computed at once, and output channels that share their loads: 2 x 16 sums stay in
/// registers.
const LANES: usize = 16;
const CHANNELS: usize = 2;

/// The convolution of `x` (`[c][h][w]`) with `kernel` (`[out][in / groups][kernel_h][kernel_w]`).
pub(crate) fn convolve<T: Number>(x: &[T], kernel: &[T], windows: &Windows) -> Vec<T> {
    let groups = windows.groups.max(1) as usize;
    let of_group = |size: usize| (size / groups).max(1);
    let inputs = x.chunks_exact(of_group(x.len()));
    let kernels = kernel.chunks_exact(of_group(kernel.len()));
    let channels = windows.output.c as usize / groups;
    inputs
        .zip(kernels)
        .flat_map(|(x, kernel)| convolve_group(x, kernel, channels, windows))
        .collect()
}

/// The output channels of one group, from its input channels and kernels.
///
/// Positions are gathered in panels `[in * kernel_h * kernel_w][LANES]`, so that the inner loop is
/// a product of a weight with a vector.
fn convolve_group<T: Number>(x: &[T], kernel: &[T], channels: usize, windows: &Windows) -> Vec<T> {
    let positions = windows.output.h as usize * windows.output.w as usize;
    let taps = kernel.len() / channels;
    let mut output = vec![T::default(); channels * positions];
    let mut panel = vec![[T::default(); LANES]; taps];
    for first in (0..positions).step_by(LANES) {
        let lanes = LANES.min(positions - first);
        windows.gather(x, first, lanes, &mut panel);
        let mut channel = 0;
        for rows in kernel.chunks(CHANNELS * taps) {
            let sums = if rows.len() == CHANNELS * taps {
                let (even, odd) = rows.split_at(taps);
                two_rows(even, odd, &panel)
            } else {
                [one_row(rows, &panel), [T::default(); LANES]]
            };
            for sum in sums.iter().take(rows.len() / taps) {
                let at = channel * positions + first;
                output[at..at + lanes].copy_from_slice(&sum[..lanes]);
                channel += 1;
            }
        }
    }
    output
}

fn two_rows<T: Number>(even: &[T], odd: &[T], panel: &[[T; LANES]]) -> [[T; LANES]; CHANNELS] {
    let mut sums = [[T::default(); LANES]; CHANNELS];
    for ((x, &e), &o) in panel.iter().zip(even).zip(odd) {
        for lane in 0..LANES {
            sums[0][lane] += e * x[lane];
            sums[1][lane] += o * x[lane];
        }
    }
    sums
}

fn one_row<T: Number>(row: &[T], panel: &[[T; LANES]]) -> [T; LANES] {
    let mut sums = [T::default(); LANES];
    for (x, &w) in panel.iter().zip(row) {
        for lane in 0..LANES {
            sums[lane] += w * x[lane];
        }
    }
    sums
}

impl Windows {
    /// Number of weights of the kernel.
    pub(crate) fn weight_count(&self) -> usize {
        let channels = self.input.c / self.groups.max(1);
        [channels, self.kernel.0, self.kernel.1]
            .iter()
            .fold(self.output.c as usize, |n, &side| {
                n.saturating_mul(side as usize)
            })
    }

    /// Fills the panel of positions `first .. first + lanes`; zeros outside the input.
    fn gather<T: Number>(&self, x: &[T], first: usize, lanes: usize, panel: &mut [[T; LANES]]) {
        let (h, w) = (self.input.h as usize, self.input.w as usize);
        let width = self.output.w as usize;
        let mut corner = [(0, 0); LANES];
        for (lane, corner) in corner.iter_mut().enumerate().take(lanes) {
            let position = first + lane;
            *corner = (
                (position / width) * self.stride.0 as usize,
                (position % width) * self.stride.1 as usize,
            );
        }
        let mut rows = panel.iter_mut();
        for plane in x.chunks_exact(h * w) {
            for i in 0..self.kernel.0 as usize {
                for j in 0..self.kernel.1 as usize {
                    let row = rows.next().expect("one row per channel and tap");
                    for (value, &(top, left)) in row.iter_mut().zip(&corner[..lanes]) {
                        // A row or column inside the padding above or left wraps to a huge number.
                        let y = (top + i).wrapping_sub(self.padding.top as usize);
                        let x = (left + j).wrapping_sub(self.padding.left as usize);
                        *value = if y < h && x < w {
                            plane[y * w + x]
                        } else {
                            T::default()
                        };
                    }
                }
            }
        }
    }
}
