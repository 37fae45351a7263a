//! How `reconst`'s servers are reached over a line.
//!
//! Enters: servers' login ports, the best first. Leaves: a connection to the first that answers, or why there is none, for a person. Always holds: a
//! server that does not answer holds up the next by [`STAGGER`] alone; all of it goes over the line.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, anyhow, bail};
use quinn::{ConnectionError, Endpoint, EndpointConfig, IdleTimeout, TransportConfig, VarInt};
use shared::{
    community::{login::CloseCode, probe::DATAGRAMS_BYTES, profile::Profile},
    link::{
        attempts,
        credentials::Credentials,
        tls::{LOGIN_ALPN, SERVER_NAME, TlsError},
    },
    target::{Host, Target},
};
use tokio::time::timeout;

use crate::line::WanBinding;

/// How servers are reached over the line.
#[derive(Clone)]
pub(crate) struct Way {
    config: quinn::ClientConfig,
    binding: WanBinding,
}

/// A server that has answered.
pub(crate) struct Reached {
    pub(crate) target: Target,
    pub(crate) address: SocketAddr,
    pub(crate) connection: quinn::Connection,
}

/// Why no login stands.
pub(crate) struct Problem {
    pub(crate) target: Target,
    /// Whether somebody was there: then that says more than that others are silent.
    pub(crate) has_answered: bool,
    pub(crate) error: anyhow::Error,
}

impl Way {
    /// The way over a line for the relay of `profile`, with the credentials that it has then.
    ///
    /// # Errors
    /// If the profile's certificates or key can't be used.
    pub(crate) fn new(profile: &Profile, credentials: &Credentials, binding: WanBinding) -> Result<Self, TlsError> {
        let mut config = quinn::ClientConfig::new(credentials.client_crypto(&profile.authority_pem, LOGIN_ALPN)?);
        config.transport_config(Arc::new(transport()));
        Ok(Self { config, binding })
    }

    /// The first of `servers` that answers, the best of which comes first.
    ///
    /// # Errors
    /// If none does: what the best one said, or else why it was not reached.
    pub(crate) async fn first_of(&self, servers: Vec<Target>) -> Result<Reached, Problem> {
        let attempts: Vec<_> = servers.iter().map(|target| self.clone().connect(target.clone())).collect();
        let mut problems = Vec::new();
        let reached = attempts::first_of(attempts, STAGGER, |problem: Problem| problems.push(problem)).await;
        let rank = |problem: &Problem| (!problem.has_answered, servers.iter().position(|target| *target == problem.target));
        reached.ok_or_else(|| problems.into_iter().min_by_key(rank).expect("there is a server"))
    }

    /// Connects to the login port of a server, or, while a modem's line comes up, waits for it.
    async fn connect(self, target: Target) -> Result<Reached, Problem> {
        let (address, connecting) = match self.begin(&target).await {
            Ok(begun) => begun,
            Err(error) => return Err(Problem { target, has_answered: false, error }),
        };
        match timeout(CONNECT_TIME, connecting).await {
            Ok(Ok(connection)) => Ok(Reached { target, address, connection }),
            Ok(Err(error)) => {
                let has_answered = !matches!(error, ConnectionError::TimedOut | ConnectionError::LocallyClosed);
                Err(Problem { target, has_answered, error: explain(&error) })
            }
            Err(_) => Err(Problem { target, has_answered: false, error: anyhow!("reconst at {address} does not answer") }),
        }
    }

    async fn begin(&self, target: &Target) -> anyhow::Result<(SocketAddr, quinn::Connecting)> {
        let address = timeout(CONNECT_TIME, self.resolve(target)).await.context("the name server does not answer")??;
        let socket = self.binding.open(address.ip()).with_context(|| format!("can't send over {}", self.binding))?;
        let endpoint = Endpoint::new(EndpointConfig::default(), None, socket, Arc::new(quinn::TokioRuntime))?;
        Ok((address, endpoint.connect_with(self.config.clone(), address, SERVER_NAME)?))
    }

    /// The first address of `target` that the line can send to.
    pub(crate) async fn resolve(&self, target: &Target) -> anyhow::Result<SocketAddr> {
        let usable = |ip: &IpAddr| !matches!(self.binding, WanBinding::Address(local) if local.is_ipv4() != ip.is_ipv4());
        match &target.host {
            Host::Ip(ip) if usable(ip) => Ok(SocketAddr::new(*ip, target.port)),
            Host::Ip(ip) => bail!("{ip} can't be reached from {}: one is IPv4, the other IPv6", self.binding),
            Host::Name(name) => {
                let mut found =
                    tokio::net::lookup_host((name.as_str(), target.port)).await.with_context(|| format!("can't resolve {name}"))?;
                found
                    .find(|address| usable(&address.ip()))
                    .with_context(|| format!("{name} has no address that {} can reach", self.binding))
            }
        }
    }
}

/// What a connection's end means, for a person.
pub(crate) fn explain(error: &ConnectionError) -> anyhow::Error {
    match error {
        ConnectionError::ApplicationClosed(close) => {
            let reason = String::from_utf8_lossy(&close.reason);
            match CloseCode::from_code(close.error_code.into_inner()) {
                Some(CloseCode::Denied) => anyhow!("reconst refuses this relay: {reason}"),
                Some(CloseCode::Busy) => anyhow!("reconst has no room right now: {reason}"),
                Some(CloseCode::Leaving) => anyhow!("reconst is going away"),
                _ => anyhow!("reconst closed the login: {reason}"),
            }
        }
        ConnectionError::TransportError(error) if is_about_certificates(error.code) => {
            anyhow!("reconst is not the one that made this profile, or the other way round: ask its operator for a new one ({error})")
        }
        error => anyhow!("the connection to reconst failed: {error}"),
    }
}

/// Whether a TLS alert (RFC 8446 §6.2) says that one end does not believe the other's certificate.
fn is_about_certificates(code: quinn::TransportErrorCode) -> bool {
    const ALERTS: [u8; 8] = [42, 43, 44, 45, 46, 48, 51, 116];
    ALERTS.into_iter().any(|alert| code == quinn::TransportErrorCode::crypto(alert))
}

/// A login is one stream with little on it; it must not take the line from its users.
fn transport() -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_idle_timeout(Some(IdleTimeout::from(VarInt::from_u32(IDLE_MS))))
        .keep_alive_interval(Some(KEEP_ALIVE))
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(WINDOW_BYTES))
        .receive_window(VarInt::from_u32(WINDOW_BYTES))
        .send_window(WINDOW_BYTES.into())
        .datagram_receive_buffer_size(Some(DATAGRAMS_BYTES))
        .datagram_send_buffer_size(DATAGRAMS_BYTES);
    transport
}

/// After this long without an answer the line counts as down: a few lost keep-alives on a bad line do not.
const IDLE_MS: u32 = 15_000;
const KEEP_ALIVE: Duration = Duration::from_secs(4);

/// Two frames of the longest.
const WINDOW_BYTES: u32 = 32 * 1024;

/// The longest that a name server or `reconst` is waited for: a modem's line takes seconds to come up.
pub(crate) const CONNECT_TIME: Duration = Duration::from_secs(10);

/// How long a server has to answer before the next is asked as well: a few round trips of most lines.
const STAGGER: Duration = Duration::from_millis(500);
