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

mod whole;

use image::imageops::FilterType;
use image::metadata::Orientation;
use image::{
    ColorType, DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, ImageResult,
    Limits,
};
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
    #[error("{0} is neither a PNG nor a JPEG, WebP, GIF, BMP or TIFF image")]
    Format(PathBuf),
    /// The file is of a kind of its format that is not read here.
    #[error("the image {path} is of a kind that is not read: {reason}")]
    Kind {
        /// The file.
        path: PathBuf,
        /// What is special about it.
        reason: String,
    },
    /// The end of the file is missing.
    #[error("the image {0} is damaged: it is cut short")]
    CutShort(PathBuf),
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

/// Ends of the names of the files that are read, in lower case and without the dot.
pub const EXTENSIONS: [&str; 8] = ["png", "jpg", "jpeg", "webp", "gif", "bmp", "tif", "tiff"];

/// Reads a PNG, JPEG, WebP, GIF, BMP or TIFF file and brings it to the model's shape.
///
/// Of several frames or pages the first is read. An image of another aspect ratio is cut to its
/// middle, one of another size is resampled (Catmull-Rom), and transparency is laid on white. Grey
/// becomes three equal channels, and colours become grey, as the model needs it. Each of these is
/// reported as a [`Change`].
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

/// Reads a PNG, JPEG, WebP, GIF, BMP or TIFF file, upright; of several frames or pages the first.
///
/// # Errors
/// [`ImageFileError`] names the file. A file that is cut short is refused.
pub fn decode(path: &Path) -> Result<DynamicImage, ImageFileError> {
    Ok(decode_all(path, read(path)?, false)?.0)
}

/// Reads the bytes of an image file as [`decode`] does; errors call it by `path`.
///
/// # Errors
/// [`ImageFileError`] names the file.
pub fn decode_bytes(path: &Path, bytes: Vec<u8>) -> Result<DynamicImage, ImageFileError> {
    Ok(decode_all(path, bytes, false)?.0)
}

/// Reads an image file as [`decode`] does, and of one that is cut short as much as there is;
/// returns whether it is. What is missing has the colour that the decoder gives it: grey in a JPEG
/// file, black elsewhere.
///
/// # Errors
/// [`ImageFileError`] names the file. [`ImageFileError::CutShort`] if nothing of the picture can be
/// made out; that is so of every TIFF file.
pub fn decode_partial(path: &Path) -> Result<(DynamicImage, bool), ImageFileError> {
    decode_all(path, read(path)?, true)
}

fn read(path: &Path) -> Result<Vec<u8>, ImageFileError> {
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
    Ok(bytes)
}

/// The image, upright, and whether a part of it is missing.
fn decode_all(
    path: &Path,
    bytes: Vec<u8>,
    partial: bool,
) -> Result<(DynamicImage, bool), ImageFileError> {
    if bytes.len() as u64 > LARGEST_FILE {
        return Err(ImageFileError::TooLarge(path.into()));
    }
    let broken = |reason| ImageFileError::Broken {
        path: path.into(),
        reason,
    };
    let cut = whole::is_cut_short(&bytes);
    if cut && !partial {
        return Err(ImageFileError::CutShort(path.into()));
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
    let Some(format) = reader.format() else {
        return Err(ImageFileError::Format(path.into()));
    };
    if !format.reading_enabled() {
        return Err(ImageFileError::Format(path.into()));
    }
    let explain = |error| match error {
        ImageError::Unsupported(error) => ImageFileError::Kind {
            path: path.into(),
            reason: error.to_string(),
        },
        ImageError::Limits(_) => ImageFileError::TooLarge(path.into()),
        _ if cut => ImageFileError::CutShort(path.into()),
        error => broken(error.to_string()),
    };
    let mut decoder = reader.into_decoder().map_err(explain)?;
    // The crate leaves this to its callers, and wide kinds of pixels pass the limits on sides.
    if decoder.total_bytes() > LARGEST_MEMORY {
        return Err(ImageFileError::TooLarge(path.into()));
    }
    // A camera's note on how it was held; an image without one is upright.
    let orientation = decoder.orientation().unwrap_or(Orientation::NoTransforms);
    let mut image = match cut {
        false => DynamicImage::from_decoder(decoder),
        true => DynamicImage::from_decoder(Partial { decoder, format }),
    }
    .map_err(explain)?;
    if cut && is_blank(&image) {
        return Err(ImageFileError::CutShort(path.into()));
    }
    image.apply_orientation(orientation);
    Ok((image, cut))
}

/// Whether there is nothing to see: a decoder without a single row leaves all bytes alike.
fn is_blank(image: &DynamicImage) -> bool {
    let mut bytes = image.as_bytes().iter();
    let first = bytes.next();
    bytes.all(|byte| Some(byte) == first)
}

/// A decoder that keeps the rows it has when it comes to the end of its file.
struct Partial<D> {
    decoder: D,
    format: ImageFormat,
}

impl<D: ImageDecoder> ImageDecoder for Partial<D> {
    fn dimensions(&self) -> (u32, u32) {
        self.decoder.dimensions()
    }

    fn color_type(&self) -> ColorType {
        self.decoder.color_type()
    }

    fn read_image(self, buffer: &mut [u8]) -> ImageResult<()> {
        let wide = self.color_type().bytes_per_pixel() == 2 * self.color_type().channel_count();
        let complete = self.decoder.read_image(buffer).is_ok();
        // The decoder of PNG swaps the bytes of its numbers last.
        if !complete && wide && self.format == ImageFormat::Png {
            for number in buffer.chunks_exact_mut(2) {
                let value = u16::from_be_bytes([number[0], number[1]]);
                number.copy_from_slice(&value.to_ne_bytes());
            }
        }
        Ok(())
    }

    fn read_image_boxed(self: Box<Self>, buffer: &mut [u8]) -> ImageResult<()> {
        (*self).read_image(buffer)
    }
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
        assert!(matches!(load(&at("half.png")), ImageFileError::CutShort(_)));
        let mut damaged = bytes.clone();
        damaged[60] ^= 0x55;
        std::fs::write(at("damaged.png"), damaged).unwrap();
        assert!(matches!(
            load(&at("damaged.png")),
            ImageFileError::Broken { .. }
        ));

        // The header of an image of 60,000 by 60,000 pixels, with its checksum.
        let mut huge = bytes.clone();
        huge[16..20].copy_from_slice(&60_000u32.to_be_bytes());
        huge[20..24].copy_from_slice(&60_000u32.to_be_bytes());
        let checksum = crc32(&huge[12..29]);
        huge[29..33].copy_from_slice(&checksum.to_be_bytes());
        std::fs::write(at("huge.png"), huge).unwrap();
        assert!(matches!(load(&at("huge.png")), ImageFileError::TooLarge(_)));
    }

    const FORMATS: [ImageFormat; 6] = [
        ImageFormat::Bmp,
        ImageFormat::Gif,
        ImageFormat::Jpeg,
        ImageFormat::Png,
        ImageFormat::Tiff,
        ImageFormat::WebP,
    ];

    fn encoded(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, format).unwrap();
        bytes.into_inner()
    }

    fn picture() -> DynamicImage {
        RgbImage::from_fn(143, 97, |x, y| {
            Rgb([x as u8, (y * 2) as u8, (x * y % 256) as u8])
        })
        .into()
    }

    /// Formats that keep every pixel give them back; the others come near.
    #[test]
    fn every_format_is_read() {
        for format in FORMATS {
            let picture = match format {
                // A table of 256 colours holds all greys.
                ImageFormat::Gif => DynamicImage::from(picture().to_luma8()).into_rgb8(),
                _ => picture().into_rgb8(),
            };
            let bytes = encoded(&picture.clone().into(), format);
            let read = decode_bytes(Path::new("it"), bytes).unwrap().into_rgb8();
            assert_eq!(read.dimensions(), picture.dimensions(), "{format:?}");
            let distance = |(a, b): (&u8, &u8)| u64::from(a.abs_diff(*b));
            let distances = read.as_raw().iter().zip(picture.as_raw()).map(distance);
            let mean = distances.sum::<u64>() as f64 / read.as_raw().len() as f64;
            match format {
                ImageFormat::Jpeg => assert!(mean < 12.0, "{mean}"),
                // The encoder quantises by a neural net of its own.
                ImageFormat::Gif => assert!(mean < 3.0, "{mean}"),
                _ => assert_eq!(mean, 0.0, "{format:?}"),
            }
        }
    }

    /// What a camera noted of how it was held is followed, and deep pixels lose their lower halves.
    #[test]
    fn pictures_are_turned_upright_and_deep_ones_read() {
        let jpeg = encoded(&picture(), ImageFormat::Jpeg);
        let mut exif = b"Exif\0\0II\x2a\0\x08\0\0\0\x01\0".to_vec();
        // Orientation (tag 0x0112), one short: 6, to be turned to the right.
        exif.extend([0x12, 1, 3, 0, 1, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0]);
        let length = (exif.len() as u16 + 2).to_be_bytes();
        let turned = [&jpeg[..2], &[0xff, 0xe1], &length, &exif, &jpeg[2..]].concat();
        let name = Path::new("it");
        let upright = decode_bytes(name, turned).unwrap();
        assert_eq!(upright, decode_bytes(name, jpeg).unwrap().rotate90());

        let deep = image::ImageBuffer::from_fn(3, 2, |x, y| {
            Rgb([0x1234 * (x + 1) as u16, 0x00ff, 0x7f80 * y as u16])
        });
        for format in [ImageFormat::Png, ImageFormat::Tiff] {
            let bytes = encoded(&DynamicImage::ImageRgb16(deep.clone()), format);
            let read = decode_bytes(name, bytes).unwrap();
            assert_eq!(read.to_rgb16(), deep, "{format:?}");
            let prepared = to_shape(read, shape(3, 2, 3)).unwrap();
            assert_eq!(prepared.pixels[..3], [0x12, 0x24, 0x36]);
        }
    }

    /// A picture of which a part is missing would be classified as if it were whole.
    #[test]
    fn a_file_that_is_cut_short_is_refused_in_every_format_unless_parts_are_allowed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("picture");
        for format in FORMATS {
            let whole = encoded(&picture(), format);
            let seen = decode_bytes(&path, whole.clone()).unwrap();
            for end in [1, 2, 3].map(|part| whole.len() * part / 4) {
                std::fs::write(&path, &whole[..end]).unwrap();
                let error = decode(&path).unwrap_err();
                assert!(matches!(error, ImageFileError::CutShort(_)), "{error}");
                match decode_partial(&path) {
                    Ok((part, cut)) => {
                        assert!(cut, "{format:?}");
                        assert_eq!(part.width(), seen.width(), "{format:?}");
                        let same = part.as_bytes().iter().zip(seen.as_bytes());
                        let same = same.filter(|(a, b)| a == b).count();
                        let share = same as f64 / seen.as_bytes().len() as f64;
                        assert!(share > 0.1 && share < 1.0, "{format:?} {end}: {share}");
                    }
                    Err(error) => {
                        assert!(matches!(error, ImageFileError::CutShort(_)), "{error}");
                        let refused = matches!(format, ImageFormat::Tiff | ImageFormat::WebP);
                        assert!(refused, "{format:?} {end}");
                    }
                }
            }
            std::fs::write(&path, &whole).unwrap();
            let (read, cut) = decode_partial(&path).unwrap();
            assert!(!cut);
            assert_eq!(read, seen);
        }
    }

    /// Rows of 16-bit numbers are put in order even if the rest is missing.
    #[test]
    fn a_part_of_a_deep_image_has_its_own_colours() {
        let deep = |x: u32, y: u32| Luma([(x * 400 + y) as u16]);
        let image = image::ImageBuffer::from_fn(64, 64, deep);
        let bytes = encoded(&DynamicImage::ImageLuma16(image.clone()), ImageFormat::Png);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep.png");
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
        let (part, cut) = decode_partial(&path).unwrap();
        assert!(cut);
        assert_eq!(part.to_luma16().as_raw()[..64], image.as_raw()[..64]);
    }

    /// Headers of few bytes that promise more than the limits allow, in sides or in memory.
    #[test]
    fn bombs_of_every_format_are_refused() {
        let tiff = |side: u32, colours: u32, bits: u16| {
            let mut bytes = b"II\x2a\0\x08\0\0\0".to_vec();
            let behind = 8 + 2 + 9 * 12 + 4;
            let entries: [(u16, u16, u32, u32); 9] = [
                (256, 4, 1, side),
                (257, 4, 1, side),
                (
                    258,
                    3,
                    colours,
                    if colours == 1 { bits.into() } else { behind },
                ),
                (259, 3, 1, 1),
                (262, 3, 1, if colours == 1 { 1 } else { 2 }),
                (273, 4, 1, 8),
                (277, 3, 1, colours),
                (278, 4, 1, side),
                (279, 4, 1, 16),
            ];
            bytes.extend((entries.len() as u16).to_le_bytes());
            for (tag, kind, count, value) in entries {
                bytes.extend(tag.to_le_bytes());
                bytes.extend(kind.to_le_bytes());
                bytes.extend(count.to_le_bytes());
                bytes.extend(value.to_le_bytes());
            }
            bytes.extend([0; 4]);
            bytes.extend([bits.to_le_bytes(); 3].concat());
            bytes
        };
        let mut gif = encoded(&picture(), ImageFormat::Gif);
        gif[6..10].copy_from_slice(&[0xff; 4]);
        let mut frame = encoded(&picture(), ImageFormat::Gif);
        let descriptor = frame.iter().position(|&byte| byte == 0x2c).unwrap();
        // In a table of colours, there may be such a byte too.
        let at = (descriptor..frame.len())
            .find(|&at| frame[at..].starts_with(&[0x2c, 0, 0, 0, 0, 143, 0, 97, 0]))
            .unwrap();
        frame[at + 5..at + 9].copy_from_slice(&[0xff; 4]);
        let mut webp = encoded(&picture(), ImageFormat::WebP);
        // 14 bits each for width and height less one, behind the signature 0x2f.
        let at = webp.iter().position(|&byte| byte == 0x2f).unwrap() + 1;
        webp[at..at + 3].copy_from_slice(&[0xff; 3]);
        webp[at + 3] |= 0x0f;
        let mut jpeg = encoded(&picture(), ImageFormat::Jpeg);
        let at = jpeg
            .windows(2)
            .position(|pair| pair == [0xff, 0xc0])
            .unwrap();
        jpeg[at + 5..at + 9].copy_from_slice(&[0xff; 4]);
        // Run lengths of no run, so that no length follows from the sides.
        let mut bmp = encoded(&picture(), ImageFormat::Bmp);
        bmp[18..22].copy_from_slice(&60_000u32.to_le_bytes());
        bmp[22..26].copy_from_slice(&60_000u32.to_le_bytes());
        bmp[28..30].copy_from_slice(&8u16.to_le_bytes());
        bmp[30..34].copy_from_slice(&1u32.to_le_bytes());
        bmp[34..38].copy_from_slice(&16u32.to_le_bytes());
        for (name, bytes, refused) in [
            ("sides.tif", tiff(60_000, 1, 8), true),
            ("memory.tif", tiff(16_384, 3, 16), true),
            ("sides.gif", gif, true),
            ("frame.gif", frame, false),
            ("memory.webp", webp, false),
            ("sides.jpg", jpeg, true),
            ("sides.bmp", bmp, true),
        ] {
            let error = decode_bytes(Path::new(name), bytes).unwrap_err();
            let too_large = matches!(error, ImageFileError::TooLarge(_));
            // Where the sides alone are within the limits, other rules are broken.
            assert!(too_large || !refused, "{error:?}");
        }
    }

    fn crc32(bytes: &[u8]) -> u32 {
        !bytes.iter().fold(!0, |crc, byte| {
            (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
                (crc >> 1) ^ (0xedb8_8320 * (crc & 1))
            })
        })
    }
}
