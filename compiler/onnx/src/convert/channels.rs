//! Operators that choose elements: Split, Slice and Gather; and Reshapes that take channels apart
//! and put them together in another order, as for a shuffle of channels.
//!
//! Which channels are read, and in which order, costs nothing: the next layer's weights take it in.
//! Rows and columns are cut by windows of one tap.

use super::{At, Converter};
use crate::fold;
use crate::net::Reading;
use crate::tensor::{axis, strides, walk};
use crate::value::{Apart, Axis, Live, Part, Value, View};

impl Converter<'_> {
    /// Reshape, Squeeze and the like; one that takes channels apart gives a tensor of its own kind.
    pub(super) fn reshape(&mut self, at: At<'_>) -> Result<Value, String> {
        let (dims, live) = match at.inputs.first() {
            Some(Some(Value::Apart(apart))) => (apart.dims(), self.together(at.name, apart)),
            _ => {
                let live = at.live(0)?;
                (live.dims(), Ok(live.clone()))
            }
        };
        let wanted = self.wanted(at, &dims)?;
        // Back to where the channels were taken apart, if they cannot be put together.
        self.regroup_or_part(at.name, &live?, &wanted)
    }

    fn regroup_or_part(
        &mut self,
        name: &str,
        live: &Live,
        wanted: &[usize],
    ) -> Result<Value, String> {
        let Some((at, factors)) = taken_apart(live, wanted) else {
            return Ok(Value::Live(self.regroup(name, live, wanted)?));
        };
        let mut whole = wanted.to_vec();
        let channels = factors.iter().product();
        whole.splice(at..at + factors.len(), [channels]);
        Ok(Value::Apart(Apart {
            live: self.regroup(name, live, &whole)?,
            at,
            factors,
            order: (0..wanted.len()).collect(),
        }))
    }

    /// The tensor with its channels in one dimension again.
    ///
    /// # Errors
    /// If their dimensions do not lie side by side.
    fn together(&mut self, name: &str, apart: &Apart) -> Result<Live, String> {
        let channels = apart.at..apart.at + apart.factors.len();
        let dims = apart.dims();
        let is_channel = |&place: &usize| channels.contains(&apart.order[place]);
        let mine: Vec<usize> = (0..dims.len()).filter(is_channel).collect();
        let (first, last) = (mine[0], mine[mine.len() - 1]);
        if { first..last }.any(|place| !is_channel(&place) && dims[place] > 1) {
            return Err(
                "it takes channels apart and mixes them with rows or columns: only channels can be \
                 put in another order"
                    .into(),
            );
        }
        let own = strides(&apart.factors);
        let factors: Vec<usize> = mine.iter().map(|&place| dims[place]).collect();
        let steps: Vec<usize> = { mine.iter() }
            .map(|&place| own[apart.order[place] - apart.at])
            .collect();
        let live = match apart.live.is_one() || apart.live.axis == apart.at {
            true => apart.live.clone(),
            false => Live::one(Part::of(name, self.net.joined(name, &apart.live)?)),
        };
        let live = live.pick(apart.at, &walk(&factors, &steps));
        // Where each dimension lies now that the channels have only one.
        let mut order = Vec::with_capacity(live.rank());
        for (place, &old) in apart.order.iter().enumerate() {
            if place == first {
                order.push(apart.at);
            } else if !channels.contains(&old) {
                order.push(match old < channels.start {
                    true => old,
                    false => old + 1 - channels.len(),
                });
            }
        }
        Ok(live.transposed(&order))
    }

    /// These elements along an axis, in this order.
    fn choose_along(
        &mut self,
        name: &str,
        value: &Value,
        axis: usize,
        elements: &[usize],
    ) -> Result<Value, String> {
        if elements.is_empty() {
            return Err("its result is empty".into());
        }
        match value {
            Value::Constant(tensor) => {
                let part = tensor.picked(axis, elements);
                Ok(Value::Constant(std::rc::Rc::new(part)))
            }
            Value::Live(live) => Ok(Value::Live(self.along(name, live, axis, elements)?)),
            Value::Apart(apart) => Ok(Value::Apart(self.of_apart(name, apart, axis, elements)?)),
            Value::Final(..) | Value::Unknown => Err("input 0 is missing".into()),
        }
    }

    fn along(
        &mut self,
        name: &str,
        live: &Live,
        axis: usize,
        elements: &[usize],
    ) -> Result<Live, String> {
        if elements.iter().copied().eq(0..live.dims()[axis]) {
            return Ok(live.clone());
        }
        let channels = |part: &Part| {
            let mut others = part.dims();
            others[axis] = 1;
            let view = &part.view;
            let spatial = view.is_only(axis, Axis::H) || view.is_only(axis, Axis::W);
            view.is_only(axis, Axis::C) || (!spatial && others.iter().all(|&n| n == 1))
        };
        if !live.parts.iter().all(channels) {
            return self.spatially(name, live, axis, elements);
        }
        let live = match live.is_one() || live.axis == axis {
            true => live.clone(),
            false => Live::one(Part::of(name, self.net.joined(name, live)?)),
        };
        let mut sorted = elements.to_vec();
        sorted.sort_unstable();
        if sorted.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(
                "it takes an element twice: repeat it in the weights of the next layer".into(),
            );
        }
        Ok(live.pick(axis, elements))
    }

    /// Rows or columns at equal distances.
    fn spatially(
        &mut self,
        name: &str,
        live: &Live,
        axis: usize,
        elements: &[usize],
    ) -> Result<Live, String> {
        const ORDER: &str = "it takes rows or columns in another order, or at unequal distances: \
                             only Slices with a step above 0 can be taken of them";
        if !live.is_one() && live.axis == axis {
            return Err(
                "it cuts a concatenation along rows or columns: cut the tensors first".into(),
            );
        }
        let step = match elements {
            [first, second, ..] => second.checked_sub(*first).filter(|&step| step > 0),
            _ => Some(1),
        };
        let step = step.ok_or(ORDER)?;
        if elements.windows(2).any(|pair| pair[0] + step != pair[1]) {
            return Err(ORDER.into());
        }
        self.each(live, |this, part| {
            let view = this.net.settle(part)?;
            let cut = |size: u32| {
                let count = elements.len() as u32;
                Reading::new(size, elements[0] as i64, &[1.0], step as u32, count)
            };
            let plain = Reading::placed(1.0, (0, 0));
            let (rows, columns) = match () {
                () if view.is_only(axis, Axis::H) => (cut(view.shape.h), plain),
                () if view.is_only(axis, Axis::W) => (plain, cut(view.shape.w)),
                () => {
                    return Err(
                        "it cuts a dimension that holds several of channels, rows and columns: cut \
                         before they are joined"
                            .into(),
                    );
                }
            };
            let (id, shape) = this.net.read(name, view.id, &rows, &columns)?;
            Ok(Part::of(name, View { id, shape, ..view }))
        })
    }

    fn of_apart(
        &mut self,
        name: &str,
        apart: &Apart,
        axis: usize,
        elements: &[usize],
    ) -> Result<Apart, String> {
        let old = apart.order[axis];
        let Some(factor) = old
            .checked_sub(apart.at)
            .filter(|&f| f < apart.factors.len())
        else {
            let axis = match old < apart.at {
                true => old,
                false => old + 1 - apart.factors.len(),
            };
            return Ok(Apart {
                live: self.along(name, &apart.live, axis, elements)?,
                ..apart.clone()
            });
        };
        let own = strides(&apart.factors);
        let step = own[factor];
        let mut factors = apart.factors.clone();
        factors[factor] = elements.len();
        let outer = walk(&factors[..factor], &own[..factor]);
        let inner = walk(&factors[factor + 1..], &own[factor + 1..]);
        let channels: Vec<usize> = { outer.iter() }
            .flat_map(|o| elements.iter().map(move |e| o + e * step))
            .flat_map(|place| inner.iter().map(move |i| place + i))
            .collect();
        Ok(Apart {
            live: self.along(name, &apart.live, apart.at, &channels)?,
            factors,
            ..apart.clone()
        })
    }

    pub(super) fn slice(&mut self, at: At<'_>) -> Result<Value, String> {
        let mut value = at.value(0)?.clone();
        let cuts = fold::cuts(&value.dims()?, at.attributes, |index| at.constant_if(index))?;
        for (axis, elements) in cuts {
            value = self.choose_along(at.name, &value, axis, &elements)?;
        }
        Ok(value)
    }

    pub(super) fn gather(&mut self, at: At<'_>) -> Result<Value, String> {
        let (value, indices) = (at.value(0)?, at.constant(1)?);
        let mut dims = value.dims()?;
        let axis = axis(at.attributes.int("axis", 0)?, dims.len())?;
        let elements = fold::indices(indices, dims[axis])?;
        let chosen = self.choose_along(at.name, value, axis, &elements)?;
        dims.splice(axis..=axis, indices.dims.iter().copied());
        let live = match &chosen {
            Value::Apart(apart) => self.together(at.name, apart)?,
            Value::Live(live) => live.clone(),
            other => return Ok(other.clone()),
        };
        self.regroup_or_part(at.name, &live, &dims)
    }

    /// All outputs of a Split.
    pub(super) fn split(&mut self, at: At<'_>, outputs: usize) -> Result<Vec<Value>, String> {
        let value = at.value(0)?;
        let dims = value.dims()?;
        let axis = axis(at.attributes.int("axis", 0)?, dims.len())?;
        let input = || at.constant_if(1);
        let sizes = fold::pieces(dims[axis], at.attributes, input, outputs)?;
        // A function of every element is computed once, and not kept once for each output.
        let value = &match value {
            Value::Live(live) => Value::Live(self.each(live, |this, part| this.bare(part))?),
            Value::Apart(apart) => Value::Apart(Apart {
                live: self.each(&apart.live, |this, part| this.bare(part))?,
                ..apart.clone()
            }),
            other => other.clone(),
        };
        let mut first = 0;
        let pieces = sizes.into_iter().map(|size| {
            let elements: Vec<usize> = (first..first + size).collect();
            first += size;
            self.choose_along(at.name, value, axis, &elements)
        });
        pieces.collect()
    }
}

/// The place and the sizes of the dimensions that a Reshape makes of the channels, if it does.
fn taken_apart(live: &Live, wanted: &[usize]) -> Option<(usize, Vec<usize>)> {
    let dims = live.dims();
    let alone = |axis: &usize| {
        let mut parts = live.parts.iter();
        dims[*axis] > 1 && parts.all(|part| part.view.is_only(*axis, Axis::C))
    };
    let channels = (0..dims.len()).find(alone)?;
    let before: usize = dims[..channels].iter().product();
    let (mut product, mut start) = (1, 0);
    while product < before || wanted.get(start) == Some(&1) {
        product *= wanted.get(start)?;
        start += 1;
    }
    let (mut size, mut end) = (1, start);
    while size < dims[channels] {
        size *= wanted.get(end)?;
        end += 1;
    }
    let apart = product == before && size == dims[channels] && end - start > 1;
    apart.then(|| (start, wanted[start..end].to_vec()))
}

impl Apart {
    /// The dimensions of the model's tensor.
    pub(crate) fn dims(&self) -> Vec<usize> {
        let mut dims = self.live.dims();
        dims.splice(self.at..=self.at, self.factors.iter().copied());
        self.order.iter().map(|&axis| dims[axis]).collect()
    }

    /// The tensor with its axes in another order.
    pub(crate) fn transposed(&self, order: &[usize]) -> Apart {
        Apart {
            order: order.iter().map(|&axis| self.order[axis]).collect(),
            ..self.clone()
        }
    }
}
