//! Deriving the maps of a plan's uploads, in order and within bounds.

use super::check::{check_consumer, check_layout};
use super::reads::{Content, TileReads};
use super::{CoefficientRole, Plane, Tile, UploadMap};
use crate::layout::{Budget, Consumer, MAX_CIPHERTEXTS, TILE_STEPS};
use pi_ir::{Layout, Plan, Shape, TensorId, Upload};
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

/// Builds the maps of a plan's uploads in order, remembering which elements have occurred.
pub(crate) struct Builder<'a> {
    ring_degree: u32,
    bundles: u32,
    tensors: &'a [Shape],
    seen: BTreeMap<TensorId, ElementSet>,
    ciphertexts: u64,
    budget: &'a mut Budget,
}

impl<'a> Builder<'a> {
    pub(crate) fn new(plan: &Plan, tensors: &'a [Shape], budget: &'a mut Budget) -> Self {
        Builder {
            ring_degree: plan.ring_degree,
            bundles: plan.bundles,
            tensors,
            seen: BTreeMap::new(),
            ciphertexts: 0,
            budget,
        }
    }

    /// What is left of the budget.
    pub(crate) fn budget(&mut self) -> &mut Budget {
        self.budget
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
        let budget = &mut *self.budget;
        budget
            .step(tile_count.saturating_mul(TILE_STEPS))
            .and_then(|()| budget.step((map_len * stacked).div_ceil(64)))
            .and_then(|()| budget.keep(tile_count))
            .map_err(|fault| vec![fault])?;

        let earlier = self
            .seen
            .entry(upload.tensor)
            .or_insert_with(|| ElementSet::new(map_len));
        let mut planes = Planes::new(earlier, map_len, stacked, phases as usize);
        let mut at = Vec::with_capacity(tile_count as usize);
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
                let tile = reads
                    .contents(consumers, budget)
                    .and_then(|contents| planes.place(contents, budget));
                at.push(tile.map_err(|fault| vec![fault])?);
            }
        }
        let Planes { planes, seen, .. } = planes;
        earlier.add(&seen);
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
            at,
        })
    }
}

/// A set of elements of a map.
struct ElementSet(Vec<u64>);

impl ElementSet {
    /// The empty set, for elements below `count`.
    fn new(count: u64) -> Self {
        ElementSet(vec![0; count.div_ceil(64) as usize])
    }

    fn contains(&self, element: u32) -> bool {
        self.0[element as usize / 64] >> (element % 64) & 1 == 1
    }

    /// Adds an element; true if it was not there.
    fn insert(&mut self, element: u32) -> bool {
        let fresh = !self.contains(element);
        self.0[element as usize / 64] |= 1 << (element % 64);
        fresh
    }

    /// Adds those of `other` that this set is for.
    fn add(&mut self, other: &ElementSet) {
        for (word, more) in self.0.iter_mut().zip(&other.0) {
            *word |= more;
        }
    }
}

/// The planes of an upload as its tiles are derived one by one: equal ones are kept once.
struct Planes<'a> {
    /// Elements that earlier uploads of the tensor hold. Every bundle's outputs read the same
    /// elements: one bundle stands for all.
    earlier: &'a ElementSet,
    /// Elements of a bundle's map.
    map_len: u64,
    /// Elements that occurred in this upload: of a bundle, or of all that are stacked.
    seen: ElementSet,
    phases: usize,
    planes: Vec<Plane>,
    known: HashMap<Arc<[CoefficientRole]>, u32>,
}

impl<'a> Planes<'a> {
    fn new(earlier: &'a ElementSet, map_len: u64, stacked: u64, phases: usize) -> Self {
        Planes {
            earlier,
            map_len,
            seen: ElementSet::new(map_len * stacked),
            phases,
            planes: Vec::new(),
            known: HashMap::new(),
        }
    }

    /// The tile with these contents, which comes after all that were placed.
    fn place(&mut self, contents: Vec<Content>, budget: &mut Budget) -> Result<Tile, String> {
        let elements = contents.iter().filter_map(|content| match content {
            Content::Element(element) => Some(*element),
            Content::Nothing | Content::Zero => None,
        });
        let first = elements.min().unwrap_or(0);
        let roles: Arc<[CoefficientRole]> = contents
            .into_iter()
            .map(|content| match content {
                Content::Nothing => CoefficientRole::Unused,
                Content::Zero => CoefficientRole::Zero,
                Content::Element(element) => {
                    let of_bundle = (u64::from(element) % self.map_len) as u32;
                    let fresh = self.seen.insert(element) && !self.earlier.contains(of_bundle);
                    match fresh {
                        true => CoefficientRole::Free(element - first),
                        false => CoefficientRole::Repeat(element - first),
                    }
                }
            })
            .collect();
        let plane = match self.known.get(&roles) {
            Some(&plane) => plane,
            None => {
                budget.keep((roles.len() + 2 * self.phases) as u64)?;
                let plane = self.planes.len() as u32;
                self.planes.push(Plane::new(roles.clone(), self.phases));
                self.known.insert(roles, plane);
                plane
            }
        };
        Ok(Tile { plane, first })
    }
}

impl Plane {
    fn new(roles: Arc<[CoefficientRole]>, phases: usize) -> Plane {
        let mut counts = vec![(0, 0); phases];
        let mut repeats = false;
        for (index, role) in roles.iter().enumerate() {
            let (free, forced) = &mut counts[index % phases];
            match role {
                CoefficientRole::Unused => {}
                CoefficientRole::Free(_) => *free += 1,
                CoefficientRole::Zero => *forced += 1,
                CoefficientRole::Repeat(_) => {
                    *forced += 1;
                    repeats = true;
                }
            }
        }
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
