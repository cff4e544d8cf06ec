//! The client and the compiler make the same pixels of the same file: a network that was calibrated
//! and measured on others would have an accuracy that no client sees.

use image::{DynamicImage, GrayImage, Luma, Rgb, RgbImage, Rgba, RgbaImage};
use pi_compiler::examples::{Data, Examples, Reads};
use pi_ir::text::parse_circuit;
use pi_ir::{Circuit, Input, Preprocessing, Shape};
use pi_runtime::input_file::InputFile;
use std::path::Path;

/// A circuit that reads pictures of this shape, which is all that it is for.
fn circuit(shape: Shape) -> Circuit {
    let list = |value: &str| vec![value; shape.c as usize].join(" ");
    let text = format!(
        "circuit \"pixels\"\ninput {shape} frac 6\nmean {}\nstd {}\nlayer \"last\" 2x1x1 bound 40 \
         proved\n  conv t0 out 2 kernel {}x{} stride 1x1 pad 0,0,0,0 bits 7\n  output frac 12 \
         reveal label\n",
        list("0"),
        list("1"),
        shape.h,
        shape.w
    );
    parse_circuit(&text).unwrap()
}

fn of_client(path: &Path, shape: Shape) -> Input {
    let file = InputFile::open(path, None).unwrap();
    file.for_model(&circuit(shape), None).unwrap().input
}

fn of_compiler(path: &Path, shape: Shape) -> Input {
    let data = Data {
        path,
        labels: None,
        label_column: None,
    };
    let reads = Reads {
        shape,
        preprocessing: &Preprocessing::unit(shape.c),
        classes: &[],
        outputs: 2,
    };
    let examples = Examples::read(&data, &reads, 10).unwrap();
    assert_eq!(examples.inputs.len(), 1);
    examples.inputs[0].clone()
}

fn wave(x: u32, y: u32, channel: u32) -> u8 {
    let (x, y) = (f64::from(x), f64::from(y));
    let wave = (x * 0.31 + f64::from(channel)).sin() * (y * 0.17).cos();
    (127.5 + 127.0 * wave) as u8
}

#[test]
fn client_and_compiler_see_the_same_pixels() {
    let directory = tempfile::tempdir().unwrap();
    let colour = |x, y| Rgb([0, 1, 2].map(|c| wave(x, y, c)));
    let pictures: [(&str, &[&str], DynamicImage); 5] = [
        (
            "wide",
            &["png", "jpg", "webp"],
            RgbImage::from_fn(143, 97, colour).into(),
        ),
        (
            "high",
            &["png", "jpg", "webp"],
            RgbImage::from_fn(31, 223, colour).into(),
        ),
        (
            "grey",
            &["png", "jpg", "webp"],
            GrayImage::from_fn(65, 33, |x, y| Luma([wave(x, y, 0)])).into(),
        ),
        (
            "transparent",
            &["png", "webp"],
            RgbaImage::from_fn(57, 41, |x, y| {
                let Rgb([r, g, b]) = colour(x, y);
                Rgba([r, g, b, wave(y, x, 3)])
            })
            .into(),
        ),
        (
            "right",
            &["png", "webp"],
            RgbImage::from_fn(32, 24, colour).into(),
        ),
    ];
    for (name, endings, picture) in &pictures {
        for ending in *endings {
            let path = directory.path().join(format!("{name}.{ending}"));
            picture.save(&path).unwrap();
            for shape in [(3, 24, 32), (1, 24, 32), (3, 48, 48), (3, 7, 5)] {
                let shape = Shape::new(shape.0, shape.1, shape.2);
                let (client, compiler) = (of_client(&path, shape), of_compiler(&path, shape));
                assert_eq!(client, compiler, "{}, {shape}", path.display());
            }
        }
    }
    // Not a comparison of one thing with itself alone: the middle of the wide picture is what is
    // read, and its left edge is not.
    let path = directory.path().join("sides.png");
    let sides = RgbImage::from_fn(120, 40, |x, _| Rgb([if x < 40 { 255 } else { 9 }; 3]));
    sides.save(&path).unwrap();
    let shape = Shape::new(3, 20, 20);
    let middle = Input::Bytes(vec![9; shape.len()]);
    assert_eq!(of_compiler(&path, shape), middle);
}
