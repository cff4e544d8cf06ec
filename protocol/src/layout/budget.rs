//! What deriving the plans of an artifact may take.

/// Steps and memory that are left for deriving the plans of one artifact, all together: an artifact
/// of a few hundred bytes may describe plans of any size, and comes from a peer.
///
/// Everything is charged before it is done or allocated.
#[derive(Debug)]
pub(crate) struct Budget {
    steps: u64,
    words: u64,
}

/// Steps for all plans of an artifact: positions that are looked at. They take about a second of
/// one core. A ResNet-50 for 224 pixels with three plans takes a sixty-fourth (`tests::budget`).
const STEPS: u64 = 1 << 26;

/// Words of eight bytes that all plans of an artifact may keep: 32 MiB, and while a tile is derived
/// as much again. A ResNet-50 for 224 pixels with three plans keeps a tenth.
const WORDS: u64 = 1 << 22;

impl Budget {
    /// The budget of a whole artifact.
    pub(crate) fn new() -> Budget {
        Budget {
            steps: STEPS,
            words: WORDS,
        }
    }

    /// Takes steps.
    ///
    /// # Errors
    /// If there are not as many left: one sentence.
    pub(super) fn step(&mut self, steps: u64) -> Result<(), String> {
        take(&mut self.steps, steps, "steps", STEPS)
    }

    /// Takes words that are kept.
    ///
    /// # Errors
    /// As [`Budget::step`].
    pub(super) fn keep(&mut self, words: u64) -> Result<(), String> {
        take(&mut self.words, words, "words of memory", WORDS)
    }

    /// Ensures that so many words are left, which may not be kept in the end.
    ///
    /// # Errors
    /// As [`Budget::step`].
    pub(super) fn ensure(&self, words: u64) -> Result<(), String> {
        take(&mut self.words.clone(), words, "words of memory", WORDS)
    }

    /// The parts of the steps and of the words that have been taken.
    #[cfg(test)]
    pub(crate) fn taken(&self) -> (f64, f64) {
        let part = |left: u64, all: u64| 1.0 - left as f64 / all as f64;
        (part(self.steps, STEPS), part(self.words, WORDS))
    }
}

fn take(left: &mut u64, wanted: u64, what: &str, all: u64) -> Result<(), String> {
    *left = left.checked_sub(wanted).ok_or_else(|| {
        format!("too large to derive: all plans of a model may take {all} {what} together")
    })?;
    Ok(())
}
