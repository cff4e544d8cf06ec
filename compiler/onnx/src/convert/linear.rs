//! Convolutions and dense layers.

use super::{At, Converter};
use crate::attributes::Attributes;
use crate::net::check_kernel;
use crate::value::{Axis, Live, Part, View, columns};
use pi_ir::{NodeId, Op, Padding, Shape};

/// Rows and columns of a window, as attributes give them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Geometry {
    pub(super) kernel: (u32, u32),
    pub(super) stride: (u32, u32),
    pub(super) dilation: (u32, u32),
    pub(super) padding: Padding,
}

/// How the spatial axes of a tensor lie in a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// `[n, c, h, w]`.
    Map,
    /// `[n, c, w]`.
    Row,
    /// `[n, c, h]`.
    Column,
}

impl Layout {
    /// The layout of a tensor that a window reads.
    ///
    /// # Errors
    /// If its axes are in another order.
    pub(super) fn of(view: &View) -> Result<Layout, String> {
        use Axis::{C, H, W};
        let rank = view.order.len();
        let channels = rank > 1 && view.is_only(1, C);
        match rank {
            4 if channels && view.is_only(2, H) && view.is_only(3, W) => Ok(Layout::Map),
            3 if channels && view.is_only(2, W) && view.shape.h == 1 => Ok(Layout::Row),
            3 if channels && view.is_only(2, H) && view.shape.w == 1 => Ok(Layout::Column),
            3 | 4 => Err(
                "it reads a tensor whose axes are not batch, channels, rows, columns: put the \
                 Transpose elsewhere"
                    .into(),
            ),
            _ => Err(format!(
                "it reads a tensor of {rank} axes; maps have 4, and signals 3"
            )),
        }
    }

    /// Axes behind the channels.
    pub(super) fn spatial(self) -> usize {
        match self {
            Layout::Map => 2,
            Layout::Row | Layout::Column => 1,
        }
    }

    fn spread(self, list: &[u32], default: u32) -> (u32, u32) {
        match (self, list) {
            (Layout::Map, [h, w]) => (*h, *w),
            (Layout::Row, [w]) => (default, *w),
            (Layout::Column, [h]) => (*h, default),
            _ => unreachable!("lists were checked"),
        }
    }

    /// The axes of a result.
    pub(super) fn order(self) -> Vec<Vec<Axis>> {
        let axes: &[&[Axis]] = match self {
            Layout::Map => &[&[], &[Axis::C], &[Axis::H], &[Axis::W]],
            Layout::Row => &[&[], &[Axis::C], &[Axis::W]],
            Layout::Column => &[&[], &[Axis::C], &[Axis::H]],
        };
        axes.iter().map(|axes| axes.to_vec()).collect()
    }
}

/// A list with one entry for each spatial axis.
fn list(attributes: Attributes<'_>, name: &str, axes: usize) -> Result<Vec<u32>, String> {
    let Some(found) = attributes.ints(name)? else {
        return Ok(vec![1; axes]);
    };
    let list: Option<Vec<u32>> = found
        .iter()
        .map(|&n| u32::try_from(n).ok().filter(|n| (1..=1 << 14).contains(n)))
        .collect();
    match list {
        Some(list) if list.len() == axes => Ok(list),
        _ => Err(format!(
            "{name} is {found:?}; {axes} numbers from 1 to 16384 are expected"
        )),
    }
}

impl Geometry {
    /// The window of a node that reads maps of `shape`.
    pub(super) fn new(
        attributes: Attributes<'_>,
        layout: Layout,
        kernel: &[u32],
        shape: Shape,
    ) -> Result<Geometry, String> {
        let axes = layout.spatial();
        let stride = layout.spread(&list(attributes, "strides", axes)?, 1);
        let dilation = layout.spread(&list(attributes, "dilations", axes)?, 1);
        let kernel = layout.spread(kernel, 1);
        let mut geometry = Geometry {
            kernel,
            stride,
            dilation,
            padding: Padding::default(),
        };
        let reach = geometry.reach()?;
        let (before, after) = match attributes.string("auto_pad", "NOTSET")? {
            "NOTSET" => {
                let pads = match attributes.ints("pads")? {
                    None => vec![0; 2 * axes],
                    Some(pads) => pads.to_vec(),
                };
                let fine = |&n: &i64| (0..1 << 14).contains(&n);
                if pads.len() != 2 * axes || !pads.iter().all(fine) {
                    return Err(format!(
                        "pads are {pads:?}; {} numbers from 0 to 16383 are expected",
                        2 * axes
                    ));
                }
                let pads: Vec<u32> = pads.into_iter().map(|n| n as u32).collect();
                (
                    layout.spread(&pads[..axes], 0),
                    layout.spread(&pads[axes..], 0),
                )
            }
            "VALID" => ((0, 0), (0, 0)),
            same @ ("SAME_UPPER" | "SAME_LOWER") => {
                let total = |size: u32, stride: u32, reach: u32| {
                    ((size.div_ceil(stride) - 1) * stride + reach).saturating_sub(size)
                };
                let (h, w) = (
                    total(shape.h, stride.0, reach.0),
                    total(shape.w, stride.1, reach.1),
                );
                let (small, large) = ((h / 2, w / 2), (h.div_ceil(2), w.div_ceil(2)));
                if same == "SAME_UPPER" {
                    (small, large)
                } else {
                    (large, small)
                }
            }
            other => return Err(format!("auto_pad {other} is not known")),
        };
        geometry.padding = Padding {
            top: before.0,
            left: before.1,
            bottom: after.0,
            right: after.1,
        };
        Ok(geometry)
    }

    /// Rows and columns from a window's first tap to its last, both included.
    pub(super) fn reach(&self) -> Result<(u32, u32), String> {
        let side = |kernel: u32, dilation: u32| {
            let reach = (kernel - 1)
                .checked_mul(dilation)
                .and_then(|n| n.checked_add(1));
            reach
                .filter(|&n| n <= 1 << 14)
                .ok_or("its windows are too large")
        };
        Ok((
            side(self.kernel.0, self.dilation.0)?,
            side(self.kernel.1, self.dilation.1)?,
        ))
    }
}

impl Converter<'_> {
    pub(super) fn conv(&mut self, at: At<'_>) -> Result<Live, String> {
        let (live, weight) = (at.live(0)?, at.constant(1)?);
        let view = &live.parts[0].view;
        let layout = Layout::of(view)?;
        if !live.is_one() && live.axis != 1 {
            return Err("it reads a concatenation that is not along channels".into());
        }
        let rank = weight.dims.len();
        if rank != 2 + layout.spatial() {
            return Err(format!(
                "its weights have {rank} axes, and its input {}",
                live.rank()
            ));
        }
        let kernel = &weight.dims[2..];
        let sides = kernel.iter().map(|&n| u32::try_from(n).ok());
        let sides: Option<Vec<u32>> = sides
            .map(|n| n.filter(|n| (1..=1 << 14).contains(n)))
            .collect();
        let sides = sides.ok_or_else(|| format!("its windows of {kernel:?} are too large"))?;
        if let Some(stated) = at.attributes.ints("kernel_shape")?
            && !stated
                .iter()
                .map(|&n| usize::try_from(n).ok())
                .eq(kernel.iter().map(|&n| Some(n)))
        {
            return Err(format!(
                "kernel_shape is {stated:?}, and its weights have {kernel:?}"
            ));
        }
        let (out, per_group) = (weight.dims[0], weight.dims[1]);
        let groups = at.attributes.int("group", 1)?;
        let groups = usize::try_from(groups).unwrap_or(0);
        let channels = live.dims()[1];
        if groups == 0 || per_group.checked_mul(groups) != Some(channels) || out % groups != 0 {
            return Err(format!(
                "weights of {:?} in {groups} groups do not fit {channels} channels",
                weight.dims
            ));
        }
        let bias = self.bias(at.constant_if(2)?, out)?;
        // All parts have the same rows and columns.
        let padded = padded(&live.parts[0]);
        let geometry = Geometry::new(at.attributes, layout, &sides, padded)?;
        let reach = geometry.reach()?;
        let taps = reach.0 as usize * reach.1 as usize;
        let values = weight.to_floats()?;
        let dense = Dense {
            values: &values,
            per_group,
            out_per_group: out / groups,
            geometry,
            reach,
        };
        let (mut first, places) = (0, live.places(1));
        let mut sum: Option<(NodeId, Shape)> = None;
        for part in &live.parts {
            let own = self.net.compute(part)?;
            let size = own.shape.c as usize;
            // Channels that are put together from parts, or picked, belong to no group.
            let (weight, groups) = match live.is_one() {
                true => {
                    check_kernel(out, per_group, taps)?;
                    (dense.grouped(out), groups as u32)
                }
                false => {
                    check_kernel(out, size, taps)?;
                    (dense.kernel(out, &places[first..first + size]), 1)
                }
            };
            let op = Op::Conv2d {
                weight,
                bias: if first == 0 { bias.clone() } else { Vec::new() },
                out_channels: out as u32,
                groups,
                kernel: reach,
                stride: geometry.stride,
                padding: both(geometry.padding, part.padding),
            };
            first += size;
            let conv = self.net.emit(at.name, op, vec![own.id])?;
            sum = Some(match sum {
                None => conv,
                Some((sum, _)) => self.net.emit(at.name, Op::Add, vec![sum, conv.0])?,
            });
        }
        let (id, shape) = sum.expect("a tensor has parts");
        let view = View {
            id,
            shape,
            order: layout.order(),
        };
        Ok(Live::one(Part::of(at.name, view)))
    }

    fn bias(
        &mut self,
        bias: Option<&crate::tensor::Tensor>,
        out: usize,
    ) -> Result<Vec<f32>, String> {
        let Some(bias) = bias else {
            return Ok(Vec::new());
        };
        let bias = bias.to_floats()?;
        match bias.len() == out {
            true => Ok(bias),
            false => Err(format!("{} biases for {out} channels", bias.len())),
        }
    }

    pub(super) fn gemm(&mut self, at: At<'_>) -> Result<Live, String> {
        let live = at.live(0)?;
        if live.rank() != 2 {
            return Err(format!("it reads a tensor of {} axes, not 2", live.rank()));
        }
        let live = &match at.attributes.int("transA", 0)? {
            0 => live.clone(),
            _ => live.transposed(&[1, 0]),
        };
        let weight = at.constant(1)?;
        let alpha = at.attributes.float("alpha", 1.0)?;
        let beta = at.attributes.float("beta", 1.0)?;
        let [rows, columns] = weight.dims[..] else {
            return Err(format!(
                "its weights have {} axes, not 2",
                weight.dims.len()
            ));
        };
        // [out][in]
        let (weight, inputs, out) = match at.attributes.int("transB", 0)? {
            0 => (weight.transposed(&[1, 0])?, rows, columns),
            _ => (weight.clone(), columns, rows),
        };
        let mut weight = weight.to_floats()?;
        weight.iter_mut().for_each(|w| *w *= alpha);
        let bias = match at.constant_if(2)? {
            None => Vec::new(),
            Some(bias) => {
                let spread = bias.broadcast(&[1, out])?.to_floats()?;
                spread.into_iter().map(|b| beta * b).collect()
            }
        };
        self.dense(at.name, live, &weight, inputs, bias)
    }

    pub(super) fn matmul(&mut self, at: At<'_>) -> Result<Live, String> {
        let (live, weight) = (at.live(0)?, at.constant(1)?);
        let [inputs, _] = weight.dims[..] else {
            return Err(format!(
                "its weights have {:?} elements; [inputs, outputs] are expected",
                weight.dims
            ));
        };
        let weight = weight.transposed(&[1, 0])?.to_floats()?;
        self.dense(at.name, live, &weight, inputs, Vec::new())
    }

    /// `y = W x + b` over the last axis of a vector.
    fn dense(
        &mut self,
        name: &str,
        live: &Live,
        weight: &[f32],
        inputs: usize,
        bias: Vec<f32>,
    ) -> Result<Live, String> {
        let dims = live.dims();
        let (&last, before) = dims.split_last().ok_or("it reads a tensor without axes")?;
        if last != inputs || before.iter().any(|&n| n != 1) {
            return Err(format!(
                "it reads a tensor of {dims:?}; one vector of {inputs} elements is expected"
            ));
        }
        if inputs == 0 || weight.is_empty() {
            return Err("its weights are empty".into());
        }
        if !live.is_one() && live.axis + 1 != dims.len() {
            return Err("it reads a concatenation along another axis than its last".into());
        }
        let out = weight.len() / inputs;
        let places = live.places(dims.len() - 1);
        let (mut first, mut sum) = (0, None);
        for part in &live.parts {
            let view = self.net.settle(part)?;
            let size = view.shape.len();
            check_kernel(out, size, 1)?;
            let own = &places[first..first + size];
            let picked = |row: &[f32]| -> Vec<f32> {
                let weights = own
                    .iter()
                    .map(|place| place.map_or(0.0, |place| row[place]));
                weights.collect()
            };
            let own: Vec<f32> = weight.chunks_exact(inputs).flat_map(picked).collect();
            let op = Op::Dense {
                weight: columns(&own, size, &view),
                bias: if first == 0 { bias.clone() } else { Vec::new() },
                out: u32::try_from(out).map_err(|_| "it has too many outputs")?,
            };
            first += size;
            let id = match (view.shape.h, view.shape.w) {
                (1, 1) => view.id,
                _ => {
                    self.net
                        .emit(&format!("{name}.flatten"), Op::Flatten, vec![view.id])?
                        .0
                }
            };
            let dense = self.net.emit(name, op, vec![id])?;
            sum = Some(match sum {
                None => dense,
                Some((sum, _)) => self.net.emit(name, Op::Add, vec![sum, dense.0])?,
            });
        }
        let (id, shape) = sum.expect("a tensor has parts");
        let mut order = vec![Vec::new(); dims.len()];
        order[dims.len() - 1] = vec![Axis::C];
        Ok(Live::one(Part::of(name, View { id, shape, order })))
    }
}

/// The weights of a convolution, perhaps in groups and dilated.
struct Dense<'a> {
    /// `[out][in of a group][kernel_h][kernel_w]`.
    values: &'a [f32],
    per_group: usize,
    out_per_group: usize,
    geometry: Geometry,
    reach: (u32, u32),
}

impl Dense<'_> {
    /// The kernel by groups, with zeros between taps.
    fn grouped(&self, out: usize) -> Vec<f32> {
        let (area, reach) = self.areas();
        let mut kernel = vec![0.0; out * self.per_group * reach];
        for (to, from) in kernel
            .chunks_exact_mut(reach)
            .zip(self.values.chunks_exact(area))
        {
            self.spread(from, to);
        }
        kernel
    }

    /// The kernel that reads channels at these places of the convolution's input, with zeros for
    /// those at none, between groups and between taps.
    fn kernel(&self, out: usize, channels: &[Option<usize>]) -> Vec<f32> {
        let (area, reach) = self.areas();
        let mut kernel = vec![0.0; out * channels.len() * reach];
        for (column, place) in channels.iter().enumerate() {
            let Some(place) = place else { continue };
            let (group, i) = (place / self.per_group, place % self.per_group);
            for o in group * self.out_per_group..(group + 1) * self.out_per_group {
                let to = &mut kernel[(o * channels.len() + column) * reach..][..reach];
                self.spread(&self.values[(o * self.per_group + i) * area..][..area], to);
            }
        }
        kernel
    }

    /// Taps of a window, and elements from its first to its last, both included.
    fn areas(&self) -> (usize, usize) {
        let area = |(rows, columns): (u32, u32)| rows as usize * columns as usize;
        (area(self.geometry.kernel), area(self.reach))
    }

    /// Puts the taps of a window to their places.
    fn spread(&self, from: &[f32], to: &mut [f32]) {
        let (columns, wide) = (self.geometry.kernel.1 as usize, self.reach.1 as usize);
        let (down, across) = self.geometry.dilation;
        for (tap, &weight) in from.iter().enumerate() {
            let (y, x) = (tap / columns, tap % columns);
            to[y * down as usize * wide + x * across as usize] = weight;
        }
    }
}

/// Padding around padding.
pub(super) fn both(a: Padding, b: Padding) -> Padding {
    Padding {
        top: a.top + b.top,
        left: a.left + b.left,
        bottom: a.bottom + b.bottom,
        right: a.right + b.right,
    }
}

/// The shape of a part with its padding.
pub(super) fn padded(part: &Part) -> Shape {
    let (shape, p) = (part.view.shape, part.padding);
    Shape {
        h: shape.h + p.top + p.bottom,
        w: shape.w + p.left + p.right,
        ..shape
    }
}
