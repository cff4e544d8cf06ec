//! See `pi_runtime::command::server`.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    pi_runtime::command::server::main()
}
