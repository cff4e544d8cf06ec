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

/// Windows of a tensor: where they lie, and how many there are. What they read outside the tensor
/// is zero.
///
/// Window `(i, j)` covers `kernel` rows and columns from row `origin.0 + i stride.0` and column
/// `origin.1 + j stride.1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Window {
    /// Rows and columns of a window.
    pub kernel: (u32, u32),
    /// Rows and columns from one window to the next.
    pub stride: (u32, u32),
    /// First row and column of the first window; negative in the zeros before the tensor.
    pub origin: (i32, i32),
    /// Windows down and across.
    pub count: (u32, u32),
}

impl Window {
    /// Shape of the sums over the windows of a tensor of shape `input`.
    pub fn output(&self, input: Shape) -> Shape {
        Shape::new(input.c, self.count.0, self.count.1)
    }

    /// Whether all windows lie in a tensor of shape `input`.
    pub fn inside(&self, input: Shape) -> bool {
        let side = |origin: i32, index: u32, stride: u32, kernel: u32, size: u32| {
            let last = u64::from(index) * u64::from(stride) + u64::from(kernel);
            origin >= 0 && origin as u64 + last <= u64::from(size)
        };
        let last = (
            self.count.0.saturating_sub(1),
            self.count.1.saturating_sub(1),
        );
        let (origin, stride, kernel) = (self.origin, self.stride, self.kernel);
        side(origin.0, last.0, stride.0, kernel.0, input.h)
            && side(origin.1, last.1, stride.1, kernel.1, input.w)
    }

    /// The sum over each window of `x` (`[c][h][w]`, of shape `input`): `[c][i][j]`.
    ///
    /// # Panics
    /// If `x` is not of that shape.
    pub fn sums<T: Copy>(&self, x: &[T], input: Shape, zero: T, add: impl Fn(T, T) -> T) -> Vec<T> {
        assert_eq!(x.len(), input.len(), "a tensor of {input}");
        let (rows, columns) = (input.h as usize, input.w as usize);
        let covered = |origin: i32, index: u32, stride: u32, kernel: u32, size: usize| {
            let first = i128::from(origin) + i128::from(index) * i128::from(stride);
            let clip = |at: i128| at.clamp(0, size as i128) as usize;
            clip(first)..clip(first + i128::from(kernel))
        };
        let mut sums = Vec::with_capacity(self.output(input).len());
        for plane in x.chunks_exact((rows * columns).max(1)) {
            for i in 0..self.count.0 {
                let down = covered(self.origin.0, i, self.stride.0, self.kernel.0, rows);
                for j in 0..self.count.1 {
                    let across = covered(self.origin.1, j, self.stride.1, self.kernel.1, columns);
                    let lines = down
                        .clone()
                        .map(|row| &plane[row * columns..][across.clone()]);
                    sums.push(lines.flatten().fold(zero, |sum, &value| add(sum, value)));
                }
            }
        }
        sums
    }
}

/// Prints `2x2 stride 2x2 from 0,0 count 16x16`.
impl std::fmt::Display for Window {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (k, s, o, n) = (self.kernel, self.stride, self.origin, self.count);
        write!(f, "{}x{} stride {}x{} ", k.0, k.1, s.0, s.1)?;
        write!(f, "from {},{} count {}x{}", o.0, o.1, n.0, n.1)
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
