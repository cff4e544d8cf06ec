//! A plan for a whole circuit, quickly: for tests, benchmarks, and as what a search has to beat.

use super::{MAX_BUNDLES, MAX_MERGED_GROUP, RING_DEGREE, Sketch, TensorUse, conv_terms};
use crate::linear::{Operations, Rates};
use pi_ir::{Circuit, Conv, Layout, OutputPacking, Plan, TensorId, Upload};
use std::collections::BTreeMap;

/// A reasonable plan: for each tensor and each stride of its consumers one upload, whose group,
/// tile, output blocks and merges minimise a rough estimate of the time on a 200 Mbit/s line. The
/// compiler searches further.
///
/// # Errors
/// Names the tensor for which no layout fits the ring, or what else is out of bounds.
pub fn default_plan(circuit: &Circuit, bundles: u32) -> Result<Plan, String> {
    plan_in(RING_DEGREE, circuit, bundles)
}

/// [`default_plan`] in any ring.
pub(crate) fn plan_in(ring_degree: u32, circuit: &Circuit, bundles: u32) -> Result<Plan, String> {
    if !(1..=MAX_BUNDLES).contains(&bundles) {
        return Err(format!("{bundles} bundles, expected 1..={MAX_BUNDLES}"));
    }
    let terms = conv_terms(circuit);
    let mut groups: BTreeMap<(TensorId, (u32, u32)), Vec<usize>> = BTreeMap::new();
    for (index, (layer, _, conv)) in terms.iter().enumerate() {
        if conv.input.0 > *layer {
            return Err(format!(
                "layer {layer} reads tensor {} before it exists",
                conv.input.0
            ));
        }
        groups
            .entry((conv.input, conv.stride))
            .or_default()
            .push(index);
    }
    let mut plan = Plan {
        ring_degree,
        bundles,
        uploads: Vec::new(),
        answers: terms
            .iter()
            .map(|(layer, term, _)| OutputPacking {
                layer: *layer,
                term: *term,
                upload: 0,
                merge: 0,
                output_blocks: 1,
            })
            .collect(),
    };
    // Equal shapes recur through a network; each is searched once.
    let mut known: BTreeMap<String, Choice> = BTreeMap::new();
    for ((tensor, stride), members) in groups {
        let shape = circuit.tensor_shape(tensor);
        let consumers: Vec<&Conv> = members.iter().map(|&index| terms[index].2).collect();
        let key = format!(
            "{shape:?} {stride:?} {:?}",
            consumers
                .iter()
                .map(|c| (c.out_channels, c.groups, c.kernel, c.padding))
                .collect::<Vec<_>>()
        );
        let choice = match known.get(&key) {
            Some(choice) => choice.clone(),
            None => {
                let tensor_use = TensorUse::new(bundles, shape, &consumers).in_ring(ring_degree);
                let found = search(&tensor_use, ring_degree).ok_or_else(|| {
                    format!(
                        "no layout of tensor {} ({shape:?}) with stride {stride:?} fits degree \
                         {ring_degree}",
                        tensor.0
                    )
                })?;
                known.insert(key, found.clone());
                found
            }
        };
        for (&index, merge) in members.iter().zip(&choice.merges) {
            plan.answers[index].upload = plan.uploads.len() as u32;
            plan.answers[index].merge = *merge;
            plan.answers[index].output_blocks = choice.output_blocks;
        }
        plan.uploads.push(Upload {
            tensor,
            layout: choice.layout,
        });
    }
    Ok(plan)
}

#[derive(Clone)]
struct Choice {
    layout: Layout,
    output_blocks: u32,
    merges: Vec<u32>,
}

fn search(tensor_use: &TensorUse<'_>, ring_degree: u32) -> Option<Choice> {
    let (height, width) = tensor_use.most_outputs()?;
    let mut best: Option<(f64, Choice)> = None;
    for group in (0..=ring_degree.ilog2()).map(|bits| 1 << bits) {
        for across in [1, 2, 4].into_iter().filter(|&n| n == 1 || width >= 8 * n) {
            // From one tile down the map to one row each: the first three cuts that fit.
            let mut cuts: Vec<u32> = (1..=height).map(|n| height.div_ceil(n)).collect();
            cuts.dedup();
            let sketches = cuts
                .into_iter()
                .filter_map(|rows| tensor_use.tightest(group, (rows, width.div_ceil(across))));
            for tightest in sketches.take(3) {
                let layout = tightest.upload().layout();
                let most = if layout.blocks == 1 {
                    ring_degree / layout.group / layout.block
                } else {
                    1
                };
                let mut options: Vec<u32> = (0..=most.ilog2()).map(|bits| 1 << bits).collect();
                options.push(most);
                options.dedup();
                for output_blocks in options {
                    let Some(sketch) = tensor_use.sketch(layout, output_blocks) else {
                        continue;
                    };
                    let (micros, merges) = weigh(&sketch, output_blocks);
                    if best.as_ref().is_none_or(|(found, _)| micros < *found) {
                        best = Some((
                            micros,
                            Choice {
                                layout: layout.clone(),
                                output_blocks,
                                merges,
                            },
                        ));
                    }
                }
            }
        }
    }
    best.map(|(_, choice)| choice)
}

/// Microseconds of an upload and its answers, each merged to its best depth: bytes on a link of 200
/// Mbit/s, plus half the server's processor time (two cores).
fn weigh(sketch: &Sketch, output_blocks: u32) -> (f64, Vec<u32>) {
    const MICROS_A_BYTE: f64 = 0.04;
    const RATES: Rates = Rates::MEASURED;
    let upload = sketch.upload();
    // 78 bits, and 138 where the value is forced; 70 and 64.
    let counts = upload.total_counts();
    let degree = upload.ring_degree();
    let bits = (78 * upload.ciphertexts() * degree + 60 * counts.forced) as f64;
    let server = Operations::of_upload(upload).server_micros(&RATES);
    let mut micros = bits / 8.0 * MICROS_A_BYTE + server / 2.0;
    let mut merges = Vec::with_capacity(sketch.consumers());
    for reader in 0..sketch.consumers() {
        let most = match upload.layout().group {
            group if group <= MAX_MERGED_GROUP => group.ilog2(),
            _ => 0,
        };
        let answers = (0..=most).filter_map(|merge| {
            let answer = sketch.answer(reader, merge, output_blocks)?;
            let bits = (70 * answer.ciphertexts() * degree + 64 * answer.len()) as f64;
            let server = Operations::of_answer(upload, &answer).server_micros(&RATES);
            Some((merge, bits / 8.0 * MICROS_A_BYTE + server / 2.0))
        });
        let (merge, time) = answers
            .min_by(|a, b| a.1.total_cmp(&b.1))
            .expect("a sketch has answers that merge nothing");
        merges.push(merge);
        micros += time;
    }
    (micros, merges)
}
