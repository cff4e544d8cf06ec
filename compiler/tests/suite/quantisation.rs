//! What quantisation chooses: gains that change no function, biases without mean errors, scales and
//! widths of least error, and the failure budget.

use super::support::plain;
use pi_compiler::cost::evaluate::compare;
use pi_compiler::cost::report::Report;
use pi_compiler::examples::Examples;
use pi_compiler::export::export;
use pi_compiler::pass::calibrate::{FloatWeights, Magnitudes};
use pi_compiler::pass::choose::{Candidate, Search};
use pi_compiler::pass::correct::correct;
use pi_compiler::pass::equalise::{Balance, equalise};
use pi_compiler::pass::fold::fold;
use pi_compiler::pass::lower::{Pools, lower_and_measure};
use pi_compiler::pass::quantise::{Identity, Scales, WeightBits, quantise, scales};
use pi_compiler::pass::select::Link;
use pi_compiler::real_circuit::{RealCircuit, Step, Term};
use pi_compiler::{Compiled, Options, compile, emit};
use pi_ir::builders::{Builder, Policy, Rest, lean9, resnet20};
use pi_ir::random::{GraphOptions, graph};
use pi_ir::{Circuit, Graph, Op, Shape, Weights, interpret};
use pi_protocol::flooding::LIMIT_LOG2;
use std::fs;
use std::path::PathBuf;

const RULES: [Option<Balance>; 3] = [None, Some(Balance::WEIGHTS), Some(Balance::MAKERS)];

fn input(graph: &Graph) -> Shape {
    match graph.nodes[0].op {
        Op::Input { shape } => shape,
        _ => panic!("node 0 is the input"),
    }
}

/// A circuit, its bounds at their widest, with its weights.
type Quantised = (Circuit, Weights);

/// A network with the examples that calibrate it.
struct Case {
    graph: Graph,
    examples: Examples,
    images: Vec<Vec<f32>>,
    real: RealCircuit,
    seen: Magnitudes,
}

impl Case {
    fn new(graph: Graph, count: usize, seed: u64) -> Self {
        let examples = Examples::synthetic(input(&graph), count, seed);
        let images = examples.reals(&graph.preprocessing).unwrap();
        let folded = fold(&graph).unwrap();
        let (real, seen) = lower_and_measure(&folded, Pools::Cheapest, None, &images).unwrap();
        Case {
            graph,
            examples,
            images,
            real,
            seen,
        }
    }

    /// What the compiler chooses first for a network in place of its own.
    fn equalised(&self, real: &RealCircuit, seen: &Magnitudes, options: &Options) -> Candidate {
        let identity = Identity {
            name: "case",
            preprocessing: &self.graph.preprocessing,
            classes: &[],
        };
        let search = Search {
            real,
            seen,
            identity: &identity,
            calibration: &self.examples,
            images: &self.images,
            options,
        };
        search.equalised().unwrap()
    }

    /// The network at these scales, its biases not corrected yet.
    fn quantised(&self, real: &RealCircuit, seen: &Magnitudes, scales: &Scales) -> Quantised {
        let identity = Identity {
            name: "case",
            preprocessing: &self.graph.preprocessing,
            classes: &[],
        };
        quantise(real, scales, seen, &identity).unwrap()
    }

    /// Takes mean errors out of the biases, as the circuit shows them.
    fn corrected(&self, real: &RealCircuit, (circuit, weights): &mut Quantised) {
        let integers = |input| interpret::quantise(circuit, input).unwrap();
        let integers = self.examples.inputs.iter().map(integers);
        let inputs: Vec<_> = self.images.iter().cloned().zip(integers).collect();
        correct(real, circuit, weights, &inputs).unwrap();
    }

    /// Error of the results on examples that nothing was chosen with, over their spread.
    fn error(&self, (circuit, weights): &Quantised) -> f64 {
        let held_back = Examples::synthetic(input(&self.graph), 24, 1 << 20);
        compare(&self.graph, circuit, weights, &held_back)
            .unwrap()
            .noise
    }

    fn compile(&self, options: &Options) -> Compiled {
        compile(&self.graph, &self.examples, options).unwrap_or_else(|why| panic!("{why}"))
    }
}

fn mixed(relus: usize) -> Policy {
    Policy::Budget {
        relus,
        rest: Rest::Polynomial,
    }
}

fn options(weight_bits: WeightBits) -> Options {
    let mut options = Options {
        batches: Vec::new(),
        ..Options::default()
    };
    options.precision.weight_bits = weight_bits;
    options
}

/// Single precision rounds each of a few hundred additions to 2^-24.
fn assert_near(found: &[f32], expected: impl Iterator<Item = f64>, what: &str) {
    let expected: Vec<f64> = expected.collect();
    let largest = expected.iter().fold(0.0f64, |max, v| max.max(v.abs()));
    for (a, b) in found.iter().zip(&expected) {
        let far = (f64::from(*a) - b).abs();
        assert!(far <= 2e-5 * largest, "{what}: {a} instead of {b}");
    }
}

#[test]
fn gains_change_no_function() {
    let random = (0..40).map(|seed| Case::new(graph(seed, &GraphOptions::default()), 3, seed));
    let known = [
        Case::new(resnet20(8, 10, mixed(900), 1), 3, 1),
        Case::new(lean9(16, 10, mixed(500), 2), 3, 2),
    ];
    let (mut changed, mut tensors) = (0, 0);
    for (number, case) in random.chain(known).enumerate() {
        for rule in RULES {
            let gains = equalise(&case.real, &case.seen, rule);
            let scaled = case.real.with_gains(&gains);
            let image = &case.images[0];
            let before = FloatWeights::new(&case.real).evaluate(&case.real, image);
            let after = FloatWeights::new(&scaled).evaluate(&scaled, image);
            let what = format!("case {number}, {rule:?}");
            for (tensor, gains) in gains.tensors.iter().enumerate() {
                let plane = before.tensors[tensor].len() / gains.len();
                let values = before.tensors[tensor].iter().enumerate();
                let expected = values.map(|(at, &v)| f64::from(v) * gains[at / plane]);
                assert_near(
                    &after.tensors[tensor],
                    expected,
                    &format!("{what}, t{tensor}"),
                );
                changed += usize::from(gains.iter().any(|g| *g != gains[0]));
                tensors += 1;
            }
            let logits = before.sums.last().unwrap().iter().map(|&v| v.into());
            assert_near(after.sums.last().unwrap(), logits, &what);
        }
    }
    assert!(3 * changed > tensors, "{changed} of {tensors} have gains");
}

/// The same function with channels of sizes up to `2^bits` apart, where nothing ties them.
fn spread(case: &Case, bits: u32) -> (RealCircuit, Magnitudes) {
    let mut draw = 7u32;
    let free: Vec<bool> = (0..case.real.layers.len())
        .map(|tensor| free(case, tensor))
        .collect();
    let mut gains = case.real.no_gains();
    for (tensor, _) in free.iter().enumerate().filter(|(_, free)| **free) {
        for channel in 0..gains.tensors[tensor].len() {
            // The generator of C's standard, whose upper bits are good enough.
            draw = draw.wrapping_mul(1_103_515_245).wrapping_add(12_345);
            let gain = f64::from((draw >> 16) % (bits + 1)).exp2();
            gains.tensors[tensor][channel] = gain;
            gains.sums[tensor - 1][channel] = gain;
        }
    }
    assert!(free.iter().filter(|free| **free).count() > 3);
    (case.real.with_gains(&gains), case.seen.with_gains(&gains))
}

/// Whether no residual reads a tensor or makes it.
fn free(case: &Case, tensor: usize) -> bool {
    let residual = |term: &Term| matches!(term, Term::Residual { .. });
    let reads = |term: &Term| residual(term) && term.input().0 as usize == tensor;
    let read = case
        .real
        .layers
        .iter()
        .any(|layer| layer.terms.iter().any(reads));
    tensor > 0 && !read && !case.real.layers[tensor - 1].terms.iter().any(residual)
}

#[test]
fn channels_of_unequal_size_cost_nothing() {
    let case = Case::new(resnet20(16, 10, Policy::Relu, 3), 12, 3);
    let options = options(WeightBits::Of(8));
    let plain = case.equalised(&case.real, &case.seen, &options).difference;
    for bits in [4, 8] {
        let (real, seen) = spread(&case, bits);
        let found = case.equalised(&real, &seen, &options).difference;
        assert!(
            found.error <= 1.25 * plain.error,
            "channels 2^{bits} apart are off by {} and equal ones by {}",
            found.error,
            plain.error
        );
    }
}

#[test]
fn equalisation_helps_random_networks() {
    // The rule without gains is one of the candidates: what is chosen can only be better.
    let mut better = 0;
    for seed in 0..6 {
        let case = Case::new(resnet20(8, 10, mixed(1500), seed), 8, seed);
        let chosen = case.equalised(&case.real, &case.seen, &options(WeightBits::Of(6)));
        better += usize::from(
            chosen
                .gains
                .tensors
                .iter()
                .any(|t| t.iter().any(|g| *g != t[0])),
        );
    }
    assert!(better >= 3, "only {better} of 6 use gains of channels");
}

/// Each of the choices below is made on a network where it matters, and held against the same
/// network without it, so that a pass that does nothing is found.
#[test]
fn corrected_biases_take_away_errors() {
    let case = Case::new(resnet20(8, 10, mixed(900), 11), 48, 11);
    let precision = options(WeightBits::Of(5)).precision;
    let scales = scales(&case.real, &case.seen, &precision).unwrap();
    let mut quantised = case.quantised(&case.real, &case.seen, &scales);
    let before = case.error(&quantised);
    case.corrected(&case.real, &mut quantised);
    let after = case.error(&quantised);
    assert!(after < 0.7 * before, "{after}, and {before} without");
}

/// The second convolution has weights four times as large as all others where it reads a channel of
/// tiny values. To hold them takes two bits off the others.
#[test]
fn scales_of_least_error_clip_weights_that_hardly_matter() {
    let mut graph = plain(Builder::new("outliers", Shape::new(3, 8, 8), 6), 2, 10);
    let mut kernels = graph
        .nodes
        .iter_mut()
        .filter_map(|node| match &mut node.op {
            Op::Conv2d { weight, bias, .. } => Some((weight, bias)),
            _ => None,
        });
    let (first, second) = (kernels.next().unwrap(), kernels.next().unwrap());
    first.0[..27].iter_mut().for_each(|w| *w /= 1024.0);
    first.1.iter_mut().take(1).for_each(|b| *b /= 1024.0);
    let largest = second.0.iter().fold(0.0f32, |max, w| max.max(w.abs()));
    for row in second.0.chunks_exact_mut(72) {
        row[..9].fill(4.0 * largest);
    }
    let case = Case::new(graph, 12, 3);
    let bits = options(WeightBits::Of(6)).precision;
    let chosen = scales(&case.real, &case.seen, &bits).unwrap();
    // The largest of the six-bit integers is 31.
    let exact = (31.499 / (4.0 * f64::from(largest))).log2().floor() as i32;
    let mut unclipped = chosen.clone();
    unclipped.sums[1] = chosen.tensors[1] + exact;
    let [found, without] = [&chosen, &unclipped]
        .map(|scales| case.error(&case.quantised(&case.real, &case.seen, scales)));
    assert!(found < 0.6 * without, "{found}, and {without} without");
}

#[test]
fn the_rule_of_equalisation_is_chosen_by_its_error() {
    let case = Case::new(resnet20(8, 10, Policy::Relu, 3), 12, 3);
    let options = options(WeightBits::Of(8));
    let (real, seen) = spread(&case, 8);
    let chosen = case.equalised(&real, &seen, &options);
    let scales = scales(&real, &seen, &options.precision).unwrap();
    let mut without = case.quantised(&real, &seen, &scales);
    case.corrected(&real, &mut without);
    let found = case.error(&(chosen.circuit, chosen.weights));
    let without = case.error(&without);
    assert!(
        found < 0.5 * without,
        "{found}, and {without} without gains"
    );
}

#[test]
fn weights_of_chosen_widths_are_better_and_stay_hidden() {
    let case = Case::new(resnet20(16, 10, Policy::Relu, 4), 12, 4);
    let coarse = case.compile(&options(WeightBits::Of(8)));
    let chosen = case.compile(&options(WeightBits::AtLeast(8)));
    assert!(coarse.scales.weight_bits.iter().all(|&bits| bits == 8));
    let bits = &chosen.scales.weight_bits;
    assert!(bits.iter().all(|bits| (8..=15).contains(bits)), "{bits:?}");
    assert!(bits.iter().any(|&bits| bits > 8), "{bits:?}");
    assert!(
        chosen.difference.error < 0.8 * coarse.difference.error,
        "{} and {}",
        chosen.difference.error,
        coarse.difference.error
    );
    assert!(chosen.flooding_log2 <= LIMIT_LOG2);
    // The report shows them.
    let (artifact, _) = emit::files(&chosen, [0; 32], None, "");
    let report = Report::new(&artifact, &Link::default()).unwrap();
    let (mut with_kernels, layers) = (0, report.layers.iter().zip(bits));
    for (row, bits) in layers.filter(|(row, _)| row.terms.contains(" t")) {
        assert_eq!(row.weight_bits, Some(*bits), "{}", row.name);
        with_kernels += 1;
    }
    assert!(with_kernels > 15);
    let text = report.to_string();
    let widest = bits.iter().max().unwrap();
    assert!(text.contains(&format!(" {widest} bits ")), "{text}");
}

/// Multiplies the weights and biases of the last layer of its kind.
fn scale_last(graph: &mut Graph, factor: f32) {
    let dense = graph
        .nodes
        .iter_mut()
        .rev()
        .find_map(|node| match &mut node.op {
            Op::Dense { weight, bias, .. } => Some((weight, bias)),
            _ => None,
        });
    let (weight, bias) = dense.expect("a dense layer");
    weight.iter_mut().chain(bias).for_each(|w| *w *= factor);
}

#[test]
fn activations_and_results_of_any_size_have_a_scale() {
    let plain = Case::new(resnet20(8, 10, Policy::Relu, 5), 8, 5);
    let options = options(WeightBits::Of(8));
    let expected = plain.compile(&options).difference.relative();
    for factor in [1e-20f32, 1e-9, 1e6, 1e15] {
        let mut graph = plain.graph.clone();
        scale_last(&mut graph, factor);
        let case = Case::new(graph, 8, 5);
        let found = case.compile(&options).difference.relative();
        assert!(found <= 1.3 * expected, "{factor}: {found} and {expected}");
    }
    // The first norm's results, and with them all that follows up to the next norm.
    for factor in [1e-12f32, 1e6] {
        let mut graph = plain.graph.clone();
        let first = graph.nodes.iter_mut().find_map(|node| match &mut node.op {
            Op::BatchNorm(norm) => Some(norm),
            _ => None,
        });
        let norm = first.expect("a batch norm");
        (norm.gamma.iter_mut())
            .chain(&mut norm.beta)
            .for_each(|v| *v *= factor);
        let case = Case::new(graph, 8, 5);
        let found = case.compile(&options).difference.relative();
        assert!(found < 0.2, "{factor}: {found}");
    }
}

#[test]
fn negative_inputs_of_a_relu_do_not_size_its_result() {
    let mut case = Case::new(resnet20(8, 10, Policy::Relu, 6), 8, 6);
    let Some(layer) =
        case.real.layers.iter().position(|layer| {
            matches!(layer.step, Step::Activate { .. }) && layer.terms.len() == 1
        })
    else {
        panic!("a layer with an activation");
    };
    // One channel that is far below zero.
    case.real.layers[layer].bias[0] -= 100.0 * case.seen.sums[layer];
    let seen = pi_compiler::pass::calibrate::magnitudes(&case.real, &case.images);
    assert!(seen.sums[layer] > 50.0 * seen.operands[layer]);
    let precision = Options::default().precision;
    let scales = scales(&case.real, &seen, &precision).unwrap();
    let used = seen.operands[layer] * f64::from(scales.tensors[layer + 1]).exp2();
    assert!(used > 2f64.powi(7), "the largest result has {used} units");
}

#[test]
fn exported_units_are_those_of_the_float_network() {
    let case = Case::new(resnet20(8, 10, mixed(900), 8), 8, 8);
    let compiled = case.compile(&options(WeightBits::Of(8)));
    let exported = export(&compiled);
    assert_eq!(exported.layers.len(), compiled.circuit.layers.len());
    for (index, layer) in exported.layers.iter().enumerate() {
        assert_eq!(layer.name, compiled.real.layers[index].name);
        let seen = &case.seen.channels[index];
        for (channel, seen) in seen.iter().enumerate() {
            let (bound, unit) = (layer.bounds[channel], layer.sum_units[channel]);
            assert!(
                seen.sum <= 1.1 * bound,
                "{}: {} of {bound}",
                layer.name,
                seen.sum
            );
            assert!(bound > 100.0 * unit && layer.units[channel] > 0.0);
        }
    }
}

#[test]
fn the_failure_budget_is_kept_by_giving_up_bits() {
    let case = Case::new(resnet20(16, 10, mixed(4000), 7), 8, 7);
    let free = case.compile(&Options {
        failure_limit: 0.0,
        ..options(WeightBits::Of(8))
    });
    assert_eq!(free.notes, Vec::<String>::new());
    let limit = free.failure_log2 - 2.0;
    let kept = case.compile(&Options {
        failure_limit: limit,
        ..options(WeightBits::Of(8))
    });
    assert!(kept.failure_log2 <= limit);
    assert!(kept.notes[0].contains("gave up bits"), "{:?}", kept.notes);
    assert!(
        kept.difference.relative() < 0.25,
        "{} and {} without a limit",
        kept.difference.relative(),
        free.difference.relative()
    );
}

/// Figures for `docs/onnx.md`: `PI_REGISTRY_MODELS` names a folder with ONNX models that read
/// pictures, `PI_PICTURES` pictures for them.
#[test]
#[ignore = "minutes, and models from package registries"]
fn figures_of_models_from_registries() {
    let variable = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("no {name}"));
    let pictures = PathBuf::from(variable("PI_PICTURES"));
    let count = |name: &str, or| std::env::var(name).map_or(or, |n| n.parse().unwrap());
    for entry in fs::read_dir(variable("PI_REGISTRY_MODELS")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "onnx") {
            continue;
        }
        let graph = pi_onnx::read(&path, &pi_onnx::Options::default())
            .unwrap()
            .graph;
        let (calibrated, held) = (count("PI_CALIBRATION", 8), count("PI_HELD", 8));
        let mut examples = Examples::load(&pictures, input(&graph), calibrated + held).unwrap();
        let mut held_back = examples.clone();
        held_back.inputs = examples.inputs.split_off(calibrated);
        held_back.labels = Vec::new();
        examples.labels = Vec::new();
        for bits in [
            WeightBits::Of(8),
            WeightBits::Of(10),
            WeightBits::AtLeast(8),
        ] {
            let began = std::time::Instant::now();
            let compiled = compile(&graph, &examples, &options(bits));
            let compiled = match compiled {
                Ok(compiled) => compiled,
                Err(why) => {
                    eprintln!("{}: {bits:?}: {why}", path.display());
                    continue;
                }
            };
            let took = began.elapsed().as_secs();
            let found = compare(&graph, &compiled.circuit, &compiled.weights, &held_back).unwrap();
            let signs = compiled.circuit.layers.iter().filter_map(|l| l.sign_bits());
            let signs: Vec<u32> = signs.map(u32::from).collect();
            eprintln!(
                "{}: {bits:?}: {took} s; trial {:.5} of {:.4}; held back: rms {:.5}, max {:.4}, {} \
                 of {}; signs {:.2} bits; failure 2^{:.1}; flooding 2^{:.1}; widths {:?}",
                path.display(),
                compiled.difference.error,
                compiled.difference.spread,
                found.rms_difference,
                found.max_difference,
                found.agree,
                found.images,
                f64::from(signs.iter().sum::<u32>()) / signs.len() as f64,
                compiled.failure_log2,
                compiled.flooding_log2,
                compiled.scales.weight_bits
            );
        }
    }
}
