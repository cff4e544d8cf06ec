//! The parameter set and everything precomputed from it.
//!
//! # The set
//! Ring degree 8192, plaintext modulus `p = 2^60 - 2^18 + 1`, ternary secret, errors CBD(21), and
//! the four largest primes below 2^46 that are 1 modulo 16384. Convolutions live modulo `q1 q2 q3`
//! with `q4` the special prime of key switching, OLEs modulo `q1 q2 q3 q4`; the largest modulus
//! that the key material shows is `q1 q2 q3 q4`, 184 bits.
//!
//! # Security estimate
//! The lattice estimator (classical MATZOV cost model, the least of uSVP and dual hybrid attacks;
//! a test computes uSVP again)
//! gives 2^151 operations at 184 bits, 2^207 at the 138 bits of a convolution's ciphertexts alone,
//! 2^138 at 200 bits and 2^126 at the 218 bits that the 2018 security tables allow; those tables
//! are therefore not the test, `log2 QP <= 214` is. Pure core-SVP at `0.292 beta` gives 121 for 184
//! bits, a reminder that a figure means nothing without its cost model. Assumed beyond RLWE:
//! circular security of the Galois keys, and the joint use of one secret in the public key, the
//! Galois keys and any number of seeded uploads.

use crate::keys::galois_element;
use crate::sample::{ERROR_BOUND, Flood};
use pi_core::fp;
use pi_ring::ntt::{RLWE_MODULI, RLWE_PRIMES};
use pi_ring::poly::Automorphism;
use pi_ring::rns::Basis;
use pi_ring::slots::SlotEncoder;
use pi_ring::{Domain, Modulus46, Ntt, RnsPoly};
use std::sync::{Arc, OnceLock};

/// The ring degree.
pub const N: usize = 8192;

/// Bits of the modulus of what travels back to the client.
pub(crate) const ANSWER_BITS: u32 = 70;

/// Low bits of the first half of an answer that are not sent.
pub(crate) const ANSWER_DROPPED_BITS: u32 = 6;

/// Bits of a residue on the wire.
pub(crate) const RESIDUE_BITS: u32 = 46;

/// Digits of a key switch: one for each prime of the convolution modulus.
pub(crate) const DIGITS: usize = 3;

/// Primes of keys.
pub(crate) const KEY_LIMBS: usize = 4;

/// The modulus of a ciphertext.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CiphertextModulus {
    /// `q1 q2 q3`, 138 bits: convolutions and dense layers. Key switching works here.
    Conv,
    /// `q1 q2 q3 q4`, 184 bits: oblivious linear evaluation, whose noise is 60 bits longer.
    Ole,
}

impl CiphertextModulus {
    /// The number of primes.
    pub const fn limbs(self) -> usize {
        match self {
            Self::Conv => 3,
            Self::Ole => 4,
        }
    }

    /// Bits of a correction of a free or unused coefficient: `log2(Q / p)` and a sign, which fits
    /// because `Q / (2 p) + 22` is below `2^77` and `2^123` (a test computes it).
    pub const fn free_bits(self) -> u32 {
        match self {
            Self::Conv => 78,
            Self::Ole => 124,
        }
    }

    /// Bits of a correction of a forced coefficient: those of the modulus.
    pub const fn forced_bits(self) -> u32 {
        match self {
            Self::Conv => 138,
            Self::Ole => 184,
        }
    }

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Conv => "conv",
            Self::Ole => "ole",
        }
    }
}

/// A parameter set with its tables; clones share them.
#[derive(Clone)]
pub struct Params(Arc<Tables>);

/// Everything that is computed once from a parameter set.
pub struct Tables {
    /// Entry `k`: the transforms of length `2^k`, one for each prime.
    ntts: Vec<[Arc<dyn Ntt>; KEY_LIMBS]>,
    pub(crate) moduli: [Modulus46; KEY_LIMBS],
    conv: Basis,
    ole: Basis,
    /// The first two primes, in which the client multiplies answers by its secret.
    pub(crate) two: Basis,
    conv_bounds: Bounds,
    ole_bounds: Bounds,
    /// `N^-1` modulo each prime.
    pub(crate) degree_inverse: [u64; KEY_LIMBS],
    /// `q4` and `q4^-1` modulo the first three primes.
    pub(crate) special: [(u64, u64); DIGITS],
    pub(crate) slots: SlotEncoder,
    /// Entry `k`: the tables for merging at `m = 2^k`, made at first use.
    merges: [OnceLock<MergeTables>; N.trailing_zeros() as usize],
}

/// Tables for merging two ciphertexts at `m`.
pub(crate) struct MergeTables {
    /// `X -> X^(N/m + 1)`.
    pub(crate) automorphism: Automorphism,
    /// `X^m` modulo the first three primes, in values.
    pub(crate) monomial: RnsPoly,
}

/// Constants of one ciphertext modulus.
pub(crate) struct Bounds {
    pub(crate) flood: Flood,
    /// The largest magnitude of a correction: `floor(Q / (2 p)) + 22`.
    pub(crate) correction: u128,
}

impl std::ops::Deref for Params {
    type Target = Tables;

    fn deref(&self) -> &Tables {
        &self.0
    }
}

impl std::fmt::Debug for Params {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(Self::NAME)
    }
}

impl Params {
    /// The name of the set.
    const NAME: &'static str = "pianissimo-rlwe-8192-4x46-p60-1";

    /// The standard parameter set; see the module's documentation. Tables are built once per
    /// process.
    pub fn standard() -> Self {
        static STANDARD: OnceLock<Params> = OnceLock::new();
        STANDARD
            .get_or_init(|| Self(Arc::new(Tables::new())))
            .clone()
    }
}

impl Tables {
    fn new() -> Self {
        let moduli = RLWE_MODULI;
        let ntts = (0..=N.trailing_zeros())
            .map(|k| RLWE_PRIMES.map(|p| p.transform(1 << k)))
            .collect();
        let [conv, ole, two] = [3, 4, 2].map(|limbs| Basis::new(&moduli[..limbs]));
        let special = moduli[3].value();
        Self {
            ntts,
            conv_bounds: Bounds::new(&conv),
            ole_bounds: Bounds::new(&ole),
            conv,
            ole,
            two,
            degree_inverse: moduli.map(|m| m.inv(N as u64)),
            special: std::array::from_fn(|i| {
                let residue = moduli[i].reduce_u64(special);
                (residue, moduli[i].inv(residue))
            }),
            slots: SlotEncoder::new(N),
            merges: [const { OnceLock::new() }; N.trailing_zeros() as usize],
            moduli,
        }
    }

    /// The transforms of the ring, one for each prime.
    pub(crate) fn ntts(&self) -> &[Arc<dyn Ntt>; KEY_LIMBS] {
        self.short_ntts(N)
    }

    /// The transforms of length `n`.
    pub(crate) fn short_ntts(&self, n: usize) -> &[Arc<dyn Ntt>; KEY_LIMBS] {
        &self.ntts[n.trailing_zeros() as usize]
    }

    /// The tables of merging at `m`, a power of two below [`N`].
    pub(crate) fn merge(&self, m: usize) -> &MergeTables {
        self.merges[m.trailing_zeros() as usize].get_or_init(|| {
            let mut monomial = RnsPoly::zero(N, DIGITS, Domain::Coefficients);
            monomial.limbs_mut().for_each(|limb| limb[m] = 1);
            monomial.forward(&self.ntts()[..DIGITS]);
            MergeTables {
                automorphism: Automorphism::new(galois_element(m), N),
                monomial,
            }
        })
    }

    /// The primes of a modulus.
    pub(crate) fn moduli(&self, modulus: CiphertextModulus) -> &[Modulus46] {
        &self.moduli[..modulus.limbs()]
    }

    /// The residue arithmetic of a modulus.
    pub(crate) fn basis(&self, modulus: CiphertextModulus) -> &Basis {
        match modulus {
            CiphertextModulus::Conv => &self.conv,
            CiphertextModulus::Ole => &self.ole,
        }
    }

    pub(crate) fn bounds(&self, modulus: CiphertextModulus) -> &Bounds {
        match modulus {
            CiphertextModulus::Conv => &self.conv_bounds,
            CiphertextModulus::Ole => &self.ole_bounds,
        }
    }
}

impl Bounds {
    fn new(basis: &Basis) -> Self {
        let q = basis.product();
        Self {
            flood: Flood::new(quotient(&q, 4 * fp::P as u128) / 4),
            correction: quotient(&q, 2 * fp::P as u128) + ERROR_BOUND as u128 + 1,
        }
    }
}

/// `floor(q / d)` for a quotient below 2^128, `d < 2^63`.
fn quotient(q: &pi_ring::rns::U192, d: u128) -> u128 {
    let (mut quotient, mut rest) = (0u128, 0u128);
    for &word in q.iter().rev() {
        let part = (rest << 64) | word as u128;
        quotient = (quotient << 64) | (part / d);
        rest = part % d;
    }
    quotient
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn key_modulus_stays_within_the_security_bound() {
        let bits: f64 = Params::standard()
            .moduli
            .iter()
            .map(|m| (m.value() as f64).log2())
            .sum();
        assert!(bits <= 214.0 && bits > 183.99 && bits < 184.0, "{bits}");
    }

    /// The block size and dimension of the uSVP attack on a secret of this ring at a modulus of
    /// `bits` bits (Alkim, Ducas, Poeppelmann, Schwabe, USENIX Security 2016, section 6.3), with
    /// the secret scaled to the size of the errors.
    fn block_size(bits: f64) -> (f64, f64) {
        use std::f64::consts::{E, PI};
        let (n, log_q) = (N as f64, bits * 2f64.ln());
        let error = (ERROR_BOUND as f64 / 2.0).sqrt();
        let scale = error / (2.0f64 / 3.0).sqrt();
        let found = (60..2000).map(f64::from).find_map(|beta| {
            let delta = (beta / (2.0 * PI * E) * (PI * beta).powf(1.0 / beta)).ln();
            let delta = delta / (2.0 * (beta - 1.0));
            let dimensions = (N + 200..4 * N).step_by(16).map(|d| d as f64);
            // The length, as a logarithm, of which the attack finds the projected error.
            let reach = |d: f64| {
                let volume = (d - n - 1.0) * log_q + n * scale.ln();
                (2.0 * beta - d - 1.0) * delta + volume / d
            };
            let best = dimensions.max_by(|&a, &b| reach(a).total_cmp(&reach(b)))?;
            (beta.ln() / 2.0 + error.ln() <= reach(best)).then_some((beta, best))
        });
        found.expect("some block size is enough")
    }

    /// The attack's cost in the classical MATZOV model of the lattice estimator, log2.
    fn cost_log2(bits: f64) -> f64 {
        use std::f64::consts::{E, PI};
        let (beta, d) = block_size(bits);
        let free = beta * (4.0f64 / 3.0).ln() / (beta / (2.0 * PI * E)).ln();
        let sieve = 0.29613500308205365 * (beta - free) + 20.387885985467914;
        sieve + (5.46f64.powi(2) * (d - beta)).log2()
    }

    #[test]
    fn estimates_are_as_documented() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/parameters.md");
        let document = std::fs::read_to_string(file).unwrap();
        let cells = [138, 184, 188, 192, 200, 218].map(|bits| {
            let cost = cost_log2(f64::from(bits));
            match bits {
                184 => format!(" **2^{cost:.0}** |"),
                _ => format!(" 2^{cost:.0} |"),
            }
        });
        let row = format!("| uSVP alone |{}\n", cells.concat());
        assert!(document.contains(&row), "docs/parameters.md lacks {row}");
        let (beta, _) = block_size(184.0);
        let core = format!("(`0.292 beta`) gives 2^{:.0} at 184 bits", 0.292 * beta);
        assert!(document.contains(&core), "docs/parameters.md lacks {core}");
        assert!(cost_log2(214.0) > 128.0);
    }

    #[test]
    fn corrections_fit_their_width() {
        let params = Params::standard();
        for modulus in [CiphertextModulus::Conv, CiphertextModulus::Ole] {
            let bound = params.bounds(modulus).correction;
            assert!(bound < 1 << (modulus.free_bits() - 1), "{modulus:?}");
            assert!(
                bound > 1 << (modulus.free_bits() - 2),
                "{modulus:?}: a bit would be wasted"
            );
            // The errors' share of the range, by which a correction is not uniform.
            let share = 2.0 * (ERROR_BOUND as f64 + 1.0) / (2.0 * bound as f64);
            assert!(share < 2f64.powi(-72), "{modulus:?}: {share}");
            // The product of the primes has three words, and so many bits.
            let [_, _, high] = params.basis(modulus).product();
            assert_eq!(192 - high.leading_zeros(), modulus.forced_bits());
        }
    }

    #[test]
    fn flood_is_a_quarter_of_the_step_of_the_plaintext() {
        let params = Params::standard();
        // floor(floor(Q / 4p) / 4), computed apart.
        let conv = params.bounds(CiphertextModulus::Conv).flood.quarter;
        let ole = params.bounds(CiphertextModulus::Ole).flood.quarter;
        assert_eq!(conv, CONV_QUARTER);
        assert_eq!(ole, OLE_QUARTER);
        assert!(((4 * conv) as f64).log2() > 75.999 && ((4 * ole) as f64).log2() > 121.999);
    }

    const CONV_QUARTER: u128 = 18889465452096615425925;
    const OLE_QUARTER: u128 = 1329227946886662777329741771701652720;
}
