//! What a session is told, and what it tells.

use std::time::Duration;

use bytes::Bytes;
use thiserror::Error;

use crate::{
    ids::{FlowId, PathId},
    transfer::{
        control::{AbortCode, Leaving},
        path::PathState,
        reorder::ReorderError,
    },
    wire::WireError,
};

/// Which end of a session this is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Side {
    /// `proxy-local`: opens flows and paths.
    Proxy,
    /// `reconst`.
    Reconst,
}

/// What a session may take up.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Flows at once. Too few refuse a browser's many tabs; each costs at most its window.
    pub flows: usize,
    /// The credit that a flow begins with, in bytes, on both ends: part of the protocol. Smaller stalls the first round trips.
    pub initial_window: u64,
    /// The credit that a flow grows to. Below the sum of the rates × the longest round trip, it caps a flow's rate.
    pub max_window: u64,
    /// The credit that all flows together get beyond their initial windows.
    pub window_growth: u64,
    /// Bytes that all flows together keep until they are acknowledged; beyond it each flow takes no more than a few. Below the sum of the rates ×
    /// the longest round trip, it caps the session's rate.
    pub retained: u64,
    /// The time without tracked datagrams after which an idle path is pinged; `None` leaves it to the other end.
    pub keep_alive: Option<Duration>,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            flows: 4096,
            initial_window: 256 << 10,
            max_window: 16 << 20,
            window_growth: 128 << 20,
            retained: 64 << 20,
            keep_alive: None,
        }
    }
}

/// A session can't go on: the other end broke the rules.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum SessionError {
    /// A datagram that can't be read.
    #[error("the other end sent a malformed datagram: {0}")]
    Malformed(#[from] WireError),
    /// The control flow overran its window or was ended.
    #[error("the other end broke the control flow: {0}")]
    Control(ReorderError),
    /// Flows beyond the limit without end, whose refusals it does not take.
    #[error("the other end opens ever more flows and takes no refusal")]
    Refusals,
    /// Flow numbers far apart.
    #[error("the other end's flow numbers are too far apart")]
    FlowNumbers,
}

/// A datagram to send.
#[derive(Debug)]
pub struct Transmit {
    /// The path that takes it.
    pub path: PathId,
    /// Its bytes, at most what the path takes.
    pub datagram: Bytes,
}

/// What the driver is told.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Event {
    /// The other end opened a flow.
    Opened(FlowId),
    /// There is something to read, the end or an abort included.
    Readable(FlowId),
    /// There is room to write, or the flow is aborted.
    Writable(FlowId),
    /// A parcel arrived.
    Parcel(FlowId),
    /// The flow is aborted, other than by [`super::Session::release`].
    Aborted(FlowId),
    /// A path's state changed.
    Path(PathId, PathState),
    /// The other end asks to leave the path.
    Leave(PathId, Leaving),
    /// [`super::Session::roster`] has changed.
    Roster,
    /// [`super::Session::quotas`] have changed.
    Quotas,
}

/// What a read gives.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Read {
    /// The next bytes.
    Bytes(Bytes),
    /// Nothing yet.
    Blocked,
    /// The flow's end.
    End,
    /// The flow was aborted.
    Aborted(AbortCode),
}

/// A session's figures.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct SessionCounters {
    /// Flow bytes acknowledged by the other end, each once.
    pub delivered_bytes: u64,
    /// Flow bytes read by the application, each once.
    pub read_bytes: u64,
    /// Flows opened.
    pub flows: u64,
    /// Parcels of UDP flows that went out, each once, and their bytes.
    pub sent_parcels: u64,
    /// See `sent_parcels`.
    pub sent_parcel_bytes: u64,
    /// Parcels that arrived, each once, and their bytes.
    pub received_parcels: u64,
    /// See `received_parcels`.
    pub received_parcel_bytes: u64,
    /// Parcels that were dropped before they went out, for age or for room.
    pub dropped_parcels: u64,
    /// Fragments that had arrived before, and parcels for which there was no room on arrival.
    pub discarded_parcels: u64,
}
