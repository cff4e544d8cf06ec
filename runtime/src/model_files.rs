//! The two files of a model directory, as `pi-compile` writes them.

use crate::error::Error;
use crate::store::ModelDigest;
use pi_ir::{Artifact, WeightsFile, artifact};
use std::path::Path;

/// Reads the public file of a model, and returns it with its bytes.
///
/// # Errors
/// [`Error::Model`] if the file is absent or holds no sound artifact.
pub fn read_artifact(directory: &Path) -> Result<(Artifact, Vec<u8>), Error> {
    let bytes = read(directory, artifact::ARTIFACT_NAME)?;
    let artifact = Artifact::decode(&bytes).map_err(|e| unusable(directory, e))?;
    Ok((artifact, bytes))
}

/// Reads the server's file of a model. A client never has it.
///
/// # Errors
/// [`Error::Model`] if the file is absent or holds no weights.
pub fn read_weights(directory: &Path) -> Result<WeightsFile, Error> {
    let bytes = read(directory, artifact::WEIGHTS_NAME)?;
    WeightsFile::decode(&bytes).map_err(|e| unusable(directory, e))
}

/// The digest of the model in a directory, without its weights being read.
///
/// # Errors
/// As [`read_artifact`].
pub(crate) fn digest(directory: &Path) -> Result<ModelDigest, Error> {
    Ok(read_artifact(directory)?.0.digest())
}

fn read(directory: &Path, name: &str) -> Result<Vec<u8>, Error> {
    let bytes = std::fs::read(directory.join(name));
    bytes.map_err(|error| unusable(directory, format!("{name}: {error}")))
}

/// The error of a directory that holds no usable model.
pub(crate) fn unusable(directory: &Path, reason: impl ToString) -> Error {
    Error::Model {
        directory: directory.into(),
        reason: reason.to_string(),
    }
}
