//! Constants of a model: initializers, and what is computed from them before the network runs.

use std::rc::Rc;

/// Elements of a constant: 512 MiB of single precision. The largest layer of VGG-19 has three
/// quarters of that.
pub(crate) const MAX_ELEMENTS: usize = 1 << 27;

/// A constant, row-major.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Tensor {
    pub(crate) dims: Vec<usize>,
    pub(crate) data: Data,
}

/// The elements of a constant, in one of the three kinds that operators tell apart.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Data {
    Float(Vec<f32>),
    Int(Vec<i64>),
    Bool(Vec<bool>),
}

/// Elements of a tensor with these dimensions.
///
/// # Errors
/// If they are more than [`MAX_ELEMENTS`], or would be if no dimension were 0: lists of the
/// elements of an axis are made, too.
pub(crate) fn count(dims: &[usize]) -> Result<usize, String> {
    let sizes = dims.iter().map(|&d| d.max(1));
    let fits = { sizes }
        .try_fold(1usize, |n, d| n.checked_mul(d))
        .filter(|&count| count <= MAX_ELEMENTS);
    match fits {
        Some(_) if dims.contains(&0) => Ok(0),
        Some(count) => Ok(count),
        None => Err(format!("a constant of {dims:?} elements is too large")),
    }
}

impl Tensor {
    pub(crate) fn floats(dims: Vec<usize>, data: Vec<f32>) -> Self {
        Tensor {
            dims,
            data: Data::Float(data),
        }
    }

    /// A list of integers.
    pub(crate) fn ints(data: Vec<i64>) -> Self {
        Tensor {
            dims: vec![data.len()],
            data: Data::Int(data),
        }
    }

    pub(crate) fn len(&self) -> usize {
        match &self.data {
            Data::Float(data) => data.len(),
            Data::Int(data) => data.len(),
            Data::Bool(data) => data.len(),
        }
    }

    /// The elements as single precision.
    ///
    /// # Errors
    /// If one is not finite.
    pub(crate) fn to_floats(&self) -> Result<Vec<f32>, String> {
        let floats: Vec<f32> = match &self.data {
            Data::Float(data) => data.clone(),
            Data::Int(data) => data.iter().map(|&v| v as f32).collect(),
            Data::Bool(data) => data.iter().map(|&v| f32::from(u8::from(v))).collect(),
        };
        match floats.iter().position(|v| !v.is_finite()) {
            Some(index) => Err(format!(
                "value {index} of a constant of {:?} elements is {}: train the model again, or \
                 export it without overflows",
                self.dims, floats[index]
            )),
            None => Ok(floats),
        }
    }

    /// The elements as integers.
    ///
    /// # Errors
    /// If they are not integers.
    pub(crate) fn to_ints(&self) -> Result<Vec<i64>, String> {
        match &self.data {
            Data::Int(data) => Ok(data.clone()),
            Data::Bool(data) => Ok(data.iter().map(|&v| i64::from(v)).collect()),
            Data::Float(_) => Err("a constant of integers is expected, and has floats".into()),
        }
    }

    /// The only element.
    ///
    /// # Errors
    /// If there are none, or several.
    pub(crate) fn scalar(&self) -> Result<f32, String> {
        match self.to_floats()?[..] {
            [value] => Ok(value),
            _ => Err(format!(
                "a constant of one element is expected, and has {:?}",
                self.dims
            )),
        }
    }

    /// The same elements in other dimensions.
    pub(crate) fn reshaped(&self, dims: Vec<usize>) -> Result<Tensor, String> {
        if count(&dims)? != self.len() {
            return Err(format!("cannot reshape {:?} to {dims:?}", self.dims));
        }
        Ok(Tensor {
            dims,
            data: self.data.clone(),
        })
    }

    /// The elements at these flat indices, which must exist.
    pub(crate) fn gather(&self, dims: Vec<usize>, indices: &[usize]) -> Tensor {
        fn pick<T: Copy>(data: &[T], indices: &[usize]) -> Vec<T> {
            indices.iter().map(|&i| data[i]).collect()
        }
        let data = match &self.data {
            Data::Float(data) => Data::Float(pick(data, indices)),
            Data::Int(data) => Data::Int(pick(data, indices)),
            Data::Bool(data) => Data::Bool(pick(data, indices)),
        };
        Tensor { dims, data }
    }

    /// The tensor repeated along dimensions of size 1, and along new ones before them, as ONNX
    /// broadcasts.
    ///
    /// # Errors
    /// If it does not fit.
    pub(crate) fn broadcast(&self, dims: &[usize]) -> Result<Tensor, String> {
        if self.dims == dims {
            return Ok(self.clone());
        }
        let misfit = || format!("{:?} does not broadcast to {dims:?}", self.dims);
        let extra = (dims.len().checked_sub(self.dims.len())).ok_or_else(misfit)?;
        let strides = strides(&self.dims);
        let mut steps = vec![0; dims.len()];
        for (axis, (&own, stride)) in self.dims.iter().zip(strides).enumerate() {
            steps[extra + axis] = match own {
                1 => 0,
                own if own == dims[extra + axis] => stride,
                _ => return Err(misfit()),
            };
        }
        count(dims)?;
        Ok(self.gather(dims.to_vec(), &walk(dims, &steps)))
    }

    /// The tensor with its axes in another order.
    ///
    /// # Errors
    /// If `order` is no order of the axes.
    pub(crate) fn transposed(&self, order: &[usize]) -> Result<Tensor, String> {
        let mut sorted = order.to_vec();
        sorted.sort_unstable();
        if !sorted.iter().copied().eq(0..self.dims.len()) {
            return Err(format!(
                "perm {order:?} is no order of {} axes",
                self.dims.len()
            ));
        }
        let strides = strides(&self.dims);
        let dims: Vec<usize> = order.iter().map(|&axis| self.dims[axis]).collect();
        let steps: Vec<usize> = order.iter().map(|&axis| strides[axis]).collect();
        Ok(self.gather(dims.clone(), &walk(&dims, &steps)))
    }

    /// The part of an axis.
    ///
    /// # Panics
    /// If the part is beyond the axis.
    pub(crate) fn part(&self, axis: usize, range: std::ops::Range<usize>) -> Tensor {
        self.picked(axis, &range.collect::<Vec<usize>>())
    }

    /// These elements along an axis, in this order.
    ///
    /// # Panics
    /// If one is beyond the axis.
    pub(crate) fn picked(&self, axis: usize, elements: &[usize]) -> Tensor {
        let inner: usize = self.dims[axis + 1..].iter().product();
        let outer: usize = self.dims[..axis].iter().product();
        let mut dims = self.dims.clone();
        let size = std::mem::replace(&mut dims[axis], elements.len());
        let indices: Vec<usize> = (0..outer)
            .flat_map(|o| elements.iter().map(move |&e| (o * size + e) * inner))
            .flat_map(|start| start..start + inner)
            .collect();
        self.gather(dims, &indices)
    }
}

/// Distance of neighbours along each axis.
pub(crate) fn strides(dims: &[usize]) -> Vec<usize> {
    let mut strides = vec![1; dims.len()];
    for axis in (1..dims.len()).rev() {
        strides[axis - 1] = strides[axis] * dims[axis];
    }
    strides
}

/// Flat indices in row-major order of `dims`, where each axis has its own step.
pub(crate) fn walk(dims: &[usize], steps: &[usize]) -> Vec<usize> {
    let mut out = vec![0];
    for (&dim, &step) in dims.iter().zip(steps) {
        out = out
            .iter()
            .flat_map(|&base| (0..dim).map(move |i| base + i * step))
            .collect();
    }
    out
}

/// The dimensions of two tensors that broadcast against each other.
///
/// # Errors
/// If they do not.
pub(crate) fn common(a: &[usize], b: &[usize]) -> Result<Vec<usize>, String> {
    let rank = a.len().max(b.len());
    let at = |dims: &[usize], axis: usize| match (axis + dims.len()).checked_sub(rank) {
        Some(index) => dims[index],
        None => 1,
    };
    (0..rank)
        .map(|axis| match (at(a, axis), at(b, axis)) {
            (1, n) | (n, 1) => Ok(n),
            (n, m) if n == m => Ok(n),
            _ => Err(format!("{a:?} and {b:?} do not broadcast")),
        })
        .collect()
}

/// The axis that a possibly negative number names.
///
/// # Errors
/// If there is none.
pub(crate) fn axis(number: i64, rank: usize) -> Result<usize, String> {
    let from_start = match number < 0 {
        true => number.checked_add(rank as i64),
        false => Some(number),
    };
    let found = from_start.and_then(|n| usize::try_from(n).ok());
    let found = found.filter(|&axis| axis < rank);
    found.ok_or_else(|| format!("axis {number} of a tensor with {rank} axes"))
}

/// The dimensions that Reshape gives: 0 keeps a dimension (unless `allow_zero`), -1 is what is
/// left.
///
/// # Errors
/// If the elements do not fit.
pub(crate) fn reshape(from: &[usize], to: &[i64], allow_zero: bool) -> Result<Vec<usize>, String> {
    let misfit = || format!("cannot reshape {from:?} to {to:?}");
    let mut dims = Vec::with_capacity(to.len());
    let mut unknown = None;
    for (index, &dim) in to.iter().enumerate() {
        dims.push(match dim {
            0 if !allow_zero => *from.get(index).ok_or_else(misfit)?,
            -1 if unknown.is_none() => {
                unknown = Some(index);
                1
            }
            _ => usize::try_from(dim).map_err(|_| misfit())?,
        });
    }
    let (have, known) = (count(from)?, count(&dims)?);
    if let Some(index) = unknown {
        if known == 0 || have % known != 0 {
            return Err(misfit());
        }
        dims[index] = have / known;
    }
    match count(&dims)? == have {
        true => Ok(dims),
        false => Err(misfit()),
    }
}

/// A constant that several nodes may read.
pub(crate) type Shared = Rc<Tensor>;

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(dims: &[usize]) -> Tensor {
        let n = dims.iter().product::<usize>();
        Tensor {
            dims: dims.to_vec(),
            data: Data::Int((0..n as i64).collect()),
        }
    }

    #[test]
    fn axes_move_and_repeat_as_onnx_defines_it() {
        let t = counted(&[2, 3]);
        let transposed = t.transposed(&[1, 0]).unwrap();
        assert_eq!(transposed.dims, [3, 2]);
        assert_eq!(transposed.to_ints().unwrap(), [0, 3, 1, 4, 2, 5]);
        assert!(t.transposed(&[0, 0]).is_err());
        let wide = counted(&[2, 1]).broadcast(&[3, 2, 2]).unwrap();
        assert_eq!(wide.to_ints().unwrap(), [0, 0, 1, 1].repeat(3));
        assert!(t.broadcast(&[2, 4]).is_err() && t.broadcast(&[3]).is_err());
        assert_eq!(t.part(1, 1..3).to_ints().unwrap(), [1, 2, 4, 5]);
        assert_eq!(common(&[3, 1], &[2, 1, 4]), Ok(vec![2, 3, 4]));
        assert!(common(&[3], &[2]).is_err());
    }

    #[test]
    fn reshape_fills_in_what_is_left() {
        assert_eq!(reshape(&[2, 3, 4], &[0, -1], false), Ok(vec![2, 12]));
        assert_eq!(reshape(&[2, 3], &[3, 2], false), Ok(vec![3, 2]));
        for wrong in [&[-1, -1][..], &[5], &[-2, 3], &[0, 0, 0, 0], &[i64::MAX, 8]] {
            assert!(reshape(&[2, 3], wrong, false).is_err(), "{wrong:?}");
        }
        assert!(reshape(&[2, 3], &[0, -1], true).is_err());
    }
}
