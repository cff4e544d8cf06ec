//! From the bytes of an image, or from real values, to the numbers that a network reads: in real
//! numbers for the float graph, in integers for the circuit.
//!
//! The client does this in the clear, before the protocol, so every machine must get the same
//! integers from the same input. [`Preprocessing::Channels`] and [`Preprocessing::Values`] use
//! double precision, whose operations IEEE 754 defines to the last bit. [`Preprocessing::Image`]
//! takes a square root and divides by it, and uses integers alone: with the `n` bytes `p` of an
//! image, `S = sum p` and `Q = sum p^2`,
//!
//! `x = (p - mean) / max(deviation, floor) = (n p - S) / max(sqrt(n Q - S^2), floor n)`,
//!
//! and, at scale `2^f`, with `g` bits (`ROOT_BITS`) of the root behind its point,
//!
//! `round((n p - S) 2^(f + g) / max(isqrt((n Q - S^2) 2^(2 g)), floor n 2^g))`, ties away from
//! zero. `isqrt` rounds down. Since the divisor is at least `2^g`, the quotient differs from the
//! real `x 2^f` by at most `|x| 2^(f - g)` before it is rounded: by a quarter of a unit at the
//! largest values that a circuit allows, and by less than `2^-20` at the usual 10 bits.

use crate::input::{Input, InputError};
use crate::limits;
use serde::{Deserialize, Serialize};

/// Preprocessing of an input, whose elements are ordered `[c][h][w]`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum Preprocessing {
    /// Every channel by statistics of the training set: `(p / 255 - mean) / std`.
    Channels {
        /// Per-channel mean, of pixels scaled to `[0, 1]`.
        mean: Vec<f32>,
        /// Per-channel deviation.
        std: Vec<f32>,
    },
    /// Every image by its own statistics, over all pixels and channels:
    /// `(p - mean) / max(deviation, floor)`.
    Image {
        /// Least divisor, in bytes (0 to 255); at least 1. It keeps images of almost one colour
        /// from becoming noise, and bounds the result.
        floor: u8,
    },
    /// Real values, every channel by statistics of the training set: `(v - mean) / std`. Each
    /// feature of a table is a channel.
    Values {
        /// Per-channel mean, in the units of the values.
        mean: Vec<f32>,
        /// Per-channel deviation.
        std: Vec<f32>,
        /// Largest magnitude of a normalised value: a circuit is right up to there, and refuses
        /// what is larger. A graph may leave it open, and calibration then sets it. It is public,
        /// and tells of the calibration data how large they get, to a power of two.
        bound: Option<f32>,
    },
}

/// Fractional bits of an image's deviation in integers. `(n Q - S^2) 2^64` has at most 126 bits.
const ROOT_BITS: u32 = 32;

impl Preprocessing {
    /// Pixels scaled to `[0, 1]` and nothing else: means 0, deviations 1.
    pub fn unit(channels: u32) -> Self {
        Preprocessing::Channels {
            mean: vec![0.0; channels as usize],
            std: vec![1.0; channels as usize],
        }
    }

    /// Real values as they are: means 0, deviations 1, and no bound yet.
    pub fn unit_values(channels: u32) -> Self {
        Preprocessing::Values {
            mean: vec![0.0; channels as usize],
            std: vec![1.0; channels as usize],
            bound: None,
        }
    }

    /// Returns whether inputs are real values, not bytes.
    pub fn is_values(&self) -> bool {
        matches!(self, Preprocessing::Values { .. })
    }

    /// The real numbers that a float graph reads of an input, computed in double precision.
    ///
    /// With another number of channels than there are means, elements are left over or the result
    /// is shorter.
    ///
    /// # Errors
    /// [`InputError::Kind`] for real values where the network reads bytes.
    pub fn reals_of(&self, input: &Input) -> Result<Vec<f32>, InputError> {
        match input {
            Input::Bytes(pixels) => Ok(self.reals(pixels)),
            Input::Values(values) if self.is_values() => {
                Ok(self.normalised(values, 1.0).map(|v| v as f32).collect())
            }
            Input::Values(_) => Err(InputError::Kind),
        }
    }

    /// The same as [`Preprocessing::reals_of`] for bytes; where a network reads real values, each
    /// byte is one.
    pub fn reals(&self, pixels: &[u8]) -> Vec<f32> {
        match self {
            Preprocessing::Channels { .. } => {
                let values = self.normalised(pixels, 255.0);
                values.map(|v| v as f32).collect()
            }
            Preprocessing::Values { .. } => {
                let values = self.normalised(pixels, 1.0);
                values.map(|v| v as f32).collect()
            }
            Preprocessing::Image { floor } => {
                let n = pixels.len().max(1) as f64;
                let mean = pixels.iter().map(|&p| f64::from(p)).sum::<f64>() / n;
                let squares = pixels.iter().map(|&p| (f64::from(p) - mean).powi(2));
                let deviation = (squares.sum::<f64>() / n).sqrt();
                let divisor = deviation.max(f64::from(*floor));
                let values = pixels.iter().map(|&p| (f64::from(p) - mean) / divisor);
                values.map(|v| v as f32).collect()
            }
        }
    }

    /// The integers that a circuit reads, at scale `2^frac_bits`, rounded to nearest, ties away
    /// from zero; the same on every machine.
    ///
    /// # Preconditions
    /// At most [`limits::ELEMENTS`] elements, `frac_bits` at most 48, a floor of at least 1 and a
    /// bound, as in a verified circuit; beyond, the result is meaningless.
    ///
    /// # Errors
    /// [`InputError`] if the input is of another kind, or a value is not within the bound.
    pub(crate) fn integers(&self, input: &Input, frac_bits: u8) -> Result<Vec<i64>, InputError> {
        match input {
            Input::Bytes(pixels) => self.integers_of_bytes(pixels, frac_bits),
            Input::Values(values) if self.is_values() => self.integers_of_values(values, frac_bits),
            Input::Values(_) => Err(InputError::Kind),
        }
    }

    /// The integers of real values; all of them, or an error with the first that is not within the
    /// bound.
    fn integers_of_values<T: Copy + Into<f64>>(
        &self,
        values: &[T],
        frac_bits: u8,
    ) -> Result<Vec<i64>, InputError> {
        let Preprocessing::Values { mean, std, bound } = self else {
            return Err(InputError::Kind);
        };
        let bound = bound.map_or(f64::INFINITY, f64::from);
        let scale = f64::from(frac_bits).exp2();
        let plane = values.len() / mean.len().max(1);
        let one = |(index, v): (usize, f64)| {
            // Written so that NaN is refused too.
            if v.is_finite() && v.abs() <= bound {
                return Ok((v * scale).round() as i64);
            }
            let channel = index / plane.max(1);
            let (mean, std) = (f64::from(mean[channel]), f64::from(std[channel]));
            Err(InputError::Beyond {
                index,
                channel,
                value: values[index].into(),
                low: mean - bound * std,
                high: mean + bound * std,
            })
        };
        self.normalised(values, 1.0).enumerate().map(one).collect()
    }

    /// The integers of bytes.
    fn integers_of_bytes(&self, pixels: &[u8], frac_bits: u8) -> Result<Vec<i64>, InputError> {
        Ok(match self {
            Preprocessing::Channels { .. } => {
                let scale = f64::from(frac_bits).exp2();
                let values = self.normalised(pixels, 255.0);
                values.map(|v| (v * scale).round() as i64).collect()
            }
            Preprocessing::Values { .. } => self.integers_of_values(pixels, frac_bits)?,
            Preprocessing::Image { floor } => {
                let n = pixels.len() as i128;
                let sum: u64 = pixels.iter().map(|&p| u64::from(p)).sum();
                let squares: u64 = pixels.iter().map(|&p| u64::from(p) * u64::from(p)).sum();
                let sum = i128::from(sum);
                // n <= 2^24, so n^2 times a variance of at most 127.5^2 is below 2^62.
                let spread = (n * i128::from(squares) - sum * sum).unsigned_abs();
                let root = (spread << (2 * ROOT_BITS)).isqrt() as i128;
                let divisor = root.max((i128::from((*floor).max(1)) * n) << ROOT_BITS);
                // |n p - S| < 2^32, times at most 2^80.
                let shift = ROOT_BITS + u32::from(frac_bits.min(48));
                let value = |&p: &u8| {
                    let dividend = (n * i128::from(p) - sum) << shift;
                    let magnitude = (2 * dividend.abs() + divisor) / (2 * divisor);
                    (dividend.signum() * magnitude) as i64
                };
                pixels.iter().map(value).collect()
            }
        })
    }

    /// Largest magnitude of an integer that an input of `elements` elements can become at scale
    /// `2^frac_bits`, or `i64::MAX` beyond that; `None` where every channel has its own range.
    ///
    /// Real values have the bound. Of an image two bounds hold. With `n` bytes,
    /// `|p - mean| <= 255 (n - 1) / n`, and the divisor is at least the floor. And no value is
    /// further than `sqrt(n - 1)` deviations from its mean (Samuelson, 1968), with one unit for the
    /// deviation that was rounded down and one for the quotient.
    pub(crate) fn largest(&self, elements: usize, frac_bits: u8) -> Option<i64> {
        let floor = match self {
            Preprocessing::Channels { .. } => return None,
            Preprocessing::Values { bound, .. } => {
                let bound = bound.map_or(f64::INFINITY, f64::from);
                return Some((bound * f64::from(frac_bits).exp2()).round() as i64);
            }
            Preprocessing::Image { floor } => floor,
        };
        let n = elements.clamp(1, limits::ELEMENTS) as u128;
        let frac_bits = frac_bits.min(48);
        let floor = u128::from((*floor).max(1));
        let by_floor = ((255 * (n - 1)) << frac_bits).div_ceil(floor * n);
        let by_deviation = ((n - 1) << (2 * frac_bits)).isqrt() + 2;
        Some(i64::try_from(by_floor.min(by_deviation)).unwrap_or(i64::MAX))
    }

    /// Values of the channels in turn, `(v / unit - mean) / std`; none where an image has its own
    /// statistics.
    fn normalised<'a, T: Copy + Into<f64>>(
        &'a self,
        values: &'a [T],
        unit: f64,
    ) -> impl Iterator<Item = f64> + 'a {
        let (mean, std): (&[f32], &[f32]) = match self {
            Preprocessing::Channels { mean, std } | Preprocessing::Values { mean, std, .. } => {
                (mean, std)
            }
            Preprocessing::Image { .. } => (&[], &[]),
        };
        let plane = values.len() / mean.len().max(1);
        let channels = values.chunks_exact(plane.max(1)).zip(mean.iter().zip(std));
        channels.flat_map(move |(plane, (&mean, &std))| {
            let (mean, std) = (f64::from(mean), f64::from(std));
            let normalise = move |&v: &T| (v.into() / unit - mean) / std;
            plane.iter().map(normalise)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::random::Draw;

    fn images() -> Vec<Vec<u8>> {
        let mut draw = Draw::new(7);
        let mut images = vec![
            vec![0],
            vec![255],
            vec![90; 3 * 16],
            // The largest value in deviations, below the floor and far above it.
            [vec![0; 3071], vec![255]].concat(),
            [vec![255; 15], vec![0]].concat(),
            [vec![0; 8], vec![255; 8]].concat(),
        ];
        for size in [2usize, 12, 300, 3072] {
            for span in [1, 8, 40, 256] {
                let image = (0..size).map(|_| (draw.u64() % span) as u8);
                images.push(image.collect());
            }
        }
        images
    }

    #[test]
    fn integers_of_an_image_round_its_real_numbers() {
        for (index, image) in images().iter().enumerate() {
            for floor in [1, 20, 255] {
                let preprocessing = Preprocessing::Image { floor };
                let n = image.len() as f64;
                let mean = image.iter().map(|&p| f64::from(p)).sum::<f64>() / n;
                let square = image.iter().map(|&p| (f64::from(p) - mean).powi(2));
                let deviation = (square.sum::<f64>() / n).sqrt().max(f64::from(floor));
                let reals = preprocessing.reals(image);
                for frac_bits in [0, 6, 12, 20] {
                    let scale = f64::from(frac_bits).exp2();
                    let integers = preprocessing.integers_of_bytes(image, frac_bits).unwrap();
                    assert_eq!(integers.len(), image.len());
                    let largest = preprocessing.largest(image.len(), frac_bits).unwrap();
                    for ((&p, &real), &integer) in image.iter().zip(&reals).zip(&integers) {
                        let exact = (f64::from(p) - mean) / deviation;
                        assert!((exact - f64::from(real)).abs() <= 1e-6 * exact.abs().max(1.0));
                        // Half a unit for the rounding, the root's error as the module states
                        // it, and what double precision loses.
                        let error = (exact * scale - integer as f64).abs();
                        let slack = (exact * scale).abs() * (-32f64).exp2() + 1e-6;
                        assert!(
                            error <= 0.5 + slack,
                            "image {index}, floor {floor}, {frac_bits} bits: {exact} is {integer}"
                        );
                        assert!(integer.abs() <= largest, "{integer} beyond {largest}");
                    }
                }
            }
        }
    }

    #[test]
    fn standardised_images_by_hand() {
        let integers = |image: &[u8], floor, frac_bits| {
            let preprocessing = Preprocessing::Image { floor };
            preprocessing.integers_of_bytes(image, frac_bits).unwrap()
        };
        // Mean 100, deviation 50: one deviation is 2^6. Below the floor of 100, half of that.
        assert_eq!(integers(&[50, 150], 20, 6), [-64, 64]);
        assert_eq!(integers(&[50, 150], 100, 6), [-32, 32]);
        // Half a unit rounds away from zero: 1/2 at 2^0, and 1/8 at 2^2.
        assert_eq!(integers(&[0, 1, 0, 1], 1, 0), [-1, 1, -1, 1]);
        assert_eq!(integers(&[0, 1, 0, 1], 4, 2), [-1, 1, -1, 1]);
        assert_eq!(integers(&[7; 5], 20, 10), [0; 5]);
    }

    #[test]
    fn the_largest_value_is_reached() {
        // One white pixel among 3071 black ones: the deviation is 4.6, below the floor.
        let image = [vec![0; 3071], vec![255]].concat();
        let standardise = Preprocessing::Image { floor: 20 };
        assert_eq!(standardise.largest(3072, 10), Some(13_052));
        let integers = |image: &[u8]| standardise.integers_of_bytes(image, 10).unwrap();
        assert_eq!(integers(&image)[3071], 13_052);
        // Among 15, it is 61.7, above the floor: 3.87 deviations, sqrt(15).
        let image = [vec![0; 15], vec![255]].concat();
        assert_eq!(integers(&image)[15], 3966);
        assert_eq!(standardise.largest(16, 10), Some(3967));
        assert_eq!(Preprocessing::unit(3).largest(3072, 10), None);
    }
    /// Exact in double precision: sums and quotients of powers of two.
    #[test]
    fn values_by_hand() {
        let values = Preprocessing::Values {
            mean: vec![0.5, -2.0],
            std: vec![0.25, 4.0],
            bound: Some(8.0),
        };
        let input = Input::Values(vec![0.5, 0.25, 2.5, -2.0, 0.0, 30.0]);
        assert_eq!(
            values.reals_of(&input).unwrap(),
            [0.0, -1.0, 8.0, 0.0, 0.5, 8.0]
        );
        assert_eq!(
            values.integers(&input, 4).unwrap(),
            [0, -16, 128, 0, 8, 128]
        );
        // Half a unit rounds away from zero.
        let halves = Input::Values(vec![0.5 + 0.125, 0.5 - 0.125, 0.5, -2.0, -4.0, 0.0]);
        assert_eq!(values.integers(&halves, 0).unwrap(), [1, -1, 0, 0, -1, 1]);
        assert_eq!(values.largest(6, 4), Some(128));
        // A byte is a value: 2 is 6 deviations from 0.5, and 1 of 4 from -2.
        let bytes = Input::Bytes(vec![2, 2]);
        assert_eq!(values.integers(&bytes, 4).unwrap(), [96, 16]);
        assert_eq!(values.reals_of(&bytes).unwrap(), [6.0, 1.0]);
    }

    #[test]
    fn values_beyond_the_bound_are_refused_and_named() {
        let values = Preprocessing::Values {
            mean: vec![0.5, -2.0],
            std: vec![0.25, 4.0],
            bound: Some(8.0),
        };
        for (index, value) in [
            (0, f64::NAN),
            (1, f64::INFINITY),
            (3, f64::NEG_INFINITY),
            (2, f64::MAX),
            (0, 2.5f64.next_up()),
            (1, -1.5f64 - 1e-9),
            (3, 30.5),
        ] {
            let mut input = vec![0.5, 0.5, -2.0, -2.0];
            input[index] = value;
            let error = values.integers(&Input::Values(input), 10).unwrap_err();
            let message = error.to_string();
            let InputError::Beyond {
                index: at,
                channel,
                low,
                high,
                ..
            } = error
            else {
                panic!("{error}");
            };
            assert_eq!((at, channel), (index, index / 2));
            assert_eq!((low, high), [(-1.5, 2.5), (-34.0, 30.0)][index / 2]);
            assert!(
                message.contains(&format!("value {index} is {value}")),
                "{message}"
            );
        }
        let pictures = Preprocessing::unit(1);
        let real = Input::Values(vec![0.5]);
        assert_eq!(pictures.integers(&real, 4), Err(InputError::Kind));
        assert_eq!(pictures.reals_of(&real), Err(InputError::Kind));
    }
}
