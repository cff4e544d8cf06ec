use super::*;

/// Values in (-1, 1) that repeat late.
pub(crate) fn values(count: usize, seed: u32) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state as f32 / u32::MAX as f32 * 2.0 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

fn shape(c_in: usize, [h, w]: [usize; 2], c_out: usize) -> Convolution {
    Convolution {
        c_in,
        h,
        w,
        c_out,
        kernel: [3, 3],
        stride: 1,
        padding: 1,
        pooled: false,
    }
}

/// Shapes of all paths: Winograd, patches and pooled ones, odd sizes, channels that fill no vector.
fn shapes() -> Vec<(usize, Convolution)> {
    let mut shapes = Vec::new();
    for (images, c_in, size, c_out) in [
        (3, 16, [8, 8], 32),
        (11, 24, [7, 5], 20),
        (2, 13, [31, 31], 40),
        (1, 16, [44, 41], 16),
        (9, 64, [3, 3], 48),
        (2, 3, [6, 7], 8),
        (9, 5, [2, 2], 17),
        (1, 12, [1, 1], 12),
    ] {
        let plain = shape(c_in, size, c_out);
        shapes.push((images, plain));
        shapes.push((images, Convolution { stride: 2, ..plain }));
        if plain.pools() {
            shapes.push((
                images,
                Convolution {
                    pooled: true,
                    ..plain
                },
            ));
        }
        let kernel = [1, 1];
        shapes.push((
            images,
            Convolution {
                kernel,
                padding: 0,
                stride: 2,
                ..plain
            },
        ));
        if size[0] > 4 {
            let kernel = [2, 2];
            shapes.push((
                images,
                Convolution {
                    kernel,
                    padding: 0,
                    ..plain
                },
            ));
            let kernel = [5, 3];
            shapes.push((
                images,
                Convolution {
                    kernel,
                    padding: 2,
                    ..plain
                },
            ));
            let kernel = [7, 7];
            shapes.push((
                images,
                Convolution {
                    kernel,
                    padding: 3,
                    stride: 2,
                    ..plain
                },
            ));
        }
    }
    shapes
}

/// Calls `visit(output, input, weight, factor)` for each product, by the definition.
fn products(images: usize, g: &Convolution, mut visit: impl FnMut(usize, usize, usize, f64)) {
    let whole = Convolution {
        pooled: false,
        ..*g
    };
    let [h_out, w_out] = whole.size_out();
    let [h_pool, w_pool] = g.size_out();
    for image in 0..images {
        for (y, x) in (0..h_out).flat_map(|y| (0..w_out).map(move |x| (y, x))) {
            let (place, factor) = match g.pooled {
                true if y / 2 >= h_pool || x / 2 >= w_pool => continue,
                true => ((image * h_pool + y / 2) * w_pool + x / 2, 0.25),
                false => ((image * h_out + y) * w_out + x, 1.0),
            };
            for (i, j) in (0..g.kernel[0]).flat_map(|i| (0..g.kernel[1]).map(move |j| (i, j))) {
                let (row, column) = (y * g.stride + i, x * g.stride + j);
                let inside = |v: usize, size: usize| v >= g.padding && v < size + g.padding;
                if !inside(row, g.h) || !inside(column, g.w) {
                    continue;
                }
                let pixel = (image * g.h + row - g.padding) * g.w + column - g.padding;
                for o in 0..g.c_out {
                    for c in 0..g.c_in {
                        let weight = ((o * g.c_in + c) * g.kernel[0] + i) * g.kernel[1] + j;
                        visit(place * g.c_out + o, pixel * g.c_in + c, weight, factor);
                    }
                }
            }
        }
    }
}

fn assert_close(got: &[f32], expected: &[f64], what: &str) {
    let largest = expected.iter().fold(0.0, |a: f64, b| a.max(b.abs()));
    for (i, (got, expected)) in got.iter().zip(expected).enumerate() {
        assert!(
            (f64::from(*got) - expected).abs() <= 1e-5 * largest,
            "{what}: element {i} is {got}, expected {expected}, largest {largest}"
        );
    }
}

struct Results {
    out: Vec<f32>,
    by_input: Vec<f32>,
    by_weight: Vec<f32>,
}

fn all(backend: Backend, g: &Convolution, x: &[f32], weight: &[f32], grad: &[f32]) -> Results {
    // What was in the slices does not matter.
    let mut results = Results {
        out: vec![f32::NAN; grad.len()],
        by_input: vec![f32::NAN; x.len()],
        by_weight: vec![f32::NAN; weight.len()],
    };
    g.forward(backend, x, weight, &mut results.out);
    let of = Adjoint { x, weight, grad };
    let Results {
        by_input,
        by_weight,
        ..
    } = &mut results;
    g.adjoint(backend, of, Some(by_input), Some(by_weight));
    results
}

#[test]
fn all_directions_are_those_of_the_definition() {
    for (images, g) in shapes() {
        let x = values(images * g.in_image(), 1);
        let weight = values(g.weights(), 2);
        let grad = values(images * g.out_image(), 3);
        let mut out = vec![0.0; grad.len()];
        let mut by_input = vec![0.0; x.len()];
        let mut by_weight = vec![0.0; weight.len()];
        let of = |values: &[f32], i: usize| f64::from(values[i]);
        products(images, &g, |o, i, w, factor| {
            out[o] += of(&x, i) * of(&weight, w) * factor;
            by_input[i] += of(&grad, o) * of(&weight, w) * factor;
            by_weight[w] += of(&grad, o) * of(&x, i) * factor;
        });
        for backend in Backend::all().into_iter().filter(|b| b.is_supported()) {
            let got = all(backend, &g, &x, &weight, &grad);
            let what = |which| format!("{which}, {}, {images} of {g:?}", backend.name());
            assert_close(&got.out, &out, &what("forward"));
            assert_close(&got.by_input, &by_input, &what("by input"));
            assert_close(&got.by_weight, &by_weight, &what("by weight"));
        }
    }
}

#[test]
fn results_are_the_same_to_the_bit_for_all_back_ends_and_numbers_of_threads() {
    let bits = |values: &[f32]| values.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
    for (images, g) in shapes() {
        let x = values(images * g.in_image(), 4);
        let weight = values(g.weights(), 5);
        let grad = values(images * g.out_image(), 6);
        let expected = all(Backend::Scalar, &g, &x, &weight, &grad);
        for backend in Backend::all().into_iter().filter(|b| b.is_supported()) {
            for threads in [1, 3] {
                let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
                let got = pool
                    .unwrap()
                    .install(|| all(backend, &g, &x, &weight, &grad));
                let what = format!("{}, {threads} threads, {g:?}", backend.name());
                assert_eq!(bits(&got.out), bits(&expected.out), "{what}");
                assert_eq!(bits(&got.by_input), bits(&expected.by_input), "{what}");
                assert_eq!(bits(&got.by_weight), bits(&expected.by_weight), "{what}");
            }
        }
    }
}

#[test]
fn each_gradient_is_the_same_without_the_other() {
    for g in [shape(16, [9, 9], 16), shape(3, [9, 9], 5)] {
        let (x, weight) = (values(2 * g.in_image(), 7), values(g.weights(), 8));
        let grad = values(2 * g.out_image(), 9);
        let both = all(Backend::Scalar, &g, &x, &weight, &grad);
        let of = Adjoint {
            x: &x,
            weight: &weight,
            grad: &grad,
        };
        let mut by_input = vec![0.0; x.len()];
        g.adjoint(Backend::Scalar, of, Some(&mut by_input), None);
        assert_eq!(by_input, both.by_input);
        let mut by_weight = vec![0.0; weight.len()];
        g.adjoint(Backend::Scalar, of, None, Some(&mut by_weight));
        assert_eq!(by_weight, both.by_weight);
    }
}
