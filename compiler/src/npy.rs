//! Arrays of single precision in the `.npy` format, version 1.0 (NumPy Enhancement Proposal 1).

use anyhow::{Context, Result, bail, ensure};
use std::fs;
use std::path::Path;

const MAGIC: &[u8] = b"\x93NUMPY\x01\x00";
/// Bytes of an array: the largest tensor of a network, and its header.
const MAX_FILE: u64 = 4 * pi_ir::limits::ELEMENTS as u64 + (1 << 16);

/// Dimensions and elements of an array, row-major.
///
/// # Errors
/// If the file cannot be read, or is no such array of type `float32` in C order.
pub fn read(path: &Path) -> Result<(Vec<usize>, Vec<f32>)> {
    let named = || format!("cannot read {}", path.display());
    let length = fs::metadata(path).with_context(named)?.len();
    ensure!(
        length <= MAX_FILE,
        "{}: {length} bytes are more than an input may have ({MAX_FILE})",
        path.display()
    );
    let bytes = fs::read(path).with_context(named)?;
    parse(&bytes).with_context(|| path.display().to_string())
}

fn parse(bytes: &[u8]) -> Result<(Vec<usize>, Vec<f32>)> {
    let rest = bytes.strip_prefix(MAGIC);
    let rest = rest.context("this is no .npy file of version 1.0: save it with numpy.save")?;
    let (length, rest) = rest.split_first_chunk().context("it is cut short")?;
    let length = usize::from(u16::from_le_bytes(*length));
    let (header, data) = rest.split_at_checked(length).context("it is cut short")?;
    let header = String::from_utf8_lossy(header);
    ensure!(
        header.contains("'descr': '<f4'") && header.contains("'fortran_order': False"),
        "its elements are not float32 in C order ({}): save it as \
         numpy.ascontiguousarray(x, numpy.float32)",
        header.trim()
    );
    let shape = header
        .split_once('(')
        .and_then(|(_, rest)| rest.split_once(')'));
    let (shape, _) = shape.context("its header has no shape")?;
    let sides = shape
        .split(',')
        .map(str::trim)
        .filter(|side| !side.is_empty());
    let dims: Vec<usize> = sides
        .map(|side| {
            side.parse()
                .with_context(|| format!("its shape is ({shape})"))
        })
        .collect::<Result<_>>()?;
    let elements = dims.iter().try_fold(4usize, |n, &side| n.checked_mul(side));
    if elements != Some(data.len()) {
        bail!(
            "its data has {} bytes, and ({shape}) float32 others",
            data.len()
        );
    }
    let values = data.as_chunks().0.iter();
    Ok((dims, values.map(|&v| f32::from_le_bytes(v)).collect()))
}

/// The bytes of a file with an array, whose elements are row-major.
pub fn bytes(dims: &[usize], values: &[f32]) -> Vec<u8> {
    let sides = match dims {
        [side] => format!("{side},"),
        sides => sides
            .iter()
            .map(usize::to_string)
            .collect::<Vec<_>>()
            .join(", "),
    };
    let header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': ({sides}), }}");
    // Data begins at a multiple of 64 bytes, behind a line feed.
    let whole = (MAGIC.len() + 2 + header.len() + 1).next_multiple_of(64);
    let length = whole - MAGIC.len() - 2;
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&(length as u16).to_le_bytes());
    bytes.extend_from_slice(header.as_bytes());
    bytes.resize(whole - 1, b' ');
    bytes.push(b'\n');
    bytes.extend(values.iter().flat_map(|v| v.to_le_bytes()));
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arrays_come_back() {
        for dims in [&[][..], &[3], &[1, 2, 3, 4], &[0, 7]] {
            let count = dims.iter().product::<usize>();
            let values: Vec<f32> = (0..count).map(|i| i as f32 / 3.0).collect();
            let bytes = bytes(dims, &values);
            assert_eq!((bytes.len() - 4 * count) % 64, 0);
            assert_eq!(parse(&bytes).unwrap(), (dims.to_vec(), values));
        }
    }

    #[test]
    fn what_numpy_writes_is_read() {
        // numpy.save of float32 [[1, -2]], byte for byte.
        let mut file = b"\x93NUMPY\x01\x00\x76\x00".to_vec();
        file.extend_from_slice(b"{'descr': '<f4', 'fortran_order': False, 'shape': (1, 2), }");
        file.resize(127, b' ');
        file.extend_from_slice(b"\n\x00\x00\x80\x3f\x00\x00\x00\xc0");
        assert_eq!(parse(&file).unwrap(), (vec![1, 2], vec![1.0, -2.0]));
        assert_eq!(bytes(&[1, 2], &[1.0, -2.0])[..], file);
    }

    #[test]
    fn other_files_are_refused() {
        let valid = bytes(&[2], &[1.0, 2.0]);
        for cut in [0, 7, 9, 40, valid.len() - 1] {
            assert!(parse(&valid[..cut]).is_err(), "{cut}");
        }
        let text = |from: &str, to: &str| {
            let at = valid
                .windows(from.len())
                .position(|w| w == from.as_bytes())
                .unwrap();
            let mut other = valid.clone();
            other[at..at + to.len()].copy_from_slice(to.as_bytes());
            parse(&other).unwrap_err().to_string()
        };
        assert!(text("'<f4'", "'<f8'").contains("not float32"));
        assert!(text("(2,)", "(-2)").contains("(-2)"));
        assert!(text("(2,)", "(19)").contains("8 bytes"));
    }
}
