//! Deriving the maps of a plan's uploads, in order and within bounds.

use super::check::{check_consumer, check_layout};
use super::reads::{Content, TileReads};
use super::{CoefficientRole, Plane, UploadMap};
use crate::layout::{Consumer, MAX_CIPHERTEXTS, MAX_STEPS, TILE_STEPS};
use pi_ir::{Layout, Plan, Shape, TensorId, Upload};
use std::collections::BTreeMap;

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
        // Every bound is checked before anything of the size of the plan is allocated.
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
pub(super) struct Steps(u64);

impl Steps {
    /// Adds steps that are about to be taken.
    pub(super) fn charge(&mut self, steps: u64) -> Result<(), String> {
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
