//! See `pi_runtime::command::client`.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    pi_runtime::command::client::main()
}
