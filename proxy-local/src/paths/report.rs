//! What people are shown of the paths.

use std::{net::SocketAddr, time::Duration};

use serde::Serialize;
use shared::{
    community::weight::LineWeight,
    transfer::path::{PathState, PathStatus},
};

/// What a path runs over.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Route {
    /// The relay's name.
    pub relay: String,
    /// Its address on the LAN.
    pub address: SocketAddr,
    /// The line's number within the relay.
    pub line: u8,
}

/// A path's route and figures.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct PathReport {
    /// Its number, which no other path of this run has.
    pub id: u32,
    /// What it runs over.
    #[serde(flatten)]
    pub route: Route,
    /// `active`, `leaving`, `suspect` or `dead`.
    pub state: &'static str,
    /// The line's weight towards `reconst`.
    pub weight_up: LineWeight,
    /// The smoothed and the least round-trip time and the queue towards `reconst`, in milliseconds.
    pub rtt_ms: f64,
    /// The least round-trip time seen lately.
    pub min_rtt_ms: f64,
    /// The queue towards `reconst`.
    pub queue_up_ms: f64,
    /// The line's rate towards `reconst` in bits per second, once measured.
    pub rate_up: Option<u64>,
    /// What of that is fair while others fill the line as well, in bits per second, as far as `reconst` has said.
    pub fair_rate_up: Option<u64>,
    /// The fraction of bytes lost lately towards `reconst`.
    pub loss_up: f64,
    /// Bytes sent over the line, acknowledgements and all.
    pub up_bytes: u64,
    /// Bytes received over the line.
    pub down_bytes: u64,
    /// Datagrams lost towards `reconst`.
    pub lost_datagrams: u64,
    /// Times that the line fell silent.
    pub suspicions: u64,
}

impl PathReport {
    pub(super) fn new(route: Route, status: &PathStatus) -> Self {
        let bits = |bytes_per_second: f64| (bytes_per_second * 8.0) as u64;
        let milliseconds = |time: Duration| time.as_secs_f64() * 1e3;
        Self {
            id: status.path.0,
            route,
            state: match status.state {
                PathState::Active if status.is_leaving => "leaving",
                PathState::Active => "active",
                PathState::Suspect => "suspect",
                PathState::Dead => "dead",
            },
            weight_up: status.weight,
            rtt_ms: milliseconds(status.rtt),
            min_rtt_ms: milliseconds(status.min_rtt),
            queue_up_ms: milliseconds(status.queue),
            rate_up: status.capacity.map(bits),
            fair_rate_up: status.fair_rate.map(bits),
            loss_up: status.loss,
            up_bytes: status.counters.sent_bytes,
            down_bytes: status.counters.received_bytes,
            lost_datagrams: status.counters.lost_datagrams,
            suspicions: status.counters.suspicions,
        }
    }
}

/// A relay of which no path is up, and why.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct RelayProblem {
    /// The relay's address on the LAN.
    pub address: SocketAddr,
    /// The last problem, for a person.
    pub problem: String,
}
