//! Tensor elements in uploaded ciphertexts: the role of each coefficient and the place of each
//! element.

mod build;
mod check;
mod reads;

pub(super) use build::{Builder, pitch};
pub(super) use reads::{Taps, output_columns};

use pi_ir::{Layout, Shape, TensorId};
use reads::output_rows;
use std::sync::Arc;

/// The role of a coefficient of an uploaded ciphertext. Elements are numbered `[bundle][c][y][x]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CoefficientRole {
    /// No useful output reads it: encrypts a random number that both parties forget.
    Unused,
    /// Padding, or the exact zero between output blocks. Like [`CoefficientRole::Repeat`], its
    /// value is prescribed (*forced*), so the correction is taken modulo `Q`.
    Zero,
    /// First occurrence of an element over all uploads of its tensor: decryption defines the mask
    /// here.
    Free(u32),
    /// A later occurrence: must repeat the mask defined before.
    Repeat(u32),
}

/// Numbers of coefficients of a ciphertext that are free, forced and unused.
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
    /// `None` if each bundle has separate tiles, else virtual rows from one bundle's map to the
    /// next one's.
    pitch: Option<u32>,
    /// The different roles that tiles have; most tiles of a large map differ in their place alone.
    planes: Vec<Plane>,
    /// By tile.
    at: Vec<Tile>,
}

/// A tile: its roles, and where it lies.
#[derive(Clone, Copy, Debug)]
struct Tile {
    /// Index of its plane.
    plane: u32,
    /// The element that the plane's numbers count from: `[y][x]`, or `[bundle][y][x]` in a stack.
    first: u32,
}

/// Roles of one channel per phase in a tile: `[flat][phase]`. They do not depend on the channel,
/// beyond its being there.
#[derive(Clone, Debug)]
struct Plane {
    /// Elements count from the tile's first.
    roles: Arc<[CoefficientRole]>,
    /// Per phase: free and forced roles.
    counts: Vec<(usize, usize)>,
    /// True if any role is a repeat.
    repeats: bool,
}

impl UploadMap {
    /// The tensor uploaded.
    pub fn tensor(&self) -> TensorId {
        self.tensor
    }

    /// Shape of the tensor.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Layout of the tensor in its ciphertexts.
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
    fn virtual_channels(&self) -> usize {
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
        (index < self.at.len() * copies).then(|| (index / copies, index % copies))
    }

    /// The roles of a tile.
    fn plane(&self, tile: usize) -> &Plane {
        &self.planes[self.at[tile].plane as usize]
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

    /// The role of each of the `N` coefficients of ciphertext `index`.
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
            let from = self.at[tile].first;
            for (flat, classes) in self.plane(tile).roles.chunks_exact(phases).enumerate() {
                let at = (base + flat) * size;
                for (channel, role) in channels.clone().zip(&mut out[at..at + size]) {
                    let offset = first + (channel / phases) as u32 * map_len;
                    let place = |element: u32| {
                        let element = from + element;
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

    /// Returns true if tiles of row `row` repeat elements of earlier ones.
    pub(crate) fn repeats(&self, row: usize) -> bool {
        (0..self.layout.blocks as usize)
            .map_while(|block| self.tile_and_bundle(row, block))
            .any(|(tile, _)| self.plane(tile).repeats)
    }

    /// Counts the roles in ciphertext `index` without listing them.
    pub fn counts(&self, index: usize) -> ClassCounts {
        let (row, group) = (index / self.groups, index % self.groups);
        let (mut free, mut forced) = (0, 0);
        for phase in 0..self.phases() {
            let channels = count_congruent(self.channels(group), phase, self.phases());
            for block in 0..self.layout.blocks as usize {
                if let Some((tile, _)) = self.tile_and_bundle(row, block) {
                    let (a, b) = self.plane(tile).counts[phase];
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
        for tile in 0..self.at.len() {
            for (a, b) in &self.plane(tile).counts {
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

/// Counts the numbers of `range` that are `phase` modulo `phases`.
fn count_congruent(range: std::ops::Range<usize>, phase: usize, phases: usize) -> usize {
    let below = |end: usize| (end + phases - 1 - phase) / phases;
    below(range.end) - below(range.start)
}
