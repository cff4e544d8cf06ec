//! Several models beside each other: a table, and accuracy against what it costs.

use super::Model;
use super::markup::Element;
use super::points::{Axis, Point, Points};
use super::summary::share;
use crate::number::{bytes, count, round_count, round_seconds, seconds};

/// The number by which a model is known in charts.
pub(super) fn badge(index: usize) -> Element {
    Element::classed("span", "badge").text(index + 1)
}

/// The comparison.
pub(super) fn section(models: &[Model]) -> Element {
    Element::new("section")
        .child(Element::new("h2").text("Side by side"))
        .child(Element::classed("div", "scroll").child(table(models)))
        .child(charts(models))
}

const HEAD: [&str; 10] = [
    "model",
    "accuracy",
    "ReLUs",
    "squares, polynomials",
    "offline",
    "processor time",
    "online",
    "round trips",
    "at LAN",
    "at WAN",
];

fn table(models: &[Model]) -> Element {
    let head = HEAD.iter();
    let head = head.map(|name| Element::new("th").attribute("scope", "col").text(name));
    let rows = models
        .iter()
        .enumerate()
        .map(|(index, model)| row(index, model));
    Element::classed("table", "all")
        .child(Element::new("thead").child(Element::new("tr").children(head)))
        .child(Element::new("tbody").children(rows))
}

fn row(index: usize, model: &Model) -> Element {
    let report = &model.report;
    let accuracy = report.accuracy.as_ref();
    let link = Element::new("a")
        .attribute("href", format!("#model-{}", index + 1))
        .text(&model.name);
    let name = Element::new("th")
        .attribute("scope", "row")
        .child(badge(index))
        .text(" ")
        .child(link);
    let figures = [
        accuracy.map_or("not recorded".into(), |a| share(a.fixed_correct, a.images)),
        count(report.kinds.relu as u64),
        count((report.kinds.square + report.kinds.polynomial) as u64),
        bytes(report.offline.bytes_up + report.offline.bytes_down),
        seconds(report.offline_cpu.total()),
        bytes(report.online.bytes_up + report.online.bytes_down),
        report.round_trips.to_string(),
        seconds(report.predicted["lan"].online_s),
        seconds(report.predicted["wan"].online_s),
    ];
    Element::new("tr")
        .child(name)
        .children(figures.iter().map(|text| Element::new("td").text(text)))
}

fn charts(models: &[Model]) -> Element {
    let measured = || {
        models
            .iter()
            .filter(|model| model.report.accuracy.is_some())
    };
    let missing = models.len() - measured().count();
    let figures = Element::classed("div", "figures");
    if measured().next().is_none() {
        let why = Element::classed("p", "missing").text(
            "None of these models records an accuracy, so there is none to set against costs: \
             compile with --evaluate and labelled images.",
        );
        return Element::new("div")
            .child(why)
            .child(figures.child(time_by_relus(models).figure()));
    }
    let note = match missing {
        0 => "Lines join models of one network.".into(),
        _ => format!("Lines join models of one network; {missing} record no accuracy."),
    };
    figures.children([
        against("Accuracy against ReLU budget", &note, models, RELUS, |m| {
            m.report.kinds.relu as f64
        })
        .figure(),
        against("Accuracy against time at WAN", &note, models, WAN, |m| {
            m.report.predicted["wan"].online_s
        })
        .figure(),
        against("Accuracy against time at LAN", &note, models, LAN, |m| {
            m.report.predicted["lan"].online_s
        })
        .figure(),
        time_by_relus(models).figure(),
    ])
}

const RELUS: Axis = Axis {
    label: "ReLUs computed privately",
    log: true,
    most: f64::INFINITY,
    number: round_count,
};

const WAN: Axis = Axis {
    label: "time of an answer at WAN, predicted",
    log: false,
    most: f64::INFINITY,
    number: round_seconds,
};

const LAN: Axis = Axis {
    label: "time of an answer at LAN, predicted",
    log: false,
    most: f64::INFINITY,
    number: round_seconds,
};

const ACCURACY: Axis = Axis {
    label: "accuracy in fixed point, %",
    log: false,
    most: 100.0,
    number: |value| {
        let text = format!("{value:.2}");
        text.trim_end_matches('0').trim_end_matches('.').into()
    },
};

fn against(
    title: &'static str,
    note: &str,
    models: &[Model],
    x: Axis,
    of: fn(&Model) -> f64,
) -> Points {
    let accuracy = |model: &Model| {
        let accuracy = model.report.accuracy.as_ref()?;
        let images = f64::from(accuracy.images.max(1));
        Some(100.0 * f64::from(accuracy.fixed_correct) / images)
    };
    let all = models.iter().enumerate();
    let points = all.filter_map(|(i, model)| Some(point(i, model, (of(model), accuracy(model)?))));
    Points {
        title,
        note: note.into(),
        x,
        y: ACCURACY,
        points: points.collect(),
    }
}

fn time_by_relus(models: &[Model]) -> Points {
    let all = models.iter().enumerate();
    let points = all.map(|(index, model)| {
        let time = model.report.predicted["wan"].online_s;
        point(index, model, (model.report.kinds.relu as f64, time))
    });
    Points {
        title: "Time at WAN against ReLU budget",
        note: "Predicted; lines join models of one network.".into(),
        x: RELUS,
        y: WAN,
        points: points.collect(),
    }
}

fn point(index: usize, model: &Model, at: (f64, f64)) -> Point {
    Point {
        number: index + 1,
        name: model.name.clone(),
        network: model.report.name.clone(),
        at,
    }
}
