//! Truncation and activation of one layer.

use super::truncate::{bound, centred, round_to_nearest, truncate_shares};
use super::{Error, PostMagnitudes, Stage};
use crate::circuit::{Activation, Kind, Layer, PostTruncation};
use crate::trace::LayerTrace;
use crate::weights::Polynomial;

/// Truncation and activation of one layer's sums.
pub(super) struct ActivationRun<'a> {
    pub(super) layer: &'a Layer,
    pub(super) activation: &'a Activation,
    pub(super) polynomials: &'a [Polynomial],
    pub(super) shares: Option<&'a LayerTrace>,
}

impl ActivationRun<'_> {
    pub(super) fn run(&self, sums: &[i64]) -> Result<(Vec<i64>, PostMagnitudes), Error> {
        let positions = self.layer.shape.h as usize * self.layer.shape.w as usize;
        let mut magnitudes = PostMagnitudes::default();
        let mut quadratic = 0;
        let mut tensor = Vec::with_capacity(sums.len());
        for (element, (&z, &kind)) in sums.iter().zip(&self.activation.kinds).enumerate() {
            let y = self.truncate_sum(element, z, kind)?;
            let value = match kind {
                Kind::Relu => y.max(0),
                Kind::Identity => y,
                Kind::Square => {
                    let v = y * y;
                    self.check_post(element, kind, v)?;
                    magnitudes.square = magnitudes.square.max(v.unsigned_abs() as u64);
                    self.truncate_post(element, &mut quadratic, kind, v)?
                }
                Kind::Polynomial => {
                    let Polynomial { a, b, k } = self.polynomials[element / positions];
                    // |y| <= 2^58 and |a| < 2^63: checked, because a * y^2 may pass 2^127.
                    let v = (i128::from(a) * y)
                        .checked_add(i128::from(b))
                        .and_then(|v| v.checked_mul(y))
                        .and_then(|v| v.checked_add(i128::from(k)))
                        .unwrap_or(i128::MAX);
                    self.check_post(element, kind, v)?;
                    magnitudes.polynomial = magnitudes.polynomial.max(v.unsigned_abs() as u64);
                    self.truncate_post(element, &mut quadratic, kind, v)?
                }
            };
            // All magnitudes are at most 2^58 here: the bounds were checked before the truncations.
            tensor.push(value as i64);
        }
        Ok((tensor, magnitudes))
    }

    fn truncate_sum(&self, element: usize, z: i64, kind: Kind) -> Result<i128, Error> {
        let (f, bound_bits) = (self.activation.truncate, self.layer.bound_bits);
        let Some(shares) = self.shares else {
            return Ok(round_to_nearest(z.into(), f));
        };
        let t = truncate_shares(z.into(), shares.before_truncation[element], f, bound_bits);
        // A garbled sign reads the integer; everything else the field element, which without a
        // truncation is right even where the shares wrapped.
        let t = if kind == Kind::Relu { t } else { centred(t) };
        if t.abs() > 1 << (bound_bits - f) {
            return Err(self.lost(element, Stage::First));
        }
        Ok(t)
    }

    fn truncate_post(
        &self,
        element: usize,
        quadratic: &mut usize,
        kind: Kind,
        v: i128,
    ) -> Result<i128, Error> {
        let post = self.post(kind);
        let Some(shares) = self.shares else {
            return Ok(round_to_nearest(v, post.truncate));
        };
        let c = shares.before_post_truncation[*quadratic];
        *quadratic += 1;
        let t = centred(truncate_shares(v, c, post.truncate, post.bound_bits));
        if t.abs() > 1 << (post.bound_bits - post.truncate) {
            return Err(self.lost(element, Stage::Second));
        }
        Ok(t)
    }

    fn check_post(&self, element: usize, kind: Kind, value: i128) -> Result<(), Error> {
        let post = self.post(kind);
        let bound = bound(post.bound_bits, post.truncate);
        if value.abs() > bound {
            return Err(Error::OutOfBound {
                layer: self.layer.name.clone(),
                element,
                stage: Stage::Second,
                value,
                bound,
            });
        }
        Ok(())
    }

    fn post(&self, kind: Kind) -> &PostTruncation {
        self.activation
            .post(kind)
            .expect("the interpreter was made for layers with all second truncations")
    }

    fn lost(&self, element: usize, stage: Stage) -> Error {
        Error::Lost {
            layer: self.layer.name.clone(),
            element,
            stage,
        }
    }
}
