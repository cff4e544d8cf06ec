//! Operations on single ciphertexts, and OLEs.

use super::Criterion;
use super::fixtures::{Client, all_coefficients, galois_keys};
use criterion::{BatchSize, Throughput};
use pi_core::fp;
use pi_rlwe::{
    Ciphertext, CiphertextModulus, N, OLE_SLOTS, Packed, PlainPoly, Product, decrypt, ole_receive,
    ole_respond, pack_rows,
};
use rand_chacha::ChaCha20Rng;
use rand_core::SeedableRng;
use std::cell::LazyCell;

pub(crate) fn measure(criterion: &mut Criterion) {
    let client = Client::new();
    uploads(criterion, &client);
    products(criterion, &client);
    packing(criterion, &client);
    answers(criterion, &client);
    oles(criterion, &client);
}

/// An upload as the server has it.
fn expanded(client: &Client, modulus: CiphertextModulus) -> Ciphertext {
    let sent = client.upload(modulus, &mut ChaCha20Rng::seed_from_u64(3));
    client.expand(modulus, &sent)
}

/// Terms of a kernel, as exponents and weights.
fn terms(count: usize) -> Vec<(usize, i64)> {
    (0..count)
        .map(|i| (i * 57 % (2 * N), i as i64 % 255 - 127))
        .collect()
}

fn uploads(criterion: &mut Criterion, client: &Client) {
    let mut group = criterion.benchmark_group("ciphertext");
    let modulus = CiphertextModulus::Conv;
    let rng = &mut ChaCha20Rng::seed_from_u64(2);
    group.bench_function("upload", |b| b.iter(|| client.upload(modulus, rng)));
    let sent = LazyCell::new(|| client.upload(modulus, &mut ChaCha20Rng::seed_from_u64(3)));
    group.bench_function("expand upload", |b| {
        b.iter(|| client.expand(modulus, &sent));
    });
    group.finish();
}

fn products(criterion: &mut Criterion, client: &Client) {
    let mut group = criterion.benchmark_group("ciphertext");
    let (params, modulus) = (&client.params, CiphertextModulus::Conv);
    for count in [144, 576, 2304] {
        let terms = terms(count);
        group.bench_function(format!("kernel of {count} terms"), |b| {
            b.iter(|| PlainPoly::new(params, modulus, 6, terms.iter().copied()));
        });
    }
    let inputs = LazyCell::new(|| vec![expanded(client, modulus); 16]);
    let kernel = LazyCell::new(|| PlainPoly::new(params, modulus, 6, terms(576)));
    group.bench_function("multiply alone", |b| {
        b.iter(|| Product::new(params, &[(&inputs[0], &*kernel)]));
    });
    group.bench_function("clone of a product", |b| {
        let product = Product::new(params, &[(&inputs[0], &*kernel)]);
        b.iter(|| product.clone());
    });
    group.throughput(Throughput::Elements(16));
    group.bench_function("multiply-accumulate 16 pairs", |b| {
        let pairs: Vec<_> = inputs.iter().map(|x| (x, &*kernel)).collect();
        b.iter(|| Product::new(params, &pairs));
    });
    group.finish();
}

fn packing(criterion: &mut Criterion, client: &Client) {
    let mut group = criterion.benchmark_group("ciphertext");
    let (params, modulus) = (&client.params, CiphertextModulus::Conv);
    let input = LazyCell::new(|| expanded(client, modulus));
    let keys = LazyCell::new(|| galois_keys(client, 256));
    for gap in [4usize, 16, 64, 256] {
        // Cloning the products is part of the time; "clone of a product" says how much.
        group.throughput(Throughput::Elements(gap as u64 - 1));
        let name = format!("pack {gap} products ({} key switches)", gap - 1);
        group.bench_function(name, |b| {
            let levels = gap.ilog2();
            let kernel = PlainPoly::new(params, modulus, levels, terms(576));
            let product = Product::new(params, &[(&input, &kernel)]);
            let products = |places: &[usize]| vec![vec![product.clone()]; places.len()];
            b.iter(|| pack_rows(params, &keys, gap, levels, 1, products));
        });
    }
    group.finish();
}

fn answers(criterion: &mut Criterion, client: &Client) {
    let mut group = criterion.benchmark_group("ciphertext");
    let (params, modulus) = (&client.params, CiphertextModulus::Conv);
    let product = LazyCell::new(|| {
        let kernel = PlainPoly::new(params, modulus, 0, terms(576));
        Product::new(params, &[(&expanded(client, modulus), &kernel)])
    });
    let packed = || Packed::single(params, 1, product.clone());
    let rng = &mut ChaCha20Rng::seed_from_u64(4);
    let mask = fp::uniform_vec(N, rng);
    group.bench_function("single product to coefficients", |b| {
        b.iter_batched(
            || product.clone(),
            |product| Packed::single(params, 1, product),
            BatchSize::SmallInput,
        );
    });
    group.bench_function("finish, all coefficients", |b| {
        let finish = |packed| client.finish(packed, &mask, rng);
        b.iter_batched(packed, finish, BatchSize::SmallInput);
    });
    let answer = LazyCell::new(|| {
        let rng = &mut ChaCha20Rng::seed_from_u64(5);
        client.finish(packed(), &mask, rng)
    });
    group.bench_function("encode answer", |b| b.iter(|| answer.encode()));
    let useful = all_coefficients();
    group.bench_function("decrypt, all coefficients", |b| {
        b.iter(|| decrypt(params, &client.secret, &answer, &useful));
    });
    group.finish();
}

fn oles(criterion: &mut Criterion, client: &Client) {
    let mut group = criterion.benchmark_group("OLE of 8191 elements");
    group.throughput(Throughput::Elements(OLE_SLOTS as u64));
    let (params, modulus) = (&client.params, CiphertextModulus::Ole);
    let rng = &mut ChaCha20Rng::seed_from_u64(6);
    let [y, v] = [(); 2].map(|()| fp::uniform_vec(OLE_SLOTS, rng));
    let sent = LazyCell::new(|| client.upload(modulus, &mut ChaCha20Rng::seed_from_u64(3)));
    let input = LazyCell::new(|| client.expand(modulus, &sent));
    group.bench_function("upload", |b| b.iter(|| client.upload(modulus, rng)));
    group.bench_function("expand upload", |b| {
        b.iter(|| client.expand(modulus, &sent));
    });
    group.bench_function("respond", |b| {
        b.iter(|| ole_respond(params, &input, &y, &v, &client.public, rng));
    });
    group.bench_function("receive", |b| {
        let answer = ole_respond(params, &input, &y, &v, &client.public, rng);
        b.iter(|| ole_receive(params, &client.secret, &answer));
    });
    group.finish();
}
