//! Makes layers of a graph: dense nodes become convolutions, additions become terms, pools become
//! part of their neighbours, and flattening disappears.
//!
//! Values are symbolic until something needs them as a tensor. A *sum* (convolutions, residuals,
//! bias) becomes a layer when an activation follows; if a convolution reads it as it is, or several
//! nodes do, it becomes an identity layer, which costs nothing online. An average pool after an
//! activation is merged into the kernel that follows where that is exact (`lower/pool.rs`) and no
//! more expensive than an identity layer; before an activation it is the layer's own sum.
//!
//! A quadratic becomes a plain square where its neighbours can take its coefficients
//! (`lower/square.rs`). All others keep theirs, private to the server.

mod pool;
mod square;

pub use square::Square;

use crate::fault::{Fault, Refused};
use crate::pass::calibrate::{Magnitudes, add_convolution, magnitudes, sum_windows};
use crate::pass::fold::{consumers, pure_shift};
use crate::real_circuit::{Layer, RealCircuit, Step, Term};
use pi_ir::{
    ActivationKind, Conv, Graph, Kind, Node, NodeId, Op, Padding, Shape, SumPool, TensorId, Window,
};
use square::{Meaning, Site};
use std::collections::{BTreeSet, HashSet};
use std::rc::Rc;

/// Treatment of an average pool that follows an activation, where both ways are exact.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pools {
    /// The one of the two that uploads fewer bytes.
    #[default]
    Cheapest,
    /// Into the next kernel.
    Absorb,
    /// Into an identity layer of their own.
    Separate,
}

/// Quadratics that must not become squares: index of the activation in the graph, and channel.
pub type Kept = BTreeSet<(usize, usize)>;

/// The layers of a graph.
#[derive(Clone, Debug, PartialEq)]
pub struct Lowered {
    /// The layers.
    pub real: RealCircuit,
    /// The squares among them that were quadratics.
    pub squares: Vec<Square>,
}

/// The layers of a graph whose batch norms are folded, with their largest values on normalised
/// images. Quadratics are squares unless that would cost more than a bit of precision.
///
/// # Errors
/// One fault per node that has no circuit form.
pub fn lower_and_measure(
    graph: &Graph,
    pools: Pools,
    public: Option<NodeId>,
    images: &[Vec<f32>],
) -> Result<(RealCircuit, Magnitudes), Refused> {
    let mut kept = Kept::new();
    // Each round keeps more quadratics; most networks take one round.
    loop {
        let Lowered { real, squares } = lower(graph, pools, public, &kept)?;
        let seen = magnitudes(&real, images);
        let before = kept.len();
        kept.extend(square::too_wide(&squares, &seen));
        if kept.len() == before {
            return Ok((real, seen));
        }
    }
}

/// The layers of a graph whose batch norms are folded. Quadratics become squares wherever that is
/// exact, except for those in `kept`. The layers of a public prefix end with the node `public`.
///
/// # Errors
/// One fault per node that has no circuit form.
pub fn lower(
    graph: &Graph,
    pools: Pools,
    public: Option<NodeId>,
    kept: &Kept,
) -> Result<Lowered, Refused> {
    let shapes = graph.shapes().map_err(|why| Refused::one("", why))?;
    let Some(Op::Input { shape }) = graph.nodes.first().map(|node| &node.op) else {
        return Err(Refused::one("", "the first node is not the input"));
    };
    let readers = consumers(graph);
    let mut pass = Lower {
        real: RealCircuit {
            input: *shape,
            public: 0,
            layers: Vec::new(),
        },
        squares: Vec::new(),
        shapes,
        pools,
        kept,
        takes_factors: readers_take_factors(&graph.nodes, &readers),
        read_by_conv: HashSet::new(),
        names: HashSet::new(),
    };
    let mut faults = Vec::new();
    let mut values: Vec<Option<Value>> = Vec::with_capacity(graph.nodes.len());
    for (index, node) in graph.nodes.iter().enumerate() {
        let inputs: Option<Vec<Value>> = (node.inputs.iter())
            .map(|id| values[id.0 as usize].clone())
            .collect();
        // Nodes behind a fault have no value; they are not faults of their own.
        let value =
            inputs.and_then(
                |inputs| match pass.node(index, &node.name, &node.op, inputs) {
                    Ok(value) => Some(value),
                    Err(message) => {
                        faults.push(Fault::new(&node.name, message));
                        None
                    }
                },
            );
        // What several nodes read is computed once, as a tensor.
        let several = readers[index].len() > 1;
        let mut value = value.map(|value| match value {
            Value::Sum(sum) if several => Value::Tensor(pass.materialise(sum)),
            other => other,
        });
        if public == Some(NodeId(index as u32)) {
            value = value.and_then(|value| match pass.end_prefix(value, &node.name) {
                Ok(view) => Some(Value::Tensor(view)),
                Err(message) => {
                    faults.push(Fault::new(&node.name, message));
                    None
                }
            });
        }
        values.push(value);
    }
    if let Some(Some(value)) = values.pop() {
        let name = &graph.nodes.last().expect("at least the input").name;
        match pass.sum_of(value, name) {
            Ok(sum) => {
                pass.push(sum, Step::Output);
            }
            Err(message) => faults.push(Fault::new(name, message)),
        }
    }
    let (real, squares) = (pass.real, pass.squares);
    Refused::unless_empty(faults, Lowered { real, squares })
}

/// For each node, whether everything behind it, through pools and flattening, has weights.
fn readers_take_factors(nodes: &[Node], readers: &[Vec<usize>]) -> Vec<bool> {
    let mut takes = vec![false; nodes.len()];
    for index in (0..nodes.len()).rev() {
        let takes_it = |&reader: &usize| match &nodes[reader].op {
            Op::Conv2d { .. } | Op::Dense { .. } => true,
            Op::AvgPool { .. } | Op::Flatten => takes[reader],
            Op::Activation { kinds, .. } => all_identity(kinds) && takes[reader],
            Op::Add | Op::Sub | Op::WindowSum(_) | Op::BatchNorm(_) | Op::Input { .. } => false,
        };
        takes[index] = !readers[index].is_empty() && readers[index].iter().all(takes_it);
    }
    takes
}

fn all_identity(kinds: &[ActivationKind]) -> bool {
    kinds.iter().all(|k| *k == ActivationKind::Identity)
}

#[derive(Clone)]
enum Value {
    Tensor(View),
    Sum(Sum),
}

/// A tensor seen through a mean or a sum over windows, and a flattening.
#[derive(Clone)]
struct View {
    tensor: TensorId,
    /// Windows of which it is the mean; none beside `window`.
    pool: Option<SumPool>,
    /// Windows of which it is the sum.
    window: Option<Window>,
    /// Before flattening.
    shape: Shape,
    flat: bool,
    /// The numbers that the tensor stands for, if they are not its own.
    meaning: Option<Rc<Meaning>>,
}

/// A linear combination that is no tensor yet.
#[derive(Clone)]
struct Sum {
    name: String,
    terms: Vec<Term>,
    bias: Vec<f64>,
    /// As in [`Layer`].
    element_bias: Vec<f64>,
    pool: Option<SumPool>,
    pool_bits: u8,
    /// After the pool, before flattening.
    shape: Shape,
    flat: bool,
}

struct Lower<'a> {
    real: RealCircuit,
    squares: Vec<Square>,
    shapes: Vec<Shape>,
    pools: Pools,
    kept: &'a Kept,
    takes_factors: Vec<bool>,
    read_by_conv: HashSet<TensorId>,
    names: HashSet<String>,
}

impl Lower<'_> {
    fn node(
        &mut self,
        index: usize,
        name: &str,
        op: &Op,
        inputs: Vec<Value>,
    ) -> Result<Value, String> {
        let mut inputs = inputs.into_iter();
        let mut next = || inputs.next().expect("the verifier counted the inputs");
        match op {
            Op::Input { shape } => Ok(Value::Tensor(View {
                tensor: TensorId(0),
                pool: None,
                window: None,
                shape: *shape,
                flat: false,
                meaning: None,
            })),
            Op::Conv2d {
                weight,
                bias,
                out_channels,
                groups,
                kernel,
                stride,
                padding,
            } => {
                let view = self.view_of(next());
                let flattened = view.flat && (view.shape.h, view.shape.w) != (1, 1);
                let dense = (*kernel, *groups, *padding) == ((1, 1), 1, Padding::default());
                if flattened && !dense {
                    return Err(
                        "a convolution with a window or groups on a flattened tensor: use a dense \
                         node"
                            .into(),
                    );
                }
                let conv = Conv {
                    input: view.tensor,
                    out_channels: *out_channels,
                    groups: *groups,
                    kernel: if flattened {
                        (view.shape.h, view.shape.w)
                    } else {
                        *kernel
                    },
                    stride: if flattened { (1, 1) } else { *stride },
                    padding: *padding,
                    weight_bits: 0,
                };
                Ok(Value::Sum(self.linear(name, view, conv, weight, bias)))
            }
            Op::Dense { weight, bias, out } => {
                let view = self.view_of(next());
                let conv = Conv {
                    input: view.tensor,
                    out_channels: *out,
                    groups: 1,
                    kernel: (view.shape.h, view.shape.w),
                    stride: (1, 1),
                    padding: Padding::default(),
                    weight_bits: 0,
                };
                Ok(Value::Sum(self.linear(name, view, conv, weight, bias)))
            }
            Op::BatchNorm(_) => {
                let shift = pure_shift(op).ok_or("a batch norm is left: fold it first")?;
                // A layer adds its bias before its own pool, so a shift behind a pool needs another
                // layer.
                let mut sum = match next() {
                    Value::Sum(sum) if sum.pool.is_some() => {
                        let view = self.materialise(sum);
                        self.sum_of(Value::Tensor(view), name)?
                    }
                    other => self.sum_of(other, name)?,
                };
                if sum.flat && (sum.shape.h, sum.shape.w) != (1, 1) {
                    return Err(
                        "a batch norm on a flattened tensor: put it before the flattening".into(),
                    );
                }
                for (b, &s) in sum.bias.iter_mut().zip(shift) {
                    *b += f64::from(s);
                }
                Ok(Value::Sum(sum))
            }
            Op::Add => {
                let (left, right) = (next(), next());
                self.add(name, left, right, false)
            }
            Op::Sub => {
                let (left, right) = (next(), next());
                self.add(name, left, right, true)
            }
            Op::WindowSum(window) => {
                let view = self.view_of(next());
                if view.flat && (view.shape.h, view.shape.w) != (1, 1) {
                    return Err("windows of a flattened tensor: take them before that".into());
                }
                let view = self.own_tensor(view, name)?;
                Ok(Value::Tensor(View {
                    window: Some(*window),
                    shape: window.output(view.shape),
                    ..view
                }))
            }
            Op::AvgPool { kernel, stride } => {
                let pool = SumPool {
                    kernel: *kernel,
                    stride: *stride,
                };
                self.average(next(), pool, self.shapes[index])
            }
            Op::Flatten => Ok(match next() {
                Value::Tensor(view) => Value::Tensor(View { flat: true, ..view }),
                Value::Sum(sum) => Value::Sum(Sum { flat: true, ..sum }),
            }),
            Op::Activation {
                kinds,
                coefficients,
            } => {
                let value = next();
                // Nothing happens here: no tensor, no mask, no upload, unless a later node needs
                // one.
                if all_identity(kinds) {
                    return Ok(value);
                }
                let sum = self.sum_of(value, name)?;
                self.activate(index, sum, kinds, coefficients)
            }
        }
    }

    /// A convolution of a view; its pool is absorbed or becomes a layer.
    fn linear(&mut self, name: &str, view: View, conv: Conv, weight: &[f32], bias: &[f32]) -> Sum {
        let (view, conv) = match view.window {
            None => (view, conv),
            Some(_) => {
                let view = self.materialise_view(view, name);
                let input = view.tensor;
                (view, Conv { input, ..conv })
            }
        };
        let mut weights: Vec<f64> = weight.iter().map(|&w| f64::from(w)).collect();
        let mut bias: Vec<f64> = bias.iter().map(|&b| f64::from(b)).collect();
        bias.resize(conv.out_channels as usize, 0.0);
        let mut element_bias = Vec::new();
        if let Some(meaning) = &view.meaning {
            let constant = self.constant_of(&view, meaning);
            if constant.iter().any(|&c| c != 0.0) {
                let output = conv.output(view.shape).expect("the graph's shapes fit");
                element_bias = vec![0.0; output.len()];
                add_convolution(
                    &mut element_bias,
                    &constant,
                    &weights,
                    &conv,
                    view.shape,
                    output,
                );
            }
            let taps = conv.kernel.0 as usize * conv.kernel.1 as usize;
            let channels = 0..conv.out_channels;
            let read = channels.flat_map(|channel| conv.reads(view.shape, channel));
            for (tap, channel) in weights.chunks_exact_mut(taps).zip(read) {
                let factor = meaning.factor[channel as usize];
                tap.iter_mut().for_each(|w| *w *= factor);
            }
        }
        let (conv, weights) = match view.pool {
            None => (conv, weights),
            Some(pool) => match self.absorb(&conv, &weights, &view, pool) {
                Some(composed) => composed,
                None => {
                    // The identity layer holds a sum over a power of two; the rest of the divisor
                    // goes into the weights.
                    let count = pool.kernel.0 * pool.kernel.1;
                    let halvings = count.next_power_of_two().trailing_zeros() as u8;
                    let pooled = self.push_pooled(&view, pool, halvings, format!("{name}.pool"));
                    let rest = f64::from(halvings).exp2() / f64::from(count);
                    let conv = Conv {
                        input: pooled.tensor,
                        ..conv
                    };
                    (conv, weights.iter().map(|w| w * rest).collect())
                }
            },
        };
        self.read_by_conv.insert(conv.input);
        let shape = conv
            .output(self.real.tensor_shape(conv.input))
            .expect("the graph's shapes fit, and composition keeps them");
        Sum {
            name: name.into(),
            terms: vec![Term::Conv { conv, weights }],
            bias,
            element_bias,
            pool: None,
            pool_bits: 0,
            shape,
            flat: false,
        }
    }

    /// The convolution with the view's pool in its kernel, where exact and wanted.
    fn absorb(
        &self,
        conv: &Conv,
        weights: &[f64],
        view: &View,
        pool: SumPool,
    ) -> Option<(Conv, Vec<f64>)> {
        let input = self.real.tensor_shape(view.tensor);
        // Per element, an upload is 78 bits (a mask that the seed chooses) and an identity element
        // 60 to 64.
        const UPLOAD: usize = 78;
        const IDENTITY: usize = 64;
        let absorbed = if self.read_by_conv.contains(&view.tensor) {
            0
        } else {
            input.len() * UPLOAD
        };
        let separate = view.shape.len() * (UPLOAD + IDENTITY);
        let wanted = match self.pools {
            Pools::Cheapest => absorbed <= separate,
            Pools::Absorb => true,
            Pools::Separate => false,
        };
        if !wanted {
            return None;
        }
        let (composed, mut wide) = pool::compose(conv, weights, &pool, input)?;
        let count = f64::from(pool.kernel.0) * f64::from(pool.kernel.1);
        wide.iter_mut().for_each(|w| *w /= count);
        Some((composed, wide))
    }

    /// The sum of two values, or their difference.
    fn add(
        &mut self,
        name: &str,
        left: Value,
        right: Value,
        subtract: bool,
    ) -> Result<Value, String> {
        let mut parts = Vec::new();
        for value in [left, right] {
            // A layer's own pool covers its whole sum: a summand with a pool becomes a tensor
            // first.
            let value = match value {
                Value::Sum(sum) if sum.pool.is_some() => Value::Tensor(self.materialise(sum)),
                other => other,
            };
            parts.push(self.sum_of(value, name)?);
        }
        let mut right = parts.pop().expect("two parts");
        let left = parts.pop().expect("two parts");
        if subtract {
            right.negate();
        }
        if left.shape != right.shape {
            return Err(format!(
                "adds a flattened tensor of {} and one of {}: add before flattening",
                left.shape, right.shape
            ));
        }
        Ok(Value::Sum(Sum {
            name: name.into(),
            bias: (left.bias.iter().zip(&right.bias))
                .map(|(a, b)| a + b)
                .collect(),
            element_bias: match (left.element_bias, right.element_bias) {
                (left, right) if right.is_empty() => left,
                (left, right) if left.is_empty() => right,
                (left, right) => left.iter().zip(right).map(|(a, b)| a + b).collect(),
            },
            terms: [left.terms, right.terms].concat(),
            flat: left.flat || right.flat,
            ..left
        }))
    }

    fn average(&mut self, value: Value, pool: SumPool, output: Shape) -> Result<Value, String> {
        let flat = match &value {
            Value::Tensor(view) => view.flat,
            Value::Sum(sum) => sum.flat,
        };
        if flat {
            // On `[n, 1, 1]` only the 1x1 window fits.
            return Ok(value);
        }
        let count = pool.kernel.0 * pool.kernel.1;
        let view = match value {
            Value::Sum(mut sum) => {
                // Residuals have no weights to take a divisor that is no power of two.
                let residuals =
                    (sum.terms.iter()).any(|term| matches!(term, Term::Residual { .. }));
                let exact = !residuals || count.is_power_of_two();
                let joined = match &sum.pool {
                    None => Some(pool),
                    Some(first) => pool::chain(first, &pool),
                };
                if let (true, Some(joined)) = (exact, joined) {
                    let bits = (f64::from(count).log2().round()) as u8;
                    let factor = f64::from(bits).exp2() / f64::from(count);
                    sum.scale(factor);
                    if !sum.element_bias.is_empty() {
                        let window = pool.window(sum.shape).expect("the graph's shapes fit");
                        let sums = sum_windows(&sum.element_bias, sum.shape, &window);
                        let mean = |sum| sum / f64::from(count);
                        sum.element_bias = sums.into_iter().map(mean).collect();
                    }
                    sum.pool = Some(joined);
                    sum.pool_bits += bits;
                    sum.shape = output;
                    return Ok(Value::Sum(sum));
                }
                self.materialise(sum)
            }
            Value::Tensor(view) if view.window.is_some() => self.materialise_view(view, "pool"),
            Value::Tensor(view) => view,
        };
        let joined = match &view.pool {
            None => Some(pool),
            Some(first) => pool::chain(first, &pool),
        };
        let (view, pool) = match joined {
            Some(joined) => (view, joined),
            None => (self.materialise_view(view, "pool"), pool),
        };
        Ok(Value::Tensor(View {
            pool: Some(pool),
            shape: output,
            ..view
        }))
    }

    /// A layer of a sum and the activation `node`.
    fn activate(
        &mut self,
        node: usize,
        mut sum: Sum,
        kinds: &[ActivationKind],
        coefficients: &[[f32; 3]],
    ) -> Result<Value, String> {
        let positions = sum.shape.h as usize * sum.shape.w as usize;
        if sum.flat && positions > 1 && kinds.contains(&ActivationKind::Polynomial) {
            return Err(
                "polynomials behind a flattening have one coefficient set per element, \
                 which a layer cannot hold: put the activation before the flattening"
                    .into(),
            );
        }
        let mut kinds: Vec<Kind> = kinds
            .iter()
            .map(|kind| match kind {
                ActivationKind::Relu => Kind::Relu,
                ActivationKind::Identity => Kind::Identity,
                ActivationKind::Polynomial => Kind::Polynomial,
            })
            .collect();
        let mut polynomials: Vec<[f64; 3]> =
            coefficients.iter().map(|c| c.map(f64::from)).collect();
        let meaning = self.make_squares(node, &mut sum, &mut kinds, &mut polynomials);
        if !kinds.contains(&Kind::Polynomial) {
            polynomials.clear();
        }
        for (channel, polynomial) in polynomials.iter_mut().enumerate() {
            if !kinds[channel * positions..][..positions].contains(&Kind::Polynomial) {
                *polynomial = [0.0; 3];
            }
        }
        let view = self.push(sum, Step::Activate { kinds, polynomials });
        Ok(Value::Tensor(View { meaning, ..view }))
    }

    /// Turns quadratics into squares; returns what the tensor then stands for.
    fn make_squares(
        &mut self,
        node: usize,
        sum: &mut Sum,
        kinds: &mut [Kind],
        coefficients: &mut [[f64; 3]],
    ) -> Option<Rc<Meaning>> {
        let positions = sum.shape.h as usize * sum.shape.w as usize;
        let site = Site {
            kinds,
            positions,
            coefficients,
            gains: (sum.terms.iter()).all(|term| matches!(term, Term::Conv { .. })),
            factors: self.takes_factors[node],
        };
        let channels = site.channels(|channel| self.kept.contains(&(node, channel)));
        let mut constant = vec![0.0; kinds.len()];
        for (channel, form) in channels.iter().enumerate() {
            sum.scale_channel(channel, form.gain);
            let Some(square) = form.square else {
                if let Some(own) = coefficients.get_mut(channel) {
                    *own = form.adapted(*own);
                }
                continue;
            };
            let shift = form.gain * square.shift;
            sum.element_bias.resize(kinds.len(), 0.0);
            for element in channel * positions..(channel + 1) * positions {
                if kinds[element] == Kind::Polynomial {
                    kinds[element] = Kind::Square;
                    sum.element_bias[element] += shift;
                    constant[element] = square.constant;
                }
            }
            self.squares.push(Square {
                node,
                channel,
                layer: self.real.layers.len(),
                shift,
            });
        }
        let factor: Vec<f64> = channels.iter().map(|channel| channel.factor).collect();
        let itself = factor.iter().all(|&f| f == 1.0) && constant.iter().all(|&c| c == 0.0);
        (!itself).then(|| Rc::new(Meaning { factor, constant }))
    }

    /// The constants of a view's elements, behind its pool.
    fn constant_of(&self, view: &View, meaning: &Meaning) -> Vec<f64> {
        let Some(pool) = &view.pool else {
            return meaning.constant.clone();
        };
        let input = self.real.tensor_shape(view.tensor);
        let window = pool.window(input).expect("the graph's shapes fit");
        let sums = sum_windows(&meaning.constant, input, &window);
        let count = f64::from(pool.kernel.0) * f64::from(pool.kernel.1);
        sums.into_iter().map(|sum| sum / count).collect()
    }

    /// The value as a tensor, made one if it is not.
    fn view_of(&mut self, value: Value) -> View {
        match value {
            Value::Tensor(view) => view,
            Value::Sum(sum) => self.materialise(sum),
        }
    }

    /// The value as a linear combination.
    fn sum_of(&mut self, value: Value, name: &str) -> Result<Sum, String> {
        let view = match value {
            Value::Sum(sum) => return Ok(sum),
            Value::Tensor(view) => view,
        };
        let channels = view.shape.c as usize;
        let element_bias = match &view.meaning {
            Some(meaning) => {
                // A tensor with factors has no reader that asks for a sum.
                assert!(meaning.factor.iter().all(|&f| f == 1.0));
                self.constant_of(&view, meaning)
            }
            None => Vec::new(),
        };
        let term = match view.pool {
            Some(pool) if !(pool.kernel.0 * pool.kernel.1).is_power_of_two() => {
                // The divisor needs weights: a convolution that keeps channels apart.
                let conv = Conv {
                    input: view.tensor,
                    out_channels: view.shape.c,
                    groups: view.shape.c,
                    kernel: (1, 1),
                    stride: (1, 1),
                    padding: Padding::default(),
                    weight_bits: 0,
                };
                let count = f64::from(pool.kernel.0) * f64::from(pool.kernel.1);
                let mean = vec![1.0 / count; channels];
                let input = self.real.tensor_shape(view.tensor);
                let (conv, weights) = pool::compose(&conv, &mean, &pool, input)
                    .ok_or("its windows are too large to be a kernel")?;
                self.read_by_conv.insert(view.tensor);
                Term::Conv { conv, weights }
            }
            pool => {
                let from = self.real.tensor_shape(view.tensor);
                let windows = |pool: SumPool| pool.window(from).expect("the graph's shapes fit");
                Term::Residual {
                    input: view.tensor,
                    window: pool.map(windows).or(view.window),
                    halvings: pool.map_or(0, |p| (p.kernel.0 * p.kernel.1).trailing_zeros() as u8),
                    negative: false,
                }
            }
        };
        Ok(Sum {
            name: name.into(),
            terms: vec![term],
            bias: vec![0.0; channels],
            element_bias,
            pool: None,
            pool_bits: 0,
            shape: view.shape,
            flat: view.flat,
        })
    }

    /// The value as a tensor with which the public prefix ends: nothing behind it changes a layer
    /// before it.
    fn end_prefix(&mut self, value: Value, name: &str) -> Result<View, String> {
        let view = match value {
            Value::Sum(sum) => self.materialise(sum),
            Value::Tensor(view) if view.pool.is_some() || view.window.is_some() => {
                self.materialise_view(view, name)
            }
            Value::Tensor(view) => view,
        };
        if view.flat && (view.shape.h, view.shape.w) != (1, 1) {
            return Err(
                "the public prefix cannot end with a flattening: end it before that".into(),
            );
        }
        if view.tensor == TensorId(0) {
            return Err("the public prefix computes nothing: end it at a later node".into());
        }
        self.real.public = self.real.layers.len();
        Ok(view)
    }

    /// A sum as an identity tensor: re-based like any other, free online.
    fn materialise(&mut self, sum: Sum) -> View {
        let step = Step::Activate {
            kinds: vec![Kind::Identity; sum.shape.len()],
            polynomials: Vec::new(),
        };
        self.push(sum, step)
    }

    /// An identity layer of sums over windows, `2^-halvings` of them.
    fn push_pooled(&mut self, view: &View, pool: SumPool, halvings: u8, name: String) -> View {
        let window = pool.window(self.real.tensor_shape(view.tensor));
        self.materialise(Sum {
            name,
            terms: vec![Term::Residual {
                input: view.tensor,
                window,
                halvings,
                negative: false,
            }],
            bias: vec![0.0; view.shape.c as usize],
            element_bias: Vec::new(),
            pool: None,
            pool_bits: 0,
            shape: view.shape,
            flat: view.flat,
        })
    }

    /// A view as a tensor of its own, which stands for the same numbers.
    fn materialise_view(&mut self, mut view: View, before: &str) -> View {
        let name = format!("{before}.pool");
        let meaning = view.meaning.take().map(|meaning| {
            Rc::new(Meaning {
                factor: meaning.factor.clone(),
                constant: self.constant_of(&view, &meaning),
            })
        });
        let sum = self
            .sum_of(Value::Tensor(view), &name)
            .expect("windows of a verified pool fit");
        View {
            meaning,
            ..self.materialise(sum)
        }
    }

    /// A view as a tensor of its own, whose elements are the numbers that it stands for.
    fn own_tensor(&mut self, view: View, before: &str) -> Result<View, String> {
        if view.pool.is_none() && view.window.is_none() && view.meaning.is_none() {
            return Ok(view);
        }
        let sum = self.sum_of(Value::Tensor(view), &format!("{before}.tensor"))?;
        Ok(self.materialise(sum))
    }

    /// Makes a layer; the view of its tensor.
    fn push(&mut self, mut sum: Sum, step: Step) -> View {
        sum.settle();
        let mut name = sum.name;
        while !self.names.insert(name.clone()) {
            name.push('\'');
        }
        self.real.layers.push(Layer {
            name,
            terms: sum.terms,
            bias: sum.bias,
            element_bias: sum.element_bias,
            pool: sum.pool,
            pool_bits: sum.pool_bits,
            shape: sum.shape,
            step,
        });
        View {
            tensor: TensorId(self.real.layers.len() as u32),
            pool: None,
            window: None,
            shape: sum.shape,
            flat: sum.flat,
            meaning: None,
        }
    }
}

impl Sum {
    /// Scales weights and bias; only for sums without residuals (or by 1).
    fn scale(&mut self, factor: f64) {
        if factor == 1.0 {
            return;
        }
        for term in &mut self.terms {
            if let Term::Conv { weights, .. } = term {
                weights.iter_mut().for_each(|w| *w *= factor);
            }
        }
        self.bias.iter_mut().for_each(|b| *b *= factor);
    }

    /// Turns the sign of everything.
    fn negate(&mut self) {
        for term in &mut self.terms {
            match term {
                Term::Conv { weights, .. } => weights.iter_mut().for_each(|w| *w = -*w),
                Term::Residual { negative, .. } => *negative = !*negative,
            }
        }
        let biases = self.bias.iter_mut().chain(&mut self.element_bias);
        biases.for_each(|b| *b = -*b);
    }

    /// Scales one channel; only for sums without residuals (or by 1).
    fn scale_channel(&mut self, channel: usize, factor: f64) {
        if factor == 1.0 {
            return;
        }
        for term in &mut self.terms {
            if let Term::Conv { conv, weights } = term {
                let row = weights.len() / conv.out_channels as usize;
                let row = &mut weights[channel * row..][..row];
                row.iter_mut().for_each(|w| *w *= factor);
            }
        }
        self.bias[channel] *= factor;
        if !self.element_bias.is_empty() {
            let positions = self.shape.h as usize * self.shape.w as usize;
            let own = &mut self.element_bias[channel * positions..][..positions];
            own.iter_mut().for_each(|b| *b *= factor);
        }
    }

    /// Leaves the bias by element with what the bias by channel cannot hold: the differences from
    /// the middle of each map, which are zero but at borders and where kinds change.
    fn settle(&mut self) {
        if self.element_bias.is_empty() {
            return;
        }
        // The bias is added once per position of the layer's windows, whose weights have the
        // divisor's rest in them.
        let windows = self
            .pool
            .map_or(1.0, |p| f64::from(p.kernel.0 * p.kernel.1));
        let mean = windows / f64::from(self.pool_bits).exp2();
        let (rows, columns) = (self.shape.h as usize, self.shape.w as usize);
        let maps = self.element_bias.chunks_exact_mut(rows * columns);
        for (bias, map) in self.bias.iter_mut().zip(maps) {
            let middle = map[rows / 2 * columns + columns / 2];
            *bias += middle / mean;
            map.iter_mut().for_each(|b| *b -= middle);
        }
        if self.element_bias.iter().all(|&b| b == 0.0) {
            self.element_bias.clear();
        }
    }
}
