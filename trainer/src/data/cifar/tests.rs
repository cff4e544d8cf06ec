use std::fs;

use super::super::decode::tests::flat_jpeg;
use super::super::files::tests::{archive as write_archive, error, shared};
use super::super::{Kind, Source};
use super::*;

const IMAGE: usize = 3 * 32 * 32;

fn config(kind: Kind, path: &Path) -> DataConfig {
    DataConfig {
        kind,
        path: path.to_owned(),
        holdout: 10,
        ..DataConfig::default()
    }
}

/// Writes whole batches whose record `i` of batch `b` is filled with `i + b` and labelled `i % 10`.
fn batch_files(folder: &Path) {
    for (number, batch) in batches(Part::Train)
        .into_iter()
        .chain(batches(Part::Test))
        .enumerate()
    {
        let mut bytes = vec![0; BATCH * (1 + IMAGE)];
        for (index, record) in bytes.chunks_mut(1 + IMAGE).enumerate() {
            record.fill((index + number) as u8);
            record[0] = (index % 10) as u8;
        }
        fs::write(folder.join(format!("{batch}.bin")), bytes).unwrap();
    }
}

#[test]
fn record_files_are_read_in_order_and_the_last_are_held_out() {
    let folder = tempfile::tempdir().unwrap();
    // As the official archive unpacks.
    let inner = folder.path().join("cifar-10-batches-bin");
    fs::create_dir(&inner).unwrap();
    batch_files(&inner);
    let source = Source::open(&DataConfig {
        limit: Some(20_003),
        ..config(Kind::Cifar10, folder.path())
    })
    .unwrap();
    assert_eq!(source.description(), "CIFAR-10, record files");
    let sets = source.sets().unwrap();
    assert_eq!(
        (sets.train.len(), sets.holdout.len(), sets.classes.len()),
        (20_003, 10, 10)
    );
    assert_eq!(sets.train.image(20_002), [2 + 2; IMAGE]);
    assert_eq!(sets.train.labels[20_002], 2);
    assert_eq!(sets.holdout.image(9), [(9_999 + 4) as u8; IMAGE]);
    assert_eq!(source.test().unwrap().image(3), [3 + 5; IMAGE]);
}

#[test]
fn broken_record_files_are_named_with_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("data_batch_1.bin");
    let read = || error(read_records(&path, 1, 10, BATCH));
    assert!(
        read().contains("cannot read") && read().contains("data_batch_1.bin"),
        "{}",
        read()
    );
    for (bytes, expected) in [
        (vec![0; IMAGE], "3072 bytes"),
        (Vec::new(), "0 bytes"),
        (vec![10; 1 + IMAGE], "record 0 has label 10, above 9"),
        (vec![1; 1 + IMAGE], "has 1 images, not 10000"),
    ] {
        fs::write(&path, bytes).unwrap();
        assert!(
            read().contains(expected) && read().contains("data_batch_1.bin"),
            "{}",
            read()
        );
    }
}

#[test]
fn a_folder_without_batches_says_what_it_looked_for() {
    let folder = tempfile::tempdir().unwrap();
    let message = error(Source::open(&config(Kind::Cifar10, folder.path())));
    assert!(
        message.contains("data_batch_1.bin")
            && message.contains("cifar10_jpeg_data_batch_1.tar.xz"),
        "{message}"
    );
    let test = folder.path().join("test_batch.bin");
    fs::write(&test, vec![1; BATCH * (1 + IMAGE)]).unwrap();
    let source = Source::open(&config(Kind::Cifar10, folder.path())).unwrap();
    assert_eq!(
        source.test().unwrap().len(),
        BATCH,
        "the test batch alone can be read"
    );
    let message = error(source.sets());
    assert!(
        message.contains("no data_batch_1") && message.contains("cifar10_jpeg_data_batch_1.tar.xz"),
        "{message}"
    );
    let message = error(Source::open(&config(Kind::Cifar100, folder.path())));
    assert!(message.contains("no train.bin of CIFAR-100"), "{message}");
}

/// Writes files of originals, `records` in each, filled with the number of the batch.
fn original_files(folder: &Path, records: usize) {
    for (number, batch) in batches(Part::Train).into_iter().enumerate() {
        let path = folder.join(format!("cifar10_lossless_first1017_{batch}.bin.xz"));
        let mut packed = Vec::new();
        let bytes = vec![number as u8; records * (1 + IMAGE)];
        lzma_rs::xz_compress(&mut bytes.as_slice(), &mut packed).unwrap();
        fs::write(path, packed).unwrap();
    }
}

#[test]
fn originals_are_read_batch_by_batch_and_damaged_ones_are_named() {
    let folder = tempfile::tempdir().unwrap();
    assert!(error(originals(folder.path())).contains("first1017_data_batch_1.bin.xz"));
    original_files(folder.path(), 1017);
    let set = originals(folder.path()).unwrap();
    assert_eq!((set.shape, set.len()), (SHAPE, 5 * 1017));
    assert_eq!((set.labels[1016], set.labels[1017]), (0, 1));
    assert_eq!(set.image(5 * 1017 - 1), [4; IMAGE]);
    for records in [1016, 1018] {
        original_files(folder.path(), records);
        let message = error(originals(folder.path()));
        assert!(
            message.contains("data_batch_1.bin.xz is cut short")
                || message.contains("has 1016 images, not 1017"),
            "{message}"
        );
    }
}

#[test]
fn originals_of_images_that_a_run_trained_on_are_refused() {
    let held_out = |holdout: usize, holdout_parts: Option<usize>| DataConfig {
        holdout,
        holdout_parts,
        ..config(Kind::Cifar10, Path::new("somewhere"))
    };
    check_originals(&held_out(5085, Some(5))).unwrap();
    for (config, expected) in [
        (held_out(5085, None), "5085, the last images"),
        (held_out(5000, Some(5)), "5000 in 5 parts"),
        (held_out(5085, Some(1)), "5085 in 1 parts"),
    ] {
        let message = error(check_originals(&config));
        assert!(
            message.contains(expected) && message.contains("holdout_parts = 5"),
            "{message}"
        );
    }
    let other = error(check_originals(&config(Kind::Cifar100, Path::new("p"))));
    assert!(other.contains("not of data.kind = \"cifar100\""), "{other}");
}

#[test]
fn the_originals_at_hand_are_those_of_the_jpeg_files() {
    let Some(folder) = shared("cifar10") else {
        return;
    };
    let originals = originals(&folder).unwrap();
    let mut files = read_archive(&archive(&folder, "data_batch_1"), "data_batch_1").unwrap();
    files.truncate(1017);
    let raw = Raw::Files {
        decoder: DECODER,
        files,
    };
    let jpeg = raw.decode().unwrap();
    assert_eq!(jpeg.labels, originals.labels[..1017]);
    // What quality 75 changes: several grey levels a pixel, far from two other images' difference.
    let pairs = jpeg.images.iter().zip(&originals.images);
    let sum: u64 = pairs.map(|(a, b)| u64::from(a.abs_diff(*b))).sum();
    let mean = sum as f64 / jpeg.images.len() as f64;
    assert!((1.0..15.0).contains(&mean), "{mean} grey levels apart");
}

#[test]
fn the_fine_label_counts_in_cifar100() {
    let folder = tempfile::tempdir().unwrap();
    for (file, count) in [("train.bin", 50_000usize), ("test.bin", 10_000)] {
        let mut bytes = vec![0; count * (2 + IMAGE)];
        for (index, record) in bytes.chunks_mut(2 + IMAGE).enumerate() {
            record.fill((index % 200) as u8);
            record[0] = (index % 20) as u8;
            record[1] = (index % 100) as u8;
        }
        fs::write(folder.path().join(file), bytes).unwrap();
    }
    let source = Source::open(&config(Kind::Cifar100, folder.path())).unwrap();
    let test = source.test().unwrap();
    assert_eq!(
        (test.len(), test.labels[157], test.image(157)[0]),
        (10_000, 57, 157)
    );
    assert_eq!(source.classes().len(), 100);

    let names = folder.path().join("fine_label_names.txt");
    fs::write(&names, "apple\nbee\n").unwrap();
    let message = error(Source::open(&config(Kind::Cifar100, folder.path())));
    assert!(message.contains("2 classes, not 100"), "{message}");
    let bad = vec![100; 2 + IMAGE];
    fs::write(folder.path().join("test.bin"), bad).unwrap();
    fs::remove_file(names).unwrap();
    let source = Source::open(&config(Kind::Cifar100, folder.path())).unwrap();
    assert!(error(source.test()).contains("label 100, above 99"));
}

fn member(name: &str, bytes: &[u8]) -> (String, Vec<u8>) {
    (name.to_owned(), bytes.to_vec())
}

#[test]
fn archives_give_planar_images_in_record_order() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tar.xz");
    let (red, blue) = (flat_jpeg(32, [200, 10, 10]), flat_jpeg(32, [10, 10, 200]));
    write_archive(
        &path,
        &[
            member("b/00001_7.jpg", &blue),
            member("b/00000_3.jpg", &red),
        ],
    );
    let files = read_archive(&path, "b").unwrap();
    let set = Raw::Files {
        decoder: DECODER,
        files,
    }
    .decode()
    .unwrap();
    assert_eq!(set.labels, [3, 7]);
    // JPEG keeps a flat colour to a few units.
    let near = |byte: u8, value: u8| byte.abs_diff(value) <= 6;
    assert!(near(set.image(0)[0], 200) && near(set.image(0)[2048], 10));
    assert!(near(set.image(1)[0], 10) && near(set.image(1)[3071], 200));
}

#[test]
fn broken_archives_are_named_with_what_is_wrong() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.tar.xz");
    let good = flat_jpeg(32, [1, 2, 3]);
    let cases = [
        (
            vec!["b/00000_3.jpg", "b/00002_3.jpg"],
            "record 1 is missing",
        ),
        (
            vec!["b/00000_3.jpg", "b/00000_4.jpg"],
            "record 1 is missing or there twice",
        ),
        (vec!["c/00000_3.jpg"], "unexpected member c/00000_3.jpg"),
        (vec!["b/00000_10.jpg"], "unexpected member b/00000_10.jpg"),
    ];
    for (names, expected) in cases {
        let members: Vec<_> = names.iter().map(|name| member(name, &good)).collect();
        write_archive(&path, &members);
        let message = error(read_archive(&path, "b"));
        assert!(message.contains(expected), "{message}");
    }
    write_archive(&path, &[member("b/00000_3.jpg", &flat_jpeg(16, [0; 3]))]);
    let files = read_archive(&path, "b").unwrap();
    let message = error(
        Raw::Files {
            decoder: DECODER,
            files,
        }
        .decode(),
    );
    assert!(
        message.contains("member b/00000_3.jpg") && message.contains("16x16"),
        "{message}"
    );

    write_archive(&path, &[member("b/00000_3.jpg", &good)]);
    let packed = fs::read(&path).unwrap();
    fs::write(&path, &packed[..packed.len() / 2]).unwrap();
    let message = error(read_archive(&path, "b"));
    assert!(
        message.contains("a.tar.xz is cut short or corrupt"),
        "{message}"
    );
}

#[test]
fn real_batches_decode_where_they_are_at_hand() {
    let Some(folder) = shared("cifar10") else {
        return;
    };
    let cache = tempfile::tempdir().unwrap();
    let config = DataConfig {
        cache: Some(cache.path().to_owned()),
        ..config(Kind::Cifar10, &folder)
    };
    let source = Source::open(&config).unwrap();
    assert_eq!(source.description(), "CIFAR-10, JPEG quality 75");
    let test = source.test().unwrap();
    assert_eq!(test.len(), BATCH);
    for class in 0..10 {
        assert_eq!(
            test.labels.iter().filter(|label| **label == class).count(),
            1000,
            "class {class}"
        );
    }
    assert_eq!(
        source.test().unwrap(),
        test,
        "the cache gives the same images"
    );
    // What libjpeg-turbo gives for this batch. The decoder's chroma rounding moves a mean by
    // 0.0014; two channels exchanged would move one by 0.009.
    let Normalisation::Channels { mean, .. } = Normalisation::measure(&test).unwrap() else {
        panic!("what is measured is by channels")
    };
    for (ours, known) in mean.iter().zip([0.4941, 0.4851, 0.4504]) {
        assert!((ours - known).abs() < 0.002, "{ours} and {known}");
    }
    assert_eq!(
        source.reader.normalisation(),
        Some(Normalisation::cifar10())
    );
}
