//! The garbled arg max: which of `K` shared values is the largest, and nothing else.
//!
//! Value `k` is `c_k + d_k` modulo `2^w` in two's complement, `c_k` at the client and `d_k` at the
//! server. The result is the smallest index at which the values are largest. The sums may have a
//! guard of `g` bits above the `w` ([`GuardKey`]), which says whether that was enough; nothing else
//! reads those bits. The bool circuit has two parts:
//!
//! | part | number | AND gates each |
//! | --- | --- | --- |
//! | ripple carry adder of the two shares | `K` | `w + g - 1` |
//! | node of a knock-out tournament on level `l`, 0 at the leaves | `K - 1` in all | `2 w + l`, the root `w + l` |
//!
//! On level `l` the candidates stand for blocks of `2^l` neighbouring indices, and a node compares
//! the winners of two neighbouring blocks. The right one wins only if it is *greater*, so that ties
//! go to the smaller index. Comparison is a carry chain of `w` gates (Kolesnikov, Sadeghi,
//! Schneider, "Improved garbled circuit building blocks and applications to auctions and computing
//! minima", CANS 2009), on values whose top bits are inverted, which turns the signed order into
//! the unsigned one at no cost. Its result is bit `l` of the winner's index; it selects the `w`
//! bits of the value and the `l` lower bits of the index, one gate per bit. The value at the root
//! is not selected, since nobody reads it. A block without a right neighbour goes on as it is, with
//! zeros for the upper bits of its index, and zero is a wire whose label is zero for both parties.
//!
//! # Security
//! The roles are those of the sign circuit ([`crate::garble_sign`]): the server garbles, the client
//! evaluates, both semi-honest; the client's input labels come from a correlated OT, the server's
//! from a generator. The client holds tables and one label of every wire. The colour of a label
//! says nothing while the colour of the wire's zero label is unknown, and *decoding bits*, which
//! are these colours, exist for the wires of the index only. So the client learns `ceil(log2 K)`
//! bits of the index. Sums, the largest value among them, and the other comparisons stay labels: a
//! simulator that is given the index makes tables and labels without the server's input, and sets
//! the decoding bits to the colours of the labels it made, xor the index.
//!
//! Decoding bits belong into the *online* message, with the server's labels. Then that simulator
//! works although tables are sent before the inputs exist. Had the bits been sent offline, it would
//! have had to fix the colours of the output before it knew the index.
//!
//! Every gate has a tweak of its own, of the classes [`TweakClass::GateG`] and
//! [`TweakClass::GateE`], from one instance of a range with a stride of [`ArgMax::and_gates`] or
//! more. The range comes from the bundle's counter, like those of the layers.
//!
//! # Shapes
//! Labels of inputs: `[value][bit]`, lowest bit first. Tables: `[gate][G, E]`, 32 bytes per gate,
//! adders first, then level by level. There is one arg max in an inference, so gates of up to
//! sixteen adders or nodes fill the lanes of the hash, and no threads are used.

use crate::half_gates::{Keys, TABLE_BYTES, evaluate_and, garble_and};
use crate::{GuardKey, InputLabels, SignWidth};
use pi_core::hash::LANES;
use pi_core::{BLOCK_BYTES, Bits, Block, Delta, Error, Labels, TweakClass, TweakRange};
use zeroize::{Zeroize, Zeroizing};

/// The shape of an arg max circuit: how many values, and how wide they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArgMax {
    values: usize,
    width: SignWidth,
}

impl ArgMax {
    /// Checks a shape.
    ///
    /// `width` is that of the sign circuit for the same truncation ([`SignWidth`]): the bits that
    /// hold a truncated value and its sign, and those of the guard.
    ///
    /// # Errors
    /// [`Error::CallerRange`] outside 2 to 65,536 values.
    pub const fn new(values: usize, width: SignWidth) -> Result<Self, Error> {
        const MIN: usize = 2;
        const MAX: usize = 1 << 16;
        match values {
            MIN..=MAX => Ok(ArgMax { values, width }),
            _ => Err(Error::CallerRange {
                what: "values of an arg max",
                min: MIN as u32,
                max: MAX as u32,
                got: if values > u32::MAX as usize {
                    u32::MAX
                } else {
                    values as u32
                },
            }),
        }
    }

    /// Returns `K`, the number of values.
    pub const fn values(self) -> usize {
        self.values
    }

    /// Returns the width of a value, with its guard.
    pub const fn width(self) -> SignWidth {
        self.width
    }

    /// Bits of a value that are compared: all but the guard's.
    const fn compared(self) -> usize {
        (self.width.bits() - self.width.guard_bits()) as usize
    }

    /// Returns the number of input bits of each party: `K (w + g)`.
    pub const fn input_bits(self) -> usize {
        self.values * self.width.bits() as usize
    }

    /// Returns the number of bits of the index, and of levels of the tournament: `ceil(log2 K)`.
    pub const fn index_bits(self) -> usize {
        self.values.next_power_of_two().ilog2() as usize
    }

    /// Returns the number of AND gates: those of the adders and of every level's nodes.
    pub const fn and_gates(self) -> usize {
        let mut gates = self.values * self.width.and_gates();
        let mut candidates = self.values;
        let mut level = 0;
        while candidates > 1 {
            gates += candidates / 2 * self.node_gates(level);
            candidates = candidates.div_ceil(2);
            level += 1;
        }
        gates
    }

    /// AND gates of a node on this level.
    const fn node_gates(self, level: usize) -> usize {
        let w = self.compared();
        let selected = if level + 1 == self.index_bits() { 0 } else { w };
        w + selected + level
    }

    /// Returns the bytes of garbled tables, offline, server to client: 32 per AND gate.
    pub const fn table_bytes(self) -> usize {
        self.and_gates() * TABLE_BYTES
    }

    /// Returns the bytes of the server's labels, online, server to client: `16 K w`.
    pub const fn label_bytes(self) -> usize {
        self.width.label_bytes(self.values)
    }

    /// Returns the bytes of the decoding bits, online, server to client.
    pub const fn decoding_bytes(self) -> usize {
        Bits::encoded_bytes(self.index_bits())
    }

    fn check_tweaks(self, tweaks: &TweakRange) -> Result<(), Error> {
        tweaks.check_instances(1)?;
        let (expected, got) = (self.and_gates(), tweaks.stride() as usize);
        match got >= expected {
            true => Ok(()),
            false => Err(Error::CallerLength {
                what: "tweaks of the arg max",
                expected,
                got,
            }),
        }
    }
}

/// Garbles an arg max: overwrites `tables`, and returns the decoding bits of the index, lowest bit
/// first, which are to be sent with the server's labels ([`crate::active_labels`]), and the key of
/// the guard.
///
/// # Shapes
/// `zeros`: [`ArgMax::input_bits`] for each party; `tables`: [`ArgMax::table_bytes`]; `tweaks`: one
/// instance, with a stride of [`ArgMax::and_gates`] or more.
/// # Errors
/// [`Error::CallerLength`] if the shapes do not fit together.
pub fn garble_argmax(
    shape: ArgMax,
    tweaks: &TweakRange,
    delta: &Delta,
    zeros: InputLabels<'_>,
    tables: &mut [u8],
) -> Result<(Bits, GuardKey), Error> {
    let InputLabels { client, server } = zeros;
    Error::check_argument("client's zero labels", shape.input_bits(), client.len())?;
    Error::check_argument("server's zero labels", shape.input_bits(), server.len())?;
    Error::check_argument("bytes of tables", shape.table_bytes(), tables.len())?;
    shape.check_tweaks(tweaks)?;
    let (tables, _) = tables.as_chunks_mut();
    let mut garbler = Garbler {
        tweaks,
        delta: delta.block(),
        tables,
    };
    let (index, guard) = run(shape, &mut garbler, client, |i| server[i]);
    let decoding = index.iter().map(|zero| zero.colour()).collect();
    Ok((decoding, GuardKey::of_instance(tweaks, &guard)))
}

/// Evaluates an arg max: returns the colours of the index, which tell nothing until they are
/// decoded ([`decode_argmax`]), and the key of the guard.
///
/// Wrong tables or labels of the right length give colours that mean nothing, which is the
/// semi-honest model.
///
/// # Shapes
/// `client`: active labels, [`ArgMax::input_bits`]; `server`: the same, as the message of
/// [`crate::active_labels`]; `tables`: [`ArgMax::table_bytes`].
/// # Errors
/// [`Error::PeerLength`] if `server` or `tables` has the wrong length; [`Error::CallerLength`] if
/// the client's labels or the tweaks do not fit.
pub fn evaluate_argmax(
    shape: ArgMax,
    tweaks: &TweakRange,
    client: &[Block],
    server: &[u8],
    tables: &[u8],
) -> Result<(Bits, GuardKey), Error> {
    Error::check_argument("client's labels", shape.input_bits(), client.len())?;
    Error::check_message("server's labels", shape.label_bytes(), server.len())?;
    Error::check_message("garbled arg max", shape.table_bytes(), tables.len())?;
    shape.check_tweaks(tweaks)?;
    let (tables, _) = tables.as_chunks();
    let (server, _) = server.as_chunks::<BLOCK_BYTES>();
    let mut evaluator = Evaluator { tweaks, tables };
    let (index, guard) = run(shape, &mut evaluator, client, |i| {
        Block::from_bytes(server[i])
    });
    let colours = index.iter().map(|label| label.colour()).collect();
    Ok((colours, GuardKey::of_instance(tweaks, &guard)))
}

/// Decodes the index.
///
/// # Errors
/// [`Error::PeerLength`] if `decoding` has the wrong length, [`Error::PeerValue`] if the index is
/// not below `K`, which no honest garbler causes; [`Error::CallerLength`] if there are other
/// numbers of colours or decoding bits.
pub fn decode_argmax(shape: ArgMax, colours: &Bits, decoding: &Bits) -> Result<usize, Error> {
    let decoding_bytes = decoding.as_bytes().len();
    Error::check_message("decoding bits", shape.decoding_bytes(), decoding_bytes)?;
    Error::check_argument("decoding bits", shape.index_bits(), decoding.len())?;
    Error::check_argument("colours of the index", shape.index_bits(), colours.len())?;
    let bits = colours.iter().zip(decoding.iter()).enumerate();
    let index = bits.fold(0, |index, (bit, (colour, zero))| {
        index | ((colour ^ zero) as usize) << bit
    });
    match index < shape.values {
        true => Ok(index),
        false => Err(Error::PeerValue {
            what: "index of the arg max",
            index,
        }),
    }
}

/// A party's part in a gate: the garbler's wires carry zero labels, the evaluator's active ones.
trait Party {
    /// ANDs lane by lane; lane `i` is the gate of number `gates[i]`, and those from `count` on are
    /// copies whose results mean nothing.
    fn and(
        &mut self,
        gates: &[usize; LANES],
        count: usize,
        a: &[Block; LANES],
        b: &[Block; LANES],
    ) -> [Block; LANES];

    /// Negates a wire.
    fn not(&self, x: Block) -> Block;
}

struct Garbler<'a> {
    tweaks: &'a TweakRange,
    delta: Block,
    tables: &'a mut [[u8; TABLE_BYTES]],
}

impl Party for Garbler<'_> {
    fn and(
        &mut self,
        gates: &[usize; LANES],
        count: usize,
        a: &[Block; LANES],
        b: &[Block; LANES],
    ) -> [Block; LANES] {
        let (and, rows) = garble_and(&keys(self.tweaks, gates), self.delta, a, b);
        for (&gate, rows) in gates.iter().zip(rows).take(count) {
            self.tables[gate] = rows;
        }
        and
    }

    fn not(&self, x: Block) -> Block {
        x ^ self.delta
    }
}

struct Evaluator<'a> {
    tweaks: &'a TweakRange,
    tables: &'a [[u8; TABLE_BYTES]],
}

impl Party for Evaluator<'_> {
    fn and(
        &mut self,
        gates: &[usize; LANES],
        _count: usize,
        a: &[Block; LANES],
        b: &[Block; LANES],
    ) -> [Block; LANES] {
        let rows = gates.map(|gate| self.tables[gate]);
        evaluate_and(&keys(self.tweaks, gates), a, b, &rows)
    }

    fn not(&self, x: Block) -> Block {
        x
    }
}

fn keys(tweaks: &TweakRange, gates: &[usize; LANES]) -> Keys {
    let of = |class| gates.map(|gate| tweaks.key(class, 0, gate));
    Keys {
        g: of(TweakClass::GateG),
        e: of(TweakClass::GateE),
    }
}

/// Runs the circuit for one party, whose labels of the inputs are `client` and `server(i)`, and
/// returns the wires of the index, lowest bit first, and those of the guard, `[value][bit]`.
fn run(
    shape: ArgMax,
    party: &mut impl Party,
    client: &[Block],
    server: impl Fn(usize) -> Block,
) -> (Labels, Labels) {
    let (mut values, guard) = add_shares(shape, party, client, server);
    let bits = shape.index_bits();
    let mut indices: Labels = Zeroizing::new(vec![Block::ZERO; shape.values * bits]);
    let mut first_gate = shape.values * shape.width.and_gates();
    let mut candidates = shape.values;
    for level in 0..bits {
        let nodes = candidates / 2;
        let room = (&mut values[..], &mut indices[..]);
        play_level(shape, party, (level, nodes, first_gate), room);
        first_gate += nodes * shape.node_gates(level);
        if !candidates.is_multiple_of(2) {
            let (w, last) = (shape.compared(), candidates - 1);
            values.copy_within(last * w..candidates * w, nodes * w);
            indices.copy_within(last * bits..candidates * bits, nodes * bits);
        }
        candidates = candidates.div_ceil(2);
    }
    debug_assert_eq!(first_gate, shape.and_gates());
    (Zeroizing::new(indices[..bits].to_vec()), guard)
}

/// Adds the shares: returns the sums without their guards and with inverted top bits,
/// `[value][bit]`, and the wires of the guard.
fn add_shares(
    shape: ArgMax,
    party: &mut impl Party,
    client: &[Block],
    server: impl Fn(usize) -> Block,
) -> (Labels, Labels) {
    let (m, and_gates) = (shape.width.bits() as usize, shape.width.and_gates());
    let w = shape.compared();
    let zeros = |count| Zeroizing::new(vec![Block::ZERO; count]);
    let (mut sums, mut guard): (Labels, Labels) =
        (zeros(shape.values * w), zeros(shape.values * (m - w)));
    for group in groups(shape.values) {
        let mut carry = [Block::ZERO; LANES];
        let (mut a, mut b) = ([Block::ZERO; LANES], [Block::ZERO; LANES]);
        for i in 0..m {
            // As in the sign circuit; the carry cancels out of `a xor b`.
            for (lane, value) in group.clone().enumerate() {
                a[lane] = client[value * m + i] ^ carry[lane];
                b[lane] = server(value * m + i) ^ carry[lane];
                let sum = a[lane] ^ b[lane] ^ carry[lane];
                match i.checked_sub(w) {
                    None => sums[value * w + i] = sum,
                    // A bit of the guard against the top bit of the value.
                    Some(j) => guard[value * (m - w) + j] = sum ^ sums[value * w + w - 1],
                }
            }
            if i < and_gates {
                let gates = lanes(&group, |value| value * and_gates + i);
                let and = party.and(&gates, group.len(), &a, &b);
                carry = std::array::from_fn(|lane| carry[lane] ^ and[lane]);
            }
        }
        for value in group {
            let top = &mut sums[value * w + w - 1];
            *top = party.not(*top);
        }
        [carry, a, b].zeroize();
    }
    (sums, guard)
}

/// Plays the `nodes` nodes of a level: candidate `j` becomes the winner of candidates `2 j` and
/// `2 j + 1`.
///
/// Winners are written over candidates that have been read: bit by bit within a group, and a later
/// group reads behind what this one writes.
fn play_level(
    shape: ArgMax,
    party: &mut impl Party,
    (level, nodes, first_gate): (usize, usize, usize),
    (values, indices): (&mut [Block], &mut [Block]),
) {
    let (w, bits, node_gates) = (
        shape.compared(),
        shape.index_bits(),
        shape.node_gates(level),
    );
    let is_root = level + 1 == bits;
    for group in groups(nodes) {
        let count = group.len();
        let gates = |gate| lanes(&group, |node| first_gate + node * node_gates + gate);
        let pair = |wires: &[Block], width: usize, i: usize| {
            let of = |side| lanes(&group, |node| wires[(2 * node + side) * width + i]);
            (of(0), of(1))
        };
        // Whether the right value is greater than the left one, in the bits so far: equal bits keep
        // the answer, and different ones make it the right bit.
        let mut greater = [Block::ZERO; LANES];
        for i in 0..w {
            let (left, right) = pair(values, w, i);
            let a = xor(&left, &greater);
            let b = xor(&right, &greater);
            let and = party.and(&gates(i), count, &a, &b);
            greater = xor(&right, &and);
        }
        let mut select = |gate, wires: &mut [Block], width: usize, i: usize| {
            let (left, right) = pair(wires, width, i);
            let and = party.and(&gates(gate), count, &greater, &xor(&left, &right));
            for (lane, node) in group.clone().enumerate() {
                wires[node * width + i] = left[lane] ^ and[lane];
            }
        };
        let selected = if is_root { 0 } else { w };
        for i in 0..selected {
            select(w + i, values, w, i);
        }
        for bit in 0..level {
            // The left block is complete, so `left xor right` is never the constant zero.
            select(w + selected + bit, indices, bits, bit);
        }
        for (lane, node) in group.clone().enumerate() {
            indices[node * bits + level] = greater[lane];
        }
        greater.zeroize();
    }
}

/// Cuts `0..count` into groups that fill the lanes.
fn groups(count: usize) -> impl Iterator<Item = std::ops::Range<usize>> {
    (0..count)
        .step_by(LANES)
        .map(move |first| first..count.min(first + LANES))
}

/// What a group has in every lane; the last one is repeated.
fn lanes<T>(group: &std::ops::Range<usize>, of: impl Fn(usize) -> T) -> [T; LANES] {
    std::array::from_fn(|lane| of(group.start + lane.min(group.len() - 1)))
}

fn xor(a: &[Block; LANES], b: &[Block; LANES]) -> [Block; LANES] {
    std::array::from_fn(|lane| a[lane] ^ b[lane])
}

#[cfg(test)]
mod tests;
