//! Whether an image file is whole.
//!
//! Some decoders paint what is missing of a file, in grey, black or white, and say nothing: a
//! picture that was cut in the middle would be classified without a word. A file of every format
//! read here says where it ends, with a marker or in a length, and this module looks whether it
//! does. Damage before the end is none of its business: the decoders find what can be found.
//!
//! Sources: ITU-T T.81 (JPEG), the PNG specification (third edition, 5.3), GIF89a (sections 17 to
//! 27), TIFF 6.0 (section 2) with BigTIFF, RFC 9649 (WebP, 2.4), and for BMP the structures
//! `BITMAPFILEHEADER` and `BITMAPINFOHEADER` of Windows.

mod jpeg;

/// Returns whether the bytes are a file of a known format that ends before it says it does.
pub(crate) fn is_cut_short(bytes: &[u8]) -> bool {
    let is_whole = match bytes {
        [0xff, 0xd8, ..] => Some(!jpeg::is_cut_short(bytes)),
        [0x89, b'P', b'N', b'G', ..] => png(bytes),
        [b'G', b'I', b'F', b'8', ..] => gif(bytes),
        [b'B', b'M', ..] => bmp(bytes),
        [b'R', b'I', b'F', b'F', ..] => webp(bytes),
        [b'I', b'I', 42 | 43, 0, ..] | [b'M', b'M', 0, 42 | 43, ..] => Tiff::of(bytes).is_whole(),
        _ => Some(true),
    };
    is_whole != Some(true)
}

// Each of the following returns `None` where the bytes end.

/// Chunks up to the one that ends the file.
fn png(bytes: &[u8]) -> Option<bool> {
    let mut rest = bytes.get(8..)?;
    loop {
        let length = u32::from_be_bytes(*rest.first_chunk()?) as usize;
        let name = rest.get(4..8)?;
        // Length, name and checksum.
        rest = rest.get(length.checked_add(12)?..)?;
        if name == b"IEND" {
            return Some(true);
        }
    }
}

/// Blocks up to the trailer.
fn gif(bytes: &[u8]) -> Option<bool> {
    let table = |packed: u8| match packed & 0x80 {
        0 => 0,
        _ => 3 << ((packed & 7) + 1),
    };
    let mut rest = bytes.get(13 + table(*bytes.get(10)?)..)?;
    loop {
        let (&introducer, behind) = rest.split_first()?;
        rest = match introducer {
            0x3b => return Some(true),
            // An extension: its label, then its blocks.
            0x21 => behind.get(1..)?,
            // A picture: its descriptor, its table of colours and the size of a code.
            0x2c => behind.get(10 + table(*behind.get(8)?)..)?,
            // Damage, which is not for us to find.
            _ => return Some(true),
        };
        loop {
            let (&length, behind) = rest.split_first()?;
            rest = behind.get(usize::from(length)..)?;
            if length == 0 {
                break;
            }
        }
    }
}

/// The rows of pixels, whose place and size follow from the headers. The file's length, which is in
/// them too, is not what it should be in files of many programs.
fn bmp(bytes: &[u8]) -> Option<bool> {
    let short = |at: usize| Some(u16::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    let long = |at: usize| Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?));
    let start = u64::from(long(10)?);
    /// The size of the oldest kind of header.
    const CORE_HEADER: u32 = 12;
    let (width, height, bits, compression, length) = match long(14)? {
        CORE_HEADER => (short(18)?.into(), short(20)?.into(), short(24)?, 0, 0),
        _ => {
            // A negative height stands for rows from top to bottom.
            let height = long(22)?.cast_signed().unsigned_abs();
            (long(18)?, height, short(28)?, long(30)?, long(34)?)
        }
    };
    let length = match compression {
        // None, or none with masks: rows are padded to four bytes.
        0 | 3 | 6 => {
            let row = (u64::from(width) * u64::from(bits)).div_ceil(32) * 4;
            row.checked_mul(height.into())?
        }
        _ => length.into(),
    };
    Some(start + length <= bytes.len() as u64)
}

/// One chunk that has the length of the file.
fn webp(bytes: &[u8]) -> Option<bool> {
    let length = u32::from_le_bytes(*bytes.get(4..)?.first_chunk()?);
    Some(u64::from(length) + 8 <= bytes.len() as u64)
}

/// A TIFF file, of either order of bytes and either size of offsets.
struct Tiff<'a> {
    bytes: &'a [u8],
    little: bool,
    big: bool,
}

impl Tiff<'_> {
    fn of(bytes: &[u8]) -> Tiff<'_> {
        Tiff {
            bytes,
            little: bytes[0] == b'I',
            big: bytes[2] == 43 || bytes[3] == 43,
        }
    }

    /// What the first directory refers to. Later pages are not read here.
    fn is_whole(&self) -> Option<bool> {
        const STRIP_OFFSETS: u64 = 273;
        const STRIP_LENGTHS: u64 = 279;
        const TILE_OFFSETS: u64 = 324;
        const TILE_LENGTHS: u64 = 325;
        let (header, counter, word) = match self.big {
            true => (8, 8, 8),
            false => (4, 2, 4),
        };
        let directory = self.number(header, word)?;
        let count = self.number(directory, counter)?;
        let (mut offsets, mut lengths) = (Vec::new(), Vec::new());
        for entry in 0..count {
            // Tag, type, count, and the values or where they are.
            let at = directory
                .checked_add(counter)?
                .checked_add(entry.checked_mul(4 + 2 * word)?)?;
            let (tag, kind) = (self.number(at, 2)?, self.number(at + 2, 2)?);
            let values = self.number(at + 4, word)?;
            let size = match kind {
                1 | 2 | 6 | 7 => 1,
                3 | 8 => 2,
                5 | 10 | 12 | 16 | 17 | 18 => 8,
                _ => 4,
            };
            let length = values.checked_mul(size)?;
            let place = match length <= word {
                true => at + 4 + word,
                false => self.number(at + 4 + word, word)?,
            };
            if place.checked_add(length)? > self.bytes.len() as u64 {
                return None;
            }
            let list = match tag {
                STRIP_OFFSETS | TILE_OFFSETS => &mut offsets,
                STRIP_LENGTHS | TILE_LENGTHS => &mut lengths,
                _ => continue,
            };
            // A tag stands once; read again and again, long lists would fill the memory.
            if !list.is_empty() {
                continue;
            }
            // The values lie in the file, so their number is bounded by its length.
            for index in 0..values {
                list.push(self.number(place + index * size, size)?);
            }
        }
        let next = directory + counter + count * (4 + 2 * word);
        self.number(next, word)?;
        let ends = offsets.iter().zip(&lengths);
        let mut ends = ends.map(|(offset, length)| offset.saturating_add(*length));
        Some(ends.all(|end| end <= self.bytes.len() as u64))
    }

    fn number(&self, at: u64, size: u64) -> Option<u64> {
        let at = usize::try_from(at).ok()?;
        let bytes = self.bytes.get(at..at.checked_add(size as usize)?)?;
        let add = |number: u64, byte: &u8| number << 8 | u64::from(*byte);
        Some(match self.little {
            true => bytes.iter().rev().fold(0, add),
            false => bytes.iter().fold(0, add),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{DynamicImage, ImageFormat, RgbImage};
    use std::io::Cursor;

    #[test]
    fn whole_files_of_every_format_are_whole_and_none_without_its_end() {
        let picture = RgbImage::from_fn(19, 11, |x, y| image::Rgb([x as u8 * 9, y as u8 * 20, 7]));
        let picture = DynamicImage::from(picture);
        let grey = DynamicImage::from(picture.to_luma8());
        for format in [
            ImageFormat::Bmp,
            ImageFormat::Gif,
            ImageFormat::Jpeg,
            ImageFormat::Png,
            ImageFormat::Tiff,
            ImageFormat::WebP,
        ] {
            // The encoder of GIF files takes no grey.
            let second = if format == ImageFormat::Gif {
                &picture
            } else {
                &grey
            };
            for picture in [&picture, second] {
                let mut bytes = Cursor::new(Vec::new());
                picture.write_to(&mut bytes, format).unwrap();
                let mut bytes = bytes.into_inner();
                assert!(!is_cut_short(&bytes), "{format:?}");
                for end in 4..bytes.len() {
                    assert!(is_cut_short(&bytes[..end]), "{format:?} {end}");
                }
                bytes.extend(b"a trailer");
                assert!(!is_cut_short(&bytes), "{format:?}");
            }
        }
    }

    /// Both orders of bytes and both sizes of offsets; the pixels come behind the directory, in two
    /// strips.
    #[test]
    fn strips_of_tiff_files_are_looked_for() {
        for (little, big) in [(true, false), (false, false), (true, true), (false, true)] {
            let number = |value: u64, size: usize| -> Vec<u8> {
                match little {
                    true => value.to_le_bytes()[..size].to_vec(),
                    false => value.to_be_bytes()[8 - size..].to_vec(),
                }
            };
            let word = if big { 8 } else { 4 };
            let mut bytes = if little { b"II" } else { b"MM" }.to_vec();
            match big {
                true => bytes
                    .extend([number(43, 2), number(8, 2), number(0, 2), number(16, 8)].concat()),
                false => bytes.extend([number(42, 2), number(8, 4)].concat()),
            }
            bytes.extend(number(2, if big { 8 } else { 2 }));
            let values = (bytes.len() + 2 * (4 + 2 * word) + word) as u64;
            let strips = values + 4 * 4;
            // Tags 273 and 279, each two values of four bytes.
            for (tag, at) in [(273, values), (279, values + 8)] {
                let inline = big.then(|| match tag {
                    273 => [number(strips, 4), number(strips + 5, 4)].concat(),
                    _ => [number(5, 4), number(6, 4)].concat(),
                });
                let place = inline.unwrap_or_else(|| number(at, word));
                bytes.extend([number(tag, 2), number(4, 2), number(2, word)].concat());
                bytes.extend(place);
            }
            bytes.extend(number(0, word));
            bytes.extend([number(strips, 4), number(strips + 5, 4)].concat());
            bytes.extend([number(5, 4), number(6, 4)].concat());
            bytes.extend([9; 11]);
            assert!(!is_cut_short(&bytes), "{little} {big}");
            for end in 4..bytes.len() {
                assert!(is_cut_short(&bytes[..end]), "{little} {big} {end}");
            }
        }
    }

    #[test]
    fn any_bytes_are_whole_or_not() {
        let starts: [&[u8]; 7] = [
            b"\xff\xd8",
            b"\x89PNG",
            b"GIF89a",
            b"BM",
            b"RIFF",
            b"II\x2a\0",
            b"MM\0\x2b",
        ];
        let mut state = 1u64;
        for round in 0..20_000 {
            let mut bytes = starts[round % starts.len()].to_vec();
            for _ in 0..round % 97 {
                // Knuth's generator (The Art of Computer Programming, 3.3.4); many bytes are small.
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1);
                let byte = (state >> 56) as u8;
                bytes.push(if state >> 40 & 1 == 0 { byte } else { byte % 4 });
            }
            is_cut_short(&bytes);
        }
    }
}
