//! Refusals of the compiler, each with the node or layer it is about.

use std::fmt;

/// One reason why a network cannot be compiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Name of the node or layer; empty where the whole network is meant.
    pub node: String,
    /// The problem, and the remedy.
    pub message: String,
}

impl Fault {
    /// A fault of one node or layer.
    pub fn new(node: impl Into<String>, message: impl Into<String>) -> Self {
        Fault {
            node: node.into(),
            message: message.into(),
        }
    }
}

/// Prints `node: message`.
impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.node.is_empty() {
            return f.write_str(&self.message);
        }
        write!(f, "{}: {}", self.node, self.message)
    }
}

/// All faults that one pass found; at least one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused(pub Vec<Fault>);

impl Refused {
    /// A single fault.
    pub fn one(node: impl Into<String>, message: impl Into<String>) -> Self {
        Refused(vec![Fault::new(node, message)])
    }

    /// `value` if there is no fault, else all of them.
    pub(crate) fn unless_empty<T>(faults: Vec<Fault>, value: T) -> Result<T, Refused> {
        if faults.is_empty() {
            Ok(value)
        } else {
            Err(Refused(faults))
        }
    }
}

/// The verifier's faults, place by place.
impl From<Vec<pi_ir::verify::Fault>> for Refused {
    fn from(faults: Vec<pi_ir::verify::Fault>) -> Self {
        let faults = faults.into_iter();
        Refused(faults.map(|f| Fault::new(f.place, f.problem)).collect())
    }
}

/// One line per fault.
impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0[..] {
            [fault] => write!(f, "{fault}"),
            faults => {
                write!(f, "{} faults:", faults.len())?;
                faults.iter().try_for_each(|fault| write!(f, "\n  {fault}"))
            }
        }
    }
}

impl std::error::Error for Refused {}
