//! The command lines of the three programs, as far as they are alike: how one is run, and the commands that make this PC a member, and its
//! program a service.

use std::{net::SocketAddr, path::PathBuf, process::ExitCode};

use clap::{Args, Parser};

use super::{
    Exit, Failure, conclude, default_profile,
    install::Service,
    joining::{Joining, read_invite},
};
use crate::community::member::Role;

/// Parses the command line of this program and executes it; what is wrong with either becomes a message and an exit code.
pub fn run<C: Parser>(execute: impl FnOnce(C) -> anyhow::Result<()>) -> ExitCode {
    match C::try_parse() {
        Ok(cli) => conclude(execute(cli)),
        Err(error) => {
            let _ = error.print();
            if error.use_stderr() { ExitCode::from(Exit::Usage as u8) } else { ExitCode::SUCCESS }
        }
    }
}

/// The arguments of `join`.
#[derive(Args)]
pub struct Join {
    /// The invite, a link; `-` or nothing reads it from standard input, where no list of processes shows it.
    link: Option<String>,
    /// Where to write the profile [default: where `run` finds it: below ~/.config/tributary, for root in the service's directory].
    #[arg(long, value_name = "FILE", conflicts_with = "install")]
    profile: Option<PathBuf>,
    /// Let the new profile take the place of one that is there.
    #[arg(long)]
    force: bool,
    /// Reach reconst through this relay, beside those that announce themselves.
    #[arg(long, value_name = "IP:PORT")]
    relay: Vec<SocketAddr>,
    /// Install and start the service too, as `install` does.
    #[arg(long)]
    install: bool,
    /// What the service's `run` is to be told, behind `--`.
    #[arg(last = true, value_name = "FLAGS", requires = "install")]
    arguments: Vec<String>,
}

/// The arguments of `install`.
#[derive(Args)]
pub struct Install {
    /// Print the service's unit, and do nothing else.
    #[arg(long)]
    print: bool,
    /// What `run` is to be told, behind `--`.
    #[arg(last = true, value_name = "FLAGS")]
    arguments: Vec<String>,
}

impl Join {
    /// Makes this PC a member of that role.
    ///
    /// # Errors
    /// What is in the way, for a person.
    pub async fn execute(self, role: Role) -> anyhow::Result<()> {
        let invite = read_invite(self.link.as_deref(), role)?;
        // Elsewhere `run` has to be told where.
        let told = self.profile.as_ref().map(|path| format!(" --profile {}", path.display())).unwrap_or_default();
        let path = self.profile.map_or_else(|| default_profile(role), Ok)?;
        let service = Service::of_this_program(role, self.arguments)?;
        if self.install {
            // An invite serves once: what would be in the way is found before.
            service.check()?;
        }
        let joining = Joining { may_replace: self.force, relays: self.relay, ..Joining::new(invite, path.clone()) };
        let profile = joining.run().await?;
        let (name, lan) = (&profile.identity.name, &profile.lan_name);
        println!("this PC is {role} {name} of LAN {lan} now; its profile is {}: a secret, to stay here", path.display());
        if self.install {
            return Ok(install(&service)?);
        }
        println!("next: {} run{told}", role.program());
        Ok(())
    }
}

impl Install {
    /// Installs and starts the service of a member of that role.
    ///
    /// # Errors
    /// What is in the way, for a person.
    pub fn execute(self, role: Role) -> anyhow::Result<()> {
        let service = Service::of_this_program(role, self.arguments)?;
        if self.print {
            print!("{}", service.unit());
            return Ok(());
        }
        Ok(install(&service)?)
    }
}

fn install(service: &Service) -> Result<(), Failure> {
    service.install()?.iter().for_each(|sentence| println!("{sentence}"));
    Ok(())
}
