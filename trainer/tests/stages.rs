//! Beginning and end of stages: what is fitted, frozen, averaged and carried on, and what may
//! change on the way.

mod common;

use std::fs;

use burn::tensor::{Device, Tensor};
use common::{POSITIONS, data, experiment, finish, images, run, saved};
use indicatif::ProgressBar;
use pi_ir::graph::ActivationKind;
use pi_trainer::checkpoint::{Array, Checkpoint};
use pi_trainer::config::Config;
use pi_trainer::data::View;
use pi_trainer::experiment as folder;
use pi_trainer::network::approximation::relu_fit;
use pi_trainer::network::{Mode, Request, Shown};
use pi_trainer::run::{Diverged, Run};
use pi_trainer::soft_labels::SoftLabels;
use pi_trainer::tensors::download;

fn error<T>(result: anyhow::Result<T>) -> String {
    format!("{:#}", result.err().expect("an error"))
}

fn epoch(run: &mut Run, data: &pi_trainer::data::Data) -> pi_trainer::run::EpochReport {
    run.epoch(data, &ProgressBar::hidden()).unwrap()
}

fn reopened(run: &Run) -> Run {
    Run::from_checkpoint(run.checkpoint(), Device::flex()).unwrap()
}

/// Mean and deviation of each channel that reaches a site.
fn inputs(run: &Run, site: &str, pixels: Tensor<4>) -> Vec<[f64; 2]> {
    let mut seen = Vec::new();
    let request = Request::of(Mode::Evaluate);
    run.network.observe(
        &run.state,
        pixels,
        request,
        (Shown::Sites, |node, inputs, _| {
            if node.name == site {
                let [n, c, h, w] = inputs[0].dims();
                let values = download(inputs[0].clone().permute([1, 0, 2, 3]));
                seen = values
                    .chunks(n * h * w)
                    .map(|values| {
                        let count = values.len() as f64;
                        let mean = values.iter().map(|v| f64::from(*v)).sum::<f64>() / count;
                        let square = values.iter().map(|v| (f64::from(*v) - mean).powi(2));
                        [mean, (square.sum::<f64>() / count).sqrt()]
                    })
                    .collect();
                assert_eq!(seen.len(), c);
            }
        }),
    );
    seen
}

#[test]
fn fitted_quadratics_fit_what_the_relu_network_gave_and_the_last_replacement_stands() {
    let data = data(96, 10, 51);
    let mut run = run(r#"
        [[stage]]
        epochs = 1
        [[stage]]
        epochs = 0
        replace = [
            { sites = "*", by = { fitted = {} } },
            { sites = "stem.act", by = "react-pkn" },
        ]
    "#);
    epoch(&mut run, &data);
    let all: Vec<usize> = (0..96).collect();
    // The last site: all those before it are ReLUs now, and quadratics after the replacement.
    let site = "stage2.block1.act";
    let before = inputs(&run, site, data.train.plain(&all));
    epoch(&mut run, &data);
    let got = run.state.parameter(&format!("{site}.poly")).unwrap();
    for (channel, [u, v]) in before.iter().enumerate() {
        for (i, expected) in relu_fit(*u, *v).into_iter().enumerate() {
            let got = f64::from(got[i * before.len() + channel]);
            assert!(
                (got - expected).abs() < 1e-4,
                "channel {channel}, coefficient {i}: {got}, expected {expected}"
            );
        }
    }
    let stem = run.state.parameter("stem.act.poly").unwrap();
    assert_eq!((stem[0], stem[8], stem[16]), (0.009, 0.5, 0.47));
}

#[test]
fn the_last_sites_keep_their_relus_then_the_channels_that_matter() {
    let data = data(96, 10, 52);
    let quadratic = "{ quadratic = [0.2, 0.5, 0.2] }";
    let stages = |by: &str, relus: usize| {
        format!(
            "[[stage]]\nepochs = 1\n[[stage]]\nepochs = 0\n\
             replace = [{{ sites = \"stage*\", by = {by}, keep = {{ relus = {relus} }} }}]\n"
        )
    };
    let mut trained = run(&stages(quadratic, 0));
    epoch(&mut trained, &data);
    // Nothing reads three of the channels, which come in the middle, so they change nothing.
    let (dead, plane) = ([2, 3, 6], 64);
    for (name, kernel) in [("a", 9), ("shortcut", 1)] {
        let name = format!("stage2.block1.{name}.conv.weight");
        let mut values = trained.state.parameter(&name).unwrap();
        for (i, value) in values.iter_mut().enumerate() {
            if dead.contains(&(i / kernel % 8)) {
                *value = 0.0;
            }
        }
        let shape = trained.state.shape(&name).unwrap().to_vec();
        trained.state.put_parameter(&name, Array { shape, values });
    }
    // Both sites of stage 2 (192 each), five channels, and a rest that is no whole channel.
    let budget = 2 * 192 + 5 * plane + 20;
    for (by, kind) in [
        (quadratic, ActivationKind::Polynomial),
        ("\"identity\"", ActivationKind::Identity),
        ("{ fitted = {} }", ActivationKind::Polynomial),
    ] {
        let mut run = reopened(&trained);
        run.meta.config = experiment(&stages(by, budget), &[]);
        let report = epoch(&mut run, &data);
        assert_eq!(
            report.relus,
            8 * plane + budget - 20,
            "{by}: with the stem's"
        );
        for (site, kinds) in &run.state.masks {
            for (e, seen) in kinds.iter().enumerate() {
                let stays = match site.as_str() {
                    "stage1.block1.act" => !dead.contains(&(e / plane)),
                    "stage1.block1.a.act" => false,
                    _ => true,
                };
                let expected = if stays { ActivationKind::Relu } else { kind };
                assert_eq!(*seen, expected, "{by}: {site}, position {e}");
            }
            // Coefficients stand where a quadratic does.
            let poly = kinds.contains(&ActivationKind::Polynomial);
            assert_eq!(run.state.has_quadratic(site), poly, "{by}: {site}");
        }
    }
    // Of what stays in one stage a later one takes more; with room for all nothing changes.
    let mut run = reopened(&trained);
    let all = stages(quadratic, POSITIONS);
    let more = stages(quadratic, 192 + 64);
    let more = more.strip_prefix("[[stage]]\nepochs = 1\n").unwrap();
    run.meta.config = experiment(&format!("{all}{more}"), &[]);
    assert_eq!(epoch(&mut run, &data).relus, POSITIONS);
    // Channels of stage 2 have 16 positions.
    assert_eq!(epoch(&mut run, &data).relus, 8 * plane + 192 + 64);
    let first = experiment(
        "[[stage]]\nepochs = 1",
        &["network.activations=[{ sites = \"*\", by = \"identity\", keep = { relus = 5 } }]"],
    );
    let refused = error(Run::new(first, images(), Device::flex()));
    assert!(refused.contains("need a trained network"), "{refused}");
}

#[test]
fn a_selection_leaves_quadratics_alone_that_were_trained_before() {
    let data = data(64, 10, 53);
    let mut run = run(r#"
        [[stage]]
        epochs = 1
        replace = [{ sites = "stem.act", by = "react-pkn" }]
        [[stage]]
        method = { autorep = { relus = 100, lambda = 1e-9 } }
        epochs = 1
        schedule = { rate = 1e-9 }
    "#);
    epoch(&mut run, &data);
    let trained = run.state.parameter("stem.act.poly").unwrap();
    let report = epoch(&mut run, &data);
    // At this rate nothing moves.
    let after = run.state.parameter("stem.act.poly").unwrap();
    for (a, b) in trained.iter().zip(&after) {
        assert!((a - b).abs() < 1e-5, "{a} became {b}");
    }
    assert_eq!(
        report.relus + report.polynomials + report.identities,
        POSITIONS
    );
    assert_eq!((report.relus, report.identities), (100, 0));
}

#[test]
fn removed_positions_count_as_what_they_would_become() {
    let data = data(64, 10, 55);
    let mut run = run(r#"
        [[stage]]
        method = { autorep = { relus = 1, lambda = 10.0 } }
        epochs = 2
        optimiser = { rule = { sgd = {} }, rates = [{ parameters = "stem.*", factor = 0.0 }] }
        schedule = { rate = 0.01 }
    "#);
    let report = epoch(&mut run, &data);
    // All but the stem's, whose rate is zero, have fallen.
    assert_eq!(
        (report.relus, report.polynomials, report.identities),
        (8 * 64, POSITIONS - 8 * 64, 0)
    );
}

#[test]
fn the_square_of_quail_without_a_norm_stays_a_square() {
    let data = data(64, 10, 57);
    let mut run = run(r#"
        [[stage]]
        method = { quail = { norm = "none", layer_epochs = 1, unfreeze_epochs = 1 } }
        schedule = { rate = 1e-6 }
    "#);
    finish(&mut run, &data);
    for site in ["stem.act", "stage2.block1.act"] {
        let poly = run.state.parameter(&format!("{site}.poly")).unwrap();
        let (square, rest) = poly.split_at(poly.len() / 3);
        assert!(square.iter().all(|a| *a == 1.0) && rest.iter().all(|v| *v == 0.0));
    }
}

/// Frozen layers before the one that trains must not hide the layer where the numbers end.
#[test]
fn a_divergence_in_a_phase_of_quail_names_the_layer() {
    let data = data(64, 10, 59);
    let mut run = run(r#"
        [[stage]]
        method = { quail = { norm = "none", layer_epochs = 1, unfreeze_epochs = 1 } }
        schedule = { rate = 1e-6 }
    "#);
    for _ in 0..3 {
        epoch(&mut run, &data);
    }
    for (name, frozen) in [
        ("stage1.block1.a.conv", true),
        ("stage2.block1.a.conv", false),
    ] {
        let mut broken = reopened(&run);
        let weight = format!("{name}.weight");
        let shape = broken.state.shape(&weight).unwrap().to_vec();
        let values = vec![f32::INFINITY; shape.iter().product()];
        broken.state.put_parameter(&weight, Array { shape, values });
        let why = broken.epoch(&data, &ProgressBar::hidden()).unwrap_err();
        assert!(why.is::<Diverged>());
        assert!(why.to_string().contains(name), "frozen {frozen}: {why}");
    }
}

#[test]
fn a_min_max_norm_takes_the_first_batch_of_its_layers_turn() {
    let data = data(64, 10, 58);
    let mut run = run(r#"
        [[stage]]
        batch = 64
        method = { quail = { norm = "amm", layer_epochs = 2, unfreeze_epochs = 1 } }
        schedule = { rate = 1e-9 }
    "#);
    epoch(&mut run, &data);
    epoch(&mut run, &data);
    let extent =
        |run: &Run, site: &str| download(run.state.buffers[&format!("{site}.extent")].clone());
    let own = extent(&run, "stem.act");
    let wide = |run: &mut Run, site: &str| {
        let extents = extent(run, site);
        let (shape, half) = (vec![extents.len()], extents.len() / 2);
        let values = (0..extents.len()).map(|i| if i < half { -1e4 } else { 1e4 });
        let values = values.collect();
        run.state
            .put_buffer(&format!("{site}.extent"), Array { shape, values });
    };
    wide(&mut run, "stage1.block1.a.act");
    epoch(&mut run, &data);
    // Nothing is left of what was there before the layer's turn; the layer that is done stays as it
    // was.
    let new = extent(&run, "stage1.block1.a.act");
    assert!(new.iter().all(|v| v.abs() < 1e3), "{new:?}");
    assert_eq!(extent(&run, "stem.act"), own);
    // Later batches move it by a tenth.
    wide(&mut run, "stage1.block1.a.act");
    epoch(&mut run, &data);
    let later = extent(&run, "stage1.block1.a.act");
    assert!(later.iter().all(|v| v.abs() > 8e3), "{later:?}");
}

#[test]
fn a_teacher_whose_answer_is_not_finite_is_blamed_for_the_loss() {
    let data = data(64, 10, 60);
    let mut run =
        run("[[stage]]\nepochs = 2\nschedule = { rate = 1e-6 }\ndistil = { teacher = \"start\" }");
    epoch(&mut run, &data);
    let mut checkpoint = run.checkpoint();
    let weights = checkpoint.arrays.get_mut("teacher.parameters").unwrap();
    weights.get_mut("dense.bias").unwrap().values[0] = f32::INFINITY;
    let mut broken = Run::from_checkpoint(checkpoint, Device::flex()).unwrap();
    let why = broken.epoch(&data, &ProgressBar::hidden()).unwrap_err();
    assert!(why.is::<Diverged>());
    assert!(why.to_string().contains("the teacher's output"), "{why}");
}

#[test]
fn averages_take_the_weights_places_at_the_end_of_every_phase() {
    let data = data(64, 10, 61);
    let average = "average = { swa = { from = 0 } }";
    for method in [
        "method = { snl = { relus = 100, lambda = 1e-3 } }\nepochs = 2",
        "method = { autorep = { relus = 100, lambda = 1e-3 } }\nepochs = 2",
        "method = { bcd = { relus = 1500, block = 300, trials = 1, tolerance = 1.0, images = 10, \
         step_epochs = 1 } }",
        "method = { quail = { norm = \"amm\", layer_epochs = 1, unfreeze_epochs = 1 } }",
    ] {
        let mut run = run(&format!(
            r#"
                [[stage]]
                {method}
                optimiser = {{ {average} }}
                schedule = {{ rate = 0.01 }}
                [[stage]]
                epochs = 1
                carry = true
            "#
        ));
        while !run.finished() {
            epoch(&mut run, &data);
            // No average is left where a phase ended, and what is saved can be read again.
            run = reopened(&run);
        }
        let left = run
            .state
            .parameters
            .keys()
            .any(|name| name.ends_with(".keep"));
        assert!(!left, "{method}");
    }
    // The mean of the weights after two steps of one epoch, step by step.
    let stage = |epochs: usize, average: &str| {
        format!(
            r#"
                [[stage]]
                epochs = {epochs}
                batch = 64
                optimiser = {{ {average} }}
                schedule = {{ rate = 0.01 }}
            "#
        )
    };
    let name = "stage1.block1.a.conv.weight";
    let mut plain = common::run(&stage(2, ""));
    epoch(&mut plain, &data);
    let first = plain.state.parameter(name).unwrap();
    epoch(&mut plain, &data);
    let second = plain.state.parameter(name).unwrap();
    let mut averaged = common::run(&stage(2, average));
    finish(&mut averaged, &data);
    let got = averaged.state.parameter(name).unwrap();
    for ((a, b), got) in first.iter().zip(&second).zip(got) {
        assert!((got - (a + b) / 2.0).abs() < 1e-6, "{a}, {b}: {got}");
    }
}

#[test]
fn soft_labels_teach_as_their_network_does_and_a_resumed_run_reads_them_again() {
    let data = data(96, 20, 61);
    let mut teacher = run("[[stage]]\nepochs = 2");
    finish(&mut teacher, &data);
    let folder = common::saved(&teacher);
    let path = folder.path().join("labels");
    let one = [View::new(0, false)];
    let labels = SoftLabels::of(&teacher, &data.train, &one, &ProgressBar::hidden()).unwrap();
    labels.save(&path).unwrap();
    assert_eq!(SoftLabels::load(&path).unwrap(), labels);
    let stage = |teacher: &str| {
        format!(
            "[[stage]]\nepochs = 2\naugmentation = {{ shift = 0, flip = false }}\n\
             distil = {{ teacher = {{ {teacher} }}, temperature = 2.0, weight = 2.8, \
             cross_entropy = 0.3 }}\n"
        )
    };
    let by_network = stage(&format!("checkpoint = {:?}", folder.path()));
    let by_labels = stage(&format!("logits = {path:?}"));
    let mut losses = Vec::new();
    for stages in [&by_network, &by_labels] {
        let reports = finish(&mut run(stages), &data);
        losses.push(
            reports
                .iter()
                .map(|r| r.loss.unwrap())
                .collect::<Vec<f64>>(),
        );
    }
    // The logits are the same but for the order of sums, in batches of other sizes.
    for (network, labels) in losses[0].iter().zip(&losses[1]) {
        assert!((network - labels).abs() < 1e-3 * network, "{losses:?}");
    }
    let mut whole = run(&by_labels);
    finish(&mut whole, &data);
    let mut resumed = run(&by_labels);
    let mut left = 2;
    let go_on = || {
        left -= 1;
        left >= 0
    };
    let hidden = ProgressBar::hidden();
    assert!(
        resumed
            .epoch_while(&data, &hidden, go_on)
            .unwrap()
            .is_none()
    );
    let checkpoint = resumed.checkpoint();
    let mut resumed = Run::from_checkpoint(checkpoint.clone(), Device::flex()).unwrap();
    finish(&mut resumed, &data);
    assert_eq!(
        resumed.state.parameter_arrays(),
        whole.state.parameter_arrays()
    );
    // Other labels under the same name do not go unnoticed within the stage.
    let two = [View::new(0, false), View::new(1, true)];
    let others = SoftLabels::of(&teacher, &data.train, &two, &hidden).unwrap();
    others.save(&path).unwrap();
    let mut resumed = Run::from_checkpoint(checkpoint, Device::flex()).unwrap();
    let why = error(resumed.epoch(&data, &hidden));
    assert!(
        why.contains("is not the file that the stage began with"),
        "{why}"
    );
    // The mean over the views is that of the logits.
    let mean = |image: usize| -> Vec<f32> {
        let views = two.map(|view| download(teacher.logits(data.train.view(&[image], view))));
        views[0]
            .iter()
            .zip(&views[1])
            .map(|(a, b)| (a + b) / 2.0)
            .collect()
    };
    for image in [0, 57] {
        for (own, expected) in others.rows(&[image]).iter().zip(mean(image)) {
            assert!((own - expected).abs() < 1e-4 * expected.abs().max(1.0));
        }
    }
    let text = toml::to_string(&experiment(&by_labels, &[])).unwrap();
    let quail =
        "stage.0.method={ quail = { norm = \"amm\", layer_epochs = 1, unfreeze_epochs = 1 } }";
    let overrides = [quail, "stage.0.epochs=0"].map(str::to_owned);
    let why = error(Config::parse(&text, &overrides));
    assert!(why.contains("soft labels have none"), "{why}");
}

#[test]
fn a_frozen_gamma_stays_one_and_collects_no_gradient() {
    let data = data(64, 0, 62);
    let mut run = run(
        "[[stage]]\nepochs = 1\nfreeze = [\"*.gamma\", \"dense.bias\"]\n\
                       optimiser = { rule = { muon = {} }, decayed = [\"*\"], weight_decay = 0.1 }",
    );
    finish(&mut run, &data);
    let trains = |name: &str| !name.ends_with(".gamma");
    let request = Request {
        trains: Some(&trains),
        ..Request::of(Mode::Train)
    };
    let pixels = data.train.plain(&[0, 1]);
    let pass = run.network.forward(&run.state, pixels, request);
    let mut gammas = 0;
    for (name, array) in run.state.parameter_arrays() {
        if name.ends_with(".gamma") {
            assert!(array.values.iter().all(|gamma| *gamma == 1.0), "{name}");
            assert!(!pass.leaves.contains_key(&name));
            gammas += 1;
        } else if name == "dense.bias" {
            assert!(
                array.values.iter().all(|bias| *bias == 0.0),
                "it began at zero"
            );
        } else {
            assert!(pass.leaves.contains_key(&name), "{name}");
        }
    }
    assert_eq!(gammas, 6);
}

#[test]
fn what_is_frozen_whole_only_follows_its_statistics() {
    let data = data(64, 10, 57);
    for stages in [
        "[[stage]]\nepochs = 1\nfreeze = [\"*\"]\n",
        // The first layer's turn has nothing to train.
        "[[stage]]\nfreeze = [\"stem.*\"]\n\
         method = { quail = { norm = \"amm\", layer_epochs = 1, unfreeze_epochs = 0 } }\n",
    ] {
        let mut run = run(stages);
        let stem = |run: &Run| {
            let weight = run.state.parameter("stem.conv.weight").unwrap();
            (weight, run.state.buffer("stem.norm.moments").unwrap())
        };
        let before = stem(&run);
        let report = epoch(&mut run, &data);
        assert!(report.loss.unwrap().is_finite());
        assert_eq!(report.gradient_norm, [0.0, 0.0]);
        let after = stem(&run);
        assert_eq!(after.0, before.0, "{stages}");
        assert_ne!(after.1, before.1, "{stages}");
    }
}

#[test]
fn nothing_is_learnt_from_a_run_that_is_not_finished() {
    let data = data(64, 10, 64);
    let mut source = run("[[stage]]\nepochs = 2");
    epoch(&mut source, &data);
    let folder = saved(&source);
    let begin = |overrides: &[&str]| -> anyhow::Result<()> {
        let config = experiment("[[stage]]\nepochs = 1", overrides);
        let mut run = Run::new(config, images(), Device::flex())?;
        run.epoch(&data, &ProgressBar::hidden()).map(|_| ())
    };
    let warm = format!("warm_start={{ checkpoint = {:?} }}", folder.path());
    let taught = format!(
        "stage.0.distil={{ teacher = {{ checkpoint = {:?} }} }}",
        folder.path()
    );
    for item in [&warm, &taught] {
        let why = error(begin(&[item]));
        assert!(
            why.contains("train it to its end first") && why.contains("checkpoint.pit"),
            "{item}: {why}"
        );
    }
    finish(&mut source, &data);
    let path = folder.path().join("checkpoint.pit");
    source.checkpoint().save(&path).unwrap();
    for item in [&warm, &taught] {
        begin(&[item]).unwrap();
    }
}

#[test]
fn norms_that_a_warm_start_does_not_know_begin_with_the_images_statistics() {
    let data = data(96, 10, 63);
    let mut source = run("[[stage]]\nepochs = 1");
    finish(&mut source, &data);
    let folder = saved(&source);
    let start = format!(
        "warm_start={{ checkpoint = {:?}, activations = false }}",
        folder.path()
    );
    for by in ["square-amm", "herpn"] {
        let activations = format!("network.activations=[{{ sites = \"*\", by = \"{by}\" }}]");
        let config = experiment("[[stage]]\nepochs = 0", &[&start, &activations]);
        let mut run = Run::new(config, images(), Device::flex()).unwrap();
        epoch(&mut run, &data);
        let what = if by == "herpn" { "herpn" } else { "extent" };
        let got = run.state.buffer(&format!("stem.act.{what}")).unwrap();
        // All 96 images are the batch that is measured, so the batch norm before the site makes
        // means and variances.
        let beta = run.state.parameter("stem.norm.beta").unwrap();
        let gamma = run.state.parameter("stem.norm.gamma").unwrap();
        assert!(beta.iter().any(|b| b.abs() > 1e-3), "{beta:?}");
        for channel in 0..8 {
            match by {
                "herpn" => {
                    assert!((got[channel] - beta[channel]).abs() < 1e-4);
                    assert!((got[8 + channel] - gamma[channel].powi(2)).abs() < 1e-2);
                }
                _ => assert!(got[channel] < -1.0 && got[8 + channel] > 1.0, "{got:?}"),
            }
        }
    }
}

#[test]
fn a_kernel_and_a_polynomial_activation_may_stand_in_two_layers() {
    let kernels = "network.kernels=[{ convolutions = \"stage1.block1.a\", by = \"r-pkn\" }]";
    let with = |site: &str| {
        let activations =
            format!("network.activations=[{{ sites = \"{site}\", by = \"react-pkn\" }}]");
        Run::new(
            experiment("[[stage]]\nepochs = 1", &[kernels, &activations]),
            images(),
            Device::flex(),
        )
    };
    assert!(with("stem.act").is_ok());
    let why = error(with("stage1.block1.a.act"));
    assert!(
        why.contains("stage1.block1.a.kernel") && why.contains("stage1.block1.a.act"),
        "{why}"
    );
    // A selection that would make some is refused as well.
    let stage = "[[stage]]\nmethod = { autorep = { relus = 5 } }\nepochs = 1";
    let mut run = Run::new(experiment(stage, &[kernels]), images(), Device::flex()).unwrap();
    let why = error(run.epoch(&data(32, 5, 65), &ProgressBar::hidden()));
    assert!(why.contains("same layer"), "{why}");
}

#[test]
fn patterns_that_fit_no_parameter_are_refused() {
    let data = data(32, 5, 67);
    for slip in [
        "freeze = [\"stage1.blok*\"]",
        "optimiser = { rates = [{ parameters = \"steem.*\", factor = 0.1 }] }",
    ] {
        let mut run = run(&format!("[[stage]]\nepochs = 1\n{slip}"));
        let why = error(run.epoch(&data, &ProgressBar::hidden()));
        assert!(
            why.contains("no parameter fits") && why.contains("stem.conv.weight"),
            "{why}"
        );
    }
}

#[test]
fn what_may_change_in_a_stage_under_way_does_and_the_rest_is_refused() {
    let data = data(64, 10, 69);
    let snl = r#"
        [[stage]]
        method = { snl = { relus = 100 } }
        epochs = 4
        optimiser = { rule = { adam = {} } }
        schedule = { rate = 1e-3 }
        [[stage]]
        epochs = 1
    "#;
    let mut begun = run(snl);
    epoch(&mut begun, &data);
    let config = |overrides: &[&str]| experiment(snl, overrides);
    for item in [
        "stage.0.method.snl.relus=90",
        "stage.0.method=plain",
        "stage.0.replace=[{ sites = \"*\", by = \"identity\" }]",
        "stage.0.distil={ teacher = \"start\" }",
    ] {
        let mut config = config(&[item]);
        config.name = "other".to_owned();
        let why = error(reopened(&begun).reconfigure(config));
        assert!(why.contains("under way"), "{item}: {why}");
    }
    let mut bad = config(&[]);
    bad.stages[0].batch = 0;
    assert!(error(reopened(&begun).reconfigure(bad)).contains("batch"));
    // Another clip and fewer epochs: the stage ends at once, and the next one begins.
    let mut shorter = reopened(&begun);
    let changed = config(&["stage.0.optimiser.clip=0.5", "stage.0.epochs=1"]);
    shorter.reconfigure(changed).unwrap();
    let report = epoch(&mut shorter, &data);
    assert_eq!((report.loss, report.stage_epoch), (None, [1, 1]));
    assert_eq!(shorter.network.counts(&shorter.state).relus, 100);
    assert_eq!(epoch(&mut shorter, &data).stage, 1);
    // A clip that holds everything still is heeded in the stage under way.
    let mut still = reopened(&begun);
    let rule = "stage.0.optimiser={ rule = { sgd = { momentum = 0.0 } }, clip = 1e-20 }";
    still.reconfigure(config(&[rule])).unwrap();
    let before = still.state.parameter("dense.weight").unwrap();
    epoch(&mut still, &data);
    assert_eq!(still.state.parameter("dense.weight").unwrap(), before);
}

/// Results report the configuration: it must be that of the training.
#[test]
fn the_seed_and_finished_stages_cannot_change() {
    let data = data(64, 10, 70);
    let mut teacher = run("[[stage]]\nepochs = 0");
    finish(&mut teacher, &data);
    let folder = saved(&teacher);
    let stages = "[[stage]]\nepochs = 1\n[[stage]]\nepochs = 2";
    let taught = |path: &std::path::Path| {
        format!("stage.0.distil={{ teacher = {{ checkpoint = {path:?} }} }}")
    };
    let own = taught(folder.path());
    let config = |overrides: &[&str]| experiment(stages, &[&[own.as_str()], overrides].concat());
    let mut run = Run::new(config(&[]), images(), Device::flex()).unwrap();
    epoch(&mut run, &data);
    assert_eq!(run.meta.stage, 1);
    for (item, expected) in [
        ("seed=8", "seed 7"),
        ("stage.0.batch=16", "stage 0 is finished"),
        ("stage.0.epochs=2", "stage 0 is finished"),
        ("stage.0.distil.temperature=2.0", "stage 0 is finished"),
        (
            "stage.0.distil={ teacher = \"start\" }",
            "stage 0 is finished",
        ),
    ] {
        let why = error(reopened(&run).reconfigure(config(&[item])));
        assert!(
            why.contains(expected) && why.contains("another --out"),
            "{item}: {why}"
        );
    }
    // The teacher's file may lie elsewhere, and what has not begun may be anything.
    let elsewhere = taught(&folder.path().join("elsewhere"));
    let later = config(&[&elsewhere, "stage.1.batch=16"]);
    reopened(&run).reconfigure(later).unwrap();
}

#[test]
fn without_held_out_images_nothing_is_said_of_them() {
    let out = tempfile::tempdir().unwrap();
    let data = data(40, 0, 71);
    // One batch, larger than the set.
    let mut run = run("[[stage]]\nepochs = 1\nbatch = 1000");
    folder::train(&mut run, &data, out.path(), None, &ProgressBar::hidden()).unwrap();
    assert_eq!(run.meta.holdout_accuracy, None);
    let log = fs::read_to_string(out.path().join("log.jsonl")).unwrap();
    let line: serde_json::Value = serde_json::from_str(log.lines().next().unwrap()).unwrap();
    assert!(line["holdout_accuracy"].is_null() && line["holdout_loss"].is_null());
    assert!(line["loss"].is_number());
    assert_eq!(line["sites"], serde_json::json!({}));
}

/// A run is killed after its line is written and before its checkpoint is: the line is cut off and
/// written again.
#[test]
fn no_epoch_is_missing_in_the_log_of_a_killed_run() {
    let out = tempfile::tempdir().unwrap();
    let data = data(32, 5, 73);
    let bar = ProgressBar::hidden();
    let mut run = run("[[stage]]\nepochs = 3");
    let path = out.path().join("checkpoint.pit");
    epoch(&mut run, &data);
    // The checkpoint of epoch 1 cannot be replaced: a folder is in the way of the temporary file.
    let mut first = reopened(&run);
    let temporary = format!("checkpoint.pit.{}.tmp", std::process::id());
    fs::create_dir(out.path().join(&temporary)).unwrap();
    let why = error(folder::train(&mut first, &data, out.path(), None, &bar));
    assert!(why.contains("checkpoint.pit"), "{why}");
    let log = || fs::read_to_string(out.path().join("log.jsonl")).unwrap();
    assert_eq!(log().lines().count(), 1, "the second epoch's line");
    fs::remove_dir(out.path().join(&temporary)).unwrap();
    run.checkpoint().save(&path).unwrap();
    let mut again = Run::from_checkpoint(Checkpoint::load(&path).unwrap(), Device::flex()).unwrap();
    folder::train(&mut again, &data, out.path(), None, &bar).unwrap();
    let epochs: Vec<u64> = log()
        .lines()
        .filter_map(|line| {
            serde_json::from_str::<serde_json::Value>(line).unwrap()["epoch"].as_u64()
        })
        .collect();
    assert_eq!(epochs, [2, 3]);
}
