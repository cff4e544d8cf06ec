//! The table `[data]` of an experiment file.

use std::path::PathBuf;

use anyhow::{Result, bail, ensure};
use serde::{Deserialize, Serialize};

use super::NormalisationConfig;

/// A data set: its kind, where its files are, and how many images of it are used for what.
///
/// One table for all kinds; [`Self::check`] refuses a key that means nothing for the kind. `path`
/// is the folder that holds the files of the set, or one file that `pi-train pack` wrote of it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DataConfig {
    /// The data set.
    #[serde(default)]
    pub kind: Kind,
    /// Folder or packed file; none for drawn images.
    #[serde(default)]
    pub path: PathBuf,
    /// Folder for decoded images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cache: Option<PathBuf>,
    /// Training images held out for every choice; the last ones, unless `holdout_parts` is given.
    #[serde(default = "holdout")]
    pub holdout: usize,
    /// Cuts the training images into this many equal parts, each of which has its first
    /// `holdout / holdout_parts` images held out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub holdout_parts: Option<usize>,
    /// Training images used, the first ones (all if absent).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<usize>,
    /// Normalisation of the pixels.
    #[serde(default)]
    pub normalisation: NormalisationConfig,
    /// Name of the set in reports, instead of its usual one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// Rows and columns of an image. MNIST and Fashion-MNIST: 32 (28 padded by 2 of background on
    /// each side, the usual value) or 28. Tiny-ImageNet: 64 (the usual value) or 32, the mean of
    /// 2x2 pixels. Folders and drawn images: any from 8 to 512; 32 is the usual value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub size: Option<usize>,
    /// Colour channels, 1 or 3. MNIST and Fashion-MNIST: 1 is the usual value, 3 repeats the grey.
    /// Folders and drawn images: 3 is the usual value, 1 is the luma.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub channels: Option<usize>,
    /// Drawn images, and the split of folders without `test`: the seed, 0 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// Folders without `test`: share of each class that becomes the test set, 0.1 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_share: Option<f64>,
    /// Drawn images: training images, 20,000 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub train_images: Option<usize>,
    /// Drawn images: test images, 5,000 if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub test_images: Option<usize>,
}

fn holdout() -> usize {
    5000
}

/// A data set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// CIFAR-10: record files, or JPEG archives.
    #[default]
    Cifar10,
    /// CIFAR-100 with its fine labels: record files.
    Cifar100,
    /// MNIST: idx files, plain or gzipped.
    Mnist,
    /// Fashion-MNIST: idx files, plain or gzipped.
    FashionMnist,
    /// Tiny-ImageNet-200: the JPEG tree, tar.xz parts of it, or flat records.
    TinyImagenet,
    /// A folder of PNG or JPEG files for each class.
    Folder,
    /// Shapes drawn by code.
    Procedural,
}

impl Kind {
    /// Name in an experiment file.
    pub fn name(self) -> &'static str {
        match self {
            Kind::Cifar10 => "cifar10",
            Kind::Cifar100 => "cifar100",
            Kind::Mnist => "mnist",
            Kind::FashionMnist => "fashion-mnist",
            Kind::TinyImagenet => "tiny-imagenet",
            Kind::Folder => "folder",
            Kind::Procedural => "procedural",
        }
    }
}

impl DataConfig {
    /// Checks that all keys fit the kind.
    ///
    /// # Errors
    /// A missing path, a key that means nothing for the kind, a value out of range.
    pub fn check(&self) -> Result<()> {
        use Kind::{FashionMnist, Folder, Mnist, Procedural, TinyImagenet};
        let kind = self.kind;
        let only = |given: bool, key: &str, kinds: &[Kind]| -> Result<()> {
            ensure!(
                !given || kinds.contains(&kind),
                "data.{key} means nothing for data.kind = \"{}\": remove it",
                kind.name()
            );
            Ok(())
        };
        let resized = [Mnist, FashionMnist, TinyImagenet, Folder, Procedural];
        only(self.size.is_some(), "size", &resized)?;
        let coloured = [Mnist, FashionMnist, Folder, Procedural];
        only(self.channels.is_some(), "channels", &coloured)?;
        only(self.seed.is_some(), "seed", &[Folder, Procedural])?;
        only(self.test_share.is_some(), "test_share", &[Folder])?;
        only(self.train_images.is_some(), "train_images", &[Procedural])?;
        only(self.test_images.is_some(), "test_images", &[Procedural])?;
        self.normalisation.check()?;
        let has_path = !self.path.as_os_str().is_empty();
        ensure!(
            has_path || kind == Procedural,
            "data.path is missing: name the folder of the data set"
        );
        ensure!(
            !has_path || kind != Procedural,
            "data.path means nothing for drawn images: remove it"
        );
        match (kind, self.size) {
            (_, None) => {}
            (Mnist | FashionMnist, Some(28 | 32)) | (TinyImagenet, Some(32 | 64)) => {}
            (Folder | Procedural, Some(8..=512)) => {}
            (Mnist | FashionMnist, Some(size)) => bail!("data.size is {size}, must be 28 or 32"),
            (TinyImagenet, Some(size)) => bail!("data.size is {size}, must be 32 or 64"),
            (_, Some(size)) => bail!("data.size is {size}, must be in 8..=512"),
        }
        if let Some(channels) = self.channels {
            ensure!(
                channels == 1 || channels == 3,
                "data.channels is {channels}, must be 1 or 3"
            );
        }
        if let Some(share) = self.test_share {
            ensure!(
                share > 0.0 && share < 1.0,
                "data.test_share is {share}, must be above 0 and below 1"
            );
        }
        ensure!(self.limit != Some(0), "data.limit must be at least 1");
        for (key, count) in [
            ("train_images", self.train_images),
            ("test_images", self.test_images),
        ] {
            ensure!(
                count.is_none_or(|count| (1..=10_000_000).contains(&count)),
                "data.{key} must be in 1..=10000000"
            );
        }
        Ok(())
    }

    /// Rows and columns of an image, the usual ones if none are given.
    pub(super) fn side(&self) -> usize {
        self.size.unwrap_or(match self.kind {
            Kind::TinyImagenet => 64,
            _ => 32,
        })
    }

    /// Colour channels, the usual ones if none are given.
    pub(super) fn colours(&self) -> usize {
        self.channels.unwrap_or(match self.kind {
            Kind::Mnist | Kind::FashionMnist => 1,
            _ => 3,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<DataConfig> {
        let config: DataConfig = toml::from_str(text)?;
        config.check()?;
        Ok(config)
    }

    #[test]
    fn the_keys_of_before_are_those_of_cifar10() {
        let config = parse("path = \"somewhere\"\ncache = \"c\"\nlimit = 7").unwrap();
        assert_eq!((config.kind, config.holdout), (Kind::Cifar10, 5000));
        assert_eq!((config.side(), config.colours()), (32, 3));
        let again: DataConfig = toml::from_str(&toml::to_string(&config).unwrap()).unwrap();
        assert_eq!(again, config);
    }

    #[test]
    fn every_kind_goes_by_its_name() {
        for kind in [
            Kind::Cifar10,
            Kind::Cifar100,
            Kind::Mnist,
            Kind::FashionMnist,
            Kind::TinyImagenet,
            Kind::Folder,
        ] {
            let config = parse(&format!("kind = \"{}\"\npath = \"p\"", kind.name())).unwrap();
            assert_eq!(config.kind, kind);
        }
        let drawn = parse("kind = \"procedural\"\nseed = 3\nsize = 64\nchannels = 1").unwrap();
        assert_eq!((drawn.side(), drawn.colours()), (64, 1));
    }

    #[test]
    fn keys_that_do_not_fit_are_refused_by_name() {
        let cases = [
            ("path = \"p\"\nsize = 32", "data.size means nothing"),
            ("kind = \"cifar10\"", "data.path"),
            ("kind = \"procedural\"\npath = \"p\"", "remove it"),
            (
                "kind = \"mnist\"\npath = \"p\"\nsize = 30",
                "must be 28 or 32",
            ),
            (
                "kind = \"tiny-imagenet\"\npath = \"p\"\nsize = 48",
                "32 or 64",
            ),
            (
                "kind = \"tiny-imagenet\"\npath = \"p\"\nchannels = 1",
                "data.channels means nothing",
            ),
            (
                "kind = \"folder\"\npath = \"p\"\nchannels = 2",
                "must be 1 or 3",
            ),
            (
                "kind = \"folder\"\npath = \"p\"\ntest_share = 1.0",
                "below 1",
            ),
            ("kind = \"folder\"\npath = \"p\"\nsize = 4", "8..=512"),
            ("path = \"p\"\nlimit = 0", "at least 1"),
            ("path = \"p\"\nfolder = 3", "unknown field"),
            ("kind = \"imagenet\"\npath = \"p\"", "unknown variant"),
        ];
        for (text, expected) in cases {
            let message = format!("{:#}", parse(text).expect_err(text));
            assert!(message.contains(expected), "{text}: {message}");
        }
    }
}
