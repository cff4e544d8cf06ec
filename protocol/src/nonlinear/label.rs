//! Label: a garbled arg max of the logits, in place of the server's share of them.
//!
//! The bool circuit comes from `pi-garble`, the oblivious transfers from `pi-ot`; here they become
//! parts of messages. With `K` logits of `w = log2 B + 1 + g` bits, `g` of them a guard's, and `A`
//! AND gates ([`ArgMax::and_gates`]):
//!
//! | message | bytes | content |
//! | --- | --- | --- |
//! | offline 3, up | forward extension, `K w` OTs | bits of `c' mod 2^w` |
//! | offline 4, down | `32 A` | tables |
//! | online, last, down | `16 K w + ceil(log2 K) / 8` | labels of `d_hat mod 2^w`; decoding bits of the index, sealed (`seal.rs`) if anything is guarded |
//!
//! The shares are those of a truncation by no bits ([`crate::share`]), whose sum is the logit as an
//! integer unless it wraps. So the index is that of the exact logits: there is no rounding, and
//! only wraps, which the artifact's failure probability counts, and logits beyond their bound,
//! which the guard finds.
//!
//! # What each party sees
//! The server sees the bits of `c'` masked by streams of the OT extension that it does not know, as
//! for the ReLUs; nothing comes back to it online. The client sees tables, one label of each wire,
//! and the colours of the index's zero labels, which tell it the index and nothing else
//! ([`pi_garble::garble_argmax`]). No message holds the server's share or a function of it in the
//! clear, so the client's own share of the logits stays a uniform mask of what it does not know.

use crate::Error;
use crate::share;
use crate::wire::Reader;
use pi_core::fp::Elements;
use pi_core::{Bits, Block, Delta, Labels, Prg, TweakRange, memory};
use pi_garble::{
    ArgMax, GuardKey, InputLabels, active_labels, decode_argmax, evaluate_argmax, garble_argmax,
};
use pi_ir::Layer;
use pi_ot::{CotReceiver, CotSender, TreeDepth};
use zeroize::Zeroizing;

/// Bytes of offline message 3: the forward extension.
pub(crate) const fn choice_bytes(depth: TreeDepth, shape: ArgMax) -> usize {
    depth.correction_bytes(shape.input_bits())
}

/// Bytes of the last online message, server to client: labels and decoding bits.
pub(crate) const fn online_bytes(shape: ArgMax) -> usize {
    shape.label_bytes() + shape.decoding_bytes()
}

/// The client's prepared arg max.
pub(crate) struct ClientLabel {
    /// Labels of the bits of the client's shares.
    pub(crate) labels: Labels,
    /// Tables as they came over the line: useless without labels.
    pub(crate) tables: Vec<u8>,
}

/// The server's prepared arg max.
pub(crate) struct ServerLabel {
    /// Colours of the index's zero labels, which are sent online only.
    pub(crate) decoding: Bits,
}

/// The client chooses its labels by the bits of its shares `c`; appends its part of message 3.
pub(crate) fn choose(
    shape: ArgMax,
    c: &[u64],
    forward: &mut impl CotReceiver,
    message: &mut Vec<u8>,
) -> Labels {
    let (labels, correction) = forward.extend(&Bits::of_values(c, shape.width().bits()));
    message.extend_from_slice(&correction);
    labels
}

impl ClientLabel {
    /// The client reads its part of message 4.
    pub(crate) fn settle(
        shape: ArgMax,
        labels: Labels,
        message: &mut Reader<'_>,
    ) -> Result<Self, Error> {
        let tables = memory::copied(message.take(shape.table_bytes())?);
        Ok(ClientLabel { labels, tables })
    }

    /// The colours of the label's index, from the labels of the last online message, and the key of
    /// the guard.
    pub(crate) fn evaluate(
        self,
        shape: ArgMax,
        tweaks: &TweakRange,
        server: &[u8],
    ) -> Result<(Bits, GuardKey), Error> {
        let (labels, tables) = (&self.labels, &self.tables);
        Ok(evaluate_argmax(shape, tweaks, labels, server, tables)?)
    }
}

/// The label, from its colours and the decoding bits of the last online message.
///
/// # Errors
/// [`Error::PeerMisbehaved`] if the decoding bits have stray ones or the label is none of the `K`.
pub(crate) fn decode(shape: ArgMax, colours: &Bits, decoding: &[u8]) -> Result<usize, Error> {
    let decoding = Bits::decode("decoding bits of the label", decoding, shape.index_bits())?;
    Ok(decode_argmax(shape, colours, &decoding)?)
}

impl ServerLabel {
    /// The server garbles: reads its part of message 3, of [`choice_bytes`], and writes that of
    /// message 4, the tables. Returns what it keeps, and the key of the guard.
    ///
    /// `server_zero` begins with the zero labels of the server's inputs.
    pub(crate) fn garble(
        shape: ArgMax,
        tweaks: &TweakRange,
        forward: &mut impl CotSender,
        server_zero: &Prg,
        received: &[u8],
        tables: &mut [u8],
    ) -> Result<(Self, GuardKey), Error> {
        let client = forward.extend(shape.input_bits(), received)?;
        let mut server: Labels = Zeroizing::new(vec![Block::ZERO; shape.input_bits()]);
        server_zero.fill_at(0, Block::bytes_mut(&mut server));
        let zeros = InputLabels {
            client: &client,
            server: &server,
        };
        let (decoding, key) = garble_argmax(shape, tweaks, forward.delta(), zeros, tables)?;
        Ok((ServerLabel { decoding }, key))
    }

    /// The last online message before it is sealed, for the server's shares `d` of the output's
    /// sums: the labels, [`ArgMax::label_bytes`] of them, and the decoding bits.
    ///
    /// `server_zero` is the stream of the zero labels that the arg max was garbled with.
    pub(crate) fn open(
        self,
        shape: ArgMax,
        delta: &Delta,
        server_zero: &Prg,
        layer: &Layer,
        d: &[u64],
    ) -> Result<Vec<u8>, Error> {
        let (f, bound) = (layer.truncate(), layer.bound_bits);
        let d_hat = d
            .iter()
            .map(|&d| share::truncate_server(d, f, bound) as u64);
        let d_hat: Elements = Zeroizing::new(d_hat.collect());
        let mut message = vec![0; shape.label_bytes()];
        active_labels(shape.width(), delta, server_zero, &d_hat, &mut message)?;
        message.extend_from_slice(self.decoding.as_bytes());
        Ok(message)
    }
}
