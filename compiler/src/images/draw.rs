//! Images drawn from a seed: gradients, discs and bars with noise. They cover the range of pixel
//! values, not the variety of real scenes.

use pi_ir::Shape;
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
