//! Errors as a user reads them, each with its remedy.

use crate::fingerprint::{Fingerprint, short};
use crate::identity::IdentityError;
use crate::input_file::InputFileError;
use crate::server::rest_of_today;
use crate::store::{ModelDigest, StoreError};
use crate::stream::{Refusal, StreamError};
use crate::transport::EndpointError;
use pi_image::ImageFileError;
use pi_ir::{InputError, value_file};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

/// An error of a server or client process.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The server's name or address cannot be understood.
    #[error("{address:?} is not the address of a server: {reason}")]
    Address {
        /// The address as the user wrote it.
        address: String,
        /// The mistake in it.
        reason: String,
    },
    /// The host has no address, or none can be found out now.
    #[error("no address is found for {address:?}: {reason}")]
    UnknownHost {
        /// The address as the user wrote it.
        address: String,
        /// What the resolver says.
        reason: String,
    },
    /// The name has several addresses, and a server at none of them.
    #[error("no server answers at {address}: {tried}")]
    NoneAnswers {
        /// The address as the user wrote it.
        address: String,
        /// What came of each address.
        tried: String,
    },
    /// No answer from the server.
    #[error("no answer from {server} within {waited:?}")]
    Unreachable {
        /// The address tried.
        server: SocketAddr,
        /// Time waited.
        waited: Duration,
    },
    /// The connection broke while something was under way.
    #[error("lost the connection to the server: {0}")]
    Lost(String),
    /// The server refuses further clients.
    #[error("the server at {0} already serves as many clients as it allows")]
    ServerFull(SocketAddr),
    /// The server proved another certificate than the one pinned.
    #[error(
        "the server at {server} shows the wrong fingerprint\n  \
         expected  {expected}\n  \
         presented {presented}"
    )]
    WrongFingerprint {
        /// The address.
        server: SocketAddr,
        /// The fingerprint pinned.
        expected: Fingerprint,
        /// The fingerprint of the certificate presented.
        presented: Fingerprint,
    },
    /// A server at an address that is not known proved a certificate that is not known either.
    #[error(
        "the server at {server} is none of those that bundles were prepared with; \
         it presents the fingerprint {presented}"
    )]
    UnknownServer {
        /// The address.
        server: SocketAddr,
        /// The fingerprint of the certificate presented.
        presented: Fingerprint,
    },
    /// The certificate is not signed by the authorities given, or not for this name.
    #[error("the certificate of {server} is not accepted: {reason}")]
    Certificate {
        /// The address.
        server: SocketAddr,
        /// The fault found.
        reason: String,
    },
    /// Nothing says by what the server could prove that it is the right one.
    #[error("the server {0} is not known yet, and nothing was given to check it against")]
    NoTrust(String),
    /// The other program speaks another version.
    #[error("client and server do not speak the same version: {0}")]
    Version(String),
    /// No server is named and several are remembered.
    #[error("several servers are known, and none was named: {0}")]
    WhichServer(String),
    /// No server is named and none is remembered.
    #[error("no server is known yet")]
    NoServer,
    /// The server's machine reports that no program listens there.
    #[error("no program listens at {0}")]
    NobodyListens(SocketAddr),
    /// No keys or bundles were made with this server.
    #[error("nothing is prepared with the server {0}")]
    NotPrepared(String),
    /// All bundles are used.
    #[error("no bundle left with the server {0}")]
    NoBundle(String),
    /// The server serves another model than the bundles were made for.
    #[error(
        "the server's model changed: {stale} bundles were prepared for model {}, \
         the server now serves {}",
        short(prepared),
        short(served)
    )]
    ModelChanged {
        /// Bundles that cannot be used.
        stale: usize,
        /// The model they were made for.
        prepared: ModelDigest,
        /// The model served now.
        served: ModelDigest,
    },
    /// The server does not hold the other halves.
    #[error("the server holds none of the {0} bundles stored here")]
    NotHeld(usize),
    /// More bundles than a client may hold.
    #[error(
        "at most {most} bundles may be held with one server; \
         {held} are held and {asked} more were asked for"
    )]
    TooManyBundles {
        /// The limit.
        most: usize,
        /// Bundles held.
        held: usize,
        /// Bundles asked for.
        asked: usize,
    },
    /// The peer gave the operation up.
    #[error("the {peer} refused: {refusal}")]
    Refused {
        /// The party that refused.
        peer: &'static str,
        /// The reason that it gave.
        refusal: Refusal,
    },
    /// The peer sends nothing any more.
    #[error("the {peer} was silent for {waited:?}")]
    Silent {
        /// The silent party.
        peer: &'static str,
        /// Time waited.
        waited: Duration,
    },
    /// The peer's bytes break the protocol.
    #[error("the {peer} breaks the protocol: {what}")]
    PeerMisbehaved {
        /// The party at fault.
        peer: &'static str,
        /// The rule broken.
        what: String,
    },
    /// The peer is honest, but the two programs cannot work together.
    #[error("client and server are not compatible: {0}")]
    PeerIncompatible(String),
    /// A file of a model directory is absent or broken.
    #[error("no usable model in {directory}: {reason}")]
    Model {
        /// The directory.
        directory: PathBuf,
        /// The fault found.
        reason: String,
    },
    /// The file that the server sent is no sound artifact.
    #[error("the server's model cannot be used: {0}")]
    Artifact(String),
    /// The server's budget of memory does not suffice for what it is to serve.
    #[error(
        "{} MB of memory are not enough for this model and {max_clients} clients at once, \
         which take at least {} MB",
        budget / 1_000_000,
        least.div_ceil(1_000_000)
    )]
    Memory {
        /// The budget in bytes.
        budget: u64,
        /// The least that suffices.
        least: u64,
        /// Clients at once.
        max_clients: usize,
    },
    /// Some of the models to serve cannot be used.
    #[error("{}", all_lines(.0))]
    Models(Vec<Error>),
    /// The model for clients that name none is not there.
    #[error("there is no model named {0:?} to be the default")]
    NoSuchModel(String),
    /// Two versions of models are one and the same.
    #[error("{0} and {1} are the same model: their files have one digest")]
    SameModel(String, String),
    /// The file that says whom to serve cannot be used.
    #[error("the list of clients {path} cannot be used: {reason}")]
    ClientList {
        /// The file.
        path: PathBuf,
        /// The fault found.
        reason: String,
    },
    /// An error of the file that is asked about.
    #[error(transparent)]
    InputFile(#[from] InputFileError),
    /// The model cannot take an input.
    #[error("the model cannot take this input")]
    Input(#[from] pi_ir::interpret::Error),
    /// An error of the store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// An error of certificate or key.
    #[error(transparent)]
    Identity(#[from] IdentityError),
    /// An error of the socket.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// No place for the state is known.
    #[error("there is no place for the state: this account has no home directory")]
    NoStateDirectory,
    /// The flags about a shared store name none.
    #[error("{0}")]
    StoreFlags(String),
    /// Browsers cannot be served as the options say.
    #[error("browsers cannot be served: {0}")]
    Web(String),
    /// There is no page for browsers.
    #[error("browsers cannot be served: {0}")]
    Page(String),
    /// A fault of this program.
    #[error("internal error: {0}")]
    Internal(String),
}

/// Several errors, one a line.
fn all_lines(errors: &[Error]) -> String {
    let lines: Vec<String> = errors.iter().map(Error::to_string).collect();
    lines.join("\n  ")
}

impl Error {
    /// One error, or all of them.
    pub(crate) fn all(mut errors: Vec<Error>) -> Error {
        match errors.len() {
            1 => errors.remove(0),
            _ => Error::Models(errors),
        }
    }

    /// Advice to the user, if there is any to give.
    pub fn remedy(&self) -> Option<&'static str> {
        Some(match self {
            Error::Address { .. } => {
                "write HOST:PORT, for example 192.0.2.7:4433 or [2001:db8::7]:4433"
            }
            Error::UnknownHost { .. } => {
                "check the spelling of the host, and that this machine is on the network; --wait \
                 tries until it is"
            }
            Error::Unreachable { .. } | Error::NoneAnswers { .. } => {
                "check that the server runs, that address and port are right, and that no \
                 firewall blocks UDP; --wait tries until it answers"
            }
            Error::Lost(_) | Error::Silent { .. } => {
                "try again when the server is back; a bundle that was in use is lost, all others \
                 are kept"
            }
            Error::ServerFull(_)
            | Error::Refused {
                refusal: Refusal::Busy,
                ..
            } => {
                "try again later, with --wait to queue, or start the server with a larger \
                 --max-clients"
            }
            Error::WrongFingerprint { .. } => {
                "compare it with the fingerprint that the server prints when it starts; if the \
                 server was set up anew, prepare with the new --fingerprint; otherwise someone \
                 else is answering"
            }
            Error::UnknownServer { .. } => {
                "if it is what the server prints when it starts, prepare with it: \
                 pi-client prepare --server HOST:PORT --fingerprint HEX -n COUNT"
            }
            Error::Certificate { .. } => {
                "check --ca, and that the certificate names the host of --server"
            }
            Error::NoTrust(_) => {
                "give --fingerprint HEX as the server prints it, or --ca FILE; \
                 --trust-first-use trusts whoever answers now and remembers the fingerprint"
            }
            Error::Version(_) | Error::PeerIncompatible(_) => {
                "use the same release of pi-client and pi-server"
            }
            Error::NobodyListens(_) => {
                "check that the server runs, and that address and port are right; --wait tries \
                 until it answers"
            }
            Error::NoServer => {
                "prepare bundles first: \
                 pi-client prepare --server HOST:PORT --fingerprint HEX -n COUNT"
            }
            Error::WhichServer(_) => "choose one with --server HOST:PORT",
            Error::NotPrepared(_) | Error::NoBundle(_) => {
                "prepare bundles first: pi-client prepare --server HOST:PORT -n COUNT"
            }
            Error::ModelChanged { .. } => {
                "prepare bundles for the new model with pi-client prepare; the old ones are kept, \
                 in case the server returns to the old model"
            }
            Error::NotHeld(_) => {
                "the server's state was lost or replaced; prepare new bundles with \
                 pi-client prepare"
            }
            Error::TooManyBundles { .. } => "ask for fewer",
            Error::Refused { refusal, .. } => match refusal {
                Refusal::NoSetup | Refusal::UnknownBundle | Refusal::SpentBundle => {
                    "the server's state was lost or replaced; run pi-client prepare"
                }
                Refusal::ModelChanged => {
                    "the server has just changed its model; run pi-client prepare"
                }
                Refusal::TooManyBundles => {
                    "use some of the bundles first, or ask for fewer; whoever runs the server \
                     sets the limit with pi-server --max-bundles or --clients"
                }
                Refusal::UnknownModel => "pi-client models lists what the server has",
                Refusal::WhichModel => {
                    "choose one with --model NAME; pi-client models lists what the server has"
                }
                Refusal::ModelNotAllowed => {
                    "pi-client models lists what this client may use; whoever runs the server \
                     decides that in the file of pi-server --clients"
                }
                Refusal::AnswersToday(_) | Refusal::BytesToday(_) => {
                    "the limit ends with the day, in UTC; whoever runs the server can raise it in \
                     the file of pi-server --clients"
                }
                Refusal::NotAllowed => {
                    "ask whoever runs the server to add this client's identity, which \
                     pi-client status shows, to the file of pi-server --allow or --clients"
                }
                Refusal::AnswersUsed => {
                    "pi-client status shows how many answers are left: ask for no more bundles \
                     than that; whoever runs the server can raise the limit with \
                     pi-server --max-answers"
                }
                Refusal::ComeBack(_) => {
                    "the server has been busy for long; try again later, or give it more memory \
                     with pi-server --memory"
                }
                Refusal::ShuttingDown => "try again when the server is back",
                Refusal::Storage => {
                    "the server's disk is full or its store is broken; its log says which"
                }
                Refusal::Incompatible => "use the same release of pi-client and pi-server",
                _ => "the server's log says more",
            },
            Error::Model { .. } => {
                "--model names a directory with model.pia and model.piw as pi-compile writes \
                 them, both from one run"
            }
            Error::Memory { .. } => {
                "give the server more with --memory, or let fewer clients connect at once with \
                 --max-clients"
            }
            Error::ClientList { .. } => {
                "--allow takes one fingerprint a line, as pi-client status shows it, and # starts \
                 a comment; for --clients see docs/operations.md"
            }
            Error::Models(faults) => return faults.iter().find_map(Error::remedy),
            Error::NoSuchModel(_) => "choose one of the names that pi-server check lists",
            Error::SameModel(..) => {
                "bundles are bound to a model's digest: leave one of the two out"
            }
            Error::InputFile(error) => return input_file_remedy(error),
            Error::Input(pi_ir::interpret::Error::Input(InputError::Beyond { .. })) => {
                "check the units and the order of the values; if they are right, the model's maker \
                 must compile it with calibration data that has such values, or with a larger \
                 --input-bound"
            }
            Error::Store(StoreError::Locked(_)) => {
                "wait until the other pi-client or pi-server ends, which pi-client does with \
                 --wait, or use another --state"
            }
            Error::Store(StoreError::DiskFull { .. }) => {
                "make room; nothing that was stored before is lost"
            }
            Error::Store(StoreError::Damaged { .. }) => {
                "move the directory away and prepare again; never restore an older copy, because \
                 its bundles may be spent"
            }
            Error::Store(StoreError::Format { .. }) => {
                "use the release that wrote it, or another --state"
            }
            Error::Store(StoreError::File { .. }) | Error::Identity(IdentityError::File { .. }) => {
                "check the path and its permissions, or use another --state"
            }
            Error::Identity(IdentityError::Broken { .. }) => {
                "restore the file, or move it away: a new identity is then made, and peers see a \
                 new fingerprint"
            }
            Error::Store(StoreError::Database { .. }) => {
                "check that the database runs and that --store-database names it; the server goes \
                 on by itself when it is back"
            }
            Error::Store(StoreError::Objects { .. }) => {
                "check --store-objects and its permissions; the server goes on by itself when it \
                 is back"
            }
            Error::Store(StoreError::Key { .. }) => {
                "--store-key names a file of mode 0600 with keys of 64 hexadecimal digits, one a \
                 line: the first encrypts, all decrypt"
            }
            Error::Endpoint(EndpointError::AddressTaken(_)) => {
                "choose another port with --listen, or end the program that uses this one"
            }
            Error::Endpoint(EndpointError::Socket { .. }) => {
                "--listen must be an address of this machine"
            }
            Error::Page(_) => {
                "make the page with web/build.sh, which writes web/dist, or name its folder with \
                 --web-files DIR"
            }
            Error::NoStateDirectory => "choose a directory with --state DIR",
            _ => return None,
        })
    }

    /// Whether the same call may well succeed in a while, without anybody's doing.
    pub fn is_temporary(&self) -> bool {
        match self {
            Error::UnknownHost { .. }
            | Error::Unreachable { .. }
            | Error::NoneAnswers { .. }
            | Error::NobodyListens(_)
            | Error::ServerFull(_)
            | Error::Lost(_)
            | Error::Silent { .. } => true,
            Error::Refused { refusal, .. } => matches!(
                refusal,
                Refusal::Busy | Refusal::ShuttingDown | Refusal::Silent | Refusal::ComeBack(_)
            ),
            Error::Store(StoreError::Locked(_)) => true,
            _ => false,
        }
    }

    /// The error of a stream with this peer.
    pub(crate) fn from_stream(peer: &'static str, error: StreamError) -> Error {
        match error {
            StreamError::Refused(refusal) => Error::Refused { peer, refusal },
            StreamError::Lost(reason) => Error::Lost(reason),
            StreamError::Silent(waited) => Error::Silent { peer, waited },
            StreamError::Ended => Error::Lost("the other side ended the exchange early".into()),
            StreamError::TooLong { .. } | StreamError::Malformed(_) => Error::PeerMisbehaved {
                peer,
                what: error.to_string(),
            },
        }
    }

    /// The reason given to the other party.
    pub(crate) fn refusal(&self) -> Refusal {
        match self {
            Error::PeerMisbehaved { .. } => Refusal::Misbehaved,
            Error::PeerIncompatible(_) | Error::Version(_) => Refusal::Incompatible,
            Error::Silent { .. } => Refusal::Silent,
            Error::ModelChanged { .. } => Refusal::ModelChanged,
            Error::Store(StoreError::Spent(_)) => Refusal::SpentBundle,
            Error::Store(StoreError::Unknown(_)) => Refusal::UnknownBundle,
            Error::Store(StoreError::AnswersUsed(_)) => Refusal::AnswersUsed,
            Error::Store(StoreError::AnswersUsedToday(_)) => Refusal::AnswersToday(rest_of_today()),
            Error::Store(_) => Refusal::Storage,
            Error::Refused { refusal, .. } => *refusal,
            _ => Refusal::Internal,
        }
    }
}

/// Advice about a file that is no input.
fn input_file_remedy(error: &InputFileError) -> Option<&'static str> {
    Some(match error {
        InputFileError::Image(ImageFileError::Format(_)) => {
            "convert it to PNG, JPEG, WebP, GIF, BMP or TIFF; files of values end in .npy or .csv"
        }
        InputFileError::Image(ImageFileError::Broken { .. }) => {
            "open it in an image viewer; if that fails too, get the file again"
        }
        InputFileError::Image(ImageFileError::Kind { .. }) => {
            "save it again as a usual PNG or JPEG"
        }
        InputFileError::Image(ImageFileError::CutShort(_)) => {
            "get the file again; --allow-partial classifies what there is of a picture"
        }
        InputFileError::Image(ImageFileError::TooLarge(_)) => "make it smaller",
        InputFileError::Image(ImageFileError::File { .. }) => "check the path and its permissions",
        InputFileError::Image(ImageFileError::Channels(_)) => {
            "give a .npy file of bytes, with the channels first"
        }
        InputFileError::Values {
            error: value_file::Error::File(_),
            ..
        } => "check the path and its permissions",
        InputFileError::ImageForValues(_) => {
            "give a .npy file of one example, or a .csv file with its values in one row"
        }
        InputFileError::ManyRows { .. } => {
            "choose one with --row N, from 0; every answer spends a bundle"
        }
        InputFileError::RowOfImage(_) => "leave out --row",
        InputFileError::Values { .. } | InputFileError::NoRow { .. } => return None,
    })
}
