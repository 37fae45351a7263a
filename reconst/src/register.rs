//! The state that the commands work on: it is made, opened, and asked what was changed in it.

use std::{
    os::unix::fs::MetadataExt,
    path::PathBuf,
    time::{SystemTime, UNIX_EPOCH},
};

use clap::Args;
use reconst::{
    Database,
    provision::{DEFAULT_LOGIN_PORT, MEMBER_VALIDITY, Registrar},
};
use shared::{
    community::{member::Name, quota::UnixSeconds},
    service::Failure,
    target::Host,
};

use crate::{database, inviting::certificate_lifetime};

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
    /// A file, its owner's alone, with the URL of the PostgreSQL database that is to have the members
    #[arg(long, value_name = "FILE", conflicts_with = "database")]
    database_file: Option<PathBuf>,
}

impl Init {
    pub(crate) async fn execute(self) -> anyhow::Result<()> {
        let database = database::chosen(self.state.database.as_deref(), self.database_file.as_deref())?;
        let state = self.state.state;
        let registrar = Registrar::init_with(&state, &self.public, self.login_port, database.as_ref()).await?;
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

#[derive(Args)]
pub(crate) struct State {
    /// The directory that holds the authority, the certificate and the members
    #[arg(long, value_name = "DIR")]
    pub(crate) state: PathBuf,
    /// The PostgreSQL database that has the members [default: what `init` was told]; a password is better kept in RECONST_DATABASE
    #[arg(long, value_name = "URL")]
    database: Option<String>,
}

impl State {
    /// The database that was named, in place of the one that the state names.
    pub(crate) fn database(&self) -> Result<Option<Database>, Failure> {
        database::chosen(self.database.as_deref(), None)
    }

    /// Opens what `init` made.
    pub(crate) async fn open(&self) -> Result<Registrar, Failure> {
        let database = self.database()?;
        Ok(Registrar::open_with(&self.state, database.as_ref()).await?.acting_as(&person()))
    }
}

/// Who runs this command, for the audit log.
fn person() -> String {
    let name = ["SUDO_USER", "USER", "LOGNAME"].into_iter().find_map(|name| std::env::var(name).ok());
    let uid = std::fs::metadata("/proc/self").map(|process| process.uid());
    match (name, uid) {
        (Some(name), Ok(uid)) => format!("{name} (uid {uid})"),
        (Some(name), Err(_)) => name,
        (None, Ok(uid)) => format!("uid {uid}"),
        (None, Err(_)) => "a command".into(),
    }
}

#[derive(Args)]
pub(crate) struct Audit {
    #[command(flatten)]
    state: State,
    /// Only changes of this LAN and of its members
    #[arg(long, value_name = "NAME")]
    lan: Option<Name>,
    /// How many changes, the latest
    #[arg(long, value_name = "N", default_value_t = 50)]
    last: u32,
    /// Print JSON, for programs; times in seconds since 1970, UTC
    #[arg(long)]
    json: bool,
}

impl Audit {
    pub(crate) async fn execute(self) -> anyhow::Result<()> {
        let entries = self.state.open().await?.accounts().audit_log_end(self.lan.as_ref(), self.last).await.map_err(Failure::from)?;
        if self.json {
            println!("{}", serde_json::to_string_pretty(&entries)?);
            return Ok(());
        }
        for entry in entries {
            let at = time::OffsetDateTime::from_unix_timestamp(entry.at).unwrap_or(time::OffsetDateTime::UNIX_EPOCH);
            let at = at.format(&time::format_description::well_known::Rfc3339)?;
            println!("{at}\t{}\t{}\t{}\t{}", entry.actor, entry.action, entry.subject, entry.detail);
        }
        Ok(())
    }
}

/// A clock before 1970 is as wrong as one that says 1970.
pub(crate) fn time_now() -> UnixSeconds {
    UnixSeconds(SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs() as i64))
}
