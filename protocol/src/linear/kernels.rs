//! The server's kernels as plaintext polynomials, placed once when a model is loaded.

use crate::layout::{AnswerMap, Packing, Tap, UploadMap};
use pi_ir::Weights;
use pi_rlwe::{CiphertextModulus, N, Params, PlainPoly};
use rayon::prelude::*;
use std::sync::Arc;
use zeroize::Zeroizing;

/// Memory of one kernel polynomial: three residues of each coefficient.
const KERNEL_BYTES: usize = 3 * 8 * N;

/// The server's kernels, placed for a packing.
pub struct Kernels {
    pub(super) answers: Vec<AnswerKernels>,
}

pub(super) struct AnswerKernels {
    /// `[out][in / groups][kernel_h][kernel_w]`.
    weights: Arc<Zeroizing<Vec<i16>>>,
    /// Taps by group of input channels.
    taps: Vec<Vec<Tap>>,
    /// Transformed kernels by [`OutputPlace::index`], of the groups that the chunk reads, where
    /// memory was granted.
    cached: Option<Vec<Vec<PlainPoly>>>,
}

/// The place of one kernel polynomial's results: a chunk of output channels, and a place of the
/// merge.
#[derive(Clone, Copy)]
pub(super) struct OutputPlace {
    pub(super) chunk: usize,
    pub(super) place: usize,
}

impl OutputPlace {
    /// Number of this place among all places of the answer.
    pub(super) fn index(self, answer: &AnswerMap) -> usize {
        (self.chunk << answer.merge()) + self.place
    }
}

impl std::fmt::Debug for Kernels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Kernels({} convolutions, values withheld)",
            self.answers.len()
        )
    }
}

impl Kernels {
    /// Places the weights of all convolutions. Transforms are made for each answer anew, except
    /// that convolutions whose transforms fit what is left of `cache_bytes` keep them (196,608
    /// bytes a polynomial; a whole ResNet-18 would take 3 to 4 GB and save a fifth of the time).
    ///
    /// # Errors
    /// If a kernel is missing or has not the size that its convolution says.
    /// # Panics
    /// If the packing is not for the standard ring.
    pub fn prepare(
        params: &Params,
        packing: &Packing,
        weights: &Weights,
        cache_bytes: usize,
    ) -> Result<Kernels, String> {
        assert_eq!(packing.ring_degree(), N, "packing for another ring");
        let mut left = cache_bytes;
        let mut seen = 0;
        let mut answers = Vec::with_capacity(packing.answers().len());
        for (index, answer) in packing.answers().iter().enumerate() {
            let upload = &packing.uploads()[answer.upload()];
            // Kernels count the convolutions of a layer, answers all of the circuit, in the same
            // order.
            if index > 0 && packing.answers()[index - 1].layer() != answer.layer() {
                seen = 0;
            }
            let kernel = weights
                .layers
                .get(answer.layer() as usize)
                .and_then(|layer| layer.kernels.get(seen))
                .ok_or_else(|| format!("layer {}: kernel {seen} is missing", answer.layer()))?;
            seen += 1;
            let expected = answer.weights(upload);
            if kernel.len() != expected {
                return Err(format!(
                    "layer {}: a kernel has {} weights, expected {expected}",
                    answer.layer(),
                    kernel.len()
                ));
            }
            let mut placed = AnswerKernels {
                weights: Arc::new(Zeroizing::new(kernel.clone())),
                taps: taps(answer, upload),
                cached: None,
            };
            let groups_read = |chunk| answer.groups_read(upload, chunk);
            let groups = (0..answer.chunks()).map(|chunk| groups_read(chunk).len());
            let polynomials = groups.sum::<usize>() << answer.merge();
            if polynomials.saturating_mul(KERNEL_BYTES) <= left {
                left -= polynomials * KERNEL_BYTES;
                let places = (0..answer.chunks()).flat_map(|chunk| {
                    (0..1 << answer.merge()).map(move |place| OutputPlace { chunk, place })
                });
                let all: Vec<OutputPlace> = places.collect();
                let kernels = |output: OutputPlace| {
                    let groups = groups_read(output.chunk);
                    let of = |group| placed.polynomial(params, answer, upload, output, group);
                    groups.map(of).collect()
                };
                placed.cached = Some(all.into_par_iter().map(kernels).collect());
            }
            answers.push(placed);
        }
        Ok(Kernels { answers })
    }

    /// Places the same weights for another plan of the same circuit, without a cache.
    ///
    /// # Panics
    /// If the packing has another number of answers.
    pub(crate) fn placed_for(&self, packing: &Packing) -> Kernels {
        assert_eq!(
            packing.answers().len(),
            self.answers.len(),
            "another circuit"
        );
        let answers = packing.answers().iter().zip(&self.answers);
        let placed = answers.map(|(answer, other)| AnswerKernels {
            weights: other.weights.clone(),
            taps: taps(answer, &packing.uploads()[answer.upload()]),
            cached: None,
        });
        Kernels {
            answers: placed.collect(),
        }
    }
}

/// The taps of an answer, by group of input channels.
fn taps(answer: &AnswerMap, upload: &UploadMap) -> Vec<Vec<Tap>> {
    let groups = 0..upload.groups();
    groups.map(|group| answer.taps(upload, group)).collect()
}

impl AnswerKernels {
    /// Exponents and weights of one kernel polynomial; none at a place that has no output channel.
    pub(super) fn terms<'a>(
        &'a self,
        answer: &'a AnswerMap,
        upload: &'a UploadMap,
        output: OutputPlace,
        group: usize,
    ) -> impl Iterator<Item = (usize, i32)> + 'a {
        answer
            .kernel(upload, &self.taps[group], output.chunk, output.place)
            .map(|placed| {
                let exponent = placed.coefficient as usize + if placed.negative { N } else { 0 };
                (exponent, i32::from(self.weights[placed.weight as usize]))
            })
    }

    /// The transformed kernels, by [`OutputPlace::index`] and the groups that the chunk reads,
    /// where memory was granted.
    pub(super) fn cached(&self) -> Option<&[Vec<PlainPoly>]> {
        self.cached.as_deref()
    }

    /// The farthest distance from the output at which a tap reads, if all kernel polynomials stay
    /// within it.
    pub(super) fn reach(&self, answer: &AnswerMap) -> Option<usize> {
        let shifts = self.taps.iter().flatten().map(|tap| tap.shift as usize);
        (answer.output_blocks() == 1).then(|| shifts.max().map_or(1, |most| most + 1))
    }

    fn polynomial(
        &self,
        params: &Params,
        answer: &AnswerMap,
        upload: &UploadMap,
        output: OutputPlace,
        group: usize,
    ) -> PlainPoly {
        let terms = self.terms(answer, upload, output, group);
        let terms = terms.map(|(exponent, weight)| (exponent, i64::from(weight)));
        PlainPoly::new(params, CiphertextModulus::Conv, answer.merge(), terms)
    }
}
