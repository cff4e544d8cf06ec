//! Hostile bytes for the readers of values: an error, or examples of the shape that is asked for.

use pi_fuzz::edited;
use pi_ir::value_file::{Column, read_labels};
use pi_ir::{Shape, ValueFile};
use std::path::Path;

/// Shapes that the valid files have, and others.
const SHAPES: [Shape; 4] = [
    Shape::new(3, 1, 1),
    Shape::new(2, 1, 3),
    Shape::new(1, 1, 1),
    Shape::new(1, 2, 2),
];

/// Reads bytes as the file of this name, and all that a client or a compiler would of it.
fn read(name: &str, bytes: &[u8], label: Option<&Column>) -> bool {
    let Ok(file) = ValueFile::read(Path::new(name), bytes, label) else {
        return false;
    };
    for shape in SHAPES {
        let Ok(count) = file.count(shape) else {
            assert!(file.count(shape).is_err());
            continue;
        };
        assert!(count > 0);
        for index in [0, count / 2, count - 1] {
            let values = file.example(shape, index).expect("it is one of them");
            assert_eq!(values.len(), shape.len());
            if let Ok(pixels) = file.bytes(shape, index) {
                assert!(pixels.iter().map(|&p| f64::from(p)).eq(values));
            }
        }
    }
    true
}

fn array(descr: &str, order: &str, shape: &str, elements: &[u8]) -> Vec<u8> {
    let header = format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}\n");
    let mut bytes = b"\x93NUMPY\x01\x00".to_vec();
    bytes.extend_from_slice(&(header.len() as u16).to_le_bytes());
    bytes.extend_from_slice(header.as_bytes());
    bytes.extend_from_slice(elements);
    bytes
}

#[test]
fn array_reader_survives_any_bytes() {
    let valid = [
        array("<f4", "False", "(2, 3)", &[63; 24]),
        array("<i2", "True", "(2, 2, 3)", &[1; 24]),
        array("|u1", "False", "(4,)", &[9; 4]),
    ];
    for file in &valid {
        assert!(read("valid.npy", file, None));
    }
    bolero::check!().for_each(|input: &[u8]| {
        read("input.npy", input, None);
        let (first, changes) = input.split_first().unwrap_or((&0, &[]));
        let bytes = edited(&valid[usize::from(*first) % valid.len()], changes);
        read("input.npy", &bytes, None);
        let _ = read_labels(Path::new("labels.npy"), &bytes[..]);
    });
}

#[test]
fn table_reader_survives_any_bytes() {
    let valid: [(&[u8], Option<Column>); 3] = [
        (b"1,2,3\n4,5e-1,-6\n", None),
        (
            b"a,\"b \"\"c\"\"\",d,e\r\n1,2,x,3\r\n",
            Some(Column::Name("d".into())),
        ),
        (b"# comment\n1;2;3;\"word\"\n", Some(Column::Number(-1))),
    ];
    for (file, label) in &valid {
        assert!(read("valid.csv", file, label.as_ref()));
    }
    bolero::check!().for_each(|input: &[u8]| {
        read("input.csv", input, None);
        let (first, changes) = input.split_first().unwrap_or((&0, &[]));
        let (file, label) = &valid[usize::from(*first) % valid.len()];
        let bytes = edited(file, changes);
        read("input.csv", &bytes, label.as_ref());
        let _ = read_labels(Path::new("labels.txt"), &bytes[..]);
    });
}
