//! The graph as it arrives: verified whole, before any pass relies on it.

use crate::fault::{Fault, Refused};
use pi_ir::{Graph, verify};

/// Ensures that the graph is sound.
///
/// # Errors
/// Every fault the verifier finds.
pub fn import(graph: &Graph) -> Result<(), Refused> {
    let faults = verify::graph(graph).into_iter();
    let faults = faults.map(|f| Fault::new(f.place, f.problem)).collect();
    Refused::unless_empty(faults, ())
}
