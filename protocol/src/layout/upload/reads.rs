//! Positions that the useful outputs of a tile read, and the content that they expect there.

use crate::layout::{Budget, Consumer};
use pi_ir::{Conv, Layout, Shape};

/// The taps of a convolution along one axis of the padded map: tap `k` of output `o` reads padded
/// row `o * stride + offset + k`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Taps {
    pub(crate) offset: u32,
    pub(crate) kernel: u32,
    pub(crate) stride: u32,
}

impl Taps {
    /// Taps along rows. The layout's padding must not be less than the convolution's.
    pub(crate) fn vertical(layout: &Layout, conv: &Conv) -> Taps {
        Taps {
            offset: layout.padding.top - conv.padding.top,
            kernel: conv.kernel.0,
            stride: layout.stride.0,
        }
    }

    /// Taps along columns; the same holds for the padding.
    pub(crate) fn horizontal(layout: &Layout, conv: &Conv) -> Taps {
        Taps {
            offset: layout.padding.left - conv.padding.left,
            kernel: conv.kernel.1,
            stride: layout.stride.1,
        }
    }

    /// Virtual rows from the output's own to the last one read.
    pub(crate) fn window(self) -> u32 {
        (self.offset + self.kernel - 1) / self.stride + 1
    }

    /// Padded rows, relative to the tile's first, that `outputs` (ascending) read, in order.
    fn reads(self, outputs: impl Iterator<Item = u32>) -> Vec<u32> {
        let mut out = Vec::new();
        let mut next = 0;
        for o in outputs {
            let start = o * self.stride + self.offset;
            let end = start + self.kernel;
            // Neighbours overlap where the stride is less than the kernel; each row is listed once.
            out.extend(start.max(next)..end);
            next = end;
        }
        out
    }
}

/// The content that the useful outputs expect at a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Content {
    Nothing,
    Zero,
    Element(u32),
}

/// The reads of one tile.
pub(super) struct TileReads<'a> {
    pub(super) layout: &'a Layout,
    pub(super) shape: Shape,
    pub(super) bundles: u32,
    pub(super) pitch: Option<u32>,
    /// Flat positions of a whole ciphertext.
    pub(super) positions: u32,
    pub(super) tile: (u32, u32),
}

impl TileReads<'_> {
    /// The contents that the consumers expect, `[flat][phase]`. Where a ciphertext has one block,
    /// the table spans all of it: output blocks read zeros outside the block.
    pub(super) fn contents(
        &self,
        consumers: &[Consumer<'_>],
        budget: &mut Budget,
    ) -> Result<Vec<Content>, String> {
        let layout = self.layout;
        let phases = (layout.stride.0 * layout.stride.1) as usize;
        let single = layout.blocks == 1;
        let span = if single { self.positions } else { layout.block };
        let size = u64::from(span).saturating_mul(phases as u64);
        budget.step(size)?;
        budget.ensure(size.saturating_add(2 * phases as u64))?;
        let mut contents = vec![Content::Nothing; span as usize * phases];
        for consumer in consumers {
            let outputs: Vec<(u32, u32, u32)> = output_rows(
                layout,
                self.pitch,
                self.bundles,
                self.tile.0,
                consumer.output.h,
            )
            .collect();
            let width = output_columns(layout, self.tile.1, consumer.output);
            let Some((last_row, ..)) = outputs.last().copied().filter(|_| width > 0) else {
                continue;
            };
            let vertical = Taps::vertical(layout, consumer.conv);
            let horizontal = Taps::horizontal(layout, consumer.conv);
            let last = u64::from(last_row + vertical.window() - 1) * u64::from(layout.row_stride)
                + u64::from(width + horizontal.window() - 2);
            if last >= u64::from(layout.block) {
                return Err(format!(
                    "a tile reads flat position {last} of a block of {}",
                    layout.block
                ));
            }
            let columns = horizontal.reads(0..width);
            let copies = 2 * u64::from(consumer.answer.output_blocks.saturating_sub(1)) + 1;
            let shifts = self.zero_shifts(consumer)?;
            // Two bundles of a stack may read a row of zeros between them: each says what it
            // expects.
            for bundle in outputs.chunk_by(|a, b| a.1 == b.1) {
                let rows = vertical.reads(bundle.iter().map(|(i, ..)| *i));
                budget.step((rows.len() as u64 * columns.len() as u64).saturating_mul(copies))?;
                for &row in &rows {
                    for &column in &columns {
                        let (i, row_phase) = (row / layout.stride.0, row % layout.stride.0);
                        let (j, column_phase) =
                            (column / layout.stride.1, column % layout.stride.1);
                        let flat = i * layout.row_stride + j;
                        let phase = (row_phase * layout.stride.1 + column_phase) as usize;
                        expect(
                            &mut contents,
                            flat as usize * phases + phase,
                            self.content(bundle[0].1, row, column),
                        )?;
                        for shift in &shifts {
                            expect(
                                &mut contents,
                                (shift + flat) as usize * phases + phase,
                                Content::Zero,
                            )?;
                        }
                    }
                }
            }
        }
        Ok(contents)
    }

    /// The content that `bundle` of the stack expects at a padded row and column counted from the
    /// tile's first.
    fn content(&self, bundle: u32, row_in_tile: u32, column: u32) -> Content {
        let layout = self.layout;
        let above = bundle * self.pitch.unwrap_or(0);
        let first = i64::from(self.tile.0 * layout.tile.0) - i64::from(above);
        let y = first * i64::from(layout.stride.0) + i64::from(row_in_tile)
            - i64::from(layout.padding.top);
        // Left of the map this wraps to a number that no width reaches.
        let x = (self.tile.1 * layout.tile.1 * layout.stride.1 + column)
            .wrapping_sub(layout.padding.left);
        match u32::try_from(y) {
            Ok(y) if y < self.shape.h && x < self.shape.w => {
                Content::Element((bundle * self.shape.h + y) * self.shape.w + x)
            }
            _ => Content::Zero,
        }
    }

    /// Output block `q` reads, through the kernel placed for block `q'`, what lies `q - q'` blocks
    /// away, modulo the ring: those shifts, in flat positions.
    fn zero_shifts(&self, consumer: &Consumer<'_>) -> Result<Vec<u32>, String> {
        let (layout, blocks) = (self.layout, consumer.answer.output_blocks);
        if blocks == 0 || (blocks > 1 && layout.blocks != 1) {
            return Err(format!(
                "{blocks} output blocks with {} blocks",
                layout.blocks
            ));
        }
        if u64::from(blocks) * u64::from(layout.block) > u64::from(self.positions) {
            return Err(format!(
                "{blocks} output blocks of {} positions do not fit {}",
                layout.block, self.positions
            ));
        }
        Ok((1..blocks)
            .flat_map(|d| [d * layout.block, self.positions - d * layout.block])
            .collect())
    }
}

/// Notes what a read expects at a position, unless another read expects something else there.
fn expect(contents: &mut [Content], index: usize, content: Content) -> Result<(), String> {
    let entry = &mut contents[index];
    match *entry {
        Content::Nothing => *entry = content,
        found if found == content => {}
        found => {
            return Err(format!(
                "row stride: position {index} would hold both {found:?} and {content:?}"
            ));
        }
    }
    Ok(())
}

/// Columns of outputs that a tile has.
pub(crate) fn output_columns(layout: &Layout, tile: u32, output: Shape) -> u32 {
    output
        .w
        .saturating_sub(tile * layout.tile.1)
        .min(layout.tile.1)
}

/// The rows of outputs that tile row `tile` computes; see
/// [`UploadMap::output_rows`](super::UploadMap::output_rows).
pub(super) fn output_rows(
    layout: &Layout,
    pitch: Option<u32>,
    bundles: u32,
    tile: u32,
    height: u32,
) -> impl Iterator<Item = (u32, u32, u32)> + use<> {
    let first = tile * layout.tile.0;
    let place = move |i: u32| match pitch {
        None => (i, 0, first + i),
        Some(pitch) => (i, (first + i) / pitch, (first + i) % pitch),
    };
    // Without a stack, rows beyond the output are no other bundle's.
    let end = match pitch {
        None => height,
        Some(pitch) => bundles * pitch,
    };
    (0..layout.tile.0.min(end.saturating_sub(first)))
        .map(place)
        .filter(move |(_, _, y)| *y < height)
}
