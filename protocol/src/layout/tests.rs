//! Layouts of all kinds against the oracle, and layouts that are known.

mod budget;
mod hostile;

use super::default_plan::plan_in;
use super::oracle::{below, check, circuit_of, conv, pick};
use super::*;
use pi_ir::{Layout, Padding, Upload};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;

/// The tightest layout for a tile and a group, in a small ring.
fn layout_in(
    ring_degree: u32,
    bundles: u32,
    shape: Shape,
    consumers: &[&Conv],
    group: u32,
    tile: (u32, u32),
) -> Option<Layout> {
    let tensor_use = TensorUse::new(bundles, shape, consumers).in_ring(ring_degree);
    let sketch = tensor_use.tightest(group, tile)?;
    Some(sketch.upload().layout().clone())
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
    let mut partly = 0;
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
                let mut conv = conv(0, 1 + below(&mut rng, 7), kernel, stride, padding);
                let divides =
                    |n: &u32| shape.c.is_multiple_of(*n) && conv.out_channels.is_multiple_of(*n);
                conv.groups = pick(&mut rng, &(1..=6).filter(divides).collect::<Vec<u32>>());
                conv
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
        let map = Packing::in_any_ring(&mut Budget::new(), &circuit, &plan).unwrap();
        let tiles = map.uploads()[0].tiles();
        partly += usize::from(map.answers().iter().any(|answer| {
            let upload = &map.uploads()[0];
            let mut chunks = 0..answer.chunks();
            chunks.any(|chunk| answer.groups_read(upload, chunk).len() < upload.groups())
        }));
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
        ("ciphertexts that no product reads", partly),
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
    let packing = Packing::in_any_ring(&mut Budget::new(), &circuit, &plan).unwrap();
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
    let packing = Packing::in_any_ring(&mut Budget::new(), &circuit, &plan).unwrap();
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
        let packing = Packing::in_any_ring(&mut Budget::new(), &circuit, &plan).unwrap();
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
        let layout = layout_in(RING_DEGREE, 1, shape, &[&conv], group, tile).unwrap();
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
    let packing = Packing::in_any_ring(&mut Budget::new(), &circuit, &plan).unwrap();
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
    let roles = Packing::in_any_ring(&mut Budget::new(), &circuit, &plan)
        .unwrap()
        .uploads()[0]
        .roles(0);
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
    let packing = Packing::in_any_ring(
        &mut Budget::new(),
        &circuit,
        &plan_of(128, 1, &circuit, layout, 1, 1),
    )
    .unwrap();
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
