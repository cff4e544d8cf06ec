use std::fs;

use super::super::decode::tests::flat_jpeg;
use super::super::files::tests::{archive, error, shared};
use super::super::{Kind, Normalisation, Source};
use super::*;

fn id(label: usize) -> String {
    format!("n{label:08}")
}

/// A JPEG whose colour tells class and number.
fn image(label: usize, number: usize) -> Vec<u8> {
    flat_jpeg(SIDE, [label as u8, 80 * number as u8, 40])
}

fn config(folder: &Path, size: usize) -> DataConfig {
    DataConfig {
        kind: Kind::TinyImagenet,
        path: folder.to_owned(),
        size: Some(size),
        holdout: 200,
        ..DataConfig::default()
    }
}

/// Three training images and one test image a class.
fn tree(folder: &Path) {
    let folder = folder.join("tiny-imagenet-200");
    fs::create_dir_all(folder.join("val/images")).unwrap();
    let mut annotations = String::new();
    for label in 0..CLASSES {
        let images = folder.join("train").join(id(label)).join("images");
        fs::create_dir_all(&images).unwrap();
        // 10 comes after 9 by number, not by name.
        for (order, number) in [8, 9, 10].into_iter().enumerate() {
            let name = format!("{}_{number}.JPEG", id(label));
            fs::write(images.join(name), image(label, order)).unwrap();
        }
        fs::write(
            folder.join(format!("val/images/val_{label}.JPEG")),
            image(label, 3),
        )
        .unwrap();
        annotations += &format!("val_{label}.JPEG\t{}\t0\t0\t62\t62\n", id(label));
    }
    fs::write(folder.join("val/val_annotations.txt"), annotations).unwrap();
    let ids: String = (0..CLASSES).map(|label| id(label) + "\n").collect();
    fs::write(folder.join("wnids.txt"), ids).unwrap();
    fs::write(
        folder.join("words.txt"),
        format!("{}\tgoldfish, Carassius auratus\n", id(1)),
    )
    .unwrap();
}

fn table() -> String {
    (0..CLASSES)
        .map(|label| format!("{label}\t{}\tword {label}, other\n", id(label)))
        .collect()
}

fn archives(folder: &Path) {
    for (file, numbers) in [
        ("train_part1", 8..10),
        ("train_part2", 10..11),
        ("val", 0..1),
    ] {
        let mut members = Vec::new();
        for label in 0..CLASSES {
            for number in numbers.clone() {
                members.push(if file == "val" {
                    (
                        format!("val/{}/val_{label}.JPEG", id(label)),
                        image(label, 3),
                    )
                } else {
                    let name = format!("train/{0}/{0}_{number}.JPEG", id(label));
                    (name, image(label, number - 8))
                });
            }
        }
        archive(
            &folder.join(format!("tiny_imagenet_{file}.tar.xz")),
            &members,
        );
    }
    fs::write(folder.join("classes.tsv"), table()).unwrap();
}

/// Writes files as `unpack.py` does: by class within each part.
fn flat(folder: &Path, set: &Dataset, test: &Dataset, side: usize) {
    for (part, ranks) in [("train_part1", 0..2), ("train_part2", 2..3), ("val", 0..1)] {
        let from = if part == "val" { test } else { set };
        let mut bytes = Vec::new();
        for label in 0..CLASSES {
            for rank in ranks.clone() {
                bytes.push(label as u8);
                bytes.extend(from.image(rank * CLASSES + label));
            }
        }
        fs::write(folder.join(format!("tiny_{part}_{side}.bin")), bytes).unwrap();
    }
}

#[test]
fn three_forms_give_one_set() {
    let folders: Vec<_> = (0..3).map(|_| tempfile::tempdir().unwrap()).collect();
    tree(folders[0].path());
    archives(folders[1].path());
    let open = |form: usize, size| Source::open(&config(folders[form].path(), size)).unwrap();
    for size in [64, 32] {
        let published = open(0, size);
        let (sets, test) = (published.sets().unwrap(), published.test().unwrap());
        assert_eq!(
            (sets.train.len(), sets.holdout.len(), test.len()),
            (400, 200, 200)
        );
        assert_eq!(sets.train.shape, [3, size, size]);
        // Dealt out: the first 200 images are one of each class, the lowest number first.
        assert!(sets.train.labels[..200].iter().copied().eq(0..200));
        let near = |byte: u8, value: usize| usize::from(byte).abs_diff(value) < 8;
        let green = |set: &Dataset, index: usize| set.image(index)[size * size];
        assert!(near(green(&sets.train, 7), 0) && near(green(&sets.train, 207), 80));
        assert!(near(green(&sets.holdout, 7), 160) && near(green(&test, 7), 240));
        assert_eq!(
            (sets.classes[1].as_str(), sets.classes[2].as_str()),
            ("goldfish", "n00000002")
        );

        let archived = open(1, size);
        let again = archived.sets().unwrap();
        assert!(again.train == sets.train && again.holdout == sets.holdout);
        assert!(archived.test().unwrap() == test);
        assert_eq!(again.classes[3], "word 3");
        assert!(
            again.description.contains("2 of 4 training parts"),
            "{}",
            again.description
        );

        if size == 64 {
            let mut all = sets.train.clone();
            all.append(sets.holdout.clone());
            flat(folders[2].path(), &all, &test, 64);
        }
        // At 32 the records of 64 are averaged.
        let records = open(2, size);
        let again = records.sets().unwrap();
        assert!(again.train == sets.train && again.holdout == sets.holdout);
        assert!(records.test().unwrap() == test);
    }
}

#[test]
fn what_is_missing_or_wrong_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    let open = || Source::open(&config(path, 64));
    let message = error(open());
    assert!(
        message.contains("wnids.txt") && message.contains("tiny_train_part1_64.bin"),
        "{message}"
    );

    archives(path);
    let table = table();
    let write = |text: &str| fs::write(path.join("classes.tsv"), text).unwrap();
    write(
        &table
            .lines()
            .take(150)
            .map(|line| format!("{line}\n"))
            .collect::<String>(),
    );
    assert!(error(open()).contains("names 150 classes"));
    write(&table.replace("\n7\t", "\n8\t"));
    assert!(error(open()).contains("line 8: expected the label 7"));
    write(&table);
    let train = || error(open().unwrap().sets());
    let part = path.join("tiny_imagenet_train_part2.tar.xz");
    let whole = fs::read(&part).unwrap();
    fs::write(&part, &whole[..whole.len() - 100]).unwrap();
    assert!(
        train().contains("part2.tar.xz is cut short or corrupt"),
        "{}",
        train()
    );
    let one = |name: &str, bytes: Vec<u8>| archive(&part, &[(name.to_owned(), bytes)]);
    one("train/n00000003/n00000003_5.JPEG", image(3, 0));
    assert!(
        train().contains("class 0 has 2 images and another has 3"),
        "{}",
        train()
    );
    one("train/n99999999/n99999999_5.JPEG", image(3, 0));
    assert!(
        train().contains("unexpected member train/n99999999"),
        "{}",
        train()
    );
    one("train/n00000003/five.png", image(3, 0));
    assert!(train().contains("five.png is not called"), "{}", train());
    fs::remove_file(path.join("tiny_imagenet_val.tar.xz")).unwrap();
    assert!(error(open().unwrap().test()).contains("tiny_imagenet_val.tar.xz"));
}

#[test]
fn broken_trees_and_records_are_named() {
    let folder = tempfile::tempdir().unwrap();
    tree(folder.path());
    let inner = folder.path().join("tiny-imagenet-200");
    let open = || Source::open(&config(folder.path(), 64)).unwrap();
    let annotations = inner.join("val/val_annotations.txt");
    let text = fs::read_to_string(&annotations).unwrap();
    fs::write(&annotations, text.replacen("n00000001", "n1", 1)).unwrap();
    assert!(
        error(open().test()).contains("val_annotations.txt, line 2"),
        "{}",
        error(open().test())
    );
    fs::write(
        inner
            .join("train")
            .join(id(9))
            .join("images")
            .join(format!("{}_8.JPEG", id(9))),
        b"no",
    )
    .unwrap();
    assert!(error(open().sets()).contains("n00000009_8.JPEG"));
    fs::remove_dir_all(inner.join("train").join(id(9))).unwrap();
    assert!(error(open().sets()).contains("n00000009"));

    let records = tempfile::tempdir().unwrap();
    let path = records.path().join("tiny_train_part1_32.bin");
    fs::write(&path, vec![200; 1 + 3 * 32 * 32]).unwrap();
    let source = Source::open(&config(records.path(), 32)).unwrap();
    let message = error(source.sets());
    assert!(
        message.contains("label 200, above 199") && message.contains("part1_32.bin"),
        "{message}"
    );
    fs::write(&path, vec![100; 3 * 32 * 32]).unwrap();
    assert!(error(source.sets()).contains("no whole number of 3073-byte records"));
    fs::write(&path, vec![100; 1 + 3 * 32 * 32]).unwrap();
    assert!(error(source.sets()).contains("class 0 has 0 images and another has 1"));
}

#[test]
fn a_real_part_decodes_where_it_is_at_hand() {
    let Some(folder) = shared("tiny-imagenet") else {
        return;
    };
    let source = Source::open(&config(&folder, 64)).unwrap();
    assert_eq!(source.classes()[0], "Egyptian cat");
    assert_eq!(
        source.description(),
        "Tiny-ImageNet, 64x64, 2 of 4 training parts"
    );
    let mut raw = source.raw(Part::Test).unwrap();
    assert_eq!(raw.len(), 10_000);
    raw.keep_ends(200, 0);
    let set = raw.decode().unwrap();
    assert!(set.labels.iter().copied().eq(0..200));
    let Normalisation::Channels { mean, .. } = Normalisation::measure(&set).unwrap() else {
        panic!("what is measured is by channels")
    };
    // Those of the first training part; 200 images of deviation 0.28 with a strong common part
    // scatter by 0.02.
    for (ours, known) in mean.iter().zip([0.4802, 0.4485, 0.3982]) {
        assert!((ours - known).abs() < 0.06, "{mean:?}");
    }
}
