//! The parts that the benchmarks of whole inferences share.

mod circuit;
mod line;
mod link;
pub(crate) mod machine;
pub(crate) mod measure;
mod netem;
pub(crate) mod network;
pub(crate) mod options;
pub(crate) mod party;
pub(crate) mod predict;
mod probe;
mod relay;

/// The command that this process was started with, as a user types it.
pub(crate) fn command(bench: &str) -> String {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench")
        .collect();
    format!("cargo bench --bench {bench} -- {}", arguments.join(" "))
}
