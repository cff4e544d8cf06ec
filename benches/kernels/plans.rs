//! The packing plans of the common networks, by batch and link: layouts, operations, bytes and
//! predicted time.

use super::linear::{circuit_of, convolution};
use clap::ValueEnum;
use pi_compiler::pass::fold::fold;
use pi_compiler::pass::lower::{Kept, Pools, lower};
use pi_compiler::pass::select::{Link, select};
use pi_ir::builders::{Policy, lean9, mobilenet_v2, resnet18, resnet32, resnet50_large, wrn22_8};
use pi_ir::{Circuit, Graph, Plan, Shape};
use pi_protocol::layout::Packing;
use pi_protocol::linear::{self, LinearCost, Rates};
use std::time::Instant;

/// Megabits a second of the links that plans are made for.
const LINKS: [f64; 3] = [100.0, 200.0, 1000.0];

/// Choice of plans.
#[derive(clap::Args)]
pub(crate) struct Options {
    /// The networks.
    #[arg(value_enum, required = true)]
    networks: Vec<Subject>,
    /// Prints every answer of a plan.
    #[arg(long)]
    layers: bool,
    /// Bundles that share ciphertexts.
    #[arg(long, value_name = "K", value_delimiter = ',', default_values_t = [1, 4, 16])]
    bundles: Vec<u32>,
    /// Megabits a second of the link.
    #[arg(long, value_name = "MBIT", value_delimiter = ',', default_values_t = LINKS)]
    links: Vec<f64>,
    /// Price of a byte beside the link's time, in nanoseconds.
    #[arg(long, value_name = "NS")]
    price: Option<f64>,
    /// Factor by which both parties compute faster than the rates that were measured.
    #[arg(long, value_name = "FACTOR")]
    faster: Option<f64>,
}

/// A network, or a single convolution.
#[derive(Clone, Copy, ValueEnum)]
pub(crate) enum Subject {
    #[value(name = "resnet18")]
    ResNet18,
    #[value(name = "resnet32")]
    ResNet32,
    #[value(name = "wrn22-8")]
    Wrn22,
    Lean9,
    /// For images of 224 pixels.
    #[value(name = "resnet50")]
    ResNet50,
    /// For images of 224 pixels.
    #[value(name = "mobilenetv2")]
    MobileNetV2,
    /// 3x3 on 512 channels of side 4.
    Conv512,
    /// 3x3 on 64 channels of side 32.
    Conv64,
}

impl Subject {
    pub(crate) fn circuit(self) -> Circuit {
        match self {
            Subject::ResNet18 => shapes(&resnet18(32, 10, Policy::Relu, 1)),
            Subject::ResNet32 => shapes(&resnet32(32, 10, Policy::Relu, 1)),
            Subject::Wrn22 => shapes(&wrn22_8(32, 10, Policy::Relu, 1)),
            Subject::Lean9 => shapes(&lean9(32, 10, Policy::Relu, 1)),
            Subject::ResNet50 => shapes(&resnet50_large(224, 1000, Policy::Relu, 1)),
            Subject::MobileNetV2 => shapes(&mobilenet_v2(224, 1000, Policy::Relu, 1)),
            Subject::Conv512 => one(512, 4),
            Subject::Conv64 => one(64, 32),
        }
    }
}

fn shapes(graph: &Graph) -> Circuit {
    let folded = fold(graph).expect("a network of ours folds");
    let lowered = lower(&folded, Pools::Cheapest, None, &Kept::new());
    let lowered = lowered.expect("a network of ours is lowered");
    lowered.real.shapes()
}

fn one(channels: u32, side: u32) -> Circuit {
    let input = Shape::new(channels, side, side);
    circuit_of("convolution", input, [convolution(channels, 3, 1)])
}

/// Prints a line for each network, batch and link.
pub(crate) fn table(options: &Options) {
    for subject in &options.networks {
        let circuit = subject.circuit();
        let value = subject.to_possible_value().expect("no subject is hidden");
        for &bundles in &options.bundles {
            for &mbit in &options.links {
                print!("{} {bundles:2} {mbit:5}: ", value.get_name());
                plan(&circuit, bundles, &link(mbit, options), options.layers);
            }
        }
    }
}

fn link(mbit: f64, options: &Options) -> Link {
    let mut link = Link {
        bits_per_second: mbit * 1e6,
        ..Link::default()
    };
    if let Some(nanoseconds) = options.price {
        link.byte_price = nanoseconds * 1e-9;
    }
    if let Some(factor) = options.faster {
        let rates = &mut link.machine.linear;
        for rate in [
            &mut rates.upload,
            &mut rates.expand,
            &mut rates.kernel,
            &mut rates.kernel_term,
            &mut rates.sum,
            &mut rates.key_switch,
            &mut rates.finish,
            &mut rates.decrypt,
        ] {
            *rate /= factor;
        }
    }
    link
}

/// Makes a plan and prints what a bundle costs with it.
fn plan(circuit: &Circuit, bundles: u32, link: &Link, layers: bool) {
    let start = Instant::now();
    let plan = select(circuit, bundles, link).expect("a plan exists");
    let took = start.elapsed().as_secs_f64();
    let packing = Packing::new(circuit, &plan).expect("the plan fits its circuit");
    let cost = linear::cost(&packing);
    let (up, down, o) = (cost.bytes_up(), cost.bytes_down(), cost.operations());
    let b = f64::from(bundles);
    println!(
        "up {:7.3} down {:7.3} sum {:7.3} MB, in {:6.1} out {:6.1} polys {:7.1} products {:7.1} \
         ks {:7.1} server {:6.3} s per bundle; client {:6.3} wall {:6.3} search {took:.2} s",
        up as f64 / b / 1e6,
        down as f64 / b / 1e6,
        (up + down) as f64 / b / 1e6,
        o.inputs as f64 / b,
        o.outputs as f64 / b,
        o.kernels as f64 / b,
        o.products as f64 / b,
        o.key_switches as f64 / b,
        o.server_micros(&link.machine.linear) * 1e-6 / b,
        o.client_micros(&link.machine.linear) * 1e-6 / b,
        link.seconds(&cost) / b
    );
    if layers {
        print_answers(circuit, &plan, &packing, &cost);
    }
}

fn print_answers(circuit: &Circuit, plan: &Plan, packing: &Packing, cost: &LinearCost) {
    for (i, answer) in plan.answers.iter().enumerate() {
        let layout = &plan.uploads[answer.upload as usize].layout;
        let map = &packing.answers()[i];
        let upload = &packing.uploads()[answer.upload as usize];
        println!(
            "   {:18} G {:4} tile {:2}x{:<2} stride {:2} block {:4} blocks {:2} ob {:2} merge {} \
             | t{} {} in {:4} out {:4} up {:8} down {:8} polys {:5} products {:6} ks {:5} \
             server {:6.1} ms",
            circuit.layers[answer.layer as usize].name,
            layout.group,
            layout.tile.0,
            layout.tile.1,
            layout.row_stride,
            layout.block,
            layout.blocks,
            answer.output_blocks,
            answer.merge,
            upload.tensor().0,
            upload.shape(),
            upload.ciphertexts(),
            map.ciphertexts(),
            cost.upload_bytes[answer.upload as usize],
            cost.answer_bytes[i],
            cost.answers[i].kernels,
            cost.answers[i].products,
            cost.answers[i].key_switches,
            1e-3 * cost.answers[i].server_micros(&Rates::MEASURED)
        );
    }
}
