//! See `pi_runtime::command::server`.
#![deny(unsafe_code)]

fn main() -> std::process::ExitCode {
    #[cfg(all(target_os = "linux", target_env = "gnu"))]
    give_memory_back();
    pi_runtime::command::server::main()
}

/// Gives memory that is free back to the system, once a minute for as long as the process runs.
///
/// The C library keeps what was freed, and what operations take at once differs so much that the
/// process would be as large as it ever was: in an hour of soak it grew in steps, by 9 % in the
/// last 20 minutes. Without the thread the server works as well.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
#[allow(unsafe_code, reason = "the allocator is asked by a C function alone")]
fn give_memory_back() {
    const EVERY: std::time::Duration = std::time::Duration::from_secs(60);
    let keep_giving = || loop {
        std::thread::sleep(EVERY);
        // SAFETY: may be called by any thread at any time; it takes the allocator's own locks, and
        // touches no memory that is in use.
        unsafe { nix::libc::malloc_trim(0) };
    };
    let thread = std::thread::Builder::new().name("give back".into());
    let _ = thread.spawn(keep_giving);
}
