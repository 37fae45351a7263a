//! The three programs as processes on loopback.

use std::{
    fs::Permissions,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use reconst::{accounts::Limits, provision::Registrar};
use shared::{
    community::{member::Name, profile::Profile},
    ids::LanId,
    target::{Host, Target},
};
use tempfile::TempDir;

use super::{Carrier, START_TIME};
use crate::{
    load::{Client, Via},
    neighbourhood::take_port,
    process::{Process, programs_dir},
};

/// `proxy-local`s, relays and a `reconst`, and a content server that this program is started again for, so that its sockets are not
/// among those of the load; dropping it ends them.
#[derive(Debug)]
pub struct Tributary {
    /// Proxies, relays, then `reconst`.
    processes: Vec<Process>,
    proxies: Vec<SocketAddr>,
    relays: Vec<SocketAddr>,
    users: Vec<Profile>,
    content: SocketAddr,
    _content: Process,
    directory: TempDir,
}

/// How many of what.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Users with a profile.
    pub users: usize,
    /// Of those, users whose proxy is started.
    pub proxies: usize,
    /// Relays, a line each.
    pub relays: usize,
}

impl Tributary {
    /// Starts all programs and waits until every proxy has a path over each relay.
    ///
    /// # Errors
    /// If a program does not start, with its last words.
    pub async fn start(size: Size) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let content = SocketAddr::new(CONTENT, tcp_port()?);
        let mut serve = Command::new(std::env::current_exe()?);
        let serving =
            Process::start("content server", serve.args(["--serve", &content.to_string()]), &directory.path().join("content.log"))?;
        let free = || take_port(&[LOOPBACK]).context("no free UDP port");
        let (login, data) = (free()?, free()?);
        let state: PathBuf = directory.path().join("reconst");
        let registrar = Registrar::init(&state, &[Host::Ip(LOOPBACK)], login).await?;
        let lan = name("elm");
        registrar.add_lan(&lan, Some(LanId(15)), Some(data)).await?;
        let mut this = Self {
            processes: Vec::new(),
            proxies: Vec::new(),
            relays: Vec::new(),
            users: Vec::new(),
            content,
            _content: serving,
            directory,
        };
        let mut relay_files = Vec::new();
        for number in 0..size.relays {
            relay_files.push(this.save(&format!("relay{number}"), &registrar.add_relay(&lan, &name(&format!("relay{number}"))).await?)?);
        }
        for number in 0..size.users {
            this.users.push(registrar.add_user(&lan, &name(&format!("user{number}")), &Limits::default()).await?);
        }
        let reconst = this.launch("reconst", &mut reconst(&state))?;
        let mut relays = Vec::new();
        for file in &relay_files {
            let address = SocketAddr::new(LOOPBACK, free()?);
            let mut relay = program("peer-relay");
            relay.arg("--profile").arg(file).args(["--lan-bind", &address.to_string(), "--wan-bind", &LOOPBACK.to_string()]);
            relays.push(this.launch("peer-relay", &mut relay)?);
            this.relays.push(address);
        }
        for number in 0..size.proxies {
            let listen = SocketAddr::new(LOOPBACK, tcp_port()?);
            let admin = SocketAddr::new(LOOPBACK, tcp_port()?);
            let file = this.save(&format!("user{number}"), &this.users[number])?;
            let mut proxy = program("proxy-local");
            proxy.arg("--profile").arg(file).args(["--listen", &listen.to_string(), "--admin", &admin.to_string()]);
            proxy.args(["--discover", "off", "--bypass", "off"]);
            for relay in &this.relays {
                proxy.args(["--relay", &relay.to_string()]);
            }
            let proxy = this.launch("proxy-local", &mut proxy)?;
            this.processes.push(proxy);
            this.proxies.push(listen);
            wait_for_paths(admin, size.relays).await.map_err(|error| error.context(this.processes[number].last_words()))?;
        }
        this.processes.extend(relays);
        this.processes.push(reconst);
        Ok(this)
    }

    /// The `reconst` process.
    pub fn reconst(&self) -> &Process {
        self.processes.last().expect("`start` put it there")
    }

    /// The state directory of `reconst`.
    pub fn state(&self) -> PathBuf {
        self.directory.path().join("reconst")
    }

    /// Ends `reconst` by SIGKILL and starts it again.
    ///
    /// # Errors
    /// If it does not start.
    pub fn restart_reconst(&mut self) -> anyhow::Result<()> {
        drop(self.processes.pop());
        let process = self.launch("reconst", &mut reconst(&self.state()))?;
        self.processes.push(process);
        Ok(())
    }

    /// Where each proxy's applications find it.
    pub fn proxies(&self) -> &[SocketAddr] {
        &self.proxies
    }

    /// Where the relays are.
    pub fn relays(&self) -> &[SocketAddr] {
        &self.relays
    }

    /// The users' profiles.
    pub fn users(&self) -> &[Profile] {
        &self.users
    }

    /// A client of the content server through the proxy there.
    pub fn client_of(&self, proxy: SocketAddr) -> Client {
        Client::new(Via::Socks5(proxy), Target { host: Host::Ip(self.content.ip()), port: self.content.port() })
    }

    fn save(&self, name: &str, profile: &Profile) -> anyhow::Result<PathBuf> {
        let path = self.directory.path().join(format!("{name}.toml"));
        std::fs::write(&path, profile.to_toml())?;
        std::fs::set_permissions(&path, Permissions::from_mode(0o600))?;
        Ok(path)
    }

    fn launch(&self, name: &str, command: &mut Command) -> anyhow::Result<Process> {
        let number = self.processes.len() + self.relays.len();
        Process::start(name, command, &self.directory.path().join(format!("{name}{number}.log")))
    }
}

impl Carrier for Tributary {
    fn processes(&self) -> &[Process] {
        &self.processes
    }

    fn client(&self) -> Client {
        self.client_of(self.proxies[0])
    }
}

/// Waits until the proxy with this admin address has so many paths in service.
async fn wait_for_paths(admin: SocketAddr, count: usize) -> anyhow::Result<()> {
    let deadline = Instant::now() + START_TIME;
    loop {
        let mut status = tokio::process::Command::new(programs_dir().join("proxy-local"));
        let output = status.args(["status", "--json", "--admin", &admin.to_string()]).output().await?;
        let answer: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
        let paths = answer["paths"].as_array().map_or(&[][..], Vec::as_slice);
        if paths.iter().filter(|path| path["state"] == "active").count() >= count {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "of {count} paths there are: {answer}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn reconst(state: &Path) -> Command {
    let mut reconst = program("reconst");
    reconst.arg("--state").arg(state).args(["--bind", &LOOPBACK.to_string(), "--egress-allow", &format!("{CONTENT}/32")]);
    reconst
}

fn program(name: &str) -> Command {
    let mut command = Command::new(programs_dir().join(name));
    command.arg("run");
    command
}

fn name(text: &str) -> Name {
    text.parse().expect("names here are of letters and digits")
}

/// A TCP port that was free a moment ago.
pub(super) fn tcp_port() -> anyhow::Result<u16> {
    Ok(std::net::TcpListener::bind((LOOPBACK, 0))?.local_addr()?.port())
}

pub(super) const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
/// Not `reconst`'s own address, to which it dials no flow.
const CONTENT: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 200, 1));
