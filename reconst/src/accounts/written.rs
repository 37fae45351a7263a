//! Limits as programs and files write them: exact numbers, by the names that the admin API has for them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use shared::{
    community::quota::{AtLimit, Counts, Earning, Length, Limits, Percent, Period, Quota, Zone},
    units::{Rate, Size},
};
use thiserror::Error;

/// All limits of an account: what is left out is no limit.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub struct WrittenLimits {
    /// Bytes per period.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quota_bytes: Option<u64>,
    /// Which of them: `up`, `down` or `both`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quota_counts: Option<String>,
    /// `month`, `month/15`, `7d`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub period: Option<String>,
    /// Whose midnight the period begins at, as in `Europe/Berlin`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub time_zone: Option<String>,
    /// The rate beyond the quota; without one, flows are refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throttle_bits_per_second: Option<u64>,
    /// How much of what a user's relays carry for others is added to the quota, in per cent, 1 to 100; without it, nothing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub earn_percent: Option<u64>,
    /// The most bytes that are added to it in a period.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub earn_at_most_bytes: Option<u64>,
    /// The rate towards content servers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_up_bits_per_second: Option<u64>,
    /// The rate from content servers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_down_bits_per_second: Option<u64>,
    /// Flows at the same time.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_flows: Option<u32>,
}

/// Limits that can't be.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[error("{0}")]
pub struct WrittenError(pub String);

impl WrittenLimits {
    /// The limits that are meant.
    ///
    /// # Errors
    /// If one is none, or says more about a quota that there is none of.
    pub fn parse(self) -> Result<Limits, WrittenError> {
        let (throttle, earning) = (rate(self.throttle_bits_per_second)?, earning(self.earn_percent, self.earn_at_most_bytes)?);
        let is_about_time = self.period.is_some() || self.time_zone.is_some();
        let is_about_quota = self.quota_counts.is_some() || is_about_time || throttle.is_some() || earning.is_some();
        let quota = match self.quota_bytes {
            Some(bytes @ 1..=STORED_MAX) => Some(Quota {
                size: Size { bytes },
                counts: parsed::<Counts>(self.quota_counts)?,
                period: Period { length: parsed::<Length>(self.period)?, zone: parsed::<Zone>(self.time_zone)? },
                at_limit: throttle.map_or(AtLimit::Refuse, AtLimit::Throttle),
                earning,
            }),
            Some(_) => return Err(WrittenError::new("a quota is at least 1 byte")),
            None if is_about_quota => return Err(WrittenError::new("give quota_bytes as well")),
            None => None,
        };
        if self.max_flows == Some(0) {
            return Err(WrittenError::new("max_flows is at least 1"));
        }
        let (rate_up, rate_down) = (rate(self.rate_up_bits_per_second)?, rate(self.rate_down_bits_per_second)?);
        Ok(Limits { quota, rate_up, rate_down, max_flows: self.max_flows })
    }
}

impl From<&Limits> for WrittenLimits {
    fn from(limits: &Limits) -> Self {
        let quota = limits.quota.as_ref();
        let earning = quota.and_then(|quota| quota.earning);
        let bits = |rate: Rate| rate.bits_per_second;
        Self {
            quota_bytes: quota.map(|quota| quota.size.bytes),
            quota_counts: quota.map(|quota| quota.counts.to_string()),
            period: quota.map(|quota| quota.period.length.to_string()),
            time_zone: quota.map(|quota| quota.period.zone.to_string()),
            throttle_bits_per_second: quota.and_then(|quota| match quota.at_limit {
                AtLimit::Refuse => None,
                AtLimit::Throttle(rate) => Some(bits(rate)),
            }),
            earn_percent: earning.map(|earning| earning.percent.into()),
            earn_at_most_bytes: earning.and_then(|earning| earning.at_most).map(|at_most| at_most.bytes),
            rate_up_bits_per_second: limits.rate_up.map(bits),
            rate_down_bits_per_second: limits.rate_down.map(bits),
            max_flows: limits.max_flows,
        }
    }
}

impl WrittenError {
    fn new(reason: impl Into<String>) -> Self {
        Self(reason.into())
    }
}

fn rate(bits: Option<u64>) -> Result<Option<Rate>, WrittenError> {
    match bits {
        Some(bits_per_second @ 1..=STORED_MAX) => Ok(Some(Rate { bits_per_second })),
        Some(_) => Err(WrittenError::new("a rate is at least 1 bit/s")),
        None => Ok(None),
    }
}

fn earning(percent: Option<u64>, at_most: Option<u64>) -> Result<Option<Earning>, WrittenError> {
    let at_most = match at_most {
        Some(bytes @ 1..=STORED_MAX) => Some(Size { bytes }),
        Some(_) => return Err(WrittenError::new("earn_at_most_bytes is at least 1")),
        None => None,
    };
    match percent {
        Some(percent) => {
            let percent = Percent::try_from(percent).map_err(|_| WrittenError::new("earn_percent is 1 to 100"))?;
            Ok(Some(Earning { percent, at_most }))
        }
        None if at_most.is_some() => Err(WrittenError::new("give earn_percent as well")),
        None => Ok(None),
    }
}

fn parsed<T: FromStr + Default>(text: Option<String>) -> Result<T, WrittenError>
where
    T::Err: fmt::Display,
{
    text.map_or_else(|| Ok(T::default()), |text| text.parse().map_err(|error: T::Err| WrittenError::new(error.to_string())))
}

/// What the store's columns hold.
const STORED_MAX: u64 = i64::MAX as u64;
