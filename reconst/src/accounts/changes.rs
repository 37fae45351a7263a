//! Changes: noticed whatever program makes them, and told to whom they touch.
//!
//! Enters: what each transaction of a command, the API or a member who enrols touches, noted in the store by the number that it makes the
//! revision. Leaves: a [`Change`] for whoever [follows](Changes), who then asks the store about what is touched and nothing else. Always holds: a
//! number without a note, as earlier versions make them, touches everybody; so does what can't be read or is remembered no more. Who begins to
//! follow before asking the store misses nothing.

use std::{
    collections::{BTreeSet, VecDeque},
    sync::Arc,
    time::Duration,
};

use sqlx::{Any, AnyConnection, Transaction};
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use super::{Accounts, AccountsError, MemberId, Spender, lan_accounts::LanKey, migrations};

/// Whom or what a transaction touches.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Touched {
    /// A member: whether it is one, by which certificates, whose account it spends from.
    Member(MemberId),
    /// All members of a LAN: whether they are.
    MembersOf(LanKey),
    /// What may be spent from an account.
    Limits(Spender),
    /// A LAN: whether it is served, and on which port.
    Lan(LanKey),
    /// Nobody who can be here: who is new, what nodes follow by themselves.
    Nobody,
    /// Anybody.
    Everybody,
}

/// What has changed since a look before.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Change {
    touched: BTreeSet<Touched>,
}

/// Follows the changes from some moment on.
#[derive(Clone, Debug)]
pub struct Changes {
    recent: watch::Receiver<Recent>,
    seen: u64,
    /// When to ask again what the store has not answered.
    again_at: Option<Instant>,
}

/// The last changes.
#[derive(Clone, Default, Debug)]
pub(super) struct Recent {
    count: u64,
    last: VecDeque<Arc<Change>>,
}

impl Touched {
    /// As the store has it: a kind and a key.
    fn stored(self) -> (&'static str, i64) {
        match self {
            Self::Member(member) => ("member", member.0),
            Self::MembersOf(lan) => ("lan members", lan.0),
            Self::Limits(Spender::User(user)) => ("user limits", user.0),
            Self::Limits(Spender::Lan(lan)) => ("lan limits", lan.0),
            Self::Lan(lan) => ("lan", lan.0),
            Self::Nobody => ("nobody", 0),
            Self::Everybody => ("everybody", 0),
        }
    }

    fn of_stored(kind: &str, key: i64) -> Self {
        match kind {
            "member" => Self::Member(MemberId(key)),
            "lan members" => Self::MembersOf(LanKey(key)),
            "user limits" => Self::Limits(Spender::User(MemberId(key))),
            "lan limits" => Self::Limits(Spender::Lan(LanKey(key))),
            "lan" => Self::Lan(LanKey(key)),
            "nobody" => Self::Nobody,
            _ => Self::Everybody,
        }
    }
}

impl Change {
    /// A change of whatever there is.
    pub fn of_everything() -> Self {
        Self { touched: BTreeSet::from([Touched::Everybody]) }
    }

    /// Whether nobody is touched.
    pub fn is_empty(&self) -> bool {
        self.touched.is_empty()
    }

    /// Adds another change to this one.
    pub fn add(&mut self, other: &Self) {
        self.touched.extend(&other.touched);
    }

    /// Whether a member of that LAN has to be looked up again.
    pub fn touches_member(&self, member: MemberId, lan: LanKey) -> bool {
        self.names_member(member, lan) || self.touched.contains(&Touched::Everybody)
    }

    /// Whether a member of that LAN is meant, and not only perhaps.
    pub(super) fn names_member(&self, member: MemberId, lan: LanKey) -> bool {
        self.touched.contains(&Touched::Member(member)) || self.touched.contains(&Touched::MembersOf(lan))
    }

    /// Whether somebody may be a member no more.
    pub fn touches_members(&self) -> bool {
        self.touched.iter().any(|touched| matches!(touched, Touched::Member(_) | Touched::MembersOf(_) | Touched::Everybody))
    }

    /// Whether the limits of an account have to be read again.
    pub fn touches_limits(&self, spender: Spender) -> bool {
        self.touched.contains(&Touched::Limits(spender)) || self.touched.contains(&Touched::Everybody)
    }

    /// Whether other LANs may be served now, or by other ports.
    pub fn touches_lans(&self) -> bool {
        self.touched.iter().any(|touched| matches!(touched, Touched::Lan(_) | Touched::Everybody))
    }
}

impl FromIterator<Touched> for Change {
    fn from_iter<I: IntoIterator<Item = Touched>>(touched: I) -> Self {
        Self { touched: touched.into_iter().filter(|touched| *touched != Touched::Nobody).collect() }
    }
}

impl Changes {
    /// The next change, or all that have come since this was asked last.
    pub async fn next(&mut self) -> Arc<Change> {
        if self.recent.changed().await.is_err() {
            // The accounts are gone, and nothing changes any more.
            std::future::pending::<()>().await;
        }
        let recent = self.recent.borrow_and_update();
        let missed = usize::try_from(recent.count - self.seen).unwrap_or(usize::MAX);
        self.seen = recent.count;
        match missed {
            1 => recent.last.back().cloned().unwrap_or_else(|| Arc::new(Change::of_everything())),
            _ if missed > recent.last.len() => Arc::new(Change::of_everything()),
            _ => Arc::new(recent.last.iter().rev().take(missed).flat_map(|change| change.touched.iter().copied()).collect()),
        }
    }

    /// Waits for a change that touches what is asked about. What the store has not answered the last time is due with any, or after a while.
    /// Nothing is lost if the future is dropped.
    pub async fn due(&mut self, is_answered: bool, is_touched: impl Fn(&Change) -> bool) {
        if is_answered {
            while !is_touched(&*self.next().await) {}
        } else {
            let again_at = *self.again_at.get_or_insert_with(|| Instant::now() + ASKED_AGAIN_AFTER);
            let _ = timeout_at(again_at, self.next()).await;
            self.again_at = None;
        }
    }
}

impl Recent {
    fn push(&mut self, change: Change) {
        self.count += 1;
        if self.last.len() >= REMEMBERED_MAX {
            self.last.pop_front();
        }
        self.last.push_back(Arc::new(change));
    }
}

impl Accounts {
    /// Follows what changes from now on, by whatever program, as far as [`Accounts::follow_changes`] notices.
    pub fn changes(&self) -> Changes {
        let mut recent = self.changes.subscribe();
        let seen = recent.borrow_and_update().count;
        Changes { recent, seen, again_at: None }
    }

    /// Notices changes within [`CHANGES_NOTICED_WITHIN`], until a later version has upgraded the store to what this one can't use; what else goes
    /// wrong is logged and tried again. At first, and when the store answers again, all may have changed.
    pub async fn follow_changes(&self) -> AccountsError {
        loop {
            let Err(error) = self.follow_changes_on_one_connection().await;
            if matches!(error, AccountsError::TooOld { .. }) {
                return error;
            }
            tracing::warn!(%error, "the member database does not answer: going on with what is known");
            tokio::time::sleep(CHANGES_NOTICED_WITHIN).await;
        }
    }

    async fn follow_changes_on_one_connection(&self) -> Result<std::convert::Infallible, AccountsError> {
        let mut connection = self.connection().await?;
        let mut known: Option<i64> = None;
        loop {
            migrations::check_needs(&mut connection).await?;
            let now: i64 = sqlx::query_scalar("SELECT number FROM revision").fetch_one(&mut connection).await?;
            if known != Some(now) {
                let change = match known {
                    Some(before) => changed_between(&mut connection, before, now).await?,
                    None => Change::of_everything(),
                };
                known = Some(now);
                self.forget(&change);
                self.changes.send_modify(|recent| recent.push(change));
            }
            tokio::time::sleep(CHANGES_NOTICED_WITHIN).await;
        }
    }

    /// Notes what the transaction touches. It has to be one of [`Accounts::write`].
    pub(super) async fn touch(&self, transaction: &mut Transaction<'static, Any>, touched: Touched) -> Result<(), sqlx::Error> {
        let (kind, key) = touched.stored();
        sqlx::query(
            "INSERT INTO changes (number, kind, subject_key) SELECT number, $1, $2 FROM revision WHERE true ON CONFLICT DO NOTHING",
        )
        .bind(kind)
        .bind(key)
        .execute(&mut **transaction)
        .await?;
        Ok(())
    }
}

/// What was changed by the numbers after `before`, up to `now`.
async fn changed_between(connection: &mut AnyConnection, before: i64, now: i64) -> Result<Change, AccountsError> {
    if !(1..=KEPT).contains(&now.saturating_sub(before)) {
        return Ok(Change::of_everything());
    }
    let sql = "SELECT number, kind, subject_key FROM changes WHERE number > $1 AND number <= $2 ORDER BY number LIMIT $3";
    let rows: Vec<(i64, String, i64)> = sqlx::query_as(sql).bind(before).bind(now).bind(READ_MAX + 1).fetch_all(connection).await?;
    let numbers = rows.iter().map(|row| row.0).collect::<BTreeSet<i64>>().len() as i64;
    if numbers < now - before || rows.len() as i64 > READ_MAX {
        return Ok(Change::of_everything());
    }
    Ok(rows.iter().map(|(_, kind, key)| Touched::of_stored(kind, *key)).collect())
}

/// An operator's change takes effect on live sessions within a second; a look costs two statements without I/O.
pub const CHANGES_NOTICED_WITHIN: Duration = Duration::from_millis(500);

/// Numbers whose notes are kept: a server that looks twice a second is that far behind only if it was away.
pub(super) const KEPT: i64 = 4096;

/// Notes read at a time; more is an import of a good part of all members.
const READ_MAX: i64 = 4096;

/// Looks that whoever follows may miss.
const REMEMBERED_MAX: usize = 32;

/// A store that did not answer tells that all may have changed once it does; one that was only too busy is asked again.
const ASKED_AGAIN_AFTER: Duration = Duration::from_secs(10);

#[cfg(test)]
pub(super) mod tests {
    use shared::{
        community::{
            member::{Name, Role},
            quota::Limits,
        },
        ids::LanId,
    };

    use super::*;
    use crate::accounts::testing;

    #[tokio::test]
    async fn a_change_touches_whom_it_is_about_and_nobody_else() {
        let (registrar, _scratch) = testing::registrar().await;
        let accounts = registrar.accounts();
        let (elm, ann, bob, pc) = (name("elm"), name("ann"), name("bob"), name("ann-pc"));
        let before = number(accounts).await;
        registrar.add_user(&elm, &ann, &Limits::default()).await.expect("a user");
        registrar.add_user(&elm, &bob, &Limits::default()).await.expect("a user");
        registrar.add_relay(&elm, &pc).await.expect("a relay");
        assert_eq!(changed_since(accounts, before).await, Change::default(), "who is new is not here yet");

        let (a, b) = (accounts.user(&elm, &ann).await.expect("ann"), accounts.user(&elm, &bob).await.expect("bob"));
        let before = number(accounts).await;
        accounts.set_limits(a.account, &Limits { max_flows: Some(7), ..Limits::default() }).await.expect("limits");
        let change = changed_since(accounts, before).await;
        assert!(change.touches_limits(Spender::User(a.id)) && !change.touches_limits(Spender::User(b.id)), "{change:?}");
        assert!(!change.touches_member(a.id, a.lan_key) && !change.touches_limits(Spender::Lan(a.lan_key)) && !change.touches_members());

        let before = number(accounts).await;
        accounts.remove_member(&elm, Role::User, &ann).await.expect("a user to remove");
        let change = changed_since(accounts, before).await;
        assert!(change.touches_member(a.id, a.lan_key) && !change.touches_member(b.id, b.lan_key), "{change:?}");

        let before = number(accounts).await;
        accounts.set_lan_limits(&elm, &Limits { max_flows: Some(9), ..Limits::default() }).await.expect("limits");
        registrar.move_lan(&elm, 9000).await.expect("another port");
        let change = changed_since(accounts, before).await;
        assert!(change.touches_limits(Spender::Lan(a.lan_key)) && change.touches_lans() && !change.touches_members(), "{change:?}");

        let before = number(accounts).await;
        accounts.remove_lan(&elm).await.expect("a LAN to remove");
        let change = changed_since(accounts, before).await;
        assert!(change.touches_member(b.id, b.lan_key) && !change.touches_member(b.id, LanKey(b.lan_key.0 + 1)), "{change:?}");
    }

    #[tokio::test]
    async fn users_who_come_to_share_an_account_are_touched_all() {
        let (registrar, _scratch) = testing::registrar().await;
        let accounts = registrar.accounts();
        let (elm, oak, ann, bob) = (name("elm"), name("oak"), name("ann"), name("bob"));
        registrar.add_lan(&oak, Some(LanId(16)), None).await.expect("a LAN");
        for (lan, user) in [(&elm, &ann), (&elm, &bob), (&oak, &ann), (&oak, &bob)] {
            registrar.add_user(lan, user, &Limits::default()).await.expect("a user");
        }
        accounts.share_account(&elm, &bob, (&elm, &ann)).await.expect("users");
        let before = number(accounts).await;
        accounts.share_account(&elm, &ann, (&oak, &ann)).await.expect("users");
        let change = changed_since(accounts, before).await;
        for (lan, user, is_touched) in [(&elm, &ann, true), (&elm, &bob, true), (&oak, &ann, false), (&oak, &bob, false)] {
            let member = accounts.user(lan, user).await.expect("a user");
            assert_eq!(change.touches_member(member.id, member.lan_key), is_touched, "{user}@{lan}: {change:?}");
        }
    }

    #[tokio::test]
    async fn what_an_earlier_version_changes_touches_everybody() {
        let (registrar, _scratch) = testing::registrar().await;
        let accounts = registrar.accounts();
        let before = number(accounts).await;
        registrar.add_user(&name("elm"), &name("ann"), &Limits::default()).await.expect("a user");
        sqlx::query("UPDATE revision SET number = number + 1").execute(&accounts.pool).await.expect("as earlier versions do");
        registrar.add_user(&name("elm"), &name("bob"), &Limits::default()).await.expect("a user");
        assert_eq!(changed_since(accounts, before).await, Change::of_everything());
        assert_eq!(changed_since(accounts, before + 2).await, Change::default());
        sqlx::query("UPDATE changes SET kind = 'of a later version'").execute(&accounts.pool).await.expect("as later versions may");
        assert_eq!(changed_since(accounts, before + 2).await, Change::of_everything());
        assert_eq!(changed_since(accounts, before + 9).await, Change::of_everything(), "a backup was restored");
    }

    #[tokio::test]
    async fn notes_are_kept_for_a_while_and_then_all_may_have_changed() {
        let (registrar, _scratch) = testing::registrar().await;
        let accounts = registrar.accounts();
        let before = number(accounts).await;
        registrar.add_user(&name("elm"), &name("ann"), &Limits::default()).await.expect("a user");
        sqlx::query("UPDATE revision SET number = number + $1").bind(KEPT).execute(&accounts.pool).await.expect("many changes");
        registrar.add_user(&name("elm"), &name("bob"), &Limits::default()).await.expect("a user");
        assert_eq!(changed_since(accounts, before).await, Change::of_everything());
        let kept: i64 = sqlx::query_scalar("SELECT count(*) FROM changes").fetch_one(&accounts.pool).await.expect("a count");
        assert_eq!(kept, 1);
    }

    #[tokio::test]
    async fn who_follows_late_gets_all_that_came_and_everything_if_that_is_too_much() {
        let sender = watch::Sender::new(Recent::default());
        let recent = sender.subscribe();
        let mut changes = Changes { recent, seen: 0, again_at: None };
        let limits = |user| Touched::Limits(Spender::User(MemberId(user)));
        for user in 0..3 {
            sender.send_modify(|recent| recent.push(Change::from_iter([limits(user)])));
        }
        assert_eq!(*changes.clone().next().await, Change::from_iter([limits(0), limits(1), limits(2)]));
        for user in 0..REMEMBERED_MAX as i64 {
            sender.send_modify(|recent| recent.push(Change::from_iter([limits(user)])));
        }
        assert_eq!(*changes.next().await, Change::of_everything());
        sender.send_modify(|recent| recent.push(Change::from_iter([limits(9)])));
        assert_eq!(*changes.next().await, Change::from_iter([limits(9)]));
    }

    async fn changed_since(accounts: &Accounts, before: i64) -> Change {
        let mut connection = accounts.connection().await.expect("a connection");
        changed_between(&mut connection, before, number(accounts).await).await.expect("the notes")
    }

    pub(in crate::accounts) async fn number(accounts: &Accounts) -> i64 {
        sqlx::query_scalar("SELECT number FROM revision").fetch_one(&accounts.pool).await.expect("a number")
    }

    fn name(text: &str) -> Name {
        text.parse().expect("a name")
    }
}
