//! The relay's login at `reconst` over one line.
//!
//! Enters: the profile and the line. Leaves: where the paths of the relay's LAN are served ([`Upstream`]), now and whenever `reconst`
//! moves it. Always holds: the login runs over the line itself, so that what it reaches the line reaches; a connection that ends is
//! made again, sooner or later by chance so that the relays of a LAN don't come all at once. Once known, the address stays known while
//! the login is away: the paths find out for themselves whether the line carries them.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use quinn::{ConnectionError, Endpoint, EndpointConfig, IdleTimeout, TransportConfig, VarInt};
use shared::{
    community::{
        hello::LineNumber,
        login::{CloseCode, DataAddress, Frames, FromReconst, FromRelay, VERSION},
        profile::Profile,
    },
    ids::LanId,
    link::tls::{LOGIN_ALPN, SERVER_NAME, TlsError, client_crypto},
    target::{Host, Target},
};
use tokio::{sync::watch, time::timeout};

use crate::line::WanBinding;

/// What the login says of the line.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Upstream {
    /// Where the LAN's paths are served, once known.
    pub data: Option<SocketAddr>,
    /// Whether the login stands right now.
    pub is_logged_in: bool,
    /// Why the last one ended, or did not come about; for a person.
    pub problem: Option<String>,
}

/// Logs in and stays logged in.
pub(crate) struct Login {
    config: quinn::ClientConfig,
    reconst: Vec<Target>,
    lan: LanId,
    line: LineNumber,
    binding: WanBinding,
    upstream: watch::Sender<Upstream>,
}

impl Login {
    /// A login of the relay of `profile` over `line`, and where to read what comes of it.
    ///
    /// # Errors
    /// If the profile's certificates or key can't be used.
    pub(crate) fn new(profile: &Profile, line: LineNumber, binding: WanBinding) -> Result<(Self, watch::Receiver<Upstream>), TlsError> {
        let mut config = quinn::ClientConfig::new(client_crypto(profile, LOGIN_ALPN)?);
        config.transport_config(Arc::new(transport()));
        let (upstream, receiver) = watch::channel(Upstream::default());
        let login = Self { config, reconst: profile.reconst.clone(), lan: profile.identity.lan, line, binding, upstream };
        Ok((login, receiver))
    }

    /// Keeps the relay logged in until the future is dropped.
    pub(crate) async fn run(self) {
        let mut pause = PAUSE_MIN;
        for target in (0..self.reconst.len()).cycle().map(|index| &self.reconst[index]) {
            let ended = self.log_in(target).await;
            let was_logged_in = self.upstream.borrow().is_logged_in;
            let problem = format!("{:#}", ended.expect_err("a login only ever ends"));
            if self.upstream.borrow().problem.as_ref() == Some(&problem) {
                tracing::debug!(line = self.line.0, reconst = %target, problem, "still not logged in");
            } else {
                tracing::warn!(line = self.line.0, reconst = %target, problem, "not logged in");
            }
            self.upstream.send_modify(|upstream| {
                upstream.is_logged_in = false;
                upstream.problem = Some(problem);
            });
            pause = if was_logged_in { PAUSE_MIN } else { (pause * 2).min(PAUSE_MAX) };
            tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
        }
    }

    async fn log_in(&self, target: &Target) -> anyhow::Result<std::convert::Infallible> {
        let address = timeout(CONNECT_TIME, self.resolve(target)).await.context("the name server does not answer")??;
        let socket = self.binding.open(address.ip()).with_context(|| format!("can't send over {}", self.binding))?;
        let endpoint = Endpoint::new(EndpointConfig::default(), None, socket, Arc::new(quinn::TokioRuntime))?;
        let connecting = endpoint.connect_with(self.config.clone(), address, SERVER_NAME)?;
        let connection = timeout(CONNECT_TIME, connecting)
            .await
            .with_context(|| format!("reconst at {address} does not answer"))?
            .map_err(|error| explain(&error))?;
        self.listen(&connection, address.ip()).await
    }

    async fn listen(&self, connection: &quinn::Connection, reached: IpAddr) -> anyhow::Result<std::convert::Infallible> {
        let (mut send, mut receive) = connection.open_bi().await.map_err(|error| explain(&error))?;
        let mut login = Vec::new();
        FromRelay::Login { version: VERSION, line: self.line.0 }.encode(&mut login);
        send.write_all(&login).await.context("reconst closed the login")?;
        let mut frames = Frames::default();
        let mut bytes = [0; 2048];
        loop {
            match receive.read(&mut bytes).await {
                Ok(Some(len)) => frames.handle_bytes(&bytes[..len]),
                Ok(None) => bail!("reconst ended the login"),
                Err(quinn::ReadError::ConnectionLost(error)) => return Err(explain(&error)),
                Err(error) => return Err(error.into()),
            }
            while let Some(frame) = frames.poll_frame()? {
                if let Some(message) = FromReconst::decode(&frame)? {
                    self.take(message, reached).await?;
                }
            }
        }
    }

    async fn take(&self, message: FromReconst, reached: IpAddr) -> anyhow::Result<()> {
        let FromReconst::Serving(placements) = message;
        let Some(placement) = placements.into_iter().find(|placement| placement.lan == self.lan) else {
            bail!("reconst does not serve LAN {}", self.lan)
        };
        let data = match placement.data {
            DataAddress::Here(port) => SocketAddr::new(reached, port),
            DataAddress::Elsewhere(target) => {
                timeout(CONNECT_TIME, self.resolve(&target)).await.context("the name server does not answer")??
            }
        };
        if self.upstream.borrow().data != Some(data) || !self.upstream.borrow().is_logged_in {
            tracing::info!(line = self.line.0, lan = %self.lan, %data, "logged in to reconst");
        }
        self.upstream.send_replace(Upstream { data: Some(data), is_logged_in: true, problem: None });
        Ok(())
    }

    /// The first address of `target` that the line can send to.
    async fn resolve(&self, target: &Target) -> anyhow::Result<SocketAddr> {
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

fn explain(error: &ConnectionError) -> anyhow::Error {
    match error {
        ConnectionError::ApplicationClosed(close) => {
            let reason = String::from_utf8_lossy(&close.reason);
            match CloseCode::from_code(close.error_code.into_inner()) {
                Some(CloseCode::Denied) => anyhow::anyhow!("reconst refuses this relay: {reason}"),
                Some(CloseCode::Busy) => anyhow::anyhow!("reconst has no room right now: {reason}"),
                Some(CloseCode::Leaving) => anyhow::anyhow!("reconst is going away"),
                _ => anyhow::anyhow!("reconst closed the login: {reason}"),
            }
        }
        ConnectionError::TransportError(error) if is_about_certificates(error.code) => {
            anyhow::anyhow!(
                "reconst is not the one that made this profile, or the other way round: ask its operator for a new one ({error})"
            )
        }
        error => anyhow::anyhow!("the connection to reconst failed: {error}"),
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
        .datagram_receive_buffer_size(None);
    transport
}

/// After this long without an answer the line counts as down: a few lost keep-alives on a bad line do not.
const IDLE_MS: u32 = 15_000;
const KEEP_ALIVE: Duration = Duration::from_secs(4);

/// Two frames of the longest.
const WINDOW_BYTES: u32 = 32 * 1024;

/// The longest that a name server or `reconst` is waited for: a modem's line takes seconds to come up.
const CONNECT_TIME: Duration = Duration::from_secs(10);

/// The pause before the next attempt, doubled with each that fails; a random part of it is left off.
const PAUSE_MIN: Duration = Duration::from_millis(250);
const PAUSE_MAX: Duration = Duration::from_secs(10);
