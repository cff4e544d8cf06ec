//! The graph as it arrives: verified whole, before any pass relies on it.

use crate::fault::Refused;
use pi_ir::{Graph, verify};

/// Ensures that the graph is sound.
///
/// # Errors
/// Every fault the verifier finds.
pub fn import(graph: &Graph) -> Result<(), Refused> {
    let faults = verify::graph(graph);
    match faults.is_empty() {
        true => Ok(()),
        false => Err(faults.into()),
    }
}
