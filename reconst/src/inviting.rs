//! The commands that invite, and list and withdraw invites.

use std::io::{IsTerminal, Write};

use clap::{Args, Subcommand};
use qrcode::{EcLevel, QrCode, render::unicode::Dense1x2};
use reconst::accounts::{
    Limits,
    invites::{Invitation, InviteState, ListedInvite},
};
use shared::{
    community::member::{Name, Role},
    service::Failure,
};
use time::{Duration, OffsetDateTime, format_description::well_known::Rfc3339};

use crate::{limits::LimitOptions, register::State};

// Its variant in the commands is a group of that name too.
#[derive(Args)]
#[group(skip)]
pub(crate) struct Invite {
    /// The member's name: letters a-z, digits and hyphens
    name: Name,
    #[command(flatten)]
    state: State,
    /// The LAN it will belong to
    #[arg(long, value_name = "NAME")]
    lan: Name,
    /// How long the invite serves, as in 7d, 12h or 30m
    #[arg(long, value_name = "TIME", default_value = "7d", value_parser = invite_lifetime)]
    expires: Duration,
    /// Invite somebody who has joined already: another PC of a user's, the next PC of a relay's, or one whose certificate has ended
    #[arg(long)]
    again: bool,
}

#[derive(Subcommand)]
pub(crate) enum InviteCommand {
    /// List the invites
    List {
        #[command(flatten)]
        state: State,
        /// Only those of this LAN
        #[arg(long, value_name = "NAME")]
        lan: Option<Name>,
    },
    /// Withdraw an invite that was not used yet
    Revoke {
        /// The invite's number, as `invite list` shows it
        number: u32,
        #[command(flatten)]
        state: State,
    },
}

impl Invite {
    pub(crate) async fn execute(self, role: Role, limits: Option<LimitOptions>) -> anyhow::Result<()> {
        let limits = limits.map(|limits| limits.applied_to(Limits::default())).transpose()?.unwrap_or_default();
        if self.again && limits != Limits::default() {
            return Err(Failure::usage("who is invited again keeps the limits there are: leave the limits out").into());
        }
        let registrar = self.state.open().await?;
        let invitation = Invitation { lan: &self.lan, role, name: &self.name, limits: &limits, again: self.again, lifetime: self.expires };
        let (invite, invited) = registrar.invite(&invitation).await?;
        registrar.accounts().close().await;
        let link = invite.to_string();
        let program = match role {
            Role::User => "proxy-local",
            Role::Relay => "peer-relay",
        };
        // The link alone is on standard output, for scripts.
        let mut told = std::io::stderr().lock();
        if std::io::stderr().is_terminal() {
            writeln!(told, "{}", qr_code(&link)?)?;
        }
        let (number, until) = (invited.number, text(invited.expires_at));
        writeln!(told, "invite {number} for {role} {} of LAN {}, good for one PC until {until}:", self.name, self.lan)?;
        println!("{link}");
        writeln!(told, "on that PC: {program} join '{link}'")?;
        writeln!(told, "whoever has the link first is {}: send it by a channel you trust", self.name)?;
        Ok(())
    }
}

impl InviteCommand {
    pub(crate) async fn execute(self) -> anyhow::Result<()> {
        match self {
            Self::List { state, lan } => {
                let registrar = state.open().await?;
                let mut invites = registrar.accounts().invites().await.map_err(Failure::from)?;
                if let Some(lan) = &lan {
                    registrar.accounts().lan(lan).await.map_err(Failure::from)?;
                    invites.retain(|invite| invite.lan_name == *lan);
                }
                for ListedInvite { number, identity, lan_name, expires_at, state } in invites {
                    let state = match state {
                        InviteState::Open => format!("open until {}", text(expires_at)),
                        InviteState::Used(on) => format!("used on {on}"),
                        InviteState::Revoked => "withdrawn".into(),
                        InviteState::Expired => format!("ended at {}", text(expires_at)),
                    };
                    println!("{number}\t{} {}\tLAN {lan_name} ({})\t{state}", identity.role, identity.name, identity.lan);
                }
            }
            Self::Revoke { number, state } => {
                state.open().await?.accounts().revoke_invite(number).await.map_err(Failure::from)?;
                println!("withdrew invite {number}");
            }
        }
        Ok(())
    }
}

/// Light on dark, as most terminals are; readers take both.
fn qr_code(link: &str) -> anyhow::Result<String> {
    let code = QrCode::with_error_correction_level(link, EcLevel::L)?;
    Ok(code.render::<Dense1x2>().dark_color(Dense1x2::Light).light_color(Dense1x2::Dark).build())
}

fn text(at: OffsetDateTime) -> String {
    at.replace_nanosecond(0).unwrap_or(at).format(&Rfc3339).unwrap_or_else(|_| at.to_string())
}

fn invite_lifetime(text: &str) -> Result<Duration, String> {
    time_span(text).filter(|time| (LIFETIME_MIN..=LIFETIME_MAX).contains(time)).ok_or_else(|| {
        format!("`{}` is not a time from a minute to a year: write it as in 7d, 12h or 30m", text.chars().take(40).collect::<String>())
    })
}

/// Days from 1 to ten years, as in `365d`.
pub(crate) fn certificate_lifetime(text: &str) -> Result<Duration, String> {
    time_span(text).filter(|time| (Duration::days(1)..=Duration::days(3650)).contains(time)).ok_or_else(|| {
        format!("`{}` is not a time from a day to ten years: write it as in 365d", text.chars().take(40).collect::<String>())
    })
}

fn time_span(text: &str) -> Option<Duration> {
    let (number, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    let number = i64::from(number.parse::<u32>().ok()?);
    Some(match unit {
        "d" => Duration::days(number),
        "h" => Duration::hours(number),
        "m" => Duration::minutes(number),
        "s" => Duration::seconds(number),
        _ => return None,
    })
}

/// Long enough to walk over with it.
const LIFETIME_MIN: Duration = Duration::minutes(1);

/// Beyond it nobody remembers whom it was for.
const LIFETIME_MAX: Duration = Duration::days(365);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_a_number_with_its_unit() {
        for (text, expected) in [("7d", Duration::days(7)), ("12h", Duration::hours(12)), ("30m", Duration::minutes(30))] {
            assert_eq!(invite_lifetime(text), Ok(expected));
        }
        for text in ["", "d", "7", "-1d", "1.5h", "0d", "59s", "366d", "7w", "ä", "99999999999d"] {
            assert!(invite_lifetime(text).is_err(), "{text}");
        }
        assert!(certificate_lifetime("23h").is_err() && certificate_lifetime("90d").is_ok());
    }

    #[test]
    fn a_link_fits_a_qr_code_that_a_terminal_shows() {
        let link = format!("tributary://isp.example:10000/relay/{}", "A".repeat(76));
        let code = qr_code(&link).expect("short enough");
        assert!(code.lines().all(|line| line.chars().count() <= 80) && code.lines().count() <= 24, "{code}");
    }
}
