//! Division of a batch into shares whose sums are added in order.

use std::ops::Range;

/// Most shares of a batch: enough for as many threads, and few enough that a share's sums, as large
/// as the weights, cost little beside its products.
const SHARES: usize = 8;

/// Rows of a matrix product that a share should have.
const ROWS: usize = 96;

/// Returns the images of each share, `rows` of a product in each. It depends on nothing but these
/// numbers, so that sums over shares do not depend on the number of threads.
pub(crate) fn shares(images: usize, rows: usize) -> Vec<Range<usize>> {
    let count = (images * rows / ROWS).clamp(2, SHARES).min(images);
    (0..count)
        .map(|i| images * i / count..images * (i + 1) / count)
        .collect()
}

/// Cuts a slice of `size` values an image into the slices of the shares.
pub(crate) fn cut<'a, T>(
    mut values: &'a mut [T],
    shares: &[Range<usize>],
    size: usize,
) -> Vec<&'a mut [T]> {
    let mut parts = Vec::with_capacity(shares.len());
    for share in shares {
        let (part, rest) = values.split_at_mut(share.len() * size);
        parts.push(part);
        values = rest;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_all_images_in_order() {
        for (images, rows, count) in [
            (1, 500, 1),
            (2, 500, 2),
            (7, 500, 7),
            (9, 500, 8),
            (513, 500, 8),
            (100, 1, 2),
            (500, 1, 5),
        ] {
            let shares = shares(images, rows);
            assert_eq!(shares.len(), count);
            assert!(shares.iter().all(|share| !share.is_empty()), "{images}");
            let all: Vec<usize> = shares.into_iter().flatten().collect();
            assert_eq!(all, (0..images).collect::<Vec<_>>());
        }
        assert!(shares(0, 1).is_empty());
    }
}
