//! A line between clients and server that loses, delays, reorders and doubles datagrams, falls
//! silent, and changes the addresses that the server sees, as the translation of a router does.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::net::UdpSocket;
use tokio::runtime::Handle;
use tokio::task::JoinHandle;

/// A relay that listens on loopback, for as long as its runtime lives.
pub struct Relay {
    pub address: SocketAddr,
    line: Arc<Line>,
}

/// Chances of one datagram, in thousandths.
#[derive(Clone, Copy)]
pub struct Weather {
    pub lost: u64,
    pub doubled: u64,
    pub delayed: u64,
}

/// What the relay does all the time.
pub const USUAL: Weather = Weather {
    lost: 3,
    doubled: 5,
    delayed: 20,
};
/// A bad line: one datagram in eight is lost.
pub const STORM: Weather = Weather {
    lost: 125,
    doubled: 50,
    delayed: 200,
};

/// What became of the datagrams of both directions.
#[derive(Default)]
pub struct Counts {
    pub passed: AtomicU64,
    pub lost: AtomicU64,
    pub doubled: AtomicU64,
    pub delayed: AtomicU64,
    pub swallowed: AtomicU64,
}

struct Line {
    server: SocketAddr,
    front: UdpSocket,
    /// The same socket for sending, which a datagram must not wait for.
    answers: std::net::UdpSocket,
    weather: Mutex<Weather>,
    silent_until: Mutex<Instant>,
    ways: Mutex<HashMap<SocketAddr, Way>>,
    random: Mutex<Draw>,
    counts: Counts,
}

/// The socket by which the server sees a client.
struct Way {
    socket: Arc<std::net::UdpSocket>,
    back: JoinHandle<()>,
}

impl Relay {
    /// Relays to a server, in the given runtime.
    pub fn start(server: SocketAddr, seed: u64, runtime: &Handle) -> Relay {
        let (answers, front) = runtime.block_on(async { sockets().unwrap() });
        let address = front.local_addr().unwrap();
        let line = Arc::new(Line {
            server,
            front,
            answers,
            weather: Mutex::new(USUAL),
            silent_until: Mutex::new(Instant::now()),
            ways: Mutex::default(),
            random: Mutex::new(Draw(seed)),
            counts: Counts::default(),
        });
        runtime.spawn(line.clone().forward());
        Relay { address, line }
    }

    pub fn set_weather(&self, weather: Weather) {
        *self.line.weather.lock().unwrap() = weather;
    }

    /// Swallows all datagrams for a while.
    pub fn fall_silent(&self, length: Duration) {
        *self.line.silent_until.lock().unwrap() = Instant::now() + length;
    }

    /// Gives every client a new port towards the server; what comes to the old ones is lost.
    pub fn rebind(&self) {
        for (_, way) in self.line.ways.lock().unwrap().drain() {
            way.back.abort();
        }
    }

    pub fn counts(&self) -> &Counts {
        &self.line.counts
    }
}

impl Line {
    /// Passes on what clients send.
    async fn forward(self: Arc<Self>) {
        let mut buffer = vec![0; 1 << 16];
        loop {
            // An error here is that of an earlier datagram which nobody took.
            let Ok((length, client)) = self.front.recv_from(&mut buffer).await else {
                continue;
            };
            let Ok(way) = self.clone().way(client) else {
                continue;
            };
            let line = self.clone();
            self.pass(&buffer[..length], move |datagram| {
                let _ = way.send_to(datagram, line.server);
            });
        }
    }

    /// Passes on what the server sends to one client.
    async fn back(self: Arc<Self>, socket: UdpSocket, client: SocketAddr) {
        let mut buffer = vec![0; 1 << 16];
        loop {
            let Ok(length) = socket.recv(&mut buffer).await else {
                // The server's port is closed; its clients notice by its silence.
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            };
            let line = self.clone();
            self.pass(&buffer[..length], move |datagram| {
                let _ = line.answers.send_to(datagram, client);
            });
        }
    }

    fn way(self: Arc<Self>, client: SocketAddr) -> io::Result<Arc<std::net::UdpSocket>> {
        let mut ways = self.ways.lock().unwrap();
        if let Some(way) = ways.get(&client) {
            return Ok(way.socket.clone());
        }
        let (socket, receiving) = sockets()?;
        let back = tokio::spawn(self.clone().back(receiving, client));
        let socket = Arc::new(socket);
        let way = Way {
            socket: socket.clone(),
            back,
        };
        ways.insert(client, way);
        Ok(socket)
    }

    /// Sends a datagram on, or not, or twice, or later than those that follow.
    fn pass(&self, datagram: &[u8], send: impl Fn(&[u8]) + Send + 'static) {
        let count = |counter: &AtomicU64| counter.fetch_add(1, Ordering::Relaxed);
        if Instant::now() < *self.silent_until.lock().unwrap() {
            count(&self.counts.swallowed);
            return;
        }
        let weather = *self.weather.lock().unwrap();
        let mut random = self.random.lock().unwrap();
        if random.below(1000) < weather.lost {
            count(&self.counts.lost);
            return;
        }
        let again = random.below(1000) < weather.doubled;
        let later = random.below(1000) < weather.delayed;
        let delay = Duration::from_millis(1 + random.below(40));
        drop(random);
        count(&self.counts.passed);
        if again {
            count(&self.counts.doubled);
            send(datagram);
        }
        match later {
            false => send(datagram),
            true => {
                count(&self.counts.delayed);
                let datagram = datagram.to_vec();
                tokio::spawn(async move {
                    tokio::time::sleep(delay).await;
                    send(&datagram);
                });
            }
        }
    }
}

/// A socket to send by, and the same to receive by.
fn sockets() -> io::Result<(std::net::UdpSocket, UdpSocket)> {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0")?;
    socket.set_nonblocking(true)?;
    let receiving = UdpSocket::from_std(socket.try_clone()?)?;
    Ok((socket, receiving))
}

/// Numbers from a seed (SplitMix64, Steele et al., OOPSLA 2014), for choices that are no secret.
pub struct Draw(pub u64);

impl Draw {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below a limit.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit
    }
}
