//! Prints what the steps of the homomorphic layers cost on this machine, one thread.
//!
//! `cargo run --release -p pi-rlwe --example costs`

use pi_core::fp;
use pi_ring::conv::{ConvScratch, ConvShape, Padding, PreparedConv};
use pi_ring::ntt::RLWE_PRIMES;
use pi_rlwe::{
    CiphertextModulus, GaloisKeys, N, Packed, Params, PlainPoly, Product, PublicKey, SecretKey,
    SeededLayout, decrypt, encrypt_seeded, expand_seeded, mask_and_flood, ole_receive, ole_respond,
    pack,
};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;
use std::time::Instant;

fn main() {
    let pool = rayon::ThreadPoolBuilder::new()
        .num_threads(1)
        .build()
        .expect("a pool of one thread");
    pool.install(run);
}

/// Prints the least time of `runs` runs in microseconds, divided by `per`: what the step costs when
/// nothing disturbs it.
fn time<T>(name: &str, runs: usize, per: f64, mut f: impl FnMut() -> T) {
    let least = (0..runs)
        .map(|_| {
            let start = Instant::now();
            std::hint::black_box(f());
            start.elapsed().as_secs_f64() * 1e6 / per
        })
        .fold(f64::INFINITY, f64::min);
    println!("{name:48} {least:10.1} us");
}

fn run() {
    let params = Params::standard();
    let rng = &mut ChaCha20Rng::seed_from_u64(1);
    let secret = SecretKey::generate(&params, rng);
    let public = PublicKey::generate(&params, &secret, &[1; 32], rng);
    let keys = GaloisKeys::generate(&params, &secret, &[1; 32], 256, rng);

    let ntt = RLWE_PRIMES[0].transform(N);
    let mut x: Vec<u64> = (0..N as u64).collect();
    time("transform, forward", 4000, 1.0, || ntt.forward(&mut x));
    time("transform, inverse", 4000, 1.0, || {
        ntt.inverse_unscaled(&mut x)
    });

    let layout = SeededLayout::all_free();
    let mut ciphertexts = Vec::new();
    for modulus in [CiphertextModulus::Conv, CiphertextModulus::Ole] {
        time(&format!("upload {modulus:?}"), 63, 1.0, || {
            encrypt_seeded(&params, modulus, &secret, &[2; 32], &layout, &[], rng)
        });
        let sent = encrypt_seeded(&params, modulus, &secret, &[2; 32], &layout, &[], rng);
        let expand = || {
            expand_seeded(&params, modulus, &[2; 32], &layout, &sent.bytes).expect("honest bytes")
        };
        time(&format!("expand upload {modulus:?}"), 63, 1.0, expand);
        ciphertexts.push(expand());
    }
    let ole = ciphertexts.pop().expect("two were pushed");
    let inputs: Vec<_> = (0..16).map(|_| ciphertexts[0].clone()).collect();

    let conv = CiphertextModulus::Conv;
    let terms: Vec<(usize, i64)> = (0..144)
        .map(|i| (i * 57 % (2 * N), i as i64 - 70))
        .collect();
    let mut kernel = PlainPoly::new(&params, conv, 8, terms.clone());
    time("kernel of 144 terms", 404, 1.0, || {
        kernel.set(&params, 8, terms.iter().copied())
    });
    let many: Vec<(usize, i64)> = (0..2304)
        .map(|i| (i * 57 % (2 * N), i as i64 % 255 - 127))
        .collect();
    time("kernel of 2304 terms", 101, 1.0, || {
        kernel.set(&params, 8, many.iter().copied())
    });
    let pairs: Vec<_> = inputs.iter().map(|x| (x, &kernel)).collect();
    time("ciphertext times kernel, of 16", 51, 16.0, || {
        Product::new(&params, &pairs)
    });
    time("ciphertext times kernel, alone", 204, 1.0, || {
        Product::new(&params, &pairs[..1])
    });
    let product = Product::new(&params, &pairs);
    for gap in [4usize, 16, 256] {
        let levels = gap.ilog2();
        let mut kernel = PlainPoly::new(&params, conv, levels, terms.clone());
        kernel.set(&params, levels, terms.iter().copied());
        let product = Product::new(&params, &[(&inputs[0], &kernel)]);
        time(
            &format!("pack, gap {gap}, per key switch (clone included)"),
            5,
            gap as f64 - 1.0,
            || pack(&params, &keys, gap, levels, |_| product.clone()),
        );
    }
    time("clone of a product", 204, 1.0, || product.clone());

    let plain = PlainPoly::new(&params, conv, 0, terms.clone());
    let product = Product::new(&params, &[(&inputs[0], &plain)]);
    let useful: Vec<u32> = (0..N as u32).collect();
    let mask = fp::uniform_vec(N, rng);
    let packed = || Packed::single(&params, 1, product.clone());
    time("single product to coefficients", 124, 1.0, packed);
    time("the same and finish, all coefficients", 124, 1.0, || {
        mask_and_flood(&params, packed(), &public, &useful, &mask, rng)
    });
    let answer = mask_and_flood(&params, packed(), &public, &useful, &mask, rng);
    time("encode answer", 124, 1.0, || answer.encode());
    time("decrypt, all coefficients", 124, 1.0, || {
        decrypt(&params, &secret, &answer, &useful)
    });
    let (y, v) = (fp::uniform_vec(N, rng), fp::uniform_vec(N, rng));
    time("OLE respond", 44, 1.0, || {
        ole_respond(&params, &ole, &y, &v, &public, rng)
    });
    let answer = ole_respond(&params, &ole, &y, &v, &public, rng);
    time("OLE receive", 44, 1.0, || {
        ole_receive(&params, &secret, &answer)
    });

    for (channels, side) in [(64, 32), (512, 4)] {
        let shape = ConvShape {
            channels_in: channels,
            height: side,
            width: side,
            channels_out: channels,
            kernel_height: 3,
            kernel_width: 3,
            stride: 1,
            padding: Padding {
                top: 1,
                left: 1,
                bottom: 1,
                right: 1,
            },
        };
        let input = fp::uniform_vec(shape.input_len(), rng);
        let weights: Vec<i16> = (0..shape.weights_len())
            .map(|i| (i * 31 % 255) as i16 - 127)
            .collect();
        let conv = PreparedConv::new(&weights, shape, 7);
        let mut scratch = ConvScratch::default();
        let mut sum = vec![0; shape.output_len()];
        let name = format!("online convolution {channels}x{side}x{side}, 3x3");
        time(&name, 21, 1.0, || {
            conv.add_to(&input, &mut scratch, &mut sum)
        });
    }
}
