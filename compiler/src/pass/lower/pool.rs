//! Merges average pools into the kernel that follows, or into another pool.
//!
//! A kernel on a pooled map reads each window's elements with the same weight, so kernel and pool
//! compose into one larger kernel on the map itself, if every zero of the padding corresponds to
//! windows that read nothing real.

use pi_ir::{Conv, Padding, Shape, SumPool};

/// A convolution on the map whose sum pool `conv` reads, with the same result; `None` if there is
/// none.
///
/// `input` is the shape of the map. Weights are `[out][in][kernel_h][kernel_w]`; the divisor is not
/// included.
pub(super) fn compose(
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

/// One pool that equals `first` and then `second`; `None` if windows of `first` overlap or leave
/// gaps.
pub(super) fn chain(first: &SumPool, second: &SumPool) -> Option<SumPool> {
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
    /// Pooled row `-1` stands for rows `-step .. -step + window`: all outside if windows do not
    /// overlap. Pooled row `pooled` stands for rows from `pooled * step`: outside if no dropped row
    /// lies there.
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pass::calibrate::FloatWeights;
    use crate::real_circuit::{Layer, RealCircuit, Step, Term};
    use pi_ir::{Kind, TensorId};

    /// Weights and pixels are small integers, so both sides are exact in single precision.
    #[test]
    fn composed_kernels_compute_exactly_what_pool_and_kernel_do() {
        let mut composed = 0;
        for seed in 0..2000u32 {
            let digit =
                |place: u32, base: u32| (seed.wrapping_mul(2_654_435_761) >> (3 * place)) % base;
            let input = Shape::new(1 + digit(0, 2), 3 + digit(1, 6), 3 + digit(2, 6));
            let pool = SumPool {
                kernel: (1 + digit(3, 3), 1 + digit(4, 3)),
                stride: (1 + digit(5, 3), 1 + digit(6, 3)),
            };
            let conv = Conv {
                input: TensorId(0),
                out_channels: 2,
                groups: 1,
                kernel: (1 + digit(7, 3), 1 + digit(8, 2)),
                stride: (1 + digit(2, 2), 1 + digit(3, 2)),
                padding: Padding {
                    top: digit(4, 2),
                    left: digit(5, 2),
                    bottom: digit(6, 2),
                    right: digit(7, 2),
                },
                weight_bits: 7,
            };
            let Some(pooled) = pool.output(input) else {
                continue;
            };
            let Some(output) = conv.output(pooled) else {
                continue;
            };
            let weights = numbers(conv.weight_count(pooled), seed);
            let Some((one, wide)) = compose(&conv, &weights, &pool, input) else {
                continue;
            };
            assert_eq!(one.output(input), Some(output), "seed {seed}");
            composed += 1;
            let x: Vec<f32> = numbers(input.len(), seed + 1)
                .iter()
                .map(|&v| v as f32)
                .collect();
            let identity = Layer {
                name: "pool".into(),
                terms: vec![Term::Residual {
                    input: TensorId(0),
                    window: pool.window(input),
                    halvings: 0,
                    negative: false,
                }],
                bias: vec![0.0; input.c as usize],
                element_bias: vec![],
                pool: None,
                pool_bits: 0,
                shape: pooled,
                step: Step::Activate {
                    kinds: vec![Kind::Identity; pooled.len()],
                    polynomials: vec![],
                },
            };
            let second = Conv {
                input: TensorId(1),
                ..conv
            };
            let apart = [identity, last(second, weights, output)];
            let together = [last(one, wide, output)];
            assert_eq!(
                logits(input, &apart, &x),
                logits(input, &together, &x),
                "seed {seed}"
            );
        }
        assert!(composed > 500, "only {composed} cases composed");
    }

    #[test]
    fn overlapping_windows_and_dropped_rows_do_not_compose_with_padding() {
        let conv = Conv {
            input: TensorId(0),
            out_channels: 1,
            groups: 1,
            kernel: (3, 3),
            stride: (1, 1),
            padding: Padding::same(1),
            weight_bits: 7,
        };
        let pool = |kernel, stride| SumPool {
            kernel: (kernel, kernel),
            stride: (stride, stride),
        };
        let composes = |pool: SumPool, side| {
            compose(&conv, &[1.0; 9], &pool, Shape::new(1, side, side)).is_some()
        };
        assert!(composes(pool(2, 2), 8));
        assert!(
            !composes(pool(2, 2), 9),
            "row 8 is dropped, and padding would read it"
        );
        assert!(!composes(pool(3, 2), 9), "windows overlap");
    }

    fn numbers(count: usize, seed: u32) -> Vec<f64> {
        let draw = |i: u32| (i.wrapping_mul(seed | 1).wrapping_mul(40_503) >> 7) % 9;
        (0..count as u32)
            .map(|i| f64::from(draw(i + 3)) - 4.0)
            .collect()
    }

    fn last(conv: Conv, weights: Vec<f64>, shape: Shape) -> Layer {
        Layer {
            name: "conv".into(),
            bias: vec![0.0; shape.c as usize],
            element_bias: vec![],
            terms: vec![Term::Conv { conv, weights }],
            pool: None,
            pool_bits: 0,
            shape,
            step: Step::Output,
        }
    }

    fn logits(input: Shape, layers: &[Layer], x: &[f32]) -> Vec<f32> {
        let real = RealCircuit {
            input,
            public: 0,
            layers: layers.to_vec(),
        };
        let mut values = FloatWeights::new(&real).evaluate(&real, x);
        values.sums.pop().unwrap()
    }
}
