//! Checks of graphs, circuits and weights. Each lists every fault it finds, with the place.
//!
//! What passes here can be evaluated, compiled or run without further checks: identifiers point
//! backwards, shapes agree, windows fit, lists have their lengths, bounds leave the field room, and
//! nothing is larger than [`crate::limits`] allow.
//!
//! A circuit that passed is a [`Verified`] one. Code that relies on these properties asks for
//! `&Verified<Circuit>`, so that a circuit is checked once, where it enters the program.

mod circuit;
mod graph;
mod weights;

pub use circuit::circuit;
pub(crate) use circuit::unread_element;
pub use graph::graph;
pub use weights::weights;

use crate::limits;
use crate::preprocessing::Preprocessing;
use crate::shape::{Shape, Window};
use serde::Serialize;
use std::collections::HashSet;
use std::fmt;
use std::ops::Deref;

/// A value in which the verifier found no fault. Only the functions of this module make one, and it
/// cannot be changed: take the value out, change that, and verify it again.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Verified<T>(T);

impl<T> Verified<T> {
    /// The value, no longer known to be free of faults once it is changed.
    pub fn into_inner(self) -> T {
        self.0
    }

    /// Tests of encodings need values that no verifier would pass.
    #[cfg(test)]
    pub(crate) fn unchecked(value: T) -> Self {
        Verified(value)
    }
}

impl<T> Deref for Verified<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Place of the fault: `layer conv1`, `node 3 (bn)`, `input`.
    pub place: String,
    /// The problem, and what would be right.
    pub problem: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.problem)
    }
}

/// Faults found so far.
#[derive(Default)]
struct Faults(Vec<Fault>);

impl Faults {
    fn add(&mut self, place: &str, problem: impl Into<String>) {
        self.0.push(Fault {
            place: place.into(),
            problem: problem.into(),
        });
    }

    fn require(&mut self, holds: bool, place: &str, problem: impl FnOnce() -> String) {
        if !holds {
            self.add(place, problem());
        }
    }

    fn length(&mut self, place: &str, what: &str, expected: usize, got: usize) {
        self.require(expected == got, place, || {
            format!("expected {expected} {what}, got {got}")
        });
    }

    fn name(&mut self, place: &str, name: &str) {
        self.require(
            !name.is_empty() && name.len() <= limits::NAME,
            place,
            || format!("a name has 1 to {} bytes, not {}", limits::NAME, name.len()),
        );
        self.require(!name.chars().any(char::is_control), place, || {
            "a name has no control characters".into()
        });
    }

    fn unique<'a>(&mut self, names: impl Iterator<Item = (String, &'a str)>) {
        let mut seen = HashSet::new();
        for (place, name) in names {
            self.name(&place, name);
            self.require(seen.insert(name), &place, || {
                format!("a second {name:?}; names are unique")
            });
        }
    }

    /// Windows that are not empty, near the tensor, and quickly summed.
    fn window(&mut self, place: &str, input: Shape, window: &Window) {
        let (kernel, stride, origin) = (window.kernel, window.stride, window.origin);
        let sides = [kernel.0, kernel.1, stride.0, stride.1];
        let none = sides.contains(&0) || window.output(input).is_empty();
        self.require(!none, place, || {
            "no windows, or windows without rows, columns or stride".into()
        });
        let largest = sides
            .into_iter()
            .chain([origin.0.unsigned_abs(), origin.1.unsigned_abs()]);
        self.require(largest.max() <= Some(limits::SIDE), place, || {
            format!(
                "a side or the origin of its windows exceeds {}",
                limits::SIDE
            )
        });
        self.window_reads(place, window.output(input), kernel);
    }

    /// Elements that are read for the sums over windows.
    fn window_reads(&mut self, place: &str, output: Shape, kernel: (u32, u32)) {
        let reads = [output.h, output.w, kernel.0, kernel.1]
            .iter()
            .fold(u64::from(output.c), |n, &side| {
                n.saturating_mul(side.into())
            });
        self.require(reads <= limits::WINDOW_READS, place, || {
            format!(
                "windows that read {reads} elements, the limit is {}",
                limits::WINDOW_READS
            )
        });
    }

    fn shape(&mut self, place: &str, shape: Shape) {
        let sides = [shape.c, shape.h, shape.w];
        self.require(!sides.contains(&0), place, || {
            format!("the shape {shape} is empty")
        });
        self.require(within_limits(shape), place, || {
            format!(
                "the shape {shape} exceeds the limits of {} per side and {} elements",
                limits::SIDE,
                limits::ELEMENTS
            )
        });
    }

    /// Means and deviations of the channels and the bound of their values, or the floor of an
    /// image's own deviation.
    fn preprocessing(&mut self, preprocessing: &Preprocessing, channels: u32) {
        let positive = |s: &f32| s.is_finite() && *s > 0.0;
        let (mean, std) = match preprocessing {
            Preprocessing::Channels { mean, std } => (mean, std),
            Preprocessing::Values { mean, std, bound } => {
                self.require(bound.iter().all(positive), "input", || {
                    "the bound is not positive and finite".into()
                });
                (mean, std)
            }
            Preprocessing::Image { floor } => {
                return self.require(*floor > 0, "input", || {
                    "the floor of the deviation is 0; it is 1 to 255".into()
                });
            }
        };
        self.length("input", "means", channels as usize, mean.len());
        self.length("input", "deviations", channels as usize, std.len());
        self.require(mean.iter().all(|m| m.is_finite()), "input", || {
            "a mean is not finite".into()
        });
        self.require(std.iter().all(positive), "input", || {
            "a deviation is not positive and finite".into()
        });
    }

    fn classes(&mut self, classes: &[String], logits: Option<Shape>) {
        self.require(classes.len() <= limits::CLASSES, "classes", || {
            format!("more than {}", limits::CLASSES)
        });
        for (index, class) in classes.iter().enumerate() {
            self.name(&format!("class {index}"), class);
        }
        if let (Some(shape), false) = (logits, classes.is_empty()) {
            let logits = Shape::new(u32::try_from(classes.len()).unwrap_or(u32::MAX), 1, 1);
            self.require(shape == logits, "classes", || {
                format!("{} names for an output of {shape}", classes.len())
            });
        }
    }
}

fn within_limits(shape: Shape) -> bool {
    // Three sides of at most 2^20 multiply to at most 2^60.
    let sides = [shape.c, shape.h, shape.w];
    sides.iter().all(|&s| s <= limits::SIDE) && shape.len() <= limits::ELEMENTS
}

/// Shown after a list of faults was found where none may be.
pub(crate) fn list(faults: &[Fault]) -> String {
    let lines: Vec<String> = faults.iter().map(Fault::to_string).collect();
    lines.join("; ")
}

#[cfg(test)]
mod tests;
