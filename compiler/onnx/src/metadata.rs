//! What a model's metadata says of its input and of its classes, as `docs/onnx.md` has it.

use crate::proto::{ModelProto, StringStringEntryProto};
use crate::{InputKind, Options};
use pi_ir::{Graph, Preprocessing, limits};

/// Means of pixels scaled to `[0, 1]`, or of values.
const MEAN: &str = "mean";
/// Deviations of pixels scaled to `[0, 1]`, or of values.
const DEVIATION: &str = "deviation";
/// Least divisor of [`Preprocessing::Image`], in bytes.
const FLOOR: &str = "standardise_floor";
/// What the network reads: `image` or `values`.
const KIND: &str = "input_kind";
/// Largest magnitude of a normalised value.
const BOUND: &str = "input_bound";
/// Names of the classes.
const CLASSES: &str = "classes";

/// What is done to an input before the model reads it, and the names of the classes.
pub(crate) struct Metadata {
    preprocessing: Preprocessing,
    classes: Vec<String>,
}

impl Metadata {
    /// What the file says, and the user before it.
    pub(crate) fn new(
        model: &ModelProto,
        options: &Options,
        channels: u32,
        by_shape: InputKind,
    ) -> Result<Self, String> {
        let entry = |key: &str| {
            let mut entries = model.metadata_props.iter();
            let found = entries.find(|entry| entry.key.as_deref() == Some(key));
            found.and_then(|entry| entry.value.as_deref())
        };
        let numbers = |what: &str, given: &Option<Vec<f32>>, default: f32| {
            let list: Vec<f32> = match (given, entry(what)) {
                (Some(given), _) => given.clone(),
                (None, Some(text)) => listed(text)
                    .iter()
                    .map(|number| number.parse::<f32>())
                    .collect::<Result<_, _>>()
                    .map_err(|_| format!("the file's {what} is {text:?}: numbers are expected"))?,
                (None, None) => vec![default],
            };
            match list.len() {
                1 => Ok(vec![list[0]; channels as usize]),
                n if n == channels as usize => Ok(list),
                n => Err(format!("{n} numbers of {what} for {channels} channels")),
            }
        };
        let stated = match entry(KIND).map(str::trim) {
            None => None,
            Some("image") => Some(InputKind::Image),
            Some("values") => Some(InputKind::Values),
            Some(text) => {
                return Err(format!(
                    "the file's {KIND} is {text:?}: image or values are expected"
                ));
            }
        };
        let kind = options.kind.or(stated).unwrap_or(by_shape);
        if options.bound.is_some() && kind == InputKind::Image {
            return Err(
                "the values of a picture are bytes and need no bound: leave --input-bound out, or \
                 give --input-kind values"
                    .into(),
            );
        }
        let bound = match (options.bound, entry(BOUND)) {
            (None, Some(text)) => match text.trim().parse::<f32>() {
                Ok(bound) if bound > 0.0 && bound.is_finite() => Some(bound),
                _ => {
                    return Err(format!(
                        "the file's {BOUND} is {text:?}: a number above 0 is expected"
                    ));
                }
            },
            (given, _) => given,
        };
        let given =
            options.mean.is_some() || options.deviation.is_some() || kind == InputKind::Values;
        let preprocessing = match entry(FLOOR).filter(|_| !given) {
            Some(text) => match text.trim().parse::<u8>() {
                Ok(floor) if floor > 0 => Preprocessing::Image { floor },
                _ => {
                    return Err(format!(
                        "the file's {FLOOR} is {text:?}: a number from 1 to 255 is expected"
                    ));
                }
            },
            None => {
                let mean = numbers(MEAN, &options.mean, 0.0)?;
                let std = numbers(DEVIATION, &options.deviation, 1.0)?;
                match kind {
                    InputKind::Image => Preprocessing::Channels { mean, std },
                    InputKind::Values => Preprocessing::Values { mean, std, bound },
                }
            }
        };
        if let Preprocessing::Channels { mean, std } | Preprocessing::Values { mean, std, .. } =
            &preprocessing
            && (!std.iter().all(|&d| d > 0.0 && d.is_finite())
                || !mean.iter().all(|m| m.is_finite()))
        {
            return Err("mean and deviation must be finite, and deviations above 0".into());
        }
        Ok(Metadata {
            preprocessing,
            classes: entry(CLASSES).map(listed).unwrap_or_default(),
        })
    }

    /// What the network reads.
    pub(crate) fn kind(&self) -> InputKind {
        match self.preprocessing.is_values() {
            true => InputKind::Values,
            false => InputKind::Image,
        }
    }

    /// Returns whether every image is standardised by its own statistics, which no affine function
    /// of the network's can be part of.
    pub(crate) fn is_by_image(&self) -> bool {
        matches!(self.preprocessing, Preprocessing::Image { .. })
    }

    /// Faults and notes of a network that normalises its pixels itself although means and
    /// deviations were given, too: the classic mistake is to give the same ones again.
    ///
    /// # Errors
    /// If both are the same.
    pub(crate) fn given_twice(&self, own: &Graph) -> Result<Option<String>, String> {
        let (
            Preprocessing::Channels { mean, std } | Preprocessing::Values { mean, std, .. },
            Preprocessing::Channels { mean: m, std: s }
            | Preprocessing::Values {
                mean: m, std: s, ..
            },
        ) = (&own.preprocessing, &self.preprocessing)
        else {
            return Ok(None);
        };
        let plain = |mean: &[f32], std: &[f32]| {
            mean.iter().all(|&m| m == 0.0) && std.iter().all(|&s| s == 1.0)
        };
        if plain(mean, std) || plain(m, s) {
            return Ok(None);
        }
        // People round what they copy.
        let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 0.02 * a.abs().max(b.abs());
        if mean.iter().zip(m).all(near) && std.iter().zip(s).all(near) {
            return Err(format!(
                "the network normalises its input itself, with mean {mean:?} and deviation \
                 {std:?}, and the same were given as --mean and --deviation or in the file's \
                 metadata: leave them out"
            ));
        }
        Ok(Some(format!(
            "the network normalises its input itself, with mean {mean:?} and deviation {std:?}, \
             after the mean {m:?} and deviation {s:?} that were given; if these were meant to be \
             the network's own, leave them out"
        )))
    }

    /// `(x - mean) / deviation`, where `x` is a pixel over 255 or a value, comes before what the
    /// network does itself.
    pub(crate) fn apply(&self, graph: &mut Graph) {
        if let (Preprocessing::Values { bound, .. }, Preprocessing::Values { bound: stated, .. }) =
            (&mut graph.preprocessing, &self.preprocessing)
        {
            *bound = *stated;
        }
        match (&mut graph.preprocessing, &self.preprocessing) {
            (
                Preprocessing::Channels { mean, std },
                Preprocessing::Channels { mean: m, std: d },
            )
            | (
                Preprocessing::Values { mean, std, .. },
                Preprocessing::Values {
                    mean: m, std: d, ..
                },
            ) => {
                for ((mean, std), (&m, &d)) in mean.iter_mut().zip(std).zip(m.iter().zip(d)) {
                    *mean = m + d * *mean;
                    *std *= d;
                }
            }
            (own, stated) => *own = stated.clone(),
        }
        if self.classes.len() <= limits::CLASSES {
            graph.classes = self.classes.clone();
        }
    }
}

/// The entries that [`Metadata::new`] reads.
pub(crate) fn entries(graph: &Graph) -> Vec<StringStringEntryProto> {
    let mut entries = match &graph.preprocessing {
        Preprocessing::Channels { mean, std } => {
            vec![(MEAN, json(mean)), (DEVIATION, json(std))]
        }
        Preprocessing::Image { floor } => vec![(FLOOR, floor.to_string())],
        Preprocessing::Values { mean, std, bound } => {
            let mut entries = vec![
                (KIND, "values".to_owned()),
                (MEAN, json(mean)),
                (DEVIATION, json(std)),
            ];
            entries.extend(bound.map(|bound| (BOUND, bound.to_string())));
            entries
        }
    };
    if !graph.preprocessing.is_values() {
        entries.push((KIND, "image".to_owned()));
    }
    if !graph.classes.is_empty() {
        entries.push((CLASSES, json(&graph.classes)));
    }
    let entries = entries.into_iter();
    let entry = |(key, value): (&str, String)| StringStringEntryProto {
        key: Some(key.to_owned()),
        value: Some(value),
    };
    entries.map(entry).collect()
}

fn json<T: serde::Serialize>(list: &[T]) -> String {
    serde_json::to_string(list).expect("finite numbers and names have a text")
}

/// A list as metadata has it: JSON, or `a, b, c` with or without brackets and quotes.
fn listed(text: &str) -> Vec<String> {
    if let Ok(list) = serde_json::from_str(text) {
        return list;
    }
    let inner = text.trim().trim_start_matches('[').trim_end_matches(']');
    let items = inner
        .split(',')
        .map(|item| item.trim().trim_matches(['"', '\'']));
    items
        .filter(|item| !item.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::listed;

    #[test]
    fn lists_are_read_as_json_or_as_words() {
        assert_eq!(
            listed(r#"["great white, or shark", "\u00e9"]"#),
            ["great white, or shark", "é"]
        );
        assert_eq!(listed("['a', 'b']"), ["a", "b"]);
        assert_eq!(listed("a, b ,"), ["a", "b"]);
        assert_eq!(listed("[0.5, 1]"), ["0.5", "1"]);
    }
}
