//! 128-bit blocks: wire labels, table rows, OT messages; and the free-XOR offset.

use std::fmt;
use std::ops::{BitXor, BitXorAssign};

use bytemuck::{Pod, Zeroable};
use rand_core::CryptoRng;
use subtle::{Choice, ConditionallySelectable, ConstantTimeEq};
use zeroize::{DefaultIsZeroes, Zeroize, ZeroizeOnDrop, Zeroizing};

use crate::{Error, memory};

/// Size of a block on the wire.
pub const BLOCK_BYTES: usize = 16;

/// Wire labels or OT messages, erased when dropped.
pub type Labels = Zeroizing<Vec<Block>>;

/// 128 bits; on the wire 16 bytes, little-endian.
///
/// Most blocks are labels, so `Debug` shows nothing and equality is constant-time only.
#[derive(Clone, Copy, Default)]
#[repr(transparent)]
pub struct Block(u128);

// SAFETY: `Block` is a transparent wrapper of `u128`, for which all of this holds: no padding, no
// invalid bit pattern, all zeros valid.
unsafe impl Zeroable for Block {}
// SAFETY: as above; `Block` is `Copy + 'static` and has no interior mutability.
unsafe impl Pod for Block {}

impl Block {
    /// The block of zeros.
    pub const ZERO: Block = Block(0);

    /// Returns the block holding this integer; bit 0 is the least significant.
    #[inline]
    pub const fn new(value: u128) -> Self {
        Block(value)
    }

    /// Returns a uniform block.
    pub fn random(rng: &mut (impl CryptoRng + ?Sized)) -> Self {
        let mut bytes = [0; BLOCK_BYTES];
        rng.fill_bytes(&mut bytes);
        Block::from_bytes(bytes)
    }

    /// Returns the block with these little-endian bytes.
    #[inline]
    pub const fn from_bytes(bytes: [u8; BLOCK_BYTES]) -> Self {
        Block(u128::from_le_bytes(bytes))
    }

    /// Returns the little-endian bytes.
    #[inline]
    pub const fn to_bytes(self) -> [u8; BLOCK_BYTES] {
        self.0.to_le_bytes()
    }

    /// Returns the block as an integer.
    #[inline]
    pub const fn value(self) -> u128 {
        self.0
    }

    /// Returns the colour of a label: its least significant bit, 0 or 1.
    #[inline]
    pub const fn colour(self) -> u8 {
        (self.0 & 1) as u8
    }

    /// Returns bit `index` (0 to 127) as 0 or 1; the index is public.
    #[inline]
    pub const fn bit(self, index: usize) -> u8 {
        (self.0 >> index & 1) as u8
    }

    /// Returns the block if `bit` is 1 and zero if it is 0, without branching on it.
    #[inline]
    pub const fn masked_by(self, bit: u8) -> Self {
        Block(self.0 & 0u128.wrapping_sub((bit & 1) as u128))
    }

    /// Reads exactly `count` blocks from a peer's message.
    ///
    /// # Errors
    /// [`Error::PeerLength`] if the message is not `16 count` bytes long.
    pub fn decode(what: &'static str, bytes: &[u8], count: usize) -> Result<Labels, Error> {
        Error::check_message(what, count.saturating_mul(BLOCK_BYTES), bytes.len())?;
        let mut blocks = Zeroizing::new(memory::filled(Block::ZERO, count));
        Block::bytes_mut(&mut blocks).copy_from_slice(bytes);
        Ok(blocks)
    }

    /// Returns the bytes of a slice of blocks as they travel.
    #[inline]
    pub fn encode(blocks: &[Block]) -> &[u8] {
        bytemuck::cast_slice(blocks)
    }

    /// Returns the bytes of a slice of blocks, to be overwritten.
    #[inline]
    pub fn bytes_mut(blocks: &mut [Block]) -> &mut [u8] {
        bytemuck::cast_slice_mut(blocks)
    }
}

impl DefaultIsZeroes for Block {}

impl BitXor for Block {
    type Output = Block;
    #[inline]
    fn bitxor(self, other: Block) -> Block {
        Block(self.0 ^ other.0)
    }
}

impl BitXorAssign for Block {
    #[inline]
    fn bitxor_assign(&mut self, other: Block) {
        self.0 ^= other.0;
    }
}

impl ConstantTimeEq for Block {
    fn ct_eq(&self, other: &Block) -> Choice {
        self.0.ct_eq(&other.0)
    }
}

impl ConditionallySelectable for Block {
    fn conditional_select(a: &Block, b: &Block, choice: Choice) -> Block {
        Block(u128::conditional_select(&a.0, &b.0, choice))
    }
}

impl fmt::Debug for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Block(..)")
    }
}

/// A free-XOR offset, equally the correlation of an OT extension: 127 random bits, the lowest bit
/// 1.
///
/// One per bundle and direction. The lowest bit makes the colours of a wire's two labels differ.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Delta(Block);

impl Delta {
    /// Returns a random offset.
    pub fn random(rng: &mut (impl CryptoRng + ?Sized)) -> Self {
        Delta::from_block(Block::random(rng))
    }

    /// Returns the offset with these bits, the lowest one forced to 1.
    pub fn from_block(block: Block) -> Self {
        Delta(Block(block.0 | 1))
    }

    /// Returns the offset as a block.
    #[inline]
    pub fn block(&self) -> Block {
        self.0
    }
}

impl fmt::Debug for Delta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Delta(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_shows_no_content() {
        assert_eq!(format!("{:?}", Block::new(0x1234)), "Block(..)");
        assert_eq!(
            format!("{:?}", Delta::from_block(Block::new(0x1234))),
            "Delta(..)"
        );
    }

    #[test]
    fn delta_has_its_lowest_bit_set() {
        assert_eq!(Delta::from_block(Block::ZERO).block().value(), 1);
        assert_eq!(Delta::from_block(Block::new(6)).block().value(), 7);
    }

    #[test]
    fn decode_wants_the_exact_length() {
        let blocks = [Block::new(1), Block::new(u128::MAX - 1)];
        let bytes = Block::encode(&blocks);
        assert_eq!(
            Block::decode("labels", bytes, 2).unwrap()[1].value(),
            u128::MAX - 1
        );
        for wrong in [&bytes[..31], &bytes[..16], &[]] {
            let error = Block::decode("labels", wrong, 2).unwrap_err();
            assert!(error.blames_peer());
            assert_eq!(
                error.to_string(),
                format!("labels: expected 32 bytes, got {}", wrong.len())
            );
        }
    }
}
