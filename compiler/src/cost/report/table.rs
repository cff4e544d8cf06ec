//! The report as text: the tables of layers and packings, and the totals.

use super::costs::Costs;
use super::{Report, layout_name};
use crate::number::{self, power};
use std::fmt;

/// A table with totals.
impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(&[
            "layer", "shape", "reads", "relu", "ident", "square", "poly", "weights", "scale", "f",
            "B", "m", "guard", "range", "post B", "failure", "off up", "off down", "on up",
            "on down", "msg",
        ]);
        for row in &self.layers {
            let post: Vec<String> = row
                .post
                .iter()
                .map(|post| format!("2^{} {}", post.bound_bits, &post.range[..1]))
                .collect();
            table.push(vec![
                row.name.clone(),
                row.shape.clone(),
                row.terms.clone(),
                row.kinds.relu.to_string(),
                row.kinds.identity.to_string(),
                row.kinds.square.to_string(),
                row.kinds.polynomial.to_string(),
                (row.weight_bits).map_or("-".into(), |bits| format!("{bits} bits")),
                format!("2^{}", row.frac_bits),
                row.truncate.to_string(),
                format!("2^{}", row.bound_bits),
                row.sign_bits.map_or("-".into(), |m| m.to_string()),
                match row.guard_bits {
                    0 => "-".into(),
                    bits => format!("{bits} bits"),
                },
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
        if let Some(measured) = &self.measured {
            write!(f, "{measured}")?;
        }
        writeln!(
            f,
            "packing: group, tile, blocks, output blocks; for an exchange of {} bundles",
            self.bundles
        )?;
        write!(f, "{}", self.packing_table())?;
        let kinds = &self.kinds;
        writeln!(
            f,
            "elements: {} ReLU, {} identity, {} square, {} polynomial",
            kinds.relu, kinds.identity, kinds.square, kinds.polynomial
        )?;
        writeln!(
            f,
            "linear layers of an exchange, predicted: {:.2} s of the server's cores, {:.2} s of \
             the client's, {:.2} s in all",
            self.linear_seconds, self.client_seconds, self.exchange_seconds
        )?;
        write!(f, "{}", Costs(self))?;
        if !self.note.is_empty() {
            writeln!(f, "note: {}", printable(&self.note))?;
        }
        Ok(())
    }
}

impl Report {
    fn packing_table(&self) -> Table {
        let mut table = Table::new(&[
            "layer",
            "reads",
            "packed",
            "merge",
            "in",
            "out",
            "switches",
            "up",
            "down",
            "server",
            "client",
            "flooding",
            "bytes",
            "next best",
            "bytes",
            "work",
            "in all",
        ]);
        let percent = |share: f64| format!("{:+.0} %", 100.0 * share);
        for row in &self.packing {
            let why = row.why.as_ref();
            let next = why.and_then(|why| why.next_costs);
            let next = |i: usize| next.map_or("-".into(), |costs| percent(costs[i]));
            table.push(vec![
                row.layer.clone(),
                row.term.clone(),
                layout_name(row.group, row.tile, row.blocks, row.output_blocks),
                row.merge.to_string(),
                row.inputs.to_string(),
                row.outputs.to_string(),
                row.key_switches.to_string(),
                bytes(row.bytes_up as u64),
                bytes(row.bytes_down as u64),
                format!("{:.0} ms", row.server_millis),
                format!("{:.0} ms", row.client_millis),
                power(row.flooding_log2),
                why.map_or("-".into(), |why| format!("{:.0} %", 100.0 * why.byte_share)),
                why.and_then(|why| why.next.clone())
                    .unwrap_or_else(|| "-".into()),
                next(0),
                next(1),
                next(2),
            ]);
        }
        table
    }
}

/// A note without what a terminal would obey: anyone may have written it. Names have no control
/// characters, as the verifier ensures.
fn printable(note: &str) -> String {
    let safe = |c: char| match c.is_control() && c != '\n' {
        true => char::REPLACEMENT_CHARACTER,
        false => c,
    };
    note.chars().map(safe).collect()
}

fn bytes(count: u64) -> String {
    match count {
        0 => "-".into(),
        _ => number::bytes(count),
    }
}

/// Text columns; the first three to the left, numbers to the right.
pub(crate) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new(head: &[&str]) -> Self {
        Table {
            rows: vec![head.iter().map(|&h| h.into()).collect()],
        }
    }

    pub(crate) fn push(&mut self, row: Vec<String>) {
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
