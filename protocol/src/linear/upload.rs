//! Encrypted masks: the client's upload and the server's reading of it, ciphertext by ciphertext in the plan's order.

use super::Forks;
use crate::layout::{Packing, Slot, UploadMap};
use pi_ring::fp;
use pi_rlwe::upload::upload_bytes;
use pi_rlwe::{
    Ciphertext, CiphertextModulus, CoefficientClass, Error, N, Params, SecretKey, Seed,
    UploadLayout, expand_upload, upload,
};
use rand_core::CryptoRng;
use rayon::prelude::*;
use zeroize::Zeroizing;

const CONV: CiphertextModulus = CiphertextModulus::Conv;

/// What [`client_upload`] gives the client.
pub struct ClientUpload {
    /// `r` by tensor, `[bundle][c][y][x]`, erased on drop; `None` where no convolution reads the tensor.
    pub masks: Vec<Option<Zeroizing<Vec<u64>>>>,
    /// The message to the server, of [`uploads_bytes`].
    pub message: Vec<u8>,
}

impl std::fmt::Debug for ClientUpload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "ClientUpload(.., {} bytes)", self.message.len())
    }
}

/// The server's ciphertexts of all uploads of a plan.
#[derive(Debug)]
pub struct Uploaded {
    /// By upload.
    pub(super) ciphertexts: Vec<Vec<Ciphertext>>,
}

/// Bytes of upload `map`: 78 bits a coefficient, 138 where the value is forced, each ciphertext rounded up to bytes.
pub fn uploads_bytes(map: &UploadMap) -> usize {
    (0..map.ciphertexts())
        .map(|index| upload_bytes(CONV, map.counts(index).forced))
        .sum()
}

/// The seed of one ciphertext.
fn ciphertext_seed(public_seed: &[u8; 32], upload: usize, index: usize) -> Seed {
    let mut hasher = blake3::Hasher::new_derive_key("pianissimo linear upload ciphertext 1");
    hasher
        .update(public_seed)
        .update(&(upload as u64).to_le_bytes())
        .update(&(index as u64).to_le_bytes());
    *hasher.finalize().as_bytes()
}

fn upload_layout(slots: &[Slot]) -> UploadLayout {
    let class = |slot: &Slot| match slot {
        Slot::Free(_) => CoefficientClass::Free,
        Slot::Zero | Slot::Repeat(_) => CoefficientClass::Forced,
        Slot::Unused => CoefficientClass::Unused,
    };
    UploadLayout::new(slots.iter().map(class).collect())
}

/// All ciphertexts of a plan: upload, place in it.
fn ciphertexts(packing: &Packing) -> Vec<(usize, usize)> {
    let each = packing.uploads().iter().enumerate();
    each.flat_map(|(u, map)| (0..map.ciphertexts()).map(move |index| (u, index)))
        .collect()
}

fn assert_degree(packing: &Packing) {
    assert_eq!(packing.ring_degree(), N, "packing for another ring");
}

/// Draws and encrypts the masks of all tensors that convolutions read.
///
/// `public_seed` is known to both parties, contains randomness of both, and never serves twice; the errors come from
/// `rng` alone. A mask's element that no useful output reads (a strided 1x1 convolution may skip some) is drawn from
/// `rng`.
///
/// # Cost
/// About 0.7 ms of one core a ciphertext, twice that where a ciphertext repeats elements (halos); on all threads of the
/// current rayon pool.
/// # Panics
/// If the packing is not for the standard ring.
pub fn client_upload(
    params: &Params,
    packing: &Packing,
    secret: &SecretKey,
    public_seed: &[u8; 32],
    rng: &mut impl CryptoRng,
) -> ClientUpload {
    assert_degree(packing);
    let forks = Forks::new(rng);
    let uploads = packing.uploads();
    let run = |u: usize,
               index: usize,
               slots: &[Slot],
               layout: &UploadLayout,
               forced: &[u64],
               purpose: &str| {
        debug_assert_eq!(slots.len(), N);
        let seed = ciphertext_seed(public_seed, u, index);
        upload(
            params,
            CONV,
            secret,
            &seed,
            layout,
            forced,
            &mut forks.task(purpose, u, index),
        )
    };

    // First what the seeds choose. A ciphertext without repeats is final at once. One with repeats shows its free masks
    // when every coefficient is taken as free: a free mask depends on the seed alone. That correction is dropped, so
    // still only one correction of a seed ever leaves the client.
    let first: Vec<_> = ciphertexts(packing)
        .into_par_iter()
        .map(|(u, index)| {
            let slots = uploads[u].slots(index);
            let repeats = slots.iter().any(|slot| matches!(slot, Slot::Repeat(_)));
            let sent = if repeats {
                run(u, index, &slots, &UploadLayout::all_free(), &[], "mask")
            } else {
                let layout = upload_layout(&slots);
                run(
                    u,
                    index,
                    &slots,
                    &layout,
                    &vec![0; layout.forced_count()],
                    "upload",
                )
            };
            (u, index, slots, repeats, sent)
        })
        .collect();

    let mut masks: Vec<Option<Zeroizing<Vec<u64>>>> = Vec::with_capacity(packing.tensors().len());
    for (tensor, shape) in packing.tensors().iter().enumerate() {
        let read = packing.is_uploaded(pi_ir::TensorId(tensor as u32));
        let count = shape.len() * packing.bundles();
        masks.push(
            read.then(|| {
                Zeroizing::new(fp::uniform_vec(count, &mut forks.task("unread", tensor, 0)))
            }),
        );
    }
    for (u, _, slots, _, sent) in &first {
        let mask = masks[uploads[*u].tensor().0 as usize]
            .as_mut()
            .expect("an uploaded tensor has a mask");
        for (slot, r) in slots.iter().zip(sent.mask.iter()) {
            if let Slot::Free(element) = slot {
                mask[*element as usize] = *r;
            }
        }
    }

    // Then what repeats them.
    let parts: Vec<Vec<u8>> = first
        .into_par_iter()
        .map(|(u, index, slots, repeats, sent)| {
            if !repeats {
                return sent.bytes;
            }
            let mask = masks[uploads[u].tensor().0 as usize]
                .as_ref()
                .expect("an uploaded tensor has a mask");
            let forced: Zeroizing<Vec<u64>> = Zeroizing::new(
                slots
                    .iter()
                    .filter_map(|slot| match slot {
                        Slot::Zero => Some(0),
                        Slot::Repeat(element) => Some(mask[*element as usize]),
                        Slot::Free(_) | Slot::Unused => None,
                    })
                    .collect(),
            );
            run(u, index, &slots, &upload_layout(&slots), &forced, "upload").bytes
        })
        .collect();
    ClientUpload {
        masks,
        message: parts.concat(),
    }
}

/// The ciphertexts of a client's message.
///
/// # Errors
/// If the message has not exactly the plan's length or a correction is out of range.
/// # Cost
/// About 0.3 ms of one core and 0.4 MB a ciphertext.
/// # Panics
/// If the packing is not for the standard ring.
pub fn server_receive(
    params: &Params,
    packing: &Packing,
    public_seed: &[u8; 32],
    message: &[u8],
) -> Result<Uploaded, Error> {
    assert_degree(packing);
    let expected = packing.uploads().iter().map(uploads_bytes).sum();
    if message.len() != expected {
        return Err(Error::Length {
            what: "uploads",
            expected,
            got: message.len(),
        });
    }
    let mut rest = message;
    let parts: Vec<(usize, usize, &[u8])> = ciphertexts(packing)
        .into_iter()
        .map(|(u, index)| {
            let forced = packing.uploads()[u].counts(index).forced;
            let (part, after) = rest.split_at(upload_bytes(CONV, forced));
            rest = after;
            (u, index, part)
        })
        .collect();
    let flat = parts
        .into_par_iter()
        .map(|(u, index, bytes)| {
            let layout = upload_layout(&packing.uploads()[u].slots(index));
            expand_upload(
                params,
                CONV,
                &ciphertext_seed(public_seed, u, index),
                &layout,
                bytes,
            )
        })
        .collect::<Result<Vec<_>, _>>()?;
    let mut flat = flat.into_iter();
    Ok(Uploaded {
        ciphertexts: packing
            .uploads()
            .iter()
            .map(|map| flat.by_ref().take(map.ciphertexts()).collect())
            .collect(),
    })
}
