//! Means and maxima over windows.

use super::linear::{Geometry, Layout, both, padded};
use super::{At, Converter};
use crate::field::Function;
use crate::net::{RAW, Reading, Window};
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
                let view = this.mean(at.name, part, (true, true))?;
                Ok(Part::of(
                    at.name,
                    View {
                        order: layout.order(),
                        ..view
                    },
                ))
            }),
            "GlobalMaxPool" => {
                let live = self.read_whole(at.name, live)?;
                self.each(&live, |this, part| {
                    Layout::of(&part.view)?;
                    this.largest_of(at.name, part, (true, true))
                })
            }
            "ReduceMean" | "ReduceSum" | "ReduceMax" => self.reduce(at, live),
            "MaxPool" => {
                let live = self.read_whole(at.name, live)?;
                self.each(&live, |this, part| this.window(at, part))
            }
            _ => self.each(live, |this, part| this.window(at, part)),
        }
    }

    /// The tensor without channels that nobody reads: each would cost ReLUs.
    fn read_whole(&mut self, name: &str, live: &Live) -> Result<Live, String> {
        match live.leaves_out() {
            false => Ok(live.clone()),
            true => Ok(Live::one(Part::of(name, self.net.joined(name, live)?))),
        }
    }

    /// The largest over rows, columns or both.
    fn largest_of(
        &mut self,
        name: &str,
        part: &Part,
        (rows, columns): (bool, bool),
    ) -> Result<Part, String> {
        let part = self.net.settle_if_padded(part)?;
        let shape = part.view.shape;
        let kernel = (
            if rows { shape.h } else { 1 },
            if columns { shape.w } else { 1 },
        );
        let geometry = Geometry {
            kernel,
            stride: (1, 1),
            dilation: (1, 1),
            padding: Padding::default(),
        };
        self.max_pool(name, &part, &geometry, (0, 0))
    }

    /// The mean over rows, columns or both.
    fn mean(
        &mut self,
        name: &str,
        part: &Part,
        (rows, columns): (bool, bool),
    ) -> Result<View, String> {
        let view = self.net.settle(part)?;
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

    /// ReduceMean, ReduceSum or ReduceMax over rows, columns or both.
    fn reduce(&mut self, at: At<'_>, live: &Live) -> Result<Live, String> {
        let rank = live.rank();
        let numbers = match at.axes()? {
            Some(axes) if !axes.is_empty() => axes,
            _ if at.attributes.int("noop_with_empty_axes", 0)? != 0 => return Ok(live.clone()),
            _ => (0..rank as i64).collect(),
        };
        let mut reduced = vec![false; rank];
        for number in numbers {
            reduced[axis(number, rank)?] = true;
        }
        let keep = at.attributes.int("keepdims", 1)? != 0;
        const CHANNELS: &str = "it reduces channels: only rows and columns may be reduced";
        if !live.is_one() && reduced[live.axis] {
            return Err(CHANNELS.into());
        }
        let live = &match at.operator {
            "ReduceMax" => self.read_whole(at.name, live)?,
            _ => live.clone(),
        };
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
                return Err(CHANNELS.into());
            }
            let sides = (has(Axis::H), has(Axis::W));
            let kept = order.iter().zip(&reduced);
            let order = kept.filter_map(|(group, &cut)| match (cut, keep) {
                (false, _) => Some(group.clone()),
                (true, true) => Some(Vec::new()),
                (true, false) => None,
            });
            let order = order.collect();
            let own = match at.operator {
                "ReduceMax" => this.largest_of(at.name, part, sides)?,
                _ => Part::of(at.name, this.mean(at.name, part, sides)?),
            };
            let view = View { order, ..own.view };
            Ok(Part { view, ..own })
        })?;
        let gone = match keep {
            true => 0,
            false => reduced[..live.axis].iter().filter(|&&cut| cut).count(),
        };
        let result = Live {
            axis: result.axis - gone,
            ..result
        };
        if at.operator != "ReduceSum" {
            return Ok(result);
        }
        let dims = live.dims();
        let cut = dims.iter().zip(&reduced).filter(|(_, cut)| **cut);
        let count: usize = cut.map(|(dim, _)| dim).product();
        self.scaled(at.name, &result, count as f64)
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

    /// The mean over windows. Those at a border may have fewer elements than the others: then it is
    /// a sum of windows over the whole map and over parts of it, each of which has zeros around.
    fn average(
        &mut self,
        at: At<'_>,
        part: &Part,
        geometry: &Geometry,
        beyond: (u32, u32),
    ) -> Result<Part, String> {
        let view = self.net.compute(part)?;
        let all = at.attributes.int("count_include_pad", 0)? != 0;
        let (own, around) = (geometry.padding, part.padding);
        let height = around.top + view.shape.h + around.bottom;
        let rows = Side::new(height, (own.top, own.bottom), beyond.0, all);
        let width = around.left + view.shape.w + around.right;
        let columns = Side::new(width, (own.left, own.right), beyond.1, all);
        let Geometry {
            kernel,
            stride,
            dilation,
            ..
        } = geometry;
        let rows = Means::new(&rows, kernel.0, dilation.0, stride.0)?;
        let columns = Means::new(&columns, kernel.1, dilation.1, stride.1)?;
        let pieces = rows.pieces.len() * columns.pieces.len();
        if pieces > MOST_PIECES {
            return Err(format!(
                "its windows at the border have too many different numbers of elements: export it \
                 with count_include_pad 1, or without padding (it would take {pieces} layers)"
            ));
        }
        let mut sum = None;
        let columns = columns.readings(view.shape.w, own.left + around.left);
        for (read_rows, place_rows) in rows.readings(view.shape.h, own.top + around.top) {
            for (read_columns, place_columns) in &columns {
                let (id, _) = self.net.read(at.name, view.id, &read_rows, read_columns)?;
                let (id, shape) = self.net.read(at.name, id, &place_rows, place_columns)?;
                sum = Some(match sum {
                    None => (id, shape),
                    Some((sum, _)) => self.net.emit(at.name, Op::Add, vec![sum, id])?,
                });
            }
        }
        let (id, shape) = sum.expect("a pool has windows");
        if self.net.never_negative(view.id) {
            self.net.say_never_negative(id);
        }
        if pieces > 1 {
            self.notes.push(format!(
                "{} (AveragePool): windows at the border have fewer elements, which takes {pieces} \
                 layers instead of one; count_include_pad 1 without ceil_mode would not",
                at.name
            ));
        }
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
        if relu && view.id == RAW {
            return Err("it reads a Relu of the input itself".into());
        }
        let mut at = (view.id, view.shape);
        let across = Line {
            size: view.shape.w,
            kernel: geometry.kernel.1,
            dilation: geometry.dilation.1,
            stride: geometry.stride.1,
            padding: (padding.left, padding.right),
            rows: false,
        };
        let mut relus = 0;
        at = self.max_along(name, at, &across, &mut relus)?;
        let down = Line {
            size: view.shape.h,
            kernel: geometry.kernel.0,
            dilation: geometry.dilation.0,
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
        if (line.kernel, line.stride, line.padding) == (1, 1, (0, 0)) {
            return Ok((x, shape));
        }
        let windows = line.windows()?;
        let (mut from, mut before) = (x, line.padding.0);
        if !line.reads_something(windows) {
            // Zeros of their own: where nothing is read, shares would not be random.
            let window = Window {
                taps: &[1.0],
                kernel: (1, 1),
                stride: (1, 1),
                padding: line.zeros(),
            };
            (from, before) = (self.net.window(name, x, &window)?.0, 0);
        }
        // One element of each window: a choice of rows or columns, which costs nothing.
        let element = |this: &mut Self, tap: u32| {
            let first = (tap * line.dilation) as i32 - before as i32;
            let window = pi_ir::Window {
                kernel: (1, 1),
                stride: line.along(line.stride, 1),
                origin: line.along(first, 0),
                count: match line.rows {
                    true => (windows, shape.w),
                    false => (shape.h, windows),
                },
            };
            this.net.emit(name, Op::WindowSum(window), vec![from])
        };
        let (first, shape) = element(self, 0)?;
        let (mut largest, mut rises) = (first, Vec::new());
        for tap in 1..line.kernel {
            // How far the next element is above the largest so far, first and all rises.
            let mut above = element(self, tap)?.0;
            for &part in [first].iter().chain(&rises) {
                above = self.net.emit(name, Op::Sub, vec![above, part])?.0;
            }
            let relu = Op::Activation {
                kinds: vec![ActivationKind::Relu; shape.len()],
                coefficients: Vec::new(),
            };
            let (rise, _) = self.net.emit(name, relu, vec![above])?;
            *relus += shape.len();
            rises.push(rise);
            largest = self.net.emit(name, Op::Add, vec![largest, rise])?.0;
        }
        Ok((largest, shape))
    }
}

/// Layers that one AveragePool may take: of windows of 3x3 it takes 4, of 5x5 9.
const MOST_PIECES: usize = 16;

/// What windows along one axis cover.
struct Side {
    /// Elements with all padding.
    whole: u32,
    /// Those of them before the map.
    before: u32,
    /// Places that count, from the map's first element on.
    counted: std::ops::Range<i64>,
}

impl Side {
    /// A map of `size` elements with padding, and what rounding up lets windows reach; only the
    /// padding may count.
    fn new(size: u32, padding: (u32, u32), beyond: u32, padding_counts: bool) -> Self {
        let counted = match padding_counts {
            true => -i64::from(padding.0)..i64::from(size + padding.1),
            false => 0..i64::from(size),
        };
        Side {
            whole: padding.0 + size + padding.1 + beyond,
            before: padding.0,
            counted,
        }
    }
}

/// Means over windows along one axis, as a sum over stretches of windows.
struct Means {
    /// Taps of a window that is whole.
    taps: Vec<f64>,
    stride: u32,
    windows: u32,
    /// Factor, first window, and the window behind the last.
    pieces: Vec<(f64, u32, u32)>,
}

impl Means {
    fn new(side: &Side, kernel: u32, dilation: u32, stride: u32) -> Result<Self, String> {
        let (before, counted) = (side.before, side.counted.clone());
        let reach = (kernel - 1) * dilation + 1;
        let rest = side.whole.checked_sub(reach);
        let windows = rest.ok_or("its windows are larger than its input")? / stride + 1;
        let count = |window: u32| {
            let first = i64::from(window * stride) - i64::from(before);
            // The first tap at or behind an element.
            let tap = |element: i64| {
                let step = i64::from(dilation);
                (element - first + step - 1)
                    .div_euclid(step)
                    .clamp(0, kernel.into())
            };
            (tap(counted.end) - tap(counted.start)).max(0)
        };
        let counts: Vec<i64> = (0..windows).map(count).collect();
        if counts.contains(&0) {
            return Err(
                "a window lies in padding as a whole, and has no mean: pads must be smaller than \
                 the window"
                    .into(),
            );
        }
        let mut taps = vec![0.0; reach as usize];
        let share = 1.0 / f64::from(kernel);
        (0..kernel).for_each(|tap| taps[(tap * dilation) as usize] = share);
        // The factor of the windows at the ends of a stretch holds for all of it; what is left over
        // is a shorter stretch.
        let factor = |count: i64| f64::from(kernel) / count as f64;
        let (mut pieces, mut known) = (Vec::new(), 0.0);
        let (mut first, mut end) = (0, counts.len());
        while first < end {
            pieces.push((factor(counts[first]) - known, first as u32, end as u32));
            let own = counts[first];
            known = factor(own);
            first += { counts[first..end].iter() }
                .take_while(|&&c| c == own)
                .count();
            end -= { counts[first..end].iter() }
                .rev()
                .take_while(|&&c| c == own)
                .count();
        }
        Ok(Means {
            taps,
            stride,
            windows,
            pieces,
        })
    }

    /// For each stretch, how it is read, and how it is put into its place.
    fn readings(&self, size: u32, before: u32) -> Vec<(Reading, Reading)> {
        let reading = |&(factor, first, end): &(f64, u32, u32)| {
            let start = i64::from(first * self.stride) - i64::from(before);
            (
                Reading::new(size, start, &self.taps, self.stride, end - first),
                Reading::placed(factor, (first, self.windows - end)),
            )
        };
        self.pieces.iter().map(reading).collect()
    }
}

/// Windows along one axis.
struct Line {
    size: u32,
    kernel: u32,
    dilation: u32,
    stride: u32,
    padding: (u32, u32),
    rows: bool,
}

impl Line {
    /// A value for this axis beside one for the other, as rows and columns.
    fn along<T>(&self, own: T, other: T) -> (T, T) {
        match self.rows {
            true => (own, other),
            false => (other, own),
        }
    }

    /// The padding, as zeros around a map.
    fn zeros(&self) -> Padding {
        let (top, left) = self.along(self.padding.0, 0);
        let (bottom, right) = self.along(self.padding.1, 0);
        Padding {
            top,
            left,
            bottom,
            right,
        }
    }

    fn windows(&self) -> Result<u32, String> {
        let reach = (self.kernel - 1) * self.dilation + 1;
        let rest = (self.size + self.padding.0 + self.padding.1).checked_sub(reach);
        Ok(rest.ok_or("its windows are larger than its input")? / self.stride + 1)
    }

    /// Whether the first or the second element of every window lies in the map.
    fn reads_something(&self, windows: u32) -> bool {
        let inside = |at: i64| (0..i64::from(self.size)).contains(&at);
        let second = if self.kernel > 1 { self.dilation } else { 0 };
        (0..windows).all(|window| {
            let first = i64::from(window) * i64::from(self.stride) - i64::from(self.padding.0);
            inside(first) || inside(first + i64::from(second))
        })
    }
}

/// Rows and columns behind the padding that `ceil_mode` lets windows reach into.
fn beyond(geometry: &Geometry, shape: Shape, ceil: bool) -> Result<(u32, u32), String> {
    let reach = geometry.reach()?;
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
        side(shape.h, top, bottom, reach.0, geometry.stride.0)?,
        side(shape.w, left, right, reach.1, geometry.stride.1)?,
    ))
}
