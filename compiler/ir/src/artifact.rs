//! The three files of a model directory: the float graph, the public artifact, the server's
//! weights.
//!
//! All have one frame, all integers little-endian:
//!
//! | bytes | what |
//! | --- | --- |
//! | 8 | magic: `PI-GRAPH`, `PI-ARTIF` or `PI-WEIGH` |
//! | 4 | format version |
//! | 8 | length of the body |
//! | n | body: the type in postcard's encoding, long lists packed |
//! | 32 | BLAKE3 of everything before |
//!
//! The last 32 bytes are the file's digest. Bodies have one encoding only (a file that decodes
//! encodes to the same bytes), so a digest names a value. The artifact holds the digest of the
//! weights file; the weights file starts with 32 random bytes, so the public digest does not let
//! a client test guesses of the weights.

mod frame;

use crate::circuit::{Circuit, Reveal};
use crate::failure::failure_log2;
use crate::graph::Graph;
use crate::limits;
use crate::plan::Plan;
use crate::verify::{self, Fault, Verified};
use crate::weights::Weights;
use crate::wire;
use frame::{File, decode, digest, encode, hex};
use serde::{Deserialize, Serialize};

/// File name of [`GraphFile`] in a model directory.
pub const GRAPH_NAME: &str = "model.graph";
/// File name of [`Artifact`] in a model directory.
pub const ARTIFACT_NAME: &str = "model.pia";
/// File name of [`WeightsFile`] in a model directory.
pub const WEIGHTS_NAME: &str = "model.piw";

/// The public half of a compiled network, which both parties hold.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Artifact {
    /// The arithmetic circuit.
    pub circuit: Verified<Circuit>,
    /// Packing of the tensors when one bundle is prepared alone.
    pub plan: Plan,
    /// Packings for several bundles that are prepared together, for growing numbers of bundles.
    pub batches: Vec<Plan>,
    /// Digest of the salted weights file that belongs to it.
    pub weights_digest: [u8; 32],
    /// `log2` of the probability that one inference loses a value in a truncation.
    pub failure_log2: f64,
    /// `log2` of the statistical distance by which the answers of `2^20` bundles tell of the
    /// weights; who has the parameters of the encryption checks it.
    pub flooding_log2: f64,
    /// Accuracy as measured at compilation, if it was.
    pub accuracy: Option<Accuracy>,
    /// Note of the model's maker to its users.
    pub note: String,
}

/// Right answers out of `images` test images.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Accuracy {
    /// Images evaluated.
    pub images: u32,
    /// Right answers of the float network.
    pub float_correct: u32,
    /// Right answers of the fixed-point circuit, rounding to nearest.
    pub fixed_correct: u32,
}

/// The private half of a compiled network, which only the server holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WeightsFile {
    /// Random bytes, so that the digest says nothing about the weights.
    pub salt: [u8; 32],
    /// The integers.
    pub weights: Weights,
}

/// A float network as a file.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GraphFile {
    /// The network.
    pub graph: Graph,
}

/// Reason why a file was not accepted.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// The file ends too early.
    #[error(
        "{what}: {got} bytes, expected {expected}: the file is cut off or has bytes appended; \
         copy it again"
    )]
    Length {
        /// Kind of file.
        what: &'static str,
        /// Bytes the frame asks for.
        expected: u64,
        /// Bytes there are.
        got: u64,
    },
    /// The file is another kind of file.
    #[error(
        "{what}: starts with {found:?}, not {expected:?}: this is another kind of file; \
         check the path"
    )]
    Magic {
        /// Kind of file.
        what: &'static str,
        /// The magic that it should start with.
        expected: String,
        /// The bytes that it starts with.
        found: String,
    },
    /// The file has another format version.
    #[error(
        "{what}: format version {found}, this program reads {supported}: \
         compile the model again, or use the version of the program that made it"
    )]
    Version {
        /// Kind of file.
        what: &'static str,
        /// Version of the file.
        found: u32,
        /// Version of this program.
        supported: u32,
    },
    /// The file is larger than any model.
    #[error("{what}: {got} bytes, the limit is {limit}: no model of this format is that large")]
    TooLarge {
        /// Kind of file.
        what: &'static str,
        /// Largest accepted size.
        limit: u64,
        /// Size of the file.
        got: u64,
    },
    /// The digest does not match.
    #[error(
        "{what}: the digest at its end does not match: the file was damaged or edited; \
         copy it again"
    )]
    Digest {
        /// Kind of file.
        what: &'static str,
    },
    /// The body is no encoding of the type.
    #[error(
        "{what}: malformed body ({detail}): it was not written by this format's encoder; \
         compile the model again"
    )]
    Malformed {
        /// Kind of file.
        what: &'static str,
        /// Finding of the decoder.
        detail: String,
    },
    /// The content is not valid.
    #[error("{what}: {}: compile the model again", crate::verify::list(.faults))]
    Faults {
        /// Kind of file.
        what: &'static str,
        /// All faults.
        faults: Vec<Fault>,
    },
    /// The weights are those of another artifact.
    #[error(
        "the artifact names weights {expected}, the weights file is {found}: \
         the two files come from different compilations; use the pair that was written together"
    )]
    WeightsMismatch {
        /// Digest in the artifact.
        expected: String,
        /// Digest of the file.
        found: String,
    },
}

impl Artifact {
    /// An artifact whose failure probability is computed from the circuit; without batches,
    /// accuracy and note.
    pub fn new(
        circuit: Verified<Circuit>,
        plan: Plan,
        weights_digest: [u8; 32],
        flooding_log2: f64,
    ) -> Self {
        Artifact {
            failure_log2: failure_log2(&circuit).total,
            flooding_log2,
            circuit,
            plan,
            batches: Vec::new(),
            weights_digest,
            accuracy: None,
            note: String::new(),
        }
    }

    /// The same model, which reveals something else: only the circuit's output and the failure
    /// probability change. Bundles are of one of the two.
    ///
    /// # Errors
    /// [`Error::Faults`] if the output has no label to reveal.
    pub fn with_reveal(self, reveal: Reveal) -> Result<Self, Error> {
        let circuit = self.circuit.into_inner().with_reveal(reveal);
        let circuit = verify::circuit(circuit).map_err(|faults| Error::Faults {
            what: Self::WHAT,
            faults,
        })?;
        Ok(Artifact {
            failure_log2: failure_log2(&circuit).total,
            circuit,
            ..self
        })
    }

    /// All plans: for one bundle, then the batches.
    pub fn plans(&self) -> impl ExactSizeIterator<Item = &Plan> {
        let count = 1 + self.batches.len();
        (0..count).map(|index| match index {
            0 => &self.plan,
            _ => &self.batches[index - 1],
        })
    }

    /// The file's bytes.
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// The artifact in a file, its circuit verified. Plans, and the flooding distance, are checked
    /// where they are used.
    ///
    /// # Errors
    /// If the bytes are not exactly what [`Artifact::encode`] writes, or the circuit has faults, or
    /// its failure probability is not the stated one, or plans are not for growing numbers of
    /// bundles. Any bytes are safe.
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let body: Body = decode::<Self>(bytes)?;
        let refuse = |faults| Error::Faults {
            what: Self::WHAT,
            faults,
        };
        let artifact = Artifact {
            circuit: verify::circuit(body.circuit).map_err(refuse)?,
            plan: body.plan,
            batches: body.batches,
            weights_digest: body.weights_digest,
            failure_log2: body.failure_log2,
            flooding_log2: body.flooding_log2,
            accuracy: body.accuracy,
            note: body.note,
        };
        let faults = artifact.faults();
        match faults.is_empty() {
            true => Ok(artifact),
            false => Err(refuse(faults)),
        }
    }

    /// Faults of everything but the circuit.
    fn faults(&self) -> Vec<Fault> {
        let mut faults = Vec::new();
        let mut add = |place: &str, problem: String| {
            faults.push(Fault {
                place: place.into(),
                problem,
            });
        };
        let failure = failure_log2(&self.circuit).total;
        // Rounding differs between platforms in the last bits of a logarithm only.
        let near = (self.failure_log2 - failure).abs() <= 1e-6;
        if !near && self.failure_log2 != failure {
            add(
                "failure_log2",
                format!("states {}, the circuit has {failure}", self.failure_log2),
            );
        }
        if self.plan.bundles != 1 {
            add(
                "plan",
                format!("for {} bundles, expected 1", self.plan.bundles),
            );
        }
        if !self.plans().is_sorted_by(|a, b| a.bundles < b.bundles) {
            add("batches", "not for growing numbers of bundles".into());
        }
        if self.note.len() > limits::NOTE {
            add("note", format!("more than {} bytes", limits::NOTE));
        }
        faults
    }

    /// The *model digest*: the last 32 bytes of the file. Binds the weights through their salted
    /// digest.
    pub fn digest(&self) -> [u8; 32] {
        digest(self)
    }

    /// Ensures that a weights file belongs to this artifact and fits its circuit.
    ///
    /// # Errors
    /// [`Error::WeightsMismatch`] if it has another digest, [`Error::Faults`] if it does not fit.
    pub fn check_weights(&self, file: &WeightsFile) -> Result<(), Error> {
        let found = file.digest();
        if found != self.weights_digest {
            return Err(Error::WeightsMismatch {
                expected: hex(&self.weights_digest),
                found: hex(&found),
            });
        }
        let faults = verify::weights(&self.circuit, &file.weights);
        if !faults.is_empty() {
            return Err(Error::Faults {
                what: WeightsFile::WHAT,
                faults,
            });
        }
        Ok(())
    }
}

impl WeightsFile {
    /// The file's bytes.
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// The weights in a file. Whether they fit an artifact is [`Artifact::check_weights`].
    ///
    /// # Errors
    /// If the bytes are not exactly what [`WeightsFile::encode`] writes. Any bytes are safe.
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        decode::<Self>(bytes)
    }

    /// The last 32 bytes of the file.
    pub fn digest(&self) -> [u8; 32] {
        digest(self)
    }
}

impl GraphFile {
    /// The file's bytes.
    pub fn encode(&self) -> Vec<u8> {
        encode(self)
    }

    /// The network in a file, verified.
    ///
    /// # Errors
    /// If the bytes are not exactly what [`GraphFile::encode`] writes, or the graph has faults. Any
    /// bytes are safe.
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let file = decode::<Self>(bytes)?;
        let faults = verify::graph(&file.graph);
        if !faults.is_empty() {
            return Err(Error::Faults {
                what: Self::WHAT,
                faults,
            });
        }
        Ok(file)
    }

    /// The last 32 bytes of the file.
    pub fn digest(&self) -> [u8; 32] {
        digest(self)
    }
}

/// An artifact as it is read: the same fields in the same order, nothing verified.
#[derive(Serialize, Deserialize)]
struct Body {
    circuit: Circuit,
    plan: Plan,
    #[serde(deserialize_with = "wire::limited::<_, _, { limits::BATCHES }>")]
    batches: Vec<Plan>,
    weights_digest: [u8; 32],
    failure_log2: f64,
    flooding_log2: f64,
    accuracy: Option<Accuracy>,
    note: String,
}

impl File for Artifact {
    type Body = Body;
    const WHAT: &'static str = "artifact file";
    const MAGIC: [u8; 8] = *b"PI-ARTIF";
    const VERSION: u32 = 7;
    const LIMIT: usize = limits::ARTIFACT_BYTES;
}

impl File for WeightsFile {
    type Body = Self;
    const WHAT: &'static str = "weights file";
    const MAGIC: [u8; 8] = *b"PI-WEIGH";
    const VERSION: u32 = 2;
    const LIMIT: usize = limits::WEIGHTS_BYTES;
}

impl File for GraphFile {
    type Body = Self;
    const WHAT: &'static str = "graph file";
    const MAGIC: [u8; 8] = *b"PI-GRAPH";
    const VERSION: u32 = 3;
    const LIMIT: usize = limits::WEIGHTS_BYTES;
}

#[cfg(test)]
mod tests;
