//! By which addresses browsers may call a server, and from which pages.
//!
//! The address that a browser called is part of what it signs. That is worth something only if a
//! server takes no session under an address that is another's, so it must know its own: the
//! addresses at which it is reached, the names in its certificate, and those that the operator
//! lists. Pages are told apart by their origins, as browsers tell them; a key belongs to one.

use crate::identity::Identity;
use std::net::{IpAddr, SocketAddr};
use url::{Host, Url};

/// A host and a port, in the form in which pages see them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Authority {
    host: Host<String>,
    port: u16,
}

impl Authority {
    /// Reads `HOST[:PORT]`; this port if it names none.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(crate) fn parse(text: &str, port: u16) -> Result<Authority, String> {
        let bad = || format!("{text:?} is no host, or host and port, such as pi.example:443");
        // A port that is the scheme's own is dropped in parsing, so the scheme has another.
        let url = Url::parse(&format!("ws://{text}")).map_err(|_| bad())?;
        let explicit = text.rsplit_once(':').is_some_and(|(_, port)| port == "80");
        let plain = url.path() == "/"
            && url.query().is_none()
            && url.fragment().is_none()
            && url.username().is_empty()
            && url.password().is_none()
            && !text.contains(['/', '\\', '?', '#', '@']);
        match url.host() {
            Some(host) if plain => Ok(Authority {
                host: host.to_owned(),
                port: url.port().unwrap_or(if explicit { 80 } else { port }),
            }),
            _ => Err(bad()),
        }
    }

    /// The host as a certificate or a list of names has it.
    pub(crate) fn host(&self) -> String {
        match &self.host {
            Host::Ipv6(address) => address.to_string(),
            host => host.to_string(),
        }
    }

    fn address(&self) -> Option<IpAddr> {
        match self.host {
            Host::Domain(_) => None,
            Host::Ipv4(address) => Some(address.into()),
            Host::Ipv6(address) => Some(address.into()),
        }
    }

    fn is_localhost(&self) -> bool {
        matches!(&self.host, Host::Domain(name) if name == "localhost")
    }

    /// The origin of pages of a listener under this address.
    fn origin(&self, scheme: &str) -> String {
        let port = match (scheme, self.port) {
            ("https", 443) | ("http", 80) => String::new(),
            (_, port) => format!(":{port}"),
        };
        format!("{scheme}://{}{port}", self.host)
    }
}

/// Reads the origin of a page, such as `https://pages.example`.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn parse_origin(text: &str) -> Result<String, String> {
    let bad = || format!("{text:?} is no origin of a page, such as https://pages.example");
    let url = Url::parse(text).map_err(|_| bad())?;
    let plain = matches!(url.scheme(), "https" | "http")
        && url.path() == "/"
        && url.query().is_none()
        && url.fragment().is_none();
    match plain {
        true => Ok(url.origin().ascii_serialization()),
        false => Err(bad()),
    }
}

/// The names of a server, and the pages that may call it.
#[derive(Clone, Debug)]
pub(crate) struct Names {
    /// The port at which it listens.
    pub(crate) port: u16,
    /// The address at which it listens.
    pub(crate) address: IpAddr,
    /// Those that the operator lists.
    pub(crate) listed: Vec<Authority>,
    /// The listener without TLS, if there is one.
    pub(crate) plain: Option<SocketAddr>,
    /// Origins of other pages.
    pub(crate) origins: Vec<String>,
}

impl Names {
    /// Whether a session may be opened under this address over a connection to this local address.
    pub(crate) fn is_own(
        &self,
        authority: &str,
        local: Option<IpAddr>,
        identity: &Identity,
    ) -> bool {
        // 443 is left out where it is meant.
        let Ok(called) = Authority::parse(authority, 443) else {
            return false;
        };
        if self.listed.contains(&called) {
            return true;
        }
        let local = local.map(|local| local.to_canonical());
        let here = match called.address() {
            Some(address) => Some(address.to_canonical()) == local,
            None if called.is_localhost() => local.is_none_or(|local| local.is_loopback()),
            None => identity.is_for(&called.host()),
        };
        called.port == self.port && here
    }

    /// Whether a page of this origin may call the server under this address.
    pub(crate) fn allows(&self, origin: &str, authority: &str) -> bool {
        let own = Authority::parse(authority, 443).map(|called| called.origin("https"));
        own.is_ok_and(|own| own == origin)
            || self.origins.iter().any(|listed| listed == origin)
            || self.plain_origins().iter().any(|plain| plain == origin)
    }

    /// Whether a page of this origin is one of those from elsewhere.
    pub(crate) fn lists(&self, origin: &str) -> bool {
        self.origins.iter().any(|listed| listed == origin)
    }

    /// The origin of sessions for a page without TLS, if there is one: another than its own.
    pub(crate) fn plain_target(&self) -> Option<String> {
        let host = match self.address.is_unspecified() {
            true => self.plain?.ip(),
            false => self.plain.and(Some(self.address))?,
        };
        let authority = SocketAddr::new(host, self.port);
        Some(format!("https://{authority}"))
    }

    fn plain_origins(&self) -> Vec<String> {
        let Some(plain) = self.plain else {
            return Vec::new();
        };
        let hosts = [plain.ip().to_string(), "localhost".into()];
        let hosts = hosts.iter().map(|host| match plain.ip() {
            IpAddr::V6(_) if host != "localhost" => format!("[{host}]"),
            _ => host.clone(),
        });
        let authorities = hosts.map(|host| Authority::parse(&host, plain.port()));
        let found = authorities.filter_map(Result::ok);
        found.map(|authority| authority.origin("http")).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn identity(names: &[&str]) -> Identity {
        let names: Vec<String> = names.iter().map(ToString::to_string).collect();
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        let text = made.cert.pem() + &made.signing_key.serialize_pem();
        Identity::from_pem(Path::new("test"), text.as_bytes()).unwrap()
    }

    fn names() -> Names {
        Names {
            port: 4433,
            address: IpAddr::from([0, 0, 0, 0]),
            listed: vec![Authority::parse("pi.example:443", 4433).unwrap()],
            plain: Some(SocketAddr::from(([127, 0, 0, 1], 8080))),
            origins: vec!["https://pages.example".into()],
        }
    }

    #[test]
    fn a_server_is_called_by_its_addresses_its_certificate_and_its_list() {
        let (names, identity) = (names(), identity(&["ward.example"]));
        let local: IpAddr = "192.0.2.7".parse().unwrap();
        let own = |authority, local| names.is_own(authority, Some(local), &identity);
        for right in [
            "192.0.2.7:4433",
            "ward.example:4433",
            "WARD.example:4433",
            "pi.example",
        ] {
            assert!(own(right, local), "{right}");
        }
        for wrong in [
            "192.0.2.7",
            "192.0.2.7:4434",
            "192.0.2.8:4433",
            "pi.example:4433",
            "other.example:4433",
            "localhost:4433",
            "user@ward.example:4433",
            "",
        ] {
            assert!(!own(wrong, local), "{wrong}");
        }
        let loopback = IpAddr::from([127, 0, 0, 1]);
        assert!(own("localhost:4433", loopback));
        assert!(own("127.0.0.1:4433", "::ffff:127.0.0.1".parse().unwrap()));
    }

    #[test]
    fn pages_are_the_server_s_own_or_listed() {
        let names = names();
        for right in [
            "https://pi.example:4433",
            "https://pages.example",
            "http://127.0.0.1:8080",
            "http://localhost:8080",
        ] {
            assert!(names.allows(right, "pi.example:4433"), "{right}");
        }
        for wrong in [
            "https://pi.example",
            "http://pi.example:4433",
            "https://pages.example.org",
            "http://127.0.0.1:8081",
            "null",
            "",
        ] {
            assert!(!names.allows(wrong, "pi.example:4433"), "{wrong}");
        }
        assert!(names.allows("https://pi.example", "pi.example"));
    }

    #[test]
    fn pages_without_tls_are_told_an_address_that_leads_here() {
        let mut names = names();
        assert_eq!(names.plain_target().unwrap(), "https://127.0.0.1:4433");
        names.address = "2001:db8::7".parse().unwrap();
        assert_eq!(names.plain_target().unwrap(), "https://[2001:db8::7]:4433");
        names.plain = None;
        assert_eq!(names.plain_target(), None);
    }

    #[test]
    fn origins_and_authorities_are_read_strictly() {
        assert_eq!(
            parse_origin("https://A.example:443"),
            Ok("https://a.example".into())
        );
        for wrong in [
            "a.example",
            "https://a.example/page",
            "ftp://a.example",
            "null",
            "*",
        ] {
            assert!(parse_origin(wrong).is_err(), "{wrong}");
        }
        assert_eq!(Authority::parse("[::1]:80", 1).unwrap().port, 80);
        assert_eq!(Authority::parse("[::1]", 1).unwrap().host(), "::1");
        for wrong in ["", "a b", "a/b", "a@b", "a:b", "a?b"] {
            assert!(Authority::parse(wrong, 1).is_err(), "{wrong}");
        }
    }
}
