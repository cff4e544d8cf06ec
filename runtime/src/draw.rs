//! An image that the demo draws itself: a freighter at sea.
//!
//! The scene is a function from the unit square to colours; each pixel averages it over a grid of
//! samples, which is all the antialiasing it needs.

use image::{Rgb, RgbImage};

/// Draws the freighter, `side` by `side` pixels.
pub fn freighter(side: u32) -> RgbImage {
    /// Samples per pixel and direction.
    const SAMPLES: u32 = 5;
    RgbImage::from_fn(side, side, |column, row| {
        let mut sum = [0.0; 3];
        for sample in 0..SAMPLES * SAMPLES {
            let offset = |index: u32| (f64::from(index) + 0.5) / f64::from(SAMPLES);
            let x = (f64::from(column) + offset(sample % SAMPLES)) / f64::from(side);
            let y = (f64::from(row) + offset(sample / SAMPLES)) / f64::from(side);
            let Colour(colour) = scene(x, y);
            for (sum, value) in sum.iter_mut().zip(colour) {
                *sum += value;
            }
        }
        Rgb(sum.map(|sum| (sum / f64::from(SAMPLES * SAMPLES)).round() as u8))
    })
}

/// Red, green and blue from 0 to 255.
#[derive(Clone, Copy)]
struct Colour([f64; 3]);

impl Colour {
    fn towards(self, other: Colour, part: f64) -> Colour {
        let mut mixed = self.0;
        for (value, goal) in mixed.iter_mut().zip(other.0) {
            *value += (goal - *value) * part.clamp(0.0, 1.0);
        }
        Colour(mixed)
    }
}

const HORIZON: f64 = 0.55;

fn scene(x: f64, y: f64) -> Colour {
    let waterline = 0.745 + 0.006 * (x * 61.0).sin() + 0.004 * (x * 23.0 + 1.0).sin();
    if y < waterline
        && let Some(colour) = ship(x, y)
    {
        return colour;
    }
    if y < HORIZON { sky(x, y) } else { sea(x, y) }
}

fn sky(x: f64, y: f64) -> Colour {
    let clear = Colour([118.0, 158.0, 204.0]).towards(Colour([206.0, 220.0, 232.0]), y / HORIZON);
    // Two rows of soft clouds.
    let cloud = |cx: f64, cy: f64, rx: f64, ry: f64| {
        let distance = ((x - cx) / rx).powi(2) + ((y - cy) / ry).powi(2);
        (1.0 - distance).max(0.0)
    };
    let cover = cloud(0.2, 0.13, 0.25, 0.06)
        + cloud(0.36, 0.17, 0.2, 0.05)
        + cloud(0.85, 0.2, 0.24, 0.05)
        + cloud(0.7, 0.08, 0.15, 0.04);
    clear.towards(Colour([244.0, 246.0, 248.0]), 0.8 * cover)
}

fn sea(x: f64, y: f64) -> Colour {
    let depth = (y - HORIZON) / (1.0 - HORIZON);
    let water = Colour([92.0, 132.0, 162.0]).towards(Colour([30.0, 66.0, 100.0]), depth);
    // Crests lie closer together towards the horizon.
    let rows = 26.0 * (1.0 + depth).ln() / 2f64.ln();
    let crest =
        (std::f64::consts::TAU * rows + 3.0 * (9.0 * x + 5.0 * depth).sin() + 7.0 * x).sin();
    let lit = water.towards(Colour([170.0, 196.0, 210.0]), 0.28 * crest.max(0.0).powi(3));
    // The hull's shadow.
    let shadow = (1.0 - ((x - 0.5) / 0.42).powi(2) - ((y - 0.77) / 0.07).powi(2)).max(0.0);
    lit.towards(Colour([22.0, 36.0, 52.0]), 0.75 * shadow)
}

fn ship(x: f64, y: f64) -> Option<Colour> {
    // The hull: a long trapezium with a raised bow on the right.
    let deck = if x > 0.78 {
        0.585 - 0.12 * (x - 0.78)
    } else {
        0.605
    };
    let left = 0.085 + 0.18 * (y - 0.6);
    let right = 0.945 - 0.62 * (y - 0.58);
    if y > deck && x > left && x < right {
        return Some(match y {
            y if y > 0.715 => Colour([140.0, 44.0, 38.0]),
            y if y < deck + 0.014 => Colour([226.0, 226.0, 220.0]),
            _ => Colour([34.0, 40.0, 54.0]),
        });
    }
    // The bridge at the stern, with two rows of windows, and its funnel.
    let within = |x0: f64, x1: f64, y0: f64, y1: f64| x > x0 && x < x1 && y > y0 && y < y1;
    if within(0.14, 0.31, 0.40, 0.606) || within(0.12, 0.33, 0.43, 0.455) {
        let pane = (x * 46.0).fract() < 0.6;
        let window = pane && (within(0.15, 0.30, 0.475, 0.5) || within(0.15, 0.30, 0.535, 0.56));
        return Some(match window {
            true => Colour([52.0, 66.0, 84.0]),
            false => Colour([236.0, 236.0, 232.0])
                .towards(Colour([190.0, 194.0, 200.0]), 5.0 * (x - 0.2)),
        });
    }
    if within(0.185, 0.245, 0.30, 0.40) {
        return Some(match within(0.185, 0.245, 0.325, 0.355) {
            true => Colour([238.0, 234.0, 226.0]),
            false => Colour([176.0, 52.0, 42.0]),
        });
    }
    // Containers on deck, in rows and colours.
    let stack = [
        (0.37, 0.50, 0.515),
        (0.51, 0.64, 0.485),
        (0.65, 0.76, 0.525),
    ];
    for (index, (from, to, top)) in stack.into_iter().enumerate() {
        if within(from, to, top, 0.606) {
            let layer = ((0.606 - y) / 0.033) as usize;
            let colours = [
                Colour([178.0, 86.0, 48.0]),
                Colour([66.0, 104.0, 146.0]),
                Colour([150.0, 152.0, 150.0]),
            ];
            return Some(colours[(layer + index) % colours.len()]);
        }
    }
    // Masts.
    let mast = within(0.795, 0.807, 0.40, 0.6) || within(0.77, 0.832, 0.44, 0.45);
    mast.then_some(Colour([206.0, 196.0, 168.0]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sky_is_above_sea_and_the_hull_between() {
        let image = freighter(64);
        let at = |x: u32, y: u32| image.get_pixel(x, y).0.map(i32::from);
        let (sky, hull, sea) = (at(32, 4), at(32, 42), at(32, 60));
        assert!(sky[2] > 180, "{sky:?}");
        assert!(hull.iter().all(|&v| v < 80), "{hull:?}");
        assert!(sea[2] > sea[0] + 20 && sea[2] < 180, "{sea:?}");
    }

    #[test]
    fn a_drawing_is_the_same_every_time() {
        assert_eq!(freighter(32), freighter(32));
    }
}
