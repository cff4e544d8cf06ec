//! Draws the dashboard of packaging/grafana-pianissimo.json as a picture, for the documents: every
//! query of every panel is asked of a running Prometheus, in the place that the panel has there.
//!
//! It is no screenshot of Grafana, whose look and interaction it has not. An error of any query is
//! an error of this program, so it also checks the dashboard against real data:
//!
//!     cargo run -p pi-runtime --example dashboard -- 127.0.0.1:9090 START END picture.png

use anyhow::{Context, Result, anyhow, ensure};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::FontStyle;
use serde_json::Value;
use std::io::{Read, Write};
use std::net::TcpStream;

/// Pixels of one of the 24 columns, and of a unit of height.
const UNIT: (u32, u32) = (68, 32);
/// Points of a line.
const POINTS: u64 = 240;
/// What `$__rate_interval` stands for: several scrapes.
const RATE_INTERVAL: &str = "30s";
const PAPER: RGBColor = RGBColor(247, 248, 250);
const INK: RGBColor = RGBColor(45, 50, 58);
const COLOURS: [RGBColor; 8] = [
    RGBColor(31, 120, 180),
    RGBColor(226, 106, 26),
    RGBColor(51, 145, 72),
    RGBColor(196, 42, 61),
    RGBColor(128, 84, 168),
    RGBColor(122, 92, 60),
    RGBColor(20, 150, 155),
    RGBColor(130, 130, 130),
];

/// The time that is drawn, in seconds since 1970.
#[derive(Clone, Copy)]
struct Span {
    start: u64,
    end: u64,
}

/// A line of a panel.
struct Line {
    name: String,
    points: Vec<(f64, f64)>,
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [prometheus, start, end, file] = &arguments[..] else {
        return Err(anyhow!(
            "give the address of a Prometheus, the time to show from and to, in seconds since \
             1970, and a file"
        ));
    };
    let span = Span {
        start: start.parse()?,
        end: end.parse()?,
    };
    ensure!(span.start < span.end, "the time ends before it begins");
    let dashboard = include_str!("../../packaging/grafana-pianissimo.json");
    let dashboard: Value = serde_json::from_str(dashboard)?;
    let panels = dashboard["panels"].as_array().context("no panels")?;
    let mut asked = Vec::new();
    for panel in panels {
        asked.push((panel, lines(prometheus, panel, span)?));
    }
    let mut points = asked.iter().flat_map(|(_, lines)| lines);
    let some = points.any(|line| !line.points.is_empty());
    ensure!(some, "Prometheus has nothing of a server in this time");
    let bottom = panels
        .iter()
        .map(|panel| place(panel, "y") + place(panel, "h"));
    let size = (24 * UNIT.0, bottom.max().unwrap_or(0) * UNIT.1);
    let font = epaint_default_fonts::UBUNTU_LIGHT;
    plotters::style::register_font("sans-serif", FontStyle::Normal, font)
        .map_err(|_| anyhow!("the font of the labels is damaged"))?;
    let mut pixels = vec![0; (size.0 * size.1 * 3) as usize];
    {
        let area = BitMapBackend::with_buffer(&mut pixels, size).into_drawing_area();
        area.fill(&WHITE)?;
        for (panel, lines) in &asked {
            let corner = (place(panel, "x") * UNIT.0, place(panel, "y") * UNIT.1);
            let extent = (place(panel, "w") * UNIT.0, place(panel, "h") * UNIT.1);
            let part = area.clone().shrink(corner, extent);
            draw(&part, panel, lines, span).map_err(|error| anyhow!("cannot draw: {error}"))?;
        }
    }
    let image = image::RgbImage::from_raw(size.0, size.1, pixels);
    image.context("the bitmap has another size")?.save(file)?;
    Ok(())
}

fn place(panel: &Value, side: &str) -> u32 {
    let place = panel["gridPos"][side].as_u64().unwrap_or(0);
    u32::try_from(place).unwrap_or(0)
}

/// All lines of a panel.
fn lines(prometheus: &str, panel: &Value, span: Span) -> Result<Vec<Line>> {
    let mut lines = Vec::new();
    for target in panel["targets"].as_array().into_iter().flatten() {
        let query = target["expr"]
            .as_str()
            .context("a target without a query")?;
        let query = query
            .replace("$__rate_interval", RATE_INTERVAL)
            .replace("$instance", ".*")
            .replace("$model", ".*");
        let answer = ask(prometheus, &query, span).with_context(|| query.clone())?;
        for series in answer["data"]["result"].as_array().into_iter().flatten() {
            let legend = target["legendFormat"].as_str().unwrap_or_default();
            lines.push(line(series, legend)?);
        }
    }
    Ok(lines)
}

fn line(series: &Value, legend: &str) -> Result<Line> {
    let mut name = legend.to_owned();
    for (label, value) in series["metric"].as_object().into_iter().flatten() {
        name = name.replace(
            &format!("{{{{{label}}}}}"),
            value.as_str().unwrap_or_default(),
        );
    }
    let mut points = Vec::new();
    for point in series["values"].as_array().into_iter().flatten() {
        let value: f64 = point[1]
            .as_str()
            .context("a point without a value")?
            .parse()?;
        if value.is_finite() {
            points.push((point[0].as_f64().context("a point without a time")?, value));
        }
    }
    Ok(Line { name, points })
}

/// Asks a query over a time.
fn ask(prometheus: &str, query: &str, span: Span) -> Result<Value> {
    let mut encoded = String::new();
    for byte in query.bytes() {
        encoded.push_str(&format!("%{byte:02X}"));
    }
    let step = ((span.end - span.start) / POINTS).max(1);
    let Span { start, end } = span;
    let mut stream = TcpStream::connect(prometheus)?;
    let path = format!("/api/v1/query_range?start={start}&end={end}&step={step}&query={encoded}");
    // Of version 1.0, so that the answer comes in one piece.
    write!(stream, "GET {path} HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (_, body) = answer.split_once("\r\n\r\n").context("no answer")?;
    let answer: Value = serde_json::from_str(body)?;
    ensure!(answer["status"] == "success", "{}", answer["error"]);
    Ok(answer)
}

type Drawn<'a, T> =
    Result<T, DrawingAreaErrorKind<<BitMapBackend<'a> as DrawingBackend>::ErrorType>>;

fn draw<'a>(
    area: &DrawingArea<BitMapBackend<'a>, Shift>,
    panel: &Value,
    lines: &[Line],
    span: Span,
) -> Drawn<'a, ()> {
    let title = panel["title"].as_str().unwrap_or_default();
    if panel["type"] == "row" {
        let style = ("sans-serif", 21).into_font().color(&INK);
        return area.draw_text(title, &style, (8, 6));
    }
    let area = area.margin(4, 4, 4, 4);
    area.fill(&PAPER)?;
    let highest = lines.iter().flat_map(|line| &line.points);
    let highest = highest.fold(0.0, |highest: f64, (_, value)| highest.max(*value));
    let highest = if highest > 0.0 { 1.1 * highest } else { 1.0 };
    let unit = panel["fieldConfig"]["defaults"]["unit"]
        .as_str()
        .unwrap_or_default();
    let (_, height) = area.dim_in_pixel();
    let (upper, lower) = area.split_vertically(height as i32 - 24);
    let mut chart = ChartBuilder::on(&upper)
        .caption(title, ("sans-serif", 17).into_font().color(&INK))
        .margin(6)
        .x_label_area_size(22)
        .y_label_area_size(58)
        .build_cartesian_2d(span.start as f64..span.end as f64, 0.0..highest)?;
    chart
        .configure_mesh()
        .light_line_style(TRANSPARENT)
        .bold_line_style(INK.mix(0.12))
        .axis_style(INK.mix(0.4))
        .x_labels(5)
        .y_labels(5)
        .x_label_formatter(&|time| clock(*time))
        .y_label_formatter(&|value| with_unit(*value, unit))
        .label_style(("sans-serif", 13).into_font().color(&INK))
        .draw()?;
    for (index, line) in lines.iter().enumerate() {
        let colour = COLOURS[index % COLOURS.len()].stroke_width(2);
        chart.draw_series(LineSeries::new(line.points.iter().copied(), colour))?;
    }
    legend(&lower, lines)
}

/// Names of the lines, one behind another for as far as there is room.
fn legend<'a>(area: &DrawingArea<BitMapBackend<'a>, Shift>, lines: &[Line]) -> Drawn<'a, ()> {
    let (width, _) = area.dim_in_pixel();
    let style = ("sans-serif", 13).into_font().color(&INK);
    let mut x = 12;
    for (index, line) in lines.iter().enumerate() {
        let length = area.estimate_text_size(&line.name, &style)?.0 as i32;
        if x + length + 20 > width as i32 {
            return area.draw_text("...", &style, (x, 4));
        }
        let colour = COLOURS[index % COLOURS.len()].filled();
        area.draw(&Rectangle::new([(x, 8), (x + 10, 14)], colour))?;
        area.draw_text(&line.name, &style, (x + 14, 4))?;
        x += length + 30;
    }
    Ok(())
}

/// Hours and minutes of a time since 1970, in UTC.
fn clock(time: f64) -> String {
    let minutes = time as u64 / 60;
    format!("{:02}:{:02}", minutes / 60 % 24, minutes % 60)
}

fn with_unit(value: f64, unit: &str) -> String {
    match unit {
        "s" if value < 1.0 => format!("{:.0} ms", 1000.0 * value),
        "s" => format!("{value:.1} s"),
        "h" => format!("{value:.2} h"),
        "bytes" => format!("{:.0} MB", value / 1e6),
        "Bps" => format!("{:.2} MB/s", value / 1e6),
        _ if value < 10.0 => format!("{value:.1}"),
        _ => format!("{value:.0}"),
    }
}
