//! An image file as the pixels that a model reads: the one way from a picture to a network, for the
//! client that asks, for the compiler that calibrates and for whoever measures accuracy.
//!
//! A network that was calibrated and measured on other pixels than the client sends has an accuracy
//! that nobody sees. So the crop, the filter and the integers are here, once, and every program
//! calls [`to_shape`]. Decoding and resampling are deterministic: the same file gives the same
//! bytes in every program built of the same source.
//!
//! Files may be hostile: sides, bytes and memory are bounded before they are used, and nothing
//! panics.
#![forbid(unsafe_code)]

pub mod jpeg;

use image::imageops::FilterType;
use image::metadata::Orientation;
use image::{DynamicImage, ImageDecoder, ImageError, ImageReader, Limits};
use pi_ir::Shape;
use std::fmt;
use std::fs::File;
use std::io::{self, Cursor, Read};
use std::path::{Path, PathBuf};

/// Pixels for a model, and what was done to get them.
#[derive(Clone, Debug)]
pub struct InputImage {
    /// One byte per channel, row and column.
    pub pixels: Vec<u8>,
    /// The changes, in their order; each prints as a sentence for the user.
    pub changes: Vec<Change>,
}

/// What was done to an image for the sake of a model.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It was transparent in places, and laid on white.
    OnWhite,
    /// It was brought to the model's size.
    Resized {
        /// Width and height that it had.
        from: (u32, u32),
        /// Width and height of its middle, which was resized; the same if nothing was cut away.
        cut: (u32, u32),
        /// Width and height of the model.
        to: (u32, u32),
    },
    /// It was grey, and the model reads colours.
    Grey,
    /// It had colours, and the model reads grey.
    ColoursDropped,
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::OnWhite => {
                f.write_str("the image is transparent in places: it was laid on white")
            }
            Change::Resized { from, cut, to } => {
                write!(f, "the image has {}x{} pixels: ", from.0, from.1)?;
                if from != cut {
                    write!(f, "cut to its middle {}x{} and ", cut.0, cut.1)?;
                }
                write!(f, "resized to the model's {}x{}", to.0, to.1)
            }
            Change::Grey => f.write_str("the image is grey: all three channels are equal"),
            Change::ColoursDropped => {
                f.write_str("the model reads grey images: colours were dropped")
            }
        }
    }
}

/// Error of a file that gives no image.
#[derive(Debug, thiserror::Error)]
pub enum ImageFileError {
    /// The file cannot be read.
    #[error("cannot read the image {path}: {error}")]
    File {
        /// The file.
        path: PathBuf,
        /// The error of the system.
        error: io::Error,
    },
    /// The file is of another format.
    #[error("{0} is neither a PNG nor a JPEG nor a WebP image")]
    Format(PathBuf),
    /// The file is damaged.
    #[error("the image {path} is damaged: {reason}")]
    Broken {
        /// The file.
        path: PathBuf,
        /// The error of the decoder.
        reason: String,
    },
    /// The image is larger than one for classification needs to be.
    #[error(
        "the image {0} is too large: at most {LARGEST_SIDE} by {LARGEST_SIDE} pixels and {mib} MiB",
        mib = LARGEST_FILE >> 20
    )]
    TooLarge(PathBuf),
    /// The model does not read images.
    #[error("the model reads {0} channels; images have 1 or 3")]
    Channels(u32),
}

const LARGEST_SIDE: u32 = 16_384;
const LARGEST_FILE: u64 = 64 << 20;
const LARGEST_MEMORY: u64 = 1 << 30;

/// Reads a PNG, JPEG or WebP file and brings it to the model's shape.
///
/// An image of another aspect ratio is cut to its middle, one of another size is resampled
/// (Catmull-Rom), and transparency is laid on white. Grey becomes three equal channels, and colours
/// become grey, as the model needs it. Each of these is reported as a [`Change`].
///
/// # Errors
/// [`ImageFileError`] names the file.
pub fn load(path: &Path, shape: Shape) -> Result<InputImage, ImageFileError> {
    to_shape(decode(path)?, shape)
}

/// Brings an image in memory to the model's shape, as [`load`] does.
///
/// # Errors
/// [`ImageFileError::Channels`].
pub fn to_shape(image: DynamicImage, shape: Shape) -> Result<InputImage, ImageFileError> {
    if !matches!(shape.c, 1 | 3) {
        return Err(ImageFileError::Channels(shape.c));
    }
    let mut changes = Vec::new();
    let image = on_white(image, &mut changes);
    let image = fit(image, shape.w, shape.h, &mut changes);
    let pixels = if shape.c == 1 {
        if image.color().has_color() {
            changes.push(Change::ColoursDropped);
        }
        image.to_luma8().into_raw()
    } else {
        if !image.color().has_color() {
            changes.push(Change::Grey);
        }
        let interleaved = image.to_rgb8().into_raw();
        (0..3)
            .flat_map(|channel| interleaved.iter().skip(channel).step_by(3).copied())
            .collect()
    };
    Ok(InputImage { pixels, changes })
}

/// Reads a PNG, JPEG or WebP file, upright.
///
/// # Errors
/// [`ImageFileError`] names the file.
pub fn decode(path: &Path) -> Result<DynamicImage, ImageFileError> {
    let unreadable = |error| ImageFileError::File {
        path: path.into(),
        error,
    };
    let file = File::open(path).map_err(unreadable)?;
    let metadata = file.metadata().map_err(unreadable)?;
    if metadata.is_dir() {
        return Err(unreadable(io::Error::from(io::ErrorKind::IsADirectory)));
    }
    if metadata.len() > LARGEST_FILE {
        return Err(ImageFileError::TooLarge(path.into()));
    }
    // The file may have grown since.
    let mut bytes = Vec::new();
    let read = file.take(LARGEST_FILE + 1).read_to_end(&mut bytes);
    read.map_err(unreadable)?;
    decode_bytes(path, bytes)
}

/// Reads the bytes of a PNG, JPEG or WebP file, upright; errors call it by `path`.
///
/// # Errors
/// [`ImageFileError`] names the file.
pub fn decode_bytes(path: &Path, bytes: Vec<u8>) -> Result<DynamicImage, ImageFileError> {
    if bytes.len() as u64 > LARGEST_FILE {
        return Err(ImageFileError::TooLarge(path.into()));
    }
    let broken = |reason| ImageFileError::Broken {
        path: path.into(),
        reason,
    };
    if jpeg::is_cut_short(&bytes) {
        return Err(broken("it is cut short, before its end marker".into()));
    }
    let unreadable = |error| ImageFileError::File {
        path: path.into(),
        error,
    };
    let mut reader = ImageReader::new(Cursor::new(bytes))
        .with_guessed_format()
        .map_err(unreadable)?;
    let mut limits = Limits::default();
    limits.max_image_width = Some(LARGEST_SIDE);
    limits.max_image_height = Some(LARGEST_SIDE);
    limits.max_alloc = Some(LARGEST_MEMORY);
    reader.limits(limits);
    if reader.format().is_none() {
        return Err(ImageFileError::Format(path.into()));
    }
    let explain = |error| match error {
        ImageError::Unsupported(_) => ImageFileError::Format(path.into()),
        ImageError::Limits(_) => ImageFileError::TooLarge(path.into()),
        error => broken(error.to_string()),
    };
    let mut decoder = reader.into_decoder().map_err(explain)?;
    // A camera's note on how it was held; an image without one is upright.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let mut image = DynamicImage::from_decoder(decoder).map_err(explain)?;
    image.apply_orientation(orientation);
    Ok(image)
}

fn on_white(image: DynamicImage, changes: &mut Vec<Change>) -> DynamicImage {
    if !image.color().has_alpha() {
        return image;
    }
    let grey = !image.color().has_color();
    let mut pixels = image.to_rgba8();
    if pixels.pixels().all(|pixel| pixel.0[3] == 255) {
        return image;
    }
    changes.push(Change::OnWhite);
    for pixel in pixels.pixels_mut() {
        let alpha = u32::from(pixel.0[3]);
        for value in &mut pixel.0[..3] {
            *value = ((u32::from(*value) * alpha + 255 * (255 - alpha) + 127) / 255) as u8;
        }
        pixel.0[3] = 255;
    }
    let opaque = DynamicImage::ImageRgba8(pixels);
    if grey {
        opaque.to_luma8().into()
    } else {
        opaque
    }
}

fn fit(
    mut image: DynamicImage,
    width: u32,
    height: u32,
    changes: &mut Vec<Change>,
) -> DynamicImage {
    let (from_width, from_height) = (image.width(), image.height());
    if (from_width, from_height) == (width, height) {
        return image;
    }
    // The largest centred part with the model's aspect ratio, at least one pixel.
    let (w, h) = (u64::from(from_width), u64::from(from_height));
    let (to_w, to_h) = (u64::from(width), u64::from(height));
    let cut_width = w.min(h * to_w / to_h).max(1) as u32;
    let cut_height = h.min(w * to_h / to_w).max(1) as u32;
    if (cut_width, cut_height) != (from_width, from_height) {
        let (x, y) = ((from_width - cut_width) / 2, (from_height - cut_height) / 2);
        image = image.crop_imm(x, y, cut_width, cut_height);
    }
    changes.push(Change::Resized {
        from: (from_width, from_height),
        cut: (cut_width, cut_height),
        to: (width, height),
    });
    image.resize_exact(width, height, FilterType::CatmullRom)
}

#[cfg(test)]
mod tests {
    use super::*;
    use image::{GrayImage, Luma, Rgb, RgbImage, Rgba, RgbaImage};

    fn shape(channels: u32, height: u32, width: u32) -> Shape {
        Shape::new(channels, height, width)
    }

    #[test]
    fn the_right_size_passes_unchanged_channel_by_channel() {
        let mut image = RgbImage::new(3, 2);
        for (i, pixel) in image.pixels_mut().enumerate() {
            let i = i as u8;
            *pixel = Rgb([i, 50 + i, 100 + i]);
        }
        let prepared = to_shape(image.into(), shape(3, 2, 3)).unwrap();
        let expected: Vec<u8> = [0u8, 50, 100]
            .iter()
            .flat_map(|c| (0..6).map(move |i| c + i))
            .collect();
        assert_eq!(prepared.pixels, expected);
        assert_eq!(prepared.changes, []);
    }

    #[test]
    fn grey_becomes_three_equal_channels() {
        let image = GrayImage::from_pixel(4, 4, Luma([77]));
        let prepared = to_shape(image.into(), shape(3, 4, 4)).unwrap();
        assert_eq!(prepared.pixels, vec![77; 48]);
        assert_eq!(prepared.changes, [Change::Grey]);
    }

    #[test]
    fn other_sizes_are_cut_and_resized_with_a_notice() {
        // Left third red, middle green, right blue: only the middle survives a square cut.
        let image = RgbImage::from_fn(192, 64, |x, _| match x / 64 {
            0 => Rgb([255, 0, 0]),
            1 => Rgb([0, 255, 0]),
            _ => Rgb([0, 0, 255]),
        });
        let prepared = to_shape(image.into(), shape(3, 32, 32)).unwrap();
        assert_eq!(prepared.pixels[..1024], vec![0; 1024]);
        assert_eq!(prepared.pixels[1024..2048], vec![255; 1024]);
        let resized = Change::Resized {
            from: (192, 64),
            cut: (64, 64),
            to: (32, 32),
        };
        assert_eq!(prepared.changes, [resized]);
        assert_eq!(
            resized.to_string(),
            "the image has 192x64 pixels: cut to its middle 64x64 and resized to the model's 32x32"
        );
        let thin = RgbImage::new(1, 1000);
        assert_eq!(
            to_shape(thin.into(), shape(3, 32, 32))
                .unwrap()
                .pixels
                .len(),
            3072
        );
    }

    #[test]
    fn transparency_is_laid_on_white() {
        let image = RgbaImage::from_pixel(2, 2, Rgba([0, 0, 0, 0]));
        let prepared = to_shape(image.into(), shape(3, 2, 2)).unwrap();
        assert_eq!(prepared.pixels, vec![255; 12]);
    }

    #[test]
    fn files_that_are_no_images_are_explained() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        let load = |path: &Path| load(path, shape(3, 32, 32)).unwrap_err();
        assert!(matches!(load(&at("absent")), ImageFileError::File { .. }));
        assert!(matches!(
            load(directory.path()),
            ImageFileError::File { .. }
        ));
        std::fs::write(at("text.png"), "hello, this is text").unwrap();
        assert!(matches!(load(&at("text.png")), ImageFileError::Format(_)));

        let whole = at("whole.png");
        RgbImage::from_fn(64, 64, |x, y| Rgb([x as u8, y as u8, (x * y) as u8]))
            .save(&whole)
            .unwrap();
        let bytes = std::fs::read(&whole).unwrap();
        std::fs::write(at("half.png"), &bytes[..bytes.len() / 2]).unwrap();
        assert!(matches!(
            load(&at("half.png")),
            ImageFileError::Broken { .. }
        ));

        // Decoders of JPEG would paint the rest in grey.
        for name in ["whole.jpg", "whole.webp"] {
            let path = at(name);
            let picture = RgbImage::from_fn(143, 97, |x, y| Rgb([x as u8, y as u8, 200]));
            picture.save(&path).unwrap();
            assert!(decode(&path).is_ok(), "{name}");
            let whole = std::fs::read(&path).unwrap();
            for end in [whole.len() / 2, whole.len() * 9 / 10] {
                std::fs::write(&path, &whole[..end]).unwrap();
                let error = load(&path);
                assert!(matches!(error, ImageFileError::Broken { .. }), "{error}");
                assert!(!name.ends_with("jpg") || error.to_string().contains("cut short"));
            }
        }

        // The header of an image of 60,000 by 60,000 pixels, with its checksum.
        let mut huge = bytes.clone();
        huge[16..20].copy_from_slice(&60_000u32.to_be_bytes());
        huge[20..24].copy_from_slice(&60_000u32.to_be_bytes());
        let checksum = crc32(&huge[12..29]);
        huge[29..33].copy_from_slice(&checksum.to_be_bytes());
        std::fs::write(at("huge.png"), huge).unwrap();
        assert!(matches!(load(&at("huge.png")), ImageFileError::TooLarge(_)));
    }

    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
                (crc >> 1) ^ (0xedb8_8320 * (crc & 1))
            })
        })
    }
}
