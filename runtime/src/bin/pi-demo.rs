//! See `pi_runtime::command::demo`.
#![forbid(unsafe_code)]

fn main() -> std::process::ExitCode {
    pi_runtime::command::demo::main()
}
