//! Text form of a graph's structure.

use super::line::{
    Line, ParseError, lines, parse_preprocessing, print_groups, print_kinds, quote,
    write_preprocessing,
};
use crate::circuit::divides;
use crate::graph::*;
use crate::limits;
use crate::shape::Shape;
use std::fmt::Write;

const KINDS: [(&str, ActivationKind); 3] = [
    ("relu", ActivationKind::Relu),
    ("identity", ActivationKind::Identity),
    ("polynomial", ActivationKind::Polynomial),
];

/// Origins by their words; a node that is not marked has none.
const ORIGINS: [(&str, Origin); 2] = [
    ("learned", Origin::Learned),
    ("statistics", Origin::Statistics),
];

/// The graph's structure as text, without its numbers.
pub fn print_graph(graph: &Graph) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write_graph(&mut text, graph);
    text
}

fn write_graph(text: &mut String, graph: &Graph) -> std::fmt::Result {
    writeln!(text, "graph {}", quote(&graph.name))?;
    write_preprocessing(text, &graph.preprocessing)?;
    if !graph.classes.is_empty() {
        let names: Vec<String> = graph.classes.iter().map(|c| quote(c)).collect();
        writeln!(text, "classes {}", names.join(" "))?;
    }
    for node in &graph.nodes {
        write!(text, "node {}", quote(&node.name))?;
        if let Some((word, _)) = ORIGINS.iter().find(|(_, o)| *o == node.origin) {
            write!(text, " {word}")?;
        }
        let inputs: String = node.inputs.iter().map(|id| format!(" %{}", id.0)).collect();
        match &node.op {
            Op::Input { shape } => write!(text, " input {shape}")?,
            Op::Conv2d {
                bias,
                out_channels,
                groups,
                kernel: k,
                stride: s,
                padding: p,
                ..
            } => {
                write!(
                    text,
                    " conv{inputs} out {out_channels}{} kernel {}x{} stride {}x{} pad {},{},{},{}",
                    print_groups(*groups),
                    k.0,
                    k.1,
                    s.0,
                    s.1,
                    p.top,
                    p.left,
                    p.bottom,
                    p.right
                )?;
                text.push_str(if bias.is_empty() { "" } else { " bias" });
            }
            Op::Dense { bias, out, .. } => {
                write!(text, " dense{inputs} out {out}")?;
                text.push_str(if bias.is_empty() { "" } else { " bias" });
            }
            Op::BatchNorm(norm) => write!(text, " norm{inputs} eps {}", norm.eps)?,
            Op::Add => write!(text, " add{inputs}")?,
            Op::Sub => write!(text, " sub{inputs}")?,
            Op::WindowSum(window) => write!(text, " window{inputs} {window}")?,
            Op::AvgPool {
                kernel: k,
                stride: s,
            } => {
                let (rows, columns) = (k.0, k.1);
                write!(
                    text,
                    " pool{inputs} kernel {rows}x{columns} stride {}x{}",
                    s.0, s.1
                )?;
            }
            Op::Flatten => write!(text, " flatten{inputs}")?,
            Op::Activation { kinds, .. } => {
                write!(text, " act{inputs} kinds{}", print_kinds(kinds, &KINDS))?;
            }
        }
        text.push('\n');
    }
    Ok(())
}

/// A graph of this structure, its weights zero; not verified beyond shapes.
///
/// # Errors
/// With the line's number, at the first line that is not understood or does not fit its inputs.
pub fn parse_graph(text: &str) -> Result<Graph, ParseError> {
    let (lines, end) = lines(text)?;
    let mut lines = lines.into_iter().peekable();
    let missing = |what: &str| ParseError {
        line: end,
        problem: format!("the text ends where {what} is expected"),
    };
    let mut line = lines.next().ok_or_else(|| missing("`graph`"))?;
    line.keyword("graph")?;
    let name = line.name()?;
    line.end()?;
    let mut graph = Graph {
        name,
        preprocessing: parse_preprocessing(&mut lines, &missing)?,
        classes: Vec::new(),
        nodes: Vec::new(),
    };
    let mut parser = Parser {
        shapes: Vec::new(),
        weights: 0,
    };
    for (index, mut line) in lines.enumerate() {
        if index == 0 && line.takes("classes") {
            graph.classes = line.names()?;
            continue;
        }
        let node = parser.node(&mut line)?;
        line.end()?;
        graph.nodes.push(node);
    }
    Ok(graph)
}

struct Parser {
    shapes: Vec<Shape>,
    /// Weights of all nodes so far, against a limit.
    weights: usize,
}

impl Parser {
    fn node(&mut self, line: &mut Line) -> Result<Node, ParseError> {
        line.keyword("node")?;
        let name = line.name()?;
        let origin = (ORIGINS.iter())
            .find(|(word, _)| line.takes(word))
            .map_or(Origin::Unmarked, |(_, origin)| *origin);
        let word = line.bare("an operation")?;
        let count = match word.as_str() {
            "input" => 0,
            "add" | "sub" => 2,
            _ => 1,
        };
        let mut inputs = Vec::new();
        let mut shapes = Vec::new();
        for _ in 0..count {
            let id = line.id('%')?;
            let shape = self.shapes.get(id as usize);
            shapes.push(*shape.ok_or_else(|| line.error(format!("%{id} is not an earlier node")))?);
            inputs.push(NodeId(id));
        }
        let op = self.op(line, &word, shapes.first().copied())?;
        let shape = op.output(&shapes).map_err(|why| line.error(why))?;
        self.shapes.push(shape);
        Ok(Node {
            name,
            op,
            inputs,
            origin,
        })
    }

    fn op(&mut self, line: &mut Line, word: &str, input: Option<Shape>) -> Result<Op, ParseError> {
        // Only `input` has none, and it does not use it.
        let channels = input.map_or(0, |s| s.c);
        Ok(match word {
            "input" => Op::Input {
                shape: line.shape()?,
            },
            "conv" => {
                let out_channels = line.value("out", "output channels")?;
                let groups = line.groups()?;
                if !divides(groups, channels) {
                    return Err(line.error(format!("{groups} groups of {channels} channels")));
                }
                let kernel = line.pair("kernel")?;
                let stride = line.pair("stride")?;
                let padding = line.padding()?;
                Op::Conv2d {
                    weight: self
                        .zeros(line, &[out_channels, channels / groups, kernel.0, kernel.1])?,
                    bias: self.bias(line, out_channels)?,
                    out_channels,
                    groups,
                    kernel,
                    stride,
                    padding,
                }
            }
            "dense" => {
                let out = line.value("out", "outputs")?;
                Op::Dense {
                    weight: self.zeros(line, &[out, channels])?,
                    bias: self.bias(line, out)?,
                    out,
                }
            }
            "norm" => {
                let eps = line.value("eps", "a number")?;
                let channels = self.zeros(line, &[channels])?.len();
                Op::BatchNorm(BatchNorm::new(channels, eps))
            }
            "add" => Op::Add,
            "sub" => Op::Sub,
            "window" => Op::WindowSum(line.window()?),
            "pool" => Op::AvgPool {
                kernel: line.pair("kernel")?,
                stride: line.pair("stride")?,
            },
            "flatten" => Op::Flatten,
            "act" => {
                line.keyword("kinds")?;
                let kinds = line.kinds(&KINDS)?;
                let count = match kinds.contains(&ActivationKind::Polynomial) {
                    true => self.zeros(line, &[channels])?.len(),
                    false => 0,
                };
                Op::Activation {
                    kinds,
                    coefficients: vec![[0.0; 3]; count],
                }
            }
            other => return Err(line.error(format!("`{other}` is not an operation"))),
        })
    }

    fn bias(&mut self, line: &mut Line, channels: u32) -> Result<Vec<f32>, ParseError> {
        match line.takes("bias") {
            true => self.zeros(line, &[channels]),
            false => Ok(Vec::new()),
        }
    }

    fn zeros(&mut self, line: &Line, sides: &[u32]) -> Result<Vec<f32>, ParseError> {
        let count = sides
            .iter()
            .fold(1usize, |n, &side| n.saturating_mul(side as usize));
        self.weights = self.weights.saturating_add(count);
        if self.weights > limits::KERNEL {
            return Err(line.error(format!("more than {} weights", limits::KERNEL)));
        }
        Ok(vec![0.0; count])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"graph "tiny"
mean 0.5 0.25
std 0.25 1
classes "a" "b"
node "input" input 2x4x4
node "conv" learned conv %0 out 3 kernel 3x2 stride 1x1 pad 1,0,1,1 bias
node "norm" statistics norm %1 eps 0.00001
node "act" act %2 kinds relu*30 identity polynomial*17
node "add" add %3 %2
node "by channel" conv %4 out 6 groups 3 kernel 1x1 stride 1x1 pad 0,0,0,0
node "halves" conv %5 out 3 kernel 1x1 stride 1x1 pad 0,0,0,0
node "second" window %6 1x1 stride 2x1 from -1,0 count 4x4
node "sub" sub %6 %7
node "pool" pool %8 kernel 3x3 stride 1x3
node "flat" flatten %9
node "fc" dense %10 out 2
"#;

    #[test]
    fn text_parses_and_prints_back() {
        let graph = parse_graph(TEXT).unwrap();
        assert_eq!(print_graph(&graph), TEXT);
        assert_eq!(crate::verify::graph(&graph), []);
    }

    #[test]
    fn errors_name_the_line() {
        let cases = [
            ("input 2x4x4", "input 2x4", 5, "shape"),
            ("conv %0", "conv %1", 6, "%1 is not an earlier node"),
            ("kernel 3x2", "kernel 9x2", 6, "does not fit"),
            ("out 3", "out 4000000000", 6, "more than"),
            ("pad 1,0,1,1", "pad 1,0,1", 6, "top, left"),
            ("add %3 %2", "add %3 %0", 9, "adds"),
            ("groups 3", "groups 2", 10, "groups"),
            ("window %6 1x1", "window %6 0x1", 12, "without rows"),
            ("sub %6 %7", "sub %6 %5", 13, "adds"),
            ("dense %10", "dense %8", 16, "flattened"),
            ("flatten", "flat", 15, "not an operation"),
        ];
        for (from, to, line, problem) in cases {
            let found = parse_graph(&TEXT.replacen(from, to, 1)).unwrap_err();
            assert_eq!(found.line, line, "{found}");
            assert!(found.problem.contains(problem), "{found}");
        }
    }

    #[test]
    fn no_prefix_and_no_changed_byte_panics() {
        for end in 0..TEXT.len() {
            let _ = parse_graph(&TEXT[..end]);
            let changed = [&TEXT[..end], "9", &TEXT[end + 1..]].concat();
            let _ = parse_graph(&changed);
        }
    }
}
