//! The transform of the `tfhe-ntt` crate, for all our primes and lengths from 32 on.
//!
//! The crate detects its instructions (AVX-512 IFMA, AVX-512, AVX2) itself, at run time.

use super::{Ntt, NttPrime};
use crate::Modulus;

/// The transform of the crate, of one length over one prime.
pub(super) struct TfheNtt {
    modulus: Modulus,
    plan: tfhe_ntt::prime64::Plan,
}

impl TfheNtt {
    /// The transform of length `n`, or `None` when the crate does not serve that length or chose
    /// other points than ours.
    pub(super) fn new(prime: &NttPrime, n: usize) -> Option<Self> {
        if n < 32 {
            return None;
        }
        let plan = tfhe_ntt::prime64::Plan::try_new(n, prime.modulus.value())?;
        // The crate finds its own root. Its first value of the polynomial X tells which; a later
        // version that chose another would silently change the wire format, so such a plan is
        // refused.
        let mut x = vec![0; n];
        x[1] = 1;
        plan.fwd(&mut x);
        (x[0] == prime.root(n)).then_some(Self {
            modulus: prime.modulus,
            plan,
        })
    }
}

impl Ntt for TfheNtt {
    fn length(&self) -> usize {
        self.plan.ntt_size()
    }

    fn modulus(&self) -> Modulus {
        self.modulus
    }

    fn forward(&self, x: &mut [u64]) {
        self.plan.fwd(x);
    }

    fn inverse_unscaled(&self, x: &mut [u64]) {
        self.plan.inv(x);
    }
}
