//! What an operator is shown of a user.

use serde::Serialize;
use shared::community::{
    member::{Name, Role},
    quota::{Period, UnixSeconds, Used},
};

use super::{Accounts, AccountsError, Spender, registry::Listed, written::WrittenLimits};

/// A user, what it may spend and what it has. Times are in seconds since 1970, UTC; what has no limit is left out.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct UserReport {
    /// The user's name.
    pub name: String,
    /// The LAN's name.
    pub lan: String,
    /// The LAN's number.
    pub lan_id: u16,
    /// When the user was added.
    pub added_at: i64,
    /// What the user may use.
    #[serde(flatten)]
    pub limits: WrittenLimits,
    /// Bytes of payload sent in the period that is counted now, as last kept: at most a second ago.
    pub up_bytes: u64,
    /// Bytes of payload received in it.
    pub down_bytes: u64,
    /// Those of them that the quota counts, in per cent of it, rounded down.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub used_percent: Option<u64>,
    /// Bytes towards content servers that the user's own relays have carried in this calendar month (UTC), headers included.
    pub lent_up_bytes: u64,
    /// From content servers.
    pub lent_down_bytes: u64,
    /// When the period began.
    pub period_began_at: i64,
    /// When the count begins anew.
    pub resets_at: i64,
    /// The same, for people, in the period's time zone.
    pub resets: String,
}

impl UserReport {
    fn new(user: &Listed, time: UnixSeconds, used: impl FnOnce(UnixSeconds) -> Used, lent: Option<&Used>) -> Self {
        let quota = user.limits.quota.as_ref();
        let period = quota.map_or_else(Period::default, |quota| quota.period.clone());
        let span = period.span(time, user.since);
        let used = used(span.start);
        let lent = lent.copied().unwrap_or_default();
        Self {
            name: user.identity.name.to_string(),
            lan: user.lan_name.to_string(),
            lan_id: user.identity.lan.0,
            added_at: user.added_at.0,
            limits: WrittenLimits::from(&user.limits),
            up_bytes: used.up,
            down_bytes: used.down,
            used_percent: quota.map(|quota| quota.percent(used)),
            lent_up_bytes: lent.up,
            lent_down_bytes: lent.down,
            period_began_at: span.start.0,
            resets_at: span.end.0,
            resets: period.zone.text(span.end),
        }
    }
}

impl Accounts {
    /// The users with what they have used by `time`, by LAN and name.
    ///
    /// # Errors
    /// If the store does not answer.
    pub async fn user_reports(&self, time: UnixSeconds) -> Result<Vec<UserReport>, AccountsError> {
        let (users, used, lent) = (self.members(Role::User).await?, self.latest_used().await?, self.lent(time).await?);
        let report = |user: &Listed| {
            let latest = used.get(&user.account);
            let used = |start| latest.filter(|(began, _)| *began == start).map(|(_, used)| *used).unwrap_or_default();
            UserReport::new(user, time, used, lent.get(&user.id))
        };
        Ok(users.iter().map(report).collect())
    }

    /// The user of that name in the LAN, with what it has used by `time`.
    ///
    /// # Errors
    /// If there is none.
    pub async fn user_report(&self, lan: &Name, name: &Name, time: UnixSeconds) -> Result<UserReport, AccountsError> {
        let user = self.user(lan, name).await?;
        let (used, lent) = (self.used(Spender::User(user.account)).await?, self.lent(time).await?);
        Ok(UserReport::new(&user, time, |start| used.get(&start).copied().unwrap_or_default(), lent.get(&user.id)))
    }
}
