//! Encrypted masks: the client's upload and the server's reading of it, ciphertext by ciphertext in
//! the plan's order.

use super::Forks;
use crate::layout::{CoefficientRole, Packing, UploadMap};
use pi_core::fp;
use pi_rlwe::seeded::seeded_bytes;
use pi_rlwe::{
    Ciphertext, CiphertextModulus, CoefficientClass, Error, N, Params, SecretKey, Seed, Seeded,
    SeededEncryption, SeededLayout, encrypt_seeded, expand_seeded,
};
use rand_core::CryptoRng;
use rayon::prelude::*;
use zeroize::Zeroizing;

const CONV: CiphertextModulus = CiphertextModulus::Conv;

/// The client's uploads, made one after the other: the masks of all tensors that convolutions read,
/// drawn and encrypted.
///
/// A tensor's mask is complete once all its uploads are made. An element that no useful output
/// reads (a strided 1x1 convolution may skip some) is drawn from the generator that
/// [`Uploads::new`] was given.
pub struct Uploads<'a> {
    params: &'a Params,
    packing: &'a Packing,
    secret: &'a SecretKey,
    public_seed: [u8; 32],
    forks: Forks,
    made: usize,
    masks: Vec<Option<Zeroizing<Vec<u64>>>>,
}

/// One ciphertext of the upload that is being made.
struct Draft {
    index: usize,
    roles: Vec<CoefficientRole>,
    repeats: bool,
    sent: SeededEncryption,
}

impl<'a> Uploads<'a> {
    /// Draws the seed of the uploads' errors and of masks that nothing reads.
    ///
    /// `public_seed` is known to both parties, contains randomness of both, and never serves twice;
    /// the errors come from `rng` alone.
    ///
    /// # Panics
    /// If the packing is not for the standard ring.
    pub fn new(
        params: &'a Params,
        packing: &'a Packing,
        secret: &'a SecretKey,
        public_seed: &[u8; 32],
        rng: &mut impl CryptoRng,
    ) -> Self {
        assert_degree(packing);
        let forks = Forks::new(rng);
        let tensors = packing.tensors().iter().enumerate();
        let masks = tensors.map(|(tensor, shape)| {
            let read = packing.is_uploaded(pi_ir::TensorId(tensor as u32));
            let count = shape.len() * packing.bundles();
            read.then(|| {
                Zeroizing::new(fp::uniform_vec(count, &mut forks.task("unread", tensor, 0)))
            })
        });
        Uploads {
            masks: masks.collect(),
            params,
            packing,
            secret,
            public_seed: *public_seed,
            forks,
            made: 0,
        }
    }

    /// The message of the next upload, of [`uploads_bytes`]; `None` after the last.
    ///
    /// # Cost
    /// About 0.7 ms of one core a ciphertext, twice that where a ciphertext repeats elements
    /// (halos); on all threads of the current rayon pool.
    pub fn next_message(&mut self) -> Option<Vec<u8>> {
        let map = self.packing.uploads().get(self.made)?;
        // First what the seeds choose. A ciphertext without repeats is final at once. One with
        // repeats shows its free masks when every coefficient is taken as free: a free mask depends
        // on the seed alone. That correction is dropped, so still only one correction of a seed
        // ever leaves the client.
        let drafts: Vec<Draft> = (0..map.ciphertexts())
            .into_par_iter()
            .map(|index| {
                let roles = map.roles(index);
                debug_assert_eq!(roles.len(), N);
                let repeats = roles
                    .iter()
                    .any(|role| matches!(role, CoefficientRole::Repeat(_)));
                let sent = if repeats {
                    self.encrypt(index, &SeededLayout::all_free(), &[], "mask")
                } else {
                    let layout = upload_layout(&roles);
                    self.encrypt(index, &layout, &vec![0; layout.forced_count()], "upload")
                };
                Draft {
                    index,
                    roles,
                    repeats,
                    sent,
                }
            })
            .collect();
        let mask = self.masks[map.tensor().0 as usize]
            .as_mut()
            .expect("an uploaded tensor has a mask");
        for draft in &drafts {
            for (role, r) in draft.roles.iter().zip(draft.sent.mask.iter()) {
                if let CoefficientRole::Free(element) = role {
                    mask[*element as usize] = *r;
                }
            }
        }
        // Then what repeats them.
        let parts: Vec<Vec<u8>> = drafts
            .into_par_iter()
            .map(|draft| match draft.repeats {
                true => self.repeat(map, &draft),
                false => draft.sent.bytes,
            })
            .collect();
        self.made += 1;
        Some(parts.concat())
    }

    /// The final form of a ciphertext that repeats elements.
    fn repeat(&self, map: &UploadMap, draft: &Draft) -> Vec<u8> {
        let mask = self.masks[map.tensor().0 as usize]
            .as_ref()
            .expect("an uploaded tensor has a mask");
        let forced = draft.roles.iter().filter_map(|role| match role {
            CoefficientRole::Zero => Some(0),
            CoefficientRole::Repeat(element) => Some(mask[*element as usize]),
            CoefficientRole::Free(_) | CoefficientRole::Unused => None,
        });
        let forced: Zeroizing<Vec<u64>> = Zeroizing::new(forced.collect());
        let layout = upload_layout(&draft.roles);
        self.encrypt(draft.index, &layout, &forced, "upload").bytes
    }

    /// Encrypts ciphertext `index` of the upload that is being made.
    fn encrypt(
        &self,
        index: usize,
        layout: &SeededLayout,
        forced: &[u64],
        purpose: &str,
    ) -> SeededEncryption {
        encrypt_seeded(
            self.params,
            self.secret,
            &Seeded::new(
                CONV,
                ciphertext_seed(&self.public_seed, self.made, index),
                layout,
            ),
            forced,
            &mut self.forks.task(purpose, self.made, index),
        )
    }

    /// `r` by tensor, `[bundle][c][y][x]`; `None` where no convolution reads the tensor.
    ///
    /// # Panics
    /// If an upload is missing: masks would not be those encrypted.
    pub fn into_masks(self) -> Vec<Option<Zeroizing<Vec<u64>>>> {
        assert_eq!(self.made, self.packing.uploads().len(), "uploads made");
        self.masks
    }
}

/// The ciphertexts of one upload's message.
///
/// # Errors
/// If the message has not exactly the plan's length or a correction is out of range.
/// # Cost
/// About 0.3 ms of one core and 0.4 MB a ciphertext.
/// # Panics
/// If the packing has no such upload, or is not for the standard ring.
pub fn receive_upload(
    params: &Params,
    packing: &Packing,
    public_seed: &[u8; 32],
    upload: usize,
    message: &[u8],
) -> Result<Vec<Ciphertext>, Error> {
    assert_degree(packing);
    let map = &packing.uploads()[upload];
    let expected = uploads_bytes(map);
    if message.len() != expected {
        return Err(Error::Length {
            what: "upload",
            expected,
            got: message.len(),
        });
    }
    let mut rest = message;
    let parts: Vec<(usize, &[u8])> = (0..map.ciphertexts())
        .map(|index| {
            let (part, after) = rest.split_at(seeded_bytes(CONV, map.counts(index).forced));
            rest = after;
            (index, part)
        })
        .collect();
    parts
        .into_par_iter()
        .map(|(index, bytes)| {
            let layout = upload_layout(&map.roles(index));
            let seed = ciphertext_seed(public_seed, upload, index);
            expand_seeded(params, &Seeded::new(CONV, seed, &layout), bytes)
        })
        .collect()
}

/// Bytes of upload `map`: 78 bits per coefficient, 138 where the value is forced, each ciphertext
/// rounded up to bytes.
pub fn uploads_bytes(map: &UploadMap) -> usize {
    (0..map.ciphertexts())
        .map(|index| seeded_bytes(CONV, map.counts(index).forced))
        .sum()
}

/// The public seed of one ciphertext.
fn ciphertext_seed(public_seed: &[u8; 32], upload: usize, index: usize) -> Seed {
    let mut hasher = blake3::Hasher::new_derive_key("pianissimo linear upload ciphertext 1");
    hasher
        .update(public_seed)
        .update(&(upload as u64).to_le_bytes())
        .update(&(index as u64).to_le_bytes());
    *hasher.finalize().as_bytes()
}

pub(super) fn upload_layout(roles: &[CoefficientRole]) -> SeededLayout {
    let class = |role: &CoefficientRole| match role {
        CoefficientRole::Free(_) => CoefficientClass::Free,
        CoefficientRole::Zero | CoefficientRole::Repeat(_) => CoefficientClass::Forced,
        CoefficientRole::Unused => CoefficientClass::Unused,
    };
    SeededLayout::new(roles.iter().map(class).collect())
}

fn assert_degree(packing: &Packing) {
    assert_eq!(packing.ring_degree(), N, "packing for another ring");
}
