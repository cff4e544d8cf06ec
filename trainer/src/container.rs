//! The frame of the binary files: a magic of eight bytes, the length of a JSON header (u64, little
//! endian), the header, and a body that the header describes.

use std::io::{Read, Write};

use anyhow::{Context, Result, ensure};
use flate2::Crc;
use serde::{Deserialize, Serialize};

/// Writes a magic, the length of a header and the header.
pub(crate) fn write_header(
    file: &mut (impl Write + ?Sized),
    magic: &[u8; 8],
    header: &impl Serialize,
) -> std::io::Result<()> {
    let header = serde_json::to_vec(header)?;
    file.write_all(magic)?;
    file.write_all(&(header.len() as u64).to_le_bytes())?;
    file.write_all(&header)
}

/// Reads what [`write_header`] wrote, a header of at most `limit` bytes; also gives the number of
/// bytes that were read, which is where the body begins.
pub(crate) fn read_header<T: for<'a> Deserialize<'a>>(
    file: &mut impl Read,
    magic: &[u8; 8],
    limit: u64,
) -> Result<(T, u64)> {
    let mut start = [0; 16];
    file.read_exact(&mut start)
        .context("it ends before its header")?;
    let name = String::from_utf8_lossy(magic);
    ensure!(&start[..8] == magic, "it does not begin with {name}");
    let length = u64::from_le_bytes(start[8..].try_into().expect("8 of 16 bytes"));
    ensure!(length <= limit, "its header has {length} bytes");
    let mut header = vec![0; length as usize];
    file.read_exact(&mut header)
        .context("it ends in its header")?;
    let header =
        serde_json::from_slice(&header).context("its header is not the JSON of such a file")?;
    Ok((header, 16 + length))
}

/// CRC-32 of these bytes, one part after the other.
pub(crate) fn crc32(parts: &[&[u8]]) -> u32 {
    let mut crc = Crc::new();
    for part in parts {
        crc.update(part);
    }
    crc.sum()
}
