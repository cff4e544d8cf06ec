//! Moves between `[n, c, h, w]` and `[n, h, w, c]`.

use rayon::prelude::*;

/// Pixels moved together: the part of a map that they fill stays in the first-level cache.
const PIXELS: usize = 64;

/// Writes maps `[n, c, plane]` as `[n, plane, c]`.
///
/// # Panics
/// If the slices differ in size, or hold no whole number of images.
pub fn channels_last(x: &[f32], channels: usize, plane: usize, out: &mut [f32]) {
    check(x, out, channels * plane);
    let images = x.par_chunks_exact(channels * plane);
    images
        .zip(out.par_chunks_exact_mut(channels * plane))
        .for_each(|(x, out)| {
            for (first, out) in (0..plane)
                .step_by(PIXELS)
                .zip(out.chunks_mut(PIXELS * channels))
            {
                let count = out.len() / channels;
                for (channel, x) in x.chunks_exact(plane).enumerate() {
                    let targets = out[channel..].iter_mut().step_by(channels);
                    for (target, value) in targets.zip(&x[first..first + count]) {
                        *target = *value;
                    }
                }
            }
        });
}

/// Writes maps `[n, plane, c]` as `[n, c, plane]`.
///
/// # Panics
/// As [`channels_last`].
pub fn channels_first(x: &[f32], channels: usize, plane: usize, out: &mut [f32]) {
    check(x, out, channels * plane);
    let images = x.par_chunks_exact(channels * plane);
    images
        .zip(out.par_chunks_exact_mut(channels * plane))
        .for_each(|(x, out)| {
            for (first, x) in (0..plane).step_by(PIXELS).zip(x.chunks(PIXELS * channels)) {
                let count = x.len() / channels;
                for (channel, out) in out.chunks_exact_mut(plane).enumerate() {
                    let values = x[channel..].iter().step_by(channels);
                    for (target, value) in out[first..first + count].iter_mut().zip(values) {
                        *target = *value;
                    }
                }
            }
        });
}

fn check(x: &[f32], out: &[f32], image: usize) {
    assert_eq!(x.len(), out.len(), "both layouts have the same size");
    assert!(
        x.len().is_multiple_of(image.max(1)),
        "whole images are moved"
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_move_to_the_end_and_back() {
        for (images, channels, plane) in [(1, 1, 1), (2, 3, 49), (3, 20, 130), (1, 64, 64)] {
            let count = images * channels * plane;
            let x: Vec<f32> = (0..count).map(|i| i as f32).collect();
            let (mut last, mut first) = (vec![0.0; count], vec![0.0; count]);
            channels_last(&x, channels, plane, &mut last);
            for (i, value) in last.iter().enumerate() {
                let (pixel, channel) = (i / channels, i % channels);
                let (image, pixel) = (pixel / plane, pixel % plane);
                assert_eq!(*value, x[(image * channels + channel) * plane + pixel]);
            }
            channels_first(&last, channels, plane, &mut first);
            assert_eq!(first, x);
        }
    }
}
