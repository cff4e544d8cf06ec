//! The packing plan, searched per tensor with the protocol's own cost formulas.
//!
//! For each tensor and each stride of its consumers there is one upload. Candidates are all group sizes, cuts of the map
//! into tiles, output blocks, and depths of merging; a candidate's cost is the time of its exact bytes on the link plus
//! the processor time that the formulas predict. Equal shapes are searched once.

use crate::fault::{Fault, Refused};
use pi_ir::{
    Answer, Circuit, Conv, Layer, Layout, Plan, Range, Shape, Step, TensorId, Term, Upload,
};
use pi_protocol::layout::{self, Packing, RING_DEGREE, conv_output, layout_for};
use pi_protocol::linear;
use rayon::prelude::*;
use std::collections::{BTreeMap, HashMap};

/// What the packing is chosen for.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Link {
    /// Bits per second between the parties.
    pub bits_per_second: f64,
    /// Cores of the server that work on one exchange.
    pub server_cores: f64,
}

impl Default for Link {
    fn default() -> Self {
        Link {
            bits_per_second: 200e6,
            server_cores: 2.0,
        }
    }
}

/// Cuts of a map that are tried per group size and width of tile, from the largest tile that fits down.
const CUTS: usize = 4;
/// Layouts whose consumers' depths of merging are tried one by one.
const FINALISTS: usize = 6;

/// The cheapest plan found.
///
/// # Errors
/// By name, each tensor that fits no layout; faults of the plan as a whole.
pub fn select(circuit: &Circuit, bundles: u32, link: &Link) -> Result<Plan, Refused> {
    let mut members: BTreeMap<(TensorId, (u32, u32)), Vec<usize>> = BTreeMap::new();
    let mut convs: Vec<&Conv> = Vec::new();
    let mut answers = Vec::new();
    for (layer, term, conv) in conv_terms(circuit) {
        members
            .entry((conv.input, conv.stride))
            .or_default()
            .push(convs.len());
        convs.push(conv);
        answers.push(Answer {
            layer,
            term,
            upload: 0,
            merge: 0,
            output_blocks: 1,
        });
    }
    let mut plan = Plan {
        ring_degree: RING_DEGREE,
        bundles,
        uploads: Vec::new(),
        answers,
    };
    let mut known: HashMap<Problem, Option<Choice>> = HashMap::new();
    let mut faults = Vec::new();
    for ((tensor, stride), members) in members {
        let problem = Problem {
            shape: circuit.tensor_shape(tensor),
            consumers: members.iter().map(|&i| from_tensor_0(convs[i])).collect(),
            bundles,
        };
        let found = known
            .entry(problem)
            .or_insert_with_key(|problem| problem.search(link));
        let Some(choice) = found else {
            let name = match tensor.0 {
                0 => "input".into(),
                layer => circuit.layers[layer as usize - 1].name.clone(),
            };
            let shape = circuit.tensor_shape(tensor);
            faults.push(Fault::new(
                name,
                format!("no packing of this {shape} tensor for stride {}x{} fits {RING_DEGREE} coefficients: use a smaller map or kernel", stride.0, stride.1),
            ));
            continue;
        };
        for (&index, &merge) in members.iter().zip(&choice.merges) {
            plan.answers[index].upload = plan.uploads.len() as u32;
            plan.answers[index].merge = merge;
            plan.answers[index].output_blocks = choice.output_blocks;
        }
        plan.uploads.push(Upload {
            tensor,
            layout: choice.layout.clone(),
        });
    }
    if faults.is_empty() {
        faults = (layout::verify_plan(circuit, &plan).into_iter())
            .map(|why| Fault::new("", why))
            .collect();
    }
    Refused::unless_empty(faults, plan)
}

/// Layer, term and convolution, in the order of [`Plan::answers`].
pub(crate) fn conv_terms(circuit: &Circuit) -> impl Iterator<Item = (u32, u32, &Conv)> {
    let layers = circuit.layers.iter().enumerate();
    layers.flat_map(|(l, layer)| {
        let terms = layer.terms.iter().enumerate();
        terms.filter_map(move |(t, term)| match term {
            Term::Conv(conv) => Some((l as u32, t as u32, conv)),
            Term::Residual { .. } => None,
        })
    })
}

fn from_tensor_0(conv: &Conv) -> Conv {
    Conv {
        input: TensorId(0),
        ..conv.clone()
    }
}

/// One tensor with the convolutions that read one upload of it.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Problem {
    shape: Shape,
    consumers: Vec<Conv>,
    bundles: u32,
}

#[derive(Clone)]
struct Choice {
    layout: Layout,
    output_blocks: u32,
    /// Per consumer.
    merges: Vec<u32>,
}

impl Problem {
    fn search(&self, link: &Link) -> Option<Choice> {
        let candidates: Vec<Choice> = (0..=RING_DEGREE.ilog2())
            .into_par_iter()
            .flat_map(|bits| self.candidates(1 << bits))
            .collect();
        let circuit = self.circuit()?;
        let mut weighed: Vec<(f64, Choice)> = candidates
            .into_par_iter()
            .filter_map(|choice| self.merged_alike(&circuit, choice, link))
            .collect();
        // Stable, and candidates come in a fixed order: the same circuit gets the same plan.
        weighed.sort_by(|a, b| a.0.total_cmp(&b.0));
        weighed.truncate(FINALISTS);
        let merged = weighed
            .into_par_iter()
            .map(|start| self.merged(&circuit, start, link));
        let merged: Vec<(f64, Choice)> = merged.collect();
        merged
            .into_iter()
            .min_by(|a, b| a.0.total_cmp(&b.0))
            .map(|(_, choice)| choice)
    }

    /// Layouts of one group size, with their output blocks, merged all the way.
    fn candidates(&self, group: u32) -> Vec<Choice> {
        let consumers: Vec<&Conv> = self.consumers.iter().collect();
        let outputs: Vec<Shape> = consumers
            .iter()
            .filter_map(|conv| conv_output(self.shape, conv))
            .collect();
        let height = outputs.iter().map(|s| s.h).max().unwrap_or(0);
        let width = outputs.iter().map(|s| s.w).max().unwrap_or(0);
        let cuts = |side: u32| {
            let mut cuts: Vec<u32> = (1..=side).map(|n| side.div_ceil(n)).collect();
            cuts.dedup();
            cuts
        };
        let mut found = Vec::new();
        for columns in cuts(width).into_iter().take(4) {
            let layouts = cuts(height)
                .into_iter()
                .filter_map(|rows| layout_for(self.shape, &consumers, group, (rows, columns)));
            for mut layout in layouts.take(CUTS) {
                let fit = RING_DEGREE / (layout.block * layout.group);
                let tiles = height.div_ceil(layout.tile.0) * width.div_ceil(layout.tile.1);
                layout.blocks = fit.min(tiles * self.bundles);
                let most = if layout.blocks == 1 { fit } else { 1 };
                let mut blocks: Vec<u32> = (0..=most.ilog2()).map(|bits| 1 << bits).collect();
                blocks.push(most);
                blocks.dedup();
                found.extend(blocks.into_iter().map(|output_blocks| {
                    Choice {
                        layout: layout.clone(),
                        output_blocks,
                        merges: self
                            .consumers
                            .iter()
                            .map(|conv| most_merge(group, conv))
                            .collect(),
                    }
                }));
            }
        }
        found
    }

    /// The best depth of merging that is the same for all consumers, as far as each of them goes.
    fn merged_alike(
        &self,
        circuit: &Circuit,
        choice: Choice,
        link: &Link,
    ) -> Option<(f64, Choice)> {
        let alike = |depth: u32| {
            let mut choice = choice.clone();
            choice
                .merges
                .iter_mut()
                .for_each(|merge| *merge = depth.min(*merge));
            Some((self.seconds(circuit, &choice, link)?, choice))
        };
        let most = choice.merges.iter().copied().max()?;
        let depths = (0..=most).filter_map(alike);
        depths.min_by(|a, b| a.0.total_cmp(&b.0))
    }

    /// The best depth of merging, consumer by consumer.
    fn merged(&self, circuit: &Circuit, start: (f64, Choice), link: &Link) -> (f64, Choice) {
        let mut best = start;
        if self.consumers.len() == 1 {
            return best;
        }
        for (consumer, conv) in self.consumers.iter().enumerate() {
            for merge in 0..=most_merge(best.1.layout.group, conv) {
                let mut choice = best.1.clone();
                choice.merges[consumer] = merge;
                match self.seconds(circuit, &choice, link) {
                    Some(seconds) if seconds < best.0 => best = (seconds, choice),
                    _ => {}
                }
            }
        }
        best
    }

    /// Time on the wire and on the server, for one exchange; `None` if the layout is not legal.
    fn seconds(&self, circuit: &Circuit, choice: &Choice, link: &Link) -> Option<f64> {
        let answers = choice
            .merges
            .iter()
            .enumerate()
            .map(|(layer, &merge)| Answer {
                layer: layer as u32,
                term: 0,
                upload: 0,
                merge,
                output_blocks: choice.output_blocks,
            });
        let plan = Plan {
            ring_degree: RING_DEGREE,
            bundles: self.bundles,
            uploads: vec![Upload {
                tensor: TensorId(0),
                layout: choice.layout.clone(),
            }],
            answers: answers.collect(),
        };
        let cost = linear::cost(&Packing::new(circuit, &plan).ok()?);
        let bytes =
            cost.upload_bytes.iter().sum::<usize>() + cost.answer_bytes.iter().sum::<usize>();
        Some(
            8.0 * bytes as f64 / link.bits_per_second
                + cost.server_micros * 1e-6 / link.server_cores,
        )
    }

    /// The consumers as a circuit of their own, which is all that a packing looks at.
    fn circuit(&self) -> Option<Circuit> {
        let layer = |(index, conv): (usize, &Conv)| {
            Some(Layer {
                name: index.to_string(),
                terms: vec![Term::Conv(conv.clone())],
                pool: None,
                shape: conv_output(self.shape, conv)?,
                bound_bits: 0,
                range: Range::Proved,
                step: Step::Output { frac_bits: 0 },
            })
        };
        Some(Circuit {
            name: String::new(),
            input: self.shape,
            input_frac_bits: 0,
            mean: Vec::new(),
            std: Vec::new(),
            classes: Vec::new(),
            layers: self
                .consumers
                .iter()
                .enumerate()
                .map(layer)
                .collect::<Option<_>>()?,
        })
    }
}

/// Merging more output channels than there are only costs key switches.
fn most_merge(group: u32, conv: &Conv) -> u32 {
    group
        .ilog2()
        .min(conv.out_channels.next_power_of_two().ilog2())
}

#[cfg(test)]
mod tests {
    use super::*;
    use pi_ir::random::{Options, circuit};

    fn seconds(circuit: &Circuit, plan: &Plan, link: &Link) -> f64 {
        let cost = linear::cost(&Packing::new(circuit, plan).unwrap());
        let bytes = cost
            .upload_bytes
            .iter()
            .chain(&cost.answer_bytes)
            .sum::<usize>();
        8.0 * bytes as f64 / link.bits_per_second + cost.server_micros * 1e-6 / link.server_cores
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
                    seconds(&circuit, &plan, &link),
                    seconds(&circuit, &default, &link),
                );
                assert!(
                    found <= default * 1.0001,
                    "seed {seed}, {bundles} bundles: {found} s against {default} s"
                );
            }
        }
    }

    #[test]
    fn a_slow_link_gets_fewer_bytes_and_a_fast_one_less_work() {
        let conv = |input, out_channels, kernel| {
            Term::Conv(Conv {
                input: TensorId(input),
                out_channels,
                kernel: (kernel, kernel),
                stride: (1, 1),
                padding: pi_ir::Padding::same(kernel / 2),
                weight_bits: 7,
            })
        };
        let problem = Problem {
            shape: Shape::new(64, 8, 8),
            consumers: vec![],
            bundles: 1,
        };
        let mut circuit = problem.circuit().unwrap();
        circuit.layers.push(Layer {
            name: "only".into(),
            terms: vec![conv(0, 64, 3)],
            pool: None,
            shape: problem.shape,
            bound_bits: 0,
            range: Range::Proved,
            step: Step::Output { frac_bits: 0 },
        });
        let cost = |bits_per_second| {
            let link = Link {
                bits_per_second,
                ..Link::default()
            };
            let plan = select(&circuit, 1, &link).unwrap();
            let cost = linear::cost(&Packing::new(&circuit, &plan).unwrap());
            let bytes = cost
                .upload_bytes
                .iter()
                .chain(&cost.answer_bytes)
                .sum::<usize>();
            (bytes, cost.server_micros)
        };
        let (slow, fast) = (cost(5e6), cost(1e11));
        assert!(slow.0 < fast.0 && slow.1 > fast.1, "{slow:?} {fast:?}");
    }
}
