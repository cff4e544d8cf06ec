use super::*;

fn parse(text: &str, label: Option<&str>) -> Result<Table, Error> {
    let label = label.map(|label| label.parse().expect("any text is a column"));
    Table::parse(text.as_bytes(), label.as_ref())
}

fn refused(text: &str, label: Option<&str>, says: &str) {
    let error = parse(text, label).unwrap_err().to_string();
    assert!(error.contains(says), "{says:?}: {error}");
}

#[test]
fn rows_are_examples_with_and_without_names() {
    let two = Shape::new(2, 1, 1);
    for text in [
        "1.5,-2\n3e2, 4\n",
        "a,b\n1.5,-2\n3e2,4",
        "\u{feff}a,b\r\n\r\n1.5,-2\r\n300,4\r\n",
        "# saved by a program\na;b\n1.5;-2\n300;4\n",
        "a\tb\n1.5\t -2\n300\t4\n",
        "\"a\", \"b, c\"\n\"1.5\",\"-2\"\n300 , 4\n",
    ] {
        let table = parse(text, None).unwrap();
        assert_eq!(table.count(two).unwrap(), 2, "{text:?}");
        assert_eq!(table.row(0), [1.5, -2.0], "{text:?}");
        assert_eq!(table.row(1), [300.0, 4.0], "{text:?}");
        assert!(table.labels().is_empty());
    }
}

#[test]
fn a_column_may_have_labels() {
    let flowers = "width,kind,length\n1,setosa,2\n3,\"the \"\"other\"\"\",4\n";
    for column in ["kind", "1", "-2"] {
        let table = parse(flowers, Some(column)).unwrap();
        assert_eq!(table.count(Shape::new(2, 1, 1)).unwrap(), 2);
        assert_eq!(table.row(1), [3.0, 4.0]);
        assert_eq!(table.labels(), ["setosa", "the \"other\""]);
    }
    // Without names, the first line is a row.
    let table = parse("setosa,1\nother,2\n", Some("0")).unwrap();
    assert_eq!(table.labels(), ["setosa", "other"]);
    refused(
        flowers,
        Some("kinds"),
        "no column \"kinds\"; its first line is \"width, kind",
    );
    refused(flowers, Some("3"), "no column 3; it has 3, from 0");
    refused(flowers, Some("-4"), "no column -4");
    let labels = parse("2\n0\n", Some("0")).unwrap().into_only_labels();
    assert_eq!(labels.unwrap(), ["2", "0"]);
    let error = parse("1,2\n", Some("0")).unwrap().into_only_labels();
    assert!(
        error
            .unwrap_err()
            .to_string()
            .contains("has one column, and this has 2")
    );
}

#[test]
fn what_is_no_table_of_numbers_is_named_by_line_and_column() {
    refused("", None, "no rows");
    refused("a,b\n", None, "its only line, \"a,b\", is taken for names");
    refused("1.5 2.5\n", None, "separated by commas");
    refused(
        "1,2\n3\n",
        None,
        "line 2: 1 values, and the first line has 2",
    );
    refused(
        "a,b\n\n1,2,3\n",
        None,
        "line 3: 3 values, and the first line has 2",
    );
    refused("1,2\n3,\n", None, "line 2: column 1 is empty");
    refused("1,2\n3,four\n", None, "line 2: column 1 is \"four\"");
    // No line of names: it would hide an example.
    refused("1,?\n3,4\n", None, "line 1: column 1 is \"?\"");
    refused("0,1,2\n3.5,4,5\n", None, "the first line counts 0, 1, 2");
    assert_eq!(parse("0.0,1,2\n3.5,4,5\n", None).unwrap().rows, 2);
    refused(
        "1.5\n1 2\n",
        None,
        "\"1 2\", and values are numbers with a point",
    );
    refused(
        "1,2\nnan,3\n",
        None,
        "line 2: column 0 is nan, and values are finite",
    );
    refused(
        "1,2\n3,1e999\n",
        None,
        "column 1 is 1e999, and values are finite",
    );
    refused("\"1,2\n", None, "line 1: a quote is not closed");
    refused("1,\"2\"x\n", None, "follows a closing quote");
    let error = Table::parse(b"\xff\xfe1\x00", None).unwrap_err();
    assert!(error.to_string().contains("not text in UTF-8"), "{error}");
}

#[test]
fn rows_of_another_length_are_explained() {
    let misfit = |text: &str, shape: Shape| {
        let error = parse(text, None).unwrap().count(shape).unwrap_err();
        error.to_string()
    };
    let error = misfit("1,2,3\n", Shape::new(2, 1, 1));
    assert!(
        error.contains("has 3 values, and the network reads 2x1x1"),
        "{error}"
    );
    assert!(error.contains("--label-column"), "{error}");
    let error = misfit("1,2\n1,2\n1,2\n1,2\n", Shape::new(2, 1, 4));
    assert!(error.contains("a row is a whole example"), "{error}");
}
