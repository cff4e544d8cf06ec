//! The line between the parties: loopback as it is, or one of a given speed and delay.

use super::netem::Namespaces;
use super::probe::Idle;
use super::relay::Relay;
use anyhow::Result;
use clap::ValueEnum;
use serde::Serialize;
use std::ffi::OsString;

/// A line between two parties.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Link {
    /// Its name on the command line.
    pub(crate) name: &'static str,
    /// Each way, headers of IP and UDP included.
    pub(crate) bits_per_second: f64,
    /// Of an empty datagram on an idle line, there and back.
    pub(crate) round_trip_s: f64,
    /// What waits at most, each way.
    pub(crate) queue_bytes: usize,
}

impl Link {
    /// 1 Gbit/s, 0.5 ms there and back.
    pub(crate) const LAN: Link = Link {
        name: "lan",
        bits_per_second: 1e9,
        round_trip_s: 0.5e-3,
        queue_bytes: 512 * 1024,
    };
    /// 100 Mbit/s, 40 ms there and back; the queue is about one product of bandwidth and delay.
    pub(crate) const WAN: Link = Link {
        name: "wan",
        bits_per_second: 100e6,
        round_trip_s: 40e-3,
        queue_bytes: 512 * 1024,
    };
}

/// A line by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Net {
    /// The machine's own.
    Loopback,
    /// 1 Gbit/s, 0.5 ms round trip.
    Lan,
    /// 100 Mbit/s, 40 ms round trip.
    Wan,
}

impl Net {
    /// What it asks for; none is loopback as it is.
    pub(crate) fn link(self) -> Option<Link> {
        match self {
            Net::Loopback => None,
            Net::Lan => Some(Link::LAN),
            Net::Wan => Some(Link::WAN),
        }
    }
}

/// What shapes a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Shaper {
    /// netem where it can be had, else the relay; which of them is printed, with the reason.
    Auto,
    /// `tc netem` between two network namespaces.
    Netem,
    /// A relay of datagrams in the measuring process.
    Relay,
}

/// How a shaped line behaved.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Shaped {
    /// What was asked for.
    pub(crate) link: Link,
    /// Who shaped it, netem or relay.
    pub(crate) shaper: &'static str,
    /// Measured before the parties used it.
    pub(crate) idle: Idle,
    /// Client to server, with the parties on it.
    pub(crate) up: Direction,
    /// Server to client.
    pub(crate) down: Direction,
    /// CPU of a relay's threads and the rest of the measuring process, user and system; no party's.
    pub(crate) relay_cpu_s: f64,
}

/// What one direction carried.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Direction {
    /// Datagrams delivered.
    pub(crate) datagrams: u64,
    /// Their payload: what QUIC sent, with its own headers and repetitions.
    pub(crate) bytes: u64,
    /// Datagrams that found the queue full.
    pub(crate) dropped: u64,
    /// Mean time that a relay delivered a datagram after it was due.
    pub(crate) mean_late_s: f64,
    /// The worst.
    pub(crate) most_late_s: f64,
}

/// A line that stands, until it is closed or dropped.
pub(crate) enum Line {
    /// The machine's own loopback.
    Loopback,
    /// Shaped by a relay between the parties.
    Relay(Link, Option<Relay>),
    /// Shaped by the kernel.
    Netem(Box<Namespaces>),
}

impl Line {
    /// Makes a line of a kind; for a relay, that follows when the server's address is known.
    ///
    /// # Errors
    /// If netem was asked for and cannot be had.
    pub(crate) fn new(link: Option<Link>, shaper: Shaper) -> Result<Line> {
        let Some(link) = link else {
            return Ok(Line::Loopback);
        };
        if shaper == Shaper::Relay {
            return Ok(Line::Relay(link, None));
        }
        match Namespaces::open(link) {
            Ok(namespaces) => Ok(Line::Netem(Box::new(namespaces))),
            Err(error) if shaper == Shaper::Netem => {
                Err(error.context("no line can be shaped by netem; --shaper relay needs no rights"))
            }
            Err(error) => {
                eprintln!("a relay shapes the line, not netem: {error:#}");
                Ok(Line::Relay(link, None))
            }
        }
    }

    /// Where the server listens.
    pub(crate) fn listen(&self) -> String {
        match self {
            Line::Netem(namespaces) => namespaces.listen(),
            _ => "127.0.0.1:0".into(),
        }
    }

    /// What goes before the server's program to start it at its end.
    pub(crate) fn at_server(&self) -> Vec<OsString> {
        match self {
            Line::Netem(namespaces) => namespaces.at_server(),
            _ => Vec::new(),
        }
    }

    /// What goes before the client's program to start it at its end.
    pub(crate) fn at_client(&self) -> Vec<OsString> {
        match self {
            Line::Netem(namespaces) => namespaces.at_client(),
            _ => Vec::new(),
        }
    }

    /// The address at which a client finds a server that listens at this one.
    ///
    /// # Errors
    /// If a relay cannot be started.
    pub(crate) fn lead_to(&mut self, server: &str) -> Result<String> {
        let Line::Relay(link, relay) = self else {
            return Ok(server.to_owned());
        };
        let started = Relay::start(*link, server.parse()?)?;
        Ok(relay.insert(started).address().to_string())
    }

    /// Ends the line and tells how it behaved.
    ///
    /// # Errors
    /// If a relay failed or netem does not tell.
    pub(crate) fn close(self) -> Result<Option<Shaped>> {
        match self {
            Line::Relay(_, Some(relay)) => relay.stop().map(Some),
            Line::Netem(namespaces) => namespaces.shaped().map(Some),
            Line::Loopback | Line::Relay(_, None) => Ok(None),
        }
    }
}
