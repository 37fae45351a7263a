//! What a relay is told: its configuration, from flags and a file, valid before any socket opens.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use shared::{
    community::{
        announce::LINES_MAX,
        hello::{AdmissionConfig, LineNumber},
        profile::Profile,
        weight::Weights,
    },
    link::renew::{LEFT_PERCENT, left_percent},
    service::{Failure, StateFile},
};

use crate::{
    announcer::AnnounceConfig,
    line::{DEFAULT_PORT, WanBinding},
    share::ShareConfig,
};

/// A relay's configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The relay's membership.
    pub profile: Profile,
    /// The file of the profile, for its renewed certificate. Default none: kept in memory alone, which does for tests.
    pub profile_file: Option<PathBuf>,
    /// The part of its life that the certificate has left when it is renewed, in per cent, 1 to 90. Default 33.
    pub renew_left_percent: u8,
    /// Its lines, 1 to [`LINES_MAX`], of distinct numbers.
    pub lines: Vec<LineConfig>,
    /// The port on the LAN of the first line that is given none; the following lines take the following ports. Default 7654.
    pub first_port: u16,
    /// How it announces itself.
    pub announce: AnnounceConfig,
    /// Addresses under which users reach the relay beside its own, behind a port forwarding. Default none.
    pub also_reached_as: Vec<SocketAddr>,
    /// The most addresses that each line serves at once. Default 1,024; each takes a socket.
    pub clients_max: usize,
    /// How long a client may be silent before it must ask again. Default 60 s; shorter than a path's keep-alive and paths die idle.
    pub client_idle: Duration,
    /// Whether those who want to become members are carried to `reconst`'s login port, a trickle at a time. Default true; without it a PC
    /// without a line can't join through this relay.
    pub carries_strangers: bool,
    /// How long the relay goes on forwarding once it is to stop. Default 3 s; with 0 its users lose what is under way, much longer only
    /// delays the stop, which comes anyway when no traffic is left.
    pub drain: Duration,
    /// The folder in which the lines' measured rates are remembered, what they have used of their caps, and pauses. Default none: rates
    /// are measured anew after each start, and there can be no cap.
    pub state: Option<PathBuf>,
    /// Where `status` is answered, a loopback address. Default nowhere.
    pub admin: Option<SocketAddr>,
    /// The Unix sockets at which its owner commands it: the first that can be made is. Default none.
    pub control: Vec<PathBuf>,
}

/// One line's configuration.
#[derive(Clone, Debug)]
pub struct LineConfig {
    /// The line's number, 1 to 255.
    pub number: LineNumber,
    /// Where users reach it on the LAN. Default port 7654 on every address of the PC, 7655 for the second line and so on.
    pub lan_bind: Option<SocketAddr>,
    /// Which way its packets leave.
    pub wan: WanBinding,
    /// Its weights as far as the owner sets them; those that are guesses follow from what the line carries. Default guesses.
    pub weights: Weights,
    /// The most of it that is shared. Default all.
    pub share: ShareConfig,
}

impl Config {
    /// The usual configuration of the relay of `profile`, with one line.
    pub fn new(profile: Profile) -> Self {
        Self {
            profile,
            profile_file: None,
            renew_left_percent: LEFT_PERCENT,
            lines: vec![LineConfig::new(LineNumber(1))],
            first_port: DEFAULT_PORT,
            announce: AnnounceConfig::default(),
            also_reached_as: Vec::new(),
            clients_max: AdmissionConfig::CLIENTS_MAX,
            client_idle: AdmissionConfig::IDLE,
            carries_strangers: true,
            drain: Duration::from_secs(3),
            state: None,
            admin: None,
            control: Vec::new(),
        }
    }

    /// The same for the relay's membership of another LAN, the `place`-th from 0: the ports that are given follow those of the LANs before.
    pub fn for_lan(&self, profile: Profile, place: u16) -> Self {
        let offset = place.saturating_mul(self.lines.len() as u16);
        let mut config = Self { profile, profile_file: None, first_port: self.first_port.saturating_add(offset), ..self.clone() };
        for line in &mut config.lines {
            line.lan_bind = line.lan_bind.map(|bind| follow(bind, offset));
        }
        config.admin = config.admin.map(|admin| follow(admin, place));
        config
    }

    /// Where line `number` is remembered.
    pub(crate) fn state_file(&self, number: LineNumber) -> Option<StateFile> {
        let identity = &self.profile.identity;
        let name = format!("relay-{}-{}-line{}.toml", identity.lan, identity.name, number.0);
        StateFile::new(Some(self.state.as_deref()?), &name)
    }

    /// Whether the relay could start, as far as can be told without starting it.
    ///
    /// # Errors
    /// What to do about it, if not.
    pub fn check(&self) -> Result<(), Failure> {
        if self.lines.is_empty() || self.lines.len() > LINES_MAX {
            return Err(Failure::config(format!("a relay has 1 to {LINES_MAX} lines, not {}", self.lines.len())));
        }
        left_percent(Some(self.renew_left_percent))?;
        if self.announce.interval < INTERVAL_MIN || self.announce.interval > INTERVAL_MAX {
            return Err(Failure::config("announce-interval-ms is a number from 10 to 60000"));
        }
        for line in &self.lines {
            if line.number == LineNumber::ANY || self.lines.iter().filter(|other| other.number == line.number).count() > 1 {
                return Err(Failure::config(format!("{} is not a number that one line alone has, from 1", line.number)));
            }
            if line.share.terms.cap.is_some() && self.state.is_none() {
                return Err(Failure::config("a cap needs a folder to keep its count in: name one with --state"));
            }
            line.wan.check()?;
        }
        Ok(())
    }
}

/// The address so many ports on; one that the system chooses is chosen again.
fn follow(address: SocketAddr, ports: u16) -> SocketAddr {
    let port = if address.port() == 0 { 0 } else { address.port().saturating_add(ports) };
    SocketAddr::new(address.ip(), port)
}

impl LineConfig {
    /// The usual line of that number.
    pub fn new(number: LineNumber) -> Self {
        Self { number, lan_bind: None, wan: WanBinding::Default, weights: Weights::default(), share: ShareConfig::default() }
    }
}

const INTERVAL_MIN: Duration = Duration::from_millis(10);
const INTERVAL_MAX: Duration = Duration::from_secs(60);
