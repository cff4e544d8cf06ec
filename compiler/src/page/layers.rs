//! Layer by layer: costs, activations, ranges, and the table of all figures.

use super::bars::{Bar, Bars, Colour};
use super::markup::Element;
use super::summary::{PARTS, parts};
use crate::accuracy::{LayerAccuracy, Measured, in_decibels};
use crate::cost::processor::Cpu;
use crate::cost::report::{Report, Row};
use crate::number::{bytes, count, power, round_bytes, round_count, round_seconds, seconds, short};
use pi_ir::costs::Traffic;
use pi_ir::count::Activations;

/// Name of what belongs to no layer.
const SHARED: &str = "shared by layers";

/// What each layer costs.
pub(super) fn costs(report: &Report) -> Element {
    Element::new("div")
        .child(Element::new("h2").text("What each layer costs"))
        .child(
            Element::classed("div", "figures").children([
                traffic_chart(
                    "Offline: bytes of a bundle",
                    "Encrypted masks and choices up; encrypted answers and garbled circuits down.",
                    report,
                    &report.shared.offline,
                    |row| row.offline,
                )
                .figure(),
                processor_chart(
                    "Offline: processor time of a bundle",
                    report,
                    report.shared.offline_cpu,
                    |row| row.offline_cpu,
                )
                .figure(),
                traffic_chart(
                    "Online: bytes of an answer",
                    "Labels and opened values down, re-based shares up.",
                    report,
                    &report.shared.online,
                    |row| row.online,
                )
                .figure(),
                processor_chart(
                    "Online: processor time of an answer",
                    report,
                    report.shared.online_cpu,
                    |row| row.online_cpu,
                )
                .figure(),
                wan_chart(report).figure(),
                activations_chart(report).figure(),
            ]),
        )
}

fn traffic_chart(
    title: &'static str,
    note: &str,
    report: &Report,
    shared: &Traffic,
    of: fn(&Row) -> Traffic,
) -> Bars {
    let bar = |name: &str, traffic: Traffic| Bar {
        name: name.into(),
        parts: vec![traffic.bytes_up as f64, traffic.bytes_down as f64],
        value: bytes(traffic.bytes_up + traffic.bytes_down),
    };
    let rows = report.layers.iter().map(|row| bar(&row.name, of(row)));
    Bars {
        title,
        note: note.into(),
        series: vec![("up", Colour::Blue), ("down", Colour::Orange)],
        rows: rows.chain([bar(SHARED, *shared)]).collect(),
        number: round_bytes,
    }
}

fn processor_chart(title: &'static str, report: &Report, shared: Cpu, of: fn(&Row) -> Cpu) -> Bars {
    let bar = |name: &str, cpu: Cpu| Bar {
        name: name.into(),
        parts: vec![cpu.server_s, cpu.client_s],
        value: seconds(cpu.total()),
    };
    let rows = report.layers.iter().map(|row| bar(&row.name, of(row)));
    Bars {
        title,
        note: format!("Estimated, on {}.", report.machine),
        series: vec![("server", Colour::Green), ("client", Colour::Purple)],
        rows: rows.chain([bar(SHARED, shared)]).collect(),
        number: round_seconds,
    }
}

fn wan_chart(report: &Report) -> Bars {
    let wan = report.profiles.iter().find(|profile| profile.name == "wan");
    let wan = wan.expect("the lines of every report include the WAN");
    let row = |row: &Row| Bar {
        name: row.name.clone(),
        parts: parts(&row.predicted, wan, row.round_trips, &row.online).into(),
        value: seconds(row.predicted[&wan.name].online_s),
    };
    let mut rows: Vec<Bar> = report.layers.iter().map(row).collect();
    let all = parts(&report.predicted, wan, report.round_trips, &report.online);
    let rest = |part: usize| {
        let of_layers: f64 = rows.iter().map(|row| row.parts[part]).sum();
        (all[part] - of_layers).max(0.0)
    };
    let rest: Vec<f64> = (0..all.len()).map(rest).collect();
    rows.push(Bar {
        name: SHARED.into(),
        value: seconds(rest.iter().sum()),
        parts: rest,
    });
    Bars {
        title: "Online: time at WAN",
        note: "A layer without ReLUs, squares and polynomials needs no round trip.".into(),
        series: PARTS.into(),
        rows,
        number: round_seconds,
    }
}

fn activations_chart(report: &Report) -> Bars {
    let bar = |name: String, kinds: &Activations| {
        let counts = [kinds.relu, kinds.square, kinds.polynomial, kinds.identity];
        Bar {
            name,
            parts: counts.map(|kind| kind as f64).into(),
            value: count(kinds.total() as u64),
        }
    };
    let public = report.prefix.iter().flat_map(|prefix| &prefix.layers);
    let public = public.map(|layer| bar(public_name(&layer.name), &layer.kinds));
    let private = report
        .layers
        .iter()
        .map(|row| bar(row.name.clone(), &row.kinds));
    Bars {
        title: "Activations",
        note: "ReLUs cost most, squares and polynomials far less, identities next to nothing; \
               those of a public prefix cost no protocol."
            .into(),
        series: vec![
            ("ReLUs", Colour::Orange),
            ("squares", Colour::Blue),
            ("polynomials", Colour::Purple),
            ("identities", Colour::Grey),
        ],
        rows: public.chain(private).collect(),
        number: round_count,
    }
}

fn public_name(name: &str) -> String {
    format!("{name} (public)")
}

/// How far fixed point is from the float network; nothing if that was not measured.
pub(super) fn accuracy(report: &Report) -> Option<Element> {
    let measured = report.measured.as_ref()?;
    let answers = measured.comparison.to_string();
    let lines = answers.lines().map(|line| Element::new("p").text(line));
    let section = Element::new("div")
        .child(Element::new("h2").text("Fixed point against the float network"))
        .child(Element::classed("div", "lead").children(lines))
        .child(Element::classed("div", "figures wide").child(noise_chart(measured).figure()));
    Some(section)
}

fn noise_chart(measured: &Measured) -> Bars {
    let rows = measured.layers.iter().map(|layer| {
        let [all, own] = [layer.snr_db, layer.own_db].map(|db| db.unwrap_or(f64::NAN));
        let all_drawn = if all.is_nan() { 0.0 } else { all.max(0.0) };
        Bar {
            name: layer.name.clone(),
            parts: vec![all_drawn, (own - all_drawn).max(0.0)],
            value: in_decibels(layer.snr_db),
        }
    });
    Bars {
        title: "Signal to noise of each layer, in dB",
        note: format!(
            "On {} examples that calibration did not see: what values vary against what fixed \
             point adds to them. The grey part is taken away by the noise of earlier layers. 6 dB \
             are about one bit; where a bar is much shorter than those before it, fixed point is \
             too coarse for that layer.",
            measured.layers.first().map_or(0, |layer| layer.examples)
        ),
        series: vec![
            ("signal to noise", Colour::Blue),
            ("without the noise of earlier layers", Colour::Grey),
        ],
        rows: rows.collect(),
        number: |value| format!("{value:.0}"),
    }
}

/// How large values get, and what is left above them.
pub(super) fn ranges(report: &Report) -> Element {
    Element::new("div")
        .child(Element::new("h2").text("Range and head room"))
        .child(Element::classed("div", "figures wide").child(ranges_chart(report).figure()))
}

fn ranges_chart(report: &Report) -> Bars {
    let mut rows = Vec::new();
    for layer in report.prefix.iter().flat_map(|prefix| &prefix.layers) {
        rows.push(range(public_name(&layer.name), layer.bound_bits, None));
    }
    let measured = report.measured.as_ref().map(|measured| &measured.layers);
    for (index, row) in report.layers.iter().enumerate() {
        let mut bar = range(row.name.clone(), row.bound_bits, row.head_room);
        if let Some(layer) = measured.and_then(|layers| layers.get(index)) {
            bar.value = match layer.examples_beyond {
                0 => format!("{}, held back {:.1}", bar.value, layer.room_bits),
                beyond => format!("{}, left by {beyond} of {}", bar.value, layer.examples),
            };
        }
        rows.push(bar);
        for post in &row.post {
            let name = format!("{}, {}s", row.name, post.kind);
            rows.push(range(name, post.bound_bits, post.head_room));
        }
    }
    Bars {
        title: "Bits of each layer's sums",
        note:
            "Up to the largest value seen on calibration images, then the head room that is left \
               below the bound. A value beyond a bound makes the answer wrong. Proved bounds hold \
               for every image, given the calibrated ones before them."
                .into(),
        series: vec![
            ("largest seen", Colour::Blue),
            ("head room", Colour::Grey),
            ("proved bound", Colour::Green),
        ],
        rows,
        number: |value| format!("{value:.0}"),
    }
}

fn range(name: String, bound_bits: u8, head_room: Option<f64>) -> Bar {
    let bound = f64::from(bound_bits);
    match head_room {
        Some(room) => {
            let room = room.clamp(0.0, bound);
            Bar {
                name,
                parts: vec![bound - room, room, 0.0],
                value: format!("{room:.1} bits"),
            }
        }
        None => Bar {
            name,
            parts: vec![0.0, 0.0, bound],
            value: "proved".into(),
        },
    }
}

const HEAD: [&str; 18] = [
    "layer",
    "shape",
    "ReLUs",
    "squares",
    "polynomials",
    "identities",
    "multiply-adds",
    "bits of weights",
    "bits of the sum",
    "bits of a sign circuit",
    "failure",
    "signal to noise",
    "its own",
    "offline up",
    "offline down",
    "processor time",
    "online up",
    "online down",
];

/// All figures.
pub(super) fn table(report: &Report) -> Element {
    let head = Element::new("thead").child(
        Element::new("tr").children(
            HEAD.iter()
                .map(|name| Element::new("th").attribute("scope", "col").text(name)),
        ),
    );
    let layers = report
        .layers
        .iter()
        .enumerate()
        .map(|(index, row)| cells(&row.name, &figures(report, index, row)));
    let body = Element::new("tbody").children(layers).child(shared(report));
    let table = Element::classed("table", "all").children([head, body, totals(report)]);
    Element::new("div")
        .child(Element::new("h2").text("All figures"))
        .child(Element::classed("div", "scroll").child(table))
}

fn figures(report: &Report, index: usize, row: &Row) -> Vec<String> {
    let kinds = &row.kinds;
    let bits = |bits: Option<u8>| bits.map_or(String::new(), |bits| bits.to_string());
    let measured = report.measured.as_ref();
    let measured = measured.and_then(|measured| measured.layers.get(index));
    let decibels = |of: fn(&LayerAccuracy) -> Option<f64>| {
        measured.map_or(String::new(), |layer| in_decibels(of(layer)))
    };
    vec![
        row.shape.clone(),
        number(kinds.relu as u64),
        number(kinds.square as u64),
        number(kinds.polynomial as u64),
        number(kinds.identity as u64),
        short(row.multiply_adds),
        bits(row.weight_bits),
        bits(Some(row.bound_bits)),
        bits(row.sign_bits),
        power(row.failure_log2),
        decibels(|layer| layer.snr_db),
        decibels(|layer| layer.own_db),
        amount(row.offline.bytes_up),
        amount(row.offline.bytes_down),
        seconds(row.offline_cpu.total()),
        amount(row.online.bytes_up),
        amount(row.online.bytes_down),
    ]
}

fn shared(report: &Report) -> Element {
    let shared = &report.shared;
    let mut all = vec![String::new(); 12];
    all.extend([
        amount(shared.offline.bytes_up),
        amount(shared.offline.bytes_down),
        seconds(shared.offline_cpu.total()),
        amount(shared.online.bytes_up),
        amount(shared.online.bytes_down),
    ]);
    cells(SHARED, &all)
}

fn totals(report: &Report) -> Element {
    let kinds = &report.kinds;
    let all = [
        String::new(),
        number(kinds.relu as u64),
        number(kinds.square as u64),
        number(kinds.polynomial as u64),
        number(kinds.identity as u64),
        short(report.multiply_adds),
        String::new(),
        String::new(),
        String::new(),
        power(report.failure_log2),
        String::new(),
        String::new(),
        amount(report.offline.bytes_up),
        amount(report.offline.bytes_down),
        seconds(report.offline_cpu.total()),
        amount(report.online.bytes_up),
        amount(report.online.bytes_down),
    ];
    Element::new("tfoot").child(cells("in all", &all))
}

fn cells(name: &str, rest: &[String]) -> Element {
    Element::new("tr")
        .child(Element::new("th").attribute("scope", "row").text(name))
        .children(rest.iter().map(|text| Element::new("td").text(text)))
}

fn number(value: u64) -> String {
    match value {
        0 => String::new(),
        _ => count(value),
    }
}

fn amount(value: u64) -> String {
    match value {
        0 => String::new(),
        _ => bytes(value),
    }
}
