//! Measurements of a line from its two ends: round trips of single datagrams, and the rate of a
//! burst.

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

/// Measurements of a line without the parties on it.
#[derive(Clone, Copy, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Idle {
    /// Round trip of a datagram of one byte: median, seconds.
    pub(crate) round_trip_s: f64,
    /// Round trip of a datagram of one byte: 95th percentile, seconds.
    pub(crate) round_trip_p95_s: f64,
    /// Rate of a burst there and back, payload and headers.
    pub(crate) bits_per_second: f64,
}

/// Payload of a datagram, as long as QUIC's.
const PAYLOAD: usize = 1452;
/// Headers of a datagram, IPv4 and UDP.
pub(crate) const HEADER_BYTES: usize = 28;
/// Round trips measured.
const TRIPS: usize = 31;
/// Longest wait for a datagram, after which it counts as lost.
const LOST: Duration = Duration::from_secs(2);

/// Sends every datagram back, until none has come for a time.
///
/// # Errors
/// If the socket fails.
pub(crate) fn echo(socket: &UdpSocket, silence: Duration) -> Result<()> {
    socket.set_read_timeout(Some(silence))?;
    let mut buffer = [0; 2048];
    // The end of the wait is an error of the kind that means "nothing there".
    while let Ok((length, from)) = socket.recv_from(&mut buffer) {
        socket.send_to(&buffer[..length], from)?;
    }
    Ok(())
}

/// Measures the line to an [`echo`], with a burst of this many bytes, which its queues must hold.
///
/// # Errors
/// If the socket fails or a datagram is lost.
pub(crate) fn measure(socket: &UdpSocket, echo: SocketAddr, burst: usize) -> Result<Idle> {
    socket.set_read_timeout(Some(LOST))?;
    let mut buffer = [0; 2048];
    let mut trips = Vec::new();
    for _ in 0..TRIPS {
        let started = Instant::now();
        socket.send_to(&[1], echo)?;
        socket.recv(&mut buffer).context("a datagram was lost")?;
        trips.push(started.elapsed().as_secs_f64());
    }
    trips.sort_by(f64::total_cmp);
    let count = (burst / (PAYLOAD + HEADER_BYTES)).max(2);
    for _ in 0..count {
        socket.send_to(&[0; PAYLOAD], echo)?;
    }
    let arrival = |_| {
        socket.recv(&mut buffer)?;
        Ok(Instant::now())
    };
    let arrivals: std::io::Result<Vec<Instant>> = (0..count).map(arrival).collect();
    let arrivals = arrivals.context("a datagram of a burst was lost")?;
    let span = arrivals[count - 1] - arrivals[0];
    let bits = (count - 1) as f64 * (PAYLOAD + HEADER_BYTES) as f64 * 8.0;
    Ok(Idle {
        round_trip_s: trips[trips.len() / 2],
        round_trip_p95_s: trips[trips.len() * 95 / 100],
        bits_per_second: bits / span.as_secs_f64(),
    })
}
