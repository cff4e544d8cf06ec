//! Contents as the object store sees them: encrypted and authenticated with an operator's key.
//!
//! # Form
//! A sealed object is a header (version, name of the operator's key, random salt of 32 bytes) and
//! the content in chunks of [`CHUNK`] bytes, the last one shorter and possibly empty, each followed
//! by its tag. This is the STREAM construction of Hoang, Reyhanitabar, Rogaway and Vizár (Online
//! Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance, CRYPTO 2015) over AES-256-GCM:
//! the nonce of a chunk is its index and whether it is the last.
//!
//! # Why this is secure
//! - The key of an object is derived by BLAKE3 from the operator's key and the object's header. The
//!   salt is fresh, so no two objects share a key (but with probability 2^-128 for 2^64 objects),
//!   and no nonce is used twice with one key: an index occurs once in an object, and an object is
//!   written once. BLAKE3's key derivation is a PRF, so the object keys are independent, and tell
//!   nothing of the operator's key.
//! - A changed bit of the header gives another key; a changed bit of a chunk fails its tag. Chunks
//!   that are reordered, repeated or left out have the wrong index; a content that is cut short
//!   ends in a chunk that is not marked as the last, one that is longer goes on after it.
//! - What an object belongs to ([`Place`]: kind, client, bundle or setup, and its random name in
//!   the object store) is associated data of every chunk, the model that of the last one, since it
//!   is known only when the content ends. So an object that is moved to another's name, an older
//!   one included, is refused. [`Opening`] is to check the last chunk before it gives out the
//!   first, so that nothing of a content with the wrong model or length is used.
//! - The object store learns lengths, times and which objects are read, and can withhold or delete:
//!   that costs bundles and reveals nothing. It does not see of which model or client an object
//!   is.
//! - GCM does not commit to its key; nobody but operators chooses keys here, and a header names the
//!   one key to use, so no content is tried with several.
//!
//! A bundle that is spent is deleted, and in a folder not overwritten first: what may be left of it
//! on a disk, in a version or in a backup is readable with the operator's key alone. That key must
//! not lie where the objects do.

use super::super::StoreError;
use crate::fingerprint::{Fingerprint, hex};
use aws_lc_rs::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use std::path::Path;
use zeroize::Zeroizing;

/// Bytes of content in a chunk, but the last.
pub(super) const CHUNK: usize = 64 << 10;
/// Bytes of a tag.
pub(super) const TAG: usize = 16;
/// Bytes before the first chunk.
pub(super) const HEADER: usize = 1 + KEY_NAME + 32;
const KEY_NAME: usize = 8;
const VERSION: u8 = 1;

/// Bytes of the sealed form of a content of so many.
pub(super) fn sealed_length(length: u64) -> u64 {
    HEADER as u64 + length + TAG as u64 * (full_chunks(length) + 1)
}

/// Chunks before the last.
pub(super) fn full_chunks(length: u64) -> u64 {
    length / CHUNK as u64
}

/// Where the sealed form of a chunk begins.
pub(super) fn chunk_start(index: u64) -> u64 {
    HEADER as u64 + index * (CHUNK + TAG) as u64
}

/// What an object belongs to.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub(super) kind: Kind,
    pub(super) client: Fingerprint,
    /// Name of the bundle, or identity of the setup.
    pub(super) id: &'a [u8; 32],
    /// Name in the object store.
    pub(super) object: &'a str,
}

/// What a content is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Bundle = 1,
    Setup = 2,
}

/// The operator's keys: the first seals, all open.
pub(super) struct Keys(Vec<Key>);

struct Key {
    name: [u8; KEY_NAME],
    secret: Zeroizing<[u8; 32]>,
}

impl Keys {
    /// Reads a file with one key of 64 hexadecimal digits in each line; `#` starts a comment.
    ///
    /// # Errors
    /// [`StoreError::Key`] if it can be read by others, or holds no key.
    pub(super) fn read(path: &Path) -> Result<Keys, StoreError> {
        let fault = |reason: String| StoreError::Key {
            path: path.to_owned(),
            reason,
        };
        let failed = |e: std::io::Error| fault(e.to_string());
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt;
            let mode = std::fs::metadata(path)
                .map_err(failed)?
                .permissions()
                .mode()
                & 0o777;
            if mode & 0o077 != 0 {
                return Err(fault(format!(
                    "others can read it (mode {mode:04o}); make it 0600"
                )));
            }
        }
        let text = Zeroizing::new(std::fs::read(path).map_err(failed)?);
        let text = std::str::from_utf8(&text).map_err(|_| fault("it is no text".into()))?;
        let mut keys = Vec::new();
        for (number, line) in (1..).zip(text.lines()) {
            let digits = line.split('#').next().unwrap_or_default().trim();
            if !digits.is_empty() {
                let key = Key::parse(digits);
                keys.push(
                    key.ok_or_else(|| {
                        fault(format!("line {number} is not 64 hexadecimal digits"))
                    })?,
                );
            }
        }
        match keys.is_empty() {
            true => Err(fault("it holds no key".into())),
            false => Ok(Keys(keys)),
        }
    }

    /// Begins to seal a content: the header to write first, and what seals its chunks.
    pub(super) fn seal(&self, salt: [u8; 32]) -> ([u8; HEADER], ChunkKey) {
        let key = &self.0[0];
        let mut header = [VERSION; HEADER];
        header[1..1 + KEY_NAME].copy_from_slice(&key.name);
        header[1 + KEY_NAME..].copy_from_slice(&salt);
        (header, key.derive(&header))
    }

    /// What opens the chunks after this header, or why none does.
    pub(super) fn open(&self, header: &[u8]) -> Result<ChunkKey, String> {
        if header.len() != HEADER || header[0] != VERSION {
            return Err("it is no sealed content of this version".into());
        }
        let name = &header[1..1 + KEY_NAME];
        let key = self.0.iter().find(|key| key.name == *name);
        let key = key.ok_or_else(|| format!("its key {} is not in the key file", hex(name)))?;
        Ok(key.derive(header))
    }
}

impl Key {
    fn parse(digits: &str) -> Option<Key> {
        let digits = digits.as_bytes();
        let value = |digit: u8| char::from(digit).to_digit(16);
        let mut secret = Zeroizing::new([0; 32]);
        if digits.len() != 64 {
            return None;
        }
        for (byte, pair) in secret.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = (value(pair[0])? << 4 | value(pair[1])?) as u8;
        }
        let name = Zeroizing::new(blake3::derive_key(NAME_CONTEXT, &*secret));
        let name = name[..KEY_NAME].try_into().expect("a digest is longer");
        Some(Key { name, secret })
    }

    fn derive(&self, header: &[u8]) -> ChunkKey {
        let mut material = Zeroizing::new([0; 32 + HEADER]);
        material[..32].copy_from_slice(&*self.secret);
        material[32..].copy_from_slice(header);
        let key = Zeroizing::new(blake3::derive_key(OBJECT_CONTEXT, &*material));
        let key = UnboundKey::new(&AES_256_GCM, &*key).expect("the key has 32 bytes");
        ChunkKey(LessSafeKey::new(key))
    }
}

const NAME_CONTEXT: &str = "Pianissimo 2026-12-01 name of a key of a shared store";
const OBJECT_CONTEXT: &str = "Pianissimo 2026-12-01 object of a shared store, from key and header";

/// The key of one object.
pub(super) struct ChunkKey(LessSafeKey);

/// Which chunk of its object it is.
#[derive(Clone, Copy)]
pub(super) enum Position<'a> {
    Middle(u64),
    /// The last, with the model to which the content is bound.
    Last(u64, &'a [u8; 32]),
}

impl ChunkKey {
    /// Seals a chunk: appends its encrypted form and tag to `out`.
    pub(super) fn seal(
        &self,
        place: &Place<'_>,
        at: Position<'_>,
        chunk: &[u8],
        out: &mut Vec<u8>,
    ) {
        // In place, in memory that does not move: no copy of the chunk stays behind.
        out.reserve(chunk.len() + TAG);
        let start = out.len();
        out.extend_from_slice(chunk);
        let (nonce, aad) = (nonce(at), associated(place, at));
        let tag = self
            .0
            .seal_in_place_separate_tag(nonce, aad, &mut out[start..]);
        let tag = tag.expect("a chunk is shorter than the limit of GCM");
        out.extend_from_slice(tag.as_ref());
    }

    /// Opens the sealed form of a chunk in place; `None` if it is not what was sealed.
    pub(super) fn open<'b>(
        &self,
        place: &Place<'_>,
        at: Position<'_>,
        sealed: &'b mut [u8],
    ) -> Option<&'b mut [u8]> {
        let opened = self
            .0
            .open_in_place(nonce(at), associated(place, at), sealed);
        opened.ok()
    }
}

fn nonce(at: Position<'_>) -> Nonce {
    let (index, last) = match at {
        Position::Middle(index) => (index, 0),
        Position::Last(index, _) => (index, 1),
    };
    let mut nonce = [0; 12];
    nonce[..8].copy_from_slice(&index.to_be_bytes());
    nonce[11] = last;
    Nonce::assume_unique_for_key(nonce)
}

fn associated(place: &Place<'_>, at: Position<'_>) -> Aad<Vec<u8>> {
    let model = match at {
        Position::Middle(_) => &[][..],
        Position::Last(_, model) => model,
    };
    // All parts but the last two have a fixed length, and whether there is a model is in the
    // nonce.
    let kind = [place.kind as u8];
    let parts = [
        &kind[..],
        &place.client.0,
        place.id,
        model,
        place.object.as_bytes(),
    ];
    Aad::from(parts.concat())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODEL: [u8; 32] = [7; 32];
    const PLACE: Place<'_> = Place {
        kind: Kind::Bundle,
        client: Fingerprint([1; 32]),
        id: &[2; 32],
        object: "bundles/a",
    };

    fn keys(digit: &str) -> Keys {
        Keys(vec![Key::parse(&digit.repeat(64)).unwrap()])
    }

    /// Seals two chunks under a salt.
    fn sealed(keys: &Keys, salt: u8) -> (ChunkKey, Vec<u8>, Vec<u8>) {
        let (header, key) = keys.seal([salt; 32]);
        let (mut first, mut last) = (Vec::new(), Vec::new());
        key.seal(&PLACE, Position::Middle(0), b"first", &mut first);
        key.seal(&PLACE, Position::Last(1, &MODEL), b"last", &mut last);
        (keys.open(&header).unwrap(), first, last)
    }

    #[test]
    fn chunks_open_where_they_were_sealed_and_nowhere_else() {
        let keys = keys("a");
        let (key, first, last) = sealed(&keys, 1);
        let open = |place: &Place<'_>, at, sealed: &[u8]| {
            let mut sealed = sealed.to_vec();
            key.open(place, at, &mut sealed).map(|chunk| chunk.to_vec())
        };
        let end = Position::Last(1, &MODEL);
        assert_eq!(open(&PLACE, Position::Middle(0), &first).unwrap(), b"first");
        assert_eq!(open(&PLACE, end, &last).unwrap(), b"last");
        let places = [
            Place {
                kind: Kind::Setup,
                ..PLACE
            },
            Place {
                client: Fingerprint([9; 32]),
                ..PLACE
            },
            Place {
                id: &[9; 32],
                ..PLACE
            },
            Place {
                object: "bundles/b",
                ..PLACE
            },
        ];
        for place in places {
            assert!(open(&place, Position::Middle(0), &first).is_none());
            assert!(open(&place, end, &last).is_none());
        }
        // Reordered, cut short, continued, for another model.
        assert!(open(&PLACE, Position::Middle(1), &first).is_none());
        assert!(open(&PLACE, Position::Last(0, &MODEL), &first).is_none());
        assert!(open(&PLACE, Position::Middle(1), &last).is_none());
        assert!(open(&PLACE, Position::Last(1, &[8; 32]), &last).is_none());
        for bit in 0..8 * last.len() {
            let mut changed = last.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(open(&PLACE, end, &changed).is_none());
        }
        // Another salt, another key.
        let (other, ..) = sealed(&keys, 2);
        assert!(other.open(&PLACE, end, &mut last.clone()).is_none());
    }

    #[test]
    fn a_header_names_its_key() {
        let (a, b) = (keys("a"), keys("b"));
        let (header, _) = a.seal([1; 32]);
        assert!(b.open(&header).is_err());
        assert!(a.open(&header[1..]).is_err());
        let mut other = header;
        other[0] = 2;
        assert!(a.open(&other).is_err());
        let both = Keys(b.0.into_iter().chain(a.0).collect());
        assert!(both.open(&header).is_ok());
    }

    #[test]
    #[cfg(unix)]
    fn a_key_file_is_for_its_owner_alone_and_holds_keys() {
        use std::os::unix::fs::PermissionsExt;
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("keys");
        let read = |text: &str, mode| {
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, PermissionsExt::from_mode(mode)).unwrap();
            Keys::read(&path).map(|keys| keys.0.len())
        };
        let key = "0123456789abcdefABCDEF".repeat(3)[..64].to_owned();
        let two = format!("# of May\n{key}\n\n  {} # of April\n", "f".repeat(64));
        assert_eq!(read(&two, 0o600).unwrap(), 2);
        assert_eq!(read(&key, 0o400).unwrap(), 1);
        for (text, mode) in [
            (&*key, 0o640),
            (&*key, 0o604),
            ("", 0o600),
            ("# none\n", 0o600),
            (&key[1..], 0o600),
            (&key.replace('0', "g"), 0o600),
        ] {
            let error = read(text, mode).unwrap_err();
            assert!(matches!(error, StoreError::Key { .. }), "{error}");
            assert!(!error.to_string().contains(&key[1..]), "{error}");
        }
    }
}
