//! Noise: bounds before the fact, what it gives away behind a flood, and measurement. Nothing here
//! runs in an exchange: it is the derivation on which the parameters rest, what the figure of a
//! circuit is computed from, and what tests hold the ciphertexts to.
//!
//! All noise is in units of the ciphertext modulus, per coefficient. An upload's coefficient is
//! `Q r / p` plus an error of at most 21 plus 1/2 of rounding. The premultiplication of kernels
//! takes the factor of packing away from the noise as well. What decrypts and what hides depends on
//! the sum of these:
//! - **kernel**: `sum |w| * 21.5`, the sum over all terms of the kernel polynomial. With several
//!   output blocks these are the weights of several output channels: the polynomial multiplies
//!   errors everywhere, also where the plaintext is zero;
//! - **key switches**: one is at most `3 N 21 q/2 / q4 + N/2 + 1/2`; a level's is doubled by each
//!   later level, so that `levels` levels give `2^levels - 1` times one, and the last division 1/2;
//! - **encryption of zero**: `u e_pk + e1 s + e0`, at most `(2 N + 1) 21`.
//!
//! The mean squares are over the client's honest errors, which are independent of each other and
//! of mean zero, and over the digits of key switches, taken as uniform.
//!
//! # What noise gives away
//! The client sees, at each returned coefficient, a uniform plaintext, and noise plus flood. It may
//! know its own errors. Let `f` be the density of the flood, four uniforms on `+-F/4` summed, and
//! `d` the vector of noises of any number of coefficients, answers and bundles, which all have
//! floods of their own.
//!
//! *A known `d`* ([`distance_log2`]). A density with Fisher information `I / F^2` that is shifted
//! by `d_j` moves by a squared Hellinger distance of at most `I d_j^2 / 8 F^2`. These add up over
//! independent coefficients, and the total variation is at most `sqrt 2` times the root of the
//! sum: `TV <= sqrt(I sum d_j^2) / 2 F`, with `I = 12.463`. It is a concave function of the sum, so
//! that the mean of the sum bounds the mean of the distance, however the `d_j` depend on each
//! other.
//!
//! *A `d` of mean zero that nobody else knows* ([`ole_distance_log2`]). Then the client sees
//! `E f(x - d)`, and in Taylor's expansion of `f(x - d)` the linear term vanishes. The remainder
//! is at most `E |d' H d| / 2` in the L1 norm, `H` being the second derivatives of the product
//! density. Their diagonal gives `sum d_j^2 C / F^2` with `C = int |f''|`, the others at most
//! `sqrt 2 I sum d_j^2 / F^2`. Hence `TV <= (C + sqrt 2 I) E sum d_j^2 / 4 F^2`, with
//! `C = 32 / 3`. Where the known bound has the ratio of noise and flood, this one has its square.
//! [`crate::ole`] says why the noise of an OLE is such a `d`.

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

/// The noise of convolutions and dense layers whose weights of one kernel polynomial (all its
/// output blocks, over all groups of input channels) sum to at most `weight_sum` in magnitude and
/// to at most `square_sum` in squares, packed over `levels` levels.
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

/// The noise of an OLE: each of the factor's coefficients is a uniform field element, centred.
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

/// The Fisher information of the flood, for a support of `+-1`.
const FISHER: f64 = 12.463;

/// The integral of the magnitude of the second derivative of the flood's density, likewise.
const CURVATURE: f64 = 32.0 / 3.0;

/// The distance, as total variation, of flooded coefficients from ones without noise, log2, for the
/// mean of the sum of their squared noises; minus infinity for 0. See the module's documentation.
pub fn distance_log2(params: &Params, modulus: CiphertextModulus, squares: f64) -> f64 {
    (FISHER * squares).log2() / 2.0 - 1.0 - flood_log2(params, modulus)
}

/// The distance, as total variation, of an OLE answer from one without noise, log2.
///
/// Distances of several answers add up. The part that depends on the factor counts to the second
/// order, the encryption of zero to the first.
pub fn ole_distance_log2(params: &Params) -> f64 {
    let (n, ole) = (N as f64, CiphertextModulus::Ole);
    let squares = n * (2.0 * ole_noise().rms_log2).exp2();
    let second =
        (CURVATURE + 2f64.sqrt() * FISHER) / 4.0 * squares / (2.0 * flood_log2(params, ole)).exp2();
    let first = distance_log2(params, ole, n * zero_variance()).exp2();
    (second + first).log2()
}

/// The noise of a packed ciphertext at the useful coefficients, whose plaintexts are `expected`.
///
/// For tests and diagnosis: it takes the secret key.
pub fn measure(
    params: &Params,
    secret: &SecretKey,
    packed: &Packed,
    useful: &[u32],
    expected: &[u64],
) -> Vec<i128> {
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
    noise.collect()
}

/// The bits of the largest of measured noises.
pub fn noise_bits(noise: &[i128]) -> u32 {
    let largest = noise.iter().map(|x| x.unsigned_abs()).max();
    128 - largest.unwrap_or(0).leading_zeros()
}

/// The root mean square of measured noises, log2.
pub fn rms_log2(noise: &[i128]) -> f64 {
    let squares: f64 = noise.iter().map(|&x| (x as f64).powi(2)).sum();
    (squares / noise.len() as f64).log2() / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The density of four uniforms on `+-1/4` summed, and its first two derivatives.
    fn density(x: f64) -> [f64; 3] {
        // Of uniforms on 0..1 the density is a sum of cubes from each knot on.
        let t = 2.0 * x + 2.0;
        [1.0, -4.0, 6.0, -4.0, 1.0]
            .iter()
            .enumerate()
            .filter(|(knot, _)| t > *knot as f64)
            .fold([0.0; 3], |[f, g, h], (knot, factor)| {
                let u = t - knot as f64;
                [
                    f + factor * u.powi(3) / 3.0,
                    g + factor * 2.0 * u.powi(2),
                    h + factor * 8.0 * u,
                ]
            })
    }

    #[test]
    fn constants_of_the_flood_are_those_of_its_density() {
        let steps = 1 << 20;
        let width = 2.0 / steps as f64;
        let mut sums = [0.0; 3];
        // The left half: near the right end the alternating cubes cancel to nothing.
        for i in 0..steps / 2 {
            let [f, g, h] = density(-1.0 + (i as f64 + 0.5) * width);
            for (sum, x) in sums.iter_mut().zip([f, g * g / f, h.abs()]) {
                *sum += 2.0 * width * x;
            }
        }
        let [mass, fisher, curvature] = sums;
        assert!((mass - 1.0).abs() < 1e-6, "{mass}");
        // Rounded up.
        assert!(fisher <= FISHER && FISHER < fisher + 0.001, "{fisher}");
        assert!((curvature - CURVATURE).abs() < 1e-4, "{curvature}");
    }

    #[test]
    fn noise_of_layers_is_as_documented() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/parameters.md");
        let document = std::fs::read_to_string(file).unwrap();
        let layers = [
            ("3 -> 64 channels, 3x3, 2 levels", 27, 1, 2),
            ("64 -> 64, 3x3, 4 levels", 576, 1, 4),
            ("128 -> 128, 3x3, 6 levels", 1152, 1, 6),
            ("256 -> 256, 3x3, 6 levels", 2304, 1, 6),
            ("512 -> 512, 3x3, 8 levels", 4608, 1, 8),
            ("512 -> 512, 3x3, 4 levels, 16 output blocks", 4608, 16, 4),
        ];
        let layers = layers.into_iter().map(|(name, taps, blocks, levels)| {
            let weights = f64::from(taps * blocks);
            let noise = conv_noise(weights * 127.0, weights * 127.0 * 127.0, levels);
            (name, noise)
        });
        let rows = layers.chain([("OLE", ole_noise())]).map(|(name, noise)| {
            let (rms, worst) = (noise.rms_log2, noise.worst_log2);
            format!("| {name} | {rms:.1} | {worst:.1} |\n")
        });
        let lacking: String = rows.filter(|row| !document.contains(row)).collect();
        assert!(lacking.is_empty(), "docs/parameters.md lacks\n{lacking}");
    }

    #[test]
    fn an_ole_is_hidden_by_the_square_of_what_hides_known_noise() {
        let params = Params::standard();
        let squares = N as f64 * (2.0 * ole_noise().rms_log2).exp2();
        let known = distance_log2(&params, CiphertextModulus::Ole, squares);
        let unknown = ole_distance_log2(&params);
        assert!((-48.4..-48.2).contains(&known), "{known}");
        assert!((2.0 * known - unknown).abs() < 2.0, "{known} {unknown}");
    }
}
