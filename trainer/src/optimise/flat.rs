//! All parameters behind each other, in the order of their names.

use std::collections::BTreeMap;
use std::ops::Range;

use anyhow::{Context, Result, ensure};
use burn::tensor::{Device, Tensor, TensorData};

use super::Tensors;
use crate::checkpoint::Arrays;

/// Where each parameter lies in a flat vector.
pub(super) struct Layout {
    parts: Vec<(String, usize)>,
    total: usize,
}

impl Layout {
    pub(super) fn of(parameters: &Tensors) -> Self {
        let parts: Vec<(String, usize)> = parameters
            .iter()
            .map(|(name, tensor)| (name.clone(), tensor.dims()[0]))
            .collect();
        let total = parts.iter().map(|(_, length)| length).sum();
        Self { parts, total }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.total == 0
    }

    /// Name and place of each parameter.
    pub(super) fn ranges(&self) -> impl Iterator<Item = (&str, Range<usize>)> {
        let mut end = 0;
        self.parts.iter().map(move |(name, length)| {
            end += length;
            (name.as_str(), end - length..end)
        })
    }

    pub(super) fn lengths(&self) -> BTreeMap<&str, usize> {
        self.parts
            .iter()
            .map(|(name, length)| (name.as_str(), *length))
            .collect()
    }

    /// The named tensors as one vector; what is absent is zero.
    pub(super) fn gather(&self, tensors: &Tensors, device: &Device) -> Tensor<1> {
        let part = |(name, length): &(String, usize)| {
            let own = tensors.get(name).cloned();
            own.unwrap_or_else(|| Tensor::zeros([*length], device))
        };
        Tensor::cat(self.parts.iter().map(part).collect(), 0)
    }

    /// Puts the parts of a vector under their names.
    pub(super) fn scatter(&self, vector: &Tensor<1>, tensors: &mut Tensors) {
        for (name, range) in self.ranges() {
            tensors.insert(name.to_owned(), vector.clone().slice([range]));
        }
    }

    /// The vector of arrays from a file.
    pub(super) fn join(&self, parts: &Arrays, device: &Device) -> Result<Tensor<1>> {
        let mut values = Vec::with_capacity(self.total);
        for (name, length) in &self.parts {
            let part = parts.get(name).with_context(|| format!("lacks {name}"))?;
            ensure!(
                part.values.len() == *length,
                "of {name} has {} numbers, the parameter {length}",
                part.values.len()
            );
            values.extend_from_slice(&part.values);
        }
        ensure!(
            parts.len() == self.parts.len(),
            "is of {} parameters, {} are trained",
            parts.len(),
            self.parts.len()
        );
        Ok(Tensor::from_data(
            TensorData::new(values, [self.total]),
            device,
        ))
    }

    /// Names of the parameters whose gradient is not finite; one transfer each, as the run ends here.
    pub(super) fn blame(&self, gradients: &Tensors) -> String {
        let not_finite = |name: &&str| {
            let gradient = gradients.get(*name);
            gradient.is_some_and(|g| download(g.clone()).iter().any(|v| !v.is_finite()))
        };
        let names: Vec<&str> = self
            .ranges()
            .map(|(name, _)| name)
            .filter(not_finite)
            .collect();
        match names.is_empty() {
            true => "the norm over all parameters, whose square is beyond 3e38".to_owned(),
            false => names.join(", "),
        }
    }
}

/// A factor for each number of a flat vector: mostly the same for all, which costs nothing.
#[expect(
    clippy::large_enum_variant,
    reason = "an optimiser has two, which a box would not make better"
)]
pub(super) enum PerNumber {
    /// One for all.
    Uniform(f32),
    /// One for each.
    Each(Tensor<1>),
}

impl PerNumber {
    /// `value` of each parameter's name.
    pub(super) fn new(layout: &Layout, value: impl Fn(&str) -> f32, device: &Device) -> Self {
        let values: Vec<(f32, usize)> = layout
            .parts
            .iter()
            .map(|(name, length)| (value(name), *length))
            .collect();
        let first = values.first().map_or(1.0, |(value, _)| *value);
        if values.iter().all(|(value, _)| *value == first) {
            return PerNumber::Uniform(first);
        }
        let each = values
            .into_iter()
            .flat_map(|(value, length)| std::iter::repeat_n(value, length))
            .collect::<Vec<f32>>();
        let data = TensorData::new(each, [layout.total]);
        PerNumber::Each(Tensor::from_data(data, device))
    }

    pub(super) fn is_zero(&self) -> bool {
        matches!(self, PerNumber::Uniform(0.0))
    }

    /// `x` times `factor` and each number's own.
    pub(super) fn times(&self, x: Tensor<1>, factor: f32) -> Tensor<1> {
        match self {
            PerNumber::Uniform(own) if own * factor == 1.0 => x,
            PerNumber::Uniform(own) => x.mul_scalar(own * factor),
            PerNumber::Each(own) => (x * own.clone()).mul_scalar(factor),
        }
    }
}

/// The numbers of a tensor, on the host.
pub(super) fn download(tensor: Tensor<1>) -> Vec<f32> {
    tensor
        .into_data()
        .try_into_vec()
        .expect("parameters, gradients and state are f32")
}

/// Whether a name fits a pattern, in which `*` stands for any characters, none included.
pub(super) fn fits(pattern: &str, name: &str) -> bool {
    let mut parts = pattern.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else {
        return false;
    };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        // The first place is as good as any: what is left of the pattern has the longest rest to fit.
        let Some(at) = rest.find(part) else {
            return false;
        };
        rest = &rest[at + part.len()..];
    }
    true
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_whole_names() {
        for (pattern, name, expected) in [
            ("*.weight", "stem.conv.weight", true),
            ("*.weight", "stem.conv.weights", false),
            ("stage1.*", "stage1.block1.a.conv.weight", true),
            ("stage1.*", "stage11.block1.a.conv.weight", false),
            ("*.block?.*", "stage1.block1.a", false),
            ("a*b*c", "aXbYbZc", true),
            ("a*b*c", "aXc", false),
            ("*", "", true),
            ("dense.bias", "dense.bias", true),
            ("ab*ba", "aba", false),
        ] {
            assert_eq!(fits(pattern, name), expected, "{pattern} on {name}");
        }
    }
}
