//! Operators that move elements without changing them.

use super::linear::both;
use super::{At, Converter};
use crate::fold;
use crate::tensor::{axis, common, reshape};
use crate::value::{Axis, Live, Part, Value};
use pi_ir::{Padding, limits};

/// Tensors that one Concat may put side by side, those of Concats before it included.
const MOST_PARTS: usize = 4 * limits::TERMS;

impl Converter<'_> {
    pub(super) fn transpose(&mut self, at: At<'_>) -> Result<Value, String> {
        let value = at.value(0)?;
        let order = fold::order(at.attributes, value.dims()?.len())?;
        Ok(match value {
            Value::Apart(apart) => Value::Apart(apart.transposed(&order)),
            _ => Value::Live(at.live(0)?.transposed(&order)),
        })
    }

    /// The dimensions behind Flatten, Reshape, Squeeze or Unsqueeze.
    pub(super) fn wanted(&self, at: At<'_>, dims: &[usize]) -> Result<Vec<usize>, String> {
        match at.operator {
            "Flatten" => fold::flattened(dims, at.attributes.int("axis", 1)?),
            "Reshape" => {
                let mut wanted = at.constant(1)?.to_ints()?;
                // A batch that the file fixes is one image here.
                if let Some(first) = wanted.first_mut()
                    && self.batch > 1
                    && *first == self.batch as i64
                {
                    *first = 1;
                }
                reshape(dims, &wanted, at.attributes.int("allowzero", 0)? != 0)
            }
            "Squeeze" => fold::squeezed(dims, at.axes()?.as_deref()),
            _ => fold::unsqueezed(dims, &at.axes()?.ok_or("axes are missing")?),
        }
    }

    pub(super) fn regroup(
        &mut self,
        name: &str,
        live: &Live,
        wanted: &[usize],
    ) -> Result<Live, String> {
        let regroup = |this: &mut Self, part: &Part, dims: &[usize]| {
            let part = this.net.settle_if_padded(part)?;
            let view = part.view.regrouped(dims)?;
            Ok::<Part, String>(Part { view, ..part })
        };
        if live.is_one() {
            return Ok(Live::one(regroup(self, &live.parts[0], wanted)?));
        }
        // Parts stay apart if they lie along a dimension of their own, or along one with all that
        // is behind it, with nothing but single elements before it.
        let dims = live.dims();
        let single = |dims: &[usize]| dims.iter().all(|&n| n == 1);
        let place = wanted.iter().position(|&n| n > 1).unwrap_or(0);
        let inner: usize = dims[live.axis + 1..].iter().product();
        let each = match wanted.get(place) {
            Some(&size) if size == dims[live.axis] => Some(1),
            Some(&size) if size == dims[live.axis] * inner => Some(inner),
            _ => None,
        };
        let Some(each) = each.filter(|_| single(&dims[..live.axis])) else {
            let whole = Part::of(name, self.net.joined(name, live)?);
            return Ok(Live::one(regroup(self, &whole, wanted)?));
        };
        let mut parts = Vec::with_capacity(live.parts.len());
        for (part, size) in live.parts.iter().zip(live.sizes()) {
            let mut own = wanted.to_vec();
            own[place] = size * each;
            parts.push(regroup(self, part, &own)?);
        }
        let spread = |picked: &Vec<usize>| {
            let places = picked.iter().flat_map(|&p| p * each..(p + 1) * each);
            places.collect::<Vec<usize>>()
        };
        Ok(Live {
            parts,
            axis: place,
            picked: live.picked.as_ref().map(spread),
        })
    }

    /// Expand, where it changes nothing.
    pub(super) fn expand(&mut self, at: At<'_>) -> Result<Live, String> {
        let live = at.live(0)?;
        let (own, wanted) = (live.dims(), fold::dims(&at.constant(1)?.to_ints()?)?);
        match common(&own, &wanted)? == own {
            true => Ok(live.clone()),
            false => Err(format!(
                "it repeats a tensor of {own:?} that depends on the input to {wanted:?}: repeat \
                 the next layer's weights, or broadcast in an Add"
            )),
        }
    }

    pub(super) fn concat(&mut self, at: At<'_>) -> Result<Live, String> {
        let first = at.live(0)?;
        let rank = first.rank();
        let at_axis = axis(at.attributes.int("axis", 1)?, rank)?;
        let (mut parts, mut picked, mut total) = (Vec::new(), Vec::new(), 0);
        for index in 0..at.inputs.len() {
            if let Some(Some(Value::Constant(_))) = at.inputs.get(index) {
                return Err("it concatenates a constant: add it by a bias instead".into());
            }
            let live = at.live(index)?;
            let (mut a, mut b) = (first.dims(), live.dims());
            if b.len() != rank {
                return Err(format!("it concatenates tensors of {a:?} and {b:?}"));
            }
            (a[at_axis], b[at_axis]) = (0, 0);
            if a != b {
                return Err(format!(
                    "it concatenates tensors of {:?} and {:?} along axis {at_axis}",
                    first.dims(),
                    live.dims()
                ));
            }
            let joined = match live.axis == at_axis || live.is_one() {
                true => None,
                false => Some(Live::one(Part::of(
                    at.name,
                    self.net.joined(at.name, live)?,
                ))),
            };
            let live = Live {
                axis: at_axis,
                ..joined.unwrap_or_else(|| live.clone())
            };
            let places = live.places(at_axis);
            let own: Vec<usize> = match &live.picked {
                Some(picked) => picked.clone(),
                None => (0..places.len()).collect(),
            };
            if parts.len() + live.parts.len() > MOST_PARTS {
                return Err(format!("it concatenates more than {MOST_PARTS} tensors"));
            }
            picked.extend(own.into_iter().map(|place| total + place));
            total += places.len();
            parts.extend(live.parts);
        }
        for part in &parts {
            let rest = part.view.order.iter().enumerate();
            let alone = { rest }.all(|(i, group)| i == at_axis || group.is_empty());
            if !alone && !part.view.is_only(at_axis, Axis::C) {
                return Err(
                    "it concatenates along rows or columns: only along channels is supported"
                        .into(),
                );
            }
        }
        let all = picked.iter().copied().eq(0..total);
        let live = Live {
            parts,
            axis: at_axis,
            picked: (!all).then_some(picked),
        };
        // A layer has no more terms than that.
        match live.parts.len() <= limits::TERMS {
            true => Ok(live),
            false => Ok(Live::one(Part::of(
                at.name,
                self.net.joined(at.name, &live)?,
            ))),
        }
    }

    pub(super) fn pad(&mut self, at: At<'_>) -> Result<Live, String> {
        let live = at.live(0)?;
        let rank = live.rank();
        let mode = at.attributes.string("mode", "constant")?;
        if mode != "constant" {
            return Err(format!(
                "mode is {mode}, which is not supported: pad with constant zeros"
            ));
        }
        let value = match at.attributes.float_if("value")? {
            Some(value) => value,
            None => at.constant_if(2)?.map_or(Ok(0.0), |t| t.scalar())?,
        };
        let pads = match at.attributes.ints("pads")? {
            Some(pads) => pads.to_vec(),
            None => at.constant(1)?.to_ints()?,
        };
        let axes = match at.constant_if(3)? {
            None => (0..rank).collect(),
            Some(axes) => {
                let axes = axes.to_ints()?;
                let axes = axes.iter().map(|&number| axis(number, rank));
                axes.collect::<Result<Vec<usize>, String>>()?
            }
        };
        if pads.len() != 2 * axes.len() {
            return Err(format!("pads are {pads:?} for {} axes", axes.len()));
        }
        let (before, after) = pads.split_at(axes.len());
        // Around what is smaller by the value there are zeros.
        let around = match value {
            0.0 => live.clone(),
            _ => self.moved(at.name, live, -value)?,
        };
        let padded = self.each(&around, |_, part| {
            let mut padding = Padding::default();
            for ((&axis, &before), &after) in axes.iter().zip(before).zip(after) {
                let sides = u32::try_from(before).ok().zip(u32::try_from(after).ok());
                let sides = sides.filter(|(a, b)| a.max(b) < &(1 << 14));
                let (before, after) = sides.ok_or_else(|| {
                    format!(
                        "pads are {pads:?}; numbers from 0 to 16383 are expected: cut by Slice, \
                         not by negative pads"
                    )
                })?;
                if (before, after) == (0, 0) {
                    continue;
                }
                match part.view.order[axis][..] {
                    [Axis::H] => (padding.top, padding.bottom) = (before, after),
                    [Axis::W] => (padding.left, padding.right) = (before, after),
                    _ => return Err("it pads other axes than rows and columns".into()),
                }
            }
            Ok(Part {
                padding: both(part.padding, padding),
                ..part.clone()
            })
        })?;
        match value {
            0.0 => Ok(padded),
            _ => self.moved(at.name, &padded, value),
        }
    }
}
