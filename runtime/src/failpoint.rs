//! Named places where a test can end the process, as `kill -9` would.
//!
//! In a build with debug assertions, the process aborts at the failpoint that `PI_FAULT` names
//! (`NAME`, or `NAME:N` for the `N`-th time it is reached). In any other build a failpoint compiles
//! to nothing.

/// Aborts the process here if `PI_FAULT` asks for it.
#[inline]
pub(crate) fn reach(name: &str) {
    #[cfg(debug_assertions)]
    abort_if_armed(name);
    #[cfg(not(debug_assertions))]
    let _ = name;
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
