//! A `reconst` of one test, on loopback, that serves the LAN `elm` with number 15.

#![allow(dead_code, reason = "each test uses a part")]

use std::{
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    time::Duration,
};

use reconst::{
    Config, Running,
    provision::{DEFAULT_LOGIN_PORT, Registrar},
};
use shared::{community::member::Name, ids::LanId, service::Shutdown, target::Host};
use tokio::time::timeout;

/// A `reconst` that runs.
pub(crate) struct Isp {
    pub(crate) registrar: Registrar,
    pub(crate) running: Running,
    shutdown: Shutdown,
    scratch: tempfile::TempDir,
}

impl Isp {
    pub(crate) async fn start() -> Self {
        let scratch = tempfile::tempdir().expect("a directory");
        let state = scratch.path().join("state");
        let registrar = Registrar::init(&state, &[Host::Ip(LOOPBACK)], DEFAULT_LOGIN_PORT).await.expect("a new state");
        registrar.add_lan(&name("elm"), Some(LanId(15)), None).await.expect("a new LAN");
        let config = Config { login_port_override: Some(0), has_ephemeral_data_ports: true, ..Config::new(state, LOOPBACK) };
        let shutdown = Shutdown::new();
        let running = reconst::start(config, shutdown.clone()).await.expect("a free port");
        Self { registrar, running, shutdown, scratch }
    }

    /// The path of a file that goes with the test.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.scratch.path().join(name)
    }

    pub(crate) async fn stop(self) {
        self.shutdown.request();
        timeout(DEADLINE, self.running.wait()).await.expect("a drain in time").expect("an orderly end");
    }
}

/// Waits for something that has no event of its own.
pub(crate) async fn until(mut holds: impl FnMut() -> bool) {
    let waits = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(DEADLINE, waits).await.expect("in time");
}

pub(crate) fn name(text: &str) -> Name {
    text.parse().expect("a name")
}

pub(crate) const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Far above what anything here takes, so that only a hang fails by it.
pub(crate) const DEADLINE: Duration = Duration::from_secs(40);
