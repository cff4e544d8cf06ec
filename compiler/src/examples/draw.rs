//! Inputs drawn from a seed: images of gradients, discs and bars with noise, which cover the range
//! of pixel values, not the variety of real scenes; and noise where a network reads real values.

use pi_ir::{Preprocessing, Shape};
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};

/// One image `[c][h][w]`; the same seed draws the same image.
pub fn image(shape: Shape, seed: u64) -> Vec<u8> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut unit = || f64::from(rng.next_u32()) / f64::from(u32::MAX);
    let (h, w) = (f64::from(shape.h), f64::from(shape.w));
    let background: Vec<[f64; 3]> = (0..shape.c)
        .map(|_| [unit(), unit() - 0.5, unit() - 0.5])
        .collect();
    let shapes: Vec<Drawn> = (0..3)
        .map(|_| Drawn {
            disc: unit() < 0.5,
            centre: (unit() * h, unit() * w),
            radius: (0.1 + 0.3 * unit()) * h.min(w),
            colour: (0..shape.c).map(|_| unit()).collect(),
        })
        .collect();
    let noise = 0.1 * unit();
    let mut pixels = Vec::with_capacity(shape.len());
    for (c, [base, down, across]) in background.into_iter().enumerate() {
        for y in 0..shape.h {
            for x in 0..shape.w {
                let (y, x) = (f64::from(y), f64::from(x));
                let ground = base + down * y / h + across * x / w;
                let top = shapes.iter().rev().find(|s| s.covers(y, x));
                let value = top.map_or(ground, |s| s.colour[c]) + noise * (unit() - 0.5);
                pixels.push((value.clamp(0.0, 1.0) * 255.0).round() as u8);
            }
        }
    }
    pixels
}

/// Independent values `[c][h][w]` of the means and deviations that the preprocessing states, or 0
/// and 1; the same seed draws the same values. Each is a sum of twelve uniform numbers, which is
/// almost normal, and at most six deviations from its mean.
pub fn values(shape: Shape, preprocessing: &Preprocessing, seed: u64) -> Vec<f64> {
    let (mean, std, bound): (&[f32], &[f32], _) = match preprocessing {
        Preprocessing::Values { mean, std, bound } => (mean, std, *bound),
        _ => (&[], &[], None),
    };
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut unit = || f64::from(rng.next_u32()) / f64::from(u32::MAX);
    let reach = bound.map_or(f64::INFINITY, |bound| 0.999 * f64::from(bound));
    let plane = shape.h as usize * shape.w as usize;
    (0..shape.len())
        .map(|index| {
            let deviations = (0..12).map(|_| unit()).sum::<f64>() - 6.0;
            let of = |list: &[f32], default| list.get(index / plane).map_or(default, |&v| v.into());
            of(mean, 0.0) + deviations.clamp(-reach, reach) * of(std, 1.0)
        })
        .collect()
}

struct Drawn {
    disc: bool,
    centre: (f64, f64),
    radius: f64,
    colour: Vec<f64>,
}

impl Drawn {
    fn covers(&self, y: f64, x: f64) -> bool {
        let (dy, dx) = (y - self.centre.0, x - self.centre.1);
        if self.disc {
            dy.hypot(dx) <= self.radius
        } else {
            dy.abs() <= self.radius && dx.abs() <= self.radius / 3.0
        }
    }
}
