//! `pi-client models`: what a server has for this client.

use super::{ServerArguments, address_to_call};
use crate::client::Client;
use crate::command::megabytes;
use crate::control::Listing;
use crate::fingerprint::hex;
use serde_json::json;
use std::io::Write;

/// Lists the models of a server.
pub(super) async fn list(
    client: &Client,
    server: &ServerArguments,
    json: bool,
) -> anyhow::Result<()> {
    let address = address_to_call(client, server)?;
    let mut models = client.models(&address, &server.trust()).await?;
    if let Some(name) = server.model_name() {
        models.retain(|listing| listing.name == name);
    }
    let mut out = std::io::stdout();
    for listing in &models {
        match json {
            true => writeln!(out, "{}", object(listing))?,
            false => out.write_all(text(listing).as_bytes())?,
        }
    }
    if models.is_empty() && !json {
        writeln!(out, "the server has no model for this client")?;
    }
    Ok(())
}

fn text(listing: &Listing) -> String {
    let Listing { name, version, .. } = listing;
    let state = match (listing.current, listing.default) {
        (false, _) => ", an older version: it answers, and no bundles are made for it",
        (true, true) => ", the default",
        (true, false) => "",
    };
    let left = match (listing.answers_left, listing.answers_left_today) {
        (None, None) => "answers without limit".into(),
        (None, Some(today)) => format!("{today} answers today"),
        (Some(left), None) => format!("{left} answers"),
        (Some(left), Some(today)) => format!("{left} answers, {} of them today", today.min(left)),
    };
    format!(
        "{name}:{version}{state}\n  \
         reveals     {} of {} classes\n  \
         model       {} to fetch once\n  \
         bundle      {} up, {} down, {} at rest, {} of memory\n  \
         answer      {} up, {} down, {} round trips\n  \
         left        {left}; at most {} bundles at rest\n",
        match listing.reveals {
            pi_ir::Reveal::Label => "the label",
            pi_ir::Reveal::Logits => "the logits",
        },
        listing.classes,
        megabytes(listing.artifact_bytes),
        megabytes(listing.offline_bytes_up),
        megabytes(listing.offline_bytes_down),
        megabytes(listing.bundle_bytes),
        megabytes(listing.client_memory),
        megabytes(listing.online_bytes_up),
        megabytes(listing.online_bytes_down),
        listing.online_round_trips,
        listing.most_bundles,
    )
}

fn object(listing: &Listing) -> serde_json::Value {
    json!({
        "name": listing.name,
        "version": listing.version,
        "model": hex(&listing.model),
        "current": listing.current,
        "default": listing.default,
        "reveals": listing.reveals.to_string(),
        "classes": listing.classes,
        "artifact_bytes": listing.artifact_bytes,
        "offline_bytes_up": listing.offline_bytes_up,
        "offline_bytes_down": listing.offline_bytes_down,
        "online_bytes_up": listing.online_bytes_up,
        "online_bytes_down": listing.online_bytes_down,
        "online_round_trips": listing.online_round_trips,
        "bundle_bytes": listing.bundle_bytes,
        "client_memory": listing.client_memory,
        "most_bundles": listing.most_bundles,
        "answers_left": listing.answers_left,
        "answers_left_today": listing.answers_left_today,
    })
}
