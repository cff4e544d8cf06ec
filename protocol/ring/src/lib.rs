//! Prime fields, transforms, residue-number-system polynomials and the online convolution.
//!
//! This crate is the arithmetic floor of the protocol: it knows nothing of ciphertexts, keys or
//! parties. The plaintext field `F_p`, in which all shares live, is [`pi_core::fp`].
//!
//! - [`modulus`]: prime moduli below 2^62; [`modulus46`]: those just below 2^46;
//! - [`ntt`]: the negacyclic number theoretic transform behind a trait;
//! - [`dot`]: sums of element-wise products;
//! - [`kernels`]: the loops that packing spends its time in;
//! - [`poly`]: polynomials modulo `X^n + 1` in residue form, automorphisms and monomials;
//! - [`rns`]: exact passages between residues and integers;
//! - [`slots`]: SIMD slots of `F_p[X] / (X^n + 1)`;
//! - [`conv`]: convolutions over `F_p` in the clear, the hot loop of the online phase.
//!
//! `PI_FORCE_SCALAR=1` in the environment selects the scalar implementations everywhere; they are
//! the definition and the vector ones are tested to equal them bit for bit.

pub mod conv;
pub mod dot;
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

/// Whether `PI_FORCE_SCALAR` asks for the scalar implementations; read once per process.
pub fn force_scalar() -> bool {
    static FORCED: std::sync::OnceLock<bool> = std::sync::OnceLock::new();
    *FORCED.get_or_init(|| {
        std::env::var_os("PI_FORCE_SCALAR").is_some_and(|v| v != "0" && !v.is_empty())
    })
}
