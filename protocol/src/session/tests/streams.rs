//! Random streams: each bundle and each task has its own.

use super::*;

/// Every task has a generator of its own, so that neither order nor number of threads shows in a
/// message.
#[test]
fn messages_do_not_depend_on_the_number_of_threads() {
    let models = edge_models();
    let messages = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
        let run = |ends| {
            let outcome = models.prepare(ends, 910);
            assert!(outcome.client.is_ok() && outcome.server.is_ok());
        };
        pool.unwrap().install(|| recorded(run))
    };
    assert!(messages(1) == messages(5));
}

#[test]
fn two_exchanges_share_nothing() {
    let models = edge_models();
    let (client, server) = setups();
    // The generators repeat; only the index in the header differs.
    let messages = |index| {
        let header = inputs(index);
        recorded(|ends| {
            let outcome = both(
                ends,
                async |ch| client_prepare(ch, &models.client, client, &header, &mut rng(1)).await,
                async |ch| server_prepare(ch, &models.server, server, &header, &mut rng(2)).await,
            );
            assert!(outcome.client.is_ok() && outcome.server.is_ok());
        })
    };
    let (first, second) = (messages(900), messages(901));
    for (a, b) in [(first.0, second.0), (first.1, second.1)] {
        for (a, b) in a.iter().zip(&b) {
            let equal = a.iter().zip(b).filter(|(a, b)| a == b).count();
            // Independent bytes agree once in 256, top bytes of field elements once in 16: once in
            // 90 over eight of them.
            assert!(equal < a.len() / 45 + 32, "{equal} of {}", a.len());
        }
    }
}
