//! Text form of a circuit.

use super::line::{
    Line, Lines, ParseError, lines, next_with, parse_preprocessing, print_groups, print_kinds,
    quote, write_preprocessing,
};
use crate::circuit::*;
use crate::prefix::Prefix;
use crate::weights::{LayerWeights, Polynomial, PublicWeights, Weights};
use std::fmt::Write;

const KINDS: [(&str, Kind); 4] = [
    ("relu", Kind::Relu),
    ("identity", Kind::Identity),
    ("square", Kind::Square),
    ("polynomial", Kind::Polynomial),
];

/// The circuit as text.
pub fn print_circuit(circuit: &Circuit) -> String {
    let mut text = String::new();
    // Writing to a string cannot fail.
    let _ = write_circuit(&mut text, circuit);
    text
}

fn write_circuit(text: &mut String, circuit: &Circuit) -> std::fmt::Result {
    writeln!(text, "circuit {}", quote(&circuit.name))?;
    writeln!(
        text,
        "input {} frac {}",
        circuit.input, circuit.input_frac_bits
    )?;
    write_preprocessing(text, &circuit.preprocessing)?;
    if !circuit.classes.is_empty() {
        let names: Vec<String> = circuit.classes.iter().map(|c| quote(c)).collect();
        writeln!(text, "classes {}", names.join(" "))?;
    }
    if let Some(prefix) = &circuit.prefix {
        writeln!(
            text,
            "prefix {} frac {}",
            prefix.image, prefix.image_frac_bits
        )?;
        for (layer, weights) in prefix.layers.iter().zip(&prefix.weights.layers) {
            write_layer(text, layer)?;
            write_weights(text, weights)?;
        }
        writeln!(text, "private")?;
    }
    circuit
        .layers
        .iter()
        .try_for_each(|layer| write_layer(text, layer))
}

fn write_layer(text: &mut String, layer: &Layer) -> std::fmt::Result {
    writeln!(
        text,
        "layer {} {} bound {} {}{}",
        quote(&layer.name),
        layer.shape,
        layer.bound_bits,
        print_range(layer.range),
        print_guard(layer.guard_bits)
    )?;
    for term in &layer.terms {
        write_term(text, term)?;
    }
    if let Some(pool) = &layer.pool {
        writeln!(text, "  {}", print_pool(pool))?;
    }
    match &layer.step {
        Step::Output { frac_bits, reveal } => {
            writeln!(text, "  output frac {frac_bits} reveal {reveal}")
        }
        Step::Activate(activation) => write_activation(text, activation),
    }
}

/// Weights of a layer of the public prefix.
fn write_weights(text: &mut String, weights: &LayerWeights) -> std::fmt::Result {
    for kernel in &weights.kernels {
        writeln!(text, "  kernel{}", print_numbers(kernel))?;
    }
    writeln!(text, "  bias{}", print_numbers(&weights.bias))?;
    if !weights.element_bias.is_empty() {
        writeln!(text, "  elements{}", print_numbers(&weights.element_bias))?;
    }
    for Polynomial { a, b, k } in &weights.polynomials {
        writeln!(text, "  coefficients {a} {b} {k}")?;
    }
    Ok(())
}

fn print_numbers<T: std::fmt::Display>(numbers: &[T]) -> String {
    numbers.iter().map(|number| format!(" {number}")).collect()
}

fn write_term(text: &mut String, term: &Term) -> std::fmt::Result {
    match term {
        Term::Conv(conv) => {
            let (k, s, p) = (conv.kernel, conv.stride, conv.padding);
            writeln!(
                text,
                "  conv t{} out {}{} kernel {}x{} stride {}x{} pad {},{},{},{} bits {}",
                conv.input.0,
                conv.out_channels,
                print_groups(conv.groups),
                k.0,
                k.1,
                s.0,
                s.1,
                p.top,
                p.left,
                p.bottom,
                p.right,
                conv.weight_bits
            )
        }
        Term::Residual {
            input,
            window,
            shift,
            negative,
        } => {
            write!(text, "  residual t{} shift {shift}", input.0)?;
            if *negative {
                text.push_str(" minus");
            }
            match window {
                Some(window) => writeln!(text, " window {window}"),
                None => writeln!(text),
            }
        }
    }
}

fn write_activation(text: &mut String, activation: &Activation) -> std::fmt::Result {
    writeln!(
        text,
        "  activate truncate {} frac {}",
        activation.truncate, activation.frac_bits
    )?;
    let posts = [
        ("square", &activation.square),
        ("polynomial", &activation.polynomial),
    ];
    for (name, post) in posts {
        if let Some(post) = post {
            writeln!(
                text,
                "  {name} truncate {} bound {} {}",
                post.truncate,
                post.bound_bits,
                print_range(post.range)
            )?;
        }
    }
    writeln!(text, "  kinds{}", print_kinds(&activation.kinds, &KINDS))
}

fn print_pool(pool: &SumPool) -> String {
    let (k, s) = (pool.kernel, pool.stride);
    format!("pool {}x{} stride {}x{}", k.0, k.1, s.0, s.1)
}

/// Nothing, if nothing is checked.
fn print_guard(guard_bits: u8) -> String {
    match guard_bits {
        0 => String::new(),
        bits => format!(" guard {bits}"),
    }
}

fn print_range(range: Range) -> String {
    match range {
        Range::Proved => "proved".into(),
        Range::Calibrated { max_seen } => format!("calibrated {max_seen}"),
    }
}

/// The circuit in a text; not verified.
///
/// # Errors
/// With the line's number, at the first line that is not understood.
pub fn parse_circuit(text: &str) -> Result<Circuit, ParseError> {
    let (lines, end) = lines(text)?;
    let mut lines = lines.into_iter().peekable();
    let missing = |what: &str| ParseError {
        line: end,
        problem: format!("the text ends where {what} is expected"),
    };
    let mut line = lines.next().ok_or_else(|| missing("`circuit`"))?;
    line.keyword("circuit")?;
    let name = line.name()?;
    line.end()?;

    let mut line = lines.next().ok_or_else(|| missing("`input`"))?;
    line.keyword("input")?;
    let input = line.shape()?;
    let input_frac_bits = line.value("frac", "fractional bits")?;
    line.end()?;

    let preprocessing = parse_preprocessing(&mut lines, &missing)?;
    let classes = match next_with(&mut lines, "classes") {
        Some(mut line) => line.names()?,
        None => Vec::new(),
    };
    let prefix = match next_with(&mut lines, "prefix") {
        Some(line) => Some(parse_prefix(line, &mut lines, &missing)?),
        None => None,
    };
    let mut layers = Vec::new();
    while let Some(line) = lines.next() {
        layers.push(parse_layer(line, &mut lines, &missing)?);
    }
    Ok(Circuit {
        name,
        input,
        input_frac_bits,
        preprocessing,
        classes,
        prefix,
        layers,
    })
}

/// A public prefix after its keyword, with the word that ends it.
fn parse_prefix(
    mut head: Line,
    lines: &mut Lines,
    missing: &impl Fn(&str) -> ParseError,
) -> Result<Prefix, ParseError> {
    let image = head.shape()?;
    let image_frac_bits = head.value("frac", "fractional bits")?;
    head.end()?;
    let (mut layers, mut weights) = (Vec::new(), Vec::new());
    loop {
        let mut line = lines
            .next()
            .ok_or_else(|| missing("`private` or a layer of the prefix"))?;
        if line.takes("private") {
            line.end()?;
            break;
        }
        layers.push(parse_layer(line, lines, missing)?);
        weights.push(parse_weights(lines, missing)?);
    }
    Ok(Prefix {
        image,
        image_frac_bits,
        layers,
        weights: PublicWeights::publish(Weights { layers: weights }),
    })
}

fn parse_weights(
    lines: &mut Lines,
    missing: &impl Fn(&str) -> ParseError,
) -> Result<LayerWeights, ParseError> {
    let mut kernels = Vec::new();
    while let Some(mut line) = next_with(lines, "kernel") {
        kernels.push(line.numbers("a weight")?);
    }
    let mut line = lines.next().ok_or_else(|| missing("`bias`"))?;
    line.keyword("bias")?;
    let bias = line.numbers("a bias")?;
    let element_bias = match next_with(lines, "elements") {
        Some(mut line) => line.numbers("a bias")?,
        None => Vec::new(),
    };
    let mut polynomials = Vec::new();
    while let Some(mut line) = next_with(lines, "coefficients") {
        let mut next = || line.number("a coefficient");
        polynomials.push(Polynomial {
            a: next()?,
            b: next()?,
            k: next()?,
        });
        line.end()?;
    }
    Ok(LayerWeights {
        kernels,
        bias,
        element_bias,
        polynomials,
    })
}

fn parse_layer(
    mut head: Line,
    lines: &mut Lines,
    missing: &impl Fn(&str) -> ParseError,
) -> Result<Layer, ParseError> {
    head.keyword("layer")?;
    let name = head.name()?;
    let shape = head.shape()?;
    let bound_bits = head.value("bound", "bits of the bound")?;
    let range = parse_range(&mut head)?;
    let guard_bits = match head.takes("guard") {
        true => head.number("bits of the guard")?,
        false => 0,
    };
    head.end()?;
    let mut terms = Vec::new();
    let mut pool = None;
    loop {
        let mut line = lines
            .next()
            .ok_or_else(|| missing("a layer's `activate` or `output`"))?;
        let word = line.bare("a layer's part")?;
        let is_term = word == "conv" || word == "residual";
        if is_term && pool.is_some() {
            return Err(line.error("a layer's pool comes after its terms"));
        }
        let step = match word.as_str() {
            "conv" => {
                terms.push(parse_conv(&mut line)?);
                None
            }
            "residual" => {
                terms.push(parse_residual(&mut line)?);
                None
            }
            "pool" if pool.is_some() => return Err(line.error("a second pool in a layer")),
            "pool" => {
                pool = Some(parse_pool(&mut line)?);
                None
            }
            "output" => {
                let frac_bits = line.value("frac", "fractional bits")?;
                line.keyword("reveal")?;
                let reveal = match line.bare("`label` or `logits`")?.as_str() {
                    "label" => Reveal::Label,
                    "logits" => Reveal::Logits,
                    other => {
                        return Err(
                            line.error(format!("expected `label` or `logits`, found `{other}`"))
                        );
                    }
                };
                Some(Step::Output { frac_bits, reveal })
            }
            "activate" => {
                let truncate = line.value("truncate", "bits cut off")?;
                let frac_bits = line.value("frac", "fractional bits")?;
                line.end()?;
                let square = parse_post(lines, "square")?;
                let polynomial = parse_post(lines, "polynomial")?;
                line = lines.next().ok_or_else(|| missing("`kinds`"))?;
                line.keyword("kinds")?;
                Some(Step::Activate(Activation {
                    truncate,
                    frac_bits,
                    kinds: line.kinds(&KINDS)?,
                    square,
                    polynomial,
                }))
            }
            other => {
                return Err(line.error(format!(
                    "expected `conv`, `residual`, `pool`, `activate` or `output`, found `{other}`"
                )));
            }
        };
        line.end()?;
        if let Some(step) = step {
            return Ok(Layer {
                name,
                terms,
                pool,
                shape,
                bound_bits,
                range,
                guard_bits,
                step,
            });
        }
    }
}

fn parse_conv(line: &mut Line) -> Result<Term, ParseError> {
    Ok(Term::Conv(Conv {
        input: TensorId(line.id('t')?),
        out_channels: line.value("out", "output channels")?,
        groups: line.groups()?,
        kernel: line.pair("kernel")?,
        stride: line.pair("stride")?,
        padding: line.padding()?,
        weight_bits: line.value("bits", "bits of a weight")?,
    }))
}

fn parse_residual(line: &mut Line) -> Result<Term, ParseError> {
    let input = TensorId(line.id('t')?);
    let shift = line.value("shift", "bits")?;
    let negative = line.takes("minus");
    let window = match line.takes("window") {
        true => Some(line.window()?),
        false => None,
    };
    Ok(Term::Residual {
        input,
        window,
        shift,
        negative,
    })
}

/// A pool after its keyword.
fn parse_pool(line: &mut Line) -> Result<SumPool, ParseError> {
    Ok(SumPool {
        kernel: line.rows_and_columns()?,
        stride: line.pair("stride")?,
    })
}

fn parse_post(lines: &mut Lines, name: &str) -> Result<Option<PostTruncation>, ParseError> {
    let Some(mut line) = next_with(lines, name) else {
        return Ok(None);
    };
    let truncate = line.value("truncate", "bits cut off")?;
    let bound_bits = line.value("bound", "bits of the bound")?;
    let range = parse_range(&mut line)?;
    line.end()?;
    Ok(Some(PostTruncation {
        truncate,
        bound_bits,
        range,
    }))
}

fn parse_range(line: &mut Line) -> Result<Range, ParseError> {
    let word = line.bare("`proved` or `calibrated`")?;
    match word.as_str() {
        "proved" => Ok(Range::Proved),
        "calibrated" => Ok(Range::Calibrated {
            max_seen: line.number("the largest magnitude seen")?,
        }),
        _ => Err(line.error(format!("expected `proved` or `calibrated`, found `{word}`"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"circuit "ti \"n\\y"
input 1x3x3 frac 6
mean 0.5
std 0.25
classes "no" "yes # or no"
layer "conv" 1x3x3 bound 20 proved
  conv t0 out 1 kernel 2x2 stride 1x1 pad 0,0,1,1 bits 7
  residual t0 shift 3 minus window 2x1 stride 1x1 from -1,0 count 3x3
  residual t0 shift 7
  pool 1x1 stride 1x1
  activate truncate 7 frac 6
  square truncate 6 bound 28 proved
  polynomial truncate 9 bound 30 calibrated 77777
  kinds relu*4 identity square*3 polynomial
layer "dense" 2x1x1 bound 40 proved guard 4
  conv t1 out 2 kernel 3x3 stride 1x1 pad 0,0,0,0 bits 9
  output frac 12 reveal label
"#;

    #[test]
    fn text_parses_and_prints_back() {
        let circuit = parse_circuit(TEXT).unwrap();
        assert_eq!(print_circuit(&circuit), TEXT);
        assert_eq!(circuit.classes[1], "yes # or no");
        let with_comments = TEXT.replace("  output", "\n # the end\n  output");
        assert_eq!(parse_circuit(&with_comments).unwrap(), circuit);
    }

    #[test]
    fn a_public_prefix_parses_and_prints_back() {
        let prefix = r#"prefix 3x4x4 frac 7
layer "stem" 1x3x3 bound 20 proved
  conv t0 out 1 kernel 2x2 stride 1x1 pad 0,0,0,0 bits 7
  residual t0 shift 0
  activate truncate 7 frac 6
  polynomial truncate 9 bound 30 proved
  kinds polynomial*9
  kernel 1 -2 3 4 5 6 7 -8 9 10 11 12
  bias -100
  coefficients 1 -2 3
private
layer "conv""#;
        let text = TEXT.replacen("layer \"conv\"", prefix, 1);
        let circuit = parse_circuit(&text).unwrap();
        assert_eq!(print_circuit(&circuit), text);
        let prefix = circuit.prefix.as_ref().unwrap();
        assert_eq!(prefix.weights.layers[0].bias, [-100]);
        assert_eq!(circuit.image(), crate::shape::Shape::new(3, 4, 4));
        for (from, to, problem) in [
            ("private\n", "", "expected `bias`"),
            ("  bias -100\n", "", "expected `bias`"),
            ("coefficients 1 -2 3", "coefficients 1 -2", "a coefficient"),
            ("kernel 1 -2", "kernel 1 40000", "40000"),
        ] {
            let found = parse_circuit(&text.replacen(from, to, 1)).unwrap_err();
            assert!(found.problem.contains(problem), "{from}: {found}");
        }
    }

    #[test]
    fn errors_name_the_line() {
        let error = |from: &str, to: &str| {
            assert!(TEXT.contains(from), "{from}");
            parse_circuit(&TEXT.replacen(from, to, 1)).unwrap_err()
        };
        let cases = [
            ("input 1x3x3", "input 1x3", 2, "shape"),
            ("0.25", "quarter", 4, "a number"),
            ("\"yes # or no\"", "\"yes", 5, "closing quote"),
            ("bound 20 proved", "bound 20 hoped", 6, "hoped"),
            ("kernel 2x2", "kernal 2x2", 7, "`kernel`"),
            ("bits 7", "bits 700", 7, "700"),
            ("bits 7", "bits 7 8", 7, "end of the line"),
            (
                "pool 1x1 stride 1x1\n  activate",
                "pool 1 stride 1x1\n  activate",
                10,
                "rows",
            ),
            ("relu*4", "relu*4000000000", 14, "more than"),
            ("relu*4", "relo", 14, "relo"),
            ("  output frac 12 reveal label\n", "", 17, "ends"),
            (" reveal label", "", 17, "`reveal`"),
            ("reveal label", "reveal both", 17, "`label` or `logits`"),
        ];
        for (from, to, line, problem) in cases {
            let found = error(from, to);
            assert_eq!(found.line, line, "{found}");
            assert!(found.problem.contains(problem), "{found}");
        }
    }

    #[test]
    fn no_prefix_and_no_changed_byte_panics() {
        for end in 0..TEXT.len() {
            let _ = parse_circuit(&TEXT[..end]);
            let changed = [&TEXT[..end], "\"", &TEXT[end + 1..]].concat();
            let _ = parse_circuit(&changed);
        }
    }
}
