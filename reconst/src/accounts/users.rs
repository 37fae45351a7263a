//! Users: how they are listed, what they may spend, and from whose account.

use shared::community::{
    member::{Identity, Name, Role},
    quota::{AtLimit, Period, UnixSeconds},
};
use sqlx::{Any, AssertSqlSafe, Transaction};

use super::{
    Accounts, AccountsError, Limits, MemberId, Spender,
    book::Book,
    changes::Touched,
    identity,
    lan_accounts::LanKey,
    parsed,
    parts::{MemberPlace, Members, Part, Rows},
    registry::at,
    usage::stored,
};

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

impl Accounts {
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

pub(super) async fn put_limits(transaction: &mut Transaction<'static, Any>, member: MemberId, limits: &Limits) -> Result<(), sqlx::Error> {
    put_limits_of(transaction, Spender::User(member), limits).await?;
    let earning = limits.quota.as_ref().and_then(|quota| quota.earning);
    sqlx::query("UPDATE limits SET earn_percent = $1, earn_at_most_bytes = $2 WHERE member_id = $3")
        .bind(earning.map(|earning| stored(earning.percent.into())))
        .bind(earning.and_then(|earning| earning.at_most).map(|at_most| stored(at_most.bytes)))
        .bind(member.0)
        .execute(&mut **transaction)
        .await?;
    Ok(())
}

/// Puts limits into a row, but for what is earned, and leaves alone what else later versions have there.
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
