//! The audit log: who changed what, and when, written in the transaction that changed it. Always holds: entries are committed in the order of their
//! numbers, since their transactions are those of [`Accounts::write`], one at a time; so who has read up to one has missed none before it.

use serde::Serialize;
use sqlx::{Any, Transaction};

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

    /// A part of the log: at most `limit` entries after the one of that number.
    ///
    /// # Errors
    /// If the store does not answer.
    pub async fn audit_part(&self, after: Option<i64>, limit: u32) -> Result<Part<AuditEntry, i64>, AccountsError> {
        let found = self.audit_log(after.unwrap_or(0), limit.saturating_add(1)).await?;
        Ok(Part::cut(found, limit, |entry| entry.number))
    }

    /// At most `limit` entries after the one of number `after`, the oldest first.
    ///
    /// # Errors
    /// If the store does not answer.
    pub async fn audit_log(&self, after: i64, limit: u32) -> Result<Vec<AuditEntry>, AccountsError> {
        let sql = "SELECT audit_id, at, actor, action, subject, detail FROM audit WHERE audit_id > $1 ORDER BY audit_id LIMIT $2";
        let rows: Vec<(i64, i64, String, String, String, String)> =
            sqlx::query_as(sql).bind(after).bind(i64::from(limit)).fetch_all(&self.pool).await?;
        let entry = |(number, at, actor, action, subject, detail)| AuditEntry { number, at, actor, action, subject, detail };
        Ok(rows.into_iter().map(entry).collect())
    }

    /// The last `limit` entries, the oldest first.
    ///
    /// # Errors
    /// If the store does not answer.
    pub async fn audit_log_end(&self, limit: u32) -> Result<Vec<AuditEntry>, AccountsError> {
        let last: Option<i64> = sqlx::query_scalar("SELECT max(audit_id) FROM audit").fetch_one(&self.pool).await?;
        self.audit_log(last.unwrap_or(0).saturating_sub(i64::from(limit)), limit).await
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
        community::{
            invite::InviteSecret,
            member::{Name, Role},
            quota::Limits,
        },
        ids::LanId,
    };
    use time::Duration;

    use super::*;
    use crate::accounts::{changes::tests::number, invites::Invitation, testing};

    #[tokio::test]
    async fn whatever_is_logged_waits_for_what_is_logged_before() {
        let (registrar, _scratch) = testing::registrar().await;
        let accounts = registrar.accounts();
        let (elm, oak, ann, bob, pc) = (name("elm"), name("oak"), name("ann"), name("bob"), name("ann-pc"));
        let before = (number(accounts).await, entries(accounts).await);
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
        let logged = entries(accounts).await - before.1;
        // The revision's row is what transactions wait for each other by.
        assert_eq!((number(accounts).await - before.0, logged), (12, 12), "one number for each entry");
    }

    async fn entries(accounts: &Accounts) -> i64 {
        sqlx::query_scalar("SELECT count(*) FROM audit").fetch_one(&accounts.pool).await.expect("a count")
    }

    fn name(text: &str) -> Name {
        text.parse().expect("a name")
    }
}
