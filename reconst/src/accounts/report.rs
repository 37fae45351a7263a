//! What an operator is shown of a user.

use std::ops::Range;

use serde::Serialize;
use shared::community::{
    member::{Name, Role},
    quota::{Limits, Period, UnixSeconds, Used},
};

use super::{
    Accounts, AccountsError, MemberId,
    book::USERS,
    parts::{MemberPlace, Members, Part},
    users::Listed,
    written::WrittenLimits,
};

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
    fn new(user: &Listed, span: &Range<UnixSeconds>, used: Used, lent: Used) -> Self {
        let quota = user.limits.quota.as_ref();
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
            resets: period(&user.limits).zone.text(span.end),
        }
    }
}

/// The period that counts by those limits.
pub(super) fn period(limits: &Limits) -> Period {
    limits.quota.as_ref().map_or_else(Period::default, |quota| quota.period.clone())
}

impl Accounts {
    /// A part of the users with what they have used by `time`.
    ///
    /// # Errors
    /// If the store does not answer.
    pub async fn users(&self, members: &Members<'_>, time: UnixSeconds) -> Result<Part<UserReport, MemberPlace>, AccountsError> {
        let part = self.listed_users(members).await?;
        let reports = self.user_reports(&part.items, time).await?;
        Ok(part.with(reports))
    }

    /// The user of that name in the LAN, with what it has used by `time`.
    ///
    /// # Errors
    /// If there is none.
    pub async fn user_report(&self, lan: &Name, name: &Name, time: UnixSeconds) -> Result<UserReport, AccountsError> {
        let user = self.user(lan, name).await?;
        let report = self.user_reports(&[user], time).await?.pop();
        report.ok_or_else(|| AccountsError::NoMember { lan: lan.clone(), role: Role::User, name: name.clone() })
    }

    async fn user_reports(&self, users: &[Listed], time: UnixSeconds) -> Result<Vec<UserReport>, AccountsError> {
        let spans: Vec<Range<UnixSeconds>> = users.iter().map(|user| period(&user.limits).span(time, user.since)).collect();
        let asked: Vec<(i64, UnixSeconds)> = users.iter().zip(&spans).map(|(user, span)| (user.account.0, span.start)).collect();
        let ids: Vec<MemberId> = users.iter().map(|user| user.id).collect();
        let (used, lent) = (self.used_in(USERS, &asked).await?, self.lent_by(&ids, time).await?);
        let report = |(user, span): (&Listed, &Range<UnixSeconds>)| {
            let (used, lent) = (used.get(&user.account.0).copied(), lent.get(&user.id).copied());
            UserReport::new(user, span, used.unwrap_or_default(), lent.unwrap_or_default())
        };
        Ok(users.iter().zip(&spans).map(report).collect())
    }
}
