//! A folder of images: one folder of PNG or JPEG files for each class.
//!
//! Either `train/<class>/*` and `test/<class>/*` (or `val`), or `<class>/*`, of which a share of
//! each class, drawn by `data.seed`, becomes the test set. Labels number the class folders in the
//! order of their names. The largest centred square of an image is resized to `data.size`; EXIF
//! orientation is not looked at.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use rayon::prelude::*;

use super::decode::{Decoder, Fit, ImageFile, Raw};
use super::{DataConfig, Dataset, Part, Reader, files, interleaved, permutation};
use crate::random;

/// A folder of class folders.
pub(super) struct Folder {
    root: PathBuf,
    decoder: Decoder,
    classes: Vec<String>,
    split: Split,
}

enum Split {
    /// Folders of these names hold the two parts.
    Folders { test: &'static str },
    /// Test images are drawn.
    Share { share: f64, seed: u64 },
}

impl Folder {
    pub(super) fn open(config: &DataConfig) -> Result<Self> {
        let root = config.path.clone();
        let test = ["test", "val"]
            .into_iter()
            .find(|name| root.join(name).is_dir());
        let split = if root.join("train").is_dir() {
            let test = test.with_context(|| {
                format!(
                    "{} has a folder train, but neither test nor val",
                    root.display()
                )
            })?;
            ensure!(
                config.test_share.is_none(),
                "data.test_share means nothing where the folders train and {test} are: remove it"
            );
            Split::Folders { test }
        } else {
            Split::Share {
                share: config.test_share.unwrap_or(0.1),
                seed: config.seed.unwrap_or(0),
            }
        };
        let folder = match &split {
            Split::Folders { .. } => root.join("train"),
            Split::Share { .. } => root.clone(),
        };
        let classes = files::folders(&folder)?;
        ensure!(
            (2..=usize::from(u16::MAX)).contains(&classes.len()),
            "{} has {} class folders, at least 2 are needed",
            folder.display(),
            classes.len()
        );
        if let Split::Folders { test } = &split {
            let theirs = files::folders(&root.join(test))?;
            let differs =
                |a: &[String], b: &[String]| a.iter().find(|name| !b.contains(name)).cloned();
            for (has, lacks, name) in [
                ("train", *test, differs(&classes, &theirs)),
                (*test, "train", differs(&theirs, &classes)),
            ] {
                if let Some(name) = name {
                    anyhow::bail!(
                        "in {}, {has} has a class {name}, {lacks} has not",
                        root.display()
                    );
                }
            }
        }
        let decoder = Decoder {
            side: config.side(),
            channels: config.colours(),
            fit: Fit::Crop,
        };
        Ok(Self {
            root,
            decoder,
            classes,
            split,
        })
    }

    /// Paths of a part, class by class.
    fn paths(&self, part: Part) -> Result<Vec<Vec<PathBuf>>> {
        let classes = self.classes.iter().zip(0u64..);
        let parent = match (&self.split, part) {
            (Split::Folders { .. }, Part::Train) => self.root.join("train"),
            (Split::Folders { test }, Part::Test) => self.root.join(test),
            (Split::Share { .. }, _) => self.root.clone(),
        };
        classes
            .map(|(class, stream)| {
                let all = images(&parent.join(class))?;
                let Split::Share { share, seed } = self.split else {
                    return Ok(all);
                };
                let count = all.len();
                let tests = (share * count as f64).ceil() as usize;
                ensure!(
                    tests < count,
                    "class {class} has {count} images, too few to train on with \
                     data.test_share = {share}"
                );
                let mut rng = random::stream(seed, stream);
                let mut chosen = permutation(count, &mut rng);
                match part {
                    Part::Test => chosen.truncate(tests),
                    Part::Train => drop(chosen.drain(..tests)),
                }
                chosen.sort_unstable();
                Ok(chosen.into_iter().map(|index| all[index].clone()).collect())
            })
            .collect()
    }

    /// Labels and paths of a part, dealt out one of each class in turn.
    fn dealt(&self, part: Part) -> Result<Vec<(u16, PathBuf)>> {
        let labelled = self.paths(part)?.into_iter().zip(0u16..);
        let all: Vec<(u16, PathBuf)> = labelled
            .flat_map(|(paths, label)| paths.into_iter().map(move |path| (label, path)))
            .collect();
        let labels: Vec<u16> = all.iter().map(|(label, _)| *label).collect();
        let order = interleaved(&labels).into_iter();
        Ok(order.map(|index| all[index].clone()).collect())
    }
}

/// The images in a class folder, by name.
fn images(folder: &Path) -> Result<Vec<PathBuf>> {
    let image = |name: &str| {
        let extension = name.rsplit_once('.').map_or("", |(_, extension)| extension);
        ["png", "jpg", "jpeg"]
            .iter()
            .any(|known| extension.eq_ignore_ascii_case(known))
    };
    let names = files::names(folder, image)?;
    ensure!(
        !names.is_empty(),
        "the class folder {} has no .png, .jpg or .jpeg file",
        folder.display()
    );
    Ok(names.into_iter().map(|name| folder.join(name)).collect())
}

impl Reader for Folder {
    fn description(&self) -> String {
        let name = self.root.file_name().unwrap_or(self.root.as_os_str());
        let side = self.decoder.side;
        format!("{}, images of {side}x{side}", name.to_string_lossy())
    }

    fn classes(&self) -> Vec<String> {
        self.classes.clone()
    }

    fn files(&self, part: Part) -> Result<Option<Vec<PathBuf>>> {
        Ok(Some(self.paths(part)?.into_iter().flatten().collect()))
    }

    fn read(&self, part: Part) -> Result<Raw> {
        let files = self.dealt(part)?;
        Ok(Raw::Files {
            decoder: self.decoder,
            files: files
                .par_iter()
                .map(|(label, path)| read(*label, path))
                .collect::<Result<_>>()?,
        })
    }

    // Photographs of some MB each would not all fit in memory: each is decoded where it is read.
    fn decode(&self, part: Part) -> Result<Dataset> {
        let files = self.dealt(part)?;
        let labels = files.iter().map(|(label, _)| *label).collect();
        self.decoder.all(labels, |index| {
            let (label, path) = &files[index];
            read(*label, path)
        })
    }
}

/// Reads an image file.
fn read(label: u16, path: &Path) -> Result<ImageFile> {
    let about = path
        .metadata()
        .with_context(|| format!("cannot read {}", path.display()))?;
    ensure!(
        about.len() <= files::MAX_IMAGE,
        "{} has {} bytes, at most {} are read",
        path.display(),
        about.len(),
        files::MAX_IMAGE
    );
    Ok(ImageFile {
        name: path.display().to_string(),
        label,
        bytes: files::read(path)?,
    })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::super::decode::tests::flat_jpeg;
    use super::super::files::tests::error;
    use super::super::{Kind, Source};
    use super::*;

    fn config(path: &Path) -> DataConfig {
        DataConfig {
            kind: Kind::Folder,
            path: path.to_owned(),
            holdout: 2,
            size: Some(16),
            ..DataConfig::default()
        }
    }

    /// Images of 24x24 whose red value is that of their class.
    fn class(folder: &Path, name: &str, red: u8, count: u8) {
        let folder = folder.join(name);
        fs::create_dir_all(&folder).unwrap();
        for index in 0..count {
            let jpeg = flat_jpeg(24, [red, 20 * index, 0]);
            fs::write(folder.join(format!("{index}.JPG")), jpeg).unwrap();
        }
        fs::write(folder.join("notes.txt"), "no image").unwrap();
        fs::write(folder.join(".hidden.png"), "no image").unwrap();
    }

    #[test]
    fn folders_named_train_and_test_split_the_set() {
        let folder = tempfile::tempdir().unwrap();
        for (name, red) in [("cat", 200), ("bird", 100)] {
            class(&folder.path().join("train"), name, red, 4);
            class(&folder.path().join("val"), name, red, 3);
        }
        let source = Source::open(&config(folder.path())).unwrap();
        assert_eq!(source.classes(), ["bird", "cat"]);
        let (sets, test) = (source.sets().unwrap(), source.test().unwrap());
        assert_eq!(
            (sets.train.labels, sets.holdout.labels),
            (vec![0, 1, 0, 1, 0, 1], vec![0, 1])
        );
        assert_eq!((test.len(), test.shape), (6, [3, 16, 16]));
        for (index, label) in test.labels.iter().enumerate() {
            let red = [100u8, 200][usize::from(*label)];
            assert!(test.image(index)[0].abs_diff(red) < 8);
        }
        class(&folder.path().join("train"), "dog", 0, 1);
        let message = error(Source::open(&config(folder.path())));
        assert!(
            message.contains("train has a class dog, val has not"),
            "{message}"
        );
        let share = DataConfig {
            test_share: Some(0.5),
            ..config(folder.path())
        };
        assert!(error(Source::open(&share)).contains("data.test_share means nothing where"));
    }

    #[test]
    fn a_share_of_each_class_is_drawn_by_the_seed() {
        let folder = tempfile::tempdir().unwrap();
        for (name, red) in [("a", 100), ("b", 200)] {
            class(folder.path(), name, red, 12);
        }
        let open = |seed| {
            let config = DataConfig {
                test_share: Some(0.25),
                seed: Some(seed),
                ..config(folder.path())
            };
            Source::open(&config).unwrap()
        };
        let parts = |seed| {
            let names = |part| -> Vec<String> {
                let Raw::Files { files, .. } = open(seed).raw(part).unwrap() else {
                    panic!("files")
                };
                files.into_iter().map(|file| file.name).collect()
            };
            (names(Part::Train), names(Part::Test))
        };
        let (train, test) = parts(1);
        assert_eq!((train.len(), test.len()), (18, 6));
        assert!(
            test.iter().all(|name| !train.contains(name)),
            "an image is in both parts"
        );
        assert_eq!(open(1).test().unwrap().labels, [0, 1, 0, 1, 0, 1]);
        assert_eq!(parts(1), (train, test.clone()));
        assert_ne!(parts(2).1, test);
    }

    #[test]
    fn what_is_missing_or_wrong_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path();
        let open = || Source::open(&config(path));
        assert!(error(open()).contains("0 class folders, at least 2"));
        let gone = DataConfig {
            path: path.join("gone"),
            ..config(path)
        };
        assert!(error(Source::open(&gone)).contains("cannot read the folder"));
        class(path, "a", 1, 4);
        class(path, "b", 200, 4);
        fs::create_dir(path.join("empty")).unwrap();
        let message = error(open().unwrap().sets());
        assert!(message.contains("empty has no .png"), "{message}");
        fs::write(path.join("empty/1.png"), flat_jpeg(8, [3; 3])).unwrap();
        let message = error(open().unwrap().sets());
        assert!(
            message.contains("class empty has 1 images, too few"),
            "{message}"
        );
        fs::write(path.join("empty/2.png"), b"no image").unwrap();
        fs::write(path.join("empty/3.png"), b"no image").unwrap();
        let message = error(open().unwrap().sets());
        assert!(message.contains(".png: cannot be used"), "{message}");
        fs::create_dir(path.join("train")).unwrap();
        assert!(error(open()).contains("neither test nor val"));
    }

    #[test]
    fn files_decoded_one_by_one_are_those_that_are_packed() {
        let folder = tempfile::tempdir().unwrap();
        for (name, red) in [("a", 0), ("b", 100), ("c", 200)] {
            class(folder.path(), name, red, 5);
        }
        let folder = Folder::open(&config(folder.path())).unwrap();
        for part in [Part::Train, Part::Test] {
            let all = folder.read(part).unwrap().decode().unwrap();
            assert_eq!(folder.decode(part).unwrap(), all);
        }
    }

    #[test]
    fn the_cache_follows_the_folder() {
        let (folder, cache) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        for (name, red) in [("a", 100), ("b", 200)] {
            class(folder.path(), name, red, 5);
        }
        let config = DataConfig {
            cache: Some(cache.path().to_owned()),
            ..config(folder.path())
        };
        let read = || Source::open(&config).unwrap().sets().unwrap().train.len();
        assert_eq!((read(), read()), (6, 6));
        assert!(cache.path().join("folder-16-train.images").exists());
        class(folder.path(), "a", 100, 7);
        assert_eq!(read(), 8);
    }
}
