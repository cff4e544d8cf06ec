//! Sessions, as the runtime drives them: keys once, bundles ahead of time, and one inference per
//! bundle.
//!
//! There are three exchanges over a [`Channel`](crate::Channel), and the client's and the server's
//! function of each stand side by side:
//!
//! - [`client_setup`] and [`server_setup`], once per client key;
//! - [`ClientBatch`] and [`ServerBatch`], once per batch of bundles;
//! - [`client_infer`] and [`server_infer`], once per input.
//!
//! The functions await nothing but messages. Between two messages they compute on the threads of
//! the current rayon pool, and block meanwhile.
//!
//! The message flow is the table in `docs/protocol.md`. The parts of a message follow each other
//! without framing, since both parties know every length from circuit and plan.
//!
//! # What is assumed, and what each party learns
//! Both parties follow the protocol (semi-honest). A client that does not can learn weights; a
//! server that does not can make answers wrong; neither can make the other panic, hang or reserve
//! memory without bound.
//!
//! *The server sees*, in this order:
//! - encryptions of masks ([`crate::linear`]) and of OLE inputs, which are pseudorandom;
//! - OT messages, which are pseudorandom because it lacks one stream of each tree;
//! - `tau`, which is masked by two pads of which it knows only one;
//! - `x - a`, masked by the uniform `a`;
//! - `c' - r` of identity elements, `x - r_0`, and `y_c - r` of all other elements, each masked by
//!   its tensor's `r`, which masks nothing else.
//!
//! Both `r` and `a` are what a public seed decrypts to under the client's secret key, hence
//! pseudorandom to the server. All of it can be simulated from nothing but the circuit.
//!
//! *The client sees*:
//! - answers that hold `W r + s` for uniform `s`, and OLE answers masked by uniform `v`;
//! - OT messages;
//! - garbled circuits without output decoding, and later one label for each wire;
//! - openings masked by `d0`, and rows that are uniform or equal to its own output share;
//! - last, the server's share of the logits, or, if the circuit reveals the label only, one label
//!   for each wire of the arg max and the decoding of its index. If the circuit has guards, share
//!   and decoding are sealed (file `seal.rs`) under a key that the client has only if every guarded
//!   value kept to its range. Otherwise it learns *that one did not*, one bit for the whole
//!   inference, and nothing about the output.
//!
//! All but the last can be simulated from the circuit alone, up to the statistical distance of the
//! floods; guards are labels like others, of which nothing is decoded ([`pi_garble::GuardKey`]).
//! The last is random bytes if the functionality says "out of range", and sealed under the key of
//! the simulated labels if not. Its content is the output minus the client's own share, or can be
//! simulated from the label ([`pi_garble::garble_argmax`]). That output is a function of the
//! client's shares too, which are therefore an input of the functionality and not only coins of the
//! protocol: each truncation has a dither that the client knows, and repeated answers tell weights
//! by it ("What leaks by design" in `docs/threat-model.md`). Tables are sent before the garbler's
//! input exists, so the argument for the garbling is adaptive, with AES as an ideal cipher.
//!
//! *Truncated shares* are not uniform in `F_p`, so every message that carries one is masked as
//! above. If a truncation wraps, the value of the element is lost; the artifact states the
//! probability.
//!
//! # Used once
//! A bundle is moved into the function that spends it. Any error during preparation discards the
//! bundle on both sides: there is nothing to keep, and the next exchange has another index, hence
//! another identity, other seeds and other offsets. Answering an upload twice would leak bits of
//! `W r`. The order of messages ensures that `c' - r` (message 3) leaves the client only when the
//! linear answers of the bundle are final. The runtime marks a bundle spent, durably, before it
//! calls a function that spends it.

mod bundle;
mod convolve;
mod infer;
mod limits;
mod material;
mod memory;
mod model;
mod prepare;
mod sections;
mod setup;
#[cfg(test)]
mod tests;

pub use crate::header::{BundleHeader, BundleId, HeaderInputs, PROTOCOL_VERSION};
pub use bundle::{ClientBundle, ServerBundle};
pub use infer::{Answer, Inference, OnlineRequest, client_infer, server_infer};
pub use memory::{Memory, READ_AHEAD, READ_AT_ONCE};
pub use model::{ClientModel, ServerModel};
pub use prepare::{ClientBatch, ServerBatch};
pub use sections::{BundleSink, BundleSource};
pub use setup::{ClientSetup, ServerSetup, client_setup, is_current_setup, server_setup};

pub(crate) use bundle::{client_bytes, server_bytes};
pub(crate) use infer::{infer_bytes, layer_traffic};
pub(crate) use limits::{check_batch, check_circuit};
pub(crate) use material::TREE_DEPTH;
pub(crate) use memory::of_parties;
pub(crate) use prepare::offline_traffic;
pub(crate) use setup::setup_traffic;
