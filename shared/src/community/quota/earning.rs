//! Quota earned by lending: of what a user's relays carry for others in a period, a part is added to what the user may use in it.

use std::{fmt, str::FromStr};

use thiserror::Error;

use crate::units::Size;

/// How much of what was lent is earned.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Earning {
    /// Which part of it.
    pub percent: Percent,
    /// The most that is earned in a period.
    pub at_most: Option<Size>,
}

/// A part of something, 1 to 100 per cent. With more, two who carry each other's traffic would have more left with every byte.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Percent(u8);

/// What is no such part.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[error("`{0}` is no part that can be earned: write per cent, 1 to 100, as in 50%")]
pub struct PercentError(String);

impl Earning {
    /// Bytes earned by so many lent, rounded down.
    pub fn earned(&self, lent_bytes: u64) -> u64 {
        let earned = u128::from(lent_bytes) * u128::from(self.percent.0) / 100;
        let earned = u64::try_from(earned).expect("not more than was lent");
        self.at_most.map_or(earned, |at_most| earned.min(at_most.bytes))
    }
}

impl fmt::Display for Earning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "earns {} of what is lent", self.percent)?;
        self.at_most.map_or(Ok(()), |at_most| write!(f, " up to {at_most}"))
    }
}

impl TryFrom<u64> for Percent {
    type Error = PercentError;

    fn try_from(percent: u64) -> Result<Self, PercentError> {
        u8::try_from(percent).ok().filter(|percent| (1..=100).contains(percent)).map(Self).ok_or_else(|| PercentError(percent.to_string()))
    }
}

impl From<Percent> for u64 {
    fn from(percent: Percent) -> Self {
        percent.0.into()
    }
}

impl FromStr for Percent {
    type Err = PercentError;

    fn from_str(text: &str) -> Result<Self, PercentError> {
        let wrong = || PercentError(text.chars().take(40).collect());
        let number: u64 = text.strip_suffix('%').and_then(|number| number.trim_end().parse().ok()).ok_or_else(wrong)?;
        number.try_into().map_err(|_| wrong())
    }
}

impl fmt::Display for Percent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} %", self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_what_is_lent_is_earned_up_to_the_most() {
        let mut earning = Earning { percent: Percent(30), at_most: None };
        assert_eq!([0, 3, 4, 1000, u64::MAX].map(|lent| earning.earned(lent)), [0, 0, 1, 300, 5_534_023_222_112_865_484]);
        assert_eq!(earning.to_string(), "earns 30 % of what is lent");
        earning.at_most = Some(Size { bytes: 200 });
        assert_eq!([500, 1000, u64::MAX].map(|lent| earning.earned(lent)), [150, 200, 200]);
        assert_eq!(earning.to_string(), "earns 30 % of what is lent up to 200 B");
    }

    #[test]
    fn a_part_is_written_in_per_cent() {
        for (text, percent) in [("1%", 1), ("50%", 50), ("100 %", 100)] {
            assert_eq!(text.parse(), Ok(Percent(percent)), "{text}");
        }
        for text in ["", "%", "50", "0%", "101%", "0.5%", "-1%", "half"] {
            assert!(text.parse::<Percent>().is_err(), "{text}");
        }
    }
}
