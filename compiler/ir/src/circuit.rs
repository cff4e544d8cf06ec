//! The public half of a compiled network: a fixed-point arithmetic circuit in layered form.
//!
//! A circuit is a list of layers. Each layer sums *terms* (convolutions of earlier tensors and
//! residual additions of earlier tensors), optionally sums windows, and then either truncates and
//! activates, which makes a new *tensor*, or is the output. Dense layers, flattening and 1x1
//! shortcuts are convolutions; an average pool is a sum whose divisor lives in scales and weights.
//! Layers whose weights are public may come first ([`crate::prefix`]).
//!
//! Arithmetic, exactly (all integers; `x` at scale `2^s` stands for the number `x / 2^s`):
//!
//! 1. `z = sum(conv(W_k, t_k)) + bias + sum(+-2^shift_j window_j(t_j))` per output element, then
//!    the layer's own [`SumPool`] if any (`bias` is added before it, once per position), then the
//!    server's `element_bias`, if it has one.
//! 2. `|z| <= 2^bound_bits - 2^truncate` by range analysis; `y = truncate(z, truncate)`.
//! 3. Per element of `y`: ReLU `max(y, 0)`; identity `y`; square `truncate(y^2, post)`;
//!    polynomial `truncate(a y^2 + b y + k, post)` with the server's integers `a, b, k`.
//! 4. At the output `z` itself are the logits, and their label is the smallest index at which `z`
//!    is largest.
//! 5. Where [`Layer::guard_bits`] are set, the protocol checks that `y` at the ReLUs (`z` at a
//!    label) keeps to its bound, and logits are always compared with theirs: values that do not
//!    give "out of range" in place of an answer.
//!
//! Two-party truncation rounds down, and adds one with a probability equal to the discarded
//! fraction (the interpreter rounds to nearest, or takes the client's shares and reproduces every
//! carry).

use crate::prefix::Prefix;
use crate::preprocessing::Preprocessing;
use crate::shape::{Padding, Shape, Window, windows};
use crate::{limits, wire};
use serde::{Deserialize, Serialize};
use std::fmt;

/// A tensor that exists as shares: 0 is the input image, `i + 1` is made by layer `i`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct TensorId(pub u32);

/// The public circuit. Tensor 0 is the preprocessed image, or what the public prefix makes of it;
/// the last layer is the output.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Circuit {
    /// Name of the network.
    pub name: String,
    /// Shape of tensor 0, where the private computation begins; see [`Circuit::image`].
    pub input: Shape,
    /// Scale of tensor 0.
    pub input_frac_bits: u8,
    /// What is done to the bytes of an image, in integers.
    pub preprocessing: Preprocessing,
    /// Class names, in the order of the logits (may be empty).
    #[serde(deserialize_with = "wire::limited::<_, _, { limits::CLASSES }>")]
    pub classes: Vec<String>,
    /// The layers before tensor 0, if the client computes some.
    pub prefix: Option<Prefix>,
    /// The layers, in order; only the last has [`Step::Output`].
    #[serde(deserialize_with = "wire::limited::<_, _, { limits::LAYERS }>")]
    pub layers: Vec<Layer>,
}

/// One linear combination with what follows it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Layer {
    /// Name used in tables and messages; unique in the circuit.
    pub name: String,
    /// Terms of the sum; at least one.
    #[serde(deserialize_with = "wire::limited::<_, _, { limits::TERMS }>")]
    pub terms: Vec<Term>,
    /// Windows summed after the terms (an average pool before the activation).
    pub pool: Option<SumPool>,
    /// Shape after `pool`: the shape of the layer's result.
    pub shape: Shape,
    /// `log2 B` of the value before truncation: `|z| <= B - 2^truncate`.
    pub bound_bits: u8,
    /// Source of `bound_bits`.
    pub range: Range,
    /// Bits by which the layer's bool circuits (the signs of its ReLUs, or the adders of a label's
    /// arg max) are wider than the bound asks for. They and the sign must agree, or the inference
    /// has no answer; 0 checks nothing. Without ReLUs there is nothing to widen, and where logits
    /// are revealed these bits mean nothing, because the client sees the values.
    pub guard_bits: u8,
    /// Step after the sum.
    pub step: Step,
}

/// Source of a bound.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum Range {
    /// Interval analysis proves it for every image, given the calibrated bounds before it; other
    /// vectors over the field are no images, and may exceed it.
    Proved,
    /// The largest magnitude seen on calibration data; the bound leaves head room above it.
    Calibrated {
        /// Largest `|z|` seen.
        max_seen: u64,
    },
}

/// One summand of a layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Term {
    /// A convolution with weights that the server holds.
    Conv(Conv),
    /// `2^shift` times an earlier tensor (after summing windows, if `window`), added or
    /// subtracted: local, no cryptography.
    Residual {
        /// The tensor.
        input: TensorId,
        /// Windows summed first.
        window: Option<Window>,
        /// Power of two that brings it to the layer's scale.
        shift: u8,
        /// Whether it is subtracted.
        negative: bool,
    },
}

/// Shape of a convolution; weights are in the server's [`crate::weights::LayerWeights`].
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Conv {
    /// The tensor it reads.
    pub input: TensorId,
    /// Output channels.
    pub out_channels: u32,
    /// Groups of equally many input channels, each of which equally many output channels read;
    /// both in order. 1 for a convolution of all channels, the number of channels for a depthwise
    /// one.
    pub groups: u32,
    /// Rows and columns of the kernel.
    pub kernel: (u32, u32),
    /// Vertical and horizontal stride.
    pub stride: (u32, u32),
    /// Zeros around the input.
    pub padding: Padding,
    /// Public bound on the weights: `|w| < 2^weight_bits` (7 for 8-bit weights).
    pub weight_bits: u8,
}

/// Sums over windows: rows and columns rounded down, nothing padded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SumPool {
    /// Rows and columns of the window.
    pub kernel: (u32, u32),
    /// Vertical and horizontal stride.
    pub stride: (u32, u32),
}

/// Step after a layer's sum.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Step {
    /// Truncate, activate, re-base: makes tensor `layer + 1`.
    Activate(Activation),
    /// The client learns the logits, which are the sums untruncated, or what `reveal` says of them.
    Output {
        /// Scale of the logits; negative where their unit is larger than one. Only whoever shows
        /// them reads it.
        frac_bits: i8,
        /// What the client learns.
        reveal: Reveal,
    },
}

/// What the client learns of the logits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Reveal {
    /// The index of the largest, the smallest index of several equal ones, by a garbled arg max.
    /// The output has one element a channel, and at least two.
    Label,
    /// All of them: the server sends its share.
    Logits,
}

impl fmt::Display for Reveal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reveal::Label => "label",
            Reveal::Logits => "logits",
        })
    }
}

/// Truncation and activation of one layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Activation {
    /// Bits cut off the sum, `f`; 0 is allowed.
    pub truncate: u8,
    /// Scale of the resulting tensor, for all kinds of elements.
    pub frac_bits: u8,
    /// One kind per element `[c][h][w]`.
    #[serde(with = "wire::kinds")]
    pub kinds: Vec<Kind>,
    /// Bits cut off squares; used where a kind is [`Kind::Square`].
    pub square: Option<PostTruncation>,
    /// Bits cut off polynomials; used where a kind is [`Kind::Polynomial`].
    pub polynomial: Option<PostTruncation>,
}

/// The second truncation of square and polynomial elements.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct PostTruncation {
    /// Bits cut off.
    pub truncate: u8,
    /// `log2 B` of the value before it: `|v| <= B - 2^truncate`.
    pub bound_bits: u8,
    /// Source of the bound.
    pub range: Range,
}

/// Function of one element of a layer; public.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// `max(y, 0)`, by garbled sign and gadget.
    Relu,
    /// `y`: free online.
    Identity,
    /// `y^2`: one OLE.
    Square,
    /// `a y^2 + b y + k`, coefficients private to the server: two OLEs.
    Polynomial,
}

/// A list of layers, a circuit's or its prefix's, with the shape of the tensor that they start
/// from.
#[derive(Clone, Copy, Debug)]
pub struct Layers<'a> {
    /// Shape of tensor 0.
    pub input: Shape,
    /// The layers, in order.
    pub layers: &'a [Layer],
}

impl Layers<'_> {
    /// Shape of a tensor: the input, or the result of layer `id - 1`.
    ///
    /// # Panics
    /// If no such tensor exists; a verified circuit refers to none.
    pub fn tensor_shape(&self, id: TensorId) -> Shape {
        if id.0 == 0 {
            self.input
        } else {
            self.layers[id.0 as usize - 1].shape
        }
    }
}

impl Circuit {
    /// The layers, with the tensor that they start from.
    pub fn as_layers(&self) -> Layers<'_> {
        Layers {
            input: self.input,
            layers: &self.layers,
        }
    }

    /// The scale of the logits, and what the client learns of them.
    ///
    /// # Panics
    /// If the last layer is no output; that of a verified circuit is one.
    pub fn output(&self) -> (i8, Reveal) {
        match self.layers.last().map(|layer| &layer.step) {
            Some(Step::Output { frac_bits, reveal }) => (*frac_bits, *reveal),
            _ => panic!("the last layer is no output"),
        }
    }

    /// The same circuit, which reveals something else.
    pub fn with_reveal(mut self, what: Reveal) -> Self {
        if let Some(Step::Output { reveal, .. }) = self.layers.last_mut().map(|l| &mut l.step) {
            *reveal = what;
        }
        self
    }

    /// Shape of the image that the client begins with.
    pub fn image(&self) -> Shape {
        self.prefix.as_ref().map_or(self.input, |p| p.image)
    }

    /// Scale of the preprocessed image.
    pub fn image_frac_bits(&self) -> u8 {
        let prefix = self.prefix.as_ref();
        prefix.map_or(self.input_frac_bits, |p| p.image_frac_bits)
    }

    /// Shape of a tensor: the input, or the result of layer `id - 1`.
    ///
    /// # Panics
    /// If no such tensor exists; a verified circuit refers to none.
    pub fn tensor_shape(&self, id: TensorId) -> Shape {
        self.as_layers().tensor_shape(id)
    }
}

impl Conv {
    /// Shape of the result on a tensor of shape `input`; `None` if no window fits, or channels are
    /// not divided by the groups.
    pub fn output(&self, input: Shape) -> Option<Shape> {
        let (p, k, s) = (&self.padding, self.kernel, self.stride);
        if !divides(self.groups, input.c) || !divides(self.groups, self.out_channels) {
            return None;
        }
        Some(Shape {
            c: self.out_channels,
            h: windows(input.h, (p.top, p.bottom), k.0, s.0)?,
            w: windows(input.w, (p.left, p.right), k.1, s.1)?,
        })
    }

    /// Number of weights on a tensor of shape `input`, at most `usize::MAX`.
    pub fn weight_count(&self, input: Shape) -> usize {
        [self.channels_read(input), self.kernel.0, self.kernel.1]
            .iter()
            .fold(self.out_channels as usize, |n, &side| {
                n.saturating_mul(side as usize)
            })
    }

    /// Input channels that each output channel reads, of a tensor of shape `input`.
    pub fn channels_read(&self, input: Shape) -> u32 {
        input.c / self.groups.max(1)
    }

    /// The input channels that output channel `channel` reads, of a tensor of shape `input`.
    ///
    /// # Panics
    /// If the convolution has no result on such a tensor.
    pub fn reads(&self, input: Shape, channel: u32) -> std::ops::Range<u32> {
        group_reads(self.groups, (input.c, self.out_channels), channel)
    }
}

/// The input channels that output channel `channel` reads, where `groups` groups divide this many
/// channels in and out.
///
/// # Panics
/// If there are no groups, or less than one output channel a group.
pub fn group_reads(
    groups: u32,
    (inputs, outputs): (u32, u32),
    channel: u32,
) -> std::ops::Range<u32> {
    let of_group = inputs / groups;
    let first = channel / (outputs / groups) * of_group;
    first..first + of_group
}

/// Whether channels divide into groups.
pub(crate) fn divides(groups: u32, channels: u32) -> bool {
    groups > 0 && channels.is_multiple_of(groups)
}

impl SumPool {
    /// Shape of the result on a tensor of shape `input`; `None` if no window fits.
    pub fn output(&self, input: Shape) -> Option<Shape> {
        Some(Shape {
            c: input.c,
            h: windows(input.h, (0, 0), self.kernel.0, self.stride.0)?,
            w: windows(input.w, (0, 0), self.kernel.1, self.stride.1)?,
        })
    }

    /// The windows of a tensor of shape `input`; `None` if none fits.
    pub fn window(&self, input: Shape) -> Option<Window> {
        let output = self.output(input)?;
        Some(Window {
            kernel: self.kernel,
            stride: self.stride,
            origin: (0, 0),
            count: (output.h, output.w),
        })
    }
}

impl Term {
    /// The tensor it reads.
    pub fn input(&self) -> TensorId {
        match self {
            Term::Conv(conv) => conv.input,
            Term::Residual { input, .. } => *input,
        }
    }

    /// The tensor it reads, to be changed.
    pub(crate) fn input_mut(&mut self) -> &mut TensorId {
        match self {
            Term::Conv(conv) => &mut conv.input,
            Term::Residual { input, .. } => input,
        }
    }

    /// Shape of the result on a tensor of shape `input`; `None` if no window fits.
    pub fn output(&self, input: Shape) -> Option<Shape> {
        match self {
            Term::Conv(conv) => conv.output(input),
            Term::Residual { window: None, .. } => Some(input),
            Term::Residual {
                window: Some(w), ..
            } => Some(w.output(input)),
        }
    }
}

impl Kind {
    /// Returns whether the element is truncated a second time.
    pub fn is_quadratic(self) -> bool {
        matches!(self, Kind::Square | Kind::Polynomial)
    }
}

impl wire::TwoBits for Kind {
    fn code(self) -> u8 {
        match self {
            Kind::Relu => 0,
            Kind::Identity => 1,
            Kind::Square => 2,
            Kind::Polynomial => 3,
        }
    }

    fn from_code(code: u8) -> Option<Self> {
        [Kind::Relu, Kind::Identity, Kind::Square, Kind::Polynomial]
            .get(usize::from(code))
            .copied()
    }
}

impl Activation {
    /// The second truncation of an element of this kind: none for ReLU and identity.
    pub fn post(&self, kind: Kind) -> Option<&PostTruncation> {
        match kind {
            Kind::Relu | Kind::Identity => None,
            Kind::Square => self.square.as_ref(),
            Kind::Polynomial => self.polynomial.as_ref(),
        }
    }
}

impl Layer {
    /// Shape of the sum of the terms, before [`Layer::pool`]; `None` if a term's window does not
    /// fit.
    pub fn sum_shape(&self, layers: Layers<'_>) -> Option<Shape> {
        let term = self.terms.first()?;
        term.output(layers.tensor_shape(term.input()))
    }

    /// Bits cut off the sum; none at the output.
    pub fn truncate(&self) -> u8 {
        match &self.step {
            Step::Activate(a) => a.truncate,
            Step::Output { .. } => 0,
        }
    }

    /// Width of the sign circuit: `m = log2 B - f + 1` bits, and those of the guard.
    pub fn sign_bits(&self) -> Option<u8> {
        match &self.step {
            Step::Activate(a) => Some(self.bound_bits - a.truncate + 1 + self.guard_bits),
            Step::Output { .. } => None,
        }
    }

    /// Returns whether an element of the layer is a ReLU.
    pub fn has_relu(&self) -> bool {
        match &self.step {
            Step::Activate(a) => a.kinds.contains(&Kind::Relu),
            Step::Output { .. } => false,
        }
    }
}
