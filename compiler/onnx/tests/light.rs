//! Well-known networks with the results that others computed: the light models of the Python
//! package `onnx` (`pip install onnx`), where that is installed. They have synthetic weights and
//! 224 x 224 pixels.

use pi_ir::{Op, Preprocessing};
use pi_onnx::proto::{TensorProto, data_type};
use pi_onnx::{Options, read};
use prost::Message;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The folder of the models; `PI_ONNX_LIGHT` may name it.
fn folder() -> Option<PathBuf> {
    let folder = match std::env::var_os("PI_ONNX_LIGHT") {
        Some(folder) => PathBuf::from(folder),
        None => {
            let program = "import onnx, os; print(os.path.dirname(onnx.__file__))";
            let output = Command::new("python3")
                .args(["-c", program])
                .output()
                .ok()?;
            let package = String::from_utf8(output.stdout).ok()?;
            Path::new(package.trim()).join("backend/test/data/light")
        }
    };
    folder.is_dir().then_some(folder)
}

/// The input of the package's own tests: from 0 to 1, evenly.
fn input(count: usize, preprocessing: &Preprocessing) -> Vec<f32> {
    let Preprocessing::Channels { mean, std } = preprocessing else {
        panic!("an imported model has statistics by channel");
    };
    let positions = count / mean.len();
    (0..count)
        .map(|i| {
            let x = (i as f64 / count as f64) as f32;
            (x - mean[i / positions]) / std[i / positions]
        })
        .collect()
}

fn expected(path: &Path) -> Vec<f32> {
    let tensor = TensorProto::decode(&std::fs::read(path).unwrap()[..]).unwrap();
    assert_eq!(tensor.data_type, Some(data_type::FLOAT));
    match &tensor.raw_data {
        Some(raw) => raw
            .as_chunks()
            .0
            .iter()
            .map(|&b| f32::from_le_bytes(b))
            .collect(),
        None => tensor.float_data,
    }
}

fn softmax(logits: &[f32]) -> Vec<f32> {
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let powers: Vec<f64> = logits
        .iter()
        .map(|&l| f64::from(l - largest).exp())
        .collect();
    let sum: f64 = powers.iter().sum();
    powers.iter().map(|p| (p / sum) as f32).collect()
}

#[test]
fn well_known_networks_give_the_results_of_others() {
    let Some(folder) = folder() else {
        eprintln!(
            "skipped: the light models are not here; `pip install onnx`, or name their folder with \
             PI_ONNX_LIGHT"
        );
        return;
    };
    for name in [
        "squeezenet",
        "densenet121",
        "inception_v2",
        "resnet50",
        "shufflenet",
        "vgg19",
    ] {
        let import = read(
            &folder.join(format!("light_{name}.onnx")),
            &Options::default(),
        );
        let import = import.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert_eq!(pi_ir::verify::graph(&import.graph), [], "{name}");
        let Op::Input { shape } = import.graph.nodes[0].op else {
            panic!("{name}: no input");
        };
        let reals = input(shape.len(), &import.graph.preprocessing);
        let mut found = pi_ir::interpret::float(&import.graph, &reals).unwrap();
        if import.notes.iter().any(|note| note.starts_with("Softmax")) {
            found = softmax(&found);
        }
        let expected = expected(&folder.join(format!("light_{name}_output_0.pb")));
        assert_eq!(found.len(), expected.len(), "{name}");
        let largest = expected.iter().fold(0.0, |m: f32, v| m.max(v.abs()));
        for (index, (&found, &expected)) in found.iter().zip(&expected).enumerate() {
            let difference = (found - expected).abs();
            assert!(
                difference <= 1e-4 * largest,
                "{name}, {index}: {found}, {expected}"
            );
        }
    }
    // What cannot be private says so, node by node.
    for name in ["bvlc_alexnet", "inception_v1", "zfnet512"] {
        let refused = read(
            &folder.join(format!("light_{name}.onnx")),
            &Options::default(),
        );
        let refused = refused.unwrap_err().to_string();
        for part in ["2 faults", "(LRN): not supported: it divides by statistics"] {
            assert!(refused.contains(part), "{name}: {refused}");
        }
    }
}
