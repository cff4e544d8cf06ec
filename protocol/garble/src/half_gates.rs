//! One AND gate of [`LANES`] garbled circuits side by side, by half-gates.
//!
//! Zahur, Rosulek, Evans, "Two halves make a whole" (EUROCRYPT 2015), figure 2, with the hash of
//! [`pi_core::hash`]. This is the definition: vector code elsewhere is held equal to it. A lane
//! that no circuit uses is computed all the same, and its results are dropped.

use pi_core::hash::{LANES, hash_lanes, hash_pairs};
use pi_core::{BLOCK_BYTES, Block};

/// Bytes of one gate's table, the rows G and E.
pub(crate) const TABLE_BYTES: usize = 2 * BLOCK_BYTES;

/// The tables of a gate, lane by lane.
pub(crate) type Tables = [[u8; TABLE_BYTES]; LANES];

/// The hash keys of both halves of a gate, lane by lane.
pub(crate) struct Keys {
    pub(crate) g: [Block; LANES],
    pub(crate) e: [Block; LANES],
}

/// Garbles `a and b`, given the zero labels of both; returns those of the result, and the tables.
#[inline]
pub(crate) fn garble_and(
    keys: &Keys,
    delta: Block,
    a: &[Block; LANES],
    b: &[Block; LANES],
) -> ([Block; LANES], Tables) {
    let (mut g0, mut e0) = (*a, *b);
    let (mut g1, mut e1) = (a.map(|a| a ^ delta), b.map(|b| b ^ delta));
    hash_pairs(&keys.g, &mut g0, &mut g1);
    hash_pairs(&keys.e, &mut e0, &mut e1);
    let (mut and, mut tables) = ([Block::ZERO; LANES], [[0; TABLE_BYTES]; LANES]);
    for lane in 0..LANES {
        let (colour_a, colour_b) = (a[lane].colour(), b[lane].colour());
        let table_g = g0[lane] ^ g1[lane] ^ delta.masked_by(colour_b);
        let table_e = e0[lane] ^ e1[lane] ^ a[lane];
        let half_g = g0[lane] ^ table_g.masked_by(colour_a);
        let half_e = e0[lane] ^ (table_e ^ a[lane]).masked_by(colour_b);
        and[lane] = half_g ^ half_e;
        tables[lane][..BLOCK_BYTES].copy_from_slice(&table_g.to_bytes());
        tables[lane][BLOCK_BYTES..].copy_from_slice(&table_e.to_bytes());
    }
    (and, tables)
}

/// Evaluates `a and b`, given one label of each; returns that of the result.
#[inline]
pub(crate) fn evaluate_and(
    keys: &Keys,
    a: &[Block; LANES],
    b: &[Block; LANES],
    tables: &Tables,
) -> [Block; LANES] {
    let (mut g, mut e) = (*a, *b);
    hash_lanes(&keys.g, &mut g);
    hash_lanes(&keys.e, &mut e);
    std::array::from_fn(|lane| {
        let [table_g, table_e] = rows(&tables[lane]);
        let half_g = g[lane] ^ table_g.masked_by(a[lane].colour());
        let half_e = e[lane] ^ (table_e ^ a[lane]).masked_by(b[lane].colour());
        half_g ^ half_e
    })
}

/// The rows G and E of a table.
fn rows(table: &[u8; TABLE_BYTES]) -> [Block; 2] {
    let (rows, _) = table.as_chunks::<BLOCK_BYTES>();
    [Block::from_bytes(rows[0]), Block::from_bytes(rows[1])]
}
