//! What relays lend, as payload: what users [earn](shared::community::quota::Earning) by.
//!
//! Enters: payload that lines have carried, by the relay and by whose flows they were. Leaves: what each account's users have lent to others in a
//! period of the account's. Always holds: what is sent again is added once; a user's own flows over an own relay, from whichever LAN, are nothing
//! lent; who has earned by a relay keeps that when it becomes another's.

use std::collections::{BTreeMap, HashMap};

use shared::{
    community::{
        member::Name,
        quota::{UnixSeconds, Used},
    },
    ids::LanId,
};
use sqlx::{Any, AssertSqlSafe, Executor, Transaction};

use super::{
    Accounts, AccountsError, MemberId, number, parsed,
    registry::now,
    report::period,
    usage::{ROWS_PER_STATEMENT, stored, tuples, used_of},
};

/// Payload that lines have carried, by the relay's LAN and name, and the account that it was spent from.
pub type Lent = BTreeMap<(LanId, Name, MemberId), Used>;

/// Payload that is to be added once, however often it is sent: by a run of a server, whose numbers grow.
#[derive(Clone, Debug)]
pub struct LentBatch {
    /// Drawn at random at the run's start.
    pub run: i64,
    /// Larger than those before it.
    pub number: i64,
    /// What was lent since.
    pub lent: Lent,
}

impl Accounts {
    /// Adds what was lent to the periods that `time` lies in, all of it or nothing; gives those of the accounts that earn by it.
    ///
    /// # Errors
    /// If the store does not answer, perhaps after it has added it: the same batch may be sent again.
    pub async fn add_lent(&self, batch: &LentBatch, time: UnixSeconds) -> Result<Vec<MemberId>, AccountsError> {
        let (rows, earners) = self.lent_to_others(&batch.lent, time).await?;
        let rows: Vec<((MemberId, UnixSeconds), Used)> = rows.into_iter().collect();
        if rows.is_empty() {
            return Ok(earners);
        }
        let mut transaction = self.write_unnoticed().await?;
        if !is_new(&mut transaction, batch).await? {
            return Ok(earners);
        }
        for some in rows.chunks(ROWS_PER_STATEMENT) {
            let sql = format!(
                "INSERT INTO lent (member_id, period_start, up_bytes, down_bytes) VALUES {} ON CONFLICT (member_id, period_start) DO UPDATE SET
                 up_bytes = lent.up_bytes + excluded.up_bytes, down_bytes = lent.down_bytes + excluded.down_bytes",
                tuples(1, some.len(), 4)
            );
            let mut query = sqlx::query(AssertSqlSafe(sql));
            for ((account, start), lent) in some {
                query = query.bind(account.0).bind(start.0).bind(stored(lent.up)).bind(stored(lent.down));
            }
            query.execute(&mut *transaction).await?;
        }
        transaction.commit().await?;
        Ok(earners)
    }

    /// What was lent by each of these accounts' users in the period that began then, as far as something was.
    ///
    /// # Errors
    /// If the store does not answer.
    pub(crate) async fn lent_in(&self, asked: &[(MemberId, UnixSeconds)]) -> Result<BTreeMap<MemberId, Used>, AccountsError> {
        let mut lent_by_account = BTreeMap::new();
        for some in asked.chunks(ROWS_PER_STATEMENT) {
            lent_by_account.extend(lent_of(&self.pool, some).await?);
        }
        Ok(lent_by_account)
    }

    /// By account and the beginning of its period, in one order, so that no two servers wait for each other; and who earns by it.
    async fn lent_to_others(&self, lent: &Lent, time: UnixSeconds) -> Result<(LentByPeriod, Vec<MemberId>), AccountsError> {
        let mut relays: Vec<(LanId, &Name)> = lent.keys().map(|(lan, relay, _)| (*lan, relay)).collect();
        relays.dedup();
        let mut owner_by_relay: HashMap<(LanId, Name), (MemberId, UnixSeconds)> = HashMap::new();
        for some in relays.chunks(ROWS_PER_STATEMENT) {
            owner_by_relay.extend(self.owners(some).await?);
        }
        let accounts: Vec<MemberId> = owner_by_relay.values().map(|(account, _)| *account).collect();
        let limits_by_account = self.limits_of(&accounts).await?;
        let mut lent_by_account = LentByPeriod::new();
        for ((lan, relay, spender), bytes) in lent {
            let Some((account, since)) = owner_by_relay.get(&(*lan, relay.clone())) else { continue };
            if account == spender {
                continue;
            }
            let start = period(&limits_by_account.get(account).cloned().unwrap_or_default()).span(time, *since).start;
            let sum = lent_by_account.entry((*account, start)).or_default();
            sum.up += bytes.up;
            sum.down += bytes.down;
        }
        let earns = |account: &MemberId| limits_by_account.get(account).and_then(|limits| limits.quota.as_ref()?.earning).is_some();
        let earners = lent_by_account.keys().map(|(account, _)| *account).filter(earns).collect();
        Ok((lent_by_account, earners))
    }

    /// The account of each relay's owner, and since when its periods are counted; a relay of nobody's is left out.
    async fn owners(&self, relays: &[(LanId, &Name)]) -> Result<Vec<((LanId, Name), (MemberId, UnixSeconds))>, AccountsError> {
        let sql = format!(
            "SELECT l.lan_id, m.name, a.member_id, a.created_at
             FROM members m JOIN lans l ON l.lan_key = m.lan_key JOIN members o ON o.member_id = m.owner_id
             JOIN members a ON a.member_id = coalesce(o.account_of, o.member_id)
             WHERE m.role = 'relay' AND m.removed_at IS NULL AND l.removed_at IS NULL AND o.removed_at IS NULL
             AND (l.lan_id, m.name) IN (VALUES {})",
            tuples(1, relays.len(), 2)
        );
        let mut query = sqlx::query_as(AssertSqlSafe(sql));
        for (lan, relay) in relays {
            query = query.bind(i64::from(lan.0)).bind(relay.as_str());
        }
        let rows: Vec<(i64, String, i64, i64)> = query.fetch_all(&self.pool).await?;
        let owner = |(lan, relay, account, since): (i64, String, i64, i64)| {
            Ok(((LanId(number(lan)?), parsed(&relay)?), (MemberId(account), UnixSeconds(since))))
        };
        rows.into_iter().map(owner).collect()
    }
}

type LentByPeriod = BTreeMap<(MemberId, UnixSeconds), Used>;

/// As [`Accounts::lent_in`], of no more than a statement takes.
pub(super) async fn lent_of<'e>(
    store: impl Executor<'e, Database = Any>,
    asked: &[(MemberId, UnixSeconds)],
) -> Result<BTreeMap<MemberId, Used>, AccountsError> {
    let sql = format!(
        "SELECT member_id, up_bytes, down_bytes FROM lent WHERE (member_id, period_start) IN (VALUES {})",
        tuples(1, asked.len(), 2)
    );
    let mut query = sqlx::query_as(AssertSqlSafe(sql));
    for (account, start) in asked {
        query = query.bind(account.0).bind(start.0);
    }
    let rows: Vec<(i64, i64, i64)> = query.fetch_all(store).await?;
    rows.into_iter().map(|(account, up, down)| Ok((MemberId(account), used_of(up, down)?))).collect()
}

/// Notes that the batch is added now; whether it has not been before.
async fn is_new(transaction: &mut Transaction<'static, Any>, batch: &LentBatch) -> Result<bool, AccountsError> {
    let noted = sqlx::query(
        "INSERT INTO lent_runs (run_id, number, added_at) VALUES ($1, $2, $3)
         ON CONFLICT (run_id) DO UPDATE SET number = excluded.number, added_at = excluded.added_at WHERE lent_runs.number < excluded.number",
    )
    .bind(batch.run)
    .bind(batch.number)
    .bind(now())
    .execute(&mut **transaction)
    .await?;
    sqlx::query("DELETE FROM lent_runs WHERE added_at < $1").bind(now() - RUNS_KEPT_SECONDS).execute(&mut **transaction).await?;
    Ok(noted.rows_affected() > 0)
}

/// Far longer than a server tries to send a batch again.
const RUNS_KEPT_SECONDS: i64 = 30 * 24 * 60 * 60;

#[cfg(test)]
mod tests {
    use shared::{
        community::quota::{Earning, Length, Limits, Period, Quota},
        units::Size,
    };

    use super::*;
    use crate::accounts::testing;

    #[tokio::test]
    async fn what_own_relays_carry_for_others_is_added_once_and_earned_by() {
        let (registrar, _scratch) = testing::registrar().await;
        let (elm, oak, ann, bob, pc) = (name("elm"), name("oak"), name("ann"), name("bob"), name("ann-pc"));
        registrar.add_lan(&oak, Some(LanId(16)), None).await.expect("a LAN");
        for (lan, user) in [(&elm, &ann), (&elm, &bob), (&oak, &ann)] {
            registrar.add_user(lan, user, &Limits::default()).await.expect("a user");
        }
        let accounts = registrar.accounts();
        accounts.share_account(&elm, &ann, (&oak, &ann)).await.expect("users");
        for relay in [&pc, &name("box")] {
            registrar.add_relay(&elm, relay).await.expect("a relay");
        }
        accounts.set_owner(&elm, &pc, Some(&ann)).await.expect("a relay and a user");
        let (anns, bobs) = (accounts.user(&elm, &ann).await.expect("ann").account, accounts.user(&elm, &bob).await.expect("bob").account);
        assert_eq!(anns, accounts.user(&oak, &ann).await.expect("ann").id);
        accounts.set_limits(anns, &earning(1000, 50, Some(150))).await.expect("an account");

        let lent = |bytes: u64| {
            let used = Used { up: bytes, down: bytes };
            let relay = |relay: &str, spender| ((LanId(15), name(relay), spender), used);
            Lent::from([relay("ann-pc", bobs), relay("ann-pc", anns), relay("box", bobs), relay("gone", bobs)])
        };
        let earned = async |time| {
            let report = accounts.user_report(&elm, &ann, time).await.expect("ann");
            (report.earned_bytes, report.used_percent)
        };
        assert_eq!(earned(NOVEMBER).await, (Some(0), Some(0)));
        let first = LentBatch { run: 7, number: 1, lent: lent(100) };
        for _ in 0..3 {
            accounts.add_lent(&first, NOVEMBER).await.expect("kept");
        }
        assert_eq!(earned(NOVEMBER).await.0, Some(100), "half of what was carried for bob, up and down, once");
        accounts.add_lent(&LentBatch { run: 8, number: 1, lent: lent(20) }, NOVEMBER).await.expect("kept");
        accounts.add_lent(&LentBatch { run: 7, number: 2, lent: lent(3) }, DECEMBER).await.expect("kept");
        assert_eq!((earned(NOVEMBER).await.0, earned(DECEMBER).await.0), (Some(120), Some(3)), "each period its own");
        accounts.add_lent(&LentBatch { run: 7, number: 3, lent: lent(900) }, NOVEMBER).await.expect("kept");
        assert_eq!(earned(NOVEMBER).await.0, Some(150), "no more than may be");

        accounts.keep_used(&[(crate::accounts::Spender::User(anns), span(NOVEMBER), Used { up: 0, down: 575 })]).await.expect("kept");
        assert_eq!(earned(NOVEMBER).await.1, Some(50), "of 1,150");
        let all = accounts.users(&crate::accounts::parts::Members::after(None, None), NOVEMBER).await.expect("users").items;
        let listed: Vec<_> = all.iter().map(|user| (user.name.as_str(), user.earned_bytes)).collect();
        assert_eq!(listed, [("ann", Some(150)), ("bob", None), ("ann", Some(150))]);

        accounts.set_owner(&elm, &pc, Some(&bob)).await.expect("a relay and a user");
        accounts.add_lent(&LentBatch { run: 7, number: 4, lent: lent(50) }, DECEMBER).await.expect("kept");
        assert_eq!(earned(DECEMBER).await.0, Some(3), "bob's relay now");
        assert_eq!(accounts.lent_in(&[(bobs, span(DECEMBER))]).await.expect("a sum")[&bobs], Used { up: 50, down: 50 });
    }

    #[tokio::test]
    async fn what_is_earned_goes_by_the_quota_s_own_period() {
        let (registrar, _scratch) = testing::registrar().await;
        let (elm, ann, bob, pc) = (name("elm"), name("ann"), name("bob"), name("ann-pc"));
        let mut limits = earning(1000, 100, None);
        let zone = "Pacific/Auckland".parse().expect("a zone");
        limits.quota.as_mut().expect("a quota").period = Period { length: Length::Month { first_day: 15 }, zone };
        registrar.add_user(&elm, &ann, &limits).await.expect("a user");
        registrar.add_user(&elm, &bob, &Limits::default()).await.expect("a user");
        registrar.add_relay(&elm, &pc).await.expect("a relay");
        let accounts = registrar.accounts();
        accounts.set_owner(&elm, &pc, Some(&ann)).await.expect("a relay and a user");
        let bobs = accounts.user(&elm, &bob).await.expect("bob").account;
        let lent = Lent::from([((LanId(15), pc.clone(), bobs), Used { up: 0, down: 40 })]);
        accounts.add_lent(&LentBatch { run: 1, number: 1, lent }, NOVEMBER).await.expect("kept");
        let report = async |time| accounts.user_report(&elm, &ann, time).await.expect("ann");
        let ends = UnixSeconds(report(NOVEMBER).await.resets_at);
        assert_eq!(report(UnixSeconds(ends.0 - 1)).await.earned_bytes, Some(40));
        assert_eq!(report(ends).await.earned_bytes, Some(0), "the count begins anew");
    }

    #[tokio::test]
    async fn an_earlier_version_writes_limits_beside_what_is_earned() {
        let (registrar, _scratch) = testing::registrar().await;
        let (elm, ann) = (name("elm"), name("ann"));
        registrar.add_user(&elm, &ann, &earning(1000, 50, Some(150))).await.expect("a user");
        let accounts = registrar.accounts();
        accounts
            .change_unnoticed(
                "INSERT INTO limits (member_id, quota_bytes, period, time_zone, counts, throttle_bits_per_second, rate_up_bits_per_second,
                 rate_down_bits_per_second, max_flows) SELECT member_id, 2000, 'month', 'UTC', 'both', NULL, NULL, NULL, NULL FROM members
                 WHERE role = 'user' ON CONFLICT (member_id) DO UPDATE SET quota_bytes = excluded.quota_bytes, period = excluded.period,
                 time_zone = excluded.time_zone, counts = excluded.counts, throttle_bits_per_second = excluded.throttle_bits_per_second,
                 rate_up_bits_per_second = excluded.rate_up_bits_per_second,
                 rate_down_bits_per_second = excluded.rate_down_bits_per_second, max_flows = excluded.max_flows",
            )
            .await;
        assert_eq!(accounts.user(&elm, &ann).await.expect("ann").limits, earning(2000, 50, Some(150)));
        let ann = accounts.user(&elm, &ann).await.expect("ann").account;
        accounts.set_limits(ann, &Limits::default()).await.expect("an account");
        assert_eq!(accounts.limits(ann).await.expect("limits"), Limits::default());
        let refused = accounts.set_lan_limits(&elm, &earning(1000, 50, None)).await.expect_err("a LAN earns nothing");
        assert!(matches!(refused, AccountsError::LanEarns), "{refused}");
    }

    fn earning(bytes: u64, percent: u64, at_most: Option<u64>) -> Limits {
        let earning = Earning { percent: percent.try_into().expect("a part"), at_most: at_most.map(|bytes| Size { bytes }) };
        Limits { quota: Some(Quota { earning: Some(earning), ..Quota::of(Size { bytes }) }), ..Limits::default() }
    }

    fn span(time: UnixSeconds) -> UnixSeconds {
        Period::default().span(time, time).start
    }

    const NOVEMBER: UnixSeconds = UnixSeconds(1_795_507_200);
    const DECEMBER: UnixSeconds = UnixSeconds(1_797_000_000);

    fn name(text: &str) -> Name {
        text.parse().expect("a name")
    }
}
