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

/// Means and deviations of pixels from 0 to 1, or of values, of a network that was trained with
/// `white` for a white pixel: none where none are given and none are needed.
pub fn in_unit_pixels(
    mean: Option<&[f32]>,
    deviation: Option<&[f32]>,
    white: f32,
) -> (Option<Vec<f32>>, Option<Vec<f32>>) {
    let scaled = |list: Option<&[f32]>, default: f32| match (list, white) {
        (list, 1.0) => list.map(<[f32]>::to_vec),
        (None, white) => Some(vec![default / white]),
        (Some(list), white) => Some(list.iter().map(|v| v / white).collect()),
    };
    (scaled(mean, 0.0), scaled(deviation, 1.0))
}
