//! The public prefix of a circuit: first layers whose weights are public, so that the client
//! computes them itself and the private protocol begins at their result.
//!
//! A prefix has no arithmetic of its own. It is a list of the circuit's ordinary [`Layer`]s, and
//! its result is what the plain interpreter ([`crate::interpret`]) computes: in integers, where
//! each truncation rounds to nearest, ties up, `(x + 2^(f-1)) >> f`. The protocol's truncation of
//! shares rounds down or up at random; the prefix's does not, so every machine gets the same bits,
//! and so does whoever checks them.
//!
//! # What the parties learn
//! The client evaluates a public function of its own image and sends nothing while it does, so the
//! server sees what it would see of any other image of that shape: nothing. The client learns the
//! weights of these layers, which the artifact contains, and nothing else: the layers behind them
//! are evaluated as before. A maker who publishes *learned* weights gives them away for good; see
//! the compiler's `--reveal-learned-weights`.
//!
//! The artifact's digest covers the prefix, and bundles are bound to that digest, so a server
//! cannot show two clients two prefixes under one name, nor change the one that a bundle was
//! prepared for.

use crate::circuit::{Circuit, Layer, Layers, Step};
use crate::limits;
use crate::shape::Shape;
use crate::weights::{PublicWeights, Weights};
use crate::wire;
use serde::{Deserialize, Serialize};

/// The first layers of a network, with their weights. The last layer's tensor is tensor 0 of the
/// circuit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Prefix {
    /// Shape of the image, the prefix's tensor 0.
    pub image: Shape,
    /// Scale of the preprocessed image.
    pub image_frac_bits: u8,
    /// The layers; every one has [`Step::Activate`].
    #[serde(deserialize_with = "wire::limited::<_, _, { limits::LAYERS }>")]
    pub layers: Vec<Layer>,
    /// Their weights, which are no secret.
    pub weights: PublicWeights,
}

impl Prefix {
    /// The layers, with the image that they start from.
    pub fn as_layers(&self) -> Layers<'_> {
        Layers {
            input: self.image,
            layers: &self.layers,
        }
    }
}

/// Makes the first `count` layers of a circuit its public prefix; returns the circuit, and the
/// weights that stay private.
///
/// # Errors
/// In words, if the circuit has a prefix already, `count` leaves no layer on either side, a later
/// layer reads a tensor before the last of the prefix, or there are not as many weights as layers.
pub fn publish(
    mut circuit: Circuit,
    mut weights: Weights,
    count: usize,
) -> Result<(Circuit, Weights), String> {
    if circuit.prefix.is_some() {
        return Err("the circuit has a public prefix already".into());
    }
    if count == 0 || count >= circuit.layers.len() {
        return Err(format!(
            "a public prefix of {count} layers out of {}: at least one must be public, and one \
             private",
            circuit.layers.len()
        ));
    }
    if weights.layers.len() != circuit.layers.len() {
        return Err(format!(
            "{} layers have the weights of {}",
            circuit.layers.len(),
            weights.layers.len()
        ));
    }
    let mut rest = circuit.layers.split_off(count);
    let cut = count as u32;
    for layer in &mut rest {
        for term in &mut layer.terms {
            let input = term.input_mut();
            input.0 = input.0.checked_sub(cut).ok_or_else(|| {
                format!(
                    "layer {} reads tensor {}, which lies before the end of the public prefix",
                    layer.name, input.0
                )
            })?;
        }
    }
    let layers = std::mem::replace(&mut circuit.layers, rest);
    let private = weights.layers.split_off(count);
    let last = layers.last().expect("at least one layer is public");
    let (shape, frac_bits) = match &last.step {
        Step::Activate(activation) => (last.shape, activation.frac_bits),
        Step::Output { .. } => return Err(format!("layer {} is the output", last.name)),
    };
    circuit.prefix = Some(Prefix {
        image: std::mem::replace(&mut circuit.input, shape),
        image_frac_bits: std::mem::replace(&mut circuit.input_frac_bits, frac_bits),
        layers,
        weights: PublicWeights::publish(weights),
    });
    Ok((circuit, Weights { layers: private }))
}
