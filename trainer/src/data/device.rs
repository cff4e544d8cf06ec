//! Batches of a set on the device that trains.

use burn::tensor::{DType, Device, Int, Tensor, TensorData};

use super::augment::{self, Augmentation, BatchSeed, Draw, Tables, View};
use super::normalisation::Affine;
use super::{Dataset, Normalisation};
use crate::container::crc32;

/// Training and held-out images a run works on.
pub struct Data {
    /// Images to train on.
    pub train: DeviceSet,
    /// Images to make choices on.
    pub holdout: DeviceSet,
}

/// A set whose normalised batches appear on a device.
///
/// On a GPU the bytes of all images are uploaded once (1.2 GB for all of Tiny-ImageNet at 64x64)
/// and a batch is made there, of a few numbers an image that the host draws. On the processor the
/// images stay where they are and a batch is made by loops over their rows; tensor operations give
/// the same batch, bit for bit, in more time (the measurement is at [`Self::batch`]).
pub struct DeviceSet {
    shape: [usize; 3],
    labels: Vec<u16>,
    device: Device,
    fingerprint: u32,
    pixels: Pixels,
}

enum Pixels {
    Host { set: Dataset, tables: Tables },
    Device(Box<Uploaded>),
}

/// Images on the device.
struct Uploaded {
    /// `[n, c * h * w]` bytes.
    images: Tensor<2, Int>,
    affine: UploadedAffine,
}

/// What a byte is multiplied by, and what is added then.
enum UploadedAffine {
    /// Two of `[1, c, 1]`.
    Channels([Tensor<3>; 2]),
    /// Two of `[images, 1]`.
    Images([Tensor<2>; 2]),
}

impl DeviceSet {
    /// Takes over a set.
    ///
    /// # Panics
    /// A normalisation of another number of channels.
    pub fn new(set: Dataset, normalisation: Normalisation, device: &Device) -> Self {
        if *device != Device::flex() || set.is_empty() {
            return Self::uploaded(set, normalisation, device);
        }
        Self {
            shape: set.shape,
            labels: set.labels.clone(),
            device: device.clone(),
            fingerprint: fingerprint(&set),
            pixels: Pixels::Host {
                tables: Tables::new(&set, &normalisation),
                set,
            },
        }
    }

    /// Takes over a set as a GPU does, with tensor operations on every device.
    fn uploaded(set: Dataset, normalisation: Normalisation, device: &Device) -> Self {
        let of = |pairs: &[[f32; 2]], part: usize| {
            let values: Vec<f32> = pairs.iter().map(|pair| pair[part]).collect();
            Tensor::<1>::from_data(TensorData::new(values, [pairs.len()]), device)
        };
        let affine = match normalisation.affine(&set) {
            Affine::Channels(pairs) => UploadedAffine::Channels(
                [0, 1].map(|part| of(&pairs, part).reshape([1, pairs.len(), 1])),
            ),
            Affine::Images(pairs) => UploadedAffine::Images(
                [0, 1].map(|part| of(&pairs, part).reshape([pairs.len(), 1])),
            ),
        };
        let fingerprint = fingerprint(&set);
        let shape = [set.len(), set.bytes()];
        let images = Tensor::from_data(TensorData::new(set.images, shape), (device, DType::U8));
        Self {
            shape: set.shape,
            labels: set.labels,
            device: device.clone(),
            fingerprint,
            pixels: Pixels::Device(Box::new(Uploaded { images, affine })),
        }
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// True if there is no image.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Channels, rows and columns of every image.
    pub fn shape(&self) -> [usize; 3] {
        self.shape
    }

    /// Checksum of the bytes and the labels of all images, in their order.
    pub fn fingerprint(&self) -> u32 {
        self.fingerprint
    }

    /// Labels of these images.
    ///
    /// # Panics
    /// An index that is not below [`Self::len`].
    pub fn labels(&self, indices: &[usize]) -> Vec<usize> {
        indices
            .iter()
            .map(|index| usize::from(self.labels[*index]))
            .collect()
    }

    /// Normalised pixels without augmentation.
    ///
    /// # Shapes
    /// `[indices, c, h, w]`.
    ///
    /// # Panics
    /// An index that is not below [`Self::len`].
    pub fn plain(&self, indices: &[usize]) -> Tensor<4> {
        match &self.pixels {
            Pixels::Host { set, tables } => self.upload(augment::plain(set, indices, tables)),
            Pixels::Device(uploaded) => {
                let picked = self.select(&uploaded.images, indices);
                self.batched(self.normalised(uploaded, picked, indices))
            }
        }
    }

    /// Normalised pixels, each image cropped, flipped and cut out by what its own generator `(seed,
    /// position)` draws, or flipped by the epoch.
    ///
    /// # Shapes
    /// `[indices, c, h, w]`.
    ///
    /// # Panics
    /// An index that is not below [`Self::len`]; a shift that [`Augmentation::check`] refuses.
    ///
    /// # Cost
    /// On the device one selection of rows, one gather and two element-wise passes; from the host
    /// `h + w` numbers an image, twice that with cutout. On two cores of an AMD EPYC, busy with
    /// compilations, in the test profile: 377,000 images of 3x32x32 per second and 88,000 of
    /// 3x64x64 by the processor's loops, 30,000 and 3,800 by tensor operations on burn's `flex`
    /// (shift 4, flip, cutout 8, batches of 512; `benches/training.rs` measures the loops).
    pub fn batch(
        &self,
        indices: &[usize],
        augmentation: &Augmentation,
        seed: impl Into<BatchSeed>,
    ) -> Tensor<4> {
        let draws = augmentation.draws(indices, self.shape, seed.into());
        self.changed(indices, augmentation.shift, &draws)
    }

    /// Normalised pixels of a view of each image.
    ///
    /// # Shapes
    /// `[indices, c, h, w]`.
    ///
    /// # Panics
    /// An index that is not below [`Self::len`]; a shift that is not below the side of the image.
    pub fn view(&self, indices: &[usize], view: View) -> Tensor<4> {
        let [_, height, width] = self.shape;
        assert!(view.reach() < height.min(width), "a shift beyond the image");
        self.changed(indices, view.reach(), &vec![view.draw(); indices.len()])
    }

    fn changed(&self, indices: &[usize], shift: usize, draws: &[Draw]) -> Tensor<4> {
        match &self.pixels {
            Pixels::Host { set, tables } => {
                self.upload(augment::changed(set, indices, tables, shift, draws))
            }
            Pixels::Device(uploaded) => {
                let places = self.places(draws, shift);
                let picked = self.select(&uploaded.images, indices).gather(2, places);
                let pixels = self.batched(self.normalised(uploaded, picked, indices));
                match draws.iter().any(|draw| draw.hole.is_some()) {
                    false => pixels,
                    true => pixels * self.kept(draws),
                }
            }
        }
    }

    /// `[n, c, h * w]` bytes of these images.
    fn select(&self, images: &Tensor<2, Int>, indices: &[usize]) -> Tensor<3, Int> {
        // A GPU reads beyond its buffer without a word.
        let indices: Vec<i32> = indices
            .iter()
            .map(|index| {
                assert!(*index < self.len(), "image {index} of {}", self.len());
                i32::try_from(*index).expect("a set has fewer than 2^31 images")
            })
            .collect();
        let [channels, height, width] = self.shape;
        let count = indices.len();
        images
            .clone()
            .select(0, self.integers(indices, [count]))
            .reshape([count, channels, height * width])
    }

    /// `[n, c, h * w]` positions in its plane that each pixel of the crop shows.
    fn places(&self, draws: &[Draw], shift: usize) -> Tensor<3, Int> {
        let [channels, height, width] = self.shape;
        let count = draws.len();
        let rows: Vec<i32> = draws
            .iter()
            .flat_map(|draw| draw.rows(shift, height))
            .map(|row| (row * width) as i32)
            .collect();
        let columns: Vec<i32> = draws
            .iter()
            .flat_map(|draw| draw.columns(shift, width))
            .map(|column| column as i32)
            .collect();
        let rows = self.integers(rows, [count, height, 1]);
        let columns = self.integers(columns, [count, 1, width]);
        (rows + columns)
            .reshape([count, 1, height * width])
            .expand([count, channels, height * width])
    }

    /// `[n, 1, h, w]`: 0 in the cutout, 1 elsewhere.
    fn kept(&self, draws: &[Draw]) -> Tensor<4> {
        let [_, height, width] = self.shape;
        let count = draws.len();
        let span = |axis: usize, side: usize| -> Vec<f32> {
            draws
                .iter()
                .flat_map(|draw| {
                    let [from, to] = draw.hole.map_or([0, 0], |hole| hole[axis]);
                    (0..side).map(move |at| f32::from(u8::from((from..to).contains(&at))))
                })
                .collect()
        };
        let upload = |values, shape: [usize; 4]| {
            Tensor::<4>::from_data(TensorData::new(values, shape), &self.device)
        };
        let rows = upload(span(0, height), [count, 1, height, 1]);
        let columns = upload(span(1, width), [count, 1, 1, width]);
        (rows * columns).neg().add_scalar(1.0)
    }

    /// `[n, c, h * w]` normalised values of the bytes of these images.
    fn normalised(
        &self,
        uploaded: &Uploaded,
        bytes: Tensor<3, Int>,
        indices: &[usize],
    ) -> Tensor<3> {
        let [scale, offset] = match &uploaded.affine {
            UploadedAffine::Channels(affine) => affine.clone(),
            UploadedAffine::Images(affine) => {
                let count = indices.len();
                let rows = indices.iter().map(|index| *index as i32).collect();
                let rows = self.integers(rows, [count]);
                affine
                    .clone()
                    .map(|all| all.select(0, rows.clone()).reshape([count, 1, 1]))
            }
        };
        bytes.float() * scale + offset
    }

    fn integers<const D: usize>(&self, values: Vec<i32>, shape: [usize; D]) -> Tensor<D, Int> {
        Tensor::from_data(TensorData::new(values, shape), &self.device)
    }

    fn batched(&self, pixels: Tensor<3>) -> Tensor<4> {
        let count = pixels.dims()[0];
        let [c, h, w] = self.shape;
        pixels.reshape([count, c, h, w])
    }

    fn upload(&self, pixels: Vec<f32>) -> Tensor<4> {
        let [c, h, w] = self.shape;
        let n = pixels.len() / (c * h * w);
        Tensor::from_data(TensorData::new(pixels, [n, c, h, w]), &self.device)
    }
}

fn fingerprint(set: &Dataset) -> u32 {
    let shape: Vec<u8> = set
        .shape
        .iter()
        .flat_map(|side| side.to_le_bytes())
        .collect();
    let labels: Vec<u8> = set
        .labels
        .iter()
        .flat_map(|label| label.to_le_bytes())
        .collect();
    crc32(&[&shape, &set.images, &labels])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::Flip;

    fn set(shape: [usize; 3], count: usize) -> Dataset {
        let bytes: usize = shape.iter().product::<usize>() * count;
        Dataset {
            shape,
            images: (0..bytes as u32)
                .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
                .collect(),
            labels: (0..count as u16).collect(),
        }
    }

    fn values(batch: Tensor<4>) -> Vec<f32> {
        batch.into_data().try_into_vec().unwrap()
    }

    fn by_channel(channels: usize) -> Normalisation {
        Normalisation::Channels {
            mean: vec![0.4913, 0.4821, 0.4465][..channels].to_vec(),
            std: vec![0.2452, 0.2428, 0.2606][..channels].to_vec(),
        }
    }

    fn both(shape: [usize; 3], count: usize, normalisation: Normalisation) -> [DeviceSet; 2] {
        let device = Device::flex();
        [
            DeviceSet::new(set(shape, count), normalisation.clone(), &device),
            DeviceSet::uploaded(set(shape, count), normalisation, &device),
        ]
    }

    #[test]
    fn loops_and_tensor_operations_give_one_batch() {
        let indices = [3, 0, 7, 7, 19, 2];
        let each = Normalisation::Image { floor: 20 };
        for (shape, normalisation) in [
            ([3, 32, 32], by_channel(3)),
            ([1, 28, 28], by_channel(1)),
            ([3, 16, 20], by_channel(3)),
            ([3, 32, 32], each),
        ] {
            let [host, device] = both(shape, 20, normalisation);
            assert_eq!(values(host.plain(&indices)), values(device.plain(&indices)));
            for (shift, flip, cutout) in [
                (0, Flip::Never, 0),
                (4, Flip::Random, 0),
                (2, Flip::Alternating, 5),
                (7, Flip::Random, 12),
            ] {
                let augmentation = Augmentation {
                    shift,
                    flip,
                    cutout,
                };
                for seed in 0u64..20 {
                    let batch = host.batch(&indices, &augmentation, seed);
                    assert_eq!(batch.dims(), [6, shape[0], shape[1], shape[2]]);
                    let (ours, theirs) = (
                        values(batch),
                        values(device.batch(&indices, &augmentation, seed)),
                    );
                    assert_eq!(ours, theirs, "{shape:?}, {augmentation:?}, seed {seed}");
                }
            }
        }
    }

    #[test]
    fn views_shift_along_the_diagonal_and_mirror() {
        let shape = [3, 16, 20];
        for view in [(0, false), (1, false), (-1, true), (2, true)] {
            let view = View::new(view.0, view.1);
            let [host, device] = both(shape, 6, by_channel(3));
            let (seen, plain) = (
                values(host.view(&[4, 1], view)),
                values(host.plain(&[4, 1])),
            );
            assert_eq!(values(device.view(&[4, 1], view)), seen, "{view:?}");
            let (h, w) = (16i32, 20i32);
            let inside = |at: i32, side: i32| {
                if at < 0 {
                    -at
                } else {
                    at.min(2 * side - 2 - at)
                }
            };
            for (plane, (seen, plain)) in seen.chunks(320).zip(plain.chunks(320)).enumerate() {
                for (y, x) in (0..h).flat_map(|y| (0..w).map(move |x| (y, x))) {
                    let shift = i32::from(view.shift);
                    let column = if view.flip { w - 1 - x } else { x };
                    let (row, column) = (inside(y + shift, h), inside(column + shift, w));
                    let (seen, own) = (
                        seen[(y * w + x) as usize],
                        plain[(row * w + column) as usize],
                    );
                    assert_eq!(seen, own, "{view:?}, plane {plane}, {y}, {x}");
                }
            }
        }
    }

    #[test]
    fn a_fingerprint_is_of_bytes_labels_and_order() {
        let print = |set| DeviceSet::new(set, by_channel(1), &Device::flex()).fingerprint();
        let own = print(set([1, 8, 8], 9));
        let [host, device] = both([1, 8, 8], 9, by_channel(1));
        assert_eq!([host.fingerprint(), device.fingerprint()], [own; 2]);
        let mut other = set([1, 8, 8], 9);
        other.images[70] ^= 1;
        assert_ne!(print(other), own);
        let mut other = set([1, 8, 8], 9);
        other.labels.swap(2, 3);
        assert_ne!(print(other), own);
        let order = [1, 0, 2, 3, 4, 5, 6, 7, 8];
        assert_ne!(print(set([1, 8, 8], 9).ordered(&order)), own);
    }

    #[test]
    fn a_batch_depends_on_its_seed_alone() {
        let [host, _] = both([3, 32, 32], 64, by_channel(3));
        let indices: Vec<usize> = (0..64).collect();
        let batch = |seed: u64| values(host.batch(&indices, &Augmentation::default(), seed));
        let all = batch(5);
        assert_eq!(all, batch(5));
        assert_ne!(all, batch(6));
        let one = rayon::ThreadPoolBuilder::new()
            .num_threads(1)
            .build()
            .unwrap();
        assert_eq!(one.install(|| batch(5)), all);
    }

    #[test]
    fn labels_follow_the_indices() {
        let [host, device] = both([1, 8, 8], 9, by_channel(1));
        assert_eq!(host.labels(&[8, 0, 3]), [8, 0, 3]);
        assert_eq!(device.labels(&[8, 0, 3]), [8, 0, 3]);
        assert_eq!((device.len(), device.shape()), (9, [1, 8, 8]));
    }

    #[test]
    #[should_panic(expected = "image 9 of 9")]
    fn an_index_beyond_the_set_is_not_read() {
        let [_, device] = both([1, 8, 8], 9, by_channel(1));
        device.plain(&[9]);
    }
}
