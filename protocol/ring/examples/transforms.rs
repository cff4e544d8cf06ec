//! Prints the least time of each transform of length 8192 over the first prime.
//!
//! `cargo run --release -p pi-ring --example transforms`

use pi_ring::Ntt;
use pi_ring::ntt::{RLWE_PRIMES, ScalarNtt, TfheNtt};
use std::time::Instant;

fn main() {
    let prime = &RLWE_PRIMES[0];
    let n = 8192;
    time("scalar", &ScalarNtt::new(prime, n));
    if let Some(ntt) = TfheNtt::new(prime, n) {
        time("tfhe-ntt", &ntt);
    }
    time("chosen", &*prime.transform(n));
}

fn time(name: &str, ntt: &dyn Ntt) {
    let mut x: Vec<u64> = (0..ntt.length() as u64).collect();
    let mut least = |f: &dyn Fn(&mut [u64])| {
        (0..3000)
            .map(|_| {
                let start = Instant::now();
                f(&mut x);
                start.elapsed().as_secs_f64() * 1e6
            })
            .fold(f64::INFINITY, f64::min)
    };
    let (forward, inverse) = (
        least(&|x| ntt.forward(x)),
        least(&|x| ntt.inverse_unscaled(x)),
    );
    println!("{name:10} forward {forward:6.1} us, inverse {inverse:6.1} us");
}
