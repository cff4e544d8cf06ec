//! The common ground of oblivious transfer, garbling and arithmetic.
//!
//! - [`Block`], [`Bits`], [`Delta`]: wire labels and OT messages, choice bits, the free-XOR offset;
//! - [`fp`]: the field `F_p`, `p = 2^60 - 2^18 + 1`, in which all shares live;
//! - [`Prg`]: the pseudorandom generator, AES in counter mode;
//! - [`hash`]: MITCCR, the re-keyed hash of labels; [`TweakCounter`]: the tweaks of a bundle;
//! - [`transpose`], [`columns`]: the matrices of bits in an OT extension;
//! - [`memory`]: large buffers on large pages, and [`SecretBytes`], which erases itself;
//! - [`Backend`]: the vector instructions that all of these use; [`vector`]: those on one or two
//!   blocks, for kernels that are written once for all of them.
//!
//! Nothing here knows of parties or messages; a decoder only knows how long its message must be.
//!
//! # Representation
//! Bulk data is sent in its in-memory representation, little-endian.

#[cfg(not(target_endian = "little"))]
compile_error!(
    "blocks and field elements travel as they lie in memory, so the target must be little-endian"
);

mod backend;
mod bits;
mod block;
pub mod columns;
mod error;
pub mod fp;
pub mod hash;
pub mod memory;
mod prg;
mod transpose;
mod tweak;
pub mod vector;

pub use backend::{Backend, BackendError};
pub use bits::Bits;
pub use block::{BLOCK_BYTES, Block, Delta, Labels};
pub use error::Error;
pub use memory::SecretBytes;
pub use prg::{Prg, SEED_BYTES, Seed};
pub use transpose::{ROWS_PER_TILE, transpose};
pub use tweak::{TweakClass, TweakCounter, TweakRange};
