//! Latency against budget, drawn.

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::FontStyle;
use std::path::Path;

/// One budget's times in milliseconds, measured and predicted.
#[derive(Clone, Debug)]
pub(crate) struct Point {
    /// Name of the budget under the axis.
    pub(crate) label: String,
    /// Offline: measured, predicted.
    pub(crate) offline_ms: (f64, f64),
    /// Online: measured, predicted.
    pub(crate) online_ms: (f64, f64),
}

const SIZE: (u32, u32) = (1200, 720);
const OFFLINE: RGBColor = RGBColor(31, 92, 153);
const ONLINE: RGBColor = RGBColor(200, 80, 20);
const INK: RGBColor = RGBColor(40, 40, 40);

/// Writes `name.svg` and `name.png` into a directory.
///
/// # Errors
/// If a file cannot be written.
pub(crate) fn draw(directory: &Path, name: &str, title: &str, points: &[Point]) -> Result<()> {
    plotters::style::register_font(
        "sans-serif",
        FontStyle::Normal,
        epaint_default_fonts::UBUNTU_LIGHT,
    )
    .map_err(|_| anyhow!("the font of the labels is damaged"))?;
    let svg = directory.join(format!("{name}.svg"));
    plot(
        SVGBackend::new(&svg, SIZE).into_drawing_area(),
        title,
        points,
    )?;
    let mut pixels = vec![0; (SIZE.0 * SIZE.1 * 3) as usize];
    let bitmap = BitMapBackend::with_buffer(&mut pixels, SIZE);
    plot(bitmap.into_drawing_area(), title, points)?;
    let image = image::RgbImage::from_raw(SIZE.0, SIZE.1, pixels);
    let image = image.ok_or_else(|| anyhow!("the bitmap has another size"))?;
    Ok(image.save(directory.join(format!("{name}.png")))?)
}

fn plot<B: DrawingBackend>(
    area: DrawingArea<B, Shift>,
    title: &str,
    points: &[Point],
) -> Result<()> {
    // The error types of back ends borrow from them.
    try_plot(&area, title, points).map_err(|error| anyhow!("cannot draw: {error}"))
}

fn try_plot<B: DrawingBackend>(
    area: &DrawingArea<B, Shift>,
    title: &str,
    points: &[Point],
) -> std::result::Result<(), DrawingAreaErrorKind<B::ErrorType>> {
    area.fill(&WHITE)?;
    let all = points
        .iter()
        .flat_map(|p| [p.offline_ms.0, p.offline_ms.1, p.online_ms.0, p.online_ms.1]);
    let (low, high) = all.fold((f64::INFINITY, 0.0f64), |(low, high), v| {
        (low.min(v), high.max(v))
    });
    let decade = |value: f64, up: bool| {
        let exponent = value.log10();
        10f64.powf(if up {
            exponent.ceil()
        } else {
            exponent.floor()
        })
    };
    let last = points.len() as f64 - 1.0;
    let mut chart = ChartBuilder::on(area)
        .caption(title, ("sans-serif", 28).into_font().color(&INK))
        .margin(20)
        .x_label_area_size(64)
        .y_label_area_size(90)
        .build_cartesian_2d(
            -0.4..last + 0.4,
            (decade(low, false)..decade(high, true)).log_scale(),
        )?;
    let label = |x: &f64| {
        let index = x.round();
        match (x - index).abs() < 1e-6 && index >= 0.0 {
            true => points
                .get(index as usize)
                .map_or_else(String::new, |p| p.label.clone()),
            false => String::new(),
        }
    };
    chart
        .configure_mesh()
        .disable_x_mesh()
        .bold_line_style(INK.mix(0.25))
        .light_line_style(INK.mix(0.08))
        .axis_style(INK)
        .x_labels(points.len() * 2)
        .x_label_formatter(&label)
        .y_label_formatter(&|ms| match *ms {
            ms if ms >= 1000.0 => format!("{} s", ms / 1000.0),
            ms => format!("{ms} ms"),
        })
        .label_style(("sans-serif", 20).into_font().color(&INK))
        .axis_desc_style(("sans-serif", 22).into_font().color(&INK))
        .x_desc("ReLUs kept (evenly spaced, not to scale)")
        .y_desc("time on the clock, log scale")
        .draw()?;
    let series = [
        (
            "offline, a bundle",
            OFFLINE,
            points.iter().map(|p| p.offline_ms).collect::<Vec<_>>(),
        ),
        (
            "online, an inference",
            ONLINE,
            points.iter().map(|p| p.online_ms).collect(),
        ),
    ];
    for (name, colour, values) in series {
        let at = |pick: fn(&(f64, f64)) -> f64| {
            let values: Vec<(f64, f64)> = values
                .iter()
                .enumerate()
                .map(|(i, v)| (i as f64, pick(v)))
                .collect();
            values
        };
        let (measured, predicted) = (at(|v| v.0), at(|v| v.1));
        let thick = colour.stroke_width(3);
        chart
            .draw_series(LineSeries::new(measured.clone(), thick))?
            .label(format!("{name}, measured"))
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 34, y)], thick));
        chart.draw_series(
            measured
                .iter()
                .map(|&at| Circle::new(at, 5, colour.filled())),
        )?;
        let thin = colour.stroke_width(2);
        chart
            .draw_series(DashedLineSeries::new(predicted.clone(), 8, 6, thin))?
            .label(format!("{name}, predicted"))
            .legend(move |at| {
                EmptyElement::at(at)
                    + PathElement::new([(0, 0), (13, 0)], thin)
                    + PathElement::new([(21, 0), (34, 0)], thin)
            });
        chart.draw_series(predicted.iter().map(|&at| Circle::new(at, 5, thin)))?;
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .legend_area_size(44)
        .margin(14)
        .background_style(WHITE.mix(0.9))
        .border_style(INK.mix(0.4))
        .label_font(("sans-serif", 20).into_font().color(&INK))
        .draw()?;
    area.present()
}
