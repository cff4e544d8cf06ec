//! Random crop, flip and cutout: the random choices for each image, and their application on the
//! CPU.

use std::borrow::Cow;

use anyhow::{Result, ensure};
use rand_core::RngCore;
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::normalisation::Affine;
use super::{Dataset, Normalisation};
use crate::random;

/// Random changes to training images. A key that a file lacks is that of
/// [`Augmentation::default`], whatever else it sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Augmentation {
    /// Largest shift of the random crop in pixels; reflection at the border, without the border
    /// pixel twice.
    pub shift: usize,
    /// Mirrors half of the images. Digits and letters are not what they were after it.
    pub flip: Flip,
    /// Side of the square whose pixels become the mean; 0 for none. Its centre is any pixel, so
    /// that a part of it may lie outside the image.
    pub cutout: usize,
}

impl Default for Augmentation {
    /// Shift by 4, flip, no cutout.
    fn default() -> Self {
        Self {
            shift: 4,
            flip: Flip::Random,
            cutout: 0,
        }
    }
}

/// Images that are mirrored; in a file `false`, `true` or `"alternating"`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "FlipKey", into = "FlipKey")]
pub enum Flip {
    /// None.
    Never,
    /// Half of them, drawn anew each time.
    Random,
    /// Each image in every other epoch, drawn once whether in even or odd ones (Jordan, airbench,
    /// arXiv 2404.00498): so two epochs show both of its sides.
    Alternating,
}

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum FlipKey {
    Given(bool),
    Named(String),
}

impl TryFrom<FlipKey> for Flip {
    type Error = String;

    fn try_from(key: FlipKey) -> Result<Self, String> {
        match key {
            FlipKey::Given(false) => Ok(Flip::Never),
            FlipKey::Given(true) => Ok(Flip::Random),
            FlipKey::Named(name) if name == "alternating" => Ok(Flip::Alternating),
            FlipKey::Named(name) => Err(format!(
                "augmentation.flip is \"{name}\", must be true, false or \"alternating\""
            )),
        }
    }
}

impl From<Flip> for FlipKey {
    fn from(flip: Flip) -> Self {
        match flip {
            Flip::Never => FlipKey::Given(false),
            Flip::Random => FlipKey::Given(true),
            Flip::Alternating => FlipKey::Named("alternating".to_owned()),
        }
    }
}

/// What the random changes to a batch depend on, beside the images in it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BatchSeed {
    /// Seed of what is drawn anew for the batch.
    pub batch: u64,
    /// Seed of the first flip of each image, the same in all epochs; for [`Flip::Alternating`].
    pub flips: u64,
    /// Epoch, counted from 0.
    pub epoch: usize,
}

impl From<u64> for BatchSeed {
    /// A batch of the first epoch.
    fn from(batch: u64) -> Self {
        Self {
            batch,
            ..Self::default()
        }
    }
}

impl Augmentation {
    /// Checks that images of `[c, h, w]` can be augmented so.
    ///
    /// # Errors
    /// A shift that is not below the side of the image.
    pub fn check(&self, shape: [usize; 3]) -> Result<()> {
        let side = shape[1].min(shape[2]);
        ensure!(
            self.shift < side,
            "augmentation.shift is {}, must be below the image's side of {side}",
            self.shift
        );
        Ok(())
    }

    /// The draws of the images named by `indices`.
    ///
    /// The image at position `i` of the batch draws from its own generator, `(seed, i)`: nothing
    /// depends on the number of threads, nor on the device. The first flip is drawn by the image's
    /// number in the set.
    ///
    /// # Panics
    /// A shift that [`Self::check`] refuses.
    pub(super) fn draws(&self, indices: &[usize], shape: [usize; 3], seed: BatchSeed) -> Vec<Draw> {
        let [_, height, width] = shape;
        assert!(
            self.shift < height.min(width),
            "a shift of {} on images of {height}x{width}",
            self.shift
        );
        indices
            .iter()
            .enumerate()
            .map(|(position, index)| {
                let mut rng = random::stream(seed.batch, position as u64);
                let mut draw = |bound: usize| (rng.next_u32() as usize) % bound;
                let across = draw(2 * self.shift + 1);
                let down = draw(2 * self.shift + 1);
                // Drawn for every kind of flip, so that what is drawn after it is the same.
                let drawn = draw(2) == 1;
                let flip = match self.flip {
                    Flip::Never => false,
                    Flip::Random => drawn,
                    Flip::Alternating => {
                        let first = random::stream(seed.flips, *index as u64).next_u32();
                        (first as usize ^ seed.epoch) & 1 == 1
                    }
                };
                let hole = (self.cutout > 0).then(|| {
                    let (row, column) = (draw(height), draw(width));
                    let span = |centre: usize, side: usize| {
                        let end = (centre + self.cutout.div_ceil(2)).min(side);
                        [centre.saturating_sub(self.cutout / 2), end]
                    };
                    [span(row, height), span(column, width)]
                });
                Draw {
                    down,
                    across,
                    flip,
                    hole,
                }
            })
            .collect()
    }
}

/// A view of an image, the same of every image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct View {
    /// Pixels that it is shifted by, along the diagonal; reflection at the border.
    pub shift: i8,
    /// True if it is mirrored.
    pub flip: bool,
}

impl View {
    /// A view shifted by so many pixels, and mirrored or not.
    pub fn new(shift: i8, flip: bool) -> Self {
        Self { shift, flip }
    }

    /// Largest shift, as an [`Augmentation`] has it.
    pub(super) fn reach(self) -> usize {
        usize::from(self.shift.unsigned_abs())
    }

    /// The changes to every image.
    pub(super) fn draw(self) -> Draw {
        let offset = if self.shift > 0 { 2 * self.reach() } else { 0 };
        Draw {
            down: offset,
            across: offset,
            flip: self.flip,
            hole: None,
        }
    }
}

/// The random changes to one image.
#[derive(Clone, Copy)]
pub(super) struct Draw {
    /// Offset of the crop in the padded image, `0..=2 * shift`.
    down: usize,
    across: usize,
    flip: bool,
    /// First row and column of the cutout, and those after its last.
    pub(super) hole: Option<[[usize; 2]; 2]>,
}

impl Draw {
    /// The row of the image that each row of the crop shows.
    pub(super) fn rows(&self, shift: usize, height: usize) -> impl Iterator<Item = usize> {
        let down = self.down;
        (0..height).map(move |y| reflect(y + down, shift, height))
    }

    /// The column of the image that each column of the crop shows.
    pub(super) fn columns(&self, shift: usize, width: usize) -> impl Iterator<Item = usize> {
        let (across, flip) = (self.across, self.flip);
        (0..width).map(move |x| {
            let column = if flip { width - 1 - x } else { x };
            reflect(column + across, shift, width)
        })
    }
}

/// Position `padded - shift`, mirrored into `0..side` at its ends.
fn reflect(padded: usize, shift: usize, side: usize) -> usize {
    let position = padded.abs_diff(shift);
    if position < side {
        position
    } else {
        2 * (side - 1) - position
    }
}

/// Normalised values of all bytes.
pub(super) enum Tables {
    /// By channel.
    Channels(Vec<[f32; 256]>),
    /// By image; a table is made of its factor and addend when it is needed.
    Images(Vec<[f32; 2]>),
}

impl Tables {
    /// Those of a set.
    pub(super) fn new(set: &Dataset, normalisation: &Normalisation) -> Self {
        match normalisation.affine(set) {
            Affine::Channels(pairs) => Tables::Channels(pairs.into_iter().map(table).collect()),
            Affine::Images(pairs) => Tables::Images(pairs),
        }
    }

    /// One for all channels of an image, or one for each of them.
    fn of(&self, image: usize) -> Cow<'_, [[f32; 256]]> {
        match self {
            Tables::Channels(tables) => Cow::Borrowed(tables),
            Tables::Images(pairs) => Cow::Owned(vec![table(pairs[image])]),
        }
    }
}

fn table([scale, shift]: [f32; 2]) -> [f32; 256] {
    std::array::from_fn(|byte| byte as f32 * scale + shift)
}

/// Normalised pixels of the images named by `indices`, `[n, c, h, w]`.
pub(super) fn plain(set: &Dataset, indices: &[usize], tables: &Tables) -> Vec<f32> {
    let [_, height, width] = set.shape;
    let (bytes, plane) = (set.bytes(), height * width);
    let mut out = vec![0.0; indices.len() * bytes];
    out.par_chunks_mut(bytes)
        .zip(indices)
        .for_each(|(out, index)| {
            let planes = out.chunks_mut(plane).zip(set.image(*index).chunks(plane));
            for ((out, image), table) in planes.zip(tables.of(*index).iter().cycle()) {
                for (out, byte) in out.iter_mut().zip(image) {
                    *out = table[usize::from(*byte)];
                }
            }
        });
    out
}

/// The same images as [`plain`] gives, changed by these draws of crops of at most `shift`.
pub(super) fn changed(
    set: &Dataset,
    indices: &[usize],
    tables: &Tables,
    shift: usize,
    draws: &[Draw],
) -> Vec<f32> {
    let [_, height, width] = set.shape;
    let (bytes, plane) = (set.bytes(), height * width);
    let mut out = vec![0.0; indices.len() * bytes];
    out.par_chunks_mut(bytes)
        .zip(indices)
        .zip(draws)
        .for_each(|((out, index), draw)| {
            let rows: Vec<usize> = draw.rows(shift, height).collect();
            let columns: Vec<usize> = draw.columns(shift, width).collect();
            let tables = tables.of(*index);
            let planes = out
                .chunks_mut(plane)
                .zip(set.image(*index).chunks(plane))
                .zip(tables.iter().cycle());
            for ((out, image), table) in planes {
                for (out, row) in out.chunks_mut(width).zip(&rows) {
                    let line = &image[row * width..(row + 1) * width];
                    for (out, column) in out.iter_mut().zip(&columns) {
                        *out = table[usize::from(line[*column])];
                    }
                }
                if let Some([[top, bottom], [left, right]]) = draw.hole {
                    for row in out.chunks_mut(width).take(bottom).skip(top) {
                        row[left..right].fill(0.0);
                    }
                }
            }
        });
    out
}

#[cfg(test)]
mod tests {
    use super::super::files::tests::error;
    use super::*;

    const SIDE: usize = 32;
    const PLANE: usize = SIDE * SIDE;

    /// An image whose red value tells the position and whose other planes are flat.
    fn gradient() -> Dataset {
        let mut images = vec![7; 3 * PLANE];
        for y in 0..SIDE {
            for x in 0..SIDE {
                images[y * SIDE + x] = (4 * y + 3 * x) as u8;
            }
        }
        Dataset {
            shape: [3, SIDE, SIDE],
            images,
            labels: vec![0],
        }
    }

    fn augmented(
        set: &Dataset,
        indices: &[usize],
        tables: &Tables,
        augmentation: &Augmentation,
        seed: BatchSeed,
    ) -> Vec<f32> {
        let draws = augmentation.draws(indices, set.shape, seed);
        changed(set, indices, tables, augmentation.shift, &draws)
    }

    fn unit() -> Tables {
        let normalisation = Normalisation::Channels {
            mean: vec![0.0; 3],
            std: vec![1.0 / 255.0; 3],
        };
        Tables::new(&gradient(), &normalisation)
    }

    #[test]
    fn a_key_changes_no_other_one() {
        let parse = |text: &str| toml::from_str::<Augmentation>(text).unwrap();
        let usual = Augmentation::default();
        assert_eq!(parse(""), usual);
        assert_eq!(parse("cutout = 8"), Augmentation { cutout: 8, ..usual });
        assert_eq!(
            parse("flip = false"),
            Augmentation {
                flip: Flip::Never,
                ..usual
            }
        );
        let alternating = parse("flip = \"alternating\"");
        assert_eq!(
            alternating,
            Augmentation {
                flip: Flip::Alternating,
                ..usual
            }
        );
        for flip in [Flip::Never, Flip::Random, Flip::Alternating] {
            let augmentation = Augmentation { flip, ..usual };
            let text = toml::to_string(&augmentation).unwrap();
            assert_eq!(parse(&text), augmentation, "{text}");
        }
        let refused = toml::from_str::<Augmentation>("flip = \"often\"").unwrap_err();
        assert!(
            refused
                .to_string()
                .contains("augmentation.flip is \"often\"")
        );
        assert_eq!(parse("shift = 2"), Augmentation { shift: 2, ..usual });
    }

    #[test]
    fn reflection_repeats_no_border_pixel() {
        let positions: Vec<usize> = [0, 3, 4, 35, 36, 39]
            .map(|padded| reflect(padded, 4, SIDE))
            .into();
        assert_eq!(positions, [4, 1, 0, 31, 30, 27]);
    }

    #[test]
    fn the_table_is_the_normalisation() {
        let normalisation = Normalisation::cifar10();
        let set = gradient();
        let values = plain(&set, &[0], &Tables::new(&set, &normalisation));
        let Normalisation::Channels { mean, std } = &normalisation else {
            panic!("that of CIFAR-10 is by channels")
        };
        for (position, (value, byte)) in values.iter().zip(set.image(0)).enumerate() {
            let channel = position / PLANE;
            let [mean, std] = [mean, std].map(|v| f64::from(v[channel]));
            let expected = (f64::from(*byte) / 255.0 - mean) / std;
            // Five roundings of numbers below 4, each by at most 2^-23.
            let difference = (f64::from(*value) - expected).abs();
            assert!(difference < 1e-6, "{position}: {value}, not {expected}");
        }
    }

    #[test]
    fn augmentation_shifts_and_flips_whole_images() {
        let set = gradient();
        let (mut flipped, mut shifts) = (0, std::collections::BTreeSet::new());
        for seed in 0..64 {
            let moved = augmented(&set, &[0], &unit(), &Augmentation::default(), seed.into());
            // The centre pixels lie in the image for every shift, so their slopes are those of the
            // gradient.
            let at = |y: usize, x: usize| moved[y * SIDE + x].round() as i32;
            let (down, right) = (at(16, 15) - at(15, 15), at(15, 16) - at(15, 15));
            assert_eq!(down, 4, "seed {seed}");
            assert!(right.abs() == 3, "seed {seed}: slope {right}");
            flipped += usize::from(right < 0);
            shifts.insert(at(15, 15));
            assert!(
                moved[PLANE..].iter().all(|v| v.round() == 7.0),
                "seed {seed}"
            );
        }
        assert!((16..48).contains(&flipped), "{flipped} of 64 flipped");
        assert!(shifts.len() > 20, "{} different crops", shifts.len());
    }

    #[test]
    fn without_shift_the_image_comes_back_or_its_mirror() {
        let set = gradient();
        let still = |flip: bool| Augmentation {
            shift: 0,
            flip: Flip::try_from(FlipKey::Given(flip)).unwrap(),
            cutout: 0,
        };
        let straight = plain(&set, &[0], &unit());
        let mirrored: Vec<f32> = straight
            .chunks(SIDE)
            .flat_map(|row| row.iter().rev().copied())
            .collect();
        let mut seen = [false; 2];
        for seed in 0..16 {
            let moved = augmented(&set, &[0], &unit(), &still(true), seed.into());
            assert!(moved == straight || moved == mirrored, "seed {seed}");
            seen[usize::from(moved == straight)] = true;
            assert_eq!(
                augmented(&set, &[0], &unit(), &still(false), seed.into()),
                straight
            );
        }
        assert_eq!(seen, [true; 2]);
    }

    #[test]
    fn alternating_flips_show_each_side_once_in_two_epochs() {
        let one = gradient();
        let set = Dataset {
            shape: one.shape,
            images: one.images.repeat(40),
            labels: vec![0; 40],
        };
        let alternating = Augmentation {
            shift: 0,
            flip: Flip::Alternating,
            cutout: 0,
        };
        let straight = plain(&one, &[0], &unit());
        // Whether each of these images is mirrored; it depends neither on the batch nor its seed.
        let mirrored = |indices: &[usize], seed| -> Vec<bool> {
            augmented(&set, indices, &unit(), &alternating, seed)
                .chunks(3 * PLANE)
                .map(|image| image != straight)
                .collect()
        };
        let at = |batch, flips, epoch| BatchSeed {
            batch,
            flips,
            epoch,
        };
        let all: Vec<usize> = (0..40).collect();
        let first = mirrored(&all, at(1, 5, 0));
        let count = first.iter().filter(|mirrored| **mirrored).count();
        assert!((8..=32).contains(&count), "{count} of 40 mirrored");
        let other: Vec<bool> = first.iter().map(|mirrored| !mirrored).collect();
        assert_eq!(mirrored(&all, at(2, 5, 1)), other);
        assert_eq!(mirrored(&all, at(3, 5, 2)), first);
        assert_eq!(mirrored(&[7, 3], at(3, 5, 2)), [first[7], first[3]]);
        assert_ne!(mirrored(&all, at(1, 6, 0)), first);
    }

    #[test]
    fn cutout_clears_one_square_of_every_channel() {
        let mut set = gradient();
        set.images.fill(100);
        let cut = Augmentation {
            shift: 0,
            flip: Flip::Never,
            cutout: 8,
        };
        let mut largest = 0;
        for seed in 0..64 {
            let out = augmented(&set, &[0], &unit(), &cut, seed.into());
            let planes: Vec<Vec<bool>> = out
                .chunks(PLANE)
                .map(|plane| plane.iter().map(|v| *v == 0.0).collect())
                .collect();
            assert!(
                planes[1] == planes[0] && planes[2] == planes[0],
                "seed {seed}"
            );
            let count = planes[0].iter().filter(|cleared| **cleared).count();
            assert!((16..=64).contains(&count), "seed {seed}: {count} cleared");
            largest = largest.max(count);
            let rows = planes[0].chunks(SIDE).filter(|row| row.contains(&true));
            let widths: Vec<usize> = rows
                .map(|row| row.iter().filter(|cleared| **cleared).count())
                .collect();
            assert!(
                widths.iter().all(|w| *w == widths[0]),
                "seed {seed}: no rectangle"
            );
        }
        assert_eq!(largest, 64);
    }

    #[test]
    fn a_shift_of_the_whole_image_is_refused() {
        let wide = Augmentation {
            shift: 32,
            ..Augmentation::default()
        };
        assert!(error(wide.check([3, 32, 32])).contains("below the image's side of 32"));
        assert!(wide.check([3, 64, 64]).is_ok());
    }
}
