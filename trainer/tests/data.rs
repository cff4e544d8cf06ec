//! From a `[data]` table to a trained and exported model, on a set that needs no download.

mod common;

use burn::tensor::Device;
use common::finish;
use pi_ir::Preprocessing;
use pi_trainer::checkpoint::Checkpoint;
use pi_trainer::config::Config;
use pi_trainer::data::{Data, DeviceSet, Normalisation, Source};
use pi_trainer::export;
use pi_trainer::run::{Images, Run};

const DRAWN: &str = r#"
name = "drawn"
[data]
kind = "procedural"
channels = 1
seed = 5
train_images = 5200
test_images = 400
holdout = 200
[network]
stem = { channels = 12, kernel = 5, stride = 2 }
stages = [{ channels = 16, stride = 2, blocks = 1 }, { channels = 32, stride = 2, blocks = 1 }]
[[stage]]
epochs = 4
batch = 32
optimiser = { clip = 1.0 }
schedule = { rate = 0.1, warmup = 0.5, shape = { cosine = {} } }
augmentation = { shift = 2, flip = true }
"#;

fn error<T>(result: anyhow::Result<T>) -> String {
    format!("{:#}", result.err().expect("an error"))
}

#[test]
fn a_network_learns_drawn_shapes_and_leaves_with_their_normalisation() {
    let config = Config::parse(DRAWN, &[]).unwrap();
    let source = Source::open(&config.data).unwrap();
    let sets = source.sets().unwrap();
    assert_eq!((sets.train.len(), sets.holdout.len()), (5000, 200));
    let images = Images {
        dataset: sets.description,
        shape: sets.train.shape,
        classes: sets.classes,
        normalisation: sets.normalisation.clone(),
    };
    let device = Device::flex();
    let upload = |set| DeviceSet::new(set, sets.normalisation.clone(), &device);
    let data = Data {
        train: upload(sets.train),
        holdout: upload(sets.holdout),
    };
    let test = upload(source.test().unwrap());
    let mut run = Run::new(config, images, device.clone()).unwrap();
    finish(&mut run, &data);
    let accuracy = run.evaluate(&test).accuracy;
    // Chance is 10 %, with a deviation of 1.5 points on 400 images.
    assert!((0.2..0.95).contains(&accuracy), "accuracy {accuracy}");
    let graph = export::graph(&run).unwrap();
    let Normalisation::Channels { mean, std } = sets.normalisation else {
        panic!("{:?}", sets.normalisation);
    };
    assert_eq!(graph.preprocessing, Preprocessing::Channels { mean, std });
    assert_eq!(graph.classes[9], "pair");
    export::check(&run, &graph, &test, 5).unwrap();
}

#[test]
fn standardised_images_are_what_the_model_demands() {
    let overrides = [
        "data.normalisation={ image = { floor = 16 } }",
        "data.limit=64",
        "stage.0.epochs=1",
        "stage.0.augmentation.flip=alternating",
    ];
    let config = Config::parse(DRAWN, &overrides.map(str::to_owned)).unwrap();
    let source = Source::open(&config.data).unwrap();
    let sets = source.sets().unwrap();
    assert_eq!(sets.normalisation, Normalisation::Image { floor: 16 });
    let device = Device::flex();
    let images = Images {
        dataset: sets.description,
        shape: sets.train.shape,
        classes: sets.classes,
        normalisation: sets.normalisation.clone(),
    };
    let upload = |set| DeviceSet::new(set, sets.normalisation.clone(), &device);
    let data = Data {
        train: upload(sets.train),
        holdout: upload(sets.holdout),
    };
    let mut run = Run::new(config, images, device.clone()).unwrap();
    finish(&mut run, &data);
    let folder = common::saved(&run);
    let saved = Checkpoint::load(&folder.path().join("checkpoint.pit")).unwrap();
    let run = Run::from_checkpoint(saved, device).unwrap();
    assert_eq!(run.meta.images.normalisation, sets.normalisation);
    let graph = export::graph(&run).unwrap();
    assert_eq!(graph.preprocessing, Preprocessing::Image { floor: 16 });
    export::check(&run, &graph, &data.holdout, 5).unwrap();
}

#[test]
fn what_does_not_fit_the_images_is_refused_before_training() {
    let refused = |item: &str| error(Config::parse(DRAWN, &[item.to_owned()]));
    assert!(refused("data.path=somewhere").contains("data.path means nothing"));
    assert!(refused("data.colour=3").contains("unknown field"));
    let floor = refused("data.normalisation={ image = { floor = 0 } }");
    assert!(floor.contains("data.normalisation: the floor"), "{floor}");
    assert!(refused("data.normalisation=images").contains("images"));
    let digits = DRAWN
        .replace("kind = \"procedural\"", "kind = \"mnist\"\npath = \"p\"")
        .replace("seed = 5\ntrain_images = 5200\ntest_images = 400\n", "");
    let mirrored = error(Config::parse(&digits, &[]));
    assert!(mirrored.contains("a mirrored digit is none"), "{mirrored}");
    Config::parse(&digits, &["stage.*.augmentation.flip=false".to_owned()]).unwrap();
    let wide = Config::parse(DRAWN, &["stage.0.augmentation.shift=32".to_owned()]).unwrap();
    let mut images = Images {
        shape: [1, 32, 32],
        ..common::images()
    };
    let unlike = Config::parse(DRAWN, &[]).unwrap();
    let message = error(Run::new(unlike, images.clone(), Device::flex()));
    assert!(
        message.contains("normalisation is not of their 1 channels"),
        "{message}"
    );
    images.normalisation = Normalisation::Channels {
        mean: vec![0.5],
        std: vec![0.25],
    };
    let message = error(Run::new(wide, images, Device::flex()));
    assert!(
        message.contains("stage 0") && message.contains("below the image's side of 32"),
        "{message}"
    );
}
