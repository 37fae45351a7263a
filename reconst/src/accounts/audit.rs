//! The audit log: who changed what, and when, written in the transaction that changed it. Always holds: entries are committed in the order of their
//! numbers, since their transactions are those of [`Accounts::write`], one at a time; so who has read up to one has missed none before it.

use serde::Serialize;
use shared::community::member::Name;
use sqlx::{Any, AssertSqlSafe, Transaction};

use super::{Accounts, AccountsError, parts::Part, registry::now};

/// A change, as the log shows it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct AuditEntry {
    /// Its number; later changes have larger ones.
    pub number: i64,
    /// When, seconds since 1970, UTC.
    pub at: i64,
    /// Who: a user of this host, the API, or a member who enrolled.
    pub actor: String,
    /// What was done, as in `user.set`.
    pub action: String,
    /// To whom or what, as in `ann@elm`.
    pub subject: String,
    /// What it is now, for people.
    pub detail: String,
}

impl Accounts {
    /// These accounts, with changes logged as `actor`'s.
    pub fn acting_as(mut self, actor: &str) -> Self {
        self.actor = actor.chars().filter(|c| !c.is_control()).take(ACTOR_CHARS_MAX).collect::<String>().into();
        self
    }

    /// A part of the log, of what was done to `lan` and its members if it is given: at most `limit` entries after the one of that number.
    ///
    /// # Errors
    /// If the store does not answer.
    pub async fn audit_part(&self, lan: Option<&Name>, after: Option<i64>, limit: u32) -> Result<Part<AuditEntry, i64>, AccountsError> {
        let found = self.entries(lan, after.unwrap_or(0), "ASC", limit.saturating_add(1)).await?;
        Ok(Part::cut(found, limit, |entry| entry.number))
    }

    /// The last `limit` entries, of what was done to `lan` and its members if it is given; the oldest first.
    ///
    /// # Errors
    /// If the store does not answer.
    pub async fn audit_log_end(&self, lan: Option<&Name>, limit: u32) -> Result<Vec<AuditEntry>, AccountsError> {
        let mut entries = self.entries(lan, 0, "DESC", limit).await?;
        entries.reverse();
        Ok(entries)
    }

    async fn entries(&self, lan: Option<&Name>, after: i64, order: &str, limit: u32) -> Result<Vec<AuditEntry>, AccountsError> {
        let sql = format!(
            "SELECT audit_id, at, actor, action, subject, detail FROM audit WHERE audit_id > $1
             AND ($2 = '' OR subject LIKE '%@' || $2 OR (subject = $2 AND action LIKE 'lan.%')) ORDER BY audit_id {order} LIMIT $3"
        );
        let rows: Vec<(i64, i64, String, String, String, String)> = sqlx::query_as(AssertSqlSafe(sql))
            .bind(after)
            .bind(lan.map_or("", Name::as_str))
            .bind(i64::from(limit))
            .fetch_all(&self.pool)
            .await?;
        let entry = |(number, at, actor, action, subject, detail)| AuditEntry { number, at, actor, action, subject, detail };
        Ok(rows.into_iter().map(entry).collect())
    }

    /// Logs a change in its own transaction. It has to be one of [`Accounts::write`].
    pub(super) async fn log(
        &self,
        transaction: &mut Transaction<'static, Any>,
        action: &str,
        subject: &str,
        detail: &str,
    ) -> Result<(), sqlx::Error> {
        sqlx::query("INSERT INTO audit (at, actor, action, subject, detail) VALUES ($1, $2, $3, $4, $5)")
            .bind(now())
            .bind(self.actor.to_string())
            .bind(action)
            .bind(subject)
            .bind(detail)
            .execute(&mut **transaction)
            .await?;
        Ok(())
    }
}

/// A name of a user of a host, and more.
const ACTOR_CHARS_MAX: usize = 80;

#[cfg(test)]
mod tests {
    use shared::{
        community::{invite::InviteSecret, member::Role, quota::Limits},
        ids::LanId,
    };
    use time::Duration;

    use super::*;
    use crate::accounts::{changes::tests::number, invites::Invitation, parts::whole, testing};

    #[tokio::test]
    async fn whatever_is_logged_waits_for_what_is_logged_before() {
        let (registrar, _scratch) = testing::registrar().await;
        let accounts = registrar.accounts();
        let (elm, oak, ann, bob, pc) = (name("elm"), name("oak"), name("ann"), name("bob"), name("ann-pc"));
        let before = (number(accounts).await, count(accounts).await);
        registrar.add_lan(&oak, Some(LanId(16)), None).await.expect("a LAN");
        registrar.add_user(&elm, &ann, &Limits::default()).await.expect("a user");
        registrar.add_relay(&elm, &pc).await.expect("a relay");
        accounts.set_owner(&elm, &pc, Some(&ann)).await.expect("a relay and a user");
        let invitation =
            Invitation { lan: &elm, role: Role::User, name: &bob, limits: &Limits::default(), again: false, lifetime: Duration::HOUR };
        accounts.invite(&invitation, 7, &InviteSecret([1; 16])).await.expect("an invite");
        accounts.revoke_invite(7).await.expect("an open invite");
        accounts.set_limits(accounts.user(&elm, &ann).await.expect("ann").account, &Limits::default()).await.expect("limits");
        accounts.set_lan_limits(&elm, &Limits::default()).await.expect("limits");
        accounts.share_account(&elm, &ann, (&elm, &bob)).await.expect("users");
        registrar.move_lan(&oak, 9000).await.expect("a port");
        accounts.remove_member(&elm, Role::User, &ann).await.expect("a user to remove");
        accounts.remove_lan(&oak).await.expect("a LAN to remove");
        let logged = count(accounts).await - before.1;
        // The revision's row is what transactions wait for each other by.
        assert_eq!((number(accounts).await - before.0, logged), (12, 12), "one number for each entry");
    }

    #[tokio::test]
    async fn a_lan_has_its_own_part_of_the_log() {
        let (registrar, _scratch) = testing::registrar().await;
        let accounts = registrar.accounts();
        let (elm, oak, old_elm, ann) = (name("elm"), name("oak"), name("old-elm"), name("ann"));
        registrar.add_lan(&oak, None, None).await.expect("a LAN");
        registrar.add_lan(&old_elm, None, None).await.expect("a LAN whose name ends as another's");
        for lan in [&elm, &oak, &old_elm] {
            registrar.add_user(lan, &ann, &Limits::default()).await.expect("a user");
        }
        registrar.add_relay(&elm, &oak).await.expect("a relay named as a LAN");
        let lifetime = Duration::HOUR;
        let invitation = Invitation { lan: &oak, role: Role::User, name: &elm, limits: &Limits::default(), again: false, lifetime };
        accounts.invite(&invitation, 7, &InviteSecret([1; 16])).await.expect("an invite");
        accounts.revoke_invite(7).await.expect("an open invite");
        accounts.remove_lan(&oak).await.expect("a LAN to remove");
        let of_elm = ["lan.add elm", "user.add ann@elm", "relay.add oak@elm"];
        let of_oak = ["lan.add oak", "user.add ann@oak", "user.invite elm@oak", "invite.revoke elm@oak", "lan.remove oak"];
        for (lan, expected) in [(&elm, &of_elm[..]), (&oak, &of_oak[..])] {
            let whole = whole(async |after| accounts.audit_part(Some(lan), after, 2).await).await.expect("the log");
            assert_eq!(texts(&whole), expected);
            let end = accounts.audit_log_end(Some(lan), 2).await.expect("the log's end");
            assert_eq!(texts(&end), expected[expected.len() - 2..]);
        }
    }

    fn texts(entries: &[AuditEntry]) -> Vec<String> {
        entries.iter().map(|entry| format!("{} {}", entry.action, entry.subject)).collect()
    }

    async fn count(accounts: &Accounts) -> i64 {
        sqlx::query_scalar("SELECT count(*) FROM audit").fetch_one(&accounts.pool).await.expect("a count")
    }

    fn name(text: &str) -> Name {
        text.parse().expect("a name")
    }
}
