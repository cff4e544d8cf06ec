//! A server in the background of the process.

use crate::failure::Failure;
use crate::job::{self, Job, Work};
use pi_runtime::client::Patience;
use pi_runtime::command::state_directory;
use pi_runtime::error::Error;
use pi_runtime::fingerprint::hex;
use pi_runtime::server::{
    ClientList, Limits, ModelSources, Most, Server as Listener, ServerOptions, bytes,
};
use pyo3::prelude::*;
use serde::Deserialize;
use serde_json::json;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// The options of `pianissimo.Server`, named as those of `pi-server` are.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Choices {
    /// Names, empty for that of the directory, and directories.
    models: Vec<(String, PathBuf)>,
    default_model: Option<String>,
    listen: String,
    state: Option<PathBuf>,
    max_clients: Option<usize>,
    max_bundles: Option<u64>,
    max_answers: Option<u64>,
    memory: Option<String>,
    allow: Option<PathBuf>,
    clients: Option<PathBuf>,
    client_ca: Option<PathBuf>,
    cert: Option<(PathBuf, PathBuf)>,
    timeout: Option<f64>,
    bound: bool,
}

/// A server that listens.
#[pyclass(frozen, module = "pianissimo._native")]
pub(crate) struct Server {
    address: String,
    fingerprint: String,
    state: PathBuf,
    models: String,
    stop: watch::Sender<bool>,
    serving: Mutex<Option<JoinHandle<()>>>,
}

/// Starts a server with these options, as JSON; as a job for a [`Server`].
#[pyfunction]
pub(crate) fn start_server(py: Python<'_>, choices: &str) -> PyResult<Job> {
    let choices: Choices = serde_json::from_str(choices).map_err(|error| {
        let message = format!("an option cannot be used: {error}");
        Failure::new("InvalidArgument", message).into_error(py)
    })?;
    let job = Job::run(
        move |_: &Work| start(&choices),
        |py, server| Ok(Py::new(py, server)?.into_any()),
    );
    job.map_err(|failure| failure.into_error(py))
}

fn start(choices: &Choices) -> Result<Server, Failure> {
    pi_core::Backend::chosen().map_err(Failure::internal)?;
    let options = choices.options()?;
    let runtime = job::runtime()?;
    let _inside = runtime.enter();
    let server = Listener::start(&options)?;
    let address = server.address();
    let address = address.map_err(|e| Failure::new("ServerError", format!("no address: {e}")))?;
    let models = server.models().into_iter().map(|model| {
        json!({
            "name": model.name,
            "version": model.version,
            "digest": hex(&model.digest),
            "reveals": model.reveals.to_string(),
            "current": model.current,
            "most_answers": model.most_answers,
        })
    });
    let models = serde_json::Value::from_iter(models).to_string();
    let fingerprint = server.fingerprint().to_string();
    let (stop, stopped) = watch::channel(false);
    Ok(Server {
        address: address.to_string(),
        fingerprint,
        state: options.state,
        models,
        stop,
        serving: Mutex::new(Some(runtime.spawn(server.run(stopped)))),
    })
}

impl Choices {
    fn options(&self) -> Result<ServerOptions, Failure> {
        let single = self.models.iter().map(|(name, directory)| {
            let name = (!name.is_empty()).then(|| name.clone());
            (name, directory.clone())
        });
        let memory = match &self.memory {
            None => pi_runtime::server::default_budget(),
            Some(text) => {
                let message = |why| Failure::new("InvalidArgument", format!("memory: {why}"));
                bytes(text).map_err(message)?
            }
        };
        let limit = |limit: Option<u64>| limit.map(Most::At);
        let plain = self.allow.clone().map(ClientList::Plain);
        Ok(ServerOptions {
            models: ModelSources {
                single: single.collect(),
                directory: None,
            },
            default_model: self.default_model.clone(),
            listen: listen_address(&self.listen)?,
            state: state_directory(self.state.clone(), "PI_SERVER_STATE", "server")?,
            certificate: self.cert.clone(),
            client_authorities: self.client_ca.clone(),
            max_clients: self.max_clients.unwrap_or(ServerOptions::CLIENTS),
            limits: Limits {
                bundles: limit(self.max_bundles.or(Some(ServerOptions::BUNDLES))),
                answers: limit(self.max_answers),
                ..Limits::default()
            },
            memory,
            clients: plain.or_else(|| self.clients.clone().map(ClientList::Toml)),
            patience: seconds("timeout", self.timeout, ServerOptions::PATIENCE)?,
            bound: self.bound,
            web: None,
        })
    }
}

fn listen_address(text: &str) -> Result<SocketAddr, Failure> {
    let bad = |reason: String| {
        Failure::from(Error::Address {
            address: text.into(),
            reason,
        })
    };
    let mut found = text.to_socket_addrs().map_err(|e| bad(e.to_string()))?;
    found
        .next()
        .ok_or_else(|| bad("the name has no address".into()))
}

/// A positive number of seconds, or what is usual.
pub(crate) fn seconds(
    name: &str,
    given: Option<f64>,
    usual: Duration,
) -> Result<Duration, Failure> {
    match given {
        None => Ok(usual),
        Some(seconds) if (0.001..=1e6).contains(&seconds) => Ok(Duration::from_secs_f64(seconds)),
        Some(seconds) => Err(Failure::new(
            "InvalidArgument",
            format!("{name} is a number of seconds from 0.001 to 1000000, not {seconds}"),
        )),
    }
}

/// A client's patience with servers.
pub(crate) fn patience(connect: Option<f64>, silence: Option<f64>) -> Result<Patience, Failure> {
    Ok(Patience {
        connect: seconds("connect_timeout", connect, Duration::from_secs(10))?,
        silence: seconds("timeout", silence, Duration::from_secs(300))?,
    })
}

#[pymethods]
impl Server {
    /// Host and port at which it listens.
    #[getter]
    fn address(&self) -> &str {
        &self.address
    }

    /// The fingerprint that clients pin.
    #[getter]
    fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// Directory of keys and bundles.
    #[getter]
    fn state(&self) -> PathBuf {
        self.state.clone()
    }

    /// The models, as JSON.
    #[getter]
    fn models(&self) -> &str {
        &self.models
    }

    /// Lets operations under way end, and ends the server; as a job.
    fn stop(&self, py: Python<'_>) -> PyResult<Job> {
        self.stop.send_replace(true);
        let serving = self.serving.lock();
        let serving = serving.unwrap_or_else(PoisonError::into_inner).take();
        let work = move |_: &Work| match serving {
            None => Ok(()),
            Some(serving) => {
                let ended = job::runtime()?.block_on(serving);
                ended.map_err(|e| Failure::internal(format!("the server ended early: {e}")))
            }
        };
        let job = Job::run(work, |py, ()| Ok(py.None()));
        job.map_err(|failure| failure.into_error(py))
    }
}
