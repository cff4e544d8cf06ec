//! What a network is asked about, before it is preprocessed.

/// One input of a network, `[c][h][w]`.
///
/// Tables and signals have this shape too: a row of `F` features is `[F, 1, 1]`, a signal of `C`
/// channels and `L` samples `[C, 1, L]`.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// The bytes of a picture, or of anything else that has 0 to 255 for the range of its values.
    Bytes(Vec<u8>),
    /// Real values, in the units of whoever made them.
    Values(Vec<f64>),
}

impl Input {
    /// Number of elements.
    pub fn len(&self) -> usize {
        match self {
            Input::Bytes(bytes) => bytes.len(),
            Input::Values(values) => values.len(),
        }
    }

    /// Returns whether there is no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl From<Vec<u8>> for Input {
    fn from(bytes: Vec<u8>) -> Self {
        Input::Bytes(bytes)
    }
}

impl From<Vec<f64>> for Input {
    fn from(values: Vec<f64>) -> Self {
        Input::Values(values)
    }
}

/// Why an input is not one of a network.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum InputError {
    /// A network of pictures is given real values.
    #[error("the network reads pictures of bytes, from 0 to 255, and is given real values")]
    Kind,
    /// A value is NaN, infinite, or beyond what the network was compiled for.
    #[error(
        "value {index} is {value}: the network was compiled for values from {low} to {high} in \
         channel {channel}, and its answer to others may be wrong"
    )]
    Beyond {
        /// Index of the value, in the order `[c][h][w]`.
        index: usize,
        /// The value.
        value: f64,
        /// Its channel: of a row of a table, the same.
        channel: usize,
        /// Least value of the channel.
        low: f64,
        /// Largest value of the channel.
        high: f64,
    },
}
