//! What the answers of a circuit tell of the server's weights, beyond the logits: the statistical
//! distance of all that they carry from what a simulator without weights would send.
//!
//! It is computed from public data alone, for [`BUNDLES_LOG2`] bundles, which one client or many
//! may have prepared, and stands in the artifact; a model above [`LIMIT_LOG2`] is not accepted.
//!
//! # What is summed
//! `pi_rlwe::noise` bounds the distance by the mean of the squared noises of all coefficients that
//! the server returns, behind floods that are independent. An answer returns each element of its
//! convolution once. Its noise is that of
//! - the kernel: every weight counts with its public bound, `2^weight_bits - 1`. The kernel
//!   polynomial of a ciphertext has as many output channels as the ciphertext has output blocks,
//!   and each of its coefficients is multiplied by errors, whichever block the result is read from.
//!   Blocks of the input (tiles, and the bundles of a batch) share one kernel and add nothing;
//! - the key switches of its levels of merging;
//! - the encryption of zero.
//!
//! Those of a bundle add up, and so do bundles. A batch counts by the bundle. The plan with the
//! largest sum is taken, as if all bundles were prepared by it.
//!
//! OLE answers tell nothing to the first order (`pi_rlwe::ole`); their distances add up without
//! quadrature.
//!
//! # What is assumed
//! The client's errors are honest; the distance is an average over them. Digits of key switches
//! are uniform and independent of the keys' errors.

use crate::Error;
use crate::nonlinear::quadratic;
use pi_ir::{Circuit, Layer, OutputPacking, Plan, Step, Term};
use pi_rlwe::noise::{conv_noise, distance_log2, ole_distance_log2};
use pi_rlwe::{CiphertextModulus, N, Params};

/// The bundles that the distance is for, log2: of one model, over its lifetime, for all clients.
pub const BUNDLES_LOG2: u32 = 20;

/// The largest distance of a model that is accepted, log2.
pub const LIMIT_LOG2: f64 = -39.0;

/// Distances of a circuit's answers over `2^BUNDLES_LOG2` bundles, as log2 of the total variation.
#[derive(Clone, Debug, PartialEq)]
pub struct Flooding {
    /// By convolution, in circuit order.
    pub answers: Vec<f64>,
    /// Of the OLEs of squares and polynomials; minus infinity without any.
    pub quadratics: f64,
    /// Of all.
    pub total: f64,
}

/// The distances of a circuit with these plans: by the plan that has the largest total.
///
/// # Errors
/// [`Error::ApiMisuse`] if there is no plan, or one is not for this circuit.
pub fn flooding<'p>(
    circuit: &Circuit,
    plans: impl IntoIterator<Item = &'p Plan>,
) -> Result<Flooding, Error> {
    let params = Params::standard();
    let slots = circuit.layers.iter().map(slots).sum();
    let ciphertexts = quadratic::ciphertexts(slots) as f64;
    let bundles = f64::from(BUNDLES_LOG2).exp2();
    let quadratics = (ciphertexts * bundles).log2() + ole_distance_log2(&params);
    let distance = |squares: f64| distance_log2(&params, CiphertextModulus::Conv, squares);
    let of_plan = |plan: &Plan| {
        let answers = plan.answers.iter().enumerate();
        let squares = answers.map(|(index, answer)| {
            let squares = squares(circuit, answer).ok_or_else(|| {
                let bundles = plan.bundles;
                Error::misuse(format!(
                    "answer {index} of the plan for {bundles} bundles is not of this circuit"
                ))
            })?;
            Ok(squares * bundles)
        });
        let squares = squares.collect::<Result<Vec<f64>, Error>>()?;
        let total = distance(squares.iter().sum()).exp2() + quadratics.exp2();
        Ok(Flooding {
            answers: squares.into_iter().map(distance).collect(),
            quadratics,
            total: total.log2(),
        })
    };
    let all = plans.into_iter().map(of_plan);
    let all = all.collect::<Result<Vec<Flooding>, Error>>()?;
    all.into_iter()
        .max_by(|a, b| a.total.total_cmp(&b.total))
        .ok_or_else(|| Error::misuse("no plan"))
}

impl Flooding {
    /// Ensures that the distance is one that is accepted, and that it is the stated one.
    ///
    /// # Errors
    /// [`Error::ApiMisuse`] with the distances.
    pub fn check(&self, stated: f64) -> Result<(), Error> {
        let total = self.total;
        if total > LIMIT_LOG2 {
            return Err(Error::misuse(format!(
                "answers for 2^{BUNDLES_LOG2} bundles tell of the weights with a distance of \
                 2^{total:.1}, above 2^{LIMIT_LOG2}: compile the model with fewer weight bits"
            )));
        }
        // Rounding differs between platforms in the last bits of a logarithm only.
        let near = (total - stated).abs() <= 1e-6;
        match near || total == stated {
            true => Ok(()),
            false => Err(Error::misuse(format!(
                "the artifact states a flooding distance of 2^{stated}, its circuit and plans have \
                 2^{total}: compile the model again"
            ))),
        }
    }
}

/// The OLE slots of a layer.
fn slots(layer: &Layer) -> usize {
    match &layer.step {
        Step::Activate(activation) => {
            let kinds = activation.kinds.iter();
            kinds.map(|&kind| quadratic::slots(kind)).sum()
        }
        Step::Output { .. } => 0,
    }
}

/// The mean of the sum of the squared noises of an answer, for one bundle; `None` if the answer is
/// not of this circuit.
pub(crate) fn squares(circuit: &Circuit, answer: &OutputPacking) -> Option<f64> {
    let layer = circuit.layers.get(answer.layer as usize)?;
    let Term::Conv(conv) = layer.terms.get(answer.term as usize)? else {
        return None;
    };
    if conv.input.0 > answer.layer || answer.merge > N.ilog2() || answer.output_blocks == 0 {
        return None;
    }
    let input = circuit.tensor_shape(conv.input);
    let output = conv.output(input)?;
    let taps =
        f64::from(conv.channels_read(input)) * f64::from(conv.kernel.0) * f64::from(conv.kernel.1);
    let largest = f64::from(conv.weight_bits).exp2() - 1.0;
    let positions = f64::from(output.h) * f64::from(output.w);
    // The squared noises of this many channels that lie in one ciphertext.
    let of_channels = |channels: u64| {
        let blocks = channels.div_ceil(1 << answer.merge) as f64;
        let weights = taps * blocks;
        let noise = conv_noise(weights * largest, weights * largest * largest, answer.merge);
        channels as f64 * positions * (2.0 * noise.rms_log2).exp2()
    };
    let channels = u64::from(output.c);
    let in_one = u64::from(answer.output_blocks) << answer.merge;
    Some((channels / in_one) as f64 * of_channels(in_one) + of_channels(channels % in_one))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::default_plan;
    use crate::layout::oracle::{circuit_of, conv};
    use pi_ir::{Padding, Shape};

    /// 40 channels of 4 x 4 from 24, in chunks of `2^merge * output_blocks`.
    fn packed(merge: u32, output_blocks: u32) -> (Circuit, Plan) {
        let conv = conv(0, 40, (3, 3), (1, 1), Padding::same(1));
        let circuit = circuit_of(Shape::new(24, 4, 4), &[vec![conv]]);
        let mut plan = default_plan(&circuit, 1).unwrap();
        plan.answers[0].merge = merge;
        plan.answers[0].output_blocks = output_blocks;
        (circuit, plan)
    }

    #[test]
    fn weights_of_all_output_blocks_of_a_ciphertext_count() {
        let squares = |merge, blocks| {
            let (circuit, plan) = packed(merge, blocks);
            squares(&circuit, &plan.answers[0]).unwrap()
        };
        let of = |blocks: f64, levels| {
            let weights = 24.0 * 9.0 * blocks;
            let noise = conv_noise(weights * 127.0, weights * 127.0 * 127.0, levels);
            16.0 * (2.0 * noise.rms_log2).exp2()
        };
        let close = |a: f64, b: f64| assert!((a - b).abs() < 1e-9 * b, "{a} {b}");
        close(squares(3, 1), 40.0 * of(1.0, 3));
        // 32 channels in four blocks, and 8 in one.
        close(squares(3, 4), 32.0 * of(4.0, 3) + 8.0 * of(1.0, 3));
        // 24 channels in three blocks, and 16 in two.
        close(squares(3, 3), 24.0 * of(3.0, 3) + 16.0 * of(2.0, 3));
        close(squares(0, 64), 40.0 * of(40.0, 0));
    }

    #[test]
    fn the_plan_that_tells_most_counts_for_all_bundles() {
        let (circuit, narrow) = packed(3, 1);
        let (_, mut wide) = packed(3, 4);
        wide.bundles = 4;
        let of = |plans: &[&Plan]| flooding(&circuit, plans.iter().copied()).unwrap();
        let (of_narrow, of_wide) = (of(&[&narrow]), of(&[&wide]));
        assert!(of_narrow.total < of_wide.total - 0.5);
        assert_eq!(of(&[&narrow, &wide]), of_wide);
        // Half of the bits of the number of bundles: distances add in quadrature.
        let params = Params::standard();
        let squares = squares(&circuit, &narrow.answers[0]).unwrap();
        let one = distance_log2(&params, CiphertextModulus::Conv, squares);
        assert!((of_narrow.total - one - 10.0).abs() < 1e-9);
        assert_eq!(of_narrow.quadratics, f64::NEG_INFINITY);
    }

    #[test]
    fn quadratics_tell_next_to_nothing() {
        let (mut circuit, plan) = packed(3, 1);
        let weights_alone = flooding(&circuit, [&plan]).unwrap();
        let kinds = vec![pi_ir::Kind::Polynomial; 1 << 19];
        circuit.layers[0].step = Step::Activate(pi_ir::Activation {
            truncate: 8,
            frac_bits: 8,
            kinds,
            square: None,
            polynomial: None,
        });
        let found = flooding(&circuit, [&plan]).unwrap();
        // 2^20 slots take 129 ciphertexts, of 2^20 bundles, at 2^-95.4 each.
        assert!((found.quadratics + 68.3).abs() < 0.1, "{found:?}");
        assert!((found.total - weights_alone.total).abs() < 1e-3);
    }

    #[test]
    fn figures_that_are_false_or_too_large_are_refused_and_plans_of_other_circuits() {
        let (mut circuit, mut plan) = packed(3, 1);
        let found = flooding(&circuit, [&plan]).unwrap();
        assert!(found.check(found.total).is_ok());
        for stated in [found.total + 1e-3, f64::NAN, f64::NEG_INFINITY] {
            let refused = found.check(stated).unwrap_err().to_string();
            assert!(refused.contains("compile the model again"), "{refused}");
        }
        let Term::Conv(conv) = &mut circuit.layers[0].terms[0] else {
            unreachable!("the only term is a convolution");
        };
        conv.weight_bits = 14;
        conv.out_channels = 1 << 16;
        let found = flooding(&circuit, [&plan]).unwrap();
        let refused = found.check(found.total).unwrap_err().to_string();
        assert!(refused.contains("fewer weight bits"), "{refused}");
        assert!(flooding(&circuit, []).is_err());
        plan.answers[0].term = 1;
        assert!(flooding(&circuit, [&plan]).is_err());
        plan.answers[0].term = 0;
        plan.answers[0].merge = 14;
        assert!(flooding(&circuit, [&plan]).is_err());
    }
}
