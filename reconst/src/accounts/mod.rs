//! Accounts: which LANs there are, who their members are, what each may spend.
//!
//! Enters: what an operator adds and removes ([`registry`]), and the certificates that peers show. Leaves: the [`Member`] behind a
//! certificate, or why there is none. Always holds: a certificate counts only if it is, byte for byte, one that was issued to a member
//! who is still one. Verifying signatures is left to TLS, counting what is spent to the quota's keeper.
//!
//! The store is SQLite in the state directory, or PostgreSQL, shared between `reconst run` and the commands that change it: each end sees the
//! other's changes, and [`changes`] tells who has to look again.

pub mod audit;
mod book;
pub mod changes;
mod database;
pub mod exchange;
pub mod invites;
pub mod lan_accounts;
pub mod leases;
pub mod ledger;
pub mod lent;
mod migrations;
pub mod nodes;
pub mod nodes_report;
pub mod parts;
pub mod registry;
mod renewals;
pub mod report;
mod schema;
#[cfg(test)]
pub(crate) mod testing;
mod usage;
pub mod users;
pub mod written;

use std::{
    collections::HashMap,
    str::FromStr,
    sync::{Arc, Mutex},
};

use rustls::pki_types::CertificateDer;
use shared::{
    community::{
        member::{Identity, Name, Role},
        quota::UnixSeconds,
    },
    ids::LanId,
    service::{Exit, Failure},
};
use sqlx::AnyPool;
use thiserror::Error;
use time::{Date, OffsetDateTime};
use tokio::sync::watch;

pub use self::{
    book::Spender,
    changes::CHANGES_NOTICED_WITHIN,
    database::{Database, DatabaseError},
    usage::Count,
};
pub use shared::community::quota::{Limits, Quota};

use self::{
    changes::{Change, Recent},
    lan_accounts::LanKey,
    schema::Backend,
};

/// The store of accounts; clones share it.
#[derive(Clone, Debug)]
pub struct Accounts {
    pool: AnyPool,
    backend: Backend,
    changes: Arc<watch::Sender<Recent>>,
    /// By certificate: who was a member when the store answered last.
    known: Arc<Mutex<HashMap<Vec<u8>, Member>>>,
    /// In whose name changes are logged.
    actor: Arc<str>,
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
    /// The LAN's key in the store.
    pub lan_key: LanKey,
    /// The LAN's name, for people.
    pub lan_name: Name,
    /// Whose limits and usage are its own: its own, unless it shares those of a user of another LAN.
    pub account: MemberId,
    /// When that account's holder was added.
    pub since: UnixSeconds,
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
    /// A LAN's quota that would earn something.
    #[error("a LAN lends to nobody else, so that its quota earns nothing: set that for users")]
    LanEarns,
    /// Another reconst keeps counts there.
    #[error("a reconst of an earlier version serves this member database, which knows of no other server: end it first")]
    Claimed,
    /// A node of that name.
    #[error("there is a node {0} already: choose another name, or remove that one first with `reconst node remove {0}`")]
    NodeExists(Name),
    /// No node of that name.
    #[error("there is no node {0}: see `reconst node list`")]
    NoNode(Name),
    /// A node of that name that runs.
    #[error("another reconst runs as node {0}: end it first, or make this one a node of its own with `reconst node add`")]
    NodeClaimed(Name),
    /// A node that was removed.
    #[error("node {0} was removed: make this server a node again with `reconst node add`, by another name")]
    NodeRemoved(Name),
    /// A node whose run was ended by another's.
    #[error("this node was removed, or another reconst runs in its name")]
    NodeOver,
    /// SQLite.
    #[error(
        "several servers share their members in PostgreSQL, and these are in a file of SQLite: make the state with `reconst init --database-file FILE`"
    )]
    OneNode,
    /// A later version has made the store one that this one can't use.
    #[error(
        "a later version of reconst has upgraded the member database (it needs schema {needs}, this one knows up to {knows}): install that version, or restore the backup from before the upgrade"
    )]
    TooOld {
        /// The migration that a program has to know.
        needs: i64,
        /// The last one that this program knows.
        knows: i64,
    },
    /// The store holds what it can't.
    #[error("the member database is damaged ({0}): restore it from a backup")]
    Damaged(String),
    /// PostgreSQL can't be reached, or lets nobody in.
    #[error(
        "no connection to PostgreSQL ({0}): does it run, and are the host, the database, the user and the password of --database, RECONST_DATABASE and PGPASSWORD right?"
    )]
    NoConnection(#[source] sqlx::Error),
    /// The store does not answer.
    #[error("the member database does not answer ({0}): is its disk full, another program holding it, or PostgreSQL down?")]
    Database(#[from] sqlx::Error),
}

impl From<AccountsError> for Failure {
    fn from(error: AccountsError) -> Self {
        let exit = match &error {
            AccountsError::Damaged(_) | AccountsError::TooOld { .. } => Exit::Data,
            AccountsError::Database(_)
            | AccountsError::NoConnection(_)
            | AccountsError::Claimed
            | AccountsError::NodeClaimed(_)
            | AccountsError::NodeOver => Exit::Unavailable,
            AccountsError::LanEarns => Exit::Usage,
            _ => Exit::Config,
        };
        Self::new(exit, error.to_string())
    }
}

impl Accounts {
    /// The member that `certificate` makes of its holder, who wants to act as `needs`. While the store does not answer, as far as it is known.
    ///
    /// # Errors
    /// If there is no such member now.
    pub async fn authorise(&self, certificate: &CertificateDer<'_>, needs: Role) -> Result<Member, Denied> {
        let found = self.authorise_again(certificate, needs).await;
        if let Err(Denied::Unavailable(_)) = &found {
            let known = self.known.lock().expect("nothing panics under the lock");
            if let Some(member) = known.get(certificate.as_ref()).filter(|member| member.identity.role == needs) {
                return Ok(member.clone());
            }
        }
        found
    }

    /// As [`Accounts::authorise`], as far as the store answers.
    ///
    /// # Errors
    /// If there is no such member now, or the store does not answer.
    pub async fn authorise_again(&self, certificate: &CertificateDer<'_>, needs: Role) -> Result<Member, Denied> {
        let found = self.look_up(certificate, needs).await;
        let mut known = self.known.lock().expect("nothing panics under the lock");
        match &found {
            Ok(member) => {
                if known.len() >= KNOWN_MAX {
                    known.clear();
                }
                known.insert(certificate.to_vec(), member.clone());
            }
            Err(Denied::Unavailable(_)) => {}
            Err(_) => drop(known.remove(certificate.as_ref())),
        }
        found
    }

    async fn look_up(&self, certificate: &CertificateDer<'_>, needs: Role) -> Result<Member, Denied> {
        let row: Option<HolderRow> = sqlx::query_as(
            "SELECT m.member_id, m.role, m.name, l.lan_key, l.lan_id, l.name, coalesce(m.removed_at, l.removed_at), c.revoked_at, a.member_id,
             a.created_at
             FROM certificates c JOIN members m ON m.member_id = c.member_id JOIN lans l ON l.lan_key = m.lan_key
             JOIN members a ON a.member_id = coalesce(m.account_of, m.member_id)
             WHERE c.der = $1",
        )
        .bind(certificate.as_ref())
        .fetch_optional(&self.pool)
        .await
        .map_err(Denied::Unavailable)?;
        let Some((id, role, name, lan_key, lan_id, lan_name, removed_at, revoked_at, account, since)) = row else {
            return Err(Denied::Unknown);
        };
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
        let account = MemberId(account);
        let limits = self.limits(account).await.map_err(denied_by_damage)?;
        let lan_name = parsed(&lan_name).map_err(denied_by_damage)?;
        Ok(Member { id: MemberId(id), identity, lan_key: LanKey(lan_key), lan_name, account, since: UnixSeconds(since), limits })
    }

    /// Lets go of what is known of members who have changed. What may have changed is kept for when the store does not answer.
    fn forget(&self, change: &Change) {
        if change.touches_members() {
            let mut known = self.known.lock().expect("nothing panics under the lock");
            known.retain(|_, member| !change.names_member(member.id, member.lan_key));
        }
    }
}

/// Member, role, name, LAN's key, number and name, when removed, when the certificate was revoked, whose account, since when.
type HolderRow = (i64, String, String, i64, i64, String, Option<i64>, Option<i64>, i64, i64);

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

/// Members remembered for when the store does not answer, some 700 bytes each.
const KNOWN_MAX: usize = 65_536;
