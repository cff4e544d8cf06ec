//! What the server shows to its operator.

use super::Shared;
use crate::observe::{AtRest, Health, MemoryLevels, Metrics, OTHER, Observable};
use crate::store::{ModelDigest, StoreError};
use std::collections::HashMap;

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
        let served = self.models.all().into_iter();
        let labels: HashMap<ModelDigest, String> = served
            .map(|served| (served.digest, served.label()))
            .collect();
        let names = labels.values().cloned().chain([OTHER.to_owned()]);
        let mut at_rest: AtRest = names.map(|name| (name, 0)).collect();
        for (model, count) in self.store.at_rest()? {
            let name = labels.get(&model).map_or(OTHER, String::as_str);
            *at_rest.entry(name.into()).or_default() += count;
        }
        Ok(at_rest)
    }

    fn probe_store(&self) -> Result<(), StoreError> {
        self.store.probe()
    }
}
