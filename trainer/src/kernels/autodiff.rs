//! The operations under autodiff: which forward half goes with which backward one, and what is kept
//! in between.

use burn::backend::autodiff::{
    NodeId,
    checkpoint::{base::Checkpointer, strategy::CheckpointStrategy},
    grads::Gradients,
    ops::{Backward, Ops, OpsKind},
};
use burn::backend::tensor::FloatTensor;
use burn::backend::{Autodiff, Backend};

use super::{Adjoints, Limits, NormaliseMasked, Operations, Window};

impl<B: Adjoints, C: CheckpointStrategy> Operations for Autodiff<B, C> {
    fn pi_conv(
        x: FloatTensor<Self>,
        weight: FloatTensor<Self>,
        window: Window,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Conv;
        impl<B: Adjoints> Backward<B, 2> for Conv {
            type State = (FloatTensor<B>, FloatTensor<B>, Window);
            fn backward(
                self,
                ops: Ops<Self::State, 2>,
                grads: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                let grad = grads.consume::<B>(&ops.node);
                let (x, weight, window) = ops.state;
                let wanted = ops.parents.each_ref().map(Option::is_some);
                let by = B::conv_adjoint(x, weight, grad, window, wanted);
                register::<B, 2>(ops.parents.map(|node| node.map(|node| node.id)), by, grads);
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
                let out = B::pi_conv(x.clone(), weight.clone(), window);
                prep.finish((x, weight, window), out)
            }
            OpsKind::UnTracked(prep) => prep.finish(B::pi_conv(
                x.into_primitive(),
                weight.into_primitive(),
                window,
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
                register::<B, 3>(
                    ops.parents.map(|node| node.map(|node| node.id)),
                    by.map(Some),
                    grads,
                );
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
                let grad = grads.consume::<B>(&ops.node);
                let (z, coefficients, limits) = ops.state;
                let wanted = ops.parents[1].is_some();
                let (by_z, by) = B::masked_adjoint(z, coefficients, grad, limits, wanted);
                register::<B, 2>(
                    ops.parents.map(|node| node.map(|node| node.id)),
                    [Some(by_z), by],
                    grads,
                );
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

    fn pi_normalise_masked(
        x: FloatTensor<Self>,
        moments: FloatTensor<Self>,
        gamma: FloatTensor<Self>,
        beta: FloatTensor<Self>,
        coefficients: FloatTensor<Self>,
        limits: Limits,
    ) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Both;
        impl<B: Adjoints> Backward<B, 4> for Both {
            type State = NormaliseMasked<FloatTensor<B>>;
            fn backward(
                self,
                ops: Ops<Self::State, 4>,
                grads: &mut Gradients,
                _: &mut Checkpointer,
            ) {
                let grad = grads.consume::<B>(&ops.node);
                let wanted = ops.parents[3].is_some();
                let by = B::normalise_masked_adjoint(ops.state, grad, wanted);
                let by = [Some(by.x), Some(by.gamma), Some(by.beta), by.coefficients];
                register::<B, 4>(ops.parents.map(|node| node.map(|node| node.id)), by, grads);
            }
        }
        let nodes = [x.node(), gamma.node(), beta.node(), coefficients.node()];
        let state = NormaliseMasked {
            x: x.into_primitive(),
            moments: moments.into_primitive(),
            gamma: gamma.into_primitive(),
            beta: beta.into_primitive(),
            coefficients: coefficients.into_primitive(),
            limits,
        };
        let forward = |of: NormaliseMasked<FloatTensor<B>>| {
            B::pi_normalise_masked(of.x, of.moments, of.gamma, of.beta, of.coefficients, limits)
        };
        match Both.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => {
                let out = forward(state.clone());
                prep.finish(state, out)
            }
            OpsKind::UnTracked(prep) => prep.finish(forward(state)),
        }
    }

    fn pi_add(x: FloatTensor<Self>, y: FloatTensor<Self>) -> FloatTensor<Self> {
        #[derive(Debug)]
        struct Sum;
        impl<B: Adjoints> Backward<B, 2> for Sum {
            type State = ();
            fn backward(self, ops: Ops<(), 2>, grads: &mut Gradients, _: &mut Checkpointer) {
                let grad = grads.consume::<B>(&ops.node);
                register::<B, 2>(
                    ops.parents.map(|node| node.map(|node| node.id)),
                    [Some(grad.clone()), Some(grad)],
                    grads,
                );
            }
        }
        let nodes = [x.node(), y.node()];
        let out = B::pi_add(x.into_primitive(), y.into_primitive());
        match Sum.prepare::<C>(nodes).compute_bound().stateful() {
            OpsKind::Tracked(prep) => prep.finish((), out),
            OpsKind::UnTracked(prep) => prep.finish(out),
        }
    }
}

/// Adds the gradients of those parents that collect one.
fn register<B: Adjoints, const N: usize>(
    parents: [Option<NodeId>; N],
    by: [Option<FloatTensor<B>>; N],
    grads: &mut Gradients,
) {
    for (node, by) in parents.into_iter().zip(by) {
        if let (Some(node), Some(by)) = (node, by) {
            grads.register::<B>(node, by);
        }
    }
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Tensor, TensorData};

    use crate::kernels::flex::tests::values;
    use crate::kernels::{Limits, Penalty, Window, add, conv2d, masked, moments};
    use crate::kernels::{normalise, normalise_masked};

    /// Scalar of the four operations in a row, and its gradients by autodiff.
    fn chain(inputs: &[Vec<f32>; 5]) -> (f32, Vec<Vec<f32>>) {
        let device = Device::flex().autodiff();
        let leaf = |i: usize| {
            let count = inputs[i].len();
            Tensor::<1>::from_data(TensorData::new(inputs[i].clone(), [count]), &device)
                .require_grad()
        };
        let leaves: Vec<Tensor<1>> = (0..5).map(leaf).collect();
        let x = leaves[0].clone().reshape([2, 2, 4, 4]);
        let weight = leaves[1].clone().reshape([3, 2, 3, 3]);
        let window = |pooled| Window {
            stride: 1,
            padding: 1,
            pooled,
        };
        let y = conv2d(x.clone(), weight.clone(), window(false));
        let y = normalise(y.clone(), moments(y), leaves[2].clone(), leaves[3].clone());
        let limits = Limits {
            guard: 1.5,
            penalty: Penalty::None,
        };
        let k = leaves[4].clone().reshape([4, 3, 4, 4]);
        let y = masked(y, k.clone(), limits);
        // The same weights behind a pool, the norm and the activation in one.
        let z = conv2d(x, weight, window(true));
        let pair = [leaves[2].clone(), leaves[3].clone()];
        let corner = k.narrow(2, 0, 2).narrow(3, 0, 2);
        let z = normalise_masked(z.clone(), moments(z), pair, corner, limits);
        let z = z.repeat(&[1, 1, 2, 2]);
        let y = add(y, z);
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
        let (_, gradients) = chain(&inputs);
        let step = 1e-2f32;
        for (input, gradient) in gradients.iter().enumerate() {
            for position in (0..gradient.len()).step_by(gradient.len() / 3) {
                let at = |offset: f32| {
                    let mut moved = inputs.clone();
                    moved[input][position] += offset;
                    chain(&moved).0
                };
                let difference = (at(step) - at(-step)) / (2.0 * step);
                // Second-order error of the difference, ReLU kinks within the step, and single
                // precision of a sum of about 100: 5 % and 0.1 cover them; a wrong factor or sign
                // does not pass.
                let (got, bound) = (gradient[position], 0.1 + 0.05 * difference.abs());
                assert!(
                    (got - difference).abs() <= bound,
                    "input {input}, position {position}: {got}, expected {difference}"
                );
            }
        }
    }
}
