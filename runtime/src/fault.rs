//! Places where a test can end the process, as `kill -9` would.
//!
//! A build with debug assertions aborts at the place that `PI_FAULT` names (`NAME`, or `NAME:N` for
//! the `N`-th pass); any other build compiles to nothing.

/// Ends the process here if the test asked for it.
#[inline]
pub(crate) fn point(name: &str) {
    #[cfg(debug_assertions)]
    armed(name);
    #[cfg(not(debug_assertions))]
    let _ = name;
}

#[cfg(debug_assertions)]
fn armed(name: &str) {
    use std::sync::atomic::{AtomicU64, Ordering};
    static PASSES: AtomicU64 = AtomicU64::new(0);
    let Ok(wanted) = std::env::var("PI_FAULT") else {
        return;
    };
    let (place, pass) = wanted.split_once(':').unwrap_or((&wanted, "1"));
    if place == name {
        let now = PASSES.fetch_add(1, Ordering::SeqCst) + 1;
        if pass.parse() == Ok(now) {
            eprintln!("fault point {name}");
            std::process::abort();
        }
    }
}
