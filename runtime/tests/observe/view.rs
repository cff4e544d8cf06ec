//! HTTP requests and the metrics that they bring.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

/// The metrics of one moment.
#[derive(Debug)]
pub(crate) struct Scrape {
    pub(crate) text: String,
    series: BTreeMap<String, f64>,
}

impl Scrape {
    fn parse(text: String) -> Scrape {
        assert!(text.ends_with("# EOF\n"), "cut off: {text}");
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let series = lines.map(|line| {
            let (name, value) = line.rsplit_once(' ').expect("a name and a value");
            (name.to_owned(), value.parse().expect("a number"))
        });
        let series = series.collect();
        Scrape { text, series }
    }

    /// The value of a series, by its name and labels.
    pub(crate) fn get(&self, series: &str) -> f64 {
        let value = self.find(series);
        value.unwrap_or_else(|| panic!("{series} is not in\n{}", self.text))
    }

    /// The same of a series that is there once something has happened.
    pub(crate) fn find(&self, series: &str) -> Option<f64> {
        self.series.get(series).copied()
    }
}

/// What is answered to the bytes of a request; empty if the connection is closed at once.
pub(crate) fn get(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream
        .set_read_timeout(Some(Duration::from_secs(60)))
        .unwrap();
    // A server that refuses need not read to the end.
    let _ = stream.write_all(request.as_bytes());
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()
}

/// Status and body of the answer to a request.
pub(crate) fn respond(address: &str, method: &str, path: &str) -> (u16, String) {
    let answer = get(
        address,
        &format!("{method} {path} HTTP/1.1\r\nHost: x\r\n\r\n"),
    );
    let (head, body) = answer.split_once("\r\n\r\n").expect("head and body");
    let status = head
        .split(' ')
        .nth(1)
        .and_then(|status| status.parse().ok());
    (status.expect("a status"), body.to_owned())
}

pub(crate) fn scrape(address: &str) -> Scrape {
    let (status, body) = respond(address, "GET", "/metrics");
    assert_eq!(status, 200, "{body}");
    Scrape::parse(body)
}

/// Tries until something is so; a minute is longer than anything here takes.
pub(crate) fn wait_for<T>(mut so: impl FnMut() -> Result<T, &'static str>) -> T {
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        match so() {
            Ok(value) => return value,
            Err(reason) => assert!(Instant::now() < end, "{reason}"),
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}
