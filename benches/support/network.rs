//! The networks of the benchmark: random weights through the compiler, kept as model directories
//! between runs.

use anyhow::{Context, Result, bail};
use pi_compiler::examples::Examples;
use pi_compiler::pass::select::Link;
use pi_compiler::{Options, compile, emit};
use pi_ir::builders::{
    Policy, Rest, lean9, mobilenet_v2, resnet18, resnet32, resnet50_large, wrn22_8,
};
use pi_ir::count::graph_activations;
use pi_ir::{BatchNorm, Graph, Op, Shape, artifact};
use pi_machine::Profile;
use rand_core::{OsRng, TryRngCore};
use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// A network: for 32x32 images and ten classes if nothing else is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Network {
    /// 557,056 activations, 0.56 G multiply-adds.
    #[value(name = "resnet18")]
    ResNet18,
    /// 303,104 activations, 0.07 G multiply-adds.
    #[value(name = "resnet32")]
    ResNet32,
    /// 1,392,640 activations, 2.4 G multiply-adds.
    #[value(name = "wrn22-8")]
    Wrn22,
    /// 81,560 activations, without residuals.
    #[value(name = "lean9")]
    Lean9,
    /// For 224x224 images and 1,000 classes: 9,608,704 activations, 4.1 G multiply-adds; an
    /// average pool stands for the maximum behind the stem.
    #[value(name = "resnet50")]
    ResNet50,
    /// For 224x224 images and 1,000 classes: 6,678,112 activations, 0.30 G multiply-adds.
    #[value(name = "mobilenetv2")]
    MobileNetV2,
}

/// Function of positions without ReLU.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum RestKind {
    /// The identity: values pass unchanged.
    Identity,
    /// `0.009 x^2 + 0.5 x + 0.47`.
    Poly,
}

/// Number of positions that keep their ReLU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Budget {
    /// A number of positions, drawn at random from all.
    Relus(usize),
    /// Every position.
    All,
}

impl FromStr for Budget {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "all" => Ok(Budget::All),
            number => number
                .parse()
                .map(Budget::Relus)
                .map_err(|_| format!("{number:?} is neither a number of ReLUs nor \"all\"")),
        }
    }
}

impl fmt::Display for Budget {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Budget::Relus(relus) => write!(f, "{relus}"),
            Budget::All => f.write_str("all"),
        }
    }
}

impl fmt::Display for Network {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Network::ResNet18 => "resnet18",
            Network::ResNet32 => "resnet32",
            Network::Wrn22 => "wrn22-8",
            Network::Lean9 => "lean9",
            Network::ResNet50 => "resnet50",
            Network::MobileNetV2 => "mobilenetv2",
        })
    }
}

impl Network {
    /// Rows and columns of an image.
    fn side(self) -> u32 {
        match self {
            Network::ResNet50 | Network::MobileNetV2 => 224,
            _ => 32,
        }
    }

    fn classes(self) -> u32 {
        match self {
            Network::ResNet50 | Network::MobileNetV2 => 1000,
            _ => 10,
        }
    }
}

impl fmt::Display for RestKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            RestKind::Identity => "identity",
            RestKind::Poly => "poly",
        })
    }
}

/// The network that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Subject {
    /// The architecture.
    pub(crate) network: Network,
    /// Positions with ReLU.
    pub(crate) relus: Budget,
    /// The other positions.
    pub(crate) rest: RestKind,
    /// Whether values outside the network's ranges are found.
    pub(crate) range_check: bool,
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.relus {
            Budget::All => write!(f, "{}-all", self.network)?,
            Budget::Relus(relus) => write!(f, "{}-{relus}-{}", self.network, self.rest)?,
        }
        f.write_str(if self.range_check { "" } else { "-unchecked" })
    }
}

/// Seed of the weights and of the positions.
const SEED: u64 = 1;
/// Images drawn for calibration; random weights have no rare inputs to look for.
const CALIBRATION_IMAGES: usize = 16;

impl Subject {
    /// The float graph.
    ///
    /// Norms carry a gain that keeps the second moment of activations level through the depth, as
    /// trained norms do: He's weights double it, a ReLU halves it, and identity elements leave that
    /// undone.
    ///
    /// # Errors
    /// If the network has fewer activations than are to keep their ReLU.
    pub(crate) fn graph(&self) -> Result<Graph> {
        let make = match self.network {
            Network::ResNet18 => resnet18,
            Network::ResNet32 => resnet32,
            Network::Wrn22 => wrn22_8,
            Network::Lean9 => lean9,
            Network::ResNet50 => resnet50_large,
            Network::MobileNetV2 => mobilenet_v2,
        };
        let rest = match self.rest {
            RestKind::Identity => Rest::Identity,
            RestKind::Poly => Rest::Polynomial,
        };
        let policy = match self.relus {
            Budget::All => Policy::Relu,
            Budget::Relus(relus) => Policy::Budget { relus, rest },
        };
        let mut graph = make(self.network.side(), self.network.classes(), policy, SEED);
        let counts = graph_activations(&graph);
        let total = counts.total();
        if let Budget::Relus(relus) = self.relus
            && relus > total
        {
            bail!(
                "{} has {total} activations, {relus} cannot be ReLUs: say \"all\"",
                self.network
            );
        }
        let relu_part = counts.relu as f64 / total as f64;
        // Second moment after the activation, for a unit normal before it.
        let rest_moment = match self.rest {
            RestKind::Identity => 1.0,
            // E (a x^2 + b x + c)^2 = 3 a^2 + b^2 + c^2 + 2 a c.
            RestKind::Poly => 3.0 * 0.009f64.powi(2) + 0.25 + 0.47f64.powi(2) + 2.0 * 0.009 * 0.47,
        };
        let moment = 2.0 * (0.5 * relu_part + rest_moment * (1.0 - relu_part));
        for node in &mut graph.nodes {
            if let Op::BatchNorm(BatchNorm { gamma, .. }) = &mut node.op {
                gamma.fill((1.0 / moment).sqrt() as f32);
            }
        }
        Ok(graph)
    }

    /// The directory of the model compiled for a machine, which is compiled now unless an earlier
    /// run of this program left it.
    ///
    /// # Errors
    /// If the compiler refuses the graph, or the directory cannot be written.
    pub(crate) fn model(&self, machine: &Profile) -> Result<PathBuf> {
        // Packed for this machine.
        let rates = serde_json::to_vec(&machine.linear)?;
        let rates = blake3::hash(&rates).to_hex();
        let directory = models()?.join(format!("{self}-{}", &rates[..8]));
        if directory.join(artifact::ARTIFACT_NAME).exists() {
            return Ok(directory);
        }
        eprintln!("compiling {self}");
        let graph = self.graph()?;
        let side = self.network.side();
        let calibration = Examples::synthetic(Shape::new(3, side, side), CALIBRATION_IMAGES, SEED);
        let options = Options {
            link: Link {
                machine: machine.clone(),
                ..Link::default()
            },
            range_check: self.range_check,
            ..Options::default()
        };
        let compiled = compile(&graph, &calibration, &options)
            .with_context(|| format!("cannot compile {self}"))?;
        let mut salt = [0; 32];
        OsRng
            .try_fill_bytes(&mut salt)
            .context("no random numbers from the system")?;
        let (public, weights) = emit::files(&compiled, salt, None, "Random weights.");
        std::fs::create_dir_all(&directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        // The artifact comes last and by renaming: a directory that has one is complete.
        std::fs::write(directory.join(artifact::WEIGHTS_NAME), weights.encode())?;
        let part = directory.join("part");
        std::fs::write(&part, public.encode())?;
        std::fs::rename(&part, directory.join(artifact::ARTIFACT_NAME))?;
        Ok(directory)
    }
}

/// The directory of models: one for each build of the compiler, because another build may
/// compile otherwise.
fn models() -> Result<PathBuf> {
    let program = std::env::current_exe()?;
    let build = blake3::hash(&std::fs::read(&program)?);
    let name = format!("models-{}", &build.to_hex()[..16]);
    let here = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
    // Models of earlier builds of this program are of no use any more, and large.
    let mark = here.join(format!(
        "models-of-{}",
        program.file_stem().unwrap_or_default().to_string_lossy()
    ));
    if let Ok(earlier) = std::fs::read_to_string(&mark)
        && earlier != name
        && earlier.starts_with("models-")
    {
        let _ = std::fs::remove_dir_all(here.join(earlier));
    }
    std::fs::create_dir_all(here.join(&name))?;
    std::fs::write(&mark, &name)?;
    Ok(here.join(name))
}
