//! Buffers of polynomials, kept for the next ones of the same size. All that are kept are zero.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

/// Buffers below this many words are left to the allocator.
const SMALLEST: usize = 1 << 12;
/// Words kept at most: 64 MiB.
const KEPT: usize = 1 << 23;

#[derive(Default)]
struct Pool {
    buffers: HashMap<usize, Vec<Vec<u64>>>,
    words: usize,
}

static POOL: Mutex<Option<Pool>> = Mutex::new(None);

/// A buffer of `len` zeros.
pub(super) fn take(len: usize) -> Vec<u64> {
    if len >= SMALLEST
        && let Some(pool) = POOL.lock().unwrap_or_else(PoisonError::into_inner).as_mut()
        && let Some(buffer) = pool.buffers.get_mut(&len).and_then(Vec::pop)
    {
        pool.words -= len;
        return buffer;
    }
    vec![0; len]
}

/// Keeps a buffer of zeros, unless enough are kept.
pub(super) fn give(buffer: Vec<u64>) {
    let len = buffer.len();
    if len < SMALLEST {
        return;
    }
    let mut pool = POOL.lock().unwrap_or_else(PoisonError::into_inner);
    let pool = pool.get_or_insert_default();
    if pool.words + len <= KEPT {
        pool.words += len;
        pool.buffers.entry(len).or_default().push(buffer);
    }
}
