//! What users may spend and have: what the [quota's keeper](crate::quota) reads and writes.

use std::collections::BTreeMap;

use shared::community::quota::{AtLimit, Earning, Limits, Percent, Quota, UnixSeconds, Used};
use shared::{
    community::quota::Period,
    units::{Rate, Size},
};
use sqlx::{Any, AssertSqlSafe, Executor};

use super::{
    Accounts, AccountsError, MemberId, Spender,
    book::{Book, USERS},
    number, parsed,
};

/// A count in the period that began then.
pub type Count = (Spender, UnixSeconds, Used);

impl Accounts {
    /// What a user or a LAN has used in the latest periods.
    ///
    /// # Errors
    /// If the store does not answer.
    pub async fn used(&self, spender: Spender) -> Result<BTreeMap<UnixSeconds, Used>, AccountsError> {
        let book = spender.book();
        let sql = format!(
            "SELECT period_start, CAST(SUM(up_bytes) AS BIGINT), CAST(SUM(down_bytes) AS BIGINT) FROM ({}) counted
             WHERE {} = $1 GROUP BY period_start ORDER BY period_start DESC LIMIT 4",
            book.all_usage(),
            book.key
        );
        let rows: Vec<(i64, i64, i64)> = sqlx::query_as(AssertSqlSafe(sql)).bind(spender.key()).fetch_all(&self.pool).await?;
        rows.into_iter().map(|(start, up, down)| Ok((UnixSeconds(start), used_of(up, down)?))).collect()
    }

    /// What each of these users, or each of these LANs, has used in the period of its that began then; who has used nothing is left out.
    pub(super) async fn used_in(&self, book: Book, asked: &[(i64, UnixSeconds)]) -> Result<BTreeMap<i64, Used>, AccountsError> {
        let Book { key, usage, node_usage, .. } = book;
        let mut used_by_key = BTreeMap::new();
        for some in asked.chunks(ROWS_PER_STATEMENT) {
            let pairs = tuples(1, some.len(), 2);
            let counted =
                |table| format!("SELECT {key}, up_bytes, down_bytes FROM {table} WHERE ({key}, period_start) IN (VALUES {pairs})");
            let sql = format!(
                "SELECT {key}, CAST(SUM(up_bytes) AS BIGINT), CAST(SUM(down_bytes) AS BIGINT) FROM ({} UNION ALL {}) counted GROUP BY {key}",
                counted(usage),
                counted(node_usage)
            );
            let mut query = sqlx::query_as(AssertSqlSafe(sql));
            for (key, start) in some {
                query = query.bind(*key).bind(start.0);
            }
            let rows: Vec<(i64, i64, i64)> = query.fetch_all(&self.pool).await?;
            for (key, up, down) in rows {
                used_by_key.insert(key, used_of(up, down)?);
            }
        }
        Ok(used_by_key)
    }

    /// Keeps the counts of many users and LANs, all of them or none.
    ///
    /// # Errors
    /// If the store does not answer.
    pub async fn keep_used(&self, counts: &[Count]) -> Result<(), AccountsError> {
        let (users, lans): (Vec<&Count>, Vec<&Count>) = counts.iter().partition(|(spender, ..)| matches!(spender, Spender::User(_)));
        let mut transaction = self.write_unnoticed().await?;
        for some in users.chunks(ROWS_PER_STATEMENT).chain(lans.chunks(ROWS_PER_STATEMENT)) {
            let Book { key, usage, .. } = some[0].0.book();
            let sql = format!(
                "INSERT INTO {usage} ({key}, period_start, up_bytes, down_bytes) VALUES {}
                 ON CONFLICT ({key}, period_start) DO UPDATE SET up_bytes = excluded.up_bytes, down_bytes = excluded.down_bytes",
                tuples(1, some.len(), 4)
            );
            let mut query = sqlx::query(AssertSqlSafe(sql));
            for (spender, start, used) in some {
                query = query.bind(spender.key()).bind(start.0).bind(stored(used.up)).bind(stored(used.down));
            }
            query.execute(&mut *transaction).await?;
        }
        Ok(transaction.commit().await?)
    }

    /// What these users may spend; who has no limit may be left out.
    ///
    /// # Errors
    /// If the store does not answer.
    pub async fn limits_of(&self, users: &[MemberId]) -> Result<BTreeMap<MemberId, Limits>, AccountsError> {
        let keys: Vec<i64> = users.iter().map(|user| user.0).collect();
        Ok(self.limits_of_keys(USERS, &keys).await?.into_iter().map(|(key, limits)| (MemberId(key), limits)).collect())
    }

    /// The limits of those keys of a book.
    pub(super) async fn limits_of_keys(&self, book: Book, keys: &[i64]) -> Result<BTreeMap<i64, Limits>, AccountsError> {
        let mut limits_by_key = BTreeMap::new();
        for some in keys.chunks(ROWS_PER_STATEMENT) {
            let sql = format!("{} WHERE {} IN ({})", book.all_limits(), book.key, parameters(1, some.len()));
            let query = some.iter().fold(sqlx::query_as(AssertSqlSafe(sql)), |query, key| query.bind(*key));
            for (key, limits) in keyed(query.fetch_all(&self.pool).await?)? {
                limits_by_key.insert(key, limits);
            }
        }
        Ok(limits_by_key)
    }

    pub(super) async fn limits(&self, user: MemberId) -> Result<Limits, AccountsError> {
        limits_of_key(&self.pool, Spender::User(user)).await
    }
}

/// What each user may spend.
pub(super) async fn all_limits<'e>(store: impl Executor<'e, Database = Any>) -> Result<BTreeMap<MemberId, Limits>, AccountsError> {
    Ok(limits_by_key(store, USERS).await?.into_iter().map(|(key, limits)| (MemberId(key), limits)).collect())
}

/// All limits of a book, by its key.
pub(super) async fn limits_by_key<'e>(
    store: impl Executor<'e, Database = Any>,
    book: Book,
) -> Result<BTreeMap<i64, Limits>, AccountsError> {
    keyed(sqlx::query_as(AssertSqlSafe(book.all_limits())).fetch_all(store).await?)
}

fn keyed(rows: Vec<KeyedRow>) -> Result<BTreeMap<i64, Limits>, AccountsError> {
    let keyed = |(key, a, b, c, d, e, f, g, h, i, j): KeyedRow| Ok((key, limits((a, b, c, d, e, f, g, h, i, j))?));
    rows.into_iter().map(keyed).collect()
}

/// What one may spend; no row is no limits.
pub(super) async fn limits_of_key<'e>(store: impl Executor<'e, Database = Any>, spender: Spender) -> Result<Limits, AccountsError> {
    let book = spender.book();
    let sql = format!("{} WHERE {} = $1", book.all_limits(), book.key);
    let rows = sqlx::query_as(AssertSqlSafe(sql)).bind(spender.key()).fetch_all(store).await?;
    Ok(keyed(rows)?.pop_first().map(|(_, limits)| limits).unwrap_or_default())
}

/// As in [`LimitsRow`].
pub(super) const LIMIT_COLUMNS: &str = "quota_bytes, period, time_zone, counts, throttle_bits_per_second, rate_up_bits_per_second,
                             rate_down_bits_per_second, max_flows";

/// A key and its [`LimitsRow`].
type KeyedRow = (i64, Option<i64>, String, String, String, Option<i64>, Option<i64>, Option<i64>, Option<i64>, Option<i64>, Option<i64>);

/// Quota, period, zone, what it counts, rate beyond it, rate up, rate down, flows, which part is earned, the most that is.
type LimitsRow = (Option<i64>, String, String, String, Option<i64>, Option<i64>, Option<i64>, Option<i64>, Option<i64>, Option<i64>);

fn limits(
    (quota, length, zone, counts, throttle, rate_up, rate_down, max_flows, earn, earn_at_most): LimitsRow,
) -> Result<Limits, AccountsError> {
    let rate = |bits: Option<i64>| bits.map(number).transpose().map(|bits| bits.map(|bits_per_second| Rate { bits_per_second }));
    let quota = match quota {
        Some(bytes) => Some(Quota {
            size: Size { bytes: number(bytes)? },
            counts: parsed(&counts)?,
            period: Period { length: parsed(&length)?, zone: parsed(&zone)? },
            at_limit: rate(throttle)?.map_or(AtLimit::Refuse, AtLimit::Throttle),
            earning: earn.map(|percent| earning(percent, earn_at_most)).transpose()?,
        }),
        None => None,
    };
    Ok(Limits { quota, rate_up: rate(rate_up)?, rate_down: rate(rate_down)?, max_flows: max_flows.map(number).transpose()? })
}

fn earning(percent: i64, at_most: Option<i64>) -> Result<Earning, AccountsError> {
    let percent = Percent::try_from(number::<u64>(percent)?).map_err(|error| AccountsError::Damaged(error.to_string()))?;
    Ok(Earning { percent, at_most: at_most.map(number).transpose()?.map(|bytes| Size { bytes }) })
}

/// A LAN's count of a version that counted by differences may be less than nothing for a moment.
pub(super) fn used_of(up: i64, down: i64) -> Result<Used, AccountsError> {
    Ok(Used { up: number(up.max(0))?, down: number(down.max(0))? })
}

/// What does not fit a column is more than anyone moves.
pub(super) fn stored(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}

/// The places of so many parameters, from the one of that number on.
pub(super) fn parameters(first: usize, count: usize) -> String {
    (first..first + count).map(|number| format!("${number}")).collect::<Vec<_>>().join(", ")
}

/// The places of so many rows of parameters, from the one of that number on.
pub(super) fn tuples(first: usize, rows: usize, columns: usize) -> String {
    let tuple = |row| format!("({})", parameters(first + row * columns, columns));
    (0..rows).map(tuple).collect::<Vec<_>>().join(", ")
}

/// At most six numbers each; SQLite takes 32,766 a statement, and preparing one costs more the longer it is.
pub(super) const ROWS_PER_STATEMENT: usize = 100;
