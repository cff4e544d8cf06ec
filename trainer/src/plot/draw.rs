//! Drawing a chart, as SVG and as PNG.

use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, ensure};
use plotters::coord::Shift;
use plotters::coord::ranged1d::{AsRangedCoord, Ranged, ValueFormatter};
use plotters::prelude::*;
use plotters::style::FontStyle;

use super::{Axis, Chart, Style};
use crate::atomic;

/// Width and height in pixels.
const SIZE: (u32, u32) = (1200, 720);
const INK: RGBColor = RGBColor(40, 40, 40);
/// Colours that people who confuse colours tell apart, too (Okabe and Ito, 2008), without the
/// yellow, which is faint on white.
const COLOURS: [RGBColor; 7] = [
    RGBColor(0, 114, 178),
    RGBColor(213, 94, 0),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(230, 159, 0),
    RGBColor(0, 0, 0),
];
/// Series that a legend names; more would cover the chart.
const LEGEND: usize = 16;

impl Chart {
    /// The chart, if it has a point that can be drawn.
    pub fn drawable(self) -> Option<Self> {
        self.range(|p| p.0, &self.x).is_some().then_some(self)
    }

    /// Writes `name.svg` and `name.png` into a folder, which is created if it does not exist;
    /// returns their paths.
    ///
    /// # Errors
    /// A chart without a point that can be drawn; the file system's.
    pub fn write(&self, folder: &Path, name: &str) -> Result<[PathBuf; 2]> {
        plotters::style::register_font(
            "sans-serif",
            FontStyle::Normal,
            epaint_default_fonts::UBUNTU_LIGHT,
        )
        .map_err(|_| anyhow!("the font of the labels is damaged"))?;
        let (svg, png) = (
            folder.join(format!("{name}.svg")),
            folder.join(format!("{name}.png")),
        );
        let mut text = String::new();
        self.draw(SVGBackend::with_string(&mut text, SIZE).into_drawing_area())?;
        atomic::write(&svg, text.as_bytes())?;
        let mut pixels = vec![0; (SIZE.0 * SIZE.1 * 3) as usize];
        self.draw(BitMapBackend::with_buffer(&mut pixels, SIZE).into_drawing_area())?;
        let image = image::RgbImage::from_raw(SIZE.0, SIZE.1, pixels);
        let image = image.ok_or_else(|| anyhow!("the bitmap has another size"))?;
        let mut bytes = std::io::Cursor::new(Vec::new());
        image.write_to(&mut bytes, image::ImageFormat::Png)?;
        atomic::write(&png, bytes.get_ref())?;
        Ok([svg, png])
    }

    fn draw<B: DrawingBackend>(&self, area: DrawingArea<B, Shift>) -> Result<()> {
        let (x, y) = (self.range(|p| p.0, &self.x), self.range(|p| p.1, &self.y));
        let (Some(x), Some(y)) = (x, y) else {
            return Err(anyhow!("{}: there is nothing to draw", self.title));
        };
        ensure!(
            x.0.is_finite() && y.0.is_finite() && x.1.is_finite() && y.1.is_finite(),
            "{}: the values span more than an axis can show",
            self.title
        );
        // The error types of back ends borrow from them.
        let drawn = match (self.x.log, self.y.log) {
            (false, false) => self.draw_on(&area, x.0..x.1, y.0..y.1),
            (true, false) => self.draw_on(&area, (x.0..x.1).log_scale(), y.0..y.1),
            (false, true) => self.draw_on(&area, x.0..x.1, (y.0..y.1).log_scale()),
            (true, true) => self.draw_on(&area, (x.0..x.1).log_scale(), (y.0..y.1).log_scale()),
        };
        drawn.map_err(|error| anyhow!("cannot draw {}: {error}", self.title))
    }

    fn draw_on<B, X, Y, XR, YR>(
        &self,
        area: &DrawingArea<B, Shift>,
        x: X,
        y: Y,
    ) -> std::result::Result<(), DrawingAreaErrorKind<B::ErrorType>>
    where
        B: DrawingBackend,
        X: AsRangedCoord<CoordDescType = XR, Value = f64>,
        Y: AsRangedCoord<CoordDescType = YR, Value = f64>,
        XR: Ranged<ValueType = f64> + ValueFormatter<f64>,
        YR: Ranged<ValueType = f64> + ValueFormatter<f64>,
    {
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(area)
            .caption(&self.title, ("sans-serif", 28).into_font().color(&INK))
            .margin(20)
            .margin_right(48)
            .x_label_area_size(64)
            .y_label_area_size(96)
            .build_cartesian_2d(x, y)?;
        chart
            .configure_mesh()
            .bold_line_style(INK.mix(0.25))
            .light_line_style(INK.mix(0.08))
            .axis_style(INK)
            .x_labels(self.x.labels())
            .y_labels(self.y.labels())
            .x_label_formatter(&|value| self.x.text(*value))
            .y_label_formatter(&|value| self.y.text(*value))
            .label_style(("sans-serif", 20).into_font().color(&INK))
            .axis_desc_style(("sans-serif", 22).into_font().color(&INK))
            .x_desc(self.x.label.as_str())
            .y_desc(self.y.label.as_str())
            .draw()?;
        let mut colours = COLOURS.iter().cycle();
        let mut colour = COLOURS[0];
        for (index, series) in self.series.iter().enumerate() {
            if index == 0 || series.style != Style::Dashed {
                colour = *colours.next().expect("a cycle has no end");
            }
            let line = colour.stroke_width(3);
            let named = index < LEGEND;
            let drawable = |p: &(f64, f64)| self.x.shows(p.0) && self.y.shows(p.1);
            let points = || series.points.iter().copied().filter(drawable);
            match series.style {
                Style::Published => {
                    let crosses = points().map(|p| Cross::new(p, 7, line));
                    let anno = chart.draw_series(crosses)?;
                    if named {
                        anno.label(series.name.clone())
                            .legend(move |(x, y)| Cross::new((x + 17, y), 7, line));
                    }
                }
                Style::Line | Style::Dashed | Style::Dotted => {
                    let dashed = series.style == Style::Dashed;
                    // The first part of a broken line carries the name, if there is any part.
                    for (part, run) in series
                        .points
                        .split(|p| !drawable(p))
                        .filter(|r| !r.is_empty())
                        .enumerate()
                    {
                        let run = run.iter().copied();
                        let anno = if dashed {
                            chart.draw_series(DashedLineSeries::new(run, 8, 6, line))?
                        } else {
                            chart.draw_series(LineSeries::new(run, line))?
                        };
                        if named && part == 0 {
                            anno.label(series.name.clone()).legend(move |at| {
                                let end = if dashed { 13 } else { 34 };
                                EmptyElement::at(at)
                                    + PathElement::new([(0, 0), (end, 0)], line)
                                    + PathElement::new([(34 - end.min(13), 0), (34, 0)], line)
                            });
                        }
                    }
                    let single = series.points.iter().filter(|p| drawable(p)).count() == 1;
                    if series.style == Style::Dotted || single {
                        chart.draw_series(points().map(|p| Circle::new(p, 5, colour.filled())))?;
                    }
                }
            }
        }
        chart
            .configure_series_labels()
            .position(self.emptiest_corner())
            .legend_area_size(44)
            .margin(14)
            .background_style(WHITE.mix(0.9))
            .border_style(INK.mix(0.4))
            .label_font(("sans-serif", 18).into_font().color(&INK))
            .draw()?;
        area.present()
    }

    /// The corner in which a legend covers the fewest points.
    fn emptiest_corner(&self) -> SeriesLabelPosition {
        let place = |value: f64, range: Option<(f64, f64)>, log: bool| {
            let (low, high) = range.unwrap_or((0.0, 1.0));
            match log {
                true => (value / low).ln() / (high / low).ln(),
                false => (value - low) / (high - low),
            }
        };
        let (x, y) = (self.range(|p| p.0, &self.x), self.range(|p| p.1, &self.y));
        // A third of the width, and a line of text for each name.
        let (width, height) = (0.34, 0.05 + 0.04 * self.series.len().min(LEGEND) as f64);
        let covered = |right: bool, upper: bool| {
            let points = self.series.iter().flat_map(|series| &series.points);
            let drawable = points.filter(|p| self.x.shows(p.0) && self.y.shows(p.1));
            let covers = |p: &&(f64, f64)| {
                let (x, y) = (place(p.0, x, self.x.log), place(p.1, y, self.y.log));
                (if right { 1.0 - x } else { x }) < width
                    && (if upper { 1.0 - y } else { y }) < height
            };
            drawable.filter(covers).count()
        };
        [
            (true, true, SeriesLabelPosition::UpperRight),
            (false, true, SeriesLabelPosition::UpperLeft),
            (true, false, SeriesLabelPosition::LowerRight),
            (false, false, SeriesLabelPosition::LowerLeft),
        ]
        .into_iter()
        .min_by_key(|(right, upper, _)| covered(*right, *upper))
        .map_or(SeriesLabelPosition::UpperRight, |(.., corner)| corner)
    }

    /// Smallest and largest drawable value with some room; whole decades on a logarithmic axis.
    fn range(&self, of: fn(&(f64, f64)) -> f64, axis: &Axis) -> Option<(f64, f64)> {
        let drawable = |p: &&(f64, f64)| self.x.shows(p.0) && self.y.shows(p.1);
        let points = self.series.iter().flat_map(|series| &series.points);
        let (low, high) =
            points
                .filter(drawable)
                .map(of)
                .fold(None, |range: Option<(f64, f64)>, value| {
                    Some(range.map_or((value, value), |(l, h)| (l.min(value), h.max(value))))
                })?;
        if axis.log {
            let (low, high) = (low.log10().floor(), high.log10().ceil());
            let high = if high > low { high } else { low + 1.0 };
            return Some((10f64.powf(low), 10f64.powf(high)));
        }
        let room = match high - low {
            0.0 => 0.05 * low.abs().max(1.0),
            width => 0.05 * width,
        };
        Some((low - room, high + room))
    }
}

impl Axis {
    fn shows(&self, value: f64) -> bool {
        value.is_finite() && (!self.log || value > 0.0)
    }

    fn labels(&self) -> usize {
        match self.names.len() {
            0 => 10,
            // Twice as many places as names: plotters puts labels at round distances, and names are
            // at whole ones.
            names => (2 * names).min(40),
        }
    }

    fn text(&self, value: f64) -> String {
        if self.names.is_empty() {
            return number(value);
        }
        let place = value.round();
        if (value - place).abs() > 1e-6 || place < 0.0 {
            return String::new();
        }
        self.names.get(place as usize).cloned().unwrap_or_default()
    }
}

/// A label in few characters: 25 K, 0.05, 1e12.
fn number(value: f64) -> String {
    let short = |value: f64| {
        let text = format!("{value:.3}");
        let text = text.trim_end_matches('0').trim_end_matches('.');
        if text.is_empty() || text == "-" || text == "-0" {
            "0".to_owned()
        } else {
            text.to_owned()
        }
    };
    match value.abs() {
        0.0 => "0".to_owned(),
        size if !(1e-3..1e9).contains(&size) => format!("{value:.0e}"),
        1e6.. => format!("{} M", short(value / 1e6)),
        1e3.. => format!("{} K", short(value / 1e3)),
        _ => short(value),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plot::Series;

    fn chart(log: bool, points: Vec<(f64, f64)>) -> Chart {
        let axis = |label: &str| Axis {
            log,
            ..Axis::linear(label)
        };
        Chart {
            title: "a title".to_owned(),
            x: axis("epoch"),
            y: axis("loss"),
            series: vec![Series {
                name: "a run".to_owned(),
                points,
                style: Style::Dotted,
            }],
        }
    }

    #[test]
    fn both_files_show_the_chart() {
        let folder = tempfile::tempdir().unwrap();
        let points = vec![(1.0, 2.0), (2.0, 1.0), (3.0, f64::NAN), (4.0, 0.5)];
        let [svg, png] = chart(false, points).write(folder.path(), "loss").unwrap();
        let svg = std::fs::read_to_string(svg).unwrap();
        for text in ["a title", "epoch", "loss", "a run"] {
            assert!(svg.contains(text), "{text} is not in the drawing");
        }
        // Three dots, and a line only between the first two: the third value is no number.
        assert_eq!(svg.matches("<circle").count(), 3);
        let png = image::open(png).unwrap().to_rgb8();
        assert_eq!(png.dimensions(), SIZE);
        let RGBColor(r, g, b) = COLOURS[0];
        let blue = png.pixels().filter(|pixel| pixel.0 == [r, g, b]).count();
        assert!(blue > 100, "{blue} pixels of the series' colour");
    }

    #[test]
    fn logarithmic_axes_leave_out_what_they_cannot_show() {
        let folder = tempfile::tempdir().unwrap();
        let points = vec![(0.0, 5.0), (10.0, 1e7), (1e3, -1.0), (1e4, 1e30)];
        let [svg, _] = chart(true, points).write(folder.path(), "escape").unwrap();
        let svg = std::fs::read_to_string(svg).unwrap();
        assert_eq!(svg.matches("<circle").count(), 2);
    }

    #[test]
    fn the_legend_goes_where_no_points_are() {
        let corner = |points: Vec<(f64, f64)>| chart(false, points).emptiest_corner();
        let falling = vec![(0.0, 1.0), (0.5, 0.5), (1.0, 0.0)];
        assert!(matches!(corner(falling), SeriesLabelPosition::UpperRight));
        let rising = vec![(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)];
        assert!(matches!(corner(rising), SeriesLabelPosition::UpperLeft));
    }

    #[test]
    fn a_chart_of_nothing_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        for points in [vec![], vec![(1.0, f64::INFINITY)]] {
            let error = chart(false, points).write(folder.path(), "a").unwrap_err();
            assert!(error.to_string().contains("nothing to draw"), "{error}");
        }
    }

    #[test]
    fn numbers_are_short() {
        for (value, text) in [
            (0.0, "0"),
            (12_900.0, "12.9 K"),
            (557_056.0, "557.056 K"),
            (0.05, "0.05"),
            (-2.5, "-2.5"),
            (1e12, "1e12"),
            (3e6, "3 M"),
        ] {
            assert_eq!(number(value), text);
        }
    }
}
