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
use std::ops::Range;

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
        unsafe {
            let x = x.as_mut_ptr();
            forward(&self.modulus, &self.forward, InPlace(x), self.n, x)
        }
    }

    fn forward_reciprocal(&self, coefficients: &[u64], out: &mut [u64]) {
        let support = coefficients.len();
        assert!(support.is_power_of_two() && support <= self.n && out.len() == self.n);
        // The points of the inverse transform are the inverses of ours. SAFETY: as for the forward
        // transform; the support is a power of two below 64, or from 64 to the length.
        unsafe {
            match support {
                ..64 => forward_few(&self.modulus, &self.inverse, coefficients, out),
                _ => {
                    let source = First(coefficients);
                    forward(
                        &self.modulus,
                        &self.inverse,
                        source,
                        support,
                        out.as_mut_ptr(),
                    )
                }
            }
        }
    }

    fn forward_lifted(&self, [from, to]: [&Modulus46; 2], x: &[u64], out: &mut [u64]) {
        debug_assert_eq!(*to, self.modulus);
        assert!(x.len() == self.n && out.len() == self.n);
        // SAFETY: as for the forward transform.
        unsafe { forward_lifted([from, to], &self.forward, x, out) }
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
        // The upper part, what 2^6 x has above 2^52, is below 2^6, its product with 2^46 - q < 2^20
        // below 2^26.
        let upper = _mm512_madd52hi_epu64(_mm512_setzero_si512(), x, _mm512_set1_epi64(1 << 6));
        _mm512_madd52lo_epu64(_mm512_and_si512(x, self.low_46), upper, self.fold)
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

/// The eight vectors of a block and its seven vectors of factors, with their companions.
///
/// # Safety
/// AVX-512F is present; the block has 64 words.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load_short(
    block: &[u64],
    vectors: &[[u64; 8]; 14],
) -> ([__m512i; 8], [(__m512i, __m512i); 7]) {
    // Loops: `array::from_fn` is not inlined into a function with these instructions.
    let zero = _mm512_setzero_si512();
    let (mut a, mut w) = ([zero; 8], [(zero, zero); 7]);
    // SAFETY: the block has 64 words, and each vector of twiddles eight.
    unsafe {
        for (i, a) in a.iter_mut().enumerate() {
            *a = load(block.as_ptr().add(8 * i));
        }
        for (i, w) in w.iter_mut().enumerate() {
            *w = (
                load(vectors[2 * i].as_ptr()),
                load(vectors[2 * i + 1].as_ptr()),
            );
        }
    }
    (a, w)
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

/// What the first pass of a transform reads.
trait Source: Copy {
    /// Eight words from index `i` of the polynomial on.
    ///
    /// # Safety
    /// AVX-512F is present, and `i + 8` is within the polynomial's length.
    unsafe fn load(self, i: usize) -> __m512i;
}

/// The place where the values go.
#[derive(Clone, Copy)]
struct InPlace(*mut u64);

impl Source for InPlace {
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load(self, i: usize) -> __m512i {
        // SAFETY: the caller's promise.
        unsafe { load(self.0.add(i)) }
    }
}

/// The first coefficients of a polynomial whose others are zero, as many as a power of two of at
/// least eight: layers whose upper halves are zero copy, so that after them each block is what the
/// first one was.
#[derive(Clone, Copy)]
struct First<'a>(&'a [u64]);

impl Source for First<'_> {
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load(self, i: usize) -> __m512i {
        // SAFETY: the rest of a multiple of eight by the length.
        unsafe { load(self.0.as_ptr().add(i & (self.0.len() - 1))) }
    }
}

/// Residues modulo another prime of the same size, whose centred representatives are meant.
#[derive(Clone, Copy)]
struct Lifted<'a> {
    x: &'a [u64],
    /// Half the other prime, rounded down.
    half: __m512i,
    /// This prime less the other, which takes what is above the half to its representative.
    shift: __m512i,
}

impl Source for Lifted<'_> {
    #[inline]
    #[target_feature(enable = "avx512f")]
    unsafe fn load(self, i: usize) -> __m512i {
        // SAFETY: the caller's promise.
        let x = unsafe { load(self.x.as_ptr().add(i)) };
        _mm512_mask_add_epi64(x, _mm512_cmpgt_epi64_mask(x, self.half), x, self.shift)
    }
}

/// See [`Ntt::forward_lifted`].
///
/// # Safety
/// AVX-512F and IFMA are present; `x` and `out` have the length of the twiddles, at least 64.
#[target_feature(enable = "avx512f,avx512ifma")]
unsafe fn forward_lifted(
    [from, to]: [&Modulus46; 2],
    twiddles: &Twiddles,
    x: &[u64],
    out: &mut [u64],
) {
    let source = Lifted {
        x,
        half: _mm512_set1_epi64((from.value() / 2) as i64),
        shift: _mm512_set1_epi64(to.value().wrapping_sub(from.value()) as i64),
    };
    // SAFETY: as promised by the caller.
    unsafe { forward(to, twiddles, source, x.len(), out.as_mut_ptr()) }
}

/// Coefficients of a block that stays in the first-level cache.
const CACHED: usize = 2048;

/// A forward transform in the making.
struct Forward<'a, S> {
    lanes: Lanes,
    twiddles: &'a Twiddles,
    source: S,
    /// Where the values go; the only way to this memory meanwhile.
    x: *mut u64,
}

/// The values of `source`, of whose polynomial coefficients from `length` on are zero.
///
/// # Safety
/// AVX-512F and IFMA are present; at `x` there are as many words as twiddles, at least 64, which
/// nobody else but the source uses, and `length` is a power of two from 64 to that.
#[target_feature(enable = "avx512f,avx512ifma")]
unsafe fn forward<S: Source>(
    m: &Modulus46,
    twiddles: &Twiddles,
    source: S,
    mut length: usize,
    x: *mut u64,
) {
    let n = twiddles.factors.len();
    let transform = Forward {
        lanes: Lanes::new(m),
        twiddles,
        source,
        x,
    };
    let mut fresh = true;
    // Down to blocks that fit, two layers at a time; an odd one goes first.
    while length > CACHED {
        let layers = 2 - (length / CACHED).trailing_zeros() % 2;
        // SAFETY: the blocks have the length of a power of two, more than 64.
        unsafe { transform.pass(layers, fresh, n / length, length, 0..n) };
        (fresh, length) = (false, length >> layers);
    }
    for block in 0..n / length {
        let range = block * length..(block + 1) * length;
        let (mut part, mut fresh) = (length, fresh);
        while part > 8 {
            let layers = 2 - (part / 8).trailing_zeros() % 2;
            let first = n / part + block * (length / part);
            // SAFETY: blocks have the length of a power of two, at least 64.
            unsafe { transform.pass(layers, fresh, first, part, range.clone()) };
            (fresh, part) = (false, part >> layers);
        }
        // SAFETY: as above, which makes them whole blocks of the short layers.
        unsafe { transform.short(range) };
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
    let length = source.len().max(8);
    let mut copies = [0; 64];
    for copy in copies.chunks_exact_mut(length) {
        copy[..source.len()].copy_from_slice(source);
    }
    let n = x.len();
    let transform = Forward {
        lanes: Lanes::new(m),
        twiddles,
        source: First(&copies),
        x: x.as_mut_ptr(),
    };
    for at in (0..n).step_by(64) {
        // SAFETY: the block has 64 words, which are whole ones of 8, 16 or 32.
        unsafe {
            match length {
                8 => {
                    for i in (at..at + 64).step_by(8) {
                        store(transform.x.add(i), transform.source.load(i));
                    }
                }
                _ => {
                    let first = (n + at) / length;
                    transform.pass(length.ilog2() - 3, true, first, length, at..at + 64);
                }
            }
            transform.short(at..at + 64);
        }
    }
}

impl<S: Source> Forward<'_, S> {
    /// One or two layers of the blocks of `length` within a range, the first's factors starting at
    /// `first`: of the source if the pass is `fresh`, else of what is there.
    ///
    /// # Safety
    /// AVX-512F and IFMA are present; `length` is a multiple of 16, for two layers of 32, the range
    /// a multiple of that and within the values.
    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma")]
    unsafe fn pass(
        &self,
        layers: u32,
        fresh: bool,
        first: usize,
        length: usize,
        range: Range<usize>,
    ) {
        let here = InPlace(self.x);
        // SAFETY: the caller's promise.
        unsafe {
            match (layers, fresh) {
                (1, true) => self.layer(self.source, first, length, range),
                (1, false) => self.layer(here, first, length, range),
                (_, true) => self.two_layers(self.source, first, length, range),
                (_, false) => self.two_layers(here, first, length, range),
            }
        }
    }

    /// See [`Forward::pass`].
    ///
    /// # Safety
    /// As there.
    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma")]
    unsafe fn layer(&self, source: impl Source, first: usize, length: usize, range: Range<usize>) {
        let (lanes, x, factors) = (self.lanes, self.x, &self.twiddles.factors);
        let half = length / 2;
        let factors = &factors[first..][..range.len() / length];
        let mut block = range.start;
        for &factor in factors {
            let w = splat(factor);
            let mut j = block;
            while j < block + half {
                // SAFETY: both halves of the block are within the values.
                unsafe {
                    let (mut u, mut v) = (source.load(j), source.load(j + half));
                    lanes.forward(&mut u, &mut v, w);
                    store(x.add(j), u);
                    store(x.add(j + half), v);
                }
                j += 8;
            }
            block += length;
        }
    }

    /// See [`Forward::pass`].
    ///
    /// # Safety
    /// As there.
    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma")]
    unsafe fn two_layers(
        &self,
        source: impl Source,
        first: usize,
        length: usize,
        range: Range<usize>,
    ) {
        let (lanes, x, factors) = (self.lanes, self.x, &self.twiddles.factors);
        let quarter = length / 4;
        let groups = range.len() / length;
        let own = &factors[first..][..groups];
        let (halves, _) = factors[2 * first..][..2 * groups].as_chunks::<2>();
        let mut block = range.start;
        for (&factor, &[low, high]) in own.iter().zip(halves) {
            let (w, low, high) = (splat(factor), splat(low), splat(high));
            let mut j = block;
            while j < block + quarter {
                let at = [j, j + quarter, j + 2 * quarter, j + 3 * quarter];
                // SAFETY: all quarters of the block are within the values.
                unsafe {
                    let mut a = [
                        source.load(at[0]),
                        source.load(at[1]),
                        source.load(at[2]),
                        source.load(at[3]),
                    ];
                    let [a0, a1, a2, a3] = &mut a;
                    lanes.forward(a0, a2, w);
                    lanes.forward(a1, a3, w);
                    lanes.forward(a0, a1, low);
                    lanes.forward(a2, a3, high);
                    for (at, a) in at.into_iter().zip(a) {
                        store(x.add(at), a);
                    }
                }
                j += 8;
            }
            block += length;
        }
    }

    /// The last three layers of the blocks of 64 within a range.
    ///
    /// # Safety
    /// AVX-512F and IFMA are present, the range is within the values.
    #[inline]
    #[target_feature(enable = "avx512f,avx512ifma")]
    unsafe fn short(&self, range: Range<usize>) {
        // SAFETY: nobody else uses the values meanwhile.
        let x = unsafe { std::slice::from_raw_parts_mut(self.x.add(range.start), range.len()) };
        // SAFETY: the instructions are there.
        unsafe { forward_short(&self.lanes, &self.twiddles.short[range.start / 64..], x) };
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
            let (mut a, w) = load_short(block, vectors);
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
                inverse_two_layers::<false>(&lanes, twiddles, first, joined, block);
            }
            if joined < length {
                inverse_layer::<false>(&lanes, twiddles, n / length + index, block);
            }
        }
    }
    if length == n {
        for x in x.chunks_exact_mut(8) {
            // SAFETY: chunks have eight words.
            unsafe {
                let v = lanes.clear(load(x.as_ptr()));
                store(x.as_mut_ptr(), lanes.finish(v));
            }
        }
    }
    let mut joined = length;
    while joined < n {
        // SAFETY: the joined blocks have the length of a power of two, more than 64.
        unsafe {
            if joined * 4 < n {
                joined *= 4;
                inverse_two_layers::<false>(&lanes, twiddles, n / joined, joined, x);
            } else if joined * 4 == n {
                joined = n;
                inverse_two_layers::<true>(&lanes, twiddles, 1, n, x);
            } else {
                joined = n;
                inverse_layer::<true>(&lanes, twiddles, 1, x);
            }
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
            let (mut a, w) = load_short(block, vectors);
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

/// Two layers that join blocks to ones of `length`; the second's factors start at `first`. After
/// the last ones values are below `q`.
///
/// # Safety
/// AVX-512F and IFMA are present; `length` is a multiple of 32.
#[inline]
#[target_feature(enable = "avx512f,avx512ifma")]
unsafe fn inverse_two_layers<const LAST: bool>(
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
                for (p, mut a) in p.into_iter().zip(a) {
                    if LAST {
                        a = lanes.finish(lanes.clear(a));
                    }
                    store(p, a);
                }
            }
        }
    }
}

/// One layer that joins two halves. After the last one values are below `q`.
///
/// # Safety
/// AVX-512F and IFMA are present; the length is a multiple of 16.
#[inline]
#[target_feature(enable = "avx512f,avx512ifma")]
unsafe fn inverse_layer<const LAST: bool>(
    lanes: &Lanes,
    twiddles: &Twiddles,
    factor: usize,
    x: &mut [u64],
) {
    let w = splat(twiddles.factors[factor]);
    let (low, high) = x.split_at_mut(x.len() / 2);
    for (a, b) in low.chunks_exact_mut(8).zip(high.chunks_exact_mut(8)) {
        // SAFETY: chunks have eight words.
        unsafe {
            let (mut u, mut v) = (load(a.as_ptr()), load(b.as_ptr()));
            lanes.inverse(&mut u, &mut v, w);
            u = lanes.reduce(u);
            if LAST {
                (u, v) = (lanes.finish(u), lanes.finish(lanes.clear(v)));
            }
            store(a.as_mut_ptr(), u);
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
