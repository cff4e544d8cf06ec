//! The byte form of the client's shares of one run, which a check against the exact interpreter
//! needs. They are as secret as the input; the page never asks for them.
//!
//! Per layer two lists, each its length (4 bytes) and its residues (8 bytes each), little endian.

use pi_ir::{LayerTrace, Trace};

/// The bytes of a trace.
pub fn encode(trace: &Trace) -> Vec<u8> {
    let mut bytes = Vec::new();
    for layer in &trace.layers {
        for list in [&layer.before_truncation, &layer.before_post_truncation] {
            bytes.extend_from_slice(&(list.len() as u32).to_le_bytes());
            bytes.extend(list.iter().flat_map(|share| share.to_le_bytes()));
        }
    }
    bytes
}

/// The trace of these bytes; `None` if they are cut short.
pub fn decode(mut bytes: &[u8]) -> Option<Trace> {
    let mut list = || {
        let length = u32::from_le_bytes(*bytes.split_off(..4)?.first_chunk()?) as usize;
        let shares = bytes.split_off(..length.checked_mul(8)?)?;
        let (shares, _) = shares.as_chunks();
        Some(shares.iter().map(|share| u64::from_le_bytes(*share)))
            .map(|shares| (shares.collect::<Vec<u64>>(), bytes.is_empty()))
    };
    let mut layers = Vec::new();
    loop {
        let (before_truncation, _) = list()?;
        let (before_post_truncation, last) = list()?;
        layers.push(LayerTrace {
            before_truncation,
            before_post_truncation,
        });
        if last {
            return Some(Trace { layers });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_come_back() {
        let layer = |n: u64| LayerTrace {
            before_truncation: (0..n).collect(),
            before_post_truncation: vec![u64::MAX; 2],
        };
        let trace = Trace {
            layers: vec![layer(3), layer(0), layer(9)],
        };
        let bytes = encode(&trace);
        assert!(decode(&bytes) == Some(trace));
        assert!(decode(&bytes[..bytes.len() - 1]).is_none());
    }
}
