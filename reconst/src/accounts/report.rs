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
    /// Bytes added to the quota in it for what the user's relays have carried for others, if it earns.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub earned_bytes: Option<u64>,
    /// Those used that the quota counts, in per cent of it and what was earned, rounded down.
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
    fn new(user: &Listed, span: &Range<UnixSeconds>, used: Used, carried: Used, lent: Used) -> Self {
        let quota = user.limits.quota.as_ref();
        Self {
            name: user.identity.name.to_string(),
            lan: user.lan_name.to_string(),
            lan_id: user.identity.lan.0,
            added_at: user.added_at.0,
            limits: WrittenLimits::from(&user.limits),
            up_bytes: used.up,
            down_bytes: used.down,
            earned_bytes: quota.filter(|quota| quota.earning.is_some()).map(|quota| quota.earned(lent)),
            used_percent: quota.map(|quota| quota.percent(used, lent)),
            lent_up_bytes: carried.up,
            lent_down_bytes: carried.down,
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
        let earns = |user: &Listed| user.limits.quota.as_ref().is_some_and(|quota| quota.earning.is_some());
        let earners = users.iter().zip(&spans).filter(|(user, _)| earns(user)).map(|(user, span)| (user.account, span.start));
        let earners: Vec<(MemberId, UnixSeconds)> = earners.collect();
        let (used, carried) = (self.used_in(USERS, &asked).await?, self.lent_by(&ids, time).await?);
        let lent = self.lent_in(&earners).await?;
        let report = |(user, span): (&Listed, &Range<UnixSeconds>)| {
            let used = used.get(&user.account.0).copied().unwrap_or_default();
            let (carried, lent) =
                (carried.get(&user.id).copied().unwrap_or_default(), lent.get(&user.account).copied().unwrap_or_default());
            UserReport::new(user, span, used, carried, lent)
        };
        Ok(users.iter().zip(&spans).map(report).collect())
    }
}
