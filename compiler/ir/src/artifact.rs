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

use crate::circuit::Circuit;
use crate::failure::failure_log2;
use crate::graph::Graph;
use crate::limits;
use crate::plan::Plan;
use crate::verify::{self, Fault};
use crate::weights::Weights;
use crate::wire;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

/// File name of [`GraphFile`] in a model directory.
pub const GRAPH_NAME: &str = "model.graph";
/// File name of [`Artifact`] in a model directory.
pub const ARTIFACT_NAME: &str = "model.pia";
/// File name of [`WeightsFile`] in a model directory.
pub const WEIGHTS_NAME: &str = "model.piw";

/// What both parties hold: the public half of a compiled network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Artifact {
    /// The arithmetic circuit.
    pub circuit: Circuit,
    /// How its tensors are packed when one bundle is prepared alone.
    pub plan: Plan,
    /// How they are packed when several bundles are prepared together, for growing numbers of
    /// bundles.
    #[serde(deserialize_with = "wire::limited::<_, _, { limits::BATCHES }>")]
    pub batches: Vec<Plan>,
    /// Digest of the salted weights file that belongs to it.
    pub weights_digest: [u8; 32],
    /// `log2` of the probability that one inference loses a value in a truncation.
    pub failure_log2: f64,
    /// Accuracy as measured at compilation, if it was.
    pub accuracy: Option<Accuracy>,
    /// What the maker of the model wants users to read.
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

/// What only the server holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WeightsFile {
    /// Random; makes the digest say nothing about the weights.
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

/// Why a file was not accepted.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Error {
    /// The file ends too early.
    #[error(
        "{what}: {got} bytes, expected {expected}: the file is cut off or has bytes appended; copy it again"
    )]
    Length {
        /// Which file.
        what: &'static str,
        /// Bytes the frame asks for.
        expected: u64,
        /// Bytes there are.
        got: u64,
    },
    /// The file is another kind of file.
    #[error(
        "{what}: starts with {found:?}, not {expected:?}: this is another kind of file; check the path"
    )]
    Magic {
        /// Which file.
        what: &'static str,
        /// What it should start with.
        expected: String,
        /// What it starts with.
        found: String,
    },
    /// The file has another format version.
    #[error(
        "{what}: format version {found}, this program reads {supported}: compile the model again, or use the program version that made it"
    )]
    Version {
        /// Which file.
        what: &'static str,
        /// Version of the file.
        found: u32,
        /// Version of this program.
        supported: u32,
    },
    /// The file is larger than any model.
    #[error("{what}: {got} bytes, the limit is {limit}: no model of this format is that large")]
    TooLarge {
        /// Which file.
        what: &'static str,
        /// Largest accepted size.
        limit: u64,
        /// Size of the file.
        got: u64,
    },
    /// The digest does not match.
    #[error(
        "{what}: the digest at its end does not match: the file was damaged or edited; copy it again"
    )]
    Digest {
        /// Which file.
        what: &'static str,
    },
    /// The body is no encoding of the type.
    #[error(
        "{what}: malformed body ({detail}): it was not written by this format's encoder; compile the model again"
    )]
    Malformed {
        /// Which file.
        what: &'static str,
        /// What the decoder found.
        detail: String,
    },
    /// The content is not valid.
    #[error("{what}: {}: compile the model again", crate::verify::list(.faults))]
    Faults {
        /// Which file.
        what: &'static str,
        /// All faults.
        faults: Vec<Fault>,
    },
    /// The weights are those of another artifact.
    #[error(
        "the artifact names weights {expected}, the weights file is {found}: the two files come from different compilations; use the pair that was written together"
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
    pub fn new(circuit: Circuit, plan: Plan, weights_digest: [u8; 32]) -> Self {
        Artifact {
            failure_log2: failure_log2(&circuit).total,
            circuit,
            plan,
            batches: Vec::new(),
            weights_digest,
            accuracy: None,
            note: String::new(),
        }
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

    /// The artifact in a file, its circuit verified. Plans are checked where they are used.
    ///
    /// # Errors
    /// If the bytes are not exactly what [`Artifact::encode`] writes, or the circuit has faults, or
    /// its failure probability is not the stated one, or plans are not for growing numbers of
    /// bundles. Any bytes are safe.
    pub fn decode(bytes: &[u8]) -> Result<Self, Error> {
        let artifact: Self = decode(bytes)?;
        let faults = artifact.faults();
        if !faults.is_empty() {
            return Err(Error::Faults {
                what: Self::WHAT,
                faults,
            });
        }
        Ok(artifact)
    }

    fn faults(&self) -> Vec<Fault> {
        let mut faults = verify::circuit(&self.circuit);
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
        decode(bytes)
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
        let file: Self = decode(bytes)?;
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

/// What distinguishes the three files.
trait File: Serialize + DeserializeOwned {
    const WHAT: &'static str;
    const MAGIC: [u8; 8];
    const VERSION: u32;
    const LIMIT: usize;
}

impl File for Artifact {
    const WHAT: &'static str = "artifact file";
    const MAGIC: [u8; 8] = *b"PI-ARTIF";
    const VERSION: u32 = 2;
    const LIMIT: usize = limits::ARTIFACT_BYTES;
}

impl File for WeightsFile {
    const WHAT: &'static str = "weights file";
    const MAGIC: [u8; 8] = *b"PI-WEIGH";
    const VERSION: u32 = 1;
    const LIMIT: usize = limits::WEIGHTS_BYTES;
}

impl File for GraphFile {
    const WHAT: &'static str = "graph file";
    const MAGIC: [u8; 8] = *b"PI-GRAPH";
    const VERSION: u32 = 1;
    const LIMIT: usize = limits::WEIGHTS_BYTES;
}

/// Magic, version and length.
const HEADER: usize = 8 + 4 + 8;
const DIGEST: usize = 32;

fn encode<F: File>(value: &F) -> Vec<u8> {
    let body = postcard::to_stdvec(value).expect("writing to memory, all lengths known");
    let mut bytes = Vec::with_capacity(HEADER + body.len() + DIGEST);
    bytes.extend_from_slice(&F::MAGIC);
    bytes.extend_from_slice(&F::VERSION.to_le_bytes());
    bytes.extend_from_slice(&(body.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&body);
    let digest = blake3::hash(&bytes);
    bytes.extend_from_slice(digest.as_bytes());
    bytes
}

fn digest<F: File>(value: &F) -> [u8; 32] {
    let bytes = encode(value);
    *bytes
        .last_chunk()
        .expect("the frame ends with 32 bytes of digest")
}

fn decode<F: File>(bytes: &[u8]) -> Result<F, Error> {
    let what = F::WHAT;
    if bytes.len() > F::LIMIT {
        return Err(Error::TooLarge {
            what,
            limit: F::LIMIT as u64,
            got: bytes.len() as u64,
        });
    }
    let length = |expected: u64| Error::Length {
        what,
        expected,
        got: bytes.len() as u64,
    };
    let frame = (HEADER + DIGEST) as u64;
    let (header, rest) = bytes
        .split_first_chunk::<HEADER>()
        .ok_or_else(|| length(frame))?;
    let (magic, version, body_length) = split_header(header);
    if magic != F::MAGIC {
        let text = |magic: &[u8]| magic.escape_ascii().to_string();
        return Err(Error::Magic {
            what,
            expected: text(&F::MAGIC),
            found: text(&magic),
        });
    }
    if version != F::VERSION {
        return Err(Error::Version {
            what,
            found: version,
            supported: F::VERSION,
        });
    }
    let expected = body_length.saturating_add(frame);
    if expected != bytes.len() as u64 {
        return Err(length(expected));
    }
    let (body, digest) = rest
        .split_last_chunk::<DIGEST>()
        .ok_or_else(|| length(frame))?;
    if blake3::hash(&bytes[..bytes.len() - DIGEST]) != *digest {
        return Err(Error::Digest { what });
    }
    let malformed = |detail: String| Error::Malformed { what, detail };
    let (value, left) =
        postcard::take_from_bytes::<F>(body).map_err(|e| malformed(e.to_string()))?;
    if !left.is_empty() {
        return Err(malformed(format!("{} bytes left over", left.len())));
    }
    if encode(&value) != bytes {
        return Err(malformed("not the shortest encoding".into()));
    }
    Ok(value)
}

fn split_header(header: &[u8; HEADER]) -> ([u8; 8], u32, u64) {
    let part = |from: usize, to: usize| &header[from..to];
    (
        part(0, 8).try_into().expect("8 bytes"),
        u32::from_le_bytes(part(8, 12).try_into().expect("4 bytes")),
        u64::from_le_bytes(part(12, 20).try_into().expect("8 bytes")),
    )
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::circuit::*;
    use crate::graph::*;
    use crate::plan::*;
    use crate::shape::*;
    use crate::weights::*;

    fn artifact() -> Artifact {
        let circuit = Circuit {
            name: "tiny".into(),
            input: Shape::new(1, 3, 3),
            input_frac_bits: 6,
            mean: vec![0.5],
            std: vec![0.25],
            classes: vec!["no".into(), "yes".into()],
            layers: vec![
                Layer {
                    name: "conv".into(),
                    terms: vec![Term::Conv(Conv {
                        input: TensorId(0),
                        out_channels: 1,
                        kernel: (2, 2),
                        stride: (1, 1),
                        padding: Padding {
                            top: 0,
                            left: 0,
                            bottom: 1,
                            right: 1,
                        },
                        weight_bits: 8,
                    })],
                    pool: None,
                    shape: Shape::new(1, 3, 3),
                    bound_bits: 20,
                    range: Range::Proved,
                    step: Step::Activate(Activation {
                        truncate: 7,
                        frac_bits: 6,
                        kinds: [
                            Kind::Relu,
                            Kind::Identity,
                            Kind::Square,
                            Kind::Polynomial,
                            Kind::Relu,
                            Kind::Relu,
                            Kind::Identity,
                            Kind::Identity,
                            Kind::Square,
                        ]
                        .to_vec(),
                        square: Some(PostTruncation {
                            truncate: 6,
                            bound_bits: 28,
                            range: Range::Proved,
                        }),
                        polynomial: Some(PostTruncation {
                            truncate: 9,
                            bound_bits: 30,
                            range: Range::Calibrated { max_seen: 77_777 },
                        }),
                    }),
                },
                Layer {
                    name: "dense".into(),
                    terms: vec![Term::Conv(Conv {
                        input: TensorId(1),
                        out_channels: 2,
                        kernel: (3, 3),
                        stride: (1, 1),
                        padding: Padding::default(),
                        weight_bits: 9,
                    })],
                    pool: None,
                    shape: Shape::new(2, 1, 1),
                    bound_bits: 40,
                    range: Range::Proved,
                    step: Step::Output { frac_bits: 12 },
                },
            ],
        };
        let plan = Plan {
            ring_degree: 8192,
            bundles: 1,
            uploads: vec![Upload {
                tensor: TensorId(0),
                layout: Layout {
                    group: 1,
                    stride: (1, 1),
                    padding: Padding::default(),
                    window: (2, 2),
                    tile: (3, 3),
                    row_stride: 4,
                    block: 16,
                    blocks: 1,
                },
            }],
            answers: vec![OutputPacking {
                layer: 0,
                term: 0,
                upload: 0,
                merge: 0,
                output_blocks: 1,
            }],
        };
        Artifact {
            failure_log2: failure_log2(&circuit).total,
            circuit,
            batches: vec![Plan {
                bundles: 4,
                ..plan.clone()
            }],
            plan,
            weights_digest: weights().digest(),
            accuracy: Some(Accuracy {
                images: 10_000,
                float_correct: 7_777,
                fixed_correct: 7_770,
            }),
            note: "for tests".into(),
        }
    }

    fn weights() -> WeightsFile {
        WeightsFile {
            salt: [7; 32],
            weights: Weights {
                layers: vec![
                    LayerWeights {
                        kernels: vec![vec![1, -128, 127, 0]],
                        bias: vec![-300],
                        polynomials: vec![Polynomial { a: 1, b: -2, k: 3 }],
                    },
                    LayerWeights {
                        kernels: vec![(0..18).map(|i| 128 - 17 * i).collect()],
                        bias: vec![0, 1 << 40],
                        polynomials: vec![],
                    },
                ],
            },
        }
    }

    fn graph() -> GraphFile {
        let node = |name: &str, op, inputs: &[u32]| Node {
            name: name.into(),
            op,
            inputs: inputs.iter().map(|&i| NodeId(i)).collect(),
        };
        GraphFile {
            graph: Graph {
                name: "tiny".into(),
                mean: vec![0.5],
                std: vec![0.25],
                classes: vec![],
                nodes: vec![
                    node(
                        "input",
                        Op::Input {
                            shape: Shape::new(1, 2, 1),
                        },
                        &[],
                    ),
                    node(
                        "act",
                        Op::Activation {
                            kinds: vec![ActivationKind::Polynomial, ActivationKind::Relu],
                            coefficients: vec![[0.25, -0.5, 1.5]],
                        },
                        &[0],
                    ),
                    node("flat", Op::Flatten, &[1]),
                    node(
                        "fc",
                        Op::Dense {
                            weight: vec![1.0, -2.0],
                            bias: vec![f32::MIN_POSITIVE],
                            out: 1,
                        },
                        &[2],
                    ),
                ],
            },
        }
    }

    /// Every prefix, and every byte changed, through the whole decoder: first as it is (the digest
    /// catches it), then with the digest made right (the body's decoder must catch what is wrong).
    fn damage<F: File + PartialEq + std::fmt::Debug>(value: &F) {
        let good = encode(value);
        assert_eq!(&decode::<F>(&good).unwrap(), value);
        for n in 0..good.len() {
            assert!(decode::<F>(&good[..n]).is_err(), "prefix of {n} bytes");
        }
        let mut longer = good.clone();
        longer.push(0);
        assert!(matches!(decode::<F>(&longer), Err(Error::Length { .. })));
        for at in 0..good.len() {
            for flip in [1, 2, 4, 16, 64, 128, 255] {
                let mut bytes = good.clone();
                bytes[at] ^= flip;
                assert!(decode::<F>(&bytes).is_err(), "byte {at} xor {flip}");
                let end = bytes.len() - DIGEST;
                let digest = blake3::hash(&bytes[..end]);
                bytes[end..].copy_from_slice(digest.as_bytes());
                if let Ok(other) = decode::<F>(&bytes) {
                    assert_eq!(encode(&other), bytes, "byte {at} xor {flip}");
                }
            }
        }
    }

    #[test]
    fn damaged_files_are_refused_without_panic() {
        damage(&artifact());
        damage(&weights());
        damage(&graph());
    }

    #[test]
    fn a_declared_length_reserves_no_memory() {
        // A list of 2^60 classes, kernels or layers in a body of a few bytes.
        let mut body = vec![0; 8];
        body.splice(0..0, [0xff; 8]);
        let mut bytes = [
            &GraphFile::MAGIC[..],
            &1u32.to_le_bytes(),
            &(body.len() as u64).to_le_bytes(),
            &body,
        ]
        .concat();
        let digest = blake3::hash(&bytes);
        bytes.extend_from_slice(digest.as_bytes());
        assert!(matches!(
            GraphFile::decode(&bytes),
            Err(Error::Malformed { .. })
        ));
    }

    #[test]
    fn each_kind_of_file_refuses_the_others() {
        let error = Artifact::decode(&weights().encode()).unwrap_err();
        assert!(matches!(error, Error::Magic { .. }), "{error}");
        let error = WeightsFile::decode(&graph().encode()).unwrap_err();
        assert!(error.to_string().contains("PI-GRAPH"), "{error}");
        let mut newer = artifact().encode();
        newer[8] = 9;
        assert!(matches!(
            Artifact::decode(&newer),
            Err(Error::Version { found: 9, .. })
        ));
    }

    #[test]
    fn decoding_verifies_the_circuit_and_its_failure_probability() {
        let good = artifact();
        assert_eq!(Artifact::decode(&good.encode()).unwrap(), good);
        assert_eq!(GraphFile::decode(&graph().encode()).unwrap(), graph());
        let mut claims = good.clone();
        claims.failure_log2 -= 1.0;
        let error = Artifact::decode(&claims.encode()).unwrap_err();
        assert!(error.to_string().contains("failure_log2"), "{error}");
        let mut faulty = good;
        faulty.circuit.layers[0].bound_bits = 60;
        let error = Artifact::decode(&faulty.encode()).unwrap_err();
        assert!(error.to_string().contains("layer 0 (conv)"), "{error}");
        let mut faulty = artifact();
        faulty.plan.bundles = 2;
        let error = Artifact::decode(&faulty.encode()).unwrap_err();
        assert!(error.to_string().contains("for 2 bundles"), "{error}");
        let mut faulty = artifact();
        faulty.batches[0].bundles = 1;
        let error = Artifact::decode(&faulty.encode()).unwrap_err();
        assert!(error.to_string().contains("growing numbers"), "{error}");
        let mut faulty = graph();
        faulty.graph.std.clear();
        assert!(matches!(
            GraphFile::decode(&faulty.encode()),
            Err(Error::Faults { .. })
        ));
    }

    #[test]
    fn digest_is_the_end_of_the_file_and_names_the_weights() {
        let (artifact, weights) = (artifact(), weights());
        assert!(artifact.encode().ends_with(&artifact.digest()));
        assert!(weights.encode().ends_with(&weights.digest()));
        artifact.check_weights(&weights).unwrap();
        let mut other = weights;
        other.salt[0] ^= 1;
        assert!(matches!(
            artifact.check_weights(&other),
            Err(Error::WeightsMismatch { .. })
        ));
    }

    #[test]
    fn kinds_take_two_bits_and_small_weights_one_byte() {
        let mut large = artifact();
        let before = large.encode().len();
        let Step::Activate(activation) = &mut large.circuit.layers[0].step else {
            panic!("the first layer activates");
        };
        activation.kinds = vec![Kind::Square; 9 + 40_000];
        // The circuit has a fault now, but its encoding is what it is.
        // The count grows from one byte to three, the packed length from one to two.
        assert_eq!(large.encode().len(), before + 10_000 + 2 + 1);

        let mut wide = weights();
        let before = wide.encode().len();
        wide.weights.layers[0].kernels[0][0] = 128;
        assert_eq!(wide.encode().len(), before + 4);
    }

    /// Written down once: a change here is a change of the format and needs a new version.
    #[test]
    fn golden_bytes() {
        let weights = concat!(
            "50492d5745494748",
            "01000000",
            "5f00000000000000",
            "0707070707070707070707070707070707070707070707070707070707070707",
            "02",
            "01010401807f0001d70401020306",
            "01022480006f005e004d003c002b001a000900f8ffe7ffd6ffc5ffb4ffa3ff92ff81ff70ff5fff020080808080804000",
            "b796eee9c322701fef6aeb37d7da54d00718c61a834386114063fa32b6f08765",
        );
        assert_eq!(hex(&self::weights().encode()), weights);
        let digest = |bytes: &[u8]| hex(bytes.last_chunk::<32>().unwrap());
        // A number given here, because the last bits of a logarithm may differ between platforms.
        let artifact = Artifact {
            failure_log2: -31.5,
            ..artifact()
        };
        assert_eq!(
            digest(&artifact.encode()),
            "c46dd7bddb93c609616053f3a5816ed194a64d668ebb75490d6ef7f9e4b19ec2"
        );
        assert_eq!(
            digest(&graph().encode()),
            "57ba0dc92fe8a4040bc97546223076a13e5a4b4f0d14682207fc15a6e63da8fd"
        );
    }
}
