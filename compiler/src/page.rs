//! The report as one page of HTML, to be kept, printed, or sent to a colleague.
//!
//! The page is made of the [`Report`]s that `--json` prints, and of nothing else. It is one file:
//! no scripts, no fonts, no images from elsewhere, and a content security policy that forbids them.
//! Charts are inline SVG whose lengths are shares of the width, so that text keeps its size on a
//! telephone, and colours follow the reader's choice of light or dark.
//!
//! Names come from model files, which may be anyone's: all text passes through `markup`, which
//! escapes it.

mod bars;
mod compare;
mod layers;
mod markup;
mod points;
mod scale;
mod summary;

use crate::cost::report::Report;
use anyhow::Result;
use markup::Element;
use pi_ir::artifact::ARTIFACT_NAME;
use serde::Serialize;
use std::path::{self, Path};

/// A model to be shown.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Model {
    /// Name that tells it from others on the page: that of its directory.
    pub name: String,
    /// The report.
    pub report: Report,
}

impl Model {
    /// The model of this directory, or of an artifact by itself.
    ///
    /// # Errors
    /// If the path has no last part and cannot be resolved to one that has.
    pub fn of(path: &Path, report: Report) -> Result<Self> {
        let directory = match path.file_name() {
            Some(name) if name == ARTIFACT_NAME => path.parent().unwrap_or(path),
            _ => path,
        };
        let whole = match directory.file_name() {
            Some(_) => directory.to_owned(),
            None => path::absolute(directory)?,
        };
        let name = whole.file_name().unwrap_or(whole.as_os_str());
        Ok(Model {
            name: name.to_string_lossy().into_owned(),
            report,
        })
    }
}

/// The page that shows these models: a comparison if they are several, then each by itself.
pub fn html(models: &[Model]) -> String {
    let title = match models {
        [model] => format!("{}: private inference, and what it costs", model.name),
        _ => format!(
            "{} models: private inference, and what it costs",
            models.len()
        ),
    };
    let mut body = Element::new("main").child(Element::new("h1").text(&title));
    if models.len() > 1 {
        body = body.child(compare::section(models));
    }
    let body = body.children(models.iter().enumerate().map(|(index, model)| {
        let heading = (models.len() > 1).then_some(model.name.as_str());
        section(index, heading, &model.report)
    }));
    let body = body.child(summary::method());
    let page = Element::new("html")
        .attribute("lang", "en")
        .child(head(&title))
        .child(Element::new("body").child(body));
    format!("<!DOCTYPE html>\n{page}\n")
}

fn head(title: &str) -> Element {
    let meta = |name, value, content| {
        let meta = Element::new("meta").attribute(name, value);
        meta.attribute("content", content)
    };
    Element::new("head")
        .child(Element::new("meta").attribute("charset", "utf-8"))
        .child(meta(
            "http-equiv",
            "Content-Security-Policy",
            "default-src 'none'; style-src 'unsafe-inline'",
        ))
        .child(meta(
            "name",
            "viewport",
            "width=device-width, initial-scale=1",
        ))
        .child(meta("name", "color-scheme", "light dark"))
        .child(Element::new("title").text(title))
        .child(Element::style(include_str!("page/style.css")))
}

/// One model: what it costs in all, then by layer.
fn section(index: usize, heading: Option<&str>, report: &Report) -> Element {
    let section = Element::new("section").attribute("id", format!("model-{}", index + 1));
    let section = match heading {
        Some(heading) => section.child(
            Element::new("h2")
                .child(compare::badge(index))
                .text(format!(" {heading}")),
        ),
        None => section,
    };
    section
        .child(summary::facts(report))
        .child(summary::cards(report))
        .child(summary::time_and_share(report))
        .child(layers::costs(report))
        .children(layers::accuracy(report))
        .child(layers::ranges(report))
        .child(layers::table(report))
}
