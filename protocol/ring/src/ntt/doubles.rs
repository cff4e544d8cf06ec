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

/// The coefficients that a forward transform starts from.
#[derive(Clone, Copy)]
enum Source<'a> {
    /// Those in the slice that becomes the values.
    InPlace,
    /// The first ones of a polynomial whose others are zero.
    Short(&'a [u64]),
    /// The centred representatives of residues modulo another prime.
    Lifted(&'a [u64], &'a Modulus46),
}

/// The entry points of one back end, to call with slices of the transform's length only.
#[derive(Clone, Copy)]
struct Run {
    forward: unsafe fn(&Modulus46, &Twiddles, Source<'_>, &mut [u64]),
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
            use super::{Modulus46, Run, Source, Twiddles};
            use crate::doubles::$vector;

            pub(super) const RUN: Run = Run { forward, inverse };

            /// # Safety
            /// As for [`super::forward`].
            #[target_feature(enable = $features)]
            unsafe fn forward(
                m: &Modulus46,
                twiddles: &Twiddles,
                source: Source<'_>,
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
        unsafe { (self.run.forward)(&self.modulus, &self.forward, Source::InPlace, x) }
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
        unsafe { (self.run.forward)(&self.modulus, &self.inverse, Source::Short(source), out) }
    }

    fn forward_lifted(&self, [from, to]: [&Modulus46; 2], x: &[u64], out: &mut [u64]) {
        assert!(*to == self.modulus && x.len() == self.n && out.len() == self.n);
        // SAFETY: as for the forward transform.
        unsafe { (self.run.forward)(to, &self.forward, Source::Lifted(x, from), out) }
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

/// Where the first pass over the coefficients reads them, unless it does in place.
#[derive(Clone, Copy)]
struct Input<V> {
    words: *const u64,
    /// Words from one block's coefficients to the next one's, for each coefficient of a block: 0 if
    /// all blocks have the same.
    step: usize,
    /// The prime modulo which the words are centred.
    from: Field<V>,
}

/// A pass reads doubles, in place.
const DOUBLES: u8 = 0;
/// It reads integers, in place.
const INTEGERS: u8 = 1;
/// It reads integers of the input.
const COPIED: u8 = 2;
/// It reads integers of the input and centres them.
const CENTRED: u8 = 3;

impl<V: Doubles> Input<V> {
    /// The input from word `offset` of the slice that is transformed on.
    ///
    /// # Safety
    /// The word exists.
    #[inline(always)]
    unsafe fn at(&self, offset: usize) -> Self {
        // SAFETY: the caller's promise.
        let words = unsafe { self.words.add(self.step * offset) };
        Input { words, ..*self }
    }

    /// Four coefficients from `offset` on, of the block at `block`.
    ///
    /// # Safety
    /// The instructions of `V` are present, and the block and the input have these coefficients.
    #[inline(always)]
    unsafe fn load<const KIND: u8>(&self, block: *const u64, offset: usize) -> V {
        // SAFETY: the caller's promise.
        unsafe {
            match KIND {
                DOUBLES => V::load(block.add(offset).cast()),
                INTEGERS => V::from_words(block.add(offset)),
                COPIED => V::from_words(self.words.add(offset)),
                _ => self.from.reduce(V::from_words(self.words.add(offset))),
            }
        }
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

/// The values of a polynomial.
///
/// # Safety
/// The instructions of `V` are present; `x` has the length of the twiddles, at least 16, a lifted
/// source as well, and a short one a power of two from 4 to that.
#[inline(always)]
unsafe fn forward<V: Doubles>(
    m: &Modulus46,
    twiddles: &Twiddles,
    source: Source<'_>,
    x: &mut [u64],
) {
    // SAFETY: the caller's promise.
    unsafe {
        let field = Field::<V>::new(m);
        let mut input = Input {
            words: std::ptr::null(),
            step: 0,
            from: field,
        };
        match source {
            Source::InPlace => passes::<V, INTEGERS>(&field, twiddles, input, x.len(), x),
            Source::Short(source) => {
                // Layers whose upper halves are zero copy: after them, each block is what the
                // source is.
                input.words = source.as_ptr();
                passes::<V, COPIED>(&field, twiddles, input, source.len(), x);
            }
            Source::Lifted(source, from) => {
                (input.words, input.step) = (source.as_ptr(), 1);
                input.from = Field::new(from);
                passes::<V, CENTRED>(&field, twiddles, input, x.len(), x);
            }
        }
    }
}

/// All layers on blocks of `length` and less, the first on words of this kind.
///
/// # Safety
/// As for [`forward`]; the input has the coefficients of all blocks.
#[inline(always)]
unsafe fn passes<V: Doubles, const KIND: u8>(
    field: &Field<V>,
    twiddles: &Twiddles,
    input: Input<V>,
    mut length: usize,
    x: &mut [u64],
) {
    // SAFETY: all blocks have the length of a power of two, as the functions called demand.
    unsafe {
        // Down to blocks that fit, two layers at a time; an odd one goes first.
        let (mut done, mut groups) = (false, x.len() / length);
        while length > CACHED {
            let layers = 2 - (length / CACHED).trailing_zeros() as usize % 2;
            match (layers, done) {
                (1, false) => layer::<V, KIND>(field, twiddles, groups, length, input, x),
                (1, true) => layer::<V, DOUBLES>(field, twiddles, groups, length, input, x),
                (_, false) => two_layers::<V, KIND>(field, twiddles, groups, length, input, x),
                (_, true) => two_layers::<V, DOUBLES>(field, twiddles, groups, length, input, x),
            }
            (length, groups, done) = (length >> layers, groups << layers, true);
        }
        let block_length = length.max(SQUARE);
        for (index, block) in x.chunks_exact_mut(block_length).enumerate() {
            let input = input.at(index * block_length);
            let (mut length, mut done) = (length, done);
            let mut first = groups + index * (block_length / length);
            if length.trailing_zeros() % 2 == 1 {
                if done {
                    layer::<V, DOUBLES>(field, twiddles, first, length, input, block);
                } else {
                    layer::<V, KIND>(field, twiddles, first, length, input, block);
                }
                (length, first, done) = (length / 2, first * 2, true);
            }
            while length >= SQUARE {
                if done {
                    two_layers::<V, DOUBLES>(field, twiddles, first, length, input, block);
                } else {
                    two_layers::<V, KIND>(field, twiddles, first, length, input, block);
                }
                (length, first, done) = (length / 4, first * 4, true);
            }
            debug_assert_eq!(length, LANES);
            let short = &twiddles.short[index * (block_length / SQUARE)..];
            if done {
                forward_short::<V, DOUBLES>(field, short, input, block);
            } else {
                forward_short::<V, KIND>(field, short, input, block);
            }
        }
    }
}

/// One layer of blocks of `length`, whose factors start at `first`.
///
/// # Safety
/// The instructions of `V` are present; `length` is a multiple of 8 and divides that of `x`; the
/// input has the coefficients of all blocks.
#[inline(always)]
unsafe fn layer<V: Doubles, const KIND: u8>(
    field: &Field<V>,
    twiddles: &Twiddles,
    first: usize,
    length: usize,
    input: Input<V>,
    x: &mut [u64],
) {
    let half = length / 2;
    for (group, block) in x.chunks_exact_mut(length).enumerate() {
        // SAFETY: j + 4 <= half, and the block has two halves.
        unsafe {
            let w = splat(twiddles.factors[first + group]);
            let input = input.at(group * length);
            let at = block.as_mut_ptr();
            for j in (0..half).step_by(LANES) {
                let mut a = input.load::<KIND>(at, j);
                let mut b = input.load::<KIND>(at, j + half);
                forward_pair(field, &mut a, &mut b, w);
                a.store(at.add(j).cast());
                b.store(at.add(j + half).cast());
            }
        }
    }
}

/// Two layers of blocks of `length`, the first's factors starting at `first`.
///
/// # Safety
/// The instructions of `V` are present; `length` is a multiple of 16 and divides that of `x`; the
/// input has the coefficients of all blocks.
#[inline(always)]
unsafe fn two_layers<V: Doubles, const KIND: u8>(
    field: &Field<V>,
    twiddles: &Twiddles,
    first: usize,
    length: usize,
    input: Input<V>,
    x: &mut [u64],
) {
    let quarter = length / 4;
    for (group, block) in x.chunks_exact_mut(length).enumerate() {
        // SAFETY: j + 4 <= quarter, and the block has four quarters.
        unsafe {
            let w = splat(twiddles.factors[first + group]);
            let low = splat(twiddles.factors[2 * (first + group)]);
            let high = splat(twiddles.factors[2 * (first + group) + 1]);
            let input = input.at(group * length);
            let at = block.as_mut_ptr();
            for j in (0..quarter).step_by(LANES) {
                let mut a0 = input.load::<KIND>(at, j);
                let mut a1 = input.load::<KIND>(at, j + quarter);
                let mut a2 = input.load::<KIND>(at, j + 2 * quarter);
                let mut a3 = input.load::<KIND>(at, j + 3 * quarter);
                forward_pair(field, &mut a0, &mut a2, w);
                forward_pair(field, &mut a1, &mut a3, w);
                forward_pair(field, &mut a0, &mut a1, low);
                forward_pair(field, &mut a2, &mut a3, high);
                store_four([a0, a1, a2, a3], quarters(at, quarter, j));
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
/// The instructions of `V` are present; the length of `x` is a multiple of 16, and the input has
/// the coefficients of all blocks.
#[inline(always)]
unsafe fn forward_short<V: Doubles, const KIND: u8>(
    field: &Field<V>,
    short: &[[[f64; LANES]; 6]],
    input: Input<V>,
    x: &mut [u64],
) {
    for (index, (square, vectors)) in x.chunks_exact_mut(SQUARE).zip(short).enumerate() {
        // SAFETY: the square has four times four words.
        unsafe {
            let [w, low, high] = short_factors(vectors);
            let input = input.at(index * SQUARE);
            let p = quarters(square.as_mut_ptr(), LANES, 0);
            let row = match KIND {
                DOUBLES | INTEGERS => LANES,
                _ => input.step * LANES,
            };
            let mut a = [
                input.load::<KIND>(p[0], 0),
                input.load::<KIND>(p[0], row),
                input.load::<KIND>(p[0], 2 * row),
                input.load::<KIND>(p[0], 3 * row),
            ];
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
            field.store(V::load(x.cast()), x);
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
            let mut a = [
                V::from_words(p[0]),
                V::from_words(p[1]),
                V::from_words(p[2]),
                V::from_words(p[3]),
            ];
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
                let (mut a0, mut a1) = (V::load(p[0].cast()), V::load(p[1].cast()));
                let (mut a2, mut a3) = (V::load(p[2].cast()), V::load(p[3].cast()));
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
            let (mut a, mut b) = (V::load(low.cast()), V::load(high.cast()));
            inverse_pair(field, &mut a, &mut b, w);
            field.reduce(a).store(low.cast());
            b.store(high.cast());
        }
    }
}
