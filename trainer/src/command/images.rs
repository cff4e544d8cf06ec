//! The images that commands train and test on.

use anyhow::{Result, ensure};
use burn::tensor::Device;

use crate::data::{Data, DataConfig, DeviceSet, Source};
use crate::run::{Images, Run};

/// The training and held-out images of a configuration.
pub(super) fn load(config: &DataConfig, device: &Device) -> Result<(Images, Data)> {
    let sets = Source::open(config)?.sets()?;
    let images = Images {
        dataset: sets.description,
        shape: sets.train.shape,
        classes: sets.classes,
        normalisation: sets.normalisation.clone(),
    };
    let data = Data {
        train: DeviceSet::new(sets.train, sets.normalisation.clone(), device),
        holdout: DeviceSet::new(sets.holdout, sets.normalisation, device),
    };
    Ok((images, data))
}

/// The test batch, normalised as the run's images, and the description of its set.
pub(super) fn load_test(
    config: &DataConfig,
    run: &Run,
    device: &Device,
) -> Result<(DeviceSet, String)> {
    let source = Source::open(config)?;
    let images = &run.meta.images;
    let test = source.test()?;
    ensure!(
        test.shape == images.shape && source.classes() == images.classes,
        "the model is of {}, images of {:?}; the test images are of {}, {:?}",
        images.dataset,
        images.shape,
        source.description(),
        test.shape
    );
    let normalisation = images.normalisation.clone();
    let test = DeviceSet::new(test, normalisation, device);
    Ok((test, source.description().to_owned()))
}
