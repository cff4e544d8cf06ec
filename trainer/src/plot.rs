//! Plots as SVG and PNG: a chart is data ([`Chart`]), drawn the same way in both forms.
//!
//! The charts of runs are in [`curves`], those of results in [`tradeoff`].

pub mod curves;
mod draw;
pub mod tradeoff;

/// A chart with two axes.
#[derive(Clone, Debug, PartialEq)]
pub struct Chart {
    /// Line above it.
    pub title: String,
    /// The horizontal axis.
    pub x: Axis,
    /// The vertical axis.
    pub y: Axis,
    /// Lines and points, in the order they are drawn.
    pub series: Vec<Series>,
}

/// An axis.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Axis {
    /// Quantity that it shows, with the unit.
    pub label: String,
    /// True if it is logarithmic: values that are not above 0 are then left out.
    pub log: bool,
    /// Names of the places 0, 1, 2, ... to show instead of numbers.
    pub names: Vec<String>,
}

impl Axis {
    /// A linear axis.
    pub fn linear(label: &str) -> Self {
        Self {
            label: label.to_owned(),
            ..Self::default()
        }
    }

    /// A logarithmic axis.
    pub fn logarithmic(label: &str) -> Self {
        Self {
            log: true,
            ..Self::linear(label)
        }
    }
}

/// Points with a name.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Name in the legend.
    pub name: String,
    /// Points; those that cannot be drawn (not finite, or not above 0 on a logarithmic axis) break
    /// the line.
    pub points: Vec<(f64, f64)>,
    /// Form of the points.
    pub style: Style,
}

/// Form of points in a chart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// A line.
    Line,
    /// A broken line, in the colour of the series before it.
    Dashed,
    /// A line with dots.
    Dotted,
    /// Crosses: what others published.
    Published,
}
