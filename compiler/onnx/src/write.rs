//! Float graphs as ONNX models, for every program that reads those.
//!
//! The model computes what the graph does, from *normalised* images on: its metadata says how
//! pixels are normalised and what the classes are called, in the entries that [`read`](crate::read)
//! understands, and its documentation says the same in words. Each node of the graph is a tensor of
//! the same name. Masks are `Where(mask, Relu(x), x)`, quadratics `a x x + b x + c`, all in ONNX's
//! own operators. The batch is left open.
//!
//! What is lost: the origins of weights ([`pi_ir::Origin`]), which ONNX has no place for.

use crate::proto::{
    AttributeProto, GraphProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, data_type,
};
use crate::{Error, Fault, metadata};
use pi_ir::{
    ActivationKind, BatchNorm, Graph, Node, NodeId, Op, Padding, Preprocessing, Shape, Window,
    verify,
};
use prost::Message;
use std::collections::HashSet;

/// Version of ONNX's operators: of 2020, which every runtime in use understands.
const OPSET: i64 = 13;
/// Version of the format that came with it (ONNX 1.8).
const IR_VERSION: i64 = 7;
/// Largest protobuf message.
const MAX_BYTES: usize = i32::MAX as usize;

/// The graph as an ONNX model.
///
/// # Errors
/// [`Error::Refused`] with all faults of the graph, or because its weights exceed the 2 GiB of a
/// protobuf message.
pub fn write(graph: &Graph) -> Result<Vec<u8>, Error> {
    let faults = verify::graph(graph);
    if !faults.is_empty() {
        let fault = |fault: verify::Fault| Fault::new(&fault.place, "", fault.problem);
        return Err(Error::Refused(faults.into_iter().map(fault).collect()));
    }
    let model = Writer::new(graph).model();
    let length = model.encoded_len();
    if length > MAX_BYTES {
        let why = format!("{length} bytes are more than a protobuf message may have");
        return Err(Error::Refused(vec![Fault::of_model(why)]));
    }
    Ok(model.encode_to_vec())
}

/// What the model's input is, in words.
pub fn input_in_words(preprocessing: &Preprocessing) -> String {
    match preprocessing {
        Preprocessing::Channels { mean, std } => format!(
            "The input is (pixel / 255 - mean) / deviation, with mean {mean:?} and deviation \
             {std:?} by channel."
        ),
        Preprocessing::Values { mean, std, .. } => format!(
            "The input is (value - mean) / deviation, with mean {mean:?} and deviation {std:?} by \
             channel."
        ),
        Preprocessing::Image { floor } => format!(
            "The input is (pixel - mean) / max(deviation, {floor}), with the mean and the \
             deviation of each image over all its pixels and channels, in bytes from 0 to 255."
        ),
    }
}

/// The tensor of a node, as a map `[n, c, h, w]` or a vector `[n, c]`, and as the other of the two
/// where a reader asked for it.
struct Tensor {
    is_map: bool,
    other: Option<String>,
}

struct Writer<'g> {
    graph: &'g Graph,
    shapes: Vec<Shape>,
    /// One for each node that is written.
    tensors: Vec<Tensor>,
    names: HashSet<String>,
    nodes: Vec<NodeProto>,
    initializers: Vec<TensorProto>,
}

impl<'g> Writer<'g> {
    fn new(graph: &'g Graph) -> Self {
        Writer {
            graph,
            shapes: graph.shapes().expect("the verifier computed them"),
            tensors: Vec::with_capacity(graph.nodes.len()),
            names: graph.nodes.iter().map(|node| node.name.clone()).collect(),
            nodes: Vec::new(),
            initializers: Vec::new(),
        }
    }

    fn model(mut self) -> ModelProto {
        for node in &self.graph.nodes {
            let is_map = self.node(node);
            self.tensors.push(Tensor {
                is_map,
                other: None,
            });
        }
        let last = self.graph.nodes.len() - 1;
        let graph = GraphProto {
            name: Some(self.graph.name.clone()),
            input: vec![self.value_info(0)],
            output: vec![self.value_info(last)],
            node: self.nodes,
            initializer: self.initializers,
        };
        ModelProto {
            ir_version: Some(IR_VERSION),
            producer_name: Some("pianissimo".into()),
            producer_version: Some(env!("CARGO_PKG_VERSION").into()),
            doc_string: Some(input_in_words(&self.graph.preprocessing)),
            metadata_props: metadata::entries(self.graph),
            ..ModelProto::of(graph, OPSET)
        }
    }

    fn value_info(&self, index: usize) -> ValueInfoProto {
        let dims = dims(self.shapes[index], self.tensors[index].is_map);
        let dims: Vec<Option<i64>> = [None]
            .into_iter()
            .chain(dims.into_iter().skip(1).map(Some))
            .collect();
        ValueInfoProto::of(&self.graph.nodes[index].name, &dims)
    }

    /// Writes a node; returns whether its tensor is a map.
    fn node(&mut self, node: &Node) -> bool {
        let name = node.name.as_str();
        let is_map = |id: &NodeId| self.tensors[id.0 as usize].is_map;
        let maps = node.inputs.iter().all(is_map);
        match &node.op {
            Op::Input { .. } => return true,
            Op::Conv2d {
                weight,
                bias,
                out_channels,
                groups,
                kernel,
                stride,
                padding,
            } => {
                let channels = self.shapes[node.inputs[0].0 as usize].c / groups;
                let sides = [*out_channels, channels, kernel.0, kernel.1];
                let mut inputs = vec![
                    self.tensor(node.inputs[0], true),
                    self.floats(&format!("{name}.weight"), &sides.map(i64::from), weight),
                ];
                inputs.extend(self.bias(name, bias));
                let mut attributes = window(*kernel, *stride, Some(*padding));
                if *groups > 1 {
                    attributes.push(AttributeProto::int("group", i64::from(*groups)));
                }
                self.push("Conv", inputs, name, attributes);
                return true;
            }
            Op::WindowSum(windows) => {
                let x = self.tensor(node.inputs[0], true);
                self.window_sum(name, x, self.shapes[node.inputs[0].0 as usize], windows);
                return true;
            }
            Op::Dense { weight, bias, out } => {
                let x = self.tensor(node.inputs[0], false);
                let columns = self.shapes[node.inputs[0].0 as usize].c;
                let dims = [i64::from(*out), i64::from(columns)];
                let weight = self.floats(&format!("{name}.weight"), &dims, weight);
                let inputs = [x, weight].into_iter().chain(self.bias(name, bias));
                let attributes = vec![AttributeProto::int("transB", 1)];
                self.push("Gemm", inputs.collect(), name, attributes);
                return false;
            }
            Op::AvgPool { kernel, stride } => {
                let x = self.tensor(node.inputs[0], true);
                self.push("AveragePool", vec![x], name, window(*kernel, *stride, None));
                return true;
            }
            Op::Flatten => {
                let x = self.tensor(node.inputs[0], maps);
                let attributes = vec![AttributeProto::int("axis", 1)];
                self.push("Flatten", vec![x], name, attributes);
                return false;
            }
            Op::Add | Op::Sub => {
                // A vector and a map of one element a channel meet as maps.
                let either = self.tensors[node.inputs[0].0 as usize].is_map
                    || self.tensors[node.inputs[1].0 as usize].is_map;
                let inputs = node.inputs.iter().map(|&id| self.tensor(id, either));
                let inputs = inputs.collect();
                let operator = if node.op == Op::Add { "Add" } else { "Sub" };
                self.push(operator, inputs, name, Vec::new());
                return either;
            }
            Op::BatchNorm(norm) => {
                let x = self.tensor(node.inputs[0], maps);
                self.norm(name, x, norm);
            }
            Op::Activation {
                kinds,
                coefficients,
            } => {
                let x = self.tensor(node.inputs[0], maps);
                let shape = self.shapes[node.inputs[0].0 as usize];
                let site = Site {
                    name,
                    x,
                    dims: dims(shape, maps),
                    kinds,
                    coefficients,
                };
                self.activation(&site);
            }
        }
        maps
    }

    /// The name of a node's tensor, as a map or as a vector.
    fn tensor(&mut self, id: NodeId, as_map: bool) -> String {
        let index = id.0 as usize;
        let name = self.graph.nodes[index].name.clone();
        if self.tensors[index].is_map == as_map {
            return name;
        }
        if let Some(other) = &self.tensors[index].other {
            return other.clone();
        }
        let other = if as_map {
            let other = self.fresh(&format!("{name}.map"));
            let dims = [0, i64::from(self.shapes[index].c), 1, 1];
            let shape = self.fresh(&format!("{name}.shape"));
            self.initializers.push(TensorProto::ints(&shape, &dims));
            self.push("Reshape", vec![name, shape], &other, Vec::new());
            other
        } else {
            let other = self.fresh(&format!("{name}.vector"));
            let attributes = vec![AttributeProto::int("axis", 1)];
            self.push("Flatten", vec![name], &other, attributes);
            other
        };
        self.tensors[index].other = Some(other.clone());
        other
    }

    /// Sums over windows: a choice of rows and columns as a slice, others as a convolution by
    /// channel.
    fn window_sum(&mut self, name: &str, x: String, shape: Shape, windows: &Window) {
        let (kernel, stride, count) = (windows.kernel, windows.stride, windows.count);
        let last = |origin: i32, count: u32, stride: u32| {
            i64::from(origin) + i64::from(count - 1) * i64::from(stride)
        };
        let last = (
            last(windows.origin.0, count.0, stride.0),
            last(windows.origin.1, count.1, stride.1),
        );
        if kernel == (1, 1) && windows.inside(shape) {
            let starts = [windows.origin.0.into(), windows.origin.1.into()];
            let parts: [(&str, [i64; 2]); 4] = [
                ("starts", starts),
                ("ends", [last.0 + 1, last.1 + 1]),
                ("axes", [2, 3]),
                ("steps", [stride.0.into(), stride.1.into()]),
            ];
            let mut inputs = vec![x];
            for (what, list) in parts {
                let part = self.fresh(&format!("{name}.{what}"));
                self.initializers.push(TensorProto::ints(&part, &list));
                inputs.push(part);
            }
            return self.push("Slice", inputs, name, Vec::new());
        }
        // Zeros before and behind the window reach from the first element to the last.
        let side = |origin: i32, kernel: u32, last: i64, size: u32| {
            let end = last + i64::from(kernel);
            let skipped = origin.max(0) as usize;
            let unread = (i64::from(size) - end).max(0) as usize;
            let ones = std::iter::repeat_n(1.0f32, kernel as usize);
            let zeros = |count| std::iter::repeat_n(0.0, count);
            let taps = zeros(skipped)
                .chain(ones)
                .chain(zeros(unread))
                .collect::<Vec<f32>>();
            let padding = (
                (-origin).max(0) as u32,
                (end - i64::from(size)).max(0) as u32,
            );
            (taps, padding)
        };
        let (rows, vertical) = side(windows.origin.0, kernel.0, last.0, shape.h);
        let (columns, horizontal) = side(windows.origin.1, kernel.1, last.1, shape.w);
        let taps: Vec<f32> = rows
            .iter()
            .flat_map(|row| columns.iter().map(move |column| row * column))
            .collect();
        let dims = [shape.c as i64, 1, rows.len() as i64, columns.len() as i64];
        let weight = self.floats(
            &format!("{name}.weight"),
            &dims,
            &taps.repeat(shape.c as usize),
        );
        let padding = Padding {
            top: vertical.0,
            left: horizontal.0,
            bottom: vertical.1,
            right: horizontal.1,
        };
        let kernel = (rows.len() as u32, columns.len() as u32);
        let mut attributes = window(kernel, stride, Some(padding));
        attributes.push(AttributeProto::int("group", i64::from(shape.c)));
        self.push("Conv", vec![x, weight], name, attributes);
    }

    fn norm(&mut self, name: &str, x: String, norm: &BatchNorm) {
        let channels = [norm.gamma.len() as i64];
        let mut inputs = vec![x];
        for (what, list) in [
            ("gamma", &norm.gamma),
            ("beta", &norm.beta),
            ("mean", &norm.mean),
            ("var", &norm.var),
        ] {
            inputs.push(self.floats(&format!("{name}.{what}"), &channels, list));
        }
        let attributes = vec![AttributeProto::float("epsilon", norm.eps)];
        self.push("BatchNormalization", inputs, name, attributes);
    }

    /// The functions that occur, and a choice between each and those before it.
    fn activation(&mut self, site: &Site<'_>) {
        use ActivationKind::{Identity, Polynomial, Relu};
        let occurs = |kind: &ActivationKind| site.kinds.contains(kind);
        let kinds: Vec<_> = [Identity, Relu, Polynomial]
            .into_iter()
            .filter(occurs)
            .collect();
        if let [kind] = kinds[..] {
            self.function(site, kind, site.name);
            return;
        }
        let mut chosen: Option<String> = None;
        for (index, &kind) in kinds.iter().enumerate() {
            let own = match kind {
                Identity => site.x.clone(),
                Relu => self.fresh(&format!("{}.relu", site.name)),
                Polynomial => self.fresh(&format!("{}.quadratic", site.name)),
            };
            if kind != Identity {
                self.function(site, kind, &own);
            }
            let Some(rest) = chosen else {
                chosen = Some(own);
                continue;
            };
            let flags = site.kinds.iter().map(|&k| u8::from(k == kind)).collect();
            let mask = self.fresh(&format!("{own}.mask"));
            let flags = TensorProto::raw(&mask, &site.dims, data_type::BOOL, flags);
            self.initializers.push(flags);
            let output = match index + 1 == kinds.len() {
                true => site.name.to_owned(),
                false => self.fresh(&format!("{}.masked", site.name)),
            };
            self.push("Where", vec![mask, own, rest], &output, Vec::new());
            chosen = Some(output);
        }
    }

    /// One function at every element.
    fn function(&mut self, site: &Site<'_>, kind: ActivationKind, output: &str) {
        let x = || site.x.clone();
        match kind {
            ActivationKind::Identity => self.push("Identity", vec![x()], output, Vec::new()),
            ActivationKind::Relu => self.push("Relu", vec![x()], output, Vec::new()),
            ActivationKind::Polynomial => {
                let mut channels = vec![1; site.dims.len()];
                channels[1] = site.dims[1];
                let [a, b, c] = [0, 1, 2].map(|power| {
                    let list: Vec<f32> = site.coefficients.iter().map(|abc| abc[power]).collect();
                    let name = format!("{}.{}", site.name, ["a", "b", "c"][power]);
                    self.floats(&name, &channels, &list)
                });
                let [square, scaled, linear, sum] = ["square", "scaled", "linear", "sum"]
                    .map(|what| self.fresh(&format!("{}.{what}", site.name)));
                let steps = [
                    ("Mul", x(), x(), &square),
                    ("Mul", square.clone(), a, &scaled),
                    ("Mul", x(), b, &linear),
                    ("Add", scaled.clone(), linear.clone(), &sum),
                ];
                for (operator, left, right, output) in steps {
                    self.push(operator, vec![left, right], output, Vec::new());
                }
                self.push("Add", vec![sum, c], output, Vec::new());
            }
        }
    }

    fn bias(&mut self, name: &str, bias: &[f32]) -> Option<String> {
        let dims = [bias.len() as i64];
        (!bias.is_empty()).then(|| self.floats(&format!("{name}.bias"), &dims, bias))
    }

    /// A constant; returns its name.
    fn floats(&mut self, name: &str, dims: &[i64], values: &[f32]) -> String {
        let name = self.fresh(name);
        let bytes = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        let tensor = TensorProto::raw(&name, dims, data_type::FLOAT, bytes);
        self.initializers.push(tensor);
        name
    }

    fn push(
        &mut self,
        operator: &str,
        input: Vec<String>,
        output: &str,
        attribute: Vec<AttributeProto>,
    ) {
        self.nodes.push(NodeProto {
            name: Some(output.to_owned()),
            op_type: Some(operator.into()),
            input,
            output: vec![output.to_owned()],
            attribute,
            domain: None,
        });
    }

    /// A name that nothing has yet.
    fn fresh(&mut self, base: &str) -> String {
        crate::net::unique(&mut self.names, base)
    }
}

/// An activation while it is written.
struct Site<'s> {
    name: &'s str,
    x: String,
    /// Of the tensor, the batch first as 1.
    dims: Vec<i64>,
    kinds: &'s [ActivationKind],
    coefficients: &'s [[f32; 3]],
}

/// Dimensions of a tensor, the batch as 1.
fn dims(shape: Shape, is_map: bool) -> Vec<i64> {
    let all = [1, shape.c, shape.h, shape.w].map(i64::from);
    match is_map {
        true => all.to_vec(),
        false => all[..2].to_vec(),
    }
}

fn window(kernel: (u32, u32), stride: (u32, u32), padding: Option<Padding>) -> Vec<AttributeProto> {
    let pair = |name: &str, (rows, columns): (u32, u32)| {
        AttributeProto::ints(name, vec![rows.into(), columns.into()])
    };
    let mut attributes = vec![pair("kernel_shape", kernel), pair("strides", stride)];
    if let Some(p) = padding {
        let pads = [p.top, p.left, p.bottom, p.right].map(i64::from);
        attributes.push(AttributeProto::ints("pads", pads.to_vec()));
    }
    attributes
}
