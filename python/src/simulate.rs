//! Both parties in this process, over a channel in memory, beside the two interpreters.

use crate::failure::Failure;
use crate::inputs::{Input, Quantised};
use crate::job::{self, Job, Work};
use crate::model::Model;
use pi_core::SecretBytes;
use pi_ir::Circuit;
use pi_ir::interpret::{self, Interpreter};
use pi_protocol::session::{
    Answer, ClientBatch, ClientBundle, ClientModel, ClientSetup, HeaderInputs, Inference,
    OnlineRequest, ServerBatch, ServerBundle, ServerModel, ServerSetup, client_infer, client_setup,
    server_infer, server_setup,
};
use pi_protocol::{Channel, Error};
use pyo3::prelude::*;
use rand_core::{OsRng, RngCore, TryRngCore};
use serde_json::{Value, json};
use std::time::Instant;

/// Runs a model on inputs: rounding to nearest, privately between two parties in memory, and once
/// more in the clear with the client's shares. As a job for one JSON object.
#[pyfunction]
pub(crate) fn simulate(py: Python<'_>, model: &Model, inputs: Vec<Input>) -> PyResult<Job> {
    let model = model.clone();
    let job = Job::run(
        move |work: &Work| simulated(&model, &inputs, work),
        |py, result: Value| Ok(result.to_string().into_pyobject(py)?.into_any().unbind()),
    );
    job.map_err(|failure| failure.into_error(py))
}

fn simulated(model: &Model, inputs: &[Input], work: &Work) -> Result<Value, Failure> {
    pi_core::Backend::chosen().map_err(Failure::internal)?;
    let (artifact, weights) = model.both()?;
    let circuit = &artifact.circuit;
    let mut questions = Vec::new();
    for input in inputs {
        questions.extend(input.quantised(circuit)?);
    }
    let interpreter = Interpreter::new(circuit, &weights.weights);
    let interpreter = interpreter.map_err(Failure::internal)?;
    let sound = |error: Error| Failure::new("ModelError", error);
    let parties = Parties {
        client: ClientModel::new(artifact.clone()).map_err(sound)?,
        server: ServerModel::new(artifact.clone(), weights.clone()).map_err(sound)?,
        nonces: [nonce(), nonce()],
    };
    let private = parties.answer_all(&questions, work)?;
    let mut examples = Vec::new();
    for (question, (inference, online)) in questions.iter().zip(&private.answers) {
        let compared = compared(circuit, &interpreter, question, inference)?;
        examples.push(json!({
            "notices": question.notices,
            "plain": compared.plain,
            "exact": compared.exact,
            "private": answer(&inference.answer),
            "equal": compared.equal,
            "online": online.to_json(),
        }));
    }
    let (frac_bits, reveal) = circuit.output();
    Ok(json!({
        "output_frac_bits": frac_bits,
        "reveal": reveal.to_string(),
        "classes": circuit.classes,
        "examples": examples,
        "setup": private.setup.to_json(),
        "offline": private.offline.to_json(),
    }))
}

struct Compared {
    plain: Value,
    exact: Value,
    equal: bool,
}

/// What the two interpreters say of an input.
fn compared(
    circuit: &Circuit,
    interpreter: &Interpreter<'_>,
    question: &Quantised,
    inference: &Inference,
) -> Result<Compared, Failure> {
    let plain = match interpreter.plain(&question.values) {
        Ok(run) => json!({"in_range": true, "label": run.label, "logits": run.logits}),
        Err(interpret::Error::OutOfBound { .. }) => json!({"in_range": false}),
        Err(error) => return Err(Failure::internal(error)),
    };
    let trace = inference.trace.as_ref();
    let trace = trace.ok_or_else(|| Failure::internal("the client kept no shares"))?;
    let run = interpreter.exact(&question.values, trace);
    let run = run.map_err(Failure::internal)?;
    Ok(Compared {
        plain,
        equal: inference.answer == Answer::of_run(&run, circuit.output().1),
        exact: match run.in_range {
            true => json!({"in_range": true, "label": run.label, "logits": run.logits}),
            false => json!({"in_range": false}),
        },
    })
}

/// An answer as JSON.
pub(crate) fn answer(answer: &Answer) -> Value {
    json!({
        "in_range": *answer != Answer::OutOfRange,
        "label": answer.label(),
        "logits": answer.logits(),
    })
}

/// What an exchange cost, of both parties together.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    seconds: f64,
    bytes_up: u64,
    bytes_down: u64,
    messages: u64,
}

impl Cost {
    fn to_json(self) -> Value {
        json!({
            "seconds": self.seconds,
            "bytes_up": self.bytes_up,
            "bytes_down": self.bytes_down,
            "messages": self.messages,
        })
    }

    fn add(&mut self, other: Cost) {
        self.seconds += other.seconds;
        self.bytes_up += other.bytes_up;
        self.bytes_down += other.bytes_down;
        self.messages += other.messages;
    }
}

/// The client's end of a line, which counts.
struct Counted<'a, C> {
    line: &'a mut C,
    cost: Cost,
}

impl<C: Channel> Channel for Counted<'_, C> {
    async fn send(&mut self, message: Vec<u8>) -> Result<(), Error> {
        self.cost.bytes_up += message.len() as u64;
        self.cost.messages += 1;
        self.line.send(message).await
    }

    async fn receive(&mut self, limit: usize) -> Result<Vec<u8>, Error> {
        let message = self.line.receive(limit).await?;
        self.cost.bytes_down += message.len() as u64;
        self.cost.messages += 1;
        Ok(message)
    }
}

/// Both parties.
struct Parties {
    client: ClientModel,
    server: ServerModel,
    nonces: [[u8; 32]; 2],
}

/// What became of all inputs.
struct Private {
    answers: Vec<(Inference, Cost)>,
    setup: Cost,
    offline: Cost,
}

fn nonce() -> [u8; 32] {
    let mut nonce = [0; 32];
    OsRng.unwrap_err().fill_bytes(&mut nonce);
    nonce
}

impl Parties {
    /// The header of the bundle with this index; each index serves once.
    fn header(&self, index: u64) -> HeaderInputs {
        HeaderInputs {
            server_peer: [1; 32],
            client_peer: [2; 32],
            server_nonce: self.nonces[0],
            client_nonce: self.nonces[1],
            index,
        }
    }

    /// Prepares a bundle for each input, in batches as a client does, and spends it.
    fn answer_all(&self, questions: &[Quantised], work: &Work) -> Result<Private, Failure> {
        let ((client, server), setup) = self.exchange(
            async |line| client_setup(line, &self.header(0), &mut OsRng.unwrap_err()).await,
            async |line| server_setup(line, &self.header(0), &mut OsRng.unwrap_err()).await,
        )?;
        let mut private = Private {
            answers: Vec::new(),
            setup,
            offline: Cost::default(),
        };
        let mut questions = questions.iter();
        for size in self.client.batches(questions.len()) {
            let index = private.answers.len() as u64 + 1;
            let ((own, other), offline) = self.exchange(
                async |line| self.client_batch(line, &client, index, size).await,
                async |line| self.server_batch(line, &server, index, size).await,
            )?;
            private.offline.add(offline);
            for ((own, other), question) in own.into_iter().zip(other).zip(&mut questions) {
                if work.is_cancelled() {
                    return Err(Failure::new("PianissimoError", "cancelled"));
                }
                private.answers.push(self.answer(own, other, question)?);
                work.step();
            }
        }
        Ok(private)
    }

    async fn client_batch(
        &self,
        line: &mut impl Channel,
        setup: &ClientSetup,
        index: u64,
        size: usize,
    ) -> Result<Vec<ClientBundle>, Error> {
        let rng = &mut OsRng.unwrap_err();
        let header = self.header(index);
        let start = ClientBatch::start(line, &self.client, setup, &header, size, rng);
        let (mut batch, mut bundles) = (start.await?, Vec::new());
        loop {
            let mut stored = SecretBytes::with_capacity(ClientBundle::encoded_len(&self.client));
            match batch.next_bundle(line, &mut stored).await? {
                None => return Ok(bundles),
                Some((_, rest)) => batch = rest,
            }
            bundles.push(ClientBundle::decode(&stored, &self.client)?);
        }
    }

    async fn server_batch(
        &self,
        line: &mut impl Channel,
        setup: &ServerSetup,
        index: u64,
        size: usize,
    ) -> Result<Vec<ServerBundle>, Error> {
        let rng = &mut OsRng.unwrap_err();
        let header = self.header(index);
        let start = ServerBatch::start(line, &self.server, setup, &header, size, rng);
        let (mut batch, mut bundles) = (start.await?, Vec::new());
        while let Some((bundle, rest)) = batch.next_bundle(line).await? {
            bundles.push(bundle);
            batch = rest;
        }
        Ok(bundles)
    }

    /// Spends a bundle, of which both halves are given, on an input.
    fn answer(
        &self,
        own: ClientBundle,
        other: ServerBundle,
        question: &Quantised,
    ) -> Result<(Inference, Cost), Failure> {
        let values = &question.values;
        let ((inference, ()), cost) = self.exchange(
            async move |line| client_infer(line, &self.client, own, values, true).await,
            async move |line| {
                let limit = OnlineRequest::encoded_len(&self.server);
                let message = line.receive(limit).await?;
                let request = OnlineRequest::decode(&message, &self.server)?;
                server_infer(line, &self.server, other, request).await
            },
        )?;
        Ok((inference, cost))
    }

    /// Runs both sides of an exchange on this thread, in turn.
    fn exchange<C, S>(
        &self,
        client: impl AsyncFnOnce(
            &mut Counted<'_, pi_protocol::channel::MemoryChannel>,
        ) -> Result<C, Error>,
        server: impl AsyncFnOnce(&mut pi_protocol::channel::MemoryChannel) -> Result<S, Error>,
    ) -> Result<((C, S), Cost), Failure> {
        let (mut near, mut far) = pi_protocol::channel::memory();
        let mut near = Counted {
            line: &mut near,
            cost: Cost::default(),
        };
        let started = Instant::now();
        let both = async { tokio::try_join!(client(&mut near), server(&mut far)) };
        let both = job::runtime()?.block_on(both).map_err(Failure::internal)?;
        let mut cost = near.cost;
        cost.seconds = started.elapsed().as_secs_f64();
        Ok((both, cost))
    }
}
