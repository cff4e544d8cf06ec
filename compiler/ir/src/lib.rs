//! The contract between all crates: the types of a network before and after it is compiled to a
//! circuit.
//!
//! - [`graph`]: the float network a trainer exports.
//! - [`circuit`]: the fixed-point arithmetic circuit a two-party computation evaluates (public
//!   part).
//! - [`weights`]: integer kernels, biases and polynomial coefficients, which only the server may
//!   hold.
//! - [`input`]: what a network is asked about, bytes or real values; [`value_file`]: NumPy arrays
//!   and tables that hold such values; [`preprocessing`]: from either to the numbers that a network
//!   reads.
//! - [`prefix`]: the layers that the client computes itself, with public weights.
//! - [`plan`]: the packing of tensors into ciphertexts, which both parties read.
//! - [`trace`]: the client's shares of one run, which make the interpreter exact.
//! - [`interpret`]: reference evaluations: float, rounding to nearest, and exact with a trace.
//! - [`verify`]: every fault of a graph, a circuit or its weights; [`failure`]: how often a
//!   truncation fails.
//! - [`text`]: text forms that print and parse.
//! - [`range`]: interval analysis of sums and tensors; [`count`]: multiply-adds and activations.
//! - [`builders`]: common networks; [`random`]: legal graphs and circuits for property tests.
//! - [`artifact`]: the three files of a model directory; [`costs`]: what the compiler tells the
//!   trainer about the price of activations.
//!
//! No cryptography, no training framework, no files opened here: bytes in, bytes out.
#![forbid(unsafe_code)]

pub mod artifact;
pub mod builders;
pub mod circuit;
pub mod costs;
pub mod count;
pub mod failure;
pub mod graph;
pub mod input;
pub mod interpret;
pub mod limits;
pub mod plan;
pub mod prefix;
pub mod preprocessing;
pub mod random;
pub mod range;
pub mod shape;
pub mod text;
pub mod trace;
pub mod value_file;
pub mod verify;
pub mod weights;
mod wire;

pub use artifact::{Artifact, GraphFile, WeightsFile};
pub use circuit::{
    Activation, Circuit, Conv, Kind, Layer, Layers, PostTruncation, Range, Reveal, Step, SumPool,
    TensorId, Term, group_reads,
};
pub use graph::{ActivationKind, BatchNorm, Graph, Node, NodeId, Op, Origin};
pub use input::{Input, InputError};
pub use plan::{Layout, OutputPacking, Plan, Upload};
pub use prefix::Prefix;
pub use preprocessing::Preprocessing;
pub use shape::{Padding, Shape, Window};
pub use trace::{LayerTrace, Trace};
pub use value_file::ValueFile;
pub use verify::Verified;
pub use weights::{LayerWeights, Polynomial, PublicWeights, Weights};

/// The plaintext field of the protocol, `F_p` with `p = 2^60 - 2^18 + 1`: every value of a circuit
/// is a signed integer far below `p / 2`.
pub const P: u64 = (1 << 60) - (1 << 18) + 1;
