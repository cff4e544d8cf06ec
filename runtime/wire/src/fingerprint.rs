//! The name of a peer: the SHA-256 of its certificate, as `openssl x509 -fingerprint -sha256`
//! prints it.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::str::FromStr;

/// SHA-256 of a certificate in DER form, which is public.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Fingerprint(pub [u8; 32]);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Error of a text that is no fingerprint.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ParseFingerprintError {
    /// The number of digits is wrong.
    #[error("a fingerprint has 64 hexadecimal digits, this text has {0}")]
    Length(usize),
    /// A character is neither `0-9`, `a-f`, `A-F` nor a separating colon.
    #[error("{0:?} is not a hexadecimal digit")]
    Digit(char),
}

impl FromStr for Fingerprint {
    type Err = ParseFingerprintError;

    /// Reads 64 hexadecimal digits; colons between them are skipped.
    fn from_str(text: &str) -> Result<Fingerprint, ParseFingerprintError> {
        let mut digits = Vec::with_capacity(64);
        for c in text.trim().chars().filter(|&c| c != ':') {
            let digit = c.to_digit(16).ok_or(ParseFingerprintError::Digit(c))?;
            digits.push(digit as u8);
        }
        if digits.len() != 64 {
            return Err(ParseFingerprintError::Length(digits.len()));
        }
        let mut bytes = [0; 32];
        for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
            *byte = pair[0] << 4 | pair[1];
        }
        Ok(Fingerprint(bytes))
    }
}

/// Lower-case hexadecimal digits of some public bytes.
pub fn hex(bytes: &[u8]) -> String {
    use fmt::Write;
    bytes
        .iter()
        .fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
            write!(text, "{byte:02x}").expect("writing to a String does not fail");
            text
        })
}

/// The first eight digits, enough to recognise an id in a log.
pub fn short(id: &[u8; 32]) -> String {
    hex(&id[..4])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_round_trips_with_and_without_colons() {
        let fingerprint = Fingerprint(std::array::from_fn(|i| (i as u8).wrapping_mul(89)));
        let text = fingerprint.to_string();
        assert!(text.starts_with("0059b20b"), "{text}");
        assert_eq!(text.parse::<Fingerprint>().unwrap(), fingerprint);
        let colons: Vec<&str> = (0..32).map(|i| &text[2 * i..2 * i + 2]).collect();
        let shouting = colons.join(":").to_uppercase();
        assert_eq!(shouting.parse::<Fingerprint>().unwrap(), fingerprint);
    }

    #[test]
    fn short_and_odd_texts_are_refused() {
        assert!(matches!(
            "ab".parse::<Fingerprint>(),
            Err(ParseFingerprintError::Length(2))
        ));
        assert!(matches!(
            "xy".parse::<Fingerprint>(),
            Err(ParseFingerprintError::Digit('x'))
        ));
    }
}
