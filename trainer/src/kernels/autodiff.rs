//! The operations under autodiff: which forward half goes with which backward one, and what is kept
//! in between.

use burn::backend::autodiff::{
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend};

use super::{Adjoints, Limits, Operations};

impl<B: Adjoints, C: CheckpointStrategy> Operations for Autodiff<B, C> {
    fn pi_conv(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        stride: usize,
        padding: usize,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Conv;
        impl<B: Adjoints> Backward<B, 2> for Conv {
            type State = (FloatTensor<B>, FloatTensor<B>, usize, usize);
            fn backward(
                self,
                ops: Ops<Self::State, 2>,
                grads: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                let [node_x, node_weight] = ops.parents;
                let grad = grads.consume::<B>(&ops.node);
                let (x, weight, stride, padding) = ops.state;
                if let Some(node) = node_weight {
                    grads.register::<B>(
                        node.id,
                        B::conv_by_weight(x.clone(), weight.clone(), grad.clone(), stride, padding),
                    );
                }
                if let Some(node) = node_x {
                    grads
                        .register::<B>(node.id, B::conv_by_input(x, weight, grad, stride, padding));
                }
            }
        }
        // Bound by computation, to burn: it keeps what the backward step reads and does not compute
        // it again. So are all operations here.
        match Conv
            .prepare::<C>([x.node(), weight.node()])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prep) => {
                let (x, weight) = (x.into_primitive(), weight.into_primitive());
                let out = B::pi_conv(x.clone(), weight.clone(), stride, padding);
                prep.finish((x, weight, stride, padding), out)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::pi_conv(
                x.into_primitive(),
                weight.into_primitive(),
                stride,
                padding,
            )),
        }
    }

    fn pi_moments(x: FloatTensor<Self>) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Moments;
        impl<B: Backend> Backward<B, 1> for Moments {
            type State = ();
            fn backward(self, ops: Ops<(), 1>, grads: &mut Gradients, _: &mut Checkpointer) {
                // Moments are statistics, not part of the graph: their gradient ends here.
                grads.consume::<B>(&ops.node);
            }
        }
        match Moments.prepare::<C>([x.node()]).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((), B::pi_moments(x.into_primitive())),
            OpsKind::UnTracked(prep) => prep.finish(B::pi_moments(x.into_primitive())),
        }
    }

    fn pi_normalise(
        x: FloatTensor<Self>,
        moments: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Normalise;
        impl<B: Adjoints> Backward<B, 3> for Normalise {
            type State = (FloatTensor<B>, FloatTensor<B>, FloatTensor<B>);
            fn backward(
                self,
                ops: Ops<Self::State, 3>,
                grads: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                let grad = grads.consume::<B>(&ops.node);
                let (x, moments, gamma) = ops.state;
                let by = B::normalise_adjoint(x, moments, gamma, grad);
                for (node, by) in ops.parents.into_iter().zip(by) {
                    if let Some(node) = node {
                        grads.register::<B>(node.id, by);
                    }
                }
            }
        }
        match Normalise
            .prepare::<C>([x.node(), gamma.node(), beta.node()])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prep) => {
                let (x, moments, gamma) = (
                    x.into_primitive(),
                    moments.into_primitive(),
                    gamma.into_primitive(),
                );
                let out = B::pi_normalise(
                    x.clone(),
                    moments.clone(),
                    gamma.clone(),
                    beta.into_primitive(),
                );
                prep.finish((x, moments, gamma), out)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::pi_normalise(
                x.into_primitive(),
                moments.into_primitive(),
                gamma.into_primitive(),
                beta.into_primitive(),
            )),
        }
    }

    fn pi_masked(
        z: FloatTensor<Self>,
        coefficients: FloatTensor<Self>,
        limits: Limits,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Masked;
        impl<B: Adjoints> Backward<B, 2> for Masked {
            type State = (FloatTensor<B>, FloatTensor<B>, Limits);
            fn backward(
                self,
                ops: Ops<Self::State, 2>,
                grads: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                let [node_z, node_coefficients] = ops.parents;
                let grad = grads.consume::<B>(&ops.node);
                let (z, coefficients, limits) = ops.state;
                if let Some(node) = node_coefficients {
                    let by = B::masked_by_coefficients(z.clone(), grad.clone(), limits.guard);
                    grads.register::<B>(node.id, by);
                }
                if let Some(node) = node_z {
                    let by = B::masked_by_input(z, coefficients, grad, limits);
                    grads.register::<B>(node.id, by);
                }
            }
        }
        match Masked
            .prepare::<C>([z.node(), coefficients.node()])
            .compute_bound()
            .stateful()
        {
            OpsKind::Tracked(prep) => {
                let (z, coefficients) = (z.into_primitive(), coefficients.into_primitive());
                let out = B::pi_masked(z.clone(), coefficients.clone(), limits);
                prep.finish((z, coefficients, limits), out)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::pi_masked(
                z.into_primitive(),
                coefficients.into_primitive(),
                limits,
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Tensor, TensorData};

    use crate::kernels::flex::tests::values;
    use crate::kernels::{Limits, Penalty, conv2d, masked, moments, normalise};

    /// Scalar of the four operations in a row, and its gradients by autodiff.
    fn chain(inputs: &[Vec<f32>; 5], guard: f32) -> (f32, Vec<Vec<f32>>) {
        let device = Device::flex().autodiff();
        let leaf = |i: usize| {
            let count = inputs[i].len();
            Tensor::<1>::from_data(TensorData::new(inputs[i].clone(), [count]), &device)
                .require_grad()
        };
        let leaves: Vec<Tensor<1>> = (0..5).map(leaf).collect();
        let x = leaves[0].clone().reshape([2, 2, 4, 4]);
        let y = conv2d(x, leaves[1].clone().reshape([3, 2, 3, 3]), 1, 1);
        let y = normalise(y.clone(), moments(y), leaves[2].clone(), leaves[3].clone());
        let limits = Limits {
            penalty: Penalty::None,
            guard,
        };
        let y = masked(y, leaves[4].clone().reshape([4, 3, 4, 4]), limits);
        // A weighted sum, so that no gradient vanishes by symmetry.
        let weights =
            Tensor::<4>::from_data(TensorData::new(values(96, 20), [2, 3, 4, 4]), &device);
        let loss = (y * weights).sum();
        let mut grads = loss.backward();
        let gradients = leaves
            .iter()
            .map(|leaf| {
                leaf.grad_remove(&mut grads)
                    .expect("a leaf of the loss")
                    .into_data()
                    .try_into_vec()
                    .unwrap()
            })
            .collect();
        (loss.into_scalar(), gradients)
    }

    #[test]
    fn gradients_equal_finite_differences() {
        let inputs = [
            values(64, 13),
            values(54, 14),
            values(3, 15),
            values(3, 16),
            values(192, 17),
        ];
        let step = 1e-2f32;
        // A third of the inputs of the activation are beyond the guard of 1.
        for guard in [f32::INFINITY, 1.0] {
            let (_, gradients) = chain(&inputs, guard);
            for (input, gradient) in gradients.iter().enumerate() {
                for position in (0..gradient.len()).step_by(gradient.len() / 3) {
                    let at = |offset: f32| {
                        let mut moved = inputs.clone();
                        moved[input][position] += offset;
                        chain(&moved, guard).0
                    };
                    let difference = (at(step) - at(-step)) / (2.0 * step);
                    // Second-order error of the difference, ReLU kinks within the step, and single
                    // precision of a sum of about 100: 5 % and 0.1 cover them; a wrong factor or
                    // sign does not pass.
                    let (got, bound) = (gradient[position], 0.1 + 0.05 * difference.abs());
                    assert!(
                        (got - difference).abs() <= bound,
                        "guard {guard}, input {input}, position {position}: {got}, expected \
                         {difference}"
                    );
                }
            }
        }
    }
}
