//! Starting values of parameters and running statistics.

use std::collections::BTreeSet;

use rand_core::RngCore;

use super::{Buffer, Initial, Network, Op, Parameter};
use crate::checkpoint::{Array, Arrays};

impl Network {
    /// Random weights (see [`Initial`]), unit norms, the starting coefficients of polynomial
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
                    let shape = [c, c_in, kernel, kernel];
                    let gain = if squared.contains(&index) { 0.1 } else { 1.0 };
                    let deviation = gain * (2.0 / (c_in * kernel * kernel) as f32).sqrt();
                    let plain = gain == 1.0 && kernel % 2 == 1;
                    let weight = match self.initial {
                        Initial::Dirac if plain => dirac(shape, rng),
                        Initial::Dirac | Initial::He => normal(&shape, deviation, rng),
                    };
                    put(Parameter::Weight, weight);
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
                Op::Dense { inputs, scale } => {
                    let deviation = match scale {
                        Some(_) => 1.0,
                        None => (1.0 / inputs as f32).sqrt(),
                    };
                    put(Parameter::Weight, normal(&[c, inputs], deviation, rng));
                    put(Parameter::Bias, Array::filled(&[c], 0.0));
                }
                Op::Activation | Op::Input | Op::Add | Op::AvgPool { .. } => {}
            }
        }
        (parameters, buffers)
    }
}

/// Copies of the input channels, then uniform values.
fn dirac(shape: [usize; 4], rng: &mut impl RngCore) -> Array {
    let [channels, c_in, kernel, _] = shape;
    let area = kernel * kernel;
    let bound = 1.0 / ((c_in * area) as f32).sqrt();
    let uniform = |rng: &mut dyn RngCore| (rng.next_u32() as f32 / u32::MAX as f32) * 2.0 - 1.0;
    let mut values = Vec::with_capacity(shape.iter().product());
    for channel in 0..channels {
        if channel < c_in {
            let own = channel * area + area / 2;
            values.extend((0..c_in * area).map(|at| f32::from(u8::from(at == own))));
        } else {
            values.extend((0..c_in * area).map(|_| uniform(rng) * bound));
        }
    }
    Array {
        shape: shape.to_vec(),
        values,
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

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_core::SeedableRng;

    use crate::network::{Network, NetworkConfig};

    #[test]
    fn dirac_filters_copy_their_channel_and_the_others_are_small() {
        let text = "kind = \"lean9\"\nwidth = 0.25\ninitial = \"dirac\"\nlogit_scale = 12.0";
        let config: NetworkConfig = toml::from_str(text).unwrap();
        let network = Network::new(&config, [3, 32, 32], 10).unwrap();
        let (parameters, _) = network.initialise(&mut ChaCha8Rng::seed_from_u64(1));
        // 6 channels to 16.
        let weight = &parameters["group1.a.conv.weight"];
        assert_eq!(weight.shape, [16, 6, 3, 3]);
        for (channel, filter) in weight.values.chunks(54).enumerate() {
            if channel < 6 {
                let ones: Vec<usize> = (0..54).filter(|at| filter[*at] == 1.0).collect();
                assert_eq!(ones, [channel * 9 + 4]);
                assert_eq!(filter.iter().filter(|value| **value != 0.0).count(), 1);
            } else {
                let bound = 1.0 / 54f32.sqrt();
                assert!(filter.iter().all(|value| value.abs() <= bound));
                // The mean square of a uniform law is a third of the bound's square.
                let square = filter.iter().map(|value| value * value).sum::<f32>() / 54.0;
                assert!(
                    (0.15..0.55).contains(&(square / (bound * bound))),
                    "{square}"
                );
            }
        }
        // 64 channels to 64: copies alone. The classifier's weights are a unit normal.
        let weight = &parameters["group3.b.conv.weight"].values;
        assert_eq!(weight.iter().sum::<f32>(), 64.0);
        let classifier = &parameters["dense.weight"].values;
        let square = classifier.iter().map(|v| v * v).sum::<f32>() / classifier.len() as f32;
        assert!((0.8..1.2).contains(&square), "{square}");
        // The whitening convolution has an even kernel.
        let whitening = &parameters["whiten.conv.weight"].values;
        assert!(whitening.iter().all(|value| *value != 0.0 && *value != 1.0));
    }
}
