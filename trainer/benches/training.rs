//! The cost, on the CPU, of the parts of a training step around the network: a batch of images, and
//! a step of an optimiser over 10.5 million parameters beside a loop on the host that does as much.
//!
//!     cargo bench -p pi-trainer
//!
//! `pi-train train` prints images per second of whole runs; `pytorch.py` measures those of PyTorch.

use std::time::{Duration, Instant};

use burn::tensor::{Device, Tensor, TensorData};
use pi_trainer::data::{Augmentation, Dataset, DeviceSet, Normalisation};
use pi_trainer::optimise::{Optimiser, OptimiserConfig, Place};
use pi_trainer::tensors::{Tensors, download, upload};

/// Images of a batch.
const BATCH: usize = 512;

/// Steps that a time is the mean of.
const STEPS: u32 = 20;

fn main() {
    batches();
    steps();
    host_loop();
}

/// Batches of drawn crops, flips and cutouts.
fn batches() {
    const IMAGES: usize = 5000;
    let augmentation = Augmentation {
        cutout: 8,
        ..Augmentation::default()
    };
    let indices: Vec<usize> = (0..BATCH).map(|i| i * 7 % IMAGES).collect();
    for shape in [[3, 32, 32], [3, 64, 64]] {
        let bytes = IMAGES * shape.iter().product::<usize>();
        let set = Dataset {
            shape,
            images: (0..bytes).map(|i| (i * 37) as u8).collect(),
            labels: vec![0; IMAGES],
        };
        let set = DeviceSet::new(set, Normalisation::cifar10(), &Device::flex());
        let fastest = (0u64..10)
            .map(|seed| {
                let start = Instant::now();
                let batch = set.batch(&indices, &augmentation, seed);
                // A number of the batch is read, so that a device has made it.
                let sum: f32 = batch.narrow(0, 0, 1).sum().into_scalar();
                assert!(sum.is_finite());
                start.elapsed()
            })
            .min()
            .unwrap_or(Duration::MAX);
        let speed = BATCH as f64 / fastest.as_secs_f64();
        println!("batches of {shape:?}: {speed:.0} images/s");
    }
}

/// 62 tensors of 10.5 million numbers in all.
fn tensors(scale: f32) -> Tensors {
    let tensor = |i: usize| {
        let count = if i.is_multiple_of(3) { 500_000 } else { 256 };
        let values = vec![scale * (i + 1) as f32; count];
        (format!("p{i:02}.weight"), upload(values, &Device::flex()))
    };
    (0..62).map(tensor).collect()
}

fn steps() {
    let device = Device::flex();
    let gradients = tensors(1e-4);
    let loss = Tensor::from_data(TensorData::from([1.0f32]), &device);
    for rule in ["sgd", "adam", "momo-adam"] {
        let text = format!("rule.{rule} = {{}}\nweight_decay = 5e-4\nclip = 1.0");
        let config: OptimiserConfig = toml::from_str(&text).expect("a configuration of ours");
        let mut x = tensors(1.0);
        let mut optimiser = Optimiser::new(&config, &x, |_| Place::default(), &device);
        let start = Instant::now();
        for _ in 0..STEPS {
            optimiser
                .step(&mut x, &gradients, &loss, 0.1, 0)
                .expect("finite numbers");
        }
        println!("{rule}: {:.1?} a step", start.elapsed() / STEPS);
    }
}

/// SGD in one pass over each parameter, the tensors read and written whole.
fn host_loop() {
    let gradients = tensors(1e-4);
    let host = |tensors: &Tensors| -> Vec<Vec<f32>> {
        tensors.values().map(|t| download(t.clone())).collect()
    };
    let mut x = tensors(1.0);
    let mut momenta: Vec<Vec<f32>> = host(&x).iter().map(|v| vec![0.0; v.len()]).collect();
    let start = Instant::now();
    for _ in 0..STEPS {
        let (mut values, gradients) = (host(&x), host(&gradients));
        let square = gradients.iter().flatten().map(|g| f64::from(g * g));
        let scale = (1.0 / square.sum::<f64>().sqrt()).min(1.0) as f32;
        for ((x, momentum), g) in values.iter_mut().zip(&mut momenta).zip(&gradients) {
            for ((x, m), g) in x.iter_mut().zip(momentum).zip(g) {
                let g = g * scale + 5e-4 * *x;
                *m = 0.9 * *m + g;
                *x -= 0.1 * (g + 0.9 * *m);
            }
        }
        for (tensor, values) in x.values_mut().zip(values) {
            *tensor = upload(values, &Device::flex());
        }
    }
    println!(
        "sgd by a loop on the host: {:.1?} a step",
        start.elapsed() / STEPS
    );
}
