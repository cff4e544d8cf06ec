//! The values of a model's tensors, as the graph computes them: what is compared with another
//! runtime, tensor by tensor.
//!
//! A tensor of the model need not be a node's result. It may be a function of one that no node
//! computes (a norm that became weights, say), several of them, or one with its axes in another
//! order; the importer knows which, and so each tensor has its value here, under its own name.

use crate::Import;
use crate::field::Function;
use crate::net::RAW;
use crate::value::{Live, Part, View};
use pi_ir::{NodeId, interpret, limits};

/// Elements of all tensors together: what a network of the largest size has, with what its model
/// spells out beside it.
const MAX_ELEMENTS: usize = 4 * limits::TOTAL_ELEMENTS;

/// The tensors while a model is read.
pub(crate) struct Recording {
    /// The model's input.
    input: View,
    /// By name, in the order of the nodes.
    tensors: Vec<(String, Live)>,
    elements: usize,
}

impl Recording {
    pub(crate) fn new(input: View) -> Self {
        Recording {
            input,
            tensors: Vec::new(),
            elements: 0,
        }
    }

    /// Keeps a tensor, unless it or all together are too large.
    pub(crate) fn push(&mut self, name: &str, live: &Live) {
        let sizes = live.dims().into_iter();
        let elements = sizes.fold(1usize, |n, side| n.saturating_mul(side));
        self.elements = self.elements.saturating_add(elements);
        if self.elements <= MAX_ELEMENTS {
            self.tensors.push((name.to_owned(), live.clone()));
        }
    }
}

/// What the importer knows of the tensors; kept if [`Options::trace`](crate::Options) is set.
#[derive(Clone, Debug)]
pub(crate) struct Trace {
    input: View,
    /// What node 0 does to the input.
    function: Function,
    tensors: Vec<(String, Live)>,
    /// Elements of all tensors, those that are not kept included.
    elements: usize,
}

/// A tensor of the model on one input.
#[derive(Clone, Debug, PartialEq)]
pub struct TensorValue {
    /// Its name in the model.
    pub name: String,
    /// Its dimensions there, with a batch of one.
    pub dims: Vec<usize>,
    /// Its elements, row-major.
    pub values: Vec<f32>,
    /// The place of each element in a map `[c][h][w]`; empty for tensors that are several maps.
    pub places: Vec<usize>,
}

impl Import {
    /// What node 0 of the graph gives out on an input of the model, which is row-major there.
    ///
    /// # Errors
    /// If the import was not traced, or the input has another size.
    pub fn image(&self, input: &[f32]) -> Result<Vec<f32>, String> {
        let trace = self.trace()?;
        Ok(apply(&trace.function, &trace.raw(input)?, &trace.input))
    }

    /// Every tensor that the result needs and that depends on the input, up to a softmax at the
    /// end, in the order of the model's nodes.
    ///
    /// # Errors
    /// As [`Import::image`]; and if all tensors together are too large.
    pub fn tensors(&self, input: &[f32]) -> Result<Vec<TensorValue>, String> {
        let trace = self.trace()?;
        if trace.elements > MAX_ELEMENTS {
            return Err(format!(
                "the model's tensors have {} elements together; {MAX_ELEMENTS} can be traced: use \
                 a smaller input, or an inner tensor as the output",
                trace.elements
            ));
        }
        let nodes = interpret::float_values(&self.graph, &self.image(input)?)?;
        let values = Values {
            raw: trace.raw(input)?,
            nodes,
        };
        let tensors = trace.tensors.iter();
        Ok(tensors.map(|(name, live)| values.of(name, live)).collect())
    }

    fn trace(&self) -> Result<&Trace, String> {
        let trace = self.trace.as_ref();
        trace.ok_or_else(|| "the model was imported without its trace".into())
    }
}

impl Trace {
    /// The tensors that the finished graph computes; `new_id` says where its nodes went, `function`
    /// what node 0 does to the input.
    pub(crate) fn new(
        recording: Recording,
        function: Function,
        new_id: &[Option<NodeId>],
    ) -> Trace {
        let Recording {
            input,
            mut tensors,
            elements,
        } = recording;
        tensors.retain_mut(|(_, live)| {
            live.parts.iter_mut().all(|part| {
                let id = &mut part.view.id;
                let moved = match *id {
                    RAW => Some(RAW),
                    old => new_id[old.0 as usize],
                };
                *id = moved.unwrap_or(*id);
                moved.is_some()
            })
        });
        Trace {
            input,
            function,
            tensors,
            elements,
        }
    }

    /// The input as a map `[c][h][w]`.
    fn raw(&self, input: &[f32]) -> Result<Vec<f32>, String> {
        let places = self.input.places();
        if input.len() != places.len() {
            return Err(format!(
                "the input has {} elements; the model reads {:?}",
                input.len(),
                self.input.dims()
            ));
        }
        let mut raw = vec![0.0; input.len()];
        for (&value, place) in input.iter().zip(places) {
            raw[place] = value;
        }
        Ok(raw)
    }
}

struct Values {
    raw: Vec<f32>,
    nodes: Vec<Vec<f32>>,
}

impl Values {
    fn of(&self, name: &str, live: &Live) -> TensorValue {
        let parts: Vec<(Vec<usize>, Vec<f32>)> = live.parts.iter().map(|p| self.part(p)).collect();
        let outer: usize = parts[0].0[..live.axis].iter().product();
        let mut values = Vec::new();
        for index in 0..outer {
            for (_, part) in &parts {
                let chunk = part.len() / outer;
                values.extend_from_slice(&part[index * chunk..][..chunk]);
            }
        }
        let places = match &live.parts[..] {
            [part] => part.padded().places(),
            _ => Vec::new(),
        };
        TensorValue {
            name: name.to_owned(),
            dims: live.dims(),
            values,
            places,
        }
    }

    /// Dimensions and elements of a part.
    fn part(&self, part: &Part) -> (Vec<usize>, Vec<f32>) {
        let base = match part.view.id {
            RAW => &self.raw,
            id => &self.nodes[id.0 as usize],
        };
        let map = pad(&apply(&part.function, base, &part.view), part);
        let values = part.padded().places().into_iter().map(|place| map[place]);
        (part.dims(), values.collect())
    }
}

/// A function of every element of a map.
fn apply(function: &Function, map: &[f32], view: &View) -> Vec<f32> {
    let fields = [
        &function.square,
        &function.linear,
        &function.constant,
        &function.relu,
    ];
    let [square, linear, constant, relu] = fields.map(|field| field.elements(view.shape));
    let value = |(index, &x): (usize, &f32)| {
        let x = f64::from(x);
        let sum = (square[index] * x + linear[index]) * x + constant[index];
        (sum + relu[index] * x.max(0.0)) as f32
    };
    map.iter().enumerate().map(value).collect()
}

/// A map with zeros around it.
fn pad(map: &[f32], part: &Part) -> Vec<f32> {
    let (shape, p) = (part.view.shape, part.padding);
    let width = (p.left + shape.w + p.right) as usize;
    let (above, below) = (p.top as usize * width, p.bottom as usize * width);
    let mut out = Vec::with_capacity(part.padded().shape.len());
    for plane in map.chunks_exact(shape.h as usize * shape.w as usize) {
        out.resize(out.len() + above, 0.0);
        for row in plane.chunks_exact(shape.w as usize) {
            out.resize(out.len() + p.left as usize, 0.0);
            out.extend_from_slice(row);
            out.resize(out.len() + p.right as usize, 0.0);
        }
        out.resize(out.len() + below, 0.0);
    }
    out
}
