//! NumPy's file format, versions 1.0 to 3.0 (NEP 1, and `numpy.lib.format`): eight bytes of magic
//! and version, the length of a header, a header that is the literal of a Python dictionary, and
//! the elements.

use super::Error;
use crate::shape::Shape;

const MAGIC: &[u8; 6] = b"\x93NUMPY";
/// Most bytes of a header; NumPy itself reads no more than 10,000.
const HEADER: usize = 10_000;
/// Most axes of an array.
const AXES: usize = 16;

/// An array of numbers, as a file has it.
#[derive(Clone, Debug, PartialEq)]
pub struct Array {
    dims: Vec<usize>,
    element: Element,
    /// Whether the first axis is the one whose elements are adjacent.
    column_major: bool,
    /// The file.
    bytes: Vec<u8>,
    /// Where the elements begin in it.
    start: usize,
}

/// Type of an element, little-endian, by the number of its bytes.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Element {
    Bool,
    Unsigned(usize),
    Signed(usize),
    Float(usize),
}

impl Array {
    /// The array in a file.
    ///
    /// # Errors
    /// If the bytes are no NumPy file, hold elements that are not numbers, or are more or fewer
    /// than the header says.
    pub fn parse(bytes: Vec<u8>) -> Result<Self, Error> {
        let malformed = |what: &str| Error::Format(format!("this is no NumPy array: {what}"));
        let (header, start) = header(&bytes).map_err(|why| malformed(&why))?;
        let header = Header::parse(header).map_err(|why| malformed(&why))?;
        let element = Element::parse(&header.descr)?;
        let size = (header.shape.iter().copied())
            .try_fold(element.size(), usize::checked_mul)
            .ok_or_else(|| malformed("its shape has more elements than memory"))?;
        let got = bytes.len() - start;
        if size != got {
            return Err(malformed(&format!(
                "its shape takes {size} bytes of elements and the file has {got}: it is cut short \
                 or damaged; save it again"
            )));
        }
        Ok(Array {
            dims: header.shape,
            element,
            column_major: header.fortran_order,
            bytes,
            start,
        })
    }

    /// The file of a row-major array, as `numpy.save` writes it. `elements` are little-endian, of
    /// the type that NumPy calls `descr`.
    pub fn file(descr: &str, dims: &[usize], elements: &[u8]) -> Vec<u8> {
        let sides: Vec<String> = dims.iter().map(usize::to_string).collect();
        let comma = if sides.len() == 1 { "," } else { "" };
        let shape = format!("({}{comma})", sides.join(", "));
        let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
        // The elements begin at a multiple of 64 bytes, behind spaces and the end of a line.
        let before = MAGIC.len() + 4;
        let length = (before + header.len() + 1).next_multiple_of(64) - before;
        let mut bytes = [MAGIC, &[1, 0][..], &(length as u16).to_le_bytes()].concat();
        bytes.extend_from_slice(format!("{header:<padded$}\n", padded = length - 1).as_bytes());
        bytes.extend_from_slice(elements);
        bytes
    }

    /// All elements, row-major.
    pub fn elements(&self) -> Vec<f64> {
        self.example(1, 0)
    }

    /// Number of examples of this shape: one if the array is an example, else the first axis.
    /// Sides of 1 may be left out or added.
    pub(super) fn count(&self, shape: Shape) -> Result<usize, Error> {
        let sides = |dims: &[usize]| -> Vec<usize> {
            dims.iter().copied().filter(|&side| side != 1).collect()
        };
        let own = sides(&[shape.c, shape.h, shape.w].map(|side| side as usize));
        if sides(&self.dims) == own {
            return Ok(1);
        }
        let Some((&count, rest)) = self.dims.split_first() else {
            return Err(self.misfit(shape, ""));
        };
        let found = sides(rest);
        if found == own {
            return match count {
                0 => Err(self.misfit(shape, ": there is no example in it")),
                count => Ok(count),
            };
        }
        let sorted = |mut sides: Vec<usize>| {
            sides.sort_unstable();
            sides
        };
        let own = sorted(own);
        let turned = sorted(found) == own || sorted(sides(&self.dims)) == own;
        Err(self.misfit(
            shape,
            match turned {
                true => ": its axes are in another order, so transpose it (channels come first)",
                false => "",
            },
        ))
    }

    fn misfit(&self, expected: Shape, hint: &'static str) -> Error {
        Error::Shape {
            found: format!("the array has the shape {:?}", self.dims),
            expected,
            hint,
        }
    }

    /// Example `index` of `count`, row-major.
    pub(super) fn example(&self, count: usize, index: usize) -> Vec<f64> {
        let total: usize = self.dims.iter().product();
        let length = total / count;
        let first = index * length;
        (first..first + length)
            .map(|position| self.value(self.place(position)))
            .collect()
    }

    /// Where the element at this row-major position stands in the file.
    fn place(&self, mut position: usize) -> usize {
        if !self.column_major {
            return position;
        }
        let mut stride: usize = self.dims.iter().product();
        let mut place = 0;
        for &side in self.dims.iter().rev() {
            stride /= side;
            place += position % side * stride;
            position /= side;
        }
        place
    }

    fn value(&self, place: usize) -> f64 {
        let size = self.element.size();
        let at = self.start + place * size;
        let bytes = &self.bytes[at..at + size];
        let mut word = [0; 8];
        word[..size].copy_from_slice(bytes);
        let word = u64::from_le_bytes(word);
        // The sign moves to the top of the word, and back.
        let unused = 64 - 8 * size;
        match self.element {
            Element::Bool => f64::from(u8::from(word != 0)),
            Element::Unsigned(_) => word as f64,
            Element::Signed(_) => (((word << unused) as i64) >> unused) as f64,
            Element::Float(4) => f64::from(f32::from_bits(word as u32)),
            Element::Float(_) => f64::from_bits(word),
        }
    }

    pub(super) fn is_integer(&self) -> bool {
        matches!(self.element, Element::Signed(_) | Element::Unsigned(_))
    }

    /// The elements of a list of whole numbers.
    pub(super) fn labels(&self) -> Result<Vec<String>, Error> {
        let axes = self.dims.iter().filter(|&&side| side != 1).count();
        let real = matches!(self.element, Element::Float(_));
        if axes > 1 || real {
            return Err(Error::Format(format!(
                "labels are a list of whole numbers, and this is an array of {} of the shape {:?}",
                if real {
                    "real numbers"
                } else {
                    "whole numbers"
                },
                self.dims
            )));
        }
        let count: usize = self.dims.iter().product();
        Ok((0..count).map(|i| self.value(i).to_string()).collect())
    }
}

impl Element {
    /// Reads NumPy's name of a type, such as `<f4`.
    fn parse(descr: &str) -> Result<Self, Error> {
        let refuse = |why: &str| {
            Error::Format(format!(
                "the array's elements are {descr:?}: {why}; save array.astype('<f4')"
            ))
        };
        let (order, kind) = descr.split_at_checked(1).unwrap_or(("", descr));
        let element = match kind {
            "b1" => Element::Bool,
            "u1" => Element::Unsigned(1),
            "u2" => Element::Unsigned(2),
            "u4" => Element::Unsigned(4),
            "u8" => Element::Unsigned(8),
            "i1" => Element::Signed(1),
            "i2" => Element::Signed(2),
            "i4" => Element::Signed(4),
            "i8" => Element::Signed(8),
            "f4" => Element::Float(4),
            "f8" => Element::Float(8),
            _ => {
                return Err(refuse(
                    "truths, whole numbers, and reals of 4 or 8 bytes are read",
                ));
            }
        };
        match (order, element.size()) {
            ("<", _) | ("|", 1) => Ok(element),
            _ => Err(refuse("only the little-endian order of bytes is read")),
        }
    }

    fn size(self) -> usize {
        match self {
            Element::Bool => 1,
            Element::Unsigned(size) | Element::Signed(size) | Element::Float(size) => size,
        }
    }
}

/// The header, and where the elements begin.
fn header(bytes: &[u8]) -> Result<(&str, usize), String> {
    let rest = bytes
        .strip_prefix(MAGIC)
        .ok_or("it does not begin with \\x93NUMPY; save it with numpy.save")?;
    let short = "it ends in its header; save it again";
    let (&[major, minor], rest) = rest.split_first_chunk().ok_or(short)?;
    let (length, width) = match (major, minor) {
        (1, 0) => {
            let length = rest.first_chunk().ok_or(short)?;
            (usize::from(u16::from_le_bytes(*length)), 2)
        }
        (2 | 3, 0) => {
            let length = rest.first_chunk().ok_or(short)?;
            (u32::from_le_bytes(*length) as usize, 4)
        }
        _ => {
            return Err(format!(
                "its format has version {major}.{minor}, and 1.0 to 3.0 are read"
            ));
        }
    };
    if length > HEADER {
        return Err(format!(
            "its header has {length} bytes, the limit is {HEADER}"
        ));
    }
    let header = rest.get(width..width + length).ok_or(short)?;
    let header = std::str::from_utf8(header).map_err(|_| "its header is no text")?;
    Ok((header, MAGIC.len() + 2 + width + length))
}

/// What the dictionary says.
#[derive(Debug, Default, PartialEq)]
struct Header {
    descr: String,
    fortran_order: bool,
    shape: Vec<usize>,
}

impl Header {
    /// Parses `{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }`.
    fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("its header is {:?}", text.trim_end());
        let mut literal = Literal(text);
        let (mut descr, mut order, mut shape) = (None, None, None);
        literal.expect("{").ok_or_else(wrong)?;
        while literal.expect("}").is_none() {
            let key = literal.text().ok_or_else(wrong)?;
            literal.expect(":").ok_or_else(wrong)?;
            match key {
                "descr" if literal.starts_with("[") => {
                    return Err("its elements are records of several fields: save one field".into());
                }
                "descr" => descr = Some(literal.text().ok_or_else(wrong)?.to_owned()),
                "fortran_order" => order = Some(literal.truth().ok_or_else(wrong)?),
                "shape" => shape = Some(literal.tuple().ok_or_else(wrong)?),
                _ => return Err(wrong()),
            }
            if literal.expect(",").is_none() && !literal.starts_with("}") {
                return Err(wrong());
            }
        }
        match (descr, order, shape, literal.0.trim()) {
            (Some(descr), Some(fortran_order), Some(shape), "") => Ok(Header {
                descr,
                fortran_order,
                shape,
            }),
            _ => Err(wrong()),
        }
    }
}

/// The rest of a Python literal.
struct Literal<'a>(&'a str);

impl<'a> Literal<'a> {
    fn starts_with(&mut self, token: &str) -> bool {
        self.0 = self.0.trim_start();
        self.0.starts_with(token)
    }

    fn expect(&mut self, token: &str) -> Option<()> {
        self.0 = self.0.trim_start().strip_prefix(token)?;
        Some(())
    }

    fn text(&mut self) -> Option<&'a str> {
        let text = self.0.trim_start();
        let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
        let (inner, rest) = text[1..].split_once(quote)?;
        self.0 = rest;
        Some(inner)
    }

    fn truth(&mut self) -> Option<bool> {
        match self.expect("True") {
            Some(()) => Some(true),
            None => self.expect("False").map(|()| false),
        }
    }

    /// `(2, 3)`, `(2,)` or `()`.
    fn tuple(&mut self) -> Option<Vec<usize>> {
        self.expect("(")?;
        let (inner, rest) = self.0.split_once(')')?;
        self.0 = rest;
        let inner = inner.trim();
        let inner = inner.strip_suffix(',').unwrap_or(inner);
        if inner.is_empty() {
            return Some(Vec::new());
        }
        let sides: Option<Vec<usize>> = inner
            .split(',')
            .map(|side| side.trim().parse().ok())
            .collect();
        sides.filter(|sides| sides.len() <= AXES)
    }
}

#[cfg(test)]
mod tests;
