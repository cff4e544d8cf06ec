use crate::examples::{Data, Examples, Notices, Reads};
use pi_ir::value_file::Array;
use pi_ir::{Input, Preprocessing, Shape};
use std::fs;
use std::path::Path;

const SHAPE: Shape = Shape::new(3, 4, 4);

fn save(path: &Path, side: u32, colour: [u8; 3]) {
    image::RgbImage::from_pixel(side, side, image::Rgb(colour))
        .save(path)
        .unwrap();
}

#[test]
fn records_keep_labels_and_planes() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("batch.bin");
    let record = |label: u8| [vec![label], vec![label * 3; 48]].concat();
    fs::write(&path, [record(1), record(2), record(7)].concat()).unwrap();
    let images = Examples::load(&path, SHAPE, 100).unwrap();
    assert_eq!(images.labels, [1, 2, 7]);
    assert_eq!(images.inputs[2], vec![21u8; 48].into());
    assert_eq!(Examples::load(&path, SHAPE, 2).unwrap().labels, [1, 7]);
    fs::write(&path, [1; 50]).unwrap();
    let error = format!("{:#}", Examples::load(&path, SHAPE, 2).unwrap_err());
    assert!(error.contains("not a whole number of records"), "{error}");
}

#[test]
fn a_folder_of_images_is_resized_and_labelled_by_name() {
    let directory = tempfile::tempdir().unwrap();
    save(&directory.path().join("a_3.png"), 9, [10, 20, 30]);
    save(&directory.path().join("b_5.png"), 4, [40, 50, 60]);
    fs::write(directory.path().join("notes.txt"), "no image").unwrap();
    let images = Examples::load(directory.path(), SHAPE, 10).unwrap();
    assert_eq!(images.labels, [3, 5]);
    let planes = |colour: [u8; 3]| colour.iter().flat_map(|&v| [v; 16]).collect::<Vec<_>>();
    assert_eq!(
        images.inputs,
        [planes([10, 20, 30]).into(), planes([40, 50, 60]).into()]
    );
    let grey = Examples::load(&directory.path().join("a_3.png"), Shape::new(1, 2, 2), 1).unwrap();
    assert_eq!(grey.inputs[0].len(), 4);
}

#[test]
fn what_is_no_image_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let empty = format!(
        "{:#}",
        Examples::load(directory.path(), SHAPE, 1).unwrap_err()
    );
    assert!(empty.contains("no images in"), "{empty}");
    for name in ["broken.png", "broken.tar.xz"] {
        let path = directory.path().join(name);
        fs::write(&path, "neither").unwrap();
        let error = format!("{:#}", Examples::load(&path, SHAPE, 1).unwrap_err());
        assert!(error.contains(name), "{error}");
    }
    assert!(Examples::load(&directory.path().join("absent"), SHAPE, 1).is_err());
}

#[test]
fn pictures_that_are_cut_short_are_named_and_webp_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let picture = image::RgbImage::from_fn(143, 97, |x, y| image::Rgb([x as u8, y as u8, 9]));
    for name in ["cut.jpg", "cut.webp", "cut.png"] {
        let path = directory.path().join(name);
        picture.save(&path).unwrap();
        assert!(Examples::load(&path, SHAPE, 1).is_ok(), "{name}");
        let bytes = fs::read(&path).unwrap();
        for end in [bytes.len() / 2, bytes.len() * 9 / 10] {
            fs::write(&path, &bytes[..end]).unwrap();
            let error = format!("{:#}", Examples::load(&path, SHAPE, 1).unwrap_err());
            assert!(error.contains(name), "{error}");
            assert!(
                !name.ends_with("jpg") || error.contains("is cut short"),
                "{error}"
            );
        }
    }
    let path = directory.path().join("flat_4.webp");
    save(&path, 4, [10, 20, 30]);
    let images = Examples::load(&path, SHAPE, 1).unwrap();
    let expected = [[10; 16], [20; 16], [30; 16]].concat();
    assert_eq!(images.inputs[0], Input::Bytes(expected));
    assert_eq!(images.labels, [4]);
}

/// What a client may ask about may be calibrated on, alone, in a folder and in an archive.
#[test]
fn every_format_that_a_client_reads_is_read() {
    let directory = tempfile::tempdir().unwrap();
    let packed = fs::File::create(directory.path().join("all.tar")).unwrap();
    let mut archive = tar::Builder::new(packed);
    let ends = pi_image::EXTENSIONS;
    let classes = directory.path().join("classes");
    for (class, end) in ends.iter().enumerate() {
        let name = format!("flat_{class}.{end}");
        let path = directory.path().join(&name);
        save(&path, 4, [10, 10, 10]);
        let images = Examples::load(&path, SHAPE, 1).unwrap();
        assert_eq!(images.labels, [class as u32], "{end}");
        archive.append_path_with_name(&path, &name).unwrap();
        let folder = classes.join(class.to_string());
        fs::create_dir_all(&folder).unwrap();
        // Names of cameras are in capitals.
        fs::copy(&path, folder.join(format!("A.{}", end.to_uppercase()))).unwrap();
    }
    let all = Examples::load(directory.path(), SHAPE, 100).unwrap();
    assert_eq!(all.inputs.len(), ends.len());
    assert_eq!(
        Examples::load(&classes, SHAPE, 100).unwrap().inputs.len(),
        ends.len()
    );
    drop(archive);
    let tar = fs::read(directory.path().join("all.tar")).unwrap();
    let path = directory.path().join("all.tar.xz");
    lzma_rs::xz_compress(&mut &tar[..], &mut fs::File::create(&path).unwrap()).unwrap();
    assert_eq!(
        Examples::load(&path, SHAPE, 100).unwrap().inputs.len(),
        ends.len()
    );
}

#[test]
fn drawn_images_repeat_with_their_seed_and_span_the_range() {
    let drawn = Examples::synthetic(Shape::new(3, 16, 16), 20, 5);
    assert_eq!(drawn, Examples::synthetic(Shape::new(3, 16, 16), 20, 5));
    assert_ne!(
        drawn.inputs,
        Examples::synthetic(Shape::new(3, 16, 16), 20, 6).inputs
    );
    let bytes = |input: &Input| match input {
        Input::Bytes(bytes) => bytes.clone(),
        Input::Values(_) => panic!("an image has bytes"),
    };
    let all: Vec<u8> = drawn.inputs.iter().flat_map(bytes).collect();
    assert!(all.iter().any(|&v| v < 16) && all.iter().any(|&v| v > 240));
}

#[test]
fn archives_of_the_data_set_load_with_labels() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../shared/data/cifar10/cifar10_jpeg_test_batch.tar.xz");
    if !path.exists() {
        eprintln!("skipped: {} is not here", path.display());
        return;
    }
    let images = Examples::load(&path, Shape::new(3, 32, 32), 50).unwrap();
    assert_eq!((images.inputs.len(), images.labels.len()), (50, 50));
    // The first record of the test batch is a cat.
    assert_eq!(images.labels[0], 3);
}

#[test]
fn arrays_of_bytes_are_pictures_of_any_channels() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("bands.npy");
    let bytes: Vec<u8> = (0..3 * 20).collect();
    fs::write(&path, Array::file("|u1", &[3, 5, 2, 2], &bytes)).unwrap();
    let shape = Shape::new(5, 2, 2);
    let images = Examples::load(&path, shape, 10).unwrap();
    let expected = bytes.chunks(20).map(|image| image.to_vec().into());
    assert_eq!(images.inputs, expected.collect::<Vec<Input>>());
    let refused = |path: &Path| format!("{:#}", Examples::load(path, shape, 1).unwrap_err());
    // A whole number that is no byte, and a real one.
    let large = [7, 0, 0, 1].repeat(10);
    fs::write(&path, Array::file("<i2", &[5, 2, 2], &large)).unwrap();
    assert!(refused(&path).contains("element 1 is 256: save whole numbers"));
    fs::write(&path, Array::file("<f4", &[5, 2, 2], &[0; 80])).unwrap();
    assert!(refused(&path).contains("element 0 is 0, a real number"));
    let picture = directory.path().join("picture.png");
    save(&picture, 2, [1, 2, 3]);
    assert!(refused(&picture).contains("reads 5 channels; images have 1 or 3: use .npy"));
}

/// What is read of a path for a network of the shape, with what is said.
fn noted(path: &Path, shape: Shape, classes: &[String]) -> Result<(Examples, Notices), String> {
    let data = Data {
        path,
        labels: None,
        label_column: None,
    };
    let reads = Reads {
        shape,
        preprocessing: &Preprocessing::unit(shape.c),
        classes,
        outputs: 2,
    };
    Examples::read_noting(&data, &reads, 100).map_err(|error| format!("{error:#}"))
}

#[test]
fn what_is_done_to_images_is_said() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    save(&at("a.png"), 4, [1, 2, 3]);
    image::RgbImage::new(9, 5).save(at("b.png")).unwrap();
    image::RgbImage::new(8, 8).save(at("c.png")).unwrap();
    image::GrayImage::new(4, 4).save(at("d.png")).unwrap();
    image::RgbaImage::new(4, 4).save(at("e.png")).unwrap();
    let (examples, notices) = noted(directory.path(), SHAPE, &[]).unwrap();
    assert_eq!(examples.inputs.len(), 5);
    let [size, grey, white] = &notices.inputs[..] else {
        panic!("{notices:?}");
    };
    assert!(
        size.contains("2 of 5 images have another size than the network, 9x5 for example"),
        "{size}"
    );
    assert!(
        size.contains("resized to 4x4, 1 of them after a cut"),
        "{size}"
    );
    assert!(grey.contains("1 of 5 images are grey"), "{grey}");
    assert!(white.contains("1 of 5 images are transparent"), "{white}");
    let (_, notices) = noted(directory.path(), Shape::new(1, 4, 4), &[]).unwrap();
    let dropped = |notice: &String| notice.contains("4 of 5 images have colours");
    assert!(notices.inputs.iter().any(dropped), "{notices:?}");
}

#[test]
fn a_few_unreadable_images_are_left_out_and_many_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    for index in 0..19 {
        save(
            &at(&format!("{index:02}_{}.png", index % 2)),
            4,
            [index, 0, 0],
        );
    }
    fs::write(at("07b_1.png"), "no image").unwrap();
    let (examples, notices) = noted(directory.path(), SHAPE, &[]).unwrap();
    // Labels stay with their images.
    assert_eq!((examples.inputs.len(), examples.labels.len()), (19, 19));
    for (input, label) in examples.inputs.iter().zip(&examples.labels) {
        let Input::Bytes(bytes) = input else {
            panic!("an image has bytes");
        };
        assert_eq!(u32::from(bytes[0]) % 2, *label);
    }
    let [left_out] = &notices.inputs[..] else {
        panic!("{notices:?}");
    };
    assert!(
        left_out.contains("1 of 20 images cannot be read") && left_out.contains("07b_1.png"),
        "{left_out}"
    );
    for index in 0..7 {
        fs::write(at(&format!("bad{index}.jpg")), "no image").unwrap();
    }
    let error = noted(directory.path(), SHAPE, &[]).unwrap_err();
    assert!(error.contains("8 of 27 images cannot be read"), "{error}");
    assert!(
        error.contains("07b_1.png") && error.contains("and 3 more"),
        "{error}"
    );
    // A list of labels belongs to all files, so that even one is too many.
    for index in 0..7 {
        fs::remove_file(at(&format!("bad{index}.jpg"))).unwrap();
    }
    let labels = directory.path().join("labels.txt");
    fs::write(&labels, "0\n".repeat(20)).unwrap();
    let preprocessing = Preprocessing::unit(3);
    let data = Data {
        path: directory.path(),
        labels: Some(&labels),
        label_column: None,
    };
    let reads = Reads {
        shape: SHAPE,
        preprocessing: &preprocessing,
        classes: &[],
        outputs: 2,
    };
    let error = Examples::read(&data, &reads, 100).unwrap_err().to_string();
    assert!(error.contains("1 of 20 images cannot be read"), "{error}");
}

#[test]
fn folders_stand_for_classes() {
    let directory = tempfile::tempdir().unwrap();
    for (folder, colour) in [("bird", 10), ("cat", 20)] {
        let path = directory.path().join(folder);
        fs::create_dir(&path).unwrap();
        save(&path.join("x.png"), 4, [colour, 0, 0]);
        save(&path.join("y.png"), 4, [colour, 0, 0]);
    }
    fs::create_dir(directory.path().join("empty")).unwrap();
    let (alphabetic, notices) = noted(directory.path(), SHAPE, &[]).unwrap();
    assert_eq!(alphabetic.labels, [0, 0, 1, 1]);
    assert!(notices.labels.unwrap().contains("0 is bird, 1 is cat"));
    let classes = ["cat".to_owned(), "bird".to_owned()];
    let (named, notices) = noted(directory.path(), SHAPE, &classes).unwrap();
    assert_eq!(named.labels, [1, 1, 0, 0]);
    assert!(notices.labels.unwrap().contains("the network's classes"));
}

#[test]
fn every_part_of_a_folder_is_sampled() {
    let directory = tempfile::tempdir().unwrap();
    for index in 0..30u8 {
        let path = directory.path().join(format!("{index:02}.png"));
        save(&path, 4, [index, 0, 0]);
    }
    for limit in [1, 7, 16, 29, 30] {
        let images = Examples::load(directory.path(), SHAPE, limit).unwrap();
        assert_eq!(images.inputs.len(), limit);
        let Some(Input::Bytes(last)) = images.inputs.last() else {
            panic!("an image has bytes");
        };
        assert!(
            usize::from(last[0]) + 30 / limit + 1 >= 30,
            "{limit}: {}",
            last[0]
        );
    }
}

#[test]
fn examples_are_held_back_from_every_part_and_every_class() {
    let counts = [
        (1, 0),
        (2, 1),
        (20, 10),
        (32, 16),
        (80, 16),
        (100, 20),
        (640, 128),
    ];
    for (count, expected) in counts {
        let all = Examples {
            source: "by hand".into(),
            inputs: (0..count)
                .map(|i| vec![i as u8, (i / 256) as u8].into())
                .collect(),
            // In turn, as many sets are.
            labels: (0..count).map(|index| index as u32 % 10).collect(),
        };
        let (rest, held) = all.clone().hold_back();
        assert_eq!(held.inputs.len(), expected, "{count}");
        assert_eq!(rest.inputs.len(), count - expected);
        let both = rest.inputs.iter().chain(&held.inputs);
        assert!(both.clone().all(|input| all.inputs.contains(input)));
        assert!(held.inputs.iter().all(|input| !rest.inputs.contains(input)));
        for (input, label) in held.inputs.iter().zip(&held.labels) {
            let at = all.inputs.iter().position(|other| other == input);
            assert_eq!(at.map(|at| at as u32 % 10), Some(*label));
        }
        if count >= 100 {
            let classes = (0..10).filter(|class| held.labels.contains(class)).count();
            assert!(classes >= 8, "{classes} classes of {count}");
        }
        let (again, _) = all.hold_back();
        assert_eq!(again, rest);
    }
    for calibrating in [16, 64, 512] {
        let read = Examples::with_held_back(calibrating);
        let all = Examples {
            source: String::new(),
            inputs: (0..read).map(|_| vec![0].into()).collect(),
            labels: Vec::new(),
        };
        assert_eq!(all.hold_back().0.inputs.len(), calibrating);
    }
}
