//! Blocks, re-keyed hash, bit transposition, half-gates and the garbled sign circuit.
