//! Compact forms of long lists inside the files: kinds at two bits, weights at one or two bytes,
//! floats as raw little-endian blobs, and lists with a limit on their length.
//!
//! Each module has the pair of functions that serde's `with` attribute expects. Byte strings are
//! borrowed from the input, so a declared length can never reserve more memory than the file has.

use serde::de::{Error as _, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::fmt;
use std::marker::PhantomData;

/// A byte string that serde treats as one item.
struct Bytes<'a>(&'a [u8]);

impl Serialize for Bytes<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Bytes<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        <&'de [u8]>::deserialize(deserializer).map(Bytes)
    }
}

/// Reads a list of at most `MAX` entries.
pub(crate) fn limited<'de, D, T, const MAX: usize>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de>,
{
    struct Limited<T, const MAX: usize>(PhantomData<T>);

    impl<'de, T: Deserialize<'de>, const MAX: usize> Visitor<'de> for Limited<T, MAX> {
        type Value = Vec<T>;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "a list of at most {MAX} entries")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut entries: A) -> Result<Vec<T>, A::Error> {
            // The capacity grows with entries that were really read, not with the declared length.
            let mut list = Vec::new();
            while let Some(entry) = entries.next_element()? {
                if list.len() == MAX {
                    return Err(A::Error::custom(format_args!(
                        "more than {MAX} entries in a list"
                    )));
                }
                list.push(entry);
            }
            Ok(list)
        }
    }

    deserializer.deserialize_seq(Limited::<T, MAX>(PhantomData))
}

/// A value with at most four cases.
pub(crate) trait TwoBits: Copy {
    /// The case's number, below four.
    fn code(self) -> u8;
    /// The case of a number below four.
    fn from_code(code: u8) -> Option<Self>;
}

/// Kinds of elements, four to a byte, the first in the lowest bits.
pub(crate) mod kinds {
    use super::*;

    #[derive(Serialize, Deserialize)]
    struct Packed<'a> {
        count: u32,
        #[serde(borrow)]
        bytes: Bytes<'a>,
    }

    pub(crate) fn serialize<T: TwoBits, S: Serializer>(
        kinds: &[T],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let pack = |four: &[T]| {
            let place = |byte: u8, (i, kind): (usize, &T)| byte | kind.code() << (2 * i);
            four.iter().enumerate().fold(0, place)
        };
        let bytes: Vec<u8> = kinds.chunks(4).map(pack).collect();
        let count = u32::try_from(kinds.len())
            .map_err(|_| serde::ser::Error::custom("more than 2^32 elements in a layer"))?;
        let packed = Packed {
            count,
            bytes: Bytes(&bytes),
        };
        packed.serialize(serializer)
    }

    pub(crate) fn deserialize<'de, T: TwoBits, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<T>, D::Error> {
        let Packed { count, bytes } = Packed::deserialize(deserializer)?;
        let count = count as usize;
        if bytes.0.len() != count.div_ceil(4) {
            return Err(D::Error::custom(format_args!(
                "{count} kinds need {} bytes, got {}",
                count.div_ceil(4),
                bytes.0.len()
            )));
        }
        if let Some(last) = bytes.0.last()
            && !count.is_multiple_of(4)
            && last >> (2 * (count % 4)) != 0
        {
            return Err(D::Error::custom("unused bits after the last kind"));
        }
        (0..count)
            .map(|i| {
                let code = bytes.0[i / 4] >> (2 * (i % 4)) & 3;
                T::from_code(code)
                    .ok_or_else(|| D::Error::custom(format_args!("no kind has number {code}")))
            })
            .collect()
    }
}

/// Kernels: one byte per weight where all weights of a kernel fit, else two.
pub(crate) mod kernels {
    use super::*;

    struct Kernel(Vec<i16>);

    #[derive(Serialize, Deserialize)]
    struct Packed<'a> {
        bytes_per_weight: u8,
        #[serde(borrow)]
        bytes: Bytes<'a>,
    }

    fn bytes_per_weight(weights: &[i16]) -> u8 {
        if weights.iter().all(|&w| i8::try_from(w).is_ok()) {
            1
        } else {
            2
        }
    }

    fn pack(weights: &[i16]) -> (u8, Vec<u8>) {
        match bytes_per_weight(weights) {
            1 => (1, weights.iter().map(|&w| w as i8 as u8).collect()),
            _ => (2, weights.iter().flat_map(|w| w.to_le_bytes()).collect()),
        }
    }

    impl<'de> Deserialize<'de> for Kernel {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            let packed = Packed::deserialize(deserializer)?;
            let bytes = packed.bytes.0;
            match packed.bytes_per_weight {
                1 => Ok(Kernel(bytes.iter().map(|&b| b as i8 as i16).collect())),
                2 if bytes.len() % 2 == 0 => {
                    let pair = |b: &[u8]| i16::from_le_bytes([b[0], b[1]]);
                    Ok(Kernel(bytes.chunks_exact(2).map(pair).collect()))
                }
                other => Err(D::Error::custom(format_args!(
                    "a kernel of {} bytes at {other} bytes per weight",
                    bytes.len()
                ))),
            }
        }
    }

    pub(crate) fn serialize<S: Serializer>(
        kernels: &[Vec<i16>],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeSeq;
        let mut list = serializer.serialize_seq(Some(kernels.len()))?;
        for kernel in kernels {
            let (bytes_per_weight, bytes) = pack(kernel);
            list.serialize_element(&Packed {
                bytes_per_weight,
                bytes: Bytes(&bytes),
            })?;
        }
        list.end()
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<Vec<i16>>, D::Error> {
        let kernels = limited::<D, Kernel, { crate::limits::TERMS }>(deserializer)?;
        Ok(kernels.into_iter().map(|k| k.0).collect())
    }
}

/// Floats as one little-endian blob.
pub(crate) mod f32s {
    use super::*;

    pub(crate) fn serialize<S: Serializer>(
        values: &[f32],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
        Bytes(&bytes).serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<f32>, D::Error> {
        let bytes = Bytes::deserialize(deserializer)?.0;
        if bytes.len() % 4 != 0 {
            return Err(D::Error::custom(format_args!(
                "{} bytes are not a whole number of floats",
                bytes.len()
            )));
        }
        let float = |b: &[u8]| f32::from_le_bytes([b[0], b[1], b[2], b[3]]);
        Ok(bytes.chunks_exact(4).map(float).collect())
    }
}
