//! Trains networks whose activations a two-party computation can afford.
//!
//! An experiment file ([`config`]) names a data set ([`data`]), a network ([`network`]) and a list
//! of stages, each with a [`method`] that says what it does beside training. A [`run`] takes the
//! network through them, on differentiable operations written for it ([`kernels`]) and optimisers
//! whose state stays on the device ([`optimise`], [`schedule`]). An [`experiment`] is a run in its
//! folder: its state ([`checkpoint`]) in files that are whole or absent ([`atomic`]), and a
//! [`log`]. Its answers to the training images can teach other runs ([`soft_labels`]). It leaves as
//! a float graph for the compiler ([`export`]), whose predicted costs can guide which ReLUs stay
//! ([`costs`]). Logs become charts ([`plot`]), results ([`result`]) a table ([`report`]);
//! [`compare`] holds another device against the CPU. The binary is `pi-train`, and its subcommands
//! stand in [`command`].
#![forbid(unsafe_code)]

pub mod atomic;
pub mod checkpoint;
pub mod command;
pub mod compare;
pub mod config;
mod container;
pub mod costs;
pub mod data;
pub mod experiment;
pub mod export;
pub mod kernels;
pub mod log;
mod loss;
pub mod method;
pub mod network;
pub mod optimise;
pub mod pattern;
pub mod plot;
mod random;
pub mod report;
pub mod result;
pub mod run;
pub mod schedule;
pub mod soft_labels;
pub mod tensors;
