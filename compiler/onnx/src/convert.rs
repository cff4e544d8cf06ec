//! The walk over a model's nodes: constants are computed, everything else becomes nodes of the
//! graph.

mod channels;
mod elementwise;
mod linear;
mod masked;
mod pool;
mod rearrange;

use crate::attributes::Attributes;
use crate::file::Model;
use crate::fold;
use crate::masks::Masks;
use crate::metadata::Metadata;
use crate::net::{Net, RAW};
use crate::proto::{GraphProto, NodeProto, ValueInfoProto};
use crate::tensor::{Shared, Tensor};
use crate::trace::{Recording, Trace};
use crate::value::{Axis, Live, Part, Value, View};
use crate::{Error, Fault, Import, InputKind, Options};
use pi_ir::{NodeId, Op, Preprocessing, Shape, limits};
use std::collections::{HashMap, HashSet};
use std::rc::Rc;

/// Versions of ONNX's operators that are understood.
const OPSETS: std::ops::RangeInclusive<i64> = 7..=24;

/// Operators that become nodes, or disappear.
const SUPPORTED: &[&str] = &[
    "Abs",
    "Add",
    "ArgMax",
    "AveragePool",
    "BatchNormalization",
    "Cast",
    "Clip",
    "Concat",
    "Conv",
    "Div",
    "Dropout",
    "Expand",
    "Flatten",
    "Gather",
    "Gemm",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "Identity",
    "LeakyRelu",
    "LogSoftmax",
    "MatMul",
    "Max",
    "MaxPool",
    "Min",
    "Mul",
    "Neg",
    "PRelu",
    "Pad",
    "Pow",
    "ReduceMax",
    "ReduceMean",
    "ReduceSum",
    "Relu",
    "Reshape",
    "Shape",
    "Sigmoid",
    "Size",
    "Slice",
    "Softmax",
    "Split",
    "Squeeze",
    "Sub",
    "Sum",
    "Transpose",
    "Unsqueeze",
    "Where",
];

/// What to do about operators that are not supported, where there is advice.
const REMEDIES: &[(&[&str], &str)] = &[
    (
        &[
            "HardSwish",
            "Mish",
            "Gelu",
            "Elu",
            "Selu",
            "Celu",
            "Softplus",
            "Softsign",
            "Swish",
            "Tanh",
            "HardSigmoid",
            "ThresholdedRelu",
            "Erf",
        ],
        "it has no private form: train the network with Relu, or with quadratics",
    ),
    (
        &[
            "InstanceNormalization",
            "LayerNormalization",
            "GroupNormalization",
            "LRN",
            "LpNormalization",
            "MeanVarianceNormalization",
        ],
        "it divides by statistics of each image: train the network with BatchNormalization",
    ),
    (
        &["LSTM", "GRU", "RNN", "Loop", "If", "Scan"],
        "networks with control flow or recurrence have no private form here: export the network \
         unrolled, without it",
    ),
    (
        &[
            "QuantizeLinear",
            "QLinearConv",
            "ConvInteger",
            "MatMulInteger",
            "QLinearMatMul",
            "DynamicQuantizeLinear",
        ],
        "the compiler quantises by itself: export the network in single precision",
    ),
    (
        &[
            "ConvTranspose",
            "Resize",
            "Upsample",
            "DepthToSpace",
            "GridSample",
        ],
        "enlarging maps is not supported: this is for classifiers",
    ),
    (
        &[
            "GatherElements",
            "GatherND",
            "ScatterElements",
            "ScatterND",
            "Tile",
            "Col2Im",
        ],
        "of what depends on the input, parts can be taken by Split, Slice and Gather only: fold it \
         into weights, or export with constant folding",
    ),
    (
        &["Attention", "MultiHeadAttention"],
        "attention has no private form here",
    ),
    (
        &[
            "ReduceMin",
            "ReduceL1",
            "ReduceL2",
            "ReduceProd",
            "ReduceLogSum",
            "ReduceLogSumExp",
            "ReduceSumSquare",
            "TopK",
        ],
        "of the reductions only ReduceMean, ReduceSum and ReduceMax over rows and columns are \
         supported",
    ),
];

pub(crate) struct Converter<'m> {
    model: &'m Model,
    masks: Option<&'m Masks>,
    net: Net,
    values: HashMap<String, Value>,
    faults: Vec<Fault>,
    notes: Vec<String>,
    /// The batch that the file fixes; taken as 1.
    batch: usize,
    /// Elements of the constants that were computed: a short file may ask for any number.
    computed: usize,
    /// The tensors so far, if they are kept.
    recording: Option<Recording>,
}

/// Elements of all constants that nodes compute from others.
const MAX_COMPUTED: usize = 1 << 28;

/// A node as its operator's code sees it.
#[derive(Clone, Copy)]
struct At<'n> {
    name: &'n str,
    /// Its first output.
    output: &'n str,
    operator: &'n str,
    attributes: Attributes<'n>,
    inputs: &'n [Option<Value>],
}

impl<'n> At<'n> {
    /// An input that depends on the network's input.
    fn live(self, index: usize) -> Result<&'n Live, String> {
        match self.inputs.get(index) {
            Some(Some(Value::Live(live))) => Ok(live),
            Some(Some(Value::Constant(_))) => Err(format!(
                "input {index} is a constant; it must depend on the network's input"
            )),
            Some(Some(Value::Apart(apart))) => Err(format!(
                "input {index} has its channels taken apart, as {:?}: put them together by \
                 Transpose and Reshape first",
                apart.dims()
            )),
            _ => Err(format!("input {index} is missing")),
        }
    }

    /// An input, whatever it is.
    fn value(self, index: usize) -> Result<&'n Value, String> {
        let value = self.inputs.get(index).and_then(|input| input.as_ref());
        value.ok_or_else(|| format!("input {index} is missing"))
    }

    /// An input that is known before the network runs.
    fn constant(self, index: usize) -> Result<&'n Tensor, String> {
        let found = self.constant_if(index)?;
        found.ok_or_else(|| format!("input {index} is missing"))
    }

    /// The axes that a node names: an attribute first, an input in later versions.
    fn axes(self) -> Result<Option<Vec<i64>>, String> {
        fold::axes_or(self.attributes, || self.constant_if(1))
    }

    /// The same as [`At::constant`] for an input that may be left out.
    fn constant_if(self, index: usize) -> Result<Option<&'n Tensor>, String> {
        match self.inputs.get(index) {
            None | Some(None) => Ok(None),
            Some(Some(Value::Constant(tensor))) => Ok(Some(tensor)),
            Some(Some(_)) => Err(format!(
                "input {index} depends on the network's input; it must be a constant, or what is \
                 computed from constants"
            )),
        }
    }
}

/// Imports a model.
pub(crate) fn convert(model: &Model, name: &str, options: &Options) -> Result<Import, Error> {
    let refused = |fault: Fault| Error::Refused(vec![fault]);
    let graph = model.proto.graph.as_ref().expect("a parsed model has one");
    check_opsets(model).map_err(|why| refused(Fault::of_model(why)))?;
    let output = output_name(graph, options).map_err(|why| refused(Fault::of_model(why)))?;
    let order = needed(graph, &output).map_err(refused)?;
    let initializers: HashSet<&str> = graph
        .initializer
        .iter()
        .filter_map(|t| t.name.as_deref())
        .collect();
    let input = input_of(graph, &order, &initializers);
    let input = input.map_err(|why| refused(Fault::of_model(why)))?;
    let (view, batch, mut notes) =
        input_view(input, options.input, channels_may_be_last(graph, &order))
            .map_err(|why| refused(Fault::of_model(why)))?;
    let image = view.order.len() == 4 && matches!(view.shape.c, 1 | 3);
    let by_shape = match image {
        true => InputKind::Image,
        false => InputKind::Values,
    };
    let metadata = Metadata::new(&model.proto, options, view.shape.c, by_shape);
    let metadata = metadata.map_err(|why| refused(Fault::of_model(why)))?;
    if batch > 1 {
        notes.push(format!(
            "the file fixes a batch of {batch} inputs; one at a time is computed"
        ));
    }
    let input_name = input.name.clone().unwrap_or_default();
    let masks = options.masks.as_ref();
    let mut converter = Converter {
        model,
        masks,
        net: Net::new(
            if input_name.is_empty() {
                "input"
            } else {
                &input_name
            },
            view.shape,
        ),
        values: HashMap::new(),
        faults: masks.map_or_else(Vec::new, |masks| masks.faults(graph, &order.nodes)),
        notes,
        batch,
        computed: 0,
        recording: options.trace.then(|| Recording::new(view.clone())),
    };
    if metadata.is_by_image() {
        converter.net.keep_input();
    }
    let live = Live::one(Part::of(&input_name, view));
    converter.values.insert(input_name, Value::Live(live));
    for tensor in &graph.initializer {
        let Some(name) = tensor
            .name
            .as_deref()
            .filter(|name| order.reads.contains_key(*name))
        else {
            continue;
        };
        let value = match model.tensor(tensor) {
            Ok(tensor) => Value::Constant(Rc::new(tensor)),
            Err(why) => {
                converter.faults.push(Fault::new(name, "initializer", why));
                Value::Unknown
            }
        };
        converter.values.insert(name.to_owned(), value);
    }
    let Order { nodes, mut reads } = order;
    for index in nodes {
        let node = &graph.node[index];
        converter.visit(node);
        // Masks and coefficients of large maps are not kept longer than they are needed.
        for name in &node.input {
            if let Some(left) = reads.get_mut(name) {
                *left -= 1;
                if *left == 0 {
                    converter.values.remove(name);
                }
            }
        }
    }
    converter.finish(name, &output, &metadata)
}

impl Converter<'_> {
    fn visit(&mut self, node: &NodeProto) {
        let operator = node.op_type.as_deref().unwrap_or_default();
        let first = node.output.first().map_or("", String::as_str);
        let name = match node.name.as_deref() {
            None | Some("") => first,
            Some(name) => name,
        };
        let values = self.values_of(node, name, operator).unwrap_or_else(|why| {
            self.faults.push(Fault::new(name, operator, why));
            vec![Value::Unknown; node.output.len()]
        });
        for (output, value) in node.output.iter().zip(values) {
            if let (Some(recording), Value::Live(live)) = (&mut self.recording, &value) {
                recording.push(output, live);
            }
            self.values.insert(output.clone(), value);
        }
    }

    /// The node's outputs, or the first of them where others are not supported.
    fn values_of(
        &mut self,
        node: &NodeProto,
        name: &str,
        operator: &str,
    ) -> Result<Vec<Value>, String> {
        if let Some(domain) = node
            .domain
            .as_deref()
            .filter(|d| !matches!(*d, "" | "ai.onnx"))
        {
            return Err(format!(
                "operators of the domain {domain} are not supported: export with ONNX's own"
            ));
        }
        let mut inputs = Vec::with_capacity(node.input.len());
        for input in &node.input {
            inputs.push(match input.as_str() {
                "" => None,
                name => {
                    Some(self.values.get(name).cloned().ok_or_else(|| {
                        format!("it reads {name}, an output that is not supported")
                    })?)
                }
            });
        }
        let attributes = Attributes(node);
        let constants: Option<Vec<Option<Shared>>> = inputs
            .iter()
            .map(|input| match input {
                None => Some(None),
                Some(Value::Constant(tensor)) => Some(Some(tensor.clone())),
                Some(_) => None,
            })
            .collect();
        if let Some(constants) = constants
            && let Some(folded) = fold::evaluate(self.model, operator, attributes, &constants)
        {
            let tensor = folded?;
            let output = node.output.first().map_or("", String::as_str);
            if self.masks.and_then(|masks| masks.site(output)).is_some() {
                return Err("it is masked, and does not depend on the network's input".into());
            }
            self.count_computed(tensor.len())?;
            return Ok(vec![Value::Constant(Rc::new(tensor))]);
        }
        if !SUPPORTED.contains(&operator) {
            let remedy = REMEDIES.iter().find(|(names, _)| names.contains(&operator));
            return Err(match remedy {
                Some((_, remedy)) => format!("not supported: {remedy}"),
                None => "not supported".into(),
            });
        }
        if inputs
            .iter()
            .flatten()
            .any(|value| matches!(value, Value::Unknown))
        {
            return Ok(vec![Value::Unknown; node.output.len()]);
        }
        let at = At {
            name,
            output: node.output.first().map_or("", String::as_str),
            operator,
            attributes,
            inputs: &inputs,
        };
        if let Some((live, last)) = inputs.iter().flatten().find_map(|value| match value {
            Value::Final(live, last) => Some((live, *last)),
            _ => None,
        }) {
            return Ok(vec![behind_the_end(at, live, last)?]);
        }
        if operator != "Split" {
            return Ok(vec![self.operator(at)?]);
        }
        if let Some(Some(Value::Constant(tensor))) = inputs.first() {
            self.count_computed(tensor.len())?;
        }
        self.split(at, node.output.len())
    }

    /// Ensures that computed constants stay within bounds.
    fn count_computed(&mut self, elements: usize) -> Result<(), String> {
        self.computed = self.computed.saturating_add(elements);
        match self.computed <= MAX_COMPUTED {
            true => Ok(()),
            false => Err(format!(
                "the constants that nodes compute have more than {MAX_COMPUTED} elements"
            )),
        }
    }

    fn operator(&mut self, at: At<'_>) -> Result<Value, String> {
        let live = match at.operator {
            "Shape" => {
                let dims = fold::shape(&at.value(0)?.dims()?, at.attributes)?;
                return Ok(Value::Constant(Rc::new(dims)));
            }
            "Size" => {
                let size = at.value(0)?.dims()?.iter().product::<usize>();
                let size = Tensor::ints(vec![size as i64]).reshaped(Vec::new())?;
                return Ok(Value::Constant(Rc::new(size)));
            }
            "Softmax" => return Ok(Value::Final(at.live(0)?.clone(), "Softmax")),
            "LogSoftmax" => return Ok(Value::Final(at.live(0)?.clone(), "LogSoftmax")),
            "Sigmoid" => return Ok(Value::Final(at.live(0)?.clone(), "Sigmoid")),
            "ArgMax" => return Ok(Value::Final(at.live(0)?.clone(), "ArgMax")),
            "Identity" => at.live(0)?.clone(),
            "Dropout" => match at.constant_if(2)?.map(fold::truths).transpose()?.as_deref() {
                Some([true]) => return Err("training_mode is set: export for inference".into()),
                _ => at.live(0)?.clone(),
            },
            "Cast" => match at.attributes.int("to", 1)? {
                1 | 10 | 11 | 16 => at.live(0)?.clone(),
                _ => return Err("casts to integers have no private form".into()),
            },
            "Relu" if let Some(site) = self.masks.and_then(|masks| masks.site(at.output)) => {
                self.masked(at, site)?
            }
            "Conv" => self.conv(at)?,
            "Gemm" => self.gemm(at)?,
            "MatMul" => self.matmul(at)?,
            "AveragePool" | "GlobalAveragePool" | "GlobalMaxPool" | "MaxPool" | "ReduceMean"
            | "ReduceSum" | "ReduceMax" => self.pool(at)?,
            "Flatten" | "Reshape" | "Squeeze" | "Unsqueeze" => return self.reshape(at),
            "Transpose" => return self.transpose(at),
            "Slice" => return self.slice(at),
            "Gather" => return self.gather(at),
            "Expand" => self.expand(at)?,
            "Concat" => self.concat(at)?,
            "Pad" => self.pad(at)?,
            _ => self.elementwise(at)?,
        };
        Ok(Value::Live(live))
    }

    fn finish(mut self, name: &str, output: &str, metadata: &Metadata) -> Result<Import, Error> {
        let (live, last) = match self.values.remove(output) {
            Some(Value::Live(live)) => (Some(live), None),
            Some(Value::Final(live, last)) => (Some(live), Some(last)),
            Some(Value::Constant(_)) => {
                let why = "the output does not depend on the input";
                self.faults.push(Fault::of_model(why.into()));
                (None, None)
            }
            Some(Value::Apart(_)) => {
                let why = "the output has its channels taken apart by a Reshape";
                self.faults.push(Fault::of_model(why.into()));
                (None, None)
            }
            Some(Value::Unknown) | None => (None, None),
        };
        if let Some(last) = last {
            self.notes.push(format!(
                "{last} at the end is left to the reader of the answer: the logits before it are \
                 computed, and the label is that of the largest"
            ));
        }
        let finished = live.map(|live| self.output_node(output, &live));
        match finished.transpose() {
            Ok(Some(id)) if self.faults.is_empty() => {
                let (mut graph, new_id, function) = self.net.finish(name, id, metadata.kind());
                let twice = metadata.given_twice(&graph);
                let twice = twice.map_err(|why| Error::Refused(vec![Fault::of_model(why)]))?;
                self.notes.extend(twice);
                metadata.apply(&mut graph);
                if let Op::Input { shape } = graph.nodes[0].op
                    && metadata.kind() == InputKind::Values
                {
                    self.notes.push(format!(
                        "the input of {shape} is read as real values; if it is a picture of bytes, \
                         give --input-kind image"
                    ));
                }
                if let Preprocessing::Channels { mean, std } = &graph.preprocessing {
                    let plain = mean.iter().all(|&m| m == 0.0) && std.iter().all(|&s| s == 1.0);
                    let image = matches!(graph.nodes[0].op, Op::Input { shape } if shape.h > 1);
                    if plain && image {
                        self.notes.push(
                            "pixels from 0 to 255 are divided by 255 and not normalised: if the \
                             network was trained on normalised ones, give --mean and --deviation"
                                .into(),
                        );
                    }
                }
                let trace = self.recording.take();
                let trace = trace.map(|all| Trace::new(all, function, &new_id));
                Ok(Import {
                    graph,
                    notes: self.notes,
                    trace,
                })
            }
            Ok(_) => Err(Error::Refused(self.faults)),
            Err(why) => {
                self.faults.push(Fault::new(output, "output", why));
                Err(Error::Refused(self.faults))
            }
        }
    }

    /// The logits as a vector.
    fn output_node(&mut self, name: &str, live: &Live) -> Result<NodeId, String> {
        let view = self.net.joined(name, live)?;
        if (view.shape.h, view.shape.w) == (1, 1) {
            return Ok(view.id);
        }
        if !view.places().iter().copied().eq(0..view.shape.len()) {
            return Err("the output has its axes in another order than channels first".into());
        }
        Ok(self
            .net
            .emit("output.flatten", Op::Flatten, vec![view.id])?
            .0)
    }

    /// Every part by itself.
    fn each(
        &mut self,
        live: &Live,
        mut f: impl FnMut(&mut Self, &Part) -> Result<Part, String>,
    ) -> Result<Live, String> {
        let parts = live.parts.iter().map(|part| f(self, part));
        Ok(Live {
            parts: parts.collect::<Result<_, String>>()?,
            ..live.clone()
        })
    }
}

/// What comes after a softmax may only rename or rearrange it.
fn behind_the_end(at: At<'_>, live: &Live, last: &'static str) -> Result<Value, String> {
    match at.operator {
        "Identity" | "Cast" | "Dropout" | "Reshape" | "Flatten" | "Squeeze" | "Unsqueeze"
        | "Softmax" | "ArgMax" => Ok(Value::Final(live.clone(), last)),
        _ => Err(format!(
            "it reads what {last} gives, which has no private form: {last} may only come last"
        )),
    }
}

fn check_opsets(model: &Model) -> Result<(), String> {
    let mut sets = model.proto.opset_import.iter();
    let own = sets.find(|set| matches!(set.domain.as_deref(), None | Some("" | "ai.onnx")));
    let version = own.and_then(|set| set.version);
    let version =
        version.ok_or("the file does not say which version of ONNX's operators it has")?;
    match OPSETS.contains(&version) {
        true => Ok(()),
        false => Err(format!(
            "it has version {version} of ONNX's operators; {} to {} are understood: export it with \
             one of those",
            OPSETS.start(),
            OPSETS.end()
        )),
    }
}

fn output_name(graph: &GraphProto, options: &Options) -> Result<String, String> {
    let names: Vec<&str> = graph
        .output
        .iter()
        .filter_map(|o| o.name.as_deref())
        .collect();
    if let Some(wanted) = &options.output {
        let made = graph.node.iter().flat_map(|node| &node.output);
        return match names.contains(&wanted.as_str()) || { made }.any(|name| name == wanted) {
            true => Ok(wanted.clone()),
            false => Err(format!(
                "it has no tensor {wanted}; its outputs are {}",
                names.join(", ")
            )),
        };
    }
    match names[..] {
        [name] => Ok(name.to_owned()),
        [] => Err("it has no output".into()),
        _ => Err(format!(
            "it has {} outputs, {}: say which with --output",
            names.len(),
            names.join(", ")
        )),
    }
}

/// The nodes that an output needs, each after those that it reads, and how often they read each
/// tensor, the output itself once.
struct Order {
    nodes: Vec<usize>,
    reads: HashMap<String, usize>,
}

fn needed(graph: &GraphProto, output: &str) -> Result<Order, Fault> {
    let mut maker: HashMap<&str, usize> = HashMap::new();
    for (index, node) in graph.node.iter().enumerate() {
        for name in node.output.iter().filter(|name| !name.is_empty()) {
            if maker.insert(name, index).is_some() {
                return Err(Fault::of_model(format!("two nodes make the tensor {name}")));
            }
        }
    }
    let inputs = graph.input.iter().filter_map(|input| input.name.as_deref());
    let initializers = graph.initializer.iter().filter_map(|t| t.name.as_deref());
    let given: HashSet<&str> = inputs.chain(initializers).collect();
    if !maker.contains_key(output) && !given.contains(output) {
        return Err(Fault::of_model(format!(
            "nothing makes the output {output}"
        )));
    }
    let mut order = Order {
        nodes: Vec::new(),
        reads: HashMap::from([(output.to_owned(), 1)]),
    };
    // 1: being visited, 2: done.
    let mut state = vec![0u8; graph.node.len()];
    let mut stack: Vec<(usize, usize)> = maker.get(output).map(|&n| (n, 0)).into_iter().collect();
    while let Some((index, input)) = stack.pop() {
        state[index] = state[index].max(1);
        let node = &graph.node[index];
        let Some(name) = node.input.get(input) else {
            if state[index] == 1 {
                state[index] = 2;
                order.nodes.push(index);
            }
            continue;
        };
        stack.push((index, input + 1));
        if name.is_empty() {
            continue;
        }
        *order.reads.entry(name.clone()).or_default() += 1;
        let operator = node.op_type.as_deref().unwrap_or_default();
        match maker.get(name.as_str()) {
            Some(&made) if state[made] == 1 => {
                let own = node.name.as_deref().unwrap_or_default();
                let why = format!("it reads {name}, which is computed from its own result");
                return Err(Fault::new(own, operator, why));
            }
            Some(&made) if state[made] == 0 => stack.push((made, 0)),
            Some(_) => {}
            None if given.contains(name.as_str()) => {}
            None => {
                let own = node.name.as_deref().unwrap_or_default();
                let why = format!("it reads {name}, which nothing makes");
                return Err(Fault::new(own, operator, why));
            }
        }
    }
    Ok(order)
}

fn input_of<'g>(
    graph: &'g GraphProto,
    order: &Order,
    initializers: &HashSet<&str>,
) -> Result<&'g ValueInfoProto, String> {
    let named = |input: &&ValueInfoProto| {
        let name = input.name.as_deref().unwrap_or_default();
        order.reads.contains_key(name) && !initializers.contains(name)
    };
    let inputs: Vec<&ValueInfoProto> = graph.input.iter().filter(named).collect();
    match inputs[..] {
        [input] => Ok(input),
        [] => Err("its output reads no input".into()),
        _ => {
            let names = inputs.iter().filter_map(|input| input.name.as_deref());
            let names: Vec<&str> = names.collect();
            Err(format!(
                "it has {} inputs, {}: only one can be private, so join them into one in the model",
                inputs.len(),
                names.join(", ")
            ))
        }
    }
}

/// Convolutions read channels first, so an input with channels last is transposed before the first.
fn channels_may_be_last(graph: &GraphProto, order: &Order) -> bool {
    let mut nodes = order.nodes.iter().map(|&index| &graph.node[index]);
    let first = nodes.find_map(|node| match node.op_type.as_deref() {
        Some("Conv") => Some(false),
        Some("Transpose") => {
            let perm = Attributes(node).ints("perm").ok().flatten();
            (perm == Some(&[0, 3, 1, 2])).then_some(true)
        }
        _ => None,
    });
    first.unwrap_or(true)
}

/// The input as a map, the batch that the file fixes, and what was assumed.
fn input_view(
    input: &ValueInfoProto,
    wanted: Option<Shape>,
    channels_may_be_last: bool,
) -> Result<(View, usize, Vec<String>), String> {
    let name = input.name.as_deref().unwrap_or_default();
    let tensor = input
        .r#type
        .as_ref()
        .and_then(|kind| kind.tensor_type.as_ref());
    let tensor = tensor.ok_or_else(|| format!("the input {name} is no tensor"))?;
    let dims: Vec<Option<usize>> = match &tensor.shape {
        None => vec![None; 4],
        Some(shape) => shape
            .dim
            .iter()
            .map(|dim| {
                dim.dim_value
                    .and_then(|d| usize::try_from(d).ok())
                    .filter(|&d| d > 0)
            })
            .collect(),
    };
    let image = |n: Option<usize>| matches!(n, Some(1 | 3));
    use Axis::{C, H, W};
    let axes: &[Axis] = match dims.len() {
        4 if channels_may_be_last && image(dims[3]) && !image(dims[1]) => &[H, W, C],
        4 => &[C, H, W],
        3 => &[C, W],
        2 => &[C],
        n => {
            return Err(format!(
                "the input {name} has {n} axes; images have 4 with the batch, signals 3, and \
                 vectors 2"
            ));
        }
    };
    let mut notes = Vec::new();
    let batch = dims[0].unwrap_or(1);
    if dims[0].is_none() {
        notes.push("the file leaves the batch open; one image at a time is computed".into());
    }
    let mut shape = Shape::new(1, 1, 1);
    for (&axis, &dim) in axes.iter().zip(&dims[1..]) {
        let (side, given) = match axis {
            C => (&mut shape.c, wanted.map(|s| s.c)),
            H => (&mut shape.h, wanted.map(|s| s.h)),
            W => (&mut shape.w, wanted.map(|s| s.w)),
        };
        let size = match (dim.map(u32::try_from), given) {
            (Some(Ok(size)), None) => size,
            (Some(Ok(size)), Some(given)) if size == given => size,
            (None, Some(given)) => given,
            (None, None) => {
                return Err(format!(
                    "the input {name} has dimensions that the file leaves open: give its shape \
                     with --input CxHxW"
                ));
            }
            (Some(_), _) => {
                return Err(format!(
                    "the input {name} has {dims:?} elements in the file, and that is not --input"
                ));
            }
        };
        *side = size;
    }
    if wanted.is_some_and(|wanted| wanted != shape) {
        return Err(format!(
            "the input {name} is {shape}, and that is not --input"
        ));
    }
    let elements = u64::from(shape.c) * u64::from(shape.h) * u64::from(shape.w);
    let sides = [shape.c, shape.h, shape.w]
        .iter()
        .all(|&n| n <= limits::SIDE);
    if !sides || elements > limits::ELEMENTS as u64 {
        return Err(format!("the input {name} of {shape} is too large"));
    }
    if axes == [H, W, C] {
        notes.push(format!(
            "the input {name} is taken as rows, columns, channels"
        ));
    }
    let order = std::iter::once(Vec::new()).chain(axes.iter().map(|&axis| vec![axis]));
    let view = View {
        id: RAW,
        shape,
        order: order.collect(),
    };
    Ok((view, batch, notes))
}
