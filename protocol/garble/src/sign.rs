//! The garbled sign: whether `c + d >= 0`, for the client's `c` and the server's `d` modulo `2^m`.
//!
//! A ripple carry chain of `m - 1` AND gates and free XORs; the bool circuit's output is the
//! negated top bit of the sum, the wire *keep*. If the width has a guard, the bits below the top
//! one are compared with it ([`GuardKey`]). Gates are half-gates (Zahur, Rosulek, Evans, EUROCRYPT
//! 2015) with the free-XOR offset `delta` of the bundle's OT extension, hashed by
//! [`pi_core::hash`].
//!
//! The server garbles, the client evaluates, both semi-honest. The client's labels are the output
//! of a correlated OT chosen by the bits of `c`, so the garbler takes their zero labels from there;
//! the server's zero labels come out of a generator. No decoding of *keep* is sent. The client
//! learns nothing from tables and labels: the colour of its one label is masked by the colour of
//! the zero label, which only the server knows.
//!
//! Many instances are garbled side by side, and their tables are written straight into the outgoing
//! buffer.
//!
//! # Shapes
//! Labels of inputs: `[instance][bit]`, lowest bit first. Tables: `[instance][gate][G, E]`, 32
//! bytes per gate.
//!
//! # Back ends
//! The definition takes gates apart: hashes by [`pi_core::hash`], the rest label by label. `avx512`
//! and the code over [`pi_core::vector`], which serves the other back ends, keep a whole gate of
//! 16, 8 or 4 instances in registers.

use crate::guard::{GuardKey, MAX_GUARD_BITS};
use crate::half_gates::{Keys, TABLE_BYTES};
use pi_core::hash::LANES;
use pi_core::vector::Code;
use pi_core::{BLOCK_BYTES, Block, Delta, Error, Labels, Prg, TweakClass, TweakRange};
use rayon::prelude::*;
use zeroize::{Zeroize, Zeroizing};

#[cfg(target_arch = "x86_64")]
mod avx512;
mod scalar;
mod vector;

/// The width `m` of a sign circuit, 2 to 60 bits, of which some may be a guard's.
///
/// A truncation by `f` bits of a value bounded by `B` needs `m = log2 B - f + 1`; with a guard of
/// `k` bits above that ([`GuardKey`]), `m` is `k` more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SignWidth {
    bits: u32,
    guard: u32,
}

impl SignWidth {
    /// Checks a width without a guard.
    ///
    /// # Errors
    /// [`Error::CallerRange`] outside 2 to 60 bits. One bit would be a sign and no value.
    pub const fn new(bits: u32) -> Result<Self, Error> {
        Self::guarded(bits, 0)
    }

    /// Checks a width of `bits` in all, the upper `guard` of which must agree with the sign.
    ///
    /// # Errors
    /// [`Error::CallerRange`] outside 2 to 60 bits, or if the guard exceeds [`MAX_GUARD_BITS`] or
    /// leaves no bit for a sign.
    pub const fn guarded(bits: u32, guard: u32) -> Result<Self, Error> {
        const MIN: u32 = 2;
        const MAX: u32 = 60;
        let (what, min, max, got) = match bits {
            MIN..=MAX => {
                let below = bits - 1;
                let max = if below < MAX_GUARD_BITS {
                    below
                } else {
                    MAX_GUARD_BITS
                };
                ("guard bits", 0, max, guard)
            }
            got => ("sign width", MIN, MAX, got),
        };
        if got < min || got > max {
            return Err(Error::CallerRange {
                what,
                min,
                max,
                got,
            });
        }
        Ok(SignWidth { bits, guard })
    }

    /// Returns `m`, the guard included.
    pub const fn bits(self) -> u32 {
        self.bits
    }

    /// Returns `k`, the bits of the guard, and the number of guard wires of one instance.
    pub const fn guard_bits(self) -> u32 {
        self.guard
    }

    /// Returns the number of AND gates of one instance: `m - 1`.
    pub const fn and_gates(self) -> usize {
        self.bits as usize - 1
    }

    /// Returns the bytes of garbled tables, offline, server to client: `32 (m - 1)` per instance.
    pub const fn table_bytes(self, instances: usize) -> usize {
        instances * self.and_gates() * TABLE_BYTES
    }

    /// Returns the bytes of the server's labels, online, server to client: `16 m` per instance.
    pub const fn label_bytes(self, instances: usize) -> usize {
        instances * self.bits as usize * BLOCK_BYTES
    }
}

/// Instances per parallel task: 61 KB of tables at `m = 16`, which stay in the second-level cache.
const TASK: usize = 8 * LANES;

/// Labels of the inputs of sign circuits, `[instance][m]` for each party.
#[derive(Clone, Copy)]
pub struct InputLabels<'a> {
    /// Labels of the bits of the client's `c`.
    pub client: &'a [Block],
    /// Labels of the bits of the server's `d`.
    pub server: &'a [Block],
}

/// Garbles the sign circuit of every instance, of a layer or a part of one; returns the key of
/// their guards.
///
/// `tables` and `keep_zero` are overwritten, the latter with the zero labels of the *keep* wires.
/// `tweaks` is the range of these instances, with a stride of `m` or more.
///
/// # Shapes
/// `zeros`: the zero labels of the inputs; `tables`: [`SignWidth::table_bytes`]; `keep_zero`: one
/// per instance.
/// # Errors
/// [`Error::CallerLength`] if the shapes do not fit together.
pub fn garble_sign(
    width: SignWidth,
    tweaks: &TweakRange,
    delta: &Delta,
    zeros: InputLabels<'_>,
    tables: &mut [u8],
    keep_zero: &mut [Block],
) -> Result<GuardKey, Error> {
    let InputLabels { client, server } = zeros;
    let m = width.bits as usize;
    let instances = client.len() / m;
    Error::check_argument("client's zero labels", instances * m, client.len())?;
    Error::check_argument("server's zero labels", client.len(), server.len())?;
    Error::check_argument(
        "bytes of tables",
        width.table_bytes(instances),
        tables.len(),
    )?;
    Error::check_argument("zero labels of keep", instances, keep_zero.len())?;
    check_tweaks(width, tweaks, instances)?;
    let code = Code::get();

    let key = (keep_zero.par_chunks_mut(TASK))
        .zip(client.par_chunks(TASK * m))
        .zip(server.par_chunks(TASK * m))
        .zip(tables.par_chunks_mut(width.table_bytes(TASK)))
        .enumerate()
        .map(|(task, (((keep, client), server), tables))| {
            let mut key = GuardKey::empty();
            let groups = (keep.chunks_mut(LANES))
                .zip(client.chunks(LANES * m))
                .zip(server.chunks(LANES * m))
                .zip(tables.chunks_mut(width.table_bytes(LANES)));
            for (group, (((keep, client), server), tables)) in groups.enumerate() {
                let first = task * TASK + group * LANES;
                let group = Group {
                    width,
                    tweaks,
                    first,
                };
                let zeros = InputLabels { client, server };
                key.add(&group.garble(code, delta.block(), zeros, tables, keep));
            }
            key
        });
    Ok(key.reduce(GuardKey::empty, joined))
}

fn joined(mut a: GuardKey, b: GuardKey) -> GuardKey {
    a.add(&b);
    a
}

/// Evaluates the sign circuit of every instance and returns the labels of the *keep* wires, and
/// the key of their guards: the garbler's, if and only if every value kept to its range.
///
/// Wrong tables or labels of the right length give labels that mean nothing; there is no check to
/// fail, which is the semi-honest model.
///
/// # Shapes
/// `client`: active labels `[instance][m]`; `server`: the same, as the message of
/// [`active_labels`]; `tables`: [`SignWidth::table_bytes`].
/// # Errors
/// [`Error::PeerLength`] if `server` or `tables` has the wrong length, [`Error::CallerLength`] if
/// the client's labels do.
pub fn evaluate_sign(
    width: SignWidth,
    tweaks: &TweakRange,
    client: &[Block],
    server: &[u8],
    tables: &[u8],
) -> Result<(Labels, GuardKey), Error> {
    let m = width.bits as usize;
    let instances = client.len() / m;
    Error::check_argument("client's labels", instances * m, client.len())?;
    Error::check_message(
        "server's labels",
        width.label_bytes(instances),
        server.len(),
    )?;
    Error::check_message("garbled tables", width.table_bytes(instances), tables.len())?;
    check_tweaks(width, tweaks, instances)?;
    let code = Code::get();

    let mut keep = Zeroizing::new(vec![Block::ZERO; instances]);
    let key = (keep.par_chunks_mut(TASK))
        .zip(client.par_chunks(TASK * m))
        .zip(server.par_chunks(width.label_bytes(TASK)))
        .zip(tables.par_chunks(width.table_bytes(TASK)))
        .enumerate()
        .map(|(task, (((keep, client), server), tables))| {
            let mut key = GuardKey::empty();
            let groups = (keep.chunks_mut(LANES))
                .zip(client.chunks(LANES * m))
                .zip(server.chunks(width.label_bytes(LANES)))
                .zip(tables.chunks(width.table_bytes(LANES)));
            for (group, (((keep, client), server), tables)) in groups.enumerate() {
                let first = task * TASK + group * LANES;
                let group = Group {
                    width,
                    tweaks,
                    first,
                };
                key.add(&group.evaluate(code, client, server, tables, keep));
            }
            key
        });
    let key = key.reduce(GuardKey::empty, joined);
    Ok((keep, key))
}

/// Instances garbled or evaluated side by side, up to [`LANES`], from the `first` of the tweaks on.
/// There are as many as places for labels of *keep*.
#[derive(Clone, Copy)]
struct Group<'a> {
    width: SignWidth,
    tweaks: &'a TweakRange,
    first: usize,
}

impl Group<'_> {
    /// Garbles by a version that must be supported.
    #[inline]
    fn garble(
        self,
        code: Code,
        delta: Block,
        zeros: InputLabels<'_>,
        tables: &mut [u8],
        keep: &mut [Block],
    ) -> GuardKey {
        let count = keep.len();
        self.guarded(count, |guard| match code {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a back end in use is supported, so the features of its level are present.
            Code::Avx512 => unsafe {
                avx512::garble_group(self, delta, zeros, tables, (keep, guard))
            },
            Code::Vector(instructions) => instructions.run(vector::Garble {
                group: self,
                delta,
                zeros,
                tables,
                keep,
                guard,
            }),
            Code::Portable => scalar::garble_group(self, delta, zeros, tables, (keep, guard)),
        })
    }

    /// Evaluates by a version that must be supported.
    #[inline]
    fn evaluate(
        self,
        code: Code,
        client: &[Block],
        server: &[u8],
        tables: &[u8],
        keep: &mut [Block],
    ) -> GuardKey {
        let count = keep.len();
        self.guarded(count, |guard| match code {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: a back end in use is supported, so the features of its level are present.
            Code::Avx512 => unsafe {
                avx512::evaluate_group(self, client, server, tables, (keep, guard))
            },
            Code::Vector(instructions) => instructions.run(vector::Evaluate {
                group: self,
                client,
                server,
                tables,
                keep,
                guard,
            }),
            Code::Portable => scalar::evaluate_group(self, client, server, tables, (keep, guard)),
        })
    }

    /// Runs the circuit of `count` instances, which sets the guard wires, and returns their key:
    /// wire `j` of an instance is the sign xor the bit `j + 1` below it.
    #[inline]
    fn guarded(self, count: usize, run: impl FnOnce(&mut [[Block; LANES]])) -> GuardKey {
        let mut wires = [[Block::ZERO; LANES]; MAX_GUARD_BITS as usize];
        let wires = &mut wires[..self.width.guard as usize];
        run(wires);
        let mut key = GuardKey::empty();
        for (gate, wires) in wires.iter_mut().enumerate() {
            key.add(&GuardKey::of_lanes(
                self.tweaks,
                self.first,
                gate,
                wires,
                count,
            ));
            wires.zeroize();
        }
        key
    }

    /// Returns the keys of both halves of gate `gate`, lane by lane.
    #[inline]
    fn keys(self, gate: usize) -> Keys {
        let of =
            |class| std::array::from_fn(|lane| self.tweaks.key(class, self.first + lane, gate));
        Keys {
            g: of(TweakClass::GateG),
            e: of(TweakClass::GateE),
        }
    }

    fn gates(self) -> usize {
        self.width.and_gates()
    }
}

fn check_tweaks(width: SignWidth, tweaks: &TweakRange, instances: usize) -> Result<(), Error> {
    tweaks.check_instances(instances)?;
    let (expected, got) = (width.bits as usize, tweaks.stride() as usize);
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
/// The zero labels, `[instance][m]`, are the beginning of the stream `zeros`, and are made where
/// they are needed. Once per bundle: both labels of one wire give `delta` away, and with it
/// everything.
///
/// # Shapes
/// `values`: one per instance; `out`: [`SignWidth::label_bytes`].
/// # Errors
/// [`Error::CallerLength`] if the shapes do not fit together.
pub fn active_labels(
    width: SignWidth,
    delta: &Delta,
    zeros: &Prg,
    values: &[u64],
    out: &mut [u8],
) -> Result<(), Error> {
    Error::check_argument(
        "bytes of labels",
        width.label_bytes(values.len()),
        out.len(),
    )?;
    out.par_chunks_mut(width.label_bytes(TASK))
        .zip(values.par_chunks(TASK))
        .enumerate()
        .for_each(|(task, (out, values))| {
            zeros.fill_at((task * TASK) as u128 * width.bits as u128, out);
            select_labels(width, delta, values, out);
        });
    Ok(())
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
#[cfg(test)]
mod tests;
