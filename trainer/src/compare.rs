//! One batch on another device against the CPU: logits, gradients, time.
//!
//! The CPU runs the operations of [`kernels`](crate::kernels), every other device compositions of
//! burn's own, so a faulty driver kernel or fusion is found here, not after hours of training.

use std::time::Instant;

use anyhow::{Result, ensure};
use burn::tensor::{Device, Tensor, TensorData};
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

use crate::config::Config;
use crate::data::Normalisation;
use crate::loss::cross_entropy;
use crate::network::{Mode, Request, Substitute};
use crate::run::{Images, Run};
use crate::tensors::{Tensors, download, download_all};

/// Largest relative difference of a gradient that [`compare`] accepts. Sums of up to 10^5
/// single-precision products in another order, through up to fifty layers of batch norms, differ by
/// 1e-4 to 1e-3; a wrong operation by 0.1 and more. Tensor cores that round inputs to ten bits come
/// to 1e-2 and are seen as what they are.
pub const TOLERANCE: f64 = 5e-3;

/// Findings of [`compare`].
#[derive(Clone, Debug)]
pub struct Comparison {
    /// Largest difference of a logit, relative to the largest logit.
    pub logits: f64,
    /// `|g - g_cpu| / |g_cpu|` of each parameter's gradient, largest first.
    pub gradients: Vec<(String, f64)>,
    /// Seconds of a forward and backward pass on the device, the best of three after one to warm
    /// up.
    pub seconds: f64,
    /// The same on the CPU.
    pub cpu_seconds: f64,
}

/// Square colour images in ten classes, to compare on.
pub fn images(side: usize) -> Images {
    Images {
        dataset: "random pixels".to_owned(),
        shape: [3, side, side],
        classes: (0..10).map(|class| class.to_string()).collect(),
        normalisation: Normalisation::cifar10(),
    }
}

/// Runs `batch` random images through the experiment's network, with the replacements of all its
/// stages, on `device` and on the CPU.
///
/// # Errors
/// A network that cannot be built.
pub fn compare(
    config: &Config,
    images: &Images,
    batch: usize,
    device: &Device,
) -> Result<Comparison> {
    let (there, seconds) = pass(config, images, batch, device)?;
    let (here, cpu_seconds) = pass(config, images, batch, &Device::flex())?;
    let largest = here.logits.iter().fold(0.0f32, |m, v| m.max(v.abs()));
    let logits = here
        .logits
        .iter()
        .zip(&there.logits)
        .fold(0.0f32, |m, (a, b)| m.max((a - b).abs()));
    let there_gradients = download_all(&there.gradients);
    let mut gradients: Vec<(String, f64)> = download_all(&here.gradients)
        .into_iter()
        .map(|(name, own)| {
            let norm =
                |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>().sqrt();
            let other = &there_gradients[&name];
            let pairs = own.iter().zip(other);
            let off = norm(&mut pairs.map(|(a, b)| f64::from(*a) - f64::from(*b)));
            let size = norm(&mut own.iter().map(|v| f64::from(*v)));
            (name, off / size.max(f64::from(f32::MIN_POSITIVE)))
        })
        .collect();
    gradients.sort_by(|a, b| b.1.total_cmp(&a.1));
    Ok(Comparison {
        logits: f64::from(logits / largest.max(f32::MIN_POSITIVE)),
        gradients,
        seconds,
        cpu_seconds,
    })
}

impl Comparison {
    /// # Errors
    /// A difference beyond [`TOLERANCE`], or one that is NaN, naming the parameter.
    pub fn check(&self) -> Result<()> {
        for (name, off) in &self.gradients {
            ensure!(
                *off <= TOLERANCE,
                "the gradient of {name} differs from the CPU's by {off:.1e} of its norm, more than \
                 {TOLERANCE:.0e}: this device does not compute what it should (or rounds its \
                 products; see the driver's settings)"
            );
        }
        ensure!(
            self.logits <= TOLERANCE,
            "logits differ from the CPU's by {:.1e}",
            self.logits
        );
        Ok(())
    }
}

struct Outcome {
    logits: Vec<f32>,
    gradients: Tensors,
}

fn pass(config: &Config, images: &Images, batch: usize, device: &Device) -> Result<(Outcome, f64)> {
    let mut config = config.clone();
    config.warm_start = None;
    let mut run = Run::new(config.clone(), images.clone(), device.clone())?;
    let replacements = config.stages.iter().flat_map(|stage| &stage.replace);
    for replacement in replacements.filter(|r| !matches!(r.by, Substitute::Fitted { .. })) {
        run.state.replace(&run.network, replacement)?;
    }
    let [c, h, w] = images.shape;
    let mut rng = ChaCha8Rng::seed_from_u64(config.seed);
    let values: Vec<f32> = (0..batch * c * h * w)
        .map(|_| rng.next_u32() as f32 / u32::MAX as f32 * 4.0 - 2.0)
        .collect();
    let pixels = Tensor::<4>::from_data(TensorData::new(values, [batch, c, h, w]), device);
    let labels: Vec<usize> = (0..batch).map(|i| i % images.classes.len()).collect();
    let once = || {
        let request = Request::of(Mode::Train);
        let pass = run.network.forward(&run.state, pixels.clone(), request);
        let logits = pass.logits();
        let mut grads = cross_entropy(logits.clone(), &labels, 0.0).backward();
        let leaves = pass.leaves.into_iter();
        let gradients = leaves
            .filter_map(|(name, leaf)| Some((name, leaf.grad_remove(&mut grads)?)))
            .collect();
        Outcome {
            // Reading one result waits for what was queued before it.
            logits: download(logits.inner()),
            gradients,
        }
    };
    let outcome = once();
    let mut best = f64::INFINITY;
    for _ in 0..3 {
        let start = Instant::now();
        let outcome = once();
        download_all(&outcome.gradients);
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok((outcome, best))
}
