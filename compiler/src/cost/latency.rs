//! Predicts how long an inference takes: bytes over bandwidth, waits over the line, and work over
//! the rates of a machine.
//!
//! `offline = bytes / bandwidth + round trips x (RTT + hop) + work / cores + stored bytes / disk +
//! convolutions x wait`, the work being linear layers, ciphertexts, AND gates to garble, OTs and
//! elements; `online = bytes / bandwidth + round trips x (RTT + hop) + work / cores`, the work
//! being multiply-adds, AND gates to evaluate and elements. Durable marks ([`MARKS_S`]) count once
//! per inference. The work of both parties is added up as if they shared the same cores and nothing
//! overlapped.
//!
//! The constants are fitted to ResNet-18 at ten ReLU budgets and to ResNet-32, lean9 and WRN-22-8
//! at 15,000 ReLUs (two cores of an AMD EPYC of Zen 4, 2026-11-25, both parties on them, inferences
//! on bound threads): within 10 % offline and 20 % online.

use pi_machine::Profile;
use pi_protocol::cost::LayerCost;
use pi_protocol::linear::Operations;
use std::ops::AddAssign;

/// Seconds beside the line's round trip from a party's last byte to the other's first instruction,
/// both ways: system calls, wake-ups of threads, encryption of datagrams, and cores that the other
/// party's threads hold.
pub const HOP_S: f64 = 450e-6;
/// Seconds that the durable marks of both parties keep the online phase waiting.
pub const MARKS_S: f64 = 2.5e-3;
/// Seconds for each convolution of a request, offline, that a core has nothing to do: its first
/// ciphertext is not there yet, or its last ones are with the other core.
const OFFLINE_CONVOLUTION_S: f64 = 4.5e-3;
/// Seconds of both parties for each element of an activation, offline: sums, truncations, masks,
/// storing.
const OFFLINE_ELEMENT_S: f64 = 100e-9;
/// Seconds of both parties for each element of an activation, online.
const ONLINE_ELEMENT_S: f64 = 10e-9;
/// Seconds of both parties for each square or polynomial online, beside that: shares of a square
/// made, sent, added.
const ONLINE_POLYNOMIAL_S: f64 = 60e-9;
/// Seconds of both parties for each ReLU online beside its gates: labels chosen, copied, read;
/// rows.
const ONLINE_RELU_S: f64 = 350e-9;
/// Bytes that the client stores of a ReLU for each bit of its sign circuit: label, table.
const STORED_BIT_BYTES: f64 = 48.0;
/// Bytes that both parties store of an element.
const STORED_ELEMENT_BYTES: f64 = 24.0;

/// The machine that both parties run on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Machine<'a> {
    /// Rates of one core.
    pub profile: &'a Profile,
    /// Cores.
    pub cores: f64,
}

impl<'a> Machine<'a> {
    /// Two cores, as those that the constants were fitted on.
    pub fn of_two_cores(profile: &'a Profile) -> Self {
        Machine {
            profile,
            cores: 2.0,
        }
    }
}

/// The line between the parties.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Line {
    /// Bytes a second, each way.
    pub bytes_per_second: f64,
    /// Seconds there and back.
    pub round_trip_s: f64,
}

impl Line {
    /// QUIC over loopback, both parties on two cores.
    pub const LOOPBACK: Line = Line {
        bytes_per_second: 0.7e9,
        round_trip_s: 0.0,
    };
    /// The local network of the benchmarks.
    pub const LAN: Line = Line {
        bytes_per_second: 1e9 / 8.0,
        round_trip_s: 0.5e-3,
    };
    /// The wide-area network of the benchmarks.
    pub const WAN: Line = Line {
        bytes_per_second: 100e6 / 8.0,
        round_trip_s: 40e-3,
    };

    fn seconds(&self, bytes: f64, round_trips: f64) -> f64 {
        bytes / self.bytes_per_second + round_trips * (self.round_trip_s + HOP_S)
    }
}

/// Work of both parties for one bundle, its share of what bundles have in common included.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Work {
    /// Microseconds of one core in linear layers, offline.
    pub linear_micros: f64,
    /// Answers of linear layers, offline.
    pub convolutions: f64,
    /// AND gates of sign circuits.
    pub and_gates: f64,
    /// Bits that go into sign circuits.
    pub choices: f64,
    /// Elements of activations of all kinds.
    pub elements: f64,
    /// Squares and polynomials.
    pub polynomials: f64,
    /// ReLUs.
    pub relus: f64,
    /// Multiplications by weights, online.
    pub multiply_adds: f64,
}

impl Work {
    /// Work of a layer's activation alone, or of the label's arg max.
    pub fn of_activation(layer: &LayerCost) -> Self {
        let polynomials = layer.squares + layer.polynomials;
        Work {
            and_gates: layer.and_gates as f64,
            choices: layer.choices as f64,
            elements: (layer.relus + polynomials + layer.identities) as f64,
            polynomials: polynomials as f64,
            relus: layer.relus as f64,
            ..Work::default()
        }
    }

    /// Adds linear layers: `operations` and `convolutions` of as many bundles as are prepared
    /// together.
    #[must_use]
    pub fn with_linear(
        mut self,
        operations: &Operations,
        convolutions: usize,
        bundles: f64,
        machine: &Machine<'_>,
    ) -> Self {
        let rates = &machine.profile.linear;
        let micros = operations.server_micros(rates) + operations.client_micros(rates);
        self.linear_micros += micros / bundles;
        self.convolutions += convolutions as f64 / bundles;
        self
    }

    /// Seconds to prepare it; bytes and round trips are its share of the request's.
    pub fn offline_s(
        &self,
        bytes: f64,
        round_trips: f64,
        line: &Line,
        machine: &Machine<'_>,
    ) -> f64 {
        let work = self.linear_micros * 1e-6
            + self.and_gates / machine.profile.garbled
            + self.choices / machine.profile.extended
            + self.elements * OFFLINE_ELEMENT_S;
        let stored = self.choices * STORED_BIT_BYTES + self.elements * STORED_ELEMENT_BYTES;
        line.seconds(bytes, round_trips)
            + work / machine.cores
            + stored / machine.profile.stored
            + self.convolutions * OFFLINE_CONVOLUTION_S
    }

    /// Seconds of an inference, without [`MARKS_S`].
    pub fn online_s(
        &self,
        bytes: f64,
        round_trips: f64,
        line: &Line,
        machine: &Machine<'_>,
    ) -> f64 {
        let work = self.multiply_adds / machine.profile.multiplied
            + self.and_gates / machine.profile.evaluated
            + self.elements * ONLINE_ELEMENT_S
            + self.polynomials * ONLINE_POLYNOMIAL_S
            + self.relus * ONLINE_RELU_S;
        line.seconds(bytes, round_trips) + work / machine.cores
    }
}

impl AddAssign<&Work> for Work {
    fn add_assign(&mut self, other: &Work) {
        self.linear_micros += other.linear_micros;
        self.convolutions += other.convolutions;
        self.and_gates += other.and_gates;
        self.choices += other.choices;
        self.elements += other.elements;
        self.polynomials += other.polynomials;
        self.relus += other.relus;
        self.multiply_adds += other.multiply_adds;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// By hand: a line of 1 MB/s and 1 s, and a machine on which everything takes a second.
    #[test]
    fn terms_are_those_of_the_formulas() {
        let profile = Profile {
            garbled: 3.0,
            evaluated: 3.0,
            extended: 4.0,
            multiplied: 7.0,
            stored: 4.0 * 48.0 + 2.0 * 24.0,
            ..pi_machine::zen4_avx512()
        };
        let machine = Machine::of_two_cores(&profile);
        let line = Line {
            bytes_per_second: 1e6,
            round_trip_s: 1.0,
        };
        let work = Work {
            linear_micros: 1e6,
            convolutions: 2.0,
            and_gates: 3.0,
            choices: 4.0,
            elements: 2.0,
            polynomials: 1.0,
            relus: 1.0,
            multiply_adds: 7.0,
        };
        let offline = work.offline_s(3e6, 5.0, &line, &machine);
        let expected = 3.0 + 5.0 * (1.0 + HOP_S) + (3.0 + 200e-9) / 2.0 + 1.0 + 9e-3;
        assert!((offline - expected).abs() < 1e-12, "{offline} {expected}");
        let online = work.online_s(2e6, 4.0, &line, &machine);
        let expected = 2.0 + 4.0 * (1.0 + HOP_S) + (2.0 + 20e-9 + 60e-9 + 350e-9) / 2.0;
        assert!((online - expected).abs() < 1e-12, "{online} {expected}");
    }
}
