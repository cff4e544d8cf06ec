//! Each pass on small text files: a graph with its numbers, the pass, the expected output.
//!
//! A file holds `pass NAME`, a graph in `pi-ir`'s text form, lines `values "node" field
//! numbers...`, the line `expect`, and what the pass prints: the folded graph with its values, the
//! lowered network, the circuit with its weights, or `refused` with all faults. Set
//! `UPDATE_PASSES=1` to write what the passes print now, and read the difference.

use pi_compiler::fault::Refused;
use pi_compiler::pass::calibrate::magnitudes;
use pi_compiler::pass::fold::fold;
use pi_compiler::pass::lower::{Pools, lower};
use pi_compiler::pass::quantise::{Identity, Precision, quantise, scales};
use pi_compiler::pass::range;
use pi_ir::text::{parse_graph, print_circuit, print_graph};
use pi_ir::{Graph, Op, Weights};
use std::fmt::Write;
use std::fs;
use std::path::Path;

#[test]
fn every_pass_file_gives_its_expected_output() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/passes");
    let mut files: Vec<_> = fs::read_dir(directory)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    assert!(files.len() >= 10, "the pass files are missing");
    let mut wrong = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        let (input, expected) = text.split_once("expect\n").expect("a line `expect`");
        let printed = run(input);
        if printed != expected {
            if std::env::var_os("UPDATE_PASSES").is_some() {
                fs::write(&file, format!("{input}expect\n{printed}")).unwrap();
            }
            wrong.push(format!("{}:\n{printed}", file.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn run(input: &str) -> String {
    let (pass, graph) = parse(input);
    let printed = match pass.as_str() {
        "fold" => fold(&graph).map(|graph| print_graph(&graph) + &print_values(&graph)),
        "lower" => fold(&graph)
            .and_then(|graph| lower(&graph, Pools::Absorb))
            .map(|n| n.to_string()),
        "lower separate" => fold(&graph)
            .and_then(|graph| lower(&graph, Pools::Separate))
            .map(|n| n.to_string()),
        "quantise" => compile(&graph),
        other => panic!("no pass {other}"),
    };
    printed.unwrap_or_else(|refused| {
        let faults = refused.0.iter().map(|fault| format!("  {fault}\n"));
        format!("refused\n{}", faults.collect::<String>())
    })
}

/// Calibrated on a black, a white and a grey image.
fn compile(graph: &Graph) -> Result<String, Refused> {
    let precision = Precision::default();
    let network = lower(&fold(graph)?, Pools::Absorb)?;
    let pixels: Vec<Vec<u8>> = [0, 255, 100].map(|v| vec![v; network.input.len()]).to_vec();
    let images = pixels
        .iter()
        .map(|p| pi_compiler::images::normalise(p, &graph.mean, &graph.std));
    let seen = magnitudes(&network, &images.collect::<Vec<_>>());
    let scales = scales(&network, &seen, &precision)?;
    let identity = Identity {
        name: &graph.name,
        mean: &graph.mean,
        std: &graph.std,
        classes: &graph.classes,
    };
    let (mut circuit, weights) = quantise(&network, &scales, &precision, &identity)?;
    range::bound(&mut circuit, &weights, &pixels, &precision)?;
    Ok(print_circuit(&circuit) + &print_weights(&weights))
}

fn print_weights(weights: &Weights) -> String {
    let mut text = String::new();
    for (index, layer) in weights.layers.iter().enumerate() {
        for kernel in &layer.kernels {
            writeln!(text, "weights {index} {kernel:?}").unwrap();
        }
        writeln!(text, "bias {index} {:?}", layer.bias).unwrap();
        for p in &layer.polynomials {
            writeln!(text, "polynomial {index} {} {} {}", p.a, p.b, p.k).unwrap();
        }
    }
    text
}

fn parse(input: &str) -> (String, Graph) {
    let mut structure = String::new();
    let mut values = Vec::new();
    let mut pass = None;
    for line in input.lines() {
        if let Some(name) = line.strip_prefix("pass ") {
            pass = Some(name.to_string());
        } else if let Some(rest) = line.strip_prefix("values ") {
            values.push(rest);
        } else {
            structure.push_str(line);
            structure.push('\n');
        }
    }
    let mut graph = parse_graph(&structure).unwrap_or_else(|error| panic!("{error}"));
    for line in values {
        set_values(&mut graph, line);
    }
    (pass.expect("a line `pass`"), graph)
}

fn set_values(graph: &mut Graph, line: &str) {
    let mut words = line.split_whitespace();
    let name = words.next().unwrap().trim_matches('"');
    let field = words.next().unwrap();
    let numbers: Vec<f32> = words.map(|w| w.parse().unwrap()).collect();
    let node = graph
        .nodes
        .iter_mut()
        .find(|node| node.name == name)
        .expect("a node of this name");
    for (known, list) in fields(&mut node.op) {
        if known == field {
            assert_eq!(list.len(), numbers.len(), "values {line}");
            list.copy_from_slice(&numbers);
            return;
        }
    }
    let Op::Activation { coefficients, .. } = &mut node.op else {
        panic!("no field {field} in {name}");
    };
    let triples = numbers.chunks_exact(3).map(|c| [c[0], c[1], c[2]]);
    *coefficients = triples.collect();
}

fn fields(op: &mut Op) -> Vec<(&'static str, &mut Vec<f32>)> {
    match op {
        Op::Conv2d { weight, bias, .. } | Op::Dense { weight, bias, .. } => {
            vec![("weight", weight), ("bias", bias)]
        }
        Op::BatchNorm(norm) => vec![
            ("gamma", &mut norm.gamma),
            ("beta", &mut norm.beta),
            ("mean", &mut norm.mean),
            ("var", &mut norm.var),
        ],
        _ => vec![],
    }
}

fn print_values(graph: &Graph) -> String {
    let mut text = String::new();
    for node in &graph.nodes {
        let mut op = node.op.clone();
        for (field, list) in fields(&mut op) {
            if !list.is_empty() {
                writeln!(text, "values {:?} {field}{}", node.name, numbers(list)).unwrap();
            }
        }
        if let Op::Activation { coefficients, .. } = &node.op
            && !coefficients.is_empty()
        {
            let all: Vec<f32> = coefficients.concat();
            writeln!(text, "values {:?} coefficients{}", node.name, numbers(&all)).unwrap();
        }
    }
    text
}

fn numbers(list: &[f32]) -> String {
    list.iter()
        .map(|v| format!(" {}", (v * 1e4).round() / 1e4))
        .collect()
}
