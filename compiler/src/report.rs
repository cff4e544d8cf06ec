//! The per-layer table of a compiled network.

use crate::fault::Refused;
use pi_ir::failure::failure_log2;
use pi_ir::{Artifact, Kind, Layer, Range, Step, Term};
use pi_protocol::layout::Packing;
use pi_protocol::{cost, linear};
use serde::Serialize;
use std::fmt;

/// Everything the table shows, also as JSON.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Report {
    /// Name of the network.
    pub name: String,
    /// Per layer.
    pub layers: Vec<Row>,
    /// Elements by kind over all layers.
    pub kinds: Kinds,
    /// Once per client key.
    pub setup: Traffic,
    /// Once per bundle: the rows' share, and what layers share.
    pub offline: Traffic,
    /// Once per input: the rows' share, and the request.
    pub online: Traffic,
    /// Round trips of an inference.
    pub round_trips: u32,
    /// The server's processor time for the linear layers of one exchange, as the cost model predicts, in seconds.
    pub linear_seconds: f64,
    /// `log2` of the probability that one inference loses a value.
    pub failure_log2: f64,
    /// What the artifact's maker wrote into it.
    pub note: String,
}

/// One layer.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Row {
    /// Its name.
    pub name: String,
    /// Shape of its result, `CxHxW`.
    pub shape: String,
    /// What it sums: `3x3 t1` is a convolution of tensor 1, `+t2` a residual.
    pub terms: String,
    /// Elements by kind.
    pub kinds: Kinds,
    /// Scale of the result.
    pub frac_bits: u8,
    /// `f`: bits cut off.
    pub truncate: u8,
    /// `log2 B`.
    pub bound_bits: u8,
    /// `m`, where a sign is garbled.
    pub sign_bits: Option<u8>,
    /// How the bound is known.
    pub range: &'static str,
    /// Head room in bits above the largest value seen, for calibrated bounds.
    pub head_room: Option<f64>,
    /// `log2 B` before the second truncation of squares and polynomials, and how it is known.
    pub post: Vec<(u8, &'static str)>,
    /// `log2` of the layer's failure probability.
    pub failure_log2: f64,
    /// Per bundle: uploads of the tensors that this layer reads first, answers, corrections, garbled circuits.
    pub offline: Traffic,
    /// Per input.
    pub online: Traffic,
}

/// Payload bytes and one-way messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Traffic {
    /// Client to server.
    pub bytes_up: u64,
    /// Server to client.
    pub bytes_down: u64,
    /// Both directions together.
    pub messages: u32,
}

impl From<cost::Traffic> for Traffic {
    fn from(traffic: cost::Traffic) -> Self {
        Traffic {
            bytes_up: traffic.up,
            bytes_down: traffic.down,
            messages: traffic.messages,
        }
    }
}

/// Elements by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Kinds {
    /// ReLU.
    pub relu: usize,
    /// Identity.
    pub identity: usize,
    /// Square.
    pub square: usize,
    /// Polynomial with private coefficients.
    pub polynomial: usize,
}

impl Kinds {
    fn of(layer: &Layer) -> Self {
        let mut kinds = Kinds::default();
        if let Step::Activate(activation) = &layer.step {
            for kind in &activation.kinds {
                *match kind {
                    Kind::Relu => &mut kinds.relu,
                    Kind::Identity => &mut kinds.identity,
                    Kind::Square => &mut kinds.square,
                    Kind::Polynomial => &mut kinds.polynomial,
                } += 1;
            }
        }
        kinds
    }

    fn plus(self, other: Self) -> Self {
        Kinds {
            relu: self.relu + other.relu,
            identity: self.identity + other.identity,
            square: self.square + other.square,
            polynomial: self.polynomial + other.polynomial,
        }
    }
}

impl Report {
    /// Of an artifact.
    ///
    /// # Errors
    /// If its circuit or plan is not sound.
    pub fn new(artifact: &Artifact) -> Result<Self, Refused> {
        let circuit = &artifact.circuit;
        let refuse = |why: String| Refused::one("", why);
        let cost = cost::circuit(circuit, &artifact.plan).map_err(|e| refuse(e.to_string()))?;
        let packing = Packing::new(circuit, &artifact.plan).map_err(|f| refuse(f.join("; ")))?;
        let linear = linear::cost(&packing);
        let failure = failure_log2(circuit);
        let mut rows: Vec<Row> = (circuit.layers.iter().zip(failure.layers))
            .zip(&cost.per_layer)
            .map(|((layer, f), cost)| row(layer, f, cost))
            .collect();
        for (upload, bytes) in linear.upload_bytes.iter().enumerate() {
            let mut answers = artifact.plan.answers.iter();
            if let Some(reader) = answers.find(|answer| answer.upload as usize == upload) {
                rows[reader.layer as usize].offline.bytes_up += *bytes as u64;
            }
        }
        let kinds = rows
            .iter()
            .fold(Kinds::default(), |sum, row| sum.plus(row.kinds));
        Ok(Report {
            name: circuit.name.clone(),
            kinds,
            layers: rows,
            setup: cost.setup.into(),
            offline: cost.offline.into(),
            online: cost.online.into(),
            round_trips: cost.online_round_trips(),
            linear_seconds: linear.operations().server_micros(&linear::Rates::MEASURED) * 1e-6,
            failure_log2: failure.total,
            note: artifact.note.clone(),
        })
    }
}

fn row(layer: &Layer, failure_log2: f64, cost: &cost::LayerCost) -> Row {
    let activation = match &layer.step {
        Step::Activate(activation) => Some(activation),
        Step::Output { .. } => None,
    };
    let kinds = Kinds::of(layer);
    let posts = activation
        .into_iter()
        .flat_map(|a| [&a.square, &a.polynomial])
        .flatten();
    Row {
        name: layer.name.clone(),
        shape: layer.shape.to_string(),
        terms: terms(layer),
        kinds,
        frac_bits: match &layer.step {
            Step::Activate(a) => a.frac_bits,
            Step::Output { frac_bits } => *frac_bits,
        },
        truncate: layer.truncate(),
        bound_bits: layer.bound_bits,
        sign_bits: layer.sign_bits().filter(|_| kinds.relu > 0),
        range: range(layer.range),
        head_room: match layer.range {
            Range::Proved => None,
            Range::Calibrated { max_seen } => {
                Some(f64::from(layer.bound_bits) - (max_seen.max(1) as f64).log2())
            }
        },
        post: posts
            .map(|post| (post.bound_bits, range(post.range)))
            .collect(),
        failure_log2,
        offline: cost.offline.into(),
        online: cost.online.into(),
    }
}

fn range(range: Range) -> &'static str {
    match range {
        Range::Proved => "proved",
        Range::Calibrated { .. } => "calibrated",
    }
}

fn terms(layer: &Layer) -> String {
    let term = |term: &Term| match term {
        Term::Conv(conv) => {
            let stride = match conv.stride {
                (1, 1) => String::new(),
                (s, _) => format!("/{s}"),
            };
            format!(
                "{}x{}{stride} t{}",
                conv.kernel.0, conv.kernel.1, conv.input.0
            )
        }
        Term::Residual {
            input, pool: None, ..
        } => format!("+t{}", input.0),
        Term::Residual {
            input,
            pool: Some(p),
            ..
        } => format!("+t{} pool {}x{}", input.0, p.kernel.0, p.kernel.1),
    };
    let mut text: Vec<String> = layer.terms.iter().map(term).collect();
    if let Some(pool) = &layer.pool {
        text.push(format!("pool {}x{}", pool.kernel.0, pool.kernel.1));
    }
    text.join(" ")
}

/// A table with totals.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(&[
            "layer", "shape", "reads", "relu", "ident", "square", "poly", "scale", "f", "B", "m",
            "range", "post B", "failure", "off up", "off down", "on up", "on down", "msg",
        ]);
        for row in &self.layers {
            let post: Vec<String> = row
                .post
                .iter()
                .map(|(b, range)| format!("2^{b} {}", &range[..1]))
                .collect();
            table.push(vec![
                row.name.clone(),
                row.shape.clone(),
                row.terms.clone(),
                row.kinds.relu.to_string(),
                row.kinds.identity.to_string(),
                row.kinds.square.to_string(),
                row.kinds.polynomial.to_string(),
                format!("2^{}", row.frac_bits),
                row.truncate.to_string(),
                format!("2^{}", row.bound_bits),
                row.sign_bits.map_or("-".into(), |m| m.to_string()),
                match row.head_room {
                    None => row.range.into(),
                    Some(bits) => format!("seen +{bits:.1} bits"),
                },
                post.join(" "),
                power(row.failure_log2),
                bytes(row.offline.bytes_up),
                bytes(row.offline.bytes_down),
                bytes(row.online.bytes_up),
                bytes(row.online.bytes_down),
                row.online.messages.to_string(),
            ]);
        }
        writeln!(f, "{}", self.name)?;
        write!(f, "{table}")?;
        let kinds = &self.kinds;
        writeln!(
            f,
            "elements: {} ReLU, {} identity, {} square, {} polynomial",
            kinds.relu, kinds.identity, kinds.square, kinds.polynomial
        )?;
        for (phase, traffic) in [
            ("setup, once per client key", &self.setup),
            ("offline, per bundle", &self.offline),
            ("online, per input", &self.online),
        ] {
            writeln!(
                f,
                "{phase}: {} up, {} down, {} messages",
                bytes(traffic.bytes_up),
                bytes(traffic.bytes_down),
                traffic.messages
            )?;
        }
        writeln!(
            f,
            "online round trips: {}; server time for linear layers, predicted: {:.2} s",
            self.round_trips, self.linear_seconds
        )?;
        writeln!(
            f,
            "an inference loses a value with probability {}",
            power(self.failure_log2)
        )?;
        if !self.note.is_empty() {
            writeln!(f, "note: {}", self.note)?;
        }
        Ok(())
    }
}

fn bytes(count: u64) -> String {
    match count {
        0 => "-".into(),
        1..10_000 => format!("{count} B"),
        10_000..10_000_000 => format!("{:.0} KB", count as f64 / 1e3),
        _ => format!("{:.1} MB", count as f64 / 1e6),
    }
}

fn power(log2: f64) -> String {
    if log2 == f64::NEG_INFINITY {
        "0".into()
    } else {
        format!("2^{log2:.1}")
    }
}

/// Text columns; the first three to the left, numbers to the right.
struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    fn new(head: &[&str]) -> Self {
        Table {
            rows: vec![head.iter().map(|&h| h.into()).collect()],
        }
    }

    fn push(&mut self, row: Vec<String>) {
        self.rows.push(row);
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let columns = self.rows[0].len();
        let width = |c: usize| {
            self.rows
                .iter()
                .map(|row| row[c].chars().count())
                .max()
                .unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (c, (cell, width)) in row.iter().zip(&widths).enumerate() {
                if c < 3 {
                    line.push_str(&format!("{cell:<width$}  "));
                } else {
                    line.push_str(&format!("{cell:>width$}  "));
                }
            }
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}
