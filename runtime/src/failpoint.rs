//! Named places where a test can end the process, as `kill -9` would, and a clock that it can set.
//!
//! In a build with debug assertions, the process aborts at the failpoint that `PI_FAULT` names
//! (`NAME`, or `NAME:N` for the `N`-th time it is reached), and the time of day is wrong by as many
//! seconds as the file says that `PI_CLOCK` names. In any other build a failpoint compiles to
//! nothing, and the time is the system's.

use std::time::SystemTime;

/// Aborts the process here if `PI_FAULT` asks for it.
#[inline]
pub(crate) fn reach(name: &str) {
    #[cfg(debug_assertions)]
    abort_if_armed(name);
    #[cfg(not(debug_assertions))]
    let _ = name;
}

/// The time of day.
pub(crate) fn now() -> SystemTime {
    #[cfg(debug_assertions)]
    return set_by_test().unwrap_or_else(SystemTime::now);
    #[cfg(not(debug_assertions))]
    SystemTime::now()
}

#[cfg(debug_assertions)]
fn set_by_test() -> Option<SystemTime> {
    let file = std::env::var_os("PI_CLOCK")?;
    let seconds: i64 = std::fs::read_to_string(file).ok()?.trim().parse().ok()?;
    let step = std::time::Duration::from_secs(seconds.unsigned_abs());
    match seconds < 0 {
        true => SystemTime::now().checked_sub(step),
        false => SystemTime::now().checked_add(step),
    }
}

#[cfg(debug_assertions)]
fn abort_if_armed(name: &str) {
    use std::sync::atomic::{AtomicU64, Ordering};
    static PASSES: AtomicU64 = AtomicU64::new(0);
    let Ok(wanted) = std::env::var("PI_FAULT") else {
        return;
    };
    let (place, pass) = wanted.split_once(':').unwrap_or((&wanted, "1"));
    if place == name {
        let now = PASSES.fetch_add(1, Ordering::SeqCst) + 1;
        if pass.parse() == Ok(now) {
            eprintln!("failpoint {name} reached");
            std::process::abort();
        }
    }
}
