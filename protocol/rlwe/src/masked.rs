//! Masked ciphertexts: the server's answers, and why they tell the client nothing but the
//! plaintext.
//!
//! # Order
//! [`mask_and_flood`] takes a packed ciphertext and, in this order: adds a fresh public-key
//! encryption of zero; adds the mask, scaled, and the flood, at every coefficient whose first half
//! is sent; switches to the modulus `2^70`; drops six low bits of the first half. No key switch
//! follows. Coefficients of the first half that are not sent are not computed either.
//!
//! # Why the second half must be re-randomised
//! Before the encryption of zero the second half is `w c1` for a `c1` that the client knows from
//! the seed, and the client divides: it reads the kernel. Afterwards it is `w c1 + a u + e1`, with
//! fresh ternary `u` and error `e1`, pseudorandom under RLWE because `a` comes from a seed that the
//! client did not choose alone. Every answer gets its own `u`.
//!
//! # Why the second half needs no flood
//! Once the phase is mask plus flood it is (statistically) independent of `u` and `e1`; then the
//! second half is an RLWE sample on its own. What the client can compute is the phase and the
//! second half, nothing else.
//!
//! # Why the first half needs one
//! The client knows `s`, hence the phase `Q (W r + mask) / p + noise`, where the noise `w e + (key
//! switching) + u e_pk + e1 s + e0` depends on the kernel. The flood hides it. Its width `F =
//! floor(Q / 4p)` is a public constant, never derived from noise or weights: the client sees flood
//! plus noise in clear, so that a width made from the norm of `W` would show that norm. Its shape,
//! a sum of four uniforms on `+-F/4`, has finite Fisher information, so that the distances of `M`
//! coefficients add in quadrature: `TV <= rms(noise) sqrt(12.463 M) / (2 F)`, averaged over the
//! client's honest errors. [`crate::noise`] has the derivation, and `pi_protocol::flooding` sums it
//! over a circuit.
//!
//! Everything after the flood is public post-processing.
//!
//! # Why it decrypts
//! In units of the answer modulus a plaintext step is `2^70 / p = 2^10`, half of it 512. The flood
//! takes 256, the dropped bits 32.5, noise below 1; rounding the second half leaves an error of
//! standard deviation `sqrt(8192 2/3 / 12) = 21.3`, so that the 223 that remain are 10.4
//! deviations, 2^-82 per coefficient.
//!
//! # Format
//! The first half at the useful coefficients, in order, eight bytes each (little-endian); then the
//! second half, 70 bits per coefficient.

use crate::bits::{BitReader, BitWriter};
use crate::pack::fold;
use crate::params::{ANSWER_BITS, ANSWER_DROPPED_BITS, CiphertextModulus, N, Params};
use crate::sample;
use crate::seeded::reduce_wide_enough;
use crate::xof::Stream;
use crate::{Error, Packed, PublicKey, SecretKey};
use pi_core::fp;
use pi_ring::dot::{Term, dot_pair};
use pi_ring::{Domain, RnsPoly, kernels, rns};
use rand_core::CryptoRng;
use zeroize::Zeroizing;

/// A masked and flooded ciphertext at the modulus of answers.
#[derive(Clone, PartialEq, Eq)]
pub struct MaskedCiphertext {
    /// The upper 64 bits of the first half at the useful coefficients.
    c0: Vec<u64>,
    /// The second half, 70 bits each.
    c1: Vec<u128>,
}

const C1_BYTES: usize = N * ANSWER_BITS as usize / 8;

impl MaskedCiphertext {
    /// The length of [`MaskedCiphertext::encode`]: `8 useful + 71,680` bytes.
    pub const fn bytes(useful: usize) -> usize {
        8 * useful + C1_BYTES
    }

    /// The bytes for the client.
    pub fn encode(&self) -> Vec<u8> {
        let mut writer = BitWriter::with_capacity(Self::bytes(self.c0.len()));
        self.c0.iter().for_each(|&x| writer.write(x, 64));
        self.c1
            .iter()
            .for_each(|&x| writer.write_wide(x, ANSWER_BITS));
        writer.finish()
    }

    /// The ciphertext of these bytes, with this many useful coefficients.
    ///
    /// # Errors
    /// If the length is not [`MaskedCiphertext::bytes`].
    /// # Panics
    /// If `useful` exceeds [`N`].
    pub fn decode(useful: usize, bytes: &[u8]) -> Result<Self, Error> {
        assert!(useful <= N, "{useful} useful coefficients");
        let mut reader = BitReader::new("answer", bytes, 8 * Self::bytes(useful))?;
        let c0 = (0..useful).map(|_| reader.read(64)).collect();
        let c1 = (0..N).map(|_| reader.read_wide(ANSWER_BITS)).collect();
        Ok(Self { c0, c1 })
    }
}

impl std::fmt::Debug for MaskedCiphertext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "MaskedCiphertext({} useful coefficients)", self.c0.len())
    }
}

/// The ciphertext with plaintext `packed + mask` at the useful coefficients, and nothing else in
/// it; see the module's documentation.
///
/// `useful` are the coefficients whose first half is sent, increasing, multiples of the gap; `mask`
/// has one fresh uniform field element for each of them. `rng` gives `u`, the errors and the flood,
/// fresh for every answer. The packed ciphertext is used up: answering an upload twice leaks.
///
/// # Cost
/// [`MaskedCiphertext::bytes`] on the wire; about 0.5 ms of one core.
/// # Panics
/// If `useful` is not increasing and below [`N`], contains a coefficient off the gap, or `mask` is
/// not as long or contains something that is no field element.
pub fn mask_and_flood(
    params: &Params,
    packed: Packed,
    public_key: &PublicKey,
    useful: &[u32],
    mask: &[u64],
    rng: &mut impl CryptoRng,
) -> MaskedCiphertext {
    let protections = Protections {
        public_key: Some(public_key),
        flood: proper_flood,
    };
    assemble(params, packed, &protections, useful, mask, rng)
}

/// The protections of a masked ciphertext, of which tests leave out some.
struct Protections<'a, F> {
    /// The key for the fresh encryption of zero.
    public_key: Option<&'a PublicKey>,
    /// Draws the flood plus four quarters.
    flood: F,
}

fn proper_flood(stream: &mut Stream, flood: &sample::Flood) -> u128 {
    flood.sample_shifted(stream)
}

/// [`mask_and_flood`] with given protections.
fn assemble(
    params: &Params,
    mut packed: Packed,
    protections: &Protections<'_, impl Fn(&mut Stream, &sample::Flood) -> u128>,
    useful: &[u32],
    mask: &[u64],
    rng: &mut impl CryptoRng,
) -> MaskedCiphertext {
    let gap = packed.gap;
    assert!(
        useful.is_sorted_by(|a, b| a < b),
        "useful coefficients increase"
    );
    assert!(
        useful
            .iter()
            .all(|&j| (j as usize) < N && (j as usize).is_multiple_of(gap)),
        "useful coefficient off the gap"
    );
    assert_eq!(mask.len(), useful.len(), "masks");
    assert!(mask.iter().all(|&m| m < fp::P), "mask is no field element");
    let stream = &mut Stream::secret(rng);
    if let Some(public_key) = protections.public_key {
        add_encryption_of_zero(params, public_key, &mut packed, stream);
    }
    match packed.modulus {
        CiphertextModulus::Conv => {
            mask_flood_switch::<3>(params, &packed, useful, mask, &protections.flood, stream)
        }
        CiphertextModulus::Ole => {
            mask_flood_switch::<4>(params, &packed, useful, mask, &protections.flood, stream)
        }
    }
}

/// The last steps of [`mask_and_flood`], over `L` primes.
fn mask_flood_switch<const L: usize>(
    params: &Params,
    packed: &Packed,
    useful: &[u32],
    mask: &[u64],
    flood: impl Fn(&mut Stream, &sample::Flood) -> u128,
    stream: &mut Stream,
) -> MaskedCiphertext {
    let moduli: [_; L] = *params.moduli.first_chunk().expect("L is at most four");
    let basis = params.basis(packed.modulus);
    let width = params.bounds(packed.modulus).flood;
    let shift = moduli.map(|m| m.reduce_u128(4 * width.quarter));
    let limbs: [_; L] = packed.c0.limb_array();
    let c0 = useful
        .iter()
        .zip(mask)
        .map(|(&j, &mask)| {
            let at = j as usize / packed.gap;
            let flood = flood(stream, &width);
            let mut x: [u64; L] = basis.encode(mask);
            for (i, m) in moduli.iter().enumerate() {
                let flood = m.sub(reduce_wide_enough::<L>(m, flood), shift[i]);
                x[i] = m.add(m.add(x[i], limbs[i][at]), flood);
            }
            // Rounded to 70 bits, then to the upper 64 of them.
            let switched = switch(basis.coarse_fraction(x));
            ((switched + (1 << (ANSWER_DROPPED_BITS - 1))) >> ANSWER_DROPPED_BITS) as u64
        })
        .collect();
    MaskedCiphertext {
        c0,
        c1: switch_all::<L>(basis, &packed.c1),
    }
}

/// All coefficients at the modulus of answers.
fn switch_all<const L: usize>(basis: &rns::Basis, c: &RnsPoly) -> Vec<u128> {
    let limbs: [_; L] = c.limb_array();
    (0..N)
        .map(|j| switch(basis.coarse_fraction(limbs.map(|limb| limb[j]))))
        .collect()
}

/// `round(2^70 f) mod 2^70` for the fraction `f / 2^128`. The fraction may be 2^48 too small, which
/// is 2^-10 of a unit.
#[inline(always)]
fn switch(f: u128) -> u128 {
    f.wrapping_add(1 << (127 - ANSWER_BITS)) >> (128 - ANSWER_BITS)
}

/// Adds `(b u + e0, a u + e1)`, the first half at the multiples of the gap only.
fn add_encryption_of_zero(
    params: &Params,
    public_key: &PublicKey,
    packed: &mut Packed,
    stream: &mut Stream,
) {
    let limbs = packed.c1.limb_count();
    let moduli = &params.moduli[..limbs];
    let small = Zeroizing::new(sample::ternary(N, stream));
    let mut u = RnsPoly::from_small(&small, moduli);
    u.forward(&params.ntts()[..limbs]);
    let mut zero = [(); 2].map(|()| RnsPoly::zero(N, limbs, Domain::Values));
    for (i, m) in moduli.iter().enumerate() {
        let halves = [public_key.scaled[0].limb(i), public_key.scaled[1].limb(i)];
        let [z0, z1] = &mut zero;
        dot_pair(
            m,
            &[Term {
                halves,
                factor: u.limb(i),
            }],
            false,
            [z0.limb_mut(i), z1.limb_mut(i)],
        );
    }
    let [z0, mut z1] = zero;
    z1.inverse_unscaled(&params.ntts()[..limbs]);
    for (half, zero) in [
        (&mut packed.c0, fold(params, &z0, packed.gap)),
        (&mut packed.c1, z1),
    ] {
        half.add_assign(&zero, moduli);
        let errors = Zeroizing::new(sample::errors(half.n(), stream));
        for (limb, m) in half.limbs_mut().zip(moduli) {
            kernels::add_small_assign(m, limb, &errors);
        }
    }
}

/// The plaintexts of an answer at its useful coefficients, in order; `useful` are the server's.
///
/// # Panics
/// If `useful` is not as long as the answer, or contains something that is not below [`N`].
pub fn decrypt(
    params: &Params,
    secret: &SecretKey,
    answer: &MaskedCiphertext,
    useful: &[u32],
) -> Zeroizing<Vec<u64>> {
    assert_eq!(useful.len(), answer.c0.len(), "useful coefficients");
    let phase = answer_phase(params, secret, answer, useful);
    Zeroizing::new(
        phase
            .iter()
            .map(|&x| rns::round_to_field(x << (128 - ANSWER_BITS)))
            .collect(),
    )
}

/// `c0 + c1 s` at the useful coefficients, modulo `2^70` in the low 70 bits.
fn answer_phase(
    params: &Params,
    secret: &SecretKey,
    answer: &MaskedCiphertext,
    useful: &[u32],
) -> Zeroizing<Vec<u128>> {
    const HALF: u128 = 1 << (ANSWER_BITS - 1);
    const MASK: u128 = (1 << ANSWER_BITS) - 1;
    // c1 is centred below 2^69; times a ternary polynomial its coefficients stay below 2^82, which
    // two primes determine.
    let moduli = &params.moduli[..2];
    let mut product = RnsPoly::zero(N, 2, Domain::Coefficients);
    for (i, m) in moduli.iter().enumerate() {
        let half = m.reduce_u128(HALF);
        for (x, &c) in product.limb_mut(i).iter_mut().zip(&answer.c1) {
            *x = m.sub(m.reduce_u88((c + HALF) & MASK), half);
        }
    }
    product.forward(&params.ntts()[..2]);
    for (i, m) in moduli.iter().enumerate() {
        kernels::mul_assign(m, product.limb_mut(i), secret.values.limb(i));
    }
    product.inverse(&params.ntts()[..2]);
    let limbs: [_; 2] = product.limb_array();
    let phase = useful
        .iter()
        .zip(&answer.c0)
        .map(|(&j, &c0)| {
            let c1_s = params.two.centred(limbs.map(|limb| limb[j as usize]));
            ((c0 as u128) << ANSWER_DROPPED_BITS).wrapping_add(c1_s as u128)
        })
        .collect();
    Zeroizing::new(phase)
}

/// Masked ciphertexts that lack a protection: for tests that show what the protection is for, and
/// for nothing else.
#[cfg(feature = "attack")]
pub mod attack {
    use super::*;

    /// [`mask_and_flood`] without the encryption of zero: the second half shows the kernel.
    pub fn mask_and_flood_without_rerandomisation(
        params: &Params,
        packed: Packed,
        useful: &[u32],
        mask: &[u64],
        rng: &mut impl CryptoRng,
    ) -> MaskedCiphertext {
        let protections = Protections {
            public_key: None,
            flood: proper_flood,
        };
        assemble(params, packed, &protections, useful, mask, rng)
    }

    /// [`mask_and_flood`] without the flood: the low part of the phase shows the noise.
    pub fn mask_without_flood(
        params: &Params,
        packed: Packed,
        public_key: &PublicKey,
        useful: &[u32],
        mask: &[u64],
        rng: &mut impl CryptoRng,
    ) -> MaskedCiphertext {
        let protections = Protections {
            public_key: Some(public_key),
            flood: |_: &mut Stream, flood: &sample::Flood| 4 * flood.quarter,
        };
        assemble(params, packed, &protections, useful, mask, rng)
    }

    /// [`mask_and_flood`] with a flood that is a sum of four uniforms of `bits` bits each, as if
    /// derived from a noise bound.
    ///
    /// # Panics
    /// If `bits` exceeds those of the real flood's quarter.
    #[allow(
        clippy::too_many_arguments,
        reason = "those of `mask_and_flood` and the width that it fixes"
    )]
    pub fn mask_and_flood_with_bits(
        params: &Params,
        packed: Packed,
        public_key: &PublicKey,
        useful: &[u32],
        mask: &[u64],
        bits: u32,
        rng: &mut impl CryptoRng,
    ) -> MaskedCiphertext {
        let short = |stream: &mut Stream, flood: &sample::Flood| {
            assert!(1 << bits <= flood.quarter, "{bits} bits of flood");
            let draw = |stream: &mut Stream| {
                let wide = (stream.word() as u128) << 64 | stream.word() as u128;
                wide & ((1 << bits) - 1)
            };
            let sum: u128 = (0..4).map(|_| draw(stream)).sum();
            4 * flood.quarter + sum - (2 << bits)
        };
        let protections = Protections {
            public_key: Some(public_key),
            flood: short,
        };
        assemble(params, packed, &protections, useful, mask, rng)
    }

    /// The phase of an answer at its useful coefficients modulo `2^70`: what the client sees beyond
    /// the plaintext.
    pub fn phase(
        params: &Params,
        secret: &SecretKey,
        answer: &MaskedCiphertext,
        useful: &[u32],
    ) -> Vec<u128> {
        answer_phase(params, secret, answer, useful)
            .iter()
            .map(|x| x % (1 << ANSWER_BITS))
            .collect()
    }

    /// The second half of an answer, 70 bits each.
    pub fn second_half(answer: &MaskedCiphertext) -> &[u128] {
        &answer.c1
    }

    /// The second half of a ciphertext, switched to the modulus of answers.
    pub fn second_half_of(params: &Params, packed: &Packed) -> Vec<u128> {
        let basis = params.basis(packed.modulus);
        match packed.modulus {
            CiphertextModulus::Conv => switch_all::<3>(basis, &packed.c1),
            CiphertextModulus::Ole => switch_all::<4>(basis, &packed.c1),
        }
    }
}
