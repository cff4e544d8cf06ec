//! The costs that `pi-compile --costs FILE` predicts for a network: read, checked, and looked
//! up by activation site. [`pi_ir::costs`] describes the file.

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use pi_ir::costs::{Costs, LayerCosts, Profile, VERSION};
use serde::Deserialize;

/// ReLUs of one site that a trainer considers removing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Removal {
    /// Number of ReLUs.
    pub relus: usize,
    /// The function that takes their place.
    pub in_place: InPlace,
    /// True if no ReLU, square or polynomial is left there.
    pub empties: bool,
}

/// The function that takes a removed ReLU's place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InPlace {
    /// The identity.
    Identity,
    /// The quadratic of its channel, with coefficients that stay private.
    Polynomial,
}

/// Reads a file.
///
/// # Errors
/// A file that cannot be read, is of another form or version, or holds numbers that are no costs.
pub fn load(path: &Path) -> Result<Costs> {
    let text = std::fs::read_to_string(path).with_context(|| {
        format!(
            "cannot read the costs {}: write them with \
             pi-compile GRAPH --calibration DATA --costs FILE",
            path.display()
        )
    })?;
    parse(&text).with_context(|| format!("in {}", path.display()))
}

/// Does the same as [`load`], from text.
///
/// # Errors
/// As [`load`].
pub fn parse(text: &str) -> Result<Costs> {
    // The version first: a file of another form would fail on some field, which says less.
    #[derive(Deserialize)]
    struct Versioned {
        version: u32,
    }
    let Versioned { version } =
        serde_json::from_str(text).context("this is not a file of costs that pi-compile wrote")?;
    ensure!(
        version == VERSION,
        "the costs are of version {version}, but this pi-train reads version {VERSION}: \
         use the pi-compile that was built with it"
    );
    let costs: Costs = serde_json::from_str(text).context("the costs are damaged")?;
    check(&costs)?;
    Ok(costs)
}

fn check(costs: &Costs) -> Result<()> {
    for layer in &costs.layers {
        let whole = costs.predicted.values().chain(layer.predicted.values());
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
            "layer {} has a cost that is negative or not a number",
            layer.name
        );
        for profile in &costs.profiles {
            let complete = layer.predicted.contains_key(&profile.name)
                && layer
                    .element
                    .values()
                    .all(|e| e.predicted.contains_key(&profile.name));
            ensure!(
                complete && costs.predicted.contains_key(&profile.name),
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
            "layer {} lacks the cost of one of its kinds of elements",
            layer.name
        );
    }
    Ok(())
}

/// The profile of this name.
///
/// # Errors
/// If there is none of this name; the message lists those there are.
pub fn profile<'a>(costs: &'a Costs, name: &str) -> Result<&'a Profile> {
    let mut profiles = costs.profiles.iter();
    profiles
        .find(|profile| profile.name == name)
        .with_context(|| {
            let names: Vec<&str> = costs.profiles.iter().map(|p| p.name.as_str()).collect();
            format!(
                "there are no costs for \"{name}\", but for {}",
                names.join(", ")
            )
        })
}

/// The layer of an activation site.
fn layer<'a>(costs: &'a Costs, site: &str) -> Result<&'a LayerCosts> {
    let mut layers = costs.layers.iter();
    match layers.find(|layer| layer.site.as_deref() == Some(site)) {
        Some(layer) => Ok(layer),
        None if costs.empty_sites.iter().any(|empty| empty == site) => bail!(
            "{site} was the identity everywhere in the graph that the costs were computed from: \
             compute them from one where it has a ReLU"
        ),
        None => bail!("the costs have nothing on {site}: they are of another network"),
    }
}

/// Predicted milliseconds online that a removal at a site saves. Emptying a layer saves its round
/// trip too, unless polynomials take the place of the ReLUs: those need it as well.
///
/// # Errors
/// A site or profile without costs.
pub fn saved(costs: &Costs, site: &str, profile: &str, removal: Removal) -> Result<f64> {
    let layer = layer(costs, site)?;
    let exchange_s = self::profile(costs, profile)?.exchange_s;
    let online = |kind: &str| layer.element[kind].predicted[profile].online_s;
    let (after, trips) = match removal.in_place {
        InPlace::Identity => (online("identity"), u32::from(removal.empties)),
        InPlace::Polynomial => (online("polynomial"), 0),
    };
    let elements = (online("relu") - after) * removal.relus as f64;
    Ok(1e3 * (elements + f64::from(trips) * exchange_s))
}

#[cfg(test)]
mod tests {
    use super::*;
    use pi_ir::count::Activations;

    /// What the real pi-compile wrote for a small ResNet-20; the compiler's tests hold that it
    /// still writes this form.
    const FILE: &str = include_str!("../tests/files/costs.json");

    #[test]
    fn the_compilers_file_is_read_whole() {
        let costs = parse(FILE).unwrap();
        let sum = |count: fn(&Activations) -> usize| {
            costs.layers.iter().map(|l| count(&l.kinds)).sum::<usize>()
        };
        assert_eq!(sum(|k| k.relu), costs.kinds.relu);
        assert_eq!(sum(|k| k.polynomial), costs.kinds.polynomial);
        assert!(costs.kinds.relu > 0 && costs.kinds.polynomial > 0);
        let trips: u32 = costs.layers.iter().map(|l| l.round_trips).sum();
        assert_eq!(trips + 1, costs.round_trips);
        let again = serde_json::to_string_pretty(&costs).unwrap() + "\n";
        assert_eq!(again, FILE, "a field of the file is not read");
    }

    #[test]
    fn emptying_a_site_saves_its_round_trip_and_a_polynomial_keeps_it() {
        let costs = parse(FILE).unwrap();
        let layer = costs.layers.iter().find(|l| l.site.is_some()).unwrap();
        let site = layer.site.as_deref().unwrap();
        let milliseconds = |relus, in_place, empties| {
            let removal = Removal {
                relus,
                in_place,
                empties,
            };
            saved(&costs, site, "wan", removal).unwrap()
        };
        let some = milliseconds(10, InPlace::Identity, false);
        assert!((milliseconds(20, InPlace::Identity, false) - 2.0 * some).abs() < 1e-9);
        let exchange = 1e3 * profile(&costs, "wan").unwrap().exchange_s;
        assert!(exchange >= 40.0);
        let all = milliseconds(10, InPlace::Identity, true);
        assert!((all - some - exchange).abs() < 1e-9);
        let quadratic = milliseconds(10, InPlace::Polynomial, true);
        assert!(0.0 < quadratic && quadratic < some, "{quadratic}, {some}");
        // 224 bytes of labels at 100 Mbit/s are 18 microseconds.
        assert!((0.1..1.0).contains(&some), "ten ReLUs save {some} ms");
    }

    #[test]
    fn what_is_not_there_is_named() {
        let costs = parse(FILE).unwrap();
        let says = |result: Result<f64>, text: &str| {
            let error = format!("{:#}", result.expect_err("must fail"));
            assert!(error.contains(text), "{error}");
        };
        let site = costs.layers.iter().find_map(|l| l.site.clone()).unwrap();
        let removal = Removal {
            relus: 1,
            in_place: InPlace::Identity,
            empties: false,
        };
        let saved = |site: &str, profile| saved(&costs, site, profile, removal);
        says(saved("nowhere", "wan"), "another network");
        says(saved(&costs.empty_sites[0], "wan"), "identity everywhere");
        says(saved(&site, "moon"), "loopback, lan, wan");
        let fails = |text: &str, says: &str| {
            let error = format!("{:#}", parse(text).expect_err("must fail"));
            assert!(error.contains(says), "{error}");
        };
        fails("{}", "not a file of costs");
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
            load(Path::new("/nowhere/costs.json"))
                .unwrap_err()
                .to_string()
                .contains("--costs")
        );
    }
}
