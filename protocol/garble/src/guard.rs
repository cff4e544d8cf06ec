//! The guard: whether every value kept to its range, as a key that only then both parties hold.
//!
//! A bool circuit that is `k` bits wider than a value needs shows whether the value fits: the upper
//! `k + 1` bits of the sum must all be the sign. Each of the `k` wires `t_j = s_(m-1) xor
//! s_(m-1-j)`, free by free XOR, must carry 0. The garbler hashes the wire's *zero* label, the
//! evaluator the *active* one, each wire under a tweak of its own ([`TweakClass::Guard`]), and each
//! adds up (by XOR) the hashes of all its guard wires. The sums are the parties' [`GuardKey`]s:
//! equal if every wire carries 0, and otherwise unrelated. What the garbler seals under its key is
//! an answer that opens only if all values kept to their ranges.
//!
//! # Security
//! Nothing is sent for it. If a wire carries 1, the evaluator holds `zero xor delta`, and the
//! garbler's key has a summand `H(zero)` that the evaluator cannot compute, nor tell from a uniform
//! block: that is the security of the hash, with at most two labels a tweak (see
//! [`pi_core::hash`]). It learns only *that* its key is another one, not by which wires: to test a
//! guess it would need `delta`. The garbler, to which nothing comes back, learns nothing. A
//! simulator that is told "in range" takes the evaluator's key, which it can compute, for the
//! garbler's; told "out of range", it takes a uniform one. It needs neither before the sealed
//! message is sent, so that message must be sent online, with the inputs.
//!
//! # Cost
//! `k` AND gates more per value, and one hash per guard wire; no bytes of its own.

use pi_core::hash::{LANES, hash_lanes};
use pi_core::{BLOCK_BYTES, Block, TweakClass, TweakRange};
use std::fmt;
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// Most bits of a guard.
pub const MAX_GUARD_BITS: u32 = 8;

/// The sum of the hashes of guard wires: of zero labels at the garbler, of active ones at the
/// evaluator.
#[derive(Zeroize, ZeroizeOnDrop)]
pub struct GuardKey(Block);

impl GuardKey {
    /// Size of a key where it is stored.
    pub const BYTES: usize = BLOCK_BYTES;

    /// Returns the key of no wires.
    pub fn empty() -> Self {
        GuardKey(Block::ZERO)
    }

    /// Adds the key of other wires.
    pub fn add(&mut self, other: &GuardKey) {
        self.0 ^= other.0;
    }

    /// Returns a key that was stored.
    pub fn from_bytes(bytes: [u8; Self::BYTES]) -> Self {
        GuardKey(Block::from_bytes(bytes))
    }

    /// Returns the bytes to be stored, or to derive a seal from.
    pub fn to_bytes(&self) -> Zeroizing<[u8; Self::BYTES]> {
        Zeroizing::new(self.0.to_bytes())
    }

    /// Returns the key of wires that lie side by side: guard wire `gate` of the instances from
    /// `first` on.
    #[inline]
    pub(crate) fn of_lanes(
        tweaks: &TweakRange,
        first: usize,
        gate: usize,
        wires: &[Block; LANES],
        count: usize,
    ) -> Self {
        let keys = std::array::from_fn(|lane| {
            tweaks.key(TweakClass::Guard, first + lane.min(count - 1), gate)
        });
        sum(&keys, wires, count)
    }

    /// Returns the key of wires of one instance, in the order of their tweaks.
    pub(crate) fn of_instance(tweaks: &TweakRange, wires: &[Block]) -> Self {
        let mut key = GuardKey::empty();
        for (group, wires) in wires.chunks(LANES).enumerate() {
            let count = wires.len();
            let gate = |lane: usize| group * LANES + lane.min(count - 1);
            let keys = std::array::from_fn(|lane| tweaks.key(TweakClass::Guard, 0, gate(lane)));
            let mut lanes = [Block::ZERO; LANES];
            lanes[..count].copy_from_slice(wires);
            key.add(&sum(&keys, &lanes, count));
            lanes.zeroize();
        }
        key
    }
}

fn sum(keys: &[Block; LANES], wires: &[Block; LANES], count: usize) -> GuardKey {
    let mut hashes = *wires;
    hash_lanes(keys, &mut hashes);
    let mut key = GuardKey::empty();
    for &hash in &hashes[..count] {
        key.0 ^= hash;
    }
    hashes.zeroize();
    key
}

impl fmt::Debug for GuardKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("GuardKey(..)")
    }
}
