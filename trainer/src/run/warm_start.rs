//! A run that begins with the weights of another.

use anyhow::{Result, bail, ensure};

use super::Run;
use crate::config::WarmStart;
use crate::network::Parameter;
use crate::network::parameter::node_of;
use crate::network::state::Stored;

impl Run {
    /// Copies what fits from another run: everything but the classifier, which may have other
    /// classes.
    pub(super) fn warm_start(&mut self, source: &Run, warm: &WarmStart) -> Result<()> {
        ensure!(
            source.finished(),
            "its run is not finished: train it to its end first"
        );
        ensure!(
            source.state.selection.is_none(),
            "it is in the middle of a selection: train it to the end of its stage"
        );
        let (parameters, buffers) = (
            source.state.parameter_arrays(),
            source.state.buffer_arrays(),
        );
        if warm.activations {
            let same = self.network.sites().eq(source.network.sites());
            ensure!(
                same,
                "its activation sites are others; set warm_start.activations = false to take the \
                 weights alone"
            );
            let masks = source.state.mask_codes();
            let mut taken = parameters.clone();
            for (name, array) in self.state.parameter_arrays() {
                if name.starts_with("dense.")
                    && taken.get(&name).map(|a| &a.shape) != Some(&array.shape)
                {
                    taken.insert(name, array);
                }
            }
            return self.state.restore(
                &self.network,
                Stored {
                    functions: source.state.functions.clone(),
                    selection: None,
                    parameters: taken,
                    buffers,
                    masks,
                },
            );
        }
        let sites: Vec<String> = self
            .network
            .sites()
            .map(|(site, _)| site.to_owned())
            .collect();
        // A classifier of other classes, and polynomial kernels that stand there alone, begin anew.
        let renewed = |name: &str| {
            matches!(
                Parameter::parse(name),
                Some(("dense", _) | (_, Parameter::Shift | Parameter::LogScale))
            )
        };
        let of_site = |name: &str| {
            let node = node_of(name);
            sites.iter().any(|site| site == node)
        };
        for (name, array) in self.state.parameter_arrays() {
            match parameters.get(&name) {
                Some(theirs) if theirs.shape == array.shape => {
                    self.state.put_parameter(&name, theirs.clone());
                }
                _ if renewed(&name) || of_site(&name) => {}
                other => bail!(
                    "{name} is {:?} there, {:?} here",
                    other.map(|a| &a.shape),
                    array.shape
                ),
            }
        }
        for (name, array) in self.state.buffer_arrays() {
            if let Some(theirs) = buffers.get(&name).filter(|a| a.shape == array.shape) {
                self.state.put_buffer(&name, theirs.clone());
            }
        }
        Ok(())
    }
}
