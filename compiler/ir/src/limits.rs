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
/// Elements of all tensors together.
pub const TOTAL_ELEMENTS: usize = 1 << 26;
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
