//! The sign circuit over [`Vector`]: as many instances side by side as four registers have blocks,
//! both half gates at once.
//!
//! A whole gate stays in registers: key schedules, hashes and tables. Block `h` of register `e` of
//! a value belongs to instance `e + 4 h` of those that run side by side. If there are fewer, the
//! last one is repeated: the same work, written to the same place.

use super::{Group, InputLabels, TABLE_BYTES};
use pi_core::hash::LANES;
use pi_core::hash::vector::{Lanes, N, encrypt, sigma, xor};
use pi_core::vector::{Kernel, Vector};
use pi_core::{BLOCK_BYTES, Block, TweakClass, TweakRange};

/// Garbles up to [`LANES`] instances: see [`super::scalar::garble_group`].
pub(super) struct Garble<'a> {
    pub(super) group: Group<'a>,
    pub(super) delta: Block,
    pub(super) zeros: InputLabels<'a>,
    pub(super) tables: &'a mut [u8],
    pub(super) keep: &'a mut [Block],
    pub(super) guard: &'a mut [[Block; LANES]],
}

/// Evaluates up to [`LANES`] instances: see [`super::scalar::evaluate_group`].
pub(super) struct Evaluate<'a> {
    pub(super) group: Group<'a>,
    pub(super) client: &'a [Block],
    pub(super) server: &'a [u8],
    pub(super) tables: &'a [u8],
    pub(super) keep: &'a mut [Block],
    pub(super) guard: &'a mut [[Block; LANES]],
}

impl Kernel for Garble<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Vector>(mut self, s: S) {
        for first in (0..self.keep.len()).step_by(N * S::BLOCKS) {
            self.garble_from(s, first);
        }
    }
}

impl Garble<'_> {
    #[inline(always)]
    fn garble_from<S: Vector>(&mut self, s: S, first: usize) {
        let (m, gates) = (self.group.width.bits() as usize, self.group.gates());
        let lane = Instances::new(first, self.keep.len());
        let client = Columns::new(Block::encode(self.zeros.client), m, lane);
        let server = Columns::new(Block::encode(self.zeros.server), m, lane);
        let mut tables = Tables::new(self.tables, gates, lane);
        let mut keys = Keys::new(s, self.group.tweaks, self.group.first, lane);
        let delta = s.broadcast(self.delta);
        let sigma_delta = s.sigma(delta);
        let sigma_deltas = [sigma_delta; N];
        let mut carry = [s.splat(0); N];
        for i in 0..gates {
            // carry' = ((a xor carry) and (b xor carry)) xor carry, for the carry 0 into the lowest
            // bit as well.
            let a = xor(s, client.load(s, i), carry);
            let b = xor(s, server.load(s, i), carry);
            if let Some(wires) = self.guard.get_mut(gates - 1 - i) {
                store_first(s, wires, first, xor(s, xor(s, a, b), carry));
            }
            client.prefetch_next(s, i);
            server.prefetch_next(s, i);
            let (sa, sb) = (sigma(s, a), sigma(s, b));
            let ones = [xor(s, sa, sigma_deltas), xor(s, sb, sigma_deltas)];
            let [key_g, key_e] = keys.next(s);
            // One half gate after the other: sixteen registers hold no more.
            let [[g0, g1]] = encrypt(s, [key_g], [[sa, ones[0]]]);
            let [[e0, e1]] = encrypt(s, [key_e], [[sb, ones[1]]]);
            for e in 0..N {
                let (colour_a, colour_b) = (s.colours(a[e]), s.colours(b[e]));
                let table_g = s.xor(s.xor(g0[e], g1[e]), sigma_delta);
                let table_g = s.xor(table_g, s.and(delta, colour_b));
                // Less a, which is added to the table only.
                let table_e = s.xor(s.xor(e0[e], e1[e]), sigma_delta);
                let half_g = s.xor(s.xor(g0[e], sa[e]), s.and(table_g, colour_a));
                let half_e = s.xor(s.xor(e0[e], sb[e]), s.and(table_e, colour_b));
                carry[e] = s.xor(carry[e], s.xor(half_g, half_e));
                tables.store(s, i, e, [table_g, s.xor(table_e, a[e])]);
            }
        }
        let sign = xor(s, client.load(s, gates), server.load(s, gates));
        let sign = xor(s, sign, carry);
        // NOT is free: the zero label of keep is the one label of the sign.
        store_first(s, self.keep, first, xor(s, sign, [delta; N]));
        add_sign(s, self.guard, first, sign);
    }
}

impl Kernel for Evaluate<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Vector>(mut self, s: S) {
        for first in (0..self.keep.len()).step_by(N * S::BLOCKS) {
            self.evaluate_from(s, first);
        }
    }
}

impl Evaluate<'_> {
    #[inline(always)]
    fn evaluate_from<S: Vector>(&mut self, s: S, first: usize) {
        let (m, gates) = (self.group.width.bits() as usize, self.group.gates());
        let lane = Instances::new(first, self.keep.len());
        let client = Columns::new(Block::encode(self.client), m, lane);
        let server = Columns::new(self.server, m, lane);
        let tables = Columns::new(self.tables, 2 * gates, lane);
        let mut keys = Keys::new(s, self.group.tweaks, self.group.first, lane);
        let mut carry = [s.splat(0); N];
        for i in 0..gates {
            let a = xor(s, client.load(s, i), carry);
            let b = xor(s, server.load(s, i), carry);
            if let Some(wires) = self.guard.get_mut(gates - 1 - i) {
                store_first(s, wires, first, xor(s, xor(s, a, b), carry));
            }
            client.prefetch_next(s, i);
            server.prefetch_next(s, i);
            let (sa, sb) = (sigma(s, a), sigma(s, b));
            let [[g], [e]] = encrypt(s, keys.next(s), [[sa], [sb]]);
            tables.prefetch_next(s, 2 * i);
            for r in 0..N {
                let [table_g, table_e] = tables.load_pair(s, 2 * i, r);
                let half_g = s.xor(s.xor(g[r], sa[r]), s.and(table_g, s.colours(a[r])));
                let row = s.xor(table_e, a[r]);
                let half_e = s.xor(s.xor(e[r], sb[r]), s.and(row, s.colours(b[r])));
                carry[r] = s.xor(carry[r], s.xor(half_g, half_e));
            }
        }
        let sign = xor(s, client.load(s, gates), server.load(s, gates));
        let sign = xor(s, sign, carry);
        store_first(s, self.keep, first, sign);
        add_sign(s, self.guard, first, sign);
    }
}

/// The instances that run side by side: from `first` on, of a group of `count`.
#[derive(Clone, Copy)]
struct Instances {
    first: usize,
    count: usize,
}

impl Instances {
    #[inline(always)]
    fn new(first: usize, count: usize) -> Self {
        assert!(first < count && count <= LANES);
        Instances { first, count }
    }

    /// The instance of each lane, less than `count`.
    #[inline(always)]
    fn of(self, lane: usize) -> usize {
        (self.first + lane).min(self.count - 1)
    }

    /// Offsets of each lane's instance, of this many bytes.
    #[inline(always)]
    fn starts(self, bytes: usize) -> [usize; MAX_LANES] {
        std::array::from_fn(|lane| self.of(lane) * bytes)
    }
}

/// Lanes of the widest registers.
const MAX_LANES: usize = 2 * N;

/// The keys of both halves of gate after gate, in word form.
struct Keys<S: Vector> {
    /// Counters less the nonce: low and high words.
    low: S::V,
    high: S::V,
    nonce: Lanes<S>,
    class: S::V,
}

impl<S: Vector> Keys<S> {
    #[inline(always)]
    fn new(s: S, tweaks: &TweakRange, first: usize, lane: Instances) -> Self {
        // Element `e` of block `h` is lane `e + 4 h`.
        let (mut low, mut high) = ([0u32; MAX_LANES], [0u32; MAX_LANES]);
        for i in 0..N * S::BLOCKS {
            let counter = tweaks.counter(first + lane.of(i), 0);
            low[i] = counter as u32;
            high[i] = (counter >> 32) as u32;
        }
        let key = tweaks.nonce().value();
        // SAFETY: both arrays hold the bytes of two blocks, all initialised, and a register holds
        // no more.
        let (low, high) = unsafe { (s.load(low.as_ptr().cast()), s.load(high.as_ptr().cast())) };
        // The class of G is 0, and the three top bits are those of word 3.
        const { assert!(TweakClass::GateG as u32 == 0 && TweakClass::SHIFT == 96 + 29) };
        Keys {
            low,
            high,
            nonce: [
                s.splat(key as u32),
                s.splat((key >> 32) as u32),
                s.splat((key >> 64) as u32),
                s.splat((key >> 96) as u32),
            ],
            class: s.splat((TweakClass::GateE as u32) << 29),
        }
    }

    /// Returns the keys of this gate, and goes on to the next.
    #[inline(always)]
    fn next(&mut self, s: S) -> [Lanes<S>; 2] {
        let [n0, n1, n2, n3] = self.nonce;
        let (w0, w1) = (s.xor(n0, self.low), s.xor(n1, self.high));
        self.low = s.add32(self.low, s.splat(1));
        let carried = s.equal32(self.low, s.splat(0));
        self.high = s.sub32(self.high, carried);
        [[w0, w1, n2, n3], [w0, w1, n2, s.xor(n3, self.class)]]
    }
}

/// Blocks `[instance][column]` of a group, read column by column. They are held as bytes because
/// tables lie anywhere in a message.
struct Columns<'a> {
    bytes: &'a [u8],
    columns: usize,
    /// Offset of each lane's instance.
    starts: [usize; MAX_LANES],
}

impl<'a> Columns<'a> {
    #[inline(always)]
    fn new(bytes: &'a [u8], columns: usize, lane: Instances) -> Self {
        let instance = columns * BLOCK_BYTES;
        assert!(bytes.len() == lane.count * instance);
        Columns {
            bytes,
            columns,
            starts: lane.starts(instance),
        }
    }

    /// One block of every instance.
    #[inline(always)]
    fn load<S: Vector>(&self, s: S, column: usize) -> Lanes<S> {
        assert!(column < self.columns);
        let mut loaded = [s.splat(0); N];
        for (e, loaded) in loaded.iter_mut().enumerate() {
            // SAFETY: `starts` are multiples of an instance's `16 columns` bytes, below
            // `bytes.len()`, and `column` is less than `columns`: the 16 bytes are in the slice.
            *loaded = unsafe { s.load_at(|h| self.at(e, h, column)) };
        }
        loaded
    }

    /// Blocks `column` and `column + 1` of the instances of register `e`.
    #[inline(always)]
    fn load_pair<S: Vector>(&self, s: S, column: usize, e: usize) -> [S::V; 2] {
        assert!(column + 1 < self.columns);
        // SAFETY: as in `load`, for two blocks that follow each other.
        unsafe { s.load_pairs_at(|h| self.at(e, h, column)) }
    }

    #[inline(always)]
    fn at(&self, e: usize, h: usize, column: usize) -> *const u8 {
        let start = self.starts[e + N * h] + column * BLOCK_BYTES;
        self.bytes.as_ptr().wrapping_add(start)
    }

    /// Asks for this column's share of the instances behind, if `column` is the first in its cache
    /// line.
    ///
    /// Left alone, the hardware does not foresee strided streams that all end after a few hundred
    /// bytes.
    #[inline(always)]
    fn prefetch_next<S: Vector>(&self, s: S, column: usize) {
        if column.is_multiple_of(LINE_BLOCKS) {
            let lanes = N * S::BLOCKS;
            for start in &self.starts[..lanes] {
                let next = start + (lanes * self.columns + column) * BLOCK_BYTES;
                s.prefetch(self.bytes.as_ptr().wrapping_add(next));
            }
        }
    }
}

/// The tables of a group, written gate by gate.
struct Tables<'a> {
    bytes: &'a mut [u8],
    gates: usize,
    starts: [usize; MAX_LANES],
}

impl<'a> Tables<'a> {
    #[inline(always)]
    fn new(bytes: &'a mut [u8], gates: usize, lane: Instances) -> Self {
        let instance = gates * TABLE_BYTES;
        assert!(bytes.len() == lane.count * instance);
        Tables {
            bytes,
            gates,
            starts: lane.starts(instance),
        }
    }

    /// Writes the tables of one gate for the instances of register `e`.
    #[inline(always)]
    fn store<S: Vector>(&mut self, s: S, gate: usize, e: usize, rows: [S::V; 2]) {
        assert!(gate < self.gates);
        let bytes = self.bytes.as_mut_ptr();
        let at = |h| bytes.wrapping_add(self.starts[e + N * h] + gate * TABLE_BYTES);
        // SAFETY: `starts` are multiples of `gates * TABLE_BYTES` below `bytes.len()`, and `gate`
        // is less than `gates`: the 32 bytes are in the slice, which is borrowed mutably.
        unsafe { s.store_pairs_at(at, rows) }
    }
}

/// Blocks in a cache line.
const LINE_BLOCKS: usize = 64 / BLOCK_BYTES;

/// Writes the blocks of those instances from `first` on that exist.
#[inline(always)]
fn store_first<S: Vector>(s: S, blocks: &mut [Block], first: usize, data: Lanes<S>) {
    let mut all = [Block::ZERO; MAX_LANES];
    let at = Block::bytes_mut(&mut all).as_mut_ptr();
    for (e, data) in data.into_iter().enumerate() {
        // SAFETY: `e` is at most 3 and `h` at most 1, so the block is one of the eight of `all`,
        // borrowed mutably; any bits are a valid block.
        unsafe { s.store_at(|h| at.add((e + N * h) * BLOCK_BYTES), data) }
    }
    let lanes = blocks[first..].iter_mut().take(N * S::BLOCKS);
    for (block, value) in lanes.zip(all) {
        *block = value;
    }
}

/// Adds the sign to the bits that the guard compares with it.
#[inline(always)]
fn add_sign<S: Vector>(s: S, guard: &mut [[Block; LANES]], first: usize, sign: Lanes<S>) {
    if guard.is_empty() {
        return;
    }
    let mut signs = [Block::ZERO; MAX_LANES];
    store_first(s, &mut signs, 0, sign);
    for wires in guard {
        for (wire, sign) in wires[first..].iter_mut().zip(signs).take(N * S::BLOCKS) {
            *wire ^= sign;
        }
    }
}
