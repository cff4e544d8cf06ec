//! What the system knows of this process.

use nix::sys::resource::{UsageWho, getrusage};
use std::time::{SystemTime, UNIX_EPOCH};

/// CPU seconds of all threads, user and system; 0 where the system does not report them.
pub(super) fn cpu_seconds() -> f64 {
    getrusage(UsageWho::RUSAGE_SELF).map_or(0.0, |usage| {
        let times = [usage.user_time(), usage.system_time()];
        let seconds = times.map(|time| time.tv_sec() as f64 + time.tv_usec() as f64 * 1e-6);
        seconds.iter().sum()
    })
}

/// Bytes of resident memory now; `None` where the system does not report it.
pub(super) fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmRSS:"))?;
    let kibibytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kibibytes * 1024)
}

/// Seconds since 1970.
pub(super) fn unix_seconds() -> f64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0.0, |since| since.as_secs_f64())
}
