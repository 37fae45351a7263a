//! The counts on their way into the store.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Keeper, UserAccount, spending::LanAccount};
use crate::accounts::{AccountsError, Count, MemberId, lan_accounts::LanCount, leases::UsageReport};

impl Keeper {
    /// Keeps the counts that have changed and lets go of the accounts of users who have left.
    pub async fn keep(&self) {
        if self.shared.nodes.is_some() {
            self.keep_shared(true).await;
            self.keep_lans().await;
            self.let_lans_go().await;
            return;
        }
        let shared = &self.shared;
        let users: Vec<(MemberId, Arc<UserAccount>)> = shared.lock().iter().map(|(id, user)| (*id, user.clone())).collect();
        let mut counts: Vec<Count> = Vec::new();
        for (id, user) in &users {
            counts.extend(user.lock().poll_changes().into_iter().map(|(period, used)| (*id, period, used)));
        }
        if !counts.is_empty() {
            let kept = shared.accounts.keep_used(&counts).await;
            if kept.is_err() {
                let user_by_id: HashMap<_, _> = users.iter().map(|(id, user)| (*id, user)).collect();
                counts.iter().for_each(|(id, period, _)| user_by_id[id].lock().on_not_kept([*period]));
            }
            self.note_whether_kept(kept);
        }
        drop(users);
        self.keep_lans().await;
        self.let_lans_go().await;
        let _loading = shared.loading.lock().await;
        shared.lock().retain(|_, user| Arc::strong_count(user) > 1 || user.lock().has_changes());
    }

    async fn let_lans_go(&self) {
        let _loading = self.shared.loading.lock().await;
        self.shared.lock_lans().retain(|_, lan| Arc::strong_count(lan) > 1 || lan.has_changes());
    }

    async fn keep_lans(&self) {
        let lans: Vec<Arc<LanAccount>> = self.shared.lock_lans().values().cloned().collect();
        let changes: Vec<_> = lans.iter().flat_map(|lan| lan.poll_changes().into_iter().map(move |change| (lan, change))).collect();
        if changes.is_empty() {
            return;
        }
        let counts: Vec<LanCount> = changes.iter().map(|(_, (count, _))| *count).collect();
        let kept = self.shared.accounts.add_lan_used(&counts).await;
        for (lan, (count, used)) in &changes {
            match &kept {
                Ok(()) => lan.on_kept(count.period, *used),
                Err(_) => lan.on_not_kept(count.period),
            }
        }
        self.note_whether_kept(kept);
    }

    /// As [`Keeper::keep`] where several servers share the store: of all accounts, or only those whose leases run low.
    pub(super) async fn keep_shared(&self, is_of_all: bool) {
        let shared = &self.shared;
        let Some(nodes) = &shared.nodes else { return };
        let users: Vec<(MemberId, Arc<UserAccount>)> = shared.lock().iter().map(|(id, user)| (*id, user.clone())).collect();
        let reports: Vec<UsageReport> = users.iter().filter_map(|(id, user)| user.usage_report(*id, is_of_all)).collect();
        if !reports.is_empty() {
            let user_by_id: HashMap<_, _> = users.iter().map(|(id, user)| (*id, user)).collect();
            let kept =
                match tokio::time::timeout(REPORT_TIME, shared.accounts.report_usage(nodes.registration(), &reports, nodes.is_alone()))
                    .await
                {
                    Ok(kept) => kept,
                    Err(_) => Err(AccountsError::Database(sqlx::Error::PoolTimedOut)),
                };
            match &kept {
                Ok(leases) => leases.iter().for_each(|(id, lease)| user_by_id[id].lock().set_lease(Instant::now(), *lease)),
                Err(_) => {
                    for report in &reports {
                        user_by_id[&report.user].lock().on_not_kept(report.counts.iter().map(|(period, _)| *period));
                    }
                }
            }
            self.note_whether_kept(kept.map(drop));
        }
        drop(users);
        if is_of_all {
            let _loading = shared.loading.lock().await;
            let is_in_use = |user: &Arc<UserAccount>| Arc::strong_count(user) > 1 || user.lock().has_changes() || user.lock().leased() > 0;
            shared.lock().retain(|_, user| is_in_use(user));
        }
    }

    fn note_whether_kept(&self, kept: Result<(), AccountsError>) {
        let mut behind_since = self.shared.behind_since.lock().expect("nothing panics under the lock");
        match kept {
            Ok(()) if behind_since.take().is_some() => tracing::info!("the member database answers again: all counts are kept"),
            Ok(()) => {}
            Err(error) if behind_since.is_none() => {
                tracing::error!(%error, "counts can't be kept: quotas go on from what is known, and what a crash loses grows");
                *behind_since = Some(Instant::now());
            }
            Err(_) => {}
        }
    }
}

/// A store that takes longer does not answer.
const REPORT_TIME: Duration = Duration::from_secs(5);
