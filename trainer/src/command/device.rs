//! `--device`: the processor that computes.

use anyhow::Result;
use burn::tensor::Device;
use clap::ValueEnum;

/// Processor that computes.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Processor {
    /// The CPU: all cores, or as many as RAYON_NUM_THREADS says.
    Cpu,
    /// The first CUDA device; needs a build with `--features cuda`.
    Cuda,
}

/// An open device with its name.
pub struct NamedDevice {
    /// The device.
    pub device: Device,
    /// Name of the device in results.
    pub name: &'static str,
}

impl Processor {
    /// Opens the processor.
    ///
    /// # Errors
    /// A `PI_BACKEND` that this machine cannot run; a CUDA device that is missing or does not
    /// compute, or a build without CUDA.
    pub fn open(self) -> Result<NamedDevice> {
        match self {
            Processor::Cpu => {
                pi_kernels::Backend::chosen()?;
                Ok(NamedDevice {
                    device: Device::flex(),
                    name: "CPU, burn flex",
                })
            }
            #[cfg(feature = "cuda")]
            Processor::Cuda => Ok(NamedDevice {
                device: open_cuda()?,
                name: "CUDA, burn cubecl",
            }),
            #[cfg(not(feature = "cuda"))]
            Processor::Cuda => {
                anyhow::bail!(
                    "this pi-train was built without CUDA: build it with trainer/cuda/build.sh"
                )
            }
        }
    }
}

/// The first CUDA device, once it has computed something. CUDA's libraries are loaded when they are
/// first needed, and a missing one panics there: better here than in the midst of a run.
#[cfg(feature = "cuda")]
fn open_cuda() -> Result<Device> {
    use anyhow::ensure;
    use burn::tensor::{DeviceType, Tensor};
    ensure!(
        !Device::enumerate(DeviceType::Cuda).is_empty(),
        "there is no CUDA device, or no driver for it: libcuda.so.1 must be found (name its folder \
         in LD_LIBRARY_PATH) and nvidia-smi must list a device; or train with --device cpu"
    );
    let toolkit = cubecl_cuda::install::cuda_path();
    let header = toolkit.map(|path| path.join("include/cuda_fp16.h"));
    ensure!(
        header.as_ref().is_some_and(|path| path.exists()),
        "CUDA's headers, which kernels are compiled with, are not there{}: name the toolkit's \
         folder in CUDA_PATH",
        header.map_or_else(String::new, |path| format!(" ({})", path.display()))
    );
    let device = Device::cuda(0);
    let sum = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        let one = Tensor::<1>::ones([1], &device);
        (one.clone() + one).into_data().try_into_vec::<f32>()
    }));
    let computed = matches!(&sum, Ok(Ok(sum)) if sum[..] == [2.0]);
    ensure!(
        computed,
        "the CUDA device does not compute, for the reason above: LD_LIBRARY_PATH must name the \
         folder of libnvrtc.so, which compiles the kernels, and the driver must be that of CUDA \
         13.0 or newer"
    );
    Ok(device)
}
