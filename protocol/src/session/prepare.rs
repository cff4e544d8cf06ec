//! Preparation of a batch of bundles: four messages, each in a file with both of its halves.
//!
//! | | messages | content | file |
//! | --- | --- | --- | --- |
//! | 1 | client to server | digest of the headers; per bundle the base-OT correction of the reverse offset | `transfers` |
//! | | then per upload | encrypted masks of all bundles | `linear` |
//! | 2 | server to client | digest of the headers; per bundle the base-OT correction of `delta`, set-up and random choices of the reverse extension | `transfers` |
//! | | then per answer | encrypted `W r + s` of all bundles | `linear` |
//! | 3 | per bundle, client to server | set-up of the forward extension; per layer with ReLUs: choices by the bits of `c'`, `tau`; for the label: choices; OLE uploads and `x - a`; `c' - r` of identity elements | `choices` |
//! | 4 | then server to client | per layer with ReLUs: tables and `e`; for the label: tables; OLE answers | `tables` |
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
//! meanwhile, before it sends anything. After that the two take turns. So no line, however small
//! its buffers, can block both.

mod choices;
mod linear;
mod tables;
mod transfers;

use self::choices::Choices;
use self::transfers::{ClientTransfers, ServerTransfers};
use super::bundle::{ClientBundle, ServerBundle};
use super::material::tweaks;
use super::model::{ClientModel, PublicModel, ServerModel};
use super::setup::{ClientSetup, ServerSetup};
use crate::Error;
use crate::channel::{Channel, receive_exactly};
use crate::cost::Traffic;
use crate::header::{BundleHeader, BundleId, HeaderInputs};
use crate::indexed_circuit::{IndexedCircuit, Planned};
use crate::linear::{answers_bytes, uploads_bytes};
use crate::secrets::{Role, Secrets};
use crate::wire::Reader;
use pi_core::TweakRange;
use pi_core::fp::Elements;
use pi_rlwe::Params;
use rand_core::CryptoRng;

/// A batch at the client, after its linear layers: bundles come out of it one by one.
///
/// Asking for a bundle takes the batch, and only a bundle that is complete gives it back. All
/// secrets of a bundle derive from its header, so a message 3 that is made twice would have the
/// same masks; after an error there is no batch left to make it from:
/// ```compile_fail,E0382
/// # use pi_protocol::{Channel, session::ClientBatch};
/// async fn twice(channel: &mut impl Channel, batch: ClientBatch<'_>) {
///     let _ = batch.next_bundle(channel).await;
///     let _ = batch.next_bundle(channel).await;
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

    /// The next bundle of the batch, by messages 3 and 4, and the rest of the batch; `None` after
    /// the last.
    ///
    /// # Errors
    /// [`Error::PeerMisbehaved`] for malformed messages, [`Error::Channel`]; the rest of the batch
    /// is lost then.
    pub async fn next_bundle(
        mut self,
        channel: &mut impl Channel,
    ) -> Result<Option<(ClientBundle, Self)>, Error> {
        let Some(exchange) = self.bundles.next() else {
            return Ok(None);
        };
        let bundle = self.batch.planned.bundles() - self.bundles.len() - 1;
        let (header, chosen, message) = self.choose(bundle, exchange)?;
        channel.send(message).await?;
        let expected = tables::message_bytes(self.batch.indexed);
        let message = receive_exactly(channel, "garbled circuits", expected).await?;
        let bundle = self.finish(bundle, header, chosen, &message)?;
        Ok(Some((bundle, self)))
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
        let expected = choices::message_bytes(self.batch.indexed);
        let message = receive_exactly(channel, "choices", expected).await?;
        let choices = Choices::read(self.batch.indexed, &message)?;
        let (finished, reply) = self.garble(bundle, exchange, &choices)?;
        channel.send(reply).await?;
        Ok(Some((finished, self)))
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
    Traffic {
        bytes_up: (client_head_bytes(indexed, bundles)
            + uploads
            + bundles * choices::message_bytes(indexed)) as u64,
        bytes_down: (server_head_bytes(indexed, bundles)
            + answers
            + bundles * tables::message_bytes(indexed)) as u64,
        messages: (2 + packing.uploads().len() + packing.answers().len() + 2 * bundles) as u32,
    }
}

const DIGEST_BYTES: usize = 32;

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
