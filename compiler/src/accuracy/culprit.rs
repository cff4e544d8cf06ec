//! The first layer at which answers go wrong.
//!
//! With the layers up to one in fixed point and the rest in floating point, a network is as right
//! as those layers. The culprit is the first layer with which it is wrong: a search by halving
//! finds it. That says more than a layer's own noise, which may be large where it does no harm, as
//! in channels that the rest of the network hardly reads, and small where it does.

use super::Pair;
use crate::compile::Compiled;
use crate::cost::evaluate::{Outcome, summary};
use crate::examples::Examples;
use anyhow::Result;
use pi_ir::interpret;

/// What counts as wrong.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Wrong {
    /// At least half of the examples have another label than in the float network.
    Labels,
    /// The outputs differ by more than this share of their variation
    /// ([`Comparison::noise`](crate::cost::evaluate::Comparison::noise)).
    Noise(f64),
    /// The worst output differs by more than this share of its variation
    /// ([`Comparison::relative_error`](crate::cost::evaluate::Comparison::relative_error)).
    Error(f64),
}

/// The first layer at which answers go wrong.
#[derive(Clone, Debug, PartialEq)]
pub struct Culprit {
    /// Index among the private layers; `None` for the input itself.
    pub layer: Option<usize>,
    /// Name of the layer.
    pub name: String,
}

/// Most examples that the search runs.
const SEARCHED: usize = 16;

/// Finds the first layer with which `examples` go wrong; `None` if they do not. For labels, give
/// those examples whose labels are wrong in the end.
///
/// # Errors
/// If examples and circuit do not fit together.
/// # Cost
/// An evaluation of the network for each example and each binary digit of the number of layers; of
/// many examples, 16 are taken.
pub fn culprit(compiled: &Compiled, examples: &Examples, wrong: Wrong) -> Result<Option<Culprit>> {
    let examples = examples.thinned(SEARCHED);
    let circuit = &compiled.circuit;
    let pair = Pair::new(compiled, circuit)?;
    let is_wrong = |count| -> Result<bool> {
        let (outcomes, beyond) = mixed(&pair, count, &examples)?;
        // An input beyond the network's bound is wrong before any layer.
        Ok(2 * beyond >= examples.inputs.len() || goes_wrong(&outcomes, wrong))
    };
    let named = |count: usize| match count.checked_sub(1) {
        None => "input".into(),
        Some(layer) => circuit.layers[layer].name.clone(),
    };
    let (mut right, mut wrong_at) = (None, circuit.layers.len());
    if examples.inputs.is_empty() || !is_wrong(wrong_at)? {
        return Ok(None);
    }
    if is_wrong(0)? {
        wrong_at = 0;
    } else {
        right = Some(0);
    }
    while let Some(last) = right.filter(|last| last + 1 < wrong_at) {
        let middle = last.midpoint(wrong_at);
        match is_wrong(middle)? {
            true => wrong_at = middle,
            false => right = Some(middle),
        }
    }
    Ok(Some(Culprit {
        layer: wrong_at.checked_sub(1),
        name: named(wrong_at),
    }))
}

fn goes_wrong(outcomes: &[Outcome], wrong: Wrong) -> bool {
    let found = summary(outcomes, "", &[]);
    match wrong {
        Wrong::Labels => 2 * found.agree <= found.images,
        Wrong::Noise(most) => found.out_of_bound > 0 || found.noise > most,
        Wrong::Error(most) => found.out_of_bound > 0 || found.relative_error > most,
    }
}

/// Every example with the first `count` private layers in fixed point, and in the float network;
/// and the number of those whose input is beyond the network's bound.
fn mixed(pair: &Pair<'_>, count: usize, examples: &Examples) -> Result<(Vec<Outcome>, usize)> {
    let public = pair.real.public;
    let results = pair.over(examples, |start| {
        let finish = |mut tensors: Vec<Vec<f32>>| -> Vec<f32> {
            loop {
                let index = tensors.len() - 1;
                let (sum, tensor) = pair.floats.layer(pair.real, index, &tensors);
                match tensor {
                    Some(tensor) => tensors.push(tensor),
                    None => return sum,
                }
            }
        };
        let float = finish(start.floats);
        let mut tensors = vec![start.fixed];
        for index in 0..count {
            match pair.fixed_layer(index, &tensors) {
                Ok((_, tensor)) => tensors.push(tensor),
                Err(interpret::Error::OutOfBound { .. }) => {
                    return Ok(Outcome { float, fixed: None });
                }
                Err(other) => return Err(other.into()),
            }
        }
        let reals = tensors.iter().enumerate();
        let mut reals: Vec<Vec<f32>> = reals.map(|(id, values)| pair.reals(id, values)).collect();
        let logits = match count == pair.circuit.layers.len() {
            true => reals.pop().unwrap_or_default(),
            // No private layer reads a tensor inside the public prefix.
            false => finish([vec![Vec::new(); public], reals].concat()),
        };
        let fixed = logits.into_iter().map(f64::from).collect();
        Ok(Outcome {
            float,
            fixed: Some(fixed),
        })
    })?;
    let beyond = results.iter().filter(|found| found.is_none()).count();
    Ok((results.into_iter().flatten().collect(), beyond))
}
