//! The compilation as a whole: all passes in their order.

use crate::examples::Examples;
use crate::fault::Refused;
use crate::pass::calibrate::Magnitudes;
use crate::pass::choose::{Candidate, Search};
use crate::pass::correct::Difference;
use crate::pass::lower::{Pools, lower_and_measure};
use crate::pass::quantise::{Identity, Precision, Scales, WIDEST_WEIGHTS};
use crate::pass::select::{Link, select};
use crate::pass::{fold, guard, input};
use crate::prefix::{Disclosed, PublicPrefix};
use crate::real_circuit::{Gains, RealCircuit};
use crate::{emit, import, prefix};
use pi_ir::{Circuit, Graph, Op, Plan, Reveal, Verified, Weights, limits};

/// Choices left to the compiler, and the goals by which it makes them.
#[derive(Clone, Debug, PartialEq)]
pub struct Options {
    /// Bits of weights and activations.
    pub precision: Precision,
    /// Treatment of average pools.
    pub pools: Pools,
    /// What the client learns.
    pub reveal: Reveal,
    /// The layers that the client computes, if any.
    pub public_prefix: Option<PublicPrefix>,
    /// Numbers of bundles, beside one, for which a plan is made: bundles prepared together may
    /// share ciphertexts.
    pub batches: Vec<u32>,
    /// The link for which the packing is chosen.
    pub link: Link,
    /// Largest accepted `log2` of the probability that an inference loses a value.
    pub failure_limit: f64,
    /// Whether the protocol checks ranges that are not proved.
    pub range_check: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            precision: Precision::default(),
            pools: Pools::default(),
            reveal: Reveal::Label,
            public_prefix: None,
            batches: vec![4, 16],
            link: Link::default(),
            failure_limit: emit::FAILURE_LIMIT,
            range_check: true,
        }
    }
}

/// A compiled network, with the forms it went through.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// Layers of real numbers, those of the public prefix first.
    pub real: RealCircuit,
    /// Largest magnitudes in calibration.
    pub seen: Magnitudes,
    /// What the circuit's tensors and sums hold, over the numbers of `real`, by channel.
    pub gains: Gains,
    /// The circuit's results against those of `real`, on the calibration examples that the choices
    /// were made with.
    pub difference: Difference,
    /// What the compiler gave up for a limit, for the user.
    pub notes: Vec<String>,
    /// The scales chosen.
    pub scales: Scales,
    /// The public circuit.
    pub circuit: Verified<Circuit>,
    /// The numbers of the graph that its public prefix publishes.
    pub disclosed: Vec<Disclosed>,
    /// The server's integers.
    pub weights: Weights,
    /// The packing of a bundle alone.
    pub plan: Plan,
    /// The packings of batches, the smallest first.
    pub batches: Vec<Plan>,
    /// Numbers of bundles that have no packing, and why.
    pub unplanned: Vec<(u32, Refused)>,
    /// `log2` of the probability that one inference loses a value.
    pub failure_log2: f64,
    /// `log2` of the distance by which the answers of `2^20` bundles tell of the weights.
    pub flooding_log2: f64,
}

/// Compiles a graph; deterministic in its arguments.
///
/// # Errors
/// Everything that the first failing pass found, by node or layer.
pub fn compile(
    graph: &Graph,
    calibration: &Examples,
    options: &Options,
) -> Result<Compiled, Refused> {
    check_options(options)?;
    if calibration.inputs.is_empty() {
        return Err(Refused::one("", "no calibration data"));
    }
    import::import(graph)?;
    let graph = &input::prepare(graph, calibration, options.precision.head_room)?;
    let (public, disclosed) = match &options.public_prefix {
        Some(prefix) => {
            let (node, disclosed) = prefix::cut(graph, prefix)?;
            (Some(node), disclosed)
        }
        None => (None, Vec::new()),
    };
    let (folded, public) = fold::fold_behind(graph, public)?;
    let images = calibration.reals(&graph.preprocessing);
    let images = images.map_err(|why| Refused::one("input", why.to_string()))?;
    if let Some(Op::Input { shape }) = graph.nodes.first().map(|node| &node.op)
        && images.iter().any(|image| image.len() != shape.len())
    {
        return Err(Refused::one(
            "input",
            format!("calibration data does not have {shape} values"),
        ));
    }
    let (real, seen) = lower_and_measure(&folded, options.pools, public, &images)?;
    let identity = Identity {
        name: &graph.name,
        preprocessing: &graph.preprocessing,
        classes: &graph.classes,
    };
    let search = Search {
        real: &real,
        seen: &seen,
        identity: &identity,
        calibration,
        images: &images,
        options,
    };
    let equalised = search.equalised()?;
    let plan = select(&equalised.circuit, 1, &options.link)?;
    let mut sizes = options.batches.clone();
    sizes.sort_unstable();
    sizes.dedup();
    let (mut batches, mut unplanned) = (Vec::new(), Vec::new());
    for bundles in sizes {
        // A batch of a large network may have too many ciphertexts, and the network goes without.
        match select(&equalised.circuit, bundles, &options.link) {
            Ok(plan) => batches.push(plan),
            Err(why) => unplanned.push((bundles, why)),
        }
    }
    let plans: Vec<&Plan> = [&plan].into_iter().chain(&batches).collect();
    let widened = search.widened(equalised, &plans)?;
    let (chosen, notes) = search.bounded(widened)?;
    let Candidate {
        gains,
        scales,
        circuit,
        weights,
        difference,
        ..
    } = chosen;
    let mut circuit = circuit.with_reveal(options.reveal);
    guard::guard(&mut circuit, &weights, options.range_check);
    let (circuit, failure_log2) = emit::check(circuit, &weights, options.failure_limit)?;
    let flooding_log2 = emit::check_flooding(&circuit, &plans)?;
    Ok(Compiled {
        real,
        seen,
        gains,
        difference,
        notes,
        scales,
        circuit,
        disclosed,
        weights,
        plan,
        batches,
        unplanned,
        failure_log2,
        flooding_log2,
    })
}

fn check_options(options: &Options) -> Result<(), Refused> {
    let Precision {
        weight_bits,
        activation_bits,
        head_room,
        proved_sign_bits,
    } = options.precision;
    let checks = [
        (
            (2..=WIDEST_WEIGHTS).contains(&weight_bits.least()),
            "weight bits must be between 2 and 15",
        ),
        (
            (4..=20).contains(&activation_bits),
            "activation bits must be between 4 and 20",
        ),
        (
            (2..=16).contains(&head_room),
            "head room must be between 2 and 16 bits, for ranges that were observed prove nothing",
        ),
        (
            proved_sign_bits <= 32,
            "sign circuits for the sake of a proof may have at most 32 bits",
        ),
        (
            options.batches.iter().all(|size| (2..=64).contains(size))
                && options.batches.len() <= limits::BATCHES,
            "batches must have between 2 and 64 bundles, in at most 16 sizes",
        ),
    ];
    let wrong = checks.into_iter().filter(|(holds, _)| !holds);
    let faults = wrong
        .map(|(_, what)| crate::fault::Fault::new("", what))
        .collect();
    Refused::unless_empty(faults, ())
}
