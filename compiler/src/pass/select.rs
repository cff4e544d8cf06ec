//! Searches the packing plan, tensor by tensor, with the protocol's own cost formulas.
//!
//! For each tensor and each stride of its consumers there is one upload. Candidates are all group
//! sizes, cuts of the map into tiles, blocks and output blocks; each consumer merges to its own
//! best depth. The cost of a candidate is counted on its own index map, bytes and operations
//! exactly, and weighed by [`Link`]. The weight is a sum over uploads and answers, so the best
//! choice for each tensor is the best plan for all. Equal shapes are searched once.

mod link;

pub use link::Link;

use crate::fault::{Fault, Refused};
use pi_ir::{Circuit, Conv, Layout, OutputPacking, Plan, Shape, TensorId, Term, Upload};
use pi_protocol::layout::{self, MAX_MERGED_GROUP, RING_DEGREE, Sketch, TensorUse, conv_output};
use pi_protocol::linear::{self, Operations};
use rayon::prelude::*;
use std::collections::{BTreeMap, HashMap};

/// Cuts of a map that are tried per group size: heights for each width, from the largest tile that
/// fits down.
const CUTS: usize = 8;
/// Cuts of the stack of all bundles' maps, likewise.
const STACKS: usize = 4;
/// Widths of tiles that are tried, from the map's own down.
const WIDTHS: usize = 4;
/// Up to this many output blocks every number is tried, above it powers of two and the most.
const FEW_BLOCKS: u32 = 16;

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
        answers.push(OutputPacking {
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
            .or_insert_with_key(|problem| problem.search(link).into_iter().next());
        let Some(choice) = found else {
            let name = match tensor.0 {
                0 => "input".into(),
                layer => circuit.layers[layer as usize - 1].name.clone(),
            };
            let shape = circuit.tensor_shape(tensor);
            faults.push(Fault::new(
                name,
                format!(
                    "no packing of this {shape} tensor for stride {}x{} fits {RING_DEGREE} \
                     coefficients: use a smaller map or kernel",
                    stride.0, stride.1
                ),
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

/// The best packing of one upload that a plan did not take.
#[derive(Clone, Debug, PartialEq)]
pub struct Alternative {
    /// Layout of the upload.
    pub layout: Layout,
    /// Output blocks of its answers.
    pub output_blocks: u32,
    /// Depth of merging of each answer, in the plan's order.
    pub merges: Vec<u32>,
    /// Bytes of upload and answers.
    pub bytes: usize,
    /// Operations of upload and answers.
    pub operations: Operations,
}

/// For each upload of a plan, the cheapest packing for `link` that differs from the plan's in its
/// layout or output blocks; `None` where no other fits.
pub fn alternatives(circuit: &Circuit, plan: &Plan, link: &Link) -> Vec<Option<Alternative>> {
    let mut known: HashMap<Problem, Vec<Choice>> = HashMap::new();
    let convs: Vec<&Conv> = conv_terms(circuit).map(|(_, _, conv)| conv).collect();
    let uploads = plan.uploads.iter().enumerate();
    let alternative = |(index, upload): (usize, &Upload)| {
        let readers = convs.iter().zip(&plan.answers);
        let mut readers = readers.filter(|(_, answer)| answer.upload as usize == index);
        let problem = Problem {
            shape: circuit.tensor_shape(upload.tensor),
            consumers: readers
                .clone()
                .map(|(conv, _)| from_tensor_0(conv))
                .collect(),
            bundles: plan.bundles,
        };
        let output_blocks = readers.next()?.1.output_blocks;
        let found = known
            .entry(problem)
            .or_insert_with_key(|problem| problem.search(link));
        let other = |choice: &&Choice| {
            (&choice.layout, choice.output_blocks) != (&upload.layout, output_blocks)
        };
        found.iter().find(other).map(|choice| Alternative {
            layout: choice.layout.clone(),
            output_blocks: choice.output_blocks,
            merges: choice.merges.clone(),
            bytes: choice.bytes,
            operations: choice.operations,
        })
    };
    uploads.map(alternative).collect()
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
    bytes: usize,
    operations: Operations,
}

/// A layout whose depths of merging are still open.
struct Candidate {
    layout: Layout,
    output_blocks: u32,
}

impl Problem {
    /// The best two choices, the better one first.
    fn search(&self, link: &Link) -> Vec<Choice> {
        let consumers: Vec<&Conv> = self.consumers.iter().collect();
        let tensor_use = self.tensor_use(&consumers);
        let outputs: Option<Vec<Shape>> = consumers
            .iter()
            .map(|conv| conv_output(self.shape, conv))
            .collect();
        let Some(outputs) = outputs else {
            return Vec::new();
        };
        let height = outputs.iter().map(|s| s.h).max().unwrap_or(0);
        let width = outputs.iter().map(|s| s.w).max().unwrap_or(0);
        let sizes: Vec<(u32, u32)> = (0..=RING_DEGREE.ilog2())
            .flat_map(|bits| {
                let widths = cuts(width).into_iter().take(WIDTHS);
                widths.map(move |columns| (1 << bits, columns))
            })
            .collect();
        let stack = match self.bundles {
            1 => None,
            _ => tensor_use.stack_rows(),
        };
        let stacked: Vec<u32> = cuts(stack.unwrap_or(0))
            .into_iter()
            .filter(|&rows| rows > height)
            .collect();
        let sketches: Vec<Sketch> = sizes
            .into_par_iter()
            .flat_map_iter(|(group, columns)| {
                let tightest = |rows: u32| tensor_use.tightest(group, (rows, columns));
                let alone = cuts(height).into_iter().filter_map(tightest).take(CUTS);
                let stacked = stacked.iter().copied().filter_map(tightest).take(STACKS);
                alone.chain(stacked).collect::<Vec<_>>()
            })
            .collect();
        let mut bounds: Vec<(f64, Candidate)> = sketches
            .into_par_iter()
            .flat_map_iter(|sketch| self.candidates(&consumers, sketch, link))
            .collect();
        bounds.sort_by(|a, b| a.0.total_cmp(&b.0));
        let mut best: Vec<(f64, Choice)> = Vec::new();
        for (bound, candidate) in bounds {
            if best.len() == 2 && bound > best[1].0 {
                break;
            }
            let weighed = self.weigh(&consumers, candidate, link);
            // Stable, and candidates come in a fixed order: the same circuit gets the same plan.
            best.extend(weighed);
            best.sort_by(|a, b| a.0.total_cmp(&b.0));
            best.truncate(2);
        }
        best.into_iter().map(|(_, choice)| choice).collect()
    }

    fn tensor_use<'a>(&self, consumers: &'a [&'a Conv]) -> TensorUse<'a> {
        TensorUse::new(self.bundles, self.shape, consumers)
    }

    /// A sketch with as many blocks as fit, and its layout with one block and each number of output
    /// blocks; each with a lower bound of its weight: output blocks only add zeros to the upload.
    fn candidates(
        &self,
        consumers: &[&Conv],
        sketch: Sketch,
        link: &Link,
    ) -> Vec<(f64, Candidate)> {
        let layout = sketch.upload().layout();
        let fit = RING_DEGREE / (layout.block * layout.group);
        let single = Layout {
            blocks: 1,
            ..layout.clone()
        };
        // One output block in a ciphertext of one block is never better than several blocks.
        let (several, fewest) = (layout.blocks > 1, if layout.blocks > 1 { 2 } else { 1 });
        let numbers =
            (fewest..=fit).filter(|&n| n <= FEW_BLOCKS || n.is_power_of_two() || n == fit);
        let mut found = Vec::new();
        let mut push = |sketch: &Sketch, layout: &Layout, output_blocks| {
            let choice = self.merged(consumers, sketch, output_blocks, link);
            found.extend(choice.map(|(weight, _)| {
                let layout = layout.clone();
                (
                    weight,
                    Candidate {
                        layout,
                        output_blocks,
                    },
                )
            }));
        };
        if several {
            push(&sketch, layout, 1);
            if fit > 1
                && let Some(sketch) = self.tensor_use(consumers).sketch(&single, 1)
            {
                numbers.for_each(|n| push(&sketch, &single, n));
            }
        } else {
            numbers.for_each(|n| push(&sketch, &single, n));
        }
        found
    }

    /// A candidate on its own map; `None` if it is not legal.
    fn weigh(
        &self,
        consumers: &[&Conv],
        candidate: Candidate,
        link: &Link,
    ) -> Option<(f64, Choice)> {
        let Candidate {
            layout,
            output_blocks,
        } = candidate;
        let sketch = self.tensor_use(consumers).sketch(&layout, output_blocks)?;
        self.merged(consumers, &sketch, output_blocks, link)
    }

    /// The choice with each consumer merged to its best depth, and its weight.
    fn merged(
        &self,
        consumers: &[&Conv],
        sketch: &Sketch,
        output_blocks: u32,
        link: &Link,
    ) -> Option<(f64, Choice)> {
        let upload = sketch.upload();
        let mut choice = Choice {
            layout: upload.layout().clone(),
            output_blocks,
            merges: Vec::with_capacity(consumers.len()),
            bytes: linear::uploads_bytes(upload),
            operations: Operations::of_upload(upload),
        };
        for (reader, conv) in consumers.iter().enumerate() {
            let answers = (0..=most_merge(choice.layout.group, conv)).filter_map(|merge| {
                let answer = sketch.answer(reader, merge, output_blocks)?;
                let bytes = linear::answers_bytes(&answer);
                let operations = Operations::of_answer(upload, &answer);
                Some((link.weight(bytes, &operations), merge, bytes, operations))
            });
            let (_, merge, bytes, operations) = answers.min_by(|a, b| a.0.total_cmp(&b.0))?;
            choice.merges.push(merge);
            choice.bytes += bytes;
            choice.operations += operations;
        }
        Some((link.weight(choice.bytes, &choice.operations), choice))
    }
}

/// Sides of tiles that cut a map's side evenly, the largest first.
fn cuts(side: u32) -> Vec<u32> {
    let mut cuts: Vec<u32> = (1..=side).map(|n| side.div_ceil(n)).collect();
    cuts.dedup();
    cuts
}

/// Merging more output channels than there are only costs key switches.
fn most_merge(group: u32, conv: &Conv) -> u32 {
    if group > MAX_MERGED_GROUP {
        return 0;
    }
    group
        .ilog2()
        .min(conv.out_channels.next_power_of_two().ilog2())
}

#[cfg(test)]
mod tests;
