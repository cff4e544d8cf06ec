//! Limits on everything that a file declares. Files beyond them are refused before memory is
//! reserved, so that a hostile artifact cannot exhaust a client; all networks in use are far below.

/// Layers of a circuit.
pub const LAYERS: usize = 4096;
/// Terms of a layer.
pub const TERMS: usize = 64;
/// Nodes of a graph.
pub const NODES: usize = 16384;
/// Class names.
pub const CLASSES: usize = 65536;
/// Bytes of a name.
pub const NAME: usize = 256;
/// Bytes of an artifact's note.
pub const NOTE: usize = 65536;
/// Channels, rows or columns of a tensor, and the same of a kernel with its padding.
pub const SIDE: u32 = 1 << 20;
/// Elements of a tensor.
pub const ELEMENTS: usize = 1 << 24;
/// Elements of all tensors of a circuit together. An artifact of [`ARTIFACT_BYTES`] has room for no
/// more kinds, and each takes a party at least 16 bytes of shares.
pub const TOTAL_ELEMENTS: usize = 1 << 26;
/// Elements of all nodes of a graph together: 1 GiB of single precision, which only trainer and
/// compiler hold. DenseNet-121 has 82 million at 224 x 224 pixels, a layer's concatenated inputs
/// being nodes by themselves, of which a circuit keeps a third.
pub const GRAPH_ELEMENTS: usize = 1 << 28;
/// Weights of a kernel.
pub const KERNEL: usize = 1 << 28;
/// Elements that the sums over the windows of one term read: seconds of one core.
pub const WINDOW_READS: u64 = 1 << 32;
/// Multiply-adds of a public prefix: a minute of one core.
pub const PREFIX_MULTIPLY_ADDS: u64 = 1 << 36;
/// Uploads or answers of a plan.
pub const PLAN: usize = LAYERS * 8;
/// Plans for batches of bundles.
pub const BATCHES: usize = 16;
/// Bytes of an artifact file.
pub const ARTIFACT_BYTES: usize = 1 << 24;
/// Bytes of a weights file or a graph file.
pub const WEIGHTS_BYTES: usize = 1 << 31;
