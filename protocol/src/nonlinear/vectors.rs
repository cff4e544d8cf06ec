//! Truncation and gadgets against `vectors/nonlinear.json`, which another program made from the
//! equations.

use super::quadratic;
use crate::share;
use pi_core::fp;
use pi_garble::gadget;
use pi_ir::{Kind, P, Polynomial};
use serde_json::Value;

fn cases(name: &str) -> Vec<Value> {
    let vectors: Value =
        serde_json::from_str(include_str!("../../vectors/nonlinear.json")).expect("valid JSON");
    assert_eq!(vectors["p"].as_u64(), Some(P));
    let cases = vectors[name].as_array().expect("a list").clone();
    assert!(cases.len() >= 20, "{} cases of {name}", cases.len());
    cases
}

fn unsigned(value: &Value) -> u64 {
    value.as_u64().expect("a number that is not negative")
}

fn signed(value: &Value) -> i64 {
    value.as_i64().expect("a number")
}

fn small(value: &Value) -> u8 {
    u8::try_from(unsigned(value)).expect("a small number")
}

fn list(value: &Value) -> Vec<u64> {
    let values = value.as_array().expect("a list");
    values.iter().map(unsigned).collect()
}

#[test]
fn truncations_equal_the_vectors() {
    for case in cases("truncation") {
        let (f, bound) = (small(&case["truncate"]), small(&case["bound_bits"]));
        let client = share::truncate_client(unsigned(&case["c"]), f, bound);
        let server = share::truncate_server(unsigned(&case["d"]), f, bound);
        assert_eq!(client, unsigned(&case["client"]), "{case}");
        assert_eq!(server, signed(&case["server"]), "{case}");
        // What the sign circuit gets: low bits of the negative integer, in two's complement.
        let mask = (1 << unsigned(&case["sign_bits"])) - 1;
        assert_eq!(client & mask, unsigned(&case["client_bits"]), "{case}");
        assert_eq!(
            server as u64 & mask,
            unsigned(&case["server_bits"]),
            "{case}"
        );
        let sum = fp::add(client, share::to_field(server));
        assert_eq!(
            u64::from(fp::centre(sum) < 0),
            unsigned(&case["negative"]),
            "{case}"
        );
    }
}

#[test]
fn relus_equal_the_vectors() {
    for case in cases("relu") {
        let of = |name: &str| unsigned(&case[name]);
        let terms = gadget::server_terms(of("h0"), of("h1"), of("v"));
        assert_eq!(terms, (of("keep_row"), of("keep_share")), "{case}");
        let colour = small(&case["colour"]);
        let (row, server) = gadget::server_opening(terms, colour, of("d"));
        assert_eq!((row, server), (of("row"), of("server")), "{case}");
        let pick = small(&case["pick"]);
        let hash = if pick == 1 { of("h1") } else { of("h0") };
        let client = gadget::client_share(hash, row, pick, of("c"), of("u"));
        assert_eq!(client, of("client"), "{case}");
        assert_eq!(
            fp::centre(fp::add(client, server)),
            signed(&case["x"]).max(0)
        );
    }
}

#[test]
fn squares_equal_the_vectors() {
    for case in cases("square") {
        let of = |name: &str| unsigned(&case[name]);
        let (mut inputs, mut factors) = (Vec::new(), Vec::new());
        quadratic::client_inputs(Kind::Square, of("c"), &mut inputs);
        quadratic::server_factors(None, of("d0"), &mut factors);
        assert_eq!((inputs, factors), (vec![of("c")], vec![of("d0")]));
        let (opened, server) = quadratic::server_open(None, of("d"), of("d0"), of("v"));
        assert_eq!((opened, server), (of("opened"), of("server")), "{case}");
        let client = quadratic::client_share(Kind::Square, of("c"), of("u"), opened);
        assert_eq!(client, of("client"), "{case}");
        let x = signed(&case["x"]);
        assert_eq!(fp::centre(fp::add(client, server)), x * x);
    }
}

#[test]
fn polynomials_equal_the_vectors() {
    for case in cases("polynomial") {
        let of = |name: &str| unsigned(&case[name]);
        let [a, b, k, x] = ["a", "b", "k", "x"].map(|name| signed(&case[name]));
        let polynomial = Polynomial { a, b, k };
        let (mut inputs, mut factors) = (Vec::new(), Vec::new());
        quadratic::client_inputs(Kind::Polynomial, of("c"), &mut inputs);
        quadratic::server_factors(Some(&polynomial), of("d0"), &mut factors);
        assert_eq!(inputs, list(&case["inputs"]), "{case}");
        assert_eq!(factors, list(&case["factors"]), "{case}");
        let sum = |values: Vec<u64>| values.into_iter().fold(0, fp::add);
        let (u, v) = (sum(list(&case["u"])), sum(list(&case["v"])));
        let (opened, server) = quadratic::server_open(Some(&polynomial), of("d"), of("d0"), v);
        assert_eq!((opened, server), (of("opened"), of("server")), "{case}");
        let client = quadratic::client_share(Kind::Polynomial, of("c"), u, opened);
        assert_eq!(client, of("client"), "{case}");
        assert_eq!(fp::centre(fp::add(client, server)), a * x * x + b * x + k);
    }
}
