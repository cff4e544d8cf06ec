//! All-but-one OT from one-out-of-two OTs: the tree of Goldreich, Goldwasser and Micali, punctured.
//!
//! The holder of a tree of depth `k` knows `2^k` random leaves, the other party all but the one at
//! its secret index `alpha`. `k` one-out-of-two OTs and `64 (k - 1)` bytes make one tree: per level
//! the holder sends the sum of all left nodes and the sum of all right ones, each masked by one
//! seed of that level's OT. SoftSpokenOT ([`crate::TreeDepth`]) takes its streams from the leaves.
//!
//! The punctured side computes with *relative* indices `y = x xor alpha`, so the missing leaf is
//! always leaf 0 and no memory access depends on `alpha`: only the order of two children does.

use pi_core::{Error, SEED_BYTES};
use subtle::{Choice, ConditionallySelectable};
use zeroize::{Zeroize, Zeroizing};

use crate::BASE_OTS;
use crate::chou_orlandi::Seeds;

type Node = [u8; SEED_BYTES];

/// The depth `k` of the trees in the OT extension: `16 / k` bytes per OT, for `2^k / k` times the
/// work.
///
/// Depth 1 is exactly the protocol of Ishai, Kilian, Nissim and Petrank ([`TreeDepth::IKNP`]).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TreeDepth(u32);

impl TreeDepth {
    /// Depth 1: no trees at all, 16 bytes per OT.
    pub const IKNP: TreeDepth = TreeDepth(1);

    /// Checks a depth.
    ///
    /// # Errors
    /// [`Error::CallerRange`] outside 1 to 8.
    pub const fn new(depth: u32) -> Result<Self, Error> {
        const MAX: u32 = 8;
        match depth {
            1..=MAX => Ok(TreeDepth(depth)),
            got => Err(Error::CallerRange {
                what: "tree depth",
                min: 1,
                max: MAX,
                got,
            }),
        }
    }

    /// Returns `k`.
    pub const fn get(self) -> u32 {
        self.0
    }

    /// Returns the number of trees, `128 / k` rounded up.
    pub const fn trees(self) -> usize {
        BASE_OTS.div_ceil(self.0 as usize)
    }

    /// Returns the length of the message that sets up a bundle's extension: `64 (k - 1)` per tree.
    pub const fn setup_bytes(self) -> usize {
        // One level of each tree costs nothing, and there are 128 levels in all trees together.
        (BASE_OTS - self.trees()) * LEVEL_BYTES
    }

    /// Returns the length of the correction for `count` OTs: a bit per OT and tree, bytes filled
    /// up.
    pub const fn correction_bytes(self, count: usize) -> usize {
        self.trees() * count.div_ceil(8)
    }

    /// Returns the part of a tree over `levels` base OTs in the setup message; its first level is
    /// free.
    pub(crate) const fn tree_setup_bytes(levels: usize) -> usize {
        (levels - 1) * LEVEL_BYTES
    }

    /// Returns the base OTs of each tree; the last one is shallower unless `k` divides 128.
    pub(crate) fn ranges(self) -> impl Iterator<Item = std::ops::Range<usize>> {
        let depth = self.0 as usize;
        (0..BASE_OTS)
            .step_by(depth)
            .map(move |start| start..(start + depth).min(BASE_OTS))
    }
}

impl Default for TreeDepth {
    /// Depth 4: a quarter of the bytes of IKNP for less than twice its time; depth 8 takes nearly
    /// ten times.
    fn default() -> Self {
        TreeDepth(4)
    }
}

const LEVEL_BYTES: usize = 2 * SEED_BYTES;

/// Returns the leaves of the tree made from these base OTs, and appends the corrections to
/// `message`.
///
/// The base OT of index bit `l` of a leaf is `pairs[l]`; levels start from the highest bit.
pub(crate) fn grow(pairs: &[[Node; 2]], message: &mut Vec<u8>) -> Seeds {
    let mut levels = pairs.iter().rev();
    let root = levels.next().expect("a tree has at least one level");
    // The chooser of bit `a` learns seed `a` and has to learn side `1 - a`.
    let mut nodes: Seeds = Zeroizing::new(vec![root[1], root[0]]);
    for pair in levels {
        let mut children: Seeds = Zeroizing::new(Vec::with_capacity(2 * nodes.len()));
        let mut sums = [pair[1], pair[0]];
        for node in nodes.iter() {
            let pair = expand(node);
            for (sum, child) in sums.iter_mut().zip(pair.iter()) {
                add(sum, child);
            }
            children.extend_from_slice(&*pair);
        }
        message.extend_from_slice(sums.as_flattened());
        nodes = children;
    }
    nodes
}

/// Returns the leaves at relative indices `1..2^k`, from the chosen seeds and the tree's part of
/// the setup message.
///
/// `seeds[l]` was chosen by `alpha[l]`, index bit `l` of the missing leaf. `corrections` has `64
/// (k - 1)` bytes.
pub(crate) fn puncture(seeds: &[Node], alpha: &[u8], corrections: &[u8]) -> Seeds {
    let mut levels = seeds.iter().zip(alpha).rev();
    let (root, _) = levels.next().expect("a tree has at least one level");
    // Node 0 stands for the missing one throughout.
    let mut nodes: Seeds = Zeroizing::new(vec![[0; SEED_BYTES], *root]);
    for ((seed, &alpha), correction) in levels.zip(corrections.chunks_exact(LEVEL_BYTES)) {
        let alpha = Choice::from(alpha & 1);
        let mut children: Seeds = Zeroizing::new(vec![[0; SEED_BYTES]; 2]);
        children.reserve_exact(2 * nodes.len() - 2);
        // The sum of all nodes on the side that is not alpha's ...
        let mut missing = *seed;
        for (i, byte) in missing.iter_mut().enumerate() {
            *byte ^= u8::conditional_select(&correction[SEED_BYTES + i], &correction[i], alpha);
        }
        for node in &nodes[1..] {
            let mut pair = expand(node);
            let [left, right] = &mut *pair;
            for (left, right) in left.iter_mut().zip(right) {
                u8::conditional_swap(left, right, alpha);
            }
            // ... less all that are known on it.
            add(&mut missing, &pair[1]);
            children.extend_from_slice(&*pair);
        }
        children[1] = missing;
        missing.zeroize();
        nodes = children;
    }
    nodes.remove(0);
    nodes
}

/// Returns the two children of a node.
fn expand(node: &Node) -> Zeroizing<[Node; 2]> {
    let mut children = Zeroizing::new([[0; SEED_BYTES]; 2]);
    let mut hasher = blake3::Hasher::new_keyed(node);
    hasher
        .update(b"pianissimo v1 tree node")
        .finalize_xof()
        .fill(children.as_flattened_mut());
    hasher.zeroize();
    children
}

fn add(sum: &mut Node, node: &Node) {
    for (sum, node) in sum.iter_mut().zip(node) {
        *sum ^= node;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chou_orlandi::SeedPairs;
    use rand_chacha::ChaCha20Rng;
    use rand_core::{RngCore, SeedableRng};

    fn random_pairs(count: usize, rng: &mut ChaCha20Rng) -> SeedPairs {
        let mut pairs = Zeroizing::new(vec![[[0; SEED_BYTES]; 2]; count]);
        rng.fill_bytes(pairs.as_flattened_mut().as_flattened_mut());
        pairs
    }

    #[test]
    fn all_leaves_but_one_agree() {
        let mut rng = ChaCha20Rng::seed_from_u64(11);
        for depth in 1..=5 {
            for alpha in 0..1usize << depth {
                let pairs = random_pairs(depth, &mut rng);
                let bits: Vec<u8> = (0..depth).map(|l| (alpha >> l & 1) as u8).collect();
                let seeds: Vec<Node> = (0..depth).map(|l| pairs[l][bits[l] as usize]).collect();
                let mut message = Vec::new();
                let leaves = grow(&pairs, &mut message);
                assert_eq!(
                    (leaves.len(), message.len()),
                    (1 << depth, 64 * (depth - 1))
                );
                let punctured = puncture(&seeds, &bits, &message);
                assert_eq!(punctured.len(), leaves.len() - 1);
                for y in 1..leaves.len() {
                    assert_eq!(
                        punctured[y - 1],
                        leaves[y ^ alpha],
                        "depth {depth}, alpha {alpha}, leaf {y}"
                    );
                }
                assert!(!punctured.contains(&leaves[alpha]));
            }
        }
    }

    #[test]
    fn ranges_cover_the_base_ots() {
        for depth in 1..=8 {
            let depth = TreeDepth::new(depth).unwrap();
            let all: Vec<usize> = depth.ranges().flatten().collect();
            assert_eq!(all, (0..BASE_OTS).collect::<Vec<_>>());
            assert_eq!(depth.ranges().count(), depth.trees());
            let setup: usize = depth.ranges().map(|range| 64 * (range.len() - 1)).sum();
            assert_eq!(depth.setup_bytes(), setup);
        }
        assert!(TreeDepth::new(0).is_err());
        assert!(TreeDepth::new(9).is_err());
    }
}
