//! What this process has used.

use nix::sys::resource::{UsageWho, getrusage};

/// User CPU seconds of all threads of this process; 0 where the system does not tell.
pub fn user_seconds() -> f64 {
    getrusage(UsageWho::RUSAGE_SELF).map_or(0.0, |usage| {
        let time = usage.user_time();
        time.tv_sec() as f64 + time.tv_usec() as f64 * 1e-6
    })
}
