//! A model as one party holds it.

use super::convolve::{self, Convolution};
use crate::flooding::flooding;
use crate::header::{BundleHeader, HeaderInputs};
use crate::indexed_circuit::{IndexedCircuit, Planned};
use crate::linear::Kernels;
use crate::{Error, cost};
use pi_ir::{Artifact, Weights, WeightsFile};
use pi_rlwe::Params;

/// The public part of a model, the same at both parties.
pub(crate) struct PublicModel {
    artifact: Artifact,
    digest: [u8; 32],
    pub(crate) indexed: IndexedCircuit,
}

impl PublicModel {
    fn new(artifact: Artifact) -> Result<Self, Error> {
        let indexed = IndexedCircuit::new(&artifact.circuit, artifact.plans())?;
        flooding(&artifact.circuit, artifact.plans())?.check(artifact.flooding_log2)?;
        Ok(PublicModel {
            indexed,
            digest: artifact.digest(),
            artifact,
        })
    }

    /// The header of a bundle that is prepared by this plan.
    pub(crate) fn header(
        &self,
        planned: &Planned,
        client_key: [u8; 32],
        inputs: &HeaderInputs,
    ) -> BundleHeader {
        BundleHeader {
            model: self.digest,
            plan: planned.digest,
            client_key,
            inputs: *inputs,
        }
    }

    #[cfg(test)]
    fn in_parts_of(mut self, bytes: usize) -> Self {
        self.indexed = self.indexed.in_parts_of(bytes);
        self
    }

    /// Ensures that a bundle was prepared for this model, in a batch of any of its plans.
    pub(crate) fn check_header(&self, header: &BundleHeader) -> Result<(), Error> {
        let mut digests = self.indexed.plan_digests();
        match header.model == self.digest && digests.any(|digest| digest == header.plan) {
            true => Ok(()),
            false => Err(Error::misuse("the bundle was prepared for another model")),
        }
    }
}

/// A model at the client: the public artifact.
pub struct ClientModel(PublicModel);

/// A model at the server: artifact and weights.
pub struct ServerModel {
    public: PublicModel,
    weights: Weights,
    /// Kernels by plan.
    kernels: Vec<Kernels>,
    convolutions: Vec<Vec<Convolution>>,
}

/// Memory for transformed kernels that a server keeps; convolutions beyond it are transformed for
/// every bundle.
const KERNEL_CACHE_BYTES: usize = 256 << 20;

impl ClientModel {
    /// The model of an artifact. Plans for batches are derived when they are first used, since the
    /// artifact is the server's word.
    ///
    /// # Errors
    /// [`Error::ApiMisuse`] with all faults if the plan for one bundle is not sound; if the
    /// flooding distance is not the stated one, or above
    /// [`LIMIT_LOG2`](crate::flooding::LIMIT_LOG2).
    pub fn new(artifact: Artifact) -> Result<Self, Error> {
        PublicModel::new(artifact).map(ClientModel)
    }

    /// The same model, exchanged in parts of other sizes.
    #[cfg(test)]
    pub(crate) fn in_parts_of(self, bytes: usize) -> Self {
        ClientModel(self.0.in_parts_of(bytes))
    }

    /// The artifact.
    pub fn artifact(&self) -> &Artifact {
        &self.0.artifact
    }

    /// The model digest, which binds the weights.
    pub fn digest(&self) -> [u8; 32] {
        self.0.digest
    }

    /// Costs of the model's set-up, bundles and answers.
    ///
    /// # Errors
    /// [`Error::ApiMisuse`] if a plan for batches is not sound.
    pub fn cost(&self) -> Result<cost::Cost, Error> {
        cost::of(&self.0.indexed)
    }

    /// `count` bundles as batches for which the model has plans, the largest first: the sizes, in
    /// the order in which both parties prepare them.
    pub fn batches(&self, count: usize) -> Vec<usize> {
        self.0.indexed.batches(count)
    }

    /// Derives the plans for batches of these sizes, unless they were used before: at most about a
    /// second for all plans of a model.
    ///
    /// # Errors
    /// [`Error::ApiMisuse`] if there is none for a size, or with all its faults.
    pub fn check_batches(&self, sizes: &[usize]) -> Result<(), Error> {
        let mut plans = sizes.iter().map(|&size| self.0.indexed.planned(size));
        plans.try_for_each(|planned| planned.map(|_| ()))
    }

    pub(crate) fn indexed(&self) -> &IndexedCircuit {
        &self.0.indexed
    }

    pub(crate) fn public(&self) -> &PublicModel {
        &self.0
    }
}

impl ServerModel {
    /// The model of an artifact and its weights, with all its plans.
    ///
    /// # Errors
    /// As [`ClientModel::new`] for every plan, and if the weights are not the artifact's.
    pub fn new(artifact: Artifact, weights: WeightsFile) -> Result<Self, Error> {
        artifact
            .check_weights(&weights)
            .map_err(|error| Error::misuse(error.to_string()))?;
        let public = PublicModel::new(artifact)?;
        let params = Params::standard();
        let weights = weights.weights;
        // A batch transforms a kernel once for many ciphertexts, so what is kept serves bundles
        // alone.
        let plans = public.indexed.all_planned()?;
        let alone = Kernels::prepare(&params, &plans[0].packing, &weights, KERNEL_CACHE_BYTES);
        let mut kernels = vec![alone.map_err(Error::misuse)?];
        for plan in &plans[1..] {
            kernels.push(kernels[0].placed_for(&plan.packing));
        }
        Ok(ServerModel {
            kernels,
            convolutions: convolve::prepare(&public.indexed.circuit, &weights),
            public,
            weights,
        })
    }

    /// The same model, exchanged in parts of other sizes.
    #[cfg(test)]
    pub(crate) fn in_parts_of(self, bytes: usize) -> Self {
        ServerModel {
            public: self.public.in_parts_of(bytes),
            ..self
        }
    }

    /// The artifact.
    pub fn artifact(&self) -> &Artifact {
        &self.public.artifact
    }

    /// The model digest, which binds the weights.
    pub fn digest(&self) -> [u8; 32] {
        self.public.digest
    }

    /// `count` bundles as batches for which the model has plans, the largest first: the sizes, in
    /// the order in which both parties prepare them.
    pub fn batches(&self, count: usize) -> Vec<usize> {
        self.public.indexed.batches(count)
    }

    pub(crate) fn indexed(&self) -> &IndexedCircuit {
        &self.public.indexed
    }

    pub(crate) fn weights(&self) -> &Weights {
        &self.weights
    }

    /// The kernels placed for the plan for this many bundles.
    pub(crate) fn kernels(&self, bundles: usize) -> Result<&Kernels, Error> {
        Ok(&self.kernels[self.indexed().place(bundles)?])
    }

    /// A layer's convolutions, as they are computed online.
    pub(crate) fn convolutions(&self, layer: usize) -> &[Convolution] {
        &self.convolutions[layer]
    }

    pub(crate) fn public(&self) -> &PublicModel {
        &self.public
    }
}

impl std::fmt::Debug for ClientModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ClientModel({})", self.0.artifact.circuit.name)
    }
}

impl std::fmt::Debug for ServerModel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ServerModel({})", self.public.artifact.circuit.name)
    }
}
