//! Identities of parties on the wire: a key pair with a self-signed certificate, made on first use.
//!
//! Certificate and key lie in one file, `identity.pem`, so that neither can be lost alone. A server
//! may use an operator's certificate chain instead.

use crate::files;
use crate::fingerprint::{Fingerprint, of_certificate};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use std::io;
use std::path::{Path, PathBuf};
use zeroize::Zeroizing;

/// A certificate chain with the private key of its first certificate.
pub struct Identity {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

/// Error of an identity that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The file cannot be read or written.
    #[error("{path}: {error}")]
    File {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        error: io::Error,
    },
    /// The file holds something else.
    #[error("{path} holds no usable {what}: {reason}")]
    Broken {
        /// The file.
        path: PathBuf,
        /// Certificate or key.
        what: &'static str,
        /// The fault found.
        reason: String,
    },
    /// No key pair could be made.
    #[error("cannot make a key pair: {0}")]
    Generate(rcgen::Error),
}

impl Identity {
    /// Reads the identity kept in a state directory, or makes one for these names and keeps it.
    ///
    /// # Errors
    /// [`IdentityError`] names the file.
    pub fn load_or_create(state: &Path, names: &[&str]) -> Result<Identity, IdentityError> {
        let path = state.join("identity.pem");
        match std::fs::read(&path) {
            Ok(text) => Identity::from_pem(&path, &Zeroizing::new(text)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let text = generate(names).map_err(IdentityError::Generate)?;
                files::write_private(&path, text.as_bytes()).map_err(|error| {
                    IdentityError::File {
                        path: path.clone(),
                        error,
                    }
                })?;
                Identity::from_pem(&path, text.as_bytes())
            }
            Err(error) => Err(IdentityError::File { path, error }),
        }
    }

    /// Reads an operator's certificate chain and key.
    ///
    /// # Errors
    /// [`IdentityError`] names the file.
    pub fn from_files(certificates: &Path, key: &Path) -> Result<Identity, IdentityError> {
        let key_text = Zeroizing::new(std::fs::read(key).map_err(|error| IdentityError::File {
            path: key.into(),
            error,
        })?);
        Ok(Identity {
            chain: read_certificates(certificates)?,
            key: parse_key(key, &key_text)?,
        })
    }

    pub(crate) fn from_pem(path: &Path, text: &[u8]) -> Result<Identity, IdentityError> {
        Ok(Identity {
            chain: parse_certificates(path, text)?,
            key: parse_key(path, text)?,
        })
    }

    /// The fingerprint that others know this identity by.
    pub fn fingerprint(&self) -> Fingerprint {
        of_certificate(&self.chain[0])
    }

    /// The name that a server knows this identity by if it demands certificates of an authority;
    /// `None` if the certificate is for no name.
    pub fn certificate_name(&self) -> Option<Fingerprint> {
        crate::transport::certificate_name(&self.chain[0])
    }

    /// Whether the certificate is for this host name or IP address.
    #[cfg(feature = "web")]
    pub(crate) fn is_for(&self, host: &str) -> bool {
        let certificate = webpki::EndEntityCert::try_from(&self.chain[0]);
        let name = rustls::pki_types::ServerName::try_from(host);
        match (certificate, name) {
            (Ok(certificate), Ok(name)) => {
                certificate.verify_is_valid_for_subject_name(&name).is_ok()
            }
            _ => false,
        }
    }

    /// Certificates, own first, and the private key, for the TLS configuration.
    pub(crate) fn to_tls(&self) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        (self.chain.clone(), self.key.clone_key())
    }
}

/// Reads at least one certificate from a PEM file.
///
/// # Errors
/// [`IdentityError`] names the file.
pub fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let text = std::fs::read(path).map_err(|error| IdentityError::File {
        path: path.into(),
        error,
    })?;
    parse_certificates(path, &text)
}

fn parse_certificates(
    path: &Path,
    text: &[u8],
) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let broken = |reason: String| IdentityError::Broken {
        path: path.into(),
        what: "certificate",
        reason,
    };
    let chain = CertificateDer::pem_slice_iter(text)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| broken(e.to_string()))?;
    if chain.is_empty() {
        return Err(broken("no certificate in PEM form found".into()));
    }
    Ok(chain)
}

fn parse_key(path: &Path, text: &[u8]) -> Result<PrivateKeyDer<'static>, IdentityError> {
    PrivateKeyDer::from_pem_slice(text).map_err(|e| IdentityError::Broken {
        path: path.into(),
        what: "private key",
        reason: e.to_string(),
    })
}

/// An ECDSA P-256 key with a self-signed certificate, both as PEM text.
fn generate(names: &[&str]) -> Result<Zeroizing<String>, rcgen::Error> {
    let names: Vec<String> = names.iter().map(|name| name.to_string()).collect();
    let made = rcgen::generate_simple_self_signed(names)?;
    let key = Zeroizing::new(made.signing_key.serialize_pem());
    Ok(Zeroizing::new(format!("{}{}", made.cert.pem(), *key)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_outlives_its_process() {
        let state = tempfile::tempdir().unwrap();
        let first = Identity::load_or_create(state.path(), &["localhost"]).unwrap();
        let again = Identity::load_or_create(state.path(), &["localhost"]).unwrap();
        assert_eq!(first.fingerprint(), again.fingerprint());
        let other = tempfile::tempdir().unwrap();
        let stranger = Identity::load_or_create(other.path(), &["localhost"]).unwrap();
        assert_ne!(first.fingerprint(), stranger.fingerprint());
    }

    #[test]
    fn a_broken_identity_is_named_and_never_replaced() {
        let state = tempfile::tempdir().unwrap();
        let path = state.path().join("identity.pem");
        std::fs::write(&path, "not a key").unwrap();
        let error = Identity::load_or_create(state.path(), &["localhost"]).err();
        assert!(error.unwrap().to_string().contains("identity.pem"));
        assert_eq!(std::fs::read(&path).unwrap(), b"not a key");
    }
}
