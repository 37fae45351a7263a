//! Other systems on loopback: aggligator's tunnel, and a pair of shadowsocks-rust, which encrypts and aggregates nothing.

use std::{
    net::SocketAddr,
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use shared::target::{Host, Target};
use tempfile::TempDir;

use super::{
    Carrier, START_TIME,
    tributary::{LOOPBACK, tcp_port},
};
use crate::{
    content::ContentServer,
    load::{Client, Via},
    process::{Process, find_on_path},
};

/// Whom Tributary is measured beside.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Rival {
    /// agg-tunnel of aggligator-util
    Aggligator,
    /// sslocal and ssserver of shadowsocks-rust, with aes-256-gcm
    Shadowsocks,
}

/// A running rival; dropping it ends it.
#[derive(Debug)]
pub struct RivalPair {
    processes: Vec<Process>,
    client: Client,
    _content: ContentServer,
    _directory: TempDir,
}

impl Rival {
    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::Aggligator => "aggligator",
            Self::Shadowsocks => "shadowsocks-rust",
        }
    }

    /// Starts its two ends; `None` if it is not on the PATH.
    ///
    /// # Errors
    /// If it is there and does not serve.
    pub async fn start(self) -> anyhow::Result<Option<RivalPair>> {
        let content = ContentServer::start((LOOPBACK, 0).into()).await?;
        let port = content.address().port().to_string();
        let (inner, outer) = (tcp_port()?, tcp_port()?);
        let directory = tempfile::tempdir()?;
        let launch = |program: &str, name: &str, arguments: &[&str]| {
            let path = find_on_path(program).with_context(|| format!("{program} is not on the PATH"))?;
            Process::start(name, Command::new(path).args(arguments), &directory.path().join(name))
        };
        let (processes, client) = match self {
            Self::Aggligator if find_on_path("agg-tunnel").is_none() => return Ok(None),
            Self::Shadowsocks if find_on_path("sslocal").is_none() || find_on_path("ssserver").is_none() => return Ok(None),
            Self::Aggligator => {
                let server = launch("agg-tunnel", "server", &["server", "-n", "-p", &port, "--tcp", &inner.to_string()])?;
                let pair = format!("{port}:{outer}");
                let client = launch("agg-tunnel", "client", &["client", "-n", "-p", &pair, "--tcp", &format!("127.0.0.1:{inner}")])?;
                let local = Target { host: Host::Ip(LOOPBACK), port: outer };
                (vec![client, server], Client::new(Via::Direct, local))
            }
            Self::Shadowsocks => {
                let (inner, outer) = (SocketAddr::new(LOOPBACK, inner), SocketAddr::new(LOOPBACK, outer));
                let both = ["-s", &inner.to_string(), "-k", "benchmark", "-m", "aes-256-gcm"];
                let server = launch("ssserver", "ssserver", &both)?;
                let client = launch("sslocal", "sslocal", &[&both[..], &["-b", &outer.to_string()]].concat())?;
                let content = Target { host: Host::Ip(LOOPBACK), port: content.address().port() };
                (vec![client, server], Client::new(Via::Socks5(outer), content))
            }
        };
        let deadline = Instant::now() + START_TIME;
        while let Err(error) = client.fresh_request(1000).await {
            let words: Vec<String> = processes.iter().map(Process::last_words).collect();
            ensure!(Instant::now() < deadline, "{} does not serve: {error}\n{}", self.name(), words.join("\n"));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(Some(RivalPair { processes, client, _content: content, _directory: directory }))
    }
}

impl Carrier for RivalPair {
    fn processes(&self) -> &[Process] {
        &self.processes
    }

    fn client(&self) -> Client {
        self.client.clone()
    }
}
