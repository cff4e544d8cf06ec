//! A machine's rates, and the files that they are kept in.
//!
//! A file is JSON with exactly the fields of [`Profile`]. What is missing, unknown or no number
//! that a rate could be is refused with its key, all faults together.

use crate::processor::Cpu;
use pi_core::Backend;
use pi_protocol::linear::Rates;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::fs;
use std::path::Path;

/// Rates of one core of a machine with one back end.
///
/// Those of linear layers are in microseconds, the others in seconds or in operations a second, as
/// each says.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Profile {
    /// [`VERSION`](crate::VERSION) of the measurement that the rates are of, or are meant to
    /// replace.
    pub version: u32,
    /// The processor, for people and to tell whether a profile is of this machine.
    pub processor: String,
    /// Name of the back end, as `PI_BACKEND` takes it.
    pub backend: String,
    /// Linear layers, offline.
    pub linear: Rates,
    /// Seconds for each convolution, offline.
    pub convolution: Cpu,
    /// AND gates garbled a second.
    pub garbled: f64,
    /// AND gates evaluated a second.
    pub evaluated: f64,
    /// Correlated OTs extended a second, both parties' work, half of it each.
    pub extended: f64,
    /// Seconds for each OLE slot.
    pub slot: Cpu,
    /// Seconds for each byte offline.
    pub offline_byte: Cpu,
    /// Multiply-adds of the online convolution a second.
    pub multiplied: f64,
    /// Seconds for each element online.
    pub element: Cpu,
    /// Seconds for each square or polynomial online, beside that.
    pub quadratic: Cpu,
    /// Seconds for each byte online.
    pub online_byte: Cpu,
    /// Seconds for each round trip online.
    pub round_trip: Cpu,
    /// Bytes a second that bundles are stored at, durably.
    pub stored: f64,
}

/// Fields that something is divided by.
const RATES_A_SECOND: [&str; 5] = ["garbled", "evaluated", "extended", "multiplied", "stored"];

/// The profiles that ship with the compiler, by name: a server with AVX-512 and one without.
pub const SHIPPED: [&str; 2] = ["zen4-avx512", "zen3-avx2"];

/// The text of each of [`SHIPPED`].
const FILES: [&str; 2] = [
    include_str!("../profiles/zen4-avx512.json"),
    include_str!("../profiles/zen3-avx2.json"),
];

/// The shipped profile of this name.
pub fn shipped(name: &str) -> Option<Profile> {
    let index = SHIPPED.iter().position(|known| *known == name)?;
    Some(Profile::decode(FILES[index], name).expect("a test reads every shipped profile"))
}

/// `zen4-avx512`: one core of an AMD EPYC of Zen 4. What the library uses where nobody says for
/// which machine: results are those of every machine then.
pub fn zen4_avx512() -> Profile {
    shipped(SHIPPED[0]).expect("its name is the list's")
}

/// A file that holds no profile.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// It cannot be read.
    #[error("{file}: cannot be read: {why}")]
    Unreadable {
        /// The file.
        file: String,
        /// The system's reason.
        why: std::io::Error,
    },
    /// It is no JSON.
    #[error("{file}: no profile of a machine: {why}")]
    NoJson {
        /// The file.
        file: String,
        /// What was wrong, and where.
        why: String,
    },
    /// Some of its fields are wrong.
    #[error("{file}: no profile of a machine: {}", faults.join("; "))]
    Fields {
        /// The file.
        file: String,
        /// Each fault with the field's key.
        faults: Vec<String>,
    },
}

impl Profile {
    /// The profile in a file.
    ///
    /// # Errors
    /// If it cannot be read, or holds anything else; all its faults, by key.
    pub fn read(path: &Path) -> Result<Profile, ProfileError> {
        let file = path.display().to_string();
        match fs::read_to_string(path) {
            Ok(text) => Profile::decode(&text, &file),
            Err(why) => Err(ProfileError::Unreadable { file, why }),
        }
    }

    /// The profile in a text; `file` names the text in errors.
    ///
    /// # Errors
    /// As [`Profile::read`].
    pub fn decode(text: &str, file: &str) -> Result<Profile, ProfileError> {
        let file = file.to_owned();
        let value: Value = match serde_json::from_str(text) {
            Ok(value) => value,
            Err(why) => {
                let why = why.to_string();
                return Err(ProfileError::NoJson { file, why });
            }
        };
        let mut faults = Vec::new();
        check("", &value, &template(), &mut faults);
        if faults.is_empty() {
            match serde_json::from_value(value) {
                Ok(profile) => return Ok(profile),
                Err(why) => faults.push(why.to_string()),
            }
        }
        Err(ProfileError::Fields { file, faults })
    }

    /// The text of the file, which [`Profile::decode`] reads back.
    pub fn encode(&self) -> String {
        let text = serde_json::to_string_pretty(self);
        text.expect("texts and numbers have a form in JSON") + "\n"
    }

    /// The machine in words: `AMD EPYC (Zen 4), avx512`.
    pub fn in_words(&self) -> String {
        format!("{}, {}", self.processor, self.backend)
    }
}

/// A profile that has every field.
fn template() -> Value {
    let none = Cpu::default();
    let linear = Rates::MEASURED;
    let all = Profile {
        version: 0,
        processor: String::new(),
        backend: String::new(),
        linear,
        convolution: none,
        garbled: 1.0,
        evaluated: 1.0,
        extended: 1.0,
        slot: none,
        offline_byte: none,
        multiplied: 1.0,
        element: none,
        quadratic: none,
        online_byte: none,
        round_trip: none,
        stored: 1.0,
    };
    serde_json::to_value(all).expect("texts and numbers have a form in JSON")
}

/// Notes by key what of `found` does not have the form of `expected`, or is no rate.
fn check(key: &str, found: &Value, expected: &Value, faults: &mut Vec<String>) {
    let within = |name: &str| match key {
        "" => name.to_owned(),
        _ => format!("{key}.{name}"),
    };
    match (found, expected) {
        (Value::Object(found), Value::Object(expected)) => {
            for (name, expected) in expected {
                match found.get(name) {
                    Some(found) => check(&within(name), found, expected, faults),
                    None => faults.push(format!("{} is missing", within(name))),
                }
            }
            let unknown = found.keys().filter(|name| !expected.contains_key(*name));
            faults.extend(unknown.map(|name| format!("{} is unknown", within(name))));
        }
        (_, Value::Object(_)) => {
            let what = if key.is_empty() { "the file" } else { key };
            faults.push(format!("{what} has to be an object"));
        }
        (Value::String(name), Value::String(_)) => {
            let backend = || Backend::all().iter().any(|known| known.name() == name);
            if key == "backend" && !backend() {
                faults.push(format!("backend: {name:?} is no back end"));
            }
        }
        (_, Value::String(_)) => faults.push(format!("{key} has to be a text")),
        (Value::Number(number), _) => {
            // A number of JSON is finite where it fits; 1e999 does not.
            let number = number.as_f64().unwrap_or(f64::NAN);
            let positive = RATES_A_SECOND.contains(&key);
            if !number.is_finite() || number < 0.0 || (positive && number == 0.0) {
                let least = if positive { "positive" } else { "not negative" };
                faults.push(format!("{key} is {number}, and has to be {least}"));
            }
        }
        (found, _) => faults.push(format!("{key} is {found}, and has to be a number")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn faults(text: &str) -> String {
        Profile::decode(text, "mine.json").unwrap_err().to_string()
    }

    /// `zen4-avx512` with a field replaced, or removed.
    fn with(path: &[&str], value: Option<Value>) -> String {
        let mut all: Value = serde_json::from_str(FILES[0]).unwrap();
        let (last, parents) = path.split_last().unwrap();
        let parent = parents.iter().fold(&mut all, |all, name| &mut all[*name]);
        let parent = parent.as_object_mut().unwrap();
        match value {
            Some(value) => parent.insert((*last).into(), value),
            None => parent.remove(*last),
        };
        all.to_string()
    }

    #[test]
    fn shipped_profiles_are_whole_and_read_back() {
        for name in SHIPPED {
            let profile = shipped(name).unwrap();
            assert_eq!(Profile::decode(&profile.encode(), name).unwrap(), profile);
            assert_eq!(profile.version, crate::VERSION, "{name} is of an older one");
            assert!(name.ends_with(&profile.backend));
        }
        assert!(shipped("zen5").is_none());
    }

    #[test]
    fn the_server_with_avx512_is_the_one_that_plans_are_made_for_by_default() {
        assert_eq!(zen4_avx512().linear, Rates::MEASURED);
    }

    #[test]
    fn a_fault_is_named_by_file_and_key() {
        for (text, complaint) in [
            ("", "mine.json: no profile of a machine: EOF"),
            (
                "[]",
                "mine.json: no profile of a machine: the file has to be an object",
            ),
            (
                &with(&["garbled"], None),
                "mine.json: no profile of a machine: garbled is missing",
            ),
            (&with(&["linear", "sum"], None), "linear.sum is missing"),
            (&with(&["speed"], Some(1.into())), "speed is unknown"),
            (
                &with(&["slot", "gpu_s"], Some(1.into())),
                "slot.gpu_s is unknown",
            ),
            (
                &with(&["linear", "product"], Some((-0.5).into())),
                "linear.product is -0.5, and has to be not negative",
            ),
            (
                &with(&["stored"], Some(0.into())),
                "stored is 0, and has to be positive",
            ),
            // What other writers make of a NaN.
            (
                &with(&["element", "client_s"], Some(Value::Null)),
                "element.client_s is null, and has to be a number",
            ),
            (
                &with(&["linear"], Some(7.into())),
                "linear has to be an object",
            ),
            (
                &with(&["processor"], Some(7.into())),
                "processor has to be a text",
            ),
            (
                &with(&["backend"], Some("mmx".into())),
                "backend: \"mmx\" is no back end",
            ),
            (&with(&["version"], Some(1.5.into())), "expected u32"),
            (
                &FILES[0].replace("110000000.0", "1e999"),
                "number out of range",
            ),
            (&FILES[0].replace("110000000.0", "NaN"), "expected value"),
        ] {
            let found = faults(text);
            assert!(found.contains(complaint), "{found}, expected {complaint}");
        }
        let two = with(&["garbled"], Some((-1).into())).replace("\"slot\"", "\"slots\"");
        let found = faults(&two);
        for each in ["garbled is -1", "slot is missing", "slots is unknown"] {
            assert!(found.contains(each), "{found}");
        }
    }

    #[test]
    fn a_file_that_is_not_there_is_named() {
        let error = Profile::read(Path::new("/nowhere/mine.json")).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("/nowhere/mine.json: cannot be read: ")
        );
    }
}
