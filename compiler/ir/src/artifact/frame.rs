//! The frame of the three files: magic, version, length, body, digest.

use super::Error;
use serde::{Serialize, de::DeserializeOwned};

/// The properties by which the three files differ.
pub(super) trait File: Serialize {
    /// The body as it is read, before anything in it is verified; encodes to the same bytes.
    type Body: Serialize + DeserializeOwned;
    const WHAT: &'static str;
    const MAGIC: [u8; 8];
    const VERSION: u32;
    const LIMIT: usize;
}

/// Magic, version and length.
const HEADER: usize = 8 + 4 + 8;
pub(super) const DIGEST: usize = 32;

pub(super) fn encode<F: File>(value: &F) -> Vec<u8> {
    framed::<F>(value)
}

pub(super) fn framed<F: File>(body: &impl Serialize) -> Vec<u8> {
    let body = postcard::to_stdvec(body).expect("writing to memory, all lengths known");
    let mut bytes = Vec::with_capacity(HEADER + body.len() + DIGEST);
    bytes.extend_from_slice(&F::MAGIC);
    bytes.extend_from_slice(&F::VERSION.to_le_bytes());
    bytes.extend_from_slice(&(body.len() as u64).to_le_bytes());
    bytes.extend_from_slice(&body);
    let digest = blake3::hash(&bytes);
    bytes.extend_from_slice(digest.as_bytes());
    bytes
}

pub(super) fn digest<F: File>(value: &F) -> [u8; 32] {
    let bytes = encode(value);
    *bytes
        .last_chunk()
        .expect("the frame ends with 32 bytes of digest")
}

pub(super) fn decode<F: File>(bytes: &[u8]) -> Result<F::Body, Error> {
    let what = F::WHAT;
    if bytes.len() > F::LIMIT {
        return Err(Error::TooLarge {
            what,
            limit: F::LIMIT as u64,
            got: bytes.len() as u64,
        });
    }
    let length = |expected: u64| Error::Length {
        what,
        expected,
        got: bytes.len() as u64,
    };
    let frame = (HEADER + DIGEST) as u64;
    let (header, rest) = bytes
        .split_first_chunk::<HEADER>()
        .ok_or_else(|| length(frame))?;
    let (magic, version, body_length) = split_header(header);
    if magic != F::MAGIC {
        let text = |magic: &[u8]| magic.escape_ascii().to_string();
        return Err(Error::Magic {
            what,
            expected: text(&F::MAGIC),
            found: text(&magic),
        });
    }
    if version != F::VERSION {
        return Err(Error::Version {
            what,
            found: version,
            supported: F::VERSION,
        });
    }
    let expected = body_length.saturating_add(frame);
    if expected != bytes.len() as u64 {
        return Err(length(expected));
    }
    let (body, digest) = rest
        .split_last_chunk::<DIGEST>()
        .ok_or_else(|| length(frame))?;
    if blake3::hash(&bytes[..bytes.len() - DIGEST]) != *digest {
        return Err(Error::Digest { what });
    }
    let malformed = |detail: String| Error::Malformed { what, detail };
    let (value, left) =
        postcard::take_from_bytes::<F::Body>(body).map_err(|e| malformed(e.to_string()))?;
    if !left.is_empty() {
        return Err(malformed(format!("{} bytes left over", left.len())));
    }
    if framed::<F>(&value) != bytes {
        return Err(malformed("not the shortest encoding".into()));
    }
    Ok(value)
}

fn split_header(header: &[u8; HEADER]) -> ([u8; 8], u32, u64) {
    let part = |from: usize, to: usize| &header[from..to];
    (
        part(0, 8).try_into().expect("8 bytes"),
        u32::from_le_bytes(part(8, 12).try_into().expect("4 bytes")),
        u64::from_le_bytes(part(12, 20).try_into().expect("8 bytes")),
    )
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}
