//! From the bytes of an image to the numbers that a network reads, which travel with the model.

use anyhow::{Result, ensure};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::Dataset;

/// Normalisation of the pixels of an image.
///
/// It is kept in the checkpoint and written into the exported graph: a client normalises its image
/// as the model was trained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Normalisation {
    /// By mean and standard deviation of the set per channel, of pixels scaled to 0..1.
    Channels {
        /// Per-channel mean.
        mean: Vec<f32>,
        /// Per-channel standard deviation.
        std: Vec<f32>,
    },
    /// Each image by itself: `x = (p - mean) / max(deviation, floor)` of bytes `p`, with mean and
    /// deviation over all pixels and channels of the image as it is before augmentation. Light and
    /// contrast of a photograph are then no matter of the network's.
    Image {
        /// Least divisor, in 0..255: an image of one colour stays flat.
        #[serde(rename = "image_floor")]
        floor: u8,
    },
}

/// Choice of the [`Normalisation`] in an experiment file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields)]
pub enum NormalisationConfig {
    /// By the statistics of the set.
    #[default]
    Channels,
    /// Each image by itself.
    Image {
        /// Least divisor, in 0..255.
        #[serde(default = "floor")]
        floor: u8,
    },
}

fn floor() -> u8 {
    20
}

/// Factors and addends that take bytes to their normalised values.
pub(super) enum Affine {
    /// Those of each channel.
    Channels(Vec<[f32; 2]>),
    /// Those of each image of a set.
    Images(Vec<[f32; 2]>),
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
        Self::Channels {
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
        Ok(Self::Channels { mean, std })
    }

    /// Checks that images of so many channels can be normalised so.
    ///
    /// # Errors
    /// A normalisation for another number of channels, or one that divides by nothing.
    pub(crate) fn check(&self, channels: usize) -> Result<()> {
        let fits = match self {
            Self::Channels { mean, std } => {
                mean.len() == channels
                    && std.len() == channels
                    && mean.iter().all(|mean| mean.is_finite())
                    && std.iter().all(|std| std.is_finite() && *std > 0.0)
            }
            Self::Image { floor } => *floor > 0,
        };
        ensure!(
            fits,
            "the images' normalisation is not of their {channels} channels"
        );
        Ok(())
    }

    /// What takes the bytes of a set to their normalised values.
    ///
    /// # Panics
    /// A normalisation that [`Self::check`] refuses.
    pub(super) fn affine(&self, set: &Dataset) -> Affine {
        match self {
            Self::Channels { mean, std } => {
                assert_eq!(mean.len(), set.shape[0], "one mean a channel");
                let channels = mean.iter().zip(std);
                Affine::Channels(
                    channels
                        .map(|(mean, std)| [1.0 / (255.0 * std), -mean / std])
                        .collect(),
                )
            }
            Self::Image { floor } => {
                let images = set.images.par_chunks_exact(set.bytes().max(1));
                Affine::Images(images.map(|image| standardise(image, *floor)).collect())
            }
        }
    }
}

/// Factor and addend that standardise an image, from exact sums.
fn standardise(image: &[u8], floor: u8) -> [f32; 2] {
    let [sum, squares] = image.iter().fold([0u64; 2], |[sum, squares], byte| {
        let value = u64::from(*byte);
        [sum + value, squares + value * value]
    });
    let count = image.len() as f64;
    let mean = sum as f64 / count;
    let deviation = (squares as f64 / count - mean * mean).max(0.0).sqrt();
    let divisor = deviation.max(f64::from(floor));
    [(1.0 / divisor) as f32, (-mean / divisor) as f32]
}

impl NormalisationConfig {
    /// # Errors
    /// A floor of 0.
    pub(super) fn check(self) -> Result<()> {
        ensure!(
            self != Self::Image { floor: 0 },
            "data.normalisation: the floor must be at least 1, as a divisor"
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::augment::{self, Tables};
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
        let values = augment::plain(&set, &indices, &Tables::new(&set, &normalisation));
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
    }

    #[test]
    fn a_standardised_image_has_mean_zero_and_deviation_one_or_less() {
        let bright: Vec<u8> = (0..30u32).map(|i| (120 + i * i * 7 % 131) as u8).collect();
        let dull: Vec<u8> = bright.iter().map(|byte| byte / 16).collect();
        let set = Dataset {
            shape: [2, 3, 5],
            images: [&bright[..], &dull, &[9; 30]].concat(),
            labels: vec![0; 3],
        };
        let normalisation = Normalisation::Image { floor: 20 };
        let values = augment::plain(&set, &[2, 0, 1], &Tables::new(&set, &normalisation));
        let images: Vec<&[f32]> = values.chunks(30).collect();
        assert!(images[0].iter().all(|value| value.abs() < 1e-6));
        for (values, bytes) in images[1..].iter().zip([&bright, &dull]) {
            // In two passes and double precision, unlike the sums it is computed from.
            let mean = bytes.iter().map(|b| f64::from(*b)).sum::<f64>() / 30.0;
            let squares = bytes.iter().map(|b| (f64::from(*b) - mean).powi(2));
            let deviation = (squares.sum::<f64>() / 30.0).sqrt();
            assert_eq!(
                deviation > 20.0,
                bytes == &bright,
                "one above the floor, one below"
            );
            for (value, byte) in values.iter().zip(bytes) {
                let expected = (f64::from(*byte) - mean) / deviation.max(20.0);
                assert!(
                    (f64::from(*value) - expected).abs() < 2e-6,
                    "{value}, {expected}"
                );
            }
        }
    }

    #[test]
    fn a_normalisation_is_stored_as_it_was_and_by_its_floor() {
        let stored = serde_json::to_string(&Normalisation::cifar10()).unwrap();
        assert!(stored.starts_with("{\"mean\":["), "{stored}");
        for normalisation in [Normalisation::cifar10(), Normalisation::Image { floor: 20 }] {
            let text = serde_json::to_string(&normalisation).unwrap();
            let read: Normalisation = serde_json::from_str(&text).unwrap();
            assert_eq!(read, normalisation, "{text}");
        }
        assert!(error(Normalisation::Image { floor: 0 }.check(3)).contains("3 channels"));
        assert!(error(NormalisationConfig::Image { floor: 0 }.check()).contains("normalisation"));
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
