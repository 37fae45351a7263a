//! LANs and members: what an operator adds and removes.

use std::collections::BTreeMap;

use shared::{
    community::{
        login::REMOVED_MAX,
        member::{CertificateMark, Identity, Name, Role},
    },
    ids::LanId,
};
use sqlx::{Any, Transaction};
use time::OffsetDateTime;

use super::{Accounts, AccountsError, Limits, MemberId, changes::Touched, lan_accounts::LanKey, number, parsed, users::put_limits};

/// A LAN that is served.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lan {
    /// Its number.
    pub id: LanId,
    /// Its name.
    pub name: Name,
    /// The UDP port on which its paths are served.
    pub data_port: u16,
}

/// A certificate that was issued to a member.
#[derive(Clone, Copy, Debug)]
pub struct IssuedTo<'a> {
    /// The certificate, DER.
    pub der: &'a [u8],
    /// When it ends.
    pub expires_at: OffsetDateTime,
}

impl Accounts {
    /// The value of a setting of this `reconst`.
    ///
    /// # Errors
    /// If the store does not answer.
    pub async fn setting(&self, name: &str) -> Result<Option<String>, AccountsError> {
        Ok(sqlx::query_scalar("SELECT value FROM settings WHERE name = $1").bind(name).fetch_optional(&self.pool).await?)
    }

    /// Sets a setting of this `reconst`.
    ///
    /// # Errors
    /// If the store does not answer.
    pub async fn set_setting(&self, name: &str, value: &str) -> Result<(), AccountsError> {
        sqlx::query("INSERT INTO settings (name, value) VALUES ($1, $2) ON CONFLICT (name) DO UPDATE SET value = excluded.value")
            .bind(name)
            .bind(value)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// Adds a LAN: with the next free number, unless `id` says one, and the port that follows from it, unless `data_port` says one.
    ///
    /// # Errors
    /// If the name, number or port is taken; `login_port` counts as taken.
    pub async fn add_lan(&self, name: &Name, id: Option<LanId>, data_port: Option<u16>, login_port: u16) -> Result<Lan, AccountsError> {
        let mut transaction = self.write().await?;
        let lans = live_lans(&mut transaction).await?;
        if lans.iter().any(|lan| lan.name == *name) {
            return Err(AccountsError::LanExists(name.clone()));
        }
        let is_port_free = |port: u16| port != login_port && lans.iter().all(|lan| lan.data_port != port);
        let is_free = |id: LanId| {
            let port = data_port.or_else(|| data_port_by_rule(id));
            lans.iter().all(|lan| lan.id != id) && port.is_some_and(is_port_free)
        };
        let id = match id {
            Some(id) if lans.iter().any(|lan| lan.id == id) => return Err(AccountsError::LanIdTaken(id)),
            Some(id) => id,
            None => (1..=LAN_ID_MAX_BY_RULE).map(LanId).find(|&id| is_free(id)).ok_or(AccountsError::NoLanId)?,
        };
        let data_port = data_port.or_else(|| data_port_by_rule(id)).ok_or(AccountsError::NoDataPort(id))?;
        if !is_port_free(data_port) {
            return Err(AccountsError::DataPortTaken(data_port));
        }
        let sql = "INSERT INTO lans (lan_id, name, data_port, created_at) VALUES ($1, $2, $3, $4) RETURNING lan_key";
        let key: i64 = sqlx::query_scalar(sql)
            .bind(i64::from(id.0))
            .bind(name.as_str())
            .bind(i64::from(data_port))
            .bind(now())
            .fetch_one(&mut *transaction)
            .await?;
        self.touch(&mut transaction, Touched::Lan(LanKey(key))).await?;
        self.log(&mut transaction, "lan.add", name.as_str(), &format!("number {id}, data port {data_port}")).await?;
        transaction.commit().await?;
        Ok(Lan { id, name: name.clone(), data_port })
    }

    /// The LANs that are served, by number.
    ///
    /// # Errors
    /// If the store does not answer.
    pub async fn lans(&self) -> Result<Vec<Lan>, AccountsError> {
        let rows: Vec<LanRow> = sqlx::query_as(LIVE_LANS).fetch_all(&self.pool).await?;
        rows.into_iter().map(lan).collect()
    }

    /// The LAN of that name.
    ///
    /// # Errors
    /// If there is none.
    pub async fn lan(&self, name: &Name) -> Result<Lan, AccountsError> {
        let row: Option<LanRow> = sqlx::query_as("SELECT lan_id, name, data_port FROM lans WHERE name = $1 AND removed_at IS NULL")
            .bind(name.as_str())
            .fetch_optional(&self.pool)
            .await?;
        lan(row.ok_or_else(|| AccountsError::NoLan(name.clone()))?)
    }

    /// Moves a LAN to another data port; gives it as it was.
    ///
    /// # Errors
    /// If there is none of that name, or the port is taken; `login_port` counts as taken.
    pub async fn move_lan(&self, name: &Name, data_port: u16, login_port: u16) -> Result<Lan, AccountsError> {
        let mut transaction = self.write().await?;
        let lans = live_lans(&mut transaction).await?;
        let lan = lans.iter().find(|lan| lan.name == *name).ok_or_else(|| AccountsError::NoLan(name.clone()))?;
        if data_port == login_port || lans.iter().any(|other| other.id != lan.id && other.data_port == data_port) {
            return Err(AccountsError::DataPortTaken(data_port));
        }
        let key: i64 = sqlx::query_scalar("UPDATE lans SET data_port = $1 WHERE name = $2 AND removed_at IS NULL RETURNING lan_key")
            .bind(i64::from(data_port))
            .bind(name.as_str())
            .fetch_one(&mut *transaction)
            .await?;
        self.touch(&mut transaction, Touched::Lan(LanKey(key))).await?;
        self.log(&mut transaction, "lan.move", name.as_str(), &format!("data port {data_port}")).await?;
        transaction.commit().await?;
        Ok(lan.clone())
    }

    /// Removes a LAN and so all its members.
    ///
    /// # Errors
    /// If there is none of that name.
    pub async fn remove_lan(&self, name: &Name) -> Result<(), AccountsError> {
        let mut transaction = self.write().await?;
        let removed: Option<i64> =
            sqlx::query_scalar("UPDATE lans SET removed_at = $1 WHERE name = $2 AND removed_at IS NULL RETURNING lan_key")
                .bind(now())
                .bind(name.as_str())
                .fetch_optional(&mut *transaction)
                .await?;
        let key = removed.map(LanKey).ok_or_else(|| AccountsError::NoLan(name.clone()))?;
        for touched in [Touched::Lan(key), Touched::MembersOf(key)] {
            self.touch(&mut transaction, touched).await?;
        }
        self.log(&mut transaction, "lan.remove", name.as_str(), "").await?;
        Ok(transaction.commit().await?)
    }

    /// Adds a member to the LAN `lan_name`, with its first certificate.
    ///
    /// # Errors
    /// If there is no such LAN, or a member of that name and role in it.
    pub async fn add_member(
        &self,
        lan_name: &Name,
        identity: &Identity,
        limits: &Limits,
        issued: IssuedTo<'_>,
    ) -> Result<MemberId, AccountsError> {
        let mut transaction = self.write().await?;
        let lan_key: Option<i64> = sqlx::query_scalar("SELECT lan_key FROM lans WHERE name = $1 AND lan_id = $2 AND removed_at IS NULL")
            .bind(lan_name.as_str())
            .bind(i64::from(identity.lan.0))
            .fetch_optional(&mut *transaction)
            .await?;
        let lan_key = lan_key.ok_or_else(|| AccountsError::NoLan(lan_name.clone()))?;
        let inserted: Option<i64> = sqlx::query_scalar(
            "INSERT INTO members (lan_key, role, name, created_at) VALUES ($1, $2, $3, $4) ON CONFLICT DO NOTHING RETURNING member_id",
        )
        .bind(lan_key)
        .bind(identity.role.to_string())
        .bind(identity.name.as_str())
        .bind(now())
        .fetch_optional(&mut *transaction)
        .await?;
        let Some(member) = inserted.map(MemberId) else {
            let (lan, role, name) = (lan_name.clone(), identity.role, identity.name.clone());
            return Err(AccountsError::MemberExists { lan, role, name });
        };
        if identity.role == Role::User {
            put_limits(&mut transaction, member, limits).await?;
        }
        sqlx::query("INSERT INTO certificates (member_id, der, issued_at, expires_at) VALUES ($1, $2, $3, $4)")
            .bind(member.0)
            .bind(issued.der)
            .bind(now())
            .bind(issued.expires_at.unix_timestamp())
            .execute(&mut *transaction)
            .await?;
        self.touch(&mut transaction, Touched::Nobody).await?;
        let (action, subject) = (format!("{}.add", identity.role), at(&identity.name, lan_name));
        let detail = if identity.role == Role::User { limits.to_string() } else { String::new() };
        self.log(&mut transaction, &action, &subject, &detail).await?;
        transaction.commit().await?;
        Ok(member)
    }

    /// How many members of a role there are.
    ///
    /// # Errors
    /// If the store does not answer.
    pub async fn member_count(&self, role: Role) -> Result<u64, AccountsError> {
        let count: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM members m JOIN lans l ON l.lan_key = m.lan_key
             WHERE m.role = $1 AND m.removed_at IS NULL AND l.removed_at IS NULL",
        )
        .bind(role.to_string())
        .fetch_one(&self.pool)
        .await?;
        number(count)
    }

    /// The relay of that name that the LAN of that number has now, if it has one.
    ///
    /// # Errors
    /// If the store does not answer.
    pub async fn relay(&self, lan: LanId, name: &str) -> Result<Option<MemberId>, AccountsError> {
        let id: Option<i64> = sqlx::query_scalar(
            "SELECT m.member_id FROM members m JOIN lans l ON l.lan_key = m.lan_key
             WHERE l.lan_id = $1 AND l.removed_at IS NULL AND m.role = 'relay' AND m.name = $2 AND m.removed_at IS NULL",
        )
        .bind(i64::from(lan.0))
        .bind(name)
        .fetch_optional(&self.pool)
        .await?;
        Ok(id.map(MemberId))
    }

    /// The certificates by which users were members of a LAN, and are not any more though their time is not over: for each LAN the
    /// latest, at most [`REMOVED_MAX`].
    ///
    /// # Errors
    /// If the store does not answer.
    pub async fn removed_certificates(&self) -> Result<BTreeMap<LanId, Vec<CertificateMark>>, AccountsError> {
        let rows: Vec<(i64, Vec<u8>)> = sqlx::query_as(
            "SELECT lan_id, der FROM (
                 SELECT l.lan_id, c.der, m.removed_at AS ended_at, c.certificate_id
                 FROM members m JOIN certificates c ON c.member_id = m.member_id JOIN lans l ON l.lan_key = m.lan_key
                 WHERE m.removed_at IS NOT NULL AND m.role = 'user' AND l.removed_at IS NULL AND c.expires_at > $1
                 UNION ALL
                 SELECT l.lan_id, c.der, c.revoked_at AS ended_at, c.certificate_id
                 FROM certificates c JOIN members m ON m.member_id = c.member_id JOIN lans l ON l.lan_key = m.lan_key
                 WHERE c.revoked_at IS NOT NULL AND m.removed_at IS NULL AND m.role = 'user' AND l.removed_at IS NULL AND c.expires_at > $1
             ) ended ORDER BY ended_at DESC, certificate_id DESC",
        )
        .bind(now())
        .fetch_all(&self.pool)
        .await?;
        let mut marks_by_lan: BTreeMap<LanId, Vec<CertificateMark>> = BTreeMap::new();
        for (lan_id, der) in rows {
            let marks = marks_by_lan.entry(LanId(number(lan_id)?)).or_default();
            if marks.len() < REMOVED_MAX {
                marks.push(CertificateMark::of(&der));
            }
        }
        Ok(marks_by_lan)
    }

    /// Removes a member; its certificates are refused from then on.
    ///
    /// # Errors
    /// If there is none of that name and role in the LAN.
    pub async fn remove_member(&self, lan: &Name, role: Role, name: &Name) -> Result<(), AccountsError> {
        let mut transaction = self.write().await?;
        let removed: Option<i64> = sqlx::query_scalar(
            "UPDATE members SET removed_at = $1 WHERE role = $2 AND name = $3 AND removed_at IS NULL
             AND lan_key = (SELECT lan_key FROM lans WHERE name = $4 AND removed_at IS NULL) RETURNING member_id",
        )
        .bind(now())
        .bind(role.to_string())
        .bind(name.as_str())
        .bind(lan.as_str())
        .fetch_optional(&mut *transaction)
        .await?;
        let none = || AccountsError::NoMember { lan: lan.clone(), role, name: name.clone() };
        let member = removed.map(MemberId).ok_or_else(none)?;
        self.touch(&mut transaction, Touched::Member(member)).await?;
        self.log(&mut transaction, &format!("{role}.remove"), &at(name, lan), "").await?;
        Ok(transaction.commit().await?)
    }
}

/// A member as the audit log names it.
pub(super) fn at(name: &Name, lan: &Name) -> String {
    format!("{name}@{lan}")
}

pub(super) async fn live_lan_key(transaction: &mut Transaction<'static, Any>, lan: &Name) -> Result<LanKey, AccountsError> {
    let key: Option<i64> = sqlx::query_scalar("SELECT lan_key FROM lans WHERE name = $1 AND removed_at IS NULL")
        .bind(lan.as_str())
        .fetch_optional(&mut **transaction)
        .await?;
    key.map(LanKey).ok_or_else(|| AccountsError::NoLan(lan.clone()))
}

async fn live_lans(transaction: &mut Transaction<'static, Any>) -> Result<Vec<Lan>, AccountsError> {
    let rows: Vec<LanRow> = sqlx::query_as(LIVE_LANS).fetch_all(&mut **transaction).await?;
    rows.into_iter().map(lan).collect()
}

fn lan((id, name, data_port): LanRow) -> Result<Lan, AccountsError> {
    Ok(Lan { id: LanId(number(id)?), name: parsed(&name)?, data_port: number(data_port)? })
}

/// The data port of a LAN that was given none: LAN 15 is served on 10015.
fn data_port_by_rule(id: LanId) -> Option<u16> {
    DATA_PORT_BASE.checked_add(id.0)
}

pub(super) fn now() -> i64 {
    OffsetDateTime::now_utc().unix_timestamp()
}

const LIVE_LANS: &str = "SELECT lan_id, name, data_port FROM lans WHERE removed_at IS NULL ORDER BY lan_id";

/// Number, name, data port.
type LanRow = (i64, String, i64);

/// The patent's example serves LAN 15 on port 10015.
const DATA_PORT_BASE: u16 = 10_000;

/// The largest LAN number whose data port follows from it.
pub const LAN_ID_MAX_BY_RULE: u16 = u16::MAX - DATA_PORT_BASE;
