//! Operators that move elements without changing them.

use super::linear::both;
use super::{At, Converter};
use crate::fold;
use crate::tensor::{axis, reshape};
use crate::value::{Axis, Live, Part, Value, View};
use pi_ir::Padding;

impl Converter<'_> {
    pub(super) fn rearrange(&mut self, at: At<'_>) -> Result<Live, String> {
        match at.operator {
            "Concat" => return self.concat(at),
            "Pad" => return self.pad(at),
            _ => {}
        }
        let live = at.live(0)?;
        if at.operator == "Transpose" {
            let order = fold::order(at.attributes, live.rank())?;
            let moved = self.each(live, |_, part| {
                let groups = order.iter().map(|&axis| part.view.order[axis].clone());
                let view = View {
                    order: groups.collect(),
                    ..part.view.clone()
                };
                Ok(Part {
                    view,
                    ..part.clone()
                })
            })?;
            let axis = order.iter().position(|&axis| axis == live.axis);
            return Ok(Live {
                axis: axis.unwrap_or(0),
                ..moved
            });
        }
        let dims = live.dims();
        let wanted = match at.operator {
            "Flatten" => fold::flattened(&dims, at.attributes.int("axis", 1)?)?,
            "Reshape" => {
                let mut wanted = at.constant(1)?.to_ints()?;
                // A batch that the file fixes is one image here.
                if let Some(first) = wanted.first_mut()
                    && self.batch > 1
                    && *first == self.batch as i64
                {
                    *first = 1;
                }
                reshape(&dims, &wanted, at.attributes.int("allowzero", 0)? != 0)?
            }
            squeeze => {
                let axes = at.axes()?;
                match squeeze {
                    "Squeeze" => fold::squeezed(&dims, axes.as_deref())?,
                    _ => fold::unsqueezed(&dims, &axes.ok_or("axes are missing")?)?,
                }
            }
        };
        self.regroup(at.name, live, &wanted)
    }

    fn regroup(&mut self, name: &str, live: &Live, wanted: &[usize]) -> Result<Live, String> {
        let regroup = |this: &mut Self, part: &Part, dims: &[usize]| {
            let part = this.net.settle_if_padded(part)?;
            let view = part.view.regrouped(dims)?;
            Ok::<Part, String>(Part { view, ..part })
        };
        if let [part] = &live.parts[..] {
            return Ok(Live::one(regroup(self, part, wanted)?));
        }
        // Parts stay apart if what is joined is theirs: the concatenated axis and all behind it,
        // with nothing but single elements before it.
        let dims = live.dims();
        let single = |dims: &[usize]| dims.iter().all(|&n| n == 1);
        let place = wanted.iter().position(|&n| n > 1).unwrap_or(0);
        let whole: usize = dims[live.axis..].iter().product();
        if !single(&dims[..live.axis]) || wanted[place] != whole || !single(&wanted[place + 1..]) {
            let whole = Part::of(name, self.net.joined(name, live)?);
            return Ok(Live::one(regroup(self, &whole, wanted)?));
        }
        let mut parts = Vec::with_capacity(live.parts.len());
        for part in &live.parts {
            let mut own = wanted.to_vec();
            own[place] = part.dims()[live.axis..].iter().product();
            parts.push(regroup(self, part, &own)?);
        }
        Ok(Live { parts, axis: place })
    }

    fn concat(&mut self, at: At<'_>) -> Result<Live, String> {
        let first = at.live(0)?;
        let rank = first.rank();
        let at_axis = axis(at.attributes.int("axis", 1)?, rank)?;
        let mut parts = Vec::new();
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
            match live.axis == at_axis || live.parts.len() == 1 {
                true => parts.extend(live.parts.iter().cloned()),
                false => parts.push(Part::of(at.name, self.net.joined(at.name, live)?)),
            }
        }
        for part in &parts {
            let group = &part.view.order[at_axis];
            let rest = part.view.order.iter().enumerate();
            let alone = { rest }.all(|(i, group)| i == at_axis || group.is_empty());
            let spatial = group.iter().any(|axis| *axis != Axis::C);
            if spatial && !alone {
                return Err(
                    "it concatenates along rows or columns: only along channels is supported"
                        .into(),
                );
            }
        }
        Ok(Live {
            parts,
            axis: at_axis,
        })
    }

    fn pad(&mut self, at: At<'_>) -> Result<Live, String> {
        let live = at.live(0)?;
        let rank = live.rank();
        let mode = at.attributes.string("mode", "constant")?;
        if mode != "constant" {
            return Err(format!(
                "padding by {mode} is not supported: pad with zeros"
            ));
        }
        let value = match at.attributes.float_if("value")? {
            Some(value) => value,
            None => at.constant_if(2)?.map_or(Ok(0.0), |t| t.scalar())?,
        };
        if value != 0.0 {
            return Err(format!("it pads with {value}: only zeros are supported"));
        }
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
        self.each(live, |_, part| {
            let mut padding = Padding::default();
            for ((&axis, &before), &after) in axes.iter().zip(before).zip(after) {
                let sides = u32::try_from(before).ok().zip(u32::try_from(after).ok());
                let sides = sides.filter(|(a, b)| a.max(b) < &(1 << 14));
                let (before, after) = sides.ok_or_else(|| {
                    format!("pads are {pads:?}; numbers from 0 to 16383 are expected")
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
        })
    }
}
