//! Tensor elements in uploaded ciphertexts: classes of coefficients and where each element sits.

use super::{
    Consumer, MAX_CHANNELS, MAX_CIPHERTEXTS, MAX_ELEMENTS, MAX_SIDE, MAX_STEPS, TILE_STEPS,
};
use pi_ir::{Layout, Plan, Shape, TensorId, Upload};
use std::collections::BTreeMap;

/// The role of a coefficient of an uploaded ciphertext. Elements are numbered `[bundle][c][y][x]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CoefficientRole {
    /// No useful output reads it: encrypts a random number that both parties forget.
    Unused,
    /// Padding, or the exact zero between output blocks.
    Zero,
    /// First occurrence of an element over all uploads of its tensor: decryption defines the mask
    /// here.
    Free(u32),
    /// A later occurrence: must repeat the mask defined before.
    Repeat(u32),
}

impl CoefficientRole {
    /// Whether the encrypted value is prescribed, so that the correction is taken modulo `Q`.
    pub fn is_forced(self) -> bool {
        matches!(self, CoefficientRole::Zero | CoefficientRole::Repeat(_))
    }
}

/// How many coefficients of a ciphertext are in each class.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ClassCounts {
    /// [`CoefficientRole::Free`].
    pub free: usize,
    /// [`CoefficientRole::Zero`] and [`CoefficientRole::Repeat`].
    pub forced: usize,
    /// [`CoefficientRole::Unused`].
    pub unused: usize,
}

/// One upload's index map.
///
/// Ciphertexts are numbered `row * groups + group`: a *row* holds `blocks` blocks (tiles in
/// row-major order, bundles innermost), a *group* holds `G` virtual channels.
#[derive(Clone, Debug)]
pub struct UploadMap {
    tensor: TensorId,
    shape: Shape,
    layout: Layout,
    ring_degree: usize,
    bundles: usize,
    groups: usize,
    rows: usize,
    tiles: (u32, u32),
    /// `None` if each bundle has tiles of its own, else virtual rows from one bundle's map to the
    /// next one's.
    pitch: Option<u32>,
    /// Per tile, the classes of one channel per phase: `[flat][phase]`. Classes do not depend on
    /// the channel, beyond its being there.
    planes: Vec<Plane>,
}

/// Classes of one tile; elements are numbered `[y][x]`, or `[bundle][y][x]` in a stack.
#[derive(Clone, Debug)]
struct Plane {
    roles: Vec<CoefficientRole>,
    /// Per phase: free and forced roles.
    counts: Vec<(usize, usize)>,
    /// Whether any role is a repeat.
    repeats: bool,
}

impl UploadMap {
    /// The tensor uploaded.
    pub fn tensor(&self) -> TensorId {
        self.tensor
    }

    /// Its shape.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// The layout it has.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Number of ciphertexts: `rows() * groups()`.
    pub fn ciphertexts(&self) -> usize {
        self.rows * self.groups
    }

    /// Ciphertexts that hold the same virtual channels.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Ciphertexts that an answer sums over.
    pub fn groups(&self) -> usize {
        self.groups
    }

    /// Tiles of one bundle, or of the stack of all bundles: down and across.
    pub fn tiles(&self) -> (u32, u32) {
        self.tiles
    }

    /// Channels after space-to-depth.
    pub fn virtual_channels(&self) -> usize {
        self.shape.c as usize * self.phases()
    }

    pub(crate) fn ring_degree(&self) -> usize {
        self.ring_degree
    }

    pub(crate) fn bundles(&self) -> usize {
        self.bundles
    }

    fn phases(&self) -> usize {
        (self.layout.stride.0 * self.layout.stride.1) as usize
    }

    /// The tile and the bundle in block `block` of row `row`; `None` where nothing is left.
    pub(crate) fn tile_and_bundle(&self, row: usize, block: usize) -> Option<(usize, usize)> {
        let index = row * self.layout.blocks as usize + block;
        let copies = self.copies();
        (index < self.planes.len() * copies).then(|| (index / copies, index % copies))
    }

    /// Bundles that have tiles of their own.
    fn copies(&self) -> usize {
        match self.pitch {
            None => self.bundles,
            Some(_) => 1,
        }
    }

    /// The rows of outputs of `height` rows a bundle that tile row `tile` computes: the row in the
    /// tile, the bundle after the block's own, the row of the output.
    pub(crate) fn output_rows(
        &self,
        tile: u32,
        height: u32,
    ) -> impl Iterator<Item = (u32, u32, u32)> + use<> {
        output_rows(&self.layout, self.pitch, self.bundles as u32, tile, height)
    }

    /// The virtual channels that group `group` holds.
    pub(crate) fn channels(&self, group: usize) -> std::ops::Range<usize> {
        let size = self.layout.group as usize;
        let end = self.virtual_channels();
        (group * size).min(end)..((group + 1) * size).min(end)
    }

    /// The class of each of the `N` coefficients of ciphertext `index`.
    ///
    /// # Panics
    /// If `index >= ciphertexts()`.
    pub fn roles(&self, index: usize) -> Vec<CoefficientRole> {
        assert!(
            index < self.ciphertexts(),
            "ciphertext {index} of {}",
            self.ciphertexts()
        );
        let (row, group) = (index / self.groups, index % self.groups);
        let (size, phases) = (self.layout.group as usize, self.phases());
        let channels = self.channels(group);
        let map_len = self.shape.h * self.shape.w;
        let mut out = vec![CoefficientRole::Unused; self.ring_degree];
        for block in 0..self.layout.blocks as usize {
            let Some((tile, bundle)) = self.tile_and_bundle(row, block) else {
                break;
            };
            let first = bundle as u32 * self.shape.len() as u32;
            let base = block * self.layout.block as usize;
            for (flat, classes) in self.planes[tile].roles.chunks_exact(phases).enumerate() {
                let at = (base + flat) * size;
                for (channel, role) in channels.clone().zip(&mut out[at..at + size]) {
                    let offset = first + (channel / phases) as u32 * map_len;
                    let place = |element: u32| {
                        let (bundle, element) = (element / map_len, element % map_len);
                        offset + bundle * self.shape.len() as u32 + element
                    };
                    *role = match classes[channel % phases] {
                        CoefficientRole::Free(element) => CoefficientRole::Free(place(element)),
                        CoefficientRole::Repeat(element) => CoefficientRole::Repeat(place(element)),
                        other => other,
                    };
                }
            }
        }
        out
    }

    /// Whether tiles of row `row` repeat elements of earlier ones.
    pub(crate) fn repeats(&self, row: usize) -> bool {
        (0..self.layout.blocks as usize)
            .map_while(|block| self.tile_and_bundle(row, block))
            .any(|(tile, _)| self.planes[tile].repeats)
    }

    /// How many coefficients of ciphertext `index` are in each class, without listing them.
    pub fn counts(&self, index: usize) -> ClassCounts {
        let (row, group) = (index / self.groups, index % self.groups);
        let (mut free, mut forced) = (0, 0);
        for phase in 0..self.phases() {
            let channels = count_congruent(self.channels(group), phase, self.phases());
            for block in 0..self.layout.blocks as usize {
                if let Some((tile, _)) = self.tile_and_bundle(row, block) {
                    let (a, b) = self.planes[tile].counts[phase];
                    free += channels * a;
                    forced += channels * b;
                }
            }
        }
        ClassCounts {
            free,
            forced,
            unused: self.ring_degree - free - forced,
        }
    }

    /// Sum of [`UploadMap::counts`] over all ciphertexts.
    pub fn total_counts(&self) -> ClassCounts {
        let (mut free, mut forced) = (0, 0);
        for plane in &self.planes {
            for (a, b) in &plane.counts {
                free += a;
                forced += b;
            }
        }
        let copies = self.copies() * self.shape.c as usize;
        ClassCounts {
            free: free * copies,
            forced: forced * copies,
            unused: self.ciphertexts() * self.ring_degree - (free + forced) * copies,
        }
    }
}

/// How many numbers of `range` are `phase` modulo `phases`.
fn count_congruent(range: std::ops::Range<usize>, phase: usize, phases: usize) -> usize {
    let below = |end: usize| (end + phases - 1 - phase) / phases;
    below(range.end) - below(range.start)
}

/// Builds the maps of a plan's uploads in order, remembering which elements have occurred.
pub(crate) struct Builder<'a> {
    ring_degree: u32,
    bundles: u32,
    tensors: &'a [Shape],
    seen: BTreeMap<TensorId, Vec<bool>>,
    ciphertexts: u64,
    steps: Steps,
}

impl<'a> Builder<'a> {
    pub(crate) fn new(plan: &Plan, tensors: &'a [Shape]) -> Self {
        Builder {
            ring_degree: plan.ring_degree,
            bundles: plan.bundles,
            tensors,
            seen: BTreeMap::new(),
            ciphertexts: 0,
            steps: Steps(0),
        }
    }

    /// The map of the next upload, read by `consumers`.
    pub(crate) fn add(
        &mut self,
        upload: &Upload,
        consumers: &[Consumer<'_>],
    ) -> Result<UploadMap, Vec<String>> {
        let layout = &upload.layout;
        let shape = *self
            .tensors
            .get(upload.tensor.0 as usize)
            .ok_or_else(|| vec!["no such tensor".to_owned()])?;
        let mut faults = check_layout(layout, shape, self.ring_degree, self.bundles);
        if consumers.is_empty() {
            faults.push("no answer reads it".to_owned());
        }
        if faults.is_empty() {
            faults.extend(
                consumers
                    .iter()
                    .filter_map(|c| check_consumer(layout, shape, c).err()),
            );
        }
        if !faults.is_empty() {
            return Err(faults);
        }

        let pitch = pitch(layout, shape, self.bundles, consumers);
        let tiles = tile_grid(layout, pitch, self.bundles, consumers);
        let copies = pitch.map_or(self.bundles, |_| 1);
        let phases = u64::from(layout.stride.0 * layout.stride.1);
        let groups = (u64::from(shape.c) * phases).div_ceil(u64::from(layout.group));
        let tile_count = u64::from(tiles.0) * u64::from(tiles.1);
        let rows = (tile_count * u64::from(copies)).div_ceil(u64::from(layout.blocks));
        self.ciphertexts = self.ciphertexts.saturating_add(rows.saturating_mul(groups));
        if self.ciphertexts > MAX_CIPHERTEXTS {
            return Err(vec![format!(
                "brings the plan to {} ciphertexts, at most {MAX_CIPHERTEXTS} allowed",
                self.ciphertexts
            )]);
        }
        let map_len = u64::from(shape.h) * u64::from(shape.w);
        let stacked = u64::from(self.bundles / copies);
        self.steps
            .charge(tile_count.saturating_mul(TILE_STEPS))
            .and_then(|()| self.steps.charge(map_len * stacked))
            .map_err(|fault| vec![fault])?;

        let seen = self
            .seen
            .entry(upload.tensor)
            .or_insert_with(|| vec![false; map_len as usize]);
        // Every bundle's outputs read the same elements: one bundle stands for all before and after
        // an upload.
        let mut seen_in_stack = seen.repeat(stacked as usize);
        let mut planes = Vec::with_capacity(tile_count as usize);
        for ty in 0..tiles.0 {
            for tx in 0..tiles.1 {
                let reads = TileReads {
                    layout,
                    shape,
                    bundles: self.bundles,
                    pitch,
                    positions: self.ring_degree / layout.group,
                    tile: (ty, tx),
                };
                let contents = reads
                    .contents(consumers, &mut self.steps)
                    .map_err(|fault| vec![fault])?;
                planes.push(Plane::new(contents, phases as usize, &mut seen_in_stack));
            }
        }
        seen.copy_from_slice(&seen_in_stack[..map_len as usize]);
        Ok(UploadMap {
            tensor: upload.tensor,
            shape,
            layout: layout.clone(),
            ring_degree: self.ring_degree as usize,
            bundles: self.bundles as usize,
            groups: groups as usize,
            rows: rows as usize,
            tiles,
            pitch,
            planes,
        })
    }
}

/// Work done so far, against [`MAX_STEPS`].
struct Steps(u64);

impl Steps {
    fn charge(&mut self, steps: u64) -> Result<(), String> {
        self.0 = self.0.saturating_add(steps);
        if self.0 > MAX_STEPS {
            return Err("the plan is too large to derive".to_owned());
        }
        Ok(())
    }
}

impl Plane {
    fn new(contents: Vec<Content>, phases: usize, seen: &mut [bool]) -> Plane {
        let mut counts = vec![(0, 0); phases];
        let mut repeats = false;
        let roles = contents
            .into_iter()
            .enumerate()
            .map(|(index, content)| {
                let (free, forced) = &mut counts[index % phases];
                match content {
                    Content::Nothing => CoefficientRole::Unused,
                    Content::Zero => {
                        *forced += 1;
                        CoefficientRole::Zero
                    }
                    Content::Element(element) => {
                        if std::mem::replace(&mut seen[element as usize], true) {
                            *forced += 1;
                            repeats = true;
                            CoefficientRole::Repeat(element)
                        } else {
                            *free += 1;
                            CoefficientRole::Free(element)
                        }
                    }
                }
            })
            .collect();
        Plane {
            roles,
            counts,
            repeats,
        }
    }
}

/// Virtual rows from one bundle to the next if the layout stacks them: if its tiles have more rows
/// than any consumer's outputs. The rows of zeros between two maps serve both.
pub(crate) fn pitch(
    layout: &Layout,
    shape: Shape,
    bundles: u32,
    consumers: &[Consumer<'_>],
) -> Option<u32> {
    let height = consumers.iter().map(|c| c.output.h).max().unwrap_or(0);
    let padding = layout.padding.top.max(layout.padding.bottom);
    (bundles > 1 && layout.tile.0 > height)
        .then(|| (shape.h + padding).div_ceil(layout.stride.0).max(height))
}

/// Tiles down and across that cover every consumer's outputs.
fn tile_grid(
    layout: &Layout,
    pitch: Option<u32>,
    bundles: u32,
    consumers: &[Consumer<'_>],
) -> (u32, u32) {
    let most =
        |side: fn(&Shape) -> u32| consumers.iter().map(|c| side(&c.output)).max().unwrap_or(0);
    let above = pitch.map_or(0, |pitch| (bundles - 1) * pitch);
    (
        (above + most(|s| s.h)).div_ceil(layout.tile.0),
        most(|s| s.w).div_ceil(layout.tile.1),
    )
}

/// See [`UploadMap::output_rows`].
fn output_rows(
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

fn check_layout(layout: &Layout, shape: Shape, ring_degree: u32, bundles: u32) -> Vec<String> {
    let mut faults = Vec::new();
    let side = |n: u32| (1..=MAX_SIDE).contains(&n);
    if !layout.group.is_power_of_two() || layout.group > ring_degree {
        faults.push(format!(
            "group {} is not a power of two up to {ring_degree}",
            layout.group
        ));
    }
    for (what, (a, b)) in [
        ("stride", layout.stride),
        ("window", layout.window),
        ("tile", layout.tile),
    ] {
        if !side(a) || !side(b) {
            faults.push(format!("{what} {a}x{b} is not within 1..={MAX_SIDE}"));
        }
    }
    let p = layout.padding;
    if [p.top, p.left, p.bottom, p.right]
        .iter()
        .any(|&n| n > MAX_SIDE)
    {
        faults.push(format!("padding {p:?} exceeds {MAX_SIDE}"));
    }
    if layout.row_stride < layout.tile.1 {
        faults.push(format!(
            "row stride {} is below the tile's width {}: outputs would coincide",
            layout.row_stride, layout.tile.1
        ));
    }
    let used = u128::from(layout.block) * u128::from(layout.blocks) * u128::from(layout.group);
    if used == 0 || used > u128::from(ring_degree) {
        faults.push(format!(
            "{} blocks of {} positions of {} channels do not fit degree {ring_degree}",
            layout.blocks, layout.block, layout.group
        ));
    }
    let channels = u64::from(layout.stride.0) * u64::from(layout.stride.1) * u64::from(shape.c);
    if channels == 0 || channels > MAX_CHANNELS {
        faults.push(format!(
            "{channels} virtual channels, expected 1..={MAX_CHANNELS}"
        ));
    }
    let sides = side(shape.h) && side(shape.w);
    let elements =
        u128::from(shape.c) * u128::from(shape.h) * u128::from(shape.w) * u128::from(bundles);
    if !sides || elements > MAX_ELEMENTS {
        faults.push(format!("shape {shape:?} is out of bounds"));
    }
    faults
}

/// Checks that the convolution is one on this layout's virtual map.
fn check_consumer(layout: &Layout, shape: Shape, consumer: &Consumer<'_>) -> Result<(), String> {
    let Consumer { conv, answer, .. } = consumer;
    let name = format!("layer {} term {}", answer.layer, answer.term);
    if conv.stride != layout.stride {
        return Err(format!(
            "{name} has stride {:?}, the layout {:?}",
            conv.stride, layout.stride
        ));
    }
    if conv.padding.top > layout.padding.top || conv.padding.left > layout.padding.left {
        return Err(format!(
            "{name} pads {} rows and {} columns, the layout {} and {}",
            conv.padding.top, conv.padding.left, layout.padding.top, layout.padding.left
        ));
    }
    let vertical = Taps::vertical(layout, conv);
    let horizontal = Taps::horizontal(layout, conv);
    if vertical.window() > layout.window.0 || horizontal.window() > layout.window.1 {
        return Err(format!(
            "{name} needs a window of {}x{}, the layout has {}x{}",
            vertical.window(),
            horizontal.window(),
            layout.window.0,
            layout.window.1
        ));
    }
    let padding = layout.padding;
    let height = (shape.h + padding.top + padding.bottom).div_ceil(layout.stride.0);
    let width = (shape.w + padding.left + padding.right).div_ceil(layout.stride.1);
    if consumer.output.h + vertical.window() - 1 > height
        || consumer.output.w + horizontal.window() - 1 > width
    {
        return Err(format!(
            "{name} reads {}x{} virtual positions, the padded map has {height}x{width}",
            consumer.output.h + vertical.window() - 1,
            consumer.output.w + horizontal.window() - 1
        ));
    }
    Ok(())
}

/// The taps of a convolution along one axis of the padded map: tap `k` of output `o` reads padded
/// row `o * stride + offset + k`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Taps {
    pub(crate) offset: u32,
    pub(crate) kernel: u32,
    pub(crate) stride: u32,
}

impl Taps {
    /// Along rows. The layout's padding must not be less than the convolution's.
    pub(crate) fn vertical(layout: &Layout, conv: &pi_ir::Conv) -> Taps {
        Taps {
            offset: layout.padding.top - conv.padding.top,
            kernel: conv.kernel.0,
            stride: layout.stride.0,
        }
    }

    /// Along columns.
    pub(crate) fn horizontal(layout: &Layout, conv: &pi_ir::Conv) -> Taps {
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
            out.extend(start.max(next)..end);
            next = end;
        }
        out
    }
}

/// What the useful outputs expect at a position.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    Nothing,
    Zero,
    Element(u32),
}

/// The reads of one tile.
struct TileReads<'a> {
    layout: &'a Layout,
    shape: Shape,
    bundles: u32,
    pitch: Option<u32>,
    /// Flat positions of a whole ciphertext.
    positions: u32,
    tile: (u32, u32),
}

impl TileReads<'_> {
    /// `[flat][phase]`: what the consumers expect. Where a ciphertext has one block, the table
    /// spans all of it: output blocks read zeros outside the block.
    fn contents(
        &self,
        consumers: &[Consumer<'_>],
        steps: &mut Steps,
    ) -> Result<Vec<Content>, String> {
        let layout = self.layout;
        let phases = (layout.stride.0 * layout.stride.1) as usize;
        let single = layout.blocks == 1;
        let span = if single { self.positions } else { layout.block };
        steps.charge(u64::from(span).saturating_mul(phases as u64))?;
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
                steps.charge((rows.len() as u64 * columns.len() as u64).saturating_mul(copies))?;
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

    /// What `bundle` of the stack expects at a padded row and column counted from the tile's first.
    fn content(&self, bundle: u32, row_in_tile: u32, column: u32) -> Content {
        let layout = self.layout;
        let above = bundle * self.pitch.unwrap_or(0);
        let first = i64::from(self.tile.0 * layout.tile.0) - i64::from(above);
        let y = first * i64::from(layout.stride.0) + i64::from(row_in_tile)
            - i64::from(layout.padding.top);
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
