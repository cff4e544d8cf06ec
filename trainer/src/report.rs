//! The table of results: accuracy, activations, work, and what an inference costs in the protocol.

use std::fmt::Write;

use pi_ir::costs::{Profile, Traffic};
use serde::Serialize;

use crate::result::Reported;

/// A line of the table; what costs say is absent where there are none.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Name of the result.
    pub name: String,
    /// Data set.
    pub dataset: String,
    /// The network in a word.
    pub network: String,
    /// Method.
    pub method: String,
    /// Share of the test images that is classified right.
    pub test_accuracy: f64,
    /// Positions that are ReLUs.
    pub relus: usize,
    /// Positions that are polynomials.
    pub polynomial_positions: usize,
    /// Multiplications by weights for one image.
    pub multiply_adds: u64,
    /// Per bundle.
    pub offline: Option<Traffic>,
    /// Per input.
    pub online: Option<Traffic>,
    /// Round trips of an inference.
    pub round_trips: Option<u32>,
    /// Predicted seconds by profile, in the file's order.
    pub latency: Vec<Latency>,
    /// Seed.
    pub seed: u64,
    /// Epochs.
    pub epochs: usize,
    /// Processor or GPU that trained.
    pub device: String,
    /// Seconds of training.
    pub wall_s: f64,
}

/// Predicted seconds under one profile.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Latency {
    /// The profile.
    pub profile: String,
    /// Seconds to prepare a bundle.
    pub offline_s: f64,
    /// Seconds of an inference.
    pub online_s: f64,
}

/// The rows of results, in their order.
pub fn rows(results: &[Reported]) -> Vec<Row> {
    results.iter().map(row).collect()
}

fn row(reported: &Reported) -> Row {
    let (result, costs) = (&reported.result, reported.costs.as_ref());
    let latency = |profile: &Profile| {
        let seconds = costs?.predicted.get(&profile.name)?;
        Some(Latency {
            profile: profile.name.clone(),
            offline_s: seconds.offline_s,
            online_s: seconds.online_s,
        })
    };
    let profiles = costs.map_or(&[][..], |costs| &costs.profiles);
    Row {
        name: reported.name.clone(),
        dataset: result.dataset.clone(),
        network: result.network_name(),
        method: result.method.clone(),
        test_accuracy: result.test_accuracy,
        relus: result.relus,
        polynomial_positions: result.polynomial_positions,
        multiply_adds: result.multiply_adds,
        offline: costs.map(|costs| costs.offline),
        online: costs.map(|costs| costs.online),
        round_trips: costs.map(|costs| costs.round_trips),
        latency: profiles.iter().filter_map(latency).collect(),
        seed: result.seed,
        epochs: result.epochs,
        device: result.device.clone(),
        wall_s: result.wall_s,
    }
}

/// The rows as a Markdown table.
pub fn markdown(rows: &[Row]) -> String {
    let mut profiles: Vec<&str> = Vec::new();
    for latency in rows.iter().flat_map(|row| &row.latency) {
        if !profiles.contains(&latency.profile.as_str()) {
            profiles.push(&latency.profile);
        }
    }
    let mut head: Vec<String> = [
        "name",
        "dataset",
        "network",
        "method",
        "test accuracy",
        "ReLUs",
        "polynomials",
        "multiply-adds",
        "offline up",
        "offline down",
        "messages",
        "online up",
        "online down",
        "messages",
    ]
    .map(String::from)
    .to_vec();
    head.extend(profiles.iter().map(|profile| format!("latency, {profile}")));
    let mut lines = vec![head];
    for row in rows {
        let traffic = |traffic: &Option<Traffic>| match traffic {
            None => [(); 3].map(|()| "-".to_owned()),
            Some(t) => [
                bytes(t.bytes_up),
                bytes(t.bytes_down),
                t.messages.to_string(),
            ],
        };
        let mut line = vec![
            row.name.clone(),
            row.dataset.clone(),
            row.network.clone(),
            row.method.clone(),
            format!("{:.2} %", 100.0 * row.test_accuracy),
            grouped(row.relus as u64),
            grouped(row.polynomial_positions as u64),
            millions(row.multiply_adds),
        ];
        line.extend(traffic(&row.offline));
        line.extend(traffic(&row.online));
        line.extend(profiles.iter().map(|profile| {
            let latency = row.latency.iter().find(|l| l.profile == *profile);
            latency.map_or_else(|| "-".to_owned(), |l| format!("{:.0} ms", 1e3 * l.online_s))
        }));
        lines.push(line);
    }
    // Text to the left, numbers to the right.
    const TEXTS: usize = 4;
    let mut text = String::new();
    for (index, line) in lines.iter().enumerate() {
        let cells: Vec<String> = line.iter().map(|cell| cell.replace('|', "\\|")).collect();
        writeln!(text, "| {} |", cells.join(" | ")).expect("text takes what is written");
        if index == 0 {
            let rules = (0..line.len()).map(|c| if c < TEXTS { "---" } else { "---:" });
            writeln!(text, "| {} |", rules.collect::<Vec<_>>().join(" | "))
                .expect("text takes what is written");
        }
    }
    text
}

fn bytes(count: u64) -> String {
    match count {
        0..10_000 => format!("{count} B"),
        10_000..10_000_000 => format!("{:.0} KB", count as f64 / 1e3),
        _ => format!("{:.1} MB", count as f64 / 1e6),
    }
}

fn millions(count: u64) -> String {
    match count {
        0..1_000_000 => grouped(count),
        1_000_000..1_000_000_000 => format!("{:.1} M", count as f64 / 1e6),
        _ => format!("{:.2} G", count as f64 / 1e9),
    }
}

/// `557056` as `557,056`.
fn grouped(count: u64) -> String {
    let digits = count.to_string();
    let first = digits.len() % 3;
    let mut text = digits[..first].to_owned();
    for chunk in digits.as_bytes()[first..].chunks(3) {
        if !text.is_empty() {
            text.push(',');
        }
        text.extend(chunk.iter().map(|digit| char::from(*digit)));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::result::tests::example;
    use pi_ir::costs::Costs;

    #[test]
    fn every_result_is_a_line_with_what_is_known_of_it() {
        let costs = crate::costs::parse(include_str!("../tests/files/costs.json")).unwrap();
        let with = |costs: Option<Costs>| Reported {
            name: "a|b".to_owned(),
            result: serde_json::from_value(example()).unwrap(),
            costs,
        };
        let rows = rows(&[with(Some(costs.clone())), with(None)]);
        let text = markdown(&rows);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines.len(), 4);
        let columns = |line: &str| line.replace("\\|", "").matches('|').count();
        assert!(
            lines.iter().all(|line| columns(line) == columns(lines[0])),
            "{text}"
        );
        for says in [
            "a\\|b".to_owned(),
            "90.00 %".to_owned(),
            bytes(costs.offline.bytes_down),
            bytes(costs.online.bytes_up),
            format!("{:.0} ms", 1e3 * costs.predicted["wan"].online_s),
        ] {
            assert!(lines[2].contains(&says), "{says} is not in {}", lines[2]);
        }
        assert!(lines[0].contains("latency, wan") && lines[3].ends_with("| - | - | - |"));
        assert_eq!(rows[1].latency, []);
    }

    #[test]
    fn counts_are_grouped_by_thousands() {
        for (count, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1,000"),
            (557_056, "557,056"),
            (1_359_872, "1,359,872"),
        ] {
            assert_eq!(grouped(count), text);
        }
        assert_eq!(millions(560_000_000), "560.0 M");
        assert_eq!(bytes(35_900_000), "35.9 MB");
    }
}
