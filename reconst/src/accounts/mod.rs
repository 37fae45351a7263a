//! Accounts: which LANs there are, who their members are, what each may spend.
//!
//! Enters: what an operator adds and removes ([`registry`]), and the certificates that peers show. Leaves: the [`Member`] behind a
//! certificate, or why there is none. Always holds: a certificate counts only if it is, byte for byte, one that was issued to a member
//! who is still one. Verifying signatures is left to TLS, counting what is spent to the quota's keeper.
//!
//! The store is SQLite in the state directory, shared between `reconst run` and the commands that change it: each end sees the other's
//! changes, and [`Accounts::changes`] tells when to look again.

pub mod invites;
mod limits;
pub mod registry;
mod schema;

use std::{str::FromStr, time::Duration};

use rustls::pki_types::CertificateDer;
use shared::{
    community::member::{Identity, Name, Role},
    ids::LanId,
    service::{Exit, Failure},
    units::{Rate, Size},
};
use sqlx::SqlitePool;
use thiserror::Error;
use time::{Date, OffsetDateTime};
use tokio::sync::watch;

pub use self::limits::{Limits, Period, PeriodError};

/// The store of accounts; clones share it.
#[derive(Clone, Debug)]
pub struct Accounts {
    pool: SqlitePool,
    changes: watch::Sender<u64>,
}

/// A member's key in the store, never given to another.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct MemberId(pub i64);

/// A user or relay who is a member now.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Member {
    /// Its key in the store.
    pub id: MemberId,
    /// Its name, role and LAN.
    pub identity: Identity,
    /// The LAN's name, for people.
    pub lan_name: Name,
    /// What it may spend; a relay has no limits.
    pub limits: Limits,
}

/// Why a certificate does not make its holder a member; the sentence is for that person.
#[derive(Debug, Error)]
pub enum Denied {
    /// Never issued here, or of a state directory that is gone.
    #[error("this certificate is not known to this reconst: ask its operator for a new profile")]
    Unknown,
    /// The member was removed, or its LAN.
    #[error("{identity} was removed on {on}: ask reconst's operator if that is a mistake")]
    Removed {
        /// Who it was.
        identity: Identity,
        /// The day, UTC.
        on: Date,
    },
    /// The member is one still, with another certificate.
    #[error("this certificate of {identity} was revoked on {on}: use the profile that replaced it")]
    Revoked {
        /// Whose it was.
        identity: Identity,
        /// The day, UTC.
        on: Date,
    },
    /// A relay where a user belongs, or the reverse.
    #[error("{identity} can't do that: it takes the profile of a {needs}")]
    Role {
        /// Who it is.
        identity: Identity,
        /// What it would have to be.
        needs: Role,
    },
    /// The store does not answer: nobody's fault but `reconst`'s.
    #[error("reconst can't look up its members now: try again in a moment")]
    Unavailable(#[source] sqlx::Error),
}

/// Why the accounts were not read or changed.
#[derive(Debug, Error)]
pub enum AccountsError {
    /// No LAN of that name.
    #[error("there is no LAN {0}: add it with `reconst lan add {0}`, or see `reconst lan list`")]
    NoLan(Name),
    /// A LAN of that name.
    #[error("there is a LAN {0} already: choose another name")]
    LanExists(Name),
    /// A LAN of that number.
    #[error("LAN {0} is taken: choose another --id, or leave it out to get the next free one")]
    LanIdTaken(LanId),
    /// A port that another LAN or the login has.
    #[error("port {0} is taken by another LAN or the login: choose another --data-port")]
    DataPortTaken(u16),
    /// The port that follows from the LAN's number would be above 65535.
    #[error("LAN {0} has no data port of its own number: choose one with --data-port, or an --id up to {max}", max = registry::LAN_ID_MAX_BY_RULE)]
    NoDataPort(LanId),
    /// All numbers are taken.
    #[error("no LAN number is free: choose one with --id and --data-port")]
    NoLanId,
    /// A member of that name and role.
    #[error(
        "LAN {lan} has a {role} {name} already: choose another name, or remove that one first with `reconst {role} remove {name} --lan {lan}`"
    )]
    MemberExists {
        /// The LAN's name.
        lan: Name,
        /// The member's role.
        role: Role,
        /// The member's name.
        name: Name,
    },
    /// A member of that name and role who has joined.
    #[error(
        "{role} {name} of LAN {lan} has joined already: add --again to invite another PC of theirs, or one whose certificate has ended"
    )]
    HasJoined {
        /// The LAN's name.
        lan: Name,
        /// The member's role.
        role: Role,
        /// The member's name.
        name: Name,
    },
    /// No invite that is open.
    #[error("there is no open invite {0}: see `reconst invite list`")]
    NoInvite(u32),
    /// No member of that name and role.
    #[error("LAN {lan} has no {role} {name}: see `reconst {role} list`")]
    NoMember {
        /// The LAN's name.
        lan: Name,
        /// The member's role.
        role: Role,
        /// The member's name.
        name: Name,
    },
    /// The store holds what it can't, or is of a later version.
    #[error("the member database is damaged or of a later version ({0}): restore it from a backup or upgrade reconst")]
    Damaged(String),
    /// The store does not answer.
    #[error("the member database does not answer ({0}): is its disk full or another program holding it?")]
    Database(#[from] sqlx::Error),
}

impl From<AccountsError> for Failure {
    fn from(error: AccountsError) -> Self {
        let exit = match &error {
            AccountsError::Damaged(_) => Exit::Data,
            AccountsError::Database(_) => Exit::Unavailable,
            _ => Exit::Config,
        };
        Self::new(exit, error.to_string())
    }
}

impl Accounts {
    /// The member that `certificate` makes of its holder, who wants to act as `needs`.
    ///
    /// # Errors
    /// If there is no such member now.
    pub async fn authorise(&self, certificate: &CertificateDer<'_>, needs: Role) -> Result<Member, Denied> {
        let row: Option<HolderRow> = sqlx::query_as(
            "SELECT m.member_id, m.role, m.name, l.lan_id, l.name, coalesce(m.removed_at, l.removed_at), c.revoked_at
             FROM certificates c JOIN members m ON m.member_id = c.member_id JOIN lans l ON l.lan_key = m.lan_key
             WHERE c.der = $1",
        )
        .bind(certificate.as_ref())
        .fetch_optional(&self.pool)
        .await
        .map_err(Denied::Unavailable)?;
        let Some((id, role, name, lan_id, lan_name, removed_at, revoked_at)) = row else { return Err(Denied::Unknown) };
        let identity = identity(&role, &name, lan_id).map_err(denied_by_damage)?;
        if let Some(removed_at) = removed_at {
            return Err(Denied::Removed { identity, on: day(removed_at) });
        }
        if let Some(revoked_at) = revoked_at {
            return Err(Denied::Revoked { identity, on: day(revoked_at) });
        }
        if identity.role != needs {
            return Err(Denied::Role { identity, needs });
        }
        let limits = self.limits(MemberId(id)).await.map_err(denied_by_damage)?;
        Ok(Member { id: MemberId(id), identity, lan_name: parsed(&lan_name).map_err(denied_by_damage)?, limits })
    }

    /// A number that changes when the accounts did, by whatever program, as far as [`Accounts::follow_changes`] has noticed.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Notices changes within [`CHANGES_NOTICED_WITHIN`], for ever; what goes wrong is logged and tried again.
    pub async fn follow_changes(&self) {
        loop {
            let Err(error) = self.follow_changes_on_one_connection().await;
            tracing::warn!(%error, "the member database does not answer: going on with what is known");
            tokio::time::sleep(CHANGES_NOTICED_WITHIN).await;
        }
    }

    /// `PRAGMA data_version` changes on a connection whenever another one commits, in this program or the next.
    async fn follow_changes_on_one_connection(&self) -> Result<std::convert::Infallible, sqlx::Error> {
        let mut connection = self.pool.acquire().await?.detach();
        let mut known: i64 = sqlx::query_scalar("PRAGMA data_version").fetch_one(&mut connection).await?;
        self.changes.send_modify(|changes| *changes += 1);
        loop {
            tokio::time::sleep(CHANGES_NOTICED_WITHIN).await;
            let now: i64 = sqlx::query_scalar("PRAGMA data_version").fetch_one(&mut connection).await?;
            if now != known {
                known = now;
                self.changes.send_modify(|changes| *changes += 1);
            }
        }
    }

    async fn limits(&self, member: MemberId) -> Result<Limits, AccountsError> {
        let row: Option<LimitsRow> = sqlx::query_as(
            "SELECT quota_bytes, period, rate_up_bits_per_second, rate_down_bits_per_second, max_flows FROM limits WHERE member_id = $1",
        )
        .bind(member.0)
        .fetch_optional(&self.pool)
        .await?;
        let Some((quota, period, rate_up, rate_down, max_flows)) = row else { return Ok(Limits::default()) };
        Ok(Limits {
            quota: quota.map(number).transpose()?.map(|bytes| Size { bytes }),
            period: parsed(&period)?,
            rate_up: rate_up.map(number).transpose()?.map(|bits_per_second| Rate { bits_per_second }),
            rate_down: rate_down.map(number).transpose()?.map(|bits_per_second| Rate { bits_per_second }),
            max_flows: max_flows.map(number).transpose()?,
        })
    }
}

/// Member, role, name, LAN's number and name, when removed, when the certificate was revoked.
type HolderRow = (i64, String, String, i64, String, Option<i64>, Option<i64>);

/// Quota, period, rate up, rate down, flows.
type LimitsRow = (Option<i64>, String, Option<i64>, Option<i64>, Option<i64>);

fn denied_by_damage(error: AccountsError) -> Denied {
    tracing::error!(%error, "a member can't be read");
    Denied::Unavailable(match error {
        AccountsError::Database(error) => error,
        error => sqlx::Error::Decode(Box::new(error)),
    })
}

fn identity(role: &str, name: &str, lan_id: i64) -> Result<Identity, AccountsError> {
    let role = match role {
        "user" => Role::User,
        "relay" => Role::Relay,
        _ => return Err(AccountsError::Damaged(format!("the role `{role}`"))),
    };
    Ok(Identity { name: parsed(name)?, role, lan: LanId(number(lan_id)?) })
}

fn parsed<T: FromStr>(text: &str) -> Result<T, AccountsError>
where
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|error: T::Err| AccountsError::Damaged(error.to_string()))
}

fn number<T: TryFrom<i64>>(value: i64) -> Result<T, AccountsError> {
    T::try_from(value).map_err(|_| AccountsError::Damaged(format!("the number {value}")))
}

fn day(unix_seconds: i64) -> Date {
    OffsetDateTime::from_unix_timestamp(unix_seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH).date()
}

/// An operator's change takes effect on live sessions within a second; a look costs one statement without I/O.
pub const CHANGES_NOTICED_WITHIN: Duration = Duration::from_millis(500);
