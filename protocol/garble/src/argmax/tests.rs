use super::*;
use crate::active_labels;
use pi_core::{Prg, SEED_BYTES, TweakCounter};
use rand_chacha::ChaCha20Rng;
use rand_core::{RngCore, SeedableRng};
use std::collections::HashSet;

fn shape(values: usize, bits: u32) -> ArgMax {
    ArgMax::new(values, SignWidth::new(bits).unwrap()).unwrap()
}

fn guarded(values: usize, bits: u32, guard: u32) -> ArgMax {
    let width = SignWidth::guarded(bits + guard, guard).unwrap();
    ArgMax::new(values, width).unwrap()
}

/// The definition: the smallest index of the largest sum, in two's complement of `bits` bits.
fn arg_max(bits: u32, c: &[u64], d: &[u64]) -> usize {
    let sum = |(&c, &d): (&u64, &u64)| (c.wrapping_add(d) << (64 - bits)) as i64;
    let sums: Vec<i64> = c.iter().zip(d).map(sum).collect();
    let largest = sums.iter().max().unwrap();
    sums.iter().position(|sum| sum == largest).unwrap()
}

/// A party without labels: a wire is a block of value 0 or 1. Counts how often each gate is used.
struct Plain {
    used: Vec<usize>,
}

impl Party for Plain {
    fn and(
        &mut self,
        gates: &[usize; LANES],
        count: usize,
        a: &[Block; LANES],
        b: &[Block; LANES],
    ) -> [Block; LANES] {
        for &gate in &gates[..count] {
            self.used[gate] += 1;
        }
        std::array::from_fn(|lane| Block::new(a[lane].value() & b[lane].value()))
    }

    fn not(&self, x: Block) -> Block {
        x ^ Block::new(1)
    }
}

fn run_plainly(shape: ArgMax, c: &[u64], d: &[u64]) -> usize {
    let bits = |values| -> Vec<Block> {
        let bits = Bits::of_values(values, shape.width.bits());
        bits.iter().map(|bit| Block::new(bit.into())).collect()
    };
    let (c, d) = (bits(c), bits(d));
    let mut plain = Plain {
        used: vec![0; shape.and_gates()],
    };
    let (index, _) = run(shape, &mut plain, &c, |i| d[i]);
    assert!(plain.used.iter().all(|&n| n == 1), "every gate once");
    let bits = index.iter().enumerate();
    bits.fold(0, |index, (bit, wire)| {
        index | (wire.value() as usize) << bit
    })
}

/// One garbled arg max, with everything that either party holds.
struct Garbled {
    shape: ArgMax,
    tweaks: TweakRange,
    delta: Delta,
    client_zero: Vec<Block>,
    server_zero: Prg,
    tables: Vec<u8>,
    decoding: Bits,
    key: GuardKey,
}

impl Garbled {
    fn new(shape: ArgMax, rng: &mut ChaCha20Rng) -> Self {
        let mut counter = TweakCounter::new(Block::random(rng));
        counter.take(1, rng.next_u32() % 1000);
        let tweaks = counter.take(1, shape.and_gates() as u32);
        let delta = Delta::random(rng);
        let blocks = shape.input_bits();
        let client_zero: Vec<Block> = (0..blocks).map(|_| Block::random(rng)).collect();
        let mut seed = [0; SEED_BYTES];
        rng.fill_bytes(&mut seed);
        let server_zero = Prg::new(&seed);
        let mut tables = vec![0xee; shape.table_bytes()];
        let zeros = InputLabels {
            client: &client_zero,
            server: &server_zero.clone().blocks(blocks),
        };
        let (decoding, key) = garble_argmax(shape, &tweaks, &delta, zeros, &mut tables).unwrap();
        Garbled {
            shape,
            tweaks,
            delta,
            client_zero,
            server_zero,
            tables,
            decoding,
            key,
        }
    }

    /// The client's labels and the server's message for these shares.
    fn inputs(&self, c: &[u64], d: &[u64]) -> (Vec<Block>, Vec<u8>) {
        let width = self.shape.width;
        let bits = Bits::of_values(c, width.bits());
        let client = (self.client_zero.iter().zip(bits.iter()))
            .map(|(zero, bit)| *zero ^ self.delta.block().masked_by(bit))
            .collect();
        let mut message = vec![0; self.shape.label_bytes()];
        active_labels(width, &self.delta, &self.server_zero, d, &mut message).unwrap();
        (client, message)
    }

    fn evaluate(&self, c: &[u64], d: &[u64]) -> usize {
        self.checked(c, d).0
    }

    /// The index, and whether the keys are equal.
    fn checked(&self, c: &[u64], d: &[u64]) -> (usize, bool) {
        let (client, message) = self.inputs(c, d);
        let (colours, key) =
            evaluate_argmax(self.shape, &self.tweaks, &client, &message, &self.tables).unwrap();
        let index = decode_argmax(self.shape, &colours, &self.decoding).unwrap();
        (index, key.to_bytes() == self.key.to_bytes())
    }
}

#[test]
fn keys_are_equal_if_and_only_if_every_value_keeps_to_its_range() {
    let mut rng = ChaCha20Rng::seed_from_u64(58);
    for (values, bits, guard) in [(2, 3, 1), (10, 8, 4), (17, 20, 8), (3, 1, 2)] {
        let garbled = Garbled::new(guarded(values, bits, guard), &mut rng);
        let edge = 1i64 << (bits - 1);
        let c = uniform(values, &mut rng);
        let checked = |values: &[i64]| {
            let pairs = values.iter().zip(&c);
            let d: Vec<u64> = pairs.map(|(&t, c)| (t as u64).wrapping_sub(*c)).collect();
            let (index, equal) = garbled.checked(&c, &d);
            assert_eq!(index, arg_max(bits, &c, &d), "what is compared wraps");
            equal
        };
        let mut sums = vec![0; values];
        for place in 0..values {
            for inside in [edge - 1, -edge, 0] {
                sums[place] = inside;
                assert!(checked(&sums), "{inside} at {place}");
            }
            for outside in [
                edge,
                -edge - 1,
                2 * edge,
                (edge << guard) - 1,
                -(edge << guard),
            ] {
                sums[place] = outside;
                assert!(!checked(&sums), "{outside} at {place}");
            }
            sums[place] = 2 * (edge << guard);
            assert!(checked(&sums), "an alias of 0 at {place}");
            sums[place] = 0;
        }
    }
}

fn uniform(count: usize, rng: &mut ChaCha20Rng) -> Vec<u64> {
    (0..count).map(|_| rng.next_u64()).collect()
}

#[test]
fn larger_of_two_for_all_shares_of_two_bits() {
    let mut rng = ChaCha20Rng::seed_from_u64(50);
    let garbled = Garbled::new(shape(2, 2), &mut rng);
    assert_eq!(garbled.key.to_bytes(), GuardKey::empty().to_bytes());
    for shares in 0..256u64 {
        let [c0, c1, d0, d1] = std::array::from_fn(|i| shares >> (2 * i) & 3);
        let index = garbled.evaluate(&[c0, c1], &[d0, d1]);
        assert_eq!(
            index,
            arg_max(2, &[c0, c1], &[d0, d1]),
            "shares {shares:#x}"
        );
    }
}

#[test]
fn circuit_is_right_for_all_values_of_small_shapes() {
    let mut rng = ChaCha20Rng::seed_from_u64(51);
    for (values, bits) in [
        (2, 2),
        (2, 5),
        (3, 2),
        (3, 4),
        (4, 3),
        (5, 2),
        (6, 2),
        (7, 2),
    ] {
        let shape = shape(values, bits);
        for all in 0..1u64 << (values as u32 * bits) {
            let mask = (1 << bits) - 1;
            let sums = (0..values as u32).map(|k| all >> (k * bits) & mask);
            let c = uniform(values, &mut rng);
            let d: Vec<u64> = sums.zip(&c).map(|(t, c)| t.wrapping_sub(*c)).collect();
            let index = run_plainly(shape, &c, &d);
            assert_eq!(
                index,
                arg_max(bits, &c, &d),
                "{values} of {bits} bits: {all:#x}"
            );
        }
    }
}

#[test]
fn garbled_arg_max_is_right_for_all_numbers_of_values() {
    let mut rng = ChaCha20Rng::seed_from_u64(52);
    let numbers = (2..=40).chain([63, 64, 65, 100, 128, 257, 1000]);
    for (i, values) in numbers.enumerate() {
        let bits = [20, 2, 60, 13, 33][i % 5];
        let garbled = Garbled::new(shape(values, bits), &mut rng);
        for round in 0..4 {
            let c = uniform(values, &mut rng);
            let mut d = uniform(values, &mut rng);
            if round > 0 {
                // Three values, the largest and the smallest of all among them: many ties.
                for (d, c) in d.iter_mut().zip(&c) {
                    let value = [1 << (bits - 1), (1 << (bits - 1)) - 1, 0][*d as usize % 3];
                    *d = u64::wrapping_sub(value, *c);
                }
            }
            let index = garbled.evaluate(&c, &d);
            assert_eq!(index, run_plainly(garbled.shape, &c, &d));
            assert_eq!(index, arg_max(bits, &c, &d), "{values} of {bits} bits");
        }
    }
}

#[test]
fn every_place_can_win_and_ties_go_to_the_smaller_index() {
    let mut rng = ChaCha20Rng::seed_from_u64(53);
    for values in [10, 16, 37] {
        let garbled = Garbled::new(shape(values, 8), &mut rng);
        let c = uniform(values, &mut rng);
        let shares = |sums: &[i64]| -> Vec<u64> {
            let pairs = sums.iter().zip(&c);
            pairs.map(|(&t, c)| (t as u64).wrapping_sub(*c)).collect()
        };
        assert_eq!(garbled.evaluate(&c, &shares(&vec![-128; values])), 0);
        for winner in 0..values {
            let mut sums = vec![-1; values];
            sums[winner] = 0;
            assert_eq!(garbled.evaluate(&c, &shares(&sums)), winner);
            sums[winner..].fill(127);
            assert_eq!(garbled.evaluate(&c, &shares(&sums)), winner);
        }
    }
}

#[test]
fn cost_is_that_of_the_table_of_parts() {
    // Ten adders of 19; nodes of 40 (five), 41 (two), 42 (one) and the root of 20 + 3.
    let ten = shape(10, 20);
    assert_eq!(ten.and_gates(), 190 + 5 * 40 + 2 * 41 + 42 + 23);
    assert_eq!((ten.table_bytes(), ten.label_bytes()), (17_184, 3_200));
    assert_eq!((ten.index_bits(), ten.decoding_bytes()), (4, 1));
    for (values, bits) in [(2, 1), (3, 2), (4, 2), (5, 3), (1000, 10), (1 << 16, 16)] {
        assert_eq!(shape(values, 2).index_bits(), bits, "{values} values");
    }
    // A guard widens the adders alone.
    let wide = guarded(10, 20, 4);
    assert_eq!(wide.and_gates(), ten.and_gates() + 10 * 4);
    assert_eq!(wide.label_bytes(), 10 * 24 * 16);
    // At most 2 w + ceil(log2 K) a node.
    for values in 2..200 {
        let shape = shape(values, 17);
        let nodes = shape.and_gates() - values * 16;
        assert!(nodes <= (values - 1) * (34 + shape.index_bits()));
    }
}

#[test]
fn every_table_is_written_once_and_every_label_and_key_differs() {
    let mut rng = ChaCha20Rng::seed_from_u64(54);
    for (values, bits, guard) in [(2, 2, 0), (10, 20, 4), (33, 7, 1)] {
        let garbled = Garbled::new(guarded(values, bits, guard), &mut rng);
        let gates = garbled.shape.and_gates();
        assert_eq!(garbled.tables.len(), 32 * gates);
        let (tables, _) = garbled.tables.as_chunks::<BLOCK_BYTES>();
        assert!(tables.iter().all(|row| *row != [0xee; BLOCK_BYTES]));
        assert_eq!(tables.iter().collect::<HashSet<_>>().len(), 2 * gates);

        // What goes into the hash: a key twice would break the bound, a wire's label twice under
        // different keys would not; labels of AND gates' results are new ones nevertheless.
        let mut recorder = Recorder {
            garbler: Garbler {
                tweaks: &garbled.tweaks,
                delta: garbled.delta.block(),
                tables: &mut vec![[0; TABLE_BYTES]; gates],
            },
            keys: HashSet::new(),
            results: HashSet::new(),
        };
        let server = garbled
            .server_zero
            .clone()
            .blocks(garbled.shape.input_bits());
        run(garbled.shape, &mut recorder, &garbled.client_zero, |i| {
            server[i]
        });
        assert_eq!(recorder.keys.len(), 2 * gates);
        assert_eq!(recorder.results.len(), gates);
    }
}

/// A garbler that notes the keys of its gates and both labels' common part of each result.
struct Recorder<'a> {
    garbler: Garbler<'a>,
    keys: HashSet<u128>,
    results: HashSet<u128>,
}

impl Party for Recorder<'_> {
    fn and(
        &mut self,
        gates: &[usize; LANES],
        count: usize,
        a: &[Block; LANES],
        b: &[Block; LANES],
    ) -> [Block; LANES] {
        let keys = keys(self.garbler.tweaks, gates);
        let and = self.garbler.and(gates, count, a, b);
        for lane in 0..count {
            for key in [keys.g[lane], keys.e[lane]] {
                assert!(self.keys.insert(key.value()), "gate {} again", gates[lane]);
            }
            for wire in [a[lane], b[lane]] {
                assert!(
                    wire.value() != 0,
                    "gate {} has a constant input",
                    gates[lane]
                );
            }
            let delta = self.garbler.delta.value();
            let label = and[lane].value();
            assert!(self.results.insert(label.min(label ^ delta)));
        }
        and
    }

    fn not(&self, x: Block) -> Block {
        self.garbler.not(x)
    }
}

#[test]
fn decoding_bits_are_as_random_as_labels() {
    let mut rng = ChaCha20Rng::seed_from_u64(55);
    let mut ones = [0; 2];
    for _ in 0..400 {
        let garbled = Garbled::new(shape(3, 4), &mut rng);
        for (ones, bit) in ones.iter_mut().zip(garbled.decoding.iter()) {
            *ones += bit as usize;
        }
    }
    // Standard deviation 10; five of them.
    assert!(
        ones.iter().all(|ones| (150..=250).contains(ones)),
        "{ones:?}"
    );
}

#[test]
fn shapes_that_do_not_fit_are_refused() {
    let mut rng = ChaCha20Rng::seed_from_u64(56);
    let garbled = Garbled::new(shape(5, 4), &mut rng);
    let Garbled {
        shape,
        tweaks,
        delta,
        tables,
        decoding,
        ..
    } = &garbled;
    let (client, message) = garbled.inputs(&[1; 5], &[2; 5]);
    let evaluate =
        |tweaks: &TweakRange, client: &[Block], message: &[u8], tables: &[u8], decoding: &Bits| {
            let (colours, _) = evaluate_argmax(*shape, tweaks, client, message, tables)?;
            decode_argmax(*shape, &colours, decoding)
        };
    assert_eq!(evaluate(tweaks, &client, &message, tables, decoding), Ok(0));
    let refused = evaluate(tweaks, &client[1..], &message, tables, decoding);
    assert!(!refused.unwrap_err().blames_peer());
    for (message, tables) in [(&message[1..], &tables[..]), (&message[..], &tables[1..])] {
        let error = evaluate(tweaks, &client, message, tables, decoding).unwrap_err();
        assert!(error.blames_peer(), "{error}");
    }
    for bits in [0, 2, 4, 9] {
        let wrong: Bits = std::iter::repeat_n(0, bits).collect();
        assert!(evaluate(tweaks, &client, &message, tables, &wrong).is_err());
    }
    // Decoded otherwise, the index 0 becomes 7 of 5.
    let other: Bits = decoding.iter().map(|bit| bit ^ 1).collect();
    let error = evaluate(tweaks, &client, &message, tables, &other).unwrap_err();
    let expected = "index of the arg max: value 7 is out of range";
    assert_eq!(
        (error.to_string().as_str(), error.blames_peer()),
        (expected, true)
    );

    let gates = shape.and_gates() as u32;
    let mut room = tables.clone();
    let mut garble = |tweaks: &TweakRange, client: &[Block], server: &[Block], less: usize| {
        let zeros = InputLabels { client, server };
        let result = garble_argmax(*shape, tweaks, delta, zeros, &mut room[less..]);
        result.map_err(|error| assert!(!error.blames_peer(), "{error}"))
    };
    assert!(garble(tweaks, &client, &client, 0).is_ok());
    assert!(garble(tweaks, &client, &client, 1).is_err());
    assert!(garble(tweaks, &client[1..], &client, 0).is_err());
    assert!(garble(tweaks, &client, &client[1..], 0).is_err());
    for (instances, stride) in [(1, gates - 1), (0, gates), (2, gates)] {
        let other = TweakCounter::new(Block::ZERO).take(instances, stride);
        assert!(garble(&other, &client, &client, 0).is_err());
        assert!(evaluate(&other, &client, &message, tables, decoding).is_err());
    }
    for values in [0, 1, (1 << 16) + 1] {
        let error = ArgMax::new(values, shape.width()).unwrap_err().to_string();
        let expected = format!("values of an arg max: expected 2 to 65536, got {values}");
        assert_eq!(error, expected);
    }
}

#[test]
fn a_changed_table_changes_the_index() {
    let mut rng = ChaCha20Rng::seed_from_u64(57);
    let garbled = Garbled::new(shape(8, 6), &mut rng);
    let (c, d) = (uniform(8, &mut rng), uniform(8, &mut rng));
    let (client, message) = garbled.inputs(&c, &d);
    let honest = garbled.evaluate(&c, &d);
    let mut changed = 0;
    let gates = garbled.shape.and_gates();
    for gate in 0..gates {
        let mut wrong = garbled.tables.clone();
        wrong[gate * TABLE_BYTES..][..TABLE_BYTES]
            .iter_mut()
            .for_each(|byte| *byte ^= 0x5a);
        let Garbled {
            shape,
            tweaks,
            decoding,
            ..
        } = &garbled;
        let (colours, _) = evaluate_argmax(*shape, tweaks, &client, &message, &wrong).unwrap();
        let index = decode_argmax(*shape, &colours, decoding);
        changed += (index != Ok(honest)) as usize;
    }
    // Three of four gates read a row, and a label that was never made has random colours. A change
    // of a value that loses anyway must still show as often as not.
    assert!(changed >= gates / 4, "{changed} of {gates}");
}
