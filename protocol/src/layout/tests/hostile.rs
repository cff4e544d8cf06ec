//! Plans that are not legal: each fault is named, and none panics or takes memory without bound.

use super::*;

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
        Packing::in_any_ring(&mut Budget::new(), &circuit, plan)
            .err()
            .unwrap_or_default()
    };
    assert_eq!(faults_in(&plan), Vec::<String>::new());
    assert_eq!(
        verify_plan(&circuit, &plan),
        ["ring degree 256, expected 8192"]
    );
    type Change = fn(&mut Plan);
    let cases: [(&str, Change); 19] = [
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
        refused += usize::from(Packing::in_any_ring(&mut Budget::new(), &circuit, &plan).is_err());
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
