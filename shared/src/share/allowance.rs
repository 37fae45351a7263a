//! Whether the owner of a line shares it right now: pauses, hours of the day, a monthly cap.
//!
//! Enters: the owner's terms, a pause or its end, the bytes carried, and what the clock says. Leaves: why the line is held back, if it
//! is ([`Hold`]). Always holds: a month's count never falls before the next month begins, whatever the clock does. Where the count is
//! kept and what a hold leads to is left to the driver.

use std::{fmt, str::FromStr};

use thiserror::Error;

use crate::units::Size;

/// On what terms a line is shared.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Terms {
    /// The most that it carries a month, both ways. Default no limit.
    pub cap: Option<Cap>,
    /// When it is shared. Default always.
    pub hours: Hours,
}

/// The most that a line carries a month.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Cap {
    /// Up and down together, headers included.
    pub size: Size,
    /// The day on which the month begins, 1 to 31; the last of a month that is shorter.
    pub start_day: u8,
}

/// Hours of the day; none stand for the whole day.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Hours {
    windows: Vec<Window>,
}

/// From a minute of the day until another, which may be the next day's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Window {
    from: u16,
    to: u16,
}

/// A text that gives no hours.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
#[error("`{0}` are no hours: write 22:00-07:00, several with commas between them, in the PC's own time zone")]
pub struct HoursError(String);

/// What the clock says where the line is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Clock {
    /// Seconds since 1970.
    pub unix_secs: u64,
    /// The year.
    pub year: i16,
    /// The month, 1 to 12.
    pub month: u8,
    /// The day of the month, from 1.
    pub day: u8,
    /// How many days the month has.
    pub days_in_month: u8,
    /// The minute of the day, 0 to 1,439.
    pub minute: u16,
}

/// A month of the cap, named after the day it begins on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Debug)]
pub struct Month {
    /// The year.
    pub year: i16,
    /// The month, 1 to 12.
    pub month: u8,
}

/// What has to outlive a restart.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Kept {
    /// The month that is counted.
    pub month: Month,
    /// The bytes carried in it.
    pub bytes: u64,
    /// The pause, if the owner has taken the line back.
    pub pause: Option<Pause>,
}

/// The owner has taken the line back for a while.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Pause {
    /// Until then, in seconds since 1970; for good if `None`.
    pub until: Option<u64>,
}

/// Why a line is not shared right now.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hold {
    /// Its owner has taken it back.
    Paused(Pause),
    /// It is not the time of day.
    OutsideHours,
    /// It has carried all that its owner shares this month.
    CapReached(Cap),
}

/// The terms of one line at work.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Allowance {
    terms: Terms,
    kept: Kept,
}

impl Allowance {
    /// A line on these terms, with what was kept of before.
    pub fn new(terms: Terms, kept: Kept) -> Self {
        Self { terms, kept }
    }

    /// Why the line is held back now, if it is.
    pub fn hold(&mut self, clock: Clock) -> Option<Hold> {
        self.turn_month(clock);
        if self.kept.pause.is_some_and(|pause| pause.until.is_some_and(|until| clock.unix_secs >= until)) {
            self.kept.pause = None;
        }
        if let Some(pause) = self.kept.pause {
            return Some(Hold::Paused(pause));
        }
        if !self.terms.hours.contains(clock.minute) {
            return Some(Hold::OutsideHours);
        }
        self.terms.cap.filter(|cap| self.kept.bytes >= cap.size.bytes).map(Hold::CapReached)
    }

    /// Notes that the line has carried `bytes`.
    pub fn on_carried(&mut self, clock: Clock, bytes: u64) {
        self.turn_month(clock);
        self.kept.bytes = self.kept.bytes.saturating_add(bytes);
    }

    /// Takes the line back, or shares it again.
    pub fn set_pause(&mut self, pause: Option<Pause>) {
        self.kept.pause = pause;
    }

    /// What has to outlive a restart.
    pub fn kept(&self) -> Kept {
        self.kept
    }

    /// The terms.
    pub fn terms(&self) -> &Terms {
        &self.terms
    }

    fn turn_month(&mut self, clock: Clock) {
        let start_day = self.terms.cap.map_or(1, |cap| cap.start_day);
        let month = Month::of(clock, start_day);
        if month > self.kept.month {
            (self.kept.month, self.kept.bytes) = (month, 0);
        }
    }
}

impl Month {
    fn of(clock: Clock, start_day: u8) -> Self {
        let Clock { year, month, .. } = clock;
        if clock.day >= start_day.min(clock.days_in_month) {
            return Self { year, month };
        }
        if month == 1 { Self { year: year - 1, month: 12 } } else { Self { year, month: month - 1 } }
    }
}

impl Hours {
    /// Whether a minute of the day, 0 to 1,439, is among them.
    pub fn contains(&self, minute: u16) -> bool {
        self.windows.is_empty() || self.windows.iter().any(|window| window.contains(minute))
    }
}

impl Window {
    fn contains(self, minute: u16) -> bool {
        if self.from < self.to { (self.from..self.to).contains(&minute) } else { minute >= self.from || minute < self.to }
    }
}

impl FromStr for Hours {
    type Err = HoursError;

    fn from_str(text: &str) -> Result<Self, HoursError> {
        let windows: Option<Vec<_>> = text.split(',').map(|window| parse_window(window.trim())).collect();
        windows.map(|windows| Self { windows }).ok_or_else(|| HoursError(text.into()))
    }
}

fn parse_window(text: &str) -> Option<Window> {
    let (from, to) = text.split_once('-')?;
    let (from, to) = (parse_minute(from)?, parse_minute(to)?);
    // 24:00 is the end of a day, never its beginning.
    (from != to && from < DAY_MINUTES).then_some(Window { from, to })
}

fn parse_minute(text: &str) -> Option<u16> {
    let (hour, minute) = text.split_once(':')?;
    let is_number = |digits: &str| (1..=2).contains(&digits.len()) && digits.bytes().all(|byte| byte.is_ascii_digit());
    if !is_number(hour) || !is_number(minute) || minute.len() != 2 {
        return None;
    }
    let (hour, minute): (u16, u16) = (hour.parse().ok()?, minute.parse().ok()?);
    (minute < 60 && hour * 60 + minute <= DAY_MINUTES).then_some(hour * 60 + minute)
}

impl fmt::Display for Hours {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.windows.is_empty() {
            return f.write_str("always");
        }
        for (index, Window { from, to }) in self.windows.iter().enumerate() {
            let comma = if index == 0 { "" } else { "," };
            write!(f, "{comma}{:02}:{:02}-{:02}:{:02}", from / 60, from % 60, to / 60, to % 60)?;
        }
        Ok(())
    }
}

impl fmt::Display for Hold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Paused(_) => f.write_str("paused"),
            Self::OutsideHours => f.write_str("outside its hours"),
            Self::CapReached(cap) => write!(f, "the month's {} are used up", cap.size),
        }
    }
}

const DAY_MINUTES: u16 = 24 * 60;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hours_may_pass_midnight_and_be_several() {
        let hours: Hours = "22:00-07:00, 12:30-13:00".parse().unwrap();
        for (text, is_shared) in
            [("22:00", true), ("23:59", true), ("00:00", true), ("06:59", true), ("07:00", false), ("12:30", true), ("13:00", false)]
        {
            assert_eq!(hours.contains(parse_minute(text).unwrap()), is_shared, "{text}");
        }
        assert_eq!(hours.to_string(), "22:00-07:00,12:30-13:00");
        assert!("00:00-24:00".parse::<Hours>().unwrap().contains(1439));
    }

    #[test]
    fn what_gives_no_hours_is_refused() {
        for text in ["", "22-07", "22:00", "22:00-", "24:00-07:00", "22:60-07:00", "07:00-07:00", "7:0-8:00", "+7:00-8:00", "25:00-26:00"] {
            assert!(text.parse::<Hours>().is_err(), "{text}");
        }
    }

    #[test]
    fn a_month_begins_on_its_day_or_on_the_last() {
        let month = |month, day, days_in_month, start_day| Month::of(Clock { month, day, days_in_month, ..noon(0) }, start_day).month;
        assert_eq!(month(3, 14, 31, 15), 2);
        assert_eq!(month(3, 15, 31, 15), 3);
        assert_eq!(month(2, 27, 28, 31), 1);
        assert_eq!(month(2, 28, 28, 31), 2);
        assert_eq!(Month::of(Clock { month: 1, day: 1, ..noon(0) }, 2), Month { year: 2025, month: 12 });
    }

    #[test]
    fn a_cap_holds_the_line_until_the_next_month() {
        let mut allowance = Allowance::new(capped(1000), Kept::default());
        allowance.on_carried(noon(3), 999);
        assert_eq!(allowance.hold(noon(3)), None);
        allowance.on_carried(noon(4), 1);
        assert!(matches!(allowance.hold(noon(4)), Some(Hold::CapReached(_))));
        assert!(allowance.hold(noon(30)).is_some());
        assert_eq!(allowance.hold(Clock { month: 7, day: 1, ..noon(1) }), None);
    }

    #[test]
    fn a_count_goes_on_after_a_restart_and_is_not_lost_to_a_clock_that_stands() {
        let mut allowance = Allowance::new(capped(1000), Kept::default());
        allowance.on_carried(noon(3), 700);
        let mut allowance = Allowance::new(capped(1000), allowance.kept());
        allowance.on_carried(Clock { year: 1970, ..noon(1) }, 300);
        assert!(allowance.hold(noon(3)).is_some());
    }

    #[test]
    fn a_pause_ends_by_itself_or_by_its_owner() {
        let mut allowance = Allowance::new(Terms::default(), Kept::default());
        allowance.set_pause(Some(Pause { until: Some(noon(3).unix_secs + 1) }));
        assert!(matches!(allowance.hold(noon(3)), Some(Hold::Paused(_))));
        assert_eq!(allowance.hold(Clock { unix_secs: noon(3).unix_secs + 1, ..noon(3) }), None);
        allowance.set_pause(Some(Pause { until: None }));
        assert!(allowance.hold(noon(29)).is_some());
        allowance.set_pause(None);
        assert_eq!(allowance.hold(noon(29)), None);
    }

    fn capped(bytes: u64) -> Terms {
        Terms { cap: Some(Cap { size: Size { bytes }, start_day: 1 }), hours: Hours::default() }
    }

    /// Noon on that day of June 2026.
    fn noon(day: u8) -> Clock {
        let unix_secs = 1_780_000_000 + u64::from(day) * 86_400;
        Clock { unix_secs, year: 2026, month: 6, day, days_in_month: 30, minute: 720 }
    }
}
