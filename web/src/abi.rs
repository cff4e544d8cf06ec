//! The module's exports: a plain interface of numbers and bytes, for a page without glue code.
//!
//! The worker asks [`reserve`] for room, writes arguments there, and calls a function with their
//! lengths; results lie where [`result_at`] says until the next call. Functions return 0, or 1 with
//! a failure in JSON for the result. Everything else is in [`crate::client`].
//!
//! # Safety
//! The module has one thread and its worker calls one function at a time. All unsafe code of the
//! crate is what an exported name and a buffer for another language need.

use crate::advice::advice;
use crate::client::{Client, State, Wishes};
use crate::failure::Failure;
use pi_wire::fingerprint::hex;
use std::cell::RefCell;

#[derive(Default)]
struct Module {
    client: Client,
    arguments: Vec<u8>,
    result: Vec<u8>,
    outgoing: Vec<u8>,
}

thread_local! {
    static MODULE: RefCell<Module> = RefCell::default();
}

#[link(wasm_import_module = "page")]
unsafe extern "C" {
    /// Fills `length` bytes at `at` with random ones.
    fn random(at: *mut u8, length: usize);
    /// Says why the module panics, which it never should: a message of this program's source.
    fn panicked(at: *const u8, length: usize);
}

/// The generator behind `OsRng`: the page's `crypto.getRandomValues`.
#[unsafe(no_mangle)]
unsafe extern "Rust" fn __getrandom_v03_custom(
    at: *mut u8,
    length: usize,
) -> Result<(), getrandom::Error> {
    // SAFETY: the caller owns `length` bytes at `at`, and the import writes there and nowhere else.
    unsafe { random(at, length) };
    Ok(())
}

/// Runs once, before anything else.
#[unsafe(no_mangle)]
extern "C" fn start() {
    std::panic::set_hook(Box::new(|info| {
        // The place alone: a message could hold a value.
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        // SAFETY: the import reads these bytes and nothing else.
        unsafe { panicked(place.as_ptr(), place.len()) };
    }));
}

/// Room for `length` bytes of arguments.
#[unsafe(no_mangle)]
extern "C" fn reserve(length: usize) -> *mut u8 {
    MODULE.with_borrow_mut(|module| {
        module.arguments = vec![0; length];
        module.arguments.as_mut_ptr()
    })
}

/// Where the last result lies.
#[unsafe(no_mangle)]
extern "C" fn result_at() -> *const u8 {
    MODULE.with_borrow(|module| module.result.as_ptr())
}

/// Bytes of the last result.
#[unsafe(no_mangle)]
extern "C" fn result_length() -> usize {
    MODULE.with_borrow(|module| module.result.len())
}

/// Erases arguments and result.
#[unsafe(no_mangle)]
extern "C" fn forget() {
    MODULE.with_borrow_mut(|module| {
        pi_core::memory::erase_all(&mut module.arguments);
        pi_core::memory::erase_all(&mut module.result);
        module.arguments = Vec::new();
        module.result = Vec::new();
    });
}

/// Calls a function with the arguments.
fn call(function: impl FnOnce(&mut Client, Vec<u8>) -> Result<Vec<u8>, Failure>) -> i32 {
    MODULE.with_borrow_mut(|module| {
        let arguments = std::mem::take(&mut module.arguments);
        match function(&mut module.client, arguments) {
            Ok(result) => {
                module.result = result;
                0
            }
            Err(failure) => {
                module.result = serde_json::to_vec(&failure).unwrap_or_default();
                1
            }
        }
    })
}

fn text(bytes: &[u8]) -> Result<&str, Failure> {
    std::str::from_utf8(bytes).map_err(|error| Failure::internal(error.to_string()))
}

/// The first `length` bytes as text, and the rest.
fn text_and_rest(bytes: &[u8], length: usize) -> Result<(&str, &[u8]), Failure> {
    let parts = bytes.split_at_checked(length);
    let (head, rest) = parts.ok_or_else(|| Failure::internal("arguments are cut short"))?;
    Ok((text(head)?, rest))
}

fn parsed<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, Failure> {
    serde_json::from_slice(bytes).map_err(|error| Failure::internal(error.to_string()))
}

/// See [`Client::introduce`]; the key, of `key_length` bytes, then the authority.
#[unsafe(no_mangle)]
extern "C" fn introduce(key_length: usize) -> i32 {
    call(|client, arguments| {
        let parts = arguments.split_at_checked(key_length);
        let (key, authority) = parts.ok_or_else(|| Failure::internal("no key"))?;
        client.introduce(key.to_vec(), text(authority)?.to_owned());
        Ok(Vec::new())
    })
}

/// See [`Client::hello`]; [`Wishes`] in JSON.
#[unsafe(no_mangle)]
extern "C" fn hello() -> i32 {
    call(|client, arguments| {
        client.hello(&parsed::<Wishes>(&arguments)?)?;
        Ok(Vec::new())
    })
}

/// See [`Client::catalogue`].
#[unsafe(no_mangle)]
extern "C" fn catalogue() -> i32 {
    call(|client, _| {
        client.catalogue();
        Ok(Vec::new())
    })
}

/// See [`Client::probe`]; ids in a JSON list.
#[unsafe(no_mangle)]
extern "C" fn probe() -> i32 {
    call(|client, arguments| {
        client.probe(&parsed::<Vec<String>>(&arguments)?)?;
        Ok(Vec::new())
    })
}

/// See [`Client::fetch_artifact`].
#[unsafe(no_mangle)]
extern "C" fn fetch_artifact() -> i32 {
    call(|client, _| {
        client.fetch_artifact();
        Ok(Vec::new())
    })
}

/// See [`Client::use_artifact`]; 64 digits of the digest, then the file.
#[unsafe(no_mangle)]
extern "C" fn use_artifact() -> i32 {
    call(|client, arguments| {
        let (digest, bytes) = text_and_rest(&arguments, 64)?;
        Ok(client.use_artifact(digest, bytes)?.into_bytes())
    })
}

/// See [`Client::use_setup`]; 64 digits of the id, then the stored form. 0 if it is used, 2 if it
/// is not of this id.
#[unsafe(no_mangle)]
extern "C" fn use_setup() -> i32 {
    let mut used = false;
    let failed = call(|client, arguments| {
        let (id, bytes) = text_and_rest(&arguments, 64)?;
        used = client.use_setup(id, bytes);
        Ok(Vec::new())
    });
    match (failed, used) {
        (0, false) => 2,
        (failed, _) => failed,
    }
}

/// See [`Client::exchange_keys`].
#[unsafe(no_mangle)]
extern "C" fn exchange_keys() -> i32 {
    call(|client, _| {
        client.exchange_keys()?;
        Ok(Vec::new())
    })
}

/// See [`Client::prepare`]; ids held in a JSON list.
#[unsafe(no_mangle)]
extern "C" fn prepare(count: u32) -> i32 {
    call(|client, arguments| {
        client.prepare(count, &parsed::<Vec<String>>(&arguments)?)?;
        Ok(Vec::new())
    })
}

/// See [`Client::read_picture`]; the file's name, of `name_length` bytes, then the file.
#[unsafe(no_mangle)]
extern "C" fn read_picture(name_length: usize) -> i32 {
    call(|client, arguments| {
        let (name, bytes) = text_and_rest(&arguments, name_length)?;
        client.read_picture(name, bytes.to_vec())
    })
}

/// See [`Client::unmasked`].
#[unsafe(no_mangle)]
extern "C" fn unmasked() -> i32 {
    call(|client, _| client.unmasked())
}

/// See [`Client::load_bundle`]; 64 digits of the id, then the stored form.
#[unsafe(no_mangle)]
extern "C" fn load_bundle() -> i32 {
    call(|client, mut arguments| {
        let (id, bytes) = text_and_rest(&arguments, 64)?;
        let loaded = client.load_bundle(id, bytes);
        pi_core::memory::erase_all(&mut arguments);
        loaded.map(|()| Vec::new())
    })
}

/// See [`Client::infer`].
#[unsafe(no_mangle)]
extern "C" fn infer(trace: u32) -> i32 {
    call(|client, _| {
        client.infer(trace != 0)?;
        Ok(Vec::new())
    })
}

/// Lets the operation compute: 0 computing, 2 in need of bytes, 3 an event, 4 done, 1 failed.
#[unsafe(no_mangle)]
extern "C" fn poll() -> i32 {
    let mut state = 0;
    let failed = call(|client, _| {
        let (code, result) = match client.poll()? {
            State::Computing => (0, Vec::new()),
            State::NeedsBytes => (2, Vec::new()),
            State::Event(event) => (3, event),
            State::Done(result) => (4, result),
        };
        state = code;
        Ok(result)
    });
    if failed != 0 { failed } else { state }
}

/// Takes what the operation has sent: its length; [`outgoing_at`] says where it lies.
#[unsafe(no_mangle)]
extern "C" fn take_outgoing() -> usize {
    MODULE.with_borrow_mut(|module| {
        module.outgoing = match module.client.line() {
            Some(line) => line.take_outgoing(),
            None => Vec::new(),
        };
        module.outgoing.len()
    })
}

/// Where the bytes to be sent lie.
#[unsafe(no_mangle)]
extern "C" fn outgoing_at() -> *const u8 {
    MODULE.with_borrow(|module| module.outgoing.as_ptr())
}

/// Bytes of the server.
#[unsafe(no_mangle)]
extern "C" fn arrived() -> i32 {
    call(|client, arguments| {
        if let Some(line) = client.line() {
            line.put(&arguments);
        }
        Ok(Vec::new())
    })
}

/// The server's end of the stream.
#[unsafe(no_mangle)]
extern "C" fn ended() -> i32 {
    call(|client, _| {
        if let Some(line) = client.line() {
            line.end();
        }
        Ok(Vec::new())
    })
}

/// The answer to an event.
#[unsafe(no_mangle)]
extern "C" fn reply() -> i32 {
    call(|client, arguments| {
        if let Some(line) = client.line() {
            line.reply(arguments);
        }
        Ok(Vec::new())
    })
}

/// See [`Client::abandon`].
#[unsafe(no_mangle)]
extern "C" fn abandon() {
    MODULE.with_borrow_mut(|module| module.client.abandon());
}

/// See [`Client::disconnect`].
#[unsafe(no_mangle)]
extern "C" fn disconnect() {
    MODULE.with_borrow_mut(|module| module.client.disconnect());
}

/// A refusal's code in words.
#[unsafe(no_mangle)]
extern "C" fn refusal(code: u32) -> i32 {
    call(|_, _| serde_json::to_vec(&advice(code)).map_err(|e| Failure::internal(e.to_string())))
}

/// The release of this module: version of the protocol, then of the program.
#[unsafe(no_mangle)]
extern "C" fn release() -> i32 {
    call(|_, _| {
        let version = pi_protocol::header::PROTOCOL_VERSION;
        Ok(format!("{version} {}", pi_wire::control::software()).into_bytes())
    })
}

/// Hexadecimal digits of the arguments.
#[unsafe(no_mangle)]
extern "C" fn digits() -> i32 {
    call(|_, arguments| Ok(hex(&arguments).into_bytes()))
}
