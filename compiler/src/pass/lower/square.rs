//! Makes plain squares of quadratics: one oblivious product an element instead of two.
//!
//! `a z^2 + b z + k = a (z + b/2a)^2 + K` with `K = k - b^2/4a`. With a *gain* `g` in the weights
//! before the activation, the tensor holds `y^2` for `y = g (z + b/2a)`, and what it stands for is
//! `factor y^2 + K` with `factor = a / g^2`: the readers' weights take the factor, their biases
//! what their kernels make of `K` (at padded borders fewer taps meet it, so that is a bias per
//! element). A ReLU or an identity element takes the same gain: `g relu(z)` with `factor = 1 / g`.
//!
//! Gains and factors belong to a channel, for so do the weights on both sides. A channel of
//! quadratics alone may have any gain. One that mixes kinds needs `a / g^2 = 1 / g`, hence `g = a`,
//! which must be positive if a ReLU is among them. Shift and constant are per element and always
//! exact. Two things limit the choice:
//!
//! - Sums with residual terms take no gain (`g = 1`): a residual has no weights.
//! - Tensors that an addition, another activation or the output reads have `factor = 1`: there are
//!   no weights behind them. They may have constants.
//!
//! All gains of a layer are equal where that is possible, and gains and factors within [`SPREAD`]
//! of their common value where it is not: a kernel has one scale for all its channels, and would
//! lose the bits of those with a small gain or factor. Quadratics that cannot comply stay
//! polynomials, of `g z` and with the common factor. So do those whose shift would cost the layer
//! more than a bit of precision, by [`too_wide`].
//!
//! Which channels are squares is public and depends on trained numbers: it tells the client whether
//! their coefficients satisfy the conditions above, and nothing more of them.

use crate::pass::calibrate::Magnitudes;
use pi_ir::Kind;

/// Largest quotient of a channel's gain and the common gain of its layer, or of the factors: it
/// costs the weights that make or read the channel 1.3 bits.
///
/// The `a` of the bundled network vary by half of their mean, and its channels mix kinds: with
/// 36,344 of its 36,780 quadratics as squares, logits at 8-bit weights are off by 0.110 instead of
/// 0.054 (root mean square over 1,000 images of the test batch; 846 right answers either way, 842
/// of the float graph). One `a` for all channels costs nothing.
const SPREAD: f64 = 2.5;

/// The number that a tensor's element `e` of channel `c` stands for is `factor[c] t + constant[e]`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Meaning {
    /// Per channel.
    pub(super) factor: Vec<f64>,
    /// Per element.
    pub(super) constant: Vec<f64>,
}

/// The squares of one channel that lowering made.
#[derive(Clone, Debug, PartialEq)]
pub struct Square {
    /// The activation, as an index of the graph's nodes.
    pub node: usize,
    /// Its channel.
    pub channel: usize,
    /// The layer that computes it.
    pub layer: usize,
    /// Part of the squares' argument that folding added, `g b / 2a`.
    pub shift: f64,
}

/// The squares that had better stay polynomials, by node and channel: their shift is more than half
/// of the largest argument that calibration saw in their layer.
///
/// Where no shift is, the layer's range without any of them is at least half of that with them, so
/// they cost the layer's tensor one bit at most.
pub(super) fn too_wide<'a>(
    squares: &'a [Square],
    seen: &'a Magnitudes,
) -> impl Iterator<Item = (usize, usize)> + 'a {
    squares
        .iter()
        .filter(|square| 2.0 * square.shift.abs() > seen.sums[square.layer])
        .map(|square| (square.node, square.channel))
}

/// An activation whose quadratics may become squares.
pub(super) struct Site<'a> {
    /// `[c][h][w]`; quadratics are [`Kind::Polynomial`].
    pub(super) kinds: &'a [Kind],
    /// Elements of a channel.
    pub(super) positions: usize,
    /// `a, b, k` per channel.
    pub(super) coefficients: &'a [[f64; 3]],
    /// The sum before takes gains.
    pub(super) gains: bool,
    /// What reads the tensor takes factors.
    pub(super) factors: bool,
}

/// The form of one channel.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Channel {
    pub(super) gain: f64,
    pub(super) factor: f64,
    /// Set if the quadratics of the channel become squares.
    pub(super) square: Option<Completed>,
}

impl Channel {
    const UNCHANGED: Channel = Channel {
        gain: 1.0,
        factor: 1.0,
        square: None,
    };

    /// The coefficients with which a quadratic of `g z` makes `1 / factor` of the given one of `z`.
    pub(super) fn adapted(&self, [a, b, k]: [f64; 3]) -> [f64; 3] {
        let (g, f) = (self.gain, self.factor);
        [a / (g * g * f), b / (g * f), k / f]
    }
}

/// `a (z + shift)^2 + constant`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Completed {
    a: f64,
    pub(super) shift: f64,
    pub(super) constant: f64,
}

impl Completed {
    /// The square of a quadratic; `None` if it has none in finite numbers. A constant below single
    /// precision is zero.
    fn new([a, b, k]: [f64; 3]) -> Option<Self> {
        let shift = b / (2.0 * a);
        let least = a * shift * shift;
        let constant = match (k - least).abs() <= 1e-6 * k.abs().max(least.abs()) {
            true => 0.0,
            false => k - least,
        };
        let finite = shift.is_finite() && constant.is_finite();
        finite.then_some(Completed { a, shift, constant })
    }
}

impl Site<'_> {
    /// The form of every channel; channels in `kept` keep their coefficients.
    pub(super) fn channels(&self, kept: impl Fn(usize) -> bool) -> Vec<Channel> {
        let kinds: Vec<&[Kind]> = self.kinds.chunks_exact(self.positions).collect();
        let completed = |channel: usize| {
            let quadratic = kinds[channel].contains(&Kind::Polynomial) && !kept(channel);
            let coefficients = quadratic.then(|| self.coefficients[channel])?;
            Completed::new(coefficients).filter(|square| self.has_form(kinds[channel], square.a))
        };
        let squares: Vec<Option<Completed>> = (0..kinds.len()).map(completed).collect();
        let mixed = |channel: usize| kinds[channel].iter().any(|k| *k != Kind::Polynomial);
        let Some((common, common_factor)) = self.common(&squares, mixed) else {
            return vec![Channel::UNCHANGED; kinds.len()];
        };
        let close = |value: f64, to: f64| (1.0 / SPREAD..=SPREAD).contains(&(value / to).abs());
        let form = |(channel, square): (usize, &Option<Completed>)| {
            let (gain, factor) = match square {
                Some(square) if mixed(channel) => (square.a, 1.0 / square.a),
                Some(square) if !self.factors => (square.a.sqrt(), 1.0),
                Some(square) => (common, square.a / (common * common)),
                None => (common, common_factor),
            };
            match close(gain, common) && close(factor, common_factor) {
                true => Channel {
                    gain,
                    factor,
                    square: *square,
                },
                false => Channel {
                    gain: common,
                    factor: common_factor,
                    square: None,
                },
            }
        };
        squares.iter().enumerate().map(form).collect()
    }

    /// Whether a channel with this `a` has gain and factor within what the neighbours take.
    fn has_form(&self, kinds: &[Kind], a: f64) -> bool {
        if kinds.iter().all(|kind| *kind == Kind::Polynomial) {
            self.factors || (self.gains && a > 0.0) || a == 1.0
        } else {
            let sign = a > 0.0 || !kinds.contains(&Kind::Relu);
            (self.gains && self.factors && sign) || a == 1.0
        }
    }

    /// The gain of all channels that can choose, and the factor that they best have; `None` if
    /// there is no square.
    ///
    /// The gain is a mean of what squares ask for: `a` where other kinds stand beside them, so that
    /// all factors are equal too, and otherwise `sqrt(a)`, so that a square and its tensor have one
    /// unit.
    fn common(
        &self,
        squares: &[Option<Completed>],
        mixed: impl Fn(usize) -> bool,
    ) -> Option<(f64, f64)> {
        let beside = self.kinds.iter().any(|kind| *kind != Kind::Polynomial);
        let wanted: Vec<(usize, f64)> = squares
            .iter()
            .enumerate()
            .filter_map(|(channel, square)| Some((channel, square.as_ref()?.a.abs().ln())))
            .collect();
        let mean = |logarithms: Vec<f64>| logarithms.iter().sum::<f64>() / logarithms.len() as f64;
        if wanted.is_empty() {
            return None;
        }
        // Those that mix kinds have no choice.
        let of_mixed = wanted.iter().filter(|(channel, _)| mixed(*channel));
        let of_mixed: Vec<f64> = of_mixed.map(|(_, a)| *a).collect();
        let a = match of_mixed.is_empty() {
            true => mean(wanted.iter().map(|(_, a)| *a).collect()).exp(),
            false => mean(of_mixed).exp(),
        };
        Some(match (self.gains && self.factors, beside) {
            (true, true) => (a, 1.0 / a),
            (true, false) => (a.sqrt(), 1.0),
            (false, false) if self.factors => (1.0, a),
            (false, false) if self.gains => (a.sqrt(), 1.0),
            (false, _) => (1.0, 1.0),
        })
    }
}
