//! The commands that change and list who is a member.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use reconst::{
    accounts::{Limits, Period, registry::Listed},
    provision::{DEFAULT_LOGIN_PORT, MEMBER_VALIDITY, Registrar},
    state::create_secret,
};
use shared::{
    community::{
        member::{Name, Role},
        profile::Profile,
    },
    ids::LanId,
    service::Failure,
    target::Host,
    units::{Rate, Size},
};

use crate::inviting::{Invite, certificate_lifetime};

#[derive(Args)]
pub(crate) struct Init {
    #[command(flatten)]
    state: State,
    /// The host name or address that relays reach this server at; repeat for more
    #[arg(long, value_name = "HOST", required = true, value_parser = Host::parse)]
    public: Vec<Host>,
    /// The UDP port on which relays log in
    #[arg(long, value_name = "PORT", default_value_t = DEFAULT_LOGIN_PORT, value_parser = clap::value_parser!(u16).range(1..))]
    login_port: u16,
    /// How long members' certificates are valid, in days as in 365d; 730d otherwise
    #[arg(long, value_name = "DAYS", value_parser = certificate_lifetime)]
    certificate_lifetime: Option<time::Duration>,
}

#[derive(Args)]
pub(crate) struct State {
    /// The directory that holds the authority, the certificate and the members
    #[arg(long, value_name = "DIR")]
    pub(crate) state: PathBuf,
}

#[derive(Subcommand)]
pub(crate) enum LanCommand {
    /// Add a LAN: a community of users and relays
    Add {
        /// The LAN's name: letters a-z, digits and hyphens
        name: Name,
        #[command(flatten)]
        state: State,
        /// The LAN's number [default: the next free one]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
        id: Option<u16>,
        /// The UDP port on which its paths are served [default: 10000 + the number]
        #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
        data_port: Option<u16>,
    },
    /// List the LANs
    List(State),
    /// Move a LAN to another data port, also while reconst runs: relays and paths follow, no flow breaks
    Move {
        /// The LAN's name
        name: Name,
        #[command(flatten)]
        state: State,
        /// The UDP port on which its paths are served from now on
        #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
        data_port: u16,
    },
    /// Remove a LAN and all its members
    Remove {
        /// The LAN's name
        name: Name,
        #[command(flatten)]
        state: State,
    },
}

#[derive(Subcommand)]
pub(crate) enum UserCommand {
    /// Invite a user: print a link that makes their PC a member
    Invite {
        #[command(flatten)]
        invite: Invite,
        #[command(flatten)]
        limits: LimitOptions,
    },
    /// Add a user and write the profile for their PC
    Add {
        #[command(flatten)]
        new: NewMember,
        #[command(flatten)]
        limits: LimitOptions,
    },
    /// List the users
    List(State),
    /// Remove a user
    Remove(OldMember),
}

#[derive(Subcommand)]
pub(crate) enum RelayCommand {
    /// Invite a relay: print a link that makes its PC a member
    Invite(Invite),
    /// Add a relay and write the profile for its PC
    Add(NewMember),
    /// List the relays
    List(State),
    /// Remove a relay
    Remove(OldMember),
}

#[derive(Args)]
pub(crate) struct NewMember {
    /// The member's name: letters a-z, digits and hyphens
    name: Name,
    #[command(flatten)]
    state: State,
    /// The LAN it belongs to
    #[arg(long, value_name = "NAME")]
    lan: Name,
    /// Where to write the profile, a secret file; must not exist yet
    #[arg(long, value_name = "FILE")]
    profile: PathBuf,
}

#[derive(Args)]
pub(crate) struct OldMember {
    /// The member's name
    name: Name,
    #[command(flatten)]
    state: State,
    /// The LAN it belongs to
    #[arg(long, value_name = "NAME")]
    lan: Name,
}

#[derive(Args)]
pub(crate) struct LimitOptions {
    /// Bytes per period, as in 100GB (recorded)
    #[arg(long, value_name = "SIZE")]
    quota: Option<Size>,
    /// The quota's period: month, or days as in 7d (recorded)
    #[arg(long, default_value_t)]
    period: Period,
    /// Bits per second towards the internet, as in 20M (recorded)
    #[arg(long, value_name = "RATE")]
    rate_up: Option<Rate>,
    /// Bits per second from the internet (recorded)
    #[arg(long, value_name = "RATE")]
    rate_down: Option<Rate>,
    /// Flows at the same time (recorded)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    max_flows: Option<u32>,
}

impl Init {
    pub(crate) async fn execute(self) -> anyhow::Result<()> {
        let state = self.state.state;
        let registrar = Registrar::init(&state, &self.public, self.login_port).await?;
        if let Some(lifetime) = self.certificate_lifetime {
            let seconds = lifetime.whole_seconds().to_string();
            registrar.accounts().set_setting(MEMBER_VALIDITY, &seconds).await.map_err(Failure::from)?;
        }
        registrar.accounts().close().await;
        println!("made {}; back it up, it holds the keys to all that follows", state.display());
        println!("next: reconst lan add NAME --state {}", state.display());
        Ok(())
    }
}

impl LanCommand {
    pub(crate) async fn execute(self) -> anyhow::Result<()> {
        match self {
            Self::Add { name, state, id, data_port } => {
                let lan = open(&state).await?.add_lan(&name, id.map(LanId), data_port).await?;
                println!("added LAN {} ({}); its paths are served on UDP port {}", lan.name, lan.id, lan.data_port);
            }
            Self::List(state) => {
                for lan in open(&state).await?.accounts().lans().await.map_err(Failure::from)? {
                    println!("{}\tLAN {}\tdata port {}", lan.name, lan.id, lan.data_port);
                }
            }
            Self::Move { name, state, data_port } => {
                let before = open(&state).await?.move_lan(&name, data_port).await?;
                println!("moved LAN {name} ({}) from UDP port {} to {data_port}; let UDP in there", before.id, before.data_port);
            }
            Self::Remove { name, state } => {
                open(&state).await?.accounts().remove_lan(&name).await.map_err(Failure::from)?;
                println!("removed LAN {name} and its members");
            }
        }
        Ok(())
    }
}

impl UserCommand {
    pub(crate) async fn execute(self) -> anyhow::Result<()> {
        match self {
            Self::Invite { invite, limits } => invite.execute(Role::User, Some(limits)).await,
            Self::Add { new, limits } => {
                let limits = Limits::from(limits);
                new.add(async |registrar, lan, name| registrar.add_user(lan, name, &limits).await).await
            }
            Self::List(state) => list(&state, Role::User).await,
            Self::Remove(old) => old.remove(Role::User).await,
        }
    }
}

impl RelayCommand {
    pub(crate) async fn execute(self) -> anyhow::Result<()> {
        match self {
            Self::Invite(invite) => invite.execute(Role::Relay, None).await,
            Self::Add(new) => new.add(async |registrar, lan, name| registrar.add_relay(lan, name).await).await,
            Self::List(state) => list(&state, Role::Relay).await,
            Self::Remove(old) => old.remove(Role::Relay).await,
        }
    }
}

impl NewMember {
    /// Makes the profile's file before the member, so that none is added whose profile has nowhere to go.
    async fn add(self, add: impl AsyncFnOnce(&Registrar, &Name, &Name) -> Result<Profile, Failure>) -> anyhow::Result<()> {
        let registrar = open(&self.state).await?;
        create_secret(&self.profile, "")?;
        let added = add(&registrar, &self.lan, &self.name).await;
        let written = added.and_then(|profile| write(&self.profile, &profile).map(|()| profile));
        let profile = written.inspect_err(|_| {
            let _ = std::fs::remove_file(&self.profile);
        })?;
        registrar.accounts().close().await;
        println!("added {}; its profile is {}: a secret, for its PC alone", profile.identity, self.profile.display());
        Ok(())
    }
}

impl OldMember {
    async fn remove(self, role: Role) -> anyhow::Result<()> {
        open(&self.state).await?.accounts().remove_member(&self.lan, role, &self.name).await.map_err(Failure::from)?;
        println!("removed {role} {} of LAN {}", self.name, self.lan);
        Ok(())
    }
}

impl From<LimitOptions> for Limits {
    fn from(options: LimitOptions) -> Self {
        Self {
            quota: options.quota,
            period: options.period,
            rate_up: options.rate_up,
            rate_down: options.rate_down,
            max_flows: options.max_flows,
        }
    }
}

async fn open(state: &State) -> Result<Registrar, Failure> {
    Registrar::open(&state.state).await
}

async fn list(state: &State, role: Role) -> anyhow::Result<()> {
    for Listed { identity, lan_name, since, limits } in open(state).await?.accounts().members(role).await.map_err(Failure::from)? {
        let recorded = [
            limits.quota.map(|size| format!("quota {size} per {}", limits.period)),
            limits.rate_up.map(|rate| format!("up {rate}")),
            limits.rate_down.map(|rate| format!("down {rate}")),
            limits.max_flows.map(|flows| format!("{flows} flows")),
        ];
        let recorded = recorded.into_iter().flatten().collect::<Vec<_>>().join(", ");
        println!("{}\tLAN {lan_name} ({})\tsince {since}\t{recorded}", identity.name, identity.lan);
    }
    Ok(())
}

fn write(path: &Path, profile: &Profile) -> Result<(), Failure> {
    let failure = |error| Failure::unavailable(format!("can't write {}: {error}", path.display()));
    let mut file = std::fs::OpenOptions::new().write(true).open(path).map_err(failure)?;
    std::io::Write::write_all(&mut file, profile.to_toml().as_bytes()).and_then(|()| file.sync_all()).map_err(failure)
}
