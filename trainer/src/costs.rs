//! What the activations of a network cost in the protocol, as the compiler predicts it: a JSON file.
//!
//! ```json
//! {
//!   "version": 1,
//!   "sites": {
//!     "stem.act": {
//!       "lan": { "per_relu_ms": 0.0004, "layer_ms": 1.2 },
//!       "wan": { "per_relu_ms": 0.002, "layer_ms": 80.0 }
//!     }
//!   }
//! }
//! ```
//!
//! By site and network profile: what one ReLU costs online, and what the layer costs beyond its ReLUs as long as it has any
//! activation (its messages' latency).

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

/// Costs of a network's activations.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Costs {
    /// Format of the file: 1.
    pub version: u32,
    /// By activation site and network profile.
    pub sites: BTreeMap<String, BTreeMap<String, SiteCost>>,
}

/// Costs of one site under one profile, in milliseconds online.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct SiteCost {
    /// One ReLU.
    pub per_relu_ms: f64,
    /// The layer beyond its ReLUs, while it has an activation.
    pub layer_ms: f64,
}

impl Costs {
    /// Reads a file.
    ///
    /// # Errors
    /// A file that cannot be read, is of another form or version, or holds numbers that are no costs.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read the costs {}", path.display()))?;
        let costs: Self = serde_json::from_str(&text)
            .with_context(|| format!("{} is no file of costs", path.display()))?;
        ensure!(
            costs.version == 1,
            "{} is of version {}, this pi-train reads version 1",
            path.display(),
            costs.version
        );
        let all = costs.sites.values().flat_map(BTreeMap::values);
        for cost in all {
            ensure!(
                cost.per_relu_ms >= 0.0 && cost.layer_ms >= 0.0,
                "{} has a cost that is negative or no number",
                path.display()
            );
        }
        Ok(costs)
    }

    /// # Errors
    /// A profile that some site has no costs for, with those there are.
    pub fn check_profile(&self, profile: &str) -> Result<()> {
        for (site, profiles) in &self.sites {
            ensure!(
                profiles.contains_key(profile),
                "no costs of {site} under \"{profile}\"; there are {}",
                profiles.keys().cloned().collect::<Vec<_>>().join(", ")
            );
        }
        Ok(())
    }

    /// Milliseconds saved by removing `relus` ReLUs of a site, which `empties` it or not.
    ///
    /// # Errors
    /// A site or profile without costs.
    pub fn saved(&self, site: &str, profile: &str, relus: usize, empties: bool) -> Result<f64> {
        let cost = self
            .sites
            .get(site)
            .and_then(|profiles| profiles.get(profile))
            .with_context(|| {
                format!("the costs have nothing on {site} under \"{profile}\": they are of another network")
            })?;
        let layer = if empties { cost.layer_ms } else { 0.0 };
        Ok(cost.per_relu_ms * relus as f64 + layer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn emptying_a_layer_saves_its_messages_too() {
        let text =
            r#"{"version": 1, "sites": {"a": {"wan": {"per_relu_ms": 0.5, "layer_ms": 80}}}}"#;
        let costs: Costs = serde_json::from_str(text).unwrap();
        assert_eq!(costs.saved("a", "wan", 10, false).unwrap(), 5.0);
        assert_eq!(costs.saved("a", "wan", 10, true).unwrap(), 85.0);
        assert!(costs.saved("b", "wan", 1, false).is_err());
        assert!(
            costs
                .check_profile("lan")
                .unwrap_err()
                .to_string()
                .contains("wan")
        );
    }
}
