//! What a tensor of the model is while the network is built.
//!
//! The graph knows maps `[c, h, w]` only. A tensor of the model is such a map with its axes in some
//! order and perhaps flattened, behind a function of each element that no node computes yet, with
//! padding that the next window takes in; or several of them, concatenated.

use crate::field::{Field, Function};
use crate::tensor::Tensor;
use pi_ir::{NodeId, Padding, Shape};

/// An axis of a map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Axis {
    C,
    H,
    W,
}

/// A node's result with its axes as the model has them.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct View {
    pub(crate) id: NodeId,
    pub(crate) shape: Shape,
    /// The axes that each dimension of the model's tensor stands for, the slowest first: none for a
    /// batch of one, several for what was flattened.
    pub(crate) order: Vec<Vec<Axis>>,
}

impl View {
    fn size(&self, axis: Axis) -> usize {
        let size = match axis {
            Axis::C => self.shape.c,
            Axis::H => self.shape.h,
            Axis::W => self.shape.w,
        };
        size as usize
    }

    pub(crate) fn dims(&self) -> Vec<usize> {
        let groups = self.order.iter();
        groups
            .map(|group| group.iter().map(|&axis| self.size(axis)).product())
            .collect()
    }

    /// The axes that matter, those of size 1 left out, dimension by dimension.
    fn axes(&self) -> Vec<Vec<Axis>> {
        let matter = |group: &Vec<Axis>| {
            let group = group.iter().copied();
            group.filter(|&axis| self.size(axis) > 1).collect()
        };
        self.order.iter().map(matter).collect()
    }

    /// Returns whether dimension `at` holds no other axis than `axis`.
    pub(crate) fn is_only(&self, at: usize, axis: Axis) -> bool {
        let axes = self.axes();
        axes.get(at)
            .is_some_and(|group| group.iter().all(|&own| own == axis))
            && (axes.iter().enumerate()).all(|(i, group)| i == at || !group.contains(&axis))
    }

    /// Returns whether two views have their axes in the same order.
    pub(crate) fn like(&self, other: &View) -> bool {
        self.shape == other.shape && self.axes() == other.axes()
    }

    /// The same map with other dimensions, each of which must hold whole axes.
    ///
    /// # Errors
    /// If a dimension would split an axis.
    pub(crate) fn regrouped(&self, dims: &[usize]) -> Result<View, String> {
        let mut axes = self.axes().concat().into_iter().peekable();
        let mut order = Vec::with_capacity(dims.len());
        let splits = || {
            format!(
                "reshapes {:?} to {dims:?}, which splits channels, rows or columns: only whole \
                 axes can be joined or taken apart",
                self.dims()
            )
        };
        for &dim in dims {
            let (mut group, mut size) = (Vec::new(), 1);
            while size < dim {
                let Some(axis) = axes.next() else { break };
                size *= self.size(axis);
                group.push(axis);
            }
            if size != dim {
                return Err(splits());
            }
            order.push(group);
        }
        if axes.next().is_some() {
            return Err(splits());
        }
        Ok(View {
            order,
            ..self.clone()
        })
    }

    /// The place of each element of the model's tensor in the map `[c][h][w]`.
    pub(crate) fn places(&self) -> Vec<usize> {
        let (h, w) = (self.shape.h as usize, self.shape.w as usize);
        let step = |axis| match axis {
            Axis::C => h * w,
            Axis::H => w,
            Axis::W => 1,
        };
        let axes = self.axes().concat();
        let dims: Vec<usize> = axes.iter().map(|&axis| self.size(axis)).collect();
        let steps: Vec<usize> = axes.iter().map(|&axis| step(axis)).collect();
        crate::tensor::walk(&dims, &steps)
    }

    /// A constant that is combined with this tensor, as one number per element of the map.
    ///
    /// # Errors
    /// If it is larger than the tensor.
    pub(crate) fn field(&self, constant: &Tensor) -> Result<Field, String> {
        if constant.len() == 1 {
            return Ok(Field::One(constant.scalar()?.into()));
        }
        let dims = self.dims();
        let spread = constant.broadcast(&dims).map_err(|_| {
            format!(
                "combines a tensor of {dims:?} with a constant of {:?}, which does not fit it",
                constant.dims
            )
        })?;
        let values = spread.to_floats()?;
        let mut elements = vec![0.0; self.shape.len()];
        for (place, value) in self.places().into_iter().zip(values) {
            elements[place] = f64::from(value);
        }
        let field = Field::Elements(elements);
        Ok(match field.channels(self.shape) {
            Some(channels) if channels.iter().all(|&v| v == channels[0]) => Field::One(channels[0]),
            Some(channels) => Field::Channels(channels),
            None => field,
        })
    }
}

/// A function of a node's result.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Part {
    /// Name of the node that will compute it.
    pub(crate) name: String,
    pub(crate) view: View,
    pub(crate) function: Function,
    /// Zeros around the function's result; rows and columns have dimensions of their own then.
    pub(crate) padding: Padding,
}

impl Part {
    pub(crate) fn of(name: &str, view: View) -> Self {
        Part {
            name: name.to_owned(),
            view,
            function: Function::identity(),
            padding: Padding::default(),
        }
    }

    pub(crate) fn dims(&self) -> Vec<usize> {
        self.padded().dims()
    }

    /// The view, its padding included.
    pub(crate) fn padded(&self) -> View {
        let Padding {
            top,
            left,
            bottom,
            right,
        } = self.padding;
        let mut padded = self.view.clone();
        padded.shape.h += top + bottom;
        padded.shape.w += left + right;
        padded
    }
}

/// Several parts one after the other along a dimension, or one alone; perhaps only some of their
/// elements along it, in another order.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Live {
    pub(crate) parts: Vec<Part>,
    pub(crate) axis: usize,
    /// For each element along `axis`, its place in the parts one after the other; no place comes
    /// twice. `None` stands for all of them in their order.
    pub(crate) picked: Option<Vec<usize>>,
}

impl Live {
    pub(crate) fn one(part: Part) -> Self {
        Live {
            parts: vec![part],
            axis: 0,
            picked: None,
        }
    }

    /// Returns whether it is one part as it is.
    pub(crate) fn is_one(&self) -> bool {
        self.parts.len() == 1 && self.picked.is_none()
    }

    pub(crate) fn dims(&self) -> Vec<usize> {
        let mut dims = self.parts[0].dims();
        if !self.is_one() {
            dims[self.axis] = match &self.picked {
                Some(picked) => picked.len(),
                None => self.sizes().iter().sum(),
            };
        }
        dims
    }

    /// Elements of each part along the axis.
    pub(crate) fn sizes(&self) -> Vec<usize> {
        let sizes = self.parts.iter().map(|part| part.dims()[self.axis]);
        sizes.collect()
    }

    /// These elements along an axis, none twice. It is the axis of the parts, unless they are one.
    /// Parts of which nothing is left are dropped.
    pub(crate) fn pick(&self, axis: usize, elements: &[usize]) -> Live {
        let mut whole = self.clone();
        whole.axis = axis;
        let places = elements.iter().map(|&element| match &self.picked {
            Some(picked) => picked[element],
            None => element,
        });
        let places: Vec<usize> = places.collect();
        let sizes = whole.sizes();
        let mut moved = vec![0; sizes.iter().sum()];
        let mut used = vec![false; moved.len()];
        places.iter().for_each(|&place| used[place] = true);
        let (mut parts, mut first, mut kept) = (Vec::new(), 0, 0);
        for (part, size) in self.parts.iter().zip(sizes) {
            if used[first..first + size].contains(&true) {
                (0..size).for_each(|i| moved[first + i] = kept + i);
                kept += size;
                parts.push(part.clone());
            }
            first += size;
        }
        let picked: Vec<usize> = places.iter().map(|&place| moved[place]).collect();
        let all = picked.iter().copied().eq(0..kept);
        Live {
            parts,
            axis,
            picked: (!all).then_some(picked),
        }
    }

    /// For each element of the parts along an axis, its place in this tensor, if it has one. It is
    /// the axis of the parts, unless they are one.
    pub(crate) fn places(&self, axis: usize) -> Vec<Option<usize>> {
        let total = self.parts.iter().map(|part| part.dims()[axis]).sum();
        match &self.picked {
            None => (0..total).map(Some).collect(),
            Some(picked) => {
                let mut places = vec![None; total];
                (picked.iter().enumerate()).for_each(|(place, &from)| places[from] = Some(place));
                places
            }
        }
    }

    /// Returns whether a part has elements that are not picked.
    pub(crate) fn leaves_out(&self) -> bool {
        self.picked.is_some() && self.places(self.axis).contains(&None)
    }

    /// The tensor with its axes in another order.
    pub(crate) fn transposed(&self, order: &[usize]) -> Live {
        let moved = self.parts.iter().map(|part| Part {
            view: View {
                order: { order.iter() }
                    .map(|&axis| part.view.order[axis].clone())
                    .collect(),
                ..part.view.clone()
            },
            ..part.clone()
        });
        Live {
            parts: moved.collect(),
            axis: order
                .iter()
                .position(|&axis| axis == self.axis)
                .unwrap_or(0),
            picked: self.picked.clone(),
        }
    }

    /// The number of axes.
    pub(crate) fn rank(&self) -> usize {
        self.parts[0].view.order.len()
    }

    /// The part of a constant that belongs to each part.
    ///
    /// # Errors
    /// If the constant does not fit.
    pub(crate) fn split(&self, constant: &Tensor) -> Result<Vec<Tensor>, String> {
        let (rank, own) = (self.rank(), constant.dims.len());
        let along = (self.axis + own).checked_sub(rank);
        let Some(along) = along.filter(|&at| !self.is_one() && constant.dims[at] > 1) else {
            return Ok(vec![constant.clone(); self.parts.len()]);
        };
        let sizes = self.sizes();
        if constant.dims[along] != self.dims()[self.axis] {
            return Err(format!(
                "combines a tensor of {:?} with a constant of {:?}, which does not fit it",
                self.dims(),
                constant.dims
            ));
        }
        // Elements that are not picked may have any number.
        let places = self.places(self.axis).into_iter();
        let places: Vec<usize> = places.map(|place| place.unwrap_or(0)).collect();
        let constant = match self.picked {
            None => constant.clone(),
            Some(_) => constant.picked(along, &places),
        };
        let mut start = 0;
        let parts = sizes.into_iter().map(|size| {
            start += size;
            constant.part(along, start - size..start)
        });
        Ok(parts.collect())
    }

    /// Returns whether both are cut into the same parts.
    pub(crate) fn cut_like(&self, other: &Live) -> bool {
        let pairs = self.parts.iter().zip(&other.parts);
        self.parts.len() == other.parts.len()
            && (self.axis == other.axis || (self.is_one() && other.is_one()))
            && self.picked == other.picked
            && { pairs }.all(|(a, b)| a.view.like(&b.view) && a.padding == b.padding)
    }
}

/// A tensor whose channels a Reshape has taken apart, as for a shuffle of channels.
#[derive(Clone, Debug)]
pub(crate) struct Apart {
    /// The tensor with its channels in one dimension.
    pub(crate) live: Live,
    /// That dimension.
    pub(crate) at: usize,
    /// The dimensions that stand in its place.
    pub(crate) factors: Vec<usize>,
    /// Where each dimension of the model's tensor was when the channels were taken apart.
    pub(crate) order: Vec<usize>,
}

/// The columns of a dense layer's weights `[out][in]`, put into the order of a flattened map.
pub(crate) fn columns(weight: &[f32], inputs: usize, view: &View) -> Vec<f32> {
    let places = view.places();
    let mut out = vec![0.0; weight.len()];
    for (row, moved) in weight
        .chunks_exact(inputs)
        .zip(out.chunks_exact_mut(inputs))
    {
        for (&value, &place) in row.iter().zip(&places) {
            moved[place] = value;
        }
    }
    out
}

/// A tensor of the model.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    /// Known before the network runs.
    Constant(crate::tensor::Shared),
    /// Computed from the input.
    Live(Live),
    /// Computed from the input, and only fit to be the result: behind a softmax, say. The operator.
    Final(Live, &'static str),
    /// Computed from the input, on its way to another order of channels.
    Apart(Apart),
    /// Behind a fault.
    Unknown,
}

impl Value {
    /// The dimensions of the model's tensor.
    ///
    /// # Errors
    /// If it is behind a fault.
    pub(crate) fn dims(&self) -> Result<Vec<usize>, String> {
        match self {
            Value::Constant(tensor) => Ok(tensor.dims.clone()),
            Value::Live(live) | Value::Final(live, _) => Ok(live.dims()),
            Value::Apart(apart) => Ok(apart.dims()),
            Value::Unknown => Err("input 0 is missing".into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(shape: Shape, order: &[&[Axis]]) -> View {
        View {
            id: NodeId(0),
            shape,
            order: order.iter().map(|group| group.to_vec()).collect(),
        }
    }

    #[test]
    fn reshapes_join_whole_axes_only() {
        use Axis::{C, H, W};
        let map = view(Shape::new(6, 2, 5), &[&[], &[C], &[H], &[W]]);
        let flat = map.regrouped(&[1, 60]).unwrap();
        assert_eq!(flat.order, [vec![], vec![C, H, W]]);
        assert_eq!(flat.regrouped(&[1, 6, 10, 1]).unwrap().order[2], [H, W]);
        assert!(
            map.regrouped(&[1, 2, 3, 2, 5])
                .unwrap_err()
                .contains("splits")
        );
        assert!(map.regrouped(&[1, 6, 2]).is_err());
    }

    #[test]
    fn places_follow_the_order_of_axes() {
        use Axis::{C, H, W};
        let last = view(Shape::new(2, 1, 3), &[&[], &[H], &[W], &[C]]);
        assert_eq!(last.places(), [0, 3, 1, 4, 2, 5]);
        let weight: Vec<f32> = (0..6).map(|v| v as f32).collect();
        let flat = last.regrouped(&[1, 6]).unwrap();
        assert_eq!(columns(&weight, 6, &flat), [0.0, 2.0, 4.0, 1.0, 3.0, 5.0]);
        let by_channel = Tensor::floats(vec![2], vec![7.0, 9.0]);
        assert_eq!(
            last.field(&by_channel).unwrap(),
            Field::Channels(vec![7.0, 9.0])
        );
        let too_large = Tensor::floats(vec![2, 1, 1, 1], vec![7.0, 9.0]);
        assert!(last.field(&too_large).is_err());
        assert!(last.is_only(3, C) && !last.is_only(1, C));
        assert!(last.is_only(1, H));
    }
}
