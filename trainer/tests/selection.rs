//! Selections and descents on a tiny network: budgets are met exactly, masks only shrink.

mod common;

use common::{POSITIONS, data, finish, run};
use indicatif::ProgressBar;
use pi_ir::graph::ActivationKind;
use pi_trainer::network::Masks;
use pi_trainer::run::Run;
use serde_json::{Value, json};

/// Every mask change only took ReLUs away.
fn shrinks(before: &Masks, after: &Masks, to: ActivationKind) {
    for (site, kinds) in before {
        for (old, new) in kinds.iter().zip(&after[site]) {
            assert!(
                old == new || (*old == ActivationKind::Relu && *new == to),
                "{site}: {old:?} became {new:?}"
            );
        }
    }
}

fn relus(run: &Run) -> usize {
    run.network.counts(&run.state).relus
}

#[test]
fn snl_and_autorep_meet_their_budget_whatever_the_pressure() {
    let data = data(64, 20, 21);
    for (method, to) in [
        (
            "snl = { relus = 321, lambda = 1e-5 }",
            ActivationKind::Identity,
        ),
        (
            "snl = { relus = 321, lambda = 1.0 }",
            ActivationKind::Identity,
        ),
        (
            "autorep = { relus = 321, lambda = 1e-5 }",
            ActivationKind::Polynomial,
        ),
        (
            "autorep = { relus = 321, lambda = 1.0 }",
            ActivationKind::Polynomial,
        ),
        (
            "snl = { relus = 0, removed = \"polynomial\" }",
            ActivationKind::Polynomial,
        ),
    ] {
        let mut run = run(&format!(
            r#"
                [[stage]]
                method = {{ {method} }}
                epochs = 3
                optimiser = {{ rule = {{ adam = {{}} }} }}
                schedule = {{ rate = 0.02 }}
            "#
        ));
        let before = run.state.masks.clone();
        finish(&mut run, &data);
        let expected = if method.contains("relus = 0") { 0 } else { 321 };
        assert_eq!(relus(&run), expected, "{method}");
        shrinks(&before, &run.state.masks, to);
        assert!(run.state.selection.is_none());
        let left = run.state.parameters.keys().chain(run.state.buffers.keys());
        let left: Vec<&String> = left
            .filter(|name| name.contains(".kee") || name.contains(".kept"))
            .collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn the_penalty_grows_until_the_count_falls_and_the_stage_ends_at_the_budget() {
    let data = data(64, 20, 22);
    // Two steps an epoch at rate 1e-3 leave every factor near one, so the count cannot fall: the
    // penalty grows.
    let mut slow = run(r#"
        [[stage]]
        method = { snl = { relus = 100, lambda = 1e-5, growth = 2.0 } }
        epochs = 3
        optimiser = { rule = { adam = {} } }
        schedule = { rate = 1e-3 }
    "#);
    let lambdas: Vec<f64> = finish(&mut slow, &data)
        .iter()
        .map(|report| report.step.as_ref().unwrap()["lambda"].as_f64().unwrap())
        .collect();
    for (lambda, expected) in lambdas.iter().zip([2e-5, 4e-5, 8e-5]) {
        assert!((lambda / expected - 1.0).abs() < 1e-5, "{lambdas:?}");
    }
    let mut fast = run(r#"
        [[stage]]
        method = { snl = { relus = 1000, lambda = 1.0 } }
        epochs = 50
        optimiser = { rule = { adam = {} } }
        schedule = { rate = 0.3 }
    "#);
    let reports = finish(&mut fast, &data);
    assert!(reports.len() < 50, "{} epochs", reports.len());
    assert_eq!(relus(&fast), 1000);
}

#[test]
fn bcd_leaves_the_sites_alone_that_are_not_its_own() {
    let data = data(64, 20, 24);
    for draw in ["uniform", "saliency"] {
        let mut run = run(&format!(
            r#"
                [[stage]]
                schedule = {{ rate = 1e-3 }}
                [stage.method.bcd]
                sites = "stage2.*"
                relus = 150
                block = 200
                trials = 2
                tolerance = 0.3
                images = 64
                step_epochs = 1
                draw = "{draw}"
            "#
        ));
        // Both sites of stage 2 have 192 positions.
        let reports = finish(&mut run, &data);
        let left: Vec<u64> = reports
            .iter()
            .map(|report| report.step.as_ref().unwrap()["left"].as_u64().unwrap())
            .collect();
        assert_eq!(left, [184, 150], "{draw}");
        assert_eq!(relus(&run), POSITIONS - 2 * 192 + 150, "{draw}");
        for (site, kinds) in &run.state.masks {
            let whole = kinds.iter().all(|kind| *kind == ActivationKind::Relu);
            assert_eq!(whole, !site.starts_with("stage2."), "{draw}: {site}");
        }
    }
}

#[test]
fn bcd_walks_down_to_its_budget_block_by_block() {
    let data = data(64, 20, 23);
    for (removed, draw) in [
        ("identity", "uniform"),
        ("polynomial", "uniform"),
        ("identity", "saliency"),
        ("polynomial", "saliency"),
    ] {
        let mut run = run(&format!(
            r#"
                [[stage]]
                schedule = {{ rate = 1e-3 }}
                [stage.method.bcd]
                relus = {}
                block = 100
                trials = 4
                tolerance = 0.3
                images = 64
                step_epochs = 2
                removed = "{removed}"
                draw = "{draw}"
            "#,
            POSITIONS - 250
        ));
        let mut counts = vec![relus(&run)];
        let mut epoch = 0;
        while !run.finished() {
            let before = run.state.masks.clone();
            let report = run.epoch(&data, &ProgressBar::hidden()).unwrap();
            epoch += 1;
            let to = match removed {
                "identity" => ActivationKind::Identity,
                _ => ActivationKind::Polynomial,
            };
            shrinks(&before, &run.state.masks, to);
            if epoch % 2 == 1 {
                let step = report.step.expect("a step begins every second epoch");
                assert_eq!(step["left"], relus(&run));
                let tried = step["tried"].as_u64().unwrap();
                assert!((1..=4).contains(&tried));
            } else {
                assert_eq!(before, run.state.masks, "masks change at steps only");
            }
            counts.push(relus(&run));
        }
        let below: Vec<usize> = counts.iter().map(|count| POSITIONS - count).collect();
        assert_eq!(below, [0, 100, 100, 200, 200, 250, 250]);
    }
}

/// With costs that make one site expensive, the descent by latency empties that site first.
#[test]
fn bcd_by_latency_removes_where_it_saves() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("costs.json");
    let data = data(64, 20, 24);
    let stages = |costs: &str| {
        format!(
            r#"
                [[stage]]
                schedule = {{ rate = 1e-3 }}
                [stage.method.bcd]
                relus = {}
                block = 192
                trials = 40
                tolerance = 0.0
                images = 64
                step_epochs = 1
                latency = {{ costs = {costs:?}, profile = "wan" }}
            "#,
            POSITIONS - 192
        )
    };
    let mut run = run(&stages(path.to_str().unwrap()));
    // A file of the real compiler, with its first layer once for each of our sites.
    let mut costs: Value = serde_json::from_str(include_str!("files/costs.json")).unwrap();
    let first = costs["layers"][0].clone();
    let layers = run.network.sites().map(|(site, shape)| {
        let mut layer = first.clone();
        layer["site"] = site.into();
        layer["shape"] = json!(shape);
        // 192 positions, of the last block, are as many as a block: a step can take them all.
        let dear = site == "stage2.block1.act";
        let seconds = json!({ "offline_s": 0.0, "online_s": if dear { 1.0 } else { 1e-6 } });
        layer["element"]["relu"]["predicted"]["wan"] = seconds;
        layer
    });
    costs["layers"] = layers.collect();
    costs["empty_sites"] = json!([]);
    std::fs::write(&path, costs.to_string()).unwrap();
    finish(&mut run, &data);
    let kinds = &run.state.masks["stage2.block1.act"];
    assert!(kinds.iter().all(|kind| *kind == ActivationKind::Identity));
    assert_eq!(relus(&run), POSITIONS - 192);

    let mut other = common::run(&stages(path.to_str().unwrap()).replace("wan", "moon"));
    let why = other.epoch(&data, &ProgressBar::hidden()).unwrap_err();
    assert!(format!("{why:#}").contains("moon"), "{why:#}");
}
