//! Seconds of a processor, by party, and the name of this machine's.

use serde::{Deserialize, Serialize};
use std::ops::{Add, Mul, Sub};

/// Processor seconds of each party.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Cpu {
    /// The client's.
    pub client_s: f64,
    /// The server's.
    pub server_s: f64,
}

impl Cpu {
    /// Seconds of both parties.
    pub const fn new(client_s: f64, server_s: f64) -> Self {
        Cpu { client_s, server_s }
    }

    /// Seconds of both parties together.
    pub fn total(&self) -> f64 {
        self.client_s + self.server_s
    }
}

impl Add for Cpu {
    type Output = Cpu;

    fn add(self, other: Cpu) -> Cpu {
        Cpu::new(
            self.client_s + other.client_s,
            self.server_s + other.server_s,
        )
    }
}

impl Sub for Cpu {
    type Output = Cpu;

    fn sub(self, other: Cpu) -> Cpu {
        self + other * -1.0
    }
}

impl Mul<f64> for Cpu {
    type Output = Cpu;

    fn mul(self, factor: f64) -> Cpu {
        Cpu::new(self.client_s * factor, self.server_s * factor)
    }
}

/// Name of this machine's processor as the system gives it, with family and model where it does:
/// clouds call processors of several generations by one name. The architecture alone where the
/// system tells nothing.
pub fn processor_name() -> String {
    let info = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    name_in(&info).unwrap_or_else(|| std::env::consts::ARCH.to_owned())
}

/// The name in the text of `/proc/cpuinfo`.
fn name_in(info: &str) -> Option<String> {
    let field = |name: &str| {
        let mut fields = info.lines().filter_map(|line| line.split_once(':'));
        let (_, value) = fields.find(|(key, _)| key.trim() == name)?;
        Some(value.trim().to_owned()).filter(|value| !value.is_empty())
    };
    if let Some(name) = field("model name") {
        let numbers = field("cpu family").zip(field("model"));
        return Some(match numbers {
            Some((family, model)) => format!("{name} (family {family}, model {model})"),
            None => name,
        });
    }
    // ARM has numbers alone.
    let (implementer, part) = field("CPU implementer").zip(field("CPU part"))?;
    Some(format!("ARM implementer {implementer}, part {part}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_is_named_with_its_generation() {
        let x86 = "processor\t: 0\ncpu family\t: 25\nmodel\t\t: 1\nmodel name\t: AMD EPYC\n\n\
                   processor\t: 1\ncpu family\t: 6\nmodel\t\t: 2\nmodel name\t: other\n";
        assert_eq!(name_in(x86).unwrap(), "AMD EPYC (family 25, model 1)");
        let arm = "processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xd40\n";
        assert_eq!(name_in(arm).unwrap(), "ARM implementer 0x41, part 0xd40");
        assert_eq!(name_in("model name\t: one\n").unwrap(), "one");
        assert_eq!(name_in("model name\t:\n"), None);
        assert!(!processor_name().is_empty());
    }
}
