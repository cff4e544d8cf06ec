//! Means and maxima over windows.

use super::linear::{Geometry, Layout, both, padded};
use super::{At, Converter};
use crate::field::Function;
use crate::net::Window;
use crate::tensor::axis;
use crate::value::{Axis, Live, Part, View};
use pi_ir::{ActivationKind, NodeId, Op, Padding, Shape};

/// The longest side of a window whose maximum is taken.
const LONGEST: u32 = 16;

impl Converter<'_> {
    pub(super) fn pool(&mut self, at: At<'_>) -> Result<Live, String> {
        let live = at.live(0)?;
        match at.operator {
            "GlobalAveragePool" => self.each(live, |this, part| {
                let layout = Layout::of(&part.view)?;
                let view = this.mean(at.name, part, None)?;
                Ok(Part::of(
                    at.name,
                    View {
                        order: layout.order(),
                        ..view
                    },
                ))
            }),
            "ReduceMean" => self.reduce_mean(at, live),
            _ => self.each(live, |this, part| this.window(at, part)),
        }
    }

    /// The mean over rows, columns or both; over all if nothing is said.
    fn mean(
        &mut self,
        name: &str,
        part: &Part,
        sides: Option<(bool, bool)>,
    ) -> Result<View, String> {
        let view = self.net.settle(part)?;
        let (rows, columns) = sides.unwrap_or((true, true));
        let kernel = (
            if rows { view.shape.h } else { 1 },
            if columns { view.shape.w } else { 1 },
        );
        if kernel == (1, 1) {
            return Ok(view);
        }
        let op = Op::AvgPool {
            kernel,
            stride: kernel,
        };
        let (id, shape) = self.net.emit(name, op, vec![view.id])?;
        Ok(View { id, shape, ..view })
    }

    fn reduce_mean(&mut self, at: At<'_>, live: &Live) -> Result<Live, String> {
        let axes = at.axes()?;
        let rank = live.rank();
        let numbers = match axes {
            Some(axes) => axes,
            None => (0..rank as i64).collect(),
        };
        let mut reduced = vec![false; rank];
        for number in numbers {
            reduced[axis(number, rank)?] = true;
        }
        let keep = at.attributes.int("keepdims", 1)? != 0;
        if live.parts.len() > 1 && reduced[live.axis] {
            return Err("it takes a mean over channels".into());
        }
        let mut gone = 0;
        let result = self.each(live, |this, part| {
            let order = &part.view.order;
            let has = |wanted: Axis| {
                (order.iter().zip(&reduced)).any(|(group, &cut)| cut && group.contains(&wanted))
            };
            let whole = order.iter().zip(&reduced).all(|(group, &cut)| {
                // A flattened dimension is rows and columns together, or it has channels.
                !cut || !group.contains(&Axis::C) || part.view.shape.c == 1
            });
            if !whole {
                return Err(
                    "it takes a mean over channels: only rows and columns may be reduced".into(),
                );
            }
            let view = this.mean(at.name, part, Some((has(Axis::H), has(Axis::W))))?;
            let kept = order.iter().zip(&reduced);
            let order = kept.filter_map(|(group, &cut)| match (cut, keep) {
                (false, _) => Some(group.clone()),
                (true, true) => Some(Vec::new()),
                (true, false) => None,
            });
            let order = order.collect();
            gone = match keep {
                true => 0,
                false => reduced[..live.axis].iter().filter(|&&cut| cut).count(),
            };
            Ok(Part::of(at.name, View { order, ..view }))
        })?;
        Ok(Live {
            axis: result.axis - gone,
            ..result
        })
    }

    /// `AveragePool` or `MaxPool` of one part.
    fn window(&mut self, at: At<'_>, part: &Part) -> Result<Part, String> {
        let layout = Layout::of(&part.view)?;
        let kernel = at.attributes.ints("kernel_shape")?;
        let kernel = kernel.ok_or("kernel_shape is missing")?;
        let sides = kernel.iter().map(|&n| u32::try_from(n).ok());
        let sides: Option<Vec<u32>> = sides
            .map(|n| n.filter(|n| (1..=1 << 14).contains(n)))
            .collect();
        let sides = sides.filter(|sides| sides.len() == layout.spatial());
        let sides = sides.ok_or_else(|| {
            format!(
                "kernel_shape is {kernel:?}; {} sizes are expected",
                layout.spatial()
            )
        })?;
        let shape = padded(part);
        let geometry = Geometry::new(at.attributes, layout, &sides, shape)?;
        if geometry.dilation != (1, 1) {
            return Err("dilations other than 1 are not supported here".into());
        }
        let ceil = at.attributes.int("ceil_mode", 0)? != 0;
        // Zeros that only rounding up adds.
        let beyond = beyond(&geometry, shape, ceil)?;
        let view = match at.operator {
            "AveragePool" => self.average(at, part, &geometry, beyond)?,
            _ => self.max_pool(at.name, part, &geometry, beyond)?,
        };
        let part = Part::of(
            at.name,
            View {
                order: layout.order(),
                ..view.view
            },
        );
        Ok(Part {
            function: view.function,
            ..part
        })
    }

    fn average(
        &mut self,
        at: At<'_>,
        part: &Part,
        geometry: &Geometry,
        beyond: (u32, u32),
    ) -> Result<Part, String> {
        let (own, none) = (geometry.padding, Padding::default());
        if beyond != (0, 0) {
            return Err(
                "ceil_mode makes windows of fewer elements at the border: export it with \
                 ceil_mode 0"
                    .into(),
            );
        }
        if own != none && at.attributes.int("count_include_pad", 0)? == 0 {
            return Err(
                "windows at the border have fewer elements: export it with count_include_pad 1, or \
                 without padding"
                    .into(),
            );
        }
        let view = self.net.compute(part)?;
        let (kernel, stride) = (geometry.kernel, geometry.stride);
        let padding = both(own, part.padding);
        let (id, shape) = if padding == none {
            self.net
                .emit(at.name, Op::AvgPool { kernel, stride }, vec![view.id])?
        } else {
            let count = kernel.0 as usize * kernel.1 as usize;
            let window = Window {
                taps: &vec![1.0 / count as f64; count],
                kernel,
                stride,
                padding,
            };
            self.net.window(at.name, view.id, &window)?
        };
        Ok(Part::of(at.name, View { id, shape, ..view }))
    }

    /// The maximum by ReLUs: `max(a, b) = a + relu(b - a)`, along rows and then along columns.
    fn max_pool(
        &mut self,
        name: &str,
        part: &Part,
        geometry: &Geometry,
        beyond: (u32, u32),
    ) -> Result<Part, String> {
        if geometry.kernel.0.max(geometry.kernel.1) > LONGEST {
            return Err(format!(
                "windows of {}x{} are too large for a maximum: use AveragePool",
                geometry.kernel.0, geometry.kernel.1
            ));
        }
        // A ReLU goes on behind the maximum: that is the same, and one for each window is enough.
        let relu = part.function.is_relu();
        let view = match relu {
            true => part.view.clone(),
            false => self.net.compute(part)?,
        };
        let mut padding = both(geometry.padding, part.padding);
        padding.bottom += beyond.0;
        padding.right += beyond.1;
        let never_negative = relu || self.net.never_negative(view.id);
        let own = Padding {
            bottom: geometry.padding.bottom + beyond.0,
            right: geometry.padding.right + beyond.1,
            ..geometry.padding
        };
        // Zeros of the model's own Pad are numbers like others, and take part anyway.
        if own != Padding::default() && !never_negative {
            return Err(
                "it pads a tensor that can be negative, and zeros would win: put a Relu before or \
                 behind it, or export it without padding"
                    .into(),
            );
        }
        if relu && view.id == NodeId(0) {
            return Err("it reads a Relu of the input itself".into());
        }
        let mut at = (view.id, view.shape);
        let across = Line {
            size: view.shape.w,
            kernel: geometry.kernel.1,
            stride: geometry.stride.1,
            padding: (padding.left, padding.right),
            rows: false,
        };
        let mut relus = 0;
        at = self.max_along(name, at, &across, &mut relus)?;
        let down = Line {
            size: view.shape.h,
            kernel: geometry.kernel.0,
            stride: geometry.stride.0,
            padding: (padding.top, padding.bottom),
            rows: true,
        };
        at = self.max_along(name, at, &down, &mut relus)?;
        self.notes.push(format!(
            "{name} (MaxPool): takes {relus} ReLUs; AveragePool would take none"
        ));
        Ok(Part {
            function: if relu {
                Function::relu()
            } else {
                Function::identity()
            },
            ..Part::of(
                name,
                View {
                    id: at.0,
                    shape: at.1,
                    ..view
                },
            )
        })
    }

    fn max_along(
        &mut self,
        name: &str,
        (x, shape): (NodeId, Shape),
        line: &Line,
        relus: &mut usize,
    ) -> Result<(NodeId, Shape), String> {
        let Line {
            size,
            kernel,
            stride,
            padding,
            rows,
        } = *line;
        if (kernel, stride, padding) == (1, 1, (0, 0)) {
            return Ok((x, shape));
        }
        let pair = |n: u32| if rows { (n, 1) } else { (1, n) };
        let zeros = match rows {
            true => Padding {
                top: padding.0,
                bottom: padding.1,
                ..Padding::default()
            },
            false => Padding {
                left: padding.0,
                right: padding.1,
                ..Padding::default()
            },
        };
        let windows = (size + padding.0 + padding.1).checked_sub(kernel);
        let windows = windows.ok_or("its windows are larger than its input")? / stride + 1;
        let picks = |taps: &[(u32, f64)]| {
            let mut all = vec![0.0; kernel as usize];
            taps.iter()
                .for_each(|&(tap, weight)| all[tap as usize] = weight);
            all
        };
        let read = |this: &mut Self, taps: &[(u32, f64)]| {
            let window = Window {
                taps: &picks(taps),
                kernel: pair(kernel),
                stride: pair(stride),
                padding: zeros,
            };
            this.net.window(name, x, &window)
        };
        // The first element of each window: without padding a pool of single elements, which costs
        // nothing.
        let plain = padding.0 == 0 && size.div_ceil(stride) == windows;
        let first = match plain {
            true if stride == 1 => (x, shape),
            true => {
                let op = Op::AvgPool {
                    kernel: (1, 1),
                    stride: pair(stride),
                };
                self.net.emit(name, op, vec![x])?
            }
            false => read(self, &[(0, 1.0)])?,
        };
        let (mut largest, mut risen) = (first.0, None);
        for tap in 1..kernel {
            // How far the next element is above the largest so far, first + risen.
            let (mut above, shape) = read(self, &[(0, -1.0), (tap, 1.0)])?;
            if let Some(risen) = risen {
                let minus = Window {
                    taps: &[-1.0],
                    kernel: (1, 1),
                    stride: (1, 1),
                    padding: Padding::default(),
                };
                let (minus, _) = self.net.window(name, risen, &minus)?;
                above = self.net.emit(name, Op::Add, vec![above, minus])?.0;
            }
            let relu = Op::Activation {
                kinds: vec![ActivationKind::Relu; shape.len()],
                coefficients: Vec::new(),
            };
            let (relu, _) = self.net.emit(name, relu, vec![above])?;
            *relus += shape.len();
            risen = Some(match risen {
                None => relu,
                Some(risen) => self.net.emit(name, Op::Add, vec![risen, relu])?.0,
            });
            largest = self.net.emit(name, Op::Add, vec![largest, relu])?.0;
        }
        Ok((largest, first.1))
    }
}

/// Windows along one axis.
struct Line {
    size: u32,
    kernel: u32,
    stride: u32,
    padding: (u32, u32),
    rows: bool,
}

/// Rows and columns behind the padding that `ceil_mode` lets windows reach into.
fn beyond(geometry: &Geometry, shape: Shape, ceil: bool) -> Result<(u32, u32), String> {
    let side = |size: u32, before: u32, after: u32, kernel: u32, stride: u32| {
        let rest = (size + before + after).checked_sub(kernel);
        let rest = rest.ok_or("its windows are larger than its input")?;
        if !ceil || rest % stride == 0 {
            return Ok(0);
        }
        // A window that would begin in the padding behind is left out.
        let last = rest.div_ceil(stride) * stride;
        Ok::<u32, String>(match last >= size + before {
            true => 0,
            false => last + kernel - (size + before + after),
        })
    };
    let Padding {
        top,
        left,
        bottom,
        right,
    } = geometry.padding;
    Ok((
        side(shape.h, top, bottom, geometry.kernel.0, geometry.stride.0)?,
        side(shape.w, left, right, geometry.kernel.1, geometry.stride.1)?,
    ))
}
