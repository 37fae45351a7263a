//! What a relay is told: its configuration, from flags and a file, valid before any socket opens.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use shared::{
    community::{
        announce::LINES_MAX,
        hello::{AdmissionConfig, LineNumber},
        profile::Profile,
        weight::Weights,
    },
    service::{Failure, StateFile},
};

use crate::{announcer::AnnounceConfig, line::WanBinding, share::ShareConfig};

/// A relay's configuration.
#[derive(Clone, Debug)]
pub struct Config {
    /// The relay's membership.
    pub profile: Profile,
    /// Its lines, 1 to [`LINES_MAX`], of distinct numbers.
    pub lines: Vec<LineConfig>,
    /// How it announces itself.
    pub announce: AnnounceConfig,
    /// Addresses under which users reach the relay beside its own, behind a port forwarding. Default none.
    pub also_reached_as: Vec<SocketAddr>,
    /// The most addresses that each line serves at once. Default 1,024; each takes a socket.
    pub clients_max: usize,
    /// How long a client may be silent before it must ask again. Default 60 s; shorter than a path's keep-alive and paths die idle.
    pub client_idle: Duration,
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
            lines: vec![LineConfig::new(LineNumber(1))],
            announce: AnnounceConfig::default(),
            also_reached_as: Vec::new(),
            clients_max: AdmissionConfig::CLIENTS_MAX,
            client_idle: AdmissionConfig::IDLE,
            drain: Duration::from_secs(3),
            state: None,
            admin: None,
            control: Vec::new(),
        }
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

impl LineConfig {
    /// The usual line of that number.
    pub fn new(number: LineNumber) -> Self {
        Self { number, lan_bind: None, wan: WanBinding::Default, weights: Weights::default(), share: ShareConfig::default() }
    }
}

const INTERVAL_MIN: Duration = Duration::from_millis(10);
const INTERVAL_MAX: Duration = Duration::from_secs(60);
