//! Choosing layouts: the smallest legal layout for a tile, and a plan for a whole circuit.

use super::upload::{Builder, Taps, pitch};
use super::{
    AnswerMap, Consumer, MAX_BUNDLES, MAX_MERGED_GROUP, MAX_SIDE, RING_DEGREE, UploadMap,
    conv_output, conv_terms,
};
use crate::linear::{Operations, Rates};
use pi_ir::{Circuit, Conv, Layout, OutputPacking, Padding, Plan, Shape, TensorId, Upload};
use std::collections::BTreeMap;

/// The tightest layout of a tensor of `shape` for all `consumers`, in the standard ring and for one
/// bundle: least padding, least row stride, least block, most blocks. `None` if the consumers
/// differ in stride, if one does not fit the shape, or if a tile of `tile` outputs (cut to the map)
/// does not fit a ciphertext with `group` channels.
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
    let sketch = tightest(ring_degree, bundles, shape, consumers, group, tile)?;
    Some(sketch.upload.layout().clone())
}

/// The layout of one tile of `tile` outputs (cut to what there is) with the least padding and
/// window, no row stride or blocks yet; and the rows and columns of outputs that tiles have to
/// cover: of one bundle, or of the stack if a tile has more rows.
fn one_tile(
    bundles: u32,
    shape: Shape,
    consumers: &[&Conv],
    group: u32,
    tile: (u32, u32),
) -> Option<(Layout, (u32, u32))> {
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
    let tile = (tile.0.min(MAX_SIDE), tile.1.min(width));
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
    let readers: Vec<Consumer<'_>> = consumers
        .iter()
        .map(|conv| consumer(conv, &UNMERGED, conv_output(shape, conv)))
        .collect::<Option<_>>()?;
    let rows = match pitch(&layout, shape, bundles, &readers) {
        Some(pitch) => (bundles - 1) * pitch + height,
        None => height,
    };
    layout.tile.0 = tile.0.min(rows);
    Some((layout, (rows, width)))
}

fn tightest(
    ring_degree: u32,
    bundles: u32,
    shape: Shape,
    consumers: &[&Conv],
    group: u32,
    tile: (u32, u32),
) -> Option<Sketch> {
    let (mut layout, (height, width)) = one_tile(bundles, shape, consumers, group, tile)?;
    let tile = layout.tile;
    let tiles = u64::from(height.div_ceil(tile.0)) * u64::from(width.div_ceil(tile.1));
    let single = one_tile(1, shape, consumers, group, tile)?.1.0;
    let copies = if height > single { 1 } else { bundles };

    // From the tile's width up, the first row stride at which nothing collides; at the full width
    // of what a tile reads, nothing can.
    let rows = tile.0 + layout.window.0 - 1;
    let columns = tile.1 + layout.window.1 - 1;
    for row_stride in tile.1..=columns {
        let block = u64::from(rows - 1) * u64::from(row_stride) + u64::from(columns);
        let blocks = u64::from(ring_degree) / block.saturating_mul(u64::from(group)).max(1);
        if blocks == 0 {
            return None;
        }
        layout.row_stride = row_stride;
        layout.block = block as u32;
        layout.blocks = blocks.min(tiles * u64::from(copies)) as u32;
        let sketch = Sketch::in_any_ring(ring_degree, bundles, shape, consumers, &layout, 1);
        if sketch.is_some() {
            return sketch;
        }
    }
    None
}

/// One upload in a layout, by itself: what the search weighs.
///
/// Equal to the same upload in a [`Packing`](super::Packing) if it is its tensor's first. Answers
/// are derived for any depth of merging from one map.
pub struct Sketch {
    upload: UploadMap,
    consumers: Vec<(Conv, Shape)>,
}

impl Sketch {
    /// The upload of a tensor of `shape` in `layout`, in the standard ring, read by `consumers`
    /// with `output_blocks` each. `None` if that is not legal.
    ///
    /// # Cost
    /// Some nanoseconds for each position that tiles read.
    pub fn new(
        bundles: u32,
        shape: Shape,
        consumers: &[&Conv],
        layout: &Layout,
        output_blocks: u32,
    ) -> Option<Sketch> {
        Sketch::in_any_ring(
            RING_DEGREE,
            bundles,
            shape,
            consumers,
            layout,
            output_blocks,
        )
    }

    fn in_any_ring(
        ring_degree: u32,
        bundles: u32,
        shape: Shape,
        consumers: &[&Conv],
        layout: &Layout,
        output_blocks: u32,
    ) -> Option<Sketch> {
        let plan = Plan {
            ring_degree,
            bundles,
            uploads: Vec::new(),
            answers: Vec::new(),
        };
        let upload = Upload {
            tensor: TensorId(0),
            layout: layout.clone(),
        };
        let answer = answer(0, output_blocks);
        let readers: Vec<Consumer<'_>> = consumers
            .iter()
            .map(|conv| consumer(conv, &answer, conv_output(shape, conv)))
            .collect::<Option<_>>()?;
        let map = Builder::new(&plan, &[shape]).add(&upload, &readers).ok()?;
        let sketch = Sketch {
            upload: map,
            consumers: readers
                .iter()
                .map(|reader| (reader.conv.clone(), reader.output))
                .collect(),
        };
        (0..consumers.len())
            .all(|reader| sketch.answer(reader, 0, output_blocks).is_some())
            .then_some(sketch)
    }

    /// The upload in the tightest layout for tiles of `tile` outputs (cut to the map) and `group`
    /// channels, as many blocks in a ciphertext as fit, one output block; see [`layout_for`]. With
    /// several bundles, tiles of more rows than the map has stack the bundles.
    pub fn tightest(
        bundles: u32,
        shape: Shape,
        consumers: &[&Conv],
        group: u32,
        tile: (u32, u32),
    ) -> Option<Sketch> {
        tightest(RING_DEGREE, bundles, shape, consumers, group, tile)
    }

    /// Rows of outputs of all bundles' maps in a stack: what a tile of more rows than one map cuts.
    pub fn stack_rows(bundles: u32, shape: Shape, consumers: &[&Conv]) -> Option<u32> {
        let (_, (rows, _)) = one_tile(bundles, shape, consumers, 1, (MAX_SIDE, 1))?;
        Some(rows)
    }

    /// The upload's map.
    pub fn upload(&self) -> &UploadMap {
        &self.upload
    }

    /// The answer to consumer `index` if `2^merge` channels merge; `None` if they are more than a
    /// group has. With other `output_blocks` than the sketch was made for, the answer is that of a
    /// layout which repeats more zeros.
    ///
    /// # Panics
    /// If there is no such consumer.
    pub fn answer(&self, index: usize, merge: u32, output_blocks: u32) -> Option<AnswerMap> {
        let (conv, output) = &self.consumers[index];
        let answer = answer(merge, output_blocks);
        AnswerMap::new(&self.upload, &consumer(conv, &answer, Some(*output))?).ok()
    }
}

const UNMERGED: OutputPacking = OutputPacking {
    layer: 0,
    term: 0,
    upload: 0,
    merge: 0,
    output_blocks: 1,
};

fn answer(merge: u32, output_blocks: u32) -> OutputPacking {
    OutputPacking {
        merge,
        output_blocks,
        ..UNMERGED
    }
}

fn consumer<'a>(
    conv: &'a Conv,
    answer: &'a OutputPacking,
    output: Option<Shape>,
) -> Option<Consumer<'a>> {
    Some(Consumer {
        index: 0,
        conv,
        answer,
        output: output?,
    })
}

/// A sane plan: for each tensor and each stride of its consumers one upload, whose group, tile,
/// output blocks and merges minimise a rough estimate of time on a 200 Mbit/s line. The compiler
/// searches further.
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
                    let Some(sketch) = Sketch::in_any_ring(
                        ring_degree,
                        bundles,
                        shape,
                        consumers,
                        &layout,
                        output_blocks,
                    ) else {
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
    let upload = &sketch.upload;
    // 78 bits, and 138 where the value is forced; 70 and 64.
    let counts = upload.total_counts();
    let degree = upload.ring_degree();
    let bits = (78 * upload.ciphertexts() * degree + 60 * counts.forced) as f64;
    let server = Operations::of_upload(upload).server_micros(&RATES);
    let mut micros = bits / 8.0 * MICROS_A_BYTE + server / 2.0;
    let mut merges = Vec::with_capacity(sketch.consumers.len());
    for reader in 0..sketch.consumers.len() {
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
