//! Packing: many ciphertexts whose useful coefficients are sparse become one.
//!
//! Chen, Dai, Kim and Song (2021): `A + X^m B + tau(A - X^m B)`, `tau` the automorphism `X ->
//! X^(N/m + 1)`, keeps twice the coefficients of `A` at multiples of `2m`, places twice those of
//! `B` half-way between, and cancels the rest. From `m = gap / 2` down, `levels` times, `2^levels`
//! ciphertexts merge with `2^levels - 1` automorphisms; kernels were premultiplied by `2^-levels`.
//!
//! # What is computed
//! Answers show first halves at useful coefficients only, so first halves are never carried in
//! full: of a product only every `gap`-th coefficient is computed (adjacent values are summed, a
//! transform of length `N / gap` does the rest), a merge interleaves and doubles, and of the first
//! half of a key switch only every `m`-th coefficient is computed. First halves stay multiplied by
//! the special prime until one division at the end. A key switch is twelve forward transforms, four
//! inverse ones, and four short ones; merging two products saves three of them and the products'
//! own.

use crate::keys::{GaloisKey, GaloisKeys};
use crate::params::{CiphertextModulus, DIGITS, KEY_LIMBS, MergeTables, N, Params};
use crate::product::Product;
use pi_ring::dot::{Term, dot_pair};
use pi_ring::{Domain, RnsPoly, kernels};
use rayon::prelude::*;
use std::iter;
use std::sync::{Mutex, MutexGuard};

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
    /// If the product's kernels were made for packing levels, or `gap` is not a power of two up to
    /// [`N`].
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
}

impl std::fmt::Debug for Packed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Packed({:?}, gap {})", self.modulus, self.gap)
    }
}

/// Merges `2^levels` products of each of several rows, whose useful coefficients are at the
/// multiples of `gap`; the rows have the same kernels.
///
/// Useful coefficient `u gap` of product `o` becomes coefficient `u gap + o gap / 2^levels` of its
/// row. Products are made when the tree needs them, on the threads of the current rayon pool, so
/// that few of them are in memory at a time: `products(places)` gives those of at most `2^together`
/// places, `[place][row]`.
///
/// # Cost
/// For each row `2^levels - 1` key switches of about 0.3 ms of one core, and 0.05 ms a product;
/// `2^together` products of each row are in memory at a time, times the threads.
/// # Panics
/// If `gap` is not a power of two up to [`N`], `2^levels` exceeds it, the keys do not reach it, or
/// a product's modulus is not [`CiphertextModulus::Conv`], its levels differ, or the products of
/// some places have another shape.
pub fn pack_rows(
    params: &Params,
    keys: &GaloisKeys,
    gap: usize,
    levels: u32,
    together: u32,
    products: impl Fn(&[usize]) -> Vec<Vec<Product>> + Sync,
) -> Vec<Packed> {
    assert!(
        gap.is_power_of_two() && gap <= N && levels <= gap.trailing_zeros(),
        "{levels} levels of gap {gap}"
    );
    assert!(
        levels == 0 || keys.max_gap() >= gap,
        "keys for gap {} pack {gap}",
        keys.max_gap()
    );
    // By row, and all of them what the tree expects.
    let checked = |places: &[usize]| {
        let products = products(places);
        assert_eq!(products.len(), places.len(), "places of products");
        let mut rows: Vec<Vec<Product>> = Vec::new();
        for (place, products) in products.into_iter().enumerate() {
            if place == 0 {
                rows.resize_with(products.len(), Vec::new);
            }
            assert_eq!(products.len(), rows.len(), "rows of products");
            for (row, product) in rows.iter_mut().zip(products) {
                assert_eq!(
                    (product.modulus, product.levels),
                    (CiphertextModulus::Conv, levels),
                    "product to pack"
                );
                row.push(product);
            }
        }
        rows
    };
    if levels == 0 {
        let rows = checked(&[0]).into_par_iter().flatten();
        return rows
            .map(|product| Packed::single(params, gap, product))
            .collect();
    }
    let unit = gap >> levels;
    let tree = Tree {
        params,
        levels,
        together: together.clamp(1, levels),
        gap,
        steps: (0..levels)
            .map(|k| Step::new(params, keys, unit << k))
            .collect(),
        products: checked,
        workspaces: Mutex::default(),
    };
    let nodes = tree.node(0, 0).into_iter();
    nodes
        .map(|Node { c0, c1 }| {
            let mut divided = RnsPoly::zero(c0.n(), DIGITS, Domain::Coefficients);
            add_divided_by_special(params, &c0, &mut divided);
            Packed {
                modulus: CiphertextModulus::Conv,
                gap: unit,
                c0: divided,
                c1,
            }
        })
        .collect()
}

struct Tree<'a, F> {
    params: &'a Params,
    levels: u32,
    /// Levels at the leaves whose products are made at once, at least one.
    together: u32,
    gap: usize,
    /// Entry `k` merges at `m = unit 2^k`, the root being entry 0.
    steps: Vec<Step<'a>>,
    products: F,
    /// Those that no merge uses now.
    workspaces: Mutex<Vec<Workspace>>,
}

/// One level of merging.
struct Step<'a> {
    m: usize,
    tables: &'a MergeTables,
    key: &'a GaloisKey,
}

impl<'a> Step<'a> {
    fn new(params: &'a Params, keys: &'a GaloisKeys, m: usize) -> Self {
        Self {
            m,
            tables: params.merge(m),
            key: keys.key(m),
        }
    }
}

/// A partly merged ciphertext: the first half times `q4`, modulo all four primes, at the multiples
/// of its gap only; the second half modulo three.
struct Node {
    c0: RnsPoly,
    c1: RnsPoly,
}

impl<F: Fn(&[usize]) -> Vec<Vec<Product>> + Sync> Tree<'_, F> {
    /// The merges of products `o`, `o + 2^depth`, `o + 2 2^depth`, .., by row.
    fn node(&self, o: usize, depth: u32) -> Vec<Node> {
        let below = self.levels - depth;
        if below <= self.together {
            let places: Vec<usize> = (0..1 << below).map(|k| o + (k << depth)).collect();
            let rows = (self.products)(&places).into_par_iter();
            return rows.map(|row| self.leaves(row, depth)).collect();
        }
        let (a, b) = rayon::join(
            || self.node(o, depth + 1),
            || self.node(o + (1 << depth), depth + 1),
        );
        a.into_par_iter()
            .zip(b)
            .map(|(a, b)| self.merge(&self.steps[depth as usize], a, b))
            .collect()
    }

    /// The merge of one row's products at [`Tree::node`]'s places.
    fn leaves(&self, mut products: Vec<Product>, depth: u32) -> Node {
        let step = &self.steps[depth as usize];
        if products.len() == 2 {
            let b = products.pop().expect("there are two");
            let a = products.pop().expect("there are two");
            return self.merge_products(step, a, b);
        }
        let (mut even, mut odd) = (Vec::new(), Vec::new());
        for (k, product) in products.into_iter().enumerate() {
            if k % 2 == 0 { &mut even } else { &mut odd }.push(product);
        }
        let (a, b) = rayon::join(
            || self.leaves(even, depth + 1),
            || self.leaves(odd, depth + 1),
        );
        self.merge(step, a, b)
    }

    /// The first half of a product as that of a [`Node`].
    fn leaf_half(&self, c0: &RnsPoly) -> RnsPoly {
        let params = self.params;
        let folded = fold(params, c0, self.gap);
        let mut c0 = RnsPoly::zero(folded.n(), KEY_LIMBS, Domain::Coefficients);
        for (i, m) in params.moduli.iter().take(DIGITS).enumerate() {
            c0.limb_mut(i).copy_from_slice(folded.limb(i));
            kernels::scale_assign(m, c0.limb_mut(i), params.special[i].0);
        }
        c0
    }

    /// [`Tree::merge`] of two products, which come in values.
    ///
    /// `A + X^m B` and `tau(A - X^m B)` are made of values. The second has to become coefficients
    /// to be cut into digits, but modulo its own prime a digit's values are there already. The
    /// first, times `q4`, joins the switched sum before that is transformed and divided. Sixteen
    /// transforms instead of 22.
    fn merge_products(&self, step: &Step<'_>, a: Product, b: Product) -> Node {
        let params = self.params;
        let ([a0, mut sum], [b0, mut shifted]) = (a.halves, b.halves);
        let mut workspace = self.take_workspace();
        let Workspace {
            digits,
            own,
            difference,
            ..
        } = &mut workspace;
        for i in 0..DIGITS {
            let m = &params.moduli[i];
            let (shifted, difference) = (shifted.limb_mut(i), difference.limb_mut(0));
            kernels::mul_assign(m, shifted, step.tables.monomial.limb(i));
            kernels::butterfly(m, 0, sum.limb_mut(i), shifted, difference);
            let automorphism = &step.tables.automorphism;
            automorphism.apply_values(difference, own.limb_mut(i));
            kernels::scale_assign(m, sum.limb_mut(i), params.special[i].0);
            let digit = digits.limb_mut(i);
            digit.copy_from_slice(own.limb(i));
            params.ntts()[i].inverse_unscaled(digit);
            // Products are in values times N^-1; digits are not.
            kernels::scale_assign(m, own.limb_mut(i), N as u64);
        }
        let mut c0 = interleave_doubled(params, &self.leaf_half(&a0), &self.leaf_half(&b0));
        let mut c1 = RnsPoly::zero(N, DIGITS, Domain::Coefficients);
        self.key_switch(step, &mut workspace, Some(&sum), [&mut c0, &mut c1]);
        self.give_workspace(workspace);
        Node { c0, c1 }
    }

    fn merge(&self, step: &Step<'_>, a: Node, b: Node) -> Node {
        let params = self.params;
        let mut workspace = self.take_workspace();
        // tau(A - X^m B) and A + X^m B of the second halves.
        let mut c1 = a.c1;
        for i in 0..DIGITS {
            let m = &params.moduli[i];
            let difference = workspace.difference.limb_mut(0);
            kernels::butterfly(m, step.m, c1.limb_mut(i), b.c1.limb(i), difference);
            let automorphism = &step.tables.automorphism;
            automorphism.apply_coefficients(difference, workspace.digits.limb_mut(i), m);
        }
        let mut c0 = interleave_doubled(params, &a.c0, &b.c0);
        self.key_switch(step, &mut workspace, None, [&mut c0, &mut c1]);
        self.give_workspace(workspace);
        Node { c0, c1 }
    }

    /// Switches the workspace's digits: adds the first half to `c0`, times `q4` and at the
    /// multiples of `m`, and the second to `c1`. With `products`, which are second halves times
    /// `q4`, in values times `N^-1`, it adds those to the second half, and takes the values of each
    /// digit modulo its own prime from the workspace.
    ///
    /// Prime by prime, the special one first, so that everything but the key stays in the second
    /// cache.
    fn key_switch(
        &self,
        step: &Step<'_>,
        workspace: &mut Workspace,
        products: Option<&RnsPoly>,
        [c0, c1]: [&mut RnsPoly; 2],
    ) {
        let params = self.params;
        let Workspace {
            digits,
            own,
            lifted,
            sums,
            special,
            folded,
            ..
        } = workspace;
        let own = products.map(|_| &*own);
        let folded = &mut folded.limb_mut(0)[..N / step.m];
        for j in iter::once(DIGITS).chain(0..DIGITS) {
            let (m, ntt) = (&params.moduli[j], &params.ntts()[j]);
            let own = own.filter(|_| j < DIGITS).map(|own| own.limb(j));
            for (i, lifted) in lifted.limbs_mut().enumerate() {
                if i != j || own.is_none() {
                    ntt.forward_lifted([&params.moduli[i], m], digits.limb(i), lifted);
                }
            }
            let terms: [Term<'_>; DIGITS] = std::array::from_fn(|i| Term {
                halves: [step.key.digits[i][0].limb(j), step.key.digits[i][1].limb(j)],
                factor: own.filter(|_| i == j).unwrap_or(lifted.limb(i)),
            });
            let [s0, s1] = sums;
            let (s0, s1) = (s0.limb_mut(0), s1.limb_mut(0));
            dot_pair(m, &terms, false, [&mut *s0, &mut *s1]);
            fold_limb(params, j, s0, folded);
            kernels::add_assign(m, c0.limb_mut(j), folded);
            if let Some(products) = products.filter(|_| j < DIGITS) {
                kernels::add_assign(m, s1, products.limb(j));
            }
            ntt.inverse_unscaled(s1);
            if j == DIGITS {
                std::mem::swap(special, &mut sums[1]);
            } else {
                add_divided_limb(params, j, s1, special.limb(0), c1.limb_mut(j));
            }
        }
    }

    /// Memory for a merge, not shared with another one at the same time.
    fn take_workspace(&self) -> Workspace {
        self.free_workspaces().pop().unwrap_or_default()
    }

    /// Keeps memory for another merge.
    fn give_workspace(&self, workspace: Workspace) {
        self.free_workspaces().push(workspace);
    }

    fn free_workspaces(&self) -> MutexGuard<'_, Vec<Workspace>> {
        let free = self.workspaces.lock();
        free.expect("nothing panics while it holds the lock")
    }
}

/// What merges write beside their results. Kept from merge to merge, as polynomials are erased when
/// they are dropped; their numbers go with the tree.
struct Workspace {
    digits: RnsPoly,
    own: RnsPoly,
    difference: RnsPoly,
    lifted: RnsPoly,
    sums: [RnsPoly; 2],
    special: RnsPoly,
    folded: RnsPoly,
}

impl Default for Workspace {
    fn default() -> Self {
        let limbs = |limbs| RnsPoly::zero(N, limbs, Domain::Values);
        Self {
            digits: limbs(DIGITS),
            own: limbs(DIGITS),
            difference: limbs(1),
            lifted: limbs(DIGITS),
            sums: [limbs(1), limbs(1)],
            special: limbs(1),
            folded: limbs(1),
        }
    }
}

/// The first half of a merge before its key switch: twice `a` and twice `b` by turns.
fn interleave_doubled(params: &Params, a: &RnsPoly, b: &RnsPoly) -> RnsPoly {
    let mut c0 = RnsPoly::zero(2 * a.n(), KEY_LIMBS, Domain::Coefficients);
    for (i, m) in params.moduli.iter().enumerate() {
        let sources = a.limb(i).iter().zip(b.limb(i));
        for (pair, (&a, &b)) in c0.limb_mut(i).chunks_exact_mut(2).zip(sources) {
            (pair[0], pair[1]) = (m.add(a, a), m.add(b, b));
        }
    }
    c0
}

/// The coefficients of `x`, which is in values times `N^-1`, at the multiples of `gap`.
pub(crate) fn fold(params: &Params, x: &RnsPoly, gap: usize) -> RnsPoly {
    let mut folded = RnsPoly::zero(N / gap, x.limb_count(), Domain::Coefficients);
    for (i, (x, folded)) in x.limbs().zip(folded.limbs_mut()).enumerate() {
        fold_limb(params, i, x, folded);
    }
    folded
}

/// [`fold`] modulo one prime, to as many coefficients as there is place for.
fn fold_limb(params: &Params, i: usize, x: &[u64], folded: &mut [u64]) {
    kernels::sum_adjacent(&params.moduli[i], x, folded);
    // The mean of `gap` values, of which n^-1 is to be taken: n^-1 gap^-1 is the N^-1 that x
    // already has.
    params.short_ntts(folded.len())[i].inverse_unscaled(folded);
}

/// Adds `x` divided by the special prime and rounded; `x` is modulo all four primes, `out` modulo
/// three.
fn add_divided_by_special(params: &Params, x: &RnsPoly, out: &mut RnsPoly) {
    for (i, out) in out.limbs_mut().enumerate() {
        add_divided_limb(params, i, x.limb(i), x.limb(DIGITS), out);
    }
}

/// [`add_divided_by_special`] modulo one prime; `special` is modulo the special one.
fn add_divided_limb(params: &Params, i: usize, x: &[u64], special: &[u64], out: &mut [u64]) {
    let (_, inverse) = params.special[i];
    let moduli = [&params.moduli[i], &params.moduli[DIGITS]];
    kernels::add_divided(moduli[0], moduli[1], inverse, x, special, out);
}
