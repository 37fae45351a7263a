//! Which paths a session has, those among them that are about to join.

use std::{
    collections::BTreeSet,
    sync::{Arc, Mutex},
};

use shared::ids::PathId;

/// The paths of one session; clones share it.
#[derive(Clone, Default)]
pub(super) struct Seats {
    taken: Arc<Mutex<BTreeSet<PathId>>>,
}

/// A path's number and its place among those of its session, for as long as it holds this.
pub(super) struct Seat {
    seats: Seats,
    path: PathId,
}

/// Paths of one session at once.
const PATHS_PER_SESSION: usize = 64;

impl Seats {
    /// Takes a path's seat; why not, if it can't be had.
    pub(super) fn take(&self, path: PathId) -> Result<Seat, &'static str> {
        let mut taken = self.taken.lock().expect("nothing panics under the lock");
        if taken.len() >= PATHS_PER_SESSION {
            return Err("the session has as many paths as it may have");
        }
        if !taken.insert(path) {
            return Err("the session has a path of that number");
        }
        Ok(Seat { seats: self.clone(), path })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.seats.taken.lock().expect("nothing panics under the lock").remove(&self.path);
    }
}
