//! The definition of garbling and evaluating a group, on the lanes of [`pi_core::hash`].

use super::{Group, InputLabels, TABLE_BYTES};
use pi_core::hash::{LANES, hash_lanes, hash_pairs};
use pi_core::{BLOCK_BYTES, Block, TweakClass};
use zeroize::Zeroize;

/// Garbles up to [`LANES`] instances side by side.
pub(super) fn garble_group(
    group: Group<'_>,
    delta: Block,
    zeros: InputLabels<'_>,
    tables: &mut [u8],
    keep: &mut [Block],
) {
    let (m, gates, count) = (group.width.bits() as usize, group.gates(), keep.len());
    let mut carry = [Block::ZERO; LANES];
    let (mut a, mut b) = ([Block::ZERO; LANES], [Block::ZERO; LANES]);
    for i in 0..gates {
        // carry' = ((a xor carry) and (b xor carry)) xor carry, for the carry 0 into the lowest bit
        // as well.
        for lane in 0..count {
            a[lane] = zeros.client[lane * m + i] ^ carry[lane];
            b[lane] = zeros.server[lane * m + i] ^ carry[lane];
        }
        let (mut g0, mut e0) = (a, b);
        let (mut g1, mut e1) = (a.map(|a| a ^ delta), b.map(|b| b ^ delta));
        hash_pairs(&group.keys(TweakClass::GateG, i), &mut g0, &mut g1);
        hash_pairs(&group.keys(TweakClass::GateE, i), &mut e0, &mut e1);
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
        let sign = zeros.client[lane * m + gates] ^ zeros.server[lane * m + gates] ^ carry[lane];
        keep[lane] = sign ^ delta;
    }
    [carry, a, b].zeroize();
}

/// Evaluates up to [`LANES`] instances side by side.
pub(super) fn evaluate_group(
    group: Group<'_>,
    client: &[Block],
    server: &[u8],
    tables: &[u8],
    keep: &mut [Block],
) {
    let (m, gates, count) = (group.width.bits() as usize, group.gates(), keep.len());
    let mut carry = [Block::ZERO; LANES];
    let (mut a, mut b) = ([Block::ZERO; LANES], [Block::ZERO; LANES]);
    let server = |index: usize| read_block(&server[index * BLOCK_BYTES..][..BLOCK_BYTES]);
    for i in 0..gates {
        for lane in 0..count {
            a[lane] = client[lane * m + i] ^ carry[lane];
            b[lane] = server(lane * m + i) ^ carry[lane];
        }
        let (mut g, mut e) = (a, b);
        hash_lanes(&group.keys(TweakClass::GateG, i), &mut g);
        hash_lanes(&group.keys(TweakClass::GateE, i), &mut e);
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
