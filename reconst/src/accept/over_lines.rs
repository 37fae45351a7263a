//! The sessions as their lines are measured by.

use std::net::IpAddr;

use shared::{community::quota::Used, transfer::path::PathStatus};

use super::{Entry, Sessions, report::payload_of};
use crate::{accounts::MemberId, roster::LineKey};

/// A session, and the lines that its paths run over.
pub struct SessionOverLines {
    /// Its incarnation.
    pub incarnation: u64,
    /// From whose account its flows are spent.
    pub account: MemberId,
    /// What its flows have moved.
    pub payload: Used,
    /// Its paths.
    pub paths: Vec<PathOverLine>,
}

/// A path, and what it runs over.
pub struct PathOverLine {
    /// The line, as the user says, and the address that it shows; none if the user says none that can be.
    pub line: Option<(LineKey, IpAddr)>,
    /// The path's figures.
    pub status: PathStatus,
}

impl Sessions {
    /// All sessions.
    pub fn over_lines(&self) -> Vec<SessionOverLines> {
        let entries: Vec<_> = self.inner.lock().values().cloned().collect();
        entries.iter().map(SessionOverLines::of).collect()
    }
}

impl SessionOverLines {
    fn of(entry: &Entry) -> Self {
        let mut line_by_path = entry.lines();
        let paths = entry.handle.path_status().into_iter();
        let paths = paths.map(|status| PathOverLine { line: line_by_path.remove(&status.path), status }).collect();
        Self { incarnation: entry.incarnation, account: entry.account().user(), payload: payload_of(&entry.handle), paths }
    }
}
