//! Charts of runs: loss, accuracy, gradient norms, and how far the inputs of activations escape,
//! over epochs and depth.

use std::collections::BTreeSet;

use super::{Axis, Chart, Series, Style};
use crate::log::{Epoch, Site};

/// A run's log with its name.
#[derive(Clone, Debug, PartialEq)]
pub struct History {
    /// Name of the run.
    pub name: String,
    /// Epochs of the run.
    pub epochs: Vec<Epoch>,
}

impl History {
    fn over_epochs(&self, value: impl Fn(&Epoch) -> Option<f64>) -> Vec<(f64, f64)> {
        let point = |epoch: &Epoch| (epoch.epoch as f64, value(epoch).unwrap_or(f64::NAN));
        self.epochs.iter().map(point).collect()
    }

    /// Activation sites, in the order of the network; see [`sort_by_depth`].
    fn sites(&self) -> Vec<String> {
        let names: BTreeSet<&String> = self.epochs.iter().flat_map(|e| e.sites.keys()).collect();
        let mut names: Vec<String> = names.into_iter().cloned().collect();
        sort_by_depth(&mut names);
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

/// Mean (lines) and largest (broken lines) norm of the gradient before clipping; none if no log has
/// it.
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

/// Share of the values at each activation of a run that left the range of the training images, over
/// epochs.
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

/// The escape curve: largest magnitude at each activation after the last epoch of each run, over
/// depth; none if no log has it. Values that are not finite break a line.
pub fn escape_over_depth(runs: &[History]) -> Option<Chart> {
    over_depth(
        runs,
        |site| site.largest,
        Axis::logarithmic("largest |input| of the activation"),
        "Largest activations after the last epoch",
    )
}

/// The share outside the trained range over depth, as [`escape_over_depth`] shows the values.
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

/// Sorts sites into the order of the networks of this crate, by name alone, as JSON maps keep no
/// order.
///
/// The stem or the whitening is first and `last` is last; numbers count by value. A polynomial
/// kernel stands before the activation of its convolution, and a block's own activation behind all
/// inside it. Networks with a site `last.act` are pre-activation, where an activation stands before
/// its convolution.
pub fn sort_by_depth(names: &mut [String]) {
    let pre_activation = names.iter().any(|name| name == "last.act");
    names.sort_by_cached_key(|name| depth(name, pre_activation));
}

/// Sorting key of names like `stage12.block1.a.act`: rank, text and number of each part.
fn depth(name: &str, pre_activation: bool) -> Vec<(u8, String, u64)> {
    // The shortcut of a pre-activation block lies between the activation and the kernel of `a`, as
    // `b` < `k`.
    let name = match pre_activation {
        true => name.replace("shortcut.kernel", "a.beside"),
        false => name.to_owned(),
    };
    let part = |text: &str| {
        let word = text.trim_end_matches(|c: char| c.is_ascii_digit());
        let number = text[word.len()..].parse().unwrap_or(0);
        let rank = match word {
            "stem" | "whiten" => 0,
            "act" if pre_activation => 0,
            "act" => 2,
            "last" => 3,
            _ => 1,
        };
        (rank, word.to_owned(), number)
    };
    name.split('.').map(part).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::network::PolynomialKernel;
    use crate::network::{Initial, KernelRule, Kind, Network, NetworkConfig, Op, Stage, Stem};

    fn history(lines: &[&str]) -> History {
        History {
            name: "amm".to_owned(),
            epochs: lines
                .iter()
                .map(|line| serde_json::from_str(line).unwrap())
                .collect(),
        }
    }

    /// Every architecture, with and without polynomial kernels at all convolutions.
    fn networks() -> Vec<NetworkConfig> {
        let kinds = [
            Kind::Residual,
            Kind::Resnet10,
            Kind::Resnet18,
            Kind::Resnet34,
            Kind::Resnet50,
            Kind::Resnet20,
            Kind::Resnet32,
            Kind::Wrn22x8,
            Kind::Lean9,
        ];
        let of = |kind: Kind, kernels: &[KernelRule]| {
            let free = kind == Kind::Residual;
            let stem = Stem {
                channels: 1,
                kernel: 3,
                stride: 1,
            };
            // More than nine blocks and stages: numbers count by value.
            let stages = (1..=11).map(|channels| Stage {
                channels,
                stride: 1,
                blocks: if channels == 1 { 11 } else { 1 },
            });
            NetworkConfig {
                kind,
                width: if free { 1.0 } else { 1.0 / 16.0 },
                stem: free.then_some(stem),
                stages: stages.filter(|_| free).collect(),
                activations: Vec::new(),
                kernels: kernels.to_vec(),
                initial: Initial::He,
                logit_scale: None,
            }
        };
        let all = KernelRule {
            convolutions: "*".to_owned(),
            by: PolynomialKernel::RPkn,
        };
        let both = |kind| [of(kind, &[]), of(kind, std::slice::from_ref(&all))];
        kinds.into_iter().flat_map(both).collect()
    }

    #[test]
    fn sites_are_in_the_networks_order() {
        for config in networks() {
            let network = Network::new(&config, [3, 32, 32], 10).unwrap();
            let sites = network
                .nodes
                .iter()
                .filter(|node| matches!(node.op, Op::Activation | Op::Kernel { .. }));
            let order: Vec<String> = sites.map(|node| node.name.clone()).collect();
            let mut names = order.clone();
            names.sort_unstable();
            sort_by_depth(&mut names);
            assert_eq!(names, order, "{config:?}");
        }
    }

    #[test]
    fn the_escape_curve_shows_the_last_epoch_over_depth() {
        let run = history(&[
            r#"{"epoch": 1, "sites":
                {"stem.act": {"largest": 2}, "stage1.block1.act": {"largest": 3}}}"#,
            r#"{"epoch": 2, "sites":
                {"stem.act": {"largest": 4, "outside": 0.5},
                "stage1.block1.act": {"largest": null}}}"#,
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
