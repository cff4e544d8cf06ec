//! Orders of images: random, and dealt out by class.

use std::collections::BTreeMap;

use rand_core::RngCore;

/// Order that deals images sorted by class out one of each class in turn.
pub(super) fn interleaved(labels: &[u16]) -> Vec<usize> {
    let mut seen = BTreeMap::<u16, usize>::new();
    let ranks: Vec<usize> = labels
        .iter()
        .map(|label| {
            let next = seen.entry(*label).or_default();
            *next += 1;
            *next
        })
        .collect();
    let mut order: Vec<usize> = (0..labels.len()).collect();
    order.sort_by_key(|index| (ranks[*index], labels[*index]));
    order
}

/// A random order of `0..count`.
pub fn permutation(count: usize, rng: &mut impl RngCore) -> Vec<usize> {
    let mut order: Vec<usize> = (0..count).collect();
    for last in (1..count).rev() {
        order.swap(last, (rng.next_u64() % (last as u64 + 1)) as usize);
    }
    order
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_core::SeedableRng;

    use super::*;

    #[test]
    fn a_permutation_holds_each_index_once() {
        let mut order = permutation(1000, &mut ChaCha8Rng::seed_from_u64(1));
        assert_ne!(order[..10], [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]);
        order.sort_unstable();
        assert!(order.into_iter().eq(0..1000));
    }

    #[test]
    fn images_sorted_by_class_are_dealt_out_in_turn() {
        assert_eq!(interleaved(&[0, 0, 0, 1, 1, 2]), [0, 3, 5, 1, 4, 2]);
        // Already dealt out: nothing moves.
        assert_eq!(interleaved(&[0, 1, 2, 0, 1, 2]), [0, 1, 2, 3, 4, 5]);
    }
}
