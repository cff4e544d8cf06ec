//! Numbered points on two axes, one for each model; lines join those of one network.

use super::markup::Element;
use super::scale::{Scale, length};

/// A chart of points.
pub(super) struct Points {
    /// What it shows.
    pub(super) title: &'static str,
    /// A sentence on how to read it.
    pub(super) note: String,
    /// The horizontal axis.
    pub(super) x: Axis,
    /// The vertical axis.
    pub(super) y: Axis,
    /// The points.
    pub(super) points: Vec<Point>,
}

/// One axis.
pub(super) struct Axis {
    /// Quantity and unit.
    pub(super) label: &'static str,
    /// Whether it may be logarithmic.
    pub(super) log: bool,
    /// The largest number that it can have.
    pub(super) most: f64,
    /// Writes its numbers.
    pub(super) number: fn(f64) -> String,
}

/// One model.
pub(super) struct Point {
    /// Number by which it is known on the page.
    pub(super) number: usize,
    /// Its name.
    pub(super) name: String,
    /// The network: lines join the points of one.
    pub(super) network: String,
    /// Where it is.
    pub(super) at: (f64, f64),
}

/// Steps of an axis, about.
const MARKS: usize = 4;
/// Points nearer than this share of both axes would have numbers that touch.
const NEAR: f64 = 0.07;

impl Points {
    /// The chart.
    pub(super) fn figure(&self) -> Element {
        let all = self.points.iter();
        let x = self.x.scale(all.clone().map(|p| p.at.0));
        let y = self.y.scale(all.map(|p| p.at.1));
        let drawn = Element::new("svg")
            .attribute("role", "img")
            .attribute("aria-label", self.in_words())
            .children(self.columns(&x))
            .children(self.rows(&y))
            .children(self.lines(&x, &y))
            .children(self.dots(&x, &y));
        Element::new("figure")
            .child(
                Element::new("figcaption")
                    .child(Element::new("h3").text(self.title))
                    .child(Element::new("p").text(&self.note)),
            )
            .child(Element::classed("p", "axis-y").text(self.y.label))
            .child(Element::classed("div", "points").child(drawn))
            .child(Element::classed("p", "axis-x").text(self.x.label))
    }

    fn in_words(&self) -> String {
        let each: Vec<String> = self.points.iter().map(|p| self.words(p)).collect();
        format!("{}. {}", self.title, each.join("; "))
    }

    fn words(&self, point: &Point) -> String {
        let (x, y) = ((self.x.number)(point.at.0), (self.y.number)(point.at.1));
        format!(
            "{}: {x} ({}), {y} ({})",
            point.name, self.x.label, self.y.label
        )
    }

    fn columns(&self, scale: &Scale) -> Vec<Element> {
        let mark = |&tick: &f64| {
            let x = length(scale.place(tick));
            let label = Element::new("text")
                .attribute("x", &x)
                .attribute("y", "100%")
                .attribute("dy", "1.5em")
                .attribute("text-anchor", "middle")
                .text((self.x.number)(tick));
            [line((&x, "0"), (&x, "100%"), ""), label]
        };
        scale.ticks.iter().flat_map(mark).collect()
    }

    fn rows(&self, scale: &Scale) -> Vec<Element> {
        let mark = |&tick: &f64| {
            let y = length(1.0 - scale.place(tick));
            let label = Element::new("text")
                .attribute("y", &y)
                .attribute("dx", "-8")
                .attribute("dy", "0.32em")
                .attribute("text-anchor", "end")
                .text((self.y.number)(tick));
            [line(("0", &y), ("100%", &y), ""), label]
        };
        scale.ticks.iter().flat_map(mark).collect()
    }

    /// Joins the points of a network from left to right.
    fn lines(&self, x: &Scale, y: &Scale) -> Vec<Element> {
        let mut sorted: Vec<&Point> = self.points.iter().collect();
        sorted.sort_by(|a, b| a.network.cmp(&b.network).then(a.at.0.total_cmp(&b.at.0)));
        let pairs = sorted.windows(2);
        let joined = pairs.filter(|pair| pair[0].network == pair[1].network);
        let place = |p: &Point| (length(x.place(p.at.0)), length(1.0 - y.place(p.at.1)));
        joined
            .map(|pair| {
                let (from, to) = (place(pair[0]), place(pair[1]));
                line((&from.0, &from.1), (&to.0, &to.1), "joint")
            })
            .collect()
    }

    /// The points from left to right, each number above its own or below, where it does not touch
    /// the one before.
    fn dots(&self, x: &Scale, y: &Scale) -> Vec<Element> {
        let mut sorted: Vec<&Point> = self.points.iter().collect();
        sorted.sort_by(|a, b| a.at.0.total_cmp(&b.at.0));
        let (mut before, mut above) = ((f64::NEG_INFINITY, 0.0), true);
        let mut dots = Vec::with_capacity(sorted.len());
        for point in sorted {
            let at = (x.place(point.at.0), y.place(point.at.1));
            let close = (at.0 - before.0).abs() < NEAR && (at.1 - before.1).abs() < NEAR;
            above = !(close && above);
            before = at;
            dots.push(self.dot(point, at, above));
        }
        dots
    }

    fn dot(&self, point: &Point, at: (f64, f64), above: bool) -> Element {
        let (x, y) = (length(at.0), length(1.0 - at.1));
        let circle = Element::new("circle")
            .attribute("cx", &x)
            .attribute("cy", &y)
            .attribute("r", "5");
        let number = Element::classed("text", "number")
            .attribute("x", &x)
            .attribute("y", &y)
            .attribute("dy", if above { "-9" } else { "18" })
            .attribute("text-anchor", "middle")
            .text(point.number);
        Element::new("g")
            .child(Element::new("title").text(self.words(point)))
            .child(circle)
            .child(number)
    }
}

impl Axis {
    fn scale(&self, values: impl Iterator<Item = f64> + Clone) -> Scale {
        Scale::around(values, self.log, self.most, MARKS)
    }
}

fn line(from: (&str, &str), to: (&str, &str), class: &str) -> Element {
    let line = match class {
        "" => Element::new("line"),
        class => Element::classed("line", class),
    };
    line.attribute("x1", from.0)
        .attribute("y1", from.1)
        .attribute("x2", to.0)
        .attribute("y2", to.1)
}
