//! What the benchmarks of whole inferences share.

pub(crate) mod machine;
pub(crate) mod measure;
pub(crate) mod network;
pub(crate) mod party;
pub(crate) mod predict;
pub(crate) mod relay;

/// The command that this process was started with, as a user types it.
pub(crate) fn command(bench: &str) -> String {
    let arguments: Vec<String> = std::env::args()
        .skip(1)
        .filter(|argument| argument != "--bench")
        .collect();
    format!("cargo bench --bench {bench} -- {}", arguments.join(" "))
}

/// The line that a name on the command line means; `loopback` is none.
///
/// # Errors
/// If no line has this name.
pub(crate) fn link(name: &str) -> Result<Option<relay::Link>, String> {
    match name {
        "loopback" => Ok(None),
        "lan" => Ok(Some(relay::Link::LAN)),
        "wan" => Ok(Some(relay::Link::WAN)),
        _ => Err(format!("{name:?} is none of loopback, lan and wan")),
    }
}
