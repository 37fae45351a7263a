//! The program as a systemd service of this PC.
//!
//! Enters: the program, its role, arguments for `run`. Leaves: a hardened unit, enabled and started, that runs the program under a user which
//! systemd makes for it alone. Always holds: nothing is written unless all that can be known beforehand is right; the profile lies where
//! the service may renew it.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::{Exit, Failure, is_root, profile_file::system_profile, system_state};
use crate::community::member::Role;

/// What is to be installed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Service {
    /// What its member is.
    pub role: Role,
    /// The program's file.
    pub program: PathBuf,
    /// What `run` is told.
    pub arguments: Vec<String>,
}

impl Service {
    /// The service of this program.
    ///
    /// # Errors
    /// If the program's own file is not known.
    pub fn of_this_program(role: Role, arguments: Vec<String>) -> Result<Self, Failure> {
        let program = std::env::current_exe();
        let program = program.map_err(|error| Failure::new(Exit::Software, format!("where this program is, is not known: {error}")))?;
        Ok(Self { role, program, arguments })
    }

    /// The unit's name.
    pub fn name(&self) -> &'static str {
        match self.role {
            Role::User => "tributary-proxy.service",
            Role::Relay => "tributary-relay.service",
        }
    }

    /// The unit's text.
    pub fn unit(&self) -> String {
        let (description, own) = match self.role {
            Role::User => ("Tributary: a proxy over the neighbours' lines", PROXY),
            Role::Relay => ("Tributary: lends this PC's line to the neighbours", RELAY),
        };
        let arguments: String = self.arguments.iter().map(|argument| format!(" {}", quoted(argument))).collect();
        let program = quoted(&self.installed_program().to_string_lossy());
        format!(
            "[Unit]\nDescription={description}\n{UNIT}\n[Service]\nExecStart={program} run{arguments}\n{own}{SERVICE}{HARDENING}\n{INSTALL}"
        )
    }

    /// Whether the service can be installed, but for its profile.
    ///
    /// # Errors
    /// If this is not root, or systemd does not run here.
    pub fn check(&self) -> Result<(), Failure> {
        let program = self.role.program();
        if !is_root() {
            return Err(Failure::new(
                Exit::Permission,
                format!("only root installs a service: run this with sudo, or see what it would install with `{program} install --print`"),
            ));
        }
        if !Path::new(SYSTEMD_RUNS).exists() {
            return Err(Failure::unavailable(format!(
                "systemd does not run here: have another service manager start `{program} run`, or use `{program} install --print` where \
                 systemd does"
            )));
        }
        Ok(())
    }

    /// Writes the unit, enables and starts it; gives what was done, in sentences.
    ///
    /// # Errors
    /// As [`Service::check`]; if there is no profile or it does not go with the arguments, a file can't be written, or systemd refuses.
    pub fn install(&self) -> Result<Vec<String>, Failure> {
        self.check()?;
        self.check_arguments()?;
        let mut done = self.write(Path::new("/"))?;
        for command in [&["daemon-reload"][..], &["enable", self.name()], &["restart", self.name()]] {
            let status = Command::new("systemctl").args(command).status();
            if !status.is_ok_and(|status| status.success()) {
                let command = command.join(" ");
                return Err(Failure::unavailable(format!("`systemctl {command}` failed: see `journalctl -u {}`", self.name())));
            }
        }
        done.push(format!("the service runs, now and after each start of this PC; its log: journalctl -u {}", self.name()));
        Ok(done)
    }

    /// Asks the program itself, as the service will find its profile.
    fn check_arguments(&self) -> Result<(), Failure> {
        let (profile, program) = (system_profile(self.role), self.role.program());
        if !profile.exists() {
            return Err(Failure::config(format!(
                "there is no profile at {}, where the service has it: become a member with `sudo {program} join LINK --install`, or move the \
                 profile that you have there",
                profile.display()
            )));
        }
        let check = Command::new(&self.program).arg("check").args(&self.arguments).env("STATE_DIRECTORY", system_state(self.role)).output();
        match check {
            Ok(output) if output.status.success() => Ok(()),
            Ok(output) => {
                let said = String::from_utf8_lossy(&output.stderr);
                Err(Failure::config(format!("`{program} run` would not start like that: {}", said.trim())))
            }
            Err(error) => Err(Failure::new(Exit::Software, format!("can't run {}: {error}", self.program.display()))),
        }
    }

    /// Writes what the service consists of, below `root`.
    fn write(&self, root: &Path) -> Result<Vec<String>, Failure> {
        let mut done = Vec::new();
        let below = |path: &Path| root.join(path.strip_prefix("/").unwrap_or(path));
        let installed = self.installed_program();
        if installed != self.program {
            copy_program(&self.program, &below(&installed))?;
            done.push(format!("copied the program to {}: the service sees no home directories", installed.display()));
        }
        let unit = Path::new(UNITS).join(self.name());
        fs::create_dir_all(below(Path::new(UNITS)))
            .and_then(|()| fs::write(below(&unit), self.unit()))
            .map_err(|error| failure(&unit, &error))?;
        done.push(format!("wrote {}", unit.display()));
        Ok(done)
    }

    /// Where the service can see the program.
    fn installed_program(&self) -> PathBuf {
        let is_seen = SEEN.iter().any(|folder| self.program.starts_with(folder));
        match self.program.file_name() {
            Some(name) if !is_seen => Path::new("/usr/local/bin").join(name),
            _ => self.program.clone(),
        }
    }
}

/// An argument as systemd reads it back (systemd.service(5), "Command lines"; systemd.unit(5), "Specifiers").
fn quoted(argument: &str) -> String {
    let mut out = String::from("\"");
    for character in argument.chars() {
        match character {
            '"' | '\\' => out.extend(['\\', character]),
            '%' => out.push_str("%%"),
            '$' => out.push_str("$$"),
            '\n' => out.push_str("\\n"),
            _ => out.push(character),
        }
    }
    out.push('"');
    out
}

/// Beside the old one, then in its place: that may be running.
fn copy_program(from: &Path, to: &Path) -> Result<(), Failure> {
    let new = to.with_extension("new");
    let folder = to.parent().unwrap_or(to);
    let copied = fs::create_dir_all(folder).and_then(|()| fs::copy(from, &new)).and_then(|_| fs::rename(&new, to));
    copied.map_err(|error| failure(to, &error))
}

fn failure(path: &Path, error: &std::io::Error) -> Failure {
    let exit = if error.kind() == std::io::ErrorKind::PermissionDenied { Exit::Permission } else { Exit::Unavailable };
    Failure::new(exit, format!("can't write {}: {error}", path.display()))
}

/// There while systemd is the init system (sd_booted(3)).
const SYSTEMD_RUNS: &str = "/run/systemd/system";

const UNITS: &str = "/etc/systemd/system";

/// Where a service without home directories finds programs, by the folders that distributions use.
const SEEN: [&str; 5] = ["/usr", "/opt", "/bin", "/nix", "/gnu"];

const UNIT: &str = "Wants=network-online.target
After=network-online.target
";

/// A relay's owner commands it through a socket in its runtime directory.
const RELAY: &str = "StateDirectory=tributary-relay
RuntimeDirectory=tributary
RuntimeDirectoryMode=0700
";

const PROXY: &str = "ExecReload=/bin/kill -HUP $MAINPID
StateDirectory=tributary-proxy
";

/// What is wrong with command line, profile or permissions stays wrong (the exit codes of [`Exit`]); the rest may pass.
const SERVICE: &str = "StateDirectoryMode=0700
Restart=on-failure
RestartSec=5
RestartPreventExitStatus=64 65 77 78
LimitNOFILE=65536
";

/// The program reads and writes its state, and talks IP; it needs nothing else of the PC.
const HARDENING: &str = "DynamicUser=yes
UMask=0077
NoNewPrivileges=yes
CapabilityBoundingSet=
DevicePolicy=closed
LockPersonality=yes
MemoryDenyWriteExecute=yes
PrivateDevices=yes
PrivateTmp=yes
ProcSubset=pid
ProtectClock=yes
ProtectControlGroups=yes
ProtectHome=yes
ProtectHostname=yes
ProtectKernelLogs=yes
ProtectKernelModules=yes
ProtectKernelTunables=yes
ProtectProc=invisible
ProtectSystem=strict
RemoveIPC=yes
RestrictAddressFamilies=AF_INET AF_INET6 AF_NETLINK AF_UNIX
RestrictNamespaces=yes
RestrictRealtime=yes
RestrictSUIDSGID=yes
SystemCallArchitectures=native
SystemCallErrorNumber=EPERM
SystemCallFilter=@system-service
SystemCallFilter=~@privileged
";

const INSTALL: &str = "[Install]
WantedBy=multi-user.target
";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_argument_comes_back_from_systemd_as_it_was() {
        assert_eq!(quoted(r#"a b"c\d%e$f"#), r#""a b\"c\\d%%e$$f""#);
    }

    #[test]
    fn a_program_from_a_home_directory_is_copied_to_where_its_service_sees_it() {
        let scratch = tempfile::tempdir().expect("a directory");
        let program = scratch.path().join("peer-relay");
        fs::write(&program, "a program").expect("written");
        let service = Service { program, ..service(Role::Relay) };
        let root = scratch.path().join("root");
        assert_eq!(service.write(&root).expect("written").len(), 2);
        assert_eq!(fs::read_to_string(root.join("usr/local/bin/peer-relay")).expect("there"), "a program");
        let unit = fs::read_to_string(root.join("etc/systemd/system/tributary-relay.service")).expect("there");
        assert!(unit.contains("ExecStart=\"/usr/local/bin/peer-relay\" run \"--share-up\" \"2M\"\n"), "{unit}");
    }

    #[test]
    fn who_may_not_install_is_told_before_anything_is_done() {
        let failure = service(Role::User).check();
        match (is_root(), Path::new(SYSTEMD_RUNS).exists()) {
            (false, _) => assert_eq!(failure.expect_err("not root").exit, Exit::Permission),
            (true, false) => assert_eq!(failure.expect_err("no systemd").exit, Exit::Unavailable),
            (true, true) => failure.expect("all is there"),
        }
    }

    #[test]
    fn systemd_takes_the_units() {
        let scratch = tempfile::tempdir().expect("a directory");
        for role in [Role::Relay, Role::User] {
            let service = service(role);
            let path = scratch.path().join(service.name());
            fs::write(&path, service.unit()).expect("written");
            match Command::new("systemd-analyze").args(["verify", "--man=no", "--recursive-errors=no"]).arg(&path).output() {
                Ok(output) => {
                    let said = String::from_utf8_lossy(&output.stderr);
                    assert!(!said.contains(service.name()), "{said}\n{}", service.unit());
                }
                Err(error) => return println!("skipped: systemd-analyze verify ({error})"),
            }
        }
    }

    fn service(role: Role) -> Service {
        // A program that is there, for systemd to find.
        Service { role, program: "/usr/bin/env".into(), arguments: vec!["--share-up".into(), "2M".into()] }
    }
}
