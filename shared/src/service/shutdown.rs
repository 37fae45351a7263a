//! When to drain, to stop at once, to read the configuration again.

/// Tells every part of a program that it is time to drain, then to stop at once.
///
/// Clones share one state.
#[derive(Clone, Debug)]
pub struct Shutdown {
    state: tokio::sync::watch::Sender<Stage>,
}

/// The hang-ups (SIGHUP) that ask a program to read its configuration again.
#[derive(Debug)]
pub struct Reloads {
    #[cfg(unix)]
    hangups: tokio::signal::unix::Signal,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Debug)]
enum Stage {
    Running,
    Draining,
    Stopping,
}

impl Default for Shutdown {
    fn default() -> Self {
        Self::new()
    }
}

impl Shutdown {
    /// A program that runs.
    pub fn new() -> Self {
        Self { state: tokio::sync::watch::Sender::new(Stage::Running) }
    }

    /// Asks for the next stage: first to drain, from then on to stop at once.
    pub fn request(&self) {
        self.state.send_modify(|stage| *stage = if *stage == Stage::Running { Stage::Draining } else { Stage::Stopping });
    }

    /// Waits until the program is to drain: take nothing new, finish what is under way.
    pub async fn draining(&self) {
        let mut stage = self.state.subscribe();
        let _ = stage.wait_for(|&stage| stage >= Stage::Draining).await;
    }

    /// Waits until the program is to stop at once.
    pub async fn stopping(&self) {
        let mut stage = self.state.subscribe();
        let _ = stage.wait_for(|&stage| stage >= Stage::Stopping).await;
    }

    /// Whether the program takes nothing new any more.
    pub fn is_draining(&self) -> bool {
        *self.state.borrow() >= Stage::Draining
    }
}

impl Reloads {
    /// Waits for the next request to read the configuration again.
    pub async fn next(&mut self) {
        #[cfg(unix)]
        if self.hangups.recv().await.is_some() {
            return;
        }
        std::future::pending().await
    }
}

/// A [`Shutdown`] that SIGTERM and Ctrl-C request: the first drains, the second stops at once, the third ends the process
/// where it stands.
///
/// # Panics
/// Outside a tokio runtime with its I/O driver.
pub fn shutdown_on_signals() -> Shutdown {
    let shutdown = Shutdown::new();
    let requested = shutdown.clone();
    let mut signals = Terminations::new();
    tokio::spawn(async move {
        signals.next().await;
        tracing::info!("stopping: no new work is taken, what is under way may finish; once more to stop at once");
        requested.request();
        signals.next().await;
        tracing::info!("stopping at once");
        requested.request();
        signals.next().await;
        std::process::exit(super::Exit::Software as i32);
    });
    shutdown
}

/// The requests to read the configuration again. From now on SIGHUP no longer ends the process.
///
/// # Panics
/// Outside a tokio runtime with its I/O driver.
pub fn reload_on_hangup() -> Reloads {
    Reloads {
        #[cfg(unix)]
        hangups: listen_to(tokio::signal::unix::SignalKind::hangup()),
    }
}

struct Terminations {
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
}

impl Terminations {
    /// Listens from now on, not from the first [`Terminations::next`].
    fn new() -> Self {
        #[cfg(unix)]
        use tokio::signal::unix::SignalKind;
        Self {
            #[cfg(unix)]
            terminate: listen_to(SignalKind::terminate()),
            #[cfg(unix)]
            interrupt: listen_to(SignalKind::interrupt()),
        }
    }

    async fn next(&mut self) {
        #[cfg(unix)]
        tokio::select! {
            _ = self.terminate.recv() => (),
            _ = self.interrupt.recv() => (),
        }
        #[cfg(not(unix))]
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(unix)]
fn listen_to(kind: tokio::signal::unix::SignalKind) -> tokio::signal::unix::Signal {
    tokio::signal::unix::signal(kind).expect("the caller runs in a tokio runtime, and the signal may be caught")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_first_request_drains_and_the_second_stops() {
        let shutdown = Shutdown::new();
        assert!(!shutdown.is_draining());
        shutdown.request();
        shutdown.draining().await;
        assert!(shutdown.is_draining());
        tokio::select! {
            biased;
            () = shutdown.stopping() => panic!("one request must not stop at once"),
            () = std::future::ready(()) => (),
        }
        shutdown.clone().request();
        shutdown.stopping().await;
    }
}
