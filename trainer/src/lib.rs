//! Trains networks whose activations a two-party computation can afford.
//!
//! A run reads an experiment file ([`config`]) and CIFAR-10 ([`data`]), builds a residual network of masked
//! activations ([`network`]) on differentiable operations written for it ([`kernels`]), trains it ([`train`]), cuts its
//! ReLUs to a budget on the way ([`mask`]), keeps its state in files that are whole or absent ([`checkpoint`]), and
//! leaves as a float graph for the compiler ([`export`]), whose predicted costs it reads ([`costs`]). Logs ([`log`]) become
//! charts ([`plot`]), results ([`result`]) a table ([`report`]); [`command`] has both as subcommands. The binary is `pi-train`.
#![forbid(unsafe_code)]

pub mod checkpoint;
pub mod command;
mod composed;
pub mod config;
pub mod costs;
pub mod data;
pub mod export;
pub mod kernels;
pub mod log;
pub mod mask;
pub mod network;
pub mod optimise;
pub mod plot;
pub mod report;
pub mod result;
pub mod train;
