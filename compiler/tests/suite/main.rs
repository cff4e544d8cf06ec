//! The tests of the compiler from without, in one program: linking one more takes as long as many
//! tests.

mod accuracy;
mod cases;
mod command;
mod costs;
mod defects;
mod flooding;
mod guards;
mod networks;
mod onnx;
mod page;
mod passes;
mod prefix;
mod processor;
mod quantisation;
mod squares;
mod support;
mod trace;
