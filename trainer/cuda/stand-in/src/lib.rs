//! The types of cubecl-llvm that cubecl-cuda names, without LLVM.
//!
//! cubecl-cuda is built with its feature `cpp`, so it asks this crate for nothing but the driver's
//! PTX version, which is unknown here. Any attempt to compile with it fails with an error that says
//! so.

/// Options of the NVPTX target.
pub mod nvptx {
    /// The PTX version of a driver.
    pub mod ptx_version {
        /// A version; there is none.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum PtxVersion {}

        impl PtxVersion {
            /// The newest that a driver loads: unknown.
            pub fn for_driver(_driver: i32) -> Option<Self> {
                None
            }
        }

        impl core::fmt::Display for PtxVersion {
            fn fmt(&self, _: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                match *self {}
            }
        }
    }
}

/// Options of all targets.
pub mod shared {
    /// Features that LLVM lowers.
    pub mod lowered_features {
        use cubecl_core::ir::DeviceProperties;

        /// A target.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum GpuTarget {
            /// NVIDIA's.
            Nvptx,
        }

        /// Narrows what a device advertises; called for the LLVM compiler alone.
        pub fn restrict_features(_properties: &mut DeviceProperties, _target: GpuTarget) {}
    }
}

use cubecl_core::ir::nvidia::SmArch;
use cubecl_core::prelude::KernelDefinition;
use cubecl_environment::backtrace::BackTrace;
use cubecl_server::compiler::CompilationError;
use cubecl_server::kernel::BufferIOAttr;
use nvptx::ptx_version::PtxVersion;

/// A target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LlvmTarget {
    /// NVIDIA's.
    Nvptx,
}

/// The compiler.
#[derive(Clone, Debug)]
pub struct PlironCompiler {
    /// The target that it compiles for.
    pub target: LlvmTarget,
}

/// Options of the compiler.
#[derive(Clone, Debug, Default)]
pub struct PlironOptions {
    /// Architecture of other targets.
    pub arch: Option<()>,
    /// Architecture of this one.
    pub sm_arch: Option<SmArch>,
    /// PTX version to emit.
    pub ptx_version: Option<PtxVersion>,
    /// The way in which scalars are passed.
    pub grid_constants: bool,
    /// A placeholder, because the original has more options.
    pub more: (),
}

/// A compiled kernel.
#[derive(Clone, Debug)]
pub struct NvptxModule {
    /// PTX with a NUL at its end.
    pub ptx: Vec<core::ffi::c_char>,
    /// For logs.
    pub ir: String,
    /// Bytes of shared memory.
    pub shared_memory_size: usize,
    /// The way in which buffers are accessed.
    pub io: Vec<BufferIOAttr>,
}

/// The output of the compiler.
#[non_exhaustive]
#[derive(Clone, Debug)]
pub enum PlironArtifact {
    /// For [`LlvmTarget::Nvptx`].
    NvptxCode(NvptxModule),
}

impl PlironCompiler {
    /// # Errors
    /// Always.
    pub fn compile(
        &mut self,
        _kernel: KernelDefinition,
        _options: &PlironOptions,
    ) -> Result<PlironArtifact, CompilationError> {
        Err(CompilationError::Generic {
            reason: "this pi-train was built without LLVM: kernels go through NVRTC".to_owned(),
            backtrace: BackTrace::capture(),
        })
    }

    /// Name of its language, for caches.
    pub fn lang_tag(&self) -> &'static str {
        "none"
    }
}
