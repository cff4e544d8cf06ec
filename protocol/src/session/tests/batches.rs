//! Batches of several bundles: spent one by one, independent, and kept as far as they came.

use super::*;

#[test]
fn bundles_of_a_batch_are_spent_one_by_one_in_any_order() {
    let mut circuits = vec![edge_circuit()];
    circuits.extend((3..8).map(|seed| random::circuit(seed, &random::Options::default())));
    for (seed, (circuit, weights)) in (1000..).zip(circuits) {
        let input = random::input(&circuit, seed);
        let input = interpret::quantise(&circuit, &input).unwrap();
        let models = Models::with_batches(circuit, weights, &[2, 3]);
        assert_eq!(models.client.batches(9), [3, 3, 3]);
        assert_eq!(models.client.batches(6), [3, 3]);
        assert_eq!(models.server.batches(6), [3, 3]);
        assert_eq!(models.client.batches(3 + 2), [3, 2]);
        assert_eq!(models.client.batches(4), [3, 1]);
        assert!(models.client.batches(0).is_empty());
        for cost in models.client.cost().unwrap().batches {
            // Headers of earlier batches of the seed are not used again.
            let first = 10 * seed + 5 * cost.bundles as u64;
            let prepared = models.prepare_batch(line(), first, cost.bundles);
            assert_eq!(prepared.traffic, cost.offline, "seed {seed}");
            let (client, server) = (prepared.client, prepared.server);
            assert!(client.1.is_none() && server.1.is_none());
            let client: Vec<_> = client.0.iter().map(|bytes| models.decode(bytes)).collect();
            assert_eq!(client.len(), cost.bundles);
            let ids: Vec<_> = client.iter().map(ClientBundle::id).collect();
            let others: Vec<_> = server.0.iter().map(ServerBundle::id).collect();
            assert_eq!(ids, others);
            assert!(ids.windows(2).all(|pair| pair[0] != pair[1]));
            let pairs = client.into_iter().zip(server.0).rev();
            for (client, server) in pairs {
                let server = stored(&models.server, &server);
                let server = ServerBundle::read(&server[..], &models.server).unwrap();
                models.spend(client, server, &input, seed);
            }
        }
    }
}

/// Masks, offsets and shares of bundles that share ciphertexts are independent.
#[test]
fn bundles_of_a_batch_share_no_secret() {
    let (circuit, weights) = edge_circuit();
    let models = Models::with_batches(circuit, weights, &[3]);
    let prepared = models.prepare_batch(line(), 1100, 3);
    let client = prepared.client.0.iter();
    let client: Vec<_> = client.map(|bytes| models.decode(bytes)).collect();
    let server = prepared.server.0;
    for (i, j) in [(0, 1), (0, 2), (1, 2)] {
        let (a, b) = (&client[i], &client[j]);
        let differ = |x: &[u64], y: &[u64]| x.iter().zip(y).all(|(x, y)| x != y);
        assert!(differ(&a.input_mask, &b.input_mask));
        assert!(differ(&a.layers[0].c, &b.layers[0].c));
        assert!(differ(&a.layers[0].next, &b.layers[0].next));
        assert!(differ(&a.layers[0].u, &b.layers[0].u));
        let (a, b) = (&server[i], &server[j]);
        assert!(differ(&a.layers[0].offset, &b.layers[0].offset));
        assert!(differ(&a.layers[0].d0, &b.layers[0].d0));
        assert!(*a.label_seed != *b.label_seed);
        assert!(a.delta.block().to_bytes() != b.delta.block().to_bytes());
    }
}

/// Bundles that were complete before a batch broke are good; the others do not exist.
#[test]
fn a_batch_that_breaks_keeps_the_bundles_before() {
    let (circuit, weights) = edge_circuit();
    let models = Models::with_batches(circuit, weights, &[3]);
    let input = edge_input();
    let packing = models.client.indexed().planned(3).unwrap();
    let before = 1 + packing.packing.uploads().len() as u64;
    let mut ends = line();
    ends.0.tamper(before + 1, Tamper::Drop);
    let prepared = models.prepare_batch(ends, 1200, 3);
    let ((client, client_error), (server, server_error)) = (prepared.client, prepared.server);
    assert!(client_error.is_some() && server_error.is_some());
    assert_eq!((client.len(), server.len()), (1, 1));
    for (client, server) in client.iter().zip(server) {
        models.spend(models.decode(client), server, &input, 1200);
    }
}

#[test]
fn batches_without_a_plan_are_refused() {
    let (circuit, weights) = edge_circuit();
    let models = Models::with_batches(circuit, weights, &[3]);
    let prepared = models.prepare_batch(line(), 1300, 2);
    for error in [prepared.client.1, prepared.server.1] {
        assert!(matches!(error, Some(Error::ApiMisuse { .. })), "{error:?}");
    }
    assert_eq!(prepared.traffic, Traffic::default());
}

/// A bundle that was prepared alone and one of a batch are of the same model, and of different
/// plans.
#[test]
fn headers_name_the_plan() {
    let (circuit, weights) = edge_circuit();
    let models = Models::with_batches(circuit, weights, &[3]);
    let alone = models.bundles(1400).0;
    let batch = models.prepare_batch(line(), 1401, 3).client.0;
    let batch = models.decode(&batch[0]);
    assert_eq!(alone.header().model, batch.header().model);
    assert_ne!(alone.header().plan, batch.header().plan);
}
