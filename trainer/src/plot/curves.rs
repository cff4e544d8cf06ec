//! Charts of runs: loss, accuracy, gradient norms, and how far the inputs of activations escape, over epochs and depth.

use std::cmp::Ordering;
use std::collections::BTreeSet;

use super::{Axis, Chart, Series, Style};
use crate::log::{Epoch, Site};

/// A run's log with its name.
#[derive(Clone, Debug, PartialEq)]
pub struct History {
    /// Name of the run.
    pub name: String,
    /// Its epochs.
    pub epochs: Vec<Epoch>,
}

impl History {
    fn over_epochs(&self, value: impl Fn(&Epoch) -> Option<f64>) -> Vec<(f64, f64)> {
        let point = |epoch: &Epoch| (epoch.epoch as f64, value(epoch).unwrap_or(f64::NAN));
        self.epochs.iter().map(point).collect()
    }

    /// Activation sites, in the order of the network; see [`depth_order`].
    fn sites(&self) -> Vec<String> {
        let names: BTreeSet<&String> = self.epochs.iter().flat_map(|e| e.sites.keys()).collect();
        let mut names: Vec<String> = names.into_iter().cloned().collect();
        names.sort_by(|a, b| depth_order(a, b));
        names
    }
}

/// Loss on training images (lines) and held-out images (broken lines); none if no log has it.
pub fn loss(runs: &[History]) -> Option<Chart> {
    let of_run = |run: &History| {
        [
            Series {
                name: format!("{}, training", run.name),
                points: run.over_epochs(|e| e.loss),
                style: Style::Line,
            },
            Series {
                name: format!("{}, held-out", run.name),
                points: run.over_epochs(|e| e.holdout_loss),
                style: Style::Dashed,
            },
        ]
    };
    Chart {
        title: "Loss".to_owned(),
        x: Axis::linear("epoch"),
        y: Axis::logarithmic("mean loss"),
        series: runs.iter().flat_map(of_run).collect(),
    }
    .drawable()
}

/// Accuracy on held-out images; none if no log has it.
pub fn accuracy(runs: &[History]) -> Option<Chart> {
    let of_run = |run: &History| Series {
        name: run.name.clone(),
        points: run.over_epochs(|e| e.holdout_accuracy.map(|share| 100.0 * share)),
        style: Style::Line,
    };
    Chart {
        title: "Accuracy".to_owned(),
        x: Axis::linear("epoch"),
        y: Axis::linear("held-out images classified right, %"),
        series: runs.iter().map(of_run).collect(),
    }
    .drawable()
}

/// Mean (lines) and largest (broken lines) norm of the gradient before clipping; none if no log has it.
pub fn gradients(runs: &[History]) -> Option<Chart> {
    let of_run = |run: &History| {
        [("mean", 0, Style::Line), ("largest", 1, Style::Dashed)].map(|(name, index, style)| {
            Series {
                name: format!("{}, {name}", run.name),
                points: run.over_epochs(|e| e.gradient_norm.and_then(|norms| norms[index])),
                style,
            }
        })
    };
    Chart {
        title: "Gradient norm before clipping".to_owned(),
        x: Axis::linear("epoch"),
        y: Axis::logarithmic("global L2 norm"),
        series: runs.iter().flat_map(of_run).collect(),
    }
    .drawable()
}

/// Largest magnitude that reaches each activation of a run, over epochs.
pub fn escape(run: &History) -> Option<Chart> {
    by_site(
        run,
        |site| site.largest,
        |title, series| Chart {
            title,
            x: Axis::linear("epoch"),
            y: Axis::logarithmic("largest |input| of the activation"),
            series,
        },
    )
}

/// Share of the values at each activation of a run that left the range of the training images, over epochs.
pub fn outside(run: &History) -> Option<Chart> {
    by_site(
        run,
        |site| site.outside.map(|share| 100.0 * share),
        |title, series| Chart {
            title,
            x: Axis::linear("epoch"),
            y: Axis::linear("inputs out of the trained range, %"),
            series,
        },
    )
}

fn by_site(
    run: &History,
    value: impl Fn(&Site) -> Option<f64>,
    chart: impl Fn(String, Vec<Series>) -> Chart,
) -> Option<Chart> {
    let of_site = |name: String| Series {
        points: run.over_epochs(|epoch| epoch.sites.get(&name).and_then(&value)),
        name,
        style: Style::Line,
    };
    let series: Vec<Series> = run.sites().into_iter().map(of_site).collect();
    chart(run.name.clone(), series).drawable()
}

/// The escape curve: largest magnitude at each activation after the last epoch of each run, over depth; none if no log
/// has it. Values that are no number any more, infinity among them, break a line.
pub fn escape_over_depth(runs: &[History]) -> Option<Chart> {
    over_depth(
        runs,
        |site| site.largest,
        Axis::logarithmic("largest |input| of the activation"),
        "Largest activations after the last epoch",
    )
}

/// As [`escape_over_depth`], of the share out of the trained range.
pub fn outside_over_depth(runs: &[History]) -> Option<Chart> {
    over_depth(
        runs,
        |site| site.outside.map(|share| 100.0 * share),
        Axis::linear("inputs out of the trained range, %"),
        "Values out of range after the last epoch",
    )
}

fn over_depth(
    runs: &[History],
    value: impl Fn(&Site) -> Option<f64>,
    y: Axis,
    title: &str,
) -> Option<Chart> {
    let of_run = |run: &History| {
        let last = run.epochs.last();
        let at = |(depth, site): (usize, &String)| {
            let seen = last
                .and_then(|epoch| epoch.sites.get(site))
                .and_then(&value);
            (depth as f64 + 1.0, seen.unwrap_or(f64::NAN))
        };
        Series {
            name: run.name.clone(),
            points: run.sites().iter().enumerate().map(at).collect(),
            style: Style::Dotted,
        }
    };
    Chart {
        title: title.to_owned(),
        x: Axis::linear("activation, counted from the input"),
        y,
        series: runs.iter().map(of_run).collect(),
    }
    .drawable()
}

/// Order of activation sites in the networks of this crate, by name alone, as JSON maps keep no order: the stem first,
/// numbers by value, and a block's own activation behind those inside it.
pub fn depth_order(a: &str, b: &str) -> Ordering {
    let (mut a, mut b) = (a.split('.').peekable(), b.split('.').peekable());
    loop {
        let (Some(left), Some(right)) = (a.next(), b.next()) else {
            return Ordering::Equal;
        };
        let (left_ends, right_ends) = (a.peek().is_none(), b.peek().is_none());
        if left_ends != right_ends && left != right {
            // The one that goes on lies inside a block whose own activation the other is, if it ends here.
            let inside = left.starts_with("act") || right.starts_with("act");
            if inside {
                return left_ends.cmp(&right_ends);
            }
        }
        let order = segment(left).cmp(&segment(right));
        if order != Ordering::Equal {
            return order;
        }
    }
}

/// `stem` before all, then text and number of names like `stage12`.
fn segment(text: &str) -> (bool, &str, u64) {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_digit());
    let number = text[digits.len()..].parse().unwrap_or(0);
    (!text.starts_with("stem"), digits, number)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(lines: &[&str]) -> History {
        History {
            name: "amm".to_owned(),
            epochs: lines
                .iter()
                .map(|line| serde_json::from_str(line).unwrap())
                .collect(),
        }
    }

    #[test]
    fn sites_are_in_the_networks_order() {
        let order = [
            "stem.act",
            "stage1.block1.a.act",
            "stage1.block1.b.act",
            "stage1.block1.act",
            "stage1.block2.a.act",
            "stage1.block10.a.act",
            "stage2.block1.a.act",
            "stage2.block1.act",
        ];
        let mut names = order;
        names.sort_unstable();
        assert_ne!(names, order, "by name alone they are in another order");
        names.sort_by(|a, b| depth_order(a, b));
        assert_eq!(names, order);
        let groups = ["group1.conv1.act", "group1.conv2.act", "group2.conv1.act"];
        let mut names = [groups[2], groups[1], groups[0]];
        names.sort_by(|a, b| depth_order(a, b));
        assert_eq!(names, groups);
    }

    #[test]
    fn the_escape_curve_shows_the_last_epoch_over_depth() {
        let run = history(&[
            r#"{"epoch": 1, "sites": {"stem.act": {"largest": 2}, "stage1.block1.act": {"largest": 3}}}"#,
            r#"{"epoch": 2, "sites": {"stem.act": {"largest": 4, "outside": 0.5}, "stage1.block1.act": {"largest": null}}}"#,
        ]);
        let chart = escape_over_depth(std::slice::from_ref(&run)).unwrap();
        let points = &chart.series[0].points;
        assert_eq!(points[0], (1.0, 4.0));
        assert!(points[1].0 == 2.0 && points[1].1.is_nan());
        assert_eq!(
            outside_over_depth(std::slice::from_ref(&run))
                .unwrap()
                .series[0]
                .points[0],
            (1.0, 50.0)
        );
        let over_epochs = escape(&run).unwrap();
        assert_eq!(over_epochs.series[0].name, "stem.act");
        assert_eq!(over_epochs.series[0].points, [(1.0, 2.0), (2.0, 4.0)]);
    }

    #[test]
    fn what_no_log_has_is_not_drawn() {
        let run = history(&[r#"{"epoch": 1, "loss": 2.0, "holdout_accuracy": 0.5}"#]);
        let runs = std::slice::from_ref(&run);
        assert!(gradients(runs).is_none() && escape(&run).is_none() && outside(&run).is_none());
        assert!(escape_over_depth(runs).is_none() && outside_over_depth(runs).is_none());
        assert_eq!(accuracy(runs).unwrap().series[0].points, [(1.0, 50.0)]);
        assert_eq!(loss(runs).unwrap().series[0].points, [(1.0, 2.0)]);
        // Before any training, and without held-out images.
        let run = history(&[r#"{"epoch": 0, "loss": null, "holdout_loss": null}"#]);
        let runs = std::slice::from_ref(&run);
        assert!(loss(runs).is_none() && accuracy(runs).is_none());
    }
}
