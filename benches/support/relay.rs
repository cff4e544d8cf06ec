//! A line of a given speed and delay on one machine: a UDP relay between client and server.
//!
//! Each direction is a queue with one server, as a router's output port is: a datagram of `n` bytes (with the 28 of its IP
//! and UDP headers) leaves `8 n / rate` seconds after the one before it, or after its own arrival if the line is idle, and
//! arrives half a round trip later. A datagram that finds [`Link::queue_bytes`] waiting is dropped.
//!
//! A thread per direction reads and writes in batches (GRO and GSO where the system has them) and sleeps between; it belongs
//! to the process that measures, so its CPU is no party's. What it cannot do is deliver while no core is free: how late it
//! was is part of the figures.

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use quinn_udp::{BATCH_SIZE, EcnCodepoint, RecvMeta, Transmit, UdpSocketState};
use serde::Serialize;
use socket2::{Domain, Protocol, Socket, Type};
use std::collections::VecDeque;
use std::io::IoSliceMut;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

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

    /// Time that a datagram with this payload occupies the line.
    fn occupied(&self, payload: usize) -> Duration {
        Duration::from_secs_f64((payload + HEADER_BYTES) as f64 * 8.0 / self.bits_per_second)
    }
}

/// IPv4 and UDP.
const HEADER_BYTES: usize = 28;

/// How a relay behaved.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Shaped {
    /// What was asked for.
    pub(crate) link: Link,
    /// Round trips of single datagrams on the idle line, measured before the parties started: median, seconds.
    pub(crate) idle_round_trip_s: f64,
    /// The same, 95th percentile.
    pub idle_round_trip_p95_s: f64,
    /// Payload and headers of a burst of datagrams through the idle line, measured before the parties started.
    pub(crate) idle_bits_per_second: f64,
    /// Client to server, with the parties on it.
    pub(crate) up: Direction,
    /// Server to client.
    pub(crate) down: Direction,
    /// CPU of the relay's threads and the rest of the measuring process, user and system; no party's.
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
    /// Mean time that a datagram was delivered after it was due.
    pub(crate) mean_late_s: f64,
    /// The worst.
    pub(crate) most_late_s: f64,
}

/// A relay in two threads; [`Relay::stop`] ends it.
pub(crate) struct Relay {
    link: Link,
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<Direction>>>,
    idle: (f64, f64, f64),
    cpu: f64,
}

impl Relay {
    /// Measures a line of this kind, then opens one to a server.
    ///
    /// # Errors
    /// If no socket can be opened.
    pub(crate) fn start(link: Link, server: SocketAddr) -> Result<Relay> {
        let idle = measure_idle(link)?;
        let mut relay = Relay::open(link, server)?;
        relay.idle = idle;
        Ok(relay)
    }

    fn open(link: Link, server: SocketAddr) -> Result<Relay> {
        let front = Arc::new(socket()?);
        let back = Arc::new(socket()?);
        let address = front.local_addr()?;
        let client = Arc::new(Mutex::new(None));
        let stop = Arc::new(AtomicBool::new(false));
        let direction = |from: &Arc<UdpSocket>, to: &Arc<UdpSocket>, end: End| {
            let (from, to, stop) = (from.clone(), to.clone(), stop.clone());
            std::thread::spawn(move || Queue::new(link).run(&from, &to, &end, &stop))
        };
        let threads = vec![
            direction(
                &front,
                &back,
                End {
                    fixed: Some(server),
                    client: client.clone(),
                },
            ),
            direction(
                &back,
                &front,
                End {
                    fixed: None,
                    client,
                },
            ),
        ];
        Ok(Relay {
            link,
            address,
            stop,
            threads,
            idle: (0.0, 0.0, 0.0),
            cpu: cpu_seconds(),
        })
    }

    /// Where the client finds the server.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends the relay; whatever is under way is lost.
    ///
    /// # Errors
    /// If a socket failed meanwhile.
    pub(crate) fn stop(self) -> Result<Shaped> {
        self.stop.store(true, Ordering::Relaxed);
        let mut directions = Vec::new();
        for thread in self.threads {
            let direction = thread
                .join()
                .map_err(|_| anyhow::anyhow!("the relay failed"))?;
            directions.push(direction?);
        }
        Ok(Shaped {
            link: self.link,
            idle_round_trip_s: self.idle.0,
            idle_round_trip_p95_s: self.idle.1,
            idle_bits_per_second: self.idle.2,
            up: directions[0],
            down: directions[1],
            relay_cpu_s: cpu_seconds() - self.cpu,
        })
    }
}

/// User and system time of this process.
fn cpu_seconds() -> f64 {
    use nix::sys::resource::{UsageWho, getrusage};
    let seconds =
        |time: nix::sys::time::TimeVal| time.tv_sec() as f64 + time.tv_usec() as f64 * 1e-6;
    getrusage(UsageWho::RUSAGE_SELF).map_or(0.0, |usage| {
        seconds(usage.user_time()) + seconds(usage.system_time())
    })
}

/// A socket on a free port of loopback, with room for bursts.
fn socket() -> Result<UdpSocket> {
    const BUFFER_BYTES: usize = 8 << 20;
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, Some(Protocol::UDP))?;
    // The system may grant less; then a burst can be lost here that the modelled queue would have held.
    let _ = socket.set_recv_buffer_size(BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(BUFFER_BYTES);
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
    Ok(socket.into())
}

/// Where a direction delivers: to the server, or to whoever was last heard from.
struct End {
    fixed: Option<SocketAddr>,
    client: Arc<Mutex<Option<SocketAddr>>>,
}

struct Datagram {
    due: Instant,
    ecn: Option<EcnCodepoint>,
    payload: Vec<u8>,
}

/// One direction.
struct Queue {
    link: Link,
    /// When the line is idle again.
    free_at: Instant,
    waiting: VecDeque<Datagram>,
    count: Direction,
    late: Duration,
}

/// Longest sleep, so that a request to stop is seen.
const NAP: Duration = Duration::from_millis(20);
/// Largest batch handed to the system at once.
const BATCH_BYTES: usize = 60_000;

impl Queue {
    fn new(link: Link) -> Queue {
        Queue {
            link,
            free_at: Instant::now(),
            waiting: VecDeque::new(),
            count: Direction::default(),
            late: Duration::ZERO,
        }
    }

    fn run(
        mut self,
        from: &UdpSocket,
        to: &UdpSocket,
        end: &End,
        stop: &AtomicBool,
    ) -> Result<Direction> {
        let receiver = UdpSocketState::new(from.into()).context("the relay's socket")?;
        let sender = UdpSocketState::new(to.into()).context("the relay's socket")?;
        // Timers of 50 us slack, the default, would double the shortest waits; other systems have none to set.
        #[cfg(target_os = "linux")]
        let _ = nix::sys::prctl::set_timerslack(1);
        let mut buffers: Vec<Vec<u8>> = (0..BATCH_SIZE).map(|_| vec![0; 1 << 16]).collect();
        let mut meta = [RecvMeta::default(); BATCH_SIZE];
        while !stop.load(Ordering::Relaxed) {
            self.deliver(to, &sender, end)?;
            let now = Instant::now();
            let next = self
                .waiting
                .front()
                .map(|d| d.due.saturating_duration_since(now));
            let wait = next.unwrap_or(NAP).min(NAP);
            let mut polled = [PollFd::new(from.as_fd(), PollFlags::POLLIN)];
            ppoll(&mut polled, Some(TimeSpec::from(wait)), None)
                .context("the relay cannot wait")?;
            let mut slices: Vec<IoSliceMut<'_>> =
                buffers.iter_mut().map(|b| IoSliceMut::new(b)).collect();
            let received = match receiver.recv(from.into(), &mut slices, &mut meta) {
                Ok(received) => received,
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => continue,
                // A party that is gone; whoever waits for it will say so.
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => continue,
                Err(error) => return Err(error).context("the relay cannot receive"),
            };
            let now = Instant::now();
            for (buffer, meta) in buffers.iter().zip(&meta[..received]) {
                if end.fixed.is_some() {
                    *end.client.lock().expect("no holder panics") = Some(meta.addr);
                }
                // GRO hands over several datagrams as one, all of one length but the last.
                for payload in buffer[..meta.len].chunks(meta.stride.max(1)) {
                    self.accept(now, payload, meta.ecn);
                }
            }
        }
        let datagrams = self.count.datagrams.max(1) as f64;
        self.count.mean_late_s = self.late.as_secs_f64() / datagrams;
        Ok(self.count)
    }

    fn accept(&mut self, now: Instant, payload: &[u8], ecn: Option<EcnCodepoint>) {
        let backlog = self.free_at.saturating_duration_since(now).as_secs_f64();
        let waiting = backlog * self.link.bits_per_second / 8.0;
        if waiting as usize + payload.len() > self.link.queue_bytes {
            self.count.dropped += 1;
            return;
        }
        let leaves = self.free_at.max(now) + self.link.occupied(payload.len());
        self.free_at = leaves;
        self.waiting.push_back(Datagram {
            due: leaves + Duration::from_secs_f64(self.link.round_trip_s / 2.0),
            ecn,
            payload: payload.to_vec(),
        });
    }

    /// Hands over what is due, runs of equal length as one.
    fn deliver(&mut self, to: &UdpSocket, sender: &UdpSocketState, end: &End) -> Result<()> {
        let now = Instant::now();
        let known = *end.client.lock().expect("no holder panics");
        let Some(destination) = end.fixed.or(known) else {
            self.waiting.clear();
            return Ok(());
        };
        let mut contents = Vec::with_capacity(BATCH_BYTES);
        while self.waiting.front().is_some_and(|d| d.due <= now) {
            contents.clear();
            let (segment, ecn) = {
                let first = &self.waiting[0];
                (first.payload.len(), first.ecn)
            };
            let most = sender.max_gso_segments().max(1);
            let mut taken = 0;
            while let Some(next) = self.waiting.front() {
                let fits = taken == 0
                    || (next.payload.len() <= segment
                        && next.ecn == ecn
                        && contents.len() + next.payload.len() <= BATCH_BYTES);
                if next.due > now || taken == most || !fits {
                    break;
                }
                let late = now - next.due;
                self.late += late;
                self.count.most_late_s = self.count.most_late_s.max(late.as_secs_f64());
                self.count.datagrams += 1;
                self.count.bytes += next.payload.len() as u64;
                contents.extend_from_slice(&next.payload);
                taken += 1;
                let short = next.payload.len() < segment;
                self.waiting.pop_front();
                // A shorter datagram can only be the last of a batch.
                if short {
                    break;
                }
            }
            let transmit = Transmit {
                destination,
                ecn,
                contents: &contents,
                segment_size: (taken > 1).then_some(segment),
                src_ip: None,
            };
            // A full socket buffer or a party that is gone loses datagrams, as a line does.
            let _ = sender.send(to.into(), &transmit);
        }
        Ok(())
    }
}

/// Round trip (median, 95th percentile) and throughput of an idle line of this kind.
fn measure_idle(link: Link) -> Result<(f64, f64, f64)> {
    /// As long as QUIC's datagrams.
    const PAYLOAD: usize = 1452;
    let echo = socket()?;
    echo.set_read_timeout(Some(Duration::from_secs(2)))?;
    let relay = Relay::open(link, echo.local_addr()?)?;
    let near = socket()?;
    near.set_read_timeout(Some(Duration::from_secs(2)))?;
    let mut buffer = [0; 2048];
    let mut trips = Vec::new();
    for _ in 0..31 {
        let started = Instant::now();
        near.send_to(&[1], relay.address())?;
        let (length, from) = echo.recv_from(&mut buffer)?;
        echo.send_to(&buffer[..length], from)?;
        near.recv_from(&mut buffer)?;
        trips.push(started.elapsed().as_secs_f64());
    }
    trips.sort_by(f64::total_cmp);
    // Half a queue at once: nothing is dropped, and the time from the first to the last is the line's.
    let count = link.queue_bytes / 2 / (PAYLOAD + HEADER_BYTES);
    let arrivals = std::thread::scope(|scope| {
        let receiver = scope.spawn(|| {
            let mut buffer = [0; 2048];
            let receive =
                |_| Ok::<_, std::io::Error>((echo.recv_from(&mut buffer)?, Instant::now()));
            let arrivals: Result<Vec<_>, _> = (0..count).map(receive).collect();
            arrivals
        });
        for _ in 0..count {
            near.send_to(&[0; PAYLOAD], relay.address())?;
        }
        receiver.join().expect("receiving does not panic")
    })?;
    let (first, last) = (arrivals[0].1, arrivals[count - 1].1);
    let received = arrivals.len();
    let span = (last - first).as_secs_f64();
    let bits = (received - 1) as f64 * (PAYLOAD + HEADER_BYTES) as f64 * 8.0;
    relay.stop()?;
    Ok((
        trips[trips.len() / 2],
        trips[trips.len() * 95 / 100],
        bits / span,
    ))
}
