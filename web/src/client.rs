//! A client's operations on a server, one at a time.
//!
//! Each is one stream; the worker opens it, carries its bytes and stores its results. What is
//! checked and when is as in the native client: the server's names and version at the greeting, the
//! digest and the circuit of a model before it is used, the plans of batches before bundles are
//! asked for, and both digests of a bundle before it is spent.

use crate::failure::{Failure, Kind};
use crate::line::{Line, lost};
use crate::operation::Operation;
use crate::picture::{self, Picture};
use crate::shares;
use pi_core::SecretBytes;
use pi_core::fp::ELEMENT_BYTES;
use pi_ir::{Artifact, Reveal, Shape, limits};
use pi_protocol::header::{BundleId, HeaderInputs, PROTOCOL_VERSION};
use pi_protocol::session::{
    self, Answer, ClientBatch, ClientBundle, ClientModel, ClientSetup, is_current_setup,
};
use pi_wire::control::{
    CATALOGUE_LIMIT, Catalogue, Held, Hello, MOST_PREFERRED, MOST_PROBES, ModelDigest, Prepare,
    REPLY_LIMIT, Request, Stored, Wanted, Welcome, software,
};
use pi_wire::fingerprint::{Fingerprint, hex};
use pi_wire::web::{
    Challenge, Introduction, Known, MESSAGE_LIMIT, Proof, SIGNATURE_BYTES, VERSION, signed_bytes,
};
use rand_core::{OsRng, RngCore, TryRngCore};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::task::Poll;

/// A client with one server: what it needs in memory, and the operation under way.
#[derive(Default)]
pub struct Client {
    model: Option<Arc<ClientModel>>,
    setup: Option<Arc<ClientSetup>>,
    greeting: Option<Greeting>,
    /// Index of the next bundle in the headers of this connection.
    next_index: u64,
    picture: Option<Picture>,
    /// A bundle that was read and not used yet.
    bundle: Option<ClientBundle>,
    operation: Option<Operation<Done>>,
}

/// The two parties of a connection and the nonces that they exchanged at its start.
#[derive(Clone, Copy)]
struct Greeting {
    server: Fingerprint,
    client: Fingerprint,
    server_nonce: [u8; 32],
    client_nonce: [u8; 32],
    model: ModelDigest,
}

impl Greeting {
    fn header_inputs(&self, index: u64) -> HeaderInputs {
        HeaderInputs {
            server_peer: self.server.0,
            client_peer: self.client.0,
            server_nonce: self.server_nonce,
            client_nonce: self.client_nonce,
            index,
        }
    }
}

/// What an operation leaves behind.
enum Done {
    Text(String),
    Greeted(Greeting, String),
    Artifact(Vec<u8>),
    Setup(ClientSetup),
}

/// What the worker asks for in a greeting.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Wishes {
    /// Name of the model; the server's default without one.
    pub model: Option<String>,
    /// Digests of versions that will do too, since bundles for them are ready.
    pub prefer: Vec<String>,
    /// Ids of bundles to ask about.
    pub probes: Vec<String>,
}

/// A greeting's result for the worker.
#[derive(Serialize)]
struct Greeted<'a> {
    service: String,
    client: String,
    model: String,
    name: &'a str,
    version: &'a str,
    current: bool,
    software: &'a str,
    setup: Option<String>,
    held: &'a [bool],
    answers_left: Option<u64>,
    answers_left_today: Option<(u64, u32)>,
}

/// A model in a catalogue, for the page.
#[derive(Serialize)]
struct Offered {
    name: String,
    version: String,
    model: String,
    current: bool,
    default: bool,
    reveals: &'static str,
    classes: u32,
    bundle_bytes: u64,
    most_bundles: u64,
    answers_left: Option<u64>,
    answers_left_today: Option<u64>,
}

/// A model as the page needs it.
#[derive(Serialize)]
struct About<'a> {
    digest: String,
    name: &'a str,
    classes: &'a [String],
    pictures: bool,
    image: Dimensions,
    sent: Dimensions,
    public_layers: usize,
    reveals: &'static str,
    note: &'a str,
    /// Right answers and test images, as measured at compilation.
    accuracy: Option<(u32, u32)>,
    setup_bytes: [u64; 2],
    offline_bytes: [u64; 2],
    online_bytes: [u64; 2],
    /// Batches of several bundles: how many, and the bytes of the whole batch up and down.
    batches: Vec<(usize, u64, u64)>,
    bundle_bytes: u64,
}

#[derive(Serialize)]
struct Dimensions {
    channels: u32,
    height: u32,
    width: u32,
}

impl From<Shape> for Dimensions {
    fn from(shape: Shape) -> Dimensions {
        Dimensions {
            channels: shape.c,
            height: shape.h,
            width: shape.w,
        }
    }
}

/// An answer for the page.
#[derive(Serialize)]
struct Answered {
    /// The class; `None` if the input is out of the network's range.
    label: Option<usize>,
    /// The logits as real numbers, if they are revealed.
    logits: Option<Vec<f64>>,
    /// The same as the integers that they are, in decimal digits.
    exact: Option<Vec<String>>,
    /// The masked values as they were sent, as shades of grey in hexadecimal digits.
    sent: String,
    /// The first of them as it was sent.
    first: Vec<String>,
    /// The client's shares in hexadecimal digits, if they were asked for.
    trace: Option<String>,
}

/// The state of the operation under way.
pub enum State {
    /// It computes on once what was sent is taken.
    Computing,
    /// It waits for bytes of the server.
    NeedsBytes,
    /// It tells the worker something, and waits for the answer.
    Event(Vec<u8>),
    /// It is done.
    Done(Vec<u8>),
}

const fn reveals(what: Reveal) -> &'static str {
    match what {
        Reveal::Label => "label",
        Reveal::Logits => "logits",
    }
}

fn json(value: &impl Serialize) -> Result<String, Failure> {
    serde_json::to_string(value).map_err(|error| Failure::internal(error.to_string()))
}

/// 32 bytes from their hexadecimal digits.
fn name(digits: &str) -> Result<[u8; 32], Failure> {
    let parsed = digits.parse::<Fingerprint>();
    Ok(parsed
        .map_err(|error| Failure::internal(error.to_string()))?
        .0)
}

fn names(digits: &[String], most: usize) -> Result<Vec<[u8; 32]>, Failure> {
    digits.iter().take(most).map(|id| name(id)).collect()
}

fn random() -> [u8; 32] {
    let mut bytes = [0; 32];
    OsRng.unwrap_err().fill_bytes(&mut bytes);
    bytes
}

impl Client {
    /// The line of the operation under way.
    pub fn line(&self) -> Option<&Line> {
        self.operation.as_ref().map(Operation::line)
    }

    /// Forgets the connection and what was under way on it; model and keys stay.
    pub fn disconnect(&mut self) {
        self.operation = None;
        self.greeting = None;
        self.next_index = 0;
    }

    /// Gives up the operation under way.
    pub fn abandon(&mut self) {
        self.operation = None;
    }

    /// Lets the operation under way compute.
    ///
    /// # Errors
    /// Those of the operation, which is over then.
    pub fn poll(&mut self) -> Result<State, Failure> {
        let operation = self.operation.as_mut();
        let operation = operation.ok_or_else(|| Failure::internal("no operation is under way"))?;
        let done = match operation.poll() {
            Poll::Pending => {
                return Ok(match operation.wait() {
                    crate::line::Wait::Taken => State::Computing,
                    crate::line::Wait::Bytes => State::NeedsBytes,
                    crate::line::Wait::Reply => {
                        State::Event(operation.line().take_event().unwrap_or_default())
                    }
                });
            }
            Poll::Ready(done) => done,
        };
        // The operation stays until the next one: what it sent last is still to be taken.
        self.keep(done?).map(State::Done)
    }

    fn keep(&mut self, done: Done) -> Result<Vec<u8>, Failure> {
        Ok(match done {
            Done::Text(text) => text.into_bytes(),
            Done::Greeted(greeting, text) => {
                self.greeting = Some(greeting);
                self.next_index = 0;
                text.into_bytes()
            }
            Done::Artifact(bytes) => bytes,
            Done::Setup(setup) => {
                let encoded = setup.encode().to_vec();
                self.setup = Some(Arc::new(setup));
                encoded
            }
        })
    }

    fn begin<F>(&mut self, session: impl FnOnce(Line) -> F)
    where
        F: Future<Output = Result<Done, Failure>> + 'static,
    {
        self.operation = Some(Operation::start(session));
    }

    fn greeted(&self) -> Result<Greeting, Failure> {
        self.greeting
            .ok_or_else(|| Failure::internal("the server is not greeted"))
    }

    fn used_model(&self) -> Result<Arc<ClientModel>, Failure> {
        let model = self.model.clone();
        model.ok_or_else(|| Failure::internal("no model is chosen"))
    }

    /// Proves who this browser is, first on every session. The one event is the bytes to sign; the
    /// reply is the signature. The result has the names of service and client.
    pub fn introduce(&mut self, key: Vec<u8>, authority: String) {
        self.begin(|line| introduce(line, key, authority));
    }

    /// Greets the server.
    ///
    /// # Errors
    /// [`Kind::Internal`] for ids that are none.
    pub fn hello(&mut self, wishes: &Wishes) -> Result<(), Failure> {
        let model = wishes.model.clone().map(|name| Wanted {
            name,
            version: None,
        });
        let hello = Hello {
            protocol: PROTOCOL_VERSION,
            software: software(),
            nonce: random(),
            model,
            prefer: names(&wishes.prefer, MOST_PREFERRED)?,
            probes: names(&wishes.probes, MOST_PROBES)?,
        };
        self.begin(|line| greet(line, hello));
        Ok(())
    }

    /// Asks for the models that the server has for this client.
    pub fn catalogue(&mut self) {
        self.begin(list_models);
    }

    /// Asks which of these bundles the server holds.
    ///
    /// # Errors
    /// [`Kind::Internal`] for ids that are none.
    pub fn probe(&mut self, ids: &[String]) -> Result<(), Failure> {
        let ids = names(ids, MOST_PROBES)?;
        self.begin(|line| probe(line, ids));
        Ok(())
    }

    /// Fetches the artifact of the greeting's model; the result is to be passed to
    /// [`Client::use_artifact`].
    pub fn fetch_artifact(&mut self) {
        self.begin(async |mut line: Line| {
            line.send_control(&Request::Artifact).await?;
            let bytes = pi_protocol::Channel::receive(&mut line, limits::ARTIFACT_BYTES).await?;
            Ok(Done::Artifact(bytes))
        });
    }

    /// Verifies an artifact and uses its model from now on; returns what the page shows of it.
    ///
    /// # Errors
    /// [`Kind::Model`] if it is not the one of this digest, or holds no sound circuit.
    pub fn use_artifact(&mut self, digest: &str, bytes: &[u8]) -> Result<String, Failure> {
        let unsound = |what: String| Failure::new(Kind::Model, what);
        let artifact = Artifact::decode(bytes).map_err(|error| unsound(error.to_string()))?;
        if hex(&artifact.digest()) != digest {
            return Err(unsound(
                "it is not the model that the server announced".into(),
            ));
        }
        let model = ClientModel::new(artifact).map_err(|error| unsound(error.to_string()))?;
        let cost = model.cost().map_err(|error| unsound(error.to_string()))?;
        let artifact = model.artifact();
        let circuit = &artifact.circuit;
        let about = About {
            digest: hex(&model.digest()),
            name: &circuit.name,
            classes: &circuit.classes,
            pictures: !circuit.preprocessing.is_values() && matches!(circuit.image().c, 1 | 3),
            image: circuit.image().into(),
            sent: circuit.input.into(),
            public_layers: circuit.prefix.as_ref().map_or(0, |p| p.layers.len()),
            reveals: reveals(circuit.output().1),
            note: &artifact.note,
            accuracy: artifact.accuracy.map(|a| (a.fixed_correct, a.images)),
            setup_bytes: [cost.setup.bytes_up, cost.setup.bytes_down],
            offline_bytes: [cost.offline.bytes_up, cost.offline.bytes_down],
            online_bytes: [cost.online.bytes_up, cost.online.bytes_down],
            batches: (cost.batches.iter())
                .map(|b| (b.bundles, b.offline.bytes_up, b.offline.bytes_down))
                .collect(),
            bundle_bytes: cost.stored.client,
        };
        let about = json(&about)?;
        self.bundle = None;
        self.picture = None;
        self.model = Some(Arc::new(model));
        Ok(about)
    }

    /// Uses stored keys from now on, if they are those of this id; returns whether they are.
    pub fn use_setup(&mut self, id: &str, bytes: &[u8]) -> bool {
        let setup = match is_current_setup(bytes) {
            true => ClientSetup::decode(bytes).ok(),
            false => None,
        };
        self.setup = setup.filter(|setup| hex(&setup.id()) == id).map(Arc::new);
        self.setup.is_some()
    }

    /// Exchanges keys with the server; the result is their stored form, and they are used from now
    /// on.
    ///
    /// # Errors
    /// [`Kind::Internal`] before a greeting.
    pub fn exchange_keys(&mut self) -> Result<(), Failure> {
        let inputs = self.greeted()?.header_inputs(0);
        self.begin(|line| exchange_keys(line, inputs));
        Ok(())
    }

    /// Prepares bundles. Each is an event: its id and its stored form, which is secret. The reply,
    /// which is empty, says that it is stored. `held` are all bundles that are ready here.
    ///
    /// # Errors
    /// [`Kind::Internal`] before there are model and keys; [`Kind::Model`] if the model has no
    /// sound plan for a batch.
    pub fn prepare(&mut self, count: u32, held: &[String]) -> Result<(), Failure> {
        let greeting = self.greeted()?;
        let model = self.used_model()?;
        let setup = self.setup.clone();
        let setup = setup.ok_or_else(|| Failure::internal("there are no keys"))?;
        if model.digest() != greeting.model {
            return Err(Failure::internal("the model is not that of the greeting"));
        }
        let request = Prepare {
            count,
            first_index: self.next_index,
            held: names(held, usize::MAX)?,
        };
        let sizes = model.batches(count as usize);
        let sound = model.check_batches(&sizes);
        sound.map_err(|error| Failure::new(Kind::Model, error.to_string()))?;
        // Used up whatever comes of it.
        self.next_index += u64::from(count);
        self.begin(|line| prepare(line, request, sizes, greeting, model, setup));
        Ok(())
    }

    /// Reads an image file for the model: returns its pixels as red, green, blue and alpha bytes,
    /// and behind them what was done to it, in lines.
    ///
    /// # Errors
    /// [`Kind::Input`].
    pub fn read_picture(&mut self, name: &str, bytes: Vec<u8>) -> Result<Vec<u8>, Failure> {
        let model = self.used_model()?;
        self.picture = None;
        let picture = picture::read(&model.artifact().circuit, name, bytes)?;
        let shape = model.artifact().circuit.image();
        let mut result = picture::rgba(&picture.pixels, shape);
        result.extend_from_slice(picture.changes.join("\n").as_bytes());
        self.picture = Some(picture);
        Ok(result)
    }

    /// The input that will be masked and sent, as shades of grey: what the server would see without
    /// the mask.
    ///
    /// # Errors
    /// [`Kind::Internal`] without a picture.
    pub fn unmasked(&self) -> Result<Vec<u8>, Failure> {
        let picture = self.picture.as_ref();
        let picture = picture.ok_or_else(|| Failure::internal("there is no picture"))?;
        let shape = self.used_model()?.artifact().circuit.input;
        Ok(picture::shades_of_input(&picture.input, shape))
    }

    /// Reads a bundle from its stored form, for the next answer. Reading does not spend it.
    ///
    /// # Errors
    /// [`Kind::Stored`] if it is damaged or another one, [`Kind::Internal`] if it is of another
    /// model.
    pub fn load_bundle(&mut self, id: &str, bytes: &[u8]) -> Result<(), Failure> {
        let model = self.used_model()?;
        let bundle = ClientBundle::decode(bytes, &model)?;
        if hex(&bundle.id().0) != id {
            let what = "the bundle has another name than the one it is stored under";
            return Err(Failure::new(Kind::Stored, what));
        }
        self.bundle = Some(bundle);
        Ok(())
    }

    /// Spends the bundle that was loaded on the picture that was read. It must be marked as spent
    /// before, durably.
    ///
    /// With `trace` the result has the client's shares of the run, for a check.
    ///
    /// # Errors
    /// [`Kind::Internal`] without either.
    pub fn infer(&mut self, trace: bool) -> Result<(), Failure> {
        self.greeted()?;
        let model = self.used_model()?;
        let picture = self.picture.as_ref();
        let picture = picture.ok_or_else(|| Failure::internal("there is no picture"))?;
        let input = picture.input.clone();
        let bundle = self.bundle.take();
        let bundle = bundle.ok_or_else(|| Failure::internal("no bundle is loaded"))?;
        self.begin(|line| infer(line, model, bundle, input, trace));
        Ok(())
    }
}

async fn introduce(mut line: Line, key: Vec<u8>, authority: String) -> Result<Done, Failure> {
    let version = VERSION;
    line.send_control(&Introduction { version, key }).await?;
    let challenge: Challenge = line.receive_control(MESSAGE_LIMIT).await?;
    let signature = line.ask(signed_bytes(&challenge, &authority)).await;
    if signature.len() != SIGNATURE_BYTES {
        let length = signature.len();
        return Err(Failure::internal(format!("a signature of {length} bytes")));
    }
    line.send_control(&Proof { signature }).await?;
    let known: Known = line.receive_control(MESSAGE_LIMIT).await?;
    let names = [hex(&challenge.service), hex(&known.client)];
    Ok(Done::Text(json(&names)?))
}

async fn greet(mut line: Line, hello: Hello) -> Result<Done, Failure> {
    let (client_nonce, probes) = (hello.nonce, hello.probes.len());
    line.send_control(&Request::Hello(hello)).await?;
    let welcome: Welcome = line.receive_control(REPLY_LIMIT).await?;
    if welcome.protocol != PROTOCOL_VERSION {
        let theirs = welcome.protocol;
        let what = format!("the server speaks protocol {theirs}, this page {PROTOCOL_VERSION}");
        return Err(Failure::new(Kind::Incompatible, what));
    }
    check_answers(&welcome.held, probes)?;
    let greeting = Greeting {
        server: welcome.service,
        client: welcome.client,
        server_nonce: welcome.nonce,
        client_nonce,
        model: welcome.model,
    };
    let greeted = Greeted {
        service: welcome.service.to_string(),
        client: welcome.client.to_string(),
        model: hex(&welcome.model),
        name: &welcome.name,
        version: &welcome.version,
        current: welcome.current,
        software: &welcome.software,
        setup: welcome.setup.as_ref().map(|id| hex(id)),
        held: &welcome.held,
        answers_left: welcome.answers_left,
        answers_left_today: welcome.answers_left_today,
    };
    Ok(Done::Greeted(greeting, json(&greeted)?))
}

fn check_answers(held: &[bool], probes: usize) -> Result<(), Failure> {
    match held.len() == probes {
        true => Ok(()),
        false => Err(Failure::misbehaved(format!(
            "{} answers to {probes} probes",
            held.len()
        ))),
    }
}

async fn list_models(mut line: Line) -> Result<Done, Failure> {
    line.send_control(&Request::Catalogue).await?;
    let Catalogue { models } = line.receive_control(CATALOGUE_LIMIT).await?;
    let offered = models.into_iter().map(|listing| Offered {
        name: listing.name,
        version: listing.version,
        model: hex(&listing.model),
        current: listing.current,
        default: listing.default,
        reveals: reveals(listing.reveals),
        classes: listing.classes,
        bundle_bytes: listing.bundle_bytes,
        most_bundles: listing.most_bundles,
        answers_left: listing.answers_left,
        answers_left_today: listing.answers_left_today,
    });
    Ok(Done::Text(json(&offered.collect::<Vec<_>>())?))
}

async fn probe(mut line: Line, ids: Vec<[u8; 32]>) -> Result<Done, Failure> {
    let asked = ids.len();
    line.send_control(&Request::Probe(ids)).await?;
    let answer: Held = line.receive_control(REPLY_LIMIT).await?;
    check_answers(&answer.held, asked)?;
    Ok(Done::Text(json(&answer.held)?))
}

async fn exchange_keys(mut line: Line, inputs: HeaderInputs) -> Result<Done, Failure> {
    line.send_control(&Request::Setup).await?;
    let rng = &mut OsRng.unwrap_err();
    let setup = session::client_setup(&mut line, &inputs, rng).await?;
    // One half alone is useless, so this one is kept only once the server's is durable.
    await_stored(&mut line, setup.id()).await?;
    Ok(Done::Setup(setup))
}

async fn await_stored(line: &mut Line, id: [u8; 32]) -> Result<(), Failure> {
    let stored: Stored = line.receive_control(REPLY_LIMIT).await?;
    match stored.id == id {
        true => Ok(()),
        false => Err(Failure::misbehaved("it stored something else")),
    }
}

async fn prepare(
    mut line: Line,
    request: Prepare,
    sizes: Vec<usize>,
    greeting: Greeting,
    model: Arc<ClientModel>,
    setup: Arc<ClientSetup>,
) -> Result<Done, Failure> {
    let (mut index, count) = (request.first_index, request.count);
    line.send_control(&Request::Prepare(request)).await?;
    for size in sizes {
        let inputs = greeting.header_inputs(index);
        index += size as u64;
        let rng = &mut OsRng.unwrap_err();
        let mut batch = ClientBatch::start(&mut line, &model, &setup, &inputs, size, rng).await?;
        while let Some(BundleId(id)) = batch.next_id() {
            let mut stored = SecretBytes::with_capacity(ClientBundle::encoded_len(&model));
            let next = batch.next_bundle(&mut line, &mut stored).await?;
            let Some((_, rest)) = next else { break };
            batch = rest;
            // The other half of every bundle kept here exists.
            await_stored(&mut line, id).await?;
            line.ask([&id[..], stored.as_slice()].concat()).await;
        }
    }
    Ok(Done::Text(json(&count)?))
}

async fn infer(
    mut line: Line,
    model: Arc<ClientModel>,
    bundle: ClientBundle,
    input: Vec<i64>,
    trace: bool,
) -> Result<Done, Failure> {
    line.send_control(&Request::Infer).await?;
    line.keep_next();
    let inference = session::client_infer(&mut line, &model, bundle, &input, trace).await?;
    let sent = line.take_kept();
    let sent = sent.ok_or_else(|| lost("nothing was sent"))?;
    let (elements, _) = sent[size_of::<BundleId>()..].as_chunks::<ELEMENT_BYTES>();
    let elements: Vec<u64> = elements.iter().map(|e| u64::from_le_bytes(*e)).collect();
    let scale = f64::from(model.artifact().circuit.output().0).exp2();
    let answer = &inference.answer;
    let logits = answer.logits();
    let answered = Answered {
        label: answer.label(),
        logits: logits.map(|l| l.iter().map(|&value| value as f64 / scale).collect()),
        exact: logits.map(|l| l.iter().map(i64::to_string).collect()),
        sent: hex(&picture::shades(&elements)),
        first: elements.iter().take(6).map(u64::to_string).collect(),
        trace: inference.trace.map(|trace| hex(&shares::encode(&trace))),
    };
    debug_assert!(answered.label.is_some() || inference.answer == Answer::OutOfRange);
    Ok(Done::Text(json(&answered)?))
}
