//! Set-up: its cost, its stored form.

use super::*;

#[test]
fn setup_costs_what_the_formula_says_and_survives_storage() {
    let setups = exchange_setup(line(), 1);
    assert_eq!(setups.traffic, setup_traffic());
    let (client, server) = (setups.client.unwrap(), setups.server.unwrap());
    assert_eq!(client.id(), server.id());
    let stored = client.encode();
    assert_eq!(ClientSetup::decode(&stored).unwrap().id(), client.id());
    for wrong in [&stored[..stored.len() - 1], &stored[1..], &[]] {
        let error = ClientSetup::decode(wrong).unwrap_err();
        assert!(matches!(error, Error::Stored { .. }), "{error}");
    }
    let error = ServerSetup::decode(&stored).unwrap_err();
    assert!(matches!(error, Error::Stored { .. }), "{error}");
    let stored = server.encode();
    assert_eq!(ServerSetup::decode(&stored).unwrap().id(), server.id());
    let error = ServerSetup::decode(&stored[..1000]).unwrap_err();
    assert!(matches!(error, Error::Stored { .. }), "{error}");
}
