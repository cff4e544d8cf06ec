//! Bundles and models that do not belong together, or are not sound.

use super::*;

#[test]
fn bundles_of_another_model_or_exchange_are_refused() {
    let models = edge_models();
    let (circuit, weights) = random::circuit(3, &random::Options::default());
    let others = Models::new(circuit, weights);
    let outcome = models.prepare(line(), 800);
    let (client, server) = (outcome.client.unwrap(), outcome.server.unwrap());
    let stored = (client, stored(&models.server, &server));
    let client = models.decode(&stored.0);
    let wrong = [
        ClientBundle::decode(&stored.0, &others.client).err(),
        ServerBundle::read(&stored.1[..], &others.server).err(),
    ];
    for error in wrong {
        assert!(matches!(error, Some(Error::ApiMisuse { .. })), "{error:?}");
    }
    let mut damaged = stored.0.to_vec();
    damaged[5000] ^= 1;
    let wrong = [
        ClientBundle::decode(&damaged, &models.client).err(),
        ClientBundle::decode(&stored.1, &models.client).err(),
        ClientBundle::decode(&stored.0[..400], &models.client).err(),
        ClientBundle::decode(&[], &models.client).err(),
        ServerBundle::read(&stored.0[..], &models.server).err(),
    ];
    for error in wrong {
        assert!(matches!(error, Some(Error::Stored { .. })), "{error:?}");
    }

    // The two halves of different exchanges: refused before a label leaves the server.
    let (_, server) = models.bundles(801);
    let input = edge_input();
    let outcome = both(
        line(),
        async |ch| client_infer(ch, &models.client, client, &input, false).await,
        async |ch| {
            let message = ch.receive(1 << 20).await?;
            let request = OnlineRequest::decode(&message, &models.server)?;
            server_infer(ch, &models.server, server, request).await
        },
    );
    assert!(matches!(
        outcome.server,
        Err(Error::PeerIncompatible { .. })
    ));
    assert!(matches!(outcome.client, Err(Error::Channel { .. })));
    assert_eq!(outcome.traffic.bytes_down, 0);

    let (client, _) = models.bundles(802);
    let outcome = both(
        line(),
        async |ch| client_infer(ch, &models.client, client, &input[1..], false).await,
        async |_| (),
    );
    assert!(matches!(outcome.client, Err(Error::ApiMisuse { .. })));
}

#[test]
fn unsound_models_are_refused() {
    let (circuit, weights) = edge_circuit();
    let file = WeightsFile {
        salt: [0; 32],
        weights,
    };
    let plan = default_plan(&circuit, 1).unwrap();
    let distance = flooding(&circuit, [&plan]).unwrap().total;
    let good = Artifact::new(circuit, plan, file.digest(), distance);
    let refused = |change: fn(&mut Artifact)| {
        let mut artifact = good.clone();
        change(&mut artifact);
        let error = ClientModel::new(artifact).unwrap_err();
        assert!(matches!(error, Error::ApiMisuse { .. }), "{error}");
    };
    refused(|a| a.plan.bundles = 2);
    refused(|a| a.batches = vec![a.plan.clone()]);
    refused(|a| a.plan.answers.clear());
    refused(|a| a.flooding_log2 -= 0.001);
    refused(|a| a.flooding_log2 = f64::NAN);
    let mut unsound = good.circuit.clone().into_inner();
    unsound.layers[0].bound_bits = 90;
    assert!(verify::circuit(unsound).is_err());
    let mut other = file;
    other.weights.layers[0].bias[0] += 1;
    let error = ServerModel::new(good, other).unwrap_err();
    assert!(matches!(error, Error::ApiMisuse { .. }), "{error}");
}

/// A client finds the fault of a plan for batches when it asks for such a batch, and before it says
/// anything; a server finds it when it loads its model.
#[test]
fn plans_for_batches_are_derived_on_first_use() {
    let (circuit, weights) = edge_circuit();
    let file = WeightsFile {
        salt: [0; 32],
        weights,
    };
    let plans: Vec<_> = [1, 2, 3].map(|n| default_plan(&circuit, n).unwrap()).into();
    let distance = flooding(&circuit, &plans).unwrap().total;
    let mut artifact = Artifact::new(circuit, plans[0].clone(), file.digest(), distance);
    artifact.batches = plans[1..].to_vec();
    artifact.batches[1].uploads[0].layout.block = 1;

    let client = ClientModel::new(artifact.clone()).unwrap();
    assert_eq!(client.batches(6), [3, 3]);
    client.check_batches(&[1, 2, 2]).unwrap();
    let refused = |outcome: Result<(), Error>| {
        let error = outcome.unwrap_err().to_string();
        assert!(error.contains("plan for 3 bundles: upload 0"), "{error}");
    };
    refused(client.check_batches(&[1, 3]));
    refused(client.cost().map(|_| ()));
    refused(ServerModel::new(artifact, file).map(|_| ()));
    let missing = client.check_batches(&[4]).unwrap_err().to_string();
    assert!(missing.contains("no plan for a batch of 4"), "{missing}");
}

/// A trace is secret, and made only on request; without one the result is the same.
#[test]
fn traces_are_made_on_request_only() {
    let models = edge_models();
    let input = edge_input();
    let answers = [false, true].map(|trace| {
        let (client, server) = models.bundles(920);
        let outcome = both(
            line(),
            async |ch| client_infer(ch, &models.client, client, &input, trace).await,
            async |ch| {
                let message = ch.receive(1 << 20).await?;
                let request = OnlineRequest::decode(&message, &models.server)?;
                server_infer(ch, &models.server, server, request).await
            },
        );
        outcome.client.unwrap()
    });
    assert!(answers[0].trace.is_none() && answers[1].trace.is_some());
    assert_eq!(answers[0].answer, answers[1].answer);
}
