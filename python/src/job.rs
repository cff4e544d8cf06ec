//! Work on threads of its own, for which Python waits.

use crate::failure::Failure;
use pyo3::prelude::*;
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// A result as Python gets it.
type Handed = Box<dyn FnOnce(Python<'_>) -> PyResult<Py<PyAny>> + Send>;

/// Work under way, or done.
#[pyclass(frozen, module = "pianissimo._native")]
pub(crate) struct Job {
    shared: Arc<Shared>,
    cancel: watch::Sender<bool>,
}

/// What a job and its work share.
#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    done: Condvar,
    progress: AtomicU64,
}

#[derive(Default)]
enum State {
    #[default]
    Running,
    /// Somebody is to be called when it is done.
    Awaited(Py<PyAny>),
    Done(Result<Handed, Failure>),
    Taken,
}

/// The working side of a job.
pub(crate) struct Work {
    shared: Arc<Shared>,
    cancelled: watch::Receiver<bool>,
    finished: bool,
}

/// The reactor of this process, made at its first use.
///
/// # Errors
/// If the process is a fork of the one that made it, whose threads it lacks.
pub(crate) fn runtime() -> Result<&'static Runtime, Failure> {
    static RUNTIME: OnceLock<Result<(u32, Runtime), String>> = OnceLock::new();
    let made = RUNTIME.get_or_init(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .thread_name("pianissimo")
            .enable_all()
            .build();
        Ok((process::id(), runtime.map_err(|e| e.to_string())?))
    });
    match made {
        Ok((process, runtime)) if *process == process::id() => Ok(runtime),
        Ok(_) => Err(Failure::new(
            "InvalidArgument",
            "pianissimo was used before this process was forked, and its threads were not copied",
        )
        .with_remedy(
            "start processes with multiprocessing.get_context(\"spawn\"), or use pianissimo in the \
             new process alone",
        )),
        Err(reason) => Err(Failure::internal(format!("no threads: {reason}"))),
    }
}

impl Job {
    /// A job, and the side that works on it.
    ///
    /// # Errors
    /// As [`runtime`].
    pub(crate) fn new() -> Result<(Job, Work), Failure> {
        runtime()?;
        let shared = Arc::<Shared>::default();
        let (cancel, cancelled) = watch::channel(false);
        let work = Work {
            shared: shared.clone(),
            cancelled,
            finished: false,
        };
        Ok((Job { shared, cancel }, work))
    }

    /// Runs a function on a thread of its own.
    ///
    /// # Errors
    /// As [`runtime`].
    pub(crate) fn run<T, H>(
        work: impl FnOnce(&Work) -> Result<T, Failure> + Send + 'static,
        hand: H,
    ) -> Result<Job, Failure>
    where
        T: Send + 'static,
        H: FnOnce(Python<'_>, T) -> PyResult<Py<PyAny>> + Send + 'static,
    {
        let (job, working) = Job::new()?;
        let body = move || {
            let result = work(&working);
            working.finish(result, hand);
        };
        let thread = std::thread::Builder::new().name("pianissimo job".into());
        let started = thread.spawn(body);
        started.map_err(|e| Failure::internal(format!("no thread: {e}")))?;
        Ok(job)
    }
}

impl Work {
    /// Ends the job. `hand` makes the result a Python object, on Python's thread.
    pub(crate) fn finish<T, H>(mut self, result: Result<T, Failure>, hand: H)
    where
        T: Send + 'static,
        H: FnOnce(Python<'_>, T) -> PyResult<Py<PyAny>> + Send + 'static,
    {
        self.end(result.map(|value| -> Handed { Box::new(move |py| hand(py, value)) }));
    }

    fn end(&mut self, result: Result<Handed, Failure>) {
        self.finished = true;
        let before = std::mem::replace(&mut *self.shared.lock(), State::Done(result));
        self.shared.done.notify_all();
        if let State::Awaited(callback) = before {
            // `None` while the interpreter ends: then nobody waits any more.
            Python::try_attach(|py| {
                // What it raises has no caller: it is a closed event loop's.
                let _ = callback.call0(py);
                drop(callback);
            });
        }
    }

    /// Counts one more step of the work as done.
    pub(crate) fn step(&self) {
        self.shared.progress.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether nobody wants the result any more.
    pub(crate) fn is_cancelled(&self) -> bool {
        *self.cancelled.borrow()
    }

    /// Returns once nobody wants the result any more.
    pub(crate) async fn cancelled(&self) {
        let mut cancelled = self.cancelled.clone();
        if cancelled.wait_for(|cancelled| *cancelled).await.is_err() {
            // The job itself is gone, and with it whoever could take a result.
        }
    }
}

/// Work that ends without a result has panicked.
impl Drop for Work {
    fn drop(&mut self) {
        if !self.finished {
            self.end(Err(Failure::internal(
                "the work panicked; its message is on standard error",
            )));
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Every state is whole, whatever became of its last holder.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[pymethods]
impl Job {
    /// Waits for the end of the job, at most for so many seconds; returns whether it has ended.
    fn wait(&self, py: Python<'_>, seconds: f64) -> bool {
        let limit = Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX);
        py.detach(|| {
            let running = |state: &mut State| matches!(state, State::Running | State::Awaited(_));
            let waited = (self.shared.done).wait_timeout_while(self.shared.lock(), limit, running);
            let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
            !matches!(*state, State::Running | State::Awaited(_))
        })
    }

    /// Calls a function without arguments, from another thread, when the job has ended; at once if
    /// it has.
    fn on_done(&self, py: Python<'_>, callback: Py<PyAny>) -> PyResult<()> {
        {
            // Dropped before anything of Python's is called.
            let mut state = self.shared.lock();
            if matches!(*state, State::Running | State::Awaited(_)) {
                *state = State::Awaited(callback);
                return Ok(());
            }
        }
        callback.call0(py).map(drop)
    }

    /// The result, once; raises what went wrong.
    fn result(&self, py: Python<'_>) -> PyResult<Py<PyAny>> {
        let state = {
            let mut state = self.shared.lock();
            match *state {
                State::Done(_) => std::mem::replace(&mut *state, State::Taken),
                _ => State::Taken,
            }
        };
        match state {
            State::Done(Ok(hand)) => hand(py),
            State::Done(Err(failure)) => Err(failure.into_error(py)),
            _ => Err(Failure::internal("the result is not there yet, or was taken").into_error(py)),
        }
    }

    /// Number of steps done, where the work has such.
    #[getter]
    fn progress(&self) -> u64 {
        self.shared.progress.load(Ordering::Relaxed)
    }

    /// Asks for an end, at the next place where that is possible.
    fn cancel(&self) {
        self.cancel.send_replace(true);
    }
}
