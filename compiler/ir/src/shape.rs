//! Shapes of tensors and windows. Everything is channel, row, column, in that order.

use serde::{Deserialize, Serialize};

/// Channels, rows and columns of one image's tensor; dense vectors are `[n, 1, 1]`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Shape {
    /// Channels.
    pub c: u32,
    /// Rows.
    pub h: u32,
    /// Columns.
    pub w: u32,
}

impl Shape {
    /// The shape `[c, h, w]`.
    pub const fn new(c: u32, h: u32, w: u32) -> Self {
        Shape { c, h, w }
    }

    /// Number of elements.
    pub const fn len(&self) -> usize {
        self.c as usize * self.h as usize * self.w as usize
    }

    /// Returns whether the tensor has no element (no verified circuit holds such a tensor).
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// Zeros added around a map before a convolution; may differ on each side.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Padding {
    /// Rows above.
    pub top: u32,
    /// Columns to the left.
    pub left: u32,
    /// Rows below.
    pub bottom: u32,
    /// Columns to the right.
    pub right: u32,
}

impl Padding {
    /// The same number of zeros on all four sides.
    pub const fn same(n: u32) -> Self {
        Padding {
            top: n,
            left: n,
            bottom: n,
            right: n,
        }
    }
}

/// Prints `3x32x32`.
impl std::fmt::Display for Shape {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}x{}x{}", self.c, self.h, self.w)
    }
}

/// Number of windows along one side, rounded down; `None` if none fits or a size is zero.
pub(crate) fn windows(size: u32, padding: (u32, u32), kernel: u32, stride: u32) -> Option<u32> {
    let padded = size.checked_add(padding.0)?.checked_add(padding.1)?;
    let count = padded
        .checked_sub(kernel)?
        .checked_div(stride)?
        .checked_add(1)?;
    (size > 0 && kernel > 0).then_some(count)
}
