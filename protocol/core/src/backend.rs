//! Which instructions the bulk work uses, chosen once per process.

use std::sync::OnceLock;

/// A set of instructions. The scalar code is the definition; the others are tested against it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// Portable code; AES block by block from the `aes` crate.
    Scalar,
    /// 128-bit AES instructions.
    #[cfg(target_arch = "x86_64")]
    AesNi,
    /// 512-bit registers with AES and Galois-field instructions.
    #[cfg(target_arch = "x86_64")]
    Avx512,
}

impl Backend {
    /// Returns the best one that this machine has, or the scalar one if `PI_FORCE_SCALAR` is set
    /// and not `0`.
    #[inline]
    pub fn detected() -> Self {
        static DETECTED: OnceLock<Backend> = OnceLock::new();
        *DETECTED.get_or_init(|| {
            let forced =
                std::env::var_os("PI_FORCE_SCALAR").is_some_and(|v| v != "0" && !v.is_empty());
            Backend::all()
                .into_iter()
                .rfind(|backend| !forced && backend.is_supported())
                .unwrap_or(Backend::Scalar)
        })
    }

    /// Returns every one that exists for this architecture, the best last.
    pub fn all() -> Vec<Backend> {
        vec![
            Backend::Scalar,
            #[cfg(target_arch = "x86_64")]
            Backend::AesNi,
            #[cfg(target_arch = "x86_64")]
            Backend::Avx512,
        ]
    }

    /// Returns true if this machine can run it; Miri runs the scalar code.
    pub fn is_supported(self) -> bool {
        match self {
            Backend::Scalar => true,
            #[cfg(target_arch = "x86_64")]
            _ if cfg!(miri) => false,
            #[cfg(target_arch = "x86_64")]
            Backend::AesNi => is_x86_feature_detected!("aes") && is_x86_feature_detected!("ssse3"),
            #[cfg(target_arch = "x86_64")]
            Backend::Avx512 => {
                is_x86_feature_detected!("avx512f")
                    && is_x86_feature_detected!("avx512bw")
                    && is_x86_feature_detected!("vaes")
                    && is_x86_feature_detected!("gfni")
                    && is_x86_feature_detected!("avx512vbmi")
            }
        }
    }
}
