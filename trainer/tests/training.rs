//! The training loop on a tiny network: it learns, keeps its budget, resumes exactly, and exports what it trained.

mod common;

use burn::tensor::Device;
use common::{experiment, pictures};
use indicatif::ProgressBar;
use pi_ir::GraphFile;
use pi_ir::graph::Op;
use pi_trainer::checkpoint::Checkpoint;
use pi_trainer::data::Dataset;
use pi_trainer::export;
use pi_trainer::network::Network;
use pi_trainer::train::{self, Run};

fn epochs(run: &mut Run, count: usize, train: &Dataset, holdout: &Dataset) -> Vec<f64> {
    (0..count)
        .map(|_| {
            run.epoch(train, holdout, &ProgressBar::hidden())
                .expect("training is stable")
                .loss
        })
        .collect()
}

#[test]
fn training_lowers_the_loss_and_keeps_the_budget() {
    let (train, holdout) = (pictures(320, 1), pictures(100, 2));
    let mut run = Run::new(experiment(&[]), Device::flex()).unwrap();
    let losses = epochs(&mut run, 4, &train, &holdout);
    assert!(losses[3] < 0.8 * losses[0], "losses {losses:?}");
    let evaluation = run.evaluate(&holdout);
    assert!(
        evaluation.accuracy > 0.3,
        "ten classes, accuracy {}",
        evaluation.accuracy
    );
    let (relus, polynomials, identities) = Network::counts(&run.state.masks);
    let positions: usize = run
        .network
        .sites()
        .map(|(_, shape)| shape.iter().product::<usize>())
        .sum();
    assert_eq!((relus, polynomials), (300, 200));
    assert_eq!(identities, positions - 500);
}

#[test]
fn a_resumed_run_equals_an_uninterrupted_one_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("run.pit");
    let (train, holdout) = (pictures(96, 3), pictures(20, 4));
    let mut whole = Run::new(experiment(&[]), Device::flex()).unwrap();
    epochs(&mut whole, 3, &train, &holdout);

    let mut first = Run::new(experiment(&[]), Device::flex()).unwrap();
    epochs(&mut first, 1, &train, &holdout);
    first.checkpoint().save(&path).unwrap();
    drop(first);
    let mut second =
        Run::from_checkpoint(Checkpoint::load(&path).unwrap(), Device::flex()).unwrap();
    epochs(&mut second, 2, &train, &holdout);
    assert_eq!(second.meta.epoch, 3);
    assert!(
        second.state == whole.state,
        "weights, statistics or masks differ"
    );
    assert_eq!(second.meta.holdout_accuracy, whole.meta.holdout_accuracy);
}

#[test]
fn the_loop_writes_a_checkpoint_and_a_log_line_an_epoch() {
    let folder = tempfile::tempdir().unwrap();
    let (set, holdout) = (pictures(64, 5), pictures(10, 6));
    let mut run = Run::new(experiment(&["train.epochs=2"]), Device::flex()).unwrap();
    train::train(
        &mut run,
        &set,
        &holdout,
        folder.path(),
        &ProgressBar::hidden(),
    )
    .unwrap();
    let saved = Checkpoint::load(&train::checkpoint_path(folder.path())).unwrap();
    assert!(saved == run.checkpoint(), "the file is not the run's state");
    let log = std::fs::read_to_string(folder.path().join("log.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(lines.len(), 3);
    assert_eq!(lines[1]["epoch"], 2);
    assert!(lines[1]["largest"]["stem.act"].as_f64().unwrap() > 0.0);
    assert_eq!(lines[2]["finished"], 2);
}

#[test]
fn the_exported_graph_computes_what_was_trained() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.graph");
    let set = pictures(64, 7);
    let mut run = Run::new(experiment(&[]), Device::flex()).unwrap();
    epochs(&mut run, 2, &set, &set);
    let (bytes, worst) = export::export(&run, &set, 20, &path).unwrap();
    assert!(worst <= export::TOLERANCE * 100.0, "difference {worst}");
    let read = std::fs::read(&path).unwrap();
    assert_eq!(read.len(), bytes);
    let graph = GraphFile::decode(&read).unwrap().graph;
    assert_eq!(graph, export::graph(&run).unwrap());
    assert_eq!(graph.classes.len(), 10);
}

#[test]
fn the_check_of_the_export_fails_on_any_altered_part() {
    let set = pictures(64, 8);
    let mut run = Run::new(experiment(&[]), Device::flex()).unwrap();
    epochs(&mut run, 2, &set, &set);
    let graph = export::graph(&run).unwrap();
    export::check(&run, &graph, &set, 10).unwrap();
    for index in 0..graph.nodes.len() {
        let mut altered = graph.clone();
        match &mut altered.nodes[index].op {
            Op::Conv2d { weight, .. } => weight.iter_mut().for_each(|w| *w *= 1.1),
            Op::Dense { bias, .. } => bias[3] += 0.1,
            Op::BatchNorm { mean, .. } => mean.iter_mut().for_each(|m| *m += 0.2),
            Op::Activation { kinds, .. } => {
                kinds.iter_mut().for_each(|kind| {
                    *kind = match kind {
                        pi_ir::ActivationKind::Relu => pi_ir::ActivationKind::Identity,
                        _ => pi_ir::ActivationKind::Relu,
                    }
                });
            }
            _ => continue,
        }
        // A convolution before a batch norm is scaled by 1.1 visibly, as the norm's statistics are fixed.
        let name = &graph.nodes[index].name;
        assert!(
            export::check(&run, &altered, &set, 10).is_err(),
            "altered {name} passed"
        );
    }
}

#[test]
fn a_loss_that_is_no_number_names_the_layer() {
    let set = pictures(32, 9);
    let mut run = Run::new(experiment(&[]), Device::flex()).unwrap();
    let weight = run
        .state
        .parameters
        .get_mut("stage1.block1.b.conv.weight")
        .unwrap();
    weight.values[0] = f32::NAN;
    let error = run
        .epoch(&set, &set, &ProgressBar::hidden())
        .expect_err("NaN must stop the run")
        .to_string();
    assert!(error.contains("stage1.block1.b.conv"), "{error}");
}
