use super::*;

/// A file as NumPy 2.4.6 writes it: the header is padded with spaces to a multiple of 64 bytes.
fn file(version: u8, header: &str, elements: &[u8]) -> Vec<u8> {
    let width = if version == 1 { 2 } else { 4 };
    let before = 8 + width;
    let length = (before + header.len() + 1).next_multiple_of(64) - before;
    let mut bytes = [MAGIC, &[version, 0][..]].concat();
    bytes.extend_from_slice(&(length as u32).to_le_bytes()[..width]);
    bytes.extend_from_slice(format!("{header:<width$}\n", width = length - 1).as_bytes());
    bytes.extend_from_slice(elements);
    bytes
}

fn of(descr: &str, shape: &str, elements: &[u8]) -> Result<Array, Error> {
    let header = format!("{{'descr': '{descr}', 'fortran_order': False, 'shape': {shape}, }}");
    Array::parse(file(1, &header, elements))
}

fn all(array: &Array) -> Vec<f64> {
    array.example(1, 0)
}

fn refused(bytes: Vec<u8>, says: &str) {
    let error = Array::parse(bytes).unwrap_err().to_string();
    assert!(error.contains(says), "{says:?}: {error}");
}

/// The bytes that NumPy writes of
/// `numpy.array([[1.5, -2.0, 0.25], [3, 4, 5]], dtype='<f4')`.
#[test]
fn a_file_of_numpy_is_read() {
    let mut bytes = b"\x93NUMPY\x01\x00v\x00{'descr': '<f4', 'fortran_order': False, \
        'shape': (2, 3), }                                                          \n"
        .to_vec();
    assert_eq!(bytes.len(), 128);
    bytes.extend_from_slice(
        b"\x00\x00\xc0?\x00\x00\x00\xc0\x00\x00\x80>\x00\x00@@\x00\x00\x80@\x00\x00\xa0@",
    );
    let array = Array::parse(bytes).unwrap();
    let three = Shape::new(3, 1, 1);
    assert_eq!(array.count(three).unwrap(), 2);
    assert_eq!(array.example(2, 0), [1.5, -2.0, 0.25]);
    assert_eq!(array.example(2, 1), [3.0, 4.0, 5.0]);
    // To the byte what this module writes, too.
    assert_eq!(
        Array::file("<f4", &[2, 3], &array.bytes[128..]),
        array.bytes
    );
    assert!(!array.is_integer());
}

/// `numpy.asfortranarray(numpy.arange(6, dtype='<i2').reshape(1, 2, 3) - 3)`, and in the other
/// order the same array.
#[test]
fn both_orders_give_the_same_values() {
    let header = "{'descr': '<i2', 'fortran_order': True, 'shape': (1, 2, 3), }";
    let elements = [0xfd, 0xff, 0, 0, 0xfe, 0xff, 1, 0, 0xff, 0xff, 2, 0];
    for version in [1, 2, 3] {
        let array = Array::parse(file(version, header, &elements)).unwrap();
        assert_eq!(all(&array), [-3.0, -2.0, -1.0, 0.0, 1.0, 2.0]);
    }
    // Two examples of two channels and three samples, the first axis fastest.
    let header = header
        .replace("(1, 2, 3)", "(2, 2, 3)")
        .replace("<i2", "|u1");
    let elements = [0, 6, 3, 9, 1, 7, 4, 10, 2, 8, 5, 11];
    let array = Array::parse(file(1, &header, &elements)).unwrap();
    let signal = Shape::new(2, 1, 3);
    assert_eq!(array.count(signal).unwrap(), 2);
    assert_eq!(array.example(2, 0), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    assert_eq!(array.example(2, 1), [6.0, 7.0, 8.0, 9.0, 10.0, 11.0]);
}

#[test]
fn elements_of_every_type_have_their_values() {
    let read = |descr: &str, elements: &[u8]| all(&of(descr, "()", elements).unwrap())[0];
    assert_eq!(read("|b1", &[1]), 1.0);
    assert_eq!(read("|u1", &[0xfe]), 254.0);
    assert_eq!(read("|i1", &[0xfe]), -2.0);
    assert_eq!(read("<u2", &[1, 0xff]), 65_281.0);
    assert_eq!(read("<i2", &[1, 0xff]), -255.0);
    assert_eq!(read("<u4", &[0, 0, 0, 0x80]), 2_147_483_648.0);
    assert_eq!(read("<i4", &[0, 0, 0, 0x80]), -2_147_483_648.0);
    assert_eq!(read("<u8", &[0xff; 8]), 18_446_744_073_709_551_616.0);
    assert_eq!(read("<i8", &[0xff; 8]), -1.0);
    assert_eq!(read("<f4", &0.1f32.to_le_bytes()), f64::from(0.1f32));
    assert_eq!(read("<f8", &0.1f64.to_le_bytes()), 0.1);
    assert!(read("<f8", &f64::NAN.to_le_bytes()).is_nan());
}

#[test]
fn one_example_or_several_of_the_networks_shape() {
    let count = |shape: &str, expected: Shape| {
        let sides = shape.trim_matches(['(', ')']).split(',');
        let elements = sides.filter_map(|side| side.trim().parse::<usize>().ok());
        let elements: usize = elements.product();
        of("|u1", shape, &vec![0; elements])
            .unwrap()
            .count(expected)
    };
    let signal = Shape::new(2, 1, 5);
    for shape in ["(2, 5)", "(1, 2, 5)", "(2, 1, 5)", "(1, 2, 1, 5)"] {
        assert_eq!(count(shape, signal).unwrap(), 1, "{shape}");
    }
    assert_eq!(count("(7, 2, 5)", signal).unwrap(), 7);
    assert_eq!(count("(2, 2, 5)", signal).unwrap(), 2);
    let row = Shape::new(5, 1, 1);
    assert_eq!(count("(5,)", row).unwrap(), 1);
    assert_eq!(count("(5, 5)", row).unwrap(), 5);
    assert_eq!(count("(3,)", Shape::new(1, 1, 1)).unwrap(), 3);
    for (shape, expected, says) in [
        (
            "(5, 2)",
            signal,
            "the shape [5, 2], and the network reads 2x1x5: its axes",
        ),
        ("(4, 5, 2)", signal, "transpose it"),
        (
            "(4, 6)",
            row,
            "the shape [4, 6], and the network reads 5x1x1",
        ),
        ("(10,)", signal, "the shape [10]"),
        ("(0, 5)", row, "there is no example in it"),
        ("()", row, "the shape []"),
    ] {
        let error = count(shape, expected).unwrap_err().to_string();
        assert!(error.contains(says), "{says:?}: {error}");
    }
}

#[test]
fn labels_are_lists_of_whole_numbers() {
    let labels = of("<i2", "(3, 1)", &[2, 0, 0, 0, 7, 0]).unwrap().labels();
    assert_eq!(labels.unwrap(), ["2", "0", "7"]);
    let of_reals = of("<f4", "(1,)", &[0; 4]).unwrap().labels().unwrap_err();
    assert!(of_reals.to_string().contains("an array of real numbers"));
    assert!(of("|u1", "(2, 2)", &[0; 4]).unwrap().labels().is_err());
}

#[test]
fn what_is_no_array_of_numbers_is_explained() {
    let header = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }";
    let whole = file(1, header, &[0; 8]);
    assert!(Array::parse(whole.clone()).is_ok());
    for length in 0..whole.len() {
        refused(whole[..length].to_vec(), "this is no NumPy array");
    }
    refused(
        [&whole[..], &[0]].concat(),
        "takes 8 bytes of elements and the file has 9",
    );
    refused(whole[..whole.len() - 1].to_vec(), "and the file has 7");
    refused(b"hello, world".to_vec(), "save it with numpy.save");
    refused(file(4, header, &[0; 8]), "version 4.0");
    refused(file(1, "hello", &[]), "its header is \"hello\"");
    for (from, to, says) in [
        (
            "<f4",
            ">f4",
            "little-endian order of bytes is read; save array.astype('<f4')",
        ),
        ("<f4", "|O", "'<f4'"),
        ("<f4", "<U7", "whole numbers, and reals of 4 or 8 bytes"),
        ("<f4", "", "save array.astype"),
        ("'<f4'", "[('a', '<f4')]", "records of several fields"),
        ("False", "0", "its header is"),
        ("(2,)", "(-2,)", "its header is"),
        ("(2,)", "2", "its header is"),
        ("(2,)", "(1, 2", "its header is"),
        ("'descr'", "'description'", "its header is"),
        (
            "(2,)",
            "(99999999999, 99999999999)",
            "more elements than memory",
        ),
        ("(2,)", "(99999999999999999999,)", "its header is"),
        ("(2,)", "(1000000000000,)", "takes 4000000000000 bytes"),
        (", }", ", } {", "its header is"),
        ("'shape': (2,), ", "", "its header is"),
    ] {
        refused(file(1, &header.replace(from, to), &[0; 8]), says);
    }
    let axes = format!("({})", "1,".repeat(AXES + 1));
    refused(
        file(1, &header.replace("(2,)", &axes), &[0; 4]),
        "its header is",
    );
    // A header longer than any, and one that the file does not contain.
    let mut long = file(2, header, &[0; 8]);
    long[8..12].copy_from_slice(&u32::MAX.to_le_bytes());
    refused(long, "its header has 4294967295 bytes, the limit is 10000");
    let mut absent = file(1, header, &[]);
    absent[8..10].copy_from_slice(&9_999u16.to_le_bytes());
    refused(absent, "it ends in its header");
}
