//! The contract between all crates: graph, circuit, plan, interpreters and artifact files.
