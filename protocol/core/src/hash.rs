//! MITCCR, the re-keyed hash of labels (Guo, Katz, Wang, Weng, Yu, CRYPTO 2020, section 5).
//!
//! `H(x, t) = AES_K(s(x)) xor s(x)` with `K = nonce xor t` and `s(a || b) = (a xor b) || a`. The
//! nonce is public, 128 random bits of both parties per bundle.
//!
//! # Why re-keyed
//! With one fixed key an adversary gets `2^128 / C` for `C` gates ever garbled under it, since one
//! trial is tested against all of them: 85 bits after `2^20` bundles of a large network. Here a key
//! hashes at most the two labels `x`, `x xor delta` of one wire, so a trial concerns one wire and
//! the bound stays at 127 bits: 128 less the bit of `delta` that is fixed for the colour. The proof
//! is in the ideal-cipher model. The construction allows up to `mu` instances per key for `log2 mu`
//! bits; we take `mu = 1`.
//!
//! # Back ends
//! The definition is the `aes` crate, key by key. The vector code computes the key schedules of
//! many labels side by side: of 16 in `avx512`, of 8 or 4 over [`crate::vector`].

use rayon::prelude::*;
use zeroize::{Zeroize, Zeroizing};

use crate::Error;
use crate::block::{Block, Delta};
use crate::fp::{self, Elements};
use crate::tweak::{TweakClass, TweakRange};
use crate::vector::Code;

#[cfg(target_arch = "x86_64")]
pub mod avx512;
pub mod vector;

/// Returns `H(x)` under the key of one tweak: the definition, one label at a time.
pub fn hash(key: Block, x: Block) -> Block {
    scalar::hash(key, x)
}

/// Hashes one label per instance to a field element, instance `j` at the first counter value of its
/// own.
///
/// The full 128 bits are reduced modulo `p`, so an element is within `2^-68` of uniform.
///
/// # Errors
/// [`Error::CallerLength`] unless there are as many labels as instances.
pub fn hash_to_field(
    tweaks: &TweakRange,
    class: TweakClass,
    labels: &[Block],
) -> Result<Elements, Error> {
    tweaks.check_instances(labels.len())?;
    let mut out = Zeroizing::new(vec![0; labels.len()]);
    (labels.par_chunks(LANES).zip(out.par_chunks_mut(LANES)))
        .with_min_len(TASK / LANES)
        .enumerate()
        .for_each(|(group, (labels, out))| {
            let keys = std::array::from_fn(|lane| tweaks.key(class, group * LANES + lane, 0));
            let mut x = [Block::ZERO; LANES];
            x[..labels.len()].copy_from_slice(labels);
            hash_lanes(&keys, &mut x);
            for (out, x) in out.iter_mut().zip(&x) {
                *out = fp::reduce_u128(x.value());
            }
            x.zeroize();
        });
    Ok(out)
}

/// Hashes both labels of a wire per instance to field elements: all `H(zero)` and all `H(zero xor
/// delta)`.
///
/// # Errors
/// [`Error::CallerLength`] unless there are as many labels as instances.
pub fn hash_pairs_to_field(
    tweaks: &TweakRange,
    class: TweakClass,
    zeros: &[Block],
    delta: &Delta,
) -> Result<[Elements; 2], Error> {
    tweaks.check_instances(zeros.len())?;
    let mut of_zero = Zeroizing::new(vec![0; zeros.len()]);
    let mut of_one = Zeroizing::new(vec![0; zeros.len()]);
    let out = of_zero
        .par_chunks_mut(LANES)
        .zip(of_one.par_chunks_mut(LANES));
    (zeros.par_chunks(LANES).zip(out))
        .with_min_len(TASK / LANES)
        .enumerate()
        .for_each(|(group, (zeros, (of_zero, of_one)))| {
            let keys = std::array::from_fn(|lane| tweaks.key(class, group * LANES + lane, 0));
            let mut x = [Block::ZERO; LANES];
            x[..zeros.len()].copy_from_slice(zeros);
            let mut y = x.map(|x| x ^ delta.block());
            hash_pairs(&keys, &mut x, &mut y);
            for lane in 0..zeros.len() {
                of_zero[lane] = fp::reduce_u128(x[lane].value());
                of_one[lane] = fp::reduce_u128(y[lane].value());
            }
            x.zeroize();
            y.zeroize();
        });
    Ok([of_zero, of_one])
}

/// Instances hashed side by side.
pub const LANES: usize = 16;

/// Labels per parallel task when only hashing.
const TASK: usize = 64 * LANES;

/// Replaces `x[i]` and `y[i]` by their hashes under `keys[i]`.
#[inline]
pub fn hash_pairs(keys: &[Block; LANES], x: &mut [Block; LANES], y: &mut [Block; LANES]) {
    hash_pairs_by(Code::get(), keys, x, y);
}

/// Does the same as [`hash_pairs`], by a version that must be supported.
#[inline]
fn hash_pairs_by(
    code: Code,
    keys: &[Block; LANES],
    x: &mut [Block; LANES],
    y: &mut [Block; LANES],
) {
    match code {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a back end in use is supported, so the features of its level are present.
        Code::Avx512 => unsafe { avx512::hash_pairs(keys, x, y) },
        Code::Vector(instructions) => instructions.run(vector::Hash { keys, x: [x, y] }),
        Code::Portable => scalar::hash_pairs(keys, x, y),
    }
}

/// Replaces `x[i]` by its hash under `keys[i]`.
#[inline]
pub fn hash_lanes(keys: &[Block; LANES], x: &mut [Block; LANES]) {
    hash_lanes_by(Code::get(), keys, x);
}

/// Does the same as [`hash_lanes`], by a version that must be supported.
#[inline]
fn hash_lanes_by(code: Code, keys: &[Block; LANES], x: &mut [Block; LANES]) {
    match code {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: a back end in use is supported, so the features of its level are present.
        Code::Avx512 => unsafe { avx512::hash_lanes(keys, x) },
        Code::Vector(instructions) => instructions.run(vector::Hash { keys, x: [x] }),
        Code::Portable => scalar::hash_lanes(keys, x),
    }
}

/// The linear orthomorphism `s(a || b) = (a xor b) || a`: both `s` and `x -> s(x) xor x` are
/// permutations.
#[inline]
const fn sigma(x: Block) -> Block {
    let high = x.value() & (u64::MAX as u128) << 64;
    Block::new(x.value().rotate_left(64) ^ high)
}

mod scalar {
    use super::{Block, LANES, sigma};
    use aes::Aes128Enc;
    use aes::cipher::{Array, BlockCipherEncrypt, KeyInit};

    pub(super) fn hash(key: Block, x: Block) -> Block {
        hash_with(&Aes128Enc::new(&Array::from(key.to_bytes())), x)
    }

    pub(super) fn hash_lanes(keys: &[Block; LANES], x: &mut [Block; LANES]) {
        for (key, x) in keys.iter().zip(x) {
            *x = hash(*key, *x);
        }
    }

    pub(super) fn hash_pairs(
        keys: &[Block; LANES],
        x: &mut [Block; LANES],
        y: &mut [Block; LANES],
    ) {
        for ((key, x), y) in keys.iter().zip(x).zip(y) {
            let cipher = Aes128Enc::new(&Array::from(key.to_bytes()));
            *x = hash_with(&cipher, *x);
            *y = hash_with(&cipher, *y);
        }
    }

    fn hash_with(cipher: &Aes128Enc, x: Block) -> Block {
        let x = sigma(x);
        let mut block = Array::from(x.to_bytes());
        cipher.encrypt_block(&mut block);
        Block::from_bytes(block.into()) ^ x
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::TweakCounter;
    use rand_chacha::ChaCha20Rng;
    use rand_core::{CryptoRng, SeedableRng};

    fn blocks(rng: &mut impl CryptoRng) -> [Block; LANES] {
        std::array::from_fn(|_| Block::random(rng))
    }

    #[test]
    fn security_bits_are_as_documented() {
        // A ResNet-18 has 557,056 ReLUs, of 15 ANDs at 16 bits; each AND has two keys, each ReLU
        // two more.
        let (bundles, relus) = (20.0, 557_056f64.log2());
        let (gates, keys) = (
            bundles + relus + 15f64.log2(),
            bundles + relus + 32f64.log2(),
        );
        assert!((128.0 - gates - 85.0).abs() < 0.1, "with one fixed key");
        // Keys are random through the bundles' nonces. That any two coincide among all is this
        // likely, and costs one bit where it occurs; three do not, within 2^-120.
        assert!(2.0 * keys - 1.0 - 128.0 < -38.0);
        assert!(3.0 * keys - 6f64.log2() - 2.0 * 128.0 < -120.0);
        let delta_bits = 127.0;
        assert!(delta_bits - 1.0 >= 120.0);
        // Reduced from 128 bits.
        assert!((fp::P as f64).log2() - 128.0 <= -68.0);
    }

    #[test]
    fn hash_follows_its_definition() {
        // AES vector of FIPS 197, appendix C.1: choose x so that sigma(x) is its plaintext.
        let key = Block::new(0x0001_0203_0405_0607_0809_0a0b_0c0d_0e0f_u128.swap_bytes());
        let plain = 0x0011_2233_4455_6677_8899_aabb_ccdd_eeff_u128.swap_bytes();
        let cipher = 0x69c4_e0d8_6a7b_0430_d8cd_b780_70b4_c55a_u128.swap_bytes();
        // (a xor b) || a = plain.
        let (top, a) = (plain >> 64, plain & u64::MAX as u128);
        let x = Block::new(a << 64 | (top ^ a));
        assert_eq!(sigma(x).value(), plain);
        assert_eq!(hash(key, x).value(), cipher ^ plain);
    }

    #[test]
    #[cfg_attr(miri, ignore = "one AES in software takes it a third of a second")]
    fn every_version_equals_the_definition() {
        let mut rng = ChaCha20Rng::seed_from_u64(11);
        for code in Code::supported() {
            for _ in 0..20 {
                let (keys, x, y) = (blocks(&mut rng), blocks(&mut rng), blocks(&mut rng));
                let (mut hx, mut hy, mut h) = (x, y, x);
                hash_pairs_by(code, &keys, &mut hx, &mut hy);
                hash_lanes_by(code, &keys, &mut h);
                for i in 0..LANES {
                    assert_eq!(hx[i].value(), hash(keys[i], x[i]).value(), "{code:?} x {i}");
                    assert_eq!(hy[i].value(), hash(keys[i], y[i]).value(), "{code:?} y {i}");
                    assert_eq!(h[i].value(), hx[i].value(), "{code:?} {i}");
                }
            }
        }
    }

    /// Labels to hash. Miri has time for one group of lanes.
    const COUNTS: &[usize] = if cfg!(miri) {
        &[0, 1]
    } else {
        &[0, 1, 15, 16, 17, 1500]
    };

    #[test]
    fn field_hashes_equal_the_definition() {
        let mut rng = ChaCha20Rng::seed_from_u64(12);
        let mut counter = TweakCounter::new(Block::random(&mut rng));
        counter.take(77, 3);
        for &count in COUNTS {
            let tweaks = counter.take(count, 5);
            let delta = Delta::random(&mut rng);
            let zeros: Vec<Block> = (0..count).map(|_| Block::random(&mut rng)).collect();
            let single = hash_to_field(&tweaks, TweakClass::Output, &zeros).unwrap();
            let [zero, one] =
                hash_pairs_to_field(&tweaks, TweakClass::Output, &zeros, &delta).unwrap();
            assert_eq!(single, zero);
            for j in 0..count {
                let key = tweaks.key(TweakClass::Output, j, 0);
                assert_eq!(zero[j], fp::reduce_u128(hash(key, zeros[j]).value()));
                assert_eq!(
                    one[j],
                    fp::reduce_u128(hash(key, zeros[j] ^ delta.block()).value())
                );
            }
        }
    }

    #[test]
    fn a_range_serves_its_own_instances_only() {
        let tweaks = TweakCounter::new(Block::ZERO).take(2, 4);
        assert_eq!((tweaks.instances(), tweaks.stride()), (2, 4));
        for count in [0, 1, 3] {
            let labels = vec![Block::ZERO; count];
            assert!(
                !hash_to_field(&tweaks, TweakClass::Output, &labels)
                    .unwrap_err()
                    .blames_peer()
            );
            let delta = Delta::from_block(Block::ZERO);
            assert!(hash_pairs_to_field(&tweaks, TweakClass::Output, &labels, &delta).is_err());
        }
    }
}
