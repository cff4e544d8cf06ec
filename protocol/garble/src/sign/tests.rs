use super::*;
use pi_core::{Bits, SEED_BYTES, TweakCounter};
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
    ) -> (Block, Vec<Block>, Vec<Block>) {
        let (mut carry, mut tables, mut sums) = (None, Vec::new(), Vec::new());
        let last = client.len() - 1;
        for i in 0..last {
            let mask = carry.unwrap_or(Block::ZERO);
            sums.push(client[i] ^ server[i] ^ mask);
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
        let sign = client[last] ^ server[last] ^ carry.unwrap();
        sums.push(sign);
        (sign ^ delta.block(), tables, sums)
    }

    /// The hashes of `sign xor sum` for the `k` bits below the sign.
    pub(super) fn guard(sums: &[Block], k: usize, tweaks: &TweakRange, instance: usize) -> Block {
        let (sign, below) = sums.split_last().unwrap();
        let wires = below.iter().rev().take(k).enumerate();
        wires.fold(Block::ZERO, |key, (gate, &sum)| {
            key ^ hash(tweaks.key(TweakClass::Guard, instance, gate), *sign ^ sum)
        })
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

/// Returns tables, zero labels of *keep*, and the key.
fn garbled(
    width: SignWidth,
    tweaks: &TweakRange,
    delta: &Delta,
    client: &[Block],
    server: &[Block],
) -> Result<(Vec<u8>, Labels, GuardKey), Error> {
    let instances = tweaks.instances();
    let mut tables = vec![0xee; width.table_bytes(instances)];
    let mut keep = Zeroizing::new(vec![Block::ZERO; instances]);
    let zeros = InputLabels { client, server };
    let key = garble_sign(width, tweaks, delta, zeros, &mut tables, &mut keep)?;
    Ok((tables, keep, key))
}

/// Garbles and evaluates every pair `(c, d)` and returns the bits of *keep*, decoded.
fn keep_bits(m: u32, pairs: &[(u64, u64)], rng: &mut ChaCha20Rng) -> Vec<u8> {
    run(SignWidth::new(m).unwrap(), pairs, rng).0
}

/// Garbles and evaluates every pair `(c, d)`; returns the bits of *keep*, decoded, and whether the
/// keys are equal.
fn run(width: SignWidth, pairs: &[(u64, u64)], rng: &mut ChaCha20Rng) -> (Vec<u8>, bool) {
    let m = width.bits();
    let count = pairs.len() * m as usize;
    let delta = Delta::random(rng);
    let mut counter = TweakCounter::new(Block::random(rng));
    counter.take(1, rng.next_u32() % 1000);
    let tweaks = counter.take(pairs.len(), m);
    let client_zero: Vec<Block> = (0..count).map(|_| Block::random(rng)).collect();
    let mut seed = [0; SEED_BYTES];
    rng.fill_bytes(&mut seed);
    let server_stream = Prg::new(&seed);
    let server_zero = server_stream.clone().blocks(count);
    let (tables, keep_zero, key) =
        garbled(width, &tweaks, &delta, &client_zero, &server_zero).unwrap();

    let c: Vec<u64> = pairs.iter().map(|pair| pair.0).collect();
    let d: Vec<u64> = pairs.iter().map(|pair| pair.1).collect();
    let client: Vec<Block> = (client_zero.iter().zip(Bits::of_values(&c, m).iter()))
        .map(|(zero, bit)| *zero ^ delta.block().masked_by(bit))
        .collect();
    let mut message = vec![0; width.label_bytes(pairs.len())];
    active_labels(width, &delta, &server_stream, &d, &mut message).unwrap();
    let (keep, found) = evaluate_sign(width, &tweaks, &client, &message, &tables).unwrap();
    let one = |zero: Block| (zero ^ delta.block()).value();
    let keep = keep
        .iter()
        .zip(keep_zero.iter())
        .map(|(keep, zero)| match keep.value() {
            value if value == zero.value() => 0,
            value if value == one(*zero) => 1,
            _ => panic!("a label that was never made"),
        })
        .collect();
    (keep, found.to_bytes() == key.to_bytes())
}

#[test]
fn keys_are_equal_if_and_only_if_every_value_keeps_to_its_range() {
    let mut rng = ChaCha20Rng::seed_from_u64(39);
    for (m, k) in [(2, 1), (4, 1), (5, 3), (6, 2), (9, 8)] {
        let width = SignWidth::guarded(m, k).unwrap();
        for t in 0..1u64 << m {
            let c = rng.next_u64();
            let signed = (t << (64 - m)) as i64 >> (64 - m);
            let edge = 1i64 << (m - 1 - k);
            let (keep, equal) = run(width, &[(c, t.wrapping_sub(c))], &mut rng);
            assert_eq!(
                equal,
                (-edge..edge).contains(&signed),
                "{m} bits, guard {k}: {signed}"
            );
            assert_eq!(keep[0] == 0, signed < 0);
        }
    }
    // One value of many, at any place, just outside either end, and one that wraps around to
    // the range.
    for (m, k) in [(17, 1), (16, 4), (60, 8)] {
        let width = SignWidth::guarded(m, k).unwrap();
        let edge = 1i64 << (m - 1 - k);
        for count in [1, 15, 16, 17, 2 * TASK + 3] {
            let mut shares = |odd: Option<(usize, i64)>| {
                let ends = [0, -1, edge - 1, -edge];
                let mut values: Vec<i64> = ends.into_iter().cycle().take(count).collect();
                if let Some((place, value)) = odd {
                    values[place] = value;
                }
                let pairs: Vec<(u64, u64)> = values
                    .into_iter()
                    .map(|t| {
                        let c = rng.next_u64();
                        (c, (t as u64).wrapping_sub(c))
                    })
                    .collect();
                run(width, &pairs, &mut rng).1
            };
            assert!(shares(None), "{m} bits, {count} values");
            for place in [0, count / 2, count - 1] {
                for outside in [edge, -edge - 1, 1 << (m - 1), (1 << (m - 1)) - 1] {
                    assert!(!shares(Some((place, outside))), "{outside} at {place}");
                }
                for alias in [1i64 << (m % 63), 3i64.wrapping_shl(m) + edge - 1] {
                    assert!(shares(Some((place, alias))), "{alias} at {place}");
                }
            }
        }
    }
}

#[test]
fn no_guard_has_the_key_of_no_wires() {
    let mut rng = ChaCha20Rng::seed_from_u64(40);
    let delta = Delta::random(&mut rng);
    let tweaks = TweakCounter::new(Block::random(&mut rng)).take(3, 8);
    let labels: Vec<Block> = (0..24).map(|_| Block::random(&mut rng)).collect();
    let key = |guard| {
        let width = SignWidth::guarded(8, guard).unwrap();
        garbled(width, &tweaks, &delta, &labels, &labels).unwrap().2
    };
    assert_eq!(key(0).to_bytes(), GuardKey::empty().to_bytes());
    assert_ne!(key(1).to_bytes(), GuardKey::empty().to_bytes());
    // Wires are hashed one by one, so that a longer guard only adds to a shorter one.
    assert_ne!(key(1).to_bytes(), key(2).to_bytes());
    for (bits, guard) in [(8, 9), (8, 8), (2, 2), (60, 60)] {
        let refused = SignWidth::guarded(bits, guard).unwrap_err().to_string();
        assert!(refused.contains("guard bits"), "{refused}");
    }
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
    let (m, k) = (5, 2);
    let width = SignWidth::guarded(m, k).unwrap();
    for instances in [0, 1, 15, 16, 17, TASK - 1, TASK, 2 * TASK + 3] {
        let delta = Delta::random(&mut rng);
        let tweaks = TweakCounter::new(Block::random(&mut rng)).take(instances, m);
        let mut labels = || {
            (0..instances * 5)
                .map(|_| Block::random(&mut rng))
                .collect::<Vec<_>>()
        };
        let (client, server) = (labels(), labels());
        let (tables, keep, key) = garbled(width, &tweaks, &delta, &client, &server).unwrap();
        let mut expected = Block::ZERO;
        for j in 0..instances {
            let range = j * 5..(j + 1) * 5;
            let (zero, rows, sums) =
                plain::garble_sign(&client[range.clone()], &server[range], &delta, &tweaks, j);
            assert_eq!(keep[j].value(), zero.value());
            assert_eq!(tables[j * 128..(j + 1) * 128], *Block::encode(&rows));
            expected ^= plain::guard(&sums, k as usize, &tweaks, j);
        }
        assert_eq!(*key.to_bytes(), expected.to_bytes());
    }
}

#[test]
fn groups_by_every_version_equal_the_definition() {
    let mut rng = ChaCha20Rng::seed_from_u64(37);
    let shapes = [
        (1, 2, 0),
        (3, 60, 8),
        (5, 17, 1),
        (15, 16, 3),
        (16, 16, 0),
        (16, 3, 2),
        (2, 9, 8),
    ];
    for (count, m, guard) in shapes {
        let width = SignWidth::guarded(m, guard).unwrap();
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
            let group = Group {
                width,
                tweaks: &tweaks,
                first,
            };
            let zeros = InputLabels {
                client: &client,
                server: &server,
            };
            // Tables and messages may begin anywhere.
            let message = &[&[0], Block::encode(&server)].concat()[1..];
            let garbled = |code| {
                let mut tables = vec![0xee; width.table_bytes(count) + 1];
                let mut keep = vec![Block::ZERO; count];
                let key = group.garble(code, delta, zeros, &mut tables[1..], &mut keep);
                (tables, Block::encode(&keep).to_vec(), *key.to_bytes())
            };
            let (tables, keep, key) = garbled(Code::Portable);
            let evaluated = |code| {
                let mut keep = vec![Block::ZERO; count];
                let key = group.evaluate(code, &client, message, &tables[1..], &mut keep);
                (Block::encode(&keep).to_vec(), *key.to_bytes())
            };
            let expected = evaluated(Code::Portable);
            for code in Code::supported() {
                let what = format!("{code:?}: {count} instances of {m} bits from {first}");
                assert!(
                    garbled(code) == (tables.clone(), keep.clone(), key),
                    "{what}"
                );
                assert_eq!(evaluated(code), expected, "{what}");
            }
        }
    }
}

#[test]
fn active_labels_are_those_of_the_bits() {
    let mut rng = ChaCha20Rng::seed_from_u64(38);
    let delta = Delta::random(&mut rng);
    for (m, count) in [(2, 0), (16, 3), (17, 2 * TASK + 5), (60, TASK)] {
        let width = SignWidth::new(m).unwrap();
        let values: Vec<u64> = (0..count).map(|_| rng.next_u64()).collect();
        let stream = Prg::new(&[8; 32]);
        let zeros = stream.clone().blocks(count * m as usize);
        let mut found = vec![0; width.label_bytes(count)];
        active_labels(width, &delta, &stream, &values, &mut found).unwrap();
        let bits = Bits::of_values(&values, m);
        for (j, label) in found.chunks_exact(BLOCK_BYTES).enumerate() {
            let one = zeros[j] ^ delta.block();
            let label_of = [zeros[j], one][bits.bit(j) as usize];
            assert_eq!(label, label_of.to_bytes());
        }
        found.push(0);
        let refused = active_labels(width, &delta, &stream, &values, &mut found);
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
    let message = Block::encode(&labels);
    let mut tables = [0; 192];
    let garble = |tweaks: &TweakRange, client: &[Block], tables: &mut [u8]| {
        let zeros = InputLabels {
            client,
            server: &labels,
        };
        garble_sign(width, tweaks, &delta, zeros, tables, &mut [Block::ZERO; 2])
    };
    assert!(garble(&tweaks, &labels, &mut tables).is_ok());
    let error = garble(&tweaks, &labels[..7], &mut tables).unwrap_err();
    assert!(!error.blames_peer());
    assert!(garble(&tweaks, &labels, &mut tables[1..]).is_err());
    for (server, tables) in [(message, &tables[1..]), (&message[1..], &tables)] {
        let error = evaluate_sign(width, &tweaks, &labels, server, tables).unwrap_err();
        assert!(error.blames_peer());
    }
    for instances in [1, 3] {
        let other = TweakCounter::new(Block::ZERO).take(instances, 4);
        assert!(garble(&other, &labels, &mut tables).is_err());
        assert!(evaluate_sign(width, &other, &labels, message, &tables).is_err());
    }
    let narrow = TweakCounter::new(Block::ZERO).take(2, 3);
    assert!(evaluate_sign(width, &narrow, &labels, message, &tables).is_err());
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
    let (client, server) = zeros.split_at(8);
    let (tables, _, _) = garbled(width, &tweaks, &delta, client, server).unwrap();
    let evaluate = |tables: &[u8]| {
        let server = Block::encode(server);
        let (keep, _) = evaluate_sign(width, &tweaks, client, server, tables).unwrap();
        keep[0].value()
    };
    let honest = evaluate(&tables);
    let mut changed = 0;
    for byte in 0..tables.len() {
        let mut wrong = tables.clone();
        wrong[byte] ^= 1;
        changed += (evaluate(&wrong) != honest) as usize;
    }
    // A row takes part in an evaluation when the colour of its label is 1, which is half of
    // them on average.
    assert!(changed >= tables.len() / 8, "{changed} of {}", tables.len());
}
