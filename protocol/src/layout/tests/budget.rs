//! What deriving plans takes, of large networks and of hostile artifacts.

use super::*;

/// The convolutions of a ResNet-50 (bottleneck blocks) after its first pool, from a map of
/// `[64, 56, 56]`.
fn resnet50() -> Circuit {
    let mut layers: Vec<Vec<Conv>> = Vec::new();
    let mut x = 0;
    for (stage, (width, count)) in [(64, 3), (128, 4), (256, 6), (512, 3)]
        .into_iter()
        .enumerate()
    {
        for block in 0..count {
            let stride = if stage > 0 && block == 0 { 2 } else { 1 };
            let at = layers.len() as u32;
            let side = Padding::same(1);
            let none = Padding::same(0);
            layers.push(vec![conv(x, width, (1, 1), (1, 1), none)]);
            layers.push(vec![conv(at + 1, width, (3, 3), (stride, stride), side)]);
            let mut sum = vec![conv(at + 2, 4 * width, (1, 1), (1, 1), none)];
            if block == 0 {
                sum.push(conv(x, 4 * width, (1, 1), (stride, stride), none));
            }
            layers.push(sum);
            x = at + 3;
        }
    }
    circuit_of(Shape::new(64, 56, 56), &layers)
}

/// A plan for a circuit of one layer in which every convolution has an upload of its own.
fn apart(circuit: &Circuit, bundles: u32, layout: Layout) -> Plan {
    let mut plan = plan_of(RING_DEGREE, bundles, circuit, layout, 0, 1);
    let upload = plan.uploads[0].clone();
    plan.uploads = vec![upload; plan.answers.len()];
    for (index, answer) in plan.answers.iter_mut().enumerate() {
        answer.upload = index as u32;
    }
    plan
}

/// Tiles of this many outputs, each in a ciphertext by itself, of one channel without padding.
fn tiles_of(rows: u32, columns: u32) -> Layout {
    Layout {
        group: 1,
        stride: (1, 1),
        padding: Padding::same(0),
        window: (1, 1),
        tile: (rows, columns),
        row_stride: columns,
        block: RING_DEGREE,
        blocks: 1,
    }
}

fn one_by_one() -> Conv {
    conv(0, 1, (1, 1), (1, 1), Padding::same(0))
}

#[test]
fn plans_of_a_resnet50_for_224_pixels_take_a_small_part() {
    let body = resnet50();
    let stem = conv(0, 64, (7, 7), (2, 2), Padding::same(3));
    let stem = circuit_of(Shape::new(3, 224, 224), &[vec![stem]]);
    let mut budget = Budget::new();
    for bundles in [1, 4, 8] {
        for circuit in [&stem, &body] {
            let plan = default_plan(circuit, bundles).unwrap();
            Packing::within(&mut budget, circuit, &plan).unwrap();
        }
    }
    let (steps, words) = budget.taken();
    assert!(steps < 1.0 / 64.0 && words < 0.1, "{steps} {words}");
}

/// The artifact of 563 bytes that took a gigabyte for each plan: 16,384 tiles of one column.
#[test]
fn equal_tiles_are_kept_once() {
    let circuit = circuit_of(Shape::new(1, 1, 1 << 14), &[vec![one_by_one()]]);
    let plan = plan_of(RING_DEGREE, 1, &circuit, tiles_of(1, 1), 0, 1);
    let mut budget = Budget::new();
    let refused = Packing::within(&mut budget, &circuit, &plan).unwrap_err();
    assert!(refused[0].contains("too large to derive"), "{refused:?}");
    let circuit = circuit_of(Shape::new(1, 1, 1 << 12), &[vec![one_by_one()]]);
    let mut budget = Budget::new();
    let packing = Packing::within(&mut budget, &circuit, &plan).unwrap();
    let words = budget.taken().1;
    assert!(words < 0.01, "{words}");
    for tile in [0, 1, 1000, 4095] {
        let roles = packing.uploads()[0].roles(tile);
        assert_eq!(roles[0], CoefficientRole::Free(tile as u32));
        let rest = roles[1..].iter();
        assert!({ rest }.all(|role| *role == CoefficientRole::Unused));
    }
}

/// Maps of 127 rows below each other with a row of zeros between two, cut into tiles of 129: the
/// row of zeros lies elsewhere in each.
#[test]
fn memory_of_different_tiles_is_bounded_over_all_uploads_and_plans() {
    let above_and_below = Padding {
        top: 1,
        bottom: 1,
        ..Padding::same(0)
    };
    let circuit = |convolutions| {
        let conv = conv(0, 1, (3, 1), (1, 1), above_and_below);
        circuit_of(Shape::new(1, 127, 1), &[vec![conv; convolutions]])
    };
    let layout = Layout {
        padding: above_and_below,
        window: (3, 1),
        ..tiles_of(129, 1)
    };
    let plan = |circuit: &Circuit| apart(circuit, 64, layout.clone());
    let mut budget = Budget::new();
    let few = circuit(3);
    Packing::within(&mut budget, &few, &plan(&few)).unwrap();
    let (steps, words) = budget.taken();
    assert!(
        steps < 0.05 && (0.3..0.5).contains(&words),
        "{steps} {words}"
    );
    // The next plan has what the first has left.
    Packing::within(&mut budget, &few, &plan(&few)).unwrap();
    let third = Packing::within(&mut budget, &few, &plan(&few)).unwrap_err();
    assert!(third[0].contains("words of memory"), "{third:?}");
    let many = circuit(9);
    let alone = verify_plan(&many, &plan(&many));
    assert!(alone[0].contains("words of memory"), "{alone:?}");
}

#[test]
fn answers_that_read_a_large_upload_again_and_again_are_refused_at_the_first_too_many() {
    let circuit = circuit_of(Shape::new(1, 1, 1 << 11), &[vec![one_by_one(); 1000]]);
    let plan = plan_of(RING_DEGREE, 1, &circuit, tiles_of(1, 1), 0, 1);
    let faults = verify_plan(&circuit, &plan);
    let expected = MAX_CIPHERTEXTS + (1 << 11);
    assert_eq!(
        faults,
        [format!(
            "{expected} answer ciphertexts, at most 16384 allowed"
        )]
    );
}
