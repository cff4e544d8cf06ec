//! Costs of a network's activations in the protocol, as the compiler predicts them for a trainer
//! that chooses which ReLUs stay: the JSON file of `pi-compile GRAPH --costs FILE`.
//!
//! ```json
//! {
//!   "version": 1, "network": "resnet20",
//!   "calibration": "synthetic, 16 images, seed 0 (16 images)",
//!   "profiles": [{
//!     "name": "wan", "bits_per_second": 1e8, "round_trip_s": 0.04, "exchange_s": 0.0407
//!   }],
//!   "kinds": { "relu": 600, "identity": 64, "square": 0, "polynomial": 5480 },
//!   "multiply_adds": 4000000,
//!   "setup": { "bytes_up": 1, "bytes_down": 1, "messages": 4 },
//!   "offline": { ... }, "online": { ... }, "round_trips": 20,
//!   "predicted": { "wan": { "offline_s": 0.9, "online_s": 0.8 } },
//!   "layers": [{
//!     "name": "stem.conv", "site": "stem.act", "shape": [16, 8, 8], "kinds": { ... },
//!     "sign_bits": 14, "multiply_adds": 27648, "offline": { ... }, "online": { ... },
//!     "round_trips": 1, "predicted": { ... },
//!     "element": {
//!       "relu": {
//!         "offline_bytes_up": 50.0, "offline_bytes_down": 480.0,
//!         "online_bytes_up": 8.0, "online_bytes_down": 224.0, "predicted": { ... }
//!       },
//!       "identity": { ... }, ...
//!     }
//!   }],
//!   "empty_sites": ["stage2.block1.act"]
//! }
//! ```
//!
//! Bytes and messages are exact, seconds are predictions for each profile.
//!
//! A layer's share leaves out what layers have in common (digests, set-up of OTs, OLE ciphertexts,
//! the request, round trips offline, marks), so shares sum to less than the whole. The cost of one
//! *element* is that of the layer with all elements of one kind, divided by their number: without
//! the layer's round trip, but with the OLE ciphertexts.

use crate::count::Activations;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::ops::AddAssign;

/// Version of the file's form. A reader refuses every other number.
pub const VERSION: u32 = 1;

/// Costs of a network, for a bundle that is prepared alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Costs {
    /// [`VERSION`].
    pub version: u32,
    /// Name of the network.
    pub network: String,
    /// Images that the widths of sign circuits were calibrated on.
    pub calibration: String,
    /// The lines that predictions are for.
    pub profiles: Vec<Profile>,
    /// Elements by kind.
    pub kinds: Activations,
    /// Multiplications by weights for one input.
    pub multiply_adds: u64,
    /// Once per client key.
    pub setup: Traffic,
    /// Once per bundle.
    pub offline: Traffic,
    /// Once per input.
    pub online: Traffic,
    /// Round trips of an inference.
    pub round_trips: u32,
    /// Seconds in all, by profile.
    pub predicted: BTreeMap<String, Seconds>,
    /// Layer by layer.
    pub layers: Vec<LayerCosts>,
    /// Activations of the graph that cost nothing: those that are the identity everywhere, which
    /// make no layer, and those of the public prefix.
    pub empty_sites: Vec<String>,
}

/// A line between the parties.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Profile {
    /// Name by which predictions are kept.
    pub name: String,
    /// Bits a second, each way.
    pub bits_per_second: f64,
    /// Seconds of a round trip.
    pub round_trip_s: f64,
    /// Seconds that one exchange delays an inference: the round trip, and the parties' time to
    /// notice messages.
    pub exchange_s: f64,
}

/// Payload bytes and one-way messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Traffic {
    /// Client to server.
    pub bytes_up: u64,
    /// Server to client.
    pub bytes_down: u64,
    /// Both directions together.
    pub messages: u32,
}

impl AddAssign for Traffic {
    fn add_assign(&mut self, other: Traffic) {
        self.bytes_up += other.bytes_up;
        self.bytes_down += other.bytes_down;
        self.messages += other.messages;
    }
}

/// Predicted seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Seconds {
    /// To prepare one bundle.
    pub offline_s: f64,
    /// Seconds of one inference.
    pub online_s: f64,
}

/// One layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerCosts {
    /// Name of the layer in the circuit.
    pub name: String,
    /// The activation site that the layer ends with: a node of the graph. The output has none, nor
    /// have sums that later layers need.
    pub site: Option<String>,
    /// Channels, rows and columns of the result.
    pub shape: [u32; 3],
    /// Elements by kind.
    pub kinds: Activations,
    /// Width of the sign circuit that a ReLU takes here.
    pub sign_bits: u8,
    /// Multiplications by weights for one input.
    pub multiply_adds: u64,
    /// Per bundle.
    pub offline: Traffic,
    /// Per input.
    pub online: Traffic,
    /// Online round trips that the layer needs: none without ReLUs, squares and polynomials.
    pub round_trips: u32,
    /// The layer's share of the seconds, by profile, round trips included.
    pub predicted: BTreeMap<String, Seconds>,
    /// Cost of one element, by kind, without the layer's round trip; empty for the output.
    pub element: BTreeMap<String, ElementCosts>,
}

/// One element of a layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ElementCosts {
    /// Bytes per bundle from client to server.
    pub offline_bytes_up: f64,
    /// Bytes per bundle from server to client.
    pub offline_bytes_down: f64,
    /// Bytes per input from client to server.
    pub online_bytes_up: f64,
    /// Bytes per input from server to client.
    pub online_bytes_down: f64,
    /// Seconds by profile.
    pub predicted: BTreeMap<String, Seconds>,
}
