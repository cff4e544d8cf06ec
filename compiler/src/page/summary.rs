//! A model in a few figures: what it is, what a bundle and an answer cost, what they tell.

use super::bars::{Bar, Bars, Colour};
use super::markup::Element;
use crate::cost::processor::Cpu;
use crate::cost::report::{
    COSTLIEST, Measure, Report, Share, answer_learnt, artifact_learnt, estimates, line_name,
    shown_profiles,
};
use crate::number::{bytes, count, percent, power, round_seconds, seconds, short};
use pi_ir::costs::{Profile, Seconds, Traffic};
use pi_protocol::flooding::BUNDLES_LOG2;
use std::collections::BTreeMap;

/// The network in a sentence or two, and its maker's note.
pub(super) fn facts(report: &Report) -> Element {
    let kinds = &report.kinds;
    let named = [
        (kinds.relu, "ReLUs"),
        (kinds.square, "squares"),
        (kinds.polynomial, "polynomials"),
        (kinds.identity, "identities"),
    ];
    let elements: Vec<String> = (named.into_iter().filter(|(number, _)| *number > 0))
        .map(|(number, name)| format!("{} {name}", count(number as u64)))
        .collect();
    let prefix = report.prefix.as_ref().map_or(String::new(), |prefix| {
        let names: Vec<&str> = prefix.layers.iter().map(|l| l.name.as_str()).collect();
        format!(
            " Before them the client computes a public prefix by itself ({}): {} multiply-adds and \
             {} activations that cost no protocol.",
            names.join(", "),
            short(prefix.multiply_adds),
            count(prefix.kinds.total() as u64)
        )
    });
    let network = format!(
        "Network {}: {} private layers with {} multiply-adds and {}.{prefix}",
        report.name,
        report.layers.len(),
        short(report.multiply_adds),
        elements.join(", "),
    );
    let lead = Element::classed("div", "lead")
        .child(Element::new("p").text(network))
        .child(Element::new("p").text(sentence(&estimates(report))));
    match report.note.as_str() {
        "" => lead,
        note => lead.child(Element::new("p").text(format!("Note of its maker: {note}"))),
    }
}

/// What it costs and tells, at a glance.
pub(super) fn cards(report: &Report) -> Element {
    Element::classed("div", "cards").children([
        offline(report),
        online(report),
        learns(report),
        reliable(report),
    ])
}

fn offline(report: &Report) -> Element {
    let batches = report.batches.iter().map(|batch| {
        let all = batch.offline.bytes_up + batch.offline.bytes_down;
        let label = format!("each of {} prepared together", batch.bundles);
        let each = bytes(all / batch.bundles as u64);
        (
            label,
            format!("{each}, {}", seconds(batch.offline_cpu.total())),
        )
    });
    let total = report.offline.bytes_up + report.offline.bytes_down;
    let facts = [
        ("stored at the client", bytes(report.stored.client)),
        ("stored at the server", bytes(report.stored.server)),
        ("memory at the client", bytes(report.client_memory.offline)),
        ("memory at the server", bytes(report.server_memory.offline)),
    ];
    let facts = traffic(&report.offline)
        .into_iter()
        .chain(cpu(&report.offline_cpu))
        .chain(facts)
        .map(|(name, value)| (name.into(), value));
    card(
        "Offline, a bundle",
        &bytes(total),
        &format!(
            "and {} of processor time",
            seconds(report.offline_cpu.total())
        ),
        facts.chain(batches),
    )
}

fn online(report: &Report) -> Element {
    let times = shown_profiles(report).map(|profile| {
        let time = seconds(report.predicted[&profile.name].online_s);
        (line_name(profile), time)
    });
    let facts = [("round trips", report.round_trips.to_string())]
        .into_iter()
        .chain(traffic(&report.online))
        .chain(cpu(&report.online_cpu))
        .map(|(name, value)| (name.into(), value));
    let wan = report.predicted["wan"].online_s;
    let lan = report.predicted["lan"].online_s;
    card(
        "Online, an answer",
        &seconds(wan),
        &format!("at WAN, {} at LAN", seconds(lan)),
        times.chain(facts),
    )
}

fn learns(report: &Report) -> Element {
    let once = report.setup.bytes_up + report.setup.bytes_down;
    let facts = [
        ("keys, once per client".into(), bytes(once)),
        (
            "model.pia, once per client".into(),
            bytes(report.artifact_bytes as u64),
        ),
    ];
    let card = card("The client learns", &report.reveal.to_string(), "", facts);
    card.child(Element::new("p").text(sentence(&answer_learnt(report))))
        .child(Element::new("p").text(sentence(&artifact_learnt(report))))
}

fn reliable(report: &Report) -> Element {
    let facts = [
        (
            "an inference loses a value with probability".into(),
            power(report.failure_log2),
        ),
        (
            format!("distance by which 2^{BUNDLES_LOG2} bundles tell of the weights"),
            power(report.flooding_log2),
        ),
    ];
    let agreement = report.measured.as_ref().map(|measured| {
        let found = &measured.comparison;
        let words = "same answer as the float network, of examples held back".to_owned();
        (words, format!("{} of {}", found.agree, found.images))
    });
    let facts = agreement.into_iter().chain(facts);
    let (figure, words) = match &report.accuracy {
        Some(accuracy) => (
            share(accuracy.fixed_correct, accuracy.images),
            format!(
                "of {} test images right, {} in floating point",
                count(accuracy.images.into()),
                share(accuracy.float_correct, accuracy.images)
            ),
        ),
        None => (
            "not recorded".into(),
            "compile with --evaluate and labelled images".into(),
        ),
    };
    card("Accuracy and faults", &figure, &words, facts)
}

/// A share of images in per cent, as accuracies are written.
pub(super) fn share(correct: u32, images: u32) -> String {
    format!(
        "{:.1} %",
        100.0 * f64::from(correct) / f64::from(images.max(1))
    )
}

fn card(
    title: &str,
    figure: &str,
    words: &str,
    facts: impl IntoIterator<Item = (String, String)>,
) -> Element {
    let fact = |(name, value): (String, String)| {
        Element::new("div")
            .child(Element::new("dt").text(name))
            .child(Element::new("dd").text(value))
    };
    Element::classed("article", "card")
        .child(Element::new("h3").text(title))
        .child(
            Element::classed("p", "figure")
                .child(Element::new("strong").text(figure))
                .text(format!(" {words}")),
        )
        .child(Element::new("dl").children(facts.into_iter().map(fact)))
}

/// Where an answer's time goes, and the layers that cost most.
pub(super) fn time_and_share(report: &Report) -> Element {
    Element::classed("div", "figures")
        .child(times(report).figure())
        .child(costliest(report))
}

/// The parts of a time on a line: waits for round trips, bytes under way, and the rest.
pub(super) fn parts(
    predicted: &BTreeMap<String, Seconds>,
    profile: &Profile,
    round_trips: u32,
    traffic: &Traffic,
) -> [f64; 3] {
    let all = predicted[&profile.name].online_s;
    let waits = f64::from(round_trips) * profile.exchange_s;
    let bytes = (traffic.bytes_up + traffic.bytes_down) as f64;
    let wire = 8.0 * bytes / profile.bits_per_second;
    [waits, wire, (all - waits - wire).max(0.0)]
}

/// Series of [`parts`].
pub(super) const PARTS: [(&str, Colour); 3] = [
    ("round trips", Colour::Blue),
    ("bytes on the line", Colour::Orange),
    ("computing", Colour::Green),
];

fn times(report: &Report) -> Bars {
    let row = |profile: &Profile| Bar {
        name: profile.name.to_uppercase(),
        parts: parts(
            &report.predicted,
            profile,
            report.round_trips,
            &report.online,
        )
        .into(),
        value: seconds(report.predicted[&profile.name].online_s),
    };
    Bars {
        title: "Where an answer's time goes",
        note:
            "Predicted, as if nothing overlapped; computing includes both parties' durable marks."
                .into(),
        series: PARTS.into(),
        rows: shown_profiles(report).map(row).collect(),
        number: round_seconds,
    }
}

fn costliest(report: &Report) -> Element {
    let rows = Measure::ALL.into_iter().map(|measure| {
        let shares = report.costliest(measure, COSTLIEST);
        let item = |share: &Share| {
            Element::new("li")
                .child(Element::new("span").text(&share.layer))
                .text(format!(" {}", percent(share.share)))
        };
        Element::new("div")
            .child(Element::new("h4").text(measure.name()))
            .child(Element::new("ol").children(shares.iter().map(item)))
    });
    Element::new("figure")
        .child(
            Element::new("figcaption")
                .child(Element::new("h3").text("Layers that cost most"))
                .child(Element::new("p").text("Shares of the whole, including what layers share.")),
        )
        .child(Element::classed("div", "ranks").children(rows))
}

/// How the figures came about.
pub(super) fn method() -> Element {
    let lines = [
        "Bytes and round trips are exact: they come from the protocol's own formulas, which tests \
         hold equal to what a channel counts. They are payload, without the framing of QUIC, TLS \
         and UDP."
            .to_owned(),
        "Times are predictions of a model that was fitted to measurements; docs/costs.md has it, \
         and how far it was off."
            .to_owned(),
        "A bundle is the preprocessing of one answer. It is prepared before the input is known, \
         kept by both parties, and used once. Uploads count with the first layer that reads them."
            .to_owned(),
    ];
    Element::new("footer")
        .children(lines.iter().map(|line| Element::new("p").text(line)))
        .child(Element::new("p").text(format!(
            "Written by pi-compile {}.",
            env!("CARGO_PKG_VERSION")
        )))
}

fn traffic(traffic: &Traffic) -> [(&'static str, String); 2] {
    [
        ("client to server", bytes(traffic.bytes_up)),
        ("server to client", bytes(traffic.bytes_down)),
    ]
}

fn cpu(cpu: &Cpu) -> [(&'static str, String); 2] {
    [
        ("processor time, client", seconds(cpu.client_s)),
        ("processor time, server", seconds(cpu.server_s)),
    ]
}

fn sentence(text: &str) -> String {
    let mut letters = text.chars();
    match letters.next() {
        // A file's name stays as it is.
        Some(_) if text.starts_with("model.pia") => format!("{text}."),
        Some(first) => format!("{}{}.", first.to_uppercase(), letters.as_str()),
        None => String::new(),
    }
}
