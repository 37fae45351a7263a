//! One of the three programs, running in this process but on threads of its own, so that it can be stopped as SIGTERM does
//! and killed as a power cut does.

use std::{future::Future, time::Duration};

use anyhow::Context;
use shared::service::Shutdown;
use tokio::runtime::{Builder, Runtime};

/// A running program; dropping it kills it.
#[derive(Debug)]
pub struct Program<R> {
    name: String,
    runtime: Option<Runtime>,
    shutdown: Shutdown,
    running: Option<R>,
}

impl<R: Send + 'static> Program<R> {
    /// Starts a program by its own `start`, which gets the shutdown that [`Program::stop`] asks for.
    ///
    /// # Errors
    /// If it does not start, with its own reason.
    pub async fn start<F>(name: impl Into<String>, start: impl FnOnce(Shutdown) -> F) -> anyhow::Result<Self>
    where
        F: Future<Output = anyhow::Result<R>> + Send + 'static,
    {
        Self::start_where(name, || (), start).await
    }

    /// As [`Program::start`], with threads that each do `move_in` first.
    ///
    /// # Errors
    /// If it does not start, with its own reason.
    pub async fn start_where<F>(
        name: impl Into<String>,
        move_in: impl Fn() + Send + Sync + 'static,
        start: impl FnOnce(Shutdown) -> F,
    ) -> anyhow::Result<Self>
    where
        F: Future<Output = anyhow::Result<R>> + Send + 'static,
    {
        let name = name.into();
        let runtime =
            Builder::new_multi_thread().worker_threads(THREADS).thread_name(&name).on_thread_start(move_in).enable_all().build()?;
        let shutdown = Shutdown::new();
        let started = runtime.spawn(start(shutdown.clone())).await;
        // A runtime must not be dropped where others run: from here on `Drop` of `Self` sees to it.
        let mut program = Self { name, runtime: Some(runtime), shutdown, running: None };
        let running = started.context("the program panicked while it started").and_then(|started| started);
        program.running = Some(running.with_context(|| format!("{} does not start", program.name))?);
        Ok(program)
    }

    /// What its `start` returned.
    pub fn running(&self) -> &R {
        self.running.as_ref().expect("set before `start` returned, taken only by `stop`")
    }

    /// Ends it at once: when this returns its sockets are closed and none of its code runs on.
    pub async fn kill(mut self) {
        if let Some(runtime) = self.runtime.take() {
            let ends = tokio::task::spawn_blocking(move || runtime.shutdown_timeout(STOP_TIME));
            ends.await.expect("ending a runtime does not panic");
        }
    }

    /// Asks it to drain and waits with its own `wait`.
    ///
    /// # Errors
    /// If it fails, or has not ended after [`STOP_TIME`].
    pub async fn stop<F>(mut self, wait: impl FnOnce(R) -> F) -> anyhow::Result<()>
    where
        F: Future<Output = anyhow::Result<()>> + Send + 'static,
    {
        self.shutdown.request();
        let running = self.running.take().expect("only `stop` takes it");
        let runtime = self.runtime.as_ref().expect("only `drop` takes it");
        let waits = runtime.spawn(wait(running));
        let ended = tokio::time::timeout(STOP_TIME, waits).await;
        ended.with_context(|| format!("{} does not stop", self.name))?.context("the program panicked while it stopped")?
    }
}

impl<R> Drop for Program<R> {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Enough for a program's own tasks not to wait for each other; many programs share a small machine.
const THREADS: usize = 2;
/// Longer than any of the programs takes to drain.
pub const STOP_TIME: Duration = Duration::from_secs(20);
