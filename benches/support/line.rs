//! The line between the parties: loopback as it is, or a link of a given speed and delay.

use super::link::{Link, Shaped, Shaper};
use super::netem::Namespaces;
use super::relay::Relay;
use anyhow::Result;
use std::ffi::OsString;

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
    /// Makes a line. A relay is started later, by [`Line::lead_to`], when the server's address is
    /// known.
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

    /// Address at which the server listens.
    pub(crate) fn listen(&self) -> String {
        match self {
            Line::Netem(namespaces) => namespaces.listen(),
            _ => "127.0.0.1:0".into(),
        }
    }

    /// Command that starts the server's program at its end; empty if there is none.
    pub(crate) fn at_server(&self) -> Vec<OsString> {
        match self {
            Line::Netem(namespaces) => namespaces.at_server(),
            _ => Vec::new(),
        }
    }

    /// Command that starts the client's program at its end; empty if there is none.
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

    /// Ends the line and reports its behaviour, if it was shaped.
    ///
    /// # Errors
    /// If a relay failed or netem does not report it.
    pub(crate) fn close(self) -> Result<Option<Shaped>> {
        match self {
            Line::Relay(_, Some(relay)) => relay.stop().map(Some),
            Line::Netem(namespaces) => namespaces.shaped().map(Some),
            Line::Loopback | Line::Relay(_, None) => Ok(None),
        }
    }
}
