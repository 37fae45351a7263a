//! Why an account grants nothing, as its user reads it.

use std::fmt;

use thiserror::Error;

use super::{
    super::{Counts, Quota},
    Account,
};
use crate::units::Size;

/// Why nothing is granted; the sentence is for the user.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum Refused {
    /// The quota is used up.
    #[error("the {size} that {whose} may use{which}{earned} are used up; the count begins anew on {resets}")]
    UsedUp {
        /// Whose quota.
        whose: Whose,
        /// The quota, with what was earned.
        size: Size,
        /// Which bytes it counts, for people.
        which: &'static str,
        /// What of it was earned by lending, for people.
        earned: String,
        /// When the next period begins, in the quota's time zone.
        resets: String,
    },
    /// The server's share is used up while others have a part of what is left: more is asked for.
    #[error("the quota is nearly used up, and its last bytes are with another server: try again in a moment")]
    NotYet,
    /// As many flows are open as may be.
    #[error("{most} connections are open at once, which is as many as {whose} may have")]
    TooManyFlows {
        /// Whose flows.
        whose: Whose,
        /// How many.
        most: u32,
    },
}

/// Who spends from an account, as its user calls it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Whose {
    /// The user alone.
    User,
    /// All users of the LAN.
    Lan,
}

impl fmt::Display for Whose {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::User => "you",
            Self::Lan => "your LAN",
        })
    }
}

impl Account {
    pub(super) fn used_up(&self, quota: &Quota) -> Refused {
        let which = match quota.counts {
            Counts::Up => " for uploads",
            Counts::Down => " for downloads",
            Counts::Both => "",
        };
        let (size, earned) = (Size { bytes: self.allowance(quota) }, Size { bytes: quota.earned(self.lent()) });
        let earned = quota.earning.map(|_| format!(", {earned} of them earned by lending,")).unwrap_or_default();
        Refused::UsedUp { whose: self.whose, size, which, earned, resets: quota.period.zone.text(self.span.end) }
    }
}
