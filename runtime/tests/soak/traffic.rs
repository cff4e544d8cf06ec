//! What the clients do: each with a state of its own, over connections that they make and leave,
//! and each answer compared with the exact interpreter's.

use crate::common::Model;
use crate::relay::Draw;
use crate::tally::Tally;
use pi_ir::interpret::{label, quantise};
use pi_ir::random;
use pi_protocol::session::{Answer, ClientModel, ClientSetup};
use pi_runtime::client::{Client, Connection, Patience, Prediction, TrustOptions};
use pi_runtime::error::Error;
use pi_runtime::fingerprint::Fingerprint;
use pi_runtime::identity::Identity;
use pi_runtime::transport::{Trust, client_endpoint};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::runtime::Handle;

/// Patience of the clients with a server that does not answer.
pub const PATIENCE: Patience = Patience {
    connect: Duration::from_secs(8),
    silence: Duration::from_secs(12),
};
/// Bundles from which on a client makes no more.
const PLENTY: usize = 12;

/// The place where all clients meet their server.
pub struct Scene<'a> {
    pub model: &'a Model,
    pub server: Fingerprint,
    pub address: SocketAddr,
    pub tally: &'a Tally,
    pub stop: &'a AtomicBool,
    /// Mean pause between two operations of a client.
    pub pause: Duration,
    pub runtime: Handle,
}

impl Scene<'_> {
    fn address(&self) -> String {
        self.address.to_string()
    }

    fn trust(&self) -> TrustOptions {
        TrustOptions {
            fingerprint: Some(self.server),
            ..TrustOptions::default()
        }
    }
}

/// One client, until the end.
pub struct Visitor<'a> {
    scene: &'a Scene<'a>,
    number: usize,
    client: Client,
    draw: Draw,
}

impl<'a> Visitor<'a> {
    pub fn new(scene: &'a Scene<'a>, number: usize, state: &Path, seed: u64) -> Visitor<'a> {
        Visitor {
            scene,
            number,
            client: Client::open(state, PATIENCE).unwrap().unbound(),
            draw: Draw(seed),
        }
    }

    pub fn fingerprint(&self) -> Fingerprint {
        self.client.fingerprint()
    }

    /// Comes and goes until the scene ends.
    pub fn stay(&mut self) {
        while !self.scene.stop.load(Ordering::SeqCst) {
            let runtime = self.scene.runtime.clone();
            if let Err(error) = runtime.block_on(self.visit()) {
                self.scene.tally.check_failure(&error);
            }
            self.rest();
        }
    }

    fn rest(&mut self) {
        let pause = self.scene.pause.as_millis() as u64;
        std::thread::sleep(Duration::from_millis(self.draw.below(2 * pause + 1)));
    }

    /// One connection with some operations.
    async fn visit(&mut self) -> Result<(), Error> {
        let (scene, number) = (self.scene, self.number);
        let (tally, client) = (scene.tally, &self.client);
        let (address, trust) = (scene.address(), scene.trust());
        let connecting = client.connect(&address, &trust);
        let mut connection = tally.time(number, "connect", connecting).await?;
        let (model, _) = tally.time(number, "model", connection.model()).await?;
        let (setup, _) = tally.time(number, "keys", connection.setup()).await?;
        let mut stay = Stay {
            scene,
            number,
            client,
            draw: &mut self.draw,
            model,
            setup,
        };
        for _ in 0..=stay.draw.below(12) {
            if scene.stop.load(Ordering::SeqCst) || !stay.act(&mut connection).await? {
                break;
            }
            let pause = stay.draw.below(2 * scene.pause.as_millis() as u64 + 1);
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        // Some say goodbye, some do not.
        match self.draw.below(3) {
            0 => connection.abandon(),
            1 => drop(connection),
            _ => connection.close().await,
        }
        Ok(())
    }
}

/// A visitor with a connection.
struct Stay<'a> {
    scene: &'a Scene<'a>,
    number: usize,
    client: &'a Client,
    draw: &'a mut Draw,
    model: ClientModel,
    setup: ClientSetup,
}

impl Stay<'_> {
    /// One operation; false if the connection is of no more use.
    async fn act(&mut self, connection: &mut Connection<'_>) -> Result<bool, Error> {
        let digest = connection.model_digest();
        let ready = self.client.ready_for(self.scene.server, &digest)?;
        match self.draw.below(20) {
            _ if ready == 0 => self.prepare(connection).await?,
            0..=2 if ready < PLENTY => self.prepare(connection).await?,
            3 => {
                let usable = connection.usable();
                let usable = self.scene.tally.time(self.number, "status", usable).await?;
                self.scene.tally.require(usable == ready, || {
                    format!("of {ready} bundles the server holds {usable}")
                });
            }
            4 => return self.give_up(connection).await,
            _ => self.infer(connection).await?,
        }
        Ok(true)
    }

    async fn prepare(&mut self, connection: &mut Connection<'_>) -> Result<(), Error> {
        let count = [1, 1, 3, 4][self.draw.below(4) as usize];
        let preparing = connection.prepare(&self.model, &self.setup, count, |_| {});
        let timed = self.scene.tally.time(self.number, "prepare", preparing);
        timed.await.map(drop)
    }

    async fn infer(&mut self, connection: &mut Connection<'_>) -> Result<(), Error> {
        let tally = self.scene.tally;
        let next = tally.time(self.number, "next bundle", connection.next_bundle());
        let (id, given_up) = next.await?;
        tally.require(given_up == 0, || {
            format!("the server lost its halves of {given_up} bundles")
        });
        if self.draw.below(2) == 0 {
            connection.load(&self.model, &id).await?;
        }
        let input = random::input(&self.scene.model.artifact.circuit, self.draw.next());
        let input = quantise(&self.scene.model.artifact.circuit, &input).unwrap();
        let inferring = connection.infer(&self.model, &id, &input, true);
        let prediction = tally.time(self.number, "infer", inferring).await?;
        let right = is_right(self.scene.model, &input, &prediction);
        tally.answered(self.client.fingerprint(), prediction.bundle, right);
        Ok(())
    }

    /// Begins an operation and drops it in the middle.
    async fn give_up(&mut self, connection: &mut Connection<'_>) -> Result<bool, Error> {
        let patience = Duration::from_millis(self.draw.below(40));
        let doing = async {
            match self.draw.below(2) {
                0 => {
                    let preparing = connection.prepare(&self.model, &self.setup, 3, |_| {});
                    preparing.await.map(drop)
                }
                _ => {
                    let (id, _) = connection.next_bundle().await?;
                    let input = self.scene.model.input();
                    let answer = connection.infer(&self.model, &id, &input, true).await?;
                    let right = is_right(self.scene.model, &input, &answer);
                    let client = self.client.fingerprint();
                    self.scene.tally.answered(client, answer.bundle, right);
                    Ok(())
                }
            }
        };
        let doing = async {
            match tokio::time::timeout(patience, doing).await {
                Ok(done) => done,
                Err(_) => Ok(()),
            }
        };
        self.scene.tally.time(self.number, "give up", doing).await?;
        connection.abandon();
        Ok(false)
    }
}

fn is_right(model: &Model, input: &[i64], prediction: &Prediction) -> bool {
    let trace = prediction.trace.as_ref().expect("it was asked for");
    let exact = model.interpreter().exact(input, trace).unwrap();
    match &prediction.answer {
        Answer::Label(found) => *found == label(&exact.logits) && exact.in_range,
        Answer::Logits(found) => *found == exact.logits && exact.in_range,
        Answer::OutOfRange => !exact.in_range,
    }
}

/// A stranger that sends what means nothing: datagrams, and messages on a connection that stands.
pub fn pester(scene: &Scene<'_>, state: &Path, seed: u64) {
    let identity = Identity::load_or_create(state, &["stranger"]).unwrap();
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    let mut draw = Draw(seed);
    while !scene.stop.load(Ordering::SeqCst) {
        let garbage = garbage(&mut draw);
        let _ = socket.send_to(&garbage[..garbage.len().min(1400)], scene.address);
        if draw.below(8) == 0 {
            let done = scene.runtime.block_on(async {
                let trust = Trust::Pinned(scene.server);
                let endpoint = client_endpoint(&identity, trust, scene.address).ok()?;
                let connecting = endpoint.endpoint.connect(scene.address, "localhost").ok()?;
                let waiting = tokio::time::timeout(PATIENCE.connect, connecting);
                let connection = waiting.await.ok()?.ok()?;
                for _ in 0..4 {
                    let (mut outgoing, _incoming) = connection.open_bi().await.ok()?;
                    outgoing.write_all(&garbage).await.ok()?;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
                Some(())
            });
            scene.tally.pestered(done.is_some());
        }
        std::thread::sleep(Duration::from_millis(100 + draw.below(400)));
    }
}

fn garbage(draw: &mut Draw) -> Vec<u8> {
    let length = 1 + draw.below(5000);
    let mut bytes: Vec<u8> = (0..length).map(|_| draw.next() as u8).collect();
    // Often a length that a message may have.
    if draw.below(2) == 0 && bytes.len() > 4 {
        bytes[..4].copy_from_slice(&(length as u32 - 4).to_be_bytes());
    }
    bytes
}

/// Makes bundles with nothing in the way.
pub fn make_ready(visitor: &mut Visitor<'_>, count: u32) -> Result<(), Error> {
    let (scene, client) = (visitor.scene, &visitor.client);
    scene.runtime.block_on(async {
        let mut connection = client.connect(&scene.address(), &scene.trust()).await?;
        let (model, _) = connection.model().await?;
        let (setup, _) = connection.setup().await?;
        let prepared = connection.prepare(&model, &setup, count, |_| {});
        prepared.await.map(drop)
    })
}

/// Spends what is left with nothing in the way, so that both halves of it prove to be there, and
/// returns the number of answers.
pub fn use_up(visitor: &mut Visitor<'_>, most: usize) -> Result<usize, Error> {
    let (scene, client) = (visitor.scene, &visitor.client);
    scene.runtime.block_on(async {
        let mut connection = client.connect(&scene.address(), &scene.trust()).await?;
        let (model, _) = connection.model().await?;
        let ready = client.ready_for(scene.server, &connection.model_digest())?;
        for _ in 0..ready.min(most) {
            let (id, given_up) = connection.next_bundle().await?;
            assert_eq!(given_up, 0);
            let input = scene.model.input();
            let answer = connection.infer(&model, &id, &input, true).await?;
            let right = is_right(scene.model, &input, &answer);
            let client = client.fingerprint();
            scene.tally.answered(client, answer.bundle, right);
        }
        connection.close().await;
        Ok(ready.min(most))
    })
}
