//! Noise: bounds before the fact, and measurement. Nothing here runs in the protocol: it is the
//! derivation on which the parameters rest, and what tests hold the ciphertexts to.
//!
//! All figures are in units of the ciphertext modulus, per coefficient. An upload's coefficient is
//! `Q r / p` plus an error of at most 21 plus 1/2 of rounding. The premultiplication of kernels
//! takes the factor of packing away from the noise as well. What decrypts and what hides depends on
//! the sum of these:
//! - **kernel**: `sum |w| * 21.5`, the sum over all inputs of an output;
//! - **key switches**: one is at most `3 N 21 q/2 / q4 + N/2 + 1/2`; a level's is doubled by each
//!   later level, so that `levels` levels give `2^levels - 1` times one, and the last division 1/2;
//! - **encryption of zero**: `u e_pk + e1 s + e0`, at most `(2 N + 1) 21`.
//!
//! The rms figures take errors and digits as independent.

use crate::params::{CiphertextModulus, N, Params};
use crate::sample::ERROR_BOUND;
use crate::{Packed, SecretKey};
use pi_core::fp;
use pi_ring::{RnsPoly, kernels};

/// A bound on the noise of answers of one kind, and its expected size.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NoiseBound {
    /// No coefficient is noisier, log2.
    pub worst_log2: f64,
    /// Root mean square, log2.
    pub rms_log2: f64,
}

const ERROR_VARIANCE: f64 = ERROR_BOUND as f64 / 2.0;

/// The noise of convolutions and dense layers whose weights of one output sum to at most
/// `weight_sum` in magnitude and to at most `square_sum` in squares, packed over `levels` levels.
pub fn conv_noise(weight_sum: f64, square_sum: f64, levels: u32) -> NoiseBound {
    let (n, e) = (N as f64, ERROR_BOUND as f64);
    let levels = levels as i32;
    let key_switch = 3.0 * n * e / 2.0 * (1.0 + 2f64.powi(-24)) + n / 2.0 + 0.5;
    let worst =
        weight_sum * (e + 0.5) + (2f64.powi(levels) - 1.0) * key_switch + 0.5 + zero_worst();
    // Digits are uniform, variance q^2 / 12; the secret has variance 2/3. Level by level the noise
    // doubles.
    let key_switch = 3.0 * n * ERROR_VARIANCE / 12.0 + (1.0 + n * 2.0 / 3.0) / 12.0;
    let rms = square_sum * (ERROR_VARIANCE + 1.0 / 12.0)
        + (4f64.powi(levels) - 1.0) / 3.0 * key_switch
        + zero_variance();
    NoiseBound {
        worst_log2: worst.log2(),
        rms_log2: rms.log2() / 2.0,
    }
}

/// The noise of an OLE: the factor's coefficients are any field elements, centred.
pub fn ole_noise() -> NoiseBound {
    let (n, e, half) = (N as f64, ERROR_BOUND as f64, fp::P as f64 / 2.0);
    let worst = n * half * (e + 0.5) + zero_worst();
    let rms = n * half * half / 3.0 * (ERROR_VARIANCE + 1.0 / 12.0) + zero_variance();
    NoiseBound {
        worst_log2: worst.log2(),
        rms_log2: rms.log2() / 2.0,
    }
}

fn zero_worst() -> f64 {
    (2 * N as u64 + 1) as f64 * ERROR_BOUND as f64
}

fn zero_variance() -> f64 {
    (2.0 * N as f64 * 2.0 / 3.0 + 1.0) * ERROR_VARIANCE
}

/// Half a step of the plaintext less the flood, log2: noise below this decrypts exactly. `Q / 2p -
/// Q / 4p`.
pub fn budget_log2(params: &Params, modulus: CiphertextModulus) -> f64 {
    flood_log2(params, modulus)
}

/// The support of the flood, log2.
pub fn flood_log2(params: &Params, modulus: CiphertextModulus) -> f64 {
    (4.0 * params.bounds(modulus).flood.quarter as f64).log2()
}

/// The statistical distance of `coefficients` flooded coefficients from ones without noise, log2,
/// averaged over honest errors.
///
/// For a shift of size `e` a density with Fisher information `I / F^2` moves by a squared Hellinger
/// distance of `e^2 I / 8 F^2`; these add up over coefficients, and the total variation is at most
/// `sqrt 2` times the root. `I = 12.46` for four uniforms on `+-1/4` summed.
pub fn distance_log2(
    params: &Params,
    modulus: CiphertextModulus,
    noise: &NoiseBound,
    coefficients: f64,
) -> f64 {
    const FISHER: f64 = 12.46;
    noise.rms_log2 + (FISHER * coefficients).log2() / 2.0 - 1.0 - flood_log2(params, modulus)
}

/// The bits of the largest noise of a packed ciphertext at the useful coefficients, whose
/// plaintexts are `expected`.
///
/// For tests and diagnosis: it takes the secret key.
pub fn noise_bits(
    params: &Params,
    secret: &SecretKey,
    packed: &Packed,
    useful: &[u32],
    expected: &[u64],
) -> u32 {
    let limbs = packed.modulus.limbs();
    let moduli = params.moduli(packed.modulus);
    let basis = params.basis(packed.modulus);
    let mut phase: RnsPoly = packed.c1.clone();
    phase.forward(&params.ntts()[..limbs]);
    for (i, m) in moduli.iter().enumerate() {
        kernels::mul_assign(m, phase.limb_mut(i), secret.values.limb(i));
    }
    phase.inverse(&params.ntts()[..limbs]);
    let noise = useful.iter().zip(expected).map(|(&j, &expected)| {
        let j = j as usize;
        let exact = match packed.modulus {
            CiphertextModulus::Conv => {
                let [a, b, c] = basis.encode(expected);
                [a, b, c, 0]
            }
            CiphertextModulus::Ole => basis.encode(expected),
        };
        // Three residues; noise beyond 125 bits reads as some number of about that size.
        basis.centred::<3>(std::array::from_fn(|i| {
            let m = &moduli[i];
            m.sub(
                m.add(phase.limb(i)[j], packed.c0.limb(i)[j / packed.gap]),
                exact[i],
            )
        }))
    });
    128 - noise
        .map(i128::unsigned_abs)
        .max()
        .unwrap_or(0)
        .leading_zeros()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The rows of the table in [`crate::masked`].
    #[test]
    fn distances_are_those_of_the_documented_table() {
        let params = Params::standard();
        let conv = CiphertextModulus::Conv;
        for (rms_log2, coefficients_log2, distance) in [
            (11.1, 21, -53.6),
            (13.3, 21, -51.4),
            (13.8, 21, -50.9),
            (14.3, 21, -50.4),
            (15.1, 21, -49.6),
            (15.5, 21, -49.2),
        ] {
            let noise = NoiseBound {
                worst_log2: f64::INFINITY,
                rms_log2,
            };
            let found = distance_log2(&params, conv, &noise, 2f64.powi(coefficients_log2));
            // Both are rounded to one decimal.
            assert!((found - distance).abs() < 0.1, "{found} {distance}");
        }
    }
}
