//! The table `[network]` of an experiment file.

use serde::{Deserialize, Serialize};

use super::Replacement;

/// A network by its architecture, its width and what replaces ReLUs and convolutions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NetworkConfig {
    /// The architecture.
    #[serde(default)]
    pub kind: Kind,
    /// Factor of all channel counts (rounded, at least 1).
    #[serde(default = "one")]
    pub width: f32,
    /// First convolution; of [`Kind::Residual`] only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stem: Option<Stem>,
    /// Groups of basic blocks, in order; of [`Kind::Residual`] only.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stages: Vec<Stage>,
    /// Starting weights of the convolutions.
    #[serde(default)]
    pub initial: Initial,
    /// Makes the logits `logit_scale / inputs` times the product of the classifier's weights, which
    /// then begin as a unit normal, and its inputs. A smaller scale bounds the logits more softly
    /// (airbench networks have about 12). Folded into the weights when the model is exported. If
    /// absent, the product itself, of weights that begin at `1 / sqrt(inputs)`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub logit_scale: Option<f32>,
    /// Functions at activation sites from the start; ReLU where no entry fits, the last fitting
    /// entry wins.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub activations: Vec<Replacement>,
    /// Polynomial kernels; the last fitting entry wins.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kernels: Vec<KernelRule>,
}

fn one() -> f32 {
    1.0
}

/// Starting weights of the convolutions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Initial {
    /// Normal, of deviation `sqrt(2 / inputs)` (He et al., 2015), with a tenth of it inside
    /// polynomial kernels.
    #[default]
    He,
    /// The first output channels begin as copies of the input channels, as many as there are, so
    /// that a deep network begins as a shallow one; the others are uniform within `1 /
    /// sqrt(inputs)`. Kernels of even size and those inside polynomial kernels begin as with `he`.
    Dirac,
}

/// An architecture.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// Free form: a stem and groups of basic blocks.
    #[default]
    Residual,
    /// A basic block a stage, widths 64 to 512.
    Resnet10,
    /// Two basic blocks a stage: 557,056 activations at 32 pixels.
    Resnet18,
    /// 3, 4, 6 and 3 basic blocks.
    Resnet34,
    /// 3, 4, 6 and 3 bottleneck blocks, the stride at the 3x3 convolution.
    Resnet50,
    /// Three stages of three basic blocks, widths 16, 32, 64.
    Resnet20,
    /// Three stages of five basic blocks, widths 16, 32, 64: 303,104 activations at 32 pixels.
    Resnet32,
    /// Wide ResNet of depth 22 and width 8, pre-activation: 1,392,640 activations at 32 pixels.
    #[serde(rename = "wrn22-8")]
    Wrn22x8,
    /// Nine layers without residuals: 81,560 activations at 32 pixels.
    Lean9,
    /// Twelve layers: three groups of three convolutions with a residual, widths 128, 384 and 512:
    /// 179,736 activations at 32 pixels, 23,064 of them behind the whitening convolution.
    Lean12,
}

/// First convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stem {
    /// Output channels.
    pub channels: usize,
    /// Side of the (odd) kernel.
    pub kernel: usize,
    /// Stride.
    pub stride: usize,
}

/// Group of basic blocks with one width.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    /// Output channels.
    pub channels: usize,
    /// Stride of the first block.
    pub stride: usize,
    /// Number of blocks.
    pub blocks: usize,
}

/// Polynomial kernels for some convolutions.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct KernelRule {
    /// Names of convolutions (`stage1.block1.a`), `*` for any characters.
    pub convolutions: String,
    /// The polynomial.
    pub by: PolynomialKernel,
}

/// Polynomial that a convolution computes of `w.x`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PolynomialKernel {
    /// `w.x`.
    Linear,
    /// `(w.x + c)^2` (PolyKervNets, SaTML 2023), `c` per output channel, from 1.
    Pkn,
    /// `a (w.x + c)^2` (R-PKN, arXiv 2312.15229), `a > 0` and `c` per output channel, from 0.009
    /// and 0.47.
    RPkn,
}

impl PolynomialKernel {
    /// Name in results.
    pub fn name(self) -> &'static str {
        match self {
            PolynomialKernel::Linear => "linear",
            PolynomialKernel::Pkn => "pkn",
            PolynomialKernel::RPkn => "r-pkn",
        }
    }
}
