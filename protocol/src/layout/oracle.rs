//! The oracle: polynomial products over `F_p`, coefficient by coefficient, against the plain
//! convolution.

use super::*;
use pi_ir::{Layer, P, Padding, Preprocessing, Range, Step};
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};

/// A circuit of one layer per list of convolutions, every layer an output: the packing looks at
/// shapes and terms only. The layer's shape is that of its first term.
pub(crate) fn circuit_of(input: Shape, layers: &[Vec<Conv>]) -> Circuit {
    let mut circuit = Circuit {
        name: "test".into(),
        input,
        input_frac_bits: 8,
        preprocessing: Preprocessing::unit(input.c),
        classes: Vec::new(),
        prefix: None,
        layers: Vec::new(),
    };
    for (index, terms) in layers.iter().enumerate() {
        let shape = conv_output(circuit.tensor_shape(terms[0].input), &terms[0]).expect("fits");
        circuit.layers.push(Layer {
            name: format!("layer{index}"),
            terms: terms.iter().cloned().map(Term::Conv).collect(),
            pool: None,
            shape,
            bound_bits: 27,
            range: Range::Proved,
            guard_bits: 0,
            step: Step::Output {
                frac_bits: 8,
                reveal: pi_ir::Reveal::Logits,
            },
        });
    }
    circuit
}

pub(crate) fn conv(
    input: u32,
    out_channels: u32,
    kernel: (u32, u32),
    stride: (u32, u32),
    padding: Padding,
) -> Conv {
    Conv {
        input: TensorId(input),
        out_channels,
        groups: 1,
        kernel,
        stride,
        padding,
        weight_bits: 7,
    }
}

pub(crate) fn below(rng: &mut impl RngCore, n: u32) -> u32 {
    rng.next_u32() % n
}

pub(crate) fn pick<T: Copy>(rng: &mut impl RngCore, from: &[T]) -> T {
    from[below(rng, from.len() as u32) as usize]
}

fn random_field(rng: &mut impl RngCore, n: usize) -> Vec<u64> {
    (0..n).map(|_| rng.next_u64() % P).collect()
}

fn add(a: u64, b: u64) -> u64 {
    (a + b) % P
}

fn mul(a: u64, w: i64) -> u64 {
    ((i128::from(a) * i128::from(w)).rem_euclid(i128::from(P))) as u64
}

/// The convolution by its definition, `x` and the result as `[c][y][x]`.
pub(crate) fn plain_conv(x: &[u64], shape: Shape, conv: &Conv, weights: &[i64]) -> Vec<u64> {
    let out = conv_output(shape, conv).expect("fits");
    let mut result = Vec::with_capacity(out.len());
    let of_group = shape.c / conv.groups;
    for o in 0..out.c {
        let first = o / (out.c / conv.groups) * of_group;
        for y in 0..out.h {
            for x0 in 0..out.w {
                let mut sum = 0;
                for c in 0..of_group {
                    for k in 0..conv.kernel.0 {
                        for l in 0..conv.kernel.1 {
                            let i = i64::from(y * conv.stride.0 + k) - i64::from(conv.padding.top);
                            let j =
                                i64::from(x0 * conv.stride.1 + l) - i64::from(conv.padding.left);
                            if i < 0 || j < 0 || i >= i64::from(shape.h) || j >= i64::from(shape.w)
                            {
                                continue;
                            }
                            let at = ((first + c) as usize * shape.h as usize + i as usize)
                                * shape.w as usize
                                + j as usize;
                            let w = ((o * of_group + c) * conv.kernel.0 + k) * conv.kernel.1 + l;
                            sum = add(sum, mul(x[at], weights[w as usize]));
                        }
                    }
                }
                result.push(sum);
            }
        }
    }
    result
}

/// The plaintexts of an upload's ciphertexts: the tensor's elements where they belong, junk where
/// unused.
fn fill(
    packing: &Packing,
    upload: usize,
    tensor: &[u64],
    junk: &mut impl RngCore,
) -> Vec<Vec<u64>> {
    let map = &packing.uploads()[upload];
    (0..map.ciphertexts())
        .map(|index| {
            map.roles(index)
                .into_iter()
                .map(|role| match role {
                    CoefficientRole::Free(element) | CoefficientRole::Repeat(element) => {
                        tensor[element as usize]
                    }
                    CoefficientRole::Zero => 0,
                    CoefficientRole::Unused => junk.next_u64() % P,
                })
                .collect()
        })
        .collect()
}

/// The answer's polynomials as an ideal server packs them, but only at useful coefficients: the
/// product's coefficient at the multiple of `G` below, of the kernel at the place that the
/// remainder says.
fn answer_of(
    packing: &Packing,
    answer: usize,
    inputs: &[Vec<u64>],
    weights: &[i64],
) -> Vec<Option<u64>> {
    let answer = &packing.answers()[answer];
    let upload = &packing.uploads()[answer.upload()];
    let degree = packing.ring_degree();
    let group = upload.layout().group as usize;
    let gap = group >> answer.merge();
    let mut result = vec![None; answer.len()];
    let rows: Vec<usize> = answer.rows().collect();
    for index in 0..answer.ciphertexts() {
        let (row, chunk) = (rows[index / answer.chunks()], index % answer.chunks());
        let useful = answer.useful(upload, index);
        assert_eq!(useful.len(), answer.useful_count(index));
        assert!(
            useful
                .windows(2)
                .all(|w| w[0].coefficient < w[1].coefficient)
        );
        for place in 0..answer.kernels(chunk) {
            let mut kernels = Vec::new();
            let read = answer.groups_read(upload, chunk);
            for g in 0..upload.groups() {
                let taps = answer.taps(upload, g);
                let mut kernel = vec![0i64; degree];
                for p in answer.kernel(upload, &taps, chunk, place) {
                    let w = weights[p.weight as usize];
                    kernel[p.coefficient as usize] += if p.negative { -w } else { w };
                }
                let zero = kernel.iter().all(|&w| w == 0);
                assert!(zero || read.contains(&g), "ciphertext {g} is not read");
                kernels.push(kernel);
            }
            for u in useful
                .iter()
                .filter(|u| u.coefficient as usize % group == place * gap)
            {
                let at = u.coefficient as usize - place * gap;
                let mut sum = 0;
                for (g, kernel) in kernels.iter().enumerate() {
                    let input = &inputs[row * upload.groups() + g];
                    for (i, w) in kernel.iter().enumerate().filter(|(_, w)| **w != 0) {
                        let (j, sign) = if i <= at {
                            (at - i, 1)
                        } else {
                            (at + degree - i, -1)
                        };
                        sum = add(sum, mul(input[j], sign * w));
                    }
                }
                let found = &mut result[u.element as usize];
                assert!(found.is_none(), "output {} occurs twice", u.element);
                *found = Some(sum);
            }
        }
    }
    result
}

/// All outputs of an answer by polynomial products, with junk in unused coefficients.
pub(crate) fn products(
    packing: &Packing,
    answer: usize,
    tensor: &[u64],
    weights: &[i64],
    seed: u64,
) -> Vec<u64> {
    let mut junk = ChaCha20Rng::seed_from_u64(seed);
    let inputs = fill(
        packing,
        packing.answers()[answer].upload(),
        tensor,
        &mut junk,
    );
    answer_of(packing, answer, &inputs, weights)
        .into_iter()
        .map(|output| output.expect("every output has a coefficient"))
        .collect()
}

/// Checks every answer of a plan against the plain convolution, and the classes against each other.
pub(crate) fn check(circuit: &Circuit, plan: &Plan, seed: u64) {
    let packing = Packing::in_any_ring(&mut Budget::new(), circuit, plan)
        .unwrap_or_else(|faults| panic!("seed {seed}: {faults:?} in {plan:?}"));
    let mut rng = ChaCha20Rng::seed_from_u64(seed);
    let tensors: Vec<Vec<u64>> = packing
        .tensors()
        .iter()
        .map(|shape| random_field(&mut rng, shape.len() * packing.bundles()))
        .collect();
    check_classes(&packing);
    for (index, answer) in packing.answers().iter().enumerate() {
        let conv = answer.conv();
        let shape = packing.tensors()[conv.input.0 as usize];
        let count = conv.weight_count(shape);
        let weights: Vec<i64> = (0..count)
            .map(|_| i64::from(below(&mut rng, 255)) - 127)
            .collect();
        let tensor = &tensors[conv.input.0 as usize];
        let got = products(&packing, index, tensor, &weights, seed);
        let want: Vec<u64> = tensor
            .chunks_exact(shape.len())
            .flat_map(|x| plain_conv(x, shape, conv, &weights))
            .collect();
        for (e, (got, want)) in got.iter().zip(&want).enumerate() {
            assert_eq!(
                got, want,
                "seed {seed}: output {e} of answer {index} of {plan:?}"
            );
        }
        assert_eq!(got.len(), want.len());
    }
}

/// Each element is free exactly once if it is anywhere, and before its repeats; counts equal the
/// lists.
fn check_classes(packing: &Packing) {
    let mut seen: Vec<Vec<bool>> = packing
        .tensors()
        .iter()
        .map(|shape| vec![false; shape.len() * packing.bundles()])
        .collect();
    for upload in packing.uploads() {
        let mut total = ClassCounts::default();
        for index in 0..upload.ciphertexts() {
            let mut counts = ClassCounts::default();
            for role in upload.roles(index) {
                match role {
                    CoefficientRole::Free(e) => {
                        assert!(!std::mem::replace(
                            &mut seen[upload.tensor().0 as usize][e as usize],
                            true
                        ));
                        counts.free += 1;
                    }
                    CoefficientRole::Repeat(e) => {
                        assert!(seen[upload.tensor().0 as usize][e as usize]);
                        counts.forced += 1;
                    }
                    CoefficientRole::Zero => counts.forced += 1,
                    CoefficientRole::Unused => counts.unused += 1,
                }
            }
            assert_eq!(counts, upload.counts(index));
            total.free += counts.free;
            total.forced += counts.forced;
            total.unused += counts.unused;
        }
        assert_eq!(total, upload.total_counts());
    }
}
