//! What relays lend, on its way into the store, and what is earned by it, on its way back.
//!
//! Always holds: only what the store has is earned, on every server alike, so that a crash takes nothing back that was spent. It is written each
//! second while somebody earns by it, and else every [`TICKS_UNTIL_ALL_ARE_TOLD`] ticks, for whom earning is switched on within the period: that is
//! what a crash loses.

use std::{
    collections::BTreeSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use shared::community::quota::UnixSeconds;
use tokio::{sync::Notify, time::timeout};

#[cfg(doc)]
use super::TICKS_UNTIL_ALL_ARE_TOLD;
use super::{Keeper, UserAccount, keeping::REPORT_TIME};
use crate::accounts::{
    AccountsError, MemberId,
    lent::{Lent, LentBatch},
};

/// What was lent and is not in the store yet.
pub(super) struct Lending {
    run: i64,
    lent: Mutex<Lent>,
    /// Whether somebody has earned by what was written last.
    is_earned_by: AtomicBool,
    /// Woken when there is more.
    pub(super) added: Notify,
    /// Held while a batch is written.
    sending: tokio::sync::Mutex<Sending>,
}

#[derive(Default)]
struct Sending {
    number: i64,
    /// Perhaps in the store already: it is sent again as it is.
    unsure: Option<LentBatch>,
}

impl Default for Lending {
    fn default() -> Self {
        let run = rand::random_range(1..=i64::MAX);
        let (lent, is_earned_by) = (Mutex::default(), AtomicBool::new(false));
        Self { run, lent, is_earned_by, added: Notify::new(), sending: tokio::sync::Mutex::default() }
    }
}

impl Keeper {
    /// Takes what was lent.
    pub(crate) fn lend(&self, lent: Lent) {
        if lent.is_empty() {
            return;
        }
        let lending = &self.shared.lending;
        let mut all = lending.lent.lock().expect("nothing panics under the lock");
        for (key, bytes) in lent {
            let sum = all.entry(key).or_default();
            sum.up += bytes.up;
            sum.down += bytes.down;
        }
        lending.added.notify_one();
    }

    /// Brings into the store what was lent, if somebody earns, and to accounts here what is earned, by lending here or elsewhere: to those that have
    /// little left. Or all of it, to all.
    pub(super) async fn settle_lent(&self, are_all_told: bool) {
        // A store that does not answer is asked by the counts alone.
        if self.behind().is_some() {
            return;
        }
        let settled = async {
            let users: Vec<_> = self.shared.lock().iter().map(|(id, user)| (*id, user.clone())).collect();
            let does_somebody_earn =
                || self.shared.lending.is_earned_by.load(Ordering::Relaxed) || users.iter().any(|(_, user)| user.earns_in().is_some());
            let earners = if are_all_told || does_somebody_earn() { self.keep_lent().await? } else { BTreeSet::new() };
            let is_told =
                |(id, user): &(MemberId, Arc<UserAccount>)| are_all_told || earners.contains(id) || user.lock().is_beyond_warning();
            self.tell_lent(users.into_iter().filter(is_told)).await
        };
        if let Err(error) = settled.await {
            tracing::debug!(%error, "what relays lend can't be kept or read: trying again");
        }
    }

    /// Brings into the store what was lent; gives the accounts that earn by it.
    ///
    /// # Errors
    /// If the store does not answer; nothing of it is lost.
    pub(crate) async fn keep_lent(&self) -> Result<BTreeSet<MemberId>, AccountsError> {
        let mut earners = BTreeSet::new();
        let lending = &self.shared.lending;
        let mut sending = lending.sending.lock().await;
        // What the store was not sure to have, and what has come since.
        for _ in 0..2 {
            if sending.unsure.is_none() {
                let lent = std::mem::take(&mut *lending.lent.lock().expect("nothing panics under the lock"));
                if lent.is_empty() {
                    break;
                }
                sending.number += 1;
                sending.unsure = Some(LentBatch { run: lending.run, number: sending.number, lent });
            }
            if let Some(batch) = &sending.unsure {
                earners.extend(in_time(self.shared.accounts.add_lent(batch, self.time())).await?);
                lending.is_earned_by.store(!earners.is_empty(), Ordering::Relaxed);
            }
            sending.unsure = None;
        }
        Ok(earners)
    }

    /// Tells those of these accounts that earn what was lent, as the store knows it.
    pub(super) async fn tell_lent(&self, users: impl Iterator<Item = (MemberId, Arc<UserAccount>)>) -> Result<(), AccountsError> {
        let earner = |(id, user): (MemberId, Arc<UserAccount>)| Some((id, user.earns_in()?, user));
        let earners: Vec<(MemberId, UnixSeconds, Arc<UserAccount>)> = users.filter_map(earner).collect();
        if earners.is_empty() {
            return Ok(());
        }
        let asked: Vec<(MemberId, UnixSeconds)> = earners.iter().map(|(id, period, _)| (*id, *period)).collect();
        let lent_by_user = in_time(self.shared.accounts.lent_in(&asked)).await?;
        for (id, period, user) in earners {
            user.lock().set_lent(Instant::now(), period, lent_by_user.get(&id).copied().unwrap_or_default());
        }
        Ok(())
    }
}

async fn in_time<T>(asking: impl Future<Output = Result<T, AccountsError>>) -> Result<T, AccountsError> {
    timeout(REPORT_TIME, asking).await.unwrap_or(Err(AccountsError::Database(sqlx::Error::PoolTimedOut)))
}

#[cfg(test)]
mod tests {
    use shared::{
        community::quota::{Earning, Quota, Refused, Used, Way},
        ids::LanId,
        units::Size,
    };

    use super::{
        super::tests::{FLOW, name, node, take, until, user},
        *,
    };
    use crate::{
        accounts::{Accounts, Limits, Member, testing},
        provision::Registrar,
    };

    #[tokio::test]
    async fn what_relays_lend_is_spent_once_the_store_has_it() {
        let (registrar, _scratch) = testing::registrar().await;
        let (ann, bob) = lender_and_other(&registrar, 1000).await;
        let keeper = Keeper::new(registrar.accounts().clone(), None, None);
        let account = keeper.account(&ann).await.expect("an account");
        assert_eq!((take(&account, 9000), take(&account, 9000)), (Some(1000), None));
        keeper.lend(carried_for(&bob, 600));
        assert_eq!(take(&account, 9000), None, "a crash would lose it");
        keeper.settle_lent(false).await;
        assert_eq!((take(&account, 9000), take(&account, 9000)), (Some(300), None), "half of it");
        keeper.lend(carried_for(&ann, 5000));
        keeper.settle_lent(false).await;
        assert_eq!(take(&account, 9000), None, "nobody lends to oneself");
        assert_eq!((account.report().quota_bytes, account.report().earned_bytes), (Some(1000), Some(300)));
        keeper.keep().await;

        keeper.lend(carried_for(&bob, 100));
        drop((keeper, account));
        let keeper = Keeper::new(registrar.accounts().clone(), None, None);
        let account = keeper.account(&ann).await.expect("an account");
        assert_eq!(take(&account, 9000), None, "what was earned and what was used outlive the crash");
        keeper.lend(carried_for(&bob, 80));
        keeper.settle_lent(false).await;
        assert_eq!((take(&account, 9000), take(&account, 9000)), (Some(40), None));
    }

    #[tokio::test]
    async fn sessions_that_are_open_spend_what_is_lent_anywhere() {
        let (registrar, _scratch) = testing::registrar().await;
        let (ann, bob) = lender_and_other(&registrar, 1000).await;
        let keeper = Keeper::new(registrar.accounts().clone(), None, None);
        let spending = keeper.spending(&ann).await.expect("an account");
        assert_eq!(take(&spending.user, 9000), Some(1000));
        assert!(spending.open_flow().is_err());
        let running = tokio::spawn(keeper.clone().run());
        keeper.lend(carried_for(&bob, 600));
        until("what was lent here is earned", || spending.open_flow().is_ok()).await;
        assert_eq!((take(&spending.user, 9000), take(&spending.user, 9000)), (Some(300), None));
        let batch = LentBatch { run: 1, number: 1, lent: carried_for(&bob, 1400) };
        registrar.accounts().add_lent(&batch, keeper.time()).await.expect("as another server does");
        until("what was lent there is earned", || spending.user.report().earned_bytes == Some(1000)).await;
        assert_eq!((take(&spending.user, 9000), take(&spending.user, 9000)), (Some(700), None));
        let refused = spending.open_flow().err().expect("used up").to_string();
        assert!(refused.contains("the 2.0 kB that you may use, 1.0 kB of them earned by lending, are used up"), "{refused}");
        running.abort();
    }

    #[tokio::test]
    async fn what_nobody_earns_by_yet_is_written_now_and_then_and_earned_by_later() {
        let (registrar, _scratch) = testing::registrar().await;
        let (ann, bob) = lender_and_other(&registrar, 1000).await;
        let (accounts, earning) = (registrar.accounts(), ann.limits.clone());
        accounts.set_limits(ann.account, &Limits::default()).await.expect("an account");
        let keeper = Keeper::new(accounts.clone(), None, None);
        let account = keeper.account(&Member { limits: Limits::default(), ..ann.clone() }).await.expect("an account");
        let period = account.lock().span().start;
        let kept = async || accounts.lent_in(&[(ann.account, period)]).await.expect("a sum").remove(&ann.account);
        keeper.lend(carried_for(&bob, 600));
        keeper.settle_lent(false).await;
        assert_eq!(kept().await, None, "nobody earns");
        keeper.settle_lent(true).await;
        assert_eq!(kept().await, Some(Used { up: 0, down: 600 }));
        keeper.lend(carried_for(&bob, 200));
        keeper.settle_lent(false).await;
        assert_eq!(kept().await, Some(Used { up: 0, down: 600 }), "still nobody");

        accounts.set_limits(ann.account, &earning).await.expect("an account");
        account.set_limits(earning);
        keeper.settle_lent(false).await;
        assert_eq!((take(&account, 9000), take(&account, 9000)), (Some(1400), None), "the quota and half of all that was lent");
        // Who earns need not be here.
        drop(account);
        keeper.shared.lock().clear();
        keeper.lend(carried_for(&bob, 10));
        keeper.settle_lent(false).await;
        assert_eq!(earned(accounts, &ann, &keeper).await, 405);
    }

    #[tokio::test]
    async fn what_the_store_may_have_taken_is_sent_again_as_it_is() {
        let (registrar, _scratch) = testing::registrar().await;
        let (_ann, bob) = lender_and_other(&registrar, 1000).await;
        let keeper = Keeper::new(registrar.accounts().clone(), None, None);
        registrar.accounts().close().await;
        for bytes in [100, 50, 7] {
            keeper.lend(carried_for(&bob, bytes));
            keeper.keep_lent().await.expect_err("no store");
        }
        let unsure = keeper.shared.lending.sending.lock().await.unsure.clone().expect("a batch");
        assert_eq!((unsure.number, unsure.lent), (1, carried_for(&bob, 100)));
        assert_eq!(*keeper.shared.lending.lent.lock().expect("no panic"), carried_for(&bob, 57), "the next batch");
    }

    #[tokio::test]
    async fn nodes_spend_no_more_than_the_quota_and_what_the_store_knows_to_be_earned() {
        let (registrar, _scratch) = testing::registrar().await;
        let accounts = registrar.accounts();
        if !accounts.takes_several_nodes() {
            println!("skipped: nodes need PostgreSQL; run .ci/with-postgres cargo test -p reconst --lib");
            return;
        }
        let quota = 2_000_000;
        let (ann, bob) = lender_and_other(&registrar, quota).await;
        let nodes = [node(&registrar, "main").await, node(&registrar, "node2").await, node(&registrar, "node3").await];
        for node in &nodes {
            node.view().wait_for(|_| !node.is_alone()).await.expect("several nodes");
        }
        let keepers = nodes.map(|node| Keeper::of_node(accounts.clone(), None, None, Some(node)));
        let mut spenders = Vec::new();
        for keeper in &keepers {
            spenders.push((keeper, keeper.account(&ann).await.expect("an account"), 0_u64));
        }
        let (mut lent, mut used_up, mut rounds_beyond) = (0_u64, 0, 0);
        for round in 0..10_000 {
            if lent >= LENT && used_up == keepers.len() {
                break;
            }
            let keeper = |number: usize| &keepers[(round + number) % keepers.len()];
            if lent < LENT {
                let bytes = 2 * (1 + round as u64 * 7919 % 15_000);
                keeper(0).lend(carried_for(&bob, bytes));
                lent += bytes;
            }
            used_up = 0;
            for (keeper, account, moved) in &mut spenders {
                let taken = account.lock().take(Instant::now(), account.time(), Way::Down, FLOW, 100_000);
                match taken {
                    Ok(granted) => *moved += granted.bytes,
                    Err(Refused::NotYet) => keeper.keep_those(false).await,
                    Err(_) => used_up += 1,
                }
            }
            let moved: u64 = spenders.iter().map(|(.., moved)| moved).sum();
            assert!(moved <= quota + earned(accounts, &ann, keeper(0)).await, "{moved} in round {round}");
            rounds_beyond += u64::from(moved > quota && lent < LENT);
            // One brings what was lent while another asks for a lease, and the third does both.
            tokio::join!(keeper(0).settle_lent(false), keeper(1).keep_those(true), async {
                keeper(2).settle_lent(true).await;
                keeper(2).keep_those(true).await;
            });
        }
        assert!(rounds_beyond > 0, "what is earned is spent while more is lent");
        assert!(spenders.iter().all(|(.., moved)| *moved > quota / 8), "each has a part");
        let moved: u64 = spenders.iter().map(|(.., moved)| moved).sum();
        assert_eq!(moved, quota + lent / 2, "all of it is used");
        assert_eq!(earned(accounts, &ann, &keepers[0]).await, lent / 2);
    }

    /// More than the quota.
    const LENT: u64 = 5_000_000;

    async fn earned(accounts: &Accounts, user: &Member, keeper: &Keeper) -> u64 {
        let report = accounts.user_report(&user.lan_name, &user.identity.name, keeper.time()).await.expect("a user");
        report.earned_bytes.expect("it earns")
    }

    /// Payload that ann's relay has carried for a user.
    fn carried_for(user: &Member, bytes: u64) -> Lent {
        Lent::from([((LanId(15), name("ann-pc"), user.account), Used { up: 0, down: bytes })])
    }

    /// ann, who earns half of what her relay carries, and bob.
    async fn lender_and_other(registrar: &Registrar, quota: u64) -> (Member, Member) {
        let earning = Some(Earning { percent: 50.try_into().expect("a part"), at_most: None });
        let limits = Limits { quota: Some(Quota { earning, ..Quota::of(Size { bytes: quota }) }), ..Limits::default() };
        let (ann, bob) = (user(registrar, "ann", &limits).await, user(registrar, "bob", &Limits::default()).await);
        registrar.add_relay(&name("elm"), &name("ann-pc")).await.expect("a relay");
        registrar.accounts().set_owner(&name("elm"), &name("ann-pc"), Some(&name("ann"))).await.expect("a relay and a user");
        (ann, bob)
    }
}
