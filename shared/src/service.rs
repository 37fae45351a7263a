//! What the three programs have in common as programs: reading configuration, logging, signals, exit codes.

use std::{path::Path, process::ExitCode};

use crate::community::profile::Profile;

/// Tells every part of a program that it is time to drain, then to stop at once.
///
/// Clones share one state.
#[derive(Clone, Debug)]
pub struct Shutdown {
    state: tokio::sync::watch::Sender<Stage>,
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
