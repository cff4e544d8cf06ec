//! The server's work on one answer, cut into jobs: some chunks of output channels for some rows of
//! ciphertexts, so that transformed kernels are shared among rows and memory stays bounded.

use super::kernels::{AnswerKernels, OutputPlace};
use crate::layout::{AnswerMap, UploadMap};
use pi_rlwe::{
    CiphertextRow, GaloisKeys, KernelMatrix, Packed, Params, PlainPoly, Product, Workspace,
    pack_rows,
};
use rayon::prelude::*;
use std::ops::Range;
use std::sync::Mutex;

/// Kernels transformed before they are multiplied, for each row that they are multiplied by: enough
/// to read each ciphertext for several of them, few enough for the caches at 64 KB each (one prime
/// at a time). Of 8 to 128, 16 and 32 were fastest (EPYC Zen 4, 512@4, 64@32 and 256@8 of
/// `cargo bench --bench kernels -- table layers`).
const KERNELS_AT_ONCE: usize = 32;
/// Products in memory at a time and thread, at 0.4 MB each.
const PRODUCTS_AT_ONCE: usize = 32;
/// Rows that share a transform of a kernel.
const ROWS_AT_ONCE: usize = 8;

/// Workspaces of kernel polynomials, reused: first touch of memory costs as much as the arithmetic.
#[derive(Default)]
pub(super) struct Scratch(Mutex<Vec<Workspace>>);

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

/// Most ciphertexts of a row that an output channel's products are summed over.
fn groups_read(answer: &AnswerMap, upload: &UploadMap) -> usize {
    let chunks = 0..answer.chunks();
    let most = chunks
        .map(|chunk| answer.groups_read(upload, chunk).len())
        .max();
    most.expect("an answer has a chunk")
}

/// Chunks and rows (by number among the answer's) of what is done together.
pub(super) fn jobs(answer: &AnswerMap, upload: &UploadMap) -> Vec<(Range<usize>, Range<usize>)> {
    let rows = answer.rows().len();
    let at_once = together(answer, groups_read(answer, upload), rows.min(ROWS_AT_ONCE));
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
pub(super) struct Job<'a> {
    pub(super) params: &'a Params,
    pub(super) answer: &'a AnswerMap,
    pub(super) upload: &'a UploadMap,
    pub(super) kernels: &'a AnswerKernels,
    pub(super) inputs: &'a [CiphertextRow],
    pub(super) galois_keys: &'a GaloisKeys,
    pub(super) scratch: &'a Scratch,
    pub(super) chunks: Range<usize>,
    pub(super) rows: Range<usize>,
}

impl Job<'_> {
    /// Packs the products and hands each ciphertext with its number to `finish`.
    pub(super) fn run<T: Send>(&self, finish: impl Fn(usize, Packed) -> T + Sync) -> Vec<T> {
        let answer = self.answer;
        let places = 1usize << answer.merge();
        // Chunks that are merged less far than products are made at once share the making.
        let mut ready: Vec<Mutex<Vec<Vec<Product>>>> = Vec::new();
        if self.chunks.len() > 1 {
            let of_chunk = |chunk| (0..places).map(move |place| OutputPlace { chunk, place });
            let outputs: Vec<OutputPlace> = self.chunks.clone().flat_map(of_chunk).collect();
            let mut products = self.products(&outputs).into_iter();
            ready.extend(
                (self.chunks.clone()).map(|_| Mutex::new(products.by_ref().take(places).collect())),
            );
        }
        let at_once = together(answer, groups_read(answer, self.upload), self.rows.len());
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
                        let places = places.iter();
                        let outputs = places.map(|&place| OutputPlace { chunk, place });
                        self.products(&outputs.collect::<Vec<_>>())
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

    /// The sums over the groups for these places: `[output][row]`.
    fn products(&self, outputs: &[OutputPlace]) -> Vec<Vec<Product>> {
        let read = |output: &OutputPlace| self.answer.groups_read(self.upload, output.chunk);
        let alike = outputs.chunk_by(|a, b| read(a) == read(b));
        alike
            .flat_map(|outputs| self.products_of(outputs, read(&outputs[0])))
            .collect()
    }

    /// The sums over the groups that all of these places read.
    fn products_of(&self, outputs: &[OutputPlace], groups: Range<usize>) -> Vec<Vec<Product>> {
        let answer = self.answer;
        let rows: Vec<&CiphertextRow> = answer
            .rows()
            .skip(self.rows.start)
            .take(self.rows.len())
            .map(|row| &self.inputs[row])
            .collect();
        if let Some(all) = self.kernels.cached() {
            let of = |output: &OutputPlace| all[output.index(answer)].as_slice();
            let polynomials: Vec<&[PlainPoly]> = outputs.iter().map(of).collect();
            return Product::matrix_of(self.params, &rows, groups, &polynomials);
        }
        let terms = |output: usize, group: usize| {
            (self.kernels).terms(answer, self.upload, outputs[output], group)
        };
        let matrix = KernelMatrix {
            ciphertexts: groups,
            outputs: outputs.len(),
            levels: answer.merge(),
            reach: self.kernels.reach(answer),
            terms,
        };
        (self.scratch).with(|workspace| Product::matrix(self.params, &rows, &matrix, workspace))
    }
}
