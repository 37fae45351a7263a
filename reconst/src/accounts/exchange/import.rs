//! From a document to the store.

use std::collections::{BTreeMap, HashMap, HashSet};

use serde::Serialize;
use shared::{
    community::member::{Identity, Name, Role},
    ids::LanId,
};
use sqlx::{Any, Transaction};
use thiserror::Error;

use super::{CertificateEntry, Der, Document, LanEntry, UserOfLan};
use crate::accounts::{
    Accounts, AccountsError, Limits, MemberId, Spender,
    changes::Touched,
    lan_accounts::{LanKey, all_lan_limits, put_lan_limits},
    number, parsed,
    registry::{at, now},
    usage,
    users::put_limits,
    written::WrittenError,
};

/// What an import has changed, or would.
#[derive(Clone, PartialEq, Eq, Default, Debug, Serialize)]
pub struct Imported {
    /// The changes, in the words of the audit log.
    pub changes: Vec<Change>,
    /// Certificates that were not taken: of another authority, ended, or withdrawn here. Their holders have to be invited anew.
    pub certificates_left_out: usize,
}

/// A change.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Change {
    /// What, as in `user.set`.
    pub action: String,
    /// To whom or what.
    pub subject: String,
    /// What it is now.
    pub detail: String,
}

/// Why nothing was imported.
#[derive(Debug, Error)]
pub enum ImportError {
    /// The document says what can't be; the text says where.
    #[error("{0}")]
    Document(String),
    /// It does not go together with what is here.
    #[error("{0}")]
    Conflict(String),
    /// The store does not answer, or is damaged.
    #[error(transparent)]
    Accounts(#[from] AccountsError),
}

impl From<sqlx::Error> for ImportError {
    fn from(error: sqlx::Error) -> Self {
        Self::Accounts(error.into())
    }
}

impl Accounts {
    /// Makes LANs and members what `document` says, all of it or nothing; what it does not name stays as it is. A certificate counts
    /// for the member that `issued_to` says it was issued to. With `is_trial` nothing is changed in the end.
    ///
    /// # Errors
    /// If it does not go together with what is here, or the store does not answer.
    pub async fn import(
        &self,
        document: &Document,
        login_port: u16,
        issued_to: impl Fn(&[u8]) -> Option<Identity>,
        is_trial: bool,
    ) -> Result<Imported, ImportError> {
        document.check_names()?;
        let transaction = self.write().await?;
        let mut import = Import { accounts: self, transaction, imported: Imported::default() };
        import.touch(Touched::Nobody).await?;
        let lan_by_name = import.lans(&document.lan, login_port).await?;
        import.lan_limits(&document.lan, &lan_by_name).await?;
        let mut members = Members::read(&mut import.transaction, lan_by_name).await?;
        import.users(document, &mut members).await?;
        import.relays(document, &mut members).await?;
        import.certificates(document, &members, issued_to).await?;
        let Import { transaction, imported, .. } = import;
        if is_trial || imported.changes.is_empty() {
            transaction.rollback().await?;
        } else {
            transaction.commit().await?;
        }
        Ok(imported)
    }
}

impl Document {
    /// Whether everybody is named once.
    fn check_names(&self) -> Result<(), ImportError> {
        let lans = self.lan.iter().map(|lan| ("LAN", lan.name.to_string()));
        let users = self.user.iter().map(|user| ("user", at(&user.name, &user.lan)));
        let relays = self.relay.iter().map(|relay| ("relay", at(&relay.name, &relay.lan)));
        let mut seen = HashSet::new();
        for (what, name) in lans.chain(users).chain(relays) {
            if let Some((what, name)) = seen.replace((what, name)) {
                return Err(ImportError::Document(format!("{what} {name} is there twice")));
            }
        }
        Ok(())
    }
}

struct Import<'a> {
    accounts: &'a Accounts,
    transaction: Transaction<'static, Any>,
    imported: Imported,
}

/// The members who are here, and the LANs.
struct Members {
    lan_by_name: BTreeMap<Name, (i64, LanId)>,
    by_name: HashMap<(i64, Role, String), Existing>,
    limits: BTreeMap<MemberId, Limits>,
}

#[derive(Clone, Copy)]
struct Existing {
    id: i64,
    account_of: Option<i64>,
    owner: Option<i64>,
}

/// Member, LAN, role, name, whose account, whose PC.
type MemberRow = (i64, i64, String, String, Option<i64>, Option<i64>);

impl Members {
    async fn read(transaction: &mut Transaction<'static, Any>, lan_by_name: BTreeMap<Name, (i64, LanId)>) -> Result<Self, AccountsError> {
        let rows: Vec<MemberRow> =
            sqlx::query_as("SELECT member_id, lan_key, role, name, account_of, owner_id FROM members WHERE removed_at IS NULL")
                .fetch_all(&mut **transaction)
                .await?;
        let entry = |(id, lan_key, role, name, account_of, owner): MemberRow| {
            let role = if role == "relay" { Role::Relay } else { Role::User };
            ((lan_key, role, name), Existing { id, account_of, owner })
        };
        let limits = usage::all_limits(&mut **transaction).await?;
        Ok(Self { lan_by_name, by_name: rows.into_iter().map(entry).collect(), limits })
    }

    /// The LAN's key and number.
    fn lan(&self, lan: &Name) -> Result<(i64, LanId), ImportError> {
        let none = || ImportError::Document(format!("no LAN {lan} is here or in the file: add a [[lan]] of that name"));
        self.lan_by_name.get(lan).copied().ok_or_else(none)
    }

    fn find(&self, lan: &Name, role: Role, name: &Name) -> Result<Option<Existing>, ImportError> {
        Ok(self.by_name.get(&(self.lan(lan)?.0, role, name.to_string())).copied())
    }

    fn user(&self, lan: &Name, name: &Name, of: &str) -> Result<Existing, ImportError> {
        let none = || ImportError::Document(format!("{of} is said to belong to {}, who is no user", at(name, lan)));
        self.find(lan, Role::User, name)?.ok_or_else(none)
    }
}

impl Import<'_> {
    async fn note(&mut self, action: &str, subject: &str, detail: &str) -> Result<(), ImportError> {
        self.accounts.log(&mut self.transaction, action, subject, detail).await?;
        self.imported.changes.push(Change { action: action.into(), subject: subject.into(), detail: detail.into() });
        Ok(())
    }

    async fn touch(&mut self, touched: Touched) -> Result<(), sqlx::Error> {
        self.accounts.touch(&mut self.transaction, touched).await
    }

    /// Adds and moves LANs; gives all that are served.
    async fn lans(&mut self, entries: &[LanEntry], login_port: u16) -> Result<BTreeMap<Name, (i64, LanId)>, ImportError> {
        let rows: Vec<(i64, String, i64, i64)> =
            sqlx::query_as("SELECT lan_key, name, lan_id, data_port FROM lans WHERE removed_at IS NULL")
                .fetch_all(&mut *self.transaction)
                .await?;
        let mut lans = BTreeMap::new();
        let mut known: BTreeMap<Name, (i64, i64)> = BTreeMap::new();
        for (key, name, id, port) in rows {
            let name: Name = parsed(&name)?;
            lans.insert(name.clone(), (key, LanId(number(id)?)));
            known.insert(name, (id, port));
        }
        for LanEntry { name, number: lan_id, data_port, .. } in entries {
            let wanted = (i64::from(*lan_id), i64::from(*data_port));
            if wanted.0 == 0 || wanted.1 == 0 {
                return Err(ImportError::Document(format!("LAN {name}: numbers and ports begin at 1")));
            }
            let before = known.insert(name.clone(), wanted);
            if before.is_some_and(|(id, _)| id != wanted.0) {
                return Err(ImportError::Conflict(format!("LAN {name} is here with another number than {lan_id}: a number stays")));
            }
            if before == Some(wanted) {
                continue;
            }
            if known.iter().any(|(other, (id, _))| other != name && *id == wanted.0) {
                return Err(AccountsError::LanIdTaken(LanId(*lan_id)).into());
            }
            if *data_port == login_port || known.iter().any(|(other, (_, port))| other != name && *port == wanted.1) {
                return Err(AccountsError::DataPortTaken(*data_port).into());
            }
            if before.is_some() {
                sqlx::query("UPDATE lans SET data_port = $1 WHERE name = $2 AND removed_at IS NULL")
                    .bind(wanted.1)
                    .bind(name.as_str())
                    .execute(&mut *self.transaction)
                    .await?;
                self.touch(Touched::Lan(LanKey(lans[name].0))).await?;
                self.note("lan.move", name.as_str(), &format!("data port {data_port}")).await?;
            } else {
                let key: i64 =
                    sqlx::query_scalar("INSERT INTO lans (lan_id, name, data_port, created_at) VALUES ($1, $2, $3, $4) RETURNING lan_key")
                        .bind(wanted.0)
                        .bind(name.as_str())
                        .bind(wanted.1)
                        .bind(now())
                        .fetch_one(&mut *self.transaction)
                        .await?;
                lans.insert(name.clone(), (key, LanId(*lan_id)));
                self.touch(Touched::Lan(LanKey(key))).await?;
                self.note("lan.add", name.as_str(), &format!("number {lan_id}, data port {data_port}")).await?;
            }
        }
        Ok(lans)
    }

    async fn lan_limits(&mut self, entries: &[LanEntry], lan_by_name: &BTreeMap<Name, (i64, LanId)>) -> Result<(), ImportError> {
        let limits_by_lan = all_lan_limits(&mut *self.transaction).await?;
        for LanEntry { name, limits, .. } in entries {
            let limits = limits.clone().parse();
            let limits = limits.map_err(|WrittenError(reason)| ImportError::Document(format!("LAN {name}: {reason}")))?;
            let key = LanKey(lan_by_name[name].0);
            if limits_by_lan.get(&key).cloned().unwrap_or_default() != limits {
                put_lan_limits(&mut self.transaction, key, &limits).await.map_err(|error| match error {
                    AccountsError::LanEarns => ImportError::Document(format!("LAN {name}: {error}")),
                    error => error.into(),
                })?;
                self.touch(Touched::Limits(Spender::Lan(key))).await?;
                self.note("lan.set", name.as_str(), &limits.to_string()).await?;
            }
        }
        Ok(())
    }

    async fn users(&mut self, document: &Document, members: &mut Members) -> Result<(), ImportError> {
        for user in &document.user {
            let subject = at(&user.name, &user.lan);
            let limits = user.limits.clone().parse();
            let limits = limits.map_err(|WrittenError(reason)| ImportError::Document(format!("{subject}: {reason}")))?;
            if user.account.is_some() && limits != Limits::default() {
                return Err(ImportError::Document(format!("{subject} spends from another's account: leave its limits out")));
            }
            let Some(existing) = members.find(&user.lan, Role::User, &user.name)? else {
                let id = self.add(members, &user.lan, Role::User, &user.name, user.added_at).await?;
                put_limits(&mut self.transaction, MemberId(id), &limits).await?;
                self.note("user.add", &subject, &limits.to_string()).await?;
                continue;
            };
            let id = MemberId(existing.id);
            if user.account.is_none() && members.limits.get(&id).cloned().unwrap_or_default() != limits {
                put_limits(&mut self.transaction, id, &limits).await?;
                self.touch(Touched::Limits(Spender::User(id))).await?;
                self.note("user.set", &subject, &limits.to_string()).await?;
            }
        }
        let shares: HashMap<String, &UserOfLan> =
            document.user.iter().filter_map(|user| Some((at(&user.name, &user.lan), user.account.as_ref()?))).collect();
        for user in &document.user {
            let subject = at(&user.name, &user.lan);
            let existing = members.user(&user.lan, &user.name, &subject)?;
            let account = match &user.account {
                None => None,
                Some(UserOfLan { name, lan }) => {
                    let holder = members.user(lan, name, &format!("the account of {subject}"))?;
                    let is_own = !shares.contains_key(&at(name, lan));
                    if holder.id == existing.id || !is_own {
                        return Err(ImportError::Document(format!("{subject}: {} has no account of its own", at(name, lan))));
                    }
                    Some(holder.id)
                }
            };
            if account != existing.account_of {
                sqlx::query("UPDATE members SET account_of = $1 WHERE member_id = $2")
                    .bind(account)
                    .bind(existing.id)
                    .execute(&mut *self.transaction)
                    .await?;
                let of = user.account.as_ref().map_or_else(|| "its own".into(), |other| at(&other.name, &other.lan));
                self.touch(Touched::Member(MemberId(existing.id))).await?;
                self.note("user.account", &subject, &format!("that of {of}")).await?;
            }
        }
        // Whoever spends from an account that the file makes another's part goes by two steps.
        let by_two_steps: Option<String> = sqlx::query_scalar(
            "SELECT m.name FROM members m JOIN members a ON a.member_id = m.account_of WHERE a.account_of IS NOT NULL AND m.removed_at IS NULL
             AND a.removed_at IS NULL LIMIT 1",
        )
        .fetch_optional(&mut *self.transaction)
        .await?;
        match by_two_steps {
            Some(name) => Err(ImportError::Conflict(format!(
                "user {name} spends from the account of one who would spend from another's: change that first with `reconst user set {name} --account`"
            ))),
            None => Ok(()),
        }
    }

    async fn relays(&mut self, document: &Document, members: &mut Members) -> Result<(), ImportError> {
        for relay in &document.relay {
            let subject = at(&relay.name, &relay.lan);
            let existing = match members.find(&relay.lan, Role::Relay, &relay.name)? {
                Some(existing) => existing,
                None => {
                    let id = self.add(members, &relay.lan, Role::Relay, &relay.name, relay.added_at).await?;
                    self.note("relay.add", &subject, "").await?;
                    Existing { id, account_of: None, owner: None }
                }
            };
            let owner = match &relay.owner {
                Some(owner) => Some(members.user(&relay.lan, owner, &subject)?.id),
                None => None,
            };
            if owner != existing.owner {
                sqlx::query("UPDATE members SET owner_id = $1 WHERE member_id = $2")
                    .bind(owner)
                    .bind(existing.id)
                    .execute(&mut *self.transaction)
                    .await?;
                self.note("relay.owner", &subject, relay.owner.as_ref().map_or("nobody", Name::as_str)).await?;
            }
        }
        Ok(())
    }

    async fn add(&mut self, members: &mut Members, lan: &Name, role: Role, name: &Name, added_at: Option<i64>) -> Result<i64, ImportError> {
        let lan_key = members.lan(lan)?.0;
        let id: i64 =
            sqlx::query_scalar("INSERT INTO members (lan_key, role, name, created_at) VALUES ($1, $2, $3, $4) RETURNING member_id")
                .bind(lan_key)
                .bind(role.to_string())
                .bind(name.as_str())
                .bind(added_at.unwrap_or_else(now))
                .fetch_one(&mut *self.transaction)
                .await?;
        members.by_name.insert((lan_key, role, name.to_string()), Existing { id, account_of: None, owner: None });
        Ok(id)
    }

    async fn certificates(
        &mut self,
        document: &Document,
        members: &Members,
        issued_to: impl Fn(&[u8]) -> Option<Identity>,
    ) -> Result<(), ImportError> {
        let users = document.user.iter().map(|user| (&user.lan, Role::User, &user.name, &user.certificates));
        let relays = document.relay.iter().map(|relay| (&relay.lan, Role::Relay, &relay.name, &relay.certificates));
        let holders: Vec<HolderRow> = sqlx::query_as(
            "SELECT c.member_id, c.der, c.revoked_at, coalesce(m.removed_at, l.removed_at) FROM certificates c
             JOIN members m ON m.member_id = c.member_id JOIN lans l ON l.lan_key = m.lan_key",
        )
        .fetch_all(&mut *self.transaction)
        .await?;
        let holder =
            |(id, der, revoked, removed): HolderRow| (der, Holder { id, is_revoked: revoked.is_some(), is_removed: removed.is_some() });
        let mut holder_by_der: HashMap<Vec<u8>, Holder> = holders.into_iter().map(holder).collect();
        for (lan, role, name, certificates) in users.chain(relays) {
            let Some(member) = members.find(lan, role, name)? else { continue };
            let identity = Identity { name: name.clone(), role, lan: members.lan(lan)?.1 };
            for CertificateEntry { issued_at, expires_at, der: Der(der) } in certificates {
                let before = holder_by_der.insert(der.clone(), Holder { id: member.id, is_revoked: false, is_removed: false });
                match before {
                    Some(holder) if holder.is_revoked => {
                        self.imported.certificates_left_out += 1;
                        continue;
                    }
                    Some(holder) if holder.id == member.id => continue,
                    Some(holder) if !holder.is_removed => {
                        return Err(ImportError::Conflict(format!("a certificate of {role} {} is another member's here", at(name, lan))));
                    }
                    Some(_) => {
                        sqlx::query("UPDATE certificates SET member_id = $1 WHERE der = $2")
                            .bind(member.id)
                            .bind(der.as_slice())
                            .execute(&mut *self.transaction)
                            .await?;
                    }
                    None if issued_to(der).as_ref() != Some(&identity) => {
                        self.imported.certificates_left_out += 1;
                        continue;
                    }
                    None => {
                        sqlx::query("INSERT INTO certificates (member_id, der, issued_at, expires_at) VALUES ($1, $2, $3, $4)")
                            .bind(member.id)
                            .bind(der.as_slice())
                            .bind(*issued_at)
                            .bind(*expires_at)
                            .execute(&mut *self.transaction)
                            .await?;
                    }
                }
                self.note(&format!("{role}.certificate"), &at(name, lan), "imported").await?;
            }
        }
        Ok(())
    }
}

/// Member, DER, when the certificate was revoked, when the member or its LAN was removed.
type HolderRow = (i64, Vec<u8>, Option<i64>, Option<i64>);

struct Holder {
    id: i64,
    is_revoked: bool,
    is_removed: bool,
}
