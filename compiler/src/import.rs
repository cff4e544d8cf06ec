//! Verifies the graph as it arrives, before any pass relies on it.

use crate::fault::Refused;
use pi_ir::{Graph, verify};

/// Ensures that the graph has no fault.
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
