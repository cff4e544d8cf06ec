//! Real values at the input: their bound, and a scale for every channel.
//!
//! Columns of a table have units of their own: one reaches 0.1 and the next 100,000, or stands
//! between 1,950 and 2,020. A tensor has one scale for all channels, so the first channels would
//! be left without a bit. Where the input is read by convolutions and dense layers alone, each
//! channel is therefore divided by the power of two that its values reach on calibration data, and
//! the weights that read it are multiplied by it, which is exact. Where nothing is padded, values
//! that are all of one sign are centred, too, and the biases take the centre back.
//!
//! Both the powers and the centres, which are multiples of them, are public: they tell of the
//! calibration data what each channel's values are like, to about a bit.

use crate::channels::readers;
use crate::examples::Examples;
use crate::fault::Refused;
use pi_ir::{Graph, Input, Op, Padding, Preprocessing, group_reads};
use std::borrow::Cow;

/// The graph whose values are scaled for a circuit and have a bound; a graph that reads pictures,
/// or states a bound already, as it is.
///
/// # Errors
/// If an example has another size than the input, or a value that is not finite or beyond the
/// bound.
pub fn prepare<'a>(
    graph: &'a Graph,
    calibration: &Examples,
    head_room: u8,
) -> Result<Cow<'a, Graph>, Refused> {
    let Preprocessing::Values { mean, std, bound } = &graph.preprocessing else {
        return Ok(Cow::Borrowed(graph));
    };
    let channels = reach(graph, calibration)?;
    let (mut mean, mut std) = (mean.clone(), std.clone());
    let mut graph = graph.clone();
    let bound = match bound {
        Some(bound) => {
            let bound = f64::from(*bound);
            let beyond = |reach: &Reach| reach.low < -bound || reach.high > bound;
            if let Some(channel) = channels.iter().position(beyond) {
                let Reach { low, high } = channels[channel];
                return Err(Refused::one(
                    "input",
                    format!(
                        "channel {channel} reaches {low} to {high} on calibration data, and the \
                         bound of its values is stated as {bound}: raise --input-bound"
                    ),
                ));
            }
            bound
        }
        None => {
            let scales = scales(&graph, &channels);
            for (channel, scale) in scales.iter().enumerate() {
                let deviation = f64::from(std[channel]);
                mean[channel] = (f64::from(mean[channel]) + scale.centre * deviation) as f32;
                std[channel] = (deviation * scale.power) as f32;
            }
            rescale(&mut graph, &scales);
            let largest = channels.iter().zip(&scales).map(|(r, s)| r.scaled(s));
            power_above(largest.fold(0.0, f64::max)) * f64::from(head_room).exp2()
        }
    };
    graph.preprocessing = Preprocessing::Values {
        mean,
        std,
        bound: Some(bound as f32),
    };
    Ok(Cow::Owned(graph))
}

/// Least and largest normalised value of a channel on calibration data.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Reach {
    low: f64,
    high: f64,
}

/// A channel's values are read as `(x - centre) / power`.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Scale {
    centre: f64,
    power: f64,
}

impl Reach {
    /// Largest magnitude at this scale.
    fn scaled(&self, scale: &Scale) -> f64 {
        let ends = [self.low, self.high].map(|end| ((end - scale.centre) / scale.power).abs());
        ends[0].max(ends[1])
    }

    fn scale(&self, may_shift: bool) -> Scale {
        let half = (self.high - self.low) / 2.0;
        let step = power_above(half);
        let one_sided = half > 0.0 && self.low * self.high > 0.0;
        let centre = match may_shift && one_sided {
            true => ((self.low + half) / step).round() * step,
            false => 0.0,
        };
        let uncut = Scale { centre, power: 1.0 };
        let power = power_above(self.scaled(&uncut));
        Scale { centre, power }
    }
}

/// The least power of two that is not below `value`; 1 for 0, of which nothing is known.
fn power_above(value: f64) -> f64 {
    if value <= 0.0 {
        return 1.0;
    }
    let power = value.log2().ceil().exp2();
    // The logarithm of a power of two may be rounded up.
    if power / 2.0 >= value {
        power / 2.0
    } else {
        power
    }
}

/// What each channel reaches.
fn reach(graph: &Graph, calibration: &Examples) -> Result<Vec<Reach>, Refused> {
    let refuse = |why: String| Refused::one("input", why);
    let (Some(Op::Input { shape }), Preprocessing::Values { mean, std, .. }) =
        (graph.nodes.first().map(|n| &n.op), &graph.preprocessing)
    else {
        return Err(refuse("the graph does not begin with real values".into()));
    };
    let empty = Reach {
        low: f64::INFINITY,
        high: f64::NEG_INFINITY,
    };
    let mut channels = vec![empty; mean.len()];
    let plane = shape.h as usize * shape.w as usize;
    for (number, input) in calibration.inputs.iter().enumerate() {
        if input.len() != shape.len() {
            let got = input.len();
            return Err(refuse(format!(
                "calibration example {number} has {got} values, and the network reads {shape}"
            )));
        }
        let values = match input {
            Input::Values(values) => Cow::Borrowed(values),
            Input::Bytes(bytes) => Cow::Owned(bytes.iter().map(|&b| b.into()).collect()),
        };
        for (index, &value) in values.iter().enumerate() {
            let channel = index / plane;
            let x = (value - f64::from(mean[channel])) / f64::from(std[channel]);
            if !x.is_finite() {
                return Err(refuse(format!(
                    "value {index} of calibration example {number} is {value}: leave the example \
                     out, or fill in what is missing"
                )));
            }
            let reach = &mut channels[channel];
            *reach = Reach {
                low: reach.low.min(x),
                high: reach.high.max(x),
            };
        }
    }
    Ok(channels)
}

/// The scale of every channel, as far as the readers of the input can take one.
fn scales(graph: &Graph, channels: &[Reach]) -> Vec<Scale> {
    let unscaled = Scale {
        centre: 0.0,
        power: 1.0,
    };
    let readers = readers(graph);
    let linear = |&&id: &&usize| matches!(graph.nodes[id].op, Op::Conv2d { .. } | Op::Dense { .. });
    if readers.iter().filter(linear).count() < readers.len() {
        return vec![unscaled; channels.len()];
    }
    let may_shift = readers.iter().all(|&id| match &graph.nodes[id].op {
        Op::Conv2d { padding, .. } => *padding == Padding::default(),
        _ => true,
    });
    channels
        .iter()
        .map(|reach| reach.scale(may_shift))
        .collect()
}

/// Multiplies the weights that read a channel by its power, and adds to the biases what they make
/// of its centre.
fn rescale(graph: &mut Graph, scales: &[Scale]) {
    if scales.iter().all(|s| s.centre == 0.0 && s.power == 1.0) {
        return;
    }
    for id in readers(graph) {
        let (weight, bias, channels, groups) = match &mut graph.nodes[id].op {
            Op::Conv2d {
                weight,
                bias,
                out_channels,
                groups,
                ..
            } => (weight, bias, *out_channels, *groups),
            Op::Dense { weight, bias, out } => (weight, bias, *out, 1),
            _ => unreachable!("scales are for linear readers"),
        };
        let out = channels as usize;
        let row = weight.len() / out;
        let taps = row * groups as usize / scales.len();
        let mut constants = vec![0.0; out];
        let rows = constants.iter_mut().zip(weight.chunks_exact_mut(row));
        for (channel, (constant, row)) in rows.enumerate() {
            let read = group_reads(groups, (scales.len() as u32, channels), channel as u32);
            let scales = &scales[read.start as usize..read.end as usize];
            for (taps, scale) in row.chunks_exact_mut(taps).zip(scales) {
                for weight in taps {
                    *constant += f64::from(*weight) * scale.centre;
                    *weight = (f64::from(*weight) * scale.power) as f32;
                }
            }
        }
        if constants.iter().any(|&constant| constant != 0.0) {
            bias.resize(out, 0.0);
            let sums = bias.iter_mut().zip(&constants);
            sums.for_each(|(bias, constant)| *bias = (f64::from(*bias) + constant) as f32);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pi_ir::interpret::float;
    use pi_ir::{Node, NodeId, Origin, Shape};

    fn node(name: &str, op: Op, inputs: &[u32]) -> Node {
        Node {
            name: name.into(),
            op,
            inputs: inputs.iter().map(|&id| NodeId(id)).collect(),
            origin: Origin::Learned,
        }
    }

    fn graph(shape: Shape, nodes: Vec<Node>) -> Graph {
        let input = node("input", Op::Input { shape }, &[]);
        Graph {
            name: "values".into(),
            preprocessing: Preprocessing::unit_values(shape.c),
            classes: Vec::new(),
            nodes: [vec![input], nodes].concat(),
        }
    }

    fn examples(inputs: &[&[f64]]) -> Examples {
        Examples {
            source: "by hand".into(),
            inputs: inputs.iter().map(|values| values.to_vec().into()).collect(),
            labels: Vec::new(),
        }
    }

    fn dense(out: u32, weight: Vec<f32>) -> Op {
        Op::Dense {
            weight,
            bias: Vec::new(),
            out,
        }
    }

    /// The prepared graph computes what the graph did.
    fn assert_equal(graph: &Graph, prepared: &Graph, calibration: &Examples) {
        assert_eq!(pi_ir::verify::graph(prepared), []);
        for input in &calibration.inputs {
            let logits = |graph: &Graph| {
                let reals = graph.preprocessing.reals_of(input).unwrap();
                float(graph, &reals).unwrap()
            };
            for (a, b) in logits(graph).into_iter().zip(logits(prepared)) {
                assert!((a - b).abs() <= 1e-5 * (1.0 + a.abs()), "{a} {b}");
            }
        }
    }

    #[test]
    fn every_column_gets_its_own_scale() {
        let weight = vec![1.0, 1e-4, 0.5, 3.0, -2.0, 2e-4, 0.25, 1.0];
        let graph = graph(
            Shape::new(4, 1, 1),
            vec![node("dense", dense(2, weight), &[0])],
        );
        // A fraction, an income, a year, and what is never set.
        let calibration = examples(&[
            &[0.1, 90_000.0, 1970.0, 0.0],
            &[-0.02, 5_000.0, 2000.0, 0.0],
        ]);
        let prepared = prepare(&graph, &calibration, 2).unwrap();
        let expected = Preprocessing::Values {
            // Half of the years' range is 15, at most 2^4: 1985 is nearest to 124 times that. Half
            // of the incomes' is 42,500, at most 2^16: 47,500 is nearest to once that.
            mean: vec![0.0, 65_536.0, 1984.0, 0.0],
            std: vec![0.125, 65_536.0, 16.0, 1.0],
            bound: Some(4.0),
        };
        assert_eq!(prepared.preprocessing, expected);
        assert_equal(&graph, &prepared, &calibration);
    }

    #[test]
    fn padding_leaves_the_centre_where_it_is() {
        let conv = |padding| Op::Conv2d {
            weight: vec![0.5, -1.0, 0.25, 2.0, 1.0, -3.0],
            bias: vec![1.0],
            out_channels: 1,
            groups: 1,
            kernel: (1, 3),
            stride: (1, 1),
            padding,
        };
        let sideways = Padding {
            left: 1,
            right: 1,
            ..Padding::default()
        };
        let calibration = examples(&[
            &[300.0, 305.0, 301.0, 302.0, 0.1, -0.2, 0.3, 0.0],
            &[303.0, 305.0, 306.0, 302.0, 0.4, -0.5, 0.1, 0.2],
        ]);
        for (padding, mean, std) in [
            (sideways, [0.0, 0.0], [512.0, 0.5]),
            (Padding::default(), [304.0, 0.0], [4.0, 0.5]),
        ] {
            let graph = graph(
                Shape::new(2, 1, 4),
                vec![
                    node("conv", conv(padding), &[0]),
                    node("flatten", Op::Flatten, &[1]),
                ],
            );
            let prepared = prepare(&graph, &calibration, 3).unwrap();
            let expected = Preprocessing::Values {
                mean: mean.to_vec(),
                std: std.to_vec(),
                bound: Some(8.0),
            };
            assert_eq!(prepared.preprocessing, expected);
            assert_equal(&graph, &prepared, &calibration);
        }
    }

    #[test]
    fn a_stated_bound_stays_and_holds() {
        let mut graph = graph(
            Shape::new(1, 1, 1),
            vec![node("dense", dense(1, vec![1.0]), &[0])],
        );
        let Preprocessing::Values { bound, .. } = &mut graph.preprocessing else {
            panic!("real values");
        };
        *bound = Some(50.0);
        let prepared = prepare(&graph, &examples(&[&[-50.0], &[3.0]]), 2).unwrap();
        assert_eq!(prepared.preprocessing, graph.preprocessing);
        for (value, says) in [
            (50.5, "channel 0 reaches 0 to 50.5"),
            (f64::NAN, "value 0 of calibration example 1 is NaN"),
        ] {
            let error = prepare(&graph, &examples(&[&[0.0], &[value]]), 2).unwrap_err();
            assert!(error.to_string().contains(says), "{error}");
        }
        let error = prepare(&graph, &examples(&[&[0.0, 1.0]]), 2).unwrap_err();
        assert!(error.to_string().contains("has 2 values"), "{error}");
    }

    #[test]
    fn powers_are_the_least_that_suffice() {
        for (value, power) in [
            (0.0, 1.0),
            (1.0, 1.0),
            (1.0f64.next_up(), 2.0),
            (0.3, 0.5),
            (8.0, 8.0),
            (1e-30, (-99f64).exp2()),
        ] {
            assert_eq!(power_above(value), power, "{value}");
        }
    }
}
