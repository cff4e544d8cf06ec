//! An optimiser's state in a file, and from one stage to the next.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};

use super::{AVERAGE, Optimiser};
use crate::checkpoint::{Array, Arrays};
use crate::tensors::{Tensors, download, upload};

impl Optimiser {
    /// All state, for a file: `<what>/<parameter>`, and scalars.
    pub fn export(&self) -> Arrays {
        let mut arrays = Arrays::new();
        for (name, vector) in &self.vectors {
            for (part, values) in self.layout.download(vector) {
                let shape = vec![values.len()];
                arrays.insert(format!("{name}/{part}"), Array { shape, values });
            }
        }
        for (name, scalar) in &self.scalars {
            let (shape, values) = (vec![1], download(scalar.clone()));
            arrays.insert(name.clone(), Array { shape, values });
        }
        // Counts beyond 2^24 do not fit a float: two halves of 20 bits do.
        for (name, count) in [("steps", self.steps), ("averaged", self.averaged)] {
            let values = vec![(count >> 20) as f32, (count & 0xf_ffff) as f32];
            let shape = vec![2];
            arrays.insert(name.to_owned(), Array { shape, values });
        }
        arrays
    }

    /// Takes over exported state, bit for bit.
    ///
    /// # Errors
    /// State of other parameters or of another rule, by name.
    pub fn import(&mut self, arrays: Arrays) -> Result<()> {
        let count = |high: f32, low: f32| ((high as u64) << 20).saturating_add(low as u64);
        let mut parts = BTreeMap::<String, Arrays>::new();
        let (mut scalars, mut steps, mut averaged) = (Tensors::new(), None, None);
        for (name, array) in arrays {
            let known = |what: &str| what == AVERAGE || self.config.rule.state().contains(&what);
            match (name.as_str(), array.values.as_slice()) {
                ("steps", [high, low]) => steps = Some(count(*high, *low)),
                ("averaged", [high, low]) => averaged = Some(count(*high, *low)),
                (scalar @ ("loss" | "inner"), [value]) if known(scalar) => {
                    let value = upload(vec![*value], &self.device);
                    scalars.insert(name, value);
                }
                _ => match name.split_once('/') {
                    Some((what, part)) if known(what) => {
                        let parts = parts.entry(what.to_owned()).or_default();
                        parts.insert(part.to_owned(), array);
                    }
                    _ => bail!(
                        "the optimiser's state has {name}, which this optimiser does not have"
                    ),
                },
            }
        }
        let mut vectors = BTreeMap::new();
        for (what, parts) in parts {
            let vector = self
                .layout
                .upload(&parts)
                .with_context(|| format!("the optimiser's {what}"))?;
            vectors.insert(what, vector);
        }
        let steps = steps.context("the optimiser's state has no count of steps")?;
        let averaged = averaged.context("the optimiser's state has no count of averages")?;
        let has = |what: &&str| vectors.contains_key(*what) || scalars.contains_key(*what);
        ensure!(
            steps == 0 || self.layout.is_empty() || self.config.rule.state().iter().all(has),
            "the optimiser's state is of another rule: it lacks one of {}",
            self.config.rule.state().join(", ")
        );
        (self.vectors, self.scalars) = (vectors, scalars);
        (self.steps, self.averaged) = (steps, averaged);
        Ok(())
    }

    /// Takes over the state of an optimiser of the same rule, parameter by parameter; what is new
    /// begins at zero, and averages of the weights begin anew. Does nothing if the rules differ.
    pub fn carry(&mut self, old: &Optimiser) {
        if self.config.rule != old.config.rule {
            return;
        }
        self.steps = old.steps;
        self.scalars = old.scalars.clone();
        for (name, vector) in old.vectors.iter().filter(|(name, _)| *name != AVERAGE) {
            let mut named = Tensors::new();
            old.layout.scatter(vector, &mut named);
            named.retain(|part, tensor| self.layout.has(part, tensor.dims()[0]));
            self.vectors
                .insert(name.clone(), self.layout.gather(&named));
        }
    }
}
