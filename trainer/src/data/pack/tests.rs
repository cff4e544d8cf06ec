use std::path::PathBuf;

use flate2::read::ZlibDecoder;
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

use super::*;
use crate::data::Dataset;
use crate::data::decode::tests::flat_jpeg;
use crate::data::files::tests::{error, shared};

/// A folder of two classes of images of `side` pixels.
fn folder(side: usize) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (class, red) in [("a", 50u8), ("b", 220)] {
        fs::create_dir(folder.path().join(class)).unwrap();
        for index in 0..10u8 {
            let jpeg = flat_jpeg(side, [red, 20 * index, 7 * index]);
            fs::write(folder.path().join(format!("{class}/{index}.jpg")), jpeg).unwrap();
        }
    }
    folder
}

fn config(path: &Path) -> DataConfig {
    DataConfig {
        kind: Kind::Folder,
        path: path.to_owned(),
        holdout: 4,
        size: Some(16),
        ..DataConfig::default()
    }
}

fn at(config: &DataConfig, path: &Path) -> DataConfig {
    DataConfig {
        path: path.to_owned(),
        size: None,
        ..config.clone()
    }
}

#[test]
fn a_packed_set_is_the_set() {
    let (folder, out) = (folder(24), tempfile::tempdir().unwrap());
    let config = config(folder.path());
    let path = out.path().join("set.pack");
    let packed = pack(&config, None, &path).unwrap();
    assert_eq!(
        (packed.train, packed.test, packed.bytes),
        (18, 2, fs::metadata(&path).unwrap().len())
    );
    let (source, from) = (
        Source::open(&config).unwrap(),
        Source::open(&at(&config, &path)).unwrap(),
    );
    let (sets, again) = (source.sets().unwrap(), from.sets().unwrap());
    assert!(again.train == sets.train && again.holdout == sets.holdout);
    assert_eq!(from.test().unwrap(), source.test().unwrap());
    assert_eq!(
        (
            again.classes,
            again.description,
            again.normalisation.clone()
        ),
        (sets.classes, sets.description, sets.normalisation)
    );

    // With a limit: the same prefix and the same held-out images, the normalisation of all.
    let limited = DataConfig {
        limit: Some(5),
        ..config.clone()
    };
    assert_eq!(pack(&limited, None, &path).unwrap().train, 9);
    let few = Source::open(&at(&limited, &path)).unwrap().sets().unwrap();
    let expected = Source::open(&limited).unwrap().sets().unwrap();
    assert!(few.train == expected.train && few.holdout == expected.holdout);
    assert_eq!(few.normalisation, again.normalisation);
}

#[test]
fn a_quality_makes_small_files_and_says_so() {
    let (folder, out) = (folder(24), tempfile::tempdir().unwrap());
    let config = config(folder.path());
    // An image of noise in finer detail than is left of it.
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let noise: Vec<u8> = (0..3 * 256 * 256).map(|_| rng.next_u32() as u8).collect();
    let large = jpeg(&noise, [3, 256, 256], 100).unwrap();
    fs::write(folder.path().join("a/0.jpg"), large).unwrap();
    let (exact, lossy) = (out.path().join("exact"), out.path().join("lossy"));
    let whole = pack(&config, None, &exact).unwrap();
    let small = pack(&config, Some(75), &lossy).unwrap();
    assert!(
        small.bytes < whole.bytes / 10,
        "{} and {} bytes",
        small.bytes,
        whole.bytes
    );
    assert!(
        small.description().ends_with(", JPEG quality 75"),
        "{}",
        small.description()
    );
    let set = Source::open(&at(&config, &lossy)).unwrap().test().unwrap();
    let original = Source::open(&config).unwrap().test().unwrap();
    assert_eq!((set.shape, &set.labels), (original.shape, &original.labels));
    // Flat colours stay within a few units at that quality; none of the test images is the noise.
    assert!(
        set.images
            .iter()
            .zip(&original.images)
            .all(|(a, b)| a.abs_diff(*b) < 12)
    );
    assert!(error(pack(&config, Some(0), &lossy)).contains("1..=100"));
    let drawn = DataConfig {
        kind: Kind::Procedural,
        ..DataConfig::default()
    };
    assert!(error(pack(&drawn, None, &lossy)).contains("need no file"));
}

#[test]
fn planes_are_kept_as_they_are() {
    let set = Dataset {
        shape: [1, 3, 2],
        images: (0..60).collect(),
        labels: (0..10).map(|label| label * 300).collect(),
    };
    let (stream, bytes) = encode(&Raw::Planes(set.clone())).unwrap();
    let header = Header {
        kind: Kind::Mnist,
        description: "some".to_owned(),
        classes: (0..3000).map(|c| c.to_string()).collect(),
        normalisation: Normalisation::Channels {
            mean: vec![0.5],
            std: vec![0.5],
        },
        train: stream,
        test: stream,
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("p");
    atomic::write_by(&path, |file| {
        write_header(file, MAGIC, &header)?;
        file.write_all(&bytes)?;
        file.write_all(&bytes)
    })
    .unwrap();
    let config = DataConfig {
        kind: Kind::Mnist,
        path: path.clone(),
        ..DataConfig::default()
    };
    let source = Source::open(&config).unwrap();
    assert_eq!(source.test().unwrap(), set);
    // A label beyond the classes is seen.
    let few = Header {
        classes: vec!["one".to_owned()],
        ..header
    };
    atomic::write_by(&path, |file| {
        write_header(file, MAGIC, &few)?;
        file.write_all(&bytes)?;
        file.write_all(&bytes)
    })
    .unwrap();
    let message = error(Source::open(&config).unwrap().test());
    assert!(
        message.contains("label 300, but only 1 classes"),
        "{message}"
    );
}

#[test]
fn a_file_damaged_anywhere_is_refused() {
    let (folder, out) = (folder(16), tempfile::tempdir().unwrap());
    let config = config(folder.path());
    let path = out.path().join("set.pack");
    pack(&config, None, &path).unwrap();
    let packed = at(&config, &path);
    let whole = fs::read(&path).unwrap();
    let read = |bytes: &[u8]| {
        fs::write(&path, bytes).unwrap();
        let read = || {
            let source = Source::open(&packed)?;
            Ok((source.sets()?.train, source.test()?))
        };
        read()
    };
    let (train, test) = read(&whole).unwrap();
    for length in [0, 7, 12, 30, whole.len() / 2, whole.len() - 1] {
        let message = error(read(&whole[..length]));
        assert!(message.contains("set.pack"), "{length} bytes: {message}");
    }
    assert!(error(read(&[&whole[..], &[0]].concat())).contains("not what its header says"));
    // Whatever bit of the streams flips: an error, never other images.
    let header = 16 + u64::from_le_bytes(whole[8..16].try_into().unwrap()) as usize;
    for position in (header..whole.len()).step_by(7) {
        let mut flipped = whole.clone();
        flipped[position] ^= 1 << (position % 8);
        match read(&flipped) {
            Err(why) => assert!(
                format!("{why:#}").contains("set.pack"),
                "byte {position}: {why:#}"
            ),
            Ok(images) => assert!(
                images == (train.clone(), test.clone()),
                "byte {position}: other images"
            ),
        }
    }
    fs::write(&path, &whole).unwrap();
    let other = DataConfig {
        kind: Kind::Cifar10,
        ..packed.clone()
    };
    assert!(error(Source::open(&other)).contains("set data.kind = \"folder\""));
    let large = DataConfig {
        size: Some(32),
        ..packed
    };
    assert!(error(Source::open(&large)).contains("3 channels and 16 pixels"));
}

#[test]
fn real_jpeg_files_stay_as_they_are_where_they_are_at_hand() {
    let Some(folder) = shared("cifar10") else {
        return;
    };
    let config = DataConfig {
        path: folder,
        ..DataConfig::default()
    };
    let mut raw = Source::open(&config).unwrap().raw(Part::Test).unwrap();
    raw.keep_ends(1000, 0);
    let (stream, bytes) = encode(&raw).unwrap();
    assert!(
        bytes.len() < 1000 * 330,
        "{} bytes for 1000 images",
        bytes.len()
    );
    assert!(matches!(
        stream.coding,
        Coding::Files(Decoder {
            side: 32,
            channels: 3,
            fit: Fit::Exact
        })
    ));
    let read = PackFile {
        path: PathBuf::from("none"),
        header: Header {
            kind: Kind::Cifar10,
            description: String::new(),
            classes: Vec::new(),
            normalisation: Normalisation::cifar10(),
            train: stream,
            test: stream,
        },
        start: 0,
    };
    let mut zlib = ZlibDecoder::new(bytes.as_slice());
    let Raw::Files { files, .. } = &raw else {
        panic!("JPEG files")
    };
    for (index, file) in files.iter().enumerate() {
        let again = read.file(&mut zlib, Part::Test, index).unwrap();
        assert!(
            again.bytes == file.bytes && again.label == file.label,
            "image {index}"
        );
    }
}
