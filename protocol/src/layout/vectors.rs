//! The index maps against `vectors/packing.json`, which another program derived by brute force.

use super::oracle::{circuit_of, conv};
use super::*;
use pi_ir::{Layout, P, Padding, Upload};
use serde_json::Value;

fn vectors() -> Value {
    serde_json::from_str(include_str!("../../vectors/packing.json")).expect("valid JSON")
}

fn number(value: &Value) -> i64 {
    value.as_i64().expect("an integer")
}

fn numbers(value: &Value) -> Vec<i64> {
    value
        .as_array()
        .expect("an array")
        .iter()
        .map(number)
        .collect()
}

fn small(value: &Value) -> u32 {
    u32::try_from(number(value)).expect("a small number")
}

fn pair(value: &Value) -> (u32, u32) {
    (small(&value[0]), small(&value[1]))
}

fn padding(value: &Value) -> Padding {
    Padding {
        top: small(&value[0]),
        left: small(&value[1]),
        bottom: small(&value[2]),
        right: small(&value[3]),
    }
}

fn packing(case: &Value) -> Packing {
    let l = &case["layout"];
    let layout = Layout {
        group: small(&l["group"]),
        stride: pair(&l["stride"]),
        padding: padding(&l["padding"]),
        window: pair(&l["window"]),
        tile: pair(&l["tile"]),
        row_stride: small(&l["row_stride"]),
        block: small(&l["block"]),
        blocks: small(&l["blocks"]),
    };
    let answers = case["answers"].as_array().expect("answers");
    let convs = answers
        .iter()
        .map(|a| {
            let c = &a["conv"];
            conv(
                0,
                small(&c["out"]),
                pair(&c["kernel"]),
                layout.stride,
                padding(&c["padding"]),
            )
        })
        .collect();
    let shape = &case["shape"];
    let shape = Shape::new(small(&shape[0]), small(&shape[1]), small(&shape[2]));
    let plan = Plan {
        ring_degree: small(&case["degree"]),
        bundles: small(&case["bundles"]),
        uploads: vec![Upload {
            tensor: TensorId(0),
            layout,
        }],
        answers: answers
            .iter()
            .enumerate()
            .map(|(term, a)| OutputPacking {
                layer: 0,
                term: term as u32,
                upload: 0,
                merge: small(&a["merge"]),
                output_blocks: small(&a["output_blocks"]),
            })
            .collect(),
    };
    Packing::in_any_ring(&mut Budget::new(), &circuit_of(shape, &[convs]), &plan)
        .unwrap_or_else(|faults| panic!("{}: {faults:?}", case["name"]))
}

#[test]
fn classes_equal_the_vectors() {
    let vectors = vectors();
    assert_eq!(number(&vectors["p"]), P as i64);
    let cases = vectors["cases"].as_array().expect("cases");
    assert!(cases.len() >= 7);
    for case in cases {
        let packing = packing(case);
        let upload = &packing.uploads()[0];
        let want = case["slots"].as_array().expect("ciphertexts");
        assert_eq!(upload.ciphertexts(), want.len(), "{}", case["name"]);
        for (index, want) in want.iter().enumerate() {
            let got: Vec<i64> = upload
                .roles(index)
                .into_iter()
                .map(|role| match role {
                    CoefficientRole::Unused => -1,
                    CoefficientRole::Zero => -2,
                    CoefficientRole::Free(e) => 2 * i64::from(e),
                    CoefficientRole::Repeat(e) => 2 * i64::from(e) + 1,
                })
                .collect();
            assert_eq!(got, numbers(want), "{}, ciphertext {index}", case["name"]);
        }
    }
}

#[test]
fn useful_coefficients_equal_the_vectors() {
    for case in vectors()["cases"].as_array().expect("cases") {
        let packing = packing(case);
        for (answer, want) in packing
            .answers()
            .iter()
            .zip(case["answers"].as_array().expect("answers"))
        {
            let want = want["useful"].as_array().expect("ciphertexts");
            assert_eq!(answer.ciphertexts(), want.len(), "{}", case["name"]);
            for (index, want) in want.iter().enumerate() {
                let got: Vec<(u32, u32)> = answer
                    .useful(&packing.uploads()[0], index)
                    .iter()
                    .map(|u| (u.coefficient, u.element))
                    .collect();
                let want: Vec<(u32, u32)> =
                    want.as_array().expect("pairs").iter().map(pair).collect();
                assert_eq!(got, want, "{}, ciphertext {index}", case["name"]);
            }
        }
    }
}

#[test]
fn kernels_give_the_results_of_the_vectors() {
    for case in vectors()["cases"].as_array().expect("cases") {
        let packing = packing(case);
        let field = |values: &Value| {
            numbers(values)
                .into_iter()
                .map(|x| x as u64)
                .collect::<Vec<_>>()
        };
        let tensor = field(&case["tensor"]);
        for (index, answer) in case["answers"]
            .as_array()
            .expect("answers")
            .iter()
            .enumerate()
        {
            let weights = numbers(&answer["weights"]);
            let got = super::oracle::products(&packing, index, &tensor, &weights, 1);
            assert_eq!(got, field(&answer["result"]), "{}", case["name"]);
        }
    }
}
