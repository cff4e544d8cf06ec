//! Reading a model: the file, and the data that its tensors keep outside of it.

use crate::Error;
use crate::proto::{EXTERNAL, ModelProto, TensorProto, data_type};
use crate::tensor::{Data, Tensor, count};
use prost::Message;
use std::fs;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Component, Path, PathBuf};

/// Bytes of a model file; protobuf itself ends at 2 GiB.
const MAX_FILE: u64 = 1 << 31;

/// A parsed model, and the folder in which its external data may lie.
pub(crate) struct Model {
    pub(crate) proto: ModelProto,
    folder: Option<PathBuf>,
}

impl Model {
    pub(crate) fn read(path: &Path) -> Result<Self, Error> {
        let failed = |source| Error::Read {
            path: path.to_path_buf(),
            source,
        };
        let length = fs::metadata(path).map_err(failed)?.len();
        if length > MAX_FILE {
            return Err(Error::Format(format!(
                "{length} bytes are more than a protobuf message may have: save the weights as \
                 external data"
            )));
        }
        let bytes = fs::read(path).map_err(failed)?;
        let folder = path
            .parent()
            .map(|folder| match folder.as_os_str().is_empty() {
                true => PathBuf::from("."),
                false => folder.to_path_buf(),
            });
        Model::parse(&bytes, folder)
    }

    pub(crate) fn parse(bytes: &[u8], folder: Option<PathBuf>) -> Result<Self, Error> {
        let proto = ModelProto::decode(bytes).map_err(|e| Error::Format(e.to_string()))?;
        if proto.graph.is_none() {
            return Err(Error::Format("it contains no graph".into()));
        }
        Ok(Model { proto, folder })
    }

    /// The constant that a tensor message holds.
    ///
    /// # Errors
    /// In words, without the tensor's name.
    pub(crate) fn tensor(&self, proto: &TensorProto) -> Result<Tensor, String> {
        let dims = proto.dims.iter().map(|&d| usize::try_from(d));
        let dims: Result<Vec<usize>, _> = dims.collect();
        let dims = dims.map_err(|_| format!("dimensions {:?} are negative", proto.dims))?;
        let elements = count(&dims)?;
        let kind = proto.data_type.unwrap_or(data_type::FLOAT);
        let data = if proto.data_location == Some(EXTERNAL) {
            let bytes = self.external(proto, width(kind)?, elements)?;
            decode(kind, &bytes, elements)?
        } else if let Some(raw) = &proto.raw_data {
            decode(kind, raw, elements)?
        } else {
            typed(kind, proto)?
        };
        let tensor = Tensor { dims, data };
        match tensor.len() == elements {
            true => Ok(tensor),
            false => Err(format!(
                "it has {} values for {elements} elements",
                tensor.len()
            )),
        }
    }

    /// Data in a file beside the model.
    fn external(
        &self,
        proto: &TensorProto,
        width: usize,
        elements: usize,
    ) -> Result<Vec<u8>, String> {
        let entry = |key: &str| {
            let mut entries = proto.external_data.iter();
            let found = entries.find(|entry| entry.key.as_deref() == Some(key));
            found.and_then(|entry| entry.value.as_deref())
        };
        let number = |key: &str| match entry(key) {
            None => Ok(None),
            Some(text) => match text.parse::<u64>() {
                Ok(value) => Ok(Some(value)),
                Err(_) => Err(format!("the {key} of its external data is {text:?}")),
            },
        };
        let location = entry("location").ok_or("its external data has no location")?;
        let inside = Path::new(location).components();
        if !{ inside }.all(|part| matches!(part, Component::Normal(_) | Component::CurDir)) {
            return Err(format!(
                "its data lies in {location}, outside the model's folder, which is not read"
            ));
        }
        let folder = self.folder.as_ref().ok_or_else(|| {
            format!("its data lies in {location}, and the model was not read from a folder")
        })?;
        let path = folder.join(location);
        let named = |why: std::io::Error| format!("its data in {}: {why}", path.display());
        // A link could lead outside, too.
        let real = fs::canonicalize(&path).map_err(named)?;
        if !real.starts_with(fs::canonicalize(folder).map_err(named)?) {
            return Err(format!(
                "its data in {} is a link out of the model's folder, which is not followed",
                path.display()
            ));
        }
        let offset = number("offset")?.unwrap_or(0);
        let wanted = (width * elements) as u64;
        if let Some(length) = number("length")?.filter(|&length| length != wanted) {
            return Err(format!(
                "its external data has {length} bytes, and {elements} elements take {wanted}"
            ));
        }
        let mut file = fs::File::open(&real).map_err(named)?;
        let length = file.metadata().map_err(named)?.len();
        let end = offset.checked_add(wanted);
        if end.is_none_or(|end| end > length) {
            return Err(format!(
                "its data needs {wanted} bytes from {offset} of {}, which has {length}",
                path.display()
            ));
        }
        file.seek(SeekFrom::Start(offset)).map_err(named)?;
        let mut bytes = vec![0; wanted as usize];
        file.read_exact(&mut bytes).map_err(named)?;
        Ok(bytes)
    }
}

/// Bytes of an element.
fn width(kind: i32) -> Result<usize, String> {
    Ok(match kind {
        data_type::UINT8 | data_type::INT8 | data_type::BOOL => 1,
        data_type::FLOAT16 | data_type::BFLOAT16 | data_type::UINT16 | data_type::INT16 => 2,
        data_type::FLOAT | data_type::INT32 | data_type::UINT32 => 4,
        data_type::DOUBLE | data_type::INT64 | data_type::UINT64 => 8,
        other => {
            return Err(format!(
                "elements of type {} are not supported",
                data_type::name(other)
            ));
        }
    })
}

fn decode(kind: i32, bytes: &[u8], elements: usize) -> Result<Data, String> {
    let width = width(kind)?;
    if bytes.len() != width * elements {
        return Err(format!(
            "it has {} bytes, and {elements} elements of type {} take {}",
            bytes.len(),
            data_type::name(kind),
            width * elements
        ));
    }
    fn each<const N: usize, T>(bytes: &[u8], read: impl Fn([u8; N]) -> T) -> Vec<T> {
        let chunks = bytes.as_chunks::<N>().0;
        chunks.iter().map(|chunk| read(*chunk)).collect()
    }
    Ok(match kind {
        data_type::FLOAT => Data::Float(each(bytes, f32::from_le_bytes)),
        data_type::DOUBLE => Data::Float(each(bytes, |b| f64::from_le_bytes(b) as f32)),
        data_type::FLOAT16 => Data::Float(each(bytes, |b| half(u16::from_le_bytes(b)))),
        data_type::BFLOAT16 => Data::Float(each(bytes, |b| {
            f32::from_bits(u32::from(u16::from_le_bytes(b)) << 16)
        })),
        data_type::INT64 => Data::Int(each(bytes, i64::from_le_bytes)),
        data_type::UINT64 => Data::Int(each(bytes, |b| {
            i64::try_from(u64::from_le_bytes(b)).unwrap_or(i64::MAX)
        })),
        data_type::INT32 => Data::Int(each(bytes, |b| i32::from_le_bytes(b).into())),
        data_type::UINT32 => Data::Int(each(bytes, |b| u32::from_le_bytes(b).into())),
        data_type::INT16 => Data::Int(each(bytes, |b| i16::from_le_bytes(b).into())),
        data_type::UINT16 => Data::Int(each(bytes, |b| u16::from_le_bytes(b).into())),
        data_type::INT8 => Data::Int(bytes.iter().map(|&b| i64::from(b as i8)).collect()),
        data_type::UINT8 => Data::Int(bytes.iter().map(|&b| i64::from(b)).collect()),
        data_type::BOOL => Data::Bool(bytes.iter().map(|&b| b != 0).collect()),
        other => {
            return Err(format!(
                "elements of type {} are not supported",
                data_type::name(other)
            ));
        }
    })
}

/// Elements in the fields that ONNX has for each type.
fn typed(kind: i32, proto: &TensorProto) -> Result<Data, String> {
    let ints = || proto.int32_data.iter();
    Ok(match kind {
        data_type::FLOAT => Data::Float(proto.float_data.clone()),
        data_type::DOUBLE => Data::Float(proto.double_data.iter().map(|&v| v as f32).collect()),
        data_type::FLOAT16 => Data::Float(ints().map(|&v| half(v as u16)).collect()),
        data_type::BFLOAT16 => {
            let wide = ints().map(|&v| f32::from_bits((v as u32 & 0xffff) << 16));
            Data::Float(wide.collect())
        }
        data_type::INT64 => Data::Int(proto.int64_data.clone()),
        data_type::BOOL => Data::Bool(ints().map(|&v| v != 0).collect()),
        data_type::INT32
        | data_type::INT16
        | data_type::INT8
        | data_type::UINT16
        | data_type::UINT8 => Data::Int(ints().map(|&v| v.into()).collect()),
        other => {
            return Err(format!(
                "elements of type {} are not supported",
                data_type::name(other)
            ));
        }
    })
}

/// Half precision as single.
fn half(bits: u16) -> f32 {
    let sign = if bits >> 15 == 1 { -1.0 } else { 1.0 };
    let (exponent, fraction) = (i32::from(bits >> 10 & 31), f32::from(bits & 1023));
    match exponent {
        0 => sign * fraction * 2f32.powi(-24),
        31 if fraction == 0.0 => sign * f32::INFINITY,
        31 => f32::NAN,
        _ => sign * (1.0 + fraction / 1024.0) * 2f32.powi(exponent - 15),
    }
}

#[cfg(test)]
mod tests {
    use super::half;

    #[test]
    fn half_precision_is_widened() {
        let values = [
            (0x0000, 0.0),
            (0x3c00, 1.0),
            (0xc000, -2.0),
            (0x7bff, 65504.0),
            (0x0001, 5.960_464_5e-8),
            (0x3555, 0.333_251_95),
        ];
        for (bits, value) in values {
            assert_eq!(half(bits), value);
        }
        assert_eq!(half(0xfc00), f32::NEG_INFINITY);
        assert!(half(0x7e00).is_nan());
    }
}
