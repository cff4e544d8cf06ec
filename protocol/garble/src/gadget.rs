//! The output gadget: shares of `max(x, 0)` from one garbled bit, with one field element online.
//!
//! `x = c + d` in `F_p`, the client's `c` known offline, the server's `d` online. The garbled sign
//! leaves the client with one label of the wire *keep*. Its colour `pick` is *keep* xor `colour`,
//! the colour of the zero label, known to the server. Offline, a reverse correlated OT (`pi-ot`)
//! gave `u + v = colour * c`, `u` to the client. With `H0`, `H1` the hashes of the labels of colour
//! 0 and 1:
//!
//! | | |
//! | --- | --- |
//! | server keeps, offline | `H0 - H1 - 2v`, `v - H0`, `colour`: 16 bytes and a bit |
//! | server sends, online | `row = (H0 - H1 - 2v) + (1 - 2 colour) d` |
//! | server's share | `y_s = (v - H0) + colour d` |
//! | client's share | `y_c = H(label) + pick (row + c) + (1 - 2 pick) u` |
//!
//! so that `y_c + y_s = keep * (c + d)` for each of the four pairs `(pick, colour)`.
//!
//! # Why this is not a projection gate
//! Arithmetic garbling by projection gates over labels is known to break. Here the keys are only
//! `L` and `L xor delta`, which is exactly the correlation that the hash withstands; what they
//! encrypt is a field element independent of `delta`, not a label; there is one row, and one hash
//! per label at its own tweak. The pad of the label the client does not hold masks `row` entirely,
//! and `pick` is uniform because the server's `colour` is. At `pick = 0` the client sees a uniform
//! `row`; at `pick = 1` it gets its own share, masked by the server's. Do not extend this to rows
//! that carry labels, several rows under one label, or odd moduli.

use pi_core::fp::{self, Elements};
use pi_core::hash::{hash_pairs_to_field, hash_to_field};
use pi_core::{Bits, Block, Delta, Error, TweakClass, TweakRange};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

/// The server's part of a layer's ReLUs between offline and online: it hashes nothing online.
#[derive(Clone, Debug, Zeroize, ZeroizeOnDrop)]
pub struct ServerGadget {
    keep_row: Secret,
    keep_share: Secret,
    colour: Bits,
}

impl ServerGadget {
    /// Returns the colours of the zero labels: what the reverse OT chooses by.
    pub fn colours(keep_zero: &[Block]) -> Bits {
        keep_zero.iter().map(|label| label.colour()).collect()
    }

    /// Prepares the gadgets of a layer from the zero labels of *keep* and the server's halves `v`
    /// of `colour * c`.
    ///
    /// # Errors
    /// [`Error::CallerLength`] unless there is one `v` per label and one label per instance.
    pub fn new(
        tweaks: &TweakRange,
        delta: &Delta,
        keep_zero: &[Block],
        v: &[u64],
    ) -> Result<Self, Error> {
        Error::check_argument(
            "server's halves of the reverse OT",
            keep_zero.len(),
            v.len(),
        )?;
        let [hash_of_zero, hash_of_one] =
            hash_pairs_to_field(tweaks, TweakClass::Output, keep_zero, delta)?;
        let (mut keep_row, mut keep_share) =
            (Vec::with_capacity(v.len()), Vec::with_capacity(v.len()));
        for (j, label) in keep_zero.iter().enumerate() {
            // The zero label has colour 0 or the one label has: exchange without a branch.
            let exchange =
                (hash_of_zero[j] ^ hash_of_one[j]) & 0u64.wrapping_sub(label.colour() as u64);
            let (h0, h1) = (hash_of_zero[j] ^ exchange, hash_of_one[j] ^ exchange);
            let (row, share) = server_terms(h0, h1, v[j]);
            keep_row.push(row);
            keep_share.push(share);
        }
        Ok(ServerGadget {
            keep_row: Secret(keep_row),
            keep_share: Secret(keep_share),
            colour: ServerGadget::colours(keep_zero),
        })
    }

    /// Returns the number of ReLUs.
    pub fn len(&self) -> usize {
        self.colour.len()
    }

    /// Returns true if there are none.
    pub fn is_empty(&self) -> bool {
        self.colour.is_empty()
    }

    /// Returns `(row, y_s)` for the server's shares `d`: the online message and the share of the
    /// output.
    ///
    /// Rows are meant to be sent once, so the gadget is consumed: rows for two `d` would give their
    /// difference away.
    ///
    /// # Errors
    /// [`Error::CallerLength`] unless there is one `d` per ReLU.
    pub fn open(self, d: &[u64]) -> Result<(Vec<u64>, Elements), Error> {
        Error::check_argument("server's shares", self.len(), d.len())?;
        let (mut rows, mut shares) = (Vec::with_capacity(d.len()), Vec::with_capacity(d.len()));
        for (j, &d) in d.iter().enumerate() {
            debug_assert!(d < fp::P, "shares are reduced");
            let colour = self.colour.bit(j);
            let terms = (self.keep_row.0[j], self.keep_share.0[j]);
            let (row, share) = server_opening(terms, colour, d);
            rows.push(row);
            shares.push(share);
        }
        Ok((rows, Zeroizing::new(shares)))
    }

    /// Returns the number of bytes of `len` stored gadgets: 16 and a bit each.
    pub const fn stored_bytes(len: usize) -> usize {
        2 * fp::ELEMENT_BYTES * len + Bits::encoded_bytes(len)
    }

    /// Returns the form to be stored, [`ServerGadget::stored_bytes`] long.
    pub fn to_bytes(&self) -> Zeroizing<Vec<u8>> {
        let mut bytes = Zeroizing::new(Vec::with_capacity(ServerGadget::stored_bytes(self.len())));
        bytes.extend_from_slice(fp::encode(&self.keep_row.0));
        bytes.extend_from_slice(fp::encode(&self.keep_share.0));
        bytes.extend_from_slice(self.colour.as_bytes());
        bytes
    }

    /// Reads `len` gadgets from their stored form.
    ///
    /// # Errors
    /// [`Error::Stored`] if the bytes are not those of `len` gadgets.
    pub fn from_bytes(bytes: &[u8], len: usize) -> Result<Self, Error> {
        const WHAT: &str = "output gadgets";
        let stored = |_| Error::Stored { what: WHAT };
        Error::check_message(WHAT, ServerGadget::stored_bytes(len), bytes.len()).map_err(stored)?;
        let (row, rest) = bytes.split_at(fp::ELEMENT_BYTES * len);
        let (share, colour) = rest.split_at(fp::ELEMENT_BYTES * len);
        Ok(ServerGadget {
            keep_row: Secret(fp::decode(WHAT, row, len).map_err(stored)?),
            keep_share: Secret(fp::decode(WHAT, share, len).map_err(stored)?),
            colour: Bits::decode(WHAT, colour, len).map_err(stored)?,
        })
    }
}

/// Elements whose content is not shown.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
struct Secret(Vec<u64>);

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Secret({})", self.0.len())
    }
}

/// Returns the client's shares `y_c`, from its *keep* labels, the server's rows, its own shares `c`
/// and its halves `u` of `colour * c`.
///
/// # Errors
/// [`Error::CallerLength`] if the lengths differ or are not the number of instances; rows come
/// through [`fp::decode`].
pub fn client_output(
    tweaks: &TweakRange,
    keep: &[Block],
    rows: &[u64],
    c: &[u64],
    u: &[u64],
) -> Result<Elements, Error> {
    Error::check_argument("rows", keep.len(), rows.len())?;
    Error::check_argument("client's shares", keep.len(), c.len())?;
    Error::check_argument("client's halves of the reverse OT", keep.len(), u.len())?;
    let mut y = hash_to_field(tweaks, TweakClass::Output, keep)?;
    for (j, y) in y.iter_mut().enumerate() {
        debug_assert!(
            c[j] < fp::P && u[j] < fp::P && rows[j] < fp::P,
            "elements are reduced"
        );
        let pick = keep[j].colour();
        *y = client_share(*y, rows[j], pick, c[j], u[j]);
    }
    Ok(y)
}

/// Returns the server's stored terms `(H0 - H1 - 2v, v - H0)`, from the hashes of the labels of
/// colour 0 and 1.
pub fn server_terms(h0: u64, h1: u64, v: u64) -> (u64, u64) {
    (fp::sub(fp::sub(h0, h1), fp::add(v, v)), fp::sub(v, h0))
}

/// Returns the server's `(row, y_s)`, from its stored terms, its colour and its share `d`.
pub fn server_opening(terms: (u64, u64), colour: u8, d: u64) -> (u64, u64) {
    let row = fp::add(terms.0, fp::negated_by(d, colour));
    (row, fp::add(terms.1, fp::masked_by(d, colour)))
}

/// Returns the client's `y_c`, from the hash of its label, the row, the label's colour and its own
/// `c` and `u`.
pub fn client_share(hash: u64, row: u64, pick: u8, c: u64, u: u64) -> u64 {
    let picked = fp::masked_by(fp::add(row, c), pick);
    fp::add(fp::add(hash, picked), fp::negated_by(u, pick))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{InputLabels, SignWidth, active_labels, evaluate_sign, garble_sign};
    use pi_core::fp::{P, add, sub};
    use pi_core::{Prg, TweakCounter};
    use rand_chacha::ChaCha20Rng;
    use rand_core::{RngCore, SeedableRng};

    fn elements(count: usize, rng: &mut ChaCha20Rng) -> Vec<u64> {
        (0..count).map(|_| fp::uniform(rng)).collect()
    }

    /// The client's half and the server's of `colour * c`, by a dealer.
    fn deal(colour: &Bits, c: &[u64], rng: &mut ChaCha20Rng) -> (Vec<u64>, Vec<u64>) {
        let u = elements(c.len(), rng);
        let v = (0..c.len())
            .map(|j| sub(c[j] * colour.bit(j) as u64, u[j]))
            .collect();
        (u, v)
    }

    #[test]
    fn algebra_holds_for_every_colour_and_edge() {
        let edges = [0, 1, P / 2, P - 1];
        for_each_tuple(&edges, |[h0, h1, u, c, d]| {
            for (keep, colour) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
                let v = sub(c * colour as u64, u);
                let (row, y_server) = server_opening(server_terms(h0, h1, v), colour, d);
                let pick = keep ^ colour;
                let y_client = client_share([h0, h1][pick as usize], row, pick, c, u);
                let x = if keep == 1 { add(c, d) } else { 0 };
                assert_eq!(
                    add(y_client, y_server),
                    x,
                    "keep {keep}, colour {colour}, c {c}, d {d}"
                );
            }
        });
    }

    fn for_each_tuple(values: &[u64], check: impl Fn([u64; 5])) {
        for index in 0..values.len().pow(5) {
            check(std::array::from_fn(|i| {
                values[index / values.len().pow(i as u32) % values.len()]
            }));
        }
    }

    #[test]
    fn shares_sum_to_keep_times_x_for_all_colours() {
        let mut rng = ChaCha20Rng::seed_from_u64(41);
        let count = 400;
        let delta = Delta::random(&mut rng);
        let tweaks = TweakCounter::new(Block::random(&mut rng)).take(count, 1);
        let keep_zero: Vec<Block> = (0..count).map(|_| Block::random(&mut rng)).collect();
        let bits = Bits::random(count, &mut rng);
        let keep: Vec<Block> = (0..count)
            .map(|j| keep_zero[j] ^ delta.block().masked_by(bits.bit(j)))
            .collect();
        let (c, d) = (elements(count, &mut rng), elements(count, &mut rng));
        let colour = ServerGadget::colours(&keep_zero);
        let (u, v) = deal(&colour, &c, &mut rng);
        let gadget = ServerGadget::new(&tweaks, &delta, &keep_zero, &v).unwrap();
        let stored = gadget.to_bytes();
        assert_eq!(stored.len(), ServerGadget::stored_bytes(count));
        let gadget = ServerGadget::from_bytes(&stored, count).unwrap();
        let (rows, server) = gadget.open(&d).unwrap();
        let client = client_output(&tweaks, &keep, &rows, &c, &u).unwrap();
        let mut seen = [0; 4];
        for j in 0..count {
            let x = if bits.bit(j) == 1 { add(c[j], d[j]) } else { 0 };
            assert_eq!(add(client[j], server[j]), x, "ReLU {j}");
            seen[(2 * colour.bit(j) + keep[j].colour()) as usize] += 1;
        }
        assert!(
            seen.iter().all(|&n| n > 50),
            "all four pairs occurred: {seen:?}"
        );
    }

    #[test]
    fn relu_from_labels_to_shares() {
        let mut rng = ChaCha20Rng::seed_from_u64(42);
        let m = 12;
        let width = SignWidth::new(m).unwrap();
        let half = 1i64 << (m - 1);
        let edges = [0, 1, -1, half - 1, -half, -half + 1];
        let random = (0..300)
            .map(|_| rng.next_u64() as i64 % half)
            .collect::<Vec<_>>();
        let values: Vec<i64> = edges.into_iter().cycle().take(60).chain(random).collect();
        let count = values.len();
        // t = c + d over the integers, d negative as after a truncation.
        let c: Vec<u64> = (0..count)
            .map(|_| (1 << 40) + (rng.next_u64() >> 20))
            .collect();
        let d: Vec<i64> = values.iter().zip(&c).map(|(t, c)| t - *c as i64).collect();
        let d_low: Vec<u64> = d.iter().map(|&d| d as u64).collect();
        let d_field: Vec<u64> = d.iter().map(|&d| P - d.unsigned_abs()).collect();

        let delta = Delta::random(&mut rng);
        let tweaks = TweakCounter::new(Block::random(&mut rng)).take(count, m);
        let (client_stream, server_stream) = (Prg::new(&[9; 32]), Prg::new(&[10; 32]));
        let blocks = |stream: &Prg| stream.clone().blocks(count * m as usize);
        let mut tables = vec![0; width.table_bytes(count)];
        let mut keep_zero = vec![Block::ZERO; count];
        let zeros = InputLabels {
            client: &blocks(&client_stream),
            server: &blocks(&server_stream),
        };
        garble_sign(width, &tweaks, &delta, zeros, &mut tables, &mut keep_zero).unwrap();
        let (u, v) = deal(&ServerGadget::colours(&keep_zero), &c, &mut rng);
        let gadget = ServerGadget::new(&tweaks, &delta, &keep_zero, &v).unwrap();

        let mut server_labels = vec![0; width.label_bytes(count)];
        active_labels(width, &delta, &server_stream, &d_low, &mut server_labels).unwrap();
        let (rows, y_server) = gadget.open(&d_field).unwrap();

        let mut client_labels = vec![0; width.label_bytes(count)];
        active_labels(width, &delta, &client_stream, &c, &mut client_labels).unwrap();
        let client_labels = Block::decode("labels", &client_labels, count * m as usize).unwrap();
        let (keep, _) =
            evaluate_sign(width, &tweaks, &client_labels, &server_labels, &tables).unwrap();
        let rows = fp::decode("rows", fp::encode(&rows), count).unwrap();
        let y_client = client_output(&tweaks, &keep, &rows, &c, &u).unwrap();
        for j in 0..count {
            assert_eq!(
                add(y_client[j], y_server[j]),
                values[j].max(0) as u64,
                "t = {}",
                values[j]
            );
        }
    }

    #[test]
    fn stored_gadgets_of_another_length_are_refused() {
        let gadget = ServerGadget::from_bytes(&[0; 17], 1).unwrap();
        for (bytes, len) in [(&[0; 17][..], 2), (&[0; 16], 1), (&[0xff; 17], 1)] {
            let error = ServerGadget::from_bytes(bytes, len).unwrap_err();
            assert_eq!(
                error,
                Error::Stored {
                    what: "output gadgets"
                }
            );
        }
        assert!(!gadget.open(&[1, 2]).unwrap_err().blames_peer());
    }

    #[test]
    fn debug_shows_lengths_only() {
        let mut rng = ChaCha20Rng::seed_from_u64(43);
        let tweaks = TweakCounter::new(Block::random(&mut rng)).take(1, 1);
        let delta = Delta::random(&mut rng);
        let gadget = ServerGadget::new(&tweaks, &delta, &[Block::random(&mut rng)], &[3]).unwrap();
        let expected =
            "ServerGadget { keep_row: Secret(1), keep_share: Secret(1), colour: Bits(1) }";
        assert_eq!(format!("{gadget:?}"), expected);
    }
}
