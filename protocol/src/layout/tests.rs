//! The oracle: polynomial products over `F_p`, coefficient by coefficient, against the plain
//! convolution.

use super::choose::{layout_in, plan_in};
use super::*;
use pi_ir::{Layer, Layout, P, Padding, Range, Step, Upload};
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};

/// A circuit of one layer per list of convolutions, every layer an output: the packing looks at
/// shapes and terms only. The layer's shape is that of its first term.
pub(crate) fn circuit_of(input: Shape, layers: &[Vec<Conv>]) -> Circuit {
    let mut circuit = Circuit {
        name: "test".into(),
        input,
        input_frac_bits: 8,
        mean: vec![0.0; input.c as usize],
        std: vec![1.0; input.c as usize],
        classes: Vec::new(),
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
            step: Step::Output { frac_bits: 8 },
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
        kernel,
        stride,
        padding,
        weight_bits: 7,
    }
}

fn below(rng: &mut impl RngCore, n: u32) -> u32 {
    rng.next_u32() % n
}

fn pick<T: Copy>(rng: &mut impl RngCore, from: &[T]) -> T {
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
    for o in 0..out.c {
        for y in 0..out.h {
            for x0 in 0..out.w {
                let mut sum = 0;
                for c in 0..shape.c {
                    for k in 0..conv.kernel.0 {
                        for l in 0..conv.kernel.1 {
                            let i = i64::from(y * conv.stride.0 + k) - i64::from(conv.padding.top);
                            let j =
                                i64::from(x0 * conv.stride.1 + l) - i64::from(conv.padding.left);
                            if i < 0 || j < 0 || i >= i64::from(shape.h) || j >= i64::from(shape.w)
                            {
                                continue;
                            }
                            let at = (c as usize * shape.h as usize + i as usize)
                                * shape.w as usize
                                + j as usize;
                            let w = ((o * shape.c + c) * conv.kernel.0 + k) * conv.kernel.1 + l;
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

/// What an upload's ciphertexts encrypt: the tensor's elements where they belong, junk where
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
            for g in 0..upload.groups() {
                let taps = answer.taps(upload, g);
                let mut kernel = vec![0i64; degree];
                for p in answer.kernel(upload, &taps, chunk, place) {
                    let w = weights[p.weight as usize];
                    kernel[p.coefficient as usize] += if p.negative { -w } else { w };
                }
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
    let packing = Packing::in_any_ring(circuit, plan)
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
        let count = (conv.out_channels * shape.c * conv.kernel.0 * conv.kernel.1) as usize;
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

/// A plan with one upload for all convolutions of a one-layer circuit.
fn plan_of(
    ring_degree: u32,
    bundles: u32,
    circuit: &Circuit,
    layout: Layout,
    merge: u32,
    output_blocks: u32,
) -> Plan {
    Plan {
        ring_degree,
        bundles,
        uploads: vec![Upload {
            tensor: TensorId(0),
            layout,
        }],
        answers: conv_terms(circuit)
            .iter()
            .map(|(layer, term, _)| OutputPacking {
                layer: *layer,
                term: *term,
                upload: 0,
                merge,
                output_blocks,
            })
            .collect(),
    }
}

#[test]
fn random_layouts_compute_the_convolution() {
    let mut rng = ChaCha20Rng::seed_from_u64(1);
    let (mut checked, mut shared, mut halo, mut blocks, mut outputs, mut bundled, mut stacked) =
        (0, 0, 0, 0, 0, 0, 0);
    for seed in 0..2000 {
        let degree = pick(&mut rng, &[64, 128, 256, 512]);
        let shape = Shape::new(
            1 + below(&mut rng, 6),
            1 + below(&mut rng, 9),
            1 + below(&mut rng, 9),
        );
        let stride = pick(&mut rng, &[(1, 1), (1, 1), (2, 2), (1, 2), (3, 2)]);
        let consumers: Vec<Conv> = (0..1 + below(&mut rng, 2))
            .map(|_| {
                let padding = Padding {
                    top: below(&mut rng, 3),
                    left: below(&mut rng, 3),
                    bottom: below(&mut rng, 3),
                    right: below(&mut rng, 3),
                };
                let kernel = (1 + below(&mut rng, 5), 1 + below(&mut rng, 5));
                conv(0, 1 + below(&mut rng, 7), kernel, stride, padding)
            })
            .filter(|conv| conv_output(shape, conv).is_some())
            .collect();
        if consumers.is_empty() {
            continue;
        }
        let group = 1 << below(&mut rng, 6);
        let most_rows = pick(&mut rng, &[9, 9, 40]);
        let tile = (1 + below(&mut rng, most_rows), 1 + below(&mut rng, 9));
        let bundles = pick(&mut rng, &[1, 1, 2, 3, 5]);
        let references: Vec<&Conv> = consumers.iter().collect();
        let Some(mut layout) = layout_in(degree, bundles, shape, &references, group, tile) else {
            continue;
        };
        if below(&mut rng, 4) == 0 {
            layout.blocks = 1;
        }
        let merge = below(&mut rng, group.ilog2() + 1);
        let most = if layout.blocks == 1 {
            degree / group / layout.block
        } else {
            1
        };
        let output_blocks = 1 + below(&mut rng, most.min(4));
        let circuit = circuit_of(shape, std::slice::from_ref(&consumers));
        let plan = plan_of(
            degree,
            bundles,
            &circuit,
            layout.clone(),
            merge,
            output_blocks,
        );
        check(&circuit, &plan, seed);
        checked += 1;
        let map = Packing::in_any_ring(&circuit, &plan).unwrap();
        let tiles = map.uploads()[0].tiles();
        shared += usize::from(layout.row_stride < layout.tile.1 + layout.window.1 - 1);
        halo += usize::from(tiles.0 * tiles.1 > 1 && layout.window != (1, 1));
        blocks += usize::from(layout.blocks > 1);
        outputs += usize::from(output_blocks > 1);
        bundled += usize::from(bundles > 1 && layout.blocks > 1);
        let height = consumers
            .iter()
            .filter_map(|c| conv_output(shape, c))
            .map(|s| s.h)
            .max();
        stacked += usize::from(height < Some(layout.tile.0));
    }
    // The generator must reach every feature, often.
    assert!(checked > 500, "{checked}");
    for (what, count) in [
        ("shared padding", shared),
        ("halo", halo),
        ("blocks", blocks),
        ("output blocks", outputs),
        ("bundles", bundled),
        ("stacks", stacked),
    ] {
        assert!(count > 60, "{what}: {count} of {checked}");
    }
}

#[test]
fn default_plans_of_random_circuits_compute_the_convolutions() {
    let mut rng = ChaCha20Rng::seed_from_u64(2);
    for seed in 0..60 {
        let shape = Shape::new(
            1 + below(&mut rng, 3),
            4 + below(&mut rng, 5),
            4 + below(&mut rng, 5),
        );
        let first = conv(0, 4, (3, 3), (1, 1), Padding::same(1));
        let second = conv(1, 5, (3, 3), (2, 2), Padding::same(1));
        let shortcut = conv(1, 5, (1, 1), (2, 2), Padding::same(0));
        let side = conv(1, 3, (1, 1), (1, 1), Padding::same(0));
        let dense =
            |input, shape: Shape| conv(input, 10, (shape.h, shape.w), (1, 1), Padding::same(0));
        let reduced = conv_output(Shape { c: 4, ..shape }, &second).unwrap();
        let circuit = circuit_of(
            shape,
            &[
                vec![first],
                vec![second, shortcut],
                vec![side],
                vec![dense(2, reduced)],
            ],
        );
        let plan = plan_in(256, &circuit, pick(&mut rng, &[1, 2])).unwrap();
        check(&circuit, &plan, seed);
    }
}

#[test]
fn default_plans_of_random_networks_are_legal_and_right() {
    for seed in 0..60 {
        let (circuit, _) = pi_ir::random::circuit(seed, &Default::default());
        let plan = plan_in(2048, &circuit, 1).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        check(&circuit, &plan, seed);
        let standard = default_plan(&circuit, 1).unwrap();
        assert_eq!(
            verify_plan(&circuit, &standard),
            Vec::<String>::new(),
            "seed {seed}"
        );
    }
}

#[test]
fn tensor_in_two_layouts_is_forced_the_second_time() {
    let shape = Shape::new(3, 6, 6);
    let same = conv(0, 4, (3, 3), (1, 1), Padding::same(1));
    let strided = conv(0, 4, (3, 3), (2, 2), Padding::same(1));
    let circuit = circuit_of(shape, &[vec![same], vec![strided]]);
    let plan = plan_in(512, &circuit, 1).unwrap();
    assert_eq!(plan.uploads.len(), 2);
    check(&circuit, &plan, 3);
    let packing = Packing::in_any_ring(&circuit, &plan).unwrap();
    assert_eq!(packing.uploads()[0].total_counts().free, shape.len());
    assert_eq!(packing.uploads()[1].total_counts().free, 0);
}

#[test]
fn stacked_bundles_share_rows_of_zeros() {
    let shape = Shape::new(2, 3, 3);
    let same = conv(0, 4, (3, 3), (1, 1), Padding::same(1));
    let circuit = circuit_of(shape, &[vec![same.clone()]]);
    // Three maps of three rows with a row between them: eleven rows of outputs, in tiles of six and
    // five.
    assert!(
        layout_in(128, 3, shape, &[&same], 4, (6, 3)).is_none(),
        "32 positions are one too few"
    );
    let layout = layout_in(128, 3, shape, &[&same], 2, (6, 3)).unwrap();
    assert_eq!((layout.row_stride, layout.block, layout.blocks), (4, 33, 1));
    let plan = plan_of(128, 3, &circuit, layout, 1, 1);
    check(&circuit, &plan, 12);
    let packing = Packing::in_any_ring(&circuit, &plan).unwrap();
    assert_eq!(packing.uploads()[0].tiles(), (2, 1));
    let roles = packing.uploads()[0].roles(0);
    // The second bundle's first element is four rows below the first bundle's, the zeros between
    // them are one row.
    let at = |row: usize, column: usize| roles[(row * 4 + column) * 2];
    assert_eq!(at(1, 1), CoefficientRole::Free(0));
    assert_eq!(at(4, 1), CoefficientRole::Zero);
    assert_eq!(at(5, 1), CoefficientRole::Free(18));
}

#[test]
fn stacked_and_separate_layouts_of_one_tensor_agree() {
    let shape = Shape::new(3, 5, 4);
    let same = conv(0, 4, (3, 3), (1, 1), Padding::same(1));
    let strided = conv(0, 4, (3, 3), (2, 2), Padding::same(1));
    let circuit = circuit_of(shape, &[vec![same.clone()], vec![strided.clone()]]);
    for tiles in [[(9, 4), (2, 2)], [(3, 4), (5, 2)], [(7, 4), (4, 2)]] {
        let mut plan = plan_in(256, &circuit, 3).unwrap();
        for (upload, (conv, tile)) in [&same, &strided].into_iter().zip(tiles).enumerate() {
            let layout = layout_in(256, 3, shape, &[conv], 4, tile).unwrap();
            plan.uploads[upload].layout = layout;
            plan.answers[upload].output_blocks = 1;
            plan.answers[upload].merge = 2;
        }
        check(&circuit, &plan, 13);
        let packing = Packing::in_any_ring(&circuit, &plan).unwrap();
        assert_eq!(packing.uploads()[0].total_counts().free, 3 * shape.len());
        assert_eq!(packing.uploads()[1].total_counts().free, 0);
    }
}

#[test]
fn strided_shortcut_shares_the_upload_of_the_kernel_beside_it() {
    let shape = Shape::new(4, 8, 8);
    let main = conv(0, 8, (3, 3), (2, 2), Padding::same(1));
    let shortcut = conv(0, 8, (1, 1), (2, 2), Padding::same(0));
    let circuit = circuit_of(shape, &[vec![main, shortcut]]);
    let plan = plan_in(512, &circuit, 1).unwrap();
    assert_eq!(plan.uploads.len(), 1);
    check(&circuit, &plan, 4);
}

#[test]
fn published_tiles_fit_the_standard_ring() {
    let same = |c: u32, side: u32| {
        (
            Shape::new(c, side, side),
            conv(0, c, (3, 3), (1, 1), Padding::same(1)),
        )
    };
    for (channels, side, group, tile, positions) in [
        (64, 32, 8, (29, 32), 1024),
        (256, 16, 32, (13, 16), 256),
        (512, 4, 256, (4, 4), 31),
        (64, 32, 4, (32, 32), 1123),
    ] {
        let (shape, conv) = same(channels, side);
        let layout = layout_for(shape, &[&conv], group, tile).unwrap();
        assert_eq!(
            layout.row_stride,
            side + 1,
            "one column of zeros serves both neighbours"
        );
        assert_eq!(layout.tile, tile);
        assert!(
            layout.block <= positions.max(8192 / group),
            "{} positions",
            layout.block
        );
        if side == 4 || group == 4 {
            assert_eq!(layout.block, positions);
        }
    }
}

#[test]
fn two_bundles_lie_side_by_side() {
    let shape = Shape::new(2, 3, 3);
    let c = conv(0, 2, (3, 3), (1, 1), Padding::same(1));
    let circuit = circuit_of(shape, &[vec![c.clone()]]);
    let layout = layout_in(128, 2, shape, &[&c], 2, (3, 3)).unwrap();
    assert_eq!((layout.block, layout.blocks), (21, 2));
    let plan = plan_of(128, 2, &circuit, layout, 1, 1);
    check(&circuit, &plan, 5);
    let packing = Packing::in_any_ring(&circuit, &plan).unwrap();
    let roles = packing.uploads()[0].roles(0);
    // Element 0 of channel 0 at virtual (1, 1): flat 1 * 4 + 1; the second bundle one block later.
    assert_eq!(roles[(4 + 1) * 2], CoefficientRole::Free(0));
    assert_eq!(roles[(21 + 4 + 1) * 2], CoefficientRole::Free(18));
}

#[test]
fn absent_channels_and_phases_are_unused() {
    // A strided 1x1 convolution alone touches one phase of four; three channels leave a gap in a
    // group of 16.
    let shape = Shape::new(3, 4, 4);
    let c = conv(0, 2, (1, 1), (2, 2), Padding::same(0));
    let circuit = circuit_of(shape, &[vec![c.clone()]]);
    let layout = layout_in(64, 1, shape, &[&c], 16, (2, 2)).unwrap();
    let plan = plan_of(64, 1, &circuit, layout, 4, 1);
    check(&circuit, &plan, 6);
    let roles = Packing::in_any_ring(&circuit, &plan).unwrap().uploads()[0].roles(0);
    for (at, role) in roles.iter().enumerate() {
        let used = [0, 4, 8].contains(&(at % 16));
        assert_eq!(
            matches!(role, CoefficientRole::Free(_)),
            used,
            "coefficient {at}: {role:?}"
        );
    }
}

#[test]
fn weights_do_not_change_the_map() {
    // Nothing here takes weights; that a zero weight still makes its input read is visible in the
    // taps.
    let shape = Shape::new(2, 4, 4);
    let c = conv(0, 3, (3, 3), (1, 1), Padding::same(1));
    let circuit = circuit_of(shape, &[vec![c.clone()]]);
    let layout = layout_in(128, 1, shape, &[&c], 2, (4, 4)).unwrap();
    let packing = Packing::in_any_ring(&circuit, &plan_of(128, 1, &circuit, layout, 1, 1)).unwrap();
    let (upload, answer) = (&packing.uploads()[0], &packing.answers()[0]);
    let taps = answer.taps(upload, 0);
    assert_eq!(taps.len(), 18);
    let placed: Vec<_> = (0..answer.chunks())
        .flat_map(|chunk| (0..answer.kernels(chunk)).map(move |place| (chunk, place)))
        .flat_map(|(chunk, place)| {
            answer
                .kernel(upload, &taps, chunk, place)
                .collect::<Vec<_>>()
        })
        .collect();
    let mut weights: Vec<u32> = placed.iter().map(|p| p.weight).collect();
    weights.sort_unstable();
    assert_eq!(weights, (0..54).collect::<Vec<_>>());
}

fn legal() -> (Circuit, Plan) {
    let shape = Shape::new(3, 5, 5);
    let c = conv(0, 4, (3, 3), (1, 1), Padding::same(1));
    let circuit = circuit_of(shape, &[vec![c.clone()]]);
    let layout = layout_in(256, 1, shape, &[&c], 4, (5, 5)).unwrap();
    let plan = plan_of(256, 1, &circuit, layout, 2, 1);
    (circuit, plan)
}

#[test]
fn faults_are_named() {
    let (circuit, plan) = legal();
    let faults_in = |plan: &Plan| {
        Packing::in_any_ring(&circuit, plan)
            .err()
            .unwrap_or_default()
    };
    assert_eq!(faults_in(&plan), Vec::<String>::new());
    assert_eq!(
        verify_plan(&circuit, &plan),
        ["ring degree 256, expected 8192"]
    );
    let cases: [(&str, fn(&mut Plan)); 19] = [
        ("ring degree", |p| p.ring_degree = 255),
        ("bundles", |p| p.bundles = 0),
        ("answers for", |p| p.answers.clear()),
        ("uploads for", |p| p.uploads.push(p.uploads[0].clone())),
        ("is for layer", |p| p.answers[0].layer = 7),
        ("reads upload 3", |p| p.answers[0].upload = 3),
        ("of tensor 1", |p| p.uploads[0].tensor = TensorId(1)),
        ("merges", |p| p.answers[0].merge = 3),
        ("output blocks", |p| p.answers[0].output_blocks = 0),
        ("output blocks", |p| p.answers[0].output_blocks = 2),
        ("power of two", |p| p.uploads[0].layout.group = 3),
        ("stride", |p| p.uploads[0].layout.stride = (2, 1)),
        ("pads", |p| p.uploads[0].layout.padding.top = 0),
        ("padded map", |p| p.uploads[0].layout.padding.bottom = 0),
        ("window", |p| p.uploads[0].layout.window = (2, 3)),
        ("tile", |p| p.uploads[0].layout.tile = (0, 5)),
        ("would hold both", |p| p.uploads[0].layout.row_stride = 5),
        ("reads flat position", |p| p.uploads[0].layout.block = 30),
        ("do not fit", |p| p.uploads[0].layout.blocks = 9),
    ];
    for (what, change) in cases {
        let mut broken = plan.clone();
        change(&mut broken);
        let faults = faults_in(&broken);
        assert!(
            faults.iter().any(|f| f.contains(what)),
            "{what}: {faults:?}"
        );
    }
}

#[test]
fn several_faults_are_all_listed() {
    let (circuit, mut plan) = legal();
    plan.uploads[0].layout.group = 3;
    plan.uploads[0].layout.tile = (0, 5);
    plan.uploads[0].layout.block = 0;
    assert!(verify_plan(&circuit, &plan).len() >= 3);
}

#[test]
fn hostile_plans_and_circuits_end_in_faults() {
    // Every number is drawn from the corners of its type; any answer but a panic or an endless run
    // will do.
    let corners = [
        0,
        1,
        2,
        3,
        5,
        31,
        255,
        1 << 13,
        1 << 14,
        (1 << 14) + 1,
        1 << 20,
        1 << 31,
        u32::MAX,
    ];
    let mut rng = ChaCha20Rng::seed_from_u64(7);
    let (circuit, plan) = legal();
    let mut refused = 0;
    for _ in 0..20_000 {
        let (mut circuit, mut plan) = (circuit.clone(), plan.clone());
        for _ in 0..1 + below(&mut rng, 3) {
            let value = pick(&mut rng, &corners);
            let Upload { tensor, layout } = &mut plan.uploads[0];
            let answer = &mut plan.answers[0];
            let Term::Conv(conv) = &mut circuit.layers[0].terms[0] else {
                unreachable!("the circuit has one convolution")
            };
            let numbers: [&mut u32; 33] = [
                &mut layout.group,
                &mut layout.stride.0,
                &mut layout.stride.1,
                &mut layout.padding.top,
                &mut layout.padding.left,
                &mut layout.padding.bottom,
                &mut layout.padding.right,
                &mut layout.window.0,
                &mut layout.window.1,
                &mut layout.tile.0,
                &mut layout.tile.1,
                &mut layout.row_stride,
                &mut layout.block,
                &mut layout.blocks,
                &mut answer.layer,
                &mut answer.term,
                &mut answer.upload,
                &mut answer.merge,
                &mut answer.output_blocks,
                &mut tensor.0,
                &mut plan.ring_degree,
                &mut plan.bundles,
                &mut conv.out_channels,
                &mut conv.kernel.0,
                &mut conv.kernel.1,
                &mut conv.stride.0,
                &mut conv.stride.1,
                &mut conv.padding.top,
                &mut conv.padding.left,
                &mut conv.input.0,
                &mut circuit.input.c,
                &mut circuit.input.h,
                &mut circuit.input.w,
            ];
            let index = below(&mut rng, 33) as usize;
            *numbers.into_iter().nth(index).expect("33 numbers") = value;
        }
        refused += usize::from(Packing::in_any_ring(&circuit, &plan).is_err());
    }
    assert!(refused > 10_000, "{refused}");
}

#[test]
fn largest_plan_of_one_block_each_is_refused_before_it_is_built() {
    let shape = Shape::new(1, 1 << 13, 1 << 13);
    let c = conv(0, 1, (1, 1), (1, 1), Padding::same(0));
    let circuit = circuit_of(shape, &[vec![c]]);
    let layout = Layout {
        group: 1,
        stride: (1, 1),
        padding: Padding::same(0),
        window: (1, 1),
        tile: (1, 1),
        row_stride: 1,
        block: 1,
        blocks: 8192,
    };
    let faults = verify_plan(&circuit, &plan_of(8192, 1, &circuit, layout, 0, 1));
    assert!(faults[0].contains("too large"), "{faults:?}");
}
