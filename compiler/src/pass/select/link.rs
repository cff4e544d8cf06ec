//! The link and the machines that a packing is chosen for.

use pi_machine::{Profile, zen4_avx512};
use pi_protocol::linear::{LinearCost, Operations};

/// The link, the machines and the prices that a packing is chosen for.
#[derive(Clone, Debug, PartialEq)]
pub struct Link {
    /// Bits per second between the parties.
    pub bits_per_second: f64,
    /// Cores of the server that work on one exchange.
    pub server_cores: f64,
    /// Cores of the client.
    pub client_cores: f64,
    /// Price of a byte beside its time on the link, in seconds: traffic is paid for, stored, and
    /// keeps others waiting, so a plan for a fast link should not be lavish. By default as much as
    /// on a link of 200 Mbit/s.
    pub byte_price: f64,
    /// The machine of both parties: times of the operations on one core.
    pub machine: Profile,
}

impl Default for Link {
    fn default() -> Self {
        Link {
            bits_per_second: 100e6,
            server_cores: 2.0,
            client_cores: 2.0,
            byte_price: 40e-9,
            machine: zen4_avx512(),
        }
    }
}

impl Link {
    /// Weight that a plan minimises: seconds of both parties and of the wire, as if nothing
    /// overlapped, and the price of the bytes.
    ///
    /// Work that one exchange hides behind its wire is missing from the next one, for the parties
    /// share cores and line with others; so hidden work counts too.
    pub fn weight(&self, bytes: usize, operations: &Operations) -> f64 {
        self.weight_of_bytes(bytes) + self.weight_of_work(operations)
    }

    fn weight_of_bytes(&self, bytes: usize) -> f64 {
        bytes as f64 * (8.0 / self.bits_per_second + self.byte_price)
    }

    fn weight_of_work(&self, operations: &Operations) -> f64 {
        let (server, client) = (
            operations.server_micros(&self.machine.linear),
            operations.client_micros(&self.machine.linear),
        );
        1e-6 * (server / self.server_cores + client / self.client_cores)
    }

    /// Predicted seconds of one exchange of linear layers with nothing else on line and cores, from
    /// the client's first draw to its last number: the client encrypts, sends all, the server
    /// computes while its answers travel, the client decrypts as they come. Without round trips,
    /// which no plan changes.
    pub fn seconds(&self, cost: &LinearCost) -> f64 {
        let all = cost.operations();
        let uploads: Operations = cost.uploads.iter().copied().sum();
        let wire = |bytes: usize| 8.0 * bytes as f64 / self.bits_per_second;
        let encrypt = 1e-6 * uploads.client_micros(&self.machine.linear) / self.client_cores;
        let decrypt = 1e-6 * all.client_micros(&self.machine.linear) / self.client_cores - encrypt;
        let server = 1e-6 * all.server_micros(&self.machine.linear) / self.server_cores;
        encrypt + wire(cost.bytes_up()) + server.max(wire(cost.bytes_down())).max(decrypt)
    }
}
