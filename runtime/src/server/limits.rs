//! Limits on what one client may have of one model, and the days by which some are counted.

use crate::store::unix_milliseconds;
use serde::de::{self, Visitor};
use serde::{Deserialize, Deserializer};
use std::fmt;
use std::str::FromStr;

/// Seconds of a day.
const DAY: u64 = 86_400;

/// Limits on what a client may have of a model. A limit that is not set is decided by the next
/// wider rule.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Limits {
    /// Bundles at rest.
    pub bundles: Option<Most>,
    /// Answers, ever.
    pub answers: Option<Most>,
    /// Answers in a day of UTC.
    pub answers_per_day: Option<Most>,
    /// Bytes of all operations but greetings and inferences in a day of UTC, in both directions.
    pub bytes_per_day: Option<Most>,
}

impl Limits {
    /// These limits, and where they set none, those of a wider rule.
    pub fn or(self, wider: Limits) -> Limits {
        Limits {
            bundles: self.bundles.or(wider.bundles),
            answers: self.answers.or(wider.answers),
            answers_per_day: self.answers_per_day.or(wider.answers_per_day),
            bytes_per_day: self.bytes_per_day.or(wider.bytes_per_day),
        }
    }
}

/// A limit, or the word that there is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Most {
    /// `none`.
    Unlimited,
    /// This much.
    At(u64),
}

impl Most {
    /// The number, if there is a limit.
    pub fn at(self) -> Option<u64> {
        match self {
            Most::Unlimited => None,
            Most::At(limit) => Some(limit),
        }
    }
}

impl fmt::Display for Most {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Most::Unlimited => f.write_str("none"),
            Most::At(limit) => limit.fmt(f),
        }
    }
}

impl FromStr for Most {
    type Err = String;

    fn from_str(text: &str) -> Result<Most, String> {
        if text == "none" {
            return Ok(Most::Unlimited);
        }
        match bytes(text) {
            Ok(limit @ 1..) => Ok(Most::At(limit)),
            _ => Err("a positive number, such as 1000 or 2G, or the word none".into()),
        }
    }
}

impl<'de> Deserialize<'de> for Most {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Most, D::Error> {
        struct NumberOrWord;
        impl Visitor<'_> for NumberOrWord {
            type Value = Most;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a positive number, such as 1000 or \"2G\", or \"none\"")
            }

            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Most, E> {
                self.visit_str(&number.to_string())
            }

            fn visit_u64<E: de::Error>(self, number: u64) -> Result<Most, E> {
                self.visit_str(&number.to_string())
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Most, E> {
                text.parse()
                    .map_err(|error| E::custom(format!("{text:?} is not {error}")))
            }
        }
        deserializer.deserialize_any(NumberOrWord)
    }
}

/// A number of bytes, as the user writes it.
///
/// # Errors
/// What such a number looks like.
pub fn bytes(text: &str) -> Result<u64, String> {
    let (number, unit) = match text.strip_suffix(['K', 'M', 'G']) {
        Some(number) if text.ends_with('K') => (number, 10),
        Some(number) if text.ends_with('M') => (number, 20),
        Some(number) => (number, 30),
        None => (text, 0),
    };
    let number = number.parse::<u64>().ok();
    let bytes = number.and_then(|number| number.checked_mul(1 << unit));
    bytes.ok_or_else(|| "a number of bytes, such as 4G, 512M or 800000000".into())
}

/// Seconds until the day of UTC ends.
pub(crate) fn rest_of_today() -> u32 {
    (DAY - unix_milliseconds() / 1000 % DAY) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_a_number_with_or_without_a_unit_or_none() {
        assert_eq!("none".parse(), Ok(Most::Unlimited));
        assert_eq!("7".parse(), Ok(Most::At(7)));
        assert_eq!("2G".parse(), Ok(Most::At(2 << 30)));
        for wrong in ["0", "-1", "", "None", "1T", "99999999999G"] {
            assert!(wrong.parse::<Most>().is_err(), "{wrong}");
        }
        let read = |text: &str| toml::from_str::<Limits>(text);
        let limits = read("answers = 5\nbytes-per-day = \"1K\"\nanswers-per-day = \"none\"");
        let limits = limits.unwrap();
        assert_eq!(limits.answers, Some(Most::At(5)));
        assert_eq!(limits.bytes_per_day, Some(Most::At(1024)));
        assert_eq!(limits.answers_per_day, Some(Most::Unlimited));
        assert_eq!(limits.bundles, None);
        assert!(read("answers = 0").is_err());
        assert!(read("answers = -3").is_err());
        assert!(
            read("answer = 3")
                .unwrap_err()
                .to_string()
                .contains("answer")
        );
    }

    #[test]
    fn a_narrow_rule_comes_before_a_wider_one() {
        let wide = Limits {
            answers: Some(Most::At(10)),
            bundles: Some(Most::At(3)),
            ..Limits::default()
        };
        let narrow = Limits {
            answers: Some(Most::Unlimited),
            ..Limits::default()
        };
        let both = narrow.or(wide);
        assert_eq!(both.answers, Some(Most::Unlimited));
        assert_eq!(both.bundles, Some(Most::At(3)));
    }

    #[test]
    fn a_day_ends_within_a_day() {
        assert!((1..=DAY as u32).contains(&rest_of_today()));
    }
}
