//! The transform for primes just below 2^46 on AVX-512 IFMA, faster than a general one because it
//! reduces rarely.
//!
//! Multiplication by constants is Shoup's with 52-bit words and leaves results below `2q`. Forward,
//! a butterfly `a + w b`, `a - w b + 2q` adds at most `2q` to the size of `a`: after thirteen
//! layers values stay below `27q < 2^51`, so nothing is reduced until the end. Inverse, sums
//! double, so each pass of two layers brings its sums back below `2q`. Layers that pair
//! coefficients eight or more apart go two to a pass over memory; the three others share one pass,
//! on blocks of 64 coefficients that are transposed for it. Once blocks fit the first-level cache,
//! all layers of a block are done before the next one.
//!
//! A word holds its value modulo 2^52, and its upper twelve bits are arbitrary: the multiplier
//! reads 52 bits only, and additions carry only upwards. The upper bits are cleared where a value
//! is reduced. All bounds are bounds on the values.

use super::{Ntt, NttPrime, reverse_bits};
use crate::{Modulus, Modulus46, kernels};
use std::arch::x86_64::*;

/// Twiddle factors and their companions `floor(2^52 w / q)`.
struct Twiddles {
    /// Entry `i`: the root to the power `rev(i)`.
    factors: Vec<(u64, u64)>,
    /// For each block of 64 coefficients the factors of the three short layers, one lane for each
    /// eight coefficients: one vector for pairs four apart, two for two apart, four for one apart;
    /// factors and companions by turns.
    short: Vec<[[u64; 8]; 14]>,
}

impl Twiddles {
    fn new(m: Modulus46, root: u64, n: usize) -> Self {
        let mut factors = vec![(0, 0); n];
        let mut power = 1;
        for k in 0..n {
            factors[reverse_bits(k, n)] =
                (power, (((power as u128) << 52) / m.value() as u128) as u64);
            power = m.mul(power, root);
        }
        let short = (0..n / 64).map(|block| {
            let factor = |vector: usize, lane: usize| {
                let at = 8 * block + lane;
                factors[match vector {
                    0 => n / 8 + at,
                    1 | 2 => n / 4 + 2 * at + vector - 1,
                    _ => n / 2 + 4 * at + vector - 3,
                }]
            };
            std::array::from_fn(|i| {
                std::array::from_fn(|lane| {
                    let (factor, companion) = factor(i / 2, lane);
                    if i % 2 == 0 { factor } else { companion }
                })
            })
        });
        let short = short.collect();
        Self { factors, short }
    }
}

/// The transform of one length over one prime; exists only where the instructions do.
pub(super) struct IfmaNtt {
    modulus: Modulus46,
    n: usize,
    forward: Twiddles,
    inverse: Twiddles,
}

impl IfmaNtt {
    /// The transform of length `n`, or `None` if the prime is not within 2^20 below 2^46 or the
    /// length is below 64.
    ///
    /// # Safety
    /// AVX-512F and IFMA are present.
    pub(super) unsafe fn new(prime: &NttPrime, n: usize) -> Option<Self> {
        let m = Modulus46::new(prime.modulus.value())?;
        (n >= 64).then(|| {
            let root = prime.root(n);
            Self {
                modulus: m,
                n,
                forward: Twiddles::new(m, root, n),
                inverse: Twiddles::new(m, m.inv(root), n),
            }
        })
    }
}

impl Ntt for IfmaNtt {
    fn length(&self) -> usize {
        self.n
    }

    fn modulus(&self) -> Modulus {
        self.modulus.modulus()
    }

    fn forward(&self, x: &mut [u64]) {
        assert_eq!(x.len(), self.n);
        // SAFETY: whoever made this value promised the instructions, and the length was just
        // checked.
        unsafe { forward(&self.modulus, &self.forward, None, x) }
    }

    fn forward_reciprocal(&self, coefficients: &[u64], out: &mut [u64]) {
        let support = coefficients.len();
        assert!(support.is_power_of_two() && support <= self.n && out.len() == self.n);
        // The points of the inverse transform are the inverses of ours. SAFETY: as for the forward
        // transform; the support is a power of two below 64, or from 64 to the length.
        unsafe {
            match support {
                ..64 => forward_few(&self.modulus, &self.inverse, coefficients, out),
                _ => forward(&self.modulus, &self.inverse, Some(coefficients), out),
            }
        }
    }

    fn inverse_unscaled(&self, x: &mut [u64]) {
        assert_eq!(x.len(), self.n);
        // SAFETY: as for the forward transform.
        unsafe { inverse(&self.modulus, &self.inverse, x) }
    }

    fn inverse(&self, x: &mut [u64]) {
        self.inverse_unscaled(x);
        let m = &self.modulus;
        kernels::scale_assign(m, x, m.inv(self.n as u64));
    }
}

/// The constants of a prime, in all lanes.
#[derive(Clone, Copy)]
struct Lanes {
    q: __m512i,
    two_q: __m512i,
    four_q: __m512i,
    /// `2^52 - q`.
    negated_q: __m512i,
    low_46: __m512i,
    /// `2^46 - q`, which is 2^46 modulo q.
    fold: __m512i,
}

impl Lanes {
    #[target_feature(enable = "avx512f,avx512ifma")]
    fn new(m: &Modulus46) -> Self {
        let q = m.value() as i64;
        Self {
            q: _mm512_set1_epi64(q),
            two_q: _mm512_set1_epi64(2 * q),
            four_q: _mm512_set1_epi64(4 * q),
            negated_q: _mm512_set1_epi64((1 << 52) - q),
            low_46: _mm512_set1_epi64((1 << 46) - 1),
            fold: _mm512_set1_epi64((1 << 46) - q),
        }
    }

    /// `a + x w` with `x w` below `2q`, for `x < 2^52`, modulo 2^52.
    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma")]
    fn mul_add(&self, a: __m512i, x: __m512i, (w, companion): (__m512i, __m512i)) -> __m512i {
        let quotient = _mm512_madd52hi_epu64(_mm512_setzero_si512(), x, companion);
        let product = _mm512_madd52lo_epu64(a, x, w);
        _mm512_madd52lo_epu64(product, quotient, self.negated_q)
    }

    /// `x` below `2q` and without bits above, for `x` modulo 2^52.
    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma")]
    fn reduce(&self, x: __m512i) -> __m512i {
        // The upper part is below 2^6, its product with 2^46 - q < 2^20 below 2^26.
        _mm512_madd52lo_epu64(
            _mm512_and_si512(x, self.low_46),
            _mm512_srli_epi64::<58>(_mm512_slli_epi64::<12>(x)),
            self.fold,
        )
    }

    /// `x` without the bits above its 52.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn clear(&self, x: __m512i) -> __m512i {
        _mm512_and_si512(x, _mm512_set1_epi64((1 << 52) - 1))
    }

    /// `x` below `q`, for `x < 2q` without bits above.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn finish(&self, x: __m512i) -> __m512i {
        _mm512_min_epu64(x, _mm512_sub_epi64(x, self.q))
    }

    /// `(a + w b, a - w b + 2q)`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma")]
    fn forward(&self, a: &mut __m512i, b: &mut __m512i, w: (__m512i, __m512i)) {
        let sum = self.mul_add(*a, *b, w);
        // a - w b + 2q = 2 (a + q) - (a + w b).
        *b = _mm512_sub_epi64(_mm512_add_epi64(_mm512_add_epi64(*a, *a), self.two_q), sum);
        *a = sum;
    }

    /// `(a + b, w (a - b))`, the second below `2q`, for both below `4q`.
    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma")]
    fn inverse(&self, a: &mut __m512i, b: &mut __m512i, w: (__m512i, __m512i)) {
        let difference = _mm512_add_epi64(*a, _mm512_sub_epi64(self.four_q, *b));
        *a = _mm512_add_epi64(*a, *b);
        *b = self.mul_add(_mm512_setzero_si512(), difference, w);
    }
}

/// A factor and its companion in all lanes.
#[inline]
#[target_feature(enable = "avx512f")]
fn splat((w, companion): (u64, u64)) -> (__m512i, __m512i) {
    (
        _mm512_set1_epi64(w as i64),
        _mm512_set1_epi64(companion as i64),
    )
}

/// The eight words at `x`.
///
/// # Safety
/// AVX-512F is present and eight words are readable at `x`.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load(x: *const u64) -> __m512i {
    // SAFETY: the caller's promise.
    unsafe { _mm512_loadu_si512(x.cast()) }
}

/// Writes eight words to `x`.
///
/// # Safety
/// AVX-512F is present and eight words are writable at `x`.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn store(x: *mut u64, v: __m512i) {
    // SAFETY: the caller's promise.
    unsafe { _mm512_storeu_si512(x.cast(), v) }
}

/// Coefficients of a block that stays in the first-level cache.
const CACHED: usize = 2048;

/// The values of `x`, or of `source`, which has the first coefficients of a polynomial whose others
/// are zero.
///
/// # Safety
/// AVX-512F and IFMA are present; `x` has the length of the twiddles, at least 64, and `source` a
/// power of two from 64 to that.
#[target_feature(enable = "avx512f,avx512ifma")]
unsafe fn forward(m: &Modulus46, twiddles: &Twiddles, source: Option<&[u64]>, x: &mut [u64]) {
    let lanes = Lanes::new(m);
    // Layers whose upper halves are zero copy: after them, each block is what the source is.
    let mut length = source.map_or(x.len(), <[u64]>::len);
    let copies = x.len() / length;
    if length > CACHED {
        if let Some(source) = source {
            for block in x.chunks_exact_mut(length) {
                block.copy_from_slice(source);
            }
        }
        // Down to blocks that fit, two layers at a time; an odd one goes first.
        let mut groups = copies;
        while length > CACHED {
            // SAFETY: the blocks have the length of a power of two, more than 64.
            unsafe {
                if (length / CACHED).trailing_zeros() % 2 == 1 {
                    forward_layer(&lanes, twiddles, groups, length, x);
                    (length, groups) = (length / 2, groups * 2);
                } else {
                    forward_two_layers(&lanes, twiddles, groups, length, x);
                    (length, groups) = (length / 4, groups * 4);
                }
            }
        }
    }
    let first = x.len() / length;
    for (index, block) in x.chunks_exact_mut(length).enumerate() {
        if let Some(source) = source
            && source.len() == length
        {
            block.copy_from_slice(source);
        }
        let (mut half_block, mut groups) = (length, first + index);
        // SAFETY: blocks have the length of a power of two, at least 64, and are whole blocks of
        // the short layers.
        unsafe {
            if (length.trailing_zeros() - 3) % 2 == 1 {
                forward_layer(&lanes, twiddles, groups, half_block, block);
                (half_block, groups) = (half_block / 2, groups * 2);
            }
            while half_block >= 32 {
                forward_two_layers(&lanes, twiddles, groups, half_block, block);
                (half_block, groups) = (half_block / 4, groups * 4);
            }
            debug_assert_eq!(half_block, 8);
            forward_short(&lanes, &twiddles.short[index * (length / 64)..], block);
        }
    }
}

/// The values of a polynomial of fewer than 64 coefficients, a power of two: the layers that work
/// on blocks of so many, at least the three short ones. One coefficient is every value.
///
/// # Safety
/// AVX-512F and IFMA are present; `x` has the length of the twiddles, at least 64.
#[target_feature(enable = "avx512f,avx512ifma")]
unsafe fn forward_few(m: &Modulus46, twiddles: &Twiddles, source: &[u64], x: &mut [u64]) {
    if let [constant] = source {
        return x.fill(*constant);
    }
    let lanes = Lanes::new(m);
    let length = source.len().max(8);
    let mut copies = [0; 64];
    for copy in copies.chunks_exact_mut(length) {
        copy[..source.len()].copy_from_slice(source);
    }
    let blocks = x.len() / 64;
    for (index, block) in x.chunks_exact_mut(64).enumerate() {
        block.copy_from_slice(&copies);
        let first = (blocks + index) * (64 / length);
        // SAFETY: the block has 64 words, 64 / length whole ones of 16 or 32.
        unsafe {
            match length {
                16 => forward_layer(&lanes, twiddles, first, length, block),
                32 => forward_two_layers(&lanes, twiddles, first, length, block),
                _ => {}
            }
            forward_short(&lanes, &twiddles.short[index..], block);
        }
    }
}

/// One layer of blocks of `length`, whose factors start at `first`.
///
/// # Safety
/// AVX-512F and IFMA are present; `length` is a multiple of 16.
#[inline]
#[target_feature(enable = "avx512f,avx512ifma")]
unsafe fn forward_layer(
    lanes: &Lanes,
    twiddles: &Twiddles,
    first: usize,
    length: usize,
    x: &mut [u64],
) {
    for (group, block) in x.chunks_exact_mut(length).enumerate() {
        let w = splat(twiddles.factors[first + group]);
        let (low, high) = block.split_at_mut(length / 2);
        for (a, b) in low.chunks_exact_mut(8).zip(high.chunks_exact_mut(8)) {
            // SAFETY: chunks have eight words.
            unsafe {
                let (mut u, mut v) = (load(a.as_ptr()), load(b.as_ptr()));
                lanes.forward(&mut u, &mut v, w);
                store(a.as_mut_ptr(), u);
                store(b.as_mut_ptr(), v);
            }
        }
    }
}

/// Two layers of blocks of `length`, the first's factors starting at `first`.
///
/// # Safety
/// AVX-512F and IFMA are present; `length` is a multiple of 32.
#[inline]
#[target_feature(enable = "avx512f,avx512ifma")]
unsafe fn forward_two_layers(
    lanes: &Lanes,
    twiddles: &Twiddles,
    first: usize,
    length: usize,
    x: &mut [u64],
) {
    let quarter = length / 4;
    for (group, block) in x.chunks_exact_mut(length).enumerate() {
        let w = splat(twiddles.factors[first + group]);
        let low = splat(twiddles.factors[2 * (first + group)]);
        let high = splat(twiddles.factors[2 * (first + group) + 1]);
        let at = block.as_mut_ptr();
        for j in (0..quarter).step_by(8) {
            // SAFETY: j + 8 <= quarter, and the block has four quarters.
            unsafe {
                let p = [
                    at.add(j),
                    at.add(j + quarter),
                    at.add(j + 2 * quarter),
                    at.add(j + 3 * quarter),
                ];
                let mut a = [load(p[0]), load(p[1]), load(p[2]), load(p[3])];
                let [a0, a1, a2, a3] = &mut a;
                lanes.forward(a0, a2, w);
                lanes.forward(a1, a3, w);
                lanes.forward(a0, a1, low);
                lanes.forward(a2, a3, high);
                for (p, a) in p.into_iter().zip(a) {
                    store(p, a);
                }
            }
        }
    }
}

/// The last three layers of blocks of 64.
///
/// # Safety
/// AVX-512F and IFMA are present.
#[inline]
#[target_feature(enable = "avx512f,avx512ifma")]
unsafe fn forward_short(lanes: &Lanes, short: &[[[u64; 8]; 14]], x: &mut [u64]) {
    for (block, vectors) in x.chunks_exact_mut(64).zip(short) {
        // SAFETY: the block has 64 words, and each vector of twiddles eight.
        unsafe {
            let mut a: [__m512i; 8] = std::array::from_fn(|i| load(block.as_ptr().add(8 * i)));
            let w: [_; 7] = std::array::from_fn(|i| {
                (
                    load(vectors[2 * i].as_ptr()),
                    load(vectors[2 * i + 1].as_ptr()),
                )
            });
            transpose(&mut a);
            let [a0, a1, a2, a3, a4, a5, a6, a7] = &mut a;
            for (a, b) in [
                (&mut *a0, &mut *a4),
                (&mut *a1, &mut *a5),
                (&mut *a2, &mut *a6),
                (&mut *a3, &mut *a7),
            ] {
                lanes.forward(a, b, w[0]);
            }
            lanes.forward(a0, a2, w[1]);
            lanes.forward(a1, a3, w[1]);
            lanes.forward(a4, a6, w[2]);
            lanes.forward(a5, a7, w[2]);
            lanes.forward(a0, a1, w[3]);
            lanes.forward(a2, a3, w[4]);
            lanes.forward(a4, a5, w[5]);
            lanes.forward(a6, a7, w[6]);
            for a in &mut a {
                *a = lanes.finish(lanes.reduce(*a));
            }
            transpose(&mut a);
            for (i, a) in a.into_iter().enumerate() {
                store(block.as_mut_ptr().add(8 * i), a);
            }
        }
    }
}

/// # Safety
/// AVX-512F and IFMA are present; `x` has the length of the twiddles, at least 64.
#[target_feature(enable = "avx512f,avx512ifma")]
unsafe fn inverse(m: &Modulus46, twiddles: &Twiddles, x: &mut [u64]) {
    let lanes = Lanes::new(m);
    let n = x.len();
    let length = n.min(CACHED);
    for (index, block) in x.chunks_exact_mut(length).enumerate() {
        // SAFETY: blocks have the length of a power of two, at least 64, and are whole blocks of
        // the short layers.
        unsafe {
            inverse_short(&lanes, &twiddles.short[index * (length / 64)..], block);
            // From here on all values are below 2q between passes.
            let mut joined = 8;
            while joined * 4 <= length {
                joined *= 4;
                let first = n / joined + index * (length / joined);
                inverse_two_layers(&lanes, twiddles, first, joined, block);
            }
            if joined < length {
                inverse_layer(&lanes, twiddles, n / length + index, block);
            }
        }
    }
    let mut joined = length;
    while joined < n {
        // SAFETY: the joined blocks have the length of a power of two, more than 64.
        unsafe {
            if joined * 4 <= n {
                joined *= 4;
                inverse_two_layers(&lanes, twiddles, n / joined, joined, x);
            } else {
                joined *= 2;
                inverse_layer(&lanes, twiddles, 1, x);
            }
        }
    }
    for x in x.chunks_exact_mut(8) {
        // SAFETY: chunks have eight words.
        unsafe {
            let v = lanes.clear(load(x.as_ptr()));
            store(x.as_mut_ptr(), lanes.finish(v));
        }
    }
}

/// The first three layers of blocks of 64, from values below `q` to words below `2q`.
///
/// # Safety
/// AVX-512F and IFMA are present.
#[inline]
#[target_feature(enable = "avx512f,avx512ifma")]
unsafe fn inverse_short(lanes: &Lanes, short: &[[[u64; 8]; 14]], x: &mut [u64]) {
    for (block, vectors) in x.chunks_exact_mut(64).zip(short) {
        // SAFETY: the block has 64 words, and each vector of twiddles eight.
        unsafe {
            let mut a: [__m512i; 8] = std::array::from_fn(|i| load(block.as_ptr().add(8 * i)));
            let w: [_; 7] = std::array::from_fn(|i| {
                (
                    load(vectors[2 * i].as_ptr()),
                    load(vectors[2 * i + 1].as_ptr()),
                )
            });
            transpose(&mut a);
            let [a0, a1, a2, a3, a4, a5, a6, a7] = &mut a;
            // Inputs below q. Sums below 2q, then 4q, then 8q.
            lanes.inverse(a0, a1, w[3]);
            lanes.inverse(a2, a3, w[4]);
            lanes.inverse(a4, a5, w[5]);
            lanes.inverse(a6, a7, w[6]);
            lanes.inverse(a0, a2, w[1]);
            lanes.inverse(a1, a3, w[1]);
            lanes.inverse(a4, a6, w[2]);
            lanes.inverse(a5, a7, w[2]);
            for (a, b) in [(a0, a4), (a1, a5), (a2, a6), (a3, a7)] {
                lanes.inverse(a, b, w[0]);
                *a = lanes.reduce(*a);
            }
            transpose(&mut a);
            for (i, a) in a.into_iter().enumerate() {
                store(block.as_mut_ptr().add(8 * i), a);
            }
        }
    }
}

/// Two layers that join blocks to ones of `length`; the second's factors start at `first`.
///
/// # Safety
/// AVX-512F and IFMA are present; `length` is a multiple of 32.
#[inline]
#[target_feature(enable = "avx512f,avx512ifma")]
unsafe fn inverse_two_layers(
    lanes: &Lanes,
    twiddles: &Twiddles,
    first: usize,
    length: usize,
    x: &mut [u64],
) {
    let quarter = length / 4;
    for (group, block) in x.chunks_exact_mut(length).enumerate() {
        let low = splat(twiddles.factors[2 * (first + group)]);
        let high = splat(twiddles.factors[2 * (first + group) + 1]);
        let w = splat(twiddles.factors[first + group]);
        let at = block.as_mut_ptr();
        for j in (0..quarter).step_by(8) {
            // SAFETY: j + 8 <= quarter, and the block has four quarters.
            unsafe {
                let p = [
                    at.add(j),
                    at.add(j + quarter),
                    at.add(j + 2 * quarter),
                    at.add(j + 3 * quarter),
                ];
                let mut a = [load(p[0]), load(p[1]), load(p[2]), load(p[3])];
                let [a0, a1, a2, a3] = &mut a;
                lanes.inverse(a0, a1, low);
                lanes.inverse(a2, a3, high);
                // Sums below 4q, then 8q and 4q.
                lanes.inverse(a0, a2, w);
                lanes.inverse(a1, a3, w);
                *a0 = lanes.reduce(*a0);
                *a1 = lanes.reduce(*a1);
                for (p, a) in p.into_iter().zip(a) {
                    store(p, a);
                }
            }
        }
    }
}

/// One layer that joins two halves.
///
/// # Safety
/// AVX-512F and IFMA are present; the length is a multiple of 16.
#[inline]
#[target_feature(enable = "avx512f,avx512ifma")]
unsafe fn inverse_layer(lanes: &Lanes, twiddles: &Twiddles, factor: usize, x: &mut [u64]) {
    let w = splat(twiddles.factors[factor]);
    let (low, high) = x.split_at_mut(x.len() / 2);
    for (a, b) in low.chunks_exact_mut(8).zip(high.chunks_exact_mut(8)) {
        // SAFETY: chunks have eight words.
        unsafe {
            let (mut u, mut v) = (load(a.as_ptr()), load(b.as_ptr()));
            lanes.inverse(&mut u, &mut v, w);
            store(a.as_mut_ptr(), lanes.reduce(u));
            store(b.as_mut_ptr(), v);
        }
    }
}

/// Transposes eight vectors of eight words.
#[inline]
#[target_feature(enable = "avx512f")]
fn transpose(a: &mut [__m512i; 8]) {
    // Pairs of words, then pairs of 128-bit lanes, then halves.
    let mut b = [_mm512_setzero_si512(); 8];
    for i in 0..4 {
        b[2 * i] = _mm512_unpacklo_epi64(a[2 * i], a[2 * i + 1]);
        b[2 * i + 1] = _mm512_unpackhi_epi64(a[2 * i], a[2 * i + 1]);
    }
    // b[2i + h], lane k: words 2k + h of rows 2i, 2i + 1.
    for h in 0..2 {
        let [r0, r1, r2, r3] = [b[h], b[2 + h], b[4 + h], b[6 + h]];
        let even_01 = _mm512_shuffle_i64x2::<0x88>(r0, r1);
        let odd_01 = _mm512_shuffle_i64x2::<0xdd>(r0, r1);
        let even_23 = _mm512_shuffle_i64x2::<0x88>(r2, r3);
        let odd_23 = _mm512_shuffle_i64x2::<0xdd>(r2, r3);
        // even_01: lanes 0, 2 of r0, then of r1.
        a[h] = _mm512_shuffle_i64x2::<0x88>(even_01, even_23);
        a[4 + h] = _mm512_shuffle_i64x2::<0xdd>(even_01, even_23);
        a[2 + h] = _mm512_shuffle_i64x2::<0x88>(odd_01, odd_23);
        a[6 + h] = _mm512_shuffle_i64x2::<0xdd>(odd_01, odd_23);
    }
}
