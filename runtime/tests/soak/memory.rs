//! The memory of the server, second by second, and whether it grows.

use serde::Serialize;

/// Resident memory of one server process.
#[derive(Default)]
pub struct Memory {
    /// Seconds since the process began, and mebibytes.
    samples: Vec<(f64, f64)>,
}

/// A straight line through the samples after the warm-up, in mebibytes.
#[derive(Serialize)]
pub struct Fit {
    /// Seconds between the first sample and the last.
    pub seconds: f64,
    pub first: f64,
    pub median: f64,
    pub last: f64,
    pub most: f64,
    /// Growth of the line from its beginning to its end, as a share of the median.
    pub growth: f64,
}

impl Memory {
    pub fn sample(&mut self, at: f64, process: u32) {
        if let Some(kibibytes) = status_field(process, "VmRSS:") {
            self.samples.push((at, kibibytes as f64 / 1024.0));
        }
    }

    /// Memory from this second on; `None` if there are no samples.
    pub fn fit(&self, warm: f64) -> Option<Fit> {
        let samples: Vec<_> = self.samples.iter().filter(|(at, _)| *at >= warm).collect();
        let (&&(begin, first), &&(end, last)) = (samples.first()?, samples.last()?);
        let mut sizes: Vec<f64> = samples.iter().map(|(_, size)| *size).collect();
        sizes.sort_by(f64::total_cmp);
        let median = sizes[sizes.len() / 2];
        let count = samples.len() as f64;
        let mean_at = samples.iter().map(|(at, _)| at).sum::<f64>() / count;
        let mean = sizes.iter().sum::<f64>() / count;
        let products = samples
            .iter()
            .map(|(at, size)| (at - mean_at) * (size - mean));
        let squares = samples.iter().map(|(at, _)| (at - mean_at).powi(2));
        let slope = products.sum::<f64>() / squares.sum::<f64>().max(f64::MIN_POSITIVE);
        Some(Fit {
            seconds: end - begin,
            first,
            median,
            last,
            most: sizes[sizes.len() - 1],
            growth: slope * (end - begin) / median,
        })
    }

    /// A sample for each of so many equal parts of the time, for a plot.
    pub fn thinned(&self, parts: usize) -> Vec<(f64, f64)> {
        let step = self.samples.len().div_ceil(parts).max(1);
        self.samples.iter().copied().step_by(step).collect()
    }
}

/// A number in `/proc/PID/status`; `None` where there is no such file.
pub fn status_field(process: u32, name: &str) -> Option<u64> {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).ok()?;
    let line = status.lines().find(|line| line.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// The files that a process has open.
pub fn open_files(process: u32) -> Option<usize> {
    let files = std::fs::read_dir(format!("/proc/{process}/fd")).ok()?;
    Some(files.count())
}
