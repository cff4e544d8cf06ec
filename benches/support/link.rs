//! Links of a given speed and delay, and how they behaved.

use super::probe::Idle;
use clap::ValueEnum;
use serde::Serialize;

/// Speed and delay of a line between two parties.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Link {
    /// Name on the command line.
    pub(crate) name: &'static str,
    /// Rate in each direction, headers of IP and UDP included.
    pub(crate) bits_per_second: f64,
    /// Round trip of an empty datagram on an idle line.
    pub(crate) round_trip_s: f64,
    /// Capacity of the queue, per direction.
    pub(crate) queue_bytes: usize,
}

impl Link {
    /// A local network: 1 Gbit/s, 0.5 ms round trip.
    pub(crate) const LAN: Link = Link {
        name: "lan",
        bits_per_second: 1e9,
        round_trip_s: 0.5e-3,
        queue_bytes: 512 * 1024,
    };
    /// A wide-area network: 100 Mbit/s, 40 ms round trip. The queue holds about one product of
    /// bandwidth and delay.
    pub(crate) const WAN: Link = Link {
        name: "wan",
        bits_per_second: 100e6,
        round_trip_s: 40e-3,
        queue_bytes: 512 * 1024,
    };
}

/// Name of a line.
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
    /// The link asked for; none for loopback as it is.
    pub(crate) fn link(self) -> Option<Link> {
        match self {
            Net::Loopback => None,
            Net::Lan => Some(Link::LAN),
            Net::Wan => Some(Link::WAN),
        }
    }
}

/// Means of shaping a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Shaper {
    /// Netem where it can be had, else the relay; the choice is printed with its reason.
    Auto,
    /// `tc netem` between two network namespaces.
    Netem,
    /// A relay of datagrams in the measuring process.
    Relay,
}

/// Behaviour of a shaped line.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Shaped {
    /// The link asked for.
    pub(crate) link: Link,
    /// Means by which it was shaped: netem or relay.
    pub(crate) shaper: &'static str,
    /// Measured before the parties used the line.
    pub(crate) idle: Idle,
    /// Client to server, with the parties on it.
    pub(crate) up: Direction,
    /// Server to client.
    pub(crate) down: Direction,
    /// CPU of a relay's threads and the rest of the measuring process, user and system; no party's.
    pub(crate) relay_cpu_s: f64,
}

/// Traffic of one direction.
#[derive(Clone, Copy, Debug, Default, Serialize)]
pub(crate) struct Direction {
    /// Datagrams delivered.
    pub(crate) datagrams: u64,
    /// Payload of the datagrams: everything that QUIC sent, with its headers and repetitions.
    pub(crate) bytes: u64,
    /// Datagrams that found the queue full.
    pub(crate) dropped: u64,
    /// Mean delay of a relay's deliveries after they were due.
    pub(crate) mean_late_s: f64,
    /// Largest delay of a delivery after it was due.
    pub(crate) most_late_s: f64,
}
