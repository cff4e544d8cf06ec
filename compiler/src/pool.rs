//! Average pools that disappear: into the kernel behind them, or into another pool.
//!
//! A kernel on a pooled map reads each window's elements with the same weight, so kernel and pool compose into one
//! larger kernel on the map itself, if every zero of the padding corresponds to windows that read nothing real.

use pi_ir::{Conv, Padding, Shape, SumPool};

/// A convolution on the map whose sum pool `conv` reads, with the same result; `None` if there is none.
///
/// `input` is the shape of the map. Weights are `[out][in][kernel_h][kernel_w]`; the divisor is not included.
pub fn compose(
    conv: &Conv,
    weights: &[f64],
    pool: &SumPool,
    input: Shape,
) -> Option<(Conv, Vec<f64>)> {
    let pooled = pool.output(input)?;
    let p = &conv.padding;
    let vertical = Side {
        window: pool.kernel.0,
        step: pool.stride.0,
    };
    let horizontal = Side {
        window: pool.kernel.1,
        step: pool.stride.1,
    };
    let (top, bottom) = vertical.padding((p.top, p.bottom), input.h, pooled.h)?;
    let (left, right) = horizontal.padding((p.left, p.right), input.w, pooled.w)?;
    let kernel = (
        vertical.kernel(conv.kernel.0)?,
        horizontal.kernel(conv.kernel.1)?,
    );
    let composed = Conv {
        kernel,
        stride: (
            conv.stride.0.checked_mul(pool.stride.0)?,
            conv.stride.1.checked_mul(pool.stride.1)?,
        ),
        padding: Padding {
            top,
            left,
            bottom,
            right,
        },
        ..conv.clone()
    };
    let spread = |tap: &[f64]| {
        let (rows, columns) = (kernel.0 as usize, kernel.1 as usize);
        let mut wide = vec![0.0; rows * columns];
        for (index, &w) in tap.iter().enumerate() {
            let i = index / conv.kernel.1 as usize * pool.stride.0 as usize;
            let j = index % conv.kernel.1 as usize * pool.stride.1 as usize;
            for y in i..i + pool.kernel.0 as usize {
                for x in j..j + pool.kernel.1 as usize {
                    wide[y * columns + x] += w;
                }
            }
        }
        wide
    };
    let taps = conv.kernel.0 as usize * conv.kernel.1 as usize;
    let weights = weights.chunks_exact(taps).flat_map(spread).collect();
    Some((composed, weights))
}

/// One pool that equals `first` and then `second`; `None` if windows of `first` overlap or leave gaps.
pub fn chain(first: &SumPool, second: &SumPool) -> Option<SumPool> {
    if first.kernel != first.stride {
        return None;
    }
    let product =
        |a: (u32, u32), b: (u32, u32)| Some((a.0.checked_mul(b.0)?, a.1.checked_mul(b.1)?));
    Some(SumPool {
        kernel: product(first.kernel, second.kernel)?,
        stride: product(first.stride, second.stride)?,
    })
}

/// A pool along one axis.
struct Side {
    window: u32,
    step: u32,
}

impl Side {
    /// Side of the composed kernel.
    fn kernel(&self, kernel: u32) -> Option<u32> {
        (kernel - 1)
            .checked_mul(self.step)?
            .checked_add(self.window)
    }

    /// Padding of the composed kernel before and after a map of `size`, pooled to `pooled`.
    ///
    /// Pooled row `-1` stands for rows `-step .. -step + window`: all outside if windows do not overlap. Pooled row
    /// `pooled` stands for rows from `pooled * step`: outside if no dropped row lies there.
    fn padding(&self, padding: (u32, u32), size: u32, pooled: u32) -> Option<(u32, u32)> {
        let (before, after) = padding;
        if (before > 0 || after > 0) && self.window > self.step {
            return None;
        }
        let covered = pooled.checked_mul(self.step)?;
        if after > 0 && size > covered {
            return None;
        }
        let wide_after = if after == 0 {
            0
        } else {
            after.checked_mul(self.step)?.checked_add(covered - size)?
        };
        Some((before.checked_mul(self.step)?, wide_after))
    }
}
