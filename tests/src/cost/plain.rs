//! A plain TCP relay on loopback: what as many connections cost that are copied and nothing else.

use std::{net::SocketAddr, process::Command, time::Instant};

use anyhow::ensure;
use shared::target::{Host, Target};
use tempfile::TempDir;
use tokio::{
    io::copy_bidirectional,
    net::{TcpListener, TcpStream},
};

use super::{
    Carrier, START_TIME,
    tributary::{LOOPBACK, tcp_port},
};
use crate::{
    load::{Client, Via},
    process::Process,
};

/// A running relay and the content server behind it, processes of their own; dropping it ends them.
#[derive(Debug)]
pub struct PlainRelay {
    relay: [Process; 1],
    client: Client,
    _content: Process,
    _directory: TempDir,
}

impl PlainRelay {
    /// Starts this program again as both.
    ///
    /// # Errors
    /// If one does not serve.
    pub async fn start() -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let (content, relay) = (SocketAddr::new(LOOPBACK, tcp_port()?), SocketAddr::new(LOOPBACK, tcp_port()?));
        let launch = |name: &str, arguments: &[String]| {
            let mut command = Command::new(std::env::current_exe()?);
            Process::start(name, command.args(arguments), &directory.path().join(name))
        };
        let serving = launch("content", &["--serve".into(), content.to_string()])?;
        let relaying = launch("relay", &["--relay".into(), relay.to_string(), "--serve".into(), content.to_string()])?;
        let client = Client::new(Via::Direct, Target { host: Host::Ip(relay.ip()), port: relay.port() });
        let deadline = Instant::now() + START_TIME;
        while let Err(error) = client.fresh_request(1000).await {
            ensure!(Instant::now() < deadline, "the plain relay does not serve: {error}\n{}", relaying.last_words());
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
        Ok(Self { relay: [relaying], client, _content: serving, _directory: directory })
    }
}

impl Carrier for PlainRelay {
    fn processes(&self) -> &[Process] {
        &self.relay
    }

    fn client(&self) -> Client {
        self.client.clone()
    }
}

/// Copies every connection to `listen` to one to `content` and back, until the process is ended.
///
/// # Errors
/// If the address can't be listened on.
pub async fn relay(listen: SocketAddr, content: SocketAddr) -> anyhow::Result<()> {
    let listener = TcpListener::bind(listen).await?;
    loop {
        let (mut near, _) = listener.accept().await?;
        tokio::spawn(async move {
            let mut far = TcpStream::connect(content).await?;
            copy_bidirectional(&mut near, &mut far).await
        });
    }
}
