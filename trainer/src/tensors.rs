//! Flat tensors by name, on a device and on the host.

use std::collections::BTreeMap;

use burn::tensor::{Device, Tensor, TensorData};

/// Flat tensors on the device, by name: parameters, gradients, statistics, state.
pub type Tensors = BTreeMap<String, Tensor<1>>;

/// A flat tensor of these values.
pub fn upload(values: Vec<f32>, device: &Device) -> Tensor<1> {
    let count = values.len();
    Tensor::from_data(TensorData::new(values, [count]), device)
}

/// The values of a tensor, in row-major order.
pub fn download<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor
        .into_data()
        .try_into_vec()
        .expect("all our tensors are f32")
}

/// The values of all tensors, read from the device at once.
pub fn download_all(tensors: &Tensors) -> BTreeMap<String, Vec<f32>> {
    if tensors.is_empty() {
        return BTreeMap::new();
    }
    let lengths: Vec<usize> = tensors.values().map(|t| t.dims()[0]).collect();
    let all = download(Tensor::cat(tensors.values().cloned().collect(), 0));
    let mut rest = all.as_slice();
    tensors
        .keys()
        .zip(lengths)
        .map(|(name, length)| {
            let (part, after) = rest.split_at(length);
            rest = after;
            (name.clone(), part.to_vec())
        })
        .collect()
}

/// The largest magnitude of a tensor; infinite if an element is NaN.
pub fn largest<const D: usize>(tensor: Tensor<D>) -> Tensor<1> {
    let none = tensor.clone().is_nan();
    tensor.abs().mask_fill(none, f32::INFINITY).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_number_is_the_largest() {
        let of = |values: &[f32]| download(largest(upload(values.to_vec(), &Device::flex())))[0];
        assert_eq!(of(&[1.0, -3.0, 2.0]), 3.0);
        assert_eq!(of(&[1.0, f32::NAN, 2.0]), f32::INFINITY);
        assert_eq!(of(&[f32::NAN, 5.0]), f32::INFINITY);
        assert_eq!(of(&[1.0, f32::NEG_INFINITY]), f32::INFINITY);
    }
}
