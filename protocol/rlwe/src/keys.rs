//! The client's keys.
//!
//! The second halves `a` of the public key and of the Galois keys come from a public seed that the
//! caller makes from both parties' nonces: it halves the keys on the wire, and re-randomisation
//! rests on an `a` that the client did not choose. The first halves `b = -a s + e + (payload)`
//! travel in value form, 46 bits per residue.
//!
//! # Key switching
//! Hybrid, three digits: digit `i` of `c1` is its residue modulo `q_i`, centred; its key encrypts
//! `q4 g_i s(X^d)` modulo `q1 q2 q3 q4`, `g_i` being 1 modulo `q_i` and 0 modulo the other two; the
//! sum is divided by `q4`.

use crate::Error;
use crate::bits::{BitReader, BitWriter};
use crate::params::{DIGITS, KEY_LIMBS, N, Params, RESIDUE_BITS};
use crate::sample;
use crate::xof::{Seed, Stream};
use pi_ring::poly::Automorphism;
use pi_ring::{Domain, RnsPoly, kernels};
use rand_core::CryptoRng;
use rayon::prelude::*;
use zeroize::{Zeroize, ZeroizeOnDrop};

/// The client's secret: a ternary polynomial. Erased on drop; prints nothing of itself.
pub struct SecretKey {
    coefficients: Vec<i64>,
    /// In values, over all four primes.
    pub(crate) values: RnsPoly,
}

impl SecretKey {
    /// A fresh key.
    pub fn generate(params: &Params, rng: &mut impl CryptoRng) -> Self {
        let coefficients = sample::ternary(N, &mut Stream::secret(rng));
        let mut values = RnsPoly::from_small(&coefficients, &params.moduli);
        values.forward(params.ntts());
        Self {
            coefficients,
            values,
        }
    }

    /// `(b, a)` with `b = e - a s`, in values, over all four primes.
    fn encrypt_zero(
        &self,
        params: &Params,
        seed: &Seed,
        label: &str,
        rng: &mut impl CryptoRng,
    ) -> [RnsPoly; 2] {
        let a = Stream::public(seed, label).polynomial(N, &params.moduli, Domain::Values);
        let errors = zeroize::Zeroizing::new(sample::errors(N, &mut Stream::secret(rng)));
        let mut b = RnsPoly::from_small(&errors, &params.moduli);
        b.forward(params.ntts());
        let mut product = a.clone();
        product.mul_assign(&self.values, &params.moduli);
        b.sub_assign(&product, &params.moduli);
        [b, a]
    }
}

impl Drop for SecretKey {
    fn drop(&mut self) {
        self.coefficients.zeroize();
    }
}

impl ZeroizeOnDrop for SecretKey {}

impl std::fmt::Debug for SecretKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("SecretKey(..)")
    }
}

/// An encryption of zero from which the server makes fresh ones. Serves both ciphertext moduli.
#[derive(Clone, PartialEq, Eq)]
pub struct PublicKey {
    /// `N^-1 b` and `N^-1 a`, in values: the factor is what inverse transforms leave out.
    pub(crate) scaled: [RnsPoly; 2],
}

impl PublicKey {
    /// The length of [`PublicKey::encode`]: 188,416 bytes.
    pub const BYTES: usize = poly_bytes();

    /// The public key of a secret key; `seed` is public, fresh, and known to both parties.
    pub fn generate(
        params: &Params,
        secret: &SecretKey,
        seed: &Seed,
        rng: &mut impl CryptoRng,
    ) -> Self {
        let halves = secret.encrypt_zero(params, seed, "public key", rng);
        Self {
            scaled: scaled(params, halves),
        }
    }

    /// The bytes for the server, which knows the seed.
    pub fn encode(&self, params: &Params) -> Vec<u8> {
        let mut writer = BitWriter::with_capacity(Self::BYTES);
        write_scaled(params, &self.scaled[0], &mut writer);
        writer.finish()
    }

    /// The key of these bytes.
    ///
    /// # Errors
    /// If the length is not [`PublicKey::BYTES`] or a residue is not below its prime.
    pub fn decode(params: &Params, seed: &Seed, bytes: &[u8]) -> Result<Self, Error> {
        let mut reader = BitReader::new("public key", bytes, Self::BYTES * 8)?;
        let b = read_poly("public key", params, &mut reader)?;
        let a = Stream::public(seed, "public key").polynomial(N, &params.moduli, Domain::Values);
        Ok(Self {
            scaled: scaled(params, [b, a]),
        })
    }
}

impl std::fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PublicKey(..)")
    }
}

/// Keys for the automorphisms `X -> X^(N / m + 1)`, `m = 1, 2, 4, .. max_gap / 2`, which
/// [`crate::pack_rows`] uses.
#[derive(Clone, PartialEq, Eq)]
pub struct GaloisKeys {
    /// Entry `k` is for `m = 2^k`.
    keys: Vec<GaloisKey>,
}

/// The key of one automorphism.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct GaloisKey {
    /// For each digit `N^-1 b` and `N^-1 a`, in values.
    pub(crate) digits: [[RnsPoly; 2]; DIGITS],
}

impl GaloisKeys {
    /// The length of [`GaloisKeys::encode`]: 565,248 bytes for each of `log2 max_gap` keys.
    ///
    /// # Panics
    /// If `max_gap` is not a power of two in `1..=8192`.
    pub fn bytes(max_gap: usize) -> usize {
        key_count(max_gap) * DIGITS * poly_bytes()
    }

    /// The keys of a secret key for packings of gaps up to `max_gap`; `seed` as for
    /// [`PublicKey::generate`], and may be the same.
    ///
    /// # Panics
    /// If `max_gap` is not a power of two in `1..=8192`.
    pub fn generate(
        params: &Params,
        secret: &SecretKey,
        seed: &Seed,
        max_gap: usize,
        rng: &mut impl CryptoRng,
    ) -> Self {
        let keys = (0..key_count(max_gap))
            .map(|k| {
                let automorphism = Automorphism::new(galois_element(1 << k), N);
                let image = zeroize::Zeroizing::new(automorphism.apply_small(&secret.coefficients));
                let mut payload = RnsPoly::from_small(&image, &params.moduli[..DIGITS]);
                payload.forward(&params.ntts()[..DIGITS]);
                let digits = std::array::from_fn(|i| {
                    let [mut b, a] = secret.encrypt_zero(params, seed, &galois_label(k, i), rng);
                    // q4 g_i s(X^d) is q4 s(X^d) modulo q_i and 0 modulo the other primes.
                    let (special, _) = params.special[i];
                    let m = &params.moduli[i];
                    for (b, &s) in b.limb_mut(i).iter_mut().zip(payload.limb(i)) {
                        *b = m.add(*b, m.mul(s, special));
                    }
                    scaled(params, [b, a])
                });
                GaloisKey { digits }
            })
            .collect();
        Self { keys }
    }

    /// The largest gap that these keys can pack.
    pub fn max_gap(&self) -> usize {
        1 << self.keys.len()
    }

    /// The bytes for the server, which knows the seed.
    pub fn encode(&self, params: &Params) -> Vec<u8> {
        let mut writer = BitWriter::with_capacity(Self::bytes(self.max_gap()));
        for [b, _] in self.keys.iter().flat_map(|key| &key.digits) {
            write_scaled(params, b, &mut writer);
        }
        writer.finish()
    }

    /// The keys of these bytes.
    ///
    /// # Errors
    /// If the length is not that of [`GaloisKeys::bytes`] or a residue is not below its prime.
    /// # Panics
    /// If `max_gap` is not a power of two in `1..=8192`.
    pub fn decode(
        params: &Params,
        seed: &Seed,
        max_gap: usize,
        bytes: &[u8],
    ) -> Result<Self, Error> {
        let what = "Galois keys";
        Error::check_length(what, Self::bytes(max_gap), bytes.len())?;
        let keys = bytes
            .par_chunks(DIGITS * poly_bytes())
            .enumerate()
            .map(|(k, bytes)| {
                let mut reader = BitReader::new(what, bytes, bytes.len() * 8)?;
                let mut digit = |i| {
                    let b = read_poly(what, params, &mut reader)?;
                    let label = galois_label(k, i);
                    let a =
                        Stream::public(seed, &label).polynomial(N, &params.moduli, Domain::Values);
                    Ok::<_, Error>(scaled(params, [b, a]))
                };
                Ok(GaloisKey {
                    digits: [digit(0)?, digit(1)?, digit(2)?],
                })
            })
            .collect::<Result<_, Error>>()?;
        Ok(Self { keys })
    }

    /// The key for `m`, a power of two below the largest gap.
    pub(crate) fn key(&self, m: usize) -> &GaloisKey {
        &self.keys[m.trailing_zeros() as usize]
    }
}

impl std::fmt::Debug for GaloisKeys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "GaloisKeys(max_gap: {})", self.max_gap())
    }
}

/// The Galois element `d = N / m + 1`: `X^d` fixes the even powers of `X^m` and negates the odd
/// ones.
pub(crate) fn galois_element(m: usize) -> usize {
    N / m + 1
}

fn galois_label(k: usize, digit: usize) -> String {
    format!("galois key {k} digit {digit}")
}

fn key_count(max_gap: usize) -> usize {
    assert!(max_gap.is_power_of_two() && max_gap <= N, "gap {max_gap}");
    max_gap.trailing_zeros() as usize
}

/// Bytes of a polynomial over all four primes.
const fn poly_bytes() -> usize {
    N * KEY_LIMBS * RESIDUE_BITS as usize / 8
}

fn scaled(params: &Params, mut halves: [RnsPoly; 2]) -> [RnsPoly; 2] {
    for half in &mut halves {
        for (i, limb) in half.limbs_mut().enumerate() {
            kernels::scale_assign(&params.moduli[i], limb, params.degree_inverse[i]);
        }
    }
    halves
}

fn write_scaled(params: &Params, scaled: &RnsPoly, writer: &mut BitWriter) {
    for (limb, m) in scaled.limbs().zip(&params.moduli) {
        let (n, n_shoup) = (N as u64, m.shoup(N as u64));
        for &x in limb {
            writer.write(m.mul_shoup(x, n, n_shoup), RESIDUE_BITS);
        }
    }
}

fn read_poly(
    what: &'static str,
    params: &Params,
    reader: &mut BitReader<'_>,
) -> Result<RnsPoly, Error> {
    let mut poly = RnsPoly::zero(N, KEY_LIMBS, Domain::Values);
    for (limb, m) in poly.limbs_mut().zip(&params.moduli) {
        for x in limb {
            *x = reader.read(RESIDUE_BITS);
            if *x >= m.value() {
                return Err(Error::OutOfRange { what });
            }
        }
    }
    Ok(poly)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng;

    #[test]
    fn keys_survive_the_wire() {
        let params = Params::standard();
        let rng = &mut ChaCha20Rng::seed_from_u64(1);
        let secret = SecretKey::generate(&params, rng);
        let seed = [3; 32];
        let public = PublicKey::generate(&params, &secret, &seed, rng);
        let bytes = public.encode(&params);
        assert_eq!((bytes.len(), PublicKey::BYTES), (188_416, 188_416));
        assert_eq!(PublicKey::decode(&params, &seed, &bytes).unwrap(), public);
        assert_ne!(
            PublicKey::decode(&params, &[4; 32], &bytes).unwrap(),
            public
        );
        let galois = GaloisKeys::generate(&params, &secret, &seed, 4, rng);
        let bytes = galois.encode(&params);
        assert_eq!(
            (bytes.len(), GaloisKeys::bytes(4)),
            (2 * 565_248, 2 * 565_248)
        );
        assert_eq!(
            GaloisKeys::decode(&params, &seed, 4, &bytes).unwrap(),
            galois
        );
        assert_eq!(GaloisKeys::bytes(1), 0);
        assert_eq!(format!("{secret:?}"), "SecretKey(..)");
    }

    #[test]
    fn malformed_keys_are_refused() {
        let params = Params::standard();
        for length in [0, 1, PublicKey::BYTES - 1, PublicKey::BYTES + 1] {
            let error = PublicKey::decode(&params, &[0; 32], &vec![0; length]).unwrap_err();
            assert_eq!(
                error,
                Error::Length {
                    what: "public key",
                    expected: PublicKey::BYTES,
                    got: length
                }
            );
        }
        let mut bytes = vec![0; PublicKey::BYTES];
        assert!(PublicKey::decode(&params, &[0; 32], &bytes).is_ok());
        // 46 one bits are not below the prime.
        bytes[PublicKey::BYTES - 6..].fill(0xff);
        let error = PublicKey::decode(&params, &[0; 32], &bytes).unwrap_err();
        assert_eq!(error, Error::OutOfRange { what: "public key" });
        let mut bytes = vec![0; GaloisKeys::bytes(2)];
        bytes[..6].fill(0xff);
        assert!(matches!(
            GaloisKeys::decode(&params, &[0; 32], 2, &bytes),
            Err(Error::OutOfRange { .. })
        ));
        assert!(matches!(
            GaloisKeys::decode(&params, &[0; 32], 4, &bytes),
            Err(Error::Length { .. })
        ));
    }
}
