//! A circuit and its plans, checked, with everything that follows from them: what both parties
//! derive from the artifact, and what formulas of costs are computed from.

use crate::Error;
use crate::layout::{Budget, MAX_MERGED_GROUP, Packing};
use crate::linear;
use crate::nonlinear::quadratic;
use crate::parts::{PART_BYTES, Parts};
use crate::session::{check_batch, check_circuit};
use pi_core::fp::{self, Elements};
use pi_garble::{ArgMax, SignWidth};
use pi_ir::{
    Activation, Circuit, Kind, Layer, Plan, Reveal, Shape, Step, TensorId, Term, Verified, Window,
};
use std::sync::{Mutex, OnceLock, PoisonError};
use zeroize::Zeroizing;

/// A circuit and its plans, checked and indexed: what both parties derive from the artifact.
pub(crate) struct IndexedCircuit {
    pub(crate) circuit: Verified<Circuit>,
    /// The plan for one bundle.
    pub(crate) single: Planned,
    /// Those for batches, the smallest first.
    batches: Vec<BatchPlan>,
    /// What deriving the batches' plans may still take.
    budget: Mutex<Budget>,
    /// One entry per layer.
    pub(crate) layers: Vec<LayerIndex>,
    /// The pieces that the ReLUs are cut into, and the parts that they are exchanged in.
    pub(crate) parts: Parts,
    /// OLE slots of a bundle.
    pub(crate) slots: usize,
    /// Whether anything is garbled: ReLUs, or the label.
    pub(crate) garbles: bool,
    /// Whether a garbled circuit has a guard, and the last message a seal.
    pub(crate) guarded: bool,
}

impl IndexedCircuit {
    /// Checks and indexes. Plans for batches are derived when they are first used, and all within
    /// one budget: most clients never use most of them.
    ///
    /// # Errors
    /// All faults of the first plan, and what is wrong with the order of the others; messages that
    /// would be too long.
    pub(crate) fn new<'p>(
        circuit: &Verified<Circuit>,
        plans: impl IntoIterator<Item = &'p Plan>,
    ) -> Result<Self, Error> {
        let mut plans = plans.into_iter();
        let Some(single) = plans.next().filter(|plan| plan.bundles == 1) else {
            return Err(Error::misuse("the first plan is not for one bundle"));
        };
        let mut budget = Budget::new();
        let single = Planned::new(&mut budget, circuit, single)?;
        let batches = plans.map(BatchPlan::new);
        let batches = batches.collect::<Result<Vec<BatchPlan>, Error>>()?;
        let mut faults = Vec::new();
        let sizes = std::iter::once(1).chain(batches.iter().map(BatchPlan::bundles));
        if !sizes.is_sorted_by(|a, b| a < b) {
            faults.push("the plans are not for growing numbers of bundles".to_owned());
        }
        let mut layers = Vec::with_capacity(circuit.layers.len());
        for layer in &circuit.layers {
            match LayerIndex::new(layer) {
                Ok(index) => layers.push(index),
                Err(fault) => faults.push(format!("layer {}: {fault}", layer.name)),
            }
        }
        if !faults.is_empty() {
            return Err(Error::misuse(faults.join("; ")));
        }
        let indexed = IndexedCircuit {
            slots: layers.iter().map(|layer| layer.slots).sum(),
            garbles: layers.iter().any(LayerIndex::garbles),
            guarded: layers.iter().any(LayerIndex::guarded),
            circuit: circuit.clone(),
            single,
            batches,
            budget: Mutex::new(budget),
            parts: Parts::new(&layers, PART_BYTES),
            layers,
        };
        check_circuit(&indexed)?;
        check_batch(&indexed, &indexed.single)?;
        Ok(indexed)
    }

    /// The same circuit, exchanged in parts of other sizes.
    #[cfg(test)]
    pub(crate) fn in_parts_of(mut self, bytes: usize) -> Self {
        self.parts = Parts::new(&self.layers, bytes);
        self
    }

    /// The packing of a bundle alone; what does not depend on the number of bundles is the same in
    /// all.
    pub(crate) fn single(&self) -> &Packing {
        &self.single.packing
    }

    /// The numbers of bundles for which there is a plan, the smallest, 1, first.
    pub(crate) fn sizes(&self) -> impl DoubleEndedIterator<Item = usize> + '_ {
        std::iter::once(1).chain(self.batches.iter().map(BatchPlan::bundles))
    }

    /// The digests of the plans, in the same order.
    pub(crate) fn plan_digests(&self) -> impl Iterator<Item = [u8; 32]> + '_ {
        std::iter::once(self.single.digest).chain(self.batches.iter().map(|batch| batch.digest))
    }

    /// The index of the plan for this many bundles.
    ///
    /// # Errors
    /// [`Error::ApiMisuse`] if there is none.
    pub(crate) fn place(&self, bundles: usize) -> Result<usize, Error> {
        let found = self.sizes().position(|size| size == bundles);
        found.ok_or_else(|| Error::misuse(format!("no plan for a batch of {bundles} bundles")))
    }

    /// The plan for this many bundles, derived if it has not been.
    ///
    /// # Errors
    /// [`Error::ApiMisuse`] if there is none, or with its faults.
    pub(crate) fn planned(&self, bundles: usize) -> Result<&Planned, Error> {
        let Some(batch) = self.place(bundles)?.checked_sub(1) else {
            return Ok(&self.single);
        };
        let BatchPlan { plan, derived, .. } = &self.batches[batch];
        if let Some(planned) = derived.get() {
            return Ok(planned);
        }
        // Whoever comes second waits, and finds it derived.
        let mut budget = self.budget.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(planned) = derived.get() {
            return Ok(planned);
        }
        let planned = Planned::new(&mut budget, &self.circuit, plan)?;
        check_batch(self, &planned)?;
        Ok(derived.get_or_init(|| planned))
    }

    /// All plans, derived, the smallest first.
    ///
    /// # Errors
    /// The first fault of [`IndexedCircuit::planned`].
    pub(crate) fn all_planned(&self) -> Result<Vec<&Planned>, Error> {
        self.sizes().map(|size| self.planned(size)).collect()
    }

    /// `count` bundles as batches: the largest first.
    pub(crate) fn batches(&self, count: usize) -> Vec<usize> {
        let mut left = count;
        let mut batches = Vec::new();
        for bundles in self.sizes().rev() {
            batches.extend(std::iter::repeat_n(bundles, left / bundles));
            left %= bundles;
        }
        batches
    }

    /// Shapes of all tensors: the input, then each layer's result but the last.
    pub(crate) fn tensors(&self) -> &[Shape] {
        &self.single().tensors()[..self.circuit.layers.len()]
    }

    /// Number of logits.
    pub(crate) fn logits(&self) -> usize {
        let last = self.circuit.layers.last();
        last.map_or(0, |layer| layer.shape.len())
    }

    /// Layers with their indices.
    pub(crate) fn layers_with_index(&self) -> impl Iterator<Item = (&Layer, &LayerIndex)> {
        self.circuit.layers.iter().zip(&self.layers)
    }

    /// The sum of a layer on one party's shares: `pool(sum of conv(W, t) + sum of +-2^shift
    /// window(t))`.
    ///
    /// `convolutions` gives the party's shares of the layer's convolutions, in order.
    pub(crate) fn sum<'s>(
        &self,
        layer: &Layer,
        tensors: &[&[u64]],
        convolutions: &mut impl Iterator<Item = &'s [u64]>,
    ) -> Elements {
        let shape = self.sum_shape(layer);
        let mut sum = Zeroizing::new(vec![0; shape.len()]);
        for term in &layer.terms {
            match term {
                Term::Conv(_) => {
                    let share = convolutions.next().expect("one share per convolution");
                    add_scaled(&mut sum, share, 1);
                }
                Term::Residual {
                    input,
                    window,
                    shift,
                    negative,
                } => {
                    let x = (*input, tensors[input.0 as usize]);
                    self.add_residual(&mut sum, x, window.as_ref(), scale(*shift, *negative));
                }
            }
        }
        self.pool(layer, sum)
    }

    /// Adds a residual term, times its [`scale`], to the sum of a layer's terms: a share of a
    /// tensor, or the sums over its windows if the term has some.
    pub(crate) fn add_residual(
        &self,
        sum: &mut [u64],
        (input, x): (TensorId, &[u64]),
        window: Option<&Window>,
        scale: u64,
    ) {
        match window {
            Some(window) => {
                let sums = sum_windows(x, self.circuit.tensor_shape(input), window);
                add_scaled(sum, &sums, scale);
            }
            None => add_scaled(sum, x, scale),
        }
    }

    /// The layer's own pool of a sum of its terms.
    pub(crate) fn pool(&self, layer: &Layer, sum: Elements) -> Elements {
        match &layer.pool {
            Some(pool) => {
                let from = self.sum_shape(layer);
                let window = pool.window(from);
                sum_windows(&sum, from, &window.expect("a verified circuit's pools fit"))
            }
            None => sum,
        }
    }

    /// Shape of the sum of a layer's terms.
    pub(crate) fn sum_shape(&self, layer: &Layer) -> Shape {
        let shape = layer.sum_shape(self.circuit.as_layers());
        shape.expect("every layer of a verified circuit has a first term that fits")
    }
}

/// A plan for a batch, and what is derived from it once it is used.
struct BatchPlan {
    plan: Plan,
    digest: [u8; 32],
    derived: OnceLock<Planned>,
}

impl BatchPlan {
    fn new(plan: &Plan) -> Result<Self, Error> {
        Ok(BatchPlan {
            plan: plan.clone(),
            digest: plan_digest(plan)?,
            derived: OnceLock::new(),
        })
    }

    fn bundles(&self) -> usize {
        self.plan.bundles as usize
    }
}

fn plan_digest(plan: &Plan) -> Result<[u8; 32], Error> {
    let bytes = postcard::to_stdvec(plan)
        .map_err(|error| Error::misuse(format!("plan for {} bundles: {error}", plan.bundles)))?;
    let mut hash = blake3::Hasher::new_derive_key("pianissimo 1 plan");
    hash.update(&bytes);
    Ok(hash.finalize().into())
}

/// A plan, with everything derived from it.
pub(crate) struct Planned {
    pub(crate) packing: Packing,
    pub(crate) digest: [u8; 32],
}

impl Planned {
    fn new(budget: &mut Budget, circuit: &Circuit, plan: &Plan) -> Result<Self, Error> {
        let bundles = plan.bundles;
        let packing = Packing::within(budget, circuit, plan).map_err(|faults| {
            Error::misuse(format!("plan for {bundles} bundles: {}", faults.join("; ")))
        })?;
        let gap = linear::max_gap(&packing);
        // One set-up of keys serves every model: they reach the largest group that a plan may
        // merge.
        let reach = MAX_MERGED_GROUP as usize;
        if gap > reach {
            return Err(Error::misuse(format!(
                "plan for {bundles} bundles: merges groups of {gap} channels, keys reach {reach}"
            )));
        }
        Ok(Planned {
            packing,
            digest: plan_digest(plan)?,
        })
    }

    /// Bundles of a batch.
    pub(crate) fn bundles(&self) -> usize {
        self.packing.bundles()
    }

    /// The answers that read an upload, in order.
    pub(crate) fn readers(&self, upload: usize) -> impl Iterator<Item = usize> + '_ {
        let answers = self.packing.answers().iter().enumerate();
        answers.filter_map(move |(index, answer)| (answer.upload() == upload).then_some(index))
    }

    /// The order in which answers travel: upload by upload.
    pub(crate) fn order(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.packing.uploads().len()).flat_map(|upload| self.readers(upload))
    }
}

/// The elements of a layer, kind by kind; all empty at the output, which may have a label.
#[derive(Default)]
pub(crate) struct LayerIndex {
    /// ReLU elements.
    pub(crate) relu: Vec<u32>,
    /// Width of their sign circuit; `None` without ReLUs.
    pub(crate) width: Option<SignWidth>,
    /// Squares and polynomials, in the order of elements.
    pub(crate) quadratic: Vec<u32>,
    /// Identity elements.
    pub(crate) identity: Vec<u32>,
    /// OLE slots of the layer.
    pub(crate) slots: usize,
    /// The arg max, at an output that reveals the label.
    pub(crate) label: Option<ArgMax>,
}

impl LayerIndex {
    fn new(layer: &Layer) -> Result<Self, String> {
        let mut index = LayerIndex::default();
        let sign_width = |bits: u8| {
            let guard = layer.guard_bits;
            SignWidth::guarded(bits.into(), guard.into()).map_err(|e| e.to_string())
        };
        let activation = match &layer.step {
            Step::Activate(activation) => activation,
            Step::Output { reveal, .. } => {
                if *reveal == Reveal::Label {
                    let width = sign_width(layer.bound_bits + 1 + layer.guard_bits)?;
                    let shape = ArgMax::new(layer.shape.len(), width).map_err(|e| e.to_string());
                    index.label = Some(shape?);
                }
                return Ok(index);
            }
        };
        for (element, &kind) in activation.kinds.iter().enumerate() {
            let element = element as u32;
            index.slots += quadratic::slots(kind);
            match kind {
                Kind::Relu => index.relu.push(element),
                Kind::Identity => index.identity.push(element),
                Kind::Square | Kind::Polynomial => index.quadratic.push(element),
            }
        }
        if !index.relu.is_empty() {
            index.width = Some(sign_width(layer.sign_bits().unwrap_or(0))?);
        }
        Ok(index)
    }

    /// Whether the layer has a garbled circuit.
    pub(crate) fn garbles(&self) -> bool {
        self.width.is_some() || self.label.is_some()
    }

    /// Whether its garbled circuit has a guard.
    fn guarded(&self) -> bool {
        let label = self.label.map(ArgMax::width);
        let widths = self.width.into_iter().chain(label);
        widths.into_iter().any(|width| width.guard_bits() > 0)
    }

    /// Elements that take part in the online messages.
    pub(crate) fn online(&self) -> usize {
        self.relu.len() + self.quadratic.len()
    }
}

/// The activation of a layer that is not the output.
pub(crate) fn activation(layer: &Layer) -> Option<&Activation> {
    match &layer.step {
        Step::Activate(activation) => Some(activation),
        Step::Output { .. } => None,
    }
}

/// The factor of a residual: `2^shift`, or its negative.
pub(crate) fn scale(shift: u8, negative: bool) -> u64 {
    let power = fp::reduce_u64(1 << shift);
    if negative { fp::sub(0, power) } else { power }
}

/// Adds `scale` times `values` to `sum`.
pub(crate) fn add_scaled(sum: &mut [u64], values: &[u64], scale: u64) {
    debug_assert_eq!(sum.len(), values.len());
    if scale == 1 {
        for (sum, &value) in sum.iter_mut().zip(values) {
            *sum = fp::add(*sum, value);
        }
        return;
    }
    for (sum, &value) in sum.iter_mut().zip(values) {
        *sum = fp::add(*sum, fp::mul(value, scale));
    }
}

/// The sums over the windows of a map of shape `from`.
fn sum_windows(x: &[u64], from: Shape, window: &Window) -> Elements {
    Zeroizing::new(window.sums(x, from, 0, fp::add))
}
