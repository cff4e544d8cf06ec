//! Models put together node by node, and what they compute by ONNX's definitions, one element after
//! the other.

use pi_ir::Input;
use pi_onnx::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, attribute_type,
};
use pi_onnx::{Error, Import, Options, parse};
use prost::Message;
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};
use std::collections::HashMap;

/// Values of a tensor, row-major.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Array {
    pub(crate) dims: Vec<usize>,
    pub(crate) data: Vec<f64>,
}

impl Array {
    pub(crate) fn new(dims: &[usize], data: Vec<f64>) -> Self {
        assert_eq!(dims.iter().product::<usize>(), data.len());
        Array {
            dims: dims.to_vec(),
            data,
        }
    }

    fn at(&self, place: &[usize]) -> f64 {
        let index = place
            .iter()
            .zip(&self.dims)
            .fold(0, |i, (&p, &d)| i * d + p);
        self.data[index]
    }

    /// The element that broadcasting finds at a place of a larger tensor.
    fn spread(&self, place: &[usize]) -> f64 {
        let own = &place[place.len() - self.dims.len()..];
        let own: Vec<usize> = own
            .iter()
            .zip(&self.dims)
            .map(|(&p, &d)| if d == 1 { 0 } else { p })
            .collect();
        self.at(&own)
    }
}

fn places(dims: &[usize]) -> Vec<Vec<usize>> {
    let mut all = vec![Vec::new()];
    for &dim in dims {
        all = all
            .into_iter()
            .flat_map(|place: Vec<usize>| (0..dim).map(move |i| [&place[..], &[i]].concat()))
            .collect();
    }
    all
}

fn build(dims: &[usize], f: impl Fn(&[usize]) -> f64) -> Array {
    Array::new(dims, places(dims).iter().map(|place| f(place)).collect())
}

/// Attributes of a node.
pub(crate) type Attributes = Vec<(&'static str, Attr)>;

/// An attribute's value.
#[derive(Clone)]
pub(crate) enum Attr {
    Int(i64),
    Ints(Vec<i64>),
    Float(f32),
    Text(&'static str),
}

/// A model in the making.
pub(crate) struct Builder {
    pub(crate) graph: GraphProto,
    rng: ChaCha20Rng,
    constants: HashMap<String, Array>,
    input: Vec<usize>,
    pub(crate) opset: i64,
}

impl Builder {
    /// A model that reads `x` of these dimensions, the batch first.
    pub(crate) fn new(input: &[usize]) -> Self {
        let mut builder = Builder {
            graph: GraphProto::default(),
            rng: ChaCha20Rng::seed_from_u64(input.iter().sum::<usize>() as u64),
            constants: HashMap::new(),
            input: input.to_vec(),
            opset: 18,
        };
        let dims: Vec<Option<i64>> = input.iter().map(|&d| Some(d as i64)).collect();
        builder.graph.input.push(ValueInfoProto::of("x", &dims));
        builder
    }

    /// Random weights.
    pub(crate) fn weights(&mut self, name: &str, dims: &[usize]) -> &mut Self {
        let n = dims.iter().product();
        let rng = &mut self.rng;
        let data = (0..n)
            .map(|_| f64::from((rng.next_u32() % 2001) as f32 / 1000.0 - 1.0))
            .collect();
        self.constant(name, Array::new(dims, data))
    }

    /// A constant of single precision.
    pub(crate) fn constant(&mut self, name: &str, array: Array) -> &mut Self {
        let dims: Vec<i64> = array.dims.iter().map(|&d| d as i64).collect();
        let values = array.data.iter().map(|&v| v as f32);
        self.graph
            .initializer
            .push(TensorProto::floats(name, &dims, values));
        self.constants.insert(name.into(), array);
        self
    }

    /// A list of integers.
    pub(crate) fn ints(&mut self, name: &str, values: &[i64]) -> &mut Self {
        self.graph.initializer.push(TensorProto::ints(name, values));
        let data = values.iter().map(|&v| v as f64).collect();
        self.constants
            .insert(name.into(), Array::new(&[values.len()], data));
        self
    }

    /// A single integer, without axes.
    pub(crate) fn index(&mut self, name: &str, value: i64) -> &mut Self {
        self.ints(name, &[value]);
        let tensor = self.graph.initializer.last_mut().expect("just added");
        tensor.dims.clear();
        let array = Array::new(&[], vec![value as f64]);
        self.constants.insert(name.into(), array);
        self
    }

    /// The values of a constant.
    pub(crate) fn values(&self, name: &str) -> &[f64] {
        &self.constants[name].data
    }

    /// A mask.
    pub(crate) fn mask(&mut self, name: &str, dims: &[usize], values: &[bool]) -> &mut Self {
        let sizes: Vec<i64> = dims.iter().map(|&d| d as i64).collect();
        let flags = values.iter().copied();
        self.graph
            .initializer
            .push(TensorProto::flags(name, &sizes, flags));
        let data = values.iter().map(|&v| f64::from(u8::from(v))).collect();
        self.constants.insert(name.into(), Array::new(dims, data));
        self
    }

    /// A node: `inputs` and the output are words of one line, `"x w b > y"`.
    pub(crate) fn node(
        &mut self,
        operator: &str,
        line: &str,
        attributes: &[(&str, Attr)],
    ) -> &mut Self {
        let (inputs, output) = line.split_once('>').expect("inputs > output");
        let proto = |(name, value): &(&str, Attr)| {
            let mut proto = AttributeProto {
                name: Some((*name).into()),
                ..AttributeProto::default()
            };
            let kind = match value {
                Attr::Int(value) => {
                    proto.i = Some(*value);
                    attribute_type::INT
                }
                Attr::Ints(values) => {
                    proto.ints = values.clone();
                    attribute_type::INTS
                }
                Attr::Float(value) => {
                    proto.f = Some(*value);
                    attribute_type::FLOAT
                }
                Attr::Text(text) => {
                    proto.s = Some((*text).into());
                    attribute_type::STRING
                }
            };
            proto.r#type = Some(kind);
            proto
        };
        let words = |text: &str| {
            let words = text
                .split_whitespace()
                .map(|word| if word == "-" { "" } else { word });
            words.map(str::to_owned).collect::<Vec<String>>()
        };
        let output = words(output);
        self.graph.node.push(NodeProto {
            name: Some(format!("{}.node", output[0])),
            op_type: Some(operator.into()),
            input: words(inputs),
            output,
            attribute: attributes.iter().map(proto).collect(),
            ..NodeProto::default()
        });
        self
    }

    /// The file; its output is the last node's.
    pub(crate) fn bytes(&self) -> Vec<u8> {
        let mut graph = self.graph.clone();
        if graph.output.is_empty() {
            let last = graph.node.last().map_or("x", |node| &node.output[0]);
            graph.output.push(ValueInfoProto::of(last, &[]));
        }
        ModelProto::of(graph, self.opset).encode_to_vec()
    }

    pub(crate) fn import(&self) -> Result<Import, Error> {
        parse(&self.bytes(), "test", &Options::default())
    }

    /// All faults, as the user reads them.
    pub(crate) fn refusal(&self) -> String {
        match self.import() {
            Ok(_) => panic!("imported"),
            Err(error) => error.to_string(),
        }
    }

    /// Imports the model and holds it against the definitions on a few images.
    pub(crate) fn check(&self) -> Import {
        let import = match self.import() {
            Ok(import) => import,
            Err(error) => panic!("{error}"),
        };
        assert_eq!(pi_ir::verify::graph(&import.graph), []);
        let mut notes = import.notes.iter();
        let channels_last = notes.any(|note| note.contains("as rows, columns, channels"));
        let n: usize = self.input[1..].iter().product();
        let mut rng = ChaCha20Rng::seed_from_u64(5);
        for image in 0..3 {
            // The model's order; pixels of the graph come channels first.
            let bytes: Vec<u8> = (0..n).map(|_| (rng.next_u32() >> 24) as u8).collect();
            let x: Vec<f64> = bytes.iter().map(|&b| f64::from(b) / 255.0).collect();
            let values = import.graph.preprocessing.is_values();
            let given = x.clone();
            let expected = self.reference(Array::new(&self.input, x));
            let pixels = match self.input[..] {
                [_, h, w, c] if channels_last => {
                    let order = places(&[c, h, w]);
                    order
                        .iter()
                        .map(|p| bytes[(p[1] * w + p[2]) * c + p[0]])
                        .collect()
                }
                _ => bytes,
            };
            let input = match values {
                true => Input::Values(given),
                false => Input::Bytes(pixels),
            };
            let reals = import.graph.preprocessing.reals_of(&input).unwrap();
            let found = pi_ir::interpret::float(&import.graph, &reals).unwrap();
            assert_eq!(found.len(), expected.data.len(), "outputs");
            for (index, (&found, &expected)) in found.iter().zip(&expected.data).enumerate() {
                let difference = (f64::from(found) - expected).abs();
                assert!(
                    difference <= 1e-4 * (1.0 + expected.abs()),
                    "image {image}, output {index}: {found}, expected {expected}"
                );
            }
        }
        import
    }

    fn reference(&self, x: Array) -> Array {
        let last = self.graph.node.last().map_or("x", |node| &node.output[0]);
        let all = self.references(x).remove(last);
        all.expect("the last node's output")
    }

    /// Every tensor, constants included.
    pub(crate) fn references(&self, x: Array) -> HashMap<String, Array> {
        let mut known = self.constants.clone();
        known.insert("x".into(), x);
        for node in &self.graph.node {
            let inputs: Vec<Option<&Array>> = node
                .input
                .iter()
                .map(|name| (!name.is_empty()).then(|| &known[name]))
                .collect();
            match node.op_type.as_deref() {
                Some("Split") => known.extend(split(node, &inputs)),
                _ => {
                    known.insert(node.output[0].clone(), evaluate(node, &inputs));
                }
            }
        }
        known
    }
}

fn ints(node: &NodeProto, name: &str) -> Option<Vec<i64>> {
    let found = node
        .attribute
        .iter()
        .find(|a| a.name.as_deref() == Some(name))?;
    Some(found.ints.clone())
}

fn int(node: &NodeProto, name: &str, default: i64) -> i64 {
    let found = node
        .attribute
        .iter()
        .find(|a| a.name.as_deref() == Some(name));
    found.and_then(|a| a.i).unwrap_or(default)
}

fn float(node: &NodeProto, name: &str, default: f32) -> f64 {
    let found = node
        .attribute
        .iter()
        .find(|a| a.name.as_deref() == Some(name));
    found.and_then(|a| a.f).unwrap_or(default).into()
}

/// Rows and columns of windows along each spatial axis: where each begins, with the offset of the
/// padding.
struct Windows {
    kernel: Vec<usize>,
    starts: Vec<Vec<i64>>,
    dilation: Vec<usize>,
    /// Where the padding behind the map ends.
    ends: Vec<i64>,
}

fn windows(node: &NodeProto, spatial: &[usize], kernel: &[usize]) -> Windows {
    let n = spatial.len();
    let stride = ints(node, "strides").unwrap_or_else(|| vec![1; n]);
    let dilation = ints(node, "dilations").unwrap_or_else(|| vec![1; n]);
    let mut pads = ints(node, "pads").unwrap_or_else(|| vec![0; 2 * n]);
    let auto = node
        .attribute
        .iter()
        .find(|a| a.name.as_deref() == Some("auto_pad"));
    let auto = auto.and_then(|a| a.s.clone()).unwrap_or_default();
    let ceil = int(node, "ceil_mode", 0) == 1;
    let (mut starts, mut ends) = (Vec::new(), Vec::new());
    for axis in 0..n {
        let (size, reach) = (
            spatial[axis] as i64,
            (kernel[axis] as i64 - 1) * dilation[axis] + 1,
        );
        if auto.starts_with("SAME") {
            let count = (size + stride[axis] - 1) / stride[axis];
            let total = ((count - 1) * stride[axis] + reach - size).max(0);
            let small = total / 2;
            pads[axis] = if auto == "SAME_UPPER" {
                small
            } else {
                total - small
            };
            pads[n + axis] = total - pads[axis];
        }
        let padded = size + pads[axis] + pads[n + axis] - reach;
        let mut count = padded / stride[axis] + 1;
        if ceil && padded % stride[axis] != 0 && count * stride[axis] < size + pads[axis] {
            count += 1;
        }
        ends.push(size + pads[n + axis]);
        starts.push((0..count).map(|o| o * stride[axis] - pads[axis]).collect());
    }
    Windows {
        starts,
        ends,
        kernel: kernel.to_vec(),
        dilation: dilation.iter().map(|&d| d as usize).collect(),
    }
}

/// The elements of a window that lie in the map, each with its tap.
fn window(w: &Windows, out: &[usize], spatial: &[usize]) -> Vec<(Vec<usize>, Vec<usize>)> {
    places(&w.kernel)
        .into_iter()
        .filter_map(|tap| {
            let place: Option<Vec<usize>> = (0..spatial.len())
                .map(|axis| {
                    let at = w.starts[axis][out[axis]] + (tap[axis] * w.dilation[axis]) as i64;
                    usize::try_from(at).ok().filter(|&at| at < spatial[axis])
                })
                .collect();
            Some((tap, place?))
        })
        .collect()
}

/// The axes that an attribute or an input names, all without them.
fn axes(node: &NodeProto, listed: Option<&Array>, rank: usize) -> Vec<usize> {
    let listed = listed.map(|axes| axes.data.iter().map(|&v| v as i64).collect());
    let axes = ints(node, "axes")
        .or(listed)
        .filter(|axes: &Vec<i64>| !axes.is_empty());
    let axes = axes.unwrap_or_else(|| (0..rank as i64).collect());
    let place = |a: &i64| (if *a < 0 { a + rank as i64 } else { *a }) as usize;
    axes.iter().map(place).collect()
}

fn split(node: &NodeProto, inputs: &[Option<&Array>]) -> Vec<(String, Array)> {
    let x = inputs[0].expect("a first input");
    let axis = int(node, "axis", 0);
    let axis = (if axis < 0 {
        axis + x.dims.len() as i64
    } else {
        axis
    }) as usize;
    let n = node.output.len();
    let listed = inputs.get(1).copied().flatten();
    let sizes: Vec<usize> = match (ints(node, "split"), listed) {
        (Some(list), _) => list.iter().map(|&v| v as usize).collect(),
        (None, Some(list)) => list.data.iter().map(|&v| v as usize).collect(),
        (None, None) => {
            let own = x.dims[axis].div_ceil(n);
            (0..n).map(|i| own.min(x.dims[axis] - i * own)).collect()
        }
    };
    let mut first = 0;
    let pieces = node.output.iter().zip(sizes).map(|(name, size)| {
        let start = first;
        first += size;
        let mut dims = x.dims.clone();
        dims[axis] = size;
        let piece = build(&dims, |place| {
            let mut place = place.to_vec();
            place[axis] += start;
            x.at(&place)
        });
        (name.clone(), piece)
    });
    pieces.collect()
}

fn evaluate(node: &NodeProto, inputs: &[Option<&Array>]) -> Array {
    let x = inputs[0].expect("a first input");
    let other = |index: usize| inputs.get(index).copied().flatten();
    let pair = |f: &dyn Fn(f64, f64) -> f64| {
        let (a, b) = (x, other(1).expect("a second input"));
        let rank = a.dims.len().max(b.dims.len());
        let size = |array: &Array, axis: usize| {
            (axis + array.dims.len())
                .checked_sub(rank)
                .map_or(1, |i| array.dims[i])
        };
        let dims: Vec<usize> = (0..rank)
            .map(|axis| size(a, axis).max(size(b, axis)))
            .collect();
        build(&dims, |place| f(a.spread(place), b.spread(place)))
    };
    let each = |f: &dyn Fn(f64) -> f64| build(&x.dims, |place| f(x.at(place)));
    let kernel_shape = || {
        let shape = ints(node, "kernel_shape").expect("kernel_shape");
        shape.iter().map(|&n| n as usize).collect::<Vec<usize>>()
    };
    match node.op_type.as_deref().expect("an operator") {
        "Conv" => {
            let weight = other(1).expect("weights");
            let groups = int(node, "group", 1) as usize;
            let spatial = &x.dims[2..];
            let w = windows(node, spatial, &weight.dims[2..]);
            let mut dims = vec![1, weight.dims[0]];
            dims.extend(w.starts.iter().map(Vec::len));
            let per_group = weight.dims[0] / groups;
            build(&dims, |place| {
                let bias = other(2).map_or(0.0, |b| b.data[place[1]]);
                let first = place[1] / per_group * weight.dims[1];
                let taps = window(&w, &place[2..], spatial);
                let sum: f64 = (0..weight.dims[1])
                    .flat_map(|i| taps.iter().map(move |tap| (i, tap)))
                    .map(|(i, (tap, at))| {
                        weight.at(&[&[place[1], i], &tap[..]].concat())
                            * x.at(&[&[0, first + i], &at[..]].concat())
                    })
                    .sum();
                bias + sum
            })
        }
        "MaxPool" | "AveragePool" => {
            let spatial = &x.dims[2..];
            let w = windows(node, spatial, &kernel_shape());
            let mut dims = x.dims[..2].to_vec();
            dims.extend(w.starts.iter().map(Vec::len));
            let max = node.op_type.as_deref() == Some("MaxPool");
            let all = int(node, "count_include_pad", 0) == 1;
            build(&dims, |place| {
                let values = window(&w, &place[2..], spatial);
                let values: Vec<f64> = values
                    .iter()
                    .map(|(_, at)| x.at(&[&place[..2], &at[..]].concat()))
                    .collect();
                match max {
                    true => values.into_iter().fold(f64::NEG_INFINITY, f64::max),
                    false => {
                        // Rounding up lets windows reach out of the padding.
                        let inside = |axis: usize| {
                            let taps = 0..w.kernel[axis];
                            let start = w.starts[axis][place[axis + 2]];
                            let at = |tap: usize| start + (tap * w.dilation[axis]) as i64;
                            taps.filter(|&tap| at(tap) < w.ends[axis]).count()
                        };
                        let count = if all {
                            (0..spatial.len()).map(inside).product()
                        } else {
                            values.len()
                        };
                        values.iter().sum::<f64>() / count as f64
                    }
                }
            })
        }
        "GlobalAveragePool" => {
            let mut dims = vec![1; x.dims.len()];
            dims[1] = x.dims[1];
            build(&dims, |place| {
                let all = places(&x.dims[2..]);
                let sum: f64 = all
                    .iter()
                    .map(|at| x.at(&[&place[..2], &at[..]].concat()))
                    .sum();
                sum / all.len() as f64
            })
        }
        "ReduceMean" | "ReduceSum" | "ReduceMax" | "GlobalMaxPool" => {
            let operator = node.op_type.as_deref();
            let axes = match operator {
                Some("GlobalMaxPool") => (2..x.dims.len()).collect(),
                _ => axes(node, other(1), x.dims.len()),
            };
            let dims: Vec<usize> = (x.dims.iter().enumerate())
                .map(|(i, &d)| if axes.contains(&i) { 1 } else { d })
                .collect();
            let count: usize = axes.iter().map(|&a| x.dims[a]).product();
            let kept = build(&dims, |place| {
                let inner = |at: &&Vec<usize>| {
                    (0..dims.len()).all(|i| axes.contains(&i) || at[i] == place[i])
                };
                let all = places(&x.dims);
                let values = all.iter().filter(inner).map(|at| x.at(at));
                match operator {
                    Some("ReduceMean") => values.sum::<f64>() / count as f64,
                    Some("ReduceSum") => values.sum(),
                    _ => values.fold(f64::NEG_INFINITY, f64::max),
                }
            });
            match int(node, "keepdims", 1) {
                1 => kept,
                _ => {
                    let dims = dims.iter().enumerate().filter(|(i, _)| !axes.contains(i));
                    Array::new(&dims.map(|(_, &d)| d).collect::<Vec<_>>(), kept.data)
                }
            }
        }
        "Slice" => {
            let list = |index: usize| other(index).map(|a| a.data.clone());
            let (starts, ends) = (list(1).expect("starts"), list(2).expect("ends"));
            let axes = match other(3) {
                Some(listed) => axes(node, Some(listed), x.dims.len()),
                None => (0..starts.len()).collect(),
            };
            let steps = list(4).unwrap_or_else(|| vec![1.0; starts.len()]);
            let mut taken: Vec<Vec<usize>> = x.dims.iter().map(|&d| (0..d).collect()).collect();
            for (i, &axis) in axes.iter().enumerate() {
                let size = x.dims[axis] as f64;
                let turn = |v: f64| if v < 0.0 { v + size } else { v };
                let (mut at, end) = (turn(starts[i]), turn(ends[i]));
                taken[axis].clear();
                at = at
                    .min(if steps[i] < 0.0 { size - 1.0 } else { size })
                    .max(0.0);
                while at >= 0.0 && at < size && (end - at) * steps[i] > 0.0 {
                    taken[axis].push(at as usize);
                    at += steps[i];
                }
            }
            let dims: Vec<usize> = taken.iter().map(Vec::len).collect();
            build(&dims, |place| {
                let from = taken.iter().zip(place).map(|(taken, &at)| taken[at]);
                x.at(&from.collect::<Vec<_>>())
            })
        }
        "Gather" => {
            let (indices, axis) = (other(1).expect("indices"), int(node, "axis", 0) as usize);
            let mut dims = x.dims[..axis].to_vec();
            dims.extend(&indices.dims);
            dims.extend(&x.dims[axis + 1..]);
            let n = indices.dims.len();
            build(&dims, |place| {
                let index = indices.at(&place[axis..axis + n]);
                let index = if index < 0.0 {
                    index + x.dims[axis] as f64
                } else {
                    index
                };
                x.at(&[&place[..axis], &[index as usize], &place[axis + n..]].concat())
            })
        }
        "Expand" => {
            let wanted = &other(1).expect("a shape").data;
            let dims: Vec<usize> = wanted.iter().map(|&d| d as usize).collect();
            build(&dims, |place| x.spread(place))
        }
        "Gemm" | "MatMul" => {
            let (weight, gemm) = (
                other(1).expect("weights"),
                node.op_type.as_deref() == Some("Gemm"),
            );
            let transposed = int(node, "transB", 0) == 1;
            let (n, k) = match transposed {
                true => (weight.dims[0], weight.dims[1]),
                false => (weight.dims[1], weight.dims[0]),
            };
            let (alpha, beta) = (float(node, "alpha", 1.0), float(node, "beta", 1.0));
            // A vector is the same either way round, so transA changes nothing here.
            build(&[1, n], |place| {
                let o = place[1];
                let sum: f64 = (0..k)
                    .map(|i| x.data[i] * weight.at(&if transposed { [o, i] } else { [i, o] }))
                    .sum();
                let bias = other(2).filter(|_| gemm).map_or(0.0, |c| c.spread(place));
                alpha * sum + beta * bias
            })
        }
        "BatchNormalization" => {
            let list = |index: usize| other(index).expect("statistics").data.clone();
            let (gamma, beta, mean, var) = (list(1), list(2), list(3), list(4));
            let eps = float(node, "epsilon", 1e-5);
            build(&x.dims, |place| {
                let c = place[1];
                gamma[c] * (x.at(place) - mean[c]) / (var[c] + eps).sqrt() + beta[c]
            })
        }
        "Relu" => each(&|v| v.max(0.0)),
        "Abs" => each(&f64::abs),
        "Neg" => each(&|v| -v),
        "Identity" | "Dropout" | "Cast" => x.clone(),
        "LeakyRelu" => {
            let slope = float(node, "alpha", 0.01);
            each(&|v| if v < 0.0 { slope * v } else { v })
        }
        "PRelu" => pair(&|v, slope| if v < 0.0 { slope * v } else { v }),
        "Clip" => {
            let bound = |index, none| other(index).map_or(none, |b: &Array| b.data[0]);
            let (low, high) = (bound(1, f64::NEG_INFINITY), bound(2, f64::INFINITY));
            each(&|v| v.max(low).min(high))
        }
        "Add" => pair(&|a, b| a + b),
        "Sub" => pair(&|a, b| a - b),
        "Mul" => pair(&|a, b| a * b),
        "Div" => pair(&|a, b| a / b),
        "Max" => pair(&f64::max),
        "Min" => pair(&f64::min),
        "Pow" => pair(&f64::powf),
        "Where" => {
            let (a, b) = (other(1).expect("x"), other(2).expect("y"));
            let dims = if a.dims.len() >= b.dims.len() {
                &a.dims
            } else {
                &b.dims
            };
            build(dims, |place| {
                if x.spread(place) != 0.0 {
                    a.spread(place)
                } else {
                    b.spread(place)
                }
            })
        }
        "Concat" => {
            let axis = int(node, "axis", 1) as usize;
            let mut dims = x.dims.clone();
            dims[axis] = inputs.iter().flatten().map(|a| a.dims[axis]).sum();
            build(&dims, |place| {
                let mut place = place.to_vec();
                for part in inputs.iter().flatten() {
                    if place[axis] < part.dims[axis] {
                        return part.at(&place);
                    }
                    place[axis] -= part.dims[axis];
                }
                unreachable!("a place in one of the parts")
            })
        }
        "Flatten" => {
            let axis = int(node, "axis", 1) as usize;
            let (a, b) = x.dims.split_at(axis);
            Array::new(&[a.iter().product(), b.iter().product()], x.data.clone())
        }
        "Reshape" => {
            let wanted = &other(1).expect("a shape").data;
            let known: f64 = wanted.iter().filter(|&&d| d > 0.0).product();
            let dims: Vec<usize> = wanted
                .iter()
                .map(|&d| {
                    if d < 0.0 {
                        x.data.len() / known as usize
                    } else {
                        d as usize
                    }
                })
                .collect();
            Array::new(&dims, x.data.clone())
        }
        "Squeeze" | "Unsqueeze" => {
            let axes: Vec<usize> = other(1)
                .expect("axes")
                .data
                .iter()
                .map(|&v| v as usize)
                .collect();
            let mut dims = x.dims.clone();
            match node.op_type.as_deref() {
                Some("Squeeze") => axes.iter().rev().for_each(|&a| {
                    dims.remove(a);
                }),
                _ => axes.iter().for_each(|&a| dims.insert(a, 1)),
            }
            Array::new(&dims, x.data.clone())
        }
        "Transpose" => {
            let reversed = || (0..x.dims.len() as i64).rev().collect();
            let perm = ints(node, "perm").unwrap_or_else(reversed);
            let perm: Vec<usize> = perm.iter().map(|&p| p as usize).collect();
            let dims: Vec<usize> = perm.iter().map(|&p| x.dims[p]).collect();
            build(&dims, |place| {
                let mut from = vec![0; place.len()];
                perm.iter().zip(place).for_each(|(&p, &at)| from[p] = at);
                x.at(&from)
            })
        }
        "Pad" => {
            let pads = &other(1).expect("pads").data;
            let n = x.dims.len();
            let dims: Vec<usize> = (0..n)
                .map(|i| x.dims[i] + pads[i] as usize + pads[n + i] as usize)
                .collect();
            build(&dims, |place| {
                let from: Option<Vec<usize>> = (0..n)
                    .map(|i| {
                        place[i]
                            .checked_sub(pads[i] as usize)
                            .filter(|&at| at < x.dims[i])
                    })
                    .collect();
                let around = other(2).map_or(0.0, |value| value.data[0]);
                from.map_or(around, |from| x.at(&from))
            })
        }
        other => panic!("no definition of {other} here"),
    }
}
