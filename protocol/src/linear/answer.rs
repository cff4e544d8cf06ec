//! Kernels times masks: the server's answer and the client's reading of it.

use super::{Forks, Uploaded};
use crate::layout::{AnswerMap, Packing, Tap, UploadMap, Useful};
use pi_core::fp;
use pi_ir::Weights;
use pi_rlwe::{
    Answer, Ciphertext, CiphertextModulus, CiphertextRow, Error, GaloisKeys, N, Packed, Params,
    PlainPoly, Product, PublicKey, SecretKey, Workspace, decrypt, finish, pack_rows,
};
use rand_core::CryptoRng;
use rayon::prelude::*;
use std::ops::Range;
use std::sync::{Arc, Mutex};
use zeroize::Zeroizing;

const CONV: CiphertextModulus = CiphertextModulus::Conv;
/// Memory of one kernel polynomial: three residues of each coefficient.
const KERNEL_BYTES: usize = 3 * 8 * N;
/// Kernels transformed before they are multiplied, for each row that they are multiplied by: enough
/// to read each ciphertext for several of them, few enough for the caches at 64 KB each (one prime
/// at a time). Of 8 to 128, 16 and 32 were fastest (EPYC Zen 4, 512@4, 64@32 and 256@8 of the
/// example `layers`).
const KERNELS_AT_ONCE: usize = 32;
/// Products in memory at a time and thread, at 0.4 MB each.
const PRODUCTS_AT_ONCE: usize = 32;
/// Rows that share a transform of a kernel.
const ROWS_AT_ONCE: usize = 8;

/// The server's kernels, placed for a packing.
pub struct Kernels {
    answers: Vec<AnswerKernels>,
}

struct AnswerKernels {
    /// `[out][in][kernel_h][kernel_w]`.
    weights: Arc<Zeroizing<Vec<i16>>>,
    /// By group of input channels.
    taps: Vec<Vec<Tap>>,
    /// All transformed kernels, `[chunk][place][group]`, where memory was granted.
    cached: Option<Vec<PlainPoly>>,
}

impl std::fmt::Debug for Kernels {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Kernels({} convolutions, values withheld)",
            self.answers.len()
        )
    }
}

impl Kernels {
    /// Places the weights of all convolutions. Transforms are made for each answer anew, except
    /// that convolutions whose transforms fit what is left of `cache_bytes` keep them (196,608
    /// bytes a polynomial; a whole ResNet-18 would take 3 to 4 GB and save a fifth of the time).
    ///
    /// # Errors
    /// If a kernel is missing or has not the size that its convolution says.
    /// # Panics
    /// If the packing is not for the standard ring.
    pub fn prepare(
        params: &Params,
        packing: &Packing,
        weights: &Weights,
        cache_bytes: usize,
    ) -> Result<Kernels, String> {
        assert_eq!(packing.ring_degree(), N, "packing for another ring");
        let mut left = cache_bytes;
        let mut seen = 0;
        let mut answers = Vec::with_capacity(packing.answers().len());
        for (index, answer) in packing.answers().iter().enumerate() {
            let upload = &packing.uploads()[answer.upload()];
            // Kernels count the convolutions of a layer, answers all of the circuit, in the same
            // order.
            if index > 0 && packing.answers()[index - 1].layer() != answer.layer() {
                seen = 0;
            }
            let kernel = weights
                .layers
                .get(answer.layer() as usize)
                .and_then(|layer| layer.kernels.get(seen))
                .ok_or_else(|| format!("layer {}: kernel {seen} is missing", answer.layer()))?;
            seen += 1;
            let expected = answer.weights(upload);
            if kernel.len() != expected {
                return Err(format!(
                    "layer {}: a kernel has {} weights, expected {expected}",
                    answer.layer(),
                    kernel.len()
                ));
            }
            let mut placed = AnswerKernels {
                weights: Arc::new(Zeroizing::new(kernel.clone())),
                taps: taps(answer, upload),
                cached: None,
            };
            let polynomials = (answer.chunks() * upload.groups()) << answer.merge();
            if polynomials.saturating_mul(KERNEL_BYTES) <= left {
                left -= polynomials * KERNEL_BYTES;
                let all: Vec<(usize, usize, usize)> = (0..answer.chunks())
                    .flat_map(|chunk| (0..1 << answer.merge()).map(move |place| (chunk, place)))
                    .flat_map(|(chunk, place)| {
                        (0..upload.groups()).map(move |group| (chunk, place, group))
                    })
                    .collect();
                placed.cached = Some(
                    all.into_par_iter()
                        .map(|(chunk, place, group)| {
                            placed.polynomial(params, answer, upload, chunk, place, group)
                        })
                        .collect(),
                );
            }
            answers.push(placed);
        }
        Ok(Kernels { answers })
    }

    /// The same weights, placed for another plan of the same circuit, without a cache.
    ///
    /// # Panics
    /// If the packing has another number of answers.
    pub fn placed_for(&self, packing: &Packing) -> Kernels {
        assert_eq!(
            packing.answers().len(),
            self.answers.len(),
            "another circuit"
        );
        let answers = packing.answers().iter().zip(&self.answers);
        let placed = answers.map(|(answer, other)| AnswerKernels {
            weights: other.weights.clone(),
            taps: taps(answer, &packing.uploads()[answer.upload()]),
            cached: None,
        });
        Kernels {
            answers: placed.collect(),
        }
    }
}

/// The taps of an answer, by group of input channels.
fn taps(answer: &AnswerMap, upload: &UploadMap) -> Vec<Vec<Tap>> {
    let groups = 0..upload.groups();
    groups.map(|group| answer.taps(upload, group)).collect()
}

impl AnswerKernels {
    /// Exponents and weights of one kernel polynomial; none at a place that has no output channel.
    fn terms<'a>(
        &'a self,
        answer: &'a AnswerMap,
        upload: &'a UploadMap,
        chunk: usize,
        place: usize,
        group: usize,
    ) -> impl Iterator<Item = (usize, i32)> + 'a {
        answer
            .kernel(upload, &self.taps[group], chunk, place)
            .map(|placed| {
                let exponent = placed.coefficient as usize + if placed.negative { N } else { 0 };
                (exponent, i32::from(self.weights[placed.weight as usize]))
            })
    }

    /// How far from the output a tap reads, where all kernel polynomials stay within that.
    fn reach(&self, answer: &AnswerMap) -> Option<usize> {
        let shifts = self.taps.iter().flatten().map(|tap| tap.shift as usize);
        (answer.output_blocks() == 1).then(|| shifts.max().map_or(1, |most| most + 1))
    }

    fn polynomial(
        &self,
        params: &Params,
        answer: &AnswerMap,
        upload: &UploadMap,
        chunk: usize,
        place: usize,
        group: usize,
    ) -> PlainPoly {
        let terms = self.terms(answer, upload, chunk, place, group);
        let terms = terms.map(|(exponent, weight)| (exponent, i64::from(weight)));
        PlainPoly::new(params, CONV, answer.merge(), terms)
    }
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
        .map(|index| Answer::bytes(answer.useful_count(index)))
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

/// The server's answers, made one after the other: `Enc(W r + s)` of a convolution, for fresh `s`.
pub struct Answers<'a> {
    params: &'a Params,
    packing: &'a Packing,
    kernels: &'a Kernels,
    public_key: &'a PublicKey,
    galois_keys: &'a GaloisKeys,
    forks: Forks,
    scratch: Scratch,
    /// By answer.
    made: Vec<bool>,
}

impl<'a> Answers<'a> {
    /// Draws what all randomness of the answers comes from, `s` included: `rng` is seeded once for
    /// an exchange, after it has started.
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
        let made = std::mem::replace(&mut self.made[answer], true);
        assert!(!made, "answer {answer} was made before");
        let map = &self.packing.answers()[answer];
        let upload = &self.packing.uploads()[map.upload()];
        assert_eq!(inputs.len(), upload.rows(), "rows of another upload");
        let finished: Vec<Vec<Finished>> = jobs(map, upload.groups())
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
        let mut finished: Vec<Finished> = finished.into_iter().flatten().collect();
        finished.sort_unstable_by_key(|part| part.index);
        let mut share = Zeroizing::new(vec![0; map.len()]);
        for part in &finished {
            scatter(&part.useful, &part.mask, &mut share);
        }
        let parts: Vec<&[u8]> = finished.iter().map(|part| part.bytes.as_slice()).collect();
        (parts.concat(), share)
    }

    fn finish(&self, answer: usize, index: usize, packed: Packed) -> Finished {
        let map = &self.packing.answers()[answer];
        let useful = map.useful(&self.packing.uploads()[map.upload()], index);
        let rng = &mut self.forks.task("answer", answer, index);
        let mask = Zeroizing::new(fp::uniform_vec(useful.len(), rng));
        let coefficients = coefficients(&useful);
        let (params, key) = (self.params, self.public_key);
        let bytes = finish(params, packed, key, &coefficients, &mask, rng).encode();
        Finished {
            index,
            bytes,
            useful,
            mask,
        }
    }
}

/// All answers of a plan at once, and their `s`; see [`Answers`]. Uses the uploads up.
///
/// # Panics
/// If the kernels or uploads are of another packing, or the Galois keys do not reach [`max_gap`].
pub fn server_answer(
    params: &Params,
    packing: &Packing,
    kernels: &Kernels,
    uploaded: Uploaded,
    public_key: &PublicKey,
    galois_keys: &GaloisKeys,
    rng: &mut impl CryptoRng,
) -> (Vec<u8>, Vec<Zeroizing<Vec<u64>>>) {
    let mut answers = Answers::new(params, packing, kernels, public_key, galois_keys, rng);
    let uploads = packing.uploads().iter().zip(uploaded.ciphertexts);
    let rows: Vec<Vec<CiphertextRow>> = uploads
        .map(|(upload, ciphertexts)| rows_of(upload, ciphertexts))
        .collect();
    let mut message = Vec::new();
    let mut shares = Vec::with_capacity(packing.answers().len());
    for (index, answer) in packing.answers().iter().enumerate() {
        let (bytes, share) = answers.make(index, &rows[answer.upload()]);
        message.extend_from_slice(&bytes);
        shares.push(share);
    }
    (message, shares)
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

/// Workspaces of kernel polynomials, reused: first touch of memory costs as much as the arithmetic.
#[derive(Default)]
struct Scratch(Mutex<Vec<Workspace>>);

impl Scratch {
    fn with<T>(&self, use_it: impl FnOnce(&mut Workspace) -> T) -> T {
        let lock = || {
            self.0
                .lock()
                .expect("nothing panics while it holds the lock")
        };
        let mut workspace = lock().pop().unwrap_or_default();
        let result = use_it(&mut workspace);
        lock().push(workspace);
        result
    }
}

/// Levels of merging whose products are made at once, or chunks where nothing is merged that far,
/// as a power of two.
fn together(answer: &AnswerMap, groups: usize, rows: usize) -> u32 {
    let kernels = KERNELS_AT_ONCE * rows;
    (kernels / groups.min(kernels))
        .min(PRODUCTS_AT_ONCE / rows)
        .min((answer.chunks() << answer.merge()).next_power_of_two())
        .ilog2()
}

/// Chunks and rows (by number among the answer's) of what is done together.
fn jobs(answer: &AnswerMap, groups: usize) -> Vec<(Range<usize>, Range<usize>)> {
    let rows = answer.rows().len();
    let at_once = together(answer, groups, rows.min(ROWS_AT_ONCE));
    let chunks = 1usize << at_once.saturating_sub(answer.merge());
    let mut jobs = Vec::new();
    for first_chunk in (0..answer.chunks()).step_by(chunks) {
        for first_row in (0..rows).step_by(ROWS_AT_ONCE) {
            jobs.push((
                first_chunk..answer.chunks().min(first_chunk + chunks),
                first_row..rows.min(first_row + ROWS_AT_ONCE),
            ));
        }
    }
    jobs
}

/// Some chunks of output channels, for some rows.
struct Job<'a> {
    params: &'a Params,
    answer: &'a AnswerMap,
    upload: &'a UploadMap,
    kernels: &'a AnswerKernels,
    inputs: &'a [CiphertextRow],
    galois_keys: &'a GaloisKeys,
    scratch: &'a Scratch,
    chunks: Range<usize>,
    rows: Range<usize>,
}

impl Job<'_> {
    /// Packs the products and hands each ciphertext with its number to `finish`.
    fn run<T: Send>(&self, finish: impl Fn(usize, Packed) -> T + Sync) -> Vec<T> {
        let answer = self.answer;
        let places = 1usize << answer.merge();
        // Chunks that are merged less far than products are made at once share the making.
        let mut ready: Vec<Mutex<Vec<Vec<Product>>>> = Vec::new();
        if self.chunks.len() > 1 {
            let outputs: Vec<(usize, usize)> = self
                .chunks
                .clone()
                .flat_map(|chunk| (0..places).map(move |place| (chunk, place)))
                .collect();
            let mut products = self.products(&outputs).into_iter();
            ready.extend(
                (self.chunks.clone()).map(|_| Mutex::new(products.by_ref().take(places).collect())),
            );
        }
        let at_once = together(answer, self.upload.groups(), self.rows.len());
        let gap = self.upload.layout().group as usize;
        let packed = self.chunks.clone().into_par_iter().map(|chunk| {
            let (together, made) = match ready.get(chunk - self.chunks.start) {
                Some(ready) => {
                    let lock = &mut *ready.lock().expect("nobody else holds the lock");
                    (answer.merge(), Some(std::mem::take(lock)))
                }
                None => (at_once, None),
            };
            let made = Mutex::new(made);
            let rows = pack_rows(
                self.params,
                self.galois_keys,
                gap,
                answer.merge(),
                together,
                |places| match made.lock().expect("taking does not panic").take() {
                    Some(products) => products,
                    None => {
                        let outputs: Vec<_> = places.iter().map(|&place| (chunk, place)).collect();
                        self.products(&outputs)
                    }
                },
            );
            rows.into_par_iter()
                .zip(self.rows.clone())
                .map(|(packed, row)| finish(row * answer.chunks() + chunk, packed))
                .collect::<Vec<_>>()
        });
        packed.flatten().collect()
    }

    /// The sums over the groups for these output channels, chunk and place: `[output][row]`.
    fn products(&self, outputs: &[(usize, usize)]) -> Vec<Vec<Product>> {
        let answer = self.answer;
        let rows: Vec<&CiphertextRow> = answer
            .rows()
            .skip(self.rows.start)
            .take(self.rows.len())
            .map(|row| &self.inputs[row])
            .collect();
        if let Some(all) = &self.kernels.cached {
            let groups = self.upload.groups();
            let of = |&(chunk, place): &(usize, usize)| {
                &all[((chunk << answer.merge()) + place) * groups..][..groups]
            };
            let polynomials: Vec<&[PlainPoly]> = outputs.iter().map(of).collect();
            return Product::matrix_of(self.params, &rows, &polynomials);
        }
        let terms = |output: usize, group: usize| {
            let (chunk, place) = outputs[output];
            self.kernels.terms(answer, self.upload, chunk, place, group)
        };
        let reach = self.kernels.reach(answer);
        let levels = answer.merge();
        self.scratch.with(|workspace| {
            Product::matrix(
                self.params,
                &rows,
                outputs.len(),
                levels,
                reach,
                terms,
                workspace,
            )
        })
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
            let (part, after) = rest.split_at(Answer::bytes(map.useful_count(index)));
            rest = after;
            (index, part)
        })
        .collect();
    let opened = parts
        .into_par_iter()
        .map(|(index, bytes)| {
            let useful = map.useful(&packing.uploads()[map.upload()], index);
            let decoded = Answer::decode(useful.len(), bytes)?;
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

/// `W r + s` of every convolution, by answer, from their messages one after the other; see
/// [`finish_answer`].
///
/// # Errors
/// If the message has not exactly the plan's length.
/// # Panics
/// If the packing is not for the standard ring.
pub fn client_finish(
    params: &Params,
    packing: &Packing,
    secret: &SecretKey,
    message: &[u8],
) -> Result<Vec<Zeroizing<Vec<u64>>>, Error> {
    let expected = packing.answers().iter().map(answers_bytes).sum();
    if message.len() != expected {
        return Err(Error::Length {
            what: "answers",
            expected,
            got: message.len(),
        });
    }
    let mut rest = message;
    let each = packing.answers().iter().enumerate();
    let shares = each.map(|(answer, map)| {
        let (part, after) = rest.split_at(answers_bytes(map));
        rest = after;
        finish_answer(params, packing, secret, answer, part)
    });
    shares.collect()
}
