//! The hash over [`Vector`]: keys of four registers side by side.
//!
//! Each label has a separate key, so key schedules are most of the work. They are computed in *word
//! form*: register `j` holds word `j` of the keys of four registers. There one round of these
//! schedules is a byte shuffle, one AES instruction and four additions; in *block form*, in which
//! the rounds of the cipher need them, it would be seven instructions for each register. A
//! transposition of 4 by 4 words, eight instructions, goes from one to the other.
//!
//! In word form block `h` of the registers holds, as element `e`, a word of the key for block `h`
//! of register `e`.

use super::LANES;
use crate::block::{BLOCK_BYTES, Block};
use crate::vector::{Kernel, Vector};

/// One block for each of `4 BLOCKS` lanes.
pub type Lanes<S> = [<S as Vector>::V; N];

/// Registers that hold one block for each lane.
pub const N: usize = 4;

pub(crate) const ROUND_CONSTANTS: [u32; 10] = [1, 2, 4, 8, 16, 32, 64, 128, 0x1b, 0x36];

/// Replaces every block of each `x` by its hash under the key of its lane.
pub(super) struct Hash<'a, const D: usize> {
    pub(super) keys: &'a [Block; LANES],
    pub(super) x: [&'a mut [Block; LANES]; D],
}

impl<const D: usize> Kernel for Hash<'_, D> {
    type Output = ();

    #[inline(always)]
    fn run<S: Vector>(self, s: S) {
        let Hash { keys, x } = self;
        for first in (0..LANES).step_by(N * S::BLOCKS) {
            let words = transpose(s, load(s, keys, first));
            let mut plain = [words; D];
            for (plain, x) in plain.iter_mut().zip(&x) {
                *plain = sigma(s, load(s, x, first));
            }
            let [hashes] = encrypt(s, [words], [plain]);
            for d in 0..D {
                store(s, x[d], first, xor(s, hashes[d], plain[d]));
            }
        }
    }
}

/// Encrypts `data[k][d]` under the keys `words[k]`, in word form: `K` times `D` times as many
/// blocks as lanes.
#[allow(
    clippy::needless_range_loop,
    reason = "data, keys and words share their indices"
)]
#[inline(always)]
pub fn encrypt<S: Vector, const K: usize, const D: usize>(
    s: S,
    mut words: [Lanes<S>; K],
    mut data: [[Lanes<S>; D]; K],
) -> [[Lanes<S>; D]; K] {
    let mut keys = words;
    for k in 0..K {
        keys[k] = transpose(s, words[k]);
        for d in 0..D {
            for e in 0..N {
                data[k][d][e] = s.first_key(data[k][d][e], keys[k][e]);
            }
        }
    }
    for constant in &ROUND_CONSTANTS[..9] {
        let constant = s.splat(*constant);
        for k in 0..K {
            words[k] = next_words(s, words[k], constant);
            let next = transpose(s, words[k]);
            for d in 0..D {
                for e in 0..N {
                    data[k][d][e] = s.round(data[k][d][e], keys[k][e], next[e]);
                }
            }
            keys[k] = next;
        }
    }
    let constant = s.splat(ROUND_CONSTANTS[9]);
    for k in 0..K {
        let last = transpose(s, next_words(s, words[k], constant));
        for d in 0..D {
            for e in 0..N {
                data[k][d][e] = s.last_round(data[k][d][e], keys[k][e], last[e]);
            }
        }
    }
    data
}

/// The round keys behind these.
#[inline(always)]
pub(crate) fn next_words<S: Vector>(s: S, w: Lanes<S>, constant: S::V) -> Lanes<S> {
    // The sums of old words do not wait for the new word, which is added to each of them last: so
    // the chain from round to round is short.
    let w01 = s.xor(w[0], w[1]);
    let w012 = s.xor(w01, w[2]);
    let w0123 = s.xor(w012, w[3]);
    let new = s.schedule(w[3], constant);
    [
        s.xor(w[0], new),
        s.xor(w01, new),
        s.xor(w012, new),
        s.xor(w0123, new),
    ]
}

/// Transposes word form to block form, and back.
#[inline(always)]
pub(crate) fn transpose<S: Vector>(s: S, x: Lanes<S>) -> Lanes<S> {
    let [low01, high01] = s.unpack32(x[0], x[1]);
    let [low23, high23] = s.unpack32(x[2], x[3]);
    let [y0, y1] = s.unpack64(low01, low23);
    let [y2, y3] = s.unpack64(high01, high23);
    [y0, y1, y2, y3]
}

/// Adds, modulo 2, two blocks for each lane.
#[inline(always)]
pub fn xor<S: Vector>(s: S, mut x: Lanes<S>, y: Lanes<S>) -> Lanes<S> {
    for e in 0..N {
        x[e] = s.xor(x[e], y[e]);
    }
    x
}

/// Applies the orthomorphism to every block.
#[inline(always)]
pub fn sigma<S: Vector>(s: S, mut x: Lanes<S>) -> Lanes<S> {
    for x in &mut x {
        *x = s.sigma(*x);
    }
    x
}

#[inline(always)]
fn load<S: Vector>(s: S, x: &[Block; LANES], first: usize) -> Lanes<S> {
    let bytes = Block::encode(&x[first..first + N * S::BLOCKS]);
    let mut loaded = [s.splat(0); N];
    for (e, loaded) in loaded.iter_mut().enumerate() {
        // SAFETY: register `e` reads blocks `e BLOCKS..(e + 1) BLOCKS` of the `4 BLOCKS` in
        // `bytes`.
        *loaded = unsafe { s.load(bytes.as_ptr().add(e * S::BLOCKS * BLOCK_BYTES)) };
    }
    loaded
}

#[inline(always)]
fn store<S: Vector>(s: S, x: &mut [Block; LANES], first: usize, data: Lanes<S>) {
    let bytes = Block::bytes_mut(&mut x[first..first + N * S::BLOCKS]);
    for (e, data) in data.into_iter().enumerate() {
        // SAFETY: register `e` writes blocks `e BLOCKS..(e + 1) BLOCKS` of the `4 BLOCKS` in
        // `bytes`, borrowed mutably; any bits are a valid block.
        unsafe { s.store(bytes.as_mut_ptr().add(e * S::BLOCKS * BLOCK_BYTES), data) }
    }
}
