use super::*;
use crate::pass::lower::{Kept, Pools, lower};
use pi_ir::random::{Options, circuit};
use pi_protocol::layout::Packing;
use pi_protocol::linear::LinearCost;

fn weight(circuit: &Circuit, plan: &Plan, link: &Link) -> f64 {
    let cost = linear::cost(&Packing::new(circuit, plan).unwrap());
    link.weight(cost.bytes_up() + cost.bytes_down(), &cost.operations())
}

#[test]
fn found_plans_are_legal_and_no_dearer_than_the_default() {
    let link = Link::default();
    for seed in 0..12 {
        for bundles in [1, 3] {
            let (circuit, _) = circuit(seed, &Options::default());
            let plan = select(&circuit, bundles, &link).unwrap();
            assert_eq!(
                plan,
                select(&circuit, bundles, &link).unwrap(),
                "seed {seed}"
            );
            let default = layout::default_plan(&circuit, bundles).unwrap();
            let (found, default) = (
                weight(&circuit, &plan, &link),
                weight(&circuit, &default, &link),
            );
            assert!(
                found <= default * 1.0001,
                "seed {seed}, {bundles} bundles: {found} s against {default} s"
            );
        }
    }
}

/// One convolution that keeps the size.
fn same(channels: u32, side: u32, out_channels: u32, kernel: u32) -> Circuit {
    let conv = Conv {
        input: TensorId(0),
        out_channels,
        groups: 1,
        kernel: (kernel, kernel),
        stride: (1, 1),
        padding: pi_ir::Padding::same(kernel / 2),
        weight_bits: 7,
    };
    let layer = pi_ir::Layer {
        name: "only".into(),
        terms: vec![Term::Conv(conv)],
        pool: None,
        shape: Shape::new(out_channels, side, side),
        bound_bits: 0,
        range: pi_ir::Range::Proved,
        guard_bits: 0,
        step: pi_ir::Step::Output {
            frac_bits: 0,
            reveal: pi_ir::Reveal::Logits,
        },
    };
    Circuit {
        name: String::new(),
        input: Shape::new(channels, side, side),
        input_frac_bits: 0,
        preprocessing: pi_ir::Preprocessing::unit(channels),
        classes: Vec::new(),
        prefix: None,
        layers: vec![layer],
    }
}

fn cost(circuit: &Circuit, bundles: u32, link: &Link) -> LinearCost {
    let plan = select(circuit, bundles, link).unwrap();
    linear::cost(&Packing::new(circuit, &plan).unwrap())
}

#[test]
fn a_slow_link_gets_fewer_bytes_and_a_fast_one_less_work() {
    let circuit = same(64, 8, 64, 3);
    let cost = |bits_per_second| {
        let link = Link {
            bits_per_second,
            byte_price: 0.0,
            ..Link::default()
        };
        let cost = cost(&circuit, 1, &link);
        let micros = cost.operations().server_micros(&link.machine.linear);
        (cost.bytes_up() + cost.bytes_down(), micros)
    };
    let (slow, fast) = (cost(5e6), cost(1e11));
    assert!(slow.0 < fast.0 && slow.1 > fast.1, "{slow:?} {fast:?}");
}

/// Bytes up and down a bundle; they move with the rates only if the choice does.
fn bytes(circuit: &Circuit, bundles: u32, link: &Link) -> usize {
    let cost = cost(circuit, bundles, link);
    (cost.bytes_up() + cost.bytes_down()) / bundles as usize
}

fn links() -> [Link; 3] {
    [100e6, 200e6, 1e9].map(|bits_per_second| Link {
        bits_per_second,
        ..Link::default()
    })
}

#[test]
fn single_convolutions_stay_within_their_bytes() {
    let (deep, wide) = (same(512, 4, 512, 3), same(64, 32, 64, 3));
    for link in links() {
        assert!(bytes(&deep, 1, &link) <= 1_300_000);
        assert!(bytes(&deep, 16, &link) <= 450_000);
        assert!(bytes(&wide, 1, &link) <= 2_500_000);
        assert!(bytes(&wide, 16, &link) <= 2_200_000);
    }
}

#[test]
fn resnet18_stays_within_its_bytes() {
    let graph = pi_ir::builders::resnet18(32, 10, pi_ir::builders::Policy::Relu, 1);
    let folded = crate::pass::fold::fold(&graph).unwrap();
    let lowered = lower(&folded, Pools::Cheapest, None, &Kept::new()).unwrap();
    let circuit = lowered.real.shapes();
    let link = Link::default();
    let alone = bytes(&circuit, 1, &link);
    assert!(alone <= 24_600_000, "{alone}");
    let batch = bytes(&circuit, 16, &link);
    assert!(batch <= 19_400_000, "{batch}");
}

fn resnet50() -> Circuit {
    let graph = pi_ir::builders::resnet50_large(224, 1000, pi_ir::builders::Policy::Relu, 1);
    let folded = crate::pass::fold::fold(&graph).unwrap();
    let lowered = lower(&folded, Pools::Cheapest, None, &Kept::new()).unwrap();
    lowered.real.shapes()
}

fn server_micros(circuit: &Circuit, plan: &Plan, link: &Link) -> f64 {
    let cost = linear::cost(&Packing::new(circuit, plan).unwrap());
    cost.operations().server_micros(&link.machine.linear)
}

/// Asserts that each of two machines gets the plan that is better there, and returns the server's
/// time on the second with its own plan, as a share of that with the plan of the first.
fn assert_own_plans_are_best(circuit: &Circuit, first: &Link, second: &Link) -> f64 {
    let [a, b] = [first, second].map(|link| select(circuit, 1, link).unwrap());
    assert_ne!(a, b);
    assert!(weight(circuit, &a, first) < weight(circuit, &b, first));
    assert!(weight(circuit, &b, second) < weight(circuit, &a, second));
    server_micros(circuit, &b, second) / server_micros(circuit, &a, second)
}

#[test]
fn each_machine_gets_the_plan_that_is_best_there() {
    let mut dear = Link::default();
    dear.machine.linear.key_switch *= 6.0;
    dear.machine.linear.sum *= 6.0;
    assert!(assert_own_plans_are_best(&resnet50(), &Link::default(), &dear) < 1.0);
}

#[test]
#[ignore = "prints what a plan of its own saves a server without AVX-512; run with --nocapture"]
fn resnet50_gets_another_plan_without_avx512() {
    let avx2 = Link {
        machine: pi_machine::shipped("zen3-avx2").unwrap(),
        ..Link::default()
    };
    let share = assert_own_plans_are_best(&resnet50(), &Link::default(), &avx2);
    println!("ResNet-50 on zen3-avx2: {share:.3} of the server's time with the other plan");
}
