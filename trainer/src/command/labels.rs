//! `pi-train labels`: a model's logits of the training images, for a stage that learns from them.

use std::path::PathBuf;

use anyhow::{Result, bail, ensure};
use clap::Args;
use indicatif::ProgressBar;

use super::device::NamedDevice;
use crate::checkpoint::Checkpoint;
use crate::config::Config;
use crate::data::{DeviceSet, Source, View};
use crate::run::{Run, checkpoint_path};
use crate::soft_labels::SoftLabels;

/// Arguments of `pi-train labels`.
#[derive(Args, Clone, Debug)]
pub struct LabelsArguments {
    /// Checkpoint of the run that teaches, or the folder that holds it.
    #[arg(long)]
    checkpoint: PathBuf,
    /// Experiment that will learn from the labels, whose training images are labelled; those of the
    /// checkpoint's own run if absent. The normalisation is the checkpoint's.
    #[arg(long)]
    config: Option<PathBuf>,
    /// Override a key of the file; may be given several times.
    #[arg(long = "set", value_name = "SECTION.KEY=VALUE", requires = "config")]
    overrides: Vec<String>,
    /// Views of an image that the logits are the mean of: 1, 2 (mirrored), 3 (shifted by a pixel
    /// along the diagonal, there and back), or 6 (both).
    #[arg(long, default_value_t = 6)]
    views: usize,
    /// File to write.
    #[arg(long)]
    out: PathBuf,
}

/// Writes the labels.
///
/// # Errors
/// A checkpoint or images that cannot be read, or that do not fit each other; another number of
/// views; a model whose answers are not finite.
pub fn labels(arguments: &LabelsArguments, device: &NamedDevice) -> Result<()> {
    let views = views(arguments.views)?;
    let path = checkpoint_path(&arguments.checkpoint);
    let run = Run::from_checkpoint(Checkpoint::load(&path)?, device.device.clone())?;
    let config = match &arguments.config {
        Some(path) => Config::load(path, &arguments.overrides)?.data,
        None => run.meta.config.data.clone(),
    };
    let sets = Source::open(&config)?.sets()?;
    let images = &run.meta.images;
    ensure!(
        sets.train.shape == images.shape && sets.classes == images.classes,
        "the model is of {}, images of {:?}; the images to label are of {}, {:?}",
        images.dataset,
        images.shape,
        sets.description,
        sets.train.shape
    );
    let set = DeviceSet::new(sets.train, images.normalisation.clone(), &device.device);
    let labels = SoftLabels::of(&run, &set, &views, &ProgressBar::new(0))?;
    labels.save(&arguments.out)?;
    eprintln!(
        "{}: logits of {} images, each the mean of {} views",
        arguments.out.display(),
        set.len(),
        views.len()
    );
    Ok(())
}

fn views(count: usize) -> Result<Vec<View>> {
    let shifts: &[i8] = match count {
        1 | 2 => &[0],
        3 | 6 => &[0, -1, 1],
        _ => bail!("--views is {count}, must be 1, 2, 3 or 6"),
    };
    let flips: &[bool] = if count.is_multiple_of(2) {
        &[false, true]
    } else {
        &[false]
    };
    let views = shifts
        .iter()
        .flat_map(|shift| flips.iter().map(|flip| View::new(*shift, *flip)));
    Ok(views.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn six_views_are_three_shifts_mirrored_and_not() {
        assert_eq!(views(1).unwrap(), [View::new(0, false)]);
        assert_eq!(views(2).unwrap(), [View::new(0, false), View::new(0, true)]);
        let six = views(6).unwrap();
        for shift in -1..=1 {
            for flip in [false, true] {
                let view = View::new(shift, flip);
                assert_eq!(six.iter().filter(|own| **own == view).count(), 1);
            }
        }
        assert_eq!((six.len(), views(3).unwrap().len()), (6, 3));
        assert!(views(4).unwrap_err().to_string().contains("--views is 4"));
    }
}
