//! Bit strings: values packed without gaps, least significant bit first, zero bits up to the last
//! byte's end.

use crate::Error;

/// Writes a bit string.
pub(crate) struct BitWriter {
    bytes: Vec<u8>,
    pending: u128,
    pending_bits: u32,
}

impl BitWriter {
    /// An empty string with room for this many bytes.
    pub(crate) fn with_capacity(bytes: usize) -> Self {
        Self {
            bytes: Vec::with_capacity(bytes),
            pending: 0,
            pending_bits: 0,
        }
    }

    /// Appends the low `bits <= 64` bits of a value that has no others.
    #[inline(always)]
    pub(crate) fn write(&mut self, value: u64, bits: u32) {
        debug_assert!(bits == 64 || value >> bits == 0);
        self.pending |= (value as u128) << self.pending_bits;
        self.pending_bits += bits;
        if self.pending_bits >= 64 {
            self.bytes
                .extend_from_slice(&(self.pending as u64).to_le_bytes());
            self.pending >>= 64;
            self.pending_bits -= 64;
        }
    }

    /// Appends `64 < bits <= 128` bits.
    #[inline(always)]
    pub(crate) fn write_wide(&mut self, value: u128, bits: u32) {
        self.write(value as u64, 64);
        self.write((value >> 64) as u64, bits - 64);
    }

    /// The bytes.
    pub(crate) fn finish(mut self) -> Vec<u8> {
        let rest = self.pending_bits.div_ceil(8) as usize;
        self.bytes
            .extend_from_slice(&self.pending.to_le_bytes()[..rest]);
        self.bytes
    }
}

/// Reads a bit string whose length was checked.
pub(crate) struct BitReader<'a> {
    bytes: &'a [u8],
    pending: u128,
    pending_bits: u32,
}

impl<'a> BitReader<'a> {
    /// A reader of exactly `bits` bits, or the error that the length or the padding is wrong.
    pub(crate) fn new(what: &'static str, bytes: &'a [u8], bits: usize) -> Result<Self, Error> {
        Error::check_length(what, bits.div_ceil(8), bytes.len())?;
        match bytes.last() {
            Some(last) if !bits.is_multiple_of(8) && last >> (bits % 8) != 0 => {
                Err(Error::OutOfRange { what })
            }
            _ => Ok(Self {
                bytes,
                pending: 0,
                pending_bits: 0,
            }),
        }
    }

    /// The next `bits <= 64` bits; zeros past the end, which the length check of [`BitReader::new`]
    /// keeps from happening.
    #[inline(always)]
    pub(crate) fn read(&mut self, bits: u32) -> u64 {
        if self.pending_bits < bits {
            let word = match self.bytes.split_first_chunk::<8>() {
                Some((chunk, rest)) => {
                    self.bytes = rest;
                    u64::from_le_bytes(*chunk)
                }
                None => {
                    let mut last = [0; 8];
                    last[..self.bytes.len()].copy_from_slice(self.bytes);
                    self.bytes = &[];
                    u64::from_le_bytes(last)
                }
            };
            self.pending |= (word as u128) << self.pending_bits;
            self.pending_bits += 64;
        }
        let value = self.pending as u64 & (u64::MAX >> (64 - bits));
        self.pending >>= bits;
        self.pending_bits -= bits;
        value
    }

    /// The next `64 < bits <= 128` bits.
    #[inline(always)]
    pub(crate) fn read_wide(&mut self, bits: u32) -> u128 {
        self.read(64) as u128 | (self.read(bits - 64) as u128) << 64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let widths = [46, 64, 1, 70, 78, 124, 128, 10, 3, 56];
        let value = |i: usize, bits: u32| {
            (0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835u128 ^ (i as u128)) >> (128 - bits)
        };
        let mut writer = BitWriter::with_capacity(0);
        for (i, &bits) in widths.iter().enumerate() {
            match bits {
                ..=64 => writer.write(value(i, bits) as u64, bits),
                _ => writer.write_wide(value(i, bits), bits),
            }
        }
        let bytes = writer.finish();
        let total = widths.iter().sum::<u32>() as usize;
        assert_eq!(bytes.len(), total.div_ceil(8));
        let mut reader = BitReader::new("test", &bytes, total).unwrap();
        for (i, &bits) in widths.iter().enumerate() {
            let read = if bits <= 64 {
                reader.read(bits) as u128
            } else {
                reader.read_wide(bits)
            };
            assert_eq!(read, value(i, bits), "{i}");
        }
    }

    #[test]
    fn wrong_length_and_dirty_padding_are_refused() {
        assert!(matches!(
            BitReader::new("t", &[0; 3], 16),
            Err(Error::Length {
                expected: 2,
                got: 3,
                ..
            })
        ));
        assert!(matches!(
            BitReader::new("t", &[0; 1], 16),
            Err(Error::Length { .. })
        ));
        assert!(matches!(
            BitReader::new("t", &[0, 0x10], 12),
            Err(Error::OutOfRange { .. })
        ));
        assert!(BitReader::new("t", &[0, 0x0f], 12).is_ok());
    }
}
