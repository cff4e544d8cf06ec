//! AES-128 in counter mode over [`Vector`].

use crate::block::{BLOCK_BYTES, Block};
use crate::hash::vector::{ROUND_CONSTANTS, next_words, transpose};
use crate::vector::{Instructions, Kernel, Vector};
use zeroize::{Zeroize, ZeroizeOnDrop};

/// The key schedule of one key, erased when dropped.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub(super) struct RoundKeys {
    keys: [Block; 11],
    #[zeroize(skip)]
    instructions: Instructions,
}

impl RoundKeys {
    pub(super) fn new(key: Block, instructions: Instructions) -> Self {
        let mut keys = RoundKeys {
            keys: [key; 11],
            instructions,
        };
        instructions.run(Schedule(&mut keys.keys));
        keys
    }

    /// Fills `out` with the encryptions of `counter`, `counter + 1`, ..., the last one cut off
    /// where `out` ends.
    pub(super) fn fill(&self, counter: u128, out: &mut [u8]) {
        let keys = &self.keys;
        self.instructions.run(Fill { keys, counter, out });
    }
}

/// Sets the round keys behind the first one.
struct Schedule<'a>(&'a mut [Block; 11]);

impl Kernel for Schedule<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Vector>(self, s: S) {
        let [key, rest @ ..] = self.0;
        let word = |j: u32| (key.value() >> (32 * j)) as u32;
        // In word form, with the one key in every lane.
        let mut words = [
            s.splat(word(0)),
            s.splat(word(1)),
            s.splat(word(2)),
            s.splat(word(3)),
        ];
        for (key, constant) in rest.iter_mut().zip(ROUND_CONSTANTS) {
            words = next_words(s, words, s.splat(constant));
            let mut lanes = [*key; 2];
            // SAFETY: two blocks borrowed mutably, of which `BLOCKS` are written; any bits are a
            // valid block.
            unsafe { s.store(lanes.as_mut_ptr().cast(), transpose(s, words)[0]) }
            *key = lanes[0];
            lanes.zeroize();
        }
    }
}

/// Registers at a time: enough to hide the latency of the AES instruction.
const N: usize = 8;

/// Blocks at a time in the widest registers.
const MAX_BATCH: usize = 2 * N;

struct Fill<'a> {
    keys: &'a [Block; 11],
    counter: u128,
    out: &'a mut [u8],
}

impl Kernel for Fill<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Vector>(self, s: S) {
        let mut counter = self.counter;
        let mut keys = [s.splat(0); 11];
        for (wide, key) in keys.iter_mut().zip(self.keys) {
            *wide = s.broadcast(*key);
        }
        let blocks = N * S::BLOCKS;
        let mut batches = self.out.chunks_exact_mut(blocks * BLOCK_BYTES);
        for batch in &mut batches {
            encrypt(s, &keys, counter, batch);
            counter = counter.wrapping_add(blocks as u128);
        }
        let rest = batches.into_remainder();
        if !rest.is_empty() {
            let mut last = [0; MAX_BATCH * BLOCK_BYTES];
            encrypt(s, &keys, counter, &mut last[..blocks * BLOCK_BYTES]);
            rest.copy_from_slice(&last[..rest.len()]);
            last.zeroize();
        }
    }
}

/// Fills a batch with the encryptions of the counters from this one on.
#[inline(always)]
fn encrypt<S: Vector>(s: S, keys: &[S::V; 11], counter: u128, batch: &mut [u8]) {
    assert_eq!(batch.len(), N * S::BLOCKS * BLOCK_BYTES);
    let mut data = counters(s, counter);
    for data in &mut data {
        *data = s.first_key(*data, keys[0]);
    }
    for round in 1..10 {
        for data in &mut data {
            *data = s.round(*data, keys[round - 1], keys[round]);
        }
    }
    for (e, data) in data.into_iter().enumerate() {
        let data = s.last_round(data, keys[9], keys[10]);
        // SAFETY: register `e` writes the bytes of `BLOCKS` blocks of the `8 BLOCKS` in `batch`,
        // borrowed mutably.
        unsafe { s.store(batch.as_mut_ptr().add(e * S::BLOCKS * BLOCK_BYTES), data) }
    }
}

/// The batch of counters from this one on.
#[inline(always)]
fn counters<S: Vector>(s: S, first: u128) -> [S::V; N] {
    // The low half overflows after `left` steps; the starting counter is secret, so there is no
    // branch on it. From 64 on, which is more than a batch, it does not matter how many there are.
    let left = !(first as u64);
    let left = (left & 63) as u32 | u32::from(left >> 6 != 0) << 6;
    let (base, left) = (s.broadcast(Block::new(first)), s.splat(left));
    let one = s.broadcast(Block::new(1 << 64));
    let mut counters = [base; N];
    for (e, counter) in counters.iter_mut().enumerate() {
        // SAFETY: both tables have blocks for two in each of eight registers.
        let (low, high) = unsafe {
            let first = e * S::BLOCKS;
            (
                s.load(LOW.as_ptr().add(first).cast()),
                s.load(HIGH.as_ptr().add(first).cast()),
            )
        };
        let carry = s.and(s.greater32(high, left), one);
        *counter = s.add64(s.add64(base, low), carry);
    }
    counters
}

/// The numbers of the blocks in a batch, in the low and in the high half.
static LOW: [Block; MAX_BATCH] = numbers(0);
static HIGH: [Block; MAX_BATCH] = numbers(64);

const fn numbers(shift: u32) -> [Block; MAX_BATCH] {
    let mut numbers = [Block::ZERO; MAX_BATCH];
    let mut i = 0;
    while i < MAX_BATCH {
        numbers[i] = Block::new((i as u128) << shift);
        i += 1;
    }
    numbers
}
