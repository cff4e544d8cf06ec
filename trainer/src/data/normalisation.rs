//! Mean and deviation of the pixels, which travel with the model.

use anyhow::{Result, ensure};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::Dataset;

/// Mean and standard deviation per channel, of pixels scaled to 0..1.
///
/// It is kept in the checkpoint and written into the exported graph: a client normalises its image
/// as the model was trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Normalisation {
    /// Per-channel mean.
    pub mean: Vec<f32>,
    /// Per-channel standard deviation.
    pub std: Vec<f32>,
}

impl Normalisation {
    /// Normalisation of the training images of CIFAR-10, JPEG quality 75, as libjpeg decodes them.
    ///
    /// [`Self::measure`] gives means of 0.4923, 0.4813 and 0.4479 for what is trained on, and the
    /// same deviations: the decoder used here rounds chroma up, by a quarter of a level of 255 on
    /// average (measured against libjpeg-turbo on the test batch, where 78 % of the values are
    /// equal and none differs by more than 4). The constants stand, so that runs and models made
    /// with them go on as they are; 0.001 is 0.4 % of a deviation.
    pub fn cifar10() -> Self {
        Self {
            mean: vec![0.4913, 0.4821, 0.4465],
            std: vec![0.2452, 0.2428, 0.2606],
        }
    }

    /// Normalisation by all pixels of a set, rounded to four digits.
    ///
    /// The sums are of integers, so the result depends neither on the order of the images nor on
    /// the machine.
    ///
    /// # Errors
    /// A set without images, or a channel whose pixels are all equal.
    ///
    /// # Cost
    /// One pass over the bytes on all cores.
    pub fn measure(set: &Dataset) -> Result<Self> {
        ensure!(!set.is_empty(), "no image to measure mean and deviation of");
        let [channels, height, width] = set.shape;
        let plane = height * width;
        let sums = |image: &[u8]| -> Vec<[u64; 2]> {
            let of_plane = |plane: &[u8]| {
                plane.iter().fold([0u64; 2], |[sum, squares], byte| {
                    let value = u64::from(*byte);
                    [sum + value, squares + value * value]
                })
            };
            image.chunks_exact(plane).map(of_plane).collect()
        };
        let add = |mut a: Vec<[u64; 2]>, b: Vec<[u64; 2]>| {
            for (a, b) in a.iter_mut().zip(b) {
                *a = [a[0] + b[0], a[1] + b[1]];
            }
            a
        };
        let total = set
            .images
            .par_chunks_exact(set.bytes())
            .map(sums)
            .reduce(|| vec![[0; 2]; channels], add);
        let count = (set.len() * plane) as f64;
        let round = |value: f64| ((value * 1e4).round() / 1e4) as f32;
        let (mut mean, mut std) = (Vec::new(), Vec::new());
        for (channel, [sum, squares]) in total.into_iter().enumerate() {
            let (first, second) = (sum as f64 / count, squares as f64 / count);
            let deviation = (second - first * first).max(0.0).sqrt() / 255.0;
            ensure!(
                deviation >= 1e-4,
                "all pixels of channel {channel} have nearly one value: these images tell nothing"
            );
            mean.push(round(first / 255.0));
            std.push(round(deviation));
        }
        Ok(Self { mean, std })
    }

    /// Factor and addend of a channel that take a byte to its normalised value.
    pub(super) fn affine(&self, channel: usize) -> [f32; 2] {
        let (mean, std) = (self.mean[channel], self.std[channel]);
        [1.0 / (255.0 * std), -mean / std]
    }

    /// The byte of a normalised value, the nearest one.
    pub(super) fn byte(&self, channel: usize, value: f32) -> u8 {
        let pixel = value * self.std[channel] + self.mean[channel];
        (pixel * 255.0).round().clamp(0.0, 255.0) as u8
    }
}

#[cfg(test)]
mod tests {
    use super::super::augment;
    use super::super::files::tests::error;
    use super::*;

    #[test]
    fn normalised_pixels_have_mean_zero_and_deviation_one() {
        let set = Dataset {
            shape: [2, 3, 5],
            images: (0..30 * 40u32).map(|i| (i * i * 7 % 251) as u8).collect(),
            labels: vec![0; 40],
        };
        let normalisation = Normalisation::measure(&set).unwrap();
        let indices: Vec<usize> = (0..40).collect();
        let values = augment::plain(&set, &indices, &augment::tables(&normalisation));
        for channel in 0..2 {
            let of: Vec<f64> = values
                .chunks(15)
                .skip(channel)
                .step_by(2)
                .flatten()
                .map(|value| f64::from(*value))
                .collect();
            let mean = of.iter().sum::<f64>() / of.len() as f64;
            let square = of.iter().map(|v| v * v).sum::<f64>() / of.len() as f64;
            // Mean and deviation are rounded to 5e-5, of a deviation of about 0.28.
            assert!(
                mean.abs() < 3e-4 && (square - 1.0).abs() < 6e-4,
                "{mean} {square}"
            );
        }
        for (value, byte) in values[..15].iter().zip(set.image(0)) {
            assert_eq!(normalisation.byte(0, *value), *byte);
        }
    }

    #[test]
    fn images_without_contrast_are_refused() {
        let flat = Dataset {
            shape: [1, 2, 2],
            images: vec![9; 8],
            labels: vec![0, 1],
        };
        assert!(error(Normalisation::measure(&flat)).contains("one value"));
        assert!(error(Normalisation::measure(&Dataset::empty([1, 2, 2]))).contains("no image"));
    }
}
