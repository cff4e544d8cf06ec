//! The name of a peer: the SHA-256 of its certificate, as `openssl x509 -fingerprint -sha256`
//! prints it.

pub use pi_wire::fingerprint::*;

/// The fingerprint of a certificate in DER form.
pub fn of_certificate(der: &[u8]) -> Fingerprint {
    sha256(der)
}

/// The name of a party whose certificate an authority signed, by the first name that the
/// certificate is for: `dns:NAME` or `uri:NAME`. It outlives the certificate and its key.
///
/// No certificate has it for its fingerprint: this prefix starts no DER.
pub fn of_certificate_name(name: &str) -> Fingerprint {
    sha256(&[b"pianissimo certificate name\0", name.as_bytes()].concat())
}

/// The name of a client in a browser, by its public key in the uncompressed form of SEC 1.
pub fn of_web_key(key: &[u8]) -> Fingerprint {
    sha256(&pi_wire::web::named_bytes(key))
}

fn sha256(bytes: &[u8]) -> Fingerprint {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, bytes);
    Fingerprint(
        digest
            .as_ref()
            .try_into()
            .expect("a SHA-256 digest has 32 bytes"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fingerprint_is_the_sha_256_of_the_certificate() {
        // FIPS 180-4, the one-block example.
        let text = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(of_certificate(b"abc").to_string(), text);
    }

    #[test]
    fn no_kind_of_name_is_one_of_another_kind() {
        let names = [
            of_certificate(b"a"),
            of_certificate_name("a"),
            of_web_key(b"a"),
        ];
        assert!(names[0] != names[1] && names[1] != names[2] && names[0] != names[2]);
    }
}
