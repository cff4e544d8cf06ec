//! Functions of one element, sums and products.

use super::{At, Converter};
use crate::field::{Field, Function};
use crate::fold::truths;
use crate::tensor::Tensor;
use crate::value::{Live, Part, Value};
use pi_ir::{Op, Padding};

/// One of two operands.
enum Operand<'a> {
    Live(&'a Live),
    Constant(&'a Tensor),
}

impl Converter<'_> {
    pub(super) fn elementwise(&mut self, at: At<'_>) -> Result<Live, String> {
        match at.operator {
            "Relu" => self.relu(at.name, at.live(0)?),
            "LeakyRelu" => {
                let slope = at.attributes.float("alpha", 0.01)?;
                self.leaky(at.name, at.live(0)?, &Tensor::floats(vec![1], vec![slope]))
            }
            "PRelu" => self.leaky(at.name, at.live(0)?, at.constant(1)?),
            "Abs" => {
                // |x| = 2 max(x, 0) - x
                let minus = Tensor::floats(vec![1], vec![-1.0]);
                self.leaky(at.name, at.live(0)?, &minus)
            }
            "Neg" => self.scaled(at.name, at.live(0)?, -1.0),
            "Clip" => self.clip(at),
            "BatchNormalization" => self.norm(at),
            "Pow" => self.power(at),
            "Where" => self.choose(at),
            "Add" | "Sum" | "Sub" | "Mul" | "Div" | "Max" | "Min" => {
                let mut value = at.inputs.first().cloned().flatten();
                for index in 1..at.inputs.len() {
                    let (left, right) = (value.take(), at.inputs[index].clone());
                    let (left, right) = left.zip(right).ok_or("an operand is missing")?;
                    value = Some(Value::Live(self.pair(at, &left, &right)?));
                }
                match value {
                    Some(Value::Live(live)) => Ok(live),
                    _ => Err("input 0 is missing".into()),
                }
            }
            other => Err(format!("{other} is not supported")),
        }
    }

    fn pair(&mut self, at: At<'_>, left: &Value, right: &Value) -> Result<Live, String> {
        use Operand::{Constant, Live};
        fn operand(value: &Value) -> Result<Operand<'_>, String> {
            match value {
                Value::Live(live) => Ok(Live(live)),
                Value::Constant(tensor) => Ok(Constant(tensor)),
                Value::Final(..) | Value::Apart(_) | Value::Unknown => {
                    Err("an operand is missing".into())
                }
            }
        }
        let name = at.name;
        match (at.operator, operand(left)?, operand(right)?) {
            ("Add" | "Sum", Live(a), Live(b)) => self.sum(name, a, b),
            ("Sub", Live(a), Live(b)) => {
                let b = self.scaled(name, b, -1.0)?;
                self.sum(name, a, &b)
            }
            ("Mul", Live(a), Live(b)) => self.product(name, a, b),
            ("Max", Live(a), Live(b)) => self.largest(name, a, b),
            ("Min", Live(a), Live(b)) => {
                let (a, b) = (self.scaled(name, a, -1.0)?, self.scaled(name, b, -1.0)?);
                let largest = self.largest(name, &a, &b)?;
                self.scaled(name, &largest, -1.0)
            }
            ("Div", _, Live(_)) => Err(
                "it divides by a tensor that depends on the input, which has no private form"
                    .into(),
            ),
            ("Add" | "Sum", Live(a), Constant(c)) | ("Add" | "Sum", Constant(c), Live(a)) => {
                self.shifted(name, a, c, 1.0)
            }
            ("Sub", Live(a), Constant(c)) => self.shifted(name, a, c, -1.0),
            ("Sub", Constant(c), Live(a)) => {
                let minus = self.scaled(name, a, -1.0)?;
                self.shifted(name, &minus, c, 1.0)
            }
            ("Mul", Live(a), Constant(c)) | ("Mul", Constant(c), Live(a)) => {
                self.with(name, a, c, |f, c, shape| Ok(f.times(c, shape)))
            }
            ("Div", Live(a), Constant(c)) => self.with(name, a, c, |f, c, shape| {
                let inverse = c.map(|c| 1.0 / c);
                let finite = inverse.elements(shape).iter().all(|v| v.is_finite());
                finite
                    .then(|| f.times(&inverse, shape))
                    .ok_or("it divides by 0".into())
            }),
            ("Max", Live(a), Constant(c)) | ("Max", Constant(c), Live(a)) => {
                self.at_least(name, a, c)
            }
            ("Min", Live(a), Constant(c)) | ("Min", Constant(c), Live(a)) => {
                let minus = self.scaled(name, a, -1.0)?;
                let bound = c.to_floats()?.iter().map(|c| -c).collect();
                let bound = Tensor::floats(c.dims.clone(), bound);
                let clipped = self.at_least(name, &minus, &bound)?;
                self.scaled(name, &clipped, -1.0)
            }
            _ => Err("its operands are both constants".into()),
        }
    }

    /// Every part without padding, its function changed by a constant.
    fn with(
        &mut self,
        name: &str,
        live: &Live,
        constant: &Tensor,
        f: impl Fn(&Function, &Field, pi_ir::Shape) -> Result<Function, String>,
    ) -> Result<Live, String> {
        let mut constants = live.split(constant)?.into_iter();
        let changed = self.each(live, |this, part| {
            let part = this.net.settle_if_padded(part)?;
            let constant = constants.next().expect("one for each part");
            let field = part.view.field(&constant)?;
            let function = f(&part.function, &field, part.view.shape)?;
            Ok(Part {
                name: name.to_owned(),
                function,
                ..part
            })
        })?;
        unpicked_stay(live, changed)
    }

    pub(super) fn scaled(&mut self, name: &str, live: &Live, factor: f64) -> Result<Live, String> {
        let factor = Tensor::floats(vec![1], vec![factor as f32]);
        self.with(name, live, &factor, |f, c, shape| Ok(f.times(c, shape)))
    }

    pub(super) fn moved(&mut self, name: &str, live: &Live, by: f32) -> Result<Live, String> {
        self.shifted(name, live, &Tensor::floats(vec![1], vec![by]), 1.0)
    }

    fn shifted(
        &mut self,
        name: &str,
        live: &Live,
        constant: &Tensor,
        sign: f64,
    ) -> Result<Live, String> {
        self.with(name, live, constant, |f, c, shape| {
            Ok(f.plus(&Function::constant(c.map(|c| sign * c)), shape))
        })
    }

    /// The part as a node's result itself, unless it is one.
    pub(super) fn bare(&mut self, part: &Part) -> Result<Part, String> {
        let part = self.net.settle_if_padded(part)?;
        match part.function.is_identity() {
            true => Ok(part),
            false => Ok(Part::of(&part.name, self.net.compute(&part)?)),
        }
    }

    pub(super) fn relu(&mut self, name: &str, live: &Live) -> Result<Live, String> {
        let relu = self.each(live, |this, part| {
            if part.function.is_relu() {
                return Ok(part.clone());
            }
            Ok(Part {
                name: name.to_owned(),
                function: Function::relu(),
                ..this.bare(part)?
            })
        })?;
        unpicked_stay(live, relu)
    }

    /// `x` where it is above 0, `slope x` elsewhere.
    fn leaky(&mut self, name: &str, live: &Live, slope: &Tensor) -> Result<Live, String> {
        let bare = self.each(live, |this, part| this.bare(part))?;
        self.with(name, &bare, slope, |x, slope, shape| {
            let rest = slope.map(|s| 1.0 - s);
            let relu = Function::relu().times(&rest, shape);
            Ok(x.times(slope, shape).plus(&relu, shape))
        })
    }

    fn clip(&mut self, at: At<'_>) -> Result<Live, String> {
        let bound = |name: &str, index: usize| -> Result<Option<f32>, String> {
            if let Some(bound) = at.attributes.float_if(name)? {
                return Ok(Some(bound));
            }
            let given = at.constant_if(index)?;
            given
                .map(|t| match &t.data {
                    crate::tensor::Data::Float(data) if data.len() == 1 => Ok(data[0]),
                    _ => t.scalar(),
                })
                .transpose()
        };
        // Exporters write the largest number for a bound that is not there.
        let real = |bound: &f32| bound.abs() < 1e30;
        let low = bound("min", 1)?.filter(real);
        let high = bound("max", 2)?.filter(real);
        let one = |value: f32| Tensor::floats(vec![1], vec![value]);
        let mut live = at.live(0)?.clone();
        if let Some(low) = low {
            live = self.at_least(at.name, &live, &one(low))?;
        }
        if let Some(high) = high {
            self.notes.push(format!(
                "{} (Clip): its upper bound of {high} takes a second ReLU for each element; if no \
                 value comes near it, train and export with Relu",
                at.name
            ));
            let minus = self.scaled(at.name, &live, -1.0)?;
            let clipped = self.at_least(at.name, &minus, &one(-high))?;
            live = self.scaled(at.name, &clipped, -1.0)?;
        }
        Ok(live)
    }

    /// `max(x, c) = c + max(x - c, 0)`.
    fn at_least(&mut self, name: &str, live: &Live, bound: &Tensor) -> Result<Live, String> {
        let above = self.shifted(name, live, bound, -1.0)?;
        let relu = self.relu(name, &above)?;
        self.shifted(name, &relu, bound, 1.0)
    }

    /// `max(a, b) = b + max(a - b, 0)`.
    fn largest(&mut self, name: &str, a: &Live, b: &Live) -> Result<Live, String> {
        let minus = self.scaled(name, b, -1.0)?;
        let difference = self.sum(name, a, &minus)?;
        let relu = self.relu(name, &difference)?;
        self.sum(name, &relu, b)
    }

    pub(super) fn sum(&mut self, name: &str, a: &Live, b: &Live) -> Result<Live, String> {
        if a.dims() != b.dims() {
            return Err(format!(
                "adds tensors of {:?} and {:?}: both must have the same elements",
                a.dims(),
                b.dims()
            ));
        }
        if a.cut_like(b) {
            let mut others = b.parts.iter();
            return self.each(a, |this, part| {
                let other = others.next().expect("as many parts");
                this.sum_of_parts(name, part, other)
            });
        }
        let (left, right) = (self.net.joined(name, a)?, self.net.joined(name, b)?);
        let (left, right) = (Part::of(name, left), Part::of(name, right));
        Ok(Live::one(self.sum_of_parts(name, &left, &right)?))
    }

    fn sum_of_parts(&mut self, name: &str, a: &Part, b: &Part) -> Result<Part, String> {
        let (a, b) = &self.aligned(a, b);
        if a.view == b.view && a.padding == b.padding {
            let shape = a.view.shape;
            let (a, b) = (self.net.settle_if_padded(a)?, self.net.settle_if_padded(b)?);
            if a.view == b.view {
                return Ok(Part {
                    name: name.to_owned(),
                    function: a.function.plus(&b.function, shape),
                    ..a
                });
            }
        }
        let (left, right) = (self.net.settle(a)?, self.net.settle(b)?);
        if !left.like(&right) {
            return Err(
                "adds tensors whose axes are in different orders: transpose one of them".into(),
            );
        }
        let (id, _) = self.net.emit(name, Op::Add, vec![left.id, right.id])?;
        Ok(Part::of(name, crate::value::View { id, ..left }))
    }

    /// Two parts as functions of one node, if they can be.
    fn aligned(&self, a: &Part, b: &Part) -> (Part, Part) {
        let a = self.net.rebased(a, b.view.id);
        let b = self.net.rebased(b, a.view.id);
        (a, b)
    }

    fn product(&mut self, name: &str, a: &Live, b: &Live) -> Result<Live, String> {
        const REFUSED: &str = "it multiplies two different tensors that depend on the input (as \
                               squeeze-and-excitation, gates and attention do), which has no \
                               private form: only a product of one tensor with itself has";
        if !a.cut_like(b) {
            return Err(REFUSED.into());
        }
        let mut others = b.parts.iter();
        let product = self.each(a, |this, part| {
            let other = others.next().expect("as many parts");
            let (part, other) = &this.aligned(part, other);
            if part == other {
                // A tensor squared: of a norm, not of what the norm reads, as its ReLU would be.
                let bare = this.bare(part)?;
                let square = bare.function.product(&bare.function, bare.view.shape);
                return Ok(Part {
                    name: name.to_owned(),
                    function: square.expect("the square of a tensor is a quadratic"),
                    ..bare
                });
            }
            let same = part.view == other.view;
            let product = part.function.product(&other.function, part.view.shape);
            match product.filter(|_| same) {
                Some(function) if part.padding == Padding::default() => Ok(Part {
                    name: name.to_owned(),
                    function,
                    ..part.clone()
                }),
                _ => Err(REFUSED.into()),
            }
        })?;
        unpicked_stay(a, product)
    }

    fn power(&mut self, at: At<'_>) -> Result<Live, String> {
        let (live, exponent) = (at.live(0)?, at.constant(1)?.scalar()?);
        match exponent {
            1.0 => Ok(live.clone()),
            2.0 => self.product(at.name, live, live),
            other => Err(format!(
                "the power {other} has no private form: only squares have"
            )),
        }
    }

    fn norm(&mut self, at: At<'_>) -> Result<Live, String> {
        if at.attributes.int("training_mode", 0)? != 0 {
            return Err(
                "training_mode is set: export for inference, with running statistics".into(),
            );
        }
        let live = at.live(0)?;
        let list = |index| at.constant(index)?.to_floats();
        let (gamma, beta, mean, var) = (list(1)?, list(2)?, list(3)?, list(4)?);
        let eps = f64::from(at.attributes.float("epsilon", 1e-5)?);
        let channels = live.dims().get(1).copied();
        let channels = channels.ok_or("it reads a tensor without channels")?;
        if [&gamma, &beta, &mean, &var]
            .iter()
            .any(|all| all.len() != channels)
        {
            return Err(format!(
                "its statistics are not those of {channels} channels"
            ));
        }
        let scale: Vec<f64> = (gamma.iter().zip(&var))
            .map(|(&g, &v)| f64::from(g) / (f64::from(v) + eps).sqrt())
            .collect();
        if scale.iter().any(|s| !s.is_finite()) {
            return Err("a variance is negative, or 0 without epsilon".into());
        }
        let shift = beta.iter().zip(&mean).zip(&scale);
        let shift = shift.map(|((&b, &m), s)| f64::from(b) - f64::from(m) * s);
        let mut dims = vec![1; live.rank()];
        dims[1] = channels;
        let single = |all: Vec<f64>| {
            Tensor::floats(dims.clone(), all.into_iter().map(|v| v as f32).collect())
        };
        let (shift, scale) = (single(shift.collect()), single(scale));
        let scaled = self.with(at.name, live, &scale, |f, c, shape| Ok(f.times(c, shape)))?;
        self.shifted(at.name, &scaled, &shift, 1.0)
    }

    /// `Where`: a mask that is known chooses between two functions of one tensor.
    fn choose(&mut self, at: At<'_>) -> Result<Live, String> {
        let mask = at.constant(0)?;
        let flags = truths(mask)?
            .into_iter()
            .map(|flag| f32::from(u8::from(flag)));
        let mask = Tensor::floats(mask.dims.clone(), flags.collect());
        let (Some(Some(x)), Some(Some(y))) = (at.inputs.get(1), at.inputs.get(2)) else {
            return Err("an operand is missing".into());
        };
        // Functions of the same nodes, where one of the two has been given a node of its own.
        let (x, y) = match (x, y) {
            (Value::Live(x), Value::Live(y)) if x.cut_like(y) => {
                let parts = x.parts.iter().zip(&y.parts);
                let (left, right) = parts.map(|(a, b)| self.aligned(a, b)).unzip();
                let of = |parts, live: &Live| {
                    Value::Live(Live {
                        parts,
                        ..live.clone()
                    })
                };
                (of(left, x), of(right, y))
            }
            _ => (x.clone(), y.clone()),
        };
        let live = match (&x, &y) {
            (Value::Live(live), _) | (_, Value::Live(live)) => live,
            _ => return Err("its operands are both constants".into()),
        };
        let masks = live.split(&mask)?;
        let mut parts = Vec::with_capacity(live.parts.len());
        for (index, (part, mask)) in live.parts.iter().zip(masks).enumerate() {
            let (view, shape) = (&part.view, part.view.shape);
            let own = |value: &Value| -> Result<Function, String> {
                match value {
                    Value::Constant(tensor) => {
                        let constant = live.split(tensor)?.swap_remove(index);
                        Ok(Function::constant(view.field(&constant)?))
                    }
                    Value::Live(other) if other.cut_like(live) => {
                        let other = &other.parts[index];
                        let plain = other.padding == Padding::default();
                        match plain && other.view == *view {
                            true => Ok(other.function.clone()),
                            false => Err(
                                "it chooses between different tensors: a mask may choose between \
                                 a tensor, its Relu and its quadratics"
                                    .into(),
                            ),
                        }
                    }
                    _ => Err("it chooses between tensors of different shapes".into()),
                }
            };
            let flag = view.field(&mask)?;
            parts.push(Part {
                name: at.name.to_owned(),
                function: own(&x)?.select(&own(&y)?, &flag, shape),
                ..part.clone()
            });
        }
        unpicked_stay(
            live,
            Live {
                parts,
                ..live.clone()
            },
        )
    }
}

/// A function of a tensor, whose parts stay as they were where nothing is picked from them: no ReLU
/// is spent on what nobody reads.
fn unpicked_stay(before: &Live, mut after: Live) -> Result<Live, String> {
    if !before.leaves_out() {
        return Ok(after);
    }
    let places = before.places(before.axis);
    let mut flags = places
        .iter()
        .map(|place| f32::from(u8::from(place.is_some())));
    let sizes = before.sizes();
    for ((old, new), size) in before.parts.iter().zip(&mut after.parts).zip(sizes) {
        let mut dims = vec![1; before.rank()];
        dims[before.axis] = size;
        let flags = Tensor::floats(dims, flags.by_ref().take(size).collect());
        let same = old.view == new.view && old.padding == new.padding;
        let kept = match same {
            true => old.function.clone(),
            false => Function::identity(),
        };
        let flag = new.view.field(&flags)?;
        new.function = new.function.select(&kept, &flag, new.view.shape);
    }
    Ok(after)
}
