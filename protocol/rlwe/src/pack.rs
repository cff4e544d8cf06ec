//! Packing: many ciphertexts whose useful coefficients are sparse become one.
//!
//! Chen, Dai, Kim and Song (2021): `A + X^m B + tau(A - X^m B)`, `tau` the automorphism `X -> X^(N/m + 1)`, keeps twice the
//! coefficients of `A` at multiples of `2m`, places twice those of `B` half-way between, and cancels the rest. From
//! `m = gap / 2` down, `levels` times, `2^levels` ciphertexts merge with `2^levels - 1` automorphisms; kernels were
//! premultiplied by `2^-levels`.
//!
//! # What is computed
//! Answers show first halves at useful coefficients only, so first halves are never carried in full: of a product only every
//! `gap`-th coefficient is computed (adjacent values are summed, a transform of length `N / gap` does the rest), a merge
//! interleaves and doubles, and of the first half of a key switch only every `m`-th coefficient is computed. First halves stay
//! multiplied by the special prime until one division at the end. A key switch is twelve forward transforms, four inverse ones,
//! and four short ones.

use crate::keys::{GaloisKey, GaloisKeys, galois_element};
use crate::params::{CiphertextModulus, DIGITS, KEY_LIMBS, N, Params};
use crate::plain::Product;
use pi_ring::dot::{Term, dot_pair};
use pi_ring::poly::Automorphism;
use pi_ring::{Domain, RnsPoly, kernels};

/// A ciphertext in coefficients whose first half is known at the multiples of `gap` only.
///
/// Not to be cloned: it is answered once.
pub struct Packed {
    pub(crate) modulus: CiphertextModulus,
    pub(crate) gap: usize,
    /// For each prime, the coefficients `0, gap, 2 gap, ..`.
    pub(crate) c0: RnsPoly,
    pub(crate) c1: RnsPoly,
}

impl Packed {
    /// One product as it is, with useful coefficients at the multiples of `gap`.
    ///
    /// # Panics
    /// If the product's kernels were made for packing levels, or `gap` is not a power of two up to [`N`].
    pub fn single(params: &Params, gap: usize, product: Product) -> Self {
        assert_eq!(
            product.levels, 0,
            "a product that is not packed has no levels"
        );
        assert!(gap.is_power_of_two() && gap <= N, "gap {gap}");
        let modulus = product.modulus;
        let [c0, mut c1] = product.halves;
        let c0 = fold(params, &c0, gap);
        c1.inverse_unscaled(&params.ntts()[..modulus.limbs()]);
        Self {
            modulus,
            gap,
            c0,
            c1,
        }
    }

    /// The distance of useful coefficients.
    pub fn gap(&self) -> usize {
        self.gap
    }

    /// The modulus.
    pub fn modulus(&self) -> CiphertextModulus {
        self.modulus
    }
}

impl std::fmt::Debug for Packed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Packed({:?}, gap {})", self.modulus, self.gap)
    }
}

/// Merges the products `product(0)`, .. `product(2^levels - 1)`, whose useful coefficients are at the multiples of `gap`.
///
/// Useful coefficient `u gap` of product `o` becomes coefficient `u gap + o gap / 2^levels`. Products are made when the tree
/// needs them, on the threads of the current rayon pool, so that few of them are in memory at a time.
///
/// # Cost
/// `2^levels - 1` key switches of about 0.4 ms of one core, and 0.05 ms a product.
/// # Panics
/// If `gap` is not a power of two up to [`N`], `2^levels` exceeds it, the keys do not reach it, or a product's modulus is not
/// [`CiphertextModulus::Conv`] or its levels differ.
pub fn pack(
    params: &Params,
    keys: &GaloisKeys,
    gap: usize,
    levels: u32,
    product: impl Fn(usize) -> Product + Sync,
) -> Packed {
    assert!(
        gap.is_power_of_two() && gap <= N && levels <= gap.trailing_zeros(),
        "{levels} levels of gap {gap}"
    );
    assert!(
        levels == 0 || keys.max_gap() >= gap,
        "keys for gap {} pack {gap}",
        keys.max_gap()
    );
    let checked = |o| {
        let product = product(o);
        assert_eq!(
            (product.modulus, product.levels),
            (CiphertextModulus::Conv, levels),
            "product to pack"
        );
        product
    };
    if levels == 0 {
        return Packed::single(params, gap, checked(0));
    }
    let unit = gap >> levels;
    let steps = (0..levels).map(|k| Step::new(keys, unit << k)).collect();
    let Node { c0, c1 } = Tree {
        params,
        levels,
        gap,
        steps,
        product: checked,
    }
    .node(0, 0);
    let mut divided = RnsPoly::zero(c0.n(), DIGITS, Domain::Coefficients);
    add_divided_by_special(params, &c0, &mut divided);
    Packed {
        modulus: CiphertextModulus::Conv,
        gap: unit,
        c0: divided,
        c1,
    }
}

struct Tree<'a, F> {
    params: &'a Params,
    levels: u32,
    gap: usize,
    /// Entry `k` merges at `m = unit 2^k`, the root being entry 0.
    steps: Vec<Step<'a>>,
    product: F,
}

/// One level of merging.
struct Step<'a> {
    m: usize,
    automorphism: Automorphism,
    key: &'a GaloisKey,
}

impl<'a> Step<'a> {
    fn new(keys: &'a GaloisKeys, m: usize) -> Self {
        Self {
            m,
            automorphism: Automorphism::new(galois_element(m), N),
            key: keys.key(m),
        }
    }
}

/// A partly merged ciphertext: the first half times `q4`, modulo all four primes, at the multiples of its gap only; the second
/// half modulo three.
struct Node {
    c0: RnsPoly,
    c1: RnsPoly,
}

impl<F: Fn(usize) -> Product + Sync> Tree<'_, F> {
    /// The merge of products `o`, `o + 2^depth`, `o + 2 2^depth`, ..
    fn node(&self, o: usize, depth: u32) -> Node {
        if depth == self.levels {
            return self.leaf(o);
        }
        let (a, b) = rayon::join(
            || self.node(o, depth + 1),
            || self.node(o + (1 << depth), depth + 1),
        );
        self.merge(&self.steps[depth as usize], a, b)
    }

    fn leaf(&self, o: usize) -> Node {
        let params = self.params;
        let Product {
            halves: [c0, mut c1],
            ..
        } = (self.product)(o);
        let folded = fold(params, &c0, self.gap);
        let mut c0 = RnsPoly::zero(folded.n(), KEY_LIMBS, Domain::Coefficients);
        for (i, m) in params.moduli.iter().take(DIGITS).enumerate() {
            c0.limb_mut(i).copy_from_slice(folded.limb(i));
            kernels::scale_assign(m, c0.limb_mut(i), params.special[i].0);
        }
        c1.inverse_unscaled(&params.ntts()[..DIGITS]);
        Node { c0, c1 }
    }

    fn merge(&self, step: &Step<'_>, a: Node, b: Node) -> Node {
        let params = self.params;
        // tau(A - X^m B) and A + X^m B of the second halves.
        let mut digits = RnsPoly::unspecified(N, DIGITS, Domain::Coefficients);
        let mut difference = RnsPoly::unspecified(N, 1, Domain::Coefficients);
        let mut c1 = a.c1;
        for i in 0..DIGITS {
            let m = &params.moduli[i];
            let difference = difference.limb_mut(0);
            kernels::butterfly(m, step.m, c1.limb_mut(i), b.c1.limb(i), difference);
            step.automorphism
                .apply_coefficients(difference, digits.limb_mut(i), m);
        }
        let mut c0 = RnsPoly::zero(2 * a.c0.n(), KEY_LIMBS, Domain::Coefficients);
        for (i, m) in params.moduli.iter().enumerate() {
            let sources = a.c0.limb(i).iter().zip(b.c0.limb(i));
            for (pair, (&a, &b)) in c0.limb_mut(i).chunks_exact_mut(2).zip(sources) {
                (pair[0], pair[1]) = (m.add(a, a), m.add(b, b));
            }
        }
        self.key_switch(step, &digits, &mut c0, &mut c1);
        Node { c0, c1 }
    }

    /// Adds the switched `digits`: to `c0` times `q4` and at the multiples of `m`, to `c1` divided.
    fn key_switch(&self, step: &Step<'_>, digits: &RnsPoly, c0: &mut RnsPoly, c1: &mut RnsPoly) {
        let params = self.params;
        let mut lifted = RnsPoly::unspecified(N, DIGITS, Domain::Values);
        let mut sums = [(); 2].map(|()| RnsPoly::unspecified(N, KEY_LIMBS, Domain::Values));
        for (j, m) in params.moduli.iter().enumerate() {
            for (i, lifted) in lifted.limbs_mut().enumerate() {
                kernels::lift_centred(&params.moduli[i], m, digits.limb(i), lifted);
                params.ntts()[j].forward(lifted);
            }
            let terms: [Term<'_>; DIGITS] = std::array::from_fn(|i| Term {
                halves: [step.key.digits[i][0].limb(j), step.key.digits[i][1].limb(j)],
                factor: lifted.limb(i),
            });
            let [s0, s1] = &mut sums;
            dot_pair(m, &terms, false, [s0.limb_mut(j), s1.limb_mut(j)]);
        }
        let [s0, mut s1] = sums;
        c0.add_assign(&fold(params, &s0, step.m), &params.moduli);
        s1.inverse_unscaled(params.ntts());
        add_divided_by_special(params, &s1, c1);
    }
}

/// The coefficients of `x`, which is in values times `N^-1`, at the multiples of `gap`.
pub(crate) fn fold(params: &Params, x: &RnsPoly, gap: usize) -> RnsPoly {
    let n = N / gap;
    let mut folded = RnsPoly::unspecified(n, x.limb_count(), Domain::Values);
    for (i, m) in params.moduli.iter().take(x.limb_count()).enumerate() {
        kernels::sum_adjacent(m, x.limb(i), folded.limb_mut(i));
    }
    // The mean of `gap` values, of which n^-1 is to be taken: n^-1 gap^-1 is the N^-1 that x already has.
    folded.inverse_unscaled(&params.short_ntts(n)[..x.limb_count()]);
    folded
}

/// Adds `x` divided by the special prime and rounded; `x` is modulo all four primes, `out` modulo three.
fn add_divided_by_special(params: &Params, x: &RnsPoly, out: &mut RnsPoly) {
    let special = &params.moduli[DIGITS];
    for (i, out) in out.limbs_mut().enumerate() {
        let (_, inverse) = params.special[i];
        kernels::add_divided(
            &params.moduli[i],
            special,
            inverse,
            x.limb(i),
            x.limb(DIGITS),
            out,
        );
    }
}
