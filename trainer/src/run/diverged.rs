//! Divergence: where a loss or a gradient stopped being a number.

use burn::tensor::Tensor;

use super::Run;
use crate::network::{Network, Node, Request, Shown, State};
use crate::optimise::NotFinite;
use crate::tensors::{self, download};

/// A loss or a gradient that is not a number. Running again would end there again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Diverged(pub String);

impl std::fmt::Display for Diverged {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Diverged {}

impl Run {
    /// Says where a loss or a gradient stopped being a number, from the step's own `request`.
    pub(super) fn explain(
        &self,
        why: &NotFinite,
        pixels: Tensor<4>,
        request: Request<'_>,
        taught: Option<Tensor<4>>,
    ) -> anyhow::Error {
        let request = Request {
            measure_penalty: false,
            trains: Some(&|_| false),
            ..request
        };
        let own = first_not_finite(&self.network, &self.state, pixels, request);
        let strange = taught.is_some_and(|taught| !finite(taught));
        let at = match (own, request.until) {
            (Some(layer), _) => layer,
            (None, _) if strange => "every layer's output is finite, but the teacher's output on \
                                     this batch is not: it needs another teacher"
                .to_owned(),
            (None, Some(node)) => format!(
                "the output of layer {} is finite, but the square of its difference from the \
                 teacher's is not",
                self.network.nodes[node].name
            ),
            (None, None) => "every layer's output is finite".to_owned(),
        };
        let help = match why {
            NotFinite::Loss(_) => "",
            NotFinite::Gradient(_) => {
                "; a lower schedule.rate, optimiser.clip, a guard or a range penalty may help"
            }
        };
        let epoch = self.meta.epoch;
        anyhow::Error::new(Diverged(format!("epoch {epoch}: {why}; {at}{help}")))
    }
}

/// The first layer whose output on a batch is not finite, in a sentence.
pub(super) fn first_not_finite(
    network: &Network,
    state: &State,
    pixels: Tensor<4>,
    request: Request<'_>,
) -> Option<String> {
    let mut first = None;
    let note = |node: &Node, _: &[Tensor<4>], value: &Tensor<4>| {
        if first.is_none() && !finite(value.clone().inner()) {
            first = Some(node.name.clone());
        }
    };
    network.observe(state, pixels, request, (Shown::Everything, note));
    first.map(|name| format!("the output of layer {name} is the first that is not finite"))
}

fn finite(tensor: Tensor<4>) -> bool {
    download(tensors::largest(tensor))[0].is_finite()
}
