//! What a user may spend.

use std::{fmt, str::FromStr};

use thiserror::Error;

use super::{Earning, Period, Used};
use crate::units::{Rate, Size};

/// A user's limits; none of a kind is no limit.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Limits {
    /// Bytes per period.
    pub quota: Option<Quota>,
    /// Towards content servers.
    pub rate_up: Option<Rate>,
    /// From content servers.
    pub rate_down: Option<Rate>,
    /// Flows at the same time.
    pub max_flows: Option<u32>,
}

/// Bytes of payload that a user may move in a period.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Quota {
    /// How many.
    pub size: Size,
    /// Which of them.
    pub counts: Counts,
    /// In which time.
    pub period: Period,
    /// What happens when they are used up.
    pub at_limit: AtLimit,
    /// What is added to them for what the user's relays lend; only a user's quota has that.
    pub earning: Option<Earning>,
}

/// Which bytes a quota counts.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Counts {
    /// Towards content servers.
    Up,
    /// From content servers.
    Down,
    /// All.
    #[default]
    Both,
}

/// What happens to a user whose quota is used up, until the period ends.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum AtLimit {
    /// Flows end, new ones are refused.
    #[default]
    Refuse,
    /// Each direction is held to this rate.
    Throttle(Rate),
}

/// Which way bytes go.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Way {
    /// Towards content servers.
    Up,
    /// From content servers.
    Down,
}

/// A text that does not say what a quota counts.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[error("`{0}` is not what a quota can count: write up, down or both")]
pub struct CountsError(String);

impl Limits {
    /// The rate of a direction.
    pub fn rate(&self, way: Way) -> Option<Rate> {
        match way {
            Way::Up => self.rate_up,
            Way::Down => self.rate_down,
        }
    }
}

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let quota = self.quota.as_ref().map(|quota| {
            let Quota { size, counts, period, at_limit, earning } = quota;
            let beyond = match at_limit {
                AtLimit::Refuse => String::new(),
                AtLimit::Throttle(rate) => format!(", then {rate}"),
            };
            let earns = earning.map(|earning| format!(", {earning}")).unwrap_or_default();
            format!("quota {size} per {} in {}, {counts}{earns}{beyond}", period.length, period.zone)
        });
        let rates = [("up", self.rate_up), ("down", self.rate_down)];
        let rates = rates.into_iter().filter_map(|(way, rate)| rate.map(|rate| format!("{way} {rate}")));
        let flows = self.max_flows.map(|flows| format!("{flows} flows"));
        let parts: Vec<_> = quota.into_iter().chain(rates).chain(flows).collect();
        if parts.is_empty() { f.write_str("no limits") } else { f.write_str(&parts.join(", ")) }
    }
}

impl Quota {
    /// A quota of so many bytes a calendar month, both directions, that ends flows when it is used up.
    pub fn of(size: Size) -> Self {
        Self { size, counts: Counts::default(), period: Period::default(), at_limit: AtLimit::default(), earning: None }
    }
}

impl Quota {
    /// How much of `used` it counts, in bytes.
    pub fn counted(&self, used: Used) -> u64 {
        let count = |way, bytes| if self.counts.includes(way) { bytes } else { 0 };
        count(Way::Up, used.up).saturating_add(count(Way::Down, used.down))
    }

    /// Bytes added to it for what was lent in the period: of that it counts what it counts of what is used.
    pub fn earned(&self, lent: Used) -> u64 {
        self.earning.map_or(0, |earning| earning.earned(self.counted(lent)))
    }

    /// Bytes that may be used in a period in which so much was lent.
    pub fn allowance(&self, lent: Used) -> u64 {
        self.size.bytes.saturating_add(self.earned(lent))
    }

    /// How much of that is used, in per cent, rounded down.
    pub fn percent(&self, used: Used, lent: Used) -> u64 {
        let percent = u128::from(self.counted(used)) * 100 / u128::from(self.allowance(lent).max(1));
        u64::try_from(percent).unwrap_or(u64::MAX)
    }
}

impl Counts {
    /// Whether bytes of this direction are counted.
    pub fn includes(self, way: Way) -> bool {
        matches!((self, way), (Self::Both, _) | (Self::Up, Way::Up) | (Self::Down, Way::Down))
    }
}

impl FromStr for Counts {
    type Err = CountsError;

    fn from_str(text: &str) -> Result<Self, CountsError> {
        match text {
            "up" => Ok(Self::Up),
            "down" => Ok(Self::Down),
            "both" => Ok(Self::Both),
            _ => Err(CountsError(text.chars().take(40).collect())),
        }
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Up => "up",
            Self::Down => "down",
            Self::Both => "both",
        })
    }
}
