//! How messages lie on a stream: the length (4 bytes, little endian), then the bytes.
//!
//! A receiver checks the length against its limit before it reserves anything, and lets its memory
//! grow with what arrives.

/// Bytes of the length before each message.
pub const LENGTH_BYTES: usize = 4;

/// Messages are written in pieces of this size, so that no write holds the connection's lock for
/// long.
pub const PIECE_BYTES: usize = 256 * 1024;

/// Rate below which a message is given up, once the patience with its peer is used up too.
pub const SLOWEST_BYTES_PER_SECOND: u64 = 16 * 1024;
