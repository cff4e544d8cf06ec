//! Axes: round numbers, and where on the axis they are.

/// An axis with marks at round numbers.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Scale {
    low: f64,
    high: f64,
    log: bool,
    /// The numbers marked.
    pub(super) ticks: Vec<f64>,
}

/// Ratio of the largest to the smallest number from which on an axis is logarithmic, where it may
/// be.
const LOG_FROM: f64 = 30.0;

impl Scale {
    /// From 0 to a round number that is not below `max`, with about `marks` steps.
    pub(super) fn from_zero(max: f64, marks: usize) -> Self {
        let max = if max > 0.0 { max } else { 1.0 };
        Scale::linear(0.0, max, marks)
    }

    /// Round numbers around all of `values`, none above `most`; logarithmic if `log` allows it and
    /// they span decades.
    pub(super) fn around(
        values: impl Iterator<Item = f64> + Clone,
        log: bool,
        most: f64,
        marks: usize,
    ) -> Self {
        let low = values.clone().fold(f64::INFINITY, f64::min);
        let high = values.fold(f64::NEG_INFINITY, f64::max);
        if !(low.is_finite() && high.is_finite()) {
            return Scale::from_zero(1.0, marks);
        }
        if log && low > 0.0 && high / low >= LOG_FROM {
            return Scale::logarithmic(low, high);
        }
        let room = match high - low {
            0.0 => 0.1 * high.abs().max(1.0),
            width => 0.1 * width,
        };
        let least = if low >= 0.0 {
            (low - room).max(0.0)
        } else {
            low - room
        };
        Scale::linear(least, (high + room).min(most), marks)
    }

    fn linear(low: f64, high: f64, marks: usize) -> Self {
        let step = round_step((high - low) / marks as f64);
        let (first, last) = ((low / step).floor(), (high / step - 1e-9).ceil());
        let last = last.max(first + 1.0);
        let count = (last - first) as usize;
        Scale {
            low: first * step,
            high: last * step,
            log: false,
            ticks: (0..=count).map(|i| (first + i as f64) * step).collect(),
        }
    }

    fn logarithmic(low: f64, high: f64) -> Self {
        let (first, last) = (low.log10().floor() as i32, high.log10().ceil() as i32);
        Scale {
            low: 10f64.powi(first),
            high: 10f64.powi(last),
            log: true,
            ticks: (first..=last).map(|decade| 10f64.powi(decade)).collect(),
        }
    }

    /// Place of a value, from 0 at the low end to 1 at the high end.
    pub(super) fn place(&self, value: f64) -> f64 {
        match self.log {
            true => (value / self.low).ln() / (self.high / self.low).ln(),
            false => (value - self.low) / (self.high - self.low),
        }
    }
}

/// 1, 2, 2.5 or 5 times a power of ten, not below `step`.
fn round_step(step: f64) -> f64 {
    let decade = 10f64.powf(step.log10().floor());
    let factors = [1.0, 2.0, 2.5, 5.0, 10.0];
    let fits = factors.iter().find(|&&f| f * decade >= step * (1.0 - 1e-9));
    fits.unwrap_or(&10.0) * decade
}

/// A share as a length in SVG.
pub(super) fn length(share: f64) -> String {
    format!("{:.3}%", 100.0 * share)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_round_and_enclose_the_values() {
        let scale = Scale::from_zero(1.31e6, 4);
        assert_eq!(scale.ticks, [0.0, 5e5, 1e6, 1.5e6]);
        assert_eq!(scale.place(7.5e5), 0.5);
        assert_eq!(
            Scale::from_zero(40.0, 4).ticks,
            [0.0, 10.0, 20.0, 30.0, 40.0]
        );
        let scale = Scale::around([86.1, 88.3].into_iter(), false, 100.0, 4);
        assert!(scale.ticks[0] <= 86.1 && *scale.ticks.last().unwrap() >= 88.3);
        assert!(scale.ticks.len() <= 6, "{scale:?}");
        let scale = Scale::around([6.5, 95.5].into_iter(), false, 100.0, 4);
        assert_eq!(scale.ticks, [0.0, 25.0, 50.0, 75.0, 100.0]);
        let decades = Scale::around([90.0, 12_900.0].into_iter(), true, f64::INFINITY, 4);
        assert_eq!(decades.ticks, [10.0, 100.0, 1e3, 1e4, 1e5]);
        assert!((decades.place(1e3) - 0.5).abs() < 1e-12);
    }

    #[test]
    fn axes_of_nothing_of_zero_and_of_one_value_are_axes() {
        for values in [vec![], vec![0.0], vec![7.0], vec![0.0, 5e5]] {
            for log in [false, true] {
                let scale = Scale::around(values.iter().copied(), log, f64::INFINITY, 4);
                assert!(scale.ticks.len() > 1, "{scale:?}");
                for &value in &values {
                    assert!((0.0..=1.0).contains(&scale.place(value)), "{scale:?}");
                }
            }
        }
        assert_eq!(Scale::from_zero(0.0, 4).place(0.0), 0.0);
    }
}
