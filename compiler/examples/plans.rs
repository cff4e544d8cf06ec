//! The packing plans of the common networks, by batch and link: layouts, operations, bytes,
//! predicted time.
//!
//! `cargo run --release -p pi-compiler --example plans -- NETWORK.. [--layers]`, of resnet18,
//! resnet32, wrn22-8, lean9, and the single convolutions conv512 and conv64. `PRICE` (ns a byte)
//! and `FASTER` (a factor) in the environment vary the weights.
use pi_compiler::pass::fold::fold;
use pi_compiler::pass::lower::{Pools, lower};
use pi_compiler::pass::select::{Link, select};
use pi_ir::builders::{Policy, lean9, resnet18, resnet32, wrn22_8};
use pi_ir::{Circuit, Conv, Graph, Layer, Padding, Range, Shape, Step, TensorId, Term};
use pi_protocol::layout::Packing;
use pi_protocol::linear;
use std::time::Instant;

fn shapes(graph: &Graph) -> Circuit {
    lower(&fold(graph).unwrap(), Pools::Cheapest)
        .unwrap()
        .shapes()
}

fn one(c: u32, side: u32, out: u32) -> Circuit {
    let conv = Conv {
        input: TensorId(0),
        out_channels: out,
        kernel: (3, 3),
        stride: (1, 1),
        padding: Padding::same(1),
        weight_bits: 7,
    };
    Circuit {
        name: String::new(),
        input: Shape::new(c, side, side),
        input_frac_bits: 0,
        mean: vec![],
        std: vec![],
        classes: vec![],
        layers: vec![Layer {
            name: "conv".into(),
            terms: vec![Term::Conv(conv)],
            pool: None,
            shape: Shape::new(out, side, side),
            bound_bits: 0,
            range: Range::Proved,
            step: Step::Output { frac_bits: 0 },
        }],
    }
}

fn main() {
    let names: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| !a.starts_with("--"))
        .collect();
    let detail = std::env::args().any(|a| a == "--layers");
    for name in names {
        let c = match name.as_str() {
            "resnet18" => shapes(&resnet18(32, 10, Policy::Relu, 1)),
            "resnet32" => shapes(&resnet32(32, 10, Policy::Relu, 1)),
            "wrn22-8" => shapes(&wrn22_8(32, 10, Policy::Relu, 1)),
            "lean9" => shapes(&lean9(32, 10, Policy::Relu, 1)),
            "conv512" => one(512, 4, 512),
            "conv64" => one(64, 32, 64),
            other => panic!("no network {other}"),
        };
        for bundles in [1, 4, 16] {
            for mbit in [100.0, 200.0, 1000.0] {
                let mut link = Link {
                    bits_per_second: mbit * 1e6,
                    ..Link::default()
                };
                let number =
                    |name: &str| std::env::var(name).ok().map(|v| v.parse::<f64>().unwrap());
                if let Some(p) = number("PRICE") {
                    link.byte_price = p * 1e-9;
                }
                if let Some(f) = number("FASTER") {
                    let r = &mut link.rates;
                    for x in [
                        &mut r.upload,
                        &mut r.expand,
                        &mut r.kernel,
                        &mut r.kernel_term,
                        &mut r.sum,
                        &mut r.key_switch,
                        &mut r.finish,
                        &mut r.decrypt,
                    ] {
                        *x /= f;
                    }
                }
                let start = Instant::now();
                let plan = select(&c, bundles, &link).unwrap();
                let took = start.elapsed().as_secs_f64();
                let packing = Packing::new(&c, &plan).unwrap();
                let cost = linear::cost(&packing);
                let (up, down, o) = (cost.bytes_up(), cost.bytes_down(), cost.operations());
                let b = f64::from(bundles);
                println!(
                    "{name} {bundles:2} {mbit:5}: up {:7.3} down {:7.3} sum {:7.3} MB, in {:6.1} out {:6.1} polys {:7.1} products {:7.1} ks {:7.1} server {:6.3} s per bundle; client {:6.3} wall {:6.3} search {took:.2} s",
                    up as f64 / b / 1e6,
                    down as f64 / b / 1e6,
                    (up + down) as f64 / b / 1e6,
                    o.inputs as f64 / b,
                    o.outputs as f64 / b,
                    o.kernels as f64 / b,
                    o.products as f64 / b,
                    o.key_switches as f64 / b,
                    o.server_micros(&link.rates) * 1e-6 / b,
                    o.client_micros(&link.rates) * 1e-6 / b,
                    link.seconds(&cost) / b
                );
                if detail {
                    for (i, a) in plan.answers.iter().enumerate() {
                        let l = &plan.uploads[a.upload as usize].layout;
                        let map = &packing.answers()[i];
                        let u = &packing.uploads()[a.upload as usize];
                        println!(
                            "   {:18} G {:4} tile {:2}x{:<2} stride {:2} block {:4} blocks {:2} ob {:2} merge {} | t{} {} in {:4} out {:4} up {:8} down {:8}",
                            c.layers[a.layer as usize].name,
                            l.group,
                            l.tile.0,
                            l.tile.1,
                            l.row_stride,
                            l.block,
                            l.blocks,
                            a.output_blocks,
                            a.merge,
                            u.tensor().0,
                            u.shape(),
                            u.ciphertexts(),
                            map.ciphertexts(),
                            cost.upload_bytes[a.upload as usize],
                            cost.answer_bytes[i]
                        );
                    }
                }
            }
        }
    }
}
