//! Preparation of a batch of bundles: four messages, each in a file with both of its halves. The
//! last two go part by part ([`crate::parts`]), so that neither party has all tables of a bundle.
//!
//! | | messages | content | file |
//! | --- | --- | --- | --- |
//! | 1 | client to server | digest of the headers; per bundle the base-OT correction of the reverse offset | `transfers` |
//! | | then per upload | encrypted masks of all bundles | `linear` |
//! | 2 | server to client | digest of the headers; per bundle the base-OT correction of `delta`, set-up and random choices of the reverse extension | `transfers` |
//! | | then per answer | encrypted `W r + s` of all bundles | `linear` |
//! | 3 | per bundle and part, client to server | in front of part 0: set-up of the forward extension; for the label, choices; OLE uploads and `x - a`; `c' - r` of identity elements. Per piece of ReLUs: choices by the bits of `c'`, `tau` | `choices` |
//! | 4 | then server to client | in front of part 0: for the label, tables; OLE answers. Per piece of ReLUs: tables and `e`; then the choices of the reverse extension for the next part, those for part 0 being in message 2 | `tables` |
//!
//! The bundles of a batch share the ciphertexts of messages 1 and 2, and nothing else: headers,
//! offsets, nonces and seeds are each bundle's own, and messages 3 and 4 are an exchange of each
//! bundle by itself. Parts that a circuit does not need are left out, but every message is sent:
//! message 4 of a circuit without ReLUs, squares, polynomials and label is empty. The digests are
//! compared before anything else is computed. The argument that each message can be simulated is in
//! [`super`], in [`crate::linear`], and beside the gadgets.
//!
//! # A batch that breaks
//! All uploads and answers have been exchanged before the first message 3, and no message of a
//! batch is ever made twice: an exchange that breaks is followed by one with other indices, hence
//! other seeds and masks. So the bundles that were complete before stay usable. The others are
//! discarded on both sides, and none of them was used.
//!
//! # Who waits for whom
//! The client sends all uploads before it reads anything; the server reads all of them, computing
//! meanwhile, before it sends anything. After that the two take turns, part by part: the client
//! reads the tables of one part before it sends the choices of the next. So at any time one of them
//! reads, and no line, however small its buffers, can block both. That costs a round trip for each
//! part after the first; a client that ran ahead would save some of them, and could block with its
//! peer once both lines are full.

mod choices;
mod linear;
mod tables;
mod transfers;

use self::transfers::{ClientTransfers, ServerTransfers};
use super::bundle::{ClientLayer, ClientWriter, ServerBundle};
use super::material::tweaks;
use super::model::{ClientModel, PublicModel, ServerModel};
use super::sections::BundleSink;
use super::setup::{ClientSetup, ServerSetup};
use crate::Error;
use crate::channel::{Channel, receive_exactly};
use crate::cost::Traffic;
use crate::header::{BundleHeader, BundleId, HeaderInputs};
use crate::indexed_circuit::{IndexedCircuit, Planned};
use crate::linear::{answers_bytes, uploads_bytes};
use crate::secrets::{Role, Secrets};
use crate::wire::Reader;
use pi_core::fp::Elements;
use pi_core::{TweakRange, memory};
use pi_rlwe::Params;
use rand_core::CryptoRng;

/// A batch at the client, after its linear layers: bundles come out of it one by one.
///
/// Asking for a bundle takes the batch, and only a bundle that is complete gives it back. All
/// secrets of a bundle derive from its header, so a message 3 that is made twice would have the
/// same masks; after an error there is no batch left to make it from:
/// ```compile_fail,E0382
/// # use pi_protocol::{Channel, session::ClientBatch};
/// # use pi_protocol::session::BundleSink;
/// async fn twice(line: &mut impl Channel, batch: ClientBatch<'_>, sink: &mut dyn BundleSink) {
///     let _ = batch.next_bundle(line, sink).await;
///     let _ = batch.next_bundle(line, sink).await;
/// }
/// ```
pub struct ClientBatch<'a> {
    batch: Batch<'a>,
    setup: &'a ClientSetup,
    /// The bundles that are not handed out yet, in order.
    bundles: std::vec::IntoIter<ClientExchange>,
    /// `r` of every tensor, `[bundle][..]`.
    masks: Vec<Elements>,
    /// `W r + s` of every convolution, `[bundle][..]`.
    answers: Vec<Elements>,
}

/// The client's state of one bundle of a batch.
struct ClientExchange {
    header: BundleHeader,
    tweaks: Vec<Option<TweakRange>>,
    secrets: Secrets,
    transfers: Option<ClientTransfers>,
}

/// A bundle at the client while it is made: what is in memory of it, which is all but the pieces.
struct Making {
    header: BundleHeader,
    tweaks: Vec<Option<TweakRange>>,
    transfers: Option<ClientTransfers>,
    layers: Vec<ClientLayer>,
}

impl<'a> ClientBatch<'a> {
    /// Runs the linear layers of `bundles` bundles, for which the model must have a plan
    /// ([`ClientModel::batches`]): messages 1 and 2.
    ///
    /// `inputs` are those of the first bundle; the others count `index` up. None of them may have
    /// served any exchange before, broken ones included: the runtime counts `index` up.
    ///
    /// # Errors
    /// [`Error::ApiMisuse`] without such a plan, [`Error::PeerIncompatible`] if the digests of the
    /// headers differ, [`Error::PeerMisbehaved`] for malformed messages, [`Error::Channel`]. The
    /// exchange is over then, and all its bundles are discarded.
    pub async fn start(
        channel: &mut impl Channel,
        model: &'a ClientModel,
        setup: &'a ClientSetup,
        inputs: &HeaderInputs,
        bundles: usize,
        rng: &mut impl CryptoRng,
    ) -> Result<Self, Error> {
        let (batch, headers) = Batch::new(model.public(), setup.id(), inputs, bundles)?;
        let indexed = batch.indexed;
        let mut message = batch.id.to_vec();
        let mut exchanges = Vec::with_capacity(bundles);
        let mut pending = Vec::with_capacity(bundles);
        for header in headers {
            let id = header.id();
            let secrets = Secrets::draw(Role::Client, &id.0, rng);
            if indexed.garbles {
                pending.push(transfers::begin(setup, &id, &secrets, &mut message));
            }
            exchanges.push(ClientExchange {
                tweaks: tweaks(indexed, &id),
                header,
                secrets,
                transfers: None,
            });
        }
        channel.send(message).await?;
        let secrets = Secrets::draw(Role::Client, &batch.id, rng);
        let masks = batch.send_masks(channel, setup, &secrets).await?;

        let what = "first message of the server";
        let expected = server_head_bytes(indexed, bundles);
        let message = receive_head(channel, what, expected, &batch.id).await?;
        let mut reader = Reader::message(what, &message);
        reader.take(DIGEST_BYTES)?;
        for (exchange, pending) in exchanges.iter_mut().zip(pending) {
            let id = exchange.header.id();
            let transfers = ClientTransfers::finish(indexed, setup, &id, pending, &mut reader)?;
            exchange.transfers = Some(transfers);
        }
        reader.end()?;
        let answers = batch.receive_answers(channel, setup).await?;
        Ok(ClientBatch {
            batch,
            setup,
            bundles: exchanges.into_iter(),
            masks,
            answers,
        })
    }

    /// Identity of the next bundle; `None` after the last.
    pub fn next_id(&self) -> Option<BundleId> {
        let next = self.bundles.as_slice().first();
        next.map(|exchange| exchange.header.id())
    }

    /// The next bundle of the batch, by messages 3 and 4, written to `sink`: its identity, and the
    /// rest of the batch; `None` after the last.
    ///
    /// What was written is a bundle only once this returns.
    ///
    /// # Errors
    /// [`Error::PeerMisbehaved`] for malformed messages, [`Error::Channel`]; those of the sink. The
    /// rest of the batch is lost then.
    pub async fn next_bundle(
        mut self,
        channel: &mut impl Channel,
        sink: &mut dyn BundleSink,
    ) -> Result<Option<(BundleId, Self)>, Error> {
        let Some(exchange) = self.bundles.next() else {
            return Ok(None);
        };
        let indexed = self.batch.indexed;
        let count = self.batch.planned.bundles();
        let bundle = count - self.bundles.len() - 1;
        let (mut making, label, mut message) = self.begin(bundle, exchange)?;
        let what = "garbled circuits";

        let offered = making.choose(indexed, 0, &mut message)?;
        channel.send(message).await?;
        let reply = receive_exactly(channel, what, tables::message_bytes(indexed, 0)).await?;
        let mut reader = Reader::message(what, &reply);
        self.settle_head(&mut making, label, &mut reader)?;
        let input_mask = part(&self.masks[0], bundle, count);
        let mut writer = ClientWriter::begin(sink, &making.header, input_mask)?;
        for layer in &making.layers {
            writer.layer(layer)?;
        }
        making.settle(indexed, 0, offered, &mut reader, &mut writer)?;
        reader.end()?;
        drop(reply);

        for part in 1..indexed.parts.count() {
            let mut message = memory::with_capacity(choices::message_bytes(indexed, part));
            let offered = making.choose(indexed, part, &mut message)?;
            channel.send(message).await?;
            let expected = tables::message_bytes(indexed, part);
            let reply = receive_exactly(channel, what, expected).await?;
            let mut reader = Reader::message(what, &reply);
            making.settle(indexed, part, offered, &mut reader, &mut writer)?;
            reader.end()?;
        }
        Ok(Some((making.header.id(), self)))
    }
}

/// A batch at the server, after its linear layers: bundles come out of it one by one.
///
/// As at the client, asking for a bundle takes the batch: a second message 3 for the same bundle
/// would be answered with the same masks.
/// ```compile_fail,E0382
/// # use pi_protocol::{Channel, session::ServerBatch};
/// async fn twice(channel: &mut impl Channel, batch: ServerBatch<'_>) {
///     let _ = batch.next_bundle(channel).await;
///     let _ = batch.next_bundle(channel).await;
/// }
/// ```
pub struct ServerBatch<'a> {
    batch: Batch<'a>,
    model: &'a ServerModel,
    setup: &'a ServerSetup,
    /// The bundles that are not handed out yet, in order.
    bundles: std::vec::IntoIter<ServerExchange>,
    /// `s` of every convolution, `[bundle][..]`.
    shares: Vec<Elements>,
}

/// The server's state of one bundle of a batch.
struct ServerExchange {
    header: BundleHeader,
    tweaks: Vec<Option<TweakRange>>,
    secrets: Secrets,
    transfers: Option<ServerTransfers>,
}

impl<'a> ServerBatch<'a> {
    /// Runs the linear layers of `bundles` bundles, for which the model must have a plan
    /// ([`ServerModel::batches`]): messages 1 and 2.
    ///
    /// `inputs` are those of the first bundle; the others count `index` up. None of them may have
    /// served any exchange before, broken ones included.
    ///
    /// # Errors
    /// As [`ClientBatch::start`].
    pub async fn start(
        channel: &mut impl Channel,
        model: &'a ServerModel,
        setup: &'a ServerSetup,
        inputs: &HeaderInputs,
        bundles: usize,
        rng: &mut impl CryptoRng,
    ) -> Result<Self, Error> {
        let (batch, headers) = Batch::new(model.public(), setup.id(), inputs, bundles)?;
        let indexed = batch.indexed;
        let what = "first message of the client";
        let expected = client_head_bytes(indexed, bundles);
        let message = receive_head(channel, what, expected, &batch.id).await?;

        let secrets = Secrets::draw(Role::Server, &batch.id, rng);
        let kernels = model.kernels(bundles)?;
        let answered = batch.answer_masks(channel, kernels, setup, &secrets).await;
        let (messages, shares) = answered?;

        // Only now, so that a client that sends no uploads has cost nothing but its first message.
        let mut reader = Reader::message(what, &message);
        reader.take(DIGEST_BYTES)?;
        let mut head = Vec::with_capacity(server_head_bytes(indexed, bundles));
        head.extend_from_slice(&batch.id);
        let mut exchanges = Vec::with_capacity(bundles);
        for header in headers {
            let id = header.id();
            let secrets = Secrets::draw(Role::Server, &id.0, rng);
            let transfers = match indexed.garbles {
                false => None,
                true => {
                    let (reader, head) = (&mut reader, &mut head);
                    let accepted =
                        ServerTransfers::accept(indexed, setup, &id, &secrets, reader, head);
                    Some(accepted?)
                }
            };
            exchanges.push(ServerExchange {
                transfers,
                tweaks: tweaks(indexed, &id),
                header,
                secrets,
            });
        }
        reader.end()?;
        channel.send(head).await?;
        for message in messages {
            channel.send(message).await?;
        }
        Ok(ServerBatch {
            batch,
            model,
            setup,
            bundles: exchanges.into_iter(),
            shares,
        })
    }

    /// The next bundle of the batch, by messages 3 and 4, and the rest of the batch; `None` after
    /// the last.
    ///
    /// # Errors
    /// As [`ClientBatch::next_bundle`].
    pub async fn next_bundle(
        mut self,
        channel: &mut impl Channel,
    ) -> Result<Option<(ServerBundle, Self)>, Error> {
        let Some(exchange) = self.bundles.next() else {
            return Ok(None);
        };
        let bundle = self.batch.planned.bundles() - self.bundles.len() - 1;
        let indexed = self.batch.indexed;
        let what = "choices";
        let message = receive_exactly(channel, what, choices::message_bytes(indexed, 0)).await?;
        let mut reader = Reader::message(what, &message);
        let mut reply = tables::reply(indexed, 0);
        let mut garbling = self.begin(bundle, exchange, &mut reader, &mut reply)?;
        garbling.garble(indexed, 0, &mut reader, &mut reply)?;
        reader.end()?;
        drop(message);
        channel.send(reply).await?;
        for part in 1..indexed.parts.count() {
            let expected = choices::message_bytes(indexed, part);
            let message = receive_exactly(channel, what, expected).await?;
            let mut reader = Reader::message(what, &message);
            let mut reply = tables::reply(indexed, part);
            garbling.garble(indexed, part, &mut reader, &mut reply)?;
            reader.end()?;
            channel.send(reply).await?;
        }
        Ok(Some((garbling.finish(self.batch.indexed), self)))
    }
}

impl std::fmt::Debug for ClientBatch<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ClientBatch({} left)", self.bundles.len())
    }
}

impl std::fmt::Debug for ServerBatch<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ServerBatch({} left)", self.bundles.len())
    }
}

/// A batch as both parties know it before its first message.
struct Batch<'a> {
    indexed: &'a IndexedCircuit,
    planned: &'a Planned,
    params: Params,
    /// Hash of the identities of the bundles, in order: the linear layers derive their seeds from
    /// it.
    id: [u8; 32],
}

impl<'a> Batch<'a> {
    /// A batch and the headers of its bundles, whose indices count up from that of `first`.
    fn new(
        model: &'a PublicModel,
        client_key: [u8; 32],
        first: &HeaderInputs,
        bundles: usize,
    ) -> Result<(Self, Vec<BundleHeader>), Error> {
        let indexed = &model.indexed;
        let planned = indexed.planned(bundles)?;
        let headers = (0..bundles as u64).map(|i| {
            let index = first.index + i;
            model.header(planned, client_key, &HeaderInputs { index, ..*first })
        });
        let headers: Vec<BundleHeader> = headers.collect();
        let batch = Batch {
            indexed,
            planned,
            params: Params::standard(),
            id: batch_id(headers.iter().map(BundleHeader::id)),
        };
        Ok((batch, headers))
    }
}

fn batch_id(bundles: impl IntoIterator<Item = BundleId>) -> [u8; 32] {
    let mut hash = blake3::Hasher::new_derive_key("pianissimo 1 batch");
    for id in bundles {
        hash.update(&id.0);
    }
    hash.finalize().into()
}

/// Traffic of a batch.
pub(crate) fn offline_traffic(indexed: &IndexedCircuit, planned: &Planned) -> Traffic {
    let bundles = planned.bundles();
    let packing = &planned.packing;
    let uploads: usize = packing.uploads().iter().map(uploads_bytes).sum();
    let answers: usize = packing.answers().iter().map(answers_bytes).sum();
    let parts = indexed.parts.count();
    let messages = (0..parts).map(|part| part_bytes(indexed, part));
    let (choices, tables) = messages.fold((0, 0), |sum, bytes| (sum.0 + bytes.0, sum.1 + bytes.1));
    Traffic {
        bytes_up: (client_head_bytes(indexed, bundles) + uploads + bundles * choices) as u64,
        bytes_down: (server_head_bytes(indexed, bundles) + answers + bundles * tables) as u64,
        messages: (2 + packing.uploads().len() + packing.answers().len() + 2 * bundles * parts)
            as u32,
    }
}

const DIGEST_BYTES: usize = 32;

/// Bytes of messages 3 and 4 of a part.
pub(super) fn part_bytes(indexed: &IndexedCircuit, part: usize) -> (usize, usize) {
    (
        choices::message_bytes(indexed, part),
        tables::message_bytes(indexed, part),
    )
}

/// Bytes of the first message of 1.
pub(super) fn client_head_bytes(indexed: &IndexedCircuit, bundles: usize) -> usize {
    DIGEST_BYTES + bundles * transfers::client_bytes(indexed)
}

/// Bytes of the first message of 2.
pub(super) fn server_head_bytes(indexed: &IndexedCircuit, bundles: usize) -> usize {
    DIGEST_BYTES + bundles * transfers::server_bytes(indexed)
}

/// Receives the message that begins with the digest of the headers, and compares that first.
async fn receive_head(
    channel: &mut impl Channel,
    what: &'static str,
    expected: usize,
    id: &[u8; 32],
) -> Result<Vec<u8>, Error> {
    let message = channel.receive(expected).await?;
    match message.first_chunk::<DIGEST_BYTES>() {
        Some(digest) if digest != id => Err(Error::PeerIncompatible {
            what: format!("{what}: the headers of the bundles differ from ours"),
        }),
        _ => {
            Error::check_length(what, expected, message.len())?;
            Ok(message)
        }
    }
}

/// Bundle `bundle` of a tensor or an answer, `[bundle][..]`.
fn part(all: &[u64], bundle: usize, bundles: usize) -> &[u64] {
    let length = all.len() / bundles;
    &all[bundle * length..][..length]
}
