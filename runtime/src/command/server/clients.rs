//! `pi-server clients`: the file of `--clients`, listed and changed. A server that runs takes the
//! changes over by itself.

use super::config::variable;
use crate::fingerprint::Fingerprint;
use crate::server::{
    ClientEntry, ClientFile, ClientList, Limits, Most, check_name, is_certificate_name,
    read_clients,
};
use anyhow::{Context, anyhow, bail, ensure};
use clap::{Args, Subcommand};
use serde_json::json;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};
use toml_edit::{ArrayOfTables, DocumentMut, Item, Table, value};

#[derive(Args)]
pub(super) struct ClientsArguments {
    #[command(subcommand)]
    command: ClientsCommand,
    /// File of the clients, as for the server; add makes a new one [default: PI_SERVER_CLIENTS].
    #[arg(long, global = true, value_name = "FILE")]
    clients: Option<PathBuf>,
}

#[derive(Subcommand)]
enum ClientsCommand {
    /// List the clients with their limits.
    List {
        /// Print each client as one JSON object on a line of its own.
        #[arg(long)]
        json: bool,
    },
    /// Add a client.
    Add(AddArguments),
    /// Serve a client no more: its keys and bundles are erased, its answers stay counted.
    Revoke {
        /// Its name, fingerprint, or certificate name.
        #[arg(value_name = "CLIENT")]
        client: String,
    },
}

#[derive(Args)]
struct AddArguments {
    /// Its fingerprint, which `pi-client status` shows as its identity; or, for a server with
    /// --client-ca, the name in its certificate, such as dns:ward3.example.
    #[arg(value_name = "FINGERPRINT")]
    client: String,
    /// What to call it.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// A model that it may use, by name; all if none is given.
    #[arg(long = "model", value_name = "NAME")]
    models: Vec<String>,
    /// Bundles at rest for a model.
    #[arg(long, value_name = "N")]
    max_bundles: Option<Most>,
    /// Answers of a model, ever.
    #[arg(long, value_name = "N")]
    max_answers: Option<Most>,
    /// Answers of a model in a day of UTC.
    #[arg(long, value_name = "N")]
    max_answers_per_day: Option<Most>,
    /// Bytes of models, keys and bundles in a day of UTC.
    #[arg(long, value_name = "BYTES")]
    max_bytes_per_day: Option<Most>,
}

/// Does what was asked.
pub(super) fn run(arguments: ClientsArguments) -> anyhow::Result<()> {
    let path = arguments
        .clients
        .map(OsString::from)
        .or_else(|| variable("clients"));
    let path = PathBuf::from(path.context("name the file with --clients FILE")?);
    match arguments.command {
        ClientsCommand::List { json } => list(&path, json),
        ClientsCommand::Add(new) => {
            let who = new.client.clone();
            change(&path, true, |document, file| add(document, file, new))?;
            println!("{who} is served from now on");
            Ok(())
        }
        ClientsCommand::Revoke { client } => {
            change(&path, false, |document, file| {
                revoke(document, file, &client)
            })?;
            println!(
                "{client} is served no more; a server that runs erases its bundles within seconds"
            );
            Ok(())
        }
    }
}

fn read(path: &Path) -> anyhow::Result<ClientFile> {
    let read = read_clients(&ClientList::Toml(path.to_owned()));
    read.map_err(|error| anyhow!("the list of clients {}: {error}", path.display()))
}

fn list(path: &Path, json: bool) -> anyhow::Result<()> {
    let file = read(path)?;
    let mut out = std::io::stdout();
    for entry in &file.client {
        match json {
            true => writeln!(out, "{}", object(entry))?,
            false => writeln!(out, "{}", line(entry))?,
        }
    }
    if !json {
        let others = match file.serve_others {
            true => "served too",
            false => "not served",
        };
        writeln!(
            out,
            "others: {others}{}",
            limits_text(&file.limits, &file.model)
        )?;
    }
    Ok(())
}

fn line(entry: &ClientEntry) -> String {
    let name = entry.name.as_deref().unwrap_or("-");
    let account = entry
        .fingerprint
        .as_ref()
        .or(entry.certificate_name.as_ref());
    let account = account.map_or("", String::as_str);
    let state = if entry.revoked { ", revoked" } else { "" };
    let models = match &entry.models {
        Some(models) => format!(", models {}", models.join(" ")),
        None => String::new(),
    };
    let limits = limits_text(&entry.limits, &entry.model);
    format!("{name}: {account}{state}{models}{limits}")
}

fn limits_text(limits: &Limits, models: &BTreeMap<String, Limits>) -> String {
    let mut text = String::new();
    let all = std::iter::once((None, limits));
    for (model, limits) in all.chain(models.iter().map(|(name, limits)| (Some(name), limits))) {
        let of = model.map_or_else(String::new, |model| format!("{model}: "));
        for (what, limit) in named(limits) {
            if let Some(limit) = limit {
                text.push_str(&format!(", {of}{what} {limit}"));
            }
        }
    }
    text
}

/// Limits with their keys.
fn named(limits: &Limits) -> [(&'static str, Option<Most>); 4] {
    [
        ("bundles", limits.bundles),
        ("answers", limits.answers),
        ("answers-per-day", limits.answers_per_day),
        ("bytes-per-day", limits.bytes_per_day),
    ]
}

fn object(entry: &ClientEntry) -> serde_json::Value {
    let limits = |limits: &Limits| {
        let set = named(limits).into_iter();
        let set = set.filter_map(|(key, limit)| Some((key.to_owned(), limit?.to_string().into())));
        serde_json::Value::Object(set.collect())
    };
    let models = entry
        .model
        .iter()
        .map(|(name, of)| (name.clone(), limits(of)));
    json!({
        "name": entry.name,
        "fingerprint": entry.fingerprint,
        "certificate_name": entry.certificate_name,
        "account": entry.account().ok().map(|account| account.to_string()),
        "models": entry.models,
        "revoked": entry.revoked,
        "limits": limits(&entry.limits),
        "limits_of_models": serde_json::Value::Object(models.collect()),
    })
}

/// Changes a file: what else is in it, comments included, stays as it is. Nothing is written that
/// the server could not read.
fn change(
    path: &Path,
    create: bool,
    edit: impl FnOnce(&mut DocumentMut, &ClientFile) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let is_new = create && !path.exists();
    let (text, file) = match is_new {
        true => (String::new(), ClientFile::default()),
        false => (std::fs::read_to_string(path)?, read(path)?),
    };
    let mut document: DocumentMut = text.parse().context("the list of clients is no TOML")?;
    edit(&mut document, &file)?;
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty());
    let mut written = tempfile::NamedTempFile::new_in(directory.unwrap_or(Path::new(".")))?;
    written.write_all(document.to_string().as_bytes())?;
    read(written.path())?;
    if !is_new {
        written
            .as_file()
            .set_permissions(std::fs::metadata(path)?.permissions())?;
    }
    written.as_file().sync_all()?;
    written.persist(path)?;
    Ok(())
}

fn add(document: &mut DocumentMut, file: &ClientFile, new: AddArguments) -> anyhow::Result<()> {
    if let Some(known) = place(file, &new.client) {
        match file.client[known].revoked {
            true => bail!(
                "{} was revoked: take `revoked` out of its entry by hand, if that is meant",
                new.client
            ),
            false => bail!("{} is in the list already", new.client),
        }
    }
    let named = |entry: &ClientEntry| entry.name.is_some() && entry.name == new.name;
    ensure!(
        !file.client.iter().any(named),
        "another client has this name"
    );
    let mut entry = Table::new();
    if let Some(name) = &new.name {
        entry["name"] = value(name);
    }
    match new.client.parse::<Fingerprint>() {
        Ok(fingerprint) => entry["fingerprint"] = value(fingerprint.to_string()),
        Err(_) if is_certificate_name(&new.client) => {
            entry["certificate-name"] = value(&new.client);
        }
        Err(error) => bail!(
            "{:?} is no fingerprint ({error}), and no name in a certificate, which starts with \
             dns: or uri:",
            new.client
        ),
    }
    if !new.models.is_empty() {
        for model in &new.models {
            check_name(model).map_err(|error| anyhow!(error))?;
        }
        entry["models"] = value(new.models.iter().collect::<toml_edit::Array>());
    }
    let limits = Limits {
        bundles: new.max_bundles,
        answers: new.max_answers,
        answers_per_day: new.max_answers_per_day,
        bytes_per_day: new.max_bytes_per_day,
    };
    let mut table = toml_edit::InlineTable::new();
    for (key, limit) in self::named(&limits) {
        match limit {
            Some(Most::At(number)) => drop(table.insert(key, (number as i64).into())),
            Some(Most::Unlimited) => drop(table.insert(key, "none".into())),
            None => {}
        }
    }
    if !table.is_empty() {
        entry["limits"] = value(table);
    }
    entries(document)?.push(entry);
    Ok(())
}

fn revoke(document: &mut DocumentMut, file: &ClientFile, client: &str) -> anyhow::Result<()> {
    let Some(place) = place(file, client) else {
        bail!("no client of this name or fingerprint is in the list");
    };
    let entries = entries(document)?;
    let entry = entries
        .get_mut(place)
        .context("the entry is not where it was")?;
    entry["revoked"] = value(true);
    Ok(())
}

/// The place of a client that is named by its name, fingerprint or certificate name.
fn place(file: &ClientFile, client: &str) -> Option<usize> {
    let fingerprint = client.parse::<Fingerprint>().ok();
    file.client.iter().position(|entry| {
        let account = entry.account().ok();
        (fingerprint.is_some() && account == fingerprint)
            || entry.name.as_deref() == Some(client)
            || entry.certificate_name.as_deref() == Some(client)
    })
}

fn entries(document: &mut DocumentMut) -> anyhow::Result<&mut ArrayOfTables> {
    let entries = document
        .entry("client")
        .or_insert_with(|| Item::ArrayOfTables(ArrayOfTables::new()));
    let entries = entries.as_array_of_tables_mut();
    entries.context("the clients are not written as [[client]]; change the file by hand")
}
