//! Resources that this process has used.

use nix::sys::resource::{UsageWho, getrusage};

/// User CPU seconds of all threads of this process; 0 where the system does not report it.
pub fn user_seconds() -> f64 {
    getrusage(UsageWho::RUSAGE_SELF).map_or(0.0, |usage| {
        let time = usage.user_time();
        time.tv_sec() as f64 + time.tv_usec() as f64 * 1e-6
    })
}

/// Largest resident memory of this process so far, in bytes; `None` where the system does not
/// report it.
///
/// Linux only: the `ru_maxrss` of others starts at the peak of the process that started this one.
pub fn peak_resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"))?;
    let kibibytes: u64 = line.split_whitespace().nth(1)?.parse().ok()?;
    Some(kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_os = "linux")]
    fn a_large_vector_raises_the_peak() {
        const BYTES: usize = 256 << 20;
        let large = std::hint::black_box(vec![1u8; BYTES]);
        drop(large);
        assert!(peak_resident_bytes().is_some_and(|peak| peak >= BYTES as u64));
    }
}
