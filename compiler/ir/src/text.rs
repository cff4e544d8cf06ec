//! Text forms: a circuit in full, and the structure of a graph, one item per line.
//!
//! Printing and parsing are inverse to each other. A line holds words, names in double quotes and
//! `key value` pairs in a fixed order; `#` starts a comment. A circuit:
//!
//! ```text
//! circuit "tiny"
//! input 1x3x3 frac 6
//! mean 0.5
//! std 0.25
//! classes "no" "yes"
//! layer "conv" 1x3x3 bound 20 proved
//!   conv t0 out 1 kernel 2x2 stride 1x1 pad 0,0,1,1 bits 7
//!   residual t0 shift 3 pool 2x2 stride 2x2
//!   pool 2x2 stride 2x2
//!   activate truncate 7 frac 6
//!   square truncate 6 bound 28 proved
//!   polynomial truncate 9 bound 30 calibrated 77777
//!   kinds relu*4 identity square*3 polynomial
//! layer "dense" 2x1x1 bound 40 proved
//!   conv t1 out 2 kernel 3x3 stride 1x1 pad 0,0,0,0 bits 9
//!   output frac 12 reveal label
//! ```
//!
//! A public prefix stands before the layers: `prefix 3x32x32 frac 7` (the image), layers each with
//! its weights in lines `kernel`, `bias` and `coefficients`, and the word `private`.
//!
//! Before `mean` and `std`, `values bound 4` says that the input is of real values, and `values`
//! the same with a bound that is open. Instead of the two, `standardise floor 20` stands for the
//! preprocessing of each image by its own statistics. Tensors are written `t0` (the input), `t1`,
//! ...; padding is top, left, bottom, right. In a graph, a node reads `%0`, `%1`, ...:
//!
//! ```text
//! graph "tiny"
//! mean 0.5
//! std 0.25
//! node "input" input 1x3x3
//! node "conv" learned conv %0 out 4 kernel 3x3 stride 1x1 pad 1,1,1,1 bias
//! node "norm" norm %1 eps 0.00001
//! node "act" act %2 kinds relu*30 polynomial*6
//! node "add" add %3 %2
//! node "pool" pool %4 kernel 3x3 stride 3x3
//! node "flat" flatten %5
//! node "fc" dense %6 out 10
//! ```
//!
//! `learned` or `statistics` before an operation is the origin of the node's numbers, if it is
//! marked.
//!
//! A graph's numbers are not part of its structure: parsing sets weights, biases, shifts, means and
//! coefficients to zero, scales and variances to one.

mod circuit;
mod graph;
mod line;

pub use circuit::{parse_circuit, print_circuit};
pub use graph::{parse_graph, print_graph};
pub use line::ParseError;
