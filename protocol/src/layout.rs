//! The place of every tensor element in its ciphertexts, the role of every coefficient, and the
//! useful coefficients of every answer: pure index arithmetic on public data, for both parties.
//!
//! [`Packing::new`] checks a [`Plan`] against its circuit and derives everything from the two;
//! [`verify_plan`] lists what is wrong instead. `pi_ir::plan` defines the layout itself
//! (space-to-depth, flat positions, interleaved groups, blocks); coefficient packing is that of
//! Cheetah (Huang et al., USENIX Security 2022), interleaved so that results merge by automorphisms
//! (Chen, Dai, Kim, Song, 2021).
//!
//! # Roles
//! The role of a coefficient follows from what the useful outputs of all its consumers read there.
//! The product of a ciphertext with the kernel of one output channel is useful at multiples of `G`
//! only; the coefficient at `u * G` reads position `u + k * row_stride + l` for each tap `(k, l)`
//! and each channel of the group that the convolution has. Each such read expects either an element
//! of the tensor or padding:
//!
//! - an element makes the coefficient [`Free`](CoefficientRole::Free) where it occurs first, and
//!   [`Repeat`](CoefficientRole::Repeat) afterwards (in halos, and in further uploads);
//! - padding makes it [`Zero`](CoefficientRole::Zero);
//! - a coefficient that no useful output reads is [`Unused`](CoefficientRole::Unused): tails, gaps,
//!   channels that a group lacks, phases of space-to-depth that no tap touches.
//!
//! Two reads must not expect different things. This is what makes a shared padding column legal,
//! and nothing else does.
//!
//! # Stacks
//! If tiles have more rows than the outputs of one bundle, the virtual maps of all bundles lie one
//! below the other, and the rows of zeros between two of them serve both. Tiles cut the stack, and
//! each has a separate block. Rows of outputs between two maps are not useful.
//!
//! # What the other party learns
//! Nothing: all of this is a function of the public circuit and plan. In particular, no role and no
//! position depends on a weight: a tap counts as read whatever its weight is.
//!
//! # Hostile plans
//! Nothing here panics, indexes out of range or allocates beyond [`MAX_CIPHERTEXTS`] and the budget
//! of an artifact (`budget`), whatever the circuit and the plans say.

mod answer;
mod budget;
mod default_plan;
mod sketch;
mod upload;

#[cfg(test)]
pub(crate) mod oracle;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod vectors;

pub(crate) use budget::Budget;

pub use answer::{AnswerMap, Placement, Tap, Useful};
pub use default_plan::default_plan;
pub use sketch::{Sketch, TensorUse};
pub use upload::{ClassCounts, CoefficientRole, UploadMap};

use pi_ir::{Circuit, Conv, OutputPacking, Plan, Shape, TensorId, Term};

/// Ciphertexts that all uploads, or all answers, of a plan may have: `2^14`, about 1.2 GB of
/// upload. A ResNet-18 has a few hundred; a plan with more is refused before anything is allocated
/// for it.
pub const MAX_CIPHERTEXTS: u64 = 1 << 14;
/// Bundles that may share a ciphertext.
pub const MAX_BUNDLES: u32 = 64;
/// Rows, columns, kernel sides, strides and padding of anything packed.
const MAX_SIDE: u32 = 1 << 14;
/// Virtual channels of one tensor, input or output channels of a convolution.
const MAX_CHANNELS: u64 = 1 << 20;
/// Elements of one tensor, over all bundles.
const MAX_ELEMENTS: u128 = 1 << 27;
/// Steps charged for a tile beside its positions.
const TILE_STEPS: u64 = 16;
/// The largest group whose channels the plans of this crate and of the compiler merge. Merging a
/// group of `G` takes `log2 G` Galois keys of 565 KB, once per client; larger groups occur in dense
/// layers only, which have few outputs to merge.
pub const MAX_MERGED_GROUP: u32 = 256;
/// Ring degree of the standard parameter set.
pub const RING_DEGREE: u32 = 8192;

/// A plan that fits its circuit, with everything derived from the two.
#[derive(Clone, Debug)]
pub struct Packing {
    ring_degree: usize,
    bundles: usize,
    tensors: Vec<Shape>,
    uploads: Vec<UploadMap>,
    answers: Vec<AnswerMap>,
}

impl Packing {
    /// Derives the index maps of `plan`, or lists all its faults.
    ///
    /// # Errors
    /// One sentence for each fault found, naming the upload or the layer; a ring degree other than
    /// [`RING_DEGREE`] is one.
    pub fn new(circuit: &Circuit, plan: &Plan) -> Result<Packing, Vec<String>> {
        Packing::within(&mut Budget::new(), circuit, plan)
    }

    /// [`Packing::new`] within what is left of the budget of all plans of an artifact.
    pub(crate) fn within(
        budget: &mut Budget,
        circuit: &Circuit,
        plan: &Plan,
    ) -> Result<Packing, Vec<String>> {
        let packing = Packing::in_any_ring(budget, circuit, plan);
        if plan.ring_degree == RING_DEGREE {
            return packing;
        }
        let mut faults = packing.err().unwrap_or_default();
        faults.push(format!(
            "ring degree {}, expected {RING_DEGREE}",
            plan.ring_degree
        ));
        Err(faults)
    }

    /// [`Packing::within`] for any ring degree: index arithmetic alone, which small rings test
    /// faster.
    pub(crate) fn in_any_ring(
        budget: &mut Budget,
        circuit: &Circuit,
        plan: &Plan,
    ) -> Result<Packing, Vec<String>> {
        let mut faults = check_globals(plan);
        let tensors: Vec<Shape> = std::iter::once(circuit.input)
            .chain(circuit.layers.iter().map(|layer| layer.shape))
            .collect();
        let expected = conv_terms(circuit);
        if expected.len() != plan.answers.len() {
            faults.push(format!(
                "plan has {} answers for {} convolutions",
                plan.answers.len(),
                expected.len()
            ));
        }
        if plan.uploads.len() > plan.answers.len() {
            faults.push(format!(
                "plan has {} uploads for {} answers",
                plan.uploads.len(),
                plan.answers.len()
            ));
        }
        if !faults.is_empty() {
            return Err(faults);
        }

        // Per upload, the answers that read it.
        let mut consumers: Vec<Vec<Consumer<'_>>> = vec![Vec::new(); plan.uploads.len()];
        for (index, ((layer, term, conv), answer)) in expected.iter().zip(&plan.answers).enumerate()
        {
            let name = answer_name(circuit, *layer, *term);
            if (answer.layer, answer.term) != (*layer, *term) {
                faults.push(format!(
                    "answer {index} is for layer {} term {}, expected {name}",
                    answer.layer, answer.term
                ));
                continue;
            }
            match consumer(&tensors, plan, conv, answer) {
                Ok(shape) => consumers[answer.upload as usize].push(Consumer {
                    index,
                    conv,
                    answer,
                    output: shape,
                }),
                Err(fault) => faults.push(format!("{name}: {fault}")),
            }
        }
        if !faults.is_empty() {
            return Err(faults);
        }

        let mut builder = upload::Builder::new(plan, &tensors, budget);
        let mut uploads = Vec::with_capacity(plan.uploads.len());
        let mut answers: Vec<Option<AnswerMap>> = vec![None; plan.answers.len()];
        let mut answer_ciphertexts = 0u64;
        for (index, (upload, consumers)) in plan.uploads.iter().zip(&consumers).enumerate() {
            match builder.add(upload, consumers) {
                Ok(map) => {
                    for consumer in consumers {
                        match AnswerMap::new(&map, consumer, builder.budget()) {
                            Ok(answer) => {
                                answer_ciphertexts += answer.ciphertexts() as u64;
                                answers[consumer.index] = Some(answer);
                                // Small convolutions can read a large upload many times.
                                if answer_ciphertexts > MAX_CIPHERTEXTS {
                                    faults.push(format!(
                                        "{answer_ciphertexts} answer ciphertexts, at most \
                                         {MAX_CIPHERTEXTS} allowed"
                                    ));
                                    return Err(faults);
                                }
                            }
                            Err(fault) => faults.push(format!(
                                "{}: {fault}",
                                answer_name(circuit, consumer.answer.layer, consumer.answer.term)
                            )),
                        }
                    }
                    uploads.push(map);
                }
                Err(more) => {
                    faults.extend(more.into_iter().map(|fault| {
                        format!("upload {index} of tensor {}: {fault}", upload.tensor.0)
                    }))
                }
            }
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let answers = answers.into_iter().flatten().collect::<Vec<_>>();
        debug_assert_eq!(answers.len(), plan.answers.len());
        Ok(Packing {
            ring_degree: plan.ring_degree as usize,
            bundles: plan.bundles as usize,
            tensors,
            uploads,
            answers,
        })
    }

    /// The ring degree `N`.
    pub fn ring_degree(&self) -> usize {
        self.ring_degree
    }

    /// Bundles packed together; tensors of masks and shares are `bundles` times as long, bundle
    /// after bundle.
    pub fn bundles(&self) -> usize {
        self.bundles
    }

    /// Shapes of all tensors of the circuit, by [`TensorId`].
    pub fn tensors(&self) -> &[Shape] {
        &self.tensors
    }

    /// One map per entry of [`Plan::uploads`].
    pub fn uploads(&self) -> &[UploadMap] {
        &self.uploads
    }

    /// One map per entry of [`Plan::answers`].
    pub fn answers(&self) -> &[AnswerMap] {
        &self.answers
    }

    /// Returns true if a convolution reads the tensor, so that the linear phase defines its mask.
    pub fn is_uploaded(&self, tensor: TensorId) -> bool {
        self.uploads.iter().any(|upload| upload.tensor() == tensor)
    }
}

/// Everything wrong with `plan` as a packing of `circuit`; empty if [`Packing::new`] accepts it.
///
/// The circuit itself should have passed `pi_ir`'s own verifier; a circuit that has not cannot make
/// this panic, only list more.
pub fn verify_plan(circuit: &Circuit, plan: &Plan) -> Vec<String> {
    Packing::new(circuit, plan).err().unwrap_or_default()
}

/// A convolution as one upload's consumer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Consumer<'a> {
    pub(crate) index: usize,
    pub(crate) conv: &'a Conv,
    pub(crate) answer: &'a OutputPacking,
    pub(crate) output: Shape,
}

/// Lists the convolution terms of a circuit: layer, term, convolution.
fn conv_terms(circuit: &Circuit) -> Vec<(u32, u32, &Conv)> {
    let mut out = Vec::new();
    for (l, layer) in circuit.layers.iter().enumerate() {
        for (t, term) in layer.terms.iter().enumerate() {
            if let Term::Conv(conv) = term {
                out.push((l as u32, t as u32, conv));
            }
        }
    }
    out
}

fn answer_name(circuit: &Circuit, layer: u32, term: u32) -> String {
    match circuit.layers.get(layer as usize) {
        Some(found) => format!("layer {layer} ({}), term {term}", found.name),
        None => format!("layer {layer}, term {term}"),
    }
}

fn check_globals(plan: &Plan) -> Vec<String> {
    let mut faults = Vec::new();
    if !plan.ring_degree.is_power_of_two() || !(16..=1 << 16).contains(&plan.ring_degree) {
        faults.push(format!(
            "ring degree {} is not a power of two in 16..=65536",
            plan.ring_degree
        ));
    }
    if !(1..=MAX_BUNDLES).contains(&plan.bundles) {
        faults.push(format!(
            "{} bundles, expected 1..={MAX_BUNDLES}",
            plan.bundles
        ));
    }
    faults
}

/// Checks what one answer says by itself, and gives the shape of its convolution's output.
fn consumer(
    tensors: &[Shape],
    plan: &Plan,
    conv: &Conv,
    answer: &OutputPacking,
) -> Result<Shape, String> {
    let upload = plan
        .uploads
        .get(answer.upload as usize)
        .ok_or_else(|| format!("reads upload {} of {}", answer.upload, plan.uploads.len()))?;
    if upload.tensor != conv.input {
        return Err(format!(
            "reads upload {} of tensor {}, but its input is tensor {}",
            answer.upload, upload.tensor.0, conv.input.0
        ));
    }
    if conv.input.0 > answer.layer {
        return Err(format!("reads tensor {} before it exists", conv.input.0));
    }
    let shape = tensors
        .get(conv.input.0 as usize)
        .ok_or_else(|| format!("tensor {} does not exist", conv.input.0))?;
    conv_output(*shape, conv).ok_or_else(|| {
        format!(
            "a {}x{} convolution with {} channels out does not fit a [{}, {}, {}] tensor",
            conv.kernel.0, conv.kernel.1, conv.out_channels, shape.c, shape.h, shape.w
        )
    })
}

/// Shape of a convolution's result (before the layer's pool); `None` where sizes are out of bounds
/// or the kernel does not fit.
pub fn conv_output(input: Shape, conv: &Conv) -> Option<Shape> {
    let side = |n: u32, before: u32, after: u32, kernel: u32, stride: u32| {
        let bounded = (1..=MAX_SIDE).contains(&n)
            && before <= MAX_SIDE
            && after <= MAX_SIDE
            && (1..=MAX_SIDE).contains(&kernel)
            && (1..=MAX_SIDE).contains(&stride);
        if !bounded {
            return None;
        }
        Some((n + before + after).checked_sub(kernel)? / stride + 1)
    };
    let channels =
        |c: u32| (1..=MAX_CHANNELS).contains(&u64::from(c)) && c.is_multiple_of(conv.groups);
    if !channels(input.c) || !channels(conv.out_channels) {
        return None;
    }
    Some(Shape::new(
        conv.out_channels,
        side(
            input.h,
            conv.padding.top,
            conv.padding.bottom,
            conv.kernel.0,
            conv.stride.0,
        )?,
        side(
            input.w,
            conv.padding.left,
            conv.padding.right,
            conv.kernel.1,
            conv.stride.1,
        )?,
    ))
}
