//! Range checks that the compiler sets, and what it says they find.

use pi_compiler::examples::Examples;
use pi_compiler::pass::guard::{Escape, escapes, guard, in_words};
use pi_compiler::{Options, compile};
use pi_ir::builders::{Policy, Rest, resnet20};
use pi_ir::interpret::{Interpreter, quantise};
use pi_ir::range::{analyse, guarded};
use pi_ir::{Reveal, Shape, Step, random};

#[test]
fn calibrated_layers_with_relus_are_guarded_and_proved_ones_are_not() {
    let policy = Policy::Budget {
        relus: 600,
        rest: Rest::Identity,
    };
    let graph = resnet20(16, 10, policy, 5);
    let examples = Examples::synthetic(Shape::new(3, 16, 16), 6, 5);
    let of = |range_check| {
        let options = Options {
            range_check,
            batches: Vec::new(),
            ..Options::default()
        };
        compile(&graph, &examples, &options).unwrap()
    };
    let (checked, unchecked) = (of(true), of(false));
    let mut narrower = checked.circuit.clone().into_inner();
    narrower
        .layers
        .iter_mut()
        .for_each(|layer| layer.guard_bits = 0);
    assert_eq!(narrower, *unchecked.circuit, "nothing else differs");
    let found = escapes(&checked.circuit, &checked.weights);
    let last = checked.circuit.layers.len() - 1;
    for (index, (layer, escape)) in checked.circuit.layers.iter().zip(&found).enumerate() {
        let expected = match escape {
            Escape::Harmless => {
                assert!(!layer.has_relu() && index < last);
                0
            }
            // Given the guards before it.
            Escape::Impossible => 0,
            Escape::Announced | Escape::Likely if index == last => 4,
            Escape::Announced | Escape::Likely => 1,
            Escape::Silent => panic!("{} is not checked", layer.name),
        };
        assert_eq!(layer.guard_bits, expected, "{}: {escape:?}", layer.name);
    }
    // No image leaves what was proved of all.
    assert!(matches!(found[0], Escape::Impossible | Escape::Harmless));
    assert!(found.contains(&Escape::Likely) || found.contains(&Escape::Announced));
    let said = in_words(&checked.circuit, &checked.weights).join("\n");
    assert!(
        said.contains("(1 bits)") && said.contains("proved never"),
        "{said}"
    );
    let silent = escapes(&unchecked.circuit, &unchecked.weights);
    assert!(silent.contains(&Escape::Silent));
    let said = in_words(&unchecked.circuit, &unchecked.weights).join("\n");
    assert!(
        said.contains("a wrong answer that looks like a right one"),
        "{said}"
    );
}

/// What the analysis proves holds for every legal input, and assumes less than that of the bounds.
#[test]
fn ranges_that_rely_on_guards_alone_hold_for_random_circuits() {
    let mut proved = 0;
    for seed in 0..200 {
        let (circuit, weights) = random::circuit(seed, &random::Options::default());
        let declared = analyse(&circuit, &weights).unwrap();
        let ranges = guarded(&circuit, &weights).unwrap();
        let interpreter = Interpreter::new(&circuit, &weights).unwrap();
        let input = quantise(&circuit, &random::input(&circuit, seed)).unwrap();
        let run = interpreter.plain(&input).unwrap();
        for (layer, range) in ranges.iter().enumerate() {
            let Some(range) = range else { continue };
            assert!(
                run.max_abs_before_truncation[layer] <= range.sum,
                "seed {seed}"
            );
            assert!(range.garbled <= range.sum);
            // Guards alone bound less than all calibrated bounds do.
            let is_guarded = |layer: &pi_ir::Layer| layer.guard_bits > 0;
            if !circuit.layers[..layer].iter().any(is_guarded) {
                assert!(
                    range.sum >= declared[layer].sum,
                    "seed {seed}, layer {layer}"
                );
            }
            proved += 1;
        }
    }
    assert!(proved > 300, "{proved}");
}

/// Bounds that are far too narrow: legal inputs leave them, and wherever the compiler says that
/// this is impossible or announced, it is.
#[test]
fn whatever_is_said_to_be_announced_is() {
    let (mut checked, mut impossible) = (0, 0);
    for seed in 0..400 {
        let (circuit, weights) = random::circuit(seed, &random::Options::default());
        let mut circuit = random::tightened(&circuit, seed).into_inner();
        guard(&mut circuit, &weights, true);
        let circuit = pi_ir::verify::circuit(circuit).unwrap();
        let found = escapes(&circuit, &weights);
        impossible += found.iter().filter(|e| **e == Escape::Impossible).count();
        if found
            .iter()
            .any(|e| matches!(e, Escape::Likely | Escape::Silent))
        {
            continue;
        }
        let interpreter = Interpreter::new(&circuit, &weights).unwrap();
        let input = quantise(&circuit, &random::input(&circuit, seed)).unwrap();
        let run = interpreter
            .exact(&input, &random::trace(&circuit, seed))
            .unwrap();
        checked += 1;
        if !run.in_range {
            continue;
        }
        // In range for the protocol: then truly so, at every ReLU and at the output.
        for ((layer, &largest), index) in (circuit.layers.iter())
            .zip(&run.max_abs_before_truncation)
            .zip(0..)
        {
            let all_garbled = match &layer.step {
                Step::Activate(a) => a.kinds.iter().all(|&k| k == pi_ir::Kind::Relu),
                Step::Output { reveal, .. } => matches!(reveal, Reveal::Label | Reveal::Logits),
            };
            if all_garbled {
                // Rounding may bring a sum that is less than a step beyond into the range.
                let beyond = (1u64 << layer.bound_bits) + (1 << layer.truncate());
                assert!(largest < beyond, "seed {seed}, layer {index}: {largest}");
            }
        }
    }
    assert!(checked > 5 && impossible > 5, "{checked} {impossible}");
}
