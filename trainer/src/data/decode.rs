//! From image files to planes of bytes.

use std::borrow::Borrow;
use std::io::Cursor;

use anyhow::{Context, Result, bail, ensure};
use image::imageops::FilterType;
use image::{DynamicImage, ImageFormat, ImageReader, Limits};
use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use super::Dataset;

/// A part of a set as its files hold it.
pub(super) enum Raw {
    /// Planes of bytes.
    Planes(Dataset),
    /// JPEG or PNG files and the form they are decoded to.
    Files {
        /// Size and channels they are decoded to.
        decoder: Decoder,
        /// The files.
        files: Vec<ImageFile>,
    },
}

/// A JPEG or PNG file in memory.
pub(super) struct ImageFile {
    /// Name for errors: where the file came from.
    pub(super) name: String,
    /// Class of the image.
    pub(super) label: u16,
    /// Contents of the file.
    pub(super) bytes: Vec<u8>,
}

/// Form that image files are decoded to: `channels` planes of `side` times `side` bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Decoder {
    /// Rows and columns of the result.
    pub(super) side: usize,
    /// 3, or 1 for the luma (ITU-R BT.709 weights, on the coded values).
    pub(super) channels: usize,
    /// Way to that size.
    pub(super) fit: Fit,
}

/// Way of an image to its size.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Fit {
    /// The file must have that size.
    Exact,
    /// The file must have twice the size; 2x2 pixels are averaged.
    Halve,
    /// The largest centred square of it is resized by a triangle filter.
    Crop,
}

impl Raw {
    /// Number of images.
    pub(super) fn len(&self) -> usize {
        match self {
            Raw::Planes(set) => set.len(),
            Raw::Files { files, .. } => files.len(),
        }
    }

    /// Keeps the first `first` and the last `last` images.
    pub(super) fn keep_ends(&mut self, first: usize, last: usize) {
        if first.saturating_add(last) >= self.len() {
            return;
        }
        match self {
            Raw::Planes(set) => {
                let end = set.split_off(last);
                set.limit(first);
                set.append(end);
            }
            Raw::Files { files, .. } => {
                files.drain(first..files.len() - last);
            }
        }
    }

    /// The images, decoded on all cores.
    pub(super) fn decode(self) -> Result<Dataset> {
        match self {
            Raw::Planes(set) => Ok(set),
            Raw::Files { decoder, files } => {
                let labels = files.iter().map(|file| file.label).collect();
                decoder.all(labels, |index| Ok(&files[index]))
            }
        }
    }
}

impl Decoder {
    fn shape(self) -> [usize; 3] {
        [self.channels, self.side, self.side]
    }

    /// Images of these labels, decoded on all cores. `file` gives the one at an index, which is
    /// dropped once it is decoded: as many are in memory as there are cores.
    pub(super) fn all<F: Borrow<ImageFile>>(
        self,
        labels: Vec<u16>,
        file: impl Fn(usize) -> Result<F> + Sync,
    ) -> Result<Dataset> {
        let mut set = Dataset::empty(self.shape());
        set.images = vec![0; labels.len() * set.bytes()];
        set.labels = labels;
        let bytes = set.bytes();
        set.images
            .par_chunks_mut(bytes)
            .enumerate()
            .try_for_each(|(index, planes)| {
                let file = file(index)?;
                let file = file.borrow();
                self.image(&file.bytes, planes)
                    .with_context(|| format!("{}: cannot be used", file.name))
            })?;
        Ok(set)
    }

    fn image(self, bytes: &[u8], planes: &mut [u8]) -> Result<()> {
        let mut reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format()?;
        let mut limits = Limits::default();
        (limits.max_image_width, limits.max_image_height) = (Some(16_384), Some(16_384));
        reader.limits(limits);
        ensure!(
            reader.format() != Some(ImageFormat::Jpeg) || jpeg_ends(bytes),
            "it is cut short: a JPEG file ends with the marker FF D9, which is missing"
        );
        let image = reader.decode()?;
        let (width, height) = (image.width() as usize, image.height() as usize);
        let exact = |side: usize| {
            ensure!(
                (width, height) == (side, side),
                "it is {width}x{height}, not {side}x{side}"
            );
            Ok(())
        };
        match self.fit {
            Fit::Exact => {
                exact(self.side)?;
                self.planes(image, planes);
            }
            Fit::Halve => {
                exact(2 * self.side)?;
                let whole = Decoder {
                    side: 2 * self.side,
                    ..self
                };
                let mut large = vec![0; 4 * planes.len()];
                whole.planes(image, &mut large);
                halve(&large, 2 * self.side, planes);
            }
            Fit::Crop => {
                ensure!(width > 0 && height > 0, "it has no pixel");
                let (width, height) = (image.width(), image.height());
                let square = width.min(height);
                let (x, y) = ((width - square) / 2, (height - square) / 2);
                let image = image.crop_imm(x, y, square, square);
                let side = self.side as u32;
                let image = image.resize_exact(side, side, FilterType::Triangle);
                self.planes(image, planes);
            }
        }
        Ok(())
    }

    fn planes(self, image: DynamicImage, planes: &mut [u8]) {
        if self.channels == 1 {
            planes.copy_from_slice(image.into_luma8().as_raw());
            return;
        }
        let image = image.into_rgb8();
        let plane = self.side * self.side;
        for (position, pixel) in image.as_raw().as_chunks::<3>().0.iter().enumerate() {
            for (channel, value) in pixel.iter().enumerate() {
                planes[channel * plane + position] = *value;
            }
        }
    }
}

/// Checks that a JPEG file has its end marker (ITU-T T.81, annex B): the decoder would fill what is
/// missing with grey.
///
/// Segments are passed over by their lengths, as an image in the metadata has an end marker of its
/// own. What follows the end is not looked at: zeros of a record, or what cameras append to
/// photographs.
fn jpeg_ends(bytes: &[u8]) -> bool {
    // Behind the start marker.
    let mut at = 2;
    while let Some(offset) = bytes
        .get(at..)
        .and_then(|rest| rest.iter().position(|byte| *byte == 0xFF))
    {
        at += offset + 1;
        match bytes.get(at..) {
            Some([0xD9, ..]) => return true,
            // Within coded data: a byte FF of its own, fill bytes, and markers without a segment.
            Some([0x00 | 0x01 | 0xFF | 0xD0..=0xD8, ..]) => {}
            Some([_, high, low, ..]) => at += 1 + usize::from(u16::from_be_bytes([*high, *low])),
            _ => return false,
        }
    }
    false
}

/// Averages 2x2 pixels of planes of `side` rows and columns, halves rounded up.
pub(super) fn halve(large: &[u8], side: usize, small: &mut [u8]) {
    let half = side / 2;
    for (row, out) in small.chunks_exact_mut(half).enumerate() {
        // Rows of all planes count through: each plane has an even number of them.
        let (above, below) = large[2 * row * side..2 * (row + 1) * side].split_at(side);
        for (x, out) in out.iter_mut().enumerate() {
            let sum: u16 = [above, below]
                .iter()
                .flat_map(|line| &line[2 * x..2 * x + 2])
                .map(|value| u16::from(*value))
                .sum();
            *out = ((sum + 2) / 4) as u8;
        }
    }
}

/// The JPEG file of an image, chroma not subsampled unless the encoder sees fit.
pub(super) fn jpeg(
    image: &[u8],
    [channels, height, width]: [usize; 3],
    quality: u8,
) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let mut encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(&mut bytes, quality);
    let (width, height) = (width as u32, height as u32);
    match channels {
        1 => encoder.encode(image, width, height, image::ExtendedColorType::L8)?,
        3 => {
            let plane = image.len() / 3;
            let pixels: Vec<u8> = (0..plane)
                .flat_map(|at| [image[at], image[plane + at], image[2 * plane + at]])
                .collect();
            encoder.encode(&pixels, width, height, image::ExtendedColorType::Rgb8)?;
        }
        _ => bail!("an image of {channels} channels has no JPEG form"),
    }
    Ok(bytes)
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::files::tests::error;
    use super::*;

    /// A JPEG of one colour.
    pub(in crate::data) fn flat_jpeg(side: usize, colour: [u8; 3]) -> Vec<u8> {
        let planes: Vec<u8> = colour
            .iter()
            .flat_map(|value| vec![*value; side * side])
            .collect();
        jpeg(&planes, [3, side, side], 90).unwrap()
    }

    fn png(width: u32, height: u32, pixel: impl Fn(u32, u32) -> [u8; 3]) -> Vec<u8> {
        let image = image::RgbImage::from_fn(width, height, |x, y| image::Rgb(pixel(x, y)));
        let mut bytes = Cursor::new(Vec::new());
        image.write_to(&mut bytes, image::ImageFormat::Png).unwrap();
        bytes.into_inner()
    }

    fn decode(decoder: Decoder, bytes: &[u8]) -> Result<Vec<u8>> {
        let file = ImageFile {
            name: "some/file".to_owned(),
            label: 3,
            bytes: bytes.to_vec(),
        };
        decoder.all(vec![3], |_| Ok(&file)).map(|set| set.images)
    }

    #[test]
    fn planes_hold_rows_of_each_channel() {
        let bytes = png(2, 2, |x, y| [10 * x as u8, 10 * y as u8, 7]);
        let mut decoder = Decoder {
            side: 2,
            channels: 3,
            fit: Fit::Exact,
        };
        assert_eq!(
            decode(decoder, &bytes).unwrap(),
            [0, 10, 0, 10, 0, 0, 10, 10, 7, 7, 7, 7]
        );
        decoder.channels = 1;
        let grey = png(2, 2, |x, y| [(50 * x + 100 * y) as u8; 3]);
        assert_eq!(decode(decoder, &grey).unwrap(), [0, 50, 100, 150]);
    }

    #[test]
    fn halving_averages_four_pixels() {
        let bytes = png(4, 4, |x, y| [(x + 4 * y) as u8, 200, (x % 2) as u8]);
        let decoder = Decoder {
            side: 2,
            channels: 3,
            fit: Fit::Halve,
        };
        let planes = decode(decoder, &bytes).unwrap();
        // Mean of 0, 1, 4, 5 is 2.5, rounded up; of 0 and 1 is 0.5, rounded up.
        assert_eq!(planes, [3, 5, 11, 13, 200, 200, 200, 200, 1, 1, 1, 1]);
    }

    #[test]
    fn cropping_keeps_the_centre() {
        // Red at both ends, the middle square green.
        let bytes = png(48, 16, |x, _| {
            if (16..32).contains(&x) {
                [0, 255, 0]
            } else {
                [255, 0, 0]
            }
        });
        let decoder = Decoder {
            side: 8,
            channels: 3,
            fit: Fit::Crop,
        };
        let planes = decode(decoder, &bytes).unwrap();
        assert!(
            planes[..64].iter().all(|red| *red == 0),
            "{:?}",
            &planes[..8]
        );
        assert!(planes[64..128].iter().all(|green| *green == 255));
    }

    #[test]
    fn a_file_that_is_no_image_or_has_another_size_is_named() {
        let decoder = Decoder {
            side: 32,
            channels: 3,
            fit: Fit::Exact,
        };
        let whole = flat_jpeg(32, [9; 3]);
        for (bytes, expected) in [
            (flat_jpeg(16, [9; 3]), "it is 16x16, not 32x32"),
            (whole[..whole.len() / 3].to_vec(), "some/file"),
            (whole[..whole.len() / 3].to_vec(), "cut short"),
            (b"nothing".to_vec(), "some/file"),
            (Vec::new(), "some/file"),
        ] {
            let message = error(decode(decoder, &bytes));
            assert!(message.contains(expected), "{message}");
        }
    }

    #[test]
    fn a_jpeg_cut_in_its_coded_data_is_refused() {
        let decoder = Decoder {
            side: 32,
            channels: 3,
            fit: Fit::Exact,
        };
        let noise: Vec<u8> = (0..3 * 32 * 32u32)
            .map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8)
            .collect();
        let plain = jpeg(&noise, [3, 32, 32], 90).unwrap();
        // A comment that holds an end marker, as the metadata of a camera does.
        let comment = [0xFF, 0xFE, 0x00, 0x06, 0xFF, 0xD9, 0xFF, 0xD9];
        let commented = [&plain[..2], &comment, &plain[2..]].concat();
        for whole in [plain, commented] {
            // Of 1,024 pixels of noise the coded data is more than half of the file.
            let planes = decode(decoder, &whole).unwrap();
            for behind in [&[0; 100][..], b"\xFF\xFF", b"a film"] {
                let longer = [&whole, behind].concat();
                assert_eq!(decode(decoder, &longer).unwrap(), planes);
            }
            for cut in [1, 2, 3, 100, whole.len() / 3] {
                let short = &whole[..whole.len() - cut];
                for bytes in [short.to_vec(), [short, &[0; 100]].concat()] {
                    let message = error(decode(decoder, &bytes));
                    assert!(
                        message.contains("some/file") && message.contains("is cut short"),
                        "{cut} bytes cut: {message}"
                    );
                }
            }
        }
    }

    #[test]
    fn the_ends_of_a_part_are_kept() {
        let set = Dataset {
            shape: [1, 1, 1],
            images: (0..9).collect(),
            labels: (0..9).collect(),
        };
        let mut raw = Raw::Planes(set);
        raw.keep_ends(5, 9);
        assert_eq!(raw.len(), 9);
        raw.keep_ends(2, 3);
        assert_eq!(raw.decode().unwrap().labels, [0, 1, 6, 7, 8]);
    }
}
