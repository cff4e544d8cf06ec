//! Finds secrets in a text, in whatever form a log is likely to have them: bytes as hexadecimal
//! digits, as base64 or as a list of numbers, values as a list of numbers, and words.

use std::collections::HashSet;

/// Bytes of a secret that are looked for together.
const WINDOW: usize = 8;

/// What must not be in a text.
#[derive(Default)]
pub(crate) struct Secrets {
    /// Every window of the secret bytes.
    windows: HashSet<[u8; WINDOW]>,
    /// Every window of the secret values.
    values: HashSet<[i64; WINDOW]>,
    /// Numbers and names that are secret alone.
    words: Vec<String>,
}

impl Secrets {
    /// Adds bytes. Windows with hardly any different bytes are left out: zeros are in every text.
    pub(crate) fn bytes(&mut self, bytes: &[u8]) {
        let windows = bytes.windows(WINDOW).map(|w| w.try_into().unwrap());
        let telling = |window: &[u8; WINDOW]| window.iter().collect::<HashSet<_>>().len() > 4;
        self.windows.extend(windows.filter(telling));
    }

    /// Takes out bytes that anyone may see, such as the fingerprints in a header.
    pub(crate) fn public(&mut self, bytes: &[u8]) {
        for window in bytes.windows(WINDOW) {
            self.windows.remove(window);
        }
    }

    /// Adds values in their order.
    pub(crate) fn values(&mut self, values: &[i64]) {
        let windows = values.windows(WINDOW).map(|w| w.try_into().unwrap());
        let telling = |window: &[i64; WINDOW]| window.iter().collect::<HashSet<_>>().len() > 4;
        self.values.extend(windows.filter(telling));
    }

    /// Adds a text that is secret by itself.
    pub(crate) fn word(&mut self, word: String) {
        assert!(word.len() >= 5, "{word:?} is in many texts");
        self.words.push(word);
    }

    /// The number of things that are looked for.
    pub(crate) fn len(&self) -> usize {
        self.windows.len() + self.values.len() + self.words.len()
    }

    /// All secrets in a text, in the form in which they stand there.
    pub(crate) fn found_in(&self, text: &str) -> Vec<String> {
        let mut found = Vec::new();
        self.find_hex(text, &mut found);
        self.find_base64(text, &mut found);
        self.find_numbers(text, &mut found);
        let words = self.words.iter().filter(|word| has_word(text, word));
        found.extend(words.map(|word| format!("word {word}")));
        found
    }

    fn find_hex(&self, text: &str, found: &mut Vec<String>) {
        for run in runs(text, |c| c.is_ascii_hexdigit(), 2 * WINDOW) {
            for start in 0..2 {
                let bytes: Vec<u8> = run.as_bytes()[start..]
                    .chunks_exact(2)
                    .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
                    .collect();
                self.find_bytes("hex", &bytes, found);
            }
        }
    }

    fn find_base64(&self, text: &str, found: &mut Vec<String>) {
        let digit = |c: char| c.is_ascii_alphanumeric() || "+/-_".contains(c);
        // Eight bytes are eleven digits, wherever they begin.
        for run in runs(text, digit, 11) {
            for start in 0..4 {
                self.find_bytes("base64", &base64(&run[start..]), found);
            }
        }
    }

    fn find_numbers(&self, text: &str, found: &mut Vec<String>) {
        let part = |c: char| c.is_ascii_digit() || "-,;[] ".contains(c);
        for run in runs(text, part, 2 * WINDOW - 1) {
            let numbers = run.split(|c: char| !c.is_ascii_digit() && c != '-');
            let numbers: Vec<i64> = numbers.filter_map(|number| number.parse().ok()).collect();
            for window in numbers.windows(WINDOW) {
                let window: [i64; WINDOW] = window.try_into().unwrap();
                if self.values.contains(&window) {
                    found.push(format!("values {window:?}"));
                }
            }
            let bytes = numbers
                .iter()
                .map(|&number| u8::try_from(number).unwrap_or(0));
            self.find_bytes("numbers", &bytes.collect::<Vec<_>>(), found);
        }
    }

    fn find_bytes(&self, form: &str, bytes: &[u8], found: &mut Vec<String>) {
        for window in bytes.windows(WINDOW) {
            if self.windows.contains(window) {
                found.push(format!("{form} {window:02x?}"));
            }
        }
    }
}

/// The longest runs of such characters, of at least this length. All characters are ASCII.
fn runs(text: &str, within: impl Fn(char) -> bool, least: usize) -> impl Iterator<Item = &str> {
    let runs = text.split(move |c| !within(c));
    runs.filter(move |run| run.len() >= least)
}

/// Whether a word is in a text, and not as a part of a longer number.
fn has_word(text: &str, word: &str) -> bool {
    let digit = |c: Option<char>| c.is_some_and(|c| c.is_ascii_digit());
    text.match_indices(word).any(|(start, _)| {
        let (before, after) = (&text[..start], &text[start + word.len()..]);
        !digit(before.chars().next_back()) && !digit(after.chars().next())
    })
}

/// The bytes that base64 digits stand for, of either alphabet.
fn base64(digits: &str) -> Vec<u8> {
    let values = digits.bytes().map(|digit| match digit {
        b'A'..=b'Z' => digit - b'A',
        b'a'..=b'z' => digit - b'a' + 26,
        b'0'..=b'9' => digit - b'0' + 52,
        b'+' | b'-' => 62,
        _ => 63,
    });
    let (mut bytes, mut bits, mut count) = (Vec::new(), 0_u32, 0);
    for value in values {
        (bits, count) = (bits << 6 | u32::from(value), count + 6);
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count) as u8);
        }
    }
    bytes
}

/// The digits of RFC 4648, without padding.
fn to_base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::new();
    for three in bytes.chunks(3) {
        let mut padded = [0; 4];
        padded[1..=three.len()].copy_from_slice(three);
        let bits = u32::from_be_bytes(padded);
        for place in 0..=three.len() {
            text.push(char::from(DIGITS[(bits >> (18 - 6 * place)) as usize & 63]));
        }
    }
    text
}

/// A text with eight bytes of a secret, in each form.
pub(crate) fn planted(bytes: &[u8; WINDOW]) -> [String; 4] {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    [
        format!("key={hex}."),
        format!("a{}", hex.to_uppercase()),
        format!(
            "content {} of it",
            to_base64(&[&[7, 7], &bytes[..]].concat())
        ),
        format!("{{\"bytes\":\"{bytes:?}\"}}"),
    ]
}

#[test]
fn a_secret_is_found_in_every_form() {
    let bytes: Vec<u8> = (0..100).map(|i: u32| (i * i * 31 + 7 * i) as u8).collect();
    let mut secrets = Secrets::default();
    secrets.bytes(&bytes);
    secrets.values(&[5, -3, 70_000, 2, 9, 11, -12, 4, 8]);
    secrets.word("-1234567".into());
    for start in [0, 1, 50, 92] {
        let window: &[u8; WINDOW] = bytes[start..start + WINDOW].try_into().unwrap();
        for text in planted(window) {
            assert!(!secrets.found_in(&text).is_empty(), "{text}");
        }
    }
    for text in ["[5, -3, 70000, 2, 9, 11, -12, 4]", "logit -1234567"] {
        assert!(!secrets.found_in(text).is_empty(), "{text}");
    }
    for text in ["logit -12345678", "[5, -3, 70000, 2]", "0123456789abcdef"] {
        assert_eq!(secrets.found_in(text), Vec::<String>::new(), "{text}");
    }
}
