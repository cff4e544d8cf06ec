//! Functions at an activation site, and what a configuration puts in a ReLU's place.
//!
//! Every function but [`SiteFunction::MinMax`] with batch statistics is a polynomial or a ReLU per
//! element once training is over: [`export`](crate::export) folds it.

use anyhow::Result;
use serde::{Deserialize, Serialize};

use super::approximation::{Approximation, DropIn};

/// A function that an activation site computes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum SiteFunction {
    /// Each position a ReLU, the identity, or its channel's quadratic `a z^2 + b z + c`, as the
    /// mask says. Parameter `poly`: `[3, c]`, where a position is a quadratic.
    Masked,
    /// `a (z^2 + p z)^2 + c z^2 + d z + e` per channel, a quartic in the form that quadratics
    /// compose. Parameter `quartic`: `[5, c]`, `(a, p, c, d, e)`.
    Quartic,
    /// `gamma [h0 + BN(z)/2 + BN((z^2 - 1)/sqrt 2)/sqrt(4 pi)] + beta`, `h0 = 1/sqrt(2 pi)` (HerPN,
    /// AESPA). Parameters `gamma`, `beta`: `[c]`; buffer `herpn`: `[4, c]`, mean and variance of
    /// both basis functions.
    #[serde(rename = "herpn")]
    HerPn,
    /// The square of `z` mapped to `[-1, 1]` by each channel's minimum and maximum (Sisyphus, arXiv
    /// 2107.12342). Buffer `extent`: `[2, c]`, smoothed minimum and maximum.
    MinMax {
        /// Smoothed values at test time (AMM), or the batch's own (MM: not private, a yardstick
        /// that no export takes).
        running: bool,
    },
}

/// Another function for some activation sites.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Replacement {
    /// Names of sites (`stage1.block1.a.act`), `*` for any characters.
    pub sites: String,
    /// The function that takes their place.
    pub by: Substitute,
    /// ReLUs among them that stay; none if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub keep: Option<Keep>,
}

/// A budget of ReLUs that a [`Replacement`] leaves where they are.
///
/// The ReLUs of the last sites stay first, as after a ReLU nothing grows faster than linearly
/// before the logits. At the site where the budget runs out whole channels stay, those that cost
/// most to replace by the first-order change of the loss; all ReLUs before it are replaced. What
/// is left of the budget and fills no channel stays unspent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Keep {
    /// ReLUs that stay at most.
    pub relus: usize,
}

/// A function that takes the place of what stands at a site.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Substitute {
    /// ReLU at every position.
    Relu,
    /// The identity at every position.
    Identity,
    /// `0.009 z^2 + 0.5 z + 0.47`, trained (React-PKN, arXiv 2312.15229).
    ReactPkn,
    /// `z^2`, trained.
    Square,
    /// The square after the approximate min-max norm.
    SquareAmm,
    /// The square after the min-max norm of the batch at hand.
    SquareMm,
    /// See [`SiteFunction::HerPn`].
    #[serde(rename = "herpn")]
    HerPn,
    /// `a z^2 + b z + c` in every channel, trained from there unless `*.poly` is frozen. `a = c =
    /// 0.19947` and `b = 0.5` are nearest to ReLU in mean square on standard normal inputs.
    Quadratic([f32; 3]),
    /// A polynomial that approximates ReLU on an interval, trained from there.
    DropIn(DropIn),
    /// Each channel's quadratic nearest to ReLU under the distribution of its inputs (AutoReP, ICCV
    /// 2023), measured on training images.
    Fitted {
        /// Divides the starting square and constant by 10 and 5, as AutoReP does.
        #[serde(default)]
        damped: bool,
    },
}

impl Substitute {
    /// The quadratic `a z^2 + b z + c` that a channel begins with, if this is one: that of the
    /// identity for [`Self::Fitted`], until it is fitted.
    ///
    /// # Errors
    /// A drop-in that does not exist.
    pub fn quadratic(&self) -> Result<Option<[f32; 3]>> {
        Ok(match self {
            Substitute::ReactPkn => Some([0.009, 0.5, 0.47]),
            Substitute::Square => Some([1.0, 0.0, 0.0]),
            Substitute::Quadratic(coefficients) => Some(*coefficients),
            Substitute::Fitted { .. } => Some([0.0, 1.0, 0.0]),
            Substitute::DropIn(drop_in) if drop_in.degree == 2 => {
                let [c, b, a, ..] = drop_in.coefficients()?.map(|v| v as f32);
                Some([a, b, c])
            }
            _ => None,
        })
    }

    /// Name in logs and results.
    pub fn name(&self) -> &'static str {
        match self {
            Substitute::Relu => "relu",
            Substitute::Identity => "identity",
            Substitute::ReactPkn => "react-pkn",
            Substitute::Square => "square",
            Substitute::SquareAmm => "square-amm",
            Substitute::SquareMm => "square-mm",
            Substitute::HerPn => "herpn",
            Substitute::Quadratic(_) => "quadratic",
            Substitute::DropIn(DropIn { by, degree, .. }) => match (by, degree) {
                (Approximation::Taylor, 2) => "taylor of degree 2",
                (Approximation::Taylor, _) => "taylor of degree 4",
                (Approximation::LeastSquares, 2) => "least squares of degree 2",
                (Approximation::LeastSquares, _) => "least squares of degree 4",
            },
            Substitute::Fitted { .. } => "fitted quadratics",
        }
    }
}
