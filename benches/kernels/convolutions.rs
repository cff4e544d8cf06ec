//! The server's convolutions online.

use super::Criterion;
use super::fixtures::Convolution;
use super::linear::{LAYERS, name};
use criterion::Throughput;

pub(crate) fn measure(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("online convolution");
    for layer in LAYERS {
        let (channels, side, out, kernel) = layer;
        let mut convolution = Convolution::new(channels, side, out, kernel);
        let multiply_adds = convolution.multiply_adds() as u64;
        group.throughput(Throughput::Elements(multiply_adds));
        group.bench_function(name(layer), |b| b.iter(|| convolution.run()));
    }
    group.finish();
}
