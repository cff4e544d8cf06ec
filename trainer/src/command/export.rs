//! `pi-train export`: a checkpoint as the compiler's float graph.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;

use super::device::NamedDevice;
use super::source::SourceArguments;
use crate::export;

/// Arguments of `pi-train export`.
#[derive(Args, Clone, Debug)]
pub struct ExportArguments {
    #[command(flatten)]
    source: SourceArguments,
    /// File to write, conventionally model.graph.
    #[arg(long)]
    out: PathBuf,
    /// Writes the same network to this file as an ONNX model, masks and quadratics included.
    #[arg(long, value_name = "FILE.onnx")]
    onnx: Option<PathBuf>,
    /// Test images that the graph is checked on.
    #[arg(long, default_value_t = 64)]
    images: usize,
}

/// Writes the graph, once its logits are seen to equal the model's.
///
/// # Errors
/// A checkpoint or test images that cannot be read; a network that no graph can express; logits
/// that differ.
pub fn export(arguments: &ExportArguments, device: &NamedDevice) -> Result<()> {
    let (run, test, _) = arguments.source.open(&device.device)?;
    let (bytes, worst) = export::export(&run, &test, arguments.images, &arguments.out)?;
    eprintln!(
        "{}: {bytes} bytes; logits of {} images differ by at most {worst:.1e}",
        arguments.out.display(),
        arguments.images.min(test.len())
    );
    if let Some(path) = &arguments.onnx {
        let words = export::export_onnx(&run, path)?;
        eprintln!("{}: {words}", path.display());
    }
    Ok(())
}
