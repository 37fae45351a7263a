//! A proxy of a neighbourhood.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use shared::{community::profile::Profile, transfer::path::PathStatus};

use super::DRAIN_TIME;
use crate::program::Program;

/// A `proxy-local` of the neighbourhood.
#[derive(Debug)]
pub struct Proxy {
    program: Program<proxy_local::Running>,
}

impl Proxy {
    pub(crate) async fn start(
        user: &Profile,
        listen: SocketAddr,
        relays: &[SocketAddr],
        (scheduler, udp_scheduler): (proxy_local::config::Scheduler, proxy_local::config::Scheduler),
        hears_at: Option<SocketAddr>,
    ) -> anyhow::Result<Self> {
        let config = proxy_local::Config {
            discover: hears_at.is_some(),
            announce_listen: hears_at.unwrap_or(listen),
            udp_scheduler,
            ..proxy_config(user, listen, relays, scheduler)
        };
        let program = Program::start("proxy-local", move |shutdown| proxy_local::start(config, shutdown)).await?;
        Ok(Self { program })
    }

    /// Where applications find it.
    pub fn address(&self) -> SocketAddr {
        self.program.running().listen_addresses()[0]
    }

    /// The paths in service.
    pub fn active_paths(&self) -> usize {
        self.status().paths.iter().filter(|path| path.state == "active").count()
    }

    /// The figures of the paths of its session.
    pub fn path_status(&self) -> Vec<PathStatus> {
        self.program.running().paths().map(|paths| paths.session().path_status()).unwrap_or_default()
    }

    /// What the proxy does now.
    pub fn status(&self) -> proxy_local::Status {
        self.program.running().status()
    }

    /// Waits until so many paths are in service.
    ///
    /// # Errors
    /// If they are not within [`PATHS_TIME`].
    pub async fn wait_for_paths(&self, count: usize) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATHS_TIME;
        while self.active_paths() < count {
            anyhow::ensure!(Instant::now() < deadline, "{} of {count} paths came up: {:?}", self.active_paths(), self.status());
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Asks it to drain, and waits.
    ///
    /// # Errors
    /// If it fails to drain in time.
    pub async fn stop(self) -> anyhow::Result<()> {
        self.program.stop(proxy_local::Running::wait).await
    }
}

/// A proxy that knows these relays alone, and reaches what is on loopback through them.
pub(crate) fn proxy_config(
    user: &Profile,
    listen: SocketAddr,
    relays: &[SocketAddr],
    scheduler: proxy_local::config::Scheduler,
) -> proxy_local::Config {
    proxy_local::Config {
        listen: vec![proxy_local::Bind { address: listen, is_required: true }],
        relays: relays.to_vec(),
        discover: false,
        scheduler,
        // Everything here is on loopback, which the bypass would reach directly.
        bypass: None,
        limits: proxy_local::inbound::Limits { drain: DRAIN_TIME, ..Default::default() },
        ..proxy_local::Config::new(vec![user.clone()])
    }
}

/// Far more than the handshakes over the slowest line take.
const PATHS_TIME: Duration = Duration::from_secs(30);
