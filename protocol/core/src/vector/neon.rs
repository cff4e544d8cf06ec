//! Registers of one block on AArch64 with NEON and AES instructions.

use super::{Kernel, Sealed, Vector};
use crate::block::Block;
use std::arch::aarch64::*;

/// Runs a kernel.
#[target_feature(enable = "neon,aes")]
pub(super) fn run<K: Kernel>(kernel: K) -> K::Output {
    kernel.run(Neon(()))
}

/// Proof that this processor has NEON and AES instructions.
#[derive(Clone, Copy)]
struct Neon(());

impl Sealed for Neon {}

/// Bytes of a round key's last word, rotated, each at the place from which the row shift of the AES
/// instruction fetches it: the shift moves row `r` left by `r` columns.
const ROTATE: [u8; 16] = [1, 14, 11, 4, 5, 2, 15, 8, 9, 6, 3, 12, 13, 10, 7, 0];

/// Defines operations by an intrinsic on 32-bit or 64-bit words each.
macro_rules! words {
    ($to:ident, $from:ident: $($name:ident = $intrinsic:ident;)+) => {$(
        #[inline(always)]
        fn $name(self, a: uint8x16_t, b: uint8x16_t) -> uint8x16_t {
            // SAFETY: `self` proves that the processor has the instructions.
            unsafe { $from($intrinsic($to(a), $to(b))) }
        }
    )+};
}

impl Vector for Neon {
    type V = uint8x16_t;

    const BLOCKS: usize = 1;

    words! {
        vreinterpretq_u32_u8, vreinterpretq_u8_u32:
        add32 = vaddq_u32;
        sub32 = vsubq_u32;
        equal32 = vceqq_u32;
        greater32 = vcgtq_u32;
    }

    words! {
        vreinterpretq_u64_u8, vreinterpretq_u8_u64:
        add64 = vaddq_u64;
    }

    #[inline(always)]
    fn splat(self, x: u32) -> uint8x16_t {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { vreinterpretq_u8_u32(vdupq_n_u32(x)) }
    }

    #[inline(always)]
    fn broadcast(self, x: Block) -> uint8x16_t {
        // SAFETY: as above; a block is 16 initialised bytes.
        unsafe { vld1q_u8(std::ptr::from_ref(&x).cast()) }
    }

    #[inline(always)]
    unsafe fn load_at(self, at: impl Fn(usize) -> *const u8) -> uint8x16_t {
        // SAFETY: the caller's; the load asks for no more alignment than bytes have.
        unsafe { vld1q_u8(at(0)) }
    }

    #[inline(always)]
    unsafe fn store_at(self, at: impl Fn(usize) -> *mut u8, x: uint8x16_t) {
        // SAFETY: the caller's; the store asks for no more alignment than bytes have.
        unsafe { vst1q_u8(at(0), x) }
    }

    #[inline(always)]
    unsafe fn load_pairs_at(self, at: impl Fn(usize) -> *const u8) -> [uint8x16_t; 2] {
        let at = at(0);
        // SAFETY: the caller's, for two blocks; as in `load_at`.
        unsafe { [vld1q_u8(at), vld1q_u8(at.add(16))] }
    }

    #[inline(always)]
    unsafe fn store_pairs_at(self, at: impl Fn(usize) -> *mut u8, x: [uint8x16_t; 2]) {
        let at = at(0);
        // SAFETY: the caller's, for two blocks; as in `store_at`.
        unsafe {
            vst1q_u8(at, x[0]);
            vst1q_u8(at.add(16), x[1]);
        }
    }

    #[inline(always)]
    unsafe fn load(self, at: *const u8) -> uint8x16_t {
        // SAFETY: the caller's; as in `load_at`.
        unsafe { vld1q_u8(at) }
    }

    #[inline(always)]
    unsafe fn store(self, at: *mut u8, x: uint8x16_t) {
        // SAFETY: the caller's; as in `store_at`.
        unsafe { vst1q_u8(at, x) }
    }

    #[inline(always)]
    fn prefetch(self, at: *const u8) {
        // SAFETY: a prefetch changes no register, reads nothing that the program sees, and never
        // faults.
        unsafe {
            std::arch::asm!(
                "prfm pldl1keep, [{at}]",
                at = in(reg) at,
                options(nostack, preserves_flags, readonly)
            );
        }
    }

    #[inline(always)]
    fn xor(self, a: uint8x16_t, b: uint8x16_t) -> uint8x16_t {
        // SAFETY: `self` proves that the processor has the instructions.
        unsafe { veorq_u8(a, b) }
    }

    #[inline(always)]
    fn and(self, a: uint8x16_t, b: uint8x16_t) -> uint8x16_t {
        // SAFETY: as above.
        unsafe { vandq_u8(a, b) }
    }

    #[inline(always)]
    fn shift_left<const N: i32>(self, a: uint8x16_t) -> uint8x16_t {
        // SAFETY: as above.
        unsafe { vreinterpretq_u8_u64(vshlq_n_u64::<N>(vreinterpretq_u64_u8(a))) }
    }

    #[inline(always)]
    fn shift_right<const N: i32>(self, a: uint8x16_t) -> uint8x16_t {
        // SAFETY: as above.
        unsafe { vreinterpretq_u8_u64(vshrq_n_u64::<N>(vreinterpretq_u64_u8(a))) }
    }

    #[inline(always)]
    fn unpack8(self, a: uint8x16_t, b: uint8x16_t) -> [uint8x16_t; 2] {
        // SAFETY: as above.
        unsafe { [vzip1q_u8(a, b), vzip2q_u8(a, b)] }
    }

    #[inline(always)]
    fn unpack32(self, a: uint8x16_t, b: uint8x16_t) -> [uint8x16_t; 2] {
        // SAFETY: as above.
        unsafe {
            let (a, b) = (vreinterpretq_u32_u8(a), vreinterpretq_u32_u8(b));
            [
                vreinterpretq_u8_u32(vzip1q_u32(a, b)),
                vreinterpretq_u8_u32(vzip2q_u32(a, b)),
            ]
        }
    }

    #[inline(always)]
    fn unpack64(self, a: uint8x16_t, b: uint8x16_t) -> [uint8x16_t; 2] {
        // SAFETY: as above.
        unsafe {
            let (a, b) = (vreinterpretq_u64_u8(a), vreinterpretq_u64_u8(b));
            [
                vreinterpretq_u8_u64(vzip1q_u64(a, b)),
                vreinterpretq_u8_u64(vzip2q_u64(a, b)),
            ]
        }
    }

    #[inline(always)]
    fn colours(self, a: uint8x16_t) -> uint8x16_t {
        // SAFETY: as above. The lowest byte of the block is copied to the others, and bytes with
        // its lowest bit become ones.
        unsafe { vtstq_u8(vdupq_laneq_u8::<0>(a), vdupq_n_u8(1)) }
    }

    #[inline(always)]
    fn sigma(self, a: uint8x16_t) -> uint8x16_t {
        // SAFETY: as above. The extraction exchanges the 64-bit halves.
        unsafe {
            let high = vcombine_u8(vdup_n_u8(0), vdup_n_u8(0xff));
            veorq_u8(vextq_u8::<8>(a, a), vandq_u8(a, high))
        }
    }

    #[inline(always)]
    fn schedule(self, word: uint8x16_t, constant: uint8x16_t) -> uint8x16_t {
        // SAFETY: as above; `ROTATE` is 16 initialised bytes. With a key of zeros the instruction
        // substitutes bytes and shifts rows.
        unsafe {
            let rotated = vqtbl1q_u8(word, vld1q_u8(ROTATE.as_ptr()));
            veorq_u8(vaeseq_u8(rotated, vdupq_n_u8(0)), constant)
        }
    }

    #[inline(always)]
    fn first_key(self, x: uint8x16_t, _key: uint8x16_t) -> uint8x16_t {
        // The instruction adds the key before it does the rest of a round.
        x
    }

    #[inline(always)]
    fn round(self, x: uint8x16_t, before: uint8x16_t, _key: uint8x16_t) -> uint8x16_t {
        // SAFETY: as above.
        unsafe { vaesmcq_u8(vaeseq_u8(x, before)) }
    }

    #[inline(always)]
    fn last_round(self, x: uint8x16_t, before: uint8x16_t, key: uint8x16_t) -> uint8x16_t {
        // SAFETY: as above.
        unsafe { veorq_u8(vaeseq_u8(x, before), key) }
    }
}
