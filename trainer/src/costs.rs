//! What the activations of a network cost in the protocol, as the compiler predicts it: the JSON
//! file of `pi-compile GRAPH --costs FILE`.
//!
//! ```json
//! {
//!   "version": 1, "network": "resnet20", "calibration": "synthetic, 16 images, seed 0 (16 images)",
//!   "profiles": [{ "name": "wan", "bits_per_second": 1e8, "round_trip_s": 0.04, "exchange_s": 0.0407 }],
//!   "kinds": { "relu": 600, "identity": 64, "square": 0, "polynomial": 5480 }, "multiply_adds": 4000000,
//!   "setup": { "bytes_up": 1, "bytes_down": 1, "messages": 4 }, "offline": { ... }, "online": { ... }, "round_trips": 20,
//!   "predicted": { "wan": { "offline_s": 0.9, "online_s": 0.8 } },
//!   "layers": [{
//!     "name": "stem.conv", "site": "stem.act", "shape": [16, 8, 8], "kinds": { ... }, "sign_bits": 14,
//!     "multiply_adds": 27648, "offline": { ... }, "online": { ... }, "round_trips": 1, "predicted": { ... },
//!     "element": { "relu": { "offline_bytes_up": 50.0, "offline_bytes_down": 480.0, "online_bytes_up": 8.0,
//!                            "online_bytes_down": 224.0, "predicted": { ... } }, "identity": { ... }, ... }
//!   }],
//!   "empty_sites": ["stage2.block1.act"]
//! }
//! ```
//!
//! Bytes and messages are exact, seconds are predictions for each profile. A layer's share holds
//! neither what layers have in common nor round trips offline; what an element costs is without its
//! layer's round trip.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};

/// Form of the file that this reader knows.
pub const VERSION: u32 = 1;

/// Costs of a network, for a bundle that is prepared alone.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Costs {
    /// [`VERSION`].
    pub version: u32,
    /// Name of the network.
    pub network: String,
    /// What the widths of sign circuits come from.
    pub calibration: String,
    /// The lines that predictions are for.
    pub profiles: Vec<Profile>,
    /// Elements by kind.
    pub kinds: Kinds,
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
    /// Activations that were the identity everywhere, so that they made no layer.
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
    /// Seconds that one exchange delays an inference.
    pub exchange_s: f64,
}

/// Elements by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kinds {
    /// ReLU.
    pub relu: usize,
    /// Identity.
    pub identity: usize,
    /// Square with public coefficients.
    pub square: usize,
    /// Quadratic with private coefficients.
    pub polynomial: usize,
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

/// Predicted seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Seconds {
    /// To prepare one bundle.
    pub offline_s: f64,
    /// Of one inference.
    pub online_s: f64,
}

/// One layer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LayerCosts {
    /// Its name in the circuit.
    pub name: String,
    /// The activation site that it ends with, if any.
    pub site: Option<String>,
    /// Channels, rows and columns of its result.
    pub shape: [u32; 3],
    /// Elements by kind.
    pub kinds: Kinds,
    /// Width of the sign circuit that a ReLU takes here.
    pub sign_bits: u8,
    /// Multiplications by weights for one input.
    pub multiply_adds: u64,
    /// Per bundle.
    pub offline: Traffic,
    /// Per input.
    pub online: Traffic,
    /// Online round trips: none without ReLUs, squares and polynomials.
    pub round_trips: u32,
    /// Its share of the seconds, by profile, round trips included.
    pub predicted: BTreeMap<String, Seconds>,
    /// What one element costs, by kind; empty for the output.
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

/// What takes a removed ReLU's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InPlace {
    /// The identity.
    Identity,
    /// Its channel's quadratic, with coefficients that stay private.
    Polynomial,
}

impl Costs {
    /// Reads a file.
    ///
    /// # Errors
    /// A file that cannot be read, is of another form or version, or holds numbers that are no
    /// costs.
    pub fn load(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path).with_context(|| {
            format!(
                "cannot read the costs {}: write them with pi-compile GRAPH --costs FILE",
                path.display()
            )
        })?;
        Self::parse(&text).with_context(|| format!("in {}", path.display()))
    }

    /// As [`Self::load`], from text.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn parse(text: &str) -> Result<Self> {
        // The version first: a file of another form would fail on some field, which says less.
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        let Versioned { version } =
            serde_json::from_str(text).context("this is no file of costs that pi-compile wrote")?;
        ensure!(
            version == VERSION,
            "the costs are of version {version}, this pi-train reads version {VERSION}: use the pi-compile built beside it"
        );
        let costs: Self = serde_json::from_str(text).context("the costs are damaged")?;
        costs.check()?;
        Ok(costs)
    }

    fn check(&self) -> Result<()> {
        for layer in &self.layers {
            let whole = self.predicted.values().chain(layer.predicted.values());
            let elements = layer.element.values();
            let seconds = whole.chain(elements.clone().flat_map(|e| e.predicted.values()));
            let bytes = elements.flat_map(|e| {
                [
                    e.offline_bytes_up,
                    e.offline_bytes_down,
                    e.online_bytes_up,
                    e.online_bytes_down,
                ]
            });
            let mut numbers = seconds.flat_map(|s| [s.offline_s, s.online_s]).chain(bytes);
            ensure!(
                numbers.all(|number| number.is_finite() && number >= 0.0),
                "layer {} has a cost that is negative or no number",
                layer.name
            );
            for profile in &self.profiles {
                let complete = layer.predicted.contains_key(&profile.name)
                    && layer
                        .element
                        .values()
                        .all(|e| e.predicted.contains_key(&profile.name));
                ensure!(
                    complete && self.predicted.contains_key(&profile.name),
                    "layer {} has no prediction for \"{}\"",
                    layer.name,
                    profile.name
                );
            }
            ensure!(
                layer.site.is_none()
                    || ["relu", "identity", "polynomial"]
                        .iter()
                        .all(|kind| layer.element.contains_key(*kind)),
                "layer {} has no cost of one of its kinds of elements",
                layer.name
            );
        }
        Ok(())
    }

    /// The profile of this name.
    ///
    /// # Errors
    /// None of this name, with those there are.
    pub fn profile(&self, name: &str) -> Result<&Profile> {
        self.profiles
            .iter()
            .find(|profile| profile.name == name)
            .with_context(|| {
                let names: Vec<&str> = self.profiles.iter().map(|p| p.name.as_str()).collect();
                format!(
                    "there are no costs for \"{name}\", but for {}",
                    names.join(", ")
                )
            })
    }

    /// # Errors
    /// As [`Self::profile`].
    pub fn check_profile(&self, name: &str) -> Result<()> {
        self.profile(name).map(|_| ())
    }

    /// The layer of an activation site.
    ///
    /// # Errors
    /// A site that the costs do not know.
    pub fn layer(&self, site: &str) -> Result<&LayerCosts> {
        let found = self
            .layers
            .iter()
            .find(|layer| layer.site.as_deref() == Some(site));
        match found {
            Some(layer) => Ok(layer),
            None if self.empty_sites.iter().any(|empty| empty == site) => bail!(
                "{site} was the identity everywhere in the graph that the costs were made of: make them of one where it has a ReLU"
            ),
            None => bail!("the costs have nothing on {site}: they are of another network"),
        }
    }

    /// Predicted milliseconds online that removing `relus` ReLUs of a site saves when `in_place`
    /// takes their place; with `empties`, no ReLU, square or polynomial is left there, which saves
    /// the layer's round trip too. A layer of polynomials keeps it: `empties` then counts for
    /// nothing.
    ///
    /// # Errors
    /// A site or profile without costs.
    pub fn saved(
        &self,
        site: &str,
        profile: &str,
        relus: usize,
        in_place: InPlace,
        empties: bool,
    ) -> Result<f64> {
        let (layer, exchange_s) = (self.layer(site)?, self.profile(profile)?.exchange_s);
        let online = |kind: &str| layer.element[kind].predicted[profile].online_s;
        let (after, trips) = match in_place {
            InPlace::Identity => (online("identity"), u32::from(empties)),
            InPlace::Polynomial => (online("polynomial"), 0),
        };
        Ok(1e3 * ((online("relu") - after) * relus as f64 + f64::from(trips) * exchange_s))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the real pi-compile wrote for a small ResNet-20; the compiler's tests hold that it
    /// still writes this form.
    const FILE: &str = include_str!("../tests/files/costs.json");

    #[test]
    fn the_compilers_file_is_read_whole() {
        let costs = Costs::parse(FILE).unwrap();
        let sum = |count: fn(&Kinds) -> usize| {
            costs.layers.iter().map(|l| count(&l.kinds)).sum::<usize>()
        };
        assert_eq!(sum(|k| k.relu), costs.kinds.relu);
        assert_eq!(sum(|k| k.polynomial), costs.kinds.polynomial);
        assert!(costs.kinds.relu > 0 && costs.kinds.polynomial > 0);
        let trips: u32 = costs.layers.iter().map(|l| l.round_trips).sum();
        assert_eq!(trips + 1, costs.round_trips);
        let again = serde_json::to_string(&costs).unwrap();
        assert_eq!(
            serde_json::from_str::<serde_json::Value>(&again).unwrap(),
            serde_json::from_str::<serde_json::Value>(FILE).unwrap(),
            "a field of the file is not read"
        );
    }

    #[test]
    fn emptying_a_site_saves_its_round_trip_and_a_polynomial_keeps_it() {
        let costs = Costs::parse(FILE).unwrap();
        let layer = costs.layers.iter().find(|l| l.site.is_some()).unwrap();
        let site = layer.site.as_deref().unwrap();
        let saved = |relus, empties| {
            let saved = costs.saved(site, "wan", relus, InPlace::Identity, empties);
            saved.unwrap()
        };
        let some = saved(10, false);
        assert!((saved(20, false) - 2.0 * some).abs() < 1e-9);
        let exchange = 1e3 * costs.profile("wan").unwrap().exchange_s;
        assert!(exchange >= 40.0);
        let all = saved(10, true);
        assert!((all - some - exchange).abs() < 1e-9);
        let quadratic = costs
            .saved(site, "wan", 10, InPlace::Polynomial, true)
            .unwrap();
        assert!(0.0 < quadratic && quadratic < some, "{quadratic}, {some}");
        // 224 bytes of labels at 100 Mbit/s are 18 microseconds.
        assert!((0.1..1.0).contains(&some), "ten ReLUs save {some} ms");
    }

    #[test]
    fn what_is_not_there_is_named() {
        let costs = Costs::parse(FILE).unwrap();
        let says = |result: Result<f64>, text: &str| {
            let error = format!("{:#}", result.expect_err("must fail"));
            assert!(error.contains(text), "{error}");
        };
        let site = costs.layers.iter().find_map(|l| l.site.clone()).unwrap();
        let saved = |site: &str, profile| costs.saved(site, profile, 1, InPlace::Identity, false);
        says(saved("nowhere", "wan"), "another network");
        says(saved(&costs.empty_sites[0], "wan"), "identity everywhere");
        says(saved(&site, "moon"), "loopback, lan, wan");
        let fails = |text: &str, says: &str| {
            let error = format!("{:#}", Costs::parse(text).expect_err("must fail"));
            assert!(error.contains(says), "{error}");
        };
        fails("{}", "no file of costs");
        fails(
            &FILE.replacen("\"version\": 1", "\"version\": 7", 1),
            "version 7",
        );
        fails(&FILE.replacen("\"exchange_s\"", "\"other\"", 1), "damaged");
        fails(
            &FILE.replacen("\"online_s\": ", "\"online_s\": -", 1),
            "negative",
        );
        assert!(
            Costs::load(Path::new("/nowhere/costs.json"))
                .unwrap_err()
                .to_string()
                .contains("--costs")
        );
    }
}
