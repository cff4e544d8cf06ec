//! The vector instructions that the kernels of all crates use, chosen once per process.
//!
//! | level | what runs | processors |
//! | --- | --- | --- |
//! | `scalar` | portable code, the definition of every kernel | all |
//! | `avx2` | AES, 256-bit integers and fused multiplication | from Haswell and Zen on |
//! | `avx512` | 512-bit registers with AES, Galois-field, 52-bit and dot-product instructions | from Ice Lake and Zen 4 on |
//! | `neon` | 128-bit registers with AES instructions | AArch64 from Cortex-A72 and Apple M1 on, where AES is not left out |
//! | `simd128` | 128-bit registers, AES by permuted bytes | WebAssembly, if a module is compiled for it |
//!
//! The best level that the processor has is taken, unless the environment variable `PI_BACKEND`
//! names another. A level is all or nothing: it runs only where every one of its features is
//! present, and kernels that gain nothing from a level run the code of the one below. A processor
//! with a part of AVX-512, as Skylake-X or Cascade Lake, is served by `avx2`. One feature is asked
//! for by itself: where the processor can, AES of `avx2` works on 256 bits
//! ([`Backend::has_wide_aes`]).
//!
//! Programs call [`Backend::chosen`] when they start, so that a wrong `PI_BACKEND` ends in a
//! message; kernels call [`Backend::get`].

use std::fmt;
use std::sync::OnceLock;

/// Environment variable that chooses the back end.
const VARIABLE: &str = "PI_BACKEND";

/// A set of instructions. The scalar code is the definition; the others are tested against it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// Portable code; AES block by block from the `aes` crate, which looks for AES instructions
    /// itself.
    Scalar,
    /// x86-64 with AVX2, FMA and AES instructions.
    Avx2,
    /// x86-64 with 512-bit registers and everything that Ice Lake added to them.
    Avx512,
    /// AArch64 with NEON and AES instructions.
    Neon,
    /// WebAssembly with 128-bit registers.
    Simd128,
}

impl Backend {
    /// Returns the back end of this process: the one that `PI_BACKEND` names, or the best that the
    /// processor has if the variable is unset or empty.
    ///
    /// # Errors
    /// [`BackendError`] if the variable names no back end, or one that this machine cannot run.
    pub fn chosen() -> Result<Backend, BackendError> {
        static CHOSEN: OnceLock<Result<Backend, BackendError>> = OnceLock::new();
        CHOSEN
            .get_or_init(|| {
                let value = std::env::var_os(VARIABLE);
                choose(
                    value.map(|v| v.to_string_lossy().into_owned()),
                    processor_has,
                )
            })
            .clone()
    }

    /// Returns [`Backend::chosen`], for kernels.
    ///
    /// # Panics
    /// If that is an error: the program did not check it when it started.
    #[inline]
    pub fn get() -> Backend {
        static CHECKED: OnceLock<Backend> = OnceLock::new();
        *CHECKED.get_or_init(|| match Backend::chosen() {
            Ok(backend) => backend,
            Err(error) => panic!("{error}"),
        })
    }

    /// Returns true if this processor has AES instructions on 256 bits beside AVX2. No level asks
    /// for them: processors from Zen 3 and Ice Lake on have them, and [`Backend::Avx2`] serves
    /// those before as well.
    #[inline]
    pub fn has_wide_aes() -> bool {
        static FOUND: OnceLock<bool> = OnceLock::new();
        *FOUND.get_or_init(|| Backend::Avx2.is_supported() && processor_has("vaes"))
    }

    /// Returns every back end, on a given architecture the best last.
    pub const fn all() -> [Backend; 5] {
        [
            Backend::Scalar,
            Backend::Avx2,
            Backend::Avx512,
            Backend::Neon,
            Backend::Simd128,
        ]
    }

    /// Returns true if this machine can run it. Miri runs the scalar code only.
    pub fn is_supported(self) -> bool {
        self.is_supported_by(processor_has)
    }

    /// Returns those features of the back end that this machine lacks.
    pub fn missing_features(self) -> Vec<&'static str> {
        self.missing_from(processor_has)
    }

    /// Returns the name, as `PI_BACKEND` takes it.
    pub const fn name(self) -> &'static str {
        match self {
            Backend::Scalar => "scalar",
            Backend::Avx2 => "avx2",
            Backend::Avx512 => "avx512",
            Backend::Neon => "neon",
            Backend::Simd128 => "simd128",
        }
    }

    /// Returns the processor features that the kernels of this level may use.
    const fn features(self) -> &'static [&'static str] {
        match self {
            Backend::Scalar => &[],
            Backend::Avx2 => &["aes", "ssse3", "avx2", "fma"],
            Backend::Avx512 => &[
                "aes",
                "ssse3",
                "avx2",
                "fma",
                "avx512f",
                "avx512bw",
                "avx512dq",
                "avx512vl",
                "avx512ifma",
                "avx512vbmi",
                "avx512vnni",
                "gfni",
                "vaes",
            ],
            Backend::Neon => &["neon", "aes"],
            Backend::Simd128 => &["simd128"],
        }
    }

    fn is_supported_by(self, has: impl Fn(&str) -> bool) -> bool {
        self.missing_from(has).is_empty()
    }

    fn missing_from(self, has: impl Fn(&str) -> bool) -> Vec<&'static str> {
        let features = self.features().iter().copied();
        features.filter(|feature| !has(feature)).collect()
    }
}

/// Returns the back end for this value of the variable, on a processor with these features.
fn choose(value: Option<String>, has: impl Fn(&str) -> bool) -> Result<Backend, BackendError> {
    let supported = |backend: &Backend| backend.is_supported_by(&has);
    let Some(value) = value.filter(|value| !value.is_empty()) else {
        let best = Backend::all().into_iter().rfind(supported);
        return Ok(best.expect("the scalar back end needs no feature"));
    };
    let named = Backend::all().into_iter().find(|b| b.name() == value);
    let reason = match named {
        Some(backend) if supported(&backend) => return Ok(backend),
        Some(backend) => Reason::Processor(backend.missing_from(&has)),
        None => Reason::Unknown,
    };
    Err(BackendError {
        value,
        reason,
        supported: Backend::all().into_iter().filter(supported).collect(),
    })
}

/// A value of `PI_BACKEND` that cannot be served.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendError {
    value: String,
    reason: Reason,
    supported: Vec<Backend>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Reason {
    /// No back end has this name.
    Unknown,
    /// The processor lacks these features.
    Processor(Vec<&'static str>),
}

impl fmt::Display for BackendError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{VARIABLE}={}: ", self.value)?;
        match &self.reason {
            Reason::Unknown => write!(f, "no back end has this name")?,
            Reason::Processor(missing) => {
                write!(f, "this processor has no {}", missing.join(", no "))?;
            }
        }
        let supported: Vec<&str> = self.supported.iter().map(|b| b.name()).collect();
        write!(
            f,
            "; set it to a back end of this machine ({}), or unset it to take the best",
            supported.join(", ")
        )
    }
}

impl std::error::Error for BackendError {}

/// Returns true if this processor has the feature, by the name that the standard library uses.
fn processor_has(feature: &str) -> bool {
    if cfg!(miri) {
        return false;
    }
    #[cfg(target_arch = "x86_64")]
    {
        // By string, so that one list of a level serves detection and messages.
        macro_rules! detect {
            ($($name:tt)*) => {
                match feature {
                    $($name => is_x86_feature_detected!($name),)*
                    _ => false,
                }
            };
        }
        detect!("aes" "ssse3" "avx2" "fma" "avx512f" "avx512bw" "avx512dq" "avx512vl" "avx512ifma"
            "avx512vbmi" "avx512vnni" "gfni" "vaes")
    }
    #[cfg(target_arch = "aarch64")]
    match feature {
        "neon" => std::arch::is_aarch64_feature_detected!("neon"),
        "aes" => std::arch::is_aarch64_feature_detected!("aes"),
        _ => false,
    }
    // A module of WebAssembly has what it was compiled for, or does not start.
    #[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
    {
        feature == "simd128" && cfg!(all(target_arch = "wasm32", target_feature = "simd128"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HASWELL: [&str; 4] = ["aes", "ssse3", "avx2", "fma"];

    fn chosen(value: Option<&str>, features: &[&str]) -> Result<Backend, BackendError> {
        choose(value.map(str::to_owned), |feature| {
            features.contains(&feature)
        })
    }

    fn complaint(value: &str, features: &[&str]) -> String {
        chosen(Some(value), features).unwrap_err().to_string()
    }

    #[test]
    fn the_best_supported_back_end_is_taken_unless_another_is_named() {
        let ice_lake = Backend::Avx512.features();
        // All that Cascade Lake has of AVX-512.
        let half = [
            &HASWELL[..],
            &["avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512vnni"],
        ]
        .concat();
        for unset in [None, Some("")] {
            assert_eq!(chosen(unset, &[]), Ok(Backend::Scalar));
            assert_eq!(chosen(unset, &["aes", "ssse3"]), Ok(Backend::Scalar));
            assert_eq!(chosen(unset, &HASWELL), Ok(Backend::Avx2));
            assert_eq!(chosen(unset, &half), Ok(Backend::Avx2));
            assert_eq!(chosen(unset, ice_lake), Ok(Backend::Avx512));
            assert_eq!(chosen(unset, &["neon"]), Ok(Backend::Scalar));
            assert_eq!(chosen(unset, &["neon", "aes"]), Ok(Backend::Neon));
        }
        for backend in [Backend::Scalar, Backend::Avx2, Backend::Avx512] {
            assert_eq!(chosen(Some(backend.name()), ice_lake), Ok(backend));
        }
    }

    #[test]
    fn a_back_end_that_cannot_run_is_refused_with_what_is_missing_and_what_to_do() {
        assert_eq!(
            complaint("avx2", &["aes", "ssse3", "fma"]),
            "PI_BACKEND=avx2: this processor has no avx2; set it to a back end of this \
             machine (scalar), or unset it to take the best"
        );
        let most: Vec<&str> = (Backend::Avx512.features().iter().copied())
            .filter(|feature| !["gfni", "avx512ifma"].contains(feature))
            .collect();
        assert_eq!(
            complaint("avx512", &most),
            "PI_BACKEND=avx512: this processor has no avx512ifma, no gfni; set it to a \
             back end of this machine (scalar, avx2), or unset it to take the best"
        );
        let neon = complaint("neon", &HASWELL);
        assert!(neon.starts_with("PI_BACKEND=neon: this processor has no neon; "));
        // As the first 64-bit Raspberry Pis.
        let neon = complaint("neon", &["neon"]);
        assert!(neon.starts_with("PI_BACKEND=neon: this processor has no aes; "));
    }

    #[test]
    fn a_name_that_none_has_is_refused() {
        for value in ["nonsense", "AVX2", "avx-512", "1", " scalar"] {
            assert_eq!(
                complaint(value, &HASWELL),
                format!(
                    "PI_BACKEND={value}: no back end has this name; set it to a back end \
                     of this machine (scalar, avx2), or unset it to take the best"
                )
            );
        }
    }

    #[test]
    fn every_feature_of_this_machine_is_looked_up() {
        assert!(Backend::Scalar.is_supported());
        // Whatever has the features of AVX-512 has those of AVX2.
        assert!(Backend::Avx2.is_supported() || !Backend::Avx512.is_supported());
        for backend in Backend::all() {
            assert!(backend.missing_features().is_empty() || !backend.is_supported());
        }
        assert_eq!(Backend::get(), Backend::chosen().unwrap());
    }
}
