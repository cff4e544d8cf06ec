//! Elements of HTML and SVG, whose text and attributes are escaped when they are put in.

use std::fmt::{self, Display, Write};

/// One element with what is inside it.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Element {
    name: &'static str,
    attributes: String,
    body: String,
}

/// Elements that HTML knows without an end.
const VOID: [&str; 1] = ["meta"];

impl Element {
    /// An empty element.
    pub(super) fn new(name: &'static str) -> Self {
        Element {
            name,
            attributes: String::new(),
            body: String::new(),
        }
    }

    /// An element of this class.
    pub(super) fn classed(name: &'static str, class: &str) -> Self {
        Element::new(name).attribute("class", class)
    }

    /// A style sheet of our own, which is not escaped.
    pub(super) fn style(sheet: &'static str) -> Self {
        Element {
            name: "style",
            attributes: String::new(),
            body: sheet.into(),
        }
    }

    /// The element with one more attribute.
    #[must_use]
    pub(super) fn attribute(mut self, name: &'static str, value: impl Display) -> Self {
        let value = escaped(&value.to_string());
        write!(self.attributes, " {name}=\"{value}\"").expect("a string takes everything");
        self
    }

    /// The element with text behind what it holds.
    #[must_use]
    pub(super) fn text(mut self, text: impl Display) -> Self {
        self.body.push_str(&escaped(&text.to_string()));
        self
    }

    /// The element with another behind what it holds.
    #[must_use]
    pub(super) fn child(mut self, child: Element) -> Self {
        write!(self.body, "{child}").expect("a string takes everything");
        self
    }

    /// The element with others behind what it holds.
    #[must_use]
    pub(super) fn children(self, children: impl IntoIterator<Item = Element>) -> Self {
        children.into_iter().fold(self, Element::child)
    }
}

impl Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Element {
            name,
            attributes,
            body,
        } = self;
        match VOID.contains(name) {
            true => write!(f, "<{name}{attributes}/>"),
            false => write!(f, "<{name}{attributes}>{body}</{name}>"),
        }
    }
}

/// Text in which nothing is markup. Control characters, which neither HTML nor XML may hold, and
/// those that turn the direction of the text around them become replacement characters.
fn escaped(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => {
                safe.push(char::REPLACEMENT_CHARACTER);
            }
            '\u{fffe}' | '\u{ffff}' => safe.push(char::REPLACEMENT_CHARACTER),
            '\n' | '\t' => safe.push(c),
            c if c.is_control() => safe.push(char::REPLACEMENT_CHARACTER),
            c => safe.push(c),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_attributes_cannot_become_markup() {
        let hostile = "</script><b>&\"'\n\0\u{1b}\u{202e}";
        let safe = "&lt;/script&gt;&lt;b&gt;&amp;&quot;&#39;\n\u{fffd}\u{fffd}\u{fffd}";
        let element = Element::new("p").attribute("title", hostile).text(hostile);
        let expected = format!("<p title=\"{safe}\">{safe}</p>");
        assert_eq!(element.to_string(), expected);
    }

    #[test]
    fn elements_nest_in_the_order_in_which_they_come() {
        let line = Element::classed("p", "a")
            .text("x")
            .children([Element::new("b").text("y"), Element::new("meta")])
            .text("z");
        assert_eq!(line.to_string(), "<p class=\"a\">x<b>y</b><meta/>z</p>");
    }

    #[test]
    fn the_style_sheet_needs_no_escape() {
        let sheet = include_str!("style.css");
        assert!(!sheet.contains(['<', '&']));
        assert!(!sheet.contains("url(") && !sheet.contains("@import"));
    }
}
