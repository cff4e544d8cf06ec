//! A line of a given speed and delay on one machine: a UDP relay between client and server.
//!
//! Each direction is a queue with one server, as a router's output port is: a datagram of `n` bytes
//! (with the 28 of its IP and UDP headers) leaves `8 n / rate` seconds after the one before it, or
//! after its own arrival if the line is idle, and arrives half a round trip later. A datagram that
//! finds [`Link::queue_bytes`] waiting is dropped.
//!
//! A thread per direction reads and writes in batches (GRO and GSO where the system has them) and
//! sleeps between. It belongs to the process that measures, so its CPU time is counted for neither
//! party. It cannot deliver while no core is free, so its lateness is part of the figures.

use super::link::{Direction, Link, Shaped};
use super::probe::{self, HEADER_BYTES, Idle};
use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, ppoll};
use nix::sys::time::TimeSpec;
use quinn_udp::{BATCH_SIZE, EcnCodepoint, RecvMeta, Transmit, UdpSocketState};
use socket2::{Domain, Protocol, Socket, Type};
use std::collections::VecDeque;
use std::io::IoSliceMut;
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Time that a datagram with this payload occupies a line.
fn occupied(link: &Link, payload: usize) -> Duration {
    Duration::from_secs_f64((payload + HEADER_BYTES) as f64 * 8.0 / link.bits_per_second)
}

/// A relay in two threads; [`Relay::stop`] ends it.
pub(crate) struct Relay {
    link: Link,
    address: SocketAddr,
    stop: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<Direction>>>,
    idle: Idle,
    cpu: f64,
}

impl Relay {
    /// Measures a line of this kind, then opens one to a server.
    ///
    /// Timers and threads of this machine make every delivery somewhat late: what an idle line's
    /// round trips take too long is taken off its delay, and the line is measured anew.
    ///
    /// # Errors
    /// If no socket can be opened.
    pub(crate) fn start(link: Link, server: SocketAddr) -> Result<Relay> {
        let round_trip = Duration::from_secs_f64(link.round_trip_s);
        let plain = measure_idle(link, round_trip / 2)?;
        let late = Duration::from_secs_f64((plain.round_trip_s - link.round_trip_s).max(0.0));
        let delay = round_trip.saturating_sub(late) / 2;
        let idle = measure_idle(link, delay)?;
        Relay::open(link, delay, idle, server)
    }

    fn open(link: Link, delay: Duration, idle: Idle, server: SocketAddr) -> Result<Relay> {
        let front = Arc::new(socket()?);
        let back = Arc::new(socket()?);
        let address = front.local_addr()?;
        let client = Arc::new(Mutex::new(None));
        let stop = Arc::new(AtomicBool::new(false));
        let direction = |from: &Arc<UdpSocket>, to: &Arc<UdpSocket>, end: End| {
            let (from, to, stop) = (from.clone(), to.clone(), stop.clone());
            std::thread::spawn(move || Queue::new(link, delay).run(&from, &to, &end, &stop))
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
            idle,
            cpu: cpu_seconds(),
        })
    }

    /// Address at which the client finds the server.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// Ends the relay and reports its behaviour; datagrams on their way are lost.
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
            shaper: "relay",
            idle: self.idle,
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
    // The system may grant less; then a burst can be lost here that the modelled queue would have
    // held.
    let _ = socket.set_recv_buffer_size(BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(BUFFER_BYTES);
    socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into())?;
    Ok(socket.into())
}

/// Destination of a direction: the server, or whoever was last heard from.
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
    /// Time from leaving the queue to arrival.
    delay: Duration,
    /// Time at which the line is idle again.
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
    fn new(link: Link, delay: Duration) -> Queue {
        Queue {
            link,
            delay,
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
        // Timers of 50 us slack, the default, would double the shortest waits; other systems have
        // none to set.
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
        let leaves = self.free_at.max(now) + occupied(&self.link, payload.len());
        self.free_at = leaves;
        self.waiting.push_back(Datagram {
            due: leaves + self.delay,
            ecn,
            payload: payload.to_vec(),
        });
    }

    /// Delivers the datagrams that are due, runs of equal length as one.
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

/// Measures an idle line of this kind. The burst fills a quarter of the queue, so that nothing is
/// dropped.
fn measure_idle(link: Link, delay: Duration) -> Result<Idle> {
    let (near, far) = (socket()?, socket()?);
    let idle = Idle::default();
    let relay = Relay::open(link, delay, idle, far.local_addr()?)?;
    let idle = std::thread::scope(|scope| {
        let echo = scope.spawn(|| probe::echo(&far, Duration::from_millis(500)));
        let idle = probe::measure(&near, relay.address(), link.queue_bytes / 4);
        echo.join().expect("an echo does not panic")?;
        idle
    })?;
    relay.stop()?;
    Ok(idle)
}
