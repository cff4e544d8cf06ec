//! Predicts the processor seconds that a bundle and an inference take at each party.
//!
//! Every term is a count of the protocol's cost formulas times a rate:
//!
//! - offline, server: linear layers, gates garbled, OTs, OLE slots, bytes, and for each convolution
//!   the threads that look for work while its last ciphertexts are under way;
//! - offline, client: ciphertexts encrypted and decrypted, OTs, OLE slots, bytes;
//! - online, server: multiply-adds, elements, bytes, round trips;
//! - online, client: gates evaluated, elements, bytes, round trips.
//!
//! Bytes stand for what is proportional to them: hashing, copying, encryption of datagrams, storing
//! and reading bundles, choosing labels.
//!
//! # Source
//! The rates are those of a machine's [`Profile`], measured by [`pi_machine::measure`]. What that
//! does not measure was fitted to the user times of both processes in the benchmarks whose JSON is
//! in `docs/results/`: ResNet-18 at ten ReLU budgets, with squares and in batches of 16, ResNet-32,
//! lean9, WRN-22-8, and the demo. `docs/costs.md` has the table of measured and predicted figures.

use pi_ir::costs::Traffic;
use pi_machine::Profile;
use pi_protocol::cost::LayerCost;
use pi_protocol::linear::Operations;
use std::iter::Sum;

pub use pi_machine::Cpu;

/// What the parties do for one bundle and one inference, counted. Sums over layers are meaningful.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Effort {
    /// Operations of the linear layers, offline.
    pub operations: Operations,
    /// Convolutions, offline.
    pub convolutions: usize,
    /// AND gates, garbled offline and evaluated online.
    pub and_gates: usize,
    /// Bits that the client puts into garbled circuits, each by an OT.
    pub choices: usize,
    /// OLE slots: one for a square, two for a polynomial.
    pub slots: usize,
    /// Elements of activations of all kinds.
    pub elements: usize,
    /// Squares and polynomials.
    pub quadratics: usize,
    /// Multiplications by weights, online.
    pub multiply_adds: u64,
    /// Bytes offline, both ways.
    pub offline_bytes: u64,
    /// Bytes online, both ways.
    pub online_bytes: u64,
    /// Round trips online.
    pub round_trips: u32,
}

/// Seconds to prepare one bundle.
pub fn offline(machine: &Profile, effort: &Effort) -> Cpu {
    linear(machine, &effort.operations, effort.convolutions) + transfers(machine, effort)
}

/// Seconds of the linear layers of one exchange, for one bundle or a batch.
pub fn linear(machine: &Profile, operations: &Operations, convolutions: usize) -> Cpu {
    let work = Cpu::new(
        1e-6 * operations.client_micros(&machine.linear),
        1e-6 * operations.server_micros(&machine.linear),
    );
    work + machine.convolution * convolutions as f64
}

/// Seconds to prepare one bundle without its linear layers: OTs, garbling, OLEs, and all bytes.
pub fn transfers(machine: &Profile, effort: &Effort) -> Cpu {
    let extended = effort.choices as f64 / machine.extended / 2.0;
    Cpu::new(
        extended,
        extended + effort.and_gates as f64 / machine.garbled,
    ) + machine.slot * effort.slots as f64
        + machine.offline_byte * effort.offline_bytes as f64
}

/// Seconds of one inference.
pub fn online(machine: &Profile, effort: &Effort) -> Cpu {
    Cpu::new(
        effort.and_gates as f64 / machine.evaluated,
        effort.multiply_adds as f64 / machine.multiplied,
    ) + machine.element * effort.elements as f64
        + machine.quadratic * effort.quadratics as f64
        + machine.online_byte * effort.online_bytes as f64
        + machine.round_trip * f64::from(effort.round_trips)
}

impl Effort {
    /// The effort of a layer without its linear part; its traffic is that of the cost formulas.
    pub fn of_layer(layer: &LayerCost) -> Self {
        Effort {
            and_gates: layer.and_gates,
            choices: layer.choices,
            slots: layer.squares + 2 * layer.polynomials,
            elements: layer.relus + layer.squares + layer.polynomials + layer.identities,
            quadratics: layer.squares + layer.polynomials,
            round_trips: layer.online.messages / 2,
            ..Effort::default()
        }
        .with_traffic(&layer.offline, &layer.online)
    }

    /// The same effort with this traffic.
    #[must_use]
    pub fn with_traffic(self, offline: &Traffic, online: &Traffic) -> Self {
        Effort {
            offline_bytes: offline.bytes_up + offline.bytes_down,
            online_bytes: online.bytes_up + online.bytes_down,
            ..self
        }
    }
}

impl Sum for Effort {
    fn sum<I: Iterator<Item = Effort>>(all: I) -> Effort {
        all.fold(Effort::default(), |a, b| Effort {
            operations: a.operations + b.operations,
            convolutions: a.convolutions + b.convolutions,
            and_gates: a.and_gates + b.and_gates,
            choices: a.choices + b.choices,
            slots: a.slots + b.slots,
            elements: a.elements + b.elements,
            quadratics: a.quadratics + b.quadratics,
            multiply_adds: a.multiply_adds + b.multiply_adds,
            offline_bytes: a.offline_bytes + b.offline_bytes,
            online_bytes: a.online_bytes + b.online_bytes,
            round_trips: a.round_trips + b.round_trips,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pi_machine::zen4_avx512;
    use pi_protocol::linear::Rates;

    /// By hand: every count is 1 (2 for the traffic), every rate a power of two of its own.
    #[test]
    fn terms_are_those_of_the_formulas() {
        let none = Rates {
            upload: 0.0,
            expand: 0.0,
            kernel: 0.0,
            kernel_term: 0.0,
            product: 0.0,
            sum: 0.0,
            key_switch: 0.0,
            switched_coefficient: 0.0,
            finish: 0.0,
            finish_value: 0.0,
            decrypt: 0.0,
            decrypt_value: 0.0,
        };
        let machine = Profile {
            linear: Rates {
                upload: 1e6,
                product: 2e6,
                ..none
            },
            convolution: Cpu::new(0.0, 4.0),
            garbled: 1.0 / 8.0,
            evaluated: 1.0 / 16.0,
            extended: 1.0 / 64.0,
            slot: Cpu::new(64.0, 128.0),
            offline_byte: Cpu::new(256.0, 512.0),
            multiplied: 1.0 / 1024.0,
            element: Cpu::new(1.0, 2.0),
            quadratic: Cpu::new(4.0, 8.0),
            online_byte: Cpu::new(32.0, 64.0),
            round_trip: Cpu::new(128.0, 256.0),
            ..zen4_avx512()
        };
        let effort = Effort {
            operations: Operations {
                inputs: 1,
                products: 1,
                ..Operations::default()
            },
            convolutions: 1,
            and_gates: 1,
            choices: 1,
            slots: 1,
            elements: 1,
            quadratics: 1,
            multiply_adds: 1,
            offline_bytes: 1,
            online_bytes: 1,
            round_trips: 1,
        };
        let client = 1.0 + 32.0 + 64.0 + 256.0;
        let server = 2.0 + 4.0 + 32.0 + 8.0 + 128.0 + 512.0;
        assert_eq!(offline(&machine, &effort), Cpu::new(client, server));
        let client = 16.0 + 1.0 + 4.0 + 32.0 + 128.0;
        let server = 1024.0 + 2.0 + 8.0 + 64.0 + 256.0;
        assert_eq!(online(&machine, &effort), Cpu::new(client, server));
    }

    #[test]
    fn an_effort_has_a_slot_for_a_square_and_two_for_a_polynomial() {
        let traffic = |bytes_up, bytes_down| Traffic {
            bytes_up,
            bytes_down,
            messages: 2,
        };
        let layer = LayerCost {
            relus: 1,
            squares: 10,
            polynomials: 100,
            identities: 1000,
            offline: traffic(1, 2),
            online: traffic(4, 8),
            ..LayerCost::default()
        };
        let effort = Effort::of_layer(&layer);
        assert_eq!((effort.slots, effort.quadratics), (210, 110));
        assert_eq!((effort.elements, effort.round_trips), (1111, 1));
        assert_eq!((effort.offline_bytes, effort.online_bytes), (3, 12));
        let two: Effort = [effort, effort].into_iter().sum();
        assert_eq!((two.slots, two.elements, two.round_trips), (420, 2222, 2));
    }
}
