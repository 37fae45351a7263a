//! The time that a quota is for: calendar months or spans of days, in a time zone of the operator's choice.
//!
//! Enters: a moment. Leaves: the span that it lies in. The zones' rules are built in, so that every server counts alike.

use std::{fmt, ops::Range, str::FromStr};

use jiff::{Span, Timestamp, ToSpan, civil::Date, tz::TimeZone};
use thiserror::Error;

/// A moment: seconds since 1970, UTC.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Debug)]
pub struct UnixSeconds(pub i64);

/// After which time the count of bytes begins anew, at a midnight of `zone`.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Period {
    /// How long it lasts.
    pub length: Length,
    /// Whose midnight.
    pub zone: Zone,
}

/// How long a period lasts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Length {
    /// A month that begins on this day, 1 to 31; on the last day of a month that has fewer.
    Month {
        /// The day.
        first_day: u8,
    },
    /// That many days, 1 to [`Length::DAYS_MAX`], the first of them the day on which the user was added.
    Days(u16),
}

/// A time zone by its name in the IANA database, such as `Europe/Berlin`.
#[derive(Clone, PartialEq, Eq)]
pub struct Zone {
    name: String,
    rules: TimeZone,
}

/// A text that is no period or zone.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum PeriodError {
    /// Not a length.
    #[error("`{0}` is not a period: write `month`, `month/15` for one that begins on the 15th, or days as in `7d` (1 to {max})", max = Length::DAYS_MAX)]
    Length(String),
    /// Not a zone.
    #[error("`{0}` is not a time zone: write it as in Europe/Berlin, or UTC")]
    Zone(String),
}

impl Period {
    /// The span that `now` lies in, for a user who was added at `since`. It holds `now` wherever the calendar reaches (years −9999 to 9999).
    pub fn span(&self, now: UnixSeconds, since: UnixSeconds) -> Range<UnixSeconds> {
        let today = self.zone.date(now);
        let (first, next) = match self.length {
            Length::Month { first_day } => {
                let this_month = day_of_month(today, first_day);
                if today >= this_month {
                    (this_month, day_of_month(months_on(today, 1), first_day))
                } else {
                    (day_of_month(months_on(today, -1), first_day), this_month)
                }
            }
            Length::Days(days) => {
                let origin = self.zone.date(since);
                let passed = origin.until(today).map_or(0, |span| i64::from(span.get_days()));
                let days = i64::from(days);
                let first = passed.div_euclid(days) * days;
                (days_on(origin, first), days_on(origin, first + days))
            }
        };
        self.zone.midnight(first)..self.zone.midnight(next)
    }
}

impl Length {
    /// The most days: ten years.
    pub const DAYS_MAX: u16 = 3650;
}

impl Default for Length {
    fn default() -> Self {
        Self::Month { first_day: 1 }
    }
}

impl FromStr for Length {
    type Err = PeriodError;

    fn from_str(text: &str) -> Result<Self, PeriodError> {
        if text == "month" {
            return Ok(Self::default());
        }
        let length = match (text.strip_prefix("month/"), text.strip_suffix('d')) {
            (Some(day), _) => day.parse().ok().filter(|day| (1..=31).contains(day)).map(|first_day| Self::Month { first_day }),
            (None, Some(days)) => days.parse().ok().filter(|days| (1..=Self::DAYS_MAX).contains(days)).map(Self::Days),
            (None, None) => None,
        };
        length.ok_or_else(|| PeriodError::Length(short(text)))
    }
}

impl fmt::Display for Length {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Month { first_day: 1 } => f.write_str("month"),
            Self::Month { first_day } => write!(f, "month/{first_day}"),
            Self::Days(days) => write!(f, "{days}d"),
        }
    }
}

impl Zone {
    /// The zone's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A moment as people of the zone write it, to the minute.
    pub fn text(&self, moment: UnixSeconds) -> String {
        format!("{} {}", self.rules.to_datetime(timestamp(moment)).strftime("%Y-%m-%d %H:%M"), self.name)
    }

    fn date(&self, moment: UnixSeconds) -> Date {
        self.rules.to_datetime(timestamp(moment)).date()
    }

    /// The first moment of a day: after the gap where a change of clocks skips midnight.
    fn midnight(&self, date: Date) -> UnixSeconds {
        let moment = self.rules.to_timestamp(date.at(0, 0, 0, 0)).map(|midnight| midnight.as_second());
        UnixSeconds(moment.unwrap_or_else(|_| if date.year() < 0 { i64::MIN } else { i64::MAX }))
    }
}

impl Default for Zone {
    fn default() -> Self {
        Self { name: "UTC".into(), rules: TimeZone::UTC }
    }
}

impl FromStr for Zone {
    type Err = PeriodError;

    fn from_str(text: &str) -> Result<Self, PeriodError> {
        if text == "UTC" {
            return Ok(Self::default());
        }
        let rules = TimeZone::get(text).map_err(|_| PeriodError::Zone(short(text)))?;
        Ok(Self { name: rules.iana_name().unwrap_or(text).into(), rules })
    }
}

impl fmt::Display for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)
    }
}

impl fmt::Debug for Zone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Zone({})", self.name)
    }
}

fn timestamp(moment: UnixSeconds) -> Timestamp {
    let seconds = moment.0.clamp(Timestamp::MIN.as_second(), Timestamp::MAX.as_second());
    Timestamp::from_second(seconds).expect("clamped to what there is")
}

fn day_of_month(date: Date, day: u8) -> Date {
    let day = (day.max(1) as i8).min(date.days_in_month());
    Date::new(date.year(), date.month(), day).expect("no more days than the month has")
}

/// Stays where it is at the calendar's ends.
fn months_on(date: Date, months: i64) -> Date {
    date.first_of_month().checked_add(months.months()).unwrap_or(date)
}

fn days_on(date: Date, days: i64) -> Date {
    let there = Span::new().try_days(days).and_then(|span| date.checked_add(span));
    there.unwrap_or(if days < 0 { Date::MIN } else { Date::MAX })
}

fn short(text: &str) -> String {
    text.chars().take(40).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_month_begins_on_its_day_in_its_zone() {
        assert_eq!(span("month", "UTC", "2026-11-24T08:00:00Z"), ["2026-11-01T00:00:00Z", "2026-12-01T00:00:00Z"]);
        assert_eq!(span("month/15", "UTC", "2026-11-14T23:59:59Z"), ["2026-10-15T00:00:00Z", "2026-11-15T00:00:00Z"]);
        assert_eq!(span("month/15", "UTC", "2026-11-15T00:00:00Z"), ["2026-11-15T00:00:00Z", "2026-12-15T00:00:00Z"]);
        // Midnight of the 1st in Auckland is 11:00 of the day before in London.
        assert_eq!(span("month", "Pacific/Auckland", "2026-11-30T11:00:00Z"), ["2026-11-30T11:00:00Z", "2026-12-31T11:00:00Z"]);
        assert_eq!(span("month", "Pacific/Auckland", "2026-11-30T10:59:59Z")[1], "2026-11-30T11:00:00Z");
    }

    #[test]
    fn a_month_that_lacks_the_day_begins_on_its_last() {
        assert_eq!(span("month/31", "UTC", "2027-02-15T00:00:00Z"), ["2027-01-31T00:00:00Z", "2027-02-28T00:00:00Z"]);
        assert_eq!(span("month/31", "UTC", "2028-02-29T00:00:00Z"), ["2028-02-29T00:00:00Z", "2028-03-31T00:00:00Z"]);
    }

    #[test]
    fn a_change_of_clocks_makes_a_period_an_hour_longer_or_shorter() {
        assert_eq!(span("month", "Europe/Berlin", "2026-03-30T00:00:00Z"), ["2026-02-28T23:00:00Z", "2026-03-31T22:00:00Z"]);
        // Midnight itself was skipped.
        assert_eq!(span("1d", "America/Sao_Paulo", "2018-11-04T12:00:00Z"), ["2018-11-04T03:00:00Z", "2018-11-05T02:00:00Z"]);
    }

    #[test]
    fn days_are_counted_from_the_user_s_first() {
        assert_eq!(span("7d", "UTC", "2026-01-01T05:00:00Z"), ["2026-01-01T00:00:00Z", "2026-01-08T00:00:00Z"]);
        assert_eq!(span("7d", "UTC", "2026-01-08T00:00:00Z"), ["2026-01-08T00:00:00Z", "2026-01-15T00:00:00Z"]);
        // A clock that is behind finds a period as well.
        assert_eq!(span("7d", "UTC", "2025-12-31T23:00:00Z"), ["2025-12-25T00:00:00Z", "2026-01-01T00:00:00Z"]);
    }

    #[test]
    fn a_length_survives_its_text() {
        for length in [Length::Month { first_day: 1 }, Length::Month { first_day: 31 }, Length::Days(1), Length::Days(30)] {
            assert_eq!(length.to_string().parse(), Ok(length));
        }
        for text in ["", "d", "0d", "4000d", "-1d", "week", "30", "month/0", "month/32", "month/"] {
            assert!(text.parse::<Length>().is_err(), "{text}");
        }
        assert_eq!("europe/berlin".parse::<Zone>().expect("a zone").name(), "Europe/Berlin");
        assert!("Middle/Earth".parse::<Zone>().is_err());
    }

    proptest! {
        #[test]
        fn every_moment_lies_in_its_span(
            now in -20_000_000_000_i64..200_000_000_000,
            since in -20_000_000_000_i64..200_000_000_000,
            day in 1_u8..=31,
            days in 1_u16..=Length::DAYS_MAX,
            is_month: bool,
            zone in 0_usize..4,
        ) {
            let length = if is_month { Length::Month { first_day: day } } else { Length::Days(days) };
            let zone = ["UTC", "Pacific/Apia", "America/Sao_Paulo", "Asia/Kathmandu"][zone].parse().expect("a zone");
            let period = Period { length, zone };
            let (now, since) = (UnixSeconds(now), UnixSeconds(since));
            let span = period.span(now, since);
            prop_assert!(span.contains(&now), "{now:?} {span:?}");
            let next = period.span(span.end, since);
            prop_assert_eq!(next.start, span.end);
        }

        #[test]
        fn no_moment_panics(now: i64, since: i64, days in 1_u16..=Length::DAYS_MAX) {
            for length in [Length::default(), Length::Days(days)] {
                let _ = Period { length, zone: Zone::default() }.span(UnixSeconds(now), UnixSeconds(since));
            }
        }
    }

    /// The span that `now` lies in, of a user added on the first morning of 2026.
    fn span(length: &str, zone: &str, now: &str) -> [String; 2] {
        let period = Period { length: length.parse().expect("a length"), zone: zone.parse().expect("a zone") };
        let at = |text: &str| UnixSeconds(text.parse::<Timestamp>().expect("a moment").as_second());
        let span = period.span(at(now), at("2026-01-01T08:00:00Z"));
        [span.start, span.end].map(|moment| timestamp(moment).to_string())
    }
}
