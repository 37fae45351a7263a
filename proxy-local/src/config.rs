//! From flags and file to a [`Config`] that can't hold a bad value.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use anyhow::Context;
use serde::Deserialize;
use shared::{
    community::{announce::ANNOUNCE_PORT, member::Role, profile::Profile, roster::RosterConfig},
    link::{
        renew::{LEFT_PERCENT, check_time, left_percent},
        tls::{MemberVerifier, Signer},
    },
    service::{Exit, Failure, LogFormat, default_folder, found_profile, one_or_several, read_config, read_profile, read_secret},
    transfer::schedule::Policy,
};

use crate::{
    bypass::{Bypass, Exception, ExceptionError},
    inbound::{Limits, Rules, auth::Credentials},
    outbound::placed::Rule,
};

/// All that `proxy-local` needs to know to start.
#[derive(Debug)]
pub struct Config {
    /// The member's profiles, one for each LAN.
    pub profiles: Vec<Profile>,
    /// Their files, in the same order, for certificates that are renewed; without one what is renewed is kept in memory alone.
    pub profile_files: Vec<PathBuf>,
    /// The part of its life that a certificate has left when it is renewed, in per cent, 1 to 90.
    pub renew_left_percent: u8,
    /// Where applications find the proxy.
    pub listen: Vec<Bind>,
    /// Relays to use beside those that are found by announcement.
    pub relays: Vec<SocketAddr>,
    /// Which LAN takes which flows, the first that fits; those that none fits go where there is room.
    pub placement: Vec<Rule>,
    /// Whether relays are used that announce themselves, or that `reconst` tells of.
    pub discover: bool,
    /// Where announcements are listened for.
    pub announce_listen: SocketAddr,
    /// The announcements in a row that a relay may miss before it is off the roster.
    pub missed_max: u32,
    /// The folder in which the relays that served are remembered; `None` remembers nothing.
    pub state: Option<PathBuf>,
    /// Whether flows to targets that were reached a short while ago begin before `reconst` has answered.
    pub early_answers: bool,
    /// How chunks are spread over paths.
    pub scheduler: Scheduler,
    /// How datagrams are spread over paths, both ways.
    pub udp_scheduler: Scheduler,
    /// Whether `reconst` is told the address and port of the application behind each flow.
    pub tell_origin: bool,
    /// Where `status` is answered.
    pub admin: Option<Bind>,
    /// The user and password that applications must give.
    pub credentials: Option<Arc<Credentials>>,
    /// Whether flows to this host and the LAN go direct; `None` sends everything through the session, otherwise with these
    /// destinations beside.
    pub bypass: Option<Vec<Exception>>,
    /// What applications may use.
    pub limits: Limits,
}

/// An address to listen on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bind {
    /// The address; port 0 lets the system choose.
    pub address: SocketAddr,
    /// Whether the program can't do without it.
    pub is_required: bool,
}

/// How chunks are spread over paths.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Scheduler {
    /// To the path where the chunk arrives first.
    #[default]
    Adaptive,
    /// In turn, by the relays' weights.
    Wrr,
    /// In turn.
    Rr,
    /// On the two best paths at once.
    Redundant,
}

impl From<Scheduler> for Policy {
    fn from(scheduler: Scheduler) -> Self {
        match scheduler {
            Scheduler::Adaptive => Self::Adaptive,
            Scheduler::Wrr => Self::WeightedRoundRobin,
            Scheduler::Rr => Self::RoundRobin,
            Scheduler::Redundant => Self::Redundant,
        }
    }
}

/// Flags, and the configuration file under the same names. A flag replaces what the file says.
#[derive(clap::Args, Deserialize, Clone, Default, Debug)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Options {
    /// Configuration file (TOML, with the names of these flags)
    #[arg(short = 'c', long, value_name = "FILE")]
    #[serde(skip)]
    config: Option<PathBuf>,
    /// Profile that makes this PC a member of a LAN; once for each LAN [default: user.toml below ~/.config/tributary, as `join` writes it]
    #[arg(long, value_name = "FILE")]
    #[serde(deserialize_with = "one_or_several")]
    profile: Vec<PathBuf>,
    /// Renew the certificate when so many per cent of its life are left, 1 to 90 [default: 33]
    #[arg(long, value_name = "PERCENT")]
    renew_left: Option<u8>,
    /// Where applications find the proxy [default: port 1080 of 127.0.0.1, and of ::1 if free]
    #[arg(long, value_name = "IP:PORT")]
    #[serde(deserialize_with = "one_or_several")]
    listen: Vec<String>,
    /// Relay to use beside those found by announcement
    #[arg(long, value_name = "IP:PORT")]
    #[serde(deserialize_with = "one_or_several")]
    relay: Vec<String>,
    /// Whether to use relays that announce themselves on the LAN or that reconst tells of [default: on]
    #[arg(long, value_enum)]
    discover: Option<Switch>,
    /// Where announcements of relays are listened for [default: UDP port 7653 on every address]
    #[arg(long, value_name = "IP:PORT")]
    announce_listen: Option<String>,
    /// How many announcements in a row a relay may miss before it is off the roster [default: 3]
    #[arg(long, value_name = "N")]
    missed_announces: Option<u32>,
    /// Where the relays that served are remembered [default: STATE_DIRECTORY, or tributary in XDG_STATE_HOME]
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// Whether flows to targets reached a minute ago begin before reconst has answered; a refusal then resets them [default: on]
    #[arg(long, value_enum)]
    early_answers: Option<Switch>,
    /// How chunks are spread over the lines [default: adaptive]
    #[arg(long, value_enum)]
    scheduler: Option<Scheduler>,
    /// Which LAN takes which flows: tables with `to`, `port` and `lan`
    #[arg(skip)]
    rule: Vec<RuleFile>,
    /// How datagrams (calls, games, DNS) are spread over the lines, both ways; redundant sends each twice [default: adaptive]
    #[arg(long, value_enum)]
    udp_scheduler: Option<Scheduler>,
    /// Whether reconst is told the address and port of the application behind each flow, for its table of flows [default: on]
    #[arg(long, value_enum)]
    tell_origin: Option<Switch>,
    /// Where `status` is answered [default: 127.0.0.1:1081 if free]
    #[arg(long, value_name = "IP:PORT")]
    admin: Option<String>,
    /// File with the `user:password` that applications must give (mode 0600)
    #[arg(long, value_name = "FILE")]
    credentials: Option<PathBuf>,
    /// Let anyone who reaches --listen use the proxy without a password
    #[arg(long)]
    allow_anyone: bool,
    /// Whether destinations on this host and on the LAN go direct [default: on]
    #[arg(long, value_enum)]
    bypass: Option<Switch>,
    /// Network or domain that goes direct too, as 10.8.0.0/16 or example.org
    #[arg(long, value_name = "NETWORK|DOMAIN")]
    #[serde(deserialize_with = "one_or_several")]
    bypass_also: Vec<String>,
    /// Applications' connections at once [default: 4096]
    #[arg(long, value_name = "N")]
    max_connections: Option<usize>,
    /// Seconds that flows have to finish after a stop was asked for [default: 5]
    #[arg(long, value_name = "SECONDS")]
    drain_seconds: Option<u64>,
    /// How the log is written: text or json [default: text]
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
}

/// A rule as a file holds it.
#[derive(Deserialize, Clone, Debug)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RuleFile {
    /// A network or a domain; all destinations if it is left out.
    to: Option<String>,
    /// All ports if it is left out.
    port: Option<u16>,
    /// The LAN's name.
    lan: String,
}

impl RuleFile {
    fn resolve(&self, profiles: &[Profile]) -> anyhow::Result<Rule> {
        let lan = profiles.iter().map(|profile| &profile.lan_name).find(|name| name.as_str() == self.lan);
        let lan = lan.ok_or_else(|| Failure::config(format!("a rule sends flows to LAN `{}`, of which there is no profile", self.lan)))?;
        let to = self.to.as_deref().map(str::parse).transpose();
        let to = to.map_err(|error: ExceptionError| Failure::config(format!("in a rule, to = {error}")))?;
        Ok(Rule { to, port: self.port, lan: lan.clone() })
    }
}

/// On or off.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Switch {
    /// On.
    On,
    /// Off.
    Off,
}

impl Options {
    /// These flags over what their file says.
    ///
    /// # Errors
    /// If the file can't be read or holds a key that is none.
    pub fn with_file(self) -> anyhow::Result<Self> {
        let Some(path) = &self.config else { return Ok(self) };
        let file: Self = read_config(path)?;
        Ok(Self {
            config: None,
            profile: either(self.profile, file.profile),
            renew_left: self.renew_left.or(file.renew_left),
            listen: either(self.listen, file.listen),
            relay: either(self.relay, file.relay),
            discover: self.discover.or(file.discover),
            announce_listen: self.announce_listen.or(file.announce_listen),
            missed_announces: self.missed_announces.or(file.missed_announces),
            state: self.state.or(file.state),
            early_answers: self.early_answers.or(file.early_answers),
            rule: file.rule,
            scheduler: self.scheduler.or(file.scheduler),
            udp_scheduler: self.udp_scheduler.or(file.udp_scheduler),
            tell_origin: self.tell_origin.or(file.tell_origin),
            admin: self.admin.or(file.admin),
            credentials: self.credentials.or(file.credentials),
            allow_anyone: self.allow_anyone || file.allow_anyone,
            bypass: self.bypass.or(file.bypass),
            bypass_also: either(self.bypass_also, file.bypass_also),
            max_connections: self.max_connections.or(file.max_connections),
            drain_seconds: self.drain_seconds.or(file.drain_seconds),
            log_format: self.log_format.or(file.log_format),
        })
    }

    /// How the log is written.
    ///
    /// # Errors
    /// If it is not a format.
    pub fn log_format(&self) -> anyhow::Result<LogFormat> {
        Ok(self.log_format.as_deref().map_or(Ok(LogFormat::default()), str::parse)?)
    }

    /// Where `status` is answered.
    ///
    /// # Errors
    /// If it is not an address.
    pub fn admin_address(&self) -> anyhow::Result<SocketAddr> {
        self.admin.as_deref().map_or(Ok(DEFAULT_ADMIN), |text| address(text, "--admin"))
    }

    /// The configuration that these options make.
    ///
    /// # Errors
    /// A [`Failure`] or a file's error that says which setting is wrong and what to do.
    pub fn into_config(self) -> anyhow::Result<Config> {
        let credentials = self.credentials.as_deref().map(read_credentials).transpose()?;
        let listen = self.listen()?;
        if credentials.is_none() && !self.allow_anyone {
            refuse_open_proxy(&listen)?;
        }
        let paths = if self.profile.is_empty() { vec![found_profile(Role::User)?] } else { self.profile.clone() };
        let profiles: Vec<Profile> = paths.iter().map(|path| usable_profile(path)).collect::<anyhow::Result<_>>()?;
        let placement = self.rule.iter().map(|rule| rule.resolve(&profiles)).collect::<anyhow::Result<_>>()?;
        let limits = Limits {
            connections: at_least_one(self.max_connections.unwrap_or(Limits::default().connections))?,
            drain: self.drain_seconds.map_or(Limits::default().drain, Duration::from_secs),
            ..Limits::default()
        };
        let admin = Bind { address: self.admin_address()?, is_required: self.admin.is_some() };
        Ok(Config {
            profiles,
            profile_files: paths,
            renew_left_percent: left_percent(self.renew_left)?,
            listen,
            placement,
            relays: self.relay.iter().map(|text| relay(text)).collect::<anyhow::Result<_>>()?,
            discover: !matches!(self.discover, Some(Switch::Off)),
            announce_listen: self
                .announce_listen
                .as_deref()
                .map_or(Ok(DEFAULT_ANNOUNCE_LISTEN), |text| address(text, "--announce-listen"))?,
            missed_max: missed_max(self.missed_announces)?,
            state: self.state.or_else(default_folder),
            early_answers: !matches!(self.early_answers, Some(Switch::Off)),
            scheduler: self.scheduler.unwrap_or_default(),
            udp_scheduler: self.udp_scheduler.unwrap_or_default(),
            tell_origin: !matches!(self.tell_origin, Some(Switch::Off)),
            admin: Some(admin),
            credentials: credentials.map(Arc::new),
            bypass: match self.bypass {
                Some(Switch::Off) => None,
                Some(Switch::On) | None => Some(parse_all(&self.bypass_also, "--bypass-also")?),
            },
            limits,
        })
    }

    fn listen(&self) -> anyhow::Result<Vec<Bind>> {
        if self.listen.is_empty() {
            return Ok(default_listen());
        }
        self.listen.iter().map(|text| Ok(Bind { address: address(text, "--listen")?, is_required: true })).collect()
    }
}

impl Config {
    /// The defaults for `profiles`, without the `status` endpoint.
    pub fn new(profiles: Vec<Profile>) -> Self {
        Self {
            profiles,
            profile_files: Vec::new(),
            renew_left_percent: LEFT_PERCENT,
            listen: default_listen(),
            relays: Vec::new(),
            placement: Vec::new(),
            discover: true,
            announce_listen: DEFAULT_ANNOUNCE_LISTEN,
            missed_max: RosterConfig::default().missed_max,
            state: None,
            early_answers: true,
            scheduler: Scheduler::default(),
            udp_scheduler: Scheduler::default(),
            tell_origin: true,
            admin: None,
            credentials: None,
            bypass: Some(Vec::new()),
            limits: Limits::default(),
        }
    }

    /// What this configuration lets applications do.
    pub fn rules(&self) -> Rules {
        Rules { credentials: self.credentials.clone(), bypasses_local: self.bypass.is_some() }
    }

    /// The bypass that this configuration asks for.
    pub fn bypass(&self) -> Bypass {
        self.bypass.clone().map_or_else(Bypass::off, Bypass::on)
    }
}

fn default_listen() -> Vec<Bind> {
    vec![
        Bind { address: SocketAddr::from((Ipv4Addr::LOCALHOST, DEFAULT_PORT)), is_required: true },
        Bind { address: SocketAddr::from((Ipv6Addr::LOCALHOST, DEFAULT_PORT)), is_required: false },
    ]
}

fn refuse_open_proxy(listen: &[Bind]) -> anyhow::Result<()> {
    match listen.iter().find(|bind| !bind.address.ip().is_loopback()) {
        None => Ok(()),
        Some(Bind { address, .. }) => Err(Failure::config(format!(
            "anyone who reaches {address} could use your proxy: listen on 127.0.0.1:{}, set a password with --credentials FILE, or say --allow-anyone",
            address.port()
        ))
        .into()),
    }
}

/// Looks at the keys too, so that `check` finds what `run` would fail on.
fn usable_profile(path: &Path) -> anyhow::Result<Profile> {
    let profile = read_profile(path, Role::User)?;
    check_time(&profile)?;
    let keys = Signer::from_profile(&profile).and_then(|_| MemberVerifier::new(&profile.authority_pem));
    keys.map_err(|error| {
        let message = format!("{} can't be used: {error}; ask whoever runs `reconst` for a new one", path.display());
        Failure::new(Exit::Data, message)
    })?;
    Ok(profile)
}

fn read_credentials(path: &Path) -> anyhow::Result<Credentials> {
    let text = read_secret(path, "; write one line `user:password` into it")?;
    Credentials::parse(text.trim_end_matches(['\r', '\n'])).ok_or_else(|| {
        Failure::config(format!("{} must hold one line `user:password`, each part of 1 to 255 bytes", path.display())).into()
    })
}

fn relay(text: &str) -> anyhow::Result<SocketAddr> {
    let unreadable =
        || Failure::config(format!("--relay `{text}` is not an address with a port: write it as 10.0.1.3:7654 or [fe80::1]:7654"));
    let relay: SocketAddr = text.parse().map_err(|_| unreadable())?;
    if relay.port() == 0 {
        return Err(
            Failure::config(format!("--relay {text}: a relay's port is never 0; it is 7654 unless its owner says otherwise")).into()
        );
    }
    Ok(relay)
}

fn address(text: &str, setting: &str) -> anyhow::Result<SocketAddr> {
    text.parse().map_err(|_| {
        Failure::config(format!("{setting} `{text}` is not an address with a port: write it as 127.0.0.1:1080 or [::1]:1080")).into()
    })
}

fn parse_all<T>(texts: &[String], setting: &str) -> anyhow::Result<Vec<T>>
where
    T: FromStr<Err: std::error::Error + Send + Sync + 'static>,
{
    texts
        .iter()
        .map(|text| text.parse().map_err(|error| Failure::config(format!("{setting}: {error}"))).context("in the settings"))
        .collect()
}

fn at_least_one(connections: usize) -> anyhow::Result<usize> {
    if !(1..=CONNECTIONS_MAX).contains(&connections) {
        return Err(Failure::config(format!("--max-connections {connections} is not between 1 and {CONNECTIONS_MAX}")).into());
    }
    Ok(connections)
}

fn either<T>(flags: Vec<T>, file: Vec<T>) -> Vec<T> {
    if flags.is_empty() { file } else { flags }
}

fn missed_max(setting: Option<u32>) -> anyhow::Result<u32> {
    match setting {
        Some(0) => Err(Failure::config("--missed-announces is a whole number from 1: with 0 no relay would ever stay").into()),
        setting => Ok(setting.unwrap_or(RosterConfig::default().missed_max)),
    }
}

/// Every address, and both groups.
const DEFAULT_ANNOUNCE_LISTEN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), ANNOUNCE_PORT);

/// The port registered for SOCKS.
const DEFAULT_PORT: u16 = 1080;

const DEFAULT_ADMIN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 1081);

/// Two connections cannot share a port of one client, and a PC has 65,535.
const CONNECTIONS_MAX: usize = 65_535;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_for_everyone_has_to_be_asked_for() {
        let open = Options { listen: vec!["0.0.0.0:1080".into()], ..Options::default() };
        let failure = failure_of(open.clone());
        assert_eq!(failure.exit, Exit::Config);
        assert!(failure.message.contains("--credentials"), "{failure}");
        let no_profile = Options { allow_anyone: true, profile: vec!["/nonexistent/user.toml".into()], ..open };
        let error = no_profile.into_config().expect_err("no profile").to_string();
        assert!(error.contains("/nonexistent/user.toml"), "{error}");
    }

    #[test]
    fn a_bad_address_names_its_setting() {
        for (options, setting) in [
            (Options { listen: vec!["localhost".into()], ..Options::default() }, "--listen"),
            (Options { listen: vec!["127.0.0.1".into()], ..Options::default() }, "--listen"),
        ] {
            assert!(failure_of(options).message.contains(setting));
        }
        assert!(relay("10.0.1.3:0").is_err() && relay("10.0.1.3").is_err() && relay("10.0.1.3:7654").is_ok());
    }

    #[test]
    fn the_file_takes_the_flags_names_and_no_other() {
        let file: Options = toml::from_str("relay = [\"10.0.1.3:7654\"]\nmax-connections = 5\nbypass = \"off\"\n").expect("options");
        assert_eq!((file.max_connections, file.bypass), (Some(5), Some(Switch::Off)));
        let error = toml::from_str::<Options>("relays = []\n").expect_err("misspelt").to_string();
        assert!(error.contains("`relays`") && error.contains("`relay`"), "{error}");
    }

    #[test]
    fn what_may_be_there_several_times_needs_no_brackets_for_one() {
        let listen = |text: &str| toml::from_str::<Options>(text).map(|options| options.listen).map_err(|error| error.to_string());
        assert_eq!(listen("listen = \"127.0.0.1:1080\""), Ok(vec!["127.0.0.1:1080".into()]));
        assert_eq!(listen("listen = [\"127.0.0.1:1080\"]"), Ok(vec!["127.0.0.1:1080".into()]));
        let error = listen("listen = 1080").expect_err("a number");
        assert!(error.contains("listen") && error.contains("in brackets"), "{error}");
    }

    fn failure_of(options: Options) -> Failure {
        options.into_config().expect_err("bad options").downcast().expect("a failure")
    }
}
