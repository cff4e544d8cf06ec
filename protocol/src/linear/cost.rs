//! What the linear layers of a plan cost: bytes exactly, processor time by a model.

use super::{answers_bytes, uploads_bytes};
use crate::layout::Packing;

/// Costs of one offline exchange of linear layers, for all bundles of the plan together.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LinearCost {
    /// Bytes of each upload; their sum is the length of the client's message.
    pub upload_bytes: Vec<usize>,
    /// Bytes of each answer; their sum is the length of the server's message.
    pub answer_bytes: Vec<usize>,
    /// Ciphertexts uploaded.
    pub input_ciphertexts: usize,
    /// Ciphertexts answered.
    pub output_ciphertexts: usize,
    /// Kernel polynomials to transform.
    pub kernel_polynomials: usize,
    /// Products of a ciphertext and a kernel.
    pub products: usize,
    /// Automorphisms with key switch.
    pub key_switches: usize,
    /// The server's processor time in microseconds, predicted.
    pub server_micros: f64,
}

/// The costs of a packing.
///
/// Bytes are exact. The time follows the model measured for a prototype of these operations (one core of 2.6 GHz with
/// AVX-512 IFMA, within 10 % there): 48 us and 2.6 ns a term for a kernel, 20 us for a product, 52 us for a sum of
/// products, 390 us for a key switch, 600 us and 300 us a level for an output, 250 us for an input.
pub fn cost(packing: &Packing) -> LinearCost {
    let mut cost = LinearCost::default();
    for upload in packing.uploads() {
        cost.upload_bytes.push(uploads_bytes(upload));
        cost.input_ciphertexts += upload.ciphertexts();
        cost.server_micros += 250.0 * upload.ciphertexts() as f64;
    }
    for answer in packing.answers() {
        let upload = &packing.uploads()[answer.upload()];
        let (rows, groups, outputs) = (answer.rows().len(), upload.groups(), answer.ciphertexts());
        let places = 1usize << answer.merge();
        let sums = answer.chunks() * places;
        cost.answer_bytes.push(answers_bytes(answer));
        cost.output_ciphertexts += outputs;
        cost.kernel_polynomials += sums * groups;
        cost.products += rows * sums * groups;
        cost.key_switches += outputs * (places - 1);
        cost.server_micros += 48.0 * (sums * groups) as f64
            + 0.0026 * answer.weights(upload) as f64
            + 20.0 * (rows * sums * groups) as f64
            + 52.0 * (rows * sums) as f64
            + 390.0 * (outputs * (places - 1)) as f64
            + (600.0 + 300.0 * f64::from(answer.merge())) * outputs as f64;
    }
    cost
}
