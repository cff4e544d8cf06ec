//! ReLU: a garbled sign, and a gadget that turns its one label into shares of `max(x, 0)`.
//!
//! The garbled circuit and the gadget come from `pi-garble`, the oblivious transfers from `pi-ot`;
//! here they become the messages of a *piece*, consecutive ReLUs of one layer
//! ([`crate::parts`]). With `n` ReLUs of `m` bits:
//!
//! | message | bytes | content |
//! | --- | --- | --- |
//! | offline 2, down | reverse extension, one OT per ReLU | the server's random bits `b` |
//! | offline 3, up | forward extension, `m` OTs per ReLU; `8 n` | bits of `c' mod 2^m`; `tau` |
//! | offline 4, down | `32 (m - 1) n + n / 8` | tables; `e = colour xor b` |
//! | online, down | `16 m n + 8 n` | labels of `d_hat mod 2^m`; rows |
//! | online, up | `8 n` | `y_c - r` |
//!
//! # What each party sees
//! The server sees `c'` masked twice: by streams of the OT extension that it does not know, and in
//! `tau` by the one of two pads that it does not know. The client sees tables whose output is never
//! decoded, one label of each wire, and rows that are either uniform to it, because it cannot
//! compute the hash that masks them, or equal to its own output share. The bool circuit's input
//! from the server is the *negative integer* `d_hat`, reduced modulo `2^m`, not its representative
//! in `F_p`. Guards ([`GuardKey`]) add nothing to any message; they make `m` larger.

use crate::Error;
use crate::parts::Piece;
use crate::share;
use crate::wire::Reader;
use pi_core::fp::{self, ELEMENT_BYTES, Elements};
use pi_core::{Bits, Block, Delta, Labels, Prg, ROWS_PER_TILE, TweakRange, memory};
use pi_garble::{
    GuardKey, InputLabels, ServerGadget, SignWidth, active_labels, client_output, evaluate_sign,
    garble_sign,
};
use pi_ot::{CotReceiver, CotSender, Parts, TreeDepth, reverse};
use zeroize::Zeroizing;

/// Bytes of offline message 3 for `n` ReLUs: the forward extension and `tau`.
pub(crate) const fn choice_bytes(depth: TreeDepth, width: SignWidth, n: usize) -> usize {
    depth.correction_bytes(n * width.bits() as usize) + reverse::TAU_BYTES * n
}

/// Bytes of offline message 4: tables and `e`.
pub(crate) const fn garbled_bytes(width: SignWidth, n: usize) -> usize {
    width.table_bytes(n) + reverse::choice_bytes(n)
}

/// Bytes online, server to client: labels and rows.
pub(crate) const fn online_down_bytes(width: SignWidth, n: usize) -> usize {
    width.label_bytes(n) + ELEMENT_BYTES * n
}

/// The ReLUs of a piece as both parties know them: the width of their sign circuits, and the tweaks
/// of their hashes.
#[derive(Clone, Copy)]
pub(crate) struct ReluPiece {
    pub(crate) width: SignWidth,
    pub(crate) tweaks: TweakRange,
}

impl ReluPiece {
    /// A piece of a layer with these tweaks.
    pub(crate) fn new(piece: &Piece, layer: &TweakRange) -> Self {
        ReluPiece {
            width: piece.width,
            tweaks: layer.part(piece.first, piece.len),
        }
    }
}

/// The client's half of the reverse OT of a piece: the bundle's offset, and a block for each ReLU.
pub(crate) struct ReverseOffer<'a> {
    pub(crate) delta: &'a Delta,
    pub(crate) q: &'a [Block],
}

/// The client between offline messages 3 and 4.
pub(crate) struct Offered {
    labels: Labels,
    u: Elements,
}

/// The client's prepared ReLUs of a piece; used up by [`ClientRelu::evaluate`].
pub(crate) struct ClientRelu {
    pub(crate) labels: Labels,
    /// Tables as they came over the line: useless without labels.
    pub(crate) tables: Vec<u8>,
    pub(crate) u: Elements,
}

impl Offered {
    /// The client chooses its labels by the bits of `c`, and offers `c` to the reverse OT; appends
    /// its part of message 3.
    pub(crate) fn new(
        piece: &ReluPiece,
        c: &[u64],
        forward: &mut impl CotReceiver,
        reverse: ReverseOffer<'_>,
        message: &mut Vec<u8>,
    ) -> Result<Self, Error> {
        let (labels, correction) = forward.extend(&Bits::of_values(c, piece.width.bits()));
        let (tau, u) = reverse::sender_message(&piece.tweaks, reverse.delta, reverse.q, c)?;
        message.extend_from_slice(&correction);
        message.extend_from_slice(fp::encode(&tau));
        Ok(Offered { labels, u })
    }

    /// The client reads its part of message 4.
    pub(crate) fn settle(
        mut self,
        width: SignWidth,
        c: &[u64],
        message: &mut Reader<'_>,
    ) -> Result<ClientRelu, Error> {
        let tables = memory::copied(message.take(width.table_bytes(c.len()))?);
        let e = message.take(reverse::choice_bytes(c.len()))?;
        let e = Bits::decode("corrected choices", e, c.len())?;
        reverse::apply_derandomization(&mut self.u, c, &e)?;
        Ok(ClientRelu {
            labels: self.labels,
            tables,
            u: self.u,
        })
    }
}

impl ClientRelu {
    /// The client's share of `max(c + d, 0)` from its part of an online message, and the key of the
    /// guards.
    pub(crate) fn evaluate(
        self,
        piece: &ReluPiece,
        c: &[u64],
        message: &mut Reader<'_>,
    ) -> Result<(Elements, GuardKey), Error> {
        let ReluPiece { width, ref tweaks } = *piece;
        let labels = message.take(width.label_bytes(c.len()))?;
        let rows = message.take(ELEMENT_BYTES * c.len())?;
        let rows = fp::decode("rows", rows, c.len())?;
        let (keep, key) = evaluate_sign(width, tweaks, &self.labels, labels, &self.tables)?;
        Ok((client_output(tweaks, &keep, &rows, c, &self.u)?, key))
    }
}

/// The server's half of the reverse OT of a piece: blocks and the random bits that they were chosen
/// by.
pub(crate) struct ServerChoices<'a> {
    pub(crate) t: &'a [Block],
    pub(crate) b: &'a Bits,
}

/// ReLUs garbled at a time, at multiples of which a layer may be cut: client's and server's labels
/// at 16 bits are 128 KiB each, and stay in the second-level cache.
pub(crate) const UNIT: usize = 512;

// Parts of blocks of whole tiles, whatever the width.
const _: () = assert!(UNIT.is_multiple_of(ROWS_PER_TILE));

/// The server garbles a piece: reads its part of message 3, of [`choice_bytes`], and writes that of
/// message 4, of [`garbled_bytes`]. Returns the gadgets, and the key of the guards.
///
/// `server_zero` begins with the zero labels of the server's inputs to this piece. Neither they nor
/// the client's are ever all in memory.
pub(crate) fn garble(
    piece: &ReluPiece,
    forward: &mut impl CotSender,
    server_zero: &Prg,
    choices: ServerChoices<'_>,
    received: &[u8],
    message: &mut [u8],
) -> Result<(ServerGadget, GuardKey), Error> {
    let ReluPiece { width, ref tweaks } = *piece;
    let n = choices.b.len();
    let m = width.bits() as usize;
    let mut received = Reader::message("choices", received);
    let correction = received.take(forward.correction_bytes(n * m))?;
    let tau = received.take(reverse::TAU_BYTES * n)?;
    received.end()?;
    let tau = fp::decode("tau", tau, n)?;

    let (tables, corrected) = message.split_at_mut(width.table_bytes(n));
    let mut keep_zero: Labels = Zeroizing::new(vec![Block::ZERO; n]);
    let delta = forward.delta().clone();
    let tables = tables.chunks_mut(width.table_bytes(UNIT));
    let mut keys: Vec<GuardKey> = (0..n.div_ceil(UNIT)).map(|_| GuardKey::empty()).collect();
    let items = tables.zip(keep_zero.chunks_mut(UNIT)).zip(&mut keys);
    let parts = Parts {
        size: UNIT * m,
        items: items.collect(),
    };
    let room = || Zeroizing::new(vec![Block::ZERO; UNIT.min(n) * m]);
    let garble_part = |room: &mut Labels,
                       i: usize,
                       ((tables, keep), key): ((&mut [u8], &mut [Block]), &mut GuardKey),
                       client: &[Block]| {
        let first = i * UNIT;
        let server = &mut room[..client.len()];
        server_zero.fill_at((first * m) as u128, Block::bytes_mut(server));
        let zeros = InputLabels { client, server };
        let tweaks = tweaks.part(first, keep.len());
        *key = garble_sign(width, &tweaks, &delta, zeros, tables, keep)
            .expect("parts have the shapes of their piece");
    };
    tweaks.check_instances(n)?;
    forward.extend_parts(n * m, correction, parts, room, garble_part)?;

    let mut v = reverse::receiver_share(tweaks, choices.t, choices.b, &tau)?;
    let colours = ServerGadget::colours(&keep_zero);
    let e = reverse::derandomize(&mut v, choices.b, &colours)?;
    corrected.copy_from_slice(e.as_bytes());
    let mut key = GuardKey::empty();
    keys.iter().for_each(|part| key.add(part));
    let gadget = ServerGadget::new(tweaks, &delta, &keep_zero, &v)?;
    Ok((gadget, key))
}

/// The server's online half: appends labels and rows for its truncated shares, and returns its
/// shares of the results.
///
/// `server_zero` is the stream of the zero labels that the piece was garbled with. Shares are
/// integers in two's complement: the low `m` bits of the negative integer are those of `d_hat mod
/// 2^m`.
pub(crate) fn open(
    width: SignWidth,
    delta: &Delta,
    server_zero: &Prg,
    gadget: ServerGadget,
    d_hat: &[u64],
    message: &mut Vec<u8>,
) -> Result<Elements, Error> {
    let start = message.len();
    message.resize(start + width.label_bytes(d_hat.len()), 0);
    active_labels(width, delta, server_zero, d_hat, &mut message[start..])?;
    let d: Elements = Zeroizing::new(d_hat.iter().map(|&d| share::to_field(d as i64)).collect());
    let (rows, y) = gadget.open(&d)?;
    message.extend_from_slice(fp::encode(&rows));
    Ok(y)
}
