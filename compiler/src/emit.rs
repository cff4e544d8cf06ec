//! Verifies the circuit with its weights, and makes the two files.

use crate::compile::Compiled;
use crate::fault::Refused;
use pi_ir::artifact::{Accuracy, Artifact, WeightsFile};
use pi_ir::failure::failure_log2;
use pi_ir::{Circuit, Plan, Term, Verified, Weights, verify};
use pi_protocol::flooding::{BUNDLES_LOG2, LIMIT_LOG2, flooding};

/// Binary logarithm of the probability with which an inference may lose a value.
pub const FAILURE_LIMIT: f64 = -10.0;

/// Verifies circuit and weights, and sums the failure probability; returns its `log2` beside the
/// circuit.
///
/// # Errors
/// Every fault; a probability above `limit`, naming the layer that contributes most.
pub fn check(
    circuit: Circuit,
    weights: &Weights,
    limit: f64,
) -> Result<(Verified<Circuit>, f64), Refused> {
    let circuit = verify::circuit(circuit).map_err(Refused::from)?;
    let faults = verify::weights(&circuit, weights);
    if !faults.is_empty() {
        return Err(faults.into());
    }
    let failure = failure_log2(&circuit);
    if failure.total > limit {
        let worst = (circuit.layers.iter().zip(&failure.layers)).max_by(|a, b| a.1.total_cmp(b.1));
        let (layer, share) = worst.expect("a verified circuit has layers");
        return Err(Refused::one(
            &layer.name,
            format!(
                "an inference would lose a value with probability 2^{:.1}, above 2^{limit}; \
                 this layer contributes most, 2^{share:.1} (bound 2^{}): \
                 use fewer activation bits or a smaller network",
                failure.total, layer.bound_bits
            ),
        ));
    }
    Ok((circuit, failure.total))
}

/// The `log2` of the distance by which answers tell of the weights ([`pi_protocol::flooding`]), for
/// a circuit with its plans.
///
/// # Errors
/// A distance above [`LIMIT_LOG2`], with the weight bits that stay below it.
pub fn check_flooding(circuit: &Circuit, plans: &[&Plan]) -> Result<f64, Refused> {
    let refuse = |why: String| Refused::one("", why);
    let found = flooding(circuit, plans.iter().copied()).map_err(|e| refuse(e.to_string()))?;
    if found.total <= LIMIT_LOG2 {
        return Ok(found.total);
    }
    let mut narrower = circuit.clone();
    let fits = (1..15).rev().find(|&bits| {
        for term in narrower.layers.iter_mut().flat_map(|l| &mut l.terms) {
            if let Term::Conv(conv) = term {
                conv.weight_bits = conv.weight_bits.min(bits);
            }
        }
        flooding(&narrower, plans.iter().copied()).is_ok_and(|f| f.total <= LIMIT_LOG2)
    });
    let remedy = match fits {
        // The sign counts as well.
        Some(bits) => format!("use --weight-bits {}", bits + 1),
        None => "use a smaller network".into(),
    };
    Err(refuse(format!(
        "answers for 2^{BUNDLES_LOG2} bundles would tell of the weights with a distance of \
         2^{:.1}, above 2^{LIMIT_LOG2}: {remedy}",
        found.total
    )))
}

/// The two files of a compiled network. `salt` must be random and secret: with it, the public
/// digest of the weights says nothing about them.
pub fn files(
    compiled: &Compiled,
    salt: [u8; 32],
    accuracy: Option<Accuracy>,
    note: &str,
) -> (Artifact, WeightsFile) {
    let weights = WeightsFile {
        salt,
        weights: compiled.weights.clone(),
    };
    let artifact = Artifact {
        circuit: compiled.circuit.clone(),
        plan: compiled.plan.clone(),
        batches: compiled.batches.clone(),
        weights_digest: weights.digest(),
        failure_log2: compiled.failure_log2,
        flooding_log2: compiled.flooding_log2,
        accuracy,
        note: note.into(),
    };
    (artifact, weights)
}
