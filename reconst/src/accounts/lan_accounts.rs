//! What all users of a LAN may spend together, and have.

use std::collections::BTreeMap;

use serde::Serialize;
use shared::{
    community::{
        member::Name,
        quota::{Limits, Period, UnixSeconds},
    },
    ids::LanId,
};
use sqlx::{Any, AssertSqlSafe, Executor, Transaction};

use super::{
    Accounts, AccountsError, Spender,
    book::LANS,
    number, parsed,
    registry::{live_lan_key, put_limits_of},
    usage::{self, limits_by_key, used_of},
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

    /// What the users of each LAN may spend together, where that has a limit.
    ///
    /// # Errors
    /// If the store does not answer.
    pub async fn all_lan_limits(&self) -> Result<BTreeMap<LanKey, Limits>, AccountsError> {
        all_lan_limits(&self.pool).await
    }

    /// Sets what the users of a LAN may spend together; those who have sessions are held to it within a second.
    ///
    /// # Errors
    /// If there is no such LAN.
    pub async fn set_lan_limits(&self, lan: &Name, limits: &Limits) -> Result<(), AccountsError> {
        let mut transaction = self.write().await?;
        let key = live_lan_key(&mut transaction, lan).await?;
        put_lan_limits(&mut transaction, key, limits).await?;
        self.log(&mut transaction, "lan.set", lan.as_str(), &limits.to_string()).await?;
        Ok(transaction.commit().await?)
    }

    /// The LANs with what their users have used by `time`, by number.
    ///
    /// # Errors
    /// If the store does not answer.
    pub async fn lan_reports(&self, time: UnixSeconds) -> Result<Vec<LanReport>, AccountsError> {
        let limits_by_lan = self.all_lan_limits().await?;
        let sql = format!(
            "SELECT lan_key, period_start, CAST(SUM(up_bytes) AS BIGINT), CAST(SUM(down_bytes) AS BIGINT) FROM ({}) counted
             GROUP BY lan_key, period_start",
            LANS.all_usage()
        );
        let usage: Vec<(i64, i64, i64, i64)> = sqlx::query_as(AssertSqlSafe(sql)).fetch_all(&self.pool).await?;
        let used_by_period: BTreeMap<(i64, i64), (i64, i64)> =
            usage.into_iter().map(|(key, start, up, down)| ((key, start), (up, down))).collect();
        let lans: Vec<(i64, i64, String, i64, i64)> =
            sqlx::query_as("SELECT lan_key, lan_id, name, data_port, created_at FROM lans WHERE removed_at IS NULL ORDER BY lan_id")
                .fetch_all(&self.pool)
                .await?;
        let report = |(key, id, name, data_port, since): (i64, i64, String, i64, i64)| {
            let limits = limits_by_lan.get(&LanKey(key)).cloned().unwrap_or_default();
            let quota = limits.quota.as_ref();
            let period = quota.map_or_else(Period::default, |quota| quota.period.clone());
            let span = period.span(time, UnixSeconds(since));
            let (up, down) = used_by_period.get(&(key, span.start.0)).copied().unwrap_or_default();
            let used = used_of(up, down)?;
            Ok(LanReport {
                name,
                lan_id: number(id)?,
                data_port: number(data_port)?,
                limits: (&limits).into(),
                up_bytes: used.up,
                down_bytes: used.down,
                used_percent: quota.map(|quota| quota.percent(used)),
                resets_at: span.end.0,
                resets: period.zone.text(span.end),
            })
        };
        lans.into_iter().map(report).collect()
    }
}

impl Accounts {
    /// The LAN of that name, with what its users have used by `time`.
    ///
    /// # Errors
    /// If there is none.
    pub async fn lan_report(&self, name: &Name, time: UnixSeconds) -> Result<LanReport, AccountsError> {
        let reports = self.lan_reports(time).await?;
        reports.into_iter().find(|lan| lan.name == name.as_str()).ok_or_else(|| AccountsError::NoLan(name.clone()))
    }
}

pub(super) async fn all_lan_limits<'e>(store: impl Executor<'e, Database = Any>) -> Result<BTreeMap<LanKey, Limits>, AccountsError> {
    Ok(limits_by_key(store, LANS).await?.into_iter().map(|(key, limits)| (LanKey(key), limits)).collect())
}

/// Replaces the limits of a LAN.
pub(super) async fn put_lan_limits(transaction: &mut Transaction<'static, Any>, lan: LanKey, limits: &Limits) -> Result<(), sqlx::Error> {
    put_limits_of(transaction, Spender::Lan(lan), limits).await
}
