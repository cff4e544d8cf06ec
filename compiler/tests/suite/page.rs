//! The page that reports costs: well-formed, complete, by itself, and harmless whatever the names.

use pi_compiler::accuracy::{Measured, in_decibels};
use pi_compiler::cost::report::Report;
use pi_compiler::examples::Examples;
use pi_compiler::number;
use pi_compiler::page::{self, Model};
use pi_compiler::pass::select::Link;
use pi_compiler::{Options, compile, emit};
use pi_ir::artifact::Accuracy;
use pi_ir::builders::{Builder, ConvShape, Policy, Rest, resnet20};
use pi_ir::{Graph, NodeId, Op, Shape};

fn model(name: &str, graph: &Graph, accuracy: Option<Accuracy>) -> Model {
    let Op::Input { shape } = graph.nodes[0].op else {
        panic!("node 0 is the input");
    };
    let options = Options {
        batches: vec![4],
        ..Options::default()
    };
    let compiled = compile(graph, &Examples::synthetic(shape, 4, 0), &options).unwrap();
    let (artifact, _) = emit::files(&compiled, [0; 32], accuracy, "");
    let mut report = Report::new(&artifact, &Link::default()).unwrap();
    let held_back = Examples::synthetic(shape, 4, 9);
    report.measured = Some(Measured::new(graph, &compiled, &held_back).unwrap());
    Model {
        name: name.into(),
        report,
    }
}

fn small(relus: usize) -> Graph {
    let rest = Rest::Polynomial;
    resnet20(8, 10, Policy::Budget { relus, rest }, 1)
}

fn right(fixed_correct: u32) -> Option<Accuracy> {
    Some(Accuracy {
        images: 1000,
        float_correct: 900,
        fixed_correct,
    })
}

/// The elements of a page, each with its attributes, and its text; panics if they do not nest, or
/// an attribute or a character reference is not as this project writes it.
fn parse(page: &str) -> (Vec<(String, String)>, String) {
    let mut rest = page
        .strip_prefix("<!DOCTYPE html>\n")
        .expect("a document type");
    let (mut open, mut elements, mut words) = (Vec::new(), Vec::new(), String::new());
    while let Some(start) = rest.find('<') {
        let (text, tag) = rest.split_at(start);
        if open.last() != Some(&"style") {
            references(text);
            words.push_str(text);
            words.push('\n');
        }
        let end = tag.find('>').expect("a tag ends");
        let inner = &tag[1..end];
        rest = &tag[end + 1..];
        if let Some(name) = inner.strip_prefix('/') {
            assert_eq!(open.pop(), Some(name), "{name} ends what did not begin");
            continue;
        }
        let whole = inner.strip_suffix('/').unwrap_or(inner);
        let (name, attributes) = whole.split_once(' ').unwrap_or((whole, ""));
        assert!(name.bytes().all(|b| b.is_ascii_alphanumeric()), "{name}");
        elements.push((name.to_owned(), attributes.to_owned()));
        check_attributes(attributes);
        if whole.len() == inner.len() {
            open.push(name);
        }
    }
    assert!(open.is_empty() && rest.trim().is_empty(), "{open:?} {rest}");
    (elements, words)
}

fn check_attributes(mut rest: &str) {
    while !rest.is_empty() {
        let (name, value) = rest.split_once("=\"").expect("a value in quotes");
        let name = name.trim_start();
        assert!(
            name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-'),
            "{name}"
        );
        assert!(
            !name.starts_with("on") && name != "src" && name != "style",
            "{name}"
        );
        let (value, others) = value.split_once('"').expect("a quote that closes");
        references(value);
        rest = others;
    }
}

fn references(text: &str) {
    for after in text.split('&').skip(1) {
        let (name, _) = after.split_once(';').expect("a reference ends");
        assert!(["amp", "lt", "gt", "quot", "#39"].contains(&name), "{name}");
    }
}

#[test]
fn a_page_is_well_formed_complete_and_by_itself() {
    let models = [
        model("a", &small(300), right(850)),
        model("b", &small(900), right(870)),
        model("c", &small(0), None),
    ];
    for shown in [&models[..1], &models[..], &models[2..]] {
        let page = page::html(shown);
        let (elements, words) = parse(&page);
        for (name, attributes) in &elements {
            assert!(!["script", "link", "img", "iframe", "object"].contains(&name.as_str()));
            let link = attributes.contains("href=");
            assert!(
                !link || attributes.contains("href=\"#model-"),
                "{attributes}"
            );
        }
        assert!(!page.contains("http:") && !page.contains("https:"));
        for model in shown {
            let report = &model.report;
            for row in &report.layers {
                // In every chart and in the table.
                let found = words.lines().filter(|line| *line == row.name).count();
                assert!(
                    found >= 9 * shown.len().min(1),
                    "{} {found} times",
                    row.name
                );
            }
            let measured = report.measured.as_ref().expect("it was measured");
            for layer in &measured.layers {
                let ratio = in_decibels(layer.snr_db);
                assert!(words.contains(&ratio), "{}: {ratio}", layer.name);
            }
            let agreement = format!("{} of 4", measured.comparison.agree);
            assert!(words.contains(&agreement), "{agreement}");
            for total in [report.offline.bytes_up, report.online.bytes_down] {
                assert!(words.contains(&number::bytes(total)), "{total}");
            }
        }
    }
    let (_, alone) = parse(&page::html(&models[2..]));
    assert!(alone.contains("not recorded"));
    let (elements, together) = parse(&page::html(&models));
    assert!(together.contains("1 record no accuracy") && together.contains("85.0 %"));
    // Three charts of the two with accuracies, one of all three.
    let circles = elements.iter().filter(|(name, _)| name == "circle").count();
    assert_eq!(circles, 3 * 2 + 3);
    let (elements, none) = parse(&page::html(&[models[2].clone(), models[2].clone()]));
    assert!(none.contains("None of these models records an accuracy"));
    assert_eq!(
        elements.iter().filter(|(name, _)| name == "circle").count(),
        2
    );
}

#[test]
fn names_from_model_files_are_text() {
    let hostile = [
        "</script><b>bold</b>",
        "\" onload=\"alert(1)",
        "<svg/onload=alert(1)>",
        "]]>--><!-- &amp; '",
        "\u{202e}txt.exe",
    ];
    let mut net = Builder::new("<img src=x onerror=alert(1)>", Shape::new(3, 8, 8), 1);
    let mut last = NodeId(0);
    for (index, name) in hostile.iter().enumerate() {
        let conv = net.conv(
            &format!("conv{index}{name}"),
            last,
            ConvShape::same(4, 3, 1),
        );
        last = net.relu(name, conv);
    }
    let flat = net.flatten("flat", last);
    let dense = net.dense("dense", flat, 3);
    let mut model = model(
        "</title><script>alert(1)</script>",
        &net.finish(dense),
        None,
    );
    model.report.note = "<!-- <style> </main>\u{1b}[2J".into();
    let table = model.report.to_string();
    assert!(!table.contains('\u{1b}') && table.contains("note: <!-- <style>"));
    assert!(model.report.layers[0].name.contains("</script>"));
    let (elements, words) = parse(&page::html(&[model.clone(), model]));
    for name in ["script", "b", "img"] {
        assert!(elements.iter().all(|(found, _)| found != name), "{name}");
    }
    assert_eq!(
        elements.iter().filter(|(name, _)| name == "style").count(),
        1
    );
    for text in [
        "&lt;/script&gt;&lt;b&gt;bold&lt;/b&gt;",
        "&lt;img src=x onerror=alert(1)&gt;",
        "&lt;!-- &lt;style&gt; &lt;/main&gt;\u{fffd}[2J",
    ] {
        assert!(words.contains(text), "{text}");
    }
    assert!(!words.contains('\u{202e}'));
}

#[test]
fn layers_and_what_they_share_sum_to_the_whole() {
    let mut without_quadratics = Vec::new();
    for graph in [small(0), small(600), resnet20(8, 10, Policy::Relu, 1)] {
        let report = model("", &graph, None).report;
        let shared = &report.shared;
        let offline = report.layers.iter().fold(shared.offline, |mut sum, row| {
            sum += row.offline;
            sum
        });
        let online = report.layers.iter().fold(shared.online, |mut sum, row| {
            sum += row.online;
            sum
        });
        assert_eq!((offline, online), (report.offline, report.online));
        let close = |a: f64, b: f64| (a - b).abs() < 1e-9;
        let cpu: f64 = report
            .layers
            .iter()
            .map(|row| row.offline_cpu.total())
            .sum();
        let all = cpu + shared.offline_cpu.total();
        assert!(close(all, report.offline_cpu.total()));
        assert!(shared.offline_cpu.total() >= 0.0 && shared.online_cpu.total() >= 0.0);
        let round_trips: u32 = report.layers.iter().map(|row| row.round_trips).sum();
        assert_eq!(round_trips + 1, report.round_trips);
        // The request: an identity, and the masked image.
        assert_eq!(shared.online.bytes_up, 32 + 8 * 3 * 8 * 8);
        assert_eq!(shared.online.bytes_down, 0);
        // By hand: two digests, corrections of base OTs and set-up of trees both ways, and two
        // ciphertexts of an OLE for each 8,191 slots.
        let slots = 2 * report.kinds.polynomial + report.kinds.square;
        let oles = slots.div_ceil(8191) as u64;
        let (up, down) = (8192 * 124 / 8, 8192 * 8 + 8192 * 70 / 8);
        assert_eq!(
            shared.offline.bytes_up,
            32 + 2048 + 6144 + oles * up,
            "{slots}"
        );
        assert_eq!(shared.offline.bytes_down, 32 + 2048 + 6144 + oles * down);
        without_quadratics.push(slots == 0);
    }
    assert_eq!(without_quadratics, [false, false, true]);
}
