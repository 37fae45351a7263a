//! Separate hosts on one machine: Linux network namespaces, made here and removed with the value that made them.
//!
//! * [`Host`]: one namespace, to configure, to run programs or threads of this one in, and to open sockets from.
//! * [`street`]: hosts of a neighbourhood with emulated lines between them.
//! * [`systems`]: what is measured on them: Tributary's programs, and others on the same lines.
//!
//! All of it needs root and Linux; [`missing`] says what a machine lacks.

pub mod street;
pub mod systems;

use std::{
    fs::File,
    io::{self, Write},
    os::fd::AsFd,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::runtime::{Builder, Runtime};

use crate::process::Process;

/// A network namespace; dropping it removes it. What runs in it must have ended before.
#[derive(Debug)]
pub struct Host {
    name: String,
}

/// What this machine lacks for hosts of its own, as a sentence; `None` if it lacks nothing.
pub fn missing() -> Option<String> {
    if !rustix::process::geteuid().is_root() {
        return Some("network namespaces need root: run this with sudo, or leave out --namespaces".into());
    }
    if let Err(error) = File::options().read(true).write(true).open(TUN) {
        return Some(format!("emulated lines between namespaces need {TUN} ({error}): load the module `tun`"));
    }
    let version = Command::new("ip").arg("-Version").stdout(Stdio::null()).stderr(Stdio::null()).status();
    if let Err(error) = version {
        return Some(format!("namespaces are made with the program `ip` ({error}): install iproute2"));
    }
    Host::new("probe").err().map(|error| format!("this machine makes no network namespaces: {error:#}"))
}

impl Host {
    /// A host with loopback alone, its name told apart from those of other processes.
    ///
    /// # Errors
    /// Without root, or if the kernel makes no namespaces.
    pub fn new(name: &str) -> anyhow::Result<Self> {
        let host = Self { name: format!("{PREFIX}{}-{name}", std::process::id()) };
        run_ip(&["netns", "add", &host.name], "")?;
        host.ip("link set lo up")?;
        for (key, value) in SETTINGS {
            host.set(key, value)?;
        }
        Ok(host)
    }

    /// The namespace's name, as `ip netns` shows it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs commands of `ip` in the host, one a line.
    ///
    /// # Errors
    /// What `ip` says.
    pub fn ip(&self, commands: &str) -> anyhow::Result<()> {
        run_ip(&["-n", &self.name, "-batch", "-"], commands)
    }

    /// Sets a key of `net` in the kernel's settings, its parts divided by slashes.
    ///
    /// # Errors
    /// If the kernel has no such key, or refuses the value.
    pub fn set(&self, key: &str, value: &str) -> anyhow::Result<()> {
        let path = format!("/proc/sys/net/{key}");
        self.within(|| std::fs::write(&path, value)).with_context(|| format!("{path} can't be set to `{value}`"))
    }

    /// Moves the calling thread to this host: sockets that it opens and programs that it starts from now on are there.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn enter(&self) -> io::Result<()> {
        let namespace = File::open(self.path())?;
        Ok(move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?)
    }

    /// What moves the thread that calls it to this host, for good.
    pub fn mover(&self) -> impl Fn() + Send + Sync + use<> {
        let path = self.path();
        move || {
            let namespace = File::open(&path).expect("the namespace outlives the threads in it");
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).expect("root may enter its namespaces");
        }
    }

    /// Does something in the host, on a thread of its own.
    ///
    /// # Errors
    /// If the thread can't move there, or what is done fails.
    pub fn within<T: Send>(&self, act: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        std::thread::scope(|scope| {
            let acts = scope.spawn(|| {
                self.enter()?;
                act()
            });
            acts.join().unwrap_or_else(|panicked| std::panic::resume_unwind(panicked))
        })
    }

    /// Starts a program in the host. What it prints goes to `log`.
    ///
    /// # Errors
    /// If the program does not start.
    pub fn start(&self, name: &str, command: &mut Command, log: &Path) -> anyhow::Result<Process> {
        self.within(|| Ok(Process::start(name, command, log)))?
    }

    /// A runtime whose tasks are in the host: sockets that they open are its own. What blocks on it is not.
    ///
    /// # Errors
    /// If there are no threads for it.
    pub fn runtime(&self, threads: usize) -> anyhow::Result<Runtime> {
        Ok(Builder::new_multi_thread()
            .worker_threads(threads)
            .thread_name(&self.name)
            .on_thread_start(self.mover())
            .enable_all()
            .build()?)
    }

    fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = run_ip(&["netns", "del", &self.name], "");
    }
}

/// Removes the namespaces of earlier runs that were cut short.
pub fn sweep() {
    let Ok(entries) = std::fs::read_dir("/run/netns") else { return };
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let Some(process) = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()) else { continue };
        if !PathBuf::from("/proc").join(process).exists() {
            let _ = run_ip(&["netns", "del", &name], "");
        }
    }
}

fn run_ip(arguments: &[&str], input: &str) -> anyhow::Result<()> {
    let mut ip = Command::new("ip");
    let mut child =
        ip.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().context("no program `ip`")?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let output = child.wait_with_output()?;
    if output.status.success() {
        return Ok(());
    }
    bail!("ip {} refused:\n{input}\n{}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim())
}

pub(crate) const TUN: &str = "/dev/net/tun";
const PREFIX: &str = "tributary-";

/// Buffers that no line here fills, packets that may come back another way, and no IPv6, whose announcements would be traffic on idle lines.
const SETTINGS: &[(&str, &str)] = &[
    ("ipv4/tcp_rmem", "4096 131072 67108864"),
    ("ipv4/tcp_wmem", "4096 65536 67108864"),
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
    ("ipv6/conf/all/disable_ipv6", "1"),
    ("ipv6/conf/default/disable_ipv6", "1"),
    // Some programs listen on both of loopback's addresses or on none.
    ("ipv6/conf/lo/disable_ipv6", "0"),
];
