//! Errors as the package raises them: a class of `pianissimo.errors`, a text and a remedy.

use pi_compiler::checked::Unfaithful;
use pi_runtime::error::Error;
use pyo3::prelude::*;
use pyo3::types::PyDict;

/// An error on its way to Python.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    class: &'static str,
    message: String,
    remedy: Option<String>,
    temporary: bool,
    /// More about it, for the programs that can use it.
    detail: Option<String>,
}

impl Failure {
    /// An error of this class of `pianissimo.errors`.
    pub(crate) fn new(class: &'static str, message: impl ToString) -> Failure {
        Failure {
            class,
            message: message.to_string(),
            remedy: None,
            temporary: false,
            detail: None,
        }
    }

    /// The same, with advice.
    pub(crate) fn with_remedy(mut self, remedy: impl ToString) -> Failure {
        self.remedy = Some(remedy.to_string());
        self
    }

    /// A fault of this package.
    pub(crate) fn internal(message: impl ToString) -> Failure {
        Failure::new("InternalError", message)
    }

    /// What went wrong while a network was compiled.
    pub(crate) fn of_compiler(error: &anyhow::Error) -> Failure {
        if let Some(Unfaithful { found, measured }) = error.downcast_ref() {
            let mut failure = Failure::new("Unfaithful", found);
            failure.detail = Some(measured.to_string());
            return failure.with_remedy(
                "calibrate on more examples like those that the network will see, or with more \
                 --weight-bits or --activation-bits; --allow-disagreement makes it all the same",
            );
        }
        Failure::new("CompileError", format!("{error:#}"))
    }

    /// The exception.
    pub(crate) fn into_error(self, py: Python<'_>) -> PyErr {
        match self.exception(py) {
            Ok(exception) => PyErr::from_value(exception),
            Err(error) => error,
        }
    }

    /// The exception as a value.
    pub(crate) fn exception<'py>(self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let class = py.import("pianissimo.errors")?.getattr(self.class)?;
        let more = PyDict::new(py);
        more.set_item("remedy", self.remedy)?;
        more.set_item("temporary", self.temporary)?;
        more.set_item("detail", self.detail)?;
        class.call((self.message,), Some(&more))
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure {
            class: class_of(&error),
            message: with_causes(&error),
            remedy: error.remedy().map(str::to_owned),
            temporary: error.is_temporary(),
            detail: None,
        }
    }
}

/// An error and what caused it, in one line.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

fn class_of(error: &Error) -> &'static str {
    match error {
        Error::Address { .. }
        | Error::WhichServer(_)
        | Error::NoServer
        | Error::NoStateDirectory
        | Error::StoreFlags(_)
        | Error::TooManyBundles { .. } => "InvalidArgument",
        Error::WrongFingerprint { .. }
        | Error::UnknownServer { .. }
        | Error::Certificate { .. }
        | Error::NoTrust(_) => "UntrustedServer",
        Error::Version(_) | Error::PeerIncompatible(_) => "Incompatible",
        Error::NotPrepared(_)
        | Error::NoBundle(_)
        | Error::NotHeld(_)
        | Error::ModelChanged { .. } => "NotPrepared",
        Error::PeerMisbehaved { .. } => "PeerMisbehaved",
        Error::Model { .. }
        | Error::Artifact(_)
        | Error::Models(_)
        | Error::NoSuchModel(_)
        | Error::SameModel(..) => "ModelError",
        Error::Memory { .. } | Error::ClientList { .. } | Error::Endpoint(_) => "ServerError",
        Error::InputFile(_) | Error::Input(_) => "InputError",
        Error::Store(_) | Error::Identity(_) => "StoreError",
        Error::Internal(_) => "InternalError",
        error if error.is_temporary() => "ServerUnavailable",
        Error::Refused { .. } => "Refused",
        _ => "PianissimoError",
    }
}
