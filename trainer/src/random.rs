//! Random streams of a run.
//!
//! ChaCha8 has 2^64 independent streams per seed. Each purpose draws from a separate one, so that
//! an additional draw for one purpose leaves the others unchanged, and a resumed run draws what an
//! uninterrupted one draws. The numbers are part of every result: a changed number is another run.

use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng;

/// A purpose that a run draws for once.
#[derive(Clone, Copy, Debug)]
#[repr(u64)]
pub(crate) enum RunStream {
    /// Starting values of the parameters.
    Parameters = 0,
    /// First flip of each image, where flips alternate.
    Flips = u64::MAX - 1,
    /// Starting values of a teacher that is trained beside the student.
    TeacherBeside = u64::MAX,
}

/// A purpose that a run draws for in each epoch.
#[derive(Clone, Copy, Debug)]
#[repr(u64)]
pub(crate) enum EpochStream {
    /// Order of the images and the seed of each batch's augmentation.
    Batches = 0,
    /// Images on which quadratics are fitted to ReLU.
    Fits = 1,
    /// Images on which the running statistics are measured again.
    Statistics = 2,
    /// Images of the first statistics of what stands newly at a site.
    FirstStatistics = 3,
    /// Blocks that BCD tries.
    Trials = 4,
    /// Images that the whitening convolution is computed from.
    Whitening = 5,
}

impl RunStream {
    /// Images of BCD's trials, the same in every step. They share the parameters' stream, which
    /// harms neither: it is fixed by the runs that exist.
    pub(crate) const TRIAL_IMAGES: Self = Self::Parameters;

    /// Generator of this purpose.
    pub(crate) fn rng(self, seed: u64) -> ChaCha8Rng {
        stream(seed, self as u64)
    }
}

impl EpochStream {
    /// Images on which saliency is measured; fixed, like [`RunStream::TRIAL_IMAGES`], by the runs
    /// that exist.
    pub(crate) const SALIENCY: Self = Self::Statistics;

    /// Generator of this purpose in an epoch of the run, counted from 0.
    ///
    /// Eight numbers belong to an epoch, of which the first is left free: stream 0 is
    /// [`RunStream::Parameters`], and no epoch comes near those of the others.
    pub(crate) fn rng(self, seed: u64, epoch: usize) -> ChaCha8Rng {
        let first = (epoch as u64).wrapping_mul(8).wrapping_add(1);
        stream(seed, first.wrapping_add(self as u64))
    }
}

/// Generator of a stream of a seed.
pub(crate) fn stream(seed: u64, number: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(number);
    rng
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_have_the_numbers_of_stored_runs() {
        let whole = [
            RunStream::Parameters,
            RunStream::TRIAL_IMAGES,
            RunStream::Flips,
            RunStream::TeacherBeside,
        ];
        let numbers = whole.map(|s| s.rng(7).get_stream());
        assert_eq!(numbers, [0, 0, u64::MAX - 1, u64::MAX]);
        let each = [
            EpochStream::Batches,
            EpochStream::Fits,
            EpochStream::Statistics,
            EpochStream::SALIENCY,
            EpochStream::FirstStatistics,
            EpochStream::Trials,
            EpochStream::Whitening,
        ];
        let numbers = |epoch| each.map(|s| s.rng(7, epoch).get_stream());
        assert_eq!(numbers(0), [1, 2, 3, 3, 4, 5, 6]);
        assert_eq!(numbers(10), [81, 82, 83, 83, 84, 85, 86]);
    }
}
