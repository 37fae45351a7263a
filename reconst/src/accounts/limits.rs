//! What a user may spend.

use std::{fmt, str::FromStr};

use shared::units::{Rate, Size};
use thiserror::Error;

/// A user's limits; none of a kind is no limit.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Limits {
    /// Bytes of payload, both directions together, per period.
    pub quota: Option<Size>,
    /// After which time the count of bytes begins anew.
    pub period: Period,
    /// Towards content servers.
    pub rate_up: Option<Rate>,
    /// From content servers.
    pub rate_down: Option<Rate>,
    /// Flows at the same time.
    pub max_flows: Option<u32>,
}

/// The time that a quota is for.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub enum Period {
    /// A calendar month.
    #[default]
    Month,
    /// That many days, 1 to [`Period::DAYS_MAX`].
    Days(u16),
}

/// A text that is no period.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[error("`{0}` is not a period: write `month`, or days as in `7d` (1 to {max})", max = Period::DAYS_MAX)]
pub struct PeriodError(String);

impl Period {
    /// The longest period in days: ten years.
    pub const DAYS_MAX: u16 = 3650;
}

impl FromStr for Period {
    type Err = PeriodError;

    fn from_str(text: &str) -> Result<Self, PeriodError> {
        if text == "month" {
            return Ok(Self::Month);
        }
        let days = text.strip_suffix('d').and_then(|days| days.parse().ok()).filter(|days| (1..=Self::DAYS_MAX).contains(days));
        days.map(Self::Days).ok_or_else(|| PeriodError(text.chars().take(40).collect()))
    }
}

impl fmt::Display for Period {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Month => f.write_str("month"),
            Self::Days(days) => write!(f, "{days}d"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_period_survives_its_text() {
        for period in [Period::Month, Period::Days(1), Period::Days(30)] {
            assert_eq!(period.to_string().parse(), Ok(period));
        }
        for text in ["", "d", "0d", "4000d", "-1d", "week", "30"] {
            assert!(text.parse::<Period>().is_err(), "{text}");
        }
    }
}
