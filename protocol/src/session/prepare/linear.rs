//! The rest of messages 1 and 2: encrypted masks of all bundles up, one message an upload, and
//! encrypted `W r + s` down, one message an answer.

use super::Batch;
use crate::Error;
use crate::channel::{Channel, receive_exactly};
use crate::linear::{self, Answers, Kernels, Uploads, answers_bytes, uploads_bytes};
use crate::secrets::{Secrets, public_seed};
use crate::session::setup::{ClientSetup, ServerSetup};
use pi_core::fp::{self, Elements};
use zeroize::Zeroizing;

impl Batch<'_> {
    /// The seed that both parties expand the uploads' second halves from.
    fn linear_seed(&self) -> [u8; 32] {
        public_seed("linear", &self.id, 0)
    }

    /// The client draws and sends its masks: `r` of every tensor, `[bundle][..]`.
    pub(super) async fn send_masks(
        &self,
        channel: &mut impl Channel,
        setup: &ClientSetup,
        secrets: &Secrets,
    ) -> Result<Vec<Elements>, Error> {
        let (packing, seed) = (&self.planned.packing, self.linear_seed());
        let rng = &mut secrets.rng("linear", 0);
        let mut uploads = Uploads::new(&self.params, packing, setup.secret(), &seed, rng);
        while let Some(message) = uploads.next_message() {
            channel.send(message).await?;
        }
        // A tensor that no convolution reads has a mask all the same, drawn here. The output is no
        // tensor that anyone masks: its mask, the last, is left out.
        let masks = (uploads.into_masks().into_iter()).take(self.indexed.layers.len());
        let shapes = self.indexed.tensors().iter().enumerate();
        let masks = masks.zip(shapes).map(|(mask, (tensor, shape))| {
            mask.unwrap_or_else(|| {
                let rng = &mut secrets.rng("mask", tensor as u64);
                let count = shape.len() * self.planned.bundles();
                Zeroizing::new(fp::uniform_vec(count, rng))
            })
        });
        Ok(masks.collect())
    }

    /// The server reads all uploads, and answers each as it comes: the answers' messages in the
    /// order of [`Planned::order`](crate::indexed_circuit::Planned::order), and `s` by answer.
    pub(super) async fn answer_masks(
        &self,
        channel: &mut impl Channel,
        kernels: &Kernels,
        setup: &ServerSetup,
        secrets: &Secrets,
    ) -> Result<(Vec<Vec<u8>>, Vec<Elements>), Error> {
        let (packing, seed) = (&self.planned.packing, self.linear_seed());
        let (params, keys) = (&self.params, setup.galois_keys());
        let rng = &mut secrets.rng("linear", 0);
        let mut answers = Answers::new(params, packing, kernels, setup.public_key(), keys, rng);
        let mut messages = Vec::with_capacity(packing.answers().len());
        let mut shares: Vec<Elements> = Vec::new();
        shares.resize_with(packing.answers().len(), Elements::default);
        for (upload, map) in packing.uploads().iter().enumerate() {
            let message = receive_exactly(channel, "upload", uploads_bytes(map)).await?;
            let ciphertexts = linear::receive_upload(params, packing, &seed, upload, &message)?;
            // Answers are made from the expanded form, which is five times as large.
            drop(message);
            let rows = linear::rows_of(map, ciphertexts);
            for answer in self.planned.readers(upload) {
                let (message, share) = answers.make(answer, &rows);
                messages.push(message);
                shares[answer] = share;
            }
        }
        Ok((messages, shares))
    }

    /// The client reads `W r + s` of every convolution, `[bundle][..]`.
    pub(super) async fn receive_answers(
        &self,
        channel: &mut impl Channel,
        setup: &ClientSetup,
    ) -> Result<Vec<Elements>, Error> {
        let packing = &self.planned.packing;
        let mut answers: Vec<Elements> = Vec::new();
        answers.resize_with(packing.answers().len(), Elements::default);
        for index in self.planned.order() {
            let expected = answers_bytes(&packing.answers()[index]);
            let message = receive_exactly(channel, "answer", expected).await?;
            let secret = setup.secret();
            answers[index] = linear::finish_answer(&self.params, packing, secret, index, &message)?;
        }
        Ok(answers)
    }
}
