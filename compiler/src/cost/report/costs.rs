//! What a bundle and an answer cost and tell, in sentences, before anything is served.

use super::{Measure, Report};
use crate::cost::processor::Cpu;
use crate::number::{bytes, count, percent, power, seconds, speed};
use pi_ir::Reveal;
use pi_ir::costs::{Profile, Traffic};
use pi_protocol::flooding::BUNDLES_LOG2;
use std::fmt;

/// Layers named for each measure.
pub const COSTLIEST: usize = 3;

/// The lines that people are told of; loopback is for benchmarks.
pub fn shown_profiles(report: &Report) -> impl Iterator<Item = &Profile> {
    let profiles = report.profiles.iter();
    profiles.filter(|profile| profile.name != "loopback")
}

/// A line in words: `LAN (1 Gbit/s, 0.5 ms)`.
pub fn line_name(profile: &Profile) -> String {
    format!(
        "{} ({}, {} ms)",
        profile.name.to_uppercase(),
        speed(profile.bits_per_second),
        1e3 * profile.round_trip_s
    )
}

/// What the client learns of an input's answer, as a sentence without its stop.
pub fn answer_learnt(report: &Report) -> String {
    match report.reveal {
        Reveal::Label => format!(
            "the client learns the label, by a garbled arg max of {} AND gates",
            count(report.label_gates as u64)
        ),
        Reveal::Logits => "the client learns all logits, and with repeated answers the weights of \
             the last layer: limit the answers of each client, or compile with --reveal label"
            .into(),
    }
}

/// What the artifact tells whoever has it, likewise.
pub fn artifact_learnt(report: &Report) -> String {
    let prefix = report.prefix.as_ref().map_or(String::new(), |prefix| {
        let disclosed = count(prefix.disclosed as u64);
        format!(", and {disclosed} integers of the public prefix")
    });
    format!(
        "model.pia tells every client the shapes, scales, bounds and kinds of activations of all \
         layers{prefix}"
    )
}

/// What times are worth, likewise.
pub fn estimates(report: &Report) -> String {
    let elsewhere: String = (report.elsewhere.iter())
        .map(|other| {
            format!(
                "; on {} ({}), processor time would be about {} offline and {} online",
                other.profile,
                other.machine,
                seconds(other.offline_cpu.total()),
                seconds(other.online_cpu.total())
            )
        })
        .collect();
    format!(
        "times are estimates for this machine: {}, both parties on two cores{elsewhere}",
        report.machine
    )
}

/// The costs of a report.
pub(super) struct Costs<'a>(pub(super) &'a Report);

impl fmt::Display for Costs<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = self.0;
        if let Some(prefix) = &report.prefix {
            let names: Vec<&str> = prefix.layers.iter().map(|l| l.name.as_str()).collect();
            writeln!(
                f,
                "public prefix, which the client computes: {} ({} to {}, {} activations, {} \
                 multiply-adds); it discloses {} integers",
                names.join(", "),
                prefix.image,
                prefix.result,
                count(prefix.kinds.total() as u64),
                count(prefix.multiply_adds),
                count(prefix.disclosed as u64)
            )?;
        }
        writeln!(
            f,
            "once per client: {}, {} messages, for the keys; {} for model.pia",
            traffic(&report.setup),
            report.setup.messages,
            bytes(report.artifact_bytes as u64)
        )?;
        self.offline(f)?;
        self.online(f)?;
        self.costliest(f)?;
        writeln!(f, "{}", estimates(report))?;
        writeln!(f, "{}", answer_learnt(report))?;
        writeln!(f, "{}", artifact_learnt(report))?;
        writeln!(
            f,
            "an inference loses a value with probability {}",
            power(report.failure_log2)
        )?;
        writeln!(
            f,
            "answers for 2^{BUNDLES_LOG2} bundles tell of the weights with a distance of {}",
            power(report.flooding_log2)
        )
    }
}

impl Costs<'_> {
    fn offline(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = self.0;
        writeln!(
            f,
            "offline, per bundle: {}, {} messages; {}; stored until spent: {} at the client, {} \
             at the server",
            traffic(&report.offline),
            report.offline.messages,
            cpu(&report.offline_cpu),
            bytes(report.stored.client),
            bytes(report.stored.server)
        )?;
        let (client, server) = (&report.client_memory, &report.server_memory);
        writeln!(
            f,
            "memory: the client needs about {} to prepare and {} to answer; the server, for each \
             client, {} and {}",
            bytes(client.offline),
            bytes(client.online),
            bytes(server.offline),
            bytes(server.online)
        )?;
        for batch in &report.batches {
            let each = |bytes: u64| bytes / batch.bundles as u64;
            let own = Traffic {
                bytes_up: each(batch.offline.bytes_up),
                bytes_down: each(batch.offline.bytes_down),
                messages: batch.offline.messages,
            };
            writeln!(
                f,
                "    each of {} prepared together: {}; {}",
                batch.bundles,
                traffic(&own),
                cpu(&batch.offline_cpu)
            )?;
        }
        Ok(())
    }

    fn online(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let report = self.0;
        writeln!(
            f,
            "online, per answer: {}, {} round trips; {}",
            traffic(&report.online),
            report.round_trips,
            cpu(&report.online_cpu)
        )?;
        for profile in shown_profiles(report) {
            writeln!(
                f,
                "    {}: {}",
                line_name(profile),
                seconds(report.predicted[&profile.name].online_s)
            )?;
        }
        Ok(())
    }

    fn costliest(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "layers that cost most:")?;
        for measure in Measure::ALL {
            let shares = self.0.costliest(measure, COSTLIEST);
            let share = |s: &super::Share| format!("{} {}", s.layer, percent(s.share));
            let shares: Vec<String> = shares.iter().map(share).collect();
            writeln!(f, "    {}: {}", measure.name(), shares.join(", "))?;
        }
        Ok(())
    }
}

fn traffic(traffic: &Traffic) -> String {
    format!(
        "{} up, {} down",
        bytes(traffic.bytes_up),
        bytes(traffic.bytes_down)
    )
}

fn cpu(cpu: &Cpu) -> String {
    format!(
        "about {} of processor time ({} server, {} client)",
        seconds(cpu.total()),
        seconds(cpu.server_s),
        seconds(cpu.client_s)
    )
}
