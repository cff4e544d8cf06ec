//! Names of a network's tensors: `<node>.<what>`.
//!
//! Checkpoints, the patterns of configurations (`freeze`, `optimiser.rates`) and the maps on the
//! device all use these names, so what each variant is called is part of the file format.

/// A trained tensor of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parameter {
    /// Weight of a convolution or of the classifier.
    Weight,
    /// Bias of a convolution or of the classifier.
    Bias,
    /// Scale behind a norm, per channel.
    Gamma,
    /// Shift behind a norm, per channel.
    Beta,
    /// `c` of a polynomial kernel `a (w.x + c)^2`, per channel.
    Shift,
    /// `ln a` of a polynomial kernel, per channel.
    LogScale,
    /// Coefficients of each channel's quadratic, `[3, c]`.
    Poly,
    /// Coefficients of each channel's quartic, `[5, c]`.
    Quartic,
    /// Weight of each position in a selection, `[c, h, w]`.
    Keep,
}

/// A tensor of a node that a step changes without a gradient.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Buffer {
    /// Running mean and variance of a norm, `[2, c]`.
    Moments,
    /// Running means and variances of the two basis functions of HerPN, `[4, c]`.
    HerPn,
    /// Smoothed minimum and maximum of a min-max norm, `[2, c]`.
    Extent,
    /// Factor of each position in a selection with hysteresis, `[c, h, w]`.
    Kept,
}

impl Parameter {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::Weight,
        Self::Bias,
        Self::Gamma,
        Self::Beta,
        Self::Shift,
        Self::LogScale,
        Self::Poly,
        Self::Quartic,
        Self::Keep,
    ];

    /// Last part of the tensor's name.
    pub const fn suffix(self) -> &'static str {
        match self {
            Self::Weight => "weight",
            Self::Bias => "bias",
            Self::Gamma => "gamma",
            Self::Beta => "beta",
            Self::Shift => "shift",
            Self::LogScale => "log_scale",
            Self::Poly => "poly",
            Self::Quartic => "quartic",
            Self::Keep => "keep",
        }
    }

    /// Name of this tensor of a node.
    pub fn of(self, node: &str) -> String {
        format!("{node}.{}", self.suffix())
    }

    /// Splits a tensor's name into its node and the parameter; none for other names.
    pub fn parse(name: &str) -> Option<(&str, Self)> {
        parse(name, &Self::ALL, Self::suffix)
    }
}

impl Buffer {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Moments, Self::HerPn, Self::Extent, Self::Kept];

    /// Last part of the tensor's name.
    pub const fn suffix(self) -> &'static str {
        match self {
            Self::Moments => "moments",
            Self::HerPn => "herpn",
            Self::Extent => "extent",
            Self::Kept => "kept",
        }
    }

    /// Name of this tensor of a node.
    pub fn of(self, node: &str) -> String {
        format!("{node}.{}", self.suffix())
    }

    /// Splits a tensor's name into its node and the buffer; none for other names.
    pub fn parse(name: &str) -> Option<(&str, Self)> {
        parse(name, &Self::ALL, Self::suffix)
    }
}

/// Node that the named tensor belongs to.
pub fn node_of(name: &str) -> &str {
    name.rsplit_once('.').map_or(name, |(node, _)| node)
}

fn parse<'a, T: Copy>(
    name: &'a str,
    all: &[T],
    suffix: impl Fn(T) -> &'static str,
) -> Option<(&'a str, T)> {
    let (node, last) = name.rsplit_once('.')?;
    let what = all.iter().copied().find(|what| suffix(*what) == last)?;
    Some((node, what))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_stored_checkpoints() {
        let parameters = Parameter::ALL.map(Parameter::suffix).join(" ");
        let expected = "weight bias gamma beta shift log_scale poly quartic keep";
        assert_eq!(parameters, expected);
        let buffers = Buffer::ALL.map(Buffer::suffix).join(" ");
        assert_eq!(buffers, "moments herpn extent kept");
    }

    #[test]
    fn a_name_gives_back_its_node_and_tensor() {
        for parameter in Parameter::ALL {
            let name = parameter.of("stage1.block1.act");
            assert_eq!(
                Parameter::parse(&name),
                Some(("stage1.block1.act", parameter))
            );
            assert_eq!(
                (Buffer::parse(&name), node_of(&name)),
                (None, "stage1.block1.act")
            );
        }
        for buffer in Buffer::ALL {
            assert_eq!(Buffer::parse(&buffer.of("stem")), Some(("stem", buffer)));
        }
        assert_eq!((Parameter::parse("keep"), node_of("keep")), (None, "keep"));
        assert_eq!(Parameter::parse("stem.keeper"), None);
    }
}
