//! The machine on which figures were measured.

use pi_core::Backend;
use serde::Serialize;

/// The properties of a machine on which figures depend.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Machine {
    /// Name of the processor, as it reports it.
    pub(crate) cpu: String,
    /// Cores that this process may use.
    pub(crate) cores: usize,
    /// Features of the processor that the kernels look for.
    pub(crate) features: Vec<&'static str>,
    /// Operating system and its version.
    pub(crate) system: String,
    /// Main memory, in bytes.
    pub(crate) memory: u64,
    /// True if the portable kernels run.
    pub(crate) forced_scalar: bool,
    /// Mean number of processes ready to run in the last minute before the benchmark. Above 0.5,
    /// times are not to be trusted.
    pub(crate) load: f64,
}

impl Machine {
    /// This machine, now. Whatever the system does not report is empty or 0.
    pub(crate) fn here() -> Machine {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let field = |text: &str, name: &str| {
            let line = text.lines().find(|line| line.starts_with(name));
            let value = line.and_then(|line| line.split_once(':'));
            value.map_or_else(String::new, |(_, value)| value.trim().to_owned())
        };
        let info = read("/proc/cpuinfo");
        let identity = ["cpu family", "model\t", "stepping"].map(|name| field(&info, name));
        let memory = field(&read("/proc/meminfo"), "MemTotal");
        let memory: u64 = memory.trim_end_matches(" kB").parse().unwrap_or(0);
        let load = read("/proc/loadavg");
        Machine {
            cpu: format!(
                "{}, family {}",
                field(&info, "model name"),
                identity.join("/")
            ),
            cores: std::thread::available_parallelism().map_or(1, |n| n.get()),
            features: features(),
            system: format!(
                "{} {}",
                std::env::consts::OS,
                read("/proc/sys/kernel/osrelease").trim()
            ),
            memory: memory * 1024,
            forced_scalar: Backend::get() == Backend::Scalar,
            load: load
                .split(' ')
                .next()
                .and_then(|l| l.parse().ok())
                .unwrap_or(0.0),
        }
    }
}

#[cfg(target_arch = "x86_64")]
fn features() -> Vec<&'static str> {
    macro_rules! detected {
        ($($name:tt),*) => {
            [$(($name, std::arch::is_x86_feature_detected!($name))),*]
        };
    }
    let all = detected!(
        "aes",
        "avx2",
        "fma",
        "avx512f",
        "avx512dq",
        "avx512ifma",
        "avx512vbmi",
        "avx512vnni",
        "vaes",
        "vpclmulqdq",
        "gfni"
    );
    all.iter()
        .filter(|(_, is)| *is)
        .map(|(name, _)| *name)
        .collect()
}

#[cfg(not(target_arch = "x86_64"))]
fn features() -> Vec<&'static str> {
    Vec::new()
}
