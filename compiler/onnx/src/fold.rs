//! Operators on constants, computed once: shapes, indices and weights that exporters put together
//! from pieces.

use crate::attributes::Attributes;
use crate::file::Model;
use crate::tensor::{Data, Shared, Tensor, axis, common, count, reshape};

/// The inputs of a node that are constants; `None` for one that is left out.
pub(crate) type Inputs = [Option<Shared>];

fn required(inputs: &Inputs, index: usize) -> Result<&Tensor, String> {
    let found = inputs.get(index).and_then(|input| input.as_deref());
    found.ok_or_else(|| format!("input {index} is missing"))
}

fn optional(inputs: &Inputs, index: usize) -> Option<&Tensor> {
    inputs.get(index).and_then(|input| input.as_deref())
}

/// The constant that an operator makes of constants; `None` for operators that are not computed
/// here.
pub(crate) fn evaluate(
    model: &Model,
    operator: &str,
    attributes: Attributes<'_>,
    inputs: &Inputs,
) -> Option<Result<Tensor, String>> {
    let input = |index| required(inputs, index);
    let unary = |f: fn(f32) -> f32| map(input(0)?, f);
    Some(match operator {
        "Constant" => constant(model, attributes),
        "ConstantOfShape" => input(0).and_then(|dims| filled(model, attributes, dims)),
        "Identity" | "Dropout" => input(0).cloned(),
        "Cast" => input(0).and_then(|t| cast(t, attributes.int("to", 1)?)),
        "Reshape" => input(0).and_then(|t| {
            let zero = attributes.int("allowzero", 0)? != 0;
            t.reshaped(reshape(&t.dims, &input(1)?.to_ints()?, zero)?)
        }),
        "Flatten" => input(0).and_then(|t| {
            let at = attributes.int("axis", 1)?;
            t.reshaped(flattened(&t.dims, at)?)
        }),
        "Squeeze" => input(0)
            .and_then(|t| t.reshaped(squeezed(&t.dims, axes(attributes, inputs)?.as_deref())?)),
        "Unsqueeze" => input(0).and_then(|t| {
            let axes = axes(attributes, inputs)?.ok_or("axes are missing")?;
            t.reshaped(unsqueezed(&t.dims, &axes)?)
        }),
        "Transpose" => input(0).and_then(|t| t.transposed(&order(attributes, t.dims.len())?)),
        "Concat" => concat(attributes, inputs),
        "Gather" => input(0).and_then(|t| gather(t, input(1)?, attributes.int("axis", 0)?)),
        "Slice" => input(0).and_then(|t| slice(t, attributes, inputs)),
        "Shape" => input(0).and_then(|t| shape(&t.dims, attributes)),
        "Size" => input(0).map(|t| Tensor {
            dims: Vec::new(),
            data: Data::Int(vec![t.len() as i64]),
        }),
        "Expand" => input(0).and_then(|t| {
            let dims = dims(&input(1)?.to_ints()?)?;
            t.broadcast(&common(&t.dims, &dims)?)
        }),
        "Tile" => input(0).and_then(|t| tile(t, input(1)?)),
        "Range" => range(inputs),
        "Add" => binary(inputs, i64::checked_add, |a, b| a + b),
        "Sub" => binary(inputs, i64::checked_sub, |a, b| a - b),
        "Mul" => binary(inputs, i64::checked_mul, |a, b| a * b),
        "Div" => binary(inputs, i64::checked_div, |a, b| a / b),
        "Max" => binary(inputs, |a, b| Some(a.max(b)), f32::max),
        "Min" => binary(inputs, |a, b| Some(a.min(b)), f32::min),
        "Pow" => binary(
            inputs,
            |a, b| u32::try_from(b).ok().and_then(|b| a.checked_pow(b)),
            f32::powf,
        ),
        "Neg" => unary(|v| -v),
        "Sqrt" => unary(f32::sqrt),
        "Exp" => unary(f32::exp),
        "Reciprocal" => unary(|v| 1.0 / v),
        "Floor" => unary(f32::floor),
        "Ceil" => unary(f32::ceil),
        "Abs" => unary(f32::abs),
        "Relu" => unary(|v| v.max(0.0)),
        "Equal" => compare(inputs, |a, b| a == b),
        "Greater" => compare(inputs, |a, b| a > b),
        "GreaterOrEqual" => compare(inputs, |a, b| a >= b),
        "Less" => compare(inputs, |a, b| a < b),
        "LessOrEqual" => compare(inputs, |a, b| a <= b),
        "Not" => input(0).and_then(|t| {
            let flags = truths(t)?;
            Ok(Tensor {
                dims: t.dims.clone(),
                data: Data::Bool(flags.into_iter().map(|v| !v).collect()),
            })
        }),
        "Where" => choose(inputs),
        "DequantizeLinear" => dequantise(attributes, inputs),
        _ => return None,
    })
}

/// Dimensions from integers.
pub(crate) fn dims(ints: &[i64]) -> Result<Vec<usize>, String> {
    let dims = ints.iter().map(|&d| usize::try_from(d));
    let dims: Result<Vec<usize>, _> = dims.collect();
    dims.map_err(|_| format!("dimensions {ints:?} are negative"))
}

/// The axes of Squeeze, Unsqueeze and reductions: an attribute first, an input later.
fn axes(attributes: Attributes<'_>, inputs: &Inputs) -> Result<Option<Vec<i64>>, String> {
    axes_or(attributes, || Ok(optional(inputs, 1)))
}

/// The same with an input that is looked at only without the attribute.
pub(crate) fn axes_or<'t>(
    attributes: Attributes<'_>,
    input: impl FnOnce() -> Result<Option<&'t Tensor>, String>,
) -> Result<Option<Vec<i64>>, String> {
    if let Some(axes) = attributes.ints("axes")? {
        return Ok(Some(axes.to_vec()));
    }
    input()?.map(Tensor::to_ints).transpose()
}

/// The order of the axes after Transpose.
pub(crate) fn order(attributes: Attributes<'_>, rank: usize) -> Result<Vec<usize>, String> {
    match attributes.ints("perm")? {
        None => Ok((0..rank).rev().collect()),
        Some(perm) => {
            let order = dims(perm)?;
            let mut sorted = order.clone();
            sorted.sort_unstable();
            match sorted.iter().copied().eq(0..rank) {
                true => Ok(order),
                false => Err(format!("perm {perm:?} is no order of {rank} axes")),
            }
        }
    }
}

/// The dimensions after Flatten.
pub(crate) fn flattened(dims: &[usize], at: i64) -> Result<Vec<usize>, String> {
    // The axis behind the last is legal here.
    let at = axis(at, dims.len() + usize::from(at >= 0))?;
    Ok(vec![
        dims[..at].iter().product(),
        dims[at..].iter().product(),
    ])
}

/// The dimensions after Squeeze; without axes all of size 1 go.
pub(crate) fn squeezed(dims: &[usize], axes: Option<&[i64]>) -> Result<Vec<usize>, String> {
    let mut gone = vec![false; dims.len()];
    match axes {
        None => (gone.iter_mut().zip(dims)).for_each(|(gone, &dim)| *gone = dim == 1),
        Some(axes) => {
            for &number in axes {
                let axis = axis(number, dims.len())?;
                if dims[axis] != 1 {
                    return Err(format!("squeezes axis {axis} of {dims:?}"));
                }
                gone[axis] = true;
            }
        }
    }
    let kept = dims.iter().zip(gone).filter(|(_, gone)| !gone);
    Ok(kept.map(|(&dim, _)| dim).collect())
}

/// The dimensions after Unsqueeze.
pub(crate) fn unsqueezed(dims: &[usize], axes: &[i64]) -> Result<Vec<usize>, String> {
    let rank = dims.len() + axes.len();
    let mut fresh = vec![false; rank];
    for &number in axes {
        let axis = axis(number, rank)?;
        if std::mem::replace(&mut fresh[axis], true) {
            return Err(format!("axes {axes:?} name one twice"));
        }
    }
    let mut old = dims.iter();
    let fill = |fresh| match fresh {
        true => 1,
        false => *old.next().expect("as many old axes as are not new"),
    };
    Ok(fresh.into_iter().map(fill).collect())
}

/// The dimensions as a constant, or a part of them.
pub(crate) fn shape(dims: &[usize], attributes: Attributes<'_>) -> Result<Tensor, String> {
    let rank = dims.len() as i64;
    let place = |at: i64| (if at < 0 { at + rank } else { at }).clamp(0, rank) as usize;
    let start = place(attributes.int("start", 0)?);
    let end = place(attributes.int("end", rank)?).max(start);
    Ok(Tensor::ints(
        dims[start..end].iter().map(|&d| d as i64).collect(),
    ))
}

fn constant(model: &Model, attributes: Attributes<'_>) -> Result<Tensor, String> {
    if let Some(tensor) = attributes.tensor("value")? {
        return model.tensor(tensor);
    }
    let one = |data| Tensor {
        dims: Vec::new(),
        data,
    };
    if attributes.has("value_float") {
        return Ok(one(Data::Float(vec![
            attributes.float("value_float", 0.0)?,
        ])));
    }
    if attributes.has("value_int") {
        return Ok(one(Data::Int(vec![attributes.int("value_int", 0)?])));
    }
    if let Some(ints) = attributes.ints("value_ints")? {
        return Ok(Tensor::ints(ints.to_vec()));
    }
    if let Some(floats) = attributes.floats("value_floats")? {
        return Ok(Tensor::floats(vec![floats.len()], floats.to_vec()));
    }
    Err("a constant of another kind than numbers".into())
}

fn filled(model: &Model, attributes: Attributes<'_>, ints: &Tensor) -> Result<Tensor, String> {
    let dims = dims(&ints.to_ints()?)?;
    let n = count(&dims)?;
    let value = match attributes.tensor("value")? {
        Some(value) => model.tensor(value)?,
        None => Tensor::floats(vec![1], vec![0.0]),
    };
    match value.len() {
        1 => Ok(value.gather(dims, &vec![0; n])),
        _ => Err("value has more than one element".into()),
    }
}

fn cast(tensor: &Tensor, to: i64) -> Result<Tensor, String> {
    let data = match (to, &tensor.data) {
        // Floats of all widths are single precision here.
        (1 | 10 | 11 | 16, _) => Data::Float(tensor.to_floats()?),
        (2..=7 | 12 | 13, Data::Float(data)) => Data::Int(data.iter().map(|&v| v as i64).collect()),
        (2..=7 | 12 | 13, _) => Data::Int(tensor.to_ints()?),
        (9, _) => Data::Bool(tensor.to_floats()?.iter().map(|&v| v != 0.0).collect()),
        _ => return Err(format!("a cast to type {to} is not supported")),
    };
    Ok(Tensor {
        dims: tensor.dims.clone(),
        data,
    })
}

fn concat(attributes: Attributes<'_>, inputs: &Inputs) -> Result<Tensor, String> {
    let first = required(inputs, 0)?;
    let axis = axis(attributes.int("axis", 0)?, first.dims.len())?;
    let parts: Vec<&Tensor> = (0..inputs.len())
        .map(|index| required(inputs, index))
        .collect::<Result<_, String>>()?;
    let mut dims = first.dims.clone();
    for part in &parts[1..] {
        let same = part.dims.len() == dims.len()
            && (0..dims.len()).all(|i| i == axis || part.dims[i] == dims[i]);
        if !same {
            return Err(format!("concatenates {:?} and {:?}", first.dims, part.dims));
        }
        dims[axis] += part.dims[axis];
    }
    count(&dims)?;
    let inner: usize = dims[axis + 1..].iter().product();
    let outer: usize = dims[..axis].iter().product();
    fn joined<T: Copy>(parts: &[(&[T], usize)], outer: usize) -> Vec<T> {
        let row = |o: usize| {
            let pieces = parts.iter();
            pieces.flat_map(move |(data, size)| data[o * size..(o + 1) * size].iter().copied())
        };
        (0..outer).flat_map(row).collect()
    }
    let size = |part: &Tensor| part.dims[axis] * inner;
    let data = if let Data::Int(_) = first.data {
        let owned: Vec<Vec<i64>> = parts
            .iter()
            .map(|p| p.to_ints())
            .collect::<Result<_, _>>()?;
        let pieces: Vec<(&[i64], usize)> = owned
            .iter()
            .zip(&parts)
            .map(|(data, p)| (&data[..], size(p)))
            .collect();
        Data::Int(joined(&pieces, outer))
    } else {
        let owned: Vec<Vec<f32>> = parts
            .iter()
            .map(|p| p.to_floats())
            .collect::<Result<_, _>>()?;
        let pieces: Vec<(&[f32], usize)> = owned
            .iter()
            .zip(&parts)
            .map(|(data, p)| (&data[..], size(p)))
            .collect();
        Data::Float(joined(&pieces, outer))
    };
    Ok(Tensor { dims, data })
}

/// The elements that Gather takes from an axis of this size.
pub(crate) fn indices(indices: &Tensor, size: usize) -> Result<Vec<usize>, String> {
    let wanted = indices.to_ints()?;
    let place = |&i: &i64| axis(i, size).map_err(|_| format!("index {i} of {size} elements"));
    wanted.iter().map(place).collect()
}

fn gather(tensor: &Tensor, indices: &Tensor, at: i64) -> Result<Tensor, String> {
    let at = axis(at, tensor.dims.len())?;
    let wanted = self::indices(indices, tensor.dims[at])?;
    let mut dims = tensor.dims[..at].to_vec();
    dims.extend(&indices.dims);
    dims.extend(&tensor.dims[at + 1..]);
    count(&dims)?;
    tensor.picked(at, &wanted).reshaped(dims)
}

fn slice(tensor: &Tensor, attributes: Attributes<'_>, inputs: &Inputs) -> Result<Tensor, String> {
    let cuts = cuts(&tensor.dims, attributes, |index| {
        Ok(optional(inputs, index))
    })?;
    let cut =
        |tensor: Tensor, (axis, elements): (usize, Vec<usize>)| tensor.picked(axis, &elements);
    Ok(cuts.into_iter().fold(tensor.clone(), cut))
}

/// The axes that Slice cuts, each with the elements that are left.
pub(crate) fn cuts<'t>(
    dims: &[usize],
    attributes: Attributes<'_>,
    input: impl Fn(usize) -> Result<Option<&'t Tensor>, String>,
) -> Result<Vec<(usize, Vec<usize>)>, String> {
    let listed = |name: &str, index: usize| -> Result<Option<Vec<i64>>, String> {
        match attributes.ints(name)? {
            Some(list) => Ok(Some(list.to_vec())),
            None => input(index)?.map(Tensor::to_ints).transpose(),
        }
    };
    let starts = listed("starts", 1)?.ok_or("starts are missing")?;
    let ends = listed("ends", 2)?.ok_or("ends are missing")?;
    let axes = listed("axes", 3)?.unwrap_or_else(|| (0..starts.len() as i64).collect());
    let steps = listed("steps", 4)?.unwrap_or_else(|| vec![1; starts.len()]);
    if [ends.len(), axes.len(), steps.len()]
        .iter()
        .any(|&n| n != starts.len())
    {
        return Err("starts, ends, axes and steps are not of one length".into());
    }
    let mut cut = vec![false; dims.len()];
    let mut cuts = Vec::with_capacity(axes.len());
    for (index, &number) in axes.iter().enumerate() {
        let axis = axis(number, dims.len())?;
        if std::mem::replace(&mut cut[axis], true) {
            return Err(format!("axes {axes:?} name one twice"));
        }
        let elements = sliced(dims[axis], starts[index], ends[index], steps[index])?;
        cuts.push((axis, elements));
    }
    Ok(cuts)
}

/// The elements from `start` up to `end` of an axis; negative numbers count from its end.
fn sliced(size: usize, start: i64, end: i64, step: i64) -> Result<Vec<usize>, String> {
    let size = size as i64;
    let from_start = |at: i64| if at < 0 { at.saturating_add(size) } else { at };
    let (start, end) = (from_start(start), from_start(end));
    let (mut at, end) = match step {
        0 => return Err("a step is 0".into()),
        1.. => (start.clamp(0, size), end.clamp(0, size)),
        _ => (start.clamp(-1, size - 1), end.clamp(-1, size - 1)),
    };
    let mut elements = Vec::new();
    while if step > 0 { at < end } else { at > end } {
        elements.push(at as usize);
        at = at.saturating_add(step);
    }
    Ok(elements)
}

/// The tensor repeated along each axis.
fn tile(tensor: &Tensor, repeats: &Tensor) -> Result<Tensor, String> {
    let repeats = dims(&repeats.to_ints()?)?;
    if repeats.len() != tensor.dims.len() {
        return Err(format!("repeats {:?} {repeats:?} times", tensor.dims));
    }
    let total = tensor.dims.iter().zip(&repeats);
    let total: Option<Vec<usize>> = total.map(|(dim, times)| dim.checked_mul(*times)).collect();
    count(&total.ok_or("its result is too large")?)?;
    let tiled = |tensor: Tensor, (axis, &times): (usize, &usize)| {
        let once: Vec<usize> = (0..tensor.dims[axis]).collect();
        tensor.picked(axis, &once.repeat(times))
    };
    Ok(repeats.iter().enumerate().fold(tensor.clone(), tiled))
}

/// The sizes of the pieces that Split cuts an axis into.
///
/// # Errors
/// If they do not make up the axis.
pub(crate) fn pieces<'t>(
    size: usize,
    attributes: Attributes<'_>,
    input: impl FnOnce() -> Result<Option<&'t Tensor>, String>,
    outputs: usize,
) -> Result<Vec<usize>, String> {
    let listed = match attributes.ints("split")? {
        Some(list) => Some(list.to_vec()),
        None => input()?.map(Tensor::to_ints).transpose()?,
    };
    let sizes = match listed {
        Some(list) => dims(&list)?,
        None => {
            let pieces = attributes.int("num_outputs", outputs as i64)?;
            let pieces = usize::try_from(pieces)
                .ok()
                .filter(|n| (1..=size).contains(n));
            let pieces = pieces.ok_or_else(|| format!("cannot split {size} elements so"))?;
            // The last piece is smaller if they cannot be equal.
            let own = size.div_ceil(pieces);
            (0..pieces)
                .map(|i| own.min(size.saturating_sub(i * own)))
                .collect()
        }
    };
    let total = sizes.iter().try_fold(0usize, |sum, &n| sum.checked_add(n));
    match total == Some(size) && sizes.len() >= outputs {
        true => Ok(sizes),
        false => Err(format!(
            "pieces of {sizes:?} for {outputs} outputs do not make up {size} elements"
        )),
    }
}

fn range(inputs: &Inputs) -> Result<Tensor, String> {
    let of = |index| -> Result<i64, String> {
        match required(inputs, index)?.to_ints()?[..] {
            [value] => Ok(value),
            _ => Err("start, limit and delta are single numbers".into()),
        }
    };
    let (start, limit, delta) = (of(0)?, of(1)?, of(2)?);
    if delta == 0 {
        return Err("delta is 0".into());
    }
    let n = (i128::from(limit) - i128::from(start) + i128::from(delta)
        - i128::from(delta.signum()))
        / i128::from(delta);
    let n = usize::try_from(n.max(0)).unwrap_or(usize::MAX);
    count(&[n])?;
    Ok(Tensor::ints(
        (0..n as i64).map(|i| start + i * delta).collect(),
    ))
}

fn map(tensor: &Tensor, f: fn(f32) -> f32) -> Result<Tensor, String> {
    let data = match &tensor.data {
        Data::Float(data) => Data::Float(data.iter().map(|&v| f(v)).collect()),
        _ => {
            let ints = tensor.to_ints()?;
            Data::Int(ints.into_iter().map(|v| f(v as f32) as i64).collect())
        }
    };
    Ok(Tensor {
        dims: tensor.dims.clone(),
        data,
    })
}

fn pair(inputs: &Inputs) -> Result<(Tensor, Tensor), String> {
    let (a, b) = (required(inputs, 0)?, required(inputs, 1)?);
    let dims = common(&a.dims, &b.dims)?;
    Ok((a.broadcast(&dims)?, b.broadcast(&dims)?))
}

fn binary(
    inputs: &Inputs,
    ints: fn(i64, i64) -> Option<i64>,
    floats: fn(f32, f32) -> f32,
) -> Result<Tensor, String> {
    let (a, b) = pair(inputs)?;
    let data = match (&a.data, &b.data) {
        (Data::Int(x), Data::Int(y)) => {
            let both = x.iter().zip(y).map(|(&x, &y)| ints(x, y));
            let all: Option<Vec<i64>> = both.collect();
            Data::Int(all.ok_or("integers overflow, or are divided by 0")?)
        }
        _ => {
            let (x, y) = (a.to_floats()?, b.to_floats()?);
            Data::Float(x.iter().zip(&y).map(|(&x, &y)| floats(x, y)).collect())
        }
    };
    Ok(Tensor { dims: a.dims, data })
}

fn compare(inputs: &Inputs, f: fn(f32, f32) -> bool) -> Result<Tensor, String> {
    let (a, b) = pair(inputs)?;
    let (x, y) = (a.to_floats()?, b.to_floats()?);
    Ok(Tensor {
        dims: a.dims,
        data: Data::Bool(x.iter().zip(&y).map(|(&x, &y)| f(x, y)).collect()),
    })
}

/// The elements as truths.
pub(crate) fn truths(tensor: &Tensor) -> Result<Vec<bool>, String> {
    match &tensor.data {
        Data::Bool(data) => Ok(data.clone()),
        _ => Ok(tensor.to_floats()?.iter().map(|&v| v != 0.0).collect()),
    }
}

fn choose(inputs: &Inputs) -> Result<Tensor, String> {
    let (c, x, y) = (
        required(inputs, 0)?,
        required(inputs, 1)?,
        required(inputs, 2)?,
    );
    let dims = common(&c.dims, &common(&x.dims, &y.dims)?)?;
    let flags = truths(&c.broadcast(&dims)?)?;
    let (x, y) = (x.broadcast(&dims)?, y.broadcast(&dims)?);
    let data = match (&x.data, &y.data) {
        (Data::Int(x), Data::Int(y)) => {
            let both = x.iter().zip(y).zip(&flags);
            Data::Int(both.map(|((&x, &y), &c)| if c { x } else { y }).collect())
        }
        _ => {
            let (x, y) = (x.to_floats()?, y.to_floats()?);
            let both = x.iter().zip(&y).zip(&flags);
            Data::Float(both.map(|((&x, &y), &c)| if c { x } else { y }).collect())
        }
    };
    Ok(Tensor { dims, data })
}

/// Weights that were stored as integers.
fn dequantise(attributes: Attributes<'_>, inputs: &Inputs) -> Result<Tensor, String> {
    let (x, scale) = (required(inputs, 0)?, required(inputs, 1)?);
    let zero = optional(inputs, 2);
    let along = |t: &Tensor| -> Result<Vec<f32>, String> {
        let t = match t.len() {
            1 => t.reshaped(vec![1; x.dims.len()])?,
            n => {
                let axis = axis(attributes.int("axis", 1)?, x.dims.len())?;
                let mut dims = vec![1; x.dims.len()];
                dims[axis] = n;
                t.reshaped(dims)?
            }
        };
        t.broadcast(&x.dims)?.to_floats()
    };
    let (values, scale) = (x.to_floats()?, along(scale)?);
    let zero = zero.map_or(Ok(vec![0.0; values.len()]), along)?;
    let all = values.iter().zip(&scale).zip(&zero);
    Ok(Tensor::floats(
        x.dims.clone(),
        all.map(|((&v, &s), &z)| (v - z) * s).collect(),
    ))
}
