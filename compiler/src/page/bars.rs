//! Horizontal bars, one for each layer: a table whose middle column is drawn.

use super::markup::Element;
use super::scale::{Scale, length};

/// A chart of bars.
pub(super) struct Bars {
    /// What it shows.
    pub(super) title: &'static str,
    /// A sentence on how to read it.
    pub(super) note: String,
    /// Name and colour of each series, in the order of a bar's parts.
    pub(super) series: Vec<(&'static str, Colour)>,
    /// The bars, from the top.
    pub(super) rows: Vec<Bar>,
    /// Writes the numbers of the axis.
    pub(super) number: fn(f64) -> String,
}

/// A bar of parts that follow each other.
pub(super) struct Bar {
    /// Name, as that of a layer.
    pub(super) name: String,
    /// Length of each series' part.
    pub(super) parts: Vec<f64>,
    /// What is written beside the bar.
    pub(super) value: String,
}

/// Colours of the style sheet; people who confuse colours tell them apart, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Colour {
    Blue,
    Orange,
    Green,
    Purple,
    Grey,
}

impl Colour {
    fn class(self) -> &'static str {
        match self {
            Colour::Blue => "blue",
            Colour::Orange => "orange",
            Colour::Green => "green",
            Colour::Purple => "purple",
            Colour::Grey => "grey",
        }
    }
}

/// Characters of a name from which on names get a wider column.
const LONG: usize = 20;
/// Steps of the axis, about.
const MARKS: usize = 3;

impl Bars {
    /// The chart.
    pub(super) fn figure(&self) -> Element {
        let longest = self.rows.iter().map(Bar::length).fold(0.0, f64::max);
        let scale = Scale::from_zero(longest, MARKS);
        let rows = self.rows.iter().map(|row| self.row(row, &scale));
        let long = self.rows.iter().any(|row| row.name.chars().count() > LONG);
        let class = if long { "bars long" } else { "bars" };
        let table = Element::classed("table", class).child(
            Element::new("tbody")
                .children(rows)
                .child(self.axis(&scale)),
        );
        let figure = Element::new("figure").child(
            Element::new("figcaption")
                .child(Element::new("h3").text(self.title))
                .child(Element::new("p").text(&self.note)),
        );
        match self.series.len() {
            1 => figure,
            _ => figure.child(self.legend()),
        }
        .child(table)
    }

    fn legend(&self) -> Element {
        let entry = |(name, colour): &(&'static str, Colour)| {
            Element::new("li")
                .child(Element::classed("i", colour.class()))
                .text(name)
        };
        Element::classed("ul", "legend").children(self.series.iter().map(entry))
    }

    fn row(&self, bar: &Bar, scale: &Scale) -> Element {
        let name = Element::new("span").text(&bar.name);
        let mut drawn = plot().children(grid(scale, "100%"));
        let mut from = 0.0;
        for (&part, (series, colour)) in bar.parts.iter().zip(&self.series) {
            if part <= 0.0 {
                continue;
            }
            let title = format!("{}, {series}: {}", bar.name, (self.number)(part));
            let rect = Element::classed("rect", colour.class())
                .attribute("x", length(scale.place(from)))
                .attribute("width", length(scale.place(part)))
                .attribute("y", "20%")
                .attribute("height", "60%");
            drawn = drawn.child(rect.child(Element::new("title").text(title)));
            from += part;
        }
        Element::new("tr")
            .child(
                Element::classed("th", "name")
                    .attribute("scope", "row")
                    .child(name),
            )
            .child(Element::classed("td", "plot").child(drawn))
            .child(Element::classed("td", "value").text(&bar.value))
    }

    fn axis(&self, scale: &Scale) -> Element {
        let last = scale.ticks.len() - 1;
        let labels = scale.ticks.iter().enumerate().map(|(index, &tick)| {
            // On a narrow screen only both ends and the middle have room.
            let label = match [0, last].contains(&index) || 2 * index == last {
                true => Element::new("text"),
                false => Element::classed("text", "minor"),
            };
            label
                .attribute("x", length(scale.place(tick)))
                .attribute("y", "16")
                .attribute("text-anchor", "middle")
                .text((self.number)(tick))
        });
        let drawn = plot().children(grid(scale, "4")).children(labels);
        Element::classed("tr", "axis")
            .child(Element::classed("td", "name"))
            .child(Element::classed("td", "plot").child(drawn))
            .child(Element::classed("td", "value"))
    }
}

impl Bar {
    fn length(&self) -> f64 {
        self.parts.iter().sum()
    }
}

/// What is drawn stands in words beside it.
fn plot() -> Element {
    Element::new("svg").attribute("aria-hidden", "true")
}

fn grid(scale: &Scale, height: &str) -> Vec<Element> {
    let line = |&tick: &f64| {
        let x = length(scale.place(tick));
        Element::new("line")
            .attribute("x1", &x)
            .attribute("x2", &x)
            .attribute("y2", height)
    };
    scale.ticks.iter().map(line).collect()
}
