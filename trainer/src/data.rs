//! Labelled images: where they come from, how they are normalised, and batches of them on the
//! device that trains.
//!
//! [`DataConfig`] names a data set and [`Source`] opens it: CIFAR-10 and CIFAR-100, MNIST and
//! Fashion-MNIST, Tiny-ImageNet, a folder of images, or images drawn by code; from the files the
//! set is published in, or from one packed file ([`pack`]). [`DeviceSet`] gives normalised and
//! augmented batches. Every file is checked before an image of it is used, and every error names
//! the file, what was expected of it and what to do.
//!
//! Training images come in an order that a prefix or a suffix can be cut from: sets whose files are
//! sorted by class are dealt out one image of each class in turn, so that the held-out images,
//! which are the last ones, hold all classes.

mod augment;
mod cache;
mod cifar;
mod config;
mod dataset;
mod decode;
mod device;
mod files;
mod folder;
mod idx;
mod inspect;
mod normalisation;
mod order;
pub mod pack;
mod procedural;
mod source;
mod tiny;

pub use augment::{Augmentation, BatchSeed, Flip, View};
pub use cifar::{CLASSES as CIFAR10_CLASSES, check_originals, originals};
pub use config::{DataConfig, Kind};
pub use dataset::Dataset;
pub use device::{Data, DeviceSet};
pub use inspect::{Summary, contact_sheet};
pub use normalisation::{Normalisation, NormalisationConfig};
pub use order::permutation;
pub use source::{Sets, Source};

use order::interleaved;
use source::{Part, Reader};
