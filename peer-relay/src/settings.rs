//! What `run` and `check` are told, by flags and by a file of the same names.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use clap::Args;
use peer_relay::{Config, GiveWay, LineConfig, WanBinding};
use serde::Deserialize;
use shared::{
    community::{
        hello::LineNumber,
        member::{Identity, Role},
        weight::{LineWeight, Weight},
    },
    link::renew::{check_time, left_percent},
    service::{Failure, LogFormat, control, default_folder, found_profile, one_or_several, read_config, read_profile},
    share::allowance::{Cap, Hours},
    units::{Rate, Size},
};

#[derive(Args)]
pub(crate) struct Settings {
    /// Read settings from a TOML file: the same names, without dashes in front. Flags go before the file.
    #[arg(short = 'c', value_name = "FILE")]
    config: Option<PathBuf>,
    /// The relay's profile, as `join` writes it [default: relay.toml below ~/.config/tributary]; once for each LAN. With several, the ports of
    /// --lan-bind and --admin and the path of --control are the first LAN's and the others follow; shares are for each LAN.
    #[arg(long, value_name = "FILE")]
    profile: Vec<PathBuf>,
    /// Renew the certificate when so many per cent of its life are left, 1 to 90 [default: 33].
    #[arg(long, value_name = "PERCENT")]
    renew_left: Option<u8>,
    /// Where users reach the relay on the LAN [default: port 7654 on every address].
    #[arg(long, value_name = "IP:PORT")]
    lan_bind: Option<SocketAddr>,
    /// The address of this PC that leads to the line [default: the default route].
    #[arg(long, value_name = "IP", conflicts_with = "wan_interface")]
    wan_bind: Option<IpAddr>,
    /// The network interface that leads to the line.
    #[arg(long, value_name = "NAME")]
    wan_interface: Option<String>,
    /// The line's weight from the LAN to the internet: its rate in units of 28.5 kbit/s [default: measured].
    #[arg(long, value_name = "N")]
    weight_up: Option<Weight>,
    /// The line's weight from the internet to the LAN: its rate in units of 28.5 kbit/s [default: measured].
    #[arg(long, value_name = "N")]
    weight_down: Option<Weight>,
    /// The most that is shared from the LAN to the internet, in bits per second [default: all].
    #[arg(long, value_name = "RATE")]
    share_up: Option<Rate>,
    /// The most that is shared from the internet to the LAN, in bits per second [default: all].
    #[arg(long, value_name = "RATE")]
    share_down: Option<Rate>,
    /// The most that the line carries a month, up and down together [default: no limit].
    #[arg(long, value_name = "SIZE")]
    cap: Option<Size>,
    /// The day on which the month of --cap begins, 1 to 31 [default: 1].
    #[arg(long, value_name = "DAY", value_parser = clap::value_parser!(u8).range(1..=31))]
    cap_day: Option<u8>,
    /// Lend the line only at these hours, as in 22:00-07:00,12:00-13:00 [default: always].
    #[arg(long, value_name = "HOURS")]
    hours: Option<Hours>,
    /// How far to lend less while the owner's own transfers fill the line: off, part (down to half) or full (to a twentieth) [default: part].
    #[arg(long, value_name = "HOW")]
    give_way: Option<GiveWay>,
    /// Where to keep measured rates, what a line has used of its cap, and pauses [default: STATE_DIRECTORY, or tributary in XDG_STATE_HOME].
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// The socket for `pause`, `resume` and `status` [default: one in the user's or the system's runtime directory].
    #[arg(long, value_name = "FILE")]
    control: Option<PathBuf>,
    /// Whether PCs that want to become members may reach reconst through this relay, a trickle at a time: on or off [default: on].
    #[arg(long, value_name = "SWITCH", value_parser = switch)]
    carry_joins: Option<bool>,
    /// Answer `status` here, on a loopback address.
    #[arg(long, value_name = "IP:PORT")]
    admin: Option<SocketAddr>,
    /// How to write the log: text or json [default: text].
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<LogFormat>,
}

/// The settings as a file holds them: those of the command line, and those that few ever need.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct SettingsFile {
    #[serde(deserialize_with = "one_or_several")]
    profile: Vec<PathBuf>,
    lan_bind: Option<SocketAddr>,
    wan_bind: Option<IpAddr>,
    wan_interface: Option<String>,
    weight_up: Option<u16>,
    weight_down: Option<u16>,
    share_up: Option<String>,
    share_down: Option<String>,
    cap: Option<String>,
    cap_day: Option<u8>,
    hours: Option<String>,
    give_way: Option<GiveWay>,
    state: Option<PathBuf>,
    control: Option<PathBuf>,
    admin: Option<SocketAddr>,
    carry_joins: Option<bool>,
    renew_left: Option<u8>,
    log_format: Option<String>,
    announce: Option<bool>,
    announce_to: Vec<SocketAddr>,
    announce_interval_ms: Option<u64>,
    also_reached_as: Vec<SocketAddr>,
    clients_max: Option<usize>,
    client_idle_seconds: Option<u64>,
    drain_seconds: Option<u64>,
    /// The lines, where there are several.
    line: Vec<LineFile>,
}

/// One of several lines as a file holds it, in a table `[[line]]`.
#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
struct LineFile {
    /// Its number; by default its place in the file.
    number: Option<u8>,
    /// By default the port 7654 for the first, 7655 for the second and so on, on every address.
    lan_bind: Option<SocketAddr>,
    wan_bind: Option<IpAddr>,
    wan_interface: Option<String>,
    weight_up: Option<u16>,
    weight_down: Option<u16>,
    share_up: Option<String>,
    share_down: Option<String>,
    cap: Option<String>,
    cap_day: Option<u8>,
    hours: Option<String>,
    give_way: Option<GiveWay>,
}

impl Settings {
    /// The configurations for each LAN.
    pub(crate) fn resolve(self) -> anyhow::Result<(Vec<Config>, LogFormat)> {
        let file: SettingsFile = self.config.as_deref().map(read_config).transpose()?.unwrap_or_default();
        let of_file: Vec<_> = file.profile.into_iter().map(|path| beside(self.config.as_deref(), path)).collect();
        let mut paths = if self.profile.is_empty() { of_file } else { self.profile };
        if paths.is_empty() {
            paths.push(found_profile(Role::Relay)?);
        }
        let profiles: Vec<_> = paths.iter().map(|path| read_profile(path, Role::Relay)).collect::<Result<_, _>>()?;
        profiles.iter().try_for_each(check_time)?;
        let Some(first) = profiles.first() else {
            return Err(Failure::usage("no profile: name the relay's with --profile FILE").into());
        };
        let mut config = Config::new(first.clone());

        let is_by_flag = self.wan_bind.is_some() || self.wan_interface.is_some();
        let (wan_bind, wan_interface) = if is_by_flag { (self.wan_bind, self.wan_interface) } else { (file.wan_bind, file.wan_interface) };
        let only = LineFile {
            number: None,
            lan_bind: self.lan_bind.or(file.lan_bind),
            wan_bind,
            wan_interface,
            weight_up: self.weight_up.map(Weight::value).or(file.weight_up),
            weight_down: self.weight_down.map(Weight::value).or(file.weight_down),
            share_up: file.share_up,
            share_down: file.share_down,
            cap: file.cap,
            cap_day: self.cap_day.or(file.cap_day),
            hours: file.hours,
            give_way: self.give_way.or(file.give_way),
        };
        let is_shared_by_flag = self.share_up.is_some() || self.share_down.is_some() || self.cap.is_some() || self.hours.is_some();
        if file.line.is_empty() {
            let start_day = only.cap_day;
            let mut line = only.resolve(0)?;
            line.share.up = self.share_up.or(line.share.up);
            line.share.down = self.share_down.or(line.share.down);
            line.share.terms.cap = self.cap.map_or(Ok(line.share.terms.cap), |size| cap(size, start_day).map(Some))?;
            line.share.terms.hours = self.hours.unwrap_or(line.share.terms.hours);
            config.lines = vec![line];
        } else if only.is_empty() && !is_shared_by_flag {
            config.lines = file.line.into_iter().enumerate().map(|(place, line)| line.resolve(place)).collect::<Result<_, _>>()?;
        } else {
            return Err(Failure::config("with several lines, say what each is like in its own [[line]] table, and nowhere else").into());
        }

        let of_file = file.state.map(|path| beside(self.config.as_deref(), path));
        config.state = self.state.or(of_file).or_else(default_folder);
        config.admin = self.admin.or(file.admin);
        config.carries_strangers = self.carry_joins.or(file.carry_joins).unwrap_or(config.carries_strangers);
        config.renew_left_percent = left_percent(self.renew_left.or(file.renew_left))?;
        config.announce.multicast = file.announce.unwrap_or(config.announce.multicast);
        config.announce.unicast = file.announce_to;
        config.announce.interval = file.announce_interval_ms.map_or(config.announce.interval, Duration::from_millis);
        config.also_reached_as = file.also_reached_as;
        config.clients_max = file.clients_max.unwrap_or(config.clients_max);
        config.client_idle = file.client_idle_seconds.map_or(config.client_idle, Duration::from_secs);
        config.drain = file.drain_seconds.map_or(config.drain, Duration::from_secs);
        let log_format = match (self.log_format, file.log_format) {
            (Some(format), _) => format,
            (None, Some(format)) => format.parse()?,
            (None, None) => LogFormat::default(),
        };
        let mut control = self.control.or(file.control);
        let for_lan = |((profile, file), place)| {
            let mut config = config.for_lan(profile, place);
            config.profile_file = Some(file);
            config.control = control.take().map_or_else(|| default_control(&config.profile.identity), |path| vec![path]);
            config
        };
        Ok((profiles.into_iter().zip(paths).zip(0..).map(for_lan).collect(), log_format))
    }
}

impl LineFile {
    fn is_empty(&self) -> bool {
        let binds = self.lan_bind.is_some() || self.wan_bind.is_some() || self.wan_interface.is_some();
        let weighs = self.weight_up.is_some() || self.weight_down.is_some();
        let shares = self.share_up.is_some() || self.share_down.is_some() || self.cap.is_some() || self.hours.is_some();
        let shares = shares || self.give_way.is_some();
        !(binds || weighs || shares || self.cap_day.is_some())
    }

    /// The line at this place, from 0.
    fn resolve(self, place: usize) -> Result<LineConfig, Failure> {
        let number = self.number.or_else(|| u8::try_from(place + 1).ok()).unwrap_or(0);
        let mut line = LineConfig::new(LineNumber(number));
        line.lan_bind = self.lan_bind;
        line.wan = match (self.wan_bind, self.wan_interface) {
            (None, None) => WanBinding::Default,
            (Some(address), None) => WanBinding::Address(address),
            (None, Some(name)) => WanBinding::Interface(name),
            (Some(_), Some(_)) => return Err(Failure::config("wan-bind and wan-interface exclude each other: keep one")),
        };
        line.weights.up = weight("weight-up", self.weight_up)?;
        line.weights.down = weight("weight-down", self.weight_down)?;
        line.share.up = rate("share-up", self.share_up.as_deref())?;
        line.share.down = rate("share-down", self.share_down.as_deref())?;
        let size = self.cap.as_deref().map(str::parse).transpose().map_err(|error| Failure::config(format!("cap: {error}")))?;
        line.share.terms.cap = size.map(|size| cap(size, self.cap_day)).transpose()?;
        let hours = self.hours.as_deref().map(str::parse).transpose().map_err(|error| Failure::config(format!("hours: {error}")))?;
        line.share.terms.hours = hours.unwrap_or_default();
        line.share.give_way = self.give_way.unwrap_or_default();
        Ok(line)
    }
}

/// Where a relay's control socket may be.
fn default_control(identity: &Identity) -> Vec<PathBuf> {
    let name = format!("peer-relay-{}-{}.sock", identity.lan.0, identity.name);
    control::directories().into_iter().map(|directory| directory.join(&name)).collect()
}

fn switch(text: &str) -> Result<bool, String> {
    match text {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err("it is `on` or `off`".into()),
    }
}

/// A path in a configuration file is relative to the file.
fn beside(config: Option<&Path>, path: PathBuf) -> PathBuf {
    config.and_then(Path::parent).map_or(path.clone(), |folder| folder.join(path))
}

fn weight(name: &str, value: Option<u16>) -> Result<LineWeight, Failure> {
    match value {
        Some(0) => Err(Failure::config(format!("{name} is a whole number from 1 to 65535"))),
        Some(value) => Ok(LineWeight::set(value)),
        None => Ok(LineWeight::default()),
    }
}

fn rate(name: &str, text: Option<&str>) -> Result<Option<Rate>, Failure> {
    text.map(str::parse).transpose().map_err(|error| Failure::config(format!("{name}: {error}")))
}

fn cap(size: Size, start_day: Option<u8>) -> Result<Cap, Failure> {
    let start_day = start_day.unwrap_or(1);
    if !(1..=31).contains(&start_day) {
        return Err(Failure::config("cap-day is a day of the month, from 1 to 31"));
    }
    Ok(Cap { size, start_day })
}
