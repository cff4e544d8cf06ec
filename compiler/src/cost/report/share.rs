//! The layers that cost most.

use super::{Report, Row};
use serde::Serialize;

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Measure {
    /// Processor seconds of both parties to prepare a bundle.
    OfflineCpu,
    /// Bytes of a bundle, both ways.
    OfflineBytes,
    /// Bytes of an inference, both ways.
    OnlineBytes,
    /// Seconds of an inference on the wide-area network.
    OnlineWan,
}

impl Measure {
    /// All of them, in the order in which they are reported.
    pub const ALL: [Measure; 4] = [
        Measure::OfflineCpu,
        Measure::OfflineBytes,
        Measure::OnlineBytes,
        Measure::OnlineWan,
    ];

    /// Name for people.
    pub fn name(self) -> &'static str {
        match self {
            Measure::OfflineCpu => "offline, processor time",
            Measure::OfflineBytes => "offline, bytes",
            Measure::OnlineBytes => "online, bytes",
            Measure::OnlineWan => "online, time at WAN",
        }
    }

    fn of_row(self, row: &Row) -> f64 {
        match self {
            Measure::OfflineCpu => row.offline_cpu.total(),
            Measure::OfflineBytes => (row.offline.bytes_up + row.offline.bytes_down) as f64,
            Measure::OnlineBytes => (row.online.bytes_up + row.online.bytes_down) as f64,
            Measure::OnlineWan => row.predicted["wan"].online_s,
        }
    }

    fn of_whole(self, report: &Report) -> f64 {
        match self {
            Measure::OfflineCpu => report.offline_cpu.total(),
            Measure::OfflineBytes => (report.offline.bytes_up + report.offline.bytes_down) as f64,
            Measure::OnlineBytes => (report.online.bytes_up + report.online.bytes_down) as f64,
            Measure::OnlineWan => report.predicted["wan"].online_s,
        }
    }
}

/// A layer's share of a whole.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Share {
    /// Name of the layer.
    pub layer: String,
    /// Its share, from 0 to 1. What belongs to no layer is part of the whole.
    pub share: f64,
}

impl Report {
    /// The shares of the layers that cost most, the largest first; at most `count`, and none that
    /// costs nothing.
    pub fn costliest(&self, measure: Measure, count: usize) -> Vec<Share> {
        let whole = measure.of_whole(self);
        let share = |row: &Row| Share {
            layer: row.name.clone(),
            share: measure.of_row(row) / whole,
        };
        let mut shares: Vec<Share> = self.layers.iter().map(share).collect();
        shares.retain(|share| share.share > 0.0);
        shares.sort_by(|a, b| b.share.total_cmp(&a.share));
        shares.truncate(count);
        shares
    }
}
