//! Limits as programs and files write them: exact numbers, by the names that the admin API has for them.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use shared::{
    community::quota::{AtLimit, Counts, Length, Limits, Period, Quota, Zone},
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
        let throttle = rate(self.throttle_bits_per_second)?;
        let is_about_quota = self.quota_counts.is_some() || self.period.is_some() || self.time_zone.is_some() || throttle.is_some();
        let quota = match self.quota_bytes {
            Some(bytes @ 1..=STORED_MAX) => Some(Quota {
                size: Size { bytes },
                counts: parsed::<Counts>(self.quota_counts)?,
                period: Period { length: parsed::<Length>(self.period)?, zone: parsed::<Zone>(self.time_zone)? },
                at_limit: throttle.map_or(AtLimit::Refuse, AtLimit::Throttle),
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

fn parsed<T: FromStr + Default>(text: Option<String>) -> Result<T, WrittenError>
where
    T::Err: fmt::Display,
{
    text.map_or_else(|| Ok(T::default()), |text| text.parse().map_err(|error: T::Err| WrittenError::new(error.to_string())))
}

/// What the store's columns hold.
const STORED_MAX: u64 = i64::MAX as u64;
