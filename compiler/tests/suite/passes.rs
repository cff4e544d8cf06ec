//! Each pass on small text files: the input, the pass, the expected output.
//!
//! A file begins with `pass NAME` and ends with the line `expect` and what the pass prints: the
//! folded graph with its values, the lowered network, the circuit with its weights, the circuit
//! with its bounds, the plan, or `refused` with all faults. Between them stands the input:
//!
//! - for `fold`, `lower` and `quantise`, a graph in `pi-ir`'s text form, with lines `values "node"
//!   field numbers...`;
//! - for `range`, a circuit in `pi-ir`'s text form, with lines `weights LAYER [integers]`, one for
//!   each convolution, `bias LAYER [integers]` and `polynomial LAYER a b k`, and one line `pixels
//!   values...` for each calibration image. The circuit may declare any bounds: as after
//!   quantisation, they are set to the widest before the pass;
//! - for `select`, a circuit, with lines `bundles N` and `link MBIT PRICE` (the price of a byte in
//!   nanoseconds) if they differ from 1 and the default.
//!
//! Set `UPDATE_PASSES=1` to write what the passes print now, and read the difference.

use pi_compiler::fault::Refused;
use pi_compiler::pass::fold::fold;
use pi_compiler::pass::lower::{Kept, Pools, lower, lower_and_measure};
use pi_compiler::pass::quantise::{Identity, Precision, quantise, scales};
use pi_compiler::pass::range;
use pi_compiler::pass::select::{Link, select};
use pi_ir::text::{parse_circuit, parse_graph, print_circuit, print_graph};
use pi_ir::{Circuit, Graph, Input, LayerWeights, Op, Plan, Polynomial, Range, Step, Weights};
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
    let (pass, input) = input.split_once('\n').expect("a line `pass`");
    let printed = match pass.strip_prefix("pass ").expect("a line `pass`") {
        "range" => bound(input),
        "select" => pack(input),
        pass => run_on_graph(pass, &graph(input)),
    };
    printed.unwrap_or_else(|refused| {
        let faults = refused.0.iter().map(|fault| format!("  {fault}\n"));
        format!("refused\n{}", faults.collect::<String>())
    })
}

fn run_on_graph(pass: &str, graph: &Graph) -> Result<String, Refused> {
    match pass {
        "fold" => fold(graph).map(|graph| print_graph(&graph) + &print_values(&graph)),
        "lower" => fold(graph)
            .and_then(|graph| lower(&graph, Pools::Absorb, None, &Kept::new()))
            .map(|lowered| lowered.real.to_string()),
        "lower separate" => fold(graph)
            .and_then(|graph| lower(&graph, Pools::Separate, None, &Kept::new()))
            .map(|lowered| lowered.real.to_string()),
        "quantise" => compile(graph),
        other => panic!("no pass {other}"),
    }
}

/// Calibrated on a black, a white and a grey image.
fn compile(graph: &Graph) -> Result<String, Refused> {
    let precision = Precision::default();
    let Op::Input { shape } = graph.nodes[0].op else {
        panic!("node 0 is the input");
    };
    let pixels: Vec<Vec<u8>> = [0, 255, 100].map(|v| vec![v; shape.len()]).to_vec();
    let images = pixels.iter().map(|p| graph.preprocessing.reals(p));
    let images: Vec<Vec<f32>> = images.collect();
    let (network, seen) = lower_and_measure(&fold(graph)?, Pools::Absorb, None, &images)?;
    let scales = scales(&network, &seen, &precision)?;
    let identity = Identity {
        name: &graph.name,
        preprocessing: &graph.preprocessing,
        classes: &graph.classes,
    };
    let (mut circuit, weights) = quantise(&network, &scales, &seen, &identity)?;
    let inputs: Vec<Input> = pixels.into_iter().map(Input::from).collect();
    range::bound(&mut circuit, &weights, &inputs, &precision)?;
    Ok(print_circuit(&circuit) + &print_weights(&weights))
}

/// Splits the lines that start with one of the keywords off a text; they come with their keyword's
/// place in the list.
fn split_lines<'a>(input: &'a str, keywords: &[&str]) -> (String, Vec<(usize, &'a str)>) {
    let mut structure = String::new();
    let mut found = Vec::new();
    for line in input.lines() {
        let (first, rest) = line.split_once(' ').unwrap_or((line, ""));
        match keywords.iter().position(|keyword| *keyword == first) {
            Some(keyword) => found.push((keyword, rest)),
            None => structure += &format!("{line}\n"),
        }
    }
    (structure, found)
}

/// Numbers between blanks, commas and brackets.
fn integers<T: std::str::FromStr>(list: &str) -> Vec<T> {
    let words = list.split(|c: char| " ,[]".contains(c));
    let words = words.filter(|word| !word.is_empty());
    let number = |word: &str| word.parse().unwrap_or_else(|_| panic!("no number: {word}"));
    words.map(number).collect()
}

fn bound(input: &str) -> Result<String, Refused> {
    let (structure, lines) = split_lines(input, &["weights", "bias", "polynomial", "pixels"]);
    let mut circuit = circuit(&structure);
    let nothing = LayerWeights {
        kernels: Vec::new(),
        bias: Vec::new(),
        element_bias: Vec::new(),
        polynomials: Vec::new(),
    };
    let mut weights = Weights {
        layers: vec![nothing; circuit.layers.len()],
    };
    let mut images = Vec::new();
    for (keyword, rest) in lines {
        if keyword == 3 {
            images.push(Input::Bytes(integers(rest)));
            continue;
        }
        let (layer, numbers) = rest.split_once(' ').expect("the number of a layer");
        let layer = &mut weights.layers[layer.parse::<usize>().unwrap()];
        match keyword {
            0 => layer.kernels.push(integers(numbers)),
            1 => layer.bias = integers(numbers),
            _ => {
                let numbers: Vec<i64> = integers(numbers);
                let [a, b, k] = numbers[..] else {
                    panic!("three coefficients: {rest}");
                };
                layer.polynomials.push(Polynomial { a, b, k });
            }
        }
    }
    widen(&mut circuit);
    range::bound(&mut circuit, &weights, &images, &Precision::default())?;
    Ok(print_circuit(&circuit))
}

/// Sets all bounds as quantisation leaves them.
fn widen(circuit: &mut Circuit) {
    for layer in &mut circuit.layers {
        (layer.bound_bits, layer.range) = (58, Range::Proved);
        if let Step::Activate(activation) = &mut layer.step {
            let posts = [&mut activation.square, &mut activation.polynomial];
            for post in posts.into_iter().flatten() {
                (post.bound_bits, post.range) = (58, Range::Proved);
            }
        }
    }
}

fn pack(input: &str) -> Result<String, Refused> {
    let (structure, lines) = split_lines(input, &["bundles", "link"]);
    let (mut bundles, mut link) = (1, Link::default());
    for (keyword, rest) in lines {
        match keyword {
            0 => bundles = rest.parse().unwrap(),
            _ => {
                let (speed, price) = rest.split_once(' ').expect("a speed and a price");
                link.bits_per_second = 1e6 * speed.parse::<f64>().unwrap();
                link.byte_price = 1e-9 * price.parse::<f64>().unwrap();
            }
        }
    }
    let circuit = circuit(&structure);
    select(&circuit, bundles, &link).map(|plan| print_plan(&circuit, &plan))
}

fn circuit(structure: &str) -> Circuit {
    parse_circuit(structure).unwrap_or_else(|error| panic!("{error}"))
}

fn print_plan(circuit: &Circuit, plan: &Plan) -> String {
    let (degree, bundles) = (plan.ring_degree, plan.bundles);
    let mut text = format!("plan degree {degree} bundles {bundles}\n");
    for (index, upload) in plan.uploads.iter().enumerate() {
        let l = &upload.layout;
        let p = &l.padding;
        writeln!(
            text,
            "upload {index} t{} group {} stride {}x{} pad {},{},{},{} window {}x{}",
            upload.tensor.0,
            l.group,
            l.stride.0,
            l.stride.1,
            p.top,
            p.left,
            p.bottom,
            p.right,
            l.window.0,
            l.window.1
        )
        .unwrap();
        writeln!(
            text,
            "  tile {}x{} row stride {} block {} blocks {}",
            l.tile.0, l.tile.1, l.row_stride, l.block, l.blocks
        )
        .unwrap();
    }
    for answer in &plan.answers {
        writeln!(
            text,
            "answer {:?} term {} of upload {} merge {} output blocks {}",
            circuit.layers[answer.layer as usize].name,
            answer.term,
            answer.upload,
            answer.merge,
            answer.output_blocks
        )
        .unwrap();
    }
    text
}

fn print_weights(weights: &Weights) -> String {
    let mut text = String::new();
    for (index, layer) in weights.layers.iter().enumerate() {
        for kernel in &layer.kernels {
            writeln!(text, "weights {index} {kernel:?}").unwrap();
        }
        writeln!(text, "bias {index} {:?}", layer.bias).unwrap();
        if !layer.element_bias.is_empty() {
            writeln!(text, "element bias {index} {:?}", layer.element_bias).unwrap();
        }
        for p in &layer.polynomials {
            writeln!(text, "polynomial {index} {} {} {}", p.a, p.b, p.k).unwrap();
        }
    }
    text
}

fn graph(input: &str) -> Graph {
    let (structure, values) = split_lines(input, &["values"]);
    let mut graph = parse_graph(&structure).unwrap_or_else(|error| panic!("{error}"));
    for (_, line) in values {
        set_values(&mut graph, line);
    }
    graph
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
