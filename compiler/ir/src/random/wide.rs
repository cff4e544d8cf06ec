//! Circuits with more ReLUs than a message of a bundle takes.

use crate::{
    Activation, Circuit, Conv, Kind, Layer, LayerWeights, Padding, Preprocessing, Range, Reveal,
    Shape, Step, TensorId, Term, Verified, Weights, verify,
};

/// Rows and columns of a layer.
const SIDE: u32 = 320;

/// Layers of 102,400 ReLUs of 17 bits with their guard, each behind a convolution with this one
/// weight and bias, and every 32nd of the last in rows and columns as logits.
///
/// Offline, a layer takes 52 MB of tables in four parts, and the client stores 77 MB of it.
pub fn wide(layers: &[(i16, i64)]) -> (Verified<Circuit>, Weights) {
    let conv = |input: usize, stride| {
        Term::Conv(Conv {
            input: TensorId(input as u32),
            out_channels: 1,
            groups: 1,
            kernel: (1, 1),
            stride: (stride, stride),
            padding: Padding::default(),
            weight_bits: 7,
        })
    };
    let layer = |name: String, term, side, step| Layer {
        name,
        terms: vec![term],
        pool: None,
        shape: Shape::new(1, side, side),
        bound_bits: 15,
        range: Range::Calibrated { max_seen: 1 },
        guard_bits: u8::from(matches!(step, Step::Activate(_))),
        step,
    };
    let relus = || {
        Step::Activate(Activation {
            truncate: 0,
            frac_bits: 8,
            kinds: vec![Kind::Relu; (SIDE * SIDE) as usize],
            square: None,
            polynomial: None,
        })
    };
    let hidden = |index| layer(format!("relus {index}"), conv(index, 1), SIDE, relus());
    let mut all: Vec<Layer> = (0..layers.len()).map(hidden).collect();
    let output = Step::Output {
        frac_bits: 8,
        reveal: Reveal::Logits,
    };
    let last = conv(layers.len(), 32);
    all.push(layer("output".into(), last, SIDE / 32, output));
    let circuit = Circuit {
        name: "wide".into(),
        input: Shape::new(1, SIDE, SIDE),
        input_frac_bits: 8,
        preprocessing: Preprocessing::unit(1),
        classes: Vec::new(),
        prefix: None,
        layers: all,
    };
    let weights = layers.iter().chain([&(1, 0)]);
    let weights = weights.map(|&(kernel, bias)| LayerWeights {
        kernels: vec![vec![kernel]],
        bias: vec![bias],
        element_bias: Vec::new(),
        polynomials: Vec::new(),
    });
    let weights = Weights {
        layers: weights.collect(),
    };
    (verify::circuit(circuit).expect("a legal circuit"), weights)
}
