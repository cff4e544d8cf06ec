//! Image files as inputs, and pictures of what the server saw.

use crate::failure::{Failure, Kind};
use pi_core::fp::P;
use pi_ir::interpret::quantise_image;
use pi_ir::{Circuit, Shape};
use std::path::Path;

/// An image as a model reads it.
pub struct Picture {
    /// One byte per channel, row and column, `[c][h][w]`.
    pub pixels: Vec<u8>,
    /// The model's input: the pixels preprocessed, and taken through the public prefix.
    pub input: Vec<i64>,
    /// What was done to the image, in sentences.
    pub changes: Vec<String>,
}

/// Reads an image file as the native client does: the same pixels come out, and the same input.
///
/// # Errors
/// [`Kind::Input`] with the file's name and the fault.
pub fn read(circuit: &Circuit, name: &str, bytes: Vec<u8>) -> Result<Picture, Failure> {
    let input = |what: String| Failure::new(Kind::Input, what);
    if circuit.preprocessing.is_values() {
        return Err(input("the model reads values, not pictures".into()));
    }
    let image = pi_image::decode_bytes(Path::new(name), bytes);
    let image = image.and_then(|image| pi_image::to_shape(image, circuit.image()));
    let image = image.map_err(|error| input(error.to_string()))?;
    let quantised = quantise_image(circuit, &image.pixels);
    Ok(Picture {
        input: quantised.map_err(|error| input(error.to_string()))?,
        changes: image.changes.iter().map(ToString::to_string).collect(),
        pixels: image.pixels,
    })
}

/// Pixels `[c][h][w]` as four bytes for each point: red, green, blue, and opaque.
pub fn rgba(pixels: &[u8], shape: Shape) -> Vec<u8> {
    let plane = (shape.h * shape.w) as usize;
    let of = |channel: u32, at: usize| pixels[channel.min(shape.c - 1) as usize * plane + at];
    let point = |at: usize| [of(0, at), of(1, at), of(2, at), 255];
    (0..plane).flat_map(point).collect()
}

/// The leading eight bits of each element of `F_p`, each a shade of grey: a uniform element is any
/// shade with the same probability, up to `2^-50`.
pub fn shades(elements: &[u64]) -> Vec<u8> {
    let shade = |&element: &u64| (u128::from(element) * 256 / u128::from(P)) as u8;
    elements.iter().map(shade).collect()
}

/// A tensor `[c][h][w]` as shades of grey: of each channel the least black and the largest white.
pub fn shades_of_input(input: &[i64], shape: Shape) -> Vec<u8> {
    let plane = (shape.h * shape.w) as usize;
    input
        .chunks(plane.max(1))
        .flat_map(shades_of_channel)
        .collect()
}

fn shades_of_channel(input: &[i64]) -> Vec<u8> {
    let least = input.iter().copied().min().unwrap_or(0);
    let most = input.iter().copied().max().unwrap_or(0);
    let range = i128::from(most) - i128::from(least);
    let shade = |&value: &i64| ((i128::from(value) - i128::from(least)) * 255 / range.max(1)) as u8;
    input.iter().map(shade).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_least_and_the_largest_element_are_black_and_white() {
        assert_eq!(shades(&[0, P / 2, P - 1]), [0, 127, 255]);
        let shape = |c, w| Shape { c, h: 1, w };
        assert_eq!(shades_of_input(&[-3, 0, 3], shape(1, 3)), [0, 127, 255]);
        assert_eq!(shades_of_input(&[5, 5, 8, 9], shape(2, 2)), [0, 0, 0, 255]);
    }

    #[test]
    fn a_grey_image_has_three_equal_channels() {
        let shape = Shape { c: 1, h: 1, w: 2 };
        assert_eq!(rgba(&[7, 9], shape), [7, 7, 7, 255, 9, 9, 9, 255]);
    }
}
