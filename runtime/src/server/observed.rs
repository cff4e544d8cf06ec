//! What the server shows to its operator.

use super::Shared;
use crate::fingerprint::short;
use crate::observe::{AtRest, Health, MemoryLevels, Metrics, OTHER, Observable};
use crate::store::{BundleState, ModelDigest, StoreError};

/// The name of a model in metrics, logs and traces.
pub(super) fn model_name(digest: &ModelDigest) -> String {
    short(digest)
}

impl Observable for Shared {
    fn metrics(&self) -> &Metrics {
        &self.metrics
    }

    fn health(&self) -> &Health {
        &self.health
    }

    fn memory(&self) -> MemoryLevels {
        self.memory.levels()
    }

    fn bundles_at_rest(&self) -> Result<AtRest, StoreError> {
        let mut at_rest = AtRest::from([(self.model_name.clone(), 0), (OTHER.into(), 0)]);
        for entry in self.store.bundles()? {
            if entry.state == BundleState::Ready {
                let served = entry.model == self.digest;
                let model = if served { &self.model_name } else { OTHER };
                *at_rest.entry(model.into()).or_default() += 1;
            }
        }
        Ok(at_rest)
    }

    fn probe_store(&self) -> Result<(), StoreError> {
        self.store.probe()
    }
}
