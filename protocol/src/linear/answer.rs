//! Kernels times masks: the server's answer and the client's reading of it.

use super::Forks;
use super::job::{Job, Scratch, jobs};
use super::kernels::Kernels;
use crate::layout::{AnswerMap, Packing, UploadMap, Useful};
use pi_core::fp;
use pi_rlwe::{
    Ciphertext, CiphertextRow, Error, GaloisKeys, MaskedCiphertext, N, Packed, Params, PublicKey,
    SecretKey, decrypt, mask_and_flood,
};
use rand_core::CryptoRng;
use rayon::prelude::*;
use zeroize::Zeroizing;

/// The server's answers, made one after the other: `Enc(W r + s)` of a convolution, for fresh `s`.
pub struct Answers<'a> {
    params: &'a Params,
    packing: &'a Packing,
    kernels: &'a Kernels,
    public_key: &'a PublicKey,
    galois_keys: &'a GaloisKeys,
    forks: Forks,
    scratch: Scratch,
    /// True where an answer was made, by answer.
    made: Vec<bool>,
}

impl<'a> Answers<'a> {
    /// Draws the seed of all randomness of the answers, `s` included: `rng` is seeded once for an
    /// exchange, after it has started.
    ///
    /// # Panics
    /// If the kernels are of another packing, or the Galois keys do not reach [`max_gap`].
    pub fn new(
        params: &'a Params,
        packing: &'a Packing,
        kernels: &'a Kernels,
        public_key: &'a PublicKey,
        galois_keys: &'a GaloisKeys,
        rng: &mut impl CryptoRng,
    ) -> Self {
        let count = packing.answers().len();
        assert_eq!(kernels.answers.len(), count, "kernels of another packing");
        assert!(galois_keys.max_gap() >= max_gap(packing), "Galois keys");
        Answers {
            params,
            packing,
            kernels,
            public_key,
            galois_keys,
            forks: Forks::new(rng),
            scratch: Scratch::default(),
            made: vec![false; count],
        }
    }

    /// The message of answer `answer`, of [`answers_bytes`], and its `s`, `[bundle][o][y][x]`.
    ///
    /// The result does not depend on the number of threads, nor on the order of answers.
    ///
    /// # Cost
    /// See [`super::cost()`]; on all threads of the current rayon pool.
    /// # Panics
    /// If this answer was made before: answering an upload twice leaks bits of `W r`. If `inputs`
    /// are not the rows ([`rows_of`]) of the answer's upload.
    pub fn make(
        &mut self,
        answer: usize,
        inputs: &[CiphertextRow],
    ) -> (Vec<u8>, Zeroizing<Vec<u64>>) {
        // Marked before anything is computed, so that not even a panic half way allows another.
        let made = std::mem::replace(&mut self.made[answer], true);
        assert!(!made, "answer {answer} was made before");
        let map = &self.packing.answers()[answer];
        let upload = &self.packing.uploads()[map.upload()];
        assert_eq!(inputs.len(), upload.rows(), "rows of another upload");
        let finished: Vec<Vec<Finished>> = jobs(map, upload)
            .into_par_iter()
            .map(|(chunks, rows)| {
                let job = Job {
                    params: self.params,
                    answer: map,
                    upload,
                    kernels: &self.kernels.answers[answer],
                    inputs,
                    galois_keys: self.galois_keys,
                    scratch: &self.scratch,
                    chunks,
                    rows,
                };
                job.run(|index, packed| self.finish(answer, index, packed))
            })
            .collect();
        // Jobs cover chunks and rows; the message has row by row, and in a row chunk by chunk.
        let mut finished: Vec<Finished> = finished.into_iter().flatten().collect();
        finished.sort_unstable_by_key(|part| part.index);
        let mut share = Zeroizing::new(vec![0; map.len()]);
        for part in &finished {
            scatter(&part.useful, &part.mask, &mut share);
        }
        let parts: Vec<&[u8]> = finished.iter().map(|part| part.bytes.as_slice()).collect();
        (parts.concat(), share)
    }

    /// Masks and floods output ciphertext `index`. Its generator depends on answer and index alone,
    /// so neither threads nor the order of answers show in the message.
    fn finish(&self, answer: usize, index: usize, packed: Packed) -> Finished {
        let map = &self.packing.answers()[answer];
        let useful = map.useful(&self.packing.uploads()[map.upload()], index);
        let rng = &mut self.forks.task("answer", answer, index);
        let mask = Zeroizing::new(fp::uniform_vec(useful.len(), rng));
        let coefficients = coefficients(&useful);
        let (params, key) = (self.params, self.public_key);
        let bytes = mask_and_flood(params, packed, key, &coefficients, &mask, rng).encode();
        Finished {
            index,
            bytes,
            useful,
            mask,
        }
    }
}

/// `W r + s` of one convolution, `[bundle][o][y][x]`, from the message of its answer.
///
/// # Errors
/// If the message has not exactly the plan's length.
/// # Panics
/// If the packing has no such answer, or is not for the standard ring.
pub fn finish_answer(
    params: &Params,
    packing: &Packing,
    secret: &SecretKey,
    answer: usize,
    message: &[u8],
) -> Result<Zeroizing<Vec<u64>>, Error> {
    assert_eq!(packing.ring_degree(), N, "packing for another ring");
    let map = &packing.answers()[answer];
    let expected = answers_bytes(map);
    if message.len() != expected {
        return Err(Error::Length {
            what: "answer",
            expected,
            got: message.len(),
        });
    }
    let mut rest = message;
    let parts: Vec<(usize, &[u8])> = (0..map.ciphertexts())
        .map(|index| {
            let (part, after) = rest.split_at(MaskedCiphertext::bytes(map.useful_count(index)));
            rest = after;
            (index, part)
        })
        .collect();
    let opened = parts
        .into_par_iter()
        .map(|(index, bytes)| {
            let useful = map.useful(&packing.uploads()[map.upload()], index);
            let decoded = MaskedCiphertext::decode(useful.len(), bytes)?;
            let values = decrypt(params, secret, &decoded, &coefficients(&useful));
            Ok((useful, values))
        })
        .collect::<Result<Vec<_>, Error>>()?;
    let mut share = Zeroizing::new(vec![0; map.len()]);
    for (useful, values) in &opened {
        scatter(useful, values, &mut share);
    }
    Ok(share)
}

/// The gap that the client's Galois keys must reach for this packing: the largest group whose
/// results are merged.
pub fn max_gap(packing: &Packing) -> usize {
    let gap = |answer: &AnswerMap| {
        let group = packing.uploads()[answer.upload()].layout().group as usize;
        if answer.merge() > 0 { group } else { 1 }
    };
    packing.answers().iter().map(gap).max().unwrap_or(1)
}

/// Bytes of one answer: 71,680 a ciphertext and 8 a useful coefficient.
pub fn answers_bytes(answer: &AnswerMap) -> usize {
    (0..answer.ciphertexts())
        .map(|index| MaskedCiphertext::bytes(answer.useful_count(index)))
        .sum()
}

/// The ciphertexts of an upload as the answers to it multiply them: row by row.
///
/// # Panics
/// If there are not as many as the upload has.
pub fn rows_of(upload: &UploadMap, ciphertexts: Vec<Ciphertext>) -> Vec<CiphertextRow> {
    let count = upload.ciphertexts();
    assert_eq!(ciphertexts.len(), count, "ciphertexts of another upload");
    let rows = ciphertexts.par_chunks(upload.groups());
    rows.map(CiphertextRow::new).collect()
}

/// One finished output ciphertext.
struct Finished {
    index: usize,
    bytes: Vec<u8>,
    useful: Vec<Useful>,
    mask: Zeroizing<Vec<u64>>,
}

fn coefficients(useful: &[Useful]) -> Vec<u32> {
    useful.iter().map(|u| u.coefficient).collect()
}

fn scatter(useful: &[Useful], values: &[u64], out: &mut [u64]) {
    for (u, value) in useful.iter().zip(values) {
        out[u.element as usize] = *value;
    }
}
