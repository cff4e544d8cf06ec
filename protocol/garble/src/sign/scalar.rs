//! The definition of garbling and evaluating a group, on the lanes of [`pi_core::hash`].

use super::{Group, InputLabels};
use crate::half_gates::{TABLE_BYTES, evaluate_and, garble_and};
use pi_core::hash::LANES;
use pi_core::{BLOCK_BYTES, Block};
use zeroize::Zeroize;

/// Garbles up to [`LANES`] instances side by side.
pub(super) fn garble_group(
    group: Group<'_>,
    delta: Block,
    zeros: InputLabels<'_>,
    tables: &mut [u8],
    (keep, guard): (&mut [Block], &mut [[Block; LANES]]),
) {
    let (m, gates, count) = (group.width.bits() as usize, group.gates(), keep.len());
    let mut carry = [Block::ZERO; LANES];
    let (mut a, mut b) = ([Block::ZERO; LANES], [Block::ZERO; LANES]);
    let (tables, _) = tables.as_chunks_mut::<TABLE_BYTES>();
    for i in 0..gates {
        // carry' = ((a xor carry) and (b xor carry)) xor carry, for the carry 0 into the lowest bit
        // as well.
        for lane in 0..count {
            a[lane] = zeros.client[lane * m + i] ^ carry[lane];
            b[lane] = zeros.server[lane * m + i] ^ carry[lane];
        }
        note_sum(guard, gates - 1 - i, |lane| a[lane] ^ b[lane] ^ carry[lane]);
        let (and, rows) = garble_and(&group.keys(i), delta, &a, &b);
        for lane in 0..count {
            carry[lane] ^= and[lane];
            tables[lane * gates + i] = rows[lane];
        }
    }
    for lane in 0..count {
        // NOT is free: the zero label of keep is the one label of the sign.
        let sign = zeros.client[lane * m + gates] ^ zeros.server[lane * m + gates] ^ carry[lane];
        keep[lane] = sign ^ delta;
        guard.iter_mut().for_each(|wires| wires[lane] ^= sign);
    }
    [carry, a, b].zeroize();
}

/// Evaluates up to [`LANES`] instances side by side.
pub(super) fn evaluate_group(
    group: Group<'_>,
    client: &[Block],
    server: &[u8],
    tables: &[u8],
    (keep, guard): (&mut [Block], &mut [[Block; LANES]]),
) {
    let (m, gates, count) = (group.width.bits() as usize, group.gates(), keep.len());
    let mut carry = [Block::ZERO; LANES];
    let (mut a, mut b) = ([Block::ZERO; LANES], [Block::ZERO; LANES]);
    let (server, _) = server.as_chunks::<BLOCK_BYTES>();
    let server = |index: usize| Block::from_bytes(server[index]);
    let (tables, _) = tables.as_chunks::<TABLE_BYTES>();
    let mut rows = [[0; TABLE_BYTES]; LANES];
    for i in 0..gates {
        for lane in 0..count {
            a[lane] = client[lane * m + i] ^ carry[lane];
            b[lane] = server(lane * m + i) ^ carry[lane];
            rows[lane] = tables[lane * gates + i];
        }
        note_sum(guard, gates - 1 - i, |lane| a[lane] ^ b[lane] ^ carry[lane]);
        let and = evaluate_and(&group.keys(i), &a, &b, &rows);
        for lane in 0..count {
            carry[lane] ^= and[lane];
        }
    }
    for lane in 0..count {
        let sign = client[lane * m + gates] ^ server(lane * m + gates) ^ carry[lane];
        keep[lane] = sign;
        guard.iter_mut().for_each(|wires| wires[lane] ^= sign);
    }
    [carry, a, b].zeroize();
}

/// Notes bit `below + 1` below the sign, if the guard has it. Lanes that no instance uses hold
/// whatever they do.
fn note_sum(guard: &mut [[Block; LANES]], below: usize, sum: impl Fn(usize) -> Block) {
    if let Some(wires) = guard.get_mut(below) {
        *wires = std::array::from_fn(sum);
    }
}
