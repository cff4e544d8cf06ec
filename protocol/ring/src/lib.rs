//! Prime fields, transforms, residue-number-system polynomials and the online convolution.
//!
//! This crate is the arithmetic floor of the protocol: it knows nothing of ciphertexts, keys or
//! parties. The plaintext field `F_p`, in which all shares live, is [`pi_core::fp`].
//!
//! - [`modulus`]: prime moduli below 2^62; [`modulus46`]: those just below 2^46;
//! - [`ntt`]: the negacyclic number theoretic transform behind a trait;
//! - [`dot`]: sums of element-wise products;
//! - [`kernels`]: the hot loops of packing;
//! - [`poly`]: polynomials modulo `X^n + 1` in residue form, and automorphisms;
//! - [`rns`]: exact conversions between residues and integers;
//! - [`slots`]: SIMD slots of `F_p[X] / (X^n + 1)`;
//! - [`conv`]: convolutions over `F_p` in the clear, the hot loop of the online phase.
//!
//! [`pi_core::Backend`] decides which instructions the kernels use. Each family of kernels has one
//! file per back end, and says in its header which features that file needs and where it falls back
//! to a lower one. The scalar implementations are the definition, and the vector ones are tested to
//! equal them bit for bit.
// What vector kernels share has no use where there are none.
#![cfg_attr(
    not(any(target_arch = "x86_64", target_arch = "aarch64")),
    allow(dead_code, unused_imports, unused_macros, unused_variables)
)]

pub mod conv;
pub mod dot;
mod doubles;
pub mod kernels;
pub mod modulus;
pub mod modulus46;
pub mod ntt;
pub mod poly;
pub mod rns;
pub mod slots;

pub use modulus::Modulus;
pub use modulus46::Modulus46;
pub use ntt::Ntt;
pub use poly::{Domain, RnsPoly};

/// The back ends that this machine can run: what every test of a kernel runs over.
#[cfg(test)]
fn supported_backends() -> impl Iterator<Item = pi_core::Backend> {
    let all = pi_core::Backend::all().into_iter();
    all.filter(|backend| backend.is_supported())
}
