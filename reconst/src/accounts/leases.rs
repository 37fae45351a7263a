//! Leases: how nodes spend one quota between them, a user's or a LAN's.
//!
//! Enters: what a node has counted for each, what of it is under way still, and whether it wants more. Leaves: what all others have counted, and a lease: how much the
//! node may count before it asks again. Always holds, for a quota that refuses: what all nodes have reported and all leases that stand add up
//! to no more than the quota and what is earned as far as the store knew when it gave the last of them. Reports are absolute and each node
//! writes its own rows alone, so that one whose answer was lost may be repeated.
//!
//! A lease stands as long as its node is heard, and [`LEASE_STANDS`] beyond: then the node is taken for dead, and what it had not reported,
//! a tick's worth, is the user's or the LAN's. A node that is cut off from the store and not dead goes on with its leases, and never beyond them.

use std::{
    collections::{BTreeMap, HashMap},
    time::Duration,
};

use shared::community::quota::{Lease, Quota, UnixSeconds, Used};
use sqlx::{Any, AssertSqlSafe, Transaction};

use super::{
    Accounts, AccountsError, MemberId, Spender,
    book::Book,
    lent::lent_of,
    nodes::{CLOCK_MS, Registration, millis},
    number,
    usage::{ROWS_PER_STATEMENT, parameters, stored, tuples, used_of},
};

/// What a node has counted, and what it wants.
#[derive(Clone, Debug)]
pub struct UsageReport {
    /// For whom.
    pub spender: Spender,
    /// The counts that have changed.
    pub counts: Vec<(UnixSeconds, Used)>,
    /// What it wants to know, of one with a quota.
    pub asks: Option<Asks>,
}

/// What a node asks of a quota.
#[derive(Clone, Debug)]
pub struct Asks {
    /// The period that is counted now.
    pub period: UnixSeconds,
    /// What the node has granted in it.
    pub counted: Used,
    /// What of that is under way still: it is leased, and not reported as used.
    pub undelivered: Used,
    /// The quota.
    pub quota: Quota,
    /// Whether it wants a lease; else it gives up the one that it has.
    pub wants_lease: bool,
}

/// What nodes have counted of a period, this one apart.
#[derive(Clone, Copy, Default)]
struct Elsewhere {
    used: Used,
    leased: u64,
}

impl Asks {
    fn delivered(&self) -> Used {
        self.counted.less(self.undelivered)
    }
}

impl Accounts {
    /// What a user or a LAN has used in the latest periods: counted by this node, and by all others.
    ///
    /// # Errors
    /// If the store does not answer.
    pub(crate) async fn used_here_and_elsewhere(
        &self,
        node: Registration,
        spender: Spender,
    ) -> Result<(BTreeMap<UnixSeconds, Used>, BTreeMap<UnixSeconds, Used>), AccountsError> {
        let mut all = self.used(spender).await?;
        let Book { key, node_usage, .. } = spender.book();
        let sql = format!(
            "SELECT period_start, up_bytes, down_bytes FROM {node_usage} WHERE {key} = $1 AND node_key = $2
             ORDER BY period_start DESC LIMIT 4"
        );
        let rows: Vec<(i64, i64, i64)> =
            sqlx::query_as(AssertSqlSafe(sql)).bind(spender.key()).bind(node.key.0).fetch_all(&self.pool).await?;
        let mut here = BTreeMap::new();
        for (start, up, down) in rows {
            let used = Used { up: number(up)?, down: number(down)? };
            if let Some(all) = all.get_mut(&UnixSeconds(start)) {
                *all = Used { up: all.up.saturating_sub(used.up), down: all.down.saturating_sub(used.down) };
            }
            here.insert(UnixSeconds(start), used);
        }
        Ok((here, all))
    }

    /// Keeps what a node has counted and gives leases, some hundred users or LANs a transaction. A node that `is_alone` gets all that is left.
    ///
    /// # Errors
    /// If the node's run is over, or the store does not answer.
    pub(crate) async fn report_usage(
        &self,
        node: Registration,
        reports: &[UsageReport],
        is_alone: bool,
    ) -> Result<HashMap<Spender, Lease>, AccountsError> {
        let (users, lans): (Vec<_>, Vec<_>) = reports.iter().partition(|report| matches!(report.spender, Spender::User(_)));
        let mut leases = HashMap::new();
        for some in users.chunks(REPORTS_PER_TRANSACTION).chain(lans.chunks(REPORTS_PER_TRANSACTION)) {
            let mut transaction = self.write_unnoticed().await?;
            // Not in the way of the node's beat; in the way of its removal.
            let stands = "SELECT 1 FROM nodes WHERE node_key = $1 AND epoch = $2 AND removed_at IS NULL FOR KEY SHARE";
            let stands: Option<i32> =
                sqlx::query_scalar(stands).bind(node.key.0).bind(node.epoch).fetch_optional(&mut *transaction).await?;
            if stands.is_none() {
                return Err(AccountsError::NodeOver);
            }
            let book = some[0].spender.book();
            let given = give_leases(&mut transaction, book, node, some, is_alone).await?;
            write_rows(&mut transaction, book, node, some, &given).await?;
            transaction.commit().await?;
            leases.extend(given);
        }
        Ok(leases)
    }
}

async fn give_leases(
    transaction: &mut Transaction<'static, Any>,
    book: Book,
    node: Registration,
    reports: &[&UsageReport],
    is_alone: bool,
) -> Result<HashMap<Spender, Lease>, AccountsError> {
    let asked: Vec<(Spender, &Asks)> = reports.iter().filter_map(|report| Some((report.spender, report.asks.as_ref()?))).collect();
    if asked.is_empty() {
        return Ok(HashMap::new());
    }
    // In one order, so that no two nodes wait for each other.
    let Book { key, limits, .. } = book;
    let lock = format!("SELECT {key} FROM {limits} WHERE {key} IN ({}) ORDER BY {key} FOR UPDATE", parameters(1, asked.len()));
    let mut query = sqlx::query(AssertSqlSafe(lock));
    for (spender, _) in &asked {
        query = query.bind(spender.key());
    }
    query.execute(&mut **transaction).await?;
    let elsewhere_by_spender = elsewhere(transaction, book, node, &asked).await?;
    let lent_by_user = lent(transaction, &asked).await?;
    let lease = |(spender, asks): &(Spender, &Asks)| {
        let elsewhere = elsewhere_by_spender.get(spender).copied().unwrap_or_default();
        let all = Used { up: asks.counted.up + elsewhere.used.up, down: asks.counted.down + elsewhere.used.down };
        let lent = lent_by_user.get(spender).copied().unwrap_or_default();
        let left = asks.quota.allowance(lent).saturating_sub(asks.quota.counted(all)).saturating_sub(elsewhere.leased);
        let bytes = match (asks.wants_lease, is_alone) {
            (false, _) => 0,
            (true, true) => left,
            (true, false) => left.min((left / PARTS).max(LEASE_MIN)),
        };
        let is_rest = asks.wants_lease && bytes == left && elsewhere.leased == 0;
        (*spender, Lease { period: asks.period, counted: asks.counted, elsewhere: elsewhere.used, bytes, is_rest, lent })
    };
    Ok(asked.iter().map(lease).collect())
}

/// What all but this node have counted and leased of the periods asked for.
async fn elsewhere(
    transaction: &mut Transaction<'static, Any>,
    book: Book,
    node: Registration,
    asked: &[(Spender, &Asks)],
) -> Result<HashMap<Spender, Elsewhere>, AccountsError> {
    let Book { key, usage, node_usage, .. } = book;
    let pairs = tuples(3, asked.len(), 2);
    let sql = format!(
        "SELECT u.{key}, u.up_bytes, u.down_bytes, CAST(0 AS BIGINT) FROM {usage} u WHERE (u.{key}, u.period_start) IN ({pairs})
         UNION ALL
         SELECT u.{key}, u.up_bytes, u.down_bytes,
         CASE WHEN n.removed_at IS NULL AND {CLOCK_MS} - n.heard_ms < $2 THEN u.leased_bytes ELSE 0 END
         FROM {node_usage} u JOIN nodes n ON n.node_key = u.node_key WHERE u.node_key <> $1 AND (u.{key}, u.period_start) IN ({pairs})"
    );
    let mut query = sqlx::query_as(AssertSqlSafe(sql)).bind(node.key.0).bind(millis(LEASE_STANDS));
    for (spender, asks) in asked {
        query = query.bind(spender.key()).bind(asks.period.0);
    }
    let rows: Vec<(i64, i64, i64, i64)> = query.fetch_all(&mut **transaction).await?;
    let mut elsewhere_by_spender: HashMap<Spender, Elsewhere> = HashMap::new();
    for (key, up, down, leased) in rows {
        let sum = elsewhere_by_spender.entry(book.spender(key)).or_default();
        let used = used_of(up, down)?;
        sum.used.up += used.up;
        sum.used.down += used.down;
        sum.leased += number::<u64>(leased)?;
    }
    Ok(elsewhere_by_spender)
}

/// What was lent by the users who earn by it. It only grows, so that what a lease goes by stays earned.
async fn lent(transaction: &mut Transaction<'static, Any>, asked: &[(Spender, &Asks)]) -> Result<HashMap<Spender, Used>, AccountsError> {
    let earner = |(spender, asks): &(Spender, &Asks)| match spender {
        Spender::User(user) if asks.quota.earning.is_some() => Some((*user, asks.period)),
        _ => None,
    };
    let earners: Vec<(MemberId, UnixSeconds)> = asked.iter().filter_map(earner).collect();
    let mut lent_by_user = HashMap::new();
    for some in earners.chunks(ROWS_PER_STATEMENT) {
        lent_by_user.extend(lent_of(&mut **transaction, some).await?.into_iter().map(|(user, lent)| (Spender::User(user), lent)));
    }
    Ok(lent_by_user)
}

async fn write_rows(
    transaction: &mut Transaction<'static, Any>,
    book: Book,
    node: Registration,
    reports: &[&UsageReport],
    leases: &HashMap<Spender, Lease>,
) -> Result<(), AccountsError> {
    let Book { key, node_usage, .. } = book;
    let mut rows: BTreeMap<(Spender, UnixSeconds), (Used, u64)> = BTreeMap::new();
    for report in reports {
        for (period, used) in &report.counts {
            rows.insert((report.spender, *period), (*used, 0));
        }
        if let (Some(asks), Some(lease)) = (&report.asks, leases.get(&report.spender)) {
            let under_way = asks.quota.counted(asks.counted) - asks.quota.counted(asks.delivered());
            rows.insert((report.spender, asks.period), (asks.delivered(), lease.bytes + under_way));
        }
    }
    let rows: Vec<_> = rows.into_iter().collect();
    for some in rows.chunks(ROWS_PER_STATEMENT) {
        let sql = format!(
            "INSERT INTO {node_usage} ({key}, period_start, node_key, up_bytes, down_bytes, leased_bytes) VALUES {}
             ON CONFLICT ({key}, period_start, node_key) DO UPDATE SET
             up_bytes = excluded.up_bytes, down_bytes = excluded.down_bytes, leased_bytes = excluded.leased_bytes",
            tuples(1, some.len(), 6)
        );
        let mut query = sqlx::query(AssertSqlSafe(sql));
        for ((spender, period), (used, leased)) in some {
            query = query.bind(spender.key()).bind(period.0).bind(node.key.0);
            query = query.bind(stored(used.up)).bind(stored(used.down)).bind(stored(*leased));
        }
        query.execute(&mut **transaction).await?;
    }
    Ok(())
}

/// How long a lease counts as used after its node was heard last: four times as long as it takes to take the node for dead, so that one whose
/// database stalls keeps what it has.
pub const LEASE_STANDS: Duration = Duration::from_secs(10);

/// A lease is this part of what is left: all nodes together leave something for one more.
const PARTS: u64 = 8;

/// Less is asked for more often than it is worth: some ten flows' turns.
const LEASE_MIN: u64 = 256 << 10;

/// Rows are locked as long as a transaction takes, some milliseconds with these.
const REPORTS_PER_TRANSACTION: usize = 500;
