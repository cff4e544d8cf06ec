//! A client with its connection, on a thread of its own.
//!
//! Operations of one client come one after another, as calls to that thread. It keeps the
//! connection between them, so that an answer does not wait for a handshake, and closes one that
//! has been idle for a while.

use crate::failure::Failure;
use crate::inputs::{Input, Quantised};
use crate::job::{self, Job, Work};
use crate::model::Model;
use crate::server::{patience, seconds};
use crate::simulate;
use pi_ir::interpret::Interpreter;
use pi_protocol::session::{Answer, ClientModel};
use pi_runtime::client::{
    Backoff, Choice, Client as Party, Connection, Prediction, Spent, TrustOptions, Wait,
};
use pi_runtime::command::state_directory;
use pi_runtime::error::Error;
use pi_runtime::fingerprint::{Fingerprint, hex};
use pi_runtime::identity::Identity;
use pi_runtime::store::BundleState;
use pyo3::prelude::*;
use serde::Deserialize;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;
use tokio::sync::mpsc;

/// Time after which a connection that nobody uses is closed: half of what a server allows.
const IDLE: Duration = Duration::from_secs(30);

/// The options of `pianissimo.Client`, named as those of `pi-client` are.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Choices {
    server: Option<String>,
    fingerprint: Option<String>,
    model: Option<String>,
    ca: Option<PathBuf>,
    trust_first_use: bool,
    /// Seconds to wait for a server that is not up or full; 0 for as long as it takes.
    wait: Option<f64>,
    state: Option<PathBuf>,
    /// What all clients of one state in this process have in common.
    #[serde(flatten)]
    setting: Setting,
}

#[derive(Clone, Debug, PartialEq, Deserialize)]
struct Setting {
    cert: Option<(PathBuf, PathBuf)>,
    timeout: Option<f64>,
    connect_timeout: Option<f64>,
    bound: bool,
}

/// A client.
#[pyclass(frozen, module = "pianissimo._native")]
pub(crate) struct Client {
    calls: Mutex<Option<mpsc::UnboundedSender<(Call, Work)>>>,
    identity: String,
    state: PathBuf,
}

/// An operation.
enum Call {
    Prepare(u32),
    /// Inputs, and a model with weights to check the answers against.
    Infer(Vec<Input>, Option<Box<Model>>),
    Models,
    Describe,
    Status,
    Close,
}

#[pymethods]
impl Client {
    /// Opens the state of a client, with options as JSON.
    #[new]
    fn open(py: Python<'_>, choices: &str) -> PyResult<Client> {
        let choices: Choices = serde_json::from_str(choices).map_err(|error| {
            let message = format!("an option cannot be used: {error}");
            Failure::new("InvalidArgument", message).into_error(py)
        })?;
        let opened = py.detach(|| open(choices));
        opened.map_err(|failure| failure.into_error(py))
    }

    /// The fingerprint by which servers know this client.
    #[getter]
    fn identity(&self) -> &str {
        &self.identity
    }

    /// Directory of keys and bundles.
    #[getter]
    fn state(&self) -> PathBuf {
        self.state.clone()
    }

    /// Prepares bundles; the job counts them, and its result is JSON.
    fn prepare(&self, py: Python<'_>, count: u32) -> PyResult<Job> {
        self.call(py, Call::Prepare(count))
    }

    /// Answers inputs; the result is JSON and, if not all were answered, an exception.
    #[pyo3(signature = (inputs, check=None))]
    fn infer(
        &self,
        py: Python<'_>,
        inputs: Vec<Input>,
        check: Option<&Bound<'_, Model>>,
    ) -> PyResult<Job> {
        let check = check.map(|model| Box::new(model.get().clone()));
        self.call(py, Call::Infer(inputs, check))
    }

    /// Lists the server's models, as JSON.
    fn models(&self, py: Python<'_>) -> PyResult<Job> {
        self.call(py, Call::Models)
    }

    /// What the server's model reads and answers, as JSON; it is fetched if need be.
    fn describe(&self, py: Python<'_>) -> PyResult<Job> {
        self.call(py, Call::Describe)
    }

    /// The bundles at hand, as JSON, without a connection.
    fn status(&self, py: Python<'_>) -> PyResult<Job> {
        self.call(py, Call::Status)
    }

    /// Says goodbye to the server, and lets go of the state.
    fn close(&self, py: Python<'_>) -> PyResult<Job> {
        let job = self.call(py, Call::Close);
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        *calls = None;
        job
    }
}

impl Client {
    fn call(&self, py: Python<'_>, call: Call) -> PyResult<Job> {
        let begin = || {
            let (job, work) = Job::new()?;
            let calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
            let sent = match &*calls {
                Some(calls) => calls.send((call, work)).is_ok(),
                None => false,
            };
            let closed = || Failure::new("InvalidArgument", "the client is closed");
            sent.then_some(job).ok_or_else(closed)
        };
        begin().map_err(|failure| failure.into_error(py))
    }
}

fn open(choices: Choices) -> Result<Client, Failure> {
    pi_core::Backend::chosen().map_err(Failure::internal)?;
    let runtime = job::runtime()?;
    let _inside = runtime.enter();
    let state = state_directory(choices.state.clone(), "PI_CLIENT_STATE", "client")?;
    let trust = TrustOptions {
        fingerprint: choices.fingerprint.as_deref().map(pinned).transpose()?,
        authorities: choices.ca.clone(),
        first_use: choices.trust_first_use,
    };
    let wait = match choices.wait {
        None => None,
        Some(0.0) => Some(None),
        Some(_) => Some(Some(seconds("wait", choices.wait, Duration::ZERO)?)),
    };
    let party = shared(&state, &choices.setting)?;
    let identity = party.fingerprint().to_string();
    let address = choices.server.clone();
    let choice = choices.model.as_deref();
    let choice = choice.map_or_else(Choice::default, Choice::of_name);
    let (send, receive) = mpsc::unbounded_channel();
    let serve = move || {
        let line = Line {
            party: &party,
            address,
            trust,
            choice,
            wait,
            connection: None,
        };
        let last = runtime.block_on(serve(line, receive));
        // Before the caller hears of it: the state can be opened again at once.
        drop(party);
        if let Some((work, outcome)) = last {
            work.finish(outcome, hand);
        }
    };
    let thread = std::thread::Builder::new().name("pianissimo client".into());
    let started = thread.spawn(serve);
    started.map_err(|e| Failure::internal(format!("no thread: {e}")))?;
    Ok(Client {
        calls: Mutex::new(Some(send)),
        identity,
        state,
    })
}

fn pinned(text: &str) -> Result<Fingerprint, Failure> {
    let bad = |error| Failure::new("InvalidArgument", format!("fingerprint: {error}"));
    text.parse().map_err(bad)
}

/// The client of this state: the one that is open in this process, if there is one.
fn shared(state: &Path, setting: &Setting) -> Result<Arc<Party>, Failure> {
    type Open = HashMap<PathBuf, (Setting, Weak<Party>)>;
    static OPEN: Mutex<Option<Open>> = Mutex::new(None);
    let mut open = OPEN.lock().unwrap_or_else(PoisonError::into_inner);
    let open = open.get_or_insert_default();
    let name = std::fs::canonicalize(state).unwrap_or_else(|_| state.to_owned());
    if let Some((other, party)) = open.get(&name)
        && let Some(party) = party.upgrade()
    {
        if other != setting {
            return Err(Failure::new(
                "InvalidArgument",
                format!(
                    "{} is open in this process with other options",
                    name.display()
                ),
            )
            .with_remedy("close the other Client, or give this one another --state"));
        }
        return Ok(party);
    }
    let party = Party::open(state, patience(setting.connect_timeout, setting.timeout)?)?;
    let party = match &setting.cert {
        Some((chain, key)) => {
            let identity = Identity::from_files(chain, key).map_err(Error::from)?;
            party.with_identity(identity)
        }
        None => party,
    };
    let party = Arc::new(match setting.bound {
        true => party,
        false => party.unbound(),
    });
    // It exists now, so that it has one name.
    let name = std::fs::canonicalize(state).unwrap_or(name);
    open.insert(name, (setting.clone(), Arc::downgrade(&party)));
    Ok(party)
}

/// Carries out one call after another, until the client is closed, or the last who could make one
/// is gone. Returns the call that closes it, which is not answered yet.
async fn serve(
    mut line: Line<'_>,
    mut calls: mpsc::UnboundedReceiver<(Call, Work)>,
) -> Option<(Work, Result<Outcome, Failure>)> {
    loop {
        let next = match line.connection {
            None => calls.recv().await,
            Some(_) => match tokio::time::timeout(IDLE, calls.recv()).await {
                Ok(next) => next,
                Err(_) => {
                    line.hang_up().await;
                    continue;
                }
            },
        };
        let Some((call, work)) = next else { break };
        let close = matches!(call, Call::Close);
        let outcome = tokio::select! {
            outcome = line.carry_out(call, &work) => Some(outcome),
            () = work.cancelled() => None,
        };
        let outcome = match outcome {
            Some(outcome) => outcome,
            None => {
                line.abandon();
                Err(Failure::new("PianissimoError", "cancelled"))
            }
        };
        if close {
            line.hang_up().await;
            return Some((work, outcome));
        }
        work.finish(outcome, hand);
    }
    line.hang_up().await;
    None
}

/// A result, and what kept it from being whole.
type Outcome = (Value, Option<Failure>);

fn hand(py: Python<'_>, (value, failure): Outcome) -> PyResult<Py<PyAny>> {
    let failure = failure.map(|failure| failure.exception(py)).transpose()?;
    Ok((value.to_string(), failure)
        .into_pyobject(py)?
        .into_any()
        .unbind())
}

/// The way to the server.
struct Line<'a> {
    party: &'a Party,
    address: Option<String>,
    trust: TrustOptions,
    choice: Choice,
    /// How long to wait for a server that is not up or full.
    wait: Option<Option<Duration>>,
    connection: Option<Connection<'a>>,
}

impl<'a> Line<'a> {
    async fn carry_out(&mut self, call: Call, work: &Work) -> Result<Outcome, Failure> {
        match call {
            Call::Prepare(count) => Ok((self.prepare(count, work).await?, None)),
            Call::Infer(inputs, check) => self.infer(&inputs, check.as_deref(), work).await,
            Call::Models => Ok((self.models().await?, None)),
            Call::Describe => Ok((self.describe().await?, None)),
            Call::Status => Ok((self.status()?, None)),
            Call::Close => Ok((Value::Null, None)),
        }
    }

    /// Closes the connection, if there is one.
    async fn hang_up(&mut self) {
        if let Some(connection) = self.connection.take() {
            connection.close().await;
        }
    }

    fn abandon(&mut self) {
        if let Some(connection) = self.connection.take() {
            connection.abandon();
        }
    }

    fn address(&self) -> Result<String, Failure> {
        match &self.address {
            Some(address) => Ok(address.clone()),
            None => {
                let (_, record) = self.party.server(None, self.trust.fingerprint)?;
                Ok(record.all_addresses())
            }
        }
    }

    /// The connection, made anew if it is not there or broke.
    async fn connected(&mut self, held: bool) -> Result<&mut Connection<'a>, Error> {
        if self.connection.as_ref().is_some_and(|c| !c.is_open()) {
            self.connection = None;
        }
        let connection = match self.connection.take() {
            Some(connection) => connection,
            None => self.connect(held).await?,
        };
        Ok(self.connection.insert(connection))
    }

    async fn connect(&self, held: bool) -> Result<Connection<'a>, Error> {
        let address = match &self.address {
            Some(address) => address.clone(),
            None => (self.party.server(None, self.trust.fingerprint)?)
                .1
                .all_addresses(),
        };
        let choice = match held {
            true => self.choice.clone().held(),
            false => self.choice.clone(),
        };
        let wait = self.wait.map(Wait::new);
        let waiting = |_: &Error, _| {};
        let connecting =
            (self.party).connect_patiently(&address, &self.trust, &choice, wait, waiting);
        connecting.await
    }

    async fn prepare(&mut self, count: u32, work: &Work) -> Result<Value, Failure> {
        // A connection for answers may be one to an older version of the model.
        self.hang_up().await;
        let mut backoff = Backoff::default();
        let mut costs = Costs::default();
        let mut made = 0;
        loop {
            // Each time anew: what was prepared since has used up no patience.
            let wait = self.wait.map(Wait::new);
            let before = made;
            let result = self.prepare_rest(count - made, work, &mut made, &mut costs);
            match (result.await, wait) {
                (Err(error), Some(wait)) if made < count => {
                    self.abandon();
                    if made > before {
                        backoff.reset();
                    }
                    let (_, pause) = wait.pause(&mut backoff, error)?;
                    tokio::time::sleep(pause).await;
                }
                (Err(error), _) => {
                    self.abandon();
                    return Err(error.into());
                }
                (Ok(()), _) => return Ok(costs.to_json(made)),
            }
        }
    }

    async fn prepare_rest(
        &mut self,
        count: u32,
        work: &Work,
        made: &mut u32,
        costs: &mut Costs,
    ) -> Result<(), Error> {
        let connection = self.connected(false).await?;
        let (model, fetched) = connection.model().await?;
        costs.model.extend(fetched);
        let (setup, exchanged) = connection.setup().await?;
        costs.keys.extend(exchanged);
        let progress = |spent: &Spent| {
            *made += 1;
            costs.bundles.push(*spent);
            work.step();
        };
        connection.prepare(&model, &setup, count, progress).await?;
        Ok(())
    }

    async fn models(&mut self) -> Result<Value, Failure> {
        let address = self.address()?;
        // A server takes a client's latest connection for its only one.
        self.hang_up().await;
        let listed = self.party.models(&address, &self.trust).await?;
        let models = listed.into_iter().map(|model| {
            json!({
                "name": model.name,
                "version": model.version,
                "digest": hex(&model.model),
                "current": model.current,
                "default": model.default,
                "reveals": model.reveals.to_string(),
                "classes": model.classes,
                "artifact_bytes": model.artifact_bytes,
                "offline_bytes_up": model.offline_bytes_up,
                "offline_bytes_down": model.offline_bytes_down,
                "online_bytes_up": model.online_bytes_up,
                "online_bytes_down": model.online_bytes_down,
                "online_round_trips": model.online_round_trips,
                "bundle_bytes": model.bundle_bytes,
                "client_memory": model.client_memory,
            })
        });
        Ok(models.collect())
    }

    async fn describe(&mut self) -> Result<Value, Failure> {
        let connection = self.connected(true).await?;
        let (model, _) = connection.model().await?;
        let usable = connection.usable().await?;
        let (name, version) = connection.model_name();
        let (name, version) = (name.to_owned(), version.to_owned());
        let mut described = of_model(&model);
        described["name"] = name.into();
        described["version"] = version.into();
        described["ready"] = usable.into();
        described["answers_left"] = connection.answers_left().into();
        Ok(described)
    }

    fn status(&self) -> Result<Value, Failure> {
        let mut servers = Vec::new();
        for (server, record) in self.party.servers()? {
            let bundles = self.party.bundles(server)?;
            let ready = |b: &&_| -> bool { is_ready(b) };
            let models = record.models.iter().map(|named| {
                let of_model = bundles.iter().filter(|b| b.model == named.model);
                json!({
                    "name": named.name,
                    "version": named.version,
                    "digest": hex(&named.model),
                    "ready": of_model.filter(ready).count(),
                })
            });
            servers.push(json!({
                "addresses": record.addresses,
                "fingerprint": server.to_string(),
                "models": models.collect::<Vec<_>>(),
                "ready": bundles.iter().filter(ready).count(),
                "answers_left": self.party.answers_left(server)?,
            }));
        }
        Ok(servers.into())
    }

    /// Answers all inputs, or says why not all.
    async fn infer(
        &mut self,
        inputs: &[Input],
        check: Option<&Model>,
        work: &Work,
    ) -> Result<Outcome, Failure> {
        // Without a connection where that is plain already.
        self.party
            .prepared_server(self.address.as_deref(), &self.trust)?;
        let connection = self.connected(true).await?;
        connection.next_bundle().await?;
        let (mut model, _) = connection.model().await?;
        let questions = quantised(inputs, &model)?;
        let ready = connection.usable().await?;
        if ready < questions.len() {
            let (asked, missing) = (questions.len(), questions.len() - ready);
            return Err(Failure::new(
                "NotPrepared",
                format!("{asked} inputs need {asked} bundles, and {ready} are ready"),
            )
            .with_remedy(format!("prepare the rest first: client.prepare({missing})")));
        }
        let mut answers = Vec::new();
        let mut failure = None;
        for question in &questions {
            match self.ask(&mut model, question, check.is_some()).await {
                Ok(prediction) => {
                    let mut answer = answer(&prediction, question);
                    if let Some(check) = check {
                        answer["equal"] = equals(check, &model, question, &prediction)?.into();
                    }
                    answers.push(answer);
                    work.step();
                }
                Err(error) => {
                    self.abandon();
                    failure = Some(Failure::from(error));
                    break;
                }
            }
        }
        let mut result = of_model(&model);
        result["answers"] = answers.into();
        result["asked"] = questions.len().into();
        Ok((result, failure))
    }

    /// Spends a bundle on an input.
    ///
    /// A connection that broke since the last answer is made anew, at the cost of nothing. One that
    /// breaks in the middle costs the bundle in use; with `wait`, the input is then asked about
    /// once more, with another.
    async fn ask(
        &mut self,
        model: &mut ClientModel,
        question: &Quantised,
        trace: bool,
    ) -> Result<Prediction, Error> {
        let mut again = self.wait.is_some();
        loop {
            let connection = self.connected(true).await?;
            if connection.model_digest() != model.digest() {
                let prepared = model.digest();
                return Err(Error::ModelChanged {
                    stale: 0,
                    prepared,
                    served: connection.model_digest(),
                });
            }
            again |= connection.has_others();
            let answer = match connection.next_bundle().await {
                Ok((id, _)) => connection.infer(model, &id, &question.values, trace).await,
                Err(error) => Err(error),
            };
            match answer {
                Err(error) if again && error.is_temporary() => {
                    again = false;
                    self.abandon();
                }
                answer => return answer,
            }
        }
    }
}

fn is_ready(bundle: &pi_runtime::store::BundleEntry) -> bool {
    bundle.state == BundleState::Ready
}

/// All inputs as the model reads them, before a bundle is spent on any.
fn quantised(inputs: &[Input], model: &ClientModel) -> Result<Vec<Quantised>, Failure> {
    let circuit = &model.artifact().circuit;
    let mut questions = Vec::new();
    for input in inputs {
        questions.extend(input.quantised(circuit)?);
    }
    Ok(questions)
}

/// Whether the exact interpreter, with the weights and the client's shares, has the same answer.
fn equals(
    check: &Model,
    model: &ClientModel,
    question: &Quantised,
    prediction: &Prediction,
) -> Result<bool, Failure> {
    let (artifact, weights) = check.both()?;
    if artifact.digest() != model.digest() {
        let message = "the model to check against is not the one that the server serves";
        return Err(Failure::new("InvalidArgument", message));
    }
    let trace = prediction.trace.as_ref();
    let trace = trace.ok_or_else(|| Failure::internal("the client kept no shares"))?;
    let interpreter = Interpreter::new(&artifact.circuit, &weights.weights);
    let run = interpreter.and_then(|interpreter| interpreter.exact(&question.values, trace));
    let run = run.map_err(Failure::internal)?;
    Ok(prediction.answer == Answer::of_run(&run, artifact.circuit.output().1))
}

/// What a model reads and answers.
fn of_model(model: &ClientModel) -> Value {
    let circuit = &model.artifact().circuit;
    let shape = circuit.image();
    let (frac_bits, reveal) = circuit.output();
    json!({
        "digest": hex(&model.digest()),
        "input": [shape.c, shape.h, shape.w],
        "reads_values": circuit.preprocessing.is_values(),
        "classes": circuit.classes,
        "output_frac_bits": frac_bits,
        "reveal": reveal.to_string(),
    })
}

fn answer(prediction: &Prediction, question: &Quantised) -> Value {
    let mut answer = simulate::answer(&prediction.answer);
    answer["notices"] = question.notices.clone().into();
    answer["bundle"] = hex(&prediction.bundle.0).into();
    answer["online"] = cost(&prediction.online);
    answer
}

fn cost(spent: &Spent) -> Value {
    json!({
        "seconds": spent.wall.as_secs_f64(),
        "bytes_up": spent.traffic.bytes_sent,
        "bytes_down": spent.traffic.bytes_received,
        "messages": spent.traffic.messages_sent + spent.traffic.messages_received,
    })
}

/// What preparing cost.
#[derive(Default)]
struct Costs {
    model: Vec<Spent>,
    keys: Vec<Spent>,
    bundles: Vec<Spent>,
}

impl Costs {
    fn to_json(&self, made: u32) -> Value {
        let all = |spent: &[Spent]| {
            let mut sum = Spent::default();
            for spent in spent {
                sum.wall += spent.wall;
                sum.traffic = sum.traffic + spent.traffic;
            }
            cost(&sum)
        };
        json!({
            "made": made,
            "model": all(&self.model),
            "keys": all(&self.keys),
            "bundles": all(&self.bundles),
        })
    }
}
