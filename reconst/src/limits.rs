//! What a user may spend, as flags say it and as it is shown.

use std::{fmt::Write, str::FromStr};

use clap::Args;
use reconst::accounts::{Limits, Quota, lan_accounts::LanReport, report::UserReport};
use shared::{
    community::quota::{AtLimit, Counts, Earning, Length, Percent, Period, Zone},
    service::Failure,
    units::{Rate, Size},
};

#[derive(Args)]
pub(crate) struct LimitOptions {
    /// Bytes per period, as in 100GB, or none
    #[arg(long, value_name = "SIZE")]
    quota: Option<OrNone<Size>>,
    /// Which bytes the quota counts: up, down or both [default: both]
    #[arg(long, value_name = "WHICH")]
    counts: Option<Counts>,
    /// The quota's period: month, month/15 for one that begins on the 15th, or days as in 7d [default: month]
    #[arg(long)]
    period: Option<Length>,
    /// Whose midnight the period begins at, as in Europe/Berlin [default: UTC]
    #[arg(long, value_name = "ZONE")]
    time_zone: Option<Zone>,
    /// Once the quota is used up, go on at this rate rather than refuse; none to refuse
    #[arg(long, value_name = "RATE")]
    throttle: Option<OrNone<Rate>>,
    /// Add this part of what the user's relays carry for others to the quota, as in 50%, or none
    #[arg(long, value_name = "PART")]
    earn: Option<OrNone<Percent>>,
    /// The most that is added in a period, or none
    #[arg(long, value_name = "SIZE")]
    earn_at_most: Option<OrNone<Size>>,
    /// Bits per second towards the internet, as in 20M, or none
    #[arg(long, value_name = "RATE")]
    rate_up: Option<OrNone<Rate>>,
    /// Bits per second from the internet, or none
    #[arg(long, value_name = "RATE")]
    rate_down: Option<OrNone<Rate>>,
    /// Flows at the same time, or none
    #[arg(long, value_name = "N")]
    max_flows: Option<OrNone<Flows>>,
}

/// A value, or that there is to be none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct OrNone<T>(Option<T>);

/// A number of flows, at least 1.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Flows(u32);

impl LimitOptions {
    /// Whether nothing is said.
    pub(crate) fn is_empty(&self) -> bool {
        let Self { quota, counts, period, time_zone, throttle, earn, earn_at_most, rate_up, rate_down, max_flows } = self;
        quota.is_none()
            && counts.is_none()
            && period.is_none()
            && time_zone.is_none()
            && throttle.is_none()
            && earn.is_none()
            && earn_at_most.is_none()
            && rate_up.is_none()
            && rate_down.is_none()
            && max_flows.is_none()
    }

    /// `limits` with what the flags change.
    ///
    /// # Errors
    /// If they say something about a quota that there is none of, or the most of what is not earned.
    pub(crate) fn applied_to(self, mut limits: Limits) -> Result<Limits, Failure> {
        match self.quota {
            Some(OrNone(None)) => limits.quota = None,
            Some(OrNone(Some(size))) => match &mut limits.quota {
                Some(quota) => quota.size = size,
                none => *none = Some(Quota::of(size)),
            },
            None => {}
        }
        let is_about_quota = self.counts.is_some()
            || self.period.is_some()
            || self.time_zone.is_some()
            || self.throttle.is_some()
            || self.earn.is_some()
            || self.earn_at_most.is_some();
        match &mut limits.quota {
            Some(quota) => {
                quota.counts = self.counts.unwrap_or(quota.counts);
                let Period { length, zone } = quota.period.clone();
                quota.period = Period { length: self.period.unwrap_or(length), zone: self.time_zone.unwrap_or(zone) };
                if let Some(OrNone(throttle)) = self.throttle {
                    quota.at_limit = throttle.map_or(AtLimit::Refuse, AtLimit::Throttle);
                }
                quota.earning = earning(quota.earning, self.earn, self.earn_at_most)?;
            }
            None if is_about_quota => {
                return Err(Failure::usage(
                    "--counts, --period, --time-zone, --throttle and --earn say more about a quota: give --quota SIZE as well",
                ));
            }
            None => {}
        }
        if let Some(OrNone(rate)) = self.rate_up {
            limits.rate_up = rate;
        }
        if let Some(OrNone(rate)) = self.rate_down {
            limits.rate_down = rate;
        }
        if let Some(OrNone(flows)) = self.max_flows {
            limits.max_flows = flows.map(|Flows(flows)| flows);
        }
        Ok(limits)
    }
}

/// What is earned once `part` and `at_most` have changed what was.
fn earning(before: Option<Earning>, part: Option<OrNone<Percent>>, at_most: Option<OrNone<Size>>) -> Result<Option<Earning>, Failure> {
    let percent = part.map_or(before.map(|before| before.percent), |OrNone(percent)| percent);
    let most_before = before.and_then(|before| before.at_most);
    match (percent, at_most) {
        (Some(percent), at_most) => Ok(Some(Earning { percent, at_most: at_most.map_or(most_before, |OrNone(at_most)| at_most) })),
        (None, Some(OrNone(Some(_)))) => Err(Failure::usage("--earn-at-most says more about what is earned: give --earn PART as well")),
        (None, _) => Ok(None),
    }
}

impl<T: FromStr> FromStr for OrNone<T> {
    type Err = T::Err;

    fn from_str(text: &str) -> Result<Self, T::Err> {
        if text == "none" { Ok(Self(None)) } else { text.parse().map(|value| Self(Some(value))) }
    }
}

impl FromStr for Flows {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let flows = text.parse().ok().filter(|flows| *flows > 0);
        flows.map(Self).ok_or_else(|| format!("`{}` is not a number of flows, 1 or more", text.chars().take(40).collect::<String>()))
    }
}

/// A user's limits and usage on one line.
pub(crate) fn text(user: &UserReport) -> String {
    let used = Size { bytes: user.up_bytes + user.down_bytes };
    let mut parts = vec![match (user.limits.quota_bytes, user.used_percent) {
        (Some(bytes), Some(percent)) => format!("{percent} % of {}{} used, resets {}", quota_text(user, bytes), earned(user), user.resets),
        _ => format!("{used} this month, no quota"),
    }];
    let rate = |bits_per_second| Rate { bits_per_second };
    parts.extend(user.limits.throttle_bits_per_second.map(|bits| format!("then {}", rate(bits))));
    parts.extend(user.limits.rate_up_bits_per_second.map(|bits| format!("up {}", rate(bits))));
    parts.extend(user.limits.rate_down_bits_per_second.map(|bits| format!("down {}", rate(bits))));
    parts.extend(user.limits.max_flows.map(|flows| format!("{flows} flows")));
    parts.join(", ")
}

/// A LAN, what its users may spend together and have, on one line.
pub(crate) fn lan_text(lan: &LanReport) -> String {
    let used = Size { bytes: lan.up_bytes + lan.down_bytes };
    let limits = lan.limits.clone().parse().map_or_else(|error| error.to_string(), |limits| limits.to_string());
    let used = match lan.used_percent {
        Some(percent) => format!("{percent} % used, resets {}", lan.resets),
        None => format!("{used} this month"),
    };
    format!("{}\tLAN {}\tdata port {}\t{used}, {limits}", lan.name, lan.lan_id, lan.data_port)
}

/// A user's limits and usage, a line each.
pub(crate) fn description(user: &UserReport) -> String {
    let mut out = String::new();
    let _ = writeln!(out, "user {} of LAN {} ({})", user.name, user.lan, user.lan_id);
    let size = |bytes| Size { bytes }.to_string();
    let _ = writeln!(out, "  used    {} up, {} down, since {}", size(user.up_bytes), size(user.down_bytes), began(user));
    let _ = writeln!(out, "  lent    {} up, {} down by own relays, this month", size(user.lent_up_bytes), size(user.lent_down_bytes));
    let _ = match (user.limits.quota_bytes, user.used_percent) {
        (Some(bytes), Some(percent)) => {
            writeln!(out, "  quota   {}{}: {percent} % used, resets {}", quota_text(user, bytes), earned(user), user.resets)
        }
        _ => writeln!(out, "  quota   none"),
    };
    if let Some(percent) = user.limits.earn_percent {
        let at_most = user.limits.earn_at_most_bytes.map(|bytes| format!(", at most {}", size(bytes))).unwrap_or_default();
        let _ = writeln!(out, "  earns   {percent} % of what own relays carry for others{at_most}");
    }
    if user.limits.quota_bytes.is_some() {
        let beyond = user.limits.throttle_bits_per_second.map(|bits_per_second| Rate { bits_per_second }.to_string());
        let _ = writeln!(out, "  beyond  {}", beyond.unwrap_or_else(|| "refused".into()));
    }
    let rate = |bits: Option<u64>| bits.map_or_else(|| "no limit".into(), |bits_per_second| Rate { bits_per_second }.to_string());
    let _ =
        writeln!(out, "  rates   up {}, down {}", rate(user.limits.rate_up_bits_per_second), rate(user.limits.rate_down_bits_per_second));
    let _ = writeln!(out, "  flows   {}", user.limits.max_flows.map_or_else(|| "no limit".into(), |flows| flows.to_string()));
    out
}

/// What is added to the quota, if it earns.
fn earned(user: &UserReport) -> String {
    user.earned_bytes.map(|bytes| format!(" (and {} earned)", Size { bytes })).unwrap_or_default()
}

fn quota_text(user: &UserReport, bytes: u64) -> String {
    let which = match user.limits.quota_counts.as_deref() {
        Some("up") => " up",
        Some("down") => " down",
        _ => "",
    };
    format!("{}{which} per {}", Size { bytes }, user.limits.period.as_deref().unwrap_or("month"))
}

fn began(user: &UserReport) -> String {
    let zone = user.limits.time_zone.as_deref().and_then(|zone| zone.parse::<Zone>().ok()).unwrap_or_default();
    zone.text(shared::community::quota::UnixSeconds(user.period_began_at))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Cli {
        #[command(flatten)]
        limits: LimitOptions,
    }

    #[test]
    fn flags_change_what_they_name_and_leave_the_rest() {
        let limits = applied("--quota 100GB --period month/15 --time-zone Europe/Berlin --rate-up 5M --max-flows 200", Limits::default());
        let quota = limits.quota.clone().expect("a quota");
        assert_eq!((quota.size, quota.counts, quota.at_limit), (Size { bytes: 100_000_000_000 }, Counts::Both, AtLimit::Refuse));
        let changed = applied("--throttle 64k --max-flows none", limits.clone());
        let throttled = Quota { at_limit: AtLimit::Throttle(Rate { bits_per_second: 64_000 }), ..quota };
        assert_eq!(changed, Limits { quota: Some(throttled), max_flows: None, ..limits.clone() });
        assert_eq!(applied("--quota none", limits).quota, None);
    }

    #[test]
    fn what_is_earned_is_set_changed_and_taken_away() {
        let limits = applied("--quota 1GB --earn 50% --earn-at-most 200MB", Limits::default());
        let earning = |limits: &Limits| limits.quota.as_ref().expect("a quota").earning.map(|earning| earning.to_string());
        assert_eq!(earning(&limits).as_deref(), Some("earns 50 % of what is lent up to 200.0 MB"));
        for (flags, after) in [
            ("--quota 2GB", Some("earns 50 % of what is lent up to 200.0 MB")),
            ("--earn 10%", Some("earns 10 % of what is lent up to 200.0 MB")),
            ("--earn-at-most none", Some("earns 50 % of what is lent")),
            ("--earn none", None),
        ] {
            assert_eq!(earning(&applied(flags, limits.clone())).as_deref(), after, "{flags}");
        }
        assert!(parsed("--earn none --earn-at-most 1GB").applied_to(limits).is_err());
    }

    #[test]
    fn what_is_said_of_no_quota_is_refused() {
        for flags in ["--period 7d", "--throttle 64k", "--quota none --counts up", "--earn 50%"] {
            assert!(parsed(flags).applied_to(Limits::default()).is_err(), "{flags}");
        }
        for flags in ["--max-flows 0", "--earn 50", "--quota lots", "--counts sideways", "--time-zone Nowhere/Land"] {
            assert!(Cli::try_parse_from(std::iter::once("x").chain(flags.split(' '))).is_err(), "{flags}");
        }
    }

    fn applied(flags: &str, limits: Limits) -> Limits {
        parsed(flags).applied_to(limits).expect("valid flags")
    }

    fn parsed(flags: &str) -> LimitOptions {
        Cli::parse_from(std::iter::once("x").chain(flags.split(' '))).limits
    }
}
