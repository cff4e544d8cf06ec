//! Choosing layouts: the smallest legal layout for a tile, and a plan for a whole circuit.

use super::upload::{Builder, Taps};
use super::{AnswerMap, Consumer, MAX_BUNDLES, RING_DEGREE, conv_output, conv_terms};
use pi_ir::{Answer, Circuit, Conv, Layout, Padding, Plan, Shape, TensorId, Upload};
use std::collections::BTreeMap;

/// The tightest layout of a tensor of `shape` for all `consumers`, in the standard ring and for one
/// bundle: least padding, least row stride, least block, most blocks. `None` if the consumers differ in
/// stride, if one does not fit the shape, or if a tile of `tile` outputs (cut to the map) does not
/// fit a ciphertext with `group` channels.
pub fn layout_for(
    shape: Shape,
    consumers: &[&Conv],
    group: u32,
    tile: (u32, u32),
) -> Option<Layout> {
    layout_in(RING_DEGREE, 1, shape, consumers, group, tile)
}

/// [`layout_for`] in any ring, for any number of bundles.
pub(crate) fn layout_in(
    ring_degree: u32,
    bundles: u32,
    shape: Shape,
    consumers: &[&Conv],
    group: u32,
    tile: (u32, u32),
) -> Option<Layout> {
    let stride = consumers.first()?.stride;
    let outputs: Vec<Shape> = consumers
        .iter()
        .map(|conv| conv_output(shape, conv))
        .collect::<Option<_>>()?;
    if tile.0 == 0 || tile.1 == 0 || consumers.iter().any(|conv| conv.stride != stride) {
        return None;
    }
    let mut padding = Padding {
        top: consumers.iter().map(|conv| conv.padding.top).max()?,
        left: consumers.iter().map(|conv| conv.padding.left).max()?,
        bottom: 0,
        right: 0,
    };
    let height = outputs.iter().map(|s| s.h).max()?;
    let width = outputs.iter().map(|s| s.w).max()?;
    let tile = (tile.0.min(height), tile.1.min(width));
    let mut layout = Layout {
        group,
        stride,
        padding,
        window: (1, 1),
        tile,
        row_stride: tile.1,
        block: 1,
        blocks: 1,
    };
    let window = |taps: fn(&Layout, &Conv) -> Taps| {
        consumers
            .iter()
            .map(|conv| taps(&layout, conv).window())
            .max()
    };
    layout.window = (window(Taps::vertical)?, window(Taps::horizontal)?);
    // The least padding after the map for which no consumer reads beyond the virtual map.
    let after = |n: u32, before: u32, stride: u32, virtual_side: u32| {
        ((virtual_side - 1) * stride + 1).saturating_sub(n + before)
    };
    let side = |taps: fn(&Layout, &Conv) -> Taps, output: fn(&Shape) -> u32| {
        let each = consumers.iter().zip(&outputs);
        each.map(|(conv, shape)| output(shape) + taps(&layout, conv).window() - 1)
            .max()
    };
    padding.bottom = after(
        shape.h,
        padding.top,
        stride.0,
        side(Taps::vertical, |s| s.h)?,
    );
    padding.right = after(
        shape.w,
        padding.left,
        stride.1,
        side(Taps::horizontal, |s| s.w)?,
    );
    layout.padding = padding;

    // From the tile's width up, the first row stride at which nothing collides; at the full width of what
    // a tile reads, nothing can.
    let rows = tile.0 + layout.window.0 - 1;
    let columns = tile.1 + layout.window.1 - 1;
    for row_stride in tile.1..=columns {
        let block = u64::from(rows - 1) * u64::from(row_stride) + u64::from(columns);
        let blocks = u64::from(ring_degree) / block.saturating_mul(u64::from(group)).max(1);
        if blocks == 0 {
            return None;
        }
        let tiles = u64::from(height.div_ceil(tile.0)) * u64::from(width.div_ceil(tile.1));
        layout.row_stride = row_stride;
        layout.block = block as u32;
        layout.blocks = blocks.min(tiles * u64::from(bundles)) as u32;
        if trial(ring_degree, bundles, shape, consumers, &layout, 1).is_some() {
            return Some(layout);
        }
    }
    None
}

/// Ciphertexts and free and forced coefficients of one upload, if the layout is legal, with the answers'
/// shapes and rows.
struct Trial {
    ciphertexts: u64,
    rows: u64,
    groups: u64,
    free: u64,
    forced: u64,
}

fn trial(
    ring_degree: u32,
    bundles: u32,
    shape: Shape,
    consumers: &[&Conv],
    layout: &Layout,
    output_blocks: u32,
) -> Option<Trial> {
    let plan = Plan {
        ring_degree,
        bundles,
        uploads: Vec::new(),
        answers: Vec::new(),
    };
    let answer = Answer {
        layer: 0,
        term: 0,
        upload: 0,
        merge: 0,
        output_blocks,
    };
    let consumers: Vec<Consumer<'_>> = consumers
        .iter()
        .enumerate()
        .map(|(index, conv)| {
            Some(Consumer {
                index,
                conv,
                answer: &answer,
                output: conv_output(shape, conv)?,
            })
        })
        .collect::<Option<_>>()?;
    let upload = Upload {
        tensor: TensorId(0),
        layout: layout.clone(),
    };
    let map = Builder::new(&plan, &[shape])
        .add(&upload, &consumers)
        .ok()?;
    for consumer in &consumers {
        AnswerMap::new(&map, consumer).ok()?;
    }
    let counts = map.total_counts();
    Some(Trial {
        ciphertexts: map.ciphertexts() as u64,
        rows: map.rows() as u64,
        groups: map.groups() as u64,
        free: counts.free as u64,
        forced: counts.forced as u64,
    })
}

/// A sane plan: for each tensor and each stride of its consumers one upload, whose group, tile, output
/// blocks and merges minimise a rough estimate of time on a 200 Mbit/s line. The compiler searches further.
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
            .map(|(layer, term, _)| Answer {
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
                .map(|c| (c.out_channels, c.kernel, c.padding))
                .collect::<Vec<_>>()
        );
        let choice = match known.get(&key) {
            Some(choice) => choice.clone(),
            None => {
                let found = search(ring_degree, bundles, shape, &consumers).ok_or_else(|| {
                    format!(
                        "no layout of tensor {} ({shape:?}) with stride {stride:?} fits degree {ring_degree}",
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

fn search(ring_degree: u32, bundles: u32, shape: Shape, consumers: &[&Conv]) -> Option<Choice> {
    let outputs: Vec<Shape> = consumers
        .iter()
        .map(|conv| conv_output(shape, conv))
        .collect::<Option<_>>()?;
    let height = outputs.iter().map(|s| s.h).max()?;
    let width = outputs.iter().map(|s| s.w).max()?;
    let mut best: Option<(f64, Choice)> = None;
    for group in (0..=ring_degree.ilog2()).map(|bits| 1 << bits) {
        for across in [1, 2, 4].into_iter().filter(|&n| n == 1 || width >= 8 * n) {
            // From one tile down the map to one row each: the first three cuts that fit.
            let mut cuts: Vec<u32> = (1..=height).map(|n| height.div_ceil(n)).collect();
            cuts.dedup();
            let layouts = cuts.into_iter().filter_map(|rows| {
                layout_in(
                    ring_degree,
                    bundles,
                    shape,
                    consumers,
                    group,
                    (rows, width.div_ceil(across)),
                )
            });
            for layout in layouts.take(3) {
                let most = if layout.blocks == 1 {
                    ring_degree / layout.group / layout.block
                } else {
                    1
                };
                let mut options: Vec<u32> = (0..=most.ilog2()).map(|bits| 1 << bits).collect();
                options.push(most);
                options.dedup();
                for output_blocks in options {
                    let Some(trial) = trial(
                        ring_degree,
                        bundles,
                        shape,
                        consumers,
                        &layout,
                        output_blocks,
                    ) else {
                        continue;
                    };
                    let weighing = Weighing {
                        ring_degree,
                        layout: &layout,
                        trial: &trial,
                        output_blocks,
                    };
                    let (micros, merges) = weighing.best_merges(consumers, &outputs);
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

/// Time of an upload and its answers: bytes on a link of 200 Mbit/s, plus half the server's CPU time (two
/// cores) by the cost model measured for these operations (design page on homomorphic costs:
/// 48 us and more for a weight polynomial, 52 us for a product, 390 us for a key switch).
struct Weighing<'a> {
    ring_degree: u32,
    layout: &'a Layout,
    trial: &'a Trial,
    output_blocks: u32,
}

impl Weighing<'_> {
    /// Microseconds for a byte at 200 Mbit/s.
    const WIRE: f64 = 0.04;

    fn best_merges(&self, consumers: &[&Conv], outputs: &[Shape]) -> (f64, Vec<u32>) {
        let degree = f64::from(self.ring_degree);
        let trial = self.trial;
        // 78 bits, and 138 where the value is forced.
        let bits = 78.0 * trial.ciphertexts as f64 * degree + 60.0 * trial.forced as f64;
        let mut micros = bits / 8.0 * Self::WIRE + 125.0 * trial.ciphertexts as f64;
        debug_assert!(trial.free + trial.forced <= trial.ciphertexts * u64::from(self.ring_degree));
        let mut merges = Vec::with_capacity(consumers.len());
        for (conv, output) in consumers.iter().zip(outputs) {
            let (merge, time) = (0..=self.layout.group.ilog2())
                .map(|merge| (merge, self.answer_micros(conv, *output, merge)))
                .min_by(|a, b| a.1.total_cmp(&b.1))
                .expect("merge 0 is always possible");
            merges.push(merge);
            micros += time;
        }
        (micros, merges)
    }

    fn answer_micros(&self, conv: &Conv, output: Shape, merge: u32) -> f64 {
        let (rows, groups) = (self.trial.rows as f64, self.trial.groups as f64);
        let places = f64::from(1u32 << merge);
        let chunks = (f64::from(output.c) / (places * f64::from(self.output_blocks))).ceil();
        let polynomials = (f64::from(output.c) / f64::from(self.output_blocks)).ceil();
        let taps = f64::from(conv.kernel.0) * f64::from(conv.kernel.1);
        let weight =
            48.0 + 0.0026 * taps * f64::from(self.layout.group) * f64::from(self.output_blocks);
        let cpu = groups * polynomials * weight
            + rows * groups * polynomials * 20.0
            + rows * polynomials * 52.0
            + rows * chunks * ((places - 1.0) * 390.0 + 300.0 * f64::from(merge) + 600.0);
        let bits = rows * chunks * 70.0 * f64::from(self.ring_degree);
        cpu / 2.0 + bits / 8.0 * Self::WIRE
    }
}
