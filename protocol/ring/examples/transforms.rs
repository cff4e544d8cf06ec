//! Prints the least time of the transforms of length 8192 over the first prime, on the back end that
//! `PI_BACKEND` chooses.
//!
//! `PI_BACKEND=avx2 cargo run --release -p pi-ring --example transforms`

use pi_core::Backend;
use pi_ring::ntt::RLWE_PRIMES;
use std::time::Instant;

fn main() {
    let ntt = RLWE_PRIMES[0].transform(8192);
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
    let name = Backend::get().name();
    println!("{name:10} forward {forward:6.1} us, inverse {inverse:6.1} us");
}
