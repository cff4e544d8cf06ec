//! Vectors over all parameters, in few pieces.
//!
//! On a GPU a step is bound by the number of operations, so all parameters lie one after the other
//! in one tensor; on the CPU it is bound by memory, so each stays by itself, where its intermediate
//! results fit the cache. With 10.5 million parameters in 62 tensors that is 2.3 to 3 times as fast
//! as one tensor, and takes 1.6 times as long as a loop on the host that does SGD in one pass (two
//! busy cores of a Zen 4, 2026-11-25; `benches/training.rs` measures the steps and the loop).

use std::ops::Range;

use anyhow::{Context, Result, ensure};
use burn::tensor::{Device, Tensor, TensorData};

use crate::checkpoint::Arrays;
use crate::tensors::{Tensors, download, upload};

/// Places of the parameters in a [`Vector`].
pub(super) struct Layout {
    /// Names and lengths, in order.
    parts: Vec<(String, usize)>,
    /// Ranges of `parts`, one for each piece.
    pieces: Vec<Range<usize>>,
    device: Device,
}

impl Layout {
    /// The layout that is faster on the device.
    pub(super) fn of(parameters: &Tensors, device: &Device) -> Self {
        match *device == Device::flex() {
            true => Self::separate(parameters, device),
            false => Self::joined(parameters, device),
        }
    }

    /// Each parameter a piece.
    fn separate(parameters: &Tensors, device: &Device) -> Self {
        let parts: Vec<(String, usize)> = parameters
            .iter()
            .map(|(name, tensor)| (name.clone(), tensor.dims()[0]))
            .collect();
        let pieces = (0..parts.len()).map(|part| part..part + 1).collect();
        Self {
            parts,
            pieces,
            device: device.clone(),
        }
    }

    /// All parameters in one piece.
    pub(super) fn joined(parameters: &Tensors, device: &Device) -> Self {
        let layout = Self::separate(parameters, device);
        Self {
            pieces: std::iter::once(0..layout.parts.len()).collect(),
            ..layout
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.parts.is_empty()
    }

    /// Names of the parameters, in order.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.parts.iter().map(|(name, _)| name.as_str())
    }

    /// True if there is a parameter of this name and length.
    pub(super) fn has(&self, name: &str, length: usize) -> bool {
        self.parts
            .iter()
            .any(|(part, own)| part == name && *own == length)
    }

    /// The named tensors; what is absent is zero.
    pub(super) fn gather(&self, tensors: &Tensors) -> Vector {
        let part = |(name, length): &(String, usize)| {
            let own = tensors.get(name).cloned();
            own.unwrap_or_else(|| Tensor::zeros([*length], &self.device))
        };
        let piece = |parts: &Range<usize>| match &self.parts[parts.clone()] {
            [only] => part(only),
            several => Tensor::cat(several.iter().map(part).collect(), 0),
        };
        Vector(self.pieces.iter().map(piece).collect())
    }

    /// Puts the parts of a vector under their names.
    pub(super) fn scatter(&self, vector: &Vector, tensors: &mut Tensors) {
        for (parts, piece) in self.pieces.iter().zip(&vector.0) {
            let mut start = 0;
            for (name, length) in &self.parts[parts.clone()] {
                let part = match parts.len() {
                    1 => piece.clone(),
                    _ => piece.clone().narrow(0, start, *length),
                };
                start += length;
                tensors.insert(name.clone(), part);
            }
        }
    }

    /// The numbers of a vector by parameter, on the host.
    pub(super) fn download(&self, vector: &Vector) -> Vec<(String, Vec<f32>)> {
        let mut parts = self.parts.iter();
        let mut split = Vec::with_capacity(self.parts.len());
        for (range, piece) in self.pieces.iter().zip(&vector.0) {
            let values = download(piece.clone());
            let mut rest = values.as_slice();
            for (name, length) in parts.by_ref().take(range.len()) {
                let (part, after) = rest.split_at(*length);
                split.push((name.clone(), part.to_vec()));
                rest = after;
            }
        }
        split
    }

    /// The vector of arrays from a file.
    pub(super) fn upload(&self, arrays: &Arrays) -> Result<Vector> {
        let mut tensors = Tensors::new();
        for (name, length) in &self.parts {
            let part = arrays.get(name).with_context(|| format!("lacks {name}"))?;
            ensure!(
                part.values.len() == *length,
                "of {name} has {} numbers, the parameter {length}",
                part.values.len()
            );
            tensors.insert(name.clone(), upload(part.values.clone(), &self.device));
        }
        ensure!(
            arrays.len() == self.parts.len(),
            "is of {} parameters, {} are trained",
            arrays.len(),
            self.parts.len()
        );
        Ok(self.gather(&tensors))
    }

    /// Names of the parameters whose gradient is not finite; one transfer each, as the run ends
    /// here.
    pub(super) fn blame(&self, gradients: &Tensors) -> String {
        let not_finite = |name: &&str| {
            let gradient = gradients.get(*name);
            gradient.is_some_and(|g| download(g.clone()).iter().any(|v| !v.is_finite()))
        };
        let names: Vec<&str> = self.names().filter(not_finite).collect();
        match names.is_empty() {
            true => "the norm over all parameters, whose square is beyond 3e38".to_owned(),
            false => names.join(", "),
        }
    }
}

/// A number for each number of the parameters, in the pieces of a [`Layout`].
#[derive(Clone)]
pub(super) struct Vector(Vec<Tensor<1>>);

impl Vector {
    pub(super) fn map(self, f: impl Fn(Tensor<1>) -> Tensor<1>) -> Self {
        Self(self.0.into_iter().map(f).collect())
    }

    fn zip(self, other: Self, f: impl Fn(Tensor<1>, Tensor<1>) -> Tensor<1>) -> Self {
        let pairs = self.0.into_iter().zip(other.0);
        Self(pairs.map(|(a, b)| f(a, b)).collect())
    }

    pub(super) fn plus(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }

    pub(super) fn minus(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }

    pub(super) fn over(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }

    pub(super) fn squared(self) -> Self {
        self.map(|a| a.clone() * a)
    }

    pub(super) fn scaled(self, factor: f32) -> Self {
        self.map(|a| a.mul_scalar(factor))
    }

    /// Times a tensor of one element.
    pub(super) fn scaled_by(self, factor: &Tensor<1>) -> Self {
        self.map(|a| a * factor.clone())
    }

    /// The inner product, one element.
    ///
    /// # Panics
    /// On vectors of no parameters.
    pub(super) fn dot(&self, other: &Self) -> Tensor<1> {
        let pairs = self.0.iter().zip(&other.0);
        let sums: Vec<Tensor<1>> = pairs.map(|(a, b)| (a.clone() * b.clone()).sum()).collect();
        match sums.len() {
            1 => sums.into_iter().next().expect("one sum"),
            _ => Tensor::cat(sums, 0).sum(),
        }
    }
}

/// A factor for each number of the parameters: the same all over a piece if it can be, which costs
/// nothing.
pub(super) struct PerNumber(Vec<Factor>);

#[expect(
    clippy::large_enum_variant,
    reason = "an optimiser has two for each piece, which a box would not make better"
)]
enum Factor {
    Uniform(f32),
    Each(Tensor<1>),
}

impl PerNumber {
    /// `value` of each parameter's name.
    pub(super) fn new(layout: &Layout, value: impl Fn(&str) -> f32) -> Self {
        let factor = |parts: &Range<usize>| {
            let parts = &layout.parts[parts.clone()];
            let values: Vec<f32> = parts.iter().map(|(name, _)| value(name)).collect();
            let first = values.first().copied().unwrap_or(1.0);
            if values.iter().all(|value| *value == first) {
                return Factor::Uniform(first);
            }
            let each = parts.iter().zip(values);
            let each: Vec<f32> = each
                .flat_map(|((_, length), value)| std::iter::repeat_n(value, *length))
                .collect();
            let count = each.len();
            Factor::Each(Tensor::from_data(
                TensorData::new(each, [count]),
                &layout.device,
            ))
        };
        Self(layout.pieces.iter().map(factor).collect())
    }

    /// True if all factors are zero.
    pub(super) fn is_zero(&self) -> bool {
        self.0
            .iter()
            .all(|factor| matches!(factor, Factor::Uniform(0.0)))
    }

    /// `x` times `factor` and each number's own.
    pub(super) fn times(&self, x: Vector, factor: f32) -> Vector {
        let pieces = x.0.into_iter().zip(&self.0);
        Vector(pieces.map(|(x, own)| own.times(x, factor)).collect())
    }

    /// `x + l y` with these factors `l`.
    pub(super) fn add_times(&self, x: Vector, y: &Vector) -> Vector {
        let pieces = x.0.into_iter().zip(&y.0).zip(&self.0);
        let add = |((x, y), own): ((Tensor<1>, &Tensor<1>), &Factor)| match own {
            Factor::Uniform(0.0) => x,
            own => x + own.times(y.clone(), 1.0),
        };
        Vector(pieces.map(add).collect())
    }

    /// `x / (1 + rate s l)` with the factors `s` and `l`.
    pub(super) fn shrink(rates: &Self, decay: &Self, x: Vector, rate: f32) -> Vector {
        let pieces = x.0.into_iter().zip(rates.0.iter().zip(&decay.0));
        let shrink = |(x, (s, l)): (Tensor<1>, (&Factor, &Factor))| match (s, l) {
            (_, Factor::Uniform(0.0)) => x,
            (Factor::Uniform(s), Factor::Uniform(l)) => x.mul_scalar(1.0 / (1.0 + rate * s * l)),
            (Factor::Each(s), l) => x / l.times(s.clone(), rate).add_scalar(1.0),
            (s, Factor::Each(l)) => x / s.times(l.clone(), rate).add_scalar(1.0),
        };
        Vector(pieces.map(shrink).collect())
    }
}

impl Factor {
    fn times(&self, x: Tensor<1>, factor: f32) -> Tensor<1> {
        match self {
            Factor::Uniform(own) if own * factor == 1.0 => x,
            Factor::Uniform(own) => x.mul_scalar(own * factor),
            Factor::Each(own) => (x * own.clone()).mul_scalar(factor),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Array;
    use crate::optimise::{Optimiser, OptimiserConfig, Place};

    /// On the CPU each parameter is a separate piece: here the layout of a GPU is held against that
    /// one.
    #[test]
    fn one_tensor_for_all_gives_the_same_steps() {
        let device = Device::flex();
        let tensors = |seed: f32| -> Tensors {
            let part = |(index, name): (usize, &str)| {
                let values: Vec<f32> = (0..=index).map(|i| seed - 0.3 * i as f32).collect();
                let data = TensorData::new(values, [index + 1]);
                (name.to_owned(), Tensor::from_data(data, &device))
            };
            ["a.weight", "b.bias", "c.weight"]
                .into_iter()
                .enumerate()
                .map(part)
                .collect()
        };
        for rule in [
            "sgd",
            "adam",
            "adam.decoupled = true #",
            "momo",
            "momo-adam",
            "muon",
        ] {
            let text = format!(
                "rule.{rule} = {{}}\nweight_decay = 0.1\nclip = 1.5\n\
                 rates = [{{ parameters = \"c.*\", factor = 0.5 }}]\naverage.ema.decay = 0.5"
            )
            .replace("true # = {}", "true");
            let config: OptimiserConfig = toml::from_str(&text).unwrap();
            let place = |name: &str| Place {
                rows: (name == "c.weight").then_some(1),
                ..Place::default()
            };
            let (mut x, mut y) = (tensors(1.0), tensors(1.0));
            let joined = Layout::joined(&x, &device);
            let mut separate = Optimiser::new(&config, &x, place, &device);
            let mut one = Optimiser::with_layout(&config, joined, place, &device);
            let loss = Tensor::from_data(TensorData::from([2.0f32]), &device);
            for step in 0..4 {
                let g = tensors(0.5 + step as f32);
                let a = separate.step(&mut x, &g, &loss, 0.2, 0).unwrap();
                let b = one.step(&mut y, &g, &loss, 0.2, 0).unwrap();
                assert!((a.norm - b.norm).abs() < 1e-5);
            }
            let same = |x: &Arrays, y: &Arrays| {
                assert!(x.keys().eq(y.keys()));
                for (name, array) in x {
                    for (a, b) in array.values.iter().zip(&y[name].values) {
                        assert!((a - b).abs() < 1e-5, "{rule}, {name}: {a}, {b}");
                    }
                }
            };
            let host = |tensors: &Tensors| -> Arrays {
                let array = |(name, t): (&String, &Tensor<1>)| {
                    let values = download(t.clone());
                    let shape = vec![values.len()];
                    (name.clone(), Array { shape, values })
                };
                tensors.iter().map(array).collect()
            };
            same(&host(&x), &host(&y));
            same(&separate.export(), &one.export());
            // State moves from one layout to the other.
            let mut back = Optimiser::new(&config, &x, place, &device);
            back.import(one.export()).unwrap();
            assert_eq!(back.export(), one.export());
        }
    }
}
