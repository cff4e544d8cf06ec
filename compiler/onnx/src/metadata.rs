//! What a model's metadata says of its input and of its classes, as `docs/onnx.md` has it.

use crate::Options;
use crate::proto::{ModelProto, StringStringEntryProto};
use pi_ir::{Graph, Preprocessing, limits};

/// Means of pixels scaled to `[0, 1]`.
const MEAN: &str = "mean";
/// Deviations of pixels scaled to `[0, 1]`.
const DEVIATION: &str = "deviation";
/// Least divisor of [`Preprocessing::Image`], in bytes.
const FLOOR: &str = "standardise_floor";
/// Names of the classes.
const CLASSES: &str = "classes";

/// What is done to an image before the model reads it, and the names of the classes.
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
        let given = options.mean.is_some() || options.deviation.is_some();
        let preprocessing = match entry(FLOOR).filter(|_| !given) {
            Some(text) => match text.trim().parse::<u8>() {
                Ok(floor) if floor > 0 => Preprocessing::Image { floor },
                _ => {
                    return Err(format!(
                        "the file's {FLOOR} is {text:?}: a number from 1 to 255 is expected"
                    ));
                }
            },
            None => Preprocessing::Channels {
                mean: numbers(MEAN, &options.mean, 0.0)?,
                std: numbers(DEVIATION, &options.deviation, 1.0)?,
            },
        };
        if let Preprocessing::Channels { mean, std } = &preprocessing
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

    /// Returns whether every image is standardised by its own statistics, which no affine function
    /// of the network's can be part of.
    pub(crate) fn is_by_image(&self) -> bool {
        matches!(self.preprocessing, Preprocessing::Image { .. })
    }

    /// `(pixel / 255 - mean) / deviation` comes before what the network does itself.
    pub(crate) fn apply(&self, graph: &mut Graph) {
        match (&mut graph.preprocessing, &self.preprocessing) {
            (
                Preprocessing::Channels { mean, std },
                Preprocessing::Channels { mean: m, std: d },
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
    };
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
