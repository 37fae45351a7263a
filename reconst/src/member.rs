//! The commands that change and list who is a member.

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use reconst::{
    accounts::{
        Limits,
        ledger::Lender,
        parts::{Members, whole},
        report::UserReport,
    },
    provision::Registrar,
    state::create_secret,
};
use shared::{
    community::{
        member::{Name, Role},
        profile::Profile,
    },
    service::Failure,
    units::Size,
};

use crate::{
    inviting::Invite,
    limits::{self, LimitOptions},
    register::{State, time_now},
};

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
    /// Change what a user may spend, also while reconst runs: it holds within a second
    Set {
        #[command(flatten)]
        user: OldMember,
        #[command(flatten)]
        limits: LimitOptions,
        /// Spend from the account of a user of another LAN who is the same person, as in ann@elm; `own` ends that
        #[arg(long, value_name = "NAME@LAN", value_parser = account_of)]
        account: Option<AccountOf>,
    },
    /// Show what a user may spend and has
    Show {
        #[command(flatten)]
        user: OldMember,
        /// Print JSON, for programs
        #[arg(long)]
        json: bool,
    },
    /// List the users, with what they may spend and have
    List(List),
    /// Remove a user
    Remove(OldMember),
}

#[derive(Subcommand)]
pub(crate) enum RelayCommand {
    /// Invite a relay: print a link that makes its PC a member
    Invite(Invite),
    /// Add a relay and write the profile for its PC
    Add(NewMember),
    /// Say whose PC a relay is, so that what it lends is shown beside what its owner uses, and may be earned by
    Set {
        #[command(flatten)]
        relay: OldMember,
        /// The user of the same LAN, or none
        #[arg(long, value_name = "NAME", value_parser = owner)]
        owner: Owner,
    },
    /// List the relays, with what they have lent this month
    List(List),
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
pub(crate) struct List {
    #[command(flatten)]
    state: State,
    /// Only those of this LAN
    #[arg(long, value_name = "NAME")]
    lan: Option<Name>,
    /// Print JSON, for programs
    #[arg(long)]
    json: bool,
}

impl UserCommand {
    pub(crate) async fn execute(self) -> anyhow::Result<()> {
        match self {
            Self::Invite { invite, limits } => invite.execute(Role::User, Some(limits)).await,
            Self::Add { new, limits } => {
                let limits = limits.applied_to(Limits::default())?;
                new.add(async |registrar, lan, name| registrar.add_user(lan, name, &limits).await).await
            }
            Self::Set { user, limits, account } => user.set(limits, account).await,
            Self::Show { user, json } => user.show(json).await,
            Self::List(list) => list.users().await,
            Self::Remove(old) => old.remove(Role::User).await,
        }
    }
}

impl RelayCommand {
    pub(crate) async fn execute(self) -> anyhow::Result<()> {
        match self {
            Self::Invite(invite) => invite.execute(Role::Relay, None).await,
            Self::Add(new) => new.add(async |registrar, lan, name| registrar.add_relay(lan, name).await).await,
            Self::Set { relay, owner: Owner(owner) } => {
                let registrar = relay.state.open().await?;
                registrar.accounts().set_owner(&relay.lan, &relay.name, owner.as_ref()).await.map_err(Failure::from)?;
                println!("relay {} of LAN {} is {}'s", relay.name, relay.lan, owner.as_ref().map_or("nobody", Name::as_str));
                Ok(())
            }
            Self::List(list) => list.relays().await,
            Self::Remove(old) => old.remove(Role::Relay).await,
        }
    }
}

impl NewMember {
    /// Makes the profile's file before the member, so that none is added whose profile has nowhere to go.
    async fn add(self, add: impl AsyncFnOnce(&Registrar, &Name, &Name) -> Result<Profile, Failure>) -> anyhow::Result<()> {
        let registrar = self.state.open().await?;
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

/// From whose account a user spends: that of a user of another LAN, or its own.
#[derive(Clone, Debug)]
pub(crate) enum AccountOf {
    Own,
    User { name: Name, lan: Name },
}

fn account_of(text: &str) -> Result<AccountOf, String> {
    if text == "own" {
        return Ok(AccountOf::Own);
    }
    let wrong = || format!("`{}` is no user of a LAN: write it as in ann@elm, or `own`", text.chars().take(80).collect::<String>());
    let (name, lan) = text.split_once('@').ok_or_else(wrong)?;
    Ok(AccountOf::User { name: name.parse().map_err(|_| wrong())?, lan: lan.parse().map_err(|_| wrong())? })
}

impl OldMember {
    async fn set(self, limits: LimitOptions, account: Option<AccountOf>) -> anyhow::Result<()> {
        if limits.is_empty() && account.is_none() {
            return Err(Failure::usage("say what to change: --quota, --rate-down and so on; `none` takes a limit away").into());
        }
        let registrar = self.state.open().await?;
        let accounts = registrar.accounts();
        let user = match account {
            None => accounts.user(&self.lan, &self.name).await.map_err(Failure::from)?,
            Some(account) => {
                let (name, lan) = match &account {
                    AccountOf::Own => (&self.name, &self.lan),
                    AccountOf::User { name, lan } => (name, lan),
                };
                accounts.share_account(&self.lan, &self.name, (lan, name)).await.map_err(Failure::from)?;
                accounts.user(&self.lan, &self.name).await.map_err(Failure::from)?
            }
        };
        if !limits.is_empty() {
            let limits = limits.applied_to(user.limits)?;
            accounts.set_limits(user.account, &limits).await.map_err(Failure::from)?;
        }
        let user = accounts.user_report(&self.lan, &self.name, time_now()).await.map_err(Failure::from)?;
        println!("user {} of LAN {}: {}", user.name, user.lan, limits::text(&user));
        Ok(())
    }

    async fn show(self, json: bool) -> anyhow::Result<()> {
        let registrar = self.state.open().await?;
        let user = registrar.accounts().user_report(&self.lan, &self.name, time_now()).await.map_err(Failure::from)?;
        if json {
            println!("{}", serde_json::to_string_pretty(&user)?);
        } else {
            print!("{}", limits::description(&user));
        }
        Ok(())
    }

    async fn remove(self, role: Role) -> anyhow::Result<()> {
        self.state.open().await?.accounts().remove_member(&self.lan, role, &self.name).await.map_err(Failure::from)?;
        println!("removed {role} {} of LAN {}", self.name, self.lan);
        Ok(())
    }
}

impl List {
    /// Opens the state, and refuses a LAN that there is not.
    async fn open(&self) -> Result<Registrar, Failure> {
        let registrar = self.state.open().await?;
        if let Some(lan) = &self.lan {
            registrar.accounts().lan(lan).await?;
        }
        Ok(registrar)
    }

    async fn users(self) -> anyhow::Result<()> {
        let (registrar, time) = (self.open().await?, time_now());
        let read = async |after| registrar.accounts().users(&Members::after(self.lan.as_ref(), after), time).await;
        let users: Vec<UserReport> = whole(read).await.map_err(Failure::from)?;
        if self.json {
            println!("{}", serde_json::to_string_pretty(&users)?);
            return Ok(());
        }
        for user in users {
            println!("{}\tLAN {} ({})\t{}", user.name, user.lan, user.lan_id, limits::text(&user));
        }
        Ok(())
    }

    async fn relays(self) -> anyhow::Result<()> {
        let (registrar, time) = (self.open().await?, time_now());
        let read = async |after| registrar.accounts().lenders(&Members::after(self.lan.as_ref(), after), time).await;
        let relays: Vec<Lender> = whole(read).await.map_err(Failure::from)?;
        if self.json {
            let row = |relay: &Lender| {
                serde_json::json!({
                    "name": relay.name.as_str(), "lan": relay.lan_name.as_str(), "lan_id": relay.lan.0, "added_at": relay.added_at.0,
                    "owner": relay.owner.as_ref().map(Name::as_str),
                    "lent_up_bytes": relay.carried.up, "lent_down_bytes": relay.carried.down,
                })
            };
            println!("{}", serde_json::to_string_pretty(&relays.iter().map(row).collect::<Vec<_>>())?);
            return Ok(());
        }
        for relay in relays {
            let owner = relay.owner.as_ref().map(|owner| format!("\tof {owner}")).unwrap_or_default();
            println!(
                "{}\tLAN {} ({})\tsince {}\tlent {} up, {} down this month{owner}",
                relay.name,
                relay.lan_name,
                relay.lan,
                relay.added_on(),
                Size { bytes: relay.carried.up },
                Size { bytes: relay.carried.down }
            );
        }
        Ok(())
    }
}

/// A user, or nobody.
#[derive(Clone, Debug)]
pub(crate) struct Owner(Option<Name>);

fn owner(text: &str) -> Result<Owner, String> {
    if text == "none" { Ok(Owner(None)) } else { text.parse().map(|name| Owner(Some(name))).map_err(|error| format!("{error}")) }
}

fn write(path: &Path, profile: &Profile) -> Result<(), Failure> {
    let failure = |error| Failure::unavailable(format!("can't write {}: {error}", path.display()));
    let mut file = std::fs::OpenOptions::new().write(true).open(path).map_err(failure)?;
    std::io::Write::write_all(&mut file, profile.to_toml().as_bytes()).and_then(|()| file.sync_all()).map_err(failure)
}
