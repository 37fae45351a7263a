//! What an operator adds, lists and removes.

use std::collections::BTreeMap;

use shared::{
    community::{
        login::REMOVED_MAX,
        member::{CertificateMark, Identity, Name, Role},
        quota::{AtLimit, Period, UnixSeconds},
    },
    ids::LanId,
};
use sqlx::{Any, AssertSqlSafe, Transaction};
use time::OffsetDateTime;

use super::{
    Accounts, AccountsError, Limits, MemberId, Spender,
    book::Book,
    changes::Touched,
    identity,
    lan_accounts::LanKey,
    number, parsed,
    parts::{MemberPlace, Members, Part, Rows},
    usage::stored,
};

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

/// A user as a list shows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed {
    /// Its key in the store.
    pub id: MemberId,
    /// Its name, role and LAN.
    pub identity: Identity,
    /// The LAN's key in the store.
    pub lan_key: LanKey,
    /// The LAN's name.
    pub lan_name: Name,
    /// Whose limits and usage are its own.
    pub account: MemberId,
    /// When it was added.
    pub added_at: UnixSeconds,
    /// When that account's holder was: where periods of days are counted from.
    pub since: UnixSeconds,
    /// What it may spend.
    pub limits: Limits,
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

    /// The user of that name in the LAN.
    ///
    /// # Errors
    /// If there is none.
    pub async fn user(&self, lan: &Name, name: &Name) -> Result<Listed, AccountsError> {
        let sql =
            format!("{LISTED} WHERE m.role = 'user' AND m.name = $1 AND l.name = $2 AND m.removed_at IS NULL AND l.removed_at IS NULL");
        let row: Option<ListedRow> =
            sqlx::query_as(AssertSqlSafe(sql)).bind(name.as_str()).bind(lan.as_str()).fetch_optional(&self.pool).await?;
        let none = || AccountsError::NoMember { lan: lan.clone(), role: Role::User, name: name.clone() };
        let mut user = listed(row.ok_or_else(none)?)?;
        user.limits = self.limits(user.account).await?;
        Ok(user)
    }

    /// A part of the users, by LAN and name.
    pub(super) async fn listed_users(&self, members: &Members<'_>) -> Result<Part<Listed, MemberPlace>, AccountsError> {
        let Some(Rows { from, to }) = self.rows_of(members).await? else { return Ok(Part::empty()) };
        let sql = format!(
            "{LISTED} WHERE m.role = 'user' AND m.removed_at IS NULL AND l.removed_at IS NULL
             AND (m.lan_key, m.role, m.name) > ($1, 'user', $2) AND m.lan_key <= $3 ORDER BY m.lan_key, m.name LIMIT $4"
        );
        let rows: Vec<ListedRow> = sqlx::query_as(AssertSqlSafe(sql))
            .bind(from.0)
            .bind(from.1)
            .bind(to)
            .bind(i64::from(members.limit) + 1)
            .fetch_all(&self.pool)
            .await?;
        let users = rows.into_iter().map(listed).collect::<Result<Vec<Listed>, _>>()?;
        let mut part = Part::cut(users, members.limit, |user| MemberPlace { lan: user.lan_key, name: user.identity.name.clone() });
        let accounts: Vec<MemberId> = part.items.iter().map(|user| user.account).collect();
        let limits_by_account = self.limits_of(&accounts).await?;
        for user in &mut part.items {
            user.limits = limits_by_account.get(&user.account).cloned().unwrap_or_default();
        }
        Ok(part)
    }

    /// Sets what may be spent from an account; users who have sessions are held to it within a second.
    ///
    /// # Errors
    /// If the store does not answer.
    pub async fn set_limits(&self, account: MemberId, limits: &Limits) -> Result<(), AccountsError> {
        let mut transaction = self.write().await?;
        put_limits(&mut transaction, account, limits).await?;
        self.touch(&mut transaction, Touched::Limits(Spender::User(account))).await?;
        let holder: (String, String) =
            sqlx::query_as("SELECT m.name, l.name FROM members m JOIN lans l ON l.lan_key = m.lan_key WHERE m.member_id = $1")
                .bind(account.0)
                .fetch_one(&mut *transaction)
                .await?;
        self.log(&mut transaction, "user.set", &format!("{}@{}", holder.0, holder.1), &limits.to_string()).await?;
        Ok(transaction.commit().await?)
    }

    /// Lets a user spend from the account of another (its LAN and name), who is the same person in another LAN; from its own again if that
    /// is the user.
    ///
    /// # Errors
    /// If there is no such user.
    pub async fn share_account(&self, lan: &Name, user: &Name, with: (&Name, &Name)) -> Result<(), AccountsError> {
        let mut transaction = self.write().await?;
        let id = live_user(&mut transaction, lan, user).await?;
        let other = live_user(&mut transaction, with.0, with.1).await?;
        let account = if other.member == id.member { other.member } else { other.account };
        // Who has shared with this user goes along, so that an account is never found by two steps.
        let members: Vec<i64> =
            sqlx::query_scalar("UPDATE members SET account_of = $1 WHERE member_id = $2 OR account_of = $2 RETURNING member_id")
                .bind(account)
                .bind(id.member)
                .fetch_all(&mut *transaction)
                .await?;
        for member in members {
            self.touch(&mut transaction, Touched::Member(MemberId(member))).await?;
        }
        sqlx::query("UPDATE members SET account_of = NULL WHERE account_of = member_id").execute(&mut *transaction).await?;
        self.log(&mut transaction, "user.account", &at(user, lan), &format!("that of {}", at(with.1, with.0))).await?;
        Ok(transaction.commit().await?)
    }
}

struct LiveUser {
    member: i64,
    account: i64,
}

async fn live_user(transaction: &mut Transaction<'static, Any>, lan: &Name, name: &Name) -> Result<LiveUser, AccountsError> {
    let row: Option<(i64, i64)> = sqlx::query_as(
        "SELECT m.member_id, coalesce(m.account_of, m.member_id) FROM members m JOIN lans l ON l.lan_key = m.lan_key
         WHERE m.role = 'user' AND m.name = $1 AND l.name = $2 AND m.removed_at IS NULL AND l.removed_at IS NULL",
    )
    .bind(name.as_str())
    .bind(lan.as_str())
    .fetch_optional(&mut **transaction)
    .await?;
    let (member, account) = row.ok_or_else(|| AccountsError::NoMember { lan: lan.clone(), role: Role::User, name: name.clone() })?;
    Ok(LiveUser { member, account })
}

/// Without limits.
fn listed((id, name, lan_key, lan_id, lan_name, added_at, account, since): ListedRow) -> Result<Listed, AccountsError> {
    Ok(Listed {
        id: MemberId(id),
        identity: identity("user", &name, lan_id)?,
        lan_key: LanKey(lan_key),
        lan_name: parsed(&lan_name)?,
        account: MemberId(account),
        added_at: UnixSeconds(added_at),
        since: UnixSeconds(since),
        limits: Limits::default(),
    })
}

/// Member, name, LAN's key, number and name, when added, whose account, since when.
type ListedRow = (i64, String, i64, i64, String, i64, i64, i64);

const LISTED: &str = "SELECT m.member_id, m.name, m.lan_key, l.lan_id, l.name, m.created_at, a.member_id, a.created_at
                      FROM members m JOIN lans l ON l.lan_key = m.lan_key JOIN members a ON a.member_id = coalesce(m.account_of, m.member_id)";

/// A member as the audit log names it.
pub(super) fn at(name: &Name, lan: &Name) -> String {
    format!("{name}@{lan}")
}

pub(super) async fn put_limits(transaction: &mut Transaction<'static, Any>, member: MemberId, limits: &Limits) -> Result<(), sqlx::Error> {
    put_limits_of(transaction, Spender::User(member), limits).await
}

/// Puts limits into a row, and leaves alone what else later versions have there.
pub(super) async fn put_limits_of(
    transaction: &mut Transaction<'static, Any>,
    spender: Spender,
    limits: &Limits,
) -> Result<(), sqlx::Error> {
    let Book { key, limits: table, .. } = spender.book();
    let (quota, period) = (limits.quota.as_ref(), limits.quota.as_ref().map_or_else(Period::default, |quota| quota.period.clone()));
    let throttle = quota.and_then(|quota| match quota.at_limit {
        AtLimit::Refuse => None,
        AtLimit::Throttle(rate) => Some(stored(rate.bits_per_second)),
    });
    sqlx::query(AssertSqlSafe(format!(
        "INSERT INTO {table} ({key}, quota_bytes, period, time_zone, counts, throttle_bits_per_second, rate_up_bits_per_second,
         rate_down_bits_per_second, max_flows) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)
         ON CONFLICT ({key}) DO UPDATE SET quota_bytes = excluded.quota_bytes, period = excluded.period, time_zone = excluded.time_zone,
         counts = excluded.counts, throttle_bits_per_second = excluded.throttle_bits_per_second,
         rate_up_bits_per_second = excluded.rate_up_bits_per_second, rate_down_bits_per_second = excluded.rate_down_bits_per_second,
         max_flows = excluded.max_flows"
    )))
    .bind(spender.key())
    .bind(quota.map(|quota| stored(quota.size.bytes)))
    .bind(period.length.to_string())
    .bind(period.zone.to_string())
    .bind(quota.map(|quota| quota.counts).unwrap_or_default().to_string())
    .bind(throttle)
    .bind(limits.rate_up.map(|rate| stored(rate.bits_per_second)))
    .bind(limits.rate_down.map(|rate| stored(rate.bits_per_second)))
    .bind(limits.max_flows.map(i64::from))
    .execute(&mut **transaction)
    .await?;
    Ok(())
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
