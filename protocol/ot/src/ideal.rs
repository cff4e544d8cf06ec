//! Correlated OT by a trusted dealer: the functionality itself, for tests of the layers above.
//!
//! Both parties hold the dealer's generator, and the receiver even the offset, so this protects
//! nothing. It sends no messages.

use pi_core::{Bits, Block, Delta, Error, Labels, Prg, SEED_BYTES};
use rand_core::CryptoRng;
use zeroize::Zeroizing;

use crate::chou_orlandi::Pad;
use crate::{BASE_OTS, CotReceiver, CotSender};

/// Returns the sender's pairs of pads for the base OTs, and the receiver's choices of them.
pub fn ideal_pads(
    choices: Block,
    rng: &mut (impl CryptoRng + ?Sized),
) -> (Vec<[Pad; 2]>, Vec<Pad>) {
    let mut pad = || std::array::from_fn(|_| rng.next_u64());
    let pairs: Vec<[Pad; 2]> = (0..BASE_OTS).map(|_| [pad(), pad()]).collect();
    let chosen = |(i, pair): (usize, &[Pad; 2])| pair[usize::from(choices.bit(i))];
    let chosen = pairs.iter().enumerate().map(chosen).collect();
    (pairs, chosen)
}

/// Returns the two parties of one bundle.
pub fn ideal_cot(rng: &mut (impl CryptoRng + ?Sized)) -> (IdealSender, IdealReceiver) {
    let delta = Delta::random(rng);
    let mut seed = Zeroizing::new([0; SEED_BYTES]);
    rng.fill_bytes(&mut *seed);
    let blocks = Prg::new(&seed);
    (
        IdealSender {
            delta: delta.clone(),
            blocks: blocks.clone(),
        },
        IdealReceiver { delta, blocks },
    )
}

/// The sender of the ideal functionality.
#[derive(Debug)]
pub struct IdealSender {
    delta: Delta,
    blocks: Prg,
}

/// The receiver of the ideal functionality.
#[derive(Debug)]
pub struct IdealReceiver {
    delta: Delta,
    blocks: Prg,
}

impl CotSender for IdealSender {
    fn delta(&self) -> &Delta {
        &self.delta
    }

    fn correction_bytes(&self, _count: usize) -> usize {
        0
    }

    fn extend(&mut self, count: usize, correction: &[u8]) -> Result<Labels, Error> {
        Error::check_message("ideal OT correction", 0, correction.len())?;
        Ok(self.blocks.blocks(count))
    }
}

impl CotReceiver for IdealReceiver {
    fn correction_bytes(&self, _count: usize) -> usize {
        0
    }

    fn extend(&mut self, choices: &Bits) -> (Labels, Vec<u8>) {
        let mut blocks = self.blocks.blocks(choices.len());
        for (block, choice) in blocks.iter_mut().zip(choices.iter()) {
            *block ^= Block::masked_by(self.delta.block(), choice);
        }
        (blocks, Vec::new())
    }
}
