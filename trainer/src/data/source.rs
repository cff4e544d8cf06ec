//! A data set on the disk, from which come the images to train on, to make choices on, and to
//! measure results on.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};

use super::decode::Raw;
use super::{
    DataConfig, Dataset, Kind, Normalisation, NormalisationConfig, cache, cifar, folder, idx, pack,
    procedural, tiny,
};

/// Images to train on and images to make choices on.
///
/// The test images are not among them: [`Source::test`] loads those, once, for the result.
#[derive(Clone, Debug)]
pub struct Sets {
    /// Name in reports: "CIFAR-10, JPEG quality 75" when it is read from the JPEG archives.
    pub description: String,
    /// Names of the classes, in label order.
    pub classes: Vec<String>,
    /// Training images, at most `data.limit`.
    pub train: Dataset,
    /// The last `data.holdout` training images.
    pub holdout: Dataset,
    /// As `data.normalisation` says; by channels it is mean and deviation of all training images,
    /// rounded to four digits, and for the JPEG archives of CIFAR-10 [`Normalisation::cifar10`].
    pub normalisation: Normalisation,
}

/// A data set that was found, none of whose images are read yet.
pub struct Source {
    config: DataConfig,
    pub(super) reader: Box<dyn Reader>,
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

    /// Name of the set in reports.
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
        let normalisation = match (self.config.normalisation, self.reader.normalisation()) {
            (NormalisationConfig::Image { floor }, _) => Normalisation::Image { floor },
            (NormalisationConfig::Channels, Some(known)) => known,
            (NormalisationConfig::Channels, None) => Normalisation::measure(&train)?,
        };
        ensure!(
            self.config.holdout < train.len(),
            "data.holdout is {}, which leaves none of the {} training images of {} to train on",
            self.config.holdout,
            train.len(),
            self.description
        );
        let holdout = match self.config.holdout_parts {
            None => train.split_off(self.config.holdout),
            Some(parts) => {
                let even = |count: usize| parts > 0 && count.is_multiple_of(parts);
                ensure!(
                    even(train.len()) && even(self.config.holdout),
                    "data.holdout_parts is {parts}, which must divide data.holdout ({}) and the \
                     number of training images ({})",
                    self.config.holdout,
                    train.len()
                );
                train.split_heads(self.config.holdout, parts)
            }
        };
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

    /// Reads a part, decoded; from the cache where that is worth it.
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

    /// Reads a part as its files hold it.
    pub(super) fn raw(&self, part: Part) -> Result<Raw> {
        self.reader.read(part)
    }
}

/// The training or the test half of a data set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Train,
    Test,
}

impl Part {
    pub(super) fn name(self) -> &'static str {
        match self {
            Part::Train => "train",
            Part::Test => "test",
        }
    }
}

/// A form that a data set is published in.
pub(super) trait Reader {
    /// Name of the set in reports.
    fn description(&self) -> String;

    /// Names of the classes, in label order.
    fn classes(&self) -> Vec<String>;

    /// Files of a part whose decoded images are worth keeping in the cache; none where reading is
    /// as fast.
    fn files(&self, part: Part) -> Result<Option<Vec<PathBuf>>>;

    /// Reads a part, its images as the files hold them.
    fn read(&self, part: Part) -> Result<Raw>;

    /// Reads a part and decodes it.
    fn decode(&self, part: Part) -> Result<Dataset> {
        self.read(part)?.decode()
    }

    /// Mean and deviation that are known for the set or came with it.
    fn normalisation(&self) -> Option<Normalisation> {
        None
    }
}
