//! Functions of one element, with coefficients that may differ from channel to channel or from
//! element to element: `square x^2 + linear x + constant + relu max(x, 0)`.
//!
//! Exporters spell activations in many ways: a mask as `Where(mask, Relu(x), x)` or as `m Relu(x) +
//! (1 - m) x`, a quadratic as products and sums, a leaky ReLU as itself. All of them become such a
//! function, piece by piece.

use pi_ir::{ActivationKind, Shape};

/// A number per element of a map `[c][h][w]`, as coarse as it is known.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Field {
    One(f64),
    Channels(Vec<f64>),
    Elements(Vec<f64>),
}

impl Field {
    pub(crate) const ZERO: Field = Field::One(0.0);

    /// Returns whether all numbers are this one.
    pub(crate) fn is(&self, value: f64) -> bool {
        self.every(|own| own == value)
    }

    /// Returns whether all numbers have a property.
    fn every(&self, has: impl Fn(f64) -> bool) -> bool {
        match self {
            Field::One(own) => has(*own),
            Field::Channels(all) | Field::Elements(all) => all.iter().all(|&own| has(own)),
        }
    }

    pub(crate) fn map(&self, f: impl Fn(f64) -> f64) -> Field {
        match self {
            Field::One(value) => Field::One(f(*value)),
            Field::Channels(all) => Field::Channels(all.iter().map(|&v| f(v)).collect()),
            Field::Elements(all) => Field::Elements(all.iter().map(|&v| f(v)).collect()),
        }
    }

    pub(crate) fn zip(&self, other: &Field, shape: Shape, f: impl Fn(f64, f64) -> f64) -> Field {
        let both = |a: Vec<f64>, b: Vec<f64>| a.into_iter().zip(b).map(|(a, b)| f(a, b)).collect();
        match (self, other) {
            (Field::One(a), b) => b.map(|b| f(*a, b)),
            (a, Field::One(b)) => a.map(|a| f(a, *b)),
            (Field::Channels(a), Field::Channels(b)) => Field::Channels(both(a.clone(), b.clone())),
            (a, b) => Field::Elements(both(a.elements(shape), b.elements(shape))),
        }
    }

    /// One number per element.
    pub(crate) fn elements(&self, shape: Shape) -> Vec<f64> {
        let positions = shape.h as usize * shape.w as usize;
        match self {
            Field::One(value) => vec![*value; shape.len()],
            Field::Channels(all) => {
                let spread = all.iter().flat_map(|&v| std::iter::repeat_n(v, positions));
                spread.collect()
            }
            Field::Elements(all) => all.clone(),
        }
    }

    /// One number per channel; `None` where elements of a channel differ.
    pub(crate) fn channels(&self, shape: Shape) -> Option<Vec<f64>> {
        match self {
            Field::One(value) => Some(vec![*value; shape.c as usize]),
            Field::Channels(all) => Some(all.clone()),
            Field::Elements(all) => {
                let maps = all.chunks_exact(shape.h as usize * shape.w as usize);
                maps.map(|map| map.iter().all(|&v| v == map[0]).then_some(map[0]))
                    .collect()
            }
        }
    }
}

/// A function of one element.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Function {
    pub(crate) square: Field,
    pub(crate) linear: Field,
    pub(crate) constant: Field,
    pub(crate) relu: Field,
}

impl Function {
    /// `x`.
    pub(crate) fn identity() -> Self {
        Function {
            square: Field::ZERO,
            linear: Field::One(1.0),
            constant: Field::ZERO,
            relu: Field::ZERO,
        }
    }

    /// `max(x, 0)`.
    pub(crate) fn relu() -> Self {
        Function {
            linear: Field::ZERO,
            relu: Field::One(1.0),
            ..Function::identity()
        }
    }

    /// A constant, whatever `x` is.
    pub(crate) fn constant(value: Field) -> Self {
        Function {
            linear: Field::ZERO,
            constant: value,
            ..Function::identity()
        }
    }

    pub(crate) fn is_identity(&self) -> bool {
        self.is_affine() && self.linear.is(1.0) && self.constant.is(0.0)
    }

    /// Returns whether it is `linear x + constant`.
    pub(crate) fn is_affine(&self) -> bool {
        self.square.is(0.0) && self.relu.is(0.0)
    }

    /// Returns whether it is `max(x, 0)` at every element.
    pub(crate) fn is_relu(&self) -> bool {
        self.relu.is(1.0) && self.square.is(0.0) && self.linear.is(0.0) && self.constant.is(0.0)
    }

    fn zip(&self, other: &Function, shape: Shape, f: impl Fn(f64, f64) -> f64) -> Function {
        Function {
            square: self.square.zip(&other.square, shape, &f),
            linear: self.linear.zip(&other.linear, shape, &f),
            constant: self.constant.zip(&other.constant, shape, &f),
            relu: self.relu.zip(&other.relu, shape, &f),
        }
    }

    pub(crate) fn plus(&self, other: &Function, shape: Shape) -> Function {
        self.zip(other, shape, |a, b| a + b)
    }

    pub(crate) fn times(&self, factor: &Field, shape: Shape) -> Function {
        let by = |own: &Field| own.zip(factor, shape, |a, b| a * b);
        Function {
            square: by(&self.square),
            linear: by(&self.linear),
            constant: by(&self.constant),
            relu: by(&self.relu),
        }
    }

    /// This as a function `k y + d` of `y`, whose `k` and `d` may differ from element to element;
    /// `None` if it is none.
    pub(crate) fn of(&self, y: &Function, shape: Shape) -> Option<Function> {
        if !self.is_affine() || !y.is_affine() {
            return self.multiple_of(y, shape);
        }
        // c x + d = (c / a) (a x + b) + d - (c / a) b; where a and c are 0, any k is right.
        let slope = |c: f64, a: f64| if c == 0.0 { 0.0 } else { c / a };
        let linear = self.linear.zip(&y.linear, shape, slope);
        let taken = linear.zip(&y.constant, shape, |slope, b| slope * b);
        let constant = self.constant.zip(&taken, shape, |d, taken| d - taken);
        let finite = [&linear, &constant].map(|field| field.every(f64::is_finite));
        (finite == [true; 2]).then(|| Function {
            constant,
            linear,
            ..Function::identity()
        })
    }

    fn multiple_of(&self, y: &Function, shape: Shape) -> Option<Function> {
        let fields = |f: &Function| {
            [&f.square, &f.linear, &f.relu, &f.constant].map(|field| field.elements(shape))
        };
        let (own, other) = (fields(self), fields(y));
        let (mut linear, mut constant) = (Vec::new(), Vec::new());
        for element in 0..shape.len() {
            let [own, other] = [&own, &other].map(|all| [0, 1, 2, 3].map(|i| all[i][element]));
            let leading = other[..3].iter().position(|&v| v != 0.0);
            let slope = leading.map_or(0.0, |i| own[i] / other[i]);
            // Products of single-precision numbers, rounded in double precision.
            let near = |i: usize| (own[i] - slope * other[i]).abs() <= 1e-12 * own[i].abs();
            if !(0..3).all(near) {
                return None;
            }
            linear.push(slope);
            constant.push(own[3] - slope * other[3]);
        }
        Some(Function {
            linear: Field::Elements(linear),
            constant: Field::Elements(constant),
            ..Function::identity()
        })
    }

    /// The product, if it is a quadratic.
    pub(crate) fn product(&self, other: &Function, shape: Shape) -> Option<Function> {
        if other.is_affine() && other.linear.is(0.0) {
            return Some(self.times(&other.constant, shape));
        }
        if self.is_affine() && self.linear.is(0.0) {
            return Some(other.times(&self.constant, shape));
        }
        if !self.is_affine() || !other.is_affine() {
            return None;
        }
        let by = |a: &Field, b: &Field| a.zip(b, shape, |a, b| a * b);
        let left = by(&self.linear, &other.constant);
        let right = by(&self.constant, &other.linear);
        Some(Function {
            square: by(&self.linear, &other.linear),
            linear: left.zip(&right, shape, |a, b| a + b),
            constant: by(&self.constant, &other.constant),
            relu: Field::ZERO,
        })
    }

    /// `this` where the flag is 1, `other` where it is 0.
    pub(crate) fn select(&self, other: &Function, flag: &Field, shape: Shape) -> Function {
        let rest = flag.map(|flag| 1.0 - flag);
        self.times(flag, shape)
            .plus(&other.times(&rest, shape), shape)
    }

    /// The kinds of an activation that computes this, and its coefficients; `None` if it is none.
    pub(crate) fn activation(&self, shape: Shape) -> Option<(Vec<ActivationKind>, Vec<[f32; 3]>)> {
        let fields = [&self.square, &self.linear, &self.constant, &self.relu];
        let [square, linear, constant, relu] = fields.map(|field| field.elements(shape));
        let positions = shape.h as usize * shape.w as usize;
        let mut kinds = Vec::with_capacity(shape.len());
        let mut coefficients: Vec<Option<[f64; 3]>> = vec![None; shape.c as usize];
        for element in 0..shape.len() {
            let own = [square[element], linear[element], constant[element]];
            kinds.push(if relu[element] == 1.0 && own == [0.0; 3] {
                ActivationKind::Relu
            } else if relu[element] != 0.0 {
                return None;
            } else if own == [0.0, 1.0, 0.0] {
                ActivationKind::Identity
            } else {
                let channel = &mut coefficients[element / positions];
                match channel {
                    Some(known) if *known != own => return None,
                    _ => *channel = Some(own),
                }
                ActivationKind::Polynomial
            });
        }
        let any = coefficients.iter().any(Option::is_some);
        let coefficients = coefficients.into_iter();
        let coefficients = coefficients.map(|c| c.unwrap_or_default().map(|v| v as f32));
        Some((
            kinds,
            if any {
                coefficients.collect()
            } else {
                Vec::new()
            },
        ))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPE: Shape = Shape::new(2, 1, 2);

    #[test]
    fn masks_spelt_as_sums_become_kinds() {
        let mask = Field::Elements(vec![1.0, 0.0, 0.0, 1.0]);
        let rest = mask.map(|m| 1.0 - m);
        let (x, relu) = (Function::identity(), Function::relu());
        let sum = relu.times(&mask, SHAPE).plus(&x.times(&rest, SHAPE), SHAPE);
        assert_eq!(sum, relu.select(&x, &mask, SHAPE));
        let (kinds, coefficients) = sum.activation(SHAPE).unwrap();
        use ActivationKind::{Identity, Relu};
        assert_eq!(kinds, [Relu, Identity, Identity, Relu]);
        assert!(coefficients.is_empty());
    }

    #[test]
    fn products_become_quadratics_by_channel() {
        let x = Function::identity();
        let b = Field::Channels(vec![1.0, 3.0]);
        // (x + b) * 2 x
        let shifted = x.plus(&Function::constant(b), SHAPE);
        let doubled = x.times(&Field::One(2.0), SHAPE);
        let square = shifted.product(&doubled, SHAPE).unwrap();
        let (kinds, coefficients) = square.activation(SHAPE).unwrap();
        assert_eq!(kinds, [ActivationKind::Polynomial; 4]);
        assert_eq!(coefficients, [[2.0, 2.0, 0.0], [2.0, 6.0, 0.0]]);
        assert!(square.product(&x, SHAPE).is_none());
        assert!(Function::relu().product(&x, SHAPE).is_none());
    }

    #[test]
    fn multiples_of_a_function_are_found() {
        let y = Function {
            square: Field::Channels(vec![0.0, 0.3]),
            relu: Field::Elements(vec![1.0, 0.0, 0.0, 0.0]),
            linear: Field::Elements(vec![0.0, 0.0, 0.7, 1.0]),
            constant: Field::One(0.1),
        };
        let factor = Field::Channels(vec![0.9, 0.3]);
        let shifted = Function::constant(Field::One(0.25));
        let of = y
            .times(&factor, SHAPE)
            .plus(&shifted, SHAPE)
            .of(&y, SHAPE)
            .unwrap();
        // The second element is a constant of any multiple.
        for (element, expected) in [(0, 0.9), (2, 0.3), (3, 0.3)] {
            assert!((of.linear.elements(SHAPE)[element] - expected).abs() < 1e-12);
            assert!((of.constant.elements(SHAPE)[element] - 0.25).abs() < 1e-12);
        }
        assert!(Function::identity().of(&y, SHAPE).is_none());
        assert!(y.of(&Function::identity(), SHAPE).is_none());
    }

    #[test]
    fn a_leaky_relu_is_no_activation_and_unequal_quadratics_of_a_channel_neither() {
        let leaky = Function {
            linear: Field::One(0.1),
            relu: Field::One(0.9),
            ..Function::identity()
        };
        assert!(leaky.activation(SHAPE).is_none());
        let unequal = Function {
            square: Field::Elements(vec![1.0, 2.0, 1.0, 1.0]),
            ..Function::identity()
        };
        assert!(unequal.activation(SHAPE).is_none());
    }
}
