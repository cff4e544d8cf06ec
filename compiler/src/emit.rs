//! Verifies the circuit with its weights, and makes the two files.

use crate::compile::Compiled;
use crate::fault::Refused;
use pi_ir::artifact::{Accuracy, Artifact, WeightsFile};
use pi_ir::failure::failure_log2;
use pi_ir::{Circuit, Verified, Weights, verify};

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
        accuracy,
        note: note.into(),
    };
    (artifact, weights)
}
