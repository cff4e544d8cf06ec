//! What client and server say to each other around the protocol, for every kind of client: the
//! native one over QUIC and the one in a browser over WebTransport.
//!
//! - [`control`] has the messages of every operation, [`framing`] how messages lie on a stream.
//! - [`refusal`] has the codes with which a party gives a stream up.
//! - [`web`] has how a browser says who it is, which the native client does by its certificate.
//! - [`fingerprint`] is the name of a party.
//!
//! No sockets, no clock and no cryptography here, so that the crate builds wherever a client does.
#![forbid(unsafe_code)]

pub mod control;
pub mod fingerprint;
pub mod framing;
pub mod refusal;
pub mod web;
