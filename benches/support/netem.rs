//! A line of a given speed and delay made by the kernel: two network namespaces, joined by a pair
//! of virtual devices that `tc netem` shapes in both directions. It needs Linux, iproute2, the
//! right to make namespaces, and a kernel with netem.

use super::link::{Direction, Link, Shaped};
use super::probe::{self, HEADER_BYTES, Idle};
use anyhow::{Context, Result, bail, ensure};
use serde::Deserialize;
use std::ffi::OsString;
use std::io::{BufRead, BufReader};
use std::net::UdpSocket;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// First argument of the process that sends datagrams back.
pub(crate) const AS_ECHO: &str = "--as-echo";
/// First argument of the process that measures.
pub(crate) const AS_PROBE: &str = "--as-probe";

/// Longest that an echo waits for the next datagram.
const ECHO_SILENCE: Duration = Duration::from_secs(5);

/// Plays the echo at one end of a line: prints its address and answers until all is silent.
///
/// # Errors
/// If no socket can be opened or it fails.
pub(crate) fn play_echo(address: &str) -> Result<()> {
    let socket = UdpSocket::bind((address, 0)).context("no socket for the echo")?;
    println!("{}", socket.local_addr()?);
    probe::echo(&socket, ECHO_SILENCE)
}

/// Plays the probe at the other end: measures the line to the echo with a burst of this many bytes
/// and prints JSON.
///
/// # Errors
/// If no socket can be opened, or a datagram is lost.
pub(crate) fn play_probe(echo: &str, burst: &str) -> Result<()> {
    let socket = UdpSocket::bind(("0.0.0.0", 0)).context("no socket for the probe")?;
    let idle = probe::measure(&socket, echo.parse()?, burst.parse()?)?;
    println!("{}", serde_json::to_string(&idle)?);
    Ok(())
}

/// One end: a namespace with one device in it.
#[derive(Clone, Debug)]
struct End {
    /// Name of the namespace, and of its device.
    name: String,
    address: &'static str,
}

/// Two namespaces and the line between them; dropping it removes both.
#[derive(Debug)]
pub(crate) struct Namespaces {
    link: Link,
    server: End,
    client: End,
    /// Measurements before the parties used the line.
    idle: Idle,
}

/// A queue of a device in the output of `tc -s -j qdisc show`; other fields do not matter here.
#[derive(Deserialize)]
struct Queue {
    kind: String,
    bytes: u64,
    packets: u64,
    drops: u64,
}

impl Namespaces {
    /// Makes the line and measures it.
    ///
    /// # Errors
    /// If the system lacks or does not permit something, or the line does not measure as it was
    /// asked for. Nothing is left behind.
    pub(crate) fn open(link: Link) -> Result<Namespaces> {
        let pid = std::process::id();
        let end = |side: char, address| End {
            name: format!("pi{pid}{side}"),
            address,
        };
        let mut line = Namespaces {
            link,
            server: end('s', "10.213.97.1"),
            client: end('c', "10.213.97.2"),
            idle: Idle::default(),
        };
        line.build()?;
        line.idle = line.measure()?;
        let near = |measured: f64, asked: f64| (measured / asked - 1.0).abs() < 0.1;
        ensure!(
            near(line.idle.bits_per_second, link.bits_per_second)
                && (line.idle.round_trip_s - link.round_trip_s).abs()
                    < 0.1 * link.round_trip_s + 2e-4,
            "the shaped line measures {:.3} ms and {:.1} Mbit/s",
            line.idle.round_trip_s * 1e3,
            line.idle.bits_per_second / 1e6
        );
        Ok(line)
    }

    fn build(&self) -> Result<()> {
        let (server, client) = (&self.server, &self.client);
        for end in [server, client] {
            run("ip", &["netns", "add", &end.name])?;
        }
        let pair = [
            "link",
            "add",
            &server.name,
            "netns",
            &server.name,
            "type",
            "veth",
            "peer",
            "name",
            &client.name,
            "netns",
            &client.name,
        ];
        run("ip", &pair)?;
        let delay = format!("{:.0}us", self.link.round_trip_s / 2.0 * 1e6);
        let rate = format!("{:.0}bit", self.link.bits_per_second);
        // netem's limit counts what is on its way too, in packets.
        let on_its_way = self.link.bits_per_second * self.link.round_trip_s / 2.0 / 8.0;
        let packets = (self.link.queue_bytes as f64 + on_its_way) / 1480.0;
        let limit = format!("{packets:.0}");
        for end in [server, client] {
            let (name, network) = (&end.name, format!("{}/30", end.address));
            run("ip", &["-n", name, "address", "add", &network, "dev", name])?;
            // A device that segments late would queue bursts as one packet.
            run(
                "ip",
                &["-n", name, "link", "set", name, "gso_max_segs", "1"],
            )?;
            run("ip", &["-n", name, "link", "set", name, "up"])?;
            let shape = [
                "-n", name, "qdisc", "add", "dev", name, "root", "netem", "delay", &delay, "rate",
                &rate, "limit", &limit,
            ];
            run("tc", &shape)?;
        }
        Ok(())
    }

    /// Address at which the server listens.
    pub(crate) fn listen(&self) -> String {
        format!("{}:0", self.server.address)
    }

    /// Command that runs a program at the server's end; the program's name follows.
    pub(crate) fn at_server(&self) -> Vec<OsString> {
        at(&self.server)
    }

    /// Command that runs a program at the client's end; the program's name follows.
    pub(crate) fn at_client(&self) -> Vec<OsString> {
        at(&self.client)
    }

    fn measure(&self) -> Result<Idle> {
        let mut echo = self.start(&self.server, &[AS_ECHO, self.server.address])?;
        let mut address = String::new();
        let output = echo.0.stdout.take().context("the echo has no output")?;
        BufReader::new(output).read_line(&mut address)?;
        let burst = (self.link.queue_bytes / 4).to_string();
        let probe = self.start(&self.client, &[AS_PROBE, address.trim(), &burst])?;
        let output = probe.output()?;
        serde_json::from_str(&output).context("the probe of the shaped line failed")
    }

    fn start(&self, end: &End, arguments: &[&str]) -> Result<Running> {
        let mut words = at(end).into_iter();
        let program = words.next().context("no program")?;
        let child = Command::new(program)
            .args(words)
            .arg(std::env::current_exe()?)
            .args(arguments)
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start a probe in a namespace")?;
        Ok(Running(child))
    }

    /// Behaviour of the line, as the queues of both ends counted it.
    ///
    /// # Errors
    /// If `tc` does not report it.
    pub(crate) fn shaped(&self) -> Result<Shaped> {
        let count = |end: &End| {
            let name = &end.name;
            let text = run(
                "tc",
                &["-n", name, "-s", "-j", "qdisc", "show", "dev", name],
            )?;
            let queues: Vec<Queue> =
                serde_json::from_str(&text).context("tc describes its queues otherwise")?;
            let queue = queues.into_iter().find(|queue| queue.kind == "netem");
            let queue = queue.context("the shaping queue is gone")?;
            // Of each packet, netem counts the header of the device and those of IP and UDP.
            const HEADERS: u64 = 14 + HEADER_BYTES as u64;
            Ok::<_, anyhow::Error>(Direction {
                datagrams: queue.packets,
                bytes: queue.bytes.saturating_sub(HEADERS * queue.packets),
                dropped: queue.drops,
                mean_late_s: 0.0,
                most_late_s: 0.0,
            })
        };
        Ok(Shaped {
            link: self.link,
            shaper: "netem",
            idle: self.idle,
            up: count(&self.client)?,
            down: count(&self.server)?,
            relay_cpu_s: 0.0,
        })
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for end in [&self.server, &self.client] {
            // One that was never made cannot be removed; the device goes with its namespace.
            let _ = run("ip", &["netns", "delete", &end.name]);
        }
    }
}

fn at(end: &End) -> Vec<OsString> {
    ["ip", "netns", "exec", &end.name]
        .map(OsString::from)
        .to_vec()
}

/// A process that ends when this value is dropped.
struct Running(Child);

impl Running {
    fn output(mut self) -> Result<String> {
        let output = self.0.stdout.take().context("a probe has no output")?;
        Ok(std::io::read_to_string(output)?)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run(program: &str, arguments: &[&str]) -> Result<String> {
    let command = format!("{program} {}", arguments.join(" "));
    let output = Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| format!("`{command}` cannot be run"))?;
    if !output.status.success() {
        let error = String::from_utf8_lossy(&output.stderr);
        bail!("`{command}`: {}", error.trim().replace('\n', " "));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
