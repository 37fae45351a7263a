//! What all users of a LAN may spend together, and have.

use std::collections::BTreeMap;

use serde::Serialize;
use shared::{
    community::{
        member::Name,
        quota::{Limits, UnixSeconds, Used},
    },
    ids::LanId,
};
use sqlx::{Any, AssertSqlSafe, Executor, Transaction};

use super::{
    Accounts, AccountsError, Spender,
    book::LANS,
    changes::Touched,
    number, parsed,
    parts::Part,
    registry::live_lan_key,
    report::period,
    usage::{self, limits_by_key},
    users::put_limits_of,
    written::WrittenLimits,
};

/// A LAN's key in the store, never given to another.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LanKey(pub i64);

/// A LAN's account.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LanAccountRow {
    /// The LAN's key in the store.
    pub key: LanKey,
    /// Its name.
    pub name: Name,
    /// When it was added: where periods of days are counted from.
    pub since: UnixSeconds,
    /// What its users may spend together.
    pub limits: Limits,
}

/// A LAN, what its users may spend together and what they have. Times are in seconds since 1970, UTC.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct LanReport {
    /// The LAN's name.
    pub name: String,
    /// Its number.
    pub lan_id: u16,
    /// The UDP port on which its paths are served.
    pub data_port: u16,
    /// What its users may spend together.
    #[serde(flatten)]
    pub limits: WrittenLimits,
    /// Bytes of payload that they sent in the period that is counted now, as last kept.
    pub up_bytes: u64,
    /// Bytes that they got in it.
    pub down_bytes: u64,
    /// Those of them that the quota counts, in per cent of it, rounded down.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub used_percent: Option<u64>,
    /// When the count begins anew.
    pub resets_at: i64,
    /// The same, for people, in the period's time zone.
    pub resets: String,
}

impl Accounts {
    /// The account of the LAN of that number.
    ///
    /// # Errors
    /// If there is none, or the store does not answer.
    pub async fn lan_account(&self, lan: LanId) -> Result<LanAccountRow, AccountsError> {
        let row: Option<(i64, String, i64)> =
            sqlx::query_as("SELECT lan_key, name, created_at FROM lans WHERE lan_id = $1 AND removed_at IS NULL")
                .bind(i64::from(lan.0))
                .fetch_optional(&self.pool)
                .await?;
        let (key, name, since) = row.ok_or_else(|| AccountsError::Damaged(format!("no LAN {lan}")))?;
        let limits = usage::limits_of_key(&self.pool, Spender::Lan(LanKey(key))).await?;
        Ok(LanAccountRow { key: LanKey(key), name: parsed(&name)?, since: UnixSeconds(since), limits })
    }

    /// What the users of these LANs may spend together; one without a limit may be left out.
    ///
    /// # Errors
    /// If the store does not answer.
    pub async fn lan_limits_of(&self, lans: &[LanKey]) -> Result<BTreeMap<LanKey, Limits>, AccountsError> {
        let keys: Vec<i64> = lans.iter().map(|lan| lan.0).collect();
        Ok(self.limits_of_keys(LANS, &keys).await?.into_iter().map(|(key, limits)| (LanKey(key), limits)).collect())
    }

    /// Sets what the users of a LAN may spend together; those who have sessions are held to it within a second.
    ///
    /// # Errors
    /// If there is no such LAN, or its quota is to earn something.
    pub async fn set_lan_limits(&self, lan: &Name, limits: &Limits) -> Result<(), AccountsError> {
        let mut transaction = self.write().await?;
        let key = live_lan_key(&mut transaction, lan).await?;
        put_lan_limits(&mut transaction, key, limits).await?;
        self.touch(&mut transaction, Touched::Limits(Spender::Lan(key))).await?;
        self.log(&mut transaction, "lan.set", lan.as_str(), &limits.to_string()).await?;
        Ok(transaction.commit().await?)
    }

    /// A part of the LANs with what their users have used by `time`, by number: at most `limit` after the number `after`.
    ///
    /// # Errors
    /// If the store does not answer.
    pub async fn lan_reports(&self, after: Option<LanId>, limit: u32, time: UnixSeconds) -> Result<Part<LanReport, LanId>, AccountsError> {
        let sql = format!("{REPORTED} WHERE lan_id > $1 AND removed_at IS NULL ORDER BY lan_id LIMIT $2");
        let rows: Vec<ReportedRow> = sqlx::query_as(AssertSqlSafe(sql))
            .bind(after.map_or(0, |after| i64::from(after.0)))
            .bind(i64::from(limit) + 1)
            .fetch_all(&self.pool)
            .await?;
        let part = Part::cut(self.reported(rows, time).await?, limit, |lan| LanId(lan.lan_id));
        Ok(part)
    }

    /// The LAN of that name, with what its users have used by `time`.
    ///
    /// # Errors
    /// If there is none.
    pub async fn lan_report(&self, name: &Name, time: UnixSeconds) -> Result<LanReport, AccountsError> {
        let sql = format!("{REPORTED} WHERE name = $1 AND removed_at IS NULL");
        let rows: Vec<ReportedRow> = sqlx::query_as(AssertSqlSafe(sql)).bind(name.as_str()).fetch_all(&self.pool).await?;
        self.reported(rows, time).await?.pop().ok_or_else(|| AccountsError::NoLan(name.clone()))
    }

    async fn reported(&self, lans: Vec<ReportedRow>, time: UnixSeconds) -> Result<Vec<LanReport>, AccountsError> {
        let keys: Vec<i64> = lans.iter().map(|lan| lan.0).collect();
        let limits_by_lan = self.limits_of_keys(LANS, &keys).await?;
        let limits = |key: i64| limits_by_lan.get(&key).cloned().unwrap_or_default();
        let span = |&(key, .., since): &ReportedRow| period(&limits(key)).span(time, UnixSeconds(since));
        let asked: Vec<(i64, UnixSeconds)> = lans.iter().map(|lan| (lan.0, span(lan).start)).collect();
        let used_by_lan = self.used_in(LANS, &asked).await?;
        let report = |lan: ReportedRow| {
            let (span, (key, id, name, data_port, _)) = (span(&lan), lan);
            let (limits, used) = (limits(key), used_by_lan.get(&key).copied().unwrap_or_default());
            Ok(LanReport {
                name,
                lan_id: number(id)?,
                data_port: number(data_port)?,
                limits: (&limits).into(),
                up_bytes: used.up,
                down_bytes: used.down,
                used_percent: limits.quota.as_ref().map(|quota| quota.percent(used, Used::default())),
                resets_at: span.end.0,
                resets: period(&limits).zone.text(span.end),
            })
        };
        lans.into_iter().map(report).collect()
    }
}

/// Key, number, name, data port, when added.
type ReportedRow = (i64, i64, String, i64, i64);

const REPORTED: &str = "SELECT lan_key, lan_id, name, data_port, created_at FROM lans";

pub(super) async fn all_lan_limits<'e>(store: impl Executor<'e, Database = Any>) -> Result<BTreeMap<LanKey, Limits>, AccountsError> {
    Ok(limits_by_key(store, LANS).await?.into_iter().map(|(key, limits)| (LanKey(key), limits)).collect())
}

/// Replaces the limits of a LAN.
pub(super) async fn put_lan_limits(transaction: &mut Transaction<'static, Any>, lan: LanKey, limits: &Limits) -> Result<(), AccountsError> {
    if limits.quota.as_ref().is_some_and(|quota| quota.earning.is_some()) {
        return Err(AccountsError::LanEarns);
    }
    Ok(put_limits_of(transaction, Spender::Lan(lan), limits).await?)
}
