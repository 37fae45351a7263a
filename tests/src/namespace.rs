//! Network namespaces for tests that need addresses of their own: made with `ip`, gone with the test.

use std::{
    fs::File,
    os::fd::AsFd,
    path::PathBuf,
    process::{Command, Stdio},
    thread,
};

use anyhow::Context;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Some network namespaces of one test; dropping it removes them and all that is in them.
#[derive(Debug)]
pub struct Namespaces {
    prefix: String,
    names: Vec<&'static str>,
}

impl Namespaces {
    /// Makes namespaces of these names, with loopback up; their full names differ from those of any other process.
    ///
    /// # Errors
    /// If this process may not, or there is no `ip`.
    pub fn make(names: &[&'static str]) -> anyhow::Result<Self> {
        let mut namespaces = Self { prefix: format!("tributary-{}", std::process::id()), names: Vec::new() };
        for name in names {
            namespaces.ip(&format!("netns add {}", namespaces.full_name(name)))?;
            namespaces.names.push(name);
            namespaces.run_in(name, "link set lo up")?;
        }
        Ok(namespaces)
    }

    /// Runs `ip` with these arguments, in which `@name` stands for a namespace's full name.
    ///
    /// # Errors
    /// If it fails, with what it says.
    pub fn ip(&self, arguments: &str) -> anyhow::Result<()> {
        let arguments = arguments.replace('@', &format!("{}-", self.prefix));
        let output = Command::new("ip").args(arguments.split(' ')).stdin(Stdio::null()).output().context("no `ip` (iproute2)")?;
        anyhow::ensure!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr).trim());
        Ok(())
    }

    /// As [`Namespaces::ip`], within a namespace.
    ///
    /// # Errors
    /// As there.
    pub fn run_in(&self, name: &str, arguments: &str) -> anyhow::Result<()> {
        self.ip(&format!("-n {} {arguments}", self.full_name(name)))
    }

    /// What moves the thread that calls it into a namespace, for good.
    pub fn mover(&self, name: &str) -> impl Fn() + Send + Sync + use<> {
        let path = PathBuf::from("/run/netns").join(self.full_name(name));
        move || {
            let namespace = File::open(&path).expect("made before");
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).expect("this process made the namespace");
        }
    }

    /// Does something in a namespace, on a thread of its own: sockets that it makes stay there.
    pub fn within<T: Send + 'static>(&self, name: &str, does: impl FnOnce() -> T + Send + 'static) -> T {
        let move_in = self.mover(name);
        let there = thread::spawn(move || {
            move_in();
            does()
        });
        there.join().expect("it does not panic")
    }

    fn full_name(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }
}

impl Drop for Namespaces {
    fn drop(&mut self) {
        for name in &self.names {
            let _ = self.ip(&format!("netns del {}", self.full_name(name)));
        }
    }
}
