//! The sign circuit with 512-bit registers: sixteen instances side by side, both half gates at
//! once.
//!
//! Register `e` of a value holds its blocks for instances `4 e .. 4 e + 4`. A group of fewer than
//! sixteen instances repeats its last one: the same work, written to the same place.

use super::{Group, InputLabels, TABLE_BYTES};
use crate::guard::MAX_GUARD_BITS;
use pi_core::hash::LANES;
use pi_core::hash::avx512::{Lanes, N, WIDTH, encrypt, sigma, xor, xor3};
use pi_core::{BLOCK_BYTES, Block, TweakClass, TweakRange};
use std::arch::x86_64::*;

/// Garbles up to [`LANES`] instances: see [`super::scalar::garble_group`].
#[target_feature(enable = "avx512f,avx512bw,vaes")]
pub(super) fn garble_group(
    group: Group<'_>,
    delta: Block,
    zeros: InputLabels<'_>,
    tables: &mut [u8],
    (keep, guard): (&mut [Block], &mut [[Block; LANES]]),
) {
    let (m, gates, count) = (group.width.bits() as usize, group.gates(), keep.len());
    let client = Columns::new(Block::encode(zeros.client), m, count);
    let server = Columns::new(Block::encode(zeros.server), m, count);
    let mut tables = Tables::new(tables, gates, count);
    let mut keys = Keys::new(group.tweaks, group.first, count);
    let delta = broadcast(delta);
    let sigma_delta = sigma(delta);
    let mut carry = [_mm512_setzero_si512(); N];
    let mut sums = [[_mm512_setzero_si512(); N]; MAX_GUARD_BITS as usize];
    for i in 0..gates {
        // carry' = ((a xor carry) and (b xor carry)) xor carry, for the carry 0 into the lowest bit
        // as well.
        let a = xor(client.load(i), carry);
        let b = xor(server.load(i), carry);
        if let Some(sum) = sums[..guard.len()].get_mut(gates - 1 - i) {
            *sum = xor(xor(a, b), carry);
        }
        client.prefetch_next(i);
        server.prefetch_next(i);
        let (sa, sb) = (a.map(|a| sigma(a)), b.map(|b| sigma(b)));
        let one = |s: Lanes| s.map(|s| _mm512_xor_si512(s, sigma_delta));
        let [[g0, g1], [e0, e1]] = encrypt(keys.next(), [[sa, one(sa)], [sb, one(sb)]]);
        for e in 0..N {
            let (colour_a, colour_b) = (colours(a[e]), colours(b[e]));
            let table_g = xor3(g0[e], g1[e], sigma_delta);
            let table_g = _mm512_mask_xor_epi32(table_g, colour_b, table_g, delta);
            // Less a, which is added to the table only.
            let table_e = xor3(e0[e], e1[e], sigma_delta);
            let half_g = xor3(g0[e], sa[e], carry[e]);
            let half_g = _mm512_mask_xor_epi32(half_g, colour_a, half_g, table_g);
            let half_e = _mm512_xor_si512(e0[e], sb[e]);
            let half_e = _mm512_mask_xor_epi32(half_e, colour_b, half_e, table_e);
            carry[e] = _mm512_xor_si512(half_g, half_e);
            tables.store(i, e, table_g, _mm512_xor_si512(table_e, a[e]));
        }
    }
    let sign = xor(xor(client.load(gates), server.load(gates)), carry);
    for (e, &sign) in sign.iter().enumerate() {
        // NOT is free: the zero label of keep is the one label of the sign.
        store_first(keep, e, _mm512_xor_si512(sign, delta));
    }
    store_guard(guard, sign, &sums);
}

/// Evaluates up to [`LANES`] instances: see [`super::scalar::evaluate_group`].
#[target_feature(enable = "avx512f,avx512bw,vaes")]
pub(super) fn evaluate_group(
    group: Group<'_>,
    client: &[Block],
    server: &[u8],
    tables: &[u8],
    (keep, guard): (&mut [Block], &mut [[Block; LANES]]),
) {
    let (m, gates, count) = (group.width.bits() as usize, group.gates(), keep.len());
    let client = Columns::new(Block::encode(client), m, count);
    let server = Columns::new(server, m, count);
    let tables = Columns::new(tables, 2 * gates, count);
    let mut keys = Keys::new(group.tweaks, group.first, count);
    let mut carry = [_mm512_setzero_si512(); N];
    let mut sums = [[_mm512_setzero_si512(); N]; MAX_GUARD_BITS as usize];
    for i in 0..gates {
        let a = xor(client.load(i), carry);
        let b = xor(server.load(i), carry);
        if let Some(sum) = sums[..guard.len()].get_mut(gates - 1 - i) {
            *sum = xor(xor(a, b), carry);
        }
        client.prefetch_next(i);
        server.prefetch_next(i);
        let (sa, sb) = (a.map(|a| sigma(a)), b.map(|b| sigma(b)));
        let [[g], [e]] = encrypt(keys.next(), [[sa], [sb]]);
        let [table_g, table_e] = tables.load_pairs(2 * i);
        tables.prefetch_next(2 * i);
        for r in 0..N {
            let half_g = xor3(g[r], sa[r], carry[r]);
            let half_g = _mm512_mask_xor_epi32(half_g, colours(a[r]), half_g, table_g[r]);
            let half_e = _mm512_xor_si512(e[r], sb[r]);
            let row = _mm512_xor_si512(table_e[r], a[r]);
            let half_e = _mm512_mask_xor_epi32(half_e, colours(b[r]), half_e, row);
            carry[r] = _mm512_xor_si512(half_g, half_e);
        }
    }
    let sign = xor(xor(client.load(gates), server.load(gates)), carry);
    for (e, &sign) in sign.iter().enumerate() {
        store_first(keep, e, sign);
    }
    store_guard(guard, sign, &sums);
}

/// The keys of both halves of gate after gate, in word form.
struct Keys {
    /// Counters less the nonce: low and high words.
    low: __m512i,
    high: __m512i,
    nonce: [__m512i; 4],
    class: __m512i,
}

impl Keys {
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn new(tweaks: &TweakRange, first: usize, count: usize) -> Self {
        let (mut low, mut high) = ([0u32; LANES], [0u32; LANES]);
        for e in 0..N {
            for g in 0..WIDTH {
                let counter = tweaks.counter(first + lane(e, g, count), 0);
                low[WIDTH * g + e] = counter as u32;
                high[WIDTH * g + e] = (counter >> 32) as u32;
            }
        }
        let key = tweaks.nonce().value();
        let word = |j: u32| _mm512_set1_epi32((key >> (32 * j)) as i32);
        // SAFETY: both arrays hold 64 initialised bytes; the load has no alignment requirement.
        let [low, high] = [&low, &high].map(|x| unsafe { _mm512_loadu_si512(x.as_ptr().cast()) });
        // The class of G is 0, and the three top bits are those of word 3.
        const { assert!(TweakClass::GateG as u32 == 0 && TweakClass::SHIFT == 96 + 29) };
        Keys {
            low,
            high,
            nonce: [word(0), word(1), word(2), word(3)],
            class: _mm512_set1_epi32((TweakClass::GateE as i32) << 29),
        }
    }

    /// Returns the keys of this gate, and goes on to the next.
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn next(&mut self) -> [[__m512i; 4]; 2] {
        let [n0, n1, n2, n3] = self.nonce;
        let (w0, w1) = (
            _mm512_xor_si512(n0, self.low),
            _mm512_xor_si512(n1, self.high),
        );
        let one = _mm512_set1_epi32(1);
        self.low = _mm512_add_epi32(self.low, one);
        let carried = _mm512_testn_epi32_mask(self.low, self.low);
        self.high = _mm512_mask_add_epi32(self.high, carried, self.high, one);
        [
            [w0, w1, n2, n3],
            [w0, w1, n2, _mm512_xor_si512(n3, self.class)],
        ]
    }
}

/// Blocks `[instance][column]` of a group, read column by column. They are held as bytes because
/// tables lie anywhere in a message.
struct Columns<'a> {
    bytes: &'a [u8],
    columns: usize,
    /// Offset of each lane's instance.
    starts: [usize; LANES],
}

impl<'a> Columns<'a> {
    fn new(bytes: &'a [u8], columns: usize, count: usize) -> Self {
        let instance = columns * BLOCK_BYTES;
        assert!((1..=LANES).contains(&count) && bytes.len() == count * instance);
        Columns {
            bytes,
            columns,
            starts: std::array::from_fn(|lane| lane.min(count - 1) * instance),
        }
    }

    /// One block of every instance.
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn load(&self, column: usize) -> Lanes {
        assert!(column < self.columns);
        let block = |lane: usize| {
            // SAFETY: `starts` are multiples of an instance's `16 columns` bytes, below
            // `bytes.len()`, and `column` is less than `columns`: the 16 bytes are in the slice.
            // The load has no alignment requirement.
            unsafe {
                let start = self.starts[lane] + column * BLOCK_BYTES;
                _mm_loadu_si128(self.bytes.as_ptr().add(start).cast())
            }
        };
        std::array::from_fn(|e| {
            let x = _mm512_castsi128_si512(block(WIDTH * e));
            let x = _mm512_mask_broadcast_i32x4(x, 0x00f0, block(WIDTH * e + 1));
            let x = _mm512_mask_broadcast_i32x4(x, 0x0f00, block(WIDTH * e + 2));
            _mm512_mask_broadcast_i32x4(x, 0xf000, block(WIDTH * e + 3))
        })
    }

    /// Asks for this column's share of the group behind, if `column` is the first in its cache
    /// line.
    ///
    /// Left alone, the hardware does not foresee sixteen strided streams that all end after a few
    /// hundred bytes.
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn prefetch_next(&self, column: usize) {
        if column.is_multiple_of(LINE_BLOCKS) {
            for start in self.starts {
                let next = start + self.bytes.len() + column * BLOCK_BYTES;
                _mm_prefetch::<_MM_HINT_T0>(self.bytes.as_ptr().wrapping_add(next).cast());
            }
        }
    }

    /// Blocks `column` and `column + 1` of every instance.
    #[allow(
        clippy::needless_range_loop,
        reason = "both results are filled register by register"
    )]
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn load_pairs(&self, column: usize) -> [Lanes; 2] {
        assert!(column + 1 < self.columns);
        let pair = |lane: usize| {
            // SAFETY: as in `load`, for two blocks that follow each other.
            unsafe {
                let start = self.starts[lane] + column * BLOCK_BYTES;
                _mm256_loadu_si256(self.bytes.as_ptr().add(start).cast())
            }
        };
        let pairs = |lane: usize| {
            let x = _mm512_castsi256_si512(pair(lane));
            _mm512_inserti64x4::<1>(x, pair(lane + 1))
        };
        let mut loaded = [[_mm512_setzero_si512(); N]; 2];
        for e in 0..N {
            let (x, y) = (pairs(WIDTH * e), pairs(WIDTH * e + 2));
            // 128-bit lanes 0 and 2 of both, and 1 and 3.
            loaded[0][e] = _mm512_shuffle_i32x4::<0x88>(x, y);
            loaded[1][e] = _mm512_shuffle_i32x4::<0xdd>(x, y);
        }
        loaded
    }
}

/// The tables of a group, written gate by gate.
struct Tables<'a> {
    bytes: &'a mut [u8],
    gates: usize,
    starts: [usize; LANES],
}

impl<'a> Tables<'a> {
    fn new(bytes: &'a mut [u8], gates: usize, count: usize) -> Self {
        assert!((1..=LANES).contains(&count) && bytes.len() == count * gates * TABLE_BYTES);
        Tables {
            bytes,
            gates,
            starts: std::array::from_fn(|l| l.min(count - 1) * gates * TABLE_BYTES),
        }
    }

    /// Writes the tables of one gate for instances `4 e..4 e + 4`.
    #[target_feature(enable = "avx512f")]
    #[inline]
    fn store(&mut self, gate: usize, e: usize, g: __m512i, e_rows: __m512i) {
        assert!(gate < self.gates && e < N);
        // Rows G and E of instances 0 and 1, and of 2 and 3.
        let low = _mm512_permutex2var_epi64(g, _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11), e_rows);
        let high =
            _mm512_permutex2var_epi64(g, _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15), e_rows);
        let rows = [
            _mm512_castsi512_si256(low),
            _mm512_extracti64x4_epi64::<1>(low),
            _mm512_castsi512_si256(high),
            _mm512_extracti64x4_epi64::<1>(high),
        ];
        for (g, rows) in rows.into_iter().enumerate() {
            let start = self.starts[WIDTH * e + g] + gate * TABLE_BYTES;
            // SAFETY: `starts` are multiples of `gates * TABLE_BYTES` below `bytes.len()`, and
            // `gate` is less than `gates`: the 32 bytes are in the slice, which is borrowed
            // mutably. The store has no alignment requirement.
            unsafe { _mm256_storeu_si256(self.bytes.as_mut_ptr().add(start).cast(), rows) }
        }
    }
}

/// Blocks in a cache line.
const LINE_BLOCKS: usize = 64 / BLOCK_BYTES;

/// The instance in 128-bit lane `g` of register `e`, of a group of `count`.
fn lane(e: usize, g: usize, count: usize) -> usize {
    (WIDTH * e + g).min(count - 1)
}

/// Writes the blocks of those instances of `4 e..4 e + 4` that exist.
#[target_feature(enable = "avx512f")]
#[inline]
fn store_first(blocks: &mut [Block], e: usize, data: __m512i) {
    let mut all = [Block::ZERO; WIDTH];
    // SAFETY: 64 bytes borrowed mutably; any bits are a valid block; the store has no alignment
    // requirement.
    unsafe { _mm512_storeu_si512(all.as_mut_ptr().cast(), data) }
    for (block, value) in blocks.iter_mut().skip(WIDTH * e).zip(all) {
        *block = value;
    }
}

/// Writes the guard wires: the sign xor each of the bits below it.
#[target_feature(enable = "avx512f")]
#[inline]
fn store_guard(guard: &mut [[Block; LANES]], sign: Lanes, sums: &[Lanes]) {
    for (wires, &sum) in guard.iter_mut().zip(sums) {
        for (e, wire) in xor(sign, sum).into_iter().enumerate() {
            store_first(wires, e, wire);
        }
    }
}

/// The mask of the 32-bit words of those blocks whose colour is 1.
#[target_feature(enable = "avx512f")]
#[inline]
fn colours(x: __m512i) -> __mmask16 {
    _mm512_test_epi32_mask(_mm512_shuffle_epi32::<0>(x), _mm512_set1_epi32(1))
}

#[target_feature(enable = "avx512f")]
#[inline]
fn broadcast(x: Block) -> __m512i {
    // SAFETY: a block is 16 initialised bytes; the load has no alignment requirement.
    _mm512_broadcast_i32x4(unsafe { _mm_loadu_si128(std::ptr::from_ref(&x).cast()) })
}
