//! Trained graph to fixed-point circuit, chosen for cost.
