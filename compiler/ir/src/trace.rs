//! The client's shares before each truncation of one run.
//!
//! With them the fixed-point interpreter reproduces each carry of the two-party truncation, and its
//! result must equal the private one bit for bit: `t = ((c + B) mod p >> f) - (((p - d) mod p) >>
//! f) - (B >> f)`, with `d = (x - c) mod p`.

/// The shares of one run; secret, made only for checks on the client's own machine.
#[derive(Clone, PartialEq, Eq)]
pub struct Trace {
    /// One entry per layer.
    pub layers: Vec<LayerTrace>,
}

/// The client's shares in one layer, as residues mod `p`.
#[derive(Clone, PartialEq, Eq)]
pub struct LayerTrace {
    /// Share of the sum before the truncation, per element; for the output layer, its share of the
    /// logits.
    pub before_truncation: Vec<u64>,
    /// Share before the second truncation, per element in the order of those elements of the layer
    /// that are squares or polynomials.
    pub before_post_truncation: Vec<u64>,
}

impl std::fmt::Debug for Trace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Trace {{ {} layers, shares withheld }}",
            self.layers.len()
        )
    }
}

impl std::fmt::Debug for LayerTrace {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LayerTrace { shares withheld }")
    }
}
