//! Convolution results in answer ciphertexts, and kernels as polynomials.

use super::upload::{Taps, UploadMap, output_columns};
use super::{Budget, Consumer};
use pi_ir::{Conv, Layout, Shape, group_reads};
use std::ops::Range;

/// A useful coefficient of an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Useful {
    /// Index of the coefficient in the ciphertext.
    pub coefficient: u32,
    /// Output element that it holds, numbered `[bundle][o][y][x]`.
    pub element: u32,
}

/// One tap of a kernel in one group of input channels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tap {
    /// The weight's monomial is `X^-shift` (before it moves to its output block); `shift < N`.
    pub shift: u32,
    /// Place of the weight in `[in][kernel_h][kernel_w]`, all input channels counted.
    pub weight: u32,
}

/// One weight of a kernel polynomial.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placement {
    /// Coefficient of the polynomial.
    pub coefficient: u32,
    /// True if the weight is subtracted there (`X^-t = -X^(N-t)`).
    pub negative: bool,
    /// Place of the weight in `[out][in / groups][kernel_h][kernel_w]`.
    pub weight: u32,
}

/// One answer's index map.
///
/// Ciphertexts are numbered `row * chunks + chunk`: the *rows* of the upload that hold useful
/// outputs, and *chunks* of `2^merge * output_blocks` output channels. Output channel `o` of a
/// chunk is in output block `o / 2^merge`, merged at place `o % 2^merge`.
#[derive(Clone, Debug)]
pub struct AnswerMap {
    layer: u32,
    term: u32,
    upload: usize,
    conv: Conv,
    in_channels: u32,
    output: Shape,
    merge: u32,
    output_blocks: u32,
    chunks: usize,
    /// Rows of the upload with useful outputs, and how many there are per channel.
    rows: Vec<(usize, usize)>,
    bundles: usize,
}

impl AnswerMap {
    /// The map of an answer; `upload` has been derived with this consumer.
    pub(crate) fn new(
        upload: &UploadMap,
        consumer: &Consumer<'_>,
        budget: &mut Budget,
    ) -> Result<AnswerMap, String> {
        let Consumer {
            conv,
            answer,
            output,
            ..
        } = *consumer;
        let layout = upload.layout();
        if answer.merge >= 32 || 1u32 << answer.merge > layout.group {
            return Err(format!(
                "merges 2^{} channels in groups of {}",
                answer.merge, layout.group
            ));
        }
        let weights = u128::from(output.c)
            * u128::from(conv.channels_read(upload.shape()))
            * u128::from(conv.kernel.0)
            * u128::from(conv.kernel.1);
        let elements = u128::from(output.c)
            * u128::from(output.h)
            * u128::from(output.w)
            * upload.bundles() as u128;
        if weights > 1 << 31 || elements > super::MAX_ELEMENTS {
            return Err(format!(
                "{weights} weights or {elements} outputs are too many"
            ));
        }
        let (down, across) = upload.tiles();
        let blocks = upload.rows() as u64 * u64::from(layout.blocks);
        let tile_rows = u64::from(down) * u64::from(layout.tile.0);
        budget.step(blocks.saturating_add(tile_rows))?;
        let heights: Vec<usize> = (0..down)
            .map(|down| upload.output_rows(down, output.h).count())
            .collect();
        let widths: Vec<usize> = (0..across)
            .map(|across| output_columns(layout, across, output) as usize)
            .collect();
        let mut rows = Vec::new();
        for row in 0..upload.rows() {
            let useful: usize = (0..layout.blocks as usize)
                .filter_map(|block| upload.tile_and_bundle(row, block))
                .map(|(tile, _)| {
                    let (down, across) = tile_index(upload, tile);
                    heights[down as usize] * widths[across as usize]
                })
                .sum();
            if useful > 0 {
                rows.push((row, useful));
            }
        }
        let per_ciphertext = (1u64 << answer.merge) * u64::from(answer.output_blocks);
        Ok(AnswerMap {
            layer: answer.layer,
            term: answer.term,
            upload: answer.upload as usize,
            conv: conv.clone(),
            in_channels: upload.shape().c,
            output,
            merge: answer.merge,
            output_blocks: answer.output_blocks,
            chunks: u64::from(output.c).div_ceil(per_ciphertext) as usize,
            rows,
            bundles: upload.bundles(),
        })
    }

    /// Layer of the circuit.
    pub fn layer(&self) -> u32 {
        self.layer
    }

    /// Term of the layer.
    pub fn term(&self) -> u32 {
        self.term
    }

    /// Index of the upload it reads.
    pub fn upload(&self) -> usize {
        self.upload
    }

    /// The convolution.
    pub fn conv(&self) -> &Conv {
        &self.conv
    }

    /// Shape of the convolution's result.
    pub fn output(&self) -> Shape {
        self.output
    }

    /// Numbers that the answer holds: the output's elements times the bundles.
    pub fn len(&self) -> usize {
        self.output.len() * self.bundles
    }

    /// Returns true if the answer holds no number, which no verified packing has.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of ciphertexts: the upload's rows with useful outputs times [`AnswerMap::chunks`].
    pub fn ciphertexts(&self) -> usize {
        self.rows.len() * self.chunks
    }

    /// Ciphertexts that share their input ciphertexts.
    pub fn chunks(&self) -> usize {
        self.chunks
    }

    /// The upload's rows with useful outputs.
    pub fn rows(&self) -> impl ExactSizeIterator<Item = usize> + '_ {
        self.rows.iter().map(|(row, _)| *row)
    }

    /// Weights of the convolution: `out * in / groups * kernel_h * kernel_w`.
    pub fn weights(&self, upload: &UploadMap) -> usize {
        self.conv.weight_count(upload.shape())
    }

    /// The ciphertexts of each row that hold input channels of chunk `chunk`: all of them but for
    /// grouped convolutions. Kernels of the others are zero, and are neither made nor multiplied.
    pub fn groups_read(&self, upload: &UploadMap, chunk: usize) -> Range<usize> {
        let first = chunk * self.channels_per_ciphertext();
        let last = first
            + self
                .channels_left(chunk)
                .min(self.channels_per_ciphertext())
            - 1;
        let (from, to) = (
            self.channels_read(first as u32),
            self.channels_read(last as u32),
        );
        let layout = upload.layout();
        let phases = (layout.stride.0 * layout.stride.1) as usize;
        let group = layout.group as usize;
        from.start as usize * phases / group..(to.end as usize * phases).div_ceil(group)
    }

    /// The input channels that an output channel reads.
    fn channels_read(&self, channel: u32) -> Range<u32> {
        group_reads(self.conv.groups, (self.in_channels, self.output.c), channel)
    }

    /// Levels of merging.
    pub fn merge(&self) -> u32 {
        self.merge
    }

    /// Groups of merged output channels that lie behind each other in one ciphertext.
    pub fn output_blocks(&self) -> usize {
        self.output_blocks as usize
    }

    /// Kernel polynomials of chunk `chunk`: one per place of the merge that has an output channel.
    pub fn kernels(&self, chunk: usize) -> usize {
        self.channels_left(chunk).min(1 << self.merge)
    }

    fn channels_left(&self, chunk: usize) -> usize {
        self.output.c as usize - chunk * self.channels_per_ciphertext()
    }

    fn channels_per_ciphertext(&self) -> usize {
        (self.output_blocks as usize) << self.merge
    }

    /// Counts the useful coefficients of ciphertext `index` without listing them.
    pub fn useful_count(&self, index: usize) -> usize {
        let (_, per_channel) = self.rows[index / self.chunks];
        per_channel
            * self
                .channels_left(index % self.chunks)
                .min(self.channels_per_ciphertext())
    }

    /// The useful coefficients of ciphertext `index`, in ascending order. `upload` is the map of
    /// [`AnswerMap::upload`].
    ///
    /// # Panics
    /// If `index >= ciphertexts()`.
    pub fn useful(&self, upload: &UploadMap, index: usize) -> Vec<Useful> {
        let (row, chunk) = (self.rows[index / self.chunks].0, index % self.chunks);
        let layout = upload.layout();
        let places = 1u32 << self.merge;
        let gap = layout.group / places;
        let first_channel = (chunk * self.channels_per_ciphertext()) as u32;
        let mut out = Vec::with_capacity(self.useful_count(index));
        // Either blocks of the upload or output blocks: one of the two loops has a single turn.
        for block in 0..layout.blocks {
            let Some((tile, bundle)) = upload.tile_and_bundle(row, block as usize) else {
                break;
            };
            let tile = tile_index(upload, tile);
            let rows: Vec<_> = upload.output_rows(tile.0, self.output.h).collect();
            let width = output_columns(layout, tile.1, self.output);
            for output_block in 0..self.output_blocks {
                let channel = first_channel + output_block * places;
                let channels = self.output.c.saturating_sub(channel).min(places);
                let base = (block + output_block) * layout.block;
                for &(i, stacked, y) in &rows {
                    let first_element = (bundle as u32 + stacked) * self.output.len() as u32;
                    for j in 0..width {
                        let flat = base + i * layout.row_stride + j;
                        let x = tile.1 * layout.tile.1 + j;
                        out.extend((0..channels).map(|place| Useful {
                            coefficient: flat * layout.group + place * gap,
                            element: first_element
                                + ((channel + place) * self.output.h + y) * self.output.w
                                + x,
                        }));
                    }
                }
            }
        }
        out
    }

    /// The taps that fall on the input channels of `group`, by ascending weight; the same for every
    /// output channel that reads these channels.
    pub fn taps(&self, upload: &UploadMap, group: usize) -> Vec<Tap> {
        let layout = upload.layout();
        let channels = upload.channels(group);
        let phases = (layout.stride.0 * layout.stride.1) as usize;
        let vertical = Taps::vertical(layout, &self.conv);
        let horizontal = Taps::horizontal(layout, &self.conv);
        let mut out = Vec::new();
        for channel in channels.start / phases..channels.end.div_ceil(phases) {
            for k in 0..self.conv.kernel.0 {
                for l in 0..self.conv.kernel.1 {
                    let (row, column) = (vertical.offset + k, horizontal.offset + l);
                    let phase =
                        (row % layout.stride.0) * layout.stride.1 + column % layout.stride.1;
                    let virtual_channel = channel * phases + phase as usize;
                    if channels.contains(&virtual_channel) {
                        let flat =
                            row / layout.stride.0 * layout.row_stride + column / layout.stride.1;
                        let place = (virtual_channel - channels.start) as u32;
                        out.push(Tap {
                            shift: flat * layout.group + place,
                            weight: (channel as u32 * self.conv.kernel.0 + k) * self.conv.kernel.1
                                + l,
                        });
                    }
                }
            }
        }
        out
    }

    /// The kernel polynomial of place `place` of chunk `chunk`, for the group that `taps` are of:
    /// every weight of its output channels there, zero or not.
    pub fn kernel<'a>(
        &'a self,
        upload: &'a UploadMap,
        taps: &'a [Tap],
        chunk: usize,
        place: usize,
    ) -> impl Iterator<Item = Placement> + 'a {
        let layout: &Layout = upload.layout();
        let degree = upload.ring_degree() as u32;
        let area = self.conv.kernel.0 * self.conv.kernel.1;
        let per_channel = self.in_channels / self.conv.groups * area;
        let first = (chunk * self.channels_per_ciphertext() + place) as u32;
        (0..self.output_blocks)
            .map(move |block| (block, first + (block << self.merge)))
            .filter(|(_, channel)| *channel < self.output.c)
            .flat_map(move |(block, channel)| {
                let base = block * layout.block * layout.group;
                let read = self.channels_read(channel);
                let before = |end: u32| taps.partition_point(|tap| tap.weight < end * area);
                let own = &taps[before(read.start)..before(read.end)];
                own.iter().map(move |tap| Placement {
                    coefficient: if base >= tap.shift {
                        base - tap.shift
                    } else {
                        degree + base - tap.shift
                    },
                    negative: base < tap.shift,
                    weight: channel * per_channel + tap.weight - read.start * area,
                })
            })
    }
}

/// Row and column of tile `index` of an upload.
fn tile_index(upload: &UploadMap, index: usize) -> (u32, u32) {
    let across = upload.tiles().1 as usize;
    ((index / across) as u32, (index % across) as u32)
}
