//! Tweaks: the part of a hash's key that differs from use to use within a bundle.
//!
//! A tweak has 128 bits: the class stands in the three top bits, a counter that runs through the
//! whole bundle in the low 64. No tweak repeats within a bundle as long as every [`TweakRange`]
//! comes from the bundle's one [`TweakCounter`]. Both parties draw the same ranges in the same
//! order.

use crate::{Block, Error};

/// The purpose that a label is hashed for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TweakClass {
    /// The garbler's half of an AND gate.
    GateG = 0b000,
    /// The evaluator's half of an AND gate.
    GateE = 0b010,
    /// The pad of the output gadget.
    Output = 0b100,
    /// The pad of the correlated OT that runs from the evaluator to the garbler.
    ReverseCot = 0b110,
    /// The hash of a wire that must carry 0 where values keep to their ranges.
    Guard = 0b001,
}

impl TweakClass {
    /// Lowest of the bits in which it stands.
    pub const SHIFT: u32 = 125;
}

/// The bundle-wide counter of tweaks.
#[derive(Debug)]
pub struct TweakCounter {
    nonce: Block,
    next: u64,
}

impl TweakCounter {
    /// Returns the counter of a new bundle; `nonce` must not have served any bundle before.
    pub fn new(nonce: Block) -> Self {
        TweakCounter { nonce, next: 0 }
    }

    /// Takes the next `instances` times `stride` counter values; a sign circuit of `m` bits needs
    /// `m`.
    ///
    /// # Panics
    /// If the counter would exceed 64 bits.
    pub fn take(&mut self, instances: usize, stride: u32) -> TweakRange {
        let range = TweakRange {
            nonce: self.nonce,
            first: self.next,
            stride: stride as u64,
            instances,
        };
        let used = (instances as u64)
            .checked_mul(range.stride)
            .and_then(|used| self.next.checked_add(used));
        self.next = used.expect("a bundle has fewer than 2^64 gates");
        range
    }
}

/// The tweaks of one layer: `stride` consecutive counter values per instance.
///
/// It knows how many instances it is for, and whoever hashes a layer checks that, so that no layer
/// reaches into the values of the next.
#[derive(Clone, Copy, Debug)]
pub struct TweakRange {
    nonce: Block,
    first: u64,
    stride: u64,
    instances: usize,
}

impl TweakRange {
    /// Returns the AES key for gate `gate` of an instance.
    ///
    /// The batched code also asks for keys of instances behind the last one, for lanes whose
    /// results it drops.
    #[inline]
    pub fn key(&self, class: TweakClass, instance: usize, gate: usize) -> Block {
        debug_assert!(
            (gate as u64) < self.stride,
            "gate {gate} of {}",
            self.stride
        );
        self.nonce
            ^ Block::new(
                (class as u128) << TweakClass::SHIFT | self.counter(instance, gate) as u128,
            )
    }

    /// Returns the counter value of gate `gate` of an instance.
    #[inline]
    pub fn counter(&self, instance: usize, gate: usize) -> u64 {
        self.first + instance as u64 * self.stride + gate as u64
    }

    /// Returns the nonce of the bundle.
    #[inline]
    pub fn nonce(&self) -> Block {
        self.nonce
    }

    /// Returns the number of counter values per instance.
    #[inline]
    pub fn stride(&self) -> u32 {
        self.stride as u32
    }

    /// Returns the number of instances.
    #[inline]
    pub fn instances(&self) -> usize {
        self.instances
    }

    /// Returns the tweaks of the `count` instances from `first` on: the same ones, for work on a
    /// part of a layer.
    ///
    /// # Panics
    /// If the range ends before instance `first + count`.
    pub fn part(&self, first: usize, count: usize) -> TweakRange {
        let behind = self.instances.checked_sub(first);
        assert!(
            behind.is_some_and(|behind| count <= behind),
            "{count} instances from {first} of {}",
            self.instances
        );
        TweakRange {
            first: self.first + first as u64 * self.stride,
            instances: count,
            ..*self
        }
    }

    /// Checks that the range is for this many instances.
    ///
    /// # Errors
    /// [`Error::CallerLength`] if not.
    pub fn check_instances(&self, instances: usize) -> Result<(), Error> {
        Error::check_argument("instances of the tweaks", self.instances, instances)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tweaks_of_a_bundle_never_repeat() {
        let mut counter = TweakCounter::new(Block::new(0xabc));
        let mut keys = Vec::new();
        for (instances, stride) in [(3, 16), (5, 2), (1, 17)] {
            let range = counter.take(instances, stride);
            for instance in 0..instances {
                for gate in 0..stride as usize {
                    for class in [
                        TweakClass::GateG,
                        TweakClass::GateE,
                        TweakClass::Output,
                        TweakClass::ReverseCot,
                        TweakClass::Guard,
                    ] {
                        keys.push(range.key(class, instance, gate).value());
                    }
                }
            }
        }
        let all = keys.len();
        keys.sort_unstable();
        keys.dedup();
        assert_eq!(keys.len(), all);
    }
}
