//! Labelled images: where they come from, how they are normalised, and batches of them on the
//! device that trains.
//!
//! [`DataConfig`] names a data set and [`Source`] opens it: CIFAR-10 and CIFAR-100, MNIST and
//! Fashion-MNIST, Tiny-ImageNet, a folder of images, or images drawn by code; from the files the
//! set is published in, or from one packed file ([`pack`]). [`DeviceSet`] gives normalised and
//! augmented batches. Every file is checked before an image of it is used, and every error names
//! the file, what was expected of it and what to do.
//!
//! Training images come in an order that a prefix or a suffix can be cut from: sets whose files are
//! sorted by class are dealt out one image a class in turn, so that the held-out images, which are
//! the last ones, hold all classes.

mod augment;
mod cache;
mod cifar;
mod config;
mod decode;
mod device;
mod files;
mod folder;
mod idx;
mod inspect;
mod normalisation;
pub mod pack;
mod procedural;
mod tiny;

use anyhow::{Context, Result, ensure};
use rand_core::RngCore;

pub use augment::Augmentation;
pub use cifar::CLASSES as CIFAR10_CLASSES;
pub use config::{DataConfig, Kind};
pub use device::DeviceSet;
pub use inspect::{Summary, contact_sheet};
pub use normalisation::Normalisation;

use decode::Raw;

/// Labelled images, planar bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Dataset {
    /// Channels, rows and columns of every image.
    pub shape: [usize; 3],
    /// The planes of all images, one image after the other.
    pub images: Vec<u8>,
    /// One label per image.
    pub labels: Vec<u16>,
}

impl Dataset {
    /// A set without images.
    pub fn empty(shape: [usize; 3]) -> Self {
        Self {
            shape,
            images: Vec::new(),
            labels: Vec::new(),
        }
    }

    /// Bytes of one image.
    pub fn bytes(&self) -> usize {
        self.shape.iter().product()
    }

    /// Number of images.
    pub fn len(&self) -> usize {
        self.labels.len()
    }

    /// Whether there is no image.
    pub fn is_empty(&self) -> bool {
        self.labels.is_empty()
    }

    /// Bytes of image `index`.
    ///
    /// # Panics
    /// An index that is not below [`Self::len`].
    pub fn image(&self, index: usize) -> &[u8] {
        &self.images[index * self.bytes()..(index + 1) * self.bytes()]
    }

    /// Removes the last `count` images and returns them.
    pub fn split_off(&mut self, count: usize) -> Dataset {
        let keep = self.len().saturating_sub(count);
        Dataset {
            shape: self.shape,
            images: self.images.split_off(keep * self.bytes()),
            labels: self.labels.split_off(keep),
        }
    }

    /// Keeps the first `count` images at most.
    pub fn limit(&mut self, count: usize) {
        self.images.truncate(count.saturating_mul(self.bytes()));
        self.labels.truncate(count);
    }

    /// Adds the images of another set of the same shape.
    ///
    /// # Panics
    /// Another shape.
    pub fn append(&mut self, mut other: Dataset) {
        assert_eq!(self.shape, other.shape, "sets of two shapes");
        self.images.append(&mut other.images);
        self.labels.append(&mut other.labels);
    }

    /// The images in the order of `indices`.
    fn ordered(&self, indices: &[usize]) -> Dataset {
        let mut set = Dataset::empty(self.shape);
        set.images.reserve_exact(indices.len() * self.bytes());
        for index in indices {
            set.images.extend_from_slice(self.image(*index));
            set.labels.push(self.labels[*index]);
        }
        set
    }
}

/// What is trained on and what choices are made on.
///
/// The test images are not among them: [`Source::test`] loads those, once, for the result.
#[derive(Clone, Debug)]
pub struct Sets {
    /// What reports call it, "CIFAR-10, JPEG quality 75" when it is read from the JPEG archives.
    pub description: String,
    /// Names of the classes, in label order.
    pub classes: Vec<String>,
    /// Training images, at most `data.limit`.
    pub train: Dataset,
    /// The last `data.holdout` training images.
    pub holdout: Dataset,
    /// Mean and deviation of all training images, rounded to four digits; for the JPEG archives of
    /// CIFAR-10 [`Normalisation::cifar10`].
    pub normalisation: Normalisation,
}

/// Training and held-out images a run works on.
pub struct Data {
    /// What is trained on.
    pub train: DeviceSet,
    /// What choices are made on.
    pub holdout: DeviceSet,
}

/// A data set that was found, none of whose images are read yet.
pub struct Source {
    config: DataConfig,
    reader: Box<dyn Reader>,
    description: String,
    classes: Vec<String>,
}

impl Source {
    /// Looks for the files of a data set and reads the names of its classes.
    ///
    /// # Errors
    /// Keys that do not fit the kind, a file that is missing, class names that cannot be read.
    pub fn open(config: &DataConfig) -> Result<Self> {
        config.check()?;
        let reader: Box<dyn Reader> = if config.path.is_file() {
            Box::new(pack::PackFile::open(config)?)
        } else {
            match config.kind {
                Kind::Cifar10 => Box::new(cifar::Cifar10::open(config)?),
                Kind::Cifar100 => Box::new(cifar::Cifar100::open(config)?),
                Kind::Mnist | Kind::FashionMnist => Box::new(idx::Idx::open(config)?),
                Kind::TinyImagenet => Box::new(tiny::TinyImagenet::open(config)?),
                Kind::Folder => Box::new(folder::Folder::open(config)?),
                Kind::Procedural => Box::new(procedural::Procedural::open(config)),
            }
        };
        let classes = reader.classes();
        let description = config
            .description
            .clone()
            .unwrap_or_else(|| reader.description());
        Ok(Self {
            config: config.clone(),
            reader,
            description,
            classes,
        })
    }

    /// What reports call the set.
    pub fn description(&self) -> &str {
        &self.description
    }

    /// Names of the classes, in label order.
    pub fn classes(&self) -> &[String] {
        &self.classes
    }

    /// Reads the training images and holds some of them out.
    ///
    /// # Errors
    /// A file that is missing, short or corrupt; a holdout that leaves nothing to train on.
    pub fn sets(&self) -> Result<Sets> {
        let mut train = self.read(Part::Train)?;
        let normalisation = match self.reader.normalisation() {
            Some(known) => known,
            None => Normalisation::measure(&train)?,
        };
        ensure!(
            self.config.holdout < train.len(),
            "data.holdout is {}, which leaves none of the {} training images of {} to train on",
            self.config.holdout,
            train.len(),
            self.description
        );
        let holdout = train.split_off(self.config.holdout);
        if let Some(limit) = self.config.limit {
            train.limit(limit);
        }
        Ok(Sets {
            description: self.description.clone(),
            classes: self.classes.clone(),
            train,
            holdout,
            normalisation,
        })
    }

    /// Reads the test images.
    ///
    /// # Errors
    /// A file that is missing, short or corrupt.
    pub fn test(&self) -> Result<Dataset> {
        self.read(Part::Test)
    }

    /// One part, decoded; from the cache where that is worth it.
    fn read(&self, part: Part) -> Result<Dataset> {
        let set = match (&self.config.cache, self.reader.files(part)?) {
            (Some(folder), Some(files)) => {
                let (kind, side) = (self.config.kind.name(), self.config.side());
                let name = format!("{kind}-{side}-{}.images", part.name());
                let key = cache::key(&files, &self.config)?;
                cache::read_or_make(&folder.join(name), &key, || self.decode(part))?
            }
            _ => self.decode(part)?,
        };
        if let Some(label) = set
            .labels
            .iter()
            .find(|label| usize::from(**label) >= self.classes.len())
        {
            anyhow::bail!(
                "{} has an image of label {label}, but only {} classes",
                self.description,
                self.classes.len()
            );
        }
        Ok(set)
    }

    fn decode(&self, part: Part) -> Result<Dataset> {
        self.reader
            .decode(part)
            .with_context(|| format!("{}, {} images", self.description, part.name()))
    }

    /// One part as its files hold it.
    fn raw(&self, part: Part) -> Result<Raw> {
        self.reader.read(part)
    }
}

/// One half of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    Train,
    Test,
}

impl Part {
    fn name(self) -> &'static str {
        match self {
            Part::Train => "train",
            Part::Test => "test",
        }
    }
}

/// One form a data set is published in.
trait Reader {
    /// What reports call the set.
    fn description(&self) -> String;

    /// Names of the classes, in label order.
    fn classes(&self) -> Vec<String>;

    /// Files of a part whose decoded images are worth keeping in the cache; none where reading is
    /// as fast.
    fn files(&self, part: Part) -> Result<Option<Vec<std::path::PathBuf>>>;

    /// Reads a part, its images as the files hold them.
    fn read(&self, part: Part) -> Result<Raw>;

    /// As [`Self::read`], decoded.
    fn decode(&self, part: Part) -> Result<Dataset> {
        self.read(part)?.decode()
    }

    /// Mean and deviation that are known for the set or came with it.
    fn normalisation(&self) -> Option<Normalisation> {
        None
    }
}

/// Order that deals images sorted by class out one of each class in turn.
fn interleaved(labels: &[u16]) -> Vec<usize> {
    let mut seen = std::collections::BTreeMap::<u16, usize>::new();
    let ranks: Vec<usize> = labels
        .iter()
        .map(|label| {
            let next = seen.entry(*label).or_default();
            *next += 1;
            *next
        })
        .collect();
    let mut order: Vec<usize> = (0..labels.len()).collect();
    order.sort_by_key(|index| (ranks[*index], labels[*index]));
    order
}

/// A random order of `0..count`.
pub fn permutation(count: usize, rng: &mut impl RngCore) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    for last in (1..count).rev() {
        order.swap(last, (rng.next_u64() % (last as u64 + 1)) as usize);
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::ChaCha8Rng;
    use rand_core::SeedableRng;

    #[test]
    fn a_permutation_holds_each_index_once() {
        let mut order = permutation(1000, &mut ChaCha8Rng::seed_from_u64(1));
        assert_ne!(order[..10], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        order.sort_unstable();
        assert!(order.into_iter().eq(0..1000));
    }

    #[test]
    fn images_sorted_by_class_are_dealt_out_in_turn() {
        assert_eq!(interleaved(&[0, 0, 0, 1, 1, 2]), [0, 3, 5, 1, 4, 2]);
        // Already dealt out: nothing moves.
        assert_eq!(interleaved(&[0, 1, 2, 0, 1, 2]), [0, 1, 2, 3, 4, 5]);
    }

    #[test]
    fn a_set_is_cut_at_both_ends() {
        let mut set = Dataset {
            shape: [1, 1, 2],
            images: (0..10).collect(),
            labels: (0..5).collect(),
        };
        let last = set.split_off(2);
        assert_eq!(
            (last.labels.as_slice(), last.image(0)),
            (&[3, 4][..], &[6, 7][..])
        );
        set.limit(2);
        assert_eq!((set.len(), set.images.as_slice()), (2, &[0, 1, 2, 3][..]));
        set.limit(9);
        assert_eq!(set.len(), 2);
        set.append(last);
        assert_eq!(set.labels, [0, 1, 3, 4]);
        assert_eq!(set.ordered(&[3, 0]).images, [8, 9, 0, 1]);
    }
}
