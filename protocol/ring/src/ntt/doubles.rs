//! The transform for primes just below 2^46 in double precision, for AVX2 with FMA and for NEON.
//!
//! Twiddle factors are centred, so that a product by one is barely more than `q / 2` in size
//! ([`Field::scale`]), and nothing is reduced on the way: forward, thirteen layers take values from
//! below `q` to below `q + 13 * 0.54 q < 2^50`. Inverse, the sum of four values in each pass of two
//! layers is reduced, and all others stay below `1.2 q`.
//!
//! Layers go two to a pass over memory, an odd one by itself. The two shortest work on blocks of
//! sixteen coefficients that are transposed for them. Once blocks fit the first-level cache, all
//! layers of a block are done before the next one. The first pass turns integers into doubles, the
//! last one turns them back, and between them the slice of words holds doubles.

use super::{Ntt, NttPrime, reverse_bits};
use crate::doubles::{Doubles, Factor, Field, LANES};
use crate::{Modulus, Modulus46, kernels};
use pi_core::Backend;

/// Coefficients of the blocks of the two short layers, transposed as a square.
const SQUARE: usize = LANES * LANES;

/// Coefficients of a block that stays in the first-level cache.
const CACHED: usize = 2048;

/// The factors of one direction.
struct Twiddles {
    /// Entry `i`: the root to the power `rev(i)`.
    factors: Vec<Factor>,
    /// For each square the factors of the two short layers, one lane for each four coefficients:
    /// one vector for pairs two apart, two for one apart; values and quotients by turns.
    short: Vec<[[f64; LANES]; 6]>,
}

impl Twiddles {
    fn new(m: &Modulus46, root: u64, n: usize) -> Self {
        let mut factors = vec![Factor::default(); n];
        let mut power = 1;
        for k in 0..n {
            factors[reverse_bits(k, n)] = Factor::new(m, power);
            power = m.mul(power, root);
        }
        let short = (0..n / SQUARE).map(|square| {
            let factor = |vector: usize, lane: usize| {
                let at = LANES * square + lane;
                factors[match vector {
                    0 => n / 4 + at,
                    _ => n / 2 + 2 * at + vector - 1,
                }]
            };
            std::array::from_fn(|i| {
                std::array::from_fn(|lane| {
                    let factor = factor(i / 2, lane);
                    if i % 2 == 0 {
                        factor.value
                    } else {
                        factor.quotient
                    }
                })
            })
        });
        let short = short.collect();
        Self { factors, short }
    }
}

/// The transform of one length over one prime; exists only where the instructions do.
pub(super) struct DoublesNtt {
    modulus: Modulus46,
    n: usize,
    forward: Twiddles,
    inverse: Twiddles,
    run: Run,
}

/// The entry points of one back end, to call with slices of the transform's length only.
#[derive(Clone, Copy)]
struct Run {
    forward: unsafe fn(&Modulus46, &Twiddles, Option<&[u64]>, &mut [u64]),
    inverse: unsafe fn(&Modulus46, &Twiddles, &mut [u64]),
}

impl Run {
    /// The functions of a back end, if this transform has some for it.
    fn on(backend: Backend) -> Option<Self> {
        match backend {
            #[cfg(target_arch = "x86_64")]
            Backend::Avx2 => Some(avx2::RUN),
            #[cfg(target_arch = "aarch64")]
            Backend::Neon => Some(neon::RUN),
            _ => None,
        }
    }
}

/// Compiles the transform for one kind of vector.
macro_rules! compiled {
    ($module:ident, $vector:ident, $features:literal) => {
        mod $module {
            use super::{Modulus46, Run, Twiddles};
            use crate::doubles::$vector;

            pub(super) const RUN: Run = Run { forward, inverse };

            /// # Safety
            /// As for [`super::forward`].
            #[target_feature(enable = $features)]
            unsafe fn forward(
                m: &Modulus46,
                twiddles: &Twiddles,
                source: Option<&[u64]>,
                x: &mut [u64],
            ) {
                // SAFETY: the caller's promise.
                unsafe { super::forward::<$vector>(m, twiddles, source, x) }
            }

            /// # Safety
            /// As for [`super::inverse`].
            #[target_feature(enable = $features)]
            unsafe fn inverse(m: &Modulus46, twiddles: &Twiddles, x: &mut [u64]) {
                // SAFETY: the caller's promise.
                unsafe { super::inverse::<$vector>(m, twiddles, x) }
            }
        }
    };
}

#[cfg(target_arch = "x86_64")]
compiled!(avx2, Avx2, "avx2,fma");
#[cfg(target_arch = "aarch64")]
compiled!(neon, Neon, "neon");

impl DoublesNtt {
    /// The transform of length `n`, or `None` if the prime is not within 2^20 below 2^46, the
    /// length is below 16, or there is no code for the back end.
    ///
    /// # Safety
    /// The machine supports the back end.
    pub(super) unsafe fn new(backend: Backend, prime: &NttPrime, n: usize) -> Option<Self> {
        let run = Run::on(backend)?;
        let m = Modulus46::new(prime.modulus.value())?;
        (n >= SQUARE).then(|| {
            let root = prime.root(n);
            Self {
                modulus: m,
                n,
                forward: Twiddles::new(&m, root, n),
                inverse: Twiddles::new(&m, m.inv(root), n),
                run,
            }
        })
    }
}

impl Ntt for DoublesNtt {
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
        unsafe { (self.run.forward)(&self.modulus, &self.forward, None, x) }
    }

    fn forward_reciprocal(&self, coefficients: &[u64], out: &mut [u64]) {
        let support = coefficients.len();
        assert!(support.is_power_of_two() && support <= self.n && out.len() == self.n);
        if let [constant] = coefficients {
            return out.fill(*constant);
        }
        let mut four = [0; LANES];
        let source = if support < LANES {
            four[..support].copy_from_slice(coefficients);
            &four
        } else {
            coefficients
        };
        // The points of the inverse transform are the inverses of ours. SAFETY: as for the forward
        // transform; the source is a power of two from 4 to the length.
        unsafe { (self.run.forward)(&self.modulus, &self.inverse, Some(source), out) }
    }

    fn inverse_unscaled(&self, x: &mut [u64]) {
        assert_eq!(x.len(), self.n);
        // SAFETY: as for the forward transform.
        unsafe { (self.run.inverse)(&self.modulus, &self.inverse, x) }
    }

    fn inverse(&self, x: &mut [u64]) {
        self.inverse_unscaled(x);
        let m = &self.modulus;
        kernels::scale_assign(m, x, m.inv(self.n as u64));
    }
}

/// A factor in all lanes: its value and quotient.
///
/// # Safety
/// The instructions of `V` are present.
#[inline(always)]
unsafe fn splat<V: Doubles>(factor: Factor) -> (V, V) {
    // SAFETY: the caller's promise.
    unsafe { (V::splat(factor.value), V::splat(factor.quotient)) }
}

/// `(a + w b, a - w b)`.
///
/// # Safety
/// The instructions of `V` are present.
#[inline(always)]
unsafe fn forward_pair<V: Doubles>(field: &Field<V>, a: &mut V, b: &mut V, w: (V, V)) {
    // SAFETY: the caller's promise.
    unsafe {
        let product = field.scale(*b, w.0, w.1);
        *b = a.sub(product);
        *a = a.add(product);
    }
}

/// `(a + b, w (a - b))`.
///
/// # Safety
/// The instructions of `V` are present.
#[inline(always)]
unsafe fn inverse_pair<V: Doubles>(field: &Field<V>, a: &mut V, b: &mut V, w: (V, V)) {
    // SAFETY: the caller's promise.
    unsafe {
        let difference = a.sub(*b);
        *a = a.add(*b);
        *b = field.scale(difference, w.0, w.1);
    }
}

/// Four numbers of a slice of words that hold doubles, or integers if `INTEGERS`.
///
/// # Safety
/// The instructions of `V` are present, and four words readable at `x`.
#[inline(always)]
unsafe fn load<V: Doubles, const INTEGERS: bool>(x: *const u64) -> V {
    // SAFETY: the caller's promise; every word is a double.
    unsafe {
        if INTEGERS {
            V::from_words(x)
        } else {
            V::load(x.cast())
        }
    }
}

/// [`load`] from four places. A closure, as for `array::map`, would not be compiled for `V`.
///
/// # Safety
/// As for [`load`], at each place.
#[inline(always)]
unsafe fn load_four<V: Doubles, const INTEGERS: bool>(p: [*mut u64; 4]) -> [V; 4] {
    // SAFETY: the caller's promise.
    unsafe {
        [
            load::<V, INTEGERS>(p[0]),
            load::<V, INTEGERS>(p[1]),
            load::<V, INTEGERS>(p[2]),
            load::<V, INTEGERS>(p[3]),
        ]
    }
}

/// Writes doubles to four places.
///
/// # Safety
/// The instructions of `V` are present, and four words writable at each place.
#[inline(always)]
unsafe fn store_four<V: Doubles>(a: [V; 4], p: [*mut u64; 4]) {
    for i in 0..4 {
        // SAFETY: the caller's promise.
        unsafe { a[i].store(p[i].cast()) };
    }
}

/// The values of `x`, or of `source`, which has the first coefficients of a polynomial whose others
/// are zero.
///
/// # Safety
/// The instructions of `V` are present; `x` has the length of the twiddles, at least 16, and
/// `source` a power of two from 4 to that.
#[inline(always)]
unsafe fn forward<V: Doubles>(
    m: &Modulus46,
    twiddles: &Twiddles,
    source: Option<&[u64]>,
    x: &mut [u64],
) {
    // SAFETY: all blocks have the length of a power of two, as the functions called demand.
    unsafe {
        let field = Field::<V>::new(m);
        // Layers whose upper halves are zero copy: after them, each block is what the source is.
        let mut length = source.map_or(x.len(), <[u64]>::len);
        if let Some(source) = source {
            for block in x.chunks_exact_mut(length) {
                block.copy_from_slice(source);
            }
        }
        // Down to blocks that fit, two layers at a time; an odd one goes first.
        let (mut integers, mut groups) = (true, x.len() / length);
        while length > CACHED {
            let layers = 2 - (length / CACHED).trailing_zeros() as usize % 2;
            match (layers, integers) {
                (1, true) => layer::<V, true>(&field, twiddles, groups, length, x),
                (1, false) => layer::<V, false>(&field, twiddles, groups, length, x),
                (_, true) => two_layers::<V, true>(&field, twiddles, groups, length, x),
                (_, false) => two_layers::<V, false>(&field, twiddles, groups, length, x),
            }
            (length, groups, integers) = (length >> layers, groups << layers, false);
        }
        let block_length = length.max(SQUARE);
        for (index, block) in x.chunks_exact_mut(block_length).enumerate() {
            let (mut length, mut integers) = (length, integers);
            let mut first = groups + index * (block_length / length);
            if length.trailing_zeros() % 2 == 1 {
                if integers {
                    layer::<V, true>(&field, twiddles, first, length, block);
                } else {
                    layer::<V, false>(&field, twiddles, first, length, block);
                }
                (length, first, integers) = (length / 2, first * 2, false);
            }
            while length >= SQUARE {
                if integers {
                    two_layers::<V, true>(&field, twiddles, first, length, block);
                } else {
                    two_layers::<V, false>(&field, twiddles, first, length, block);
                }
                (length, first, integers) = (length / 4, first * 4, false);
            }
            debug_assert_eq!(length, LANES);
            let short = &twiddles.short[index * (block_length / SQUARE)..];
            if integers {
                forward_short::<V, true>(&field, short, block);
            } else {
                forward_short::<V, false>(&field, short, block);
            }
        }
    }
}

/// One layer of blocks of `length`, whose factors start at `first`.
///
/// # Safety
/// The instructions of `V` are present; `length` is a multiple of 8 and divides that of `x`.
#[inline(always)]
unsafe fn layer<V: Doubles, const INTEGERS: bool>(
    field: &Field<V>,
    twiddles: &Twiddles,
    first: usize,
    length: usize,
    x: &mut [u64],
) {
    let half = length / 2;
    for (group, block) in x.chunks_exact_mut(length).enumerate() {
        // SAFETY: j + 4 <= half, and the block has two halves.
        unsafe {
            let w = splat(twiddles.factors[first + group]);
            let at = block.as_mut_ptr();
            for j in (0..half).step_by(LANES) {
                let (low, high) = (at.add(j), at.add(j + half));
                let (mut a, mut b) = (load::<V, INTEGERS>(low), load::<V, INTEGERS>(high));
                forward_pair(field, &mut a, &mut b, w);
                a.store(low.cast());
                b.store(high.cast());
            }
        }
    }
}

/// Two layers of blocks of `length`, the first's factors starting at `first`.
///
/// # Safety
/// The instructions of `V` are present; `length` is a multiple of 16 and divides that of `x`.
#[inline(always)]
unsafe fn two_layers<V: Doubles, const INTEGERS: bool>(
    field: &Field<V>,
    twiddles: &Twiddles,
    first: usize,
    length: usize,
    x: &mut [u64],
) {
    let quarter = length / 4;
    for (group, block) in x.chunks_exact_mut(length).enumerate() {
        // SAFETY: j + 4 <= quarter, and the block has four quarters.
        unsafe {
            let w = splat(twiddles.factors[first + group]);
            let low = splat(twiddles.factors[2 * (first + group)]);
            let high = splat(twiddles.factors[2 * (first + group) + 1]);
            let at = block.as_mut_ptr();
            for j in (0..quarter).step_by(LANES) {
                let p = quarters(at, quarter, j);
                let [mut a0, mut a1, mut a2, mut a3] = load_four::<V, INTEGERS>(p);
                forward_pair(field, &mut a0, &mut a2, w);
                forward_pair(field, &mut a1, &mut a3, w);
                forward_pair(field, &mut a0, &mut a1, low);
                forward_pair(field, &mut a2, &mut a3, high);
                store_four([a0, a1, a2, a3], p);
            }
        }
    }
}

/// Word `j` of each quarter of a block.
///
/// # Safety
/// The block at `at` has four times `quarter` words, and `j` is less than that.
#[inline(always)]
unsafe fn quarters(at: *mut u64, quarter: usize, j: usize) -> [*mut u64; 4] {
    // SAFETY: the caller's promise.
    unsafe {
        [
            at.add(j),
            at.add(j + quarter),
            at.add(j + 2 * quarter),
            at.add(j + 3 * quarter),
        ]
    }
}

/// The factors of a square: for pairs two apart, for those one apart, and for the second half of
/// these.
///
/// # Safety
/// The instructions of `V` are present.
#[inline(always)]
unsafe fn short_factors<V: Doubles>(vectors: &[[f64; LANES]; 6]) -> [(V, V); 3] {
    // SAFETY: the caller's promise; each vector has four doubles.
    unsafe {
        [
            (V::load(vectors[0].as_ptr()), V::load(vectors[1].as_ptr())),
            (V::load(vectors[2].as_ptr()), V::load(vectors[3].as_ptr())),
            (V::load(vectors[4].as_ptr()), V::load(vectors[5].as_ptr())),
        ]
    }
}

/// The last two layers, square by square, and integers below `q` from there on.
///
/// # Safety
/// The instructions of `V` are present; the length of `x` is a multiple of 16.
#[inline(always)]
unsafe fn forward_short<V: Doubles, const INTEGERS: bool>(
    field: &Field<V>,
    short: &[[[f64; LANES]; 6]],
    x: &mut [u64],
) {
    for (square, vectors) in x.chunks_exact_mut(SQUARE).zip(short) {
        // SAFETY: the square has four times four words.
        unsafe {
            let [w, low, high] = short_factors(vectors);
            let p = quarters(square.as_mut_ptr(), LANES, 0);
            let mut a = load_four::<V, INTEGERS>(p);
            V::transpose(&mut a);
            let [a0, a1, a2, a3] = &mut a;
            forward_pair(field, a0, a2, w);
            forward_pair(field, a1, a3, w);
            forward_pair(field, a0, a1, low);
            forward_pair(field, a2, a3, high);
            V::transpose(&mut a);
            for i in 0..LANES {
                field.store(a[i], p[i]);
            }
        }
    }
}

/// The coefficients of `x`, times the length.
///
/// # Safety
/// The instructions of `V` are present; `x` has the length of the twiddles, at least 16.
#[inline(always)]
unsafe fn inverse<V: Doubles>(m: &Modulus46, twiddles: &Twiddles, x: &mut [u64]) {
    // SAFETY: all blocks have the length of a power of two, as the functions called demand.
    unsafe {
        let field = Field::<V>::new(m);
        let n = x.len();
        let length = n.min(CACHED);
        for (index, block) in x.chunks_exact_mut(length).enumerate() {
            inverse_short::<V>(&field, &twiddles.short[index * (length / SQUARE)..], block);
            let mut joined = LANES;
            while joined * 4 <= length {
                joined *= 4;
                let first = n / joined + index * (length / joined);
                inverse_two_layers(&field, twiddles, first, joined, block);
            }
            if joined < length {
                inverse_layer(&field, twiddles, n / length + index, block);
            }
        }
        let mut joined = length;
        while joined < n {
            if joined * 4 <= n {
                joined *= 4;
                inverse_two_layers(&field, twiddles, n / joined, joined, x);
            } else {
                joined *= 2;
                inverse_layer(&field, twiddles, 1, x);
            }
        }
        for x in x.chunks_exact_mut(LANES) {
            let x = x.as_mut_ptr();
            field.store(load::<V, false>(x), x);
        }
    }
}

/// The first two layers, square by square, from integers below `q`: of four results the first is
/// below `0.51 q`, the second below `1.1 q`.
///
/// # Safety
/// The instructions of `V` are present; the length of `x` is a multiple of 16.
#[inline(always)]
unsafe fn inverse_short<V: Doubles>(field: &Field<V>, short: &[[[f64; LANES]; 6]], x: &mut [u64]) {
    for (square, vectors) in x.chunks_exact_mut(SQUARE).zip(short) {
        // SAFETY: the square has four times four words.
        unsafe {
            let [w, low, high] = short_factors(vectors);
            let p = quarters(square.as_mut_ptr(), LANES, 0);
            let mut a = load_four::<V, true>(p);
            V::transpose(&mut a);
            let [a0, a1, a2, a3] = &mut a;
            inverse_pair(field, a0, a1, low);
            inverse_pair(field, a2, a3, high);
            inverse_pair(field, a0, a2, w);
            inverse_pair(field, a1, a3, w);
            *a0 = field.reduce(*a0);
            V::transpose(&mut a);
            store_four(a, p);
        }
    }
}

/// Two layers that join blocks to ones of `length`; the second's factors start at `first`.
///
/// # Safety
/// The instructions of `V` are present; `length` is a multiple of 16 and divides that of `x`.
#[inline(always)]
unsafe fn inverse_two_layers<V: Doubles>(
    field: &Field<V>,
    twiddles: &Twiddles,
    first: usize,
    length: usize,
    x: &mut [u64],
) {
    let quarter = length / 4;
    for (group, block) in x.chunks_exact_mut(length).enumerate() {
        // SAFETY: j + 4 <= quarter, and the block has four quarters.
        unsafe {
            let low = splat(twiddles.factors[2 * (first + group)]);
            let high = splat(twiddles.factors[2 * (first + group) + 1]);
            let w = splat(twiddles.factors[first + group]);
            let at = block.as_mut_ptr();
            for j in (0..quarter).step_by(LANES) {
                let p = quarters(at, quarter, j);
                let [mut a0, mut a1, mut a2, mut a3] = load_four::<V, false>(p);
                inverse_pair(field, &mut a0, &mut a1, low);
                inverse_pair(field, &mut a2, &mut a3, high);
                inverse_pair(field, &mut a0, &mut a2, w);
                inverse_pair(field, &mut a1, &mut a3, w);
                // The sum of four; the other sum is one of two products.
                a0 = field.reduce(a0);
                store_four([a0, a1, a2, a3], p);
            }
        }
    }
}

/// One layer that joins two halves.
///
/// # Safety
/// The instructions of `V` are present; the length of `x` is a multiple of 8.
#[inline(always)]
unsafe fn inverse_layer<V: Doubles>(
    field: &Field<V>,
    twiddles: &Twiddles,
    factor: usize,
    x: &mut [u64],
) {
    let half = x.len() / 2;
    // SAFETY: j + 4 <= half, and x has two halves.
    unsafe {
        let w = splat(twiddles.factors[factor]);
        let at = x.as_mut_ptr();
        for j in (0..half).step_by(LANES) {
            let (low, high) = (at.add(j), at.add(j + half));
            let (mut a, mut b) = (load::<V, false>(low), load::<V, false>(high));
            inverse_pair(field, &mut a, &mut b, w);
            field.reduce(a).store(low.cast());
            b.store(high.cast());
        }
    }
}
