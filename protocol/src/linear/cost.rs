//! Costs of the linear layers of a plan: bytes and operations exactly, processor time by a model of
//! measured rates.

use super::{answers_bytes, uploads_bytes};
use crate::layout::{AnswerMap, Packing, UploadMap};
use serde::{Deserialize, Serialize};
use std::iter::Sum;
use std::ops::{Add, AddAssign};

/// Operations of both parties, counted; sums over layers and plans are meaningful.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Operations {
    /// Ciphertexts that the client uploads and the server expands.
    pub inputs: u64,
    /// Uploaded ciphertexts that repeat elements, which the client makes twice; see
    /// [`Uploads`](super::Uploads::next_message).
    pub repeated_inputs: u64,
    /// Kernel polynomials to place and transform; once for all rows, so for all bundles.
    pub kernels: u64,
    /// Weights placed in kernel polynomials.
    pub kernel_terms: u64,
    /// Products of a ciphertext and a kernel polynomial.
    pub products: u64,
    /// Sums of products, each brought to coefficients.
    pub sums: u64,
    /// Automorphisms with key switch.
    pub key_switches: u64,
    /// Coefficients of first halves that key switches compute: those that the merged result keeps.
    pub switched_coefficients: u64,
    /// Ciphertexts that the server answers and the client decrypts.
    pub outputs: u64,
    /// Numbers that these ciphertexts hold.
    pub useful: u64,
}

impl Operations {
    /// Counts the operations of one upload that do not depend on who reads it.
    pub fn of_upload(upload: &UploadMap) -> Operations {
        let repeats = (0..upload.rows()).filter(|&row| upload.repeats(row));
        Operations {
            inputs: upload.ciphertexts() as u64,
            repeated_inputs: (repeats.count() * upload.groups()) as u64,
            ..Operations::default()
        }
    }

    /// Counts the operations of one answer; `upload` is the map that it reads.
    pub fn of_answer(upload: &UploadMap, answer: &AnswerMap) -> Operations {
        let (rows, outputs) = (answer.rows().len(), answer.ciphertexts());
        let places = 1usize << answer.merge();
        let sums = answer.chunks() * places;
        let chunks = 0..answer.chunks();
        let groups = chunks.map(|chunk| answer.groups_read(upload, chunk).len());
        let kernels = groups.sum::<usize>() * places;
        // A merge at distance m computes N / m coefficients, and the level with distance m has
        // places / m merges for every place at the distance of the result: each level computes as
        // many as the result has.
        let kept = upload.ring_degree() * places / upload.layout().group as usize;
        Operations {
            kernels: kernels as u64,
            kernel_terms: answer.weights(upload) as u64,
            products: (rows * kernels) as u64,
            sums: (rows * sums) as u64,
            key_switches: (outputs * (places - 1)) as u64,
            switched_coefficients: (outputs * answer.merge() as usize * kept) as u64,
            outputs: outputs as u64,
            useful: answer.len() as u64,
            ..Operations::default()
        }
    }

    /// Microseconds of one core of the server.
    pub fn server_micros(&self, rates: &Rates) -> f64 {
        rates.expand * self.inputs as f64
            + rates.kernel * self.kernels as f64
            + rates.kernel_term * self.kernel_terms as f64
            + rates.product * self.products as f64
            + rates.sum * self.sums as f64
            + rates.key_switch * self.key_switches as f64
            + rates.switched_coefficient * self.switched_coefficients as f64
            + rates.finish * self.outputs as f64
            + rates.finish_value * self.useful as f64
    }

    /// Microseconds of one core of the client.
    pub fn client_micros(&self, rates: &Rates) -> f64 {
        rates.upload * (self.inputs + self.repeated_inputs) as f64
            + rates.decrypt * self.outputs as f64
            + rates.decrypt_value * self.useful as f64
    }
}

impl AddAssign for Operations {
    fn add_assign(&mut self, other: Operations) {
        *self = *self + other;
    }
}

impl Add for Operations {
    type Output = Operations;

    fn add(self, other: Operations) -> Operations {
        Operations {
            inputs: self.inputs + other.inputs,
            repeated_inputs: self.repeated_inputs + other.repeated_inputs,
            kernels: self.kernels + other.kernels,
            kernel_terms: self.kernel_terms + other.kernel_terms,
            products: self.products + other.products,
            sums: self.sums + other.sums,
            key_switches: self.key_switches + other.key_switches,
            switched_coefficients: self.switched_coefficients + other.switched_coefficients,
            outputs: self.outputs + other.outputs,
            useful: self.useful + other.useful,
        }
    }
}

impl Sum for Operations {
    fn sum<I: Iterator<Item = Operations>>(all: I) -> Operations {
        all.fold(Operations::default(), Add::add)
    }
}

/// Microseconds of one core for each of [`Operations`].
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rates {
    /// Client: draw, encrypt and correct one ciphertext.
    pub upload: f64,
    /// Server: expand a ciphertext from its seed and correction, transforms included.
    pub expand: f64,
    /// Place and transform a kernel polynomial.
    pub kernel: f64,
    /// Place one weight of a kernel polynomial.
    pub kernel_term: f64,
    /// Multiply a ciphertext by a kernel and add.
    pub product: f64,
    /// Bring a sum of products to coefficients.
    pub sum: f64,
    /// Automorphism with key switch.
    pub key_switch: f64,
    /// One coefficient of a first half in a key switch.
    pub switched_coefficient: f64,
    /// Encryption of zero, flood, switch of modulus, encoding.
    pub finish: f64,
    /// One number of an answer, its mask included.
    pub finish_value: f64,
    /// Client: decrypt one ciphertext.
    pub decrypt: f64,
    /// Client: one number of a decrypted ciphertext.
    pub decrypt_value: f64,
}

impl Rates {
    /// One core of an AMD EPYC of Zen 4 with AVX-512 IFMA, 2.6 GHz nominal, on 2026-11-25. A fit to
    /// the server's times of the layers of ResNet-18 (one, four and sixteen bundles), ResNet-32,
    /// lean9 and WRN-22-8. With what else a bundle takes, predicted wall times are 10 % above, 1 %
    /// below, 2 % above, 4 % and 5 % below and 8 % above the measured ones. A key switch cannot be
    /// told from the sum that feeds it. Uploads, expansion, finish and decryption were measured by
    /// themselves.
    pub const MEASURED: Rates = Rates {
        upload: 500.0,
        expand: 300.0,
        kernel: 42.0,
        kernel_term: 0.0085,
        product: 22.0,
        sum: 80.0,
        key_switch: 188.0,
        switched_coefficient: 0.0,
        finish: 530.0,
        finish_value: 0.0,
        decrypt: 165.0,
        decrypt_value: 0.0,
    };
}

/// Costs of one offline exchange of linear layers, for all bundles of the plan together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LinearCost {
    /// Bytes of each upload; their sum is the length of the client's message.
    pub upload_bytes: Vec<usize>,
    /// Bytes of each answer; their sum is the length of the server's message.
    pub answer_bytes: Vec<usize>,
    /// Operations of each upload.
    pub uploads: Vec<Operations>,
    /// Operations of each answer.
    pub answers: Vec<Operations>,
}

impl LinearCost {
    /// Sum of the operations of all uploads and answers.
    pub fn operations(&self) -> Operations {
        self.uploads.iter().chain(&self.answers).copied().sum()
    }

    /// Bytes of all uploads together.
    pub fn bytes_up(&self) -> usize {
        self.upload_bytes.iter().sum()
    }

    /// Bytes of all answers together.
    pub fn bytes_down(&self) -> usize {
        self.answer_bytes.iter().sum()
    }
}

/// The costs of a packing, layer by layer. Bytes and operations are exact.
pub fn cost(packing: &Packing) -> LinearCost {
    let mut cost = LinearCost::default();
    for upload in packing.uploads() {
        cost.upload_bytes.push(uploads_bytes(upload));
        cost.uploads.push(Operations::of_upload(upload));
    }
    for answer in packing.answers() {
        let upload = &packing.uploads()[answer.upload()];
        cost.answer_bytes.push(answers_bytes(answer));
        cost.answers.push(Operations::of_answer(upload, answer));
    }
    cost
}
