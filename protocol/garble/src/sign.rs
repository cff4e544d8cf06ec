//! The garbled sign: is `c + d >= 0`, for the client's `c` and the server's `d` modulo `2^m`?
//!
//! A ripple carry chain of `m - 1` AND gates and free XORs; the bool circuit's only output is the
//! negated top bit of the sum, the wire *keep*. Gates are half-gates (Zahur, Rosulek, Evans,
//! EUROCRYPT 2015) with the free-XOR offset `delta` of the bundle's OT extension, hashed by
//! [`pi_core::hash`](mod@pi_core::hash).
//!
//! The server garbles, the client evaluates, both semi-honest. The client's labels are the output
//! of a correlated OT chosen by the bits of `c`, so the garbler takes their zero labels from there;
//! the server's zero labels come out of a generator. No decoding of *keep* is sent. The client
//! learns nothing from tables and labels: the colour of its one label is masked by the colour of
//! the zero label, which only the server knows.
//!
//! Many instances are garbled side by side, the tables straight into the outgoing buffer.
//!
//! # Shapes
//! Labels of inputs: `[instance][bit]`, lowest bit first. Tables: `[instance][gate][G, E]`, 32
//! bytes a gate.

use pi_core::hash::{LANES, hash_lanes, hash_pairs};
use pi_core::{BLOCK_BYTES, Backend, Block, Delta, Error, Labels, Prg, TweakClass, TweakRange};
use rayon::prelude::*;
use zeroize::{Zeroize, Zeroizing};

#[cfg(target_arch = "x86_64")]
mod avx512;

/// The width `m` of a sign circuit, 2 to 60 bits.
///
/// A truncation by `f` bits of a value bounded by `B` needs `m = log2 B - f + 1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SignWidth(u32);

impl SignWidth {
    /// Checks a width.
    ///
    /// # Errors
    /// [`Error::CallerRange`] outside 2 to 60 bits. One bit would be a sign and no value.
    pub const fn new(bits: u32) -> Result<Self, Error> {
        const MIN: u32 = 2;
        const MAX: u32 = 60;
        match bits {
            MIN..=MAX => Ok(SignWidth(bits)),
            got => Err(Error::CallerRange {
                what: "sign width",
                min: MIN,
                max: MAX,
                got,
            }),
        }
    }

    /// Returns `m`.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Returns the number of AND gates of one instance: `m - 1`.
    pub const fn and_gates(self) -> usize {
        self.0 as usize - 1
    }

    /// Returns the bytes of garbled tables, offline, server to client: `32 (m - 1)` per instance.
    pub const fn table_bytes(self, instances: usize) -> usize {
        instances * self.and_gates() * TABLE_BYTES
    }

    /// Returns the bytes of the server's labels, online, server to client: `16 m` per instance.
    pub const fn label_bytes(self, instances: usize) -> usize {
        instances * self.0 as usize * BLOCK_BYTES
    }
}

/// Bytes of one half-gates table.
const TABLE_BYTES: usize = 2 * BLOCK_BYTES;

/// Instances per parallel task: 61 KB of tables at `m = 16`, which stay in the second-level cache.
const TASK: usize = 8 * LANES;

/// Garbles the sign circuit of every instance and returns the zero labels of the *keep* wires.
///
/// `tables` is overwritten; `tweaks` is the layer's range, with a stride of `m` or more.
///
/// # Shapes
/// `client_zero`, `server_zero`: `[instance][m]`; `tables`: [`SignWidth::table_bytes`].
/// # Errors
/// [`Error::CallerLength`] if the shapes do not fit together.
pub fn garble_sign(
    width: SignWidth,
    tweaks: &TweakRange,
    delta: &Delta,
    client_zero: &[Block],
    server_zero: &[Block],
    tables: &mut [u8],
) -> Result<Labels, Error> {
    let instances = client_zero.len() / width.0 as usize;
    let mut keep_zero = Zeroizing::new(vec![Block::ZERO; instances]);
    garble_sign_into(
        width,
        tweaks,
        delta,
        client_zero,
        server_zero,
        tables,
        &mut keep_zero,
    )?;
    Ok(keep_zero)
}

/// As [`garble_sign`], with a place for the zero labels of the *keep* wires: for parts of a layer.
///
/// # Errors
/// [`Error::CallerLength`] if the shapes do not fit together.
pub fn garble_sign_into(
    width: SignWidth,
    tweaks: &TweakRange,
    delta: &Delta,
    client_zero: &[Block],
    server_zero: &[Block],
    tables: &mut [u8],
    keep_zero: &mut [Block],
) -> Result<(), Error> {
    let m = width.0 as usize;
    let instances = client_zero.len() / m;
    Error::check_argument("client's zero labels", instances * m, client_zero.len())?;
    Error::check_argument("server's zero labels", client_zero.len(), server_zero.len())?;
    Error::check_argument(
        "bytes of tables",
        width.table_bytes(instances),
        tables.len(),
    )?;
    Error::check_argument("zero labels of keep", instances, keep_zero.len())?;
    check_tweaks(width, tweaks, instances)?;

    (keep_zero.par_chunks_mut(TASK))
        .zip(client_zero.par_chunks(TASK * m))
        .zip(server_zero.par_chunks(TASK * m))
        .zip(tables.par_chunks_mut(width.table_bytes(TASK)))
        .enumerate()
        .for_each(|(task, (((keep, client), server), tables))| {
            let groups = (keep.chunks_mut(LANES))
                .zip(client.chunks(LANES * m))
                .zip(server.chunks(LANES * m))
                .zip(tables.chunks_mut(width.table_bytes(LANES)));
            for (group, (((keep, client), server), tables)) in groups.enumerate() {
                let first = task * TASK + group * LANES;
                let delta = delta.block();
                match Backend::get() {
                    #[cfg(target_arch = "x86_64")]
                    // SAFETY: a chosen back end is supported, so the features of its level are present.
                    Backend::Avx512 => unsafe {
                        avx512::garble_group(
                            width, tweaks, first, delta, client, server, tables, keep,
                        )
                    },
                    _ => garble_group(width, tweaks, first, delta, client, server, tables, keep),
                }
            }
        });
    Ok(())
}

/// Garbles up to [`LANES`] instances side by side.
fn garble_group(
    width: SignWidth,
    tweaks: &TweakRange,
    first: usize,
    delta: Block,
    client: &[Block],
    server: &[Block],
    tables: &mut [u8],
    keep: &mut [Block],
) {
    let (m, gates, count) = (width.0 as usize, width.and_gates(), keep.len());
    let mut carry = [Block::ZERO; LANES];
    let (mut a, mut b) = ([Block::ZERO; LANES], [Block::ZERO; LANES]);
    for i in 0..gates {
        // carry' = ((a xor carry) and (b xor carry)) xor carry, for the carry 0 into the lowest bit
        // as well.
        for lane in 0..count {
            a[lane] = client[lane * m + i] ^ carry[lane];
            b[lane] = server[lane * m + i] ^ carry[lane];
        }
        let (mut g0, mut e0) = (a, b);
        let (mut g1, mut e1) = (a.map(|a| a ^ delta), b.map(|b| b ^ delta));
        let key = |class| std::array::from_fn(|lane| tweaks.key(class, first + lane, i));
        hash_pairs(&key(TweakClass::GateG), &mut g0, &mut g1);
        hash_pairs(&key(TweakClass::GateE), &mut e0, &mut e1);
        for lane in 0..count {
            let (colour_a, colour_b) = (a[lane].colour(), b[lane].colour());
            let table_g = g0[lane] ^ g1[lane] ^ delta.masked_by(colour_b);
            let table_e = e0[lane] ^ e1[lane] ^ a[lane];
            let half_g = g0[lane] ^ table_g.masked_by(colour_a);
            let half_e = e0[lane] ^ (table_e ^ a[lane]).masked_by(colour_b);
            carry[lane] ^= half_g ^ half_e;
            let table = &mut tables[(lane * gates + i) * TABLE_BYTES..][..TABLE_BYTES];
            table[..BLOCK_BYTES].copy_from_slice(&table_g.to_bytes());
            table[BLOCK_BYTES..].copy_from_slice(&table_e.to_bytes());
        }
    }
    for lane in 0..count {
        // NOT is free: the zero label of keep is the one label of the sign.
        keep[lane] = client[lane * m + gates] ^ server[lane * m + gates] ^ carry[lane] ^ delta;
    }
    [carry, a, b].zeroize();
}

/// Evaluates the sign circuit of every instance and returns the labels of the *keep* wires.
///
/// Wrong tables or labels of the right length give labels that mean nothing; there is no check to
/// fail, which is the semi-honest model.
///
/// # Shapes
/// `client`, `server`: active labels `[instance][m]`; `tables`: [`SignWidth::table_bytes`].
/// # Errors
/// [`Error::PeerLength`] if `tables` has the wrong length, [`Error::CallerLength`] if the labels
/// do.
pub fn evaluate_sign(
    width: SignWidth,
    tweaks: &TweakRange,
    client: &[Block],
    server: &[Block],
    tables: &[u8],
) -> Result<Labels, Error> {
    Error::check_argument("server's labels", client.len(), server.len())?;
    evaluate_sign_message(width, tweaks, client, Block::encode(server), tables)
}

/// As [`evaluate_sign`], with the server's labels as they came over the line.
///
/// # Errors
/// [`Error::PeerLength`] if `server` or `tables` has the wrong length, [`Error::CallerLength`] if
/// the client's labels do.
pub fn evaluate_sign_message(
    width: SignWidth,
    tweaks: &TweakRange,
    client: &[Block],
    server: &[u8],
    tables: &[u8],
) -> Result<Labels, Error> {
    let m = width.0 as usize;
    let instances = client.len() / m;
    Error::check_argument("client's labels", instances * m, client.len())?;
    Error::check_message(
        "server's labels",
        width.label_bytes(instances),
        server.len(),
    )?;
    Error::check_message("garbled tables", width.table_bytes(instances), tables.len())?;
    check_tweaks(width, tweaks, instances)?;

    let mut keep = Zeroizing::new(vec![Block::ZERO; instances]);
    (keep.par_chunks_mut(TASK))
        .zip(client.par_chunks(TASK * m))
        .zip(server.par_chunks(width.label_bytes(TASK)))
        .zip(tables.par_chunks(width.table_bytes(TASK)))
        .enumerate()
        .for_each(|(task, (((keep, client), server), tables))| {
            let groups = (keep.chunks_mut(LANES))
                .zip(client.chunks(LANES * m))
                .zip(server.chunks(width.label_bytes(LANES)))
                .zip(tables.chunks(width.table_bytes(LANES)));
            for (group, (((keep, client), server), tables)) in groups.enumerate() {
                let first = task * TASK + group * LANES;
                match Backend::get() {
                    #[cfg(target_arch = "x86_64")]
                    // SAFETY: a chosen back end is supported, so the features of its level are present.
                    Backend::Avx512 => unsafe {
                        avx512::evaluate_group(width, tweaks, first, client, server, tables, keep)
                    },
                    _ => evaluate_group(width, tweaks, first, client, server, tables, keep),
                }
            }
        });
    Ok(keep)
}

/// Evaluates up to [`LANES`] instances side by side.
fn evaluate_group(
    width: SignWidth,
    tweaks: &TweakRange,
    first: usize,
    client: &[Block],
    server: &[u8],
    tables: &[u8],
    keep: &mut [Block],
) {
    let (m, gates, count) = (width.0 as usize, width.and_gates(), keep.len());
    let mut carry = [Block::ZERO; LANES];
    let (mut a, mut b) = ([Block::ZERO; LANES], [Block::ZERO; LANES]);
    let server = |index: usize| read_block(&server[index * BLOCK_BYTES..][..BLOCK_BYTES]);
    for i in 0..gates {
        for lane in 0..count {
            a[lane] = client[lane * m + i] ^ carry[lane];
            b[lane] = server(lane * m + i) ^ carry[lane];
        }
        let (mut g, mut e) = (a, b);
        let key = |class| std::array::from_fn(|lane| tweaks.key(class, first + lane, i));
        hash_lanes(&key(TweakClass::GateG), &mut g);
        hash_lanes(&key(TweakClass::GateE), &mut e);
        for lane in 0..count {
            let (table_g, table_e) =
                tables[(lane * gates + i) * TABLE_BYTES..][..TABLE_BYTES].split_at(BLOCK_BYTES);
            let (table_g, table_e) = (read_block(table_g), read_block(table_e));
            let half_g = g[lane] ^ table_g.masked_by(a[lane].colour());
            let half_e = e[lane] ^ (table_e ^ a[lane]).masked_by(b[lane].colour());
            carry[lane] ^= half_g ^ half_e;
        }
    }
    for lane in 0..count {
        keep[lane] = client[lane * m + gates] ^ server(lane * m + gates) ^ carry[lane];
    }
    [carry, a, b].zeroize();
}

/// Reads a block from exactly 16 bytes.
#[inline]
fn read_block(bytes: &[u8]) -> Block {
    Block::from_bytes(bytes.try_into().expect("the caller passes 16 bytes"))
}

fn check_tweaks(width: SignWidth, tweaks: &TweakRange, instances: usize) -> Result<(), Error> {
    tweaks.check_instances(instances)?;
    let (expected, got) = (width.0 as usize, tweaks.stride() as usize);
    match got >= expected {
        true => Ok(()),
        false => Err(Error::CallerLength {
            what: "tweaks per instance",
            expected,
            got,
        }),
    }
}

/// Writes the labels of the low `m` bits of every value: the server's online message.
///
/// Once per bundle: both labels of one wire give `delta` away, and with it everything.
///
/// # Shapes
/// `zeros`: `[instance][m]`; `values`: one per instance; `out`: [`SignWidth::label_bytes`].
/// # Errors
/// [`Error::CallerLength`] if the shapes do not fit together.
pub fn active_labels(
    width: SignWidth,
    delta: &Delta,
    zeros: &[Block],
    values: &[u64],
    out: &mut [u8],
) -> Result<(), Error> {
    let m = width.0 as usize;
    Error::check_argument("zero labels", values.len() * m, zeros.len())?;
    check_label_bytes(width, values.len(), out.len())?;
    out.copy_from_slice(Block::encode(zeros));
    out.par_chunks_mut(width.label_bytes(TASK))
        .zip(values.par_chunks(TASK))
        .for_each(|(out, values)| select_labels(width, delta, values, out));
    Ok(())
}

/// As [`active_labels`], for zero labels that are the beginning of a stream: they are made where
/// they are needed.
///
/// # Errors
/// [`Error::CallerLength`] if the shapes do not fit together.
pub fn active_labels_of_stream(
    width: SignWidth,
    delta: &Delta,
    zeros: &Prg,
    values: &[u64],
    out: &mut [u8],
) -> Result<(), Error> {
    check_label_bytes(width, values.len(), out.len())?;
    out.par_chunks_mut(width.label_bytes(TASK))
        .zip(values.par_chunks(TASK))
        .enumerate()
        .for_each(|(task, (out, values))| {
            zeros.fill_at((task * TASK) as u128 * width.0 as u128, out);
            select_labels(width, delta, values, out);
        });
    Ok(())
}

fn check_label_bytes(width: SignWidth, instances: usize, got: usize) -> Result<(), Error> {
    Error::check_argument("bytes of labels", width.label_bytes(instances), got)
}

/// Turns zero labels into those of the bits of every value, without branching on them.
fn select_labels(width: SignWidth, delta: &Delta, values: &[u64], labels: &mut [u8]) {
    let instances = labels.chunks_exact_mut(width.label_bytes(1));
    for (labels, value) in instances.zip(values) {
        let (labels, _) = labels.as_chunks_mut::<BLOCK_BYTES>();
        for (i, label) in labels.iter_mut().enumerate() {
            let offset = delta.block().masked_by((value >> i) as u8);
            *label = (Block::from_bytes(*label) ^ offset).to_bytes();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pi_core::{Bits, TweakCounter};
    use rand_chacha::ChaCha20Rng;
    use rand_core::{RngCore, SeedableRng};

    /// One half gate, one instance, straight from figure 2 of the paper: the oracle of the batched
    /// code.
    mod plain {
        use pi_core::hash::hash;
        use pi_core::{Block, Delta, TweakClass, TweakRange};

        pub(super) fn garble_and(
            a: Block,
            b: Block,
            delta: &Delta,
            tweaks: &TweakRange,
            at: (usize, usize),
        ) -> (Block, [Block; 2]) {
            let delta = delta.block();
            let g = |x| hash(tweaks.key(TweakClass::GateG, at.0, at.1), x);
            let e = |x| hash(tweaks.key(TweakClass::GateE, at.0, at.1), x);
            let table_g = g(a) ^ g(a ^ delta) ^ if b.colour() == 1 { delta } else { Block::ZERO };
            let table_e = e(b) ^ e(b ^ delta) ^ a;
            let half_g = g(a)
                ^ if a.colour() == 1 {
                    table_g
                } else {
                    Block::ZERO
                };
            let half_e = e(b)
                ^ if b.colour() == 1 {
                    table_e ^ a
                } else {
                    Block::ZERO
                };
            (half_g ^ half_e, [table_g, table_e])
        }

        pub(super) fn evaluate_and(
            a: Block,
            b: Block,
            table: [Block; 2],
            tweaks: &TweakRange,
            at: (usize, usize),
        ) -> Block {
            let mut half_g = hash(tweaks.key(TweakClass::GateG, at.0, at.1), a);
            let mut half_e = hash(tweaks.key(TweakClass::GateE, at.0, at.1), b);
            if a.colour() == 1 {
                half_g ^= table[0];
            }
            if b.colour() == 1 {
                half_e ^= table[1] ^ a;
            }
            half_g ^ half_e
        }

        pub(super) fn garble_sign(
            client: &[Block],
            server: &[Block],
            delta: &Delta,
            tweaks: &TweakRange,
            instance: usize,
        ) -> (Block, Vec<Block>) {
            let (mut carry, mut tables) = (None, Vec::new());
            let last = client.len() - 1;
            for i in 0..last {
                let mask = carry.unwrap_or(Block::ZERO);
                let (and, table) = garble_and(
                    client[i] ^ mask,
                    server[i] ^ mask,
                    delta,
                    tweaks,
                    (instance, i),
                );
                carry = Some(and ^ mask);
                tables.extend(table);
            }
            (
                client[last] ^ server[last] ^ carry.unwrap() ^ delta.block(),
                tables,
            )
        }
    }

    #[test]
    fn and_gate_has_its_truth_table() {
        let mut rng = ChaCha20Rng::seed_from_u64(31);
        for _ in 0..50 {
            let delta = Delta::random(&mut rng);
            let tweaks = TweakCounter::new(Block::random(&mut rng)).take(1, 1);
            let (a, b) = (Block::random(&mut rng), Block::random(&mut rng));
            let (zero, table) = plain::garble_and(a, b, &delta, &tweaks, (0, 0));
            for (x, y) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                let label = |zero: Block, bit| zero ^ delta.block().masked_by(bit);
                let output = plain::evaluate_and(label(a, x), label(b, y), table, &tweaks, (0, 0));
                assert_eq!(output.value(), label(zero, x & y).value(), "{x} and {y}");
            }
        }
    }

    /// Garbles and evaluates every pair `(c, d)` and returns the bits of *keep*, decoded.
    fn keep_bits(m: u32, pairs: &[(u64, u64)], rng: &mut ChaCha20Rng) -> Vec<u8> {
        let width = SignWidth::new(m).unwrap();
        let count = pairs.len() * m as usize;
        let delta = Delta::random(rng);
        let mut counter = TweakCounter::new(Block::random(rng));
        counter.take(1, rng.next_u32() % 1000);
        let tweaks = counter.take(pairs.len(), m);
        let client_zero: Vec<Block> = (0..count).map(|_| Block::random(rng)).collect();
        let server_zero: Vec<Block> = (0..count).map(|_| Block::random(rng)).collect();
        let mut tables = vec![0; width.table_bytes(pairs.len())];
        let keep_zero = garble_sign(
            width,
            &tweaks,
            &delta,
            &client_zero,
            &server_zero,
            &mut tables,
        )
        .unwrap();

        let c: Vec<u64> = pairs.iter().map(|pair| pair.0).collect();
        let d: Vec<u64> = pairs.iter().map(|pair| pair.1).collect();
        let client: Vec<Block> = (client_zero.iter().zip(Bits::of_values(&c, m).iter()))
            .map(|(zero, bit)| *zero ^ delta.block().masked_by(bit))
            .collect();
        let mut message = vec![0; width.label_bytes(pairs.len())];
        active_labels(width, &delta, &server_zero, &d, &mut message).unwrap();
        let server = Block::decode("labels", &message, count).unwrap();
        let keep = evaluate_sign(width, &tweaks, &client, &server, &tables).unwrap();
        let one = |zero: Block| (zero ^ delta.block()).value();
        keep.iter()
            .zip(keep_zero.iter())
            .map(|(keep, zero)| match keep.value() {
                value if value == zero.value() => 0,
                value if value == one(*zero) => 1,
                _ => panic!("a label that was never made"),
            })
            .collect()
    }

    #[test]
    fn sign_is_right_for_all_pairs_of_small_widths() {
        let mut rng = ChaCha20Rng::seed_from_u64(32);
        for m in 2..=6 {
            let pairs: Vec<_> = (0..1u64 << m)
                .flat_map(|c| (0..1u64 << m).map(move |d| (c, d)))
                .collect();
            let keep = keep_bits(m, &pairs, &mut rng);
            for (&(c, d), keep) in pairs.iter().zip(keep) {
                let negative = (c + d) >> (m - 1) & 1 == 1;
                assert_eq!(keep == 0, negative, "m = {m}, c = {c}, d = {d}");
            }
        }
    }

    #[test]
    fn sign_of_edges_at_all_widths() {
        let mut rng = ChaCha20Rng::seed_from_u64(33);
        for m in [2, 3, 15, 16, 17, 31, 32, 33, 59, 60] {
            let half = 1i64 << (m - 1);
            let edges = [-1, 0, 1, -2, 2, half - 1, -half, -half + 1, half / 2];
            let mut pairs = Vec::new();
            let mut expected = Vec::new();
            for t in edges.into_iter().filter(|t| (-half..half).contains(t)) {
                for _ in 0..7 {
                    // c of all bits: the circuit reads m of them.
                    let c = rng.next_u64();
                    pairs.push((c, (t as u64).wrapping_sub(c)));
                    expected.push((t >= 0) as u8);
                }
            }
            assert_eq!(keep_bits(m, &pairs, &mut rng), expected, "m = {m}");
        }
    }

    #[test]
    fn batches_equal_the_plain_circuit() {
        let mut rng = ChaCha20Rng::seed_from_u64(34);
        let m = 5;
        let width = SignWidth::new(m).unwrap();
        for instances in [0, 1, 15, 16, 17, TASK - 1, TASK, 2 * TASK + 3] {
            let delta = Delta::random(&mut rng);
            let tweaks = TweakCounter::new(Block::random(&mut rng)).take(instances, m);
            let mut labels = || {
                (0..instances * 5)
                    .map(|_| Block::random(&mut rng))
                    .collect::<Vec<_>>()
            };
            let (client, server) = (labels(), labels());
            let mut tables = vec![0xee; width.table_bytes(instances)];
            let keep = garble_sign(width, &tweaks, &delta, &client, &server, &mut tables).unwrap();
            for j in 0..instances {
                let range = j * 5..(j + 1) * 5;
                let (zero, rows) =
                    plain::garble_sign(&client[range.clone()], &server[range], &delta, &tweaks, j);
                assert_eq!(keep[j].value(), zero.value());
                assert_eq!(tables[j * 128..(j + 1) * 128], *Block::encode(&rows));
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn wide_groups_equal_the_definition() {
        if !Backend::Avx512.is_supported() {
            return;
        }
        let mut rng = ChaCha20Rng::seed_from_u64(37);
        for (count, m) in [(1, 2), (3, 60), (5, 17), (15, 16), (16, 16), (16, 3)] {
            let width = SignWidth::new(m).unwrap();
            let blocks = count * m as usize;
            let delta = Delta::random(&mut rng).block();
            let mut counter = TweakCounter::new(Block::random(&mut rng));
            // So that counters cross 32 bits within the group.
            counter.take(u32::MAX as usize - 100, 1);
            let tweaks = counter.take(200, 64);
            for first in [0, 1, 100] {
                let mut labels = || {
                    (0..blocks)
                        .map(|_| Block::random(&mut rng))
                        .collect::<Vec<_>>()
                };
                let (client, server) = (labels(), labels());
                let mut tables = [(); 2].map(|()| vec![0xee; width.table_bytes(count) + 1]);
                let mut keep = [(); 2].map(|()| vec![Block::ZERO; count]);
                // Tables may begin anywhere.
                let [plain, wide] = &mut tables;
                let (plain, wide) = (&mut plain[1..], &mut wide[1..]);
                garble_group(
                    width,
                    &tweaks,
                    first,
                    delta,
                    &client,
                    &server,
                    plain,
                    &mut keep[0],
                );
                // SAFETY: the features were found above.
                unsafe {
                    avx512::garble_group(
                        width,
                        &tweaks,
                        first,
                        delta,
                        &client,
                        &server,
                        wide,
                        &mut keep[1],
                    );
                }
                assert!(plain == wide, "{count} instances of {m} bits from {first}");
                assert_eq!(Block::encode(&keep[0]), Block::encode(&keep[1]));
                let (plain, wide) = keep.split_at_mut(1);
                let tables = &tables[0][1..];
                let server = &[&[0], Block::encode(&server)].concat()[1..];
                evaluate_group(
                    width,
                    &tweaks,
                    first,
                    &client,
                    server,
                    tables,
                    &mut plain[0],
                );
                // SAFETY: as above.
                unsafe {
                    avx512::evaluate_group(
                        width,
                        &tweaks,
                        first,
                        &client,
                        server,
                        tables,
                        &mut wide[0],
                    );
                }
                assert_eq!(Block::encode(&keep[0]), Block::encode(&keep[1]));
            }
        }
    }

    #[test]
    fn labels_of_a_stream_equal_those_of_its_blocks() {
        let mut rng = ChaCha20Rng::seed_from_u64(38);
        let delta = Delta::random(&mut rng);
        for (m, count) in [(2, 0), (16, 3), (17, 2 * TASK + 5), (60, TASK)] {
            let width = SignWidth::new(m).unwrap();
            let values: Vec<u64> = (0..count).map(|_| rng.next_u64()).collect();
            let stream = Prg::new(&[8; 32]);
            let zeros = stream.clone().blocks(count * m as usize);
            let mut expected = vec![0; width.label_bytes(count)];
            active_labels(width, &delta, &zeros, &values, &mut expected).unwrap();
            let bits = Bits::of_values(&values, m);
            for (j, label) in expected.chunks_exact(BLOCK_BYTES).enumerate() {
                let one = zeros[j] ^ delta.block();
                let label_of = [zeros[j], one][bits.bit(j) as usize];
                assert_eq!(label, label_of.to_bytes());
            }
            let mut found = vec![0; width.label_bytes(count)];
            active_labels_of_stream(width, &delta, &stream, &values, &mut found).unwrap();
            assert_eq!(found, expected);
            found.push(0);
            let refused = active_labels_of_stream(width, &delta, &stream, &values, &mut found);
            assert!(refused.is_err());
        }
    }

    #[test]
    fn sixteen_bits_cost_480_bytes_offline_and_256_online() {
        let width = SignWidth::new(16).unwrap();
        assert_eq!((width.table_bytes(1), width.label_bytes(1)), (480, 256));
        assert_eq!(width.table_bytes(3), 3 * 32 * 15);
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let width = SignWidth::new(4).unwrap();
        let delta = Delta::from_block(Block::ZERO);
        let tweaks = TweakCounter::new(Block::ZERO).take(2, 4);
        let labels = [Block::ZERO; 8];
        let mut tables = [0; 192];
        assert!(garble_sign(width, &tweaks, &delta, &labels, &labels, &mut tables).is_ok());
        let error =
            garble_sign(width, &tweaks, &delta, &labels[..7], &labels, &mut tables).unwrap_err();
        assert!(!error.blames_peer());
        assert!(garble_sign(width, &tweaks, &delta, &labels, &labels, &mut tables[1..]).is_err());
        let error = evaluate_sign(width, &tweaks, &labels, &labels, &tables[1..]).unwrap_err();
        assert!(error.blames_peer());
        for instances in [1, 3] {
            let other = TweakCounter::new(Block::ZERO).take(instances, 4);
            assert!(garble_sign(width, &other, &delta, &labels, &labels, &mut tables).is_err());
            assert!(evaluate_sign(width, &other, &labels, &labels, &tables).is_err());
        }
        let narrow = TweakCounter::new(Block::ZERO).take(2, 3);
        assert!(evaluate_sign(width, &narrow, &labels, &labels, &tables).is_err());
        for got in [0, 1, 61] {
            let refused = Error::CallerRange {
                what: "sign width",
                min: 2,
                max: 60,
                got,
            };
            assert_eq!(SignWidth::new(got), Err(refused));
        }
    }

    #[test]
    fn a_changed_table_changes_the_output() {
        let mut rng = ChaCha20Rng::seed_from_u64(35);
        let width = SignWidth::new(8).unwrap();
        let delta = Delta::random(&mut rng);
        let tweaks = TweakCounter::new(Block::random(&mut rng)).take(1, 8);
        let zeros: Vec<Block> = (0..16).map(|_| Block::random(&mut rng)).collect();
        let mut tables = vec![0; width.table_bytes(1)];
        garble_sign(
            width,
            &tweaks,
            &delta,
            &zeros[..8],
            &zeros[8..],
            &mut tables,
        )
        .unwrap();
        let honest =
            evaluate_sign(width, &tweaks, &zeros[..8], &zeros[8..], &tables).unwrap()[0].value();
        let mut changed = 0;
        for byte in 0..tables.len() {
            let mut wrong = tables.clone();
            wrong[byte] ^= 1;
            let output =
                evaluate_sign(width, &tweaks, &zeros[..8], &zeros[8..], &wrong).unwrap()[0].value();
            changed += (output != honest) as usize;
        }
        // A row takes part in an evaluation when the colour of its label is 1, which is half of
        // them on average.
        assert!(changed >= tables.len() / 8, "{changed} of {}", tables.len());
    }
}
