//! The commands that make this PC a member, and its program a service.

use std::{net::SocketAddr, path::PathBuf};

use clap::Args;
use shared::{
    community::member::Role,
    service::{
        Failure, default_profile,
        install::Service,
        joining::{Joining, read_invite},
    },
};

#[derive(Args)]
pub(crate) struct Join {
    /// The invite, a link; `-` or nothing reads it from standard input, where no list of processes shows it.
    link: Option<String>,
    /// Where to write the profile [default: relay.toml below ~/.config/tributary, for root in /var/lib/tributary-relay].
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

#[derive(Args)]
pub(crate) struct Install {
    /// Print the service's unit, and do nothing else.
    #[arg(long)]
    print: bool,
    /// What `run` is to be told, behind `--`.
    #[arg(last = true, value_name = "FLAGS")]
    arguments: Vec<String>,
}

impl Join {
    pub(crate) async fn execute(self) -> anyhow::Result<()> {
        let invite = read_invite(self.link.as_deref(), Role::Relay)?;
        let path = self.profile.map_or_else(|| default_profile(Role::Relay), Ok)?;
        let service = Service::of_this_program(Role::Relay, self.arguments)?;
        if self.install {
            // An invite serves once: what would be in the way is found before.
            service.check()?;
        }
        let joining = Joining { may_replace: self.force, relays: self.relay, ..Joining::new(invite, path.clone()) };
        let profile = joining.run().await?;
        println!("this PC is {} now; its profile is {}: a secret, to stay here", profile.identity, path.display());
        if self.install {
            return Ok(install(&service)?);
        }
        println!("next: peer-relay run");
        Ok(())
    }
}

impl Install {
    pub(crate) fn execute(self) -> anyhow::Result<()> {
        let service = Service::of_this_program(Role::Relay, self.arguments)?;
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
