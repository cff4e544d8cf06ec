//! Images that the bundled network was not made for: each gets a right answer or none, never a
//! wrong one that looks like a right one.

use super::common::{Model, Pair};
use pi_ir::artifact::{ARTIFACT_NAME, Artifact, WEIGHTS_NAME, WeightsFile};
use pi_ir::interpret::{Interpreter, quantise_image};
use pi_ir::{Circuit, Reveal, Shape, random};
use pi_protocol::session::Answer;
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};
use rayon::prelude::*;
use std::path::Path;

const SHAPE: Shape = Shape { c: 3, h: 32, w: 32 };

/// Images of one kind, `[c][h][w]`.
struct Kind {
    name: &'static str,
    images: Vec<Vec<u8>>,
}

fn draw(pixel: impl Fn(u32, u32, u32) -> u8) -> Vec<u8> {
    let places = (0..SHAPE.c).flat_map(|c| (0..SHAPE.h).map(move |i| (c, i)));
    let places = places.flat_map(|(c, i)| (0..SHAPE.w).map(move |j| (c, i, j)));
    places.map(|(c, i, j)| pixel(c, i, j)).collect()
}

/// Black where the bit is 1, in digits of three by five pixels on a page of white.
fn page(rng: &mut ChaCha20Rng) -> Vec<u8> {
    const DIGITS: [u16; 10] = [
        0x7b6f, 0x2c97, 0x73e7, 0x73cf, 0x5bc9, 0x79cf, 0x79ef, 0x7249, 0x7bef, 0x7bcf,
    ];
    let text: Vec<usize> = (0..40).map(|_| rng.next_u32() as usize % 11).collect();
    draw(|_, i, j| {
        let (row, column) = (i / 6, j / 4);
        let digit = text[(row * 8 + column) as usize % text.len()];
        let (y, x) = (i % 6, j % 4);
        let ink = digit < 10 && y < 5 && x < 3 && DIGITS[digit] >> (14 - 3 * y - x) & 1 == 1;
        if ink { 0 } else { 255 }
    })
}

fn unlike_photographs() -> Vec<Kind> {
    let rng = &mut ChaCha20Rng::seed_from_u64(18);
    let bit = |on: bool| if on { 255 } else { 0 };
    let periods = 1..=16;
    let checkerboards = periods
        .clone()
        .map(|n| draw(|_, i, j| bit((i / n + j / n) % 2 == 0)));
    let stripes = periods.clone().flat_map(|n| {
        [
            draw(|_, i, _| bit(i / n % 2 == 0)),
            draw(|_, _, j| bit(j / n % 2 == 0)),
            draw(|c, i, _| bit((i / n + c) % 2 == 0)),
        ]
    });
    let colours = (0..27u32).map(|colour| {
        let channels = [colour % 3, colour / 3 % 3, colour / 9];
        draw(|c, _, _| [0, 128, 255][channels[c as usize] as usize])
    });
    let mut noise = |mask: u32| -> Vec<Vec<u8>> {
        let image = || {
            let bytes: Vec<u8> = (0..SHAPE.len()).map(|_| rng.next_u32() as u8).collect();
            bytes
        };
        let images: Vec<Vec<u8>> = std::iter::repeat_with(image).take(16).collect();
        let level = |byte: u8| {
            if mask == 1 {
                bit(byte.is_multiple_of(2))
            } else {
                byte
            }
        };
        images
            .into_iter()
            .map(|image| image.into_iter().map(level).collect())
            .collect()
    };
    let (binary, uniform) = (noise(1), noise(0));
    let kinds = [
        ("checkerboards", checkerboards.collect()),
        ("stripes", stripes.collect()),
        ("pure colours", colours.collect()),
        ("binary noise", binary),
        ("uniform noise", uniform),
        ("text", (0..16).map(|_| page(rng)).collect()),
    ];
    kinds
        .into_iter()
        .map(|(name, images)| Kind { name, images })
        .collect()
}

fn bundled(reveal: Reveal) -> Model {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("models/cifar10-small");
    let read = |name| std::fs::read(directory.join(name)).unwrap();
    let artifact = Artifact::decode(&read(ARTIFACT_NAME)).unwrap();
    Model {
        artifact: artifact.with_reveal(reveal).unwrap(),
        weights: WeightsFile::decode(&read(WEIGHTS_NAME)).unwrap(),
    }
}

/// The same circuit with room for values of `2^12` times its bounds: with the same shares, it
/// rounds as the circuit does, and nothing wraps.
fn widened(circuit: &Circuit) -> Circuit {
    let mut circuit = circuit.clone();
    for layer in &mut circuit.layers {
        layer.bound_bits += 12;
        layer.guard_bits = 0;
    }
    circuit
}

#[test]
fn the_bundled_network_is_right_or_says_that_it_is_out_of_range() {
    let model = bundled(Reveal::Label);
    let circuit: &Circuit = &model.artifact.circuit;
    let interpreter = Interpreter::new(circuit, &model.weights.weights).unwrap();
    let mut silent = circuit.clone();
    silent
        .layers
        .iter_mut()
        .for_each(|layer| layer.guard_bits = 0);
    let unguarded = Interpreter::new(&silent, &model.weights.weights).unwrap();
    let roomy = widened(circuit);
    let wide = Interpreter::new(&roomy, &model.weights.weights).unwrap();
    let mut wrong_without = 0;
    for Kind { name, images } in unlike_photographs() {
        let outcomes = images.par_iter().enumerate().map(|(seed, pixels)| {
            let input = quantise_image(circuit, pixels).unwrap();
            let trace = random::trace(circuit, seed as u64);
            let exact = interpreter.exact(&input, &trace).unwrap();
            let truth = wide.exact(&input, &trace).unwrap().label;
            if exact.in_range {
                assert_eq!(exact.label, truth, "{name} {seed}: silently wrong");
            }
            let without = unguarded.exact(&input, &trace).unwrap();
            (exact.in_range, without.label == truth)
        });
        let outcomes: Vec<(bool, bool)> = outcomes.collect();
        let answered = outcomes.iter().filter(|(in_range, _)| *in_range).count();
        let wrong = outcomes.iter().filter(|(_, right)| !right).count();
        wrong_without += wrong;
        eprintln!(
            "{name}: of {}, {answered} right, the others announced; without guards {wrong} wrong",
            images.len()
        );
    }
    // Else this proves nothing.
    assert!(wrong_without > 0, "no image needs a guard");
}

/// The same between two parties, on one image of each kind, for both outputs.
#[test]
fn private_answers_on_such_images_are_those_of_the_exact_interpreter() {
    for reveal in [Reveal::Label, Reveal::Logits] {
        let model = bundled(reveal);
        let circuit = &model.artifact.circuit;
        let interpreter = Interpreter::new(circuit, &model.weights.weights).unwrap();
        let mut pair = Pair::new(&model, 18);
        let mut announced = 0;
        for Kind { name, images } in unlike_photographs() {
            let input = quantise_image(circuit, &images[images.len() / 8]).unwrap();
            let private = pair.classify(&input);
            let exact = interpreter
                .exact(&input, private.trace.as_ref().unwrap())
                .unwrap();
            assert_eq!(private.answer, Answer::of_run(&exact, reveal), "{name}");
            announced += u32::from(private.answer == Answer::OutOfRange);
        }
        assert!(announced > 0, "every one of them is in range");
    }
}
