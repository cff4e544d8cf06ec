//! Seeded encryption: the client's uploads, encryptions of masks that a public seed chooses.
//!
//! Both parties expand `(c0', c1)` from a public seed. The client decrypts that random pair, which
//! *defines* the mask `r`, and sends only the correction of `c0'` to an exact encryption of `r`:
//! `log2(Q / p)` bits and a sign for each coefficient. Classes are public:
//! - *free*: `r` is what the seed decrypts to; 78 bits (124 for OLE);
//! - *forced*: `r` is prescribed (0 for padding, an earlier `r` for a halo); the correction is
//!   taken modulo `Q`, 138 bits (184);
//! - *unused*: corrected like a free one, and its `r` forgotten. Never uncorrected: such a
//!   coefficient would carry a phase of full size, which no mask hides in an answer that reads it.
//!
//! Formats: the corrections in order of coefficients, without framing; a free one offset by `2^77`
//! (`2^123`), a forced one in `0..Q`.
//!
//! # Why the server learns nothing of `r`
//! Write `c0' + c1 s = round(Q r / p) + delta`, with `delta` within `Q / (2p)`. The server sees
//! `c1`, `c0'` and `correction = e - delta`. As `c0'` is uniform, `delta` is uniform on its range
//! and independent of `(r, e, s)`, up to `2^-72` for the rounding; so `(c1, c0 = c0' + correction)`
//! with the correction beside it is an ordinary RLWE encryption `(c1, round(Q r / p) + e - c1 s)`
//! of a uniform `r`, plus a number that is independent and uniform up to the width of `e`. Forced
//! coefficients are ordinary symmetric encryptions of their values. Errors come from a secret
//! generator, never from the seed: with a known `e` the correction would show `delta`, and eight
//! thousand such equations give `s`.
//!
//! A seed serves one upload: two with the same seed have the same mask, and the difference of their
//! errors is in clear.

use crate::bits::{BitReader, BitWriter};
use crate::params::{CiphertextModulus, N, Params};
use crate::sample;
use crate::xof::{Seed, Stream};
use crate::{Error, SecretKey};
use pi_core::fp;
use pi_ring::{Domain, Modulus46, RnsPoly, kernels};
use rand_core::CryptoRng;
use zeroize::Zeroizing;

/// Origin of the mask at a coefficient. Public.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum CoefficientClass {
    /// The seed chooses the mask.
    Free,
    /// The mask is prescribed.
    Forced,
    /// No answer reads the coefficient; treated as free, and the mask forgotten.
    Unused,
}

/// The classes of all coefficients of a seeded encryption.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SeededLayout {
    classes: Vec<CoefficientClass>,
    forced: usize,
}

impl SeededLayout {
    /// The layout of these classes, coefficient by coefficient.
    ///
    /// # Panics
    /// If there are not [`N`] of them.
    pub fn new(classes: Vec<CoefficientClass>) -> Self {
        assert_eq!(classes.len(), N, "classes");
        let forced = classes
            .iter()
            .filter(|c| **c == CoefficientClass::Forced)
            .count();
        Self { classes, forced }
    }

    /// The layout in which every coefficient is free.
    pub fn all_free() -> Self {
        Self {
            classes: vec![CoefficientClass::Free; N],
            forced: 0,
        }
    }

    /// The number of forced coefficients.
    pub fn forced_count(&self) -> usize {
        self.forced
    }

    /// Bytes of the upload: `ceil((free_bits (N - forced) + forced_bits forced) / 8)`.
    pub fn bytes(&self, modulus: CiphertextModulus) -> usize {
        seeded_bytes(modulus, self.forced)
    }

    fn bits(&self, modulus: CiphertextModulus) -> usize {
        seeded_bits(modulus, self.forced)
    }
}

/// Bytes of an upload with this many forced coefficients.
pub const fn seeded_bytes(modulus: CiphertextModulus, forced: usize) -> usize {
    seeded_bits(modulus, forced).div_ceil(8)
}

const fn seeded_bits(modulus: CiphertextModulus, forced: usize) -> usize {
    (N - forced) * modulus.free_bits() as usize + forced * modulus.forced_bits() as usize
}

/// Public part of a seeded encryption, known to both parties before its bytes are sent.
#[derive(Clone, Copy, Debug)]
pub struct Seeded<'a> {
    modulus: CiphertextModulus,
    seed: Seed,
    layout: &'a SeededLayout,
}

impl<'a> Seeded<'a> {
    /// Encryption at this modulus, of a mask that the seed chooses at the free coefficients of the
    /// layout. The seed is public, and must never have served before.
    pub fn new(modulus: CiphertextModulus, seed: Seed, layout: &'a SeededLayout) -> Self {
        Self {
            modulus,
            seed,
            layout,
        }
    }
}

/// The client's result of [`encrypt_seeded`].
pub struct SeededEncryption {
    /// `r`, [`N`] field elements, erased on drop.
    pub mask: Zeroizing<Vec<u64>>,
    /// The message to the server.
    pub bytes: Vec<u8>,
}

impl std::fmt::Debug for SeededEncryption {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "SeededEncryption(.., {} bytes)", self.bytes.len())
    }
}

/// The client's half: the mask that the seed chooses, and the correction that makes it an
/// encryption.
///
/// `forced` has the prescribed masks of the forced coefficients, in order of coefficients; `rng`
/// gives the errors.
///
/// # Panics
/// If `forced` has not one field element for each forced coefficient.
pub fn encrypt_seeded(
    params: &Params,
    secret: &SecretKey,
    public: &Seeded<'_>,
    forced: &[u64],
    rng: &mut impl CryptoRng,
) -> SeededEncryption {
    assert_eq!(forced.len(), public.layout.forced, "forced masks");
    assert!(
        forced.iter().all(|&r| r < fp::P),
        "forced mask is no field element"
    );
    match public.modulus {
        CiphertextModulus::Conv => encrypt_over::<3>(params, secret, public, forced, rng),
        CiphertextModulus::Ole => encrypt_over::<4>(params, secret, public, forced, rng),
    }
}

/// [`encrypt_seeded`] over `L` primes.
fn encrypt_over<const L: usize>(
    params: &Params,
    secret: &SecretKey,
    public: &Seeded<'_>,
    forced: &[u64],
    rng: &mut impl CryptoRng,
) -> SeededEncryption {
    let Seeded {
        modulus,
        ref seed,
        layout,
    } = *public;
    let moduli: [_; L] = *params.moduli.first_chunk().expect("L is at most four");
    let basis = params.basis(modulus);
    let [mut phase, mut product] = expand_seed(params, modulus, seed);
    for (i, m) in moduli.iter().enumerate() {
        kernels::mul_assign(m, product.limb_mut(i), secret.values.limb(i));
    }
    product.inverse(&params.ntts()[..L]);
    phase.add_assign(&product, &moduli);
    drop(product);

    let errors = Zeroizing::new(sample::errors(N, &mut Stream::secret(rng)));
    let mut mask = Zeroizing::new(vec![0; N]);
    let mut writer = BitWriter::with_capacity(layout.bytes(modulus));
    let free_bits = modulus.free_bits();
    let mut forced = forced.iter();
    let limbs: [_; L] = phase.limb_array();
    for (j, class) in layout.classes.iter().enumerate() {
        let is_forced = *class == CoefficientClass::Forced;
        let x = limbs.map(|limb| limb[j]);
        let r = if is_forced {
            *forced.next().expect("one for each forced coefficient")
        } else {
            basis.decode(x)
        };
        mask[j] = r;
        let mut correction: [u64; L] = basis.encode(r);
        for (i, m) in moduli.iter().enumerate() {
            correction[i] = m.sub(m.add(correction[i], m.from_small(errors[j])), x[i]);
        }
        if is_forced {
            let [low, middle, high] = basis.compose(correction);
            writer.write_wide(((middle as u128) << 64) | low as u128, 128);
            writer.write(high, modulus.forced_bits() - 128);
        } else {
            // Two primes determine 78 bits, three 124.
            let centred = match L {
                3 => basis.centred([correction[0], correction[1]]),
                _ => basis.centred([correction[0], correction[1], correction[2]]),
            };
            debug_assert!(centred.unsigned_abs() <= params.bounds(modulus).correction);
            writer.write_wide(
                centred.wrapping_add(1 << (free_bits - 1)) as u128,
                free_bits,
            );
        }
    }
    SeededEncryption {
        mask,
        bytes: writer.finish(),
    }
}

/// An encryption at the server, in values.
#[derive(Clone)]
pub struct Ciphertext {
    pub(crate) modulus: CiphertextModulus,
    pub(crate) halves: [RnsPoly; 2],
}

impl Ciphertext {
    /// The modulus.
    pub fn modulus(&self) -> CiphertextModulus {
        self.modulus
    }
}

impl std::fmt::Debug for Ciphertext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ciphertext({:?})", self.modulus)
    }
}

/// The server's half: the encryption that the seed and the client's message make.
///
/// # Errors
/// If the length is not [`SeededLayout::bytes`] or a correction is out of range.
pub fn expand_seeded(
    params: &Params,
    public: &Seeded<'_>,
    bytes: &[u8],
) -> Result<Ciphertext, Error> {
    let modulus = public.modulus;
    let [mut c0, c1] = expand_seed(params, modulus, &public.seed);
    match modulus {
        CiphertextModulus::Conv => add_corrections::<3>(params, public, bytes, &mut c0)?,
        CiphertextModulus::Ole => add_corrections::<4>(params, public, bytes, &mut c0)?,
    }
    c0.forward(&params.ntts()[..modulus.limbs()]);
    Ok(Ciphertext {
        modulus,
        halves: [c0, c1],
    })
}

/// Adds the corrections of a message to `c0`, over `L` primes.
fn add_corrections<const L: usize>(
    params: &Params,
    public: &Seeded<'_>,
    bytes: &[u8],
    c0: &mut RnsPoly,
) -> Result<(), Error> {
    let Seeded {
        modulus, layout, ..
    } = *public;
    let what = "upload";
    let mut reader = BitReader::new(what, bytes, layout.bits(modulus))?;
    let moduli: [_; L] = *params.moduli.first_chunk().expect("L is at most four");
    let basis = params.basis(modulus);
    let free_bits = modulus.free_bits();
    let offset = 1u128 << (free_bits - 1);
    let bound = params.bounds(modulus).correction;
    let offsets = moduli.map(|m| m.reduce_u128(offset));
    for (j, class) in layout.classes.iter().enumerate() {
        let correction: [u64; L] = if *class == CoefficientClass::Forced {
            let low = reader.read_wide(128);
            let x = [
                low as u64,
                (low >> 64) as u64,
                reader.read(modulus.forced_bits() - 128),
            ];
            if !basis.contains(&x) {
                return Err(Error::OutOfRange { what });
            }
            basis.reduce_wide(&x)
        } else {
            let x = reader.read_wide(free_bits);
            if x.abs_diff(offset) > bound {
                return Err(Error::OutOfRange { what });
            }
            std::array::from_fn(|i| {
                moduli[i].sub(reduce_wide_enough::<L>(&moduli[i], x), offsets[i])
            })
        };
        for (i, m) in moduli.iter().enumerate() {
            let x = &mut c0.limb_mut(i)[j];
            *x = m.add(*x, correction[i]);
        }
    }
    Ok(())
}

/// `x mod q`, for numbers of the size of corrections and floods: below 2^88 over three primes,
/// 2^126 over four.
#[inline(always)]
pub(crate) fn reduce_wide_enough<const L: usize>(m: &Modulus46, x: u128) -> u64 {
    if L == 3 {
        m.reduce_u88(x)
    } else {
        m.reduce_u128(x)
    }
}

/// `(c0', c1)` of a seed: `c0'` in coefficients, `c1` in values.
fn expand_seed(params: &Params, modulus: CiphertextModulus, seed: &Seed) -> [RnsPoly; 2] {
    let half = |label: &str, domain| {
        Stream::public(seed, &format!("upload {} {label}", modulus.name())).polynomial(
            N,
            params.moduli(modulus),
            domain,
        )
    };
    [half("c0", Domain::Coefficients), half("c1", Domain::Values)]
}
