//! One upload by itself: the tightest legal layout of a tensor for a tile, and the answers that
//! read it. Planners weigh these.

use super::upload::{Builder, Taps, pitch};
use super::{AnswerMap, Budget, Consumer, MAX_SIDE, RING_DEGREE, UploadMap, conv_output};
use pi_ir::{Conv, Layout, OutputPacking, Padding, Plan, Shape, TensorId, Upload};

/// A tensor and the convolutions that read one upload of it: what a layout is chosen for.
#[derive(Clone, Copy, Debug)]
pub struct TensorUse<'a> {
    ring_degree: u32,
    bundles: u32,
    shape: Shape,
    consumers: &'a [&'a Conv],
}

impl<'a> TensorUse<'a> {
    /// A tensor of `shape`, of which `bundles` are packed together in the standard ring, and the
    /// convolutions that read it.
    pub fn new(bundles: u32, shape: Shape, consumers: &'a [&'a Conv]) -> Self {
        TensorUse {
            ring_degree: RING_DEGREE,
            bundles,
            shape,
            consumers,
        }
    }

    /// Changes the ring, for tests in small ones.
    pub(crate) fn in_ring(self, ring_degree: u32) -> Self {
        TensorUse {
            ring_degree,
            ..self
        }
    }

    /// The upload in its tightest layout for tiles of `tile` outputs (cut to the map) and `group`
    /// channels, with one output block: least padding, least row stride, least block, most blocks.
    /// With several bundles, tiles of more rows than the map has stack the bundles.
    ///
    /// `None` if the consumers differ in stride, if one does not fit the shape, or if a tile does
    /// not fit a ciphertext with `group` channels.
    pub fn tightest(&self, group: u32, tile: (u32, u32)) -> Option<Sketch> {
        let (mut layout, (height, width)) = self.one_tile(group, tile)?;
        let tile = layout.tile;
        let tiles = u64::from(height.div_ceil(tile.0)) * u64::from(width.div_ceil(tile.1));
        let stacked = height > self.most_outputs()?.0;
        let copies = if stacked { 1 } else { self.bundles };

        // From the tile's width up, the first row stride at which nothing collides; at the full
        // width of what a tile reads, nothing can.
        let rows = tile.0 + layout.window.0 - 1;
        let columns = tile.1 + layout.window.1 - 1;
        for row_stride in tile.1..=columns {
            let block = u64::from(rows - 1) * u64::from(row_stride) + u64::from(columns);
            let blocks =
                u64::from(self.ring_degree) / block.saturating_mul(u64::from(layout.group)).max(1);
            if blocks == 0 {
                return None;
            }
            layout.row_stride = row_stride;
            layout.block = block as u32;
            layout.blocks = blocks.min(tiles * u64::from(copies)) as u32;
            let sketch = self.sketch(&layout, 1);
            if sketch.is_some() {
                return sketch;
            }
        }
        None
    }

    /// The upload in `layout`, read with `output_blocks` by each consumer. `None` if that is not
    /// legal.
    ///
    /// # Cost
    /// Some nanoseconds for each position that tiles read.
    pub fn sketch(&self, layout: &Layout, output_blocks: u32) -> Option<Sketch> {
        let plan = Plan {
            ring_degree: self.ring_degree,
            bundles: self.bundles,
            uploads: Vec::new(),
            answers: Vec::new(),
        };
        let upload = Upload {
            tensor: TensorId(0),
            layout: layout.clone(),
        };
        let packing = output_packing(0, output_blocks);
        let readers = self.readers(&packing)?;
        let upload = Builder::new(&plan, &[self.shape], &mut Budget::new())
            .add(&upload, &readers)
            .ok()?;
        let consumers = readers
            .iter()
            .map(|reader| (reader.conv.clone(), reader.output));
        let sketch = Sketch {
            upload,
            consumers: consumers.collect(),
        };
        (0..readers.len())
            .all(|reader| sketch.answer(reader, 0, output_blocks).is_some())
            .then_some(sketch)
    }

    /// Rows of outputs of all bundles' maps in a stack: what a tile of more rows than one map cuts.
    pub fn stack_rows(&self) -> Option<u32> {
        let (_, (rows, _)) = self.one_tile(1, (MAX_SIDE, 1))?;
        Some(rows)
    }

    /// Most rows and most columns of outputs that a consumer has; `None` without consumers, or if
    /// one does not fit the shape.
    pub(crate) fn most_outputs(&self) -> Option<(u32, u32)> {
        let outputs: Vec<Shape> = (self.consumers.iter())
            .map(|conv| conv_output(self.shape, conv))
            .collect::<Option<_>>()?;
        let height = outputs.iter().map(|s| s.h).max()?;
        let width = outputs.iter().map(|s| s.w).max()?;
        Some((height, width))
    }

    /// The consumers, each with its outputs in this packing.
    fn readers<'r>(&'r self, packing: &'r OutputPacking) -> Option<Vec<Consumer<'r>>> {
        let readers = self.consumers.iter().map(|conv| {
            Some(Consumer {
                index: 0,
                conv,
                answer: packing,
                output: conv_output(self.shape, conv)?,
            })
        });
        readers.collect()
    }

    /// The layout of one tile of `tile` outputs (cut to what there is) with the least padding and
    /// window, no row stride or blocks yet; and the rows and columns of outputs that tiles have to
    /// cover: of one bundle, or of the stack if a tile has more rows.
    fn one_tile(&self, group: u32, tile: (u32, u32)) -> Option<(Layout, (u32, u32))> {
        let (shape, consumers) = (self.shape, self.consumers);
        let stride = consumers.first()?.stride;
        let (height, width) = self.most_outputs()?;
        if tile.0 == 0 || tile.1 == 0 || consumers.iter().any(|conv| conv.stride != stride) {
            return None;
        }
        let mut padding = Padding {
            top: consumers.iter().map(|conv| conv.padding.top).max()?,
            left: consumers.iter().map(|conv| conv.padding.left).max()?,
            bottom: 0,
            right: 0,
        };
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
        let packing = output_packing(0, 1);
        let readers = self.readers(&packing)?;
        let side = |taps: fn(&Layout, &Conv) -> Taps, output: fn(&Shape) -> u32| {
            let each = readers.iter();
            each.map(|reader| output(&reader.output) + taps(&layout, reader.conv).window() - 1)
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
        let rows = match pitch(&layout, shape, self.bundles, &readers) {
            Some(pitch) => (self.bundles - 1) * pitch + height,
            None => height,
        };
        layout.tile.0 = tile.0.min(rows);
        Some((layout, (rows, width)))
    }
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
    /// The upload's map.
    pub fn upload(&self) -> &UploadMap {
        &self.upload
    }

    /// The number of convolutions that read the upload.
    pub(crate) fn consumers(&self) -> usize {
        self.consumers.len()
    }

    /// The answer to consumer `index` if `2^merge` channels merge; `None` if they are more than a
    /// group has. With other `output_blocks` than the sketch was made for, the answer is that of a
    /// layout which repeats more zeros.
    ///
    /// # Panics
    /// If there is no such consumer.
    pub fn answer(&self, index: usize, merge: u32, output_blocks: u32) -> Option<AnswerMap> {
        let (conv, output) = &self.consumers[index];
        let packing = output_packing(merge, output_blocks);
        let reader = Consumer {
            index: 0,
            conv,
            answer: &packing,
            output: *output,
        };
        AnswerMap::new(&self.upload, &reader, &mut Budget::new()).ok()
    }
}

/// An answer that is looked at by itself: of no layer in particular.
fn output_packing(merge: u32, output_blocks: u32) -> OutputPacking {
    OutputPacking {
        layer: 0,
        term: 0,
        upload: 0,
        merge,
        output_blocks,
    }
}
