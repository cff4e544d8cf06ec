//! Starting values of parameters and running statistics.

use std::collections::BTreeSet;

use rand_core::RngCore;

use super::{Buffer, Network, Op, Parameter};
use crate::checkpoint::{Array, Arrays};

impl Network {
    /// Random weights (He et al., 2015), unit norms, the starting coefficients of polynomial
    /// kernels; and running statistics of a unit normal. Convolutions inside polynomial kernels
    /// begin at a tenth of that: `(z + c)^2` is nearly linear where `z` is small beside `2 c`, and
    /// nothing that is 50 squares deep stays in range where it is not.
    pub fn initialise(&self, rng: &mut impl RngCore) -> (Arrays, Arrays) {
        let (mut parameters, mut buffers) = (Arrays::new(), Arrays::new());
        let kernels = self
            .nodes
            .iter()
            .filter(|n| matches!(n.op, Op::Kernel { .. }));
        let squared: BTreeSet<usize> = kernels.flat_map(|n| n.inputs.iter().copied()).collect();
        for (index, node) in self.nodes.iter().enumerate() {
            let c = node.shape[0];
            let mut put = |what: Parameter, array| {
                parameters.insert(what.of(&node.name), array);
            };
            match node.op {
                Op::Conv {
                    c_in, kernel, bias, ..
                } => {
                    let gain = if squared.contains(&index) { 0.1 } else { 1.0 };
                    let deviation = gain * (2.0 / (c_in * kernel * kernel) as f32).sqrt();
                    put(
                        Parameter::Weight,
                        normal(&[c, c_in, kernel, kernel], deviation, rng),
                    );
                    if bias {
                        put(Parameter::Bias, Array::filled(&[c], 0.0));
                    }
                }
                Op::Kernel { scaled } => {
                    put(
                        Parameter::Shift,
                        Array::filled(&[c], if scaled { 0.47 } else { 1.0 }),
                    );
                    if scaled {
                        put(Parameter::LogScale, Array::filled(&[c], 0.009f32.ln()));
                    }
                }
                Op::Norm => {
                    put(Parameter::Gamma, Array::filled(&[c], 1.0));
                    put(Parameter::Beta, Array::filled(&[c], 0.0));
                    let moments = Array {
                        shape: vec![2, c],
                        values: [vec![0.0; c], vec![1.0; c]].concat(),
                    };
                    buffers.insert(Buffer::Moments.of(&node.name), moments);
                }
                Op::Dense { inputs } => {
                    put(
                        Parameter::Weight,
                        normal(&[c, inputs], (1.0 / inputs as f32).sqrt(), rng),
                    );
                    put(Parameter::Bias, Array::filled(&[c], 0.0));
                }
                Op::Activation | Op::Input | Op::Add | Op::AvgPool { .. } => {}
            }
        }
        (parameters, buffers)
    }
}

/// Normal values of mean zero.
fn normal(shape: &[usize], deviation: f32, rng: &mut impl RngCore) -> Array {
    let unit = |rng: &mut dyn RngCore| (f64::from(rng.next_u32()) + 0.5) / 4_294_967_296.0;
    let count: usize = shape.iter().product();
    let values = (0..count)
        .map(|_| {
            // Box and Muller; the second of each pair is not used.
            let (radius, angle) = (unit(rng), unit(rng));
            let z = (-2.0 * radius.ln()).sqrt() * (std::f64::consts::TAU * angle).cos();
            z as f32 * deviation
        })
        .collect();
    Array {
        shape: shape.to_vec(),
        values,
    }
}
