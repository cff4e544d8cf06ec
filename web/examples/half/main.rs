//! The server's half for tests of the module, and the judge of its answers.
//!
//!     half serve MODEL               operations on standard input and output, one after the other
//!     half exact MODEL PIXELS SHARES the exact interpreter's answer: pixels [c][h][w] and the
//!                                    client's shares, in hexadecimal digits, in two files
//!     half logits MODEL OUT          the same model, which reveals its logits, in another folder

mod serve;

use anyhow::{Context, Result, bail};
use pi_ir::artifact::{ARTIFACT_NAME, WEIGHTS_NAME};
use pi_ir::{Artifact, Reveal, WeightsFile};
use pi_protocol::session::Answer;
use pi_protocol::{Channel, Error};
use std::io::{Read, Write};
use std::path::Path;

/// Standard input and output as a line.
struct Pipe;

impl Channel for Pipe {
    async fn send(&mut self, message: Vec<u8>) -> Result<(), Error> {
        let mut out = std::io::stdout().lock();
        let length = (message.len() as u32).to_le_bytes();
        let written = out
            .write_all(&length)
            .and_then(|()| out.write_all(&message));
        written.and_then(|()| out.flush()).map_err(lost)
    }

    async fn receive(&mut self, limit: usize) -> Result<Vec<u8>, Error> {
        let mut length = [0; 4];
        let mut input = std::io::stdin().lock();
        input.read_exact(&mut length).map_err(lost)?;
        let length = u32::from_le_bytes(length) as usize;
        assert!(length <= limit, "{length} bytes, at most {limit}");
        let mut message = vec![0; length];
        input.read_exact(&mut message).map_err(lost)?;
        Ok(message)
    }
}

fn lost(error: std::io::Error) -> Error {
    Error::Channel {
        what: error.to_string(),
    }
}

fn read(model: &Path) -> Result<(Artifact, WeightsFile)> {
    let artifact = Artifact::decode(&std::fs::read(model.join(ARTIFACT_NAME))?)?;
    let weights = WeightsFile::decode(&std::fs::read(model.join(WEIGHTS_NAME))?)?;
    Ok((artifact, weights))
}

fn digits(path: &str) -> Result<Vec<u8>> {
    let text = std::fs::read_to_string(path)?;
    let pairs = text.trim().as_bytes().as_chunks::<2>().0.iter();
    let byte = |pair: &[u8; 2]| Ok(u8::from_str_radix(std::str::from_utf8(pair)?, 16)?);
    pairs.map(byte).collect()
}

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments[..] {
        ["serve", model] => {
            let (artifact, weights) = read(Path::new(model))?;
            let mut half = serve::Half::new(artifact, weights);
            while futures_executor::block_on(half.serve(&mut Pipe)).is_ok() {}
        }
        ["exact", model, pixels, shares] => {
            let (artifact, weights) = read(Path::new(model))?;
            let trace = pi_web::shares::decode(&digits(shares)?).context("shares cut short")?;
            let answer = serve::exact(&artifact, &weights, &digits(pixels)?, &trace);
            match answer {
                Answer::Label(label) => println!("label {label}"),
                Answer::Logits(logits) => println!("logits {logits:?}"),
                Answer::OutOfRange => println!("out of range"),
            }
        }
        ["logits", model, out] => {
            let (artifact, weights) = read(Path::new(model))?;
            let (artifact, out) = (artifact.with_reveal(Reveal::Logits)?, Path::new(out));
            std::fs::create_dir_all(out)?;
            std::fs::write(out.join(ARTIFACT_NAME), artifact.encode())?;
            std::fs::write(out.join(WEIGHTS_NAME), weights.encode())?;
        }
        _ => bail!("half serve MODEL, half exact MODEL PIXELS SHARES, or half logits MODEL OUT"),
    }
    Ok(())
}
