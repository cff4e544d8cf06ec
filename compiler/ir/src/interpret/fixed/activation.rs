//! Truncation and activation of one layer.

use super::truncate::{bound, centred, low_bits, round_to_nearest, truncate_shares};
use super::{Error, Mode, PostMagnitudes, Stage, UNLIMITED};
use crate::circuit::{Activation, Kind, Layer, PostTruncation};
use crate::trace::LayerTrace;
use crate::weights::Polynomial;

/// Truncation and activation of one layer's sums.
pub(super) struct ActivationRun<'a> {
    pub(super) layer: &'a Layer,
    pub(super) activation: &'a Activation,
    pub(super) polynomials: &'a [Polynomial],
    pub(super) mode: Mode<'a>,
    /// The client's shares, if the carries are theirs.
    pub(super) shares: Option<&'a LayerTrace>,
}

impl ActivationRun<'_> {
    /// The tensor, the largest magnitudes, and whether every value kept to what is checked.
    pub(super) fn run(&self, sums: &[i64]) -> Result<(Vec<i64>, PostMagnitudes, bool), Error> {
        let positions = self.layer.shape.h as usize * self.layer.shape.w as usize;
        let mut magnitudes = PostMagnitudes::default();
        let mut in_range = true;
        let mut quadratic = 0;
        let mut tensor = Vec::with_capacity(sums.len());
        for (element, (&z, &kind)) in sums.iter().zip(&self.activation.kinds).enumerate() {
            let y = self.truncate_sum(element, z);
            let value = match kind {
                Kind::Relu => {
                    let (value, kept) = self.relu(y);
                    in_range &= kept;
                    value
                }
                Kind::Identity => self.field(y),
                Kind::Square | Kind::Polynomial => {
                    let polynomial = match kind {
                        Kind::Square => Polynomial { a: 1, b: 0, k: 0 },
                        _ => self.polynomials[element / positions],
                    };
                    let v = self.evaluate(polynomial, self.field(y));
                    in_range &= self.check_post(element, kind, v)?;
                    let seen = match kind {
                        Kind::Square => &mut magnitudes.square,
                        _ => &mut magnitudes.polynomial,
                    };
                    *seen = (*seen).max(v.unsigned_abs() as u64);
                    self.truncate_post(&mut quadratic, kind, v)
                }
            };
            // All magnitudes are below 2^60 here: bounds were checked, or residues taken.
            tensor.push(value as i64);
        }
        Ok((tensor, magnitudes, in_range))
    }

    /// The truncated integer, which may not be right where shares wrapped.
    fn truncate_sum(&self, element: usize, z: i64) -> i128 {
        let (f, bound_bits) = (self.activation.truncate, self.layer.bound_bits);
        match self.shares {
            None => round_to_nearest(z.into(), f),
            Some(shares) => {
                truncate_shares(z.into(), shares.before_truncation[element], f, bound_bits)
            }
        }
    }

    /// `max(y, 0)`, and whether `y` passes the check. The garbled sign reads bits of the integer,
    /// and what it keeps is the field element.
    fn relu(&self, y: i128) -> (i128, bool) {
        if self.shares.is_none() {
            return (y.max(0), true);
        }
        let bits = self.layer.bound_bits - self.activation.truncate + 1;
        let guarded = low_bits(y, bits + self.layer.guard_bits);
        let value = if guarded >= 0 { centred(y) } else { 0 };
        (value, guarded == low_bits(y, bits))
    }

    /// What everything but a garbled sign reads: the field element, which without a truncation is
    /// right even where the shares wrapped.
    fn field(&self, y: i128) -> i128 {
        match self.mode {
            Mode::Exact(_) => centred(y),
            _ => y,
        }
    }

    /// `a y^2 + b y + k`, modulo `p` in an exact evaluation.
    fn evaluate(&self, Polynomial { a, b, k }: Polynomial, y: i128) -> i128 {
        let (a, b, k) = (i128::from(a), i128::from(b), i128::from(k));
        if let Mode::Exact(_) = self.mode {
            // |y| < 2^59 and |a| < 2^63; then two residues.
            return centred(centred(a * y + b) * y + k);
        }
        // |y| <= 2^58 and |a| < 2^63: checked, because a * y^2 may pass 2^127.
        (a * y)
            .checked_add(b)
            .and_then(|v| v.checked_mul(y))
            .and_then(|v| v.checked_add(k))
            .unwrap_or(i128::MAX)
    }

    fn truncate_post(&self, quadratic: &mut usize, kind: Kind, v: i128) -> i128 {
        let post = self.post(kind);
        let Some(shares) = self.shares else {
            return round_to_nearest(v, post.truncate);
        };
        let c = shares.before_post_truncation[*quadratic];
        *quadratic += 1;
        centred(truncate_shares(v, c, post.truncate, post.bound_bits))
    }

    /// Whether a value keeps to its bound, if that is of interest.
    fn check_post(&self, element: usize, kind: Kind, value: i128) -> Result<bool, Error> {
        let post = self.post(kind);
        let declared = bound(post.bound_bits, post.truncate);
        let largest = match self.mode {
            Mode::Exact(_) => return Ok(true),
            Mode::Unlimited => UNLIMITED,
            Mode::Nearest => declared,
        };
        // Not `abs`: the value may be the most negative.
        if value.unsigned_abs() > largest.unsigned_abs() {
            return Err(Error::OutOfBound {
                layer: self.layer.name.clone(),
                element,
                stage: Stage::Second,
                value,
                bound: largest,
            });
        }
        Ok(value.unsigned_abs() <= declared.unsigned_abs())
    }

    fn post(&self, kind: Kind) -> &PostTruncation {
        self.activation
            .post(kind)
            .expect("the interpreter was made for layers with all second truncations")
    }
}
