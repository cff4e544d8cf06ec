//! Packed secret bits: choice bits, colours, corrections.

use std::fmt;

use rand_core::CryptoRng;
use zeroize::{Zeroize, ZeroizeOnDrop};

use crate::Error;

/// A sequence of bits, eight to a byte, lowest first; erased when dropped.
#[derive(Clone, Default, Zeroize, ZeroizeOnDrop)]
pub struct Bits {
    bytes: Vec<u8>,
    len: usize,
}

impl Bits {
    /// Returns an empty sequence with room for `len` bits.
    #[inline]
    fn with_capacity(len: usize) -> Self {
        Bits {
            bytes: Vec::with_capacity(len.div_ceil(8)),
            len: 0,
        }
    }

    /// Returns `len` uniform bits.
    pub fn random(len: usize, rng: &mut (impl CryptoRng + ?Sized)) -> Self {
        let mut bytes = vec![0; len.div_ceil(8)];
        rng.fill_bytes(&mut bytes);
        let mut bits = Bits { bytes, len };
        bits.clear_padding();
        bits
    }

    /// Returns the low `width` bits of every value, value after value, lowest bit first.
    ///
    /// This is the layout `[instance][bit]` of the client's inputs to the sign circuit.
    ///
    /// # Panics
    /// If `width` exceeds 64.
    pub fn of_values(values: &[u64], width: u32) -> Self {
        assert!(width <= 64, "a u64 has no {width} bits");
        let len = values.len() * width as usize;
        let mut bytes = Vec::with_capacity(len.div_ceil(8));
        let mask = u64::MAX.checked_shr(64 - width).unwrap_or(0);
        // Fewer than 8 bits wait for their byte, and 64 more still fit.
        let (mut waiting, mut count) = (0u128, 0);
        for &value in values {
            waiting |= u128::from(value & mask) << count;
            count += width;
            while count >= 8 {
                bytes.push(waiting as u8);
                waiting >>= 8;
                count -= 8;
            }
        }
        if count > 0 {
            bytes.push(waiting as u8);
        }
        waiting.zeroize();
        Bits { bytes, len }
    }

    /// Reads exactly `len` bits from a peer's message.
    ///
    /// # Errors
    /// [`Error::PeerLength`] unless there are `len / 8` bytes, rounded up; [`Error::PeerValue`] if
    /// a bit behind the last one is set.
    pub fn decode(what: &'static str, bytes: &[u8], len: usize) -> Result<Self, Error> {
        Error::check_message(what, Bits::encoded_bytes(len), bytes.len())?;
        let bits = Bits {
            bytes: bytes.to_vec(),
            len,
        };
        match bytes.last() {
            Some(last) if !len.is_multiple_of(8) && last >> (len % 8) != 0 => {
                Err(Error::PeerValue { what, index: len })
            }
            _ => Ok(bits),
        }
    }

    /// Returns the number of bytes `len` bits take on the wire: `ceil(len / 8)`.
    pub const fn encoded_bytes(len: usize) -> usize {
        len.div_ceil(8)
    }

    /// Returns the packed bytes; bits behind the last one are zero.
    #[inline]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Returns the number of bits.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns true if there are no bits.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns bit `index` as 0 or 1; the index is public.
    ///
    /// # Panics
    /// If `index` is not below the length.
    #[inline]
    pub fn bit(&self, index: usize) -> u8 {
        assert!(index < self.len, "bit {index} of {}", self.len);
        self.bytes[index / 8] >> (index % 8) & 1
    }

    /// Appends the lowest bit of `bit`.
    #[inline]
    pub fn push(&mut self, bit: u8) {
        if self.len.is_multiple_of(8) {
            self.bytes.push(0);
        }
        let last = self.bytes.len() - 1;
        self.bytes[last] |= (bit & 1) << (self.len % 8);
        self.len += 1;
    }

    /// Returns the bits, one by one, as 0 or 1.
    #[inline]
    pub fn iter(&self) -> impl ExactSizeIterator<Item = u8> + '_ {
        (0..self.len).map(|i| self.bit(i))
    }

    /// Returns the sum modulo 2 of two sequences.
    ///
    /// # Errors
    /// [`Error::CallerLength`] if the lengths differ.
    pub fn xor(&self, other: &Bits) -> Result<Bits, Error> {
        Error::check_argument("bits to add", self.len, other.len)?;
        let bytes = self
            .bytes
            .iter()
            .zip(&other.bytes)
            .map(|(a, b)| a ^ b)
            .collect();
        Ok(Bits {
            bytes,
            len: self.len,
        })
    }

    fn clear_padding(&mut self) {
        if !self.len.is_multiple_of(8)
            && let Some(last) = self.bytes.last_mut()
        {
            *last &= (1 << (self.len % 8)) - 1;
        }
    }
}

impl FromIterator<u8> for Bits {
    fn from_iter<T: IntoIterator<Item = u8>>(items: T) -> Self {
        let items = items.into_iter();
        let mut bits = Bits::with_capacity(items.size_hint().0);
        items.for_each(|bit| bits.push(bit));
        bits
    }
}

impl fmt::Debug for Bits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Bits({})", self.len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::ChaCha20Rng;
    use rand_core::{RngCore, SeedableRng};

    #[test]
    fn values_are_laid_out_instance_by_instance_lowest_bit_first() {
        let bits = Bits::of_values(&[0b101, 0b1010], 3);
        assert_eq!(bits.iter().collect::<Vec<_>>(), [1, 0, 1, 0, 1, 0]);
        assert_eq!(bits.as_bytes(), [0b010101]);
    }

    #[test]
    fn values_of_every_width_equal_their_bits_one_by_one() {
        let mut rng = ChaCha20Rng::seed_from_u64(2);
        let values: Vec<u64> = (0..19).map(|_| rng.next_u64()).collect();
        for width in (0..=64).step_by(if cfg!(miri) { 32 } else { 1 }) {
            let bits = values
                .iter()
                .flat_map(|v| (0..width).map(move |i| (v >> i) as u8));
            let expected: Bits = bits.collect();
            let found = Bits::of_values(&values, width);
            assert_eq!(found.len(), expected.len());
            assert_eq!(found.as_bytes(), expected.as_bytes(), "{width} bits");
        }
    }

    #[test]
    fn decode_inverts_encode_and_refuses_padding() {
        let mut rng = ChaCha20Rng::seed_from_u64(1);
        for len in [0, 1, 7, 8, 9, 64, 100] {
            let bits = Bits::random(len, &mut rng);
            let back = Bits::decode("bits", bits.as_bytes(), len).unwrap();
            assert_eq!(
                back.iter().collect::<Vec<_>>(),
                bits.iter().collect::<Vec<_>>()
            );
            let again: Bits = bits.iter().collect();
            assert_eq!(again.as_bytes(), bits.as_bytes());
        }
        assert!(Bits::decode("bits", &[8], 3).unwrap_err().blames_peer());
        assert!(Bits::decode("bits", &[8, 0], 8).unwrap_err().blames_peer());
        assert!(Bits::decode("bits", &[8], 4).is_ok());
    }
}
