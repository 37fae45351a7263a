//! The applications' side: SOCKS and HTTP connections come in, flows to content servers go out through an [`Outbound`].
//!
//! [`mixed`] accepts and tells the protocol; [`socks5`] (with [`associate`] for datagrams), [`socks4`] and [`http`] each speak one. Every connection is one
//! task that holds one of a bounded number of slots; nothing an application sends can hold memory without a bound, or a
//! slot without an open flow for longer than a time limit.

use std::{
    net::SocketAddr,
    sync::{
        Arc, RwLock,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use serde::Serialize;
use shared::{
    service::Shutdown,
    target::{Refusal, RefusalKind, Target},
};

use crate::outbound::Outbound;

mod associate;
pub mod auth;
mod http;
pub mod mixed;
mod pac;
mod socks4;
mod socks5;

/// What applications may use of this program.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Limits {
    /// Connections of applications at once; 4096 by default. More wait in the system's queue. Too few and a browser's idle
    /// connections keep others out; each takes a file descriptor, a second one for a direct flow, and up to 200 KiB.
    pub connections: usize,
    /// For a SOCKS handshake to complete; 10 s by default. Shorter fails applications on a busy machine.
    pub handshake: Duration,
    /// For an HTTP connection between two requests, and for a connection's first byte; 60 s by default. Shorter makes
    /// browsers connect anew, longer keeps slots.
    pub idle: Duration,
    /// For a flow to open; 60 s by default. Shorter gives up on content servers that lose the first packets.
    pub open: Duration,
    /// For flows to finish after the program was asked to stop; 5 s by default.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 4096,
            handshake: Duration::from_secs(10),
            idle: Duration::from_secs(60),
            open: Duration::from_secs(60),
            drain: Duration::from_secs(5),
        }
    }
}

/// What all inbound connections share.
#[derive(Debug)]
pub struct Front<O> {
    outbound: O,
    rules: RwLock<Rules>,
    limits: Limits,
    shutdown: Shutdown,
    counts: Counts,
}

/// What may change while the program runs.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The user and password that applications must give.
    pub credentials: Option<Arc<auth::Credentials>>,
    /// What the PAC file says of local destinations.
    pub bypasses_local: bool,
}

#[derive(Default, Debug)]
struct Counts {
    connections: AtomicUsize,
    flows_opened: AtomicU64,
    flows_refused: AtomicU64,
    associations: AtomicUsize,
    datagrams_up: AtomicU64,
    datagrams_down: AtomicU64,
    datagrams_dropped: AtomicU64,
}

/// How busy the inbound side is.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct InboundStatus {
    /// Applications' connections now.
    pub connections: usize,
    /// Flows opened since the start.
    pub flows_opened: u64,
    /// Flows refused since the start.
    pub flows_refused: u64,
    /// Applications' UDP associations now.
    pub associations: usize,
    /// Datagrams of applications since the start, and to applications.
    pub datagrams_up: u64,
    /// See `datagrams_up`.
    pub datagrams_down: u64,
    /// Datagrams dropped here since the start: malformed, in SOCKS fragments, of strangers, or too long for the application's socket.
    pub datagrams_dropped: u64,
}

impl<O: Outbound> Front<O> {
    /// The inbound side of a program that opens flows through `outbound`.
    pub fn new(outbound: O, rules: Rules, limits: Limits, shutdown: Shutdown) -> Self {
        Self { outbound, rules: RwLock::new(rules), limits, shutdown, counts: Counts::default() }
    }

    /// Where the flows go.
    pub fn outbound(&self) -> &O {
        &self.outbound
    }

    /// Sets other rules for requests from now on; open flows stay.
    pub fn set_rules(&self, rules: Rules) {
        *self.rules.write().unwrap_or_else(|poisoned| poisoned.into_inner()) = rules;
    }

    fn rules(&self) -> Rules {
        self.rules.read().unwrap_or_else(|poisoned| poisoned.into_inner()).clone()
    }

    /// How busy it is.
    pub fn status(&self) -> InboundStatus {
        InboundStatus {
            connections: self.counts.connections.load(Ordering::Relaxed),
            flows_opened: self.counts.flows_opened.load(Ordering::Relaxed),
            flows_refused: self.counts.flows_refused.load(Ordering::Relaxed),
            associations: self.counts.associations.load(Ordering::Relaxed),
            datagrams_up: self.counts.datagrams_up.load(Ordering::Relaxed),
            datagrams_down: self.counts.datagrams_down.load(Ordering::Relaxed),
            datagrams_dropped: self.counts.datagrams_dropped.load(Ordering::Relaxed),
        }
    }

    async fn open(&self, target: Target, application: SocketAddr) -> Result<O::Stream, Refusal> {
        let result = match tokio::time::timeout(self.limits.open, self.outbound.open(target.clone(), application)).await {
            Ok(result) => result,
            Err(_) => Err(Refusal::new(RefusalKind::TimedOut, format!("{target} did not answer within {} s", self.limits.open.as_secs()))),
        };
        match &result {
            Ok(_) => {
                self.counts.flows_opened.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(%application, %target, "flow opened");
            }
            Err(refusal) => {
                self.counts.flows_refused.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(%application, %target, %refusal, "flow refused");
            }
        }
        result
    }
}
