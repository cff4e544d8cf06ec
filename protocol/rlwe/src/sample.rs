//! Secret distributions: ternary, centred binomial, flood. All samplers take constant time,
//! independent of the value they return.

use crate::xof::Stream;

/// The parameter of the centred binomial distribution of errors: the difference of two sums of 21
/// bits, standard deviation `sqrt(21 / 2) = 3.24`, at most 21 in magnitude.
pub(crate) const ERROR_BOUND: u64 = 21;

/// `n` uniform values of -1, 0, 1.
///
/// Each is the upper half of three times a 64-bit word, less one: 2^-62 from uniform, and no draw
/// is rejected.
pub(crate) fn ternary(n: usize, stream: &mut Stream) -> Vec<i64> {
    (0..n)
        .map(|_| ((stream.word() as u128 * 3) >> 64) as i64 - 1)
        .collect()
}

/// `n` errors of the centred binomial distribution with parameter [`ERROR_BOUND`].
pub(crate) fn errors(n: usize, stream: &mut Stream) -> Vec<i64> {
    const MASK: u64 = (1 << ERROR_BOUND) - 1;
    (0..n)
        .map(|_| {
            let word = stream.word();
            (word & MASK).count_ones() as i64 - ((word >> ERROR_BOUND) & MASK).count_ones() as i64
        })
        .collect()
}

/// The flood: a sum of four independent uniforms on `-quarter..=quarter`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Flood {
    pub(crate) quarter: u128,
    /// Bits of `2 quarter`, above 64.
    high_bits: u32,
}

impl Flood {
    /// The flood of this quarter, which must be in `2^64..2^121`.
    pub(crate) fn new(quarter: u128) -> Self {
        let bits = 128 - (2 * quarter).leading_zeros();
        assert!((66..=122).contains(&bits), "flood quarter of {bits} bits");
        Self {
            quarter,
            high_bits: bits - 64,
        }
    }

    /// The sum of four uniforms on `0..=2 quarter`: the flood plus `4 quarter`.
    ///
    /// Four draws are repeated if one is above the range. Whether that happens is independent of
    /// the value returned.
    #[inline(always)]
    pub(crate) fn sample_shifted(&self, stream: &mut Stream) -> u128 {
        let mask = (1 << self.high_bits) - 1;
        loop {
            // The upper bits of the draws share a word where they fit.
            let highs: [u64; 4] = if 4 * self.high_bits <= 64 {
                let word = stream.word();
                std::array::from_fn(|i| (word >> (i as u32 * self.high_bits)) & mask)
            } else {
                std::array::from_fn(|_| stream.word() & mask)
            };
            let draws = highs.map(|high| ((high as u128) << 64) | stream.word() as u128);
            if draws.iter().all(|&draw| draw <= 2 * self.quarter) {
                return draws.iter().sum();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand_chacha::ChaCha20Rng;
    use rand_core::SeedableRng;

    fn stream() -> Stream {
        Stream::secret(&mut ChaCha20Rng::seed_from_u64(8))
    }

    #[test]
    fn ternary_takes_each_value_a_third_of_the_time() {
        let v = ternary(30_000, &mut stream());
        for value in -1..=1 {
            let count = v.iter().filter(|&&x| x == value).count();
            // Standard deviation 82; five of them.
            assert!((9_590..=10_410).contains(&count), "{value}: {count}");
        }
    }

    #[test]
    fn errors_have_the_variance_of_the_binomial() {
        let v = errors(40_000, &mut stream());
        assert!(v.iter().all(|x| x.unsigned_abs() <= ERROR_BOUND));
        let mean = v.iter().sum::<i64>() as f64 / v.len() as f64;
        let variance = v.iter().map(|x| (x * x) as f64).sum::<f64>() / v.len() as f64;
        // Standard deviations 0.016 and 0.074.
        assert!(
            mean.abs() < 0.1 && (variance - 10.5).abs() < 0.5,
            "mean {mean}, variance {variance}"
        );
    }

    #[test]
    fn flood_is_bounded_and_has_the_variance_of_four_uniforms() {
        for quarter in [(1u128 << 74) - 12345, (1 << 120) - 999, (1 << 65) + 1] {
            let flood = Flood::new(quarter);
            let mut stream = stream();
            let samples: Vec<f64> = (0..20_000)
                .map(|_| {
                    let shifted = flood.sample_shifted(&mut stream);
                    assert!(shifted <= 8 * quarter);
                    (shifted as i128 - 4 * quarter as i128) as f64 / quarter as f64
                })
                .collect();
            let mean = samples.iter().sum::<f64>() / 20_000.0;
            let variance = samples.iter().map(|x| x * x).sum::<f64>() / 20_000.0;
            // A uniform on [-1, 1] has variance 1/3.
            assert!(
                mean.abs() < 0.04 && (variance - 4.0 / 3.0).abs() < 0.06,
                "mean {mean}, variance {variance}"
            );
        }
    }
}
