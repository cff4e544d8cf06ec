//! Layers and exchanges that are cut: nothing of the result or the bytes depends on it, each piece
//! is read when its message comes, and a peer that lies in one part is found or harms nobody.

use super::*;
use crate::nonlinear::relu::UNIT;
use crate::session::bundle::client_piece_bytes;
use pi_core::fp::ELEMENT_BYTES;

const SHAPE: Shape = Shape::new(2, 30, 30);

/// Two layers of ReLUs, of more than three units and of one and a bit, between identity elements
/// and squares.
fn wide_circuit() -> (Verified<Circuit>, Weights) {
    let calibrated = Range::Calibrated { max_seen: 1 };
    let square = PostTruncation {
        truncate: 3,
        bound_bits: 25,
        range: calibrated,
    };
    let many = Activation {
        truncate: 4,
        frac_bits: 3,
        kinds: (0..SHAPE.len())
            .map(|i| match i % 30 {
                0 => Kind::Square,
                1 | 2 => Kind::Identity,
                _ => Kind::Relu,
            })
            .collect(),
        square: Some(square),
        polynomial: None,
    };
    let few = Activation {
        truncate: 1,
        frac_bits: 2,
        kinds: (0..SHAPE.len())
            .map(|i| match i < UNIT + 70 {
                true => Kind::Relu,
                false => Kind::Identity,
            })
            .collect(),
        square: None,
        polynomial: None,
    };
    let output = Step::Output {
        frac_bits: 2,
        reveal: Reveal::Logits,
    };
    let layer = |name: &str, input, bound_bits, step| Layer {
        name: name.into(),
        terms: vec![identity_conv(input, SHAPE.c)],
        pool: None,
        shape: SHAPE,
        bound_bits,
        range: calibrated,
        guard_bits: 0,
        step,
    };
    let circuit = Circuit {
        name: "wide".into(),
        input: SHAPE,
        input_frac_bits: 7,
        preprocessing: Preprocessing::unit(SHAPE.c),
        classes: Vec::new(),
        prefix: None,
        layers: vec![
            layer("many", 0, 12, Step::Activate(many)),
            layer("few", 1, 20, Step::Activate(few)),
            layer("output", 2, 20, output),
        ],
    };
    let weights = Weights {
        layers: (0..3).map(|_| identity_weights(2, Vec::new())).collect(),
    };
    (verify::circuit(circuit).unwrap(), weights)
}

fn wide_input(seed: i64) -> Vec<i64> {
    (0..SHAPE.len() as i64)
        .map(|i| (i * 7919 + seed * 104_729) % 8001 - 4000)
        .collect()
}

/// The models of the wide circuit, a unit in each part.
fn cut_models() -> &'static Models {
    static MODELS: OnceLock<Models> = OnceLock::new();
    MODELS.get_or_init(|| {
        let (circuit, weights) = wide_circuit();
        Models::with_batches(circuit, weights, &[2]).in_parts_of(1)
    })
}

/// Parts of the circuit: four pieces of its first layer, two of its second.
const PARTS: u64 = 6;

/// The client's messages of a bundle alone before message 3: the first, and the uploads.
fn before(models: &Models) -> u64 {
    1 + models.client.indexed().single().uploads().len() as u64
}

#[test]
fn cuts_change_neither_the_answer_nor_the_bytes() {
    let (circuit, weights) = wide_circuit();
    let whole = Models::new(circuit.clone(), weights.clone());
    let costs = whole.client.cost().unwrap();
    assert_eq!(costs.parts, 1);
    let unit = whole.client.indexed().parts.all()[0].width;
    let tables = |n| unit.table_bytes(n) + n / 8;
    for (seed, limit) in [(2000, 1), (2001, 2 * tables(UNIT)), (2002, 1 << 20)] {
        let cut = Models::new(circuit.clone(), weights.clone()).in_parts_of(limit);
        let cost = cut.client.cost().unwrap();
        let (offline, online) = (cost.offline, cost.online);
        assert_eq!(offline.bytes_up, costs.offline.bytes_up);
        assert_eq!(offline.bytes_down, costs.offline.bytes_down);
        assert_eq!(online.bytes_up, costs.online.bytes_up);
        assert_eq!(online.bytes_down, costs.online.bytes_down);
        let pieces = cut.client.indexed().parts.all().len() as u32;
        assert_eq!(online.messages, costs.online.messages + pieces - 2);
        assert_eq!(
            offline.messages,
            costs.offline.messages + 2 * (cost.parts - 1)
        );
        assert_eq!(cost.online_round_trips(), costs.online_round_trips());
        assert_eq!(cost.offline_round_trips(3), 1 + 3 * cost.parts);
        let sections = u64::from(pieces - 2);
        assert_eq!(cost.stored.client, costs.stored.client + 32 * sections);
        assert_eq!(cost.stored.server, costs.stored.server);
        // Prepares, stores, spends, and compares with the interpreter and these formulas.
        cut.check(&wide_input(seed as i64), seed);
    }
    assert_eq!(u64::from(cut_models().client.cost().unwrap().parts), PARTS);
}

/// The key of the range check is of all pieces' guards: a client that leaves one out has another.
#[test]
fn values_out_of_range_are_announced_whichever_piece_they_are_in() {
    let (circuit, weights) = wide_circuit();
    let mut circuit = circuit.into_inner();
    circuit.layers[0].guard_bits = 1;
    circuit.layers[1].guard_bits = 1;
    let bound = 1 << circuit.layers[0].bound_bits;
    let models = Models::new(verify::circuit(circuit).unwrap(), weights).in_parts_of(1);
    assert!(models.check(&wide_input(7), 2700).in_range);
    let indexed = models.client.indexed();
    let pieces = indexed.parts.of_layer(0);
    assert_eq!(pieces.len(), 4);
    for (seed, piece) in (2701..).zip(pieces) {
        let mut input = wide_input(7);
        let last = piece.first + piece.len - 1;
        input[indexed.layers[0].relu[last] as usize] = bound + 100;
        let run = models.check(&input, seed);
        assert!(!run.in_range, "ReLU {last}");
    }
}

#[test]
fn no_message_of_a_part_is_longer_than_its_limit() {
    let models = cut_models();
    let (up, down) = recorded(|ends| {
        let outcome = models.prepare(ends, 2010);
        assert!(outcome.client.is_ok() && outcome.server.is_ok());
    });
    let parts = &models.client.indexed().parts;
    assert_eq!(parts.of_layer(0).len(), 4);
    let first = before(models) as usize;
    assert_eq!(up.len(), first + PARTS as usize);
    for (part, message) in down[down.len() - PARTS as usize..]
        .iter()
        .enumerate()
        .skip(1)
    {
        let pieces = parts.of_part(part);
        let tables: usize = pieces.iter().map(|piece| piece.garbled_bytes()).sum();
        let next: usize = parts.of_part(part + 1).iter().map(|piece| piece.len).sum();
        assert_eq!(message.len(), tables + 16 * 2 * next.div_ceil(8));
        assert!(pieces.iter().all(|piece| piece.len <= UNIT));
    }
}

#[test]
fn bundles_of_a_batch_in_parts_are_spent_one_by_one() {
    let models = cut_models();
    let prepared = models.prepare_batch(line(), 2020, 2);
    let batch = &models.client.cost().unwrap().batches[0];
    assert_eq!(prepared.traffic, batch.offline);
    for (client, server) in prepared.client.0.iter().zip(prepared.server.0).rev() {
        models.spend(models.decode(client), server, &wide_input(1), 2020);
    }
}

/// Of a bundle that lies in a file, an inference reads each piece once its message is there.
#[test]
fn pieces_are_read_as_they_are_used() {
    let models = cut_models();
    let prepared = models.prepare(line(), 2030);
    let (bytes, server) = (prepared.client.unwrap(), prepared.server.unwrap());
    let source = Source::new(&bytes);
    let read = source.read.clone();
    let bundle = ClientBundle::open(Box::new(source), &models.client).unwrap();
    let pieces = models.client.indexed().parts.all().iter();
    let of_pieces = pieces.map(|piece| client_piece_bytes(piece) + 32);
    let shares = bytes.len() - of_pieces.sum::<usize>();
    assert_eq!(read.load(Ordering::Relaxed), shares);
    // A server that opens one piece and goes.
    let mut ends = line();
    ends.1.tamper(1, Tamper::Drop);
    let outcome = models.infer(ends, bundle, server, &wide_input(2));
    assert!(matches!(outcome.client, Err(Error::Channel { .. })));
    let first = client_piece_bytes(&models.client.indexed().parts.all()[0]) + 32;
    assert_eq!(read.load(Ordering::Relaxed), shares + first);
}

/// Damage anywhere is found where it is read.
#[test]
fn damaged_pieces_end_an_inference() {
    let models = cut_models();
    let prepared = models.prepare(line(), 2040);
    let bytes = prepared.client.unwrap();
    let pieces = models.client.indexed().parts.all();
    let lengths: Vec<usize> = pieces.iter().map(|p| client_piece_bytes(p) + 32).collect();
    let shares = bytes.len() - lengths.iter().sum::<usize>();
    let damage = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut changed = bytes.to_vec();
        change(&mut changed);
        assert!(ClientBundle::decode(&changed, &models.client).is_err());
        let opened = ClientBundle::open(Box::new(Source::new(&changed)), &models.client);
        let mut opened = opened.unwrap();
        let error = opened.read_ahead(&models.client).unwrap_err();
        assert!(matches!(error, Error::Stored { .. }), "{error}");
        let opened = ClientBundle::open(Box::new(Source::new(&changed)), &models.client);
        let (_, server) = models.bundles(2041);
        let outcome = both(
            line(),
            async |ch| {
                let bundle = opened.unwrap();
                client_infer(ch, &models.client, bundle, &wide_input(3), false).await
            },
            async |ch| {
                // Labels for another bundle, which does not matter here.
                let limit = OnlineRequest::encoded_len(&models.server);
                let mut request = ch.receive(limit).await?;
                request[..32].copy_from_slice(&server.id().0);
                let request = OnlineRequest::decode(&request, &models.server)?;
                server_infer(ch, &models.server, server, request).await
            },
        );
        let error = outcome.client.unwrap_err();
        assert!(matches!(error, Error::Stored { .. }), "{error}");
        assert!(outcome.server.is_err());
    };
    let flip = |at: usize| move |bytes: &mut Vec<u8>| bytes[at] ^= 1;
    damage(&flip(shares + 17));
    damage(&flip(shares + lengths[0] - 1));
    damage(&flip(shares + lengths[0] + lengths[1] + 5));
    // Two pieces of one length, each with its own checksum, in the other's place.
    assert_eq!(lengths[0], lengths[1]);
    damage(&|bytes| {
        let (a, b) = bytes[shares..].split_at_mut(lengths[0]);
        a.swap_with_slice(&mut b[..lengths[1]]);
    });
    damage(&|bytes| bytes.truncate(bytes.len() - 1));
    damage(&|bytes| bytes.push(0));
}

#[test]
fn lies_in_a_part_of_the_preparation_are_blamed_on_the_peer() {
    let models = cut_models();
    let up = before(models);
    let down = 1 + models.client.indexed().single().answers().len() as u64;
    let mut seed = 2100;
    for part in [0, 1, 3, PARTS - 1] {
        for (client_lies, first) in [(true, up), (false, down)] {
            let mut prepare = |tamper| {
                seed += 1;
                models.prepare(liars::bent(client_lies, first + part, tamper), seed)
            };
            let context = format!("client {client_lies}, part {part}");
            for tamper in liars::LENGTHS {
                liars::assert_blamed(
                    client_lies,
                    prepare(tamper),
                    &format!("{context} {tamper:?}"),
                );
            }
            for tamper in [Tamper::Flip(700), Tamper::Repeat, Tamper::Drop] {
                liars::assert_orderly(prepare(tamper), &format!("{context} {tamper:?}"));
            }
        }
    }
}

/// The line breaks between two parts: neither party has a bundle, what the client wrote is none,
/// and the bundles before are good.
#[test]
fn a_line_that_breaks_between_parts_leaves_no_bundle() {
    let models = cut_models();
    for (client_cuts, part) in [(true, 1), (true, PARTS - 1), (false, 1), (false, PARTS - 1)] {
        let planned = models.client.indexed().planned(2).unwrap();
        let heads = match client_cuts {
            true => 1 + planned.packing.uploads().len(),
            false => 1 + planned.packing.answers().len(),
        };
        // In the second bundle of two.
        let message = heads as u64 + PARTS + part;
        let seed = 2300 + 2 * message + u64::from(client_cuts);
        let ends = liars::bent(client_cuts, message, Tamper::Drop);
        let prepared = models.prepare_batch(ends, seed, 2);
        let ((client, client_error), (server, server_error)) = (prepared.client, prepared.server);
        assert!(matches!(client_error, Some(Error::Channel { .. })));
        if client_cuts || part < PARTS - 1 {
            assert!(matches!(server_error, Some(Error::Channel { .. })));
            assert_eq!(server.len(), 1);
        }
        assert_eq!(client.len(), 1);
        for (client, server) in client.iter().zip(server) {
            models.spend(models.decode(client), server, &wide_input(4), seed);
        }
    }
    // What is written of a bundle that breaks cannot be read as one.
    let (client, server) = setups();
    let header = inputs(2390);
    let outcome = both(
        liars::bent(false, 1 + 3 + 2, Tamper::Drop),
        async |ch| {
            let (model, rng) = (&models.client, &mut rng(2390));
            let batch = ClientBatch::start(ch, model, client, &header, 1, rng).await?;
            let mut bytes = room(model);
            let error = batch.next_bundle(ch, &mut bytes).await.unwrap_err();
            assert!(matches!(error, Error::Channel { .. }), "{error}");
            assert!(bytes.len() > 10_000, "shares and two parts were written");
            assert!(ClientBundle::decode(&bytes, model).is_err());
            Ok::<_, Error>(())
        },
        async |ch| server_prepare(ch, &models.server, server, &header, &mut rng(!2390)).await,
    );
    outcome.client.unwrap();
    assert!(outcome.server.is_err());
}

/// Parts in each other's place: found where their lengths differ. Where they do not, the honest
/// server garbles as ever and the client that swapped them has useless choices.
#[test]
fn parts_in_another_order_are_blamed_or_harm_the_liar_alone() {
    let models = cut_models();
    let (client, server) = setups();
    let header = inputs(2400);
    let (up, down) = recorded(|ends| {
        let outcome = models.prepare(ends, 2400);
        assert!(outcome.client.is_ok() && outcome.server.is_ok());
    });
    let serve = |messages: Vec<&Vec<u8>>| {
        let mut channel = liars::replayed(&messages);
        let (model, rng) = (&models.server, &mut rng(!2400));
        block_on(server_prepare(&mut channel, model, server, &header, rng)).map(|_| ())
    };
    let ask = |messages: Vec<&Vec<u8>>| {
        let mut channel = liars::replayed(&messages);
        let (model, rng) = (&models.client, &mut rng(2400));
        block_on(client_prepare(&mut channel, model, client, &header, rng)).map(|_| ())
    };
    fn swapped(messages: &[Vec<u8>], a: usize, b: usize) -> Vec<&Vec<u8>> {
        let mut messages: Vec<&Vec<u8>> = messages.iter().collect();
        messages.swap(a, b);
        messages
    }
    fn blamed(result: Result<(), Error>) {
        let error = result.unwrap_err();
        assert!(matches!(error, Error::PeerMisbehaved { .. }), "{error}");
    }
    let (first, last) = (before(models) as usize, up.len() - 1);
    serve(up.iter().collect()).unwrap();
    // Part 0 has the head, and the last is a rest.
    blamed(serve(swapped(&up, first, first + 1)));
    blamed(serve(swapped(&up, first + 1, last)));
    serve(swapped(&up, first + 1, first + 2)).unwrap();
    let (first, last) = (down.len() - PARTS as usize, down.len() - 1);
    ask(down.iter().collect()).unwrap();
    blamed(ask(swapped(&down, first, first + 1)));
    blamed(ask(swapped(&down, first + 1, last)));
    liars::assert_orderly(
        Outcome {
            client: ask(swapped(&down, first + 1, first + 2)),
            server: Ok::<_, Error>(()),
            traffic: Traffic::default(),
        },
        "two parts of one length",
    );
    // A part that is missing: the next one has another length, or the line is at its end.
    let mut without = up.iter().collect::<Vec<_>>();
    without.remove(up.len() - 2);
    blamed(serve(without));
}

#[test]
fn lies_in_a_piece_online_are_blamed_on_the_peer() {
    let models = cut_models();
    let input = wide_input(5);
    let mut seed = 2500;
    // Pieces of the first layer, the last with openings, and of the second; then the logits.
    for message in [0, 1, 3, 4, 5, 6] {
        let mut infer = |tamper| {
            seed += 1;
            let (client, server) = models.bundles(seed);
            models.infer(liars::bent(false, message, tamper), client, server, &input)
        };
        for tamper in liars::LENGTHS {
            liars::assert_blamed(false, infer(tamper), &format!("{message} {tamper:?}"));
        }
        for tamper in [Tamper::Flip(200), Tamper::Repeat, Tamper::Drop] {
            liars::assert_orderly(infer(tamper), &format!("{message} {tamper:?}"));
        }
    }
}

/// The client keeps its replies until it has read all pieces of a layer, and the server reads none
/// before it has sent them all.
#[test]
fn replies_of_a_layer_come_after_all_of_its_pieces() {
    let models = cut_models();
    let (client, server) = models.bundles(2600);
    let (up, down) = recorded(|ends| {
        let outcome = models.infer(ends, client, server, &wide_input(6));
        assert!(outcome.client.is_ok() && outcome.server.is_ok());
    });
    let layers = &models.client.indexed().layers;
    let online = layers.iter().map(|index| ELEMENT_BYTES * index.online());
    let online: Vec<usize> = online.filter(|&bytes| bytes > 0).collect();
    assert_eq!(up[1..].iter().map(Vec::len).collect::<Vec<_>>(), online);
    assert_eq!(down.len(), PARTS as usize + 1);
}
