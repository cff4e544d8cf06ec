//! Milliseconds of the kernels on the layers of `lean9` and ResNets, by back end, on one thread.
//!
//!     cargo bench -p pi-kernels -- [FILTER]
//!
//! Rates are multiplications of the definition (a pooled convolution counts its unpooled outputs) a
//! second: Winograd's transforms and pools do fewer.

use std::hint::black_box;
use std::time::Instant;

use pi_kernels::norm::{self, Activation, Norm, Pull};
use pi_kernels::{Adjoint, Backend, Convolution};

/// Runs that a time is the least of.
const RUNS: usize = 5;

fn main() {
    let filter: Vec<String> = std::env::args()
        .skip(1)
        .filter(|a| !a.starts_with("--"))
        .collect();
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(1)
        .build()
        .expect("a thread");
    let backends = Backend::all().into_iter().filter(|b| b.is_supported());
    let backends: Vec<Backend> = backends.filter(|b| *b != Backend::Scalar).collect();
    println!("| layer | back end | forward, ms | by both, ms | forward, G/s | by both, G/s |");
    println!("| --- | --- | --- | --- | --- | --- |");
    for (name, images, g) in layers() {
        if !filter.is_empty() && !filter.iter().any(|f| name.contains(f.as_str())) {
            continue;
        }
        for backend in &backends {
            pool.install(|| convolution(name, images, &g, *backend));
        }
    }
    if filter.is_empty() || filter.iter().any(|f| "norm".contains(f.as_str())) {
        for backend in &backends {
            pool.install(|| fused(*backend));
        }
    }
}

fn layers() -> Vec<(&'static str, usize, Convolution)> {
    let conv = |c_in, side, c_out| Convolution {
        c_in,
        h: side,
        w: side,
        c_out,
        kernel: [3, 3],
        stride: 1,
        padding: 1,
        pooled: false,
    };
    let pooled = |c_in, side, c_out| Convolution {
        pooled: true,
        ..conv(c_in, side, c_out)
    };
    vec![
        (
            "lean9 whiten",
            64,
            Convolution {
                kernel: [2, 2],
                padding: 0,
                ..conv(3, 32, 24)
            },
        ),
        ("lean9 group1.a", 64, pooled(24, 31, 64)),
        ("lean9 group1.b", 64, conv(64, 15, 64)),
        ("lean9 group2.a", 64, pooled(64, 15, 256)),
        ("lean9 group2.b", 64, conv(256, 7, 256)),
        ("lean9 group3.a", 64, pooled(256, 7, 256)),
        ("lean9 group3.b", 64, conv(256, 3, 256)),
        ("resnet20 16@32", 64, conv(16, 32, 16)),
        ("resnet20 32@16", 64, conv(32, 16, 32)),
        ("resnet20 64@8", 64, conv(64, 8, 64)),
        ("resnet18 64@32", 16, conv(64, 32, 64)),
        ("resnet18 128@16", 16, conv(128, 16, 128)),
        ("resnet18 256@8", 16, conv(256, 8, 256)),
        ("resnet18 512@4", 64, conv(512, 4, 512)),
        (
            "resnet18 stride 2",
            16,
            Convolution {
                stride: 2,
                ..conv(128, 16, 256)
            },
        ),
        ("resnet18 stem", 16, conv(3, 32, 64)),
    ]
}

fn values(count: usize) -> Vec<f32> {
    (0..count).map(|i| (i % 251) as f32 / 251.0 - 0.5).collect()
}

fn least(mut run: impl FnMut()) -> f64 {
    let time = |_| {
        let start = Instant::now();
        run();
        start.elapsed().as_secs_f64()
    };
    (0..RUNS).map(time).fold(f64::INFINITY, f64::min)
}

fn convolution(name: &str, images: usize, g: &Convolution, backend: Backend) {
    let (x, weight) = (values(images * g.in_image()), values(g.weights()));
    let grad = values(images * g.out_image());
    let mut out = vec![0.0; grad.len()];
    let forward = least(|| g.forward(backend, black_box(&x), &weight, &mut out));
    let (mut by_input, mut by_weight) = (vec![0.0; x.len()], vec![0.0; weight.len()]);
    let of = Adjoint {
        x: &x,
        weight: &weight,
        grad: &grad,
    };
    let both = least(|| {
        g.adjoint(
            backend,
            black_box(of),
            Some(&mut by_input),
            Some(&mut by_weight),
        )
    });
    let unpooled = Convolution {
        pooled: false,
        ..*g
    };
    let count = images * unpooled.out_image() * g.c_in * g.kernel[0] * g.kernel[1];
    let rate = |seconds: f64, times: usize| (times * count) as f64 / seconds / 1e9;
    println!(
        "| {name} | {} | {:.2} | {:.2} | {:.1} | {:.1} |",
        backend.name(),
        forward * 1e3,
        both * 1e3,
        rate(forward, 1),
        rate(both, 2)
    );
}

/// The largest norm and activation of `lean9`, 64 images.
fn fused(backend: Backend) {
    let (channels, x) = (64, values(64 * 15 * 15 * 64));
    let moments = norm::moments(backend, &x, channels);
    let (gamma, beta) = (vec![1.0; channels], vec![0.1; channels]);
    let norm = Norm {
        moments: &moments,
        gamma: &gamma,
        beta: &beta,
    };
    for (name, positions) in [("a channel", 1), ("a position", 225)] {
        let coefficients = values(4 * channels * positions);
        let pull = Pull::Excess {
            radius: 6.0,
            pull: 1e-3,
        };
        let activation = Activation {
            coefficients: &coefficients,
            guard: 8.0,
            pull,
        };
        let mut out = vec![0.0; x.len()];
        let forward = least(|| {
            black_box(norm::moments(backend, black_box(&x), channels));
            norm::normalise_activate(backend, &x, &norm, &activation, &mut out);
        });
        let both = least(|| {
            let pair = (&activation, false);
            norm::normalise_activate_adjoint(backend, black_box(&x), &norm, pair, &mut out);
        });
        let rate = |seconds: f64| x.len() as f64 / seconds / 1e9;
        println!(
            "| norm, coefficients of {name} | {} | {:.2} | {:.2} | {:.1} | {:.1} |",
            backend.name(),
            forward * 1e3,
            both * 1e3,
            rate(forward),
            rate(both)
        );
    }
}
