//! The command line of `peer-relay`.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{Args, CommandFactory, Parser, Subcommand};
use peer_relay::{Config, LineConfig, WanBinding};
use serde::Deserialize;
use shared::{
    community::{
        hello::LineNumber,
        member::Role,
        weight::{LineWeight, Weight},
    },
    service::{Exit, Failure, LogFormat, admin, conclude, default_folder, init_logging, read_config, read_profile, shutdown_on_signals},
    units::Rate,
};

/// Lends this PC's line to the users of its LAN.
#[derive(Parser)]
#[command(version, propagate_version = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Lend the line until SIGTERM or Ctrl-C.
    Run(Box<Settings>),
    /// Show what a running relay does, as JSON.
    Status {
        /// The address that it was given with --admin.
        #[arg(long, value_name = "IP:PORT")]
        admin: SocketAddr,
    },
    /// Say whether `run` would accept the same settings, without starting.
    Check(Box<Settings>),
    /// Print completions for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

#[derive(Args)]
struct Settings {
    /// Read settings from a TOML file: the same names, without dashes in front. Flags go before the file.
    #[arg(short = 'c', value_name = "FILE")]
    config: Option<PathBuf>,
    /// The relay's profile, made with `reconst relay add`.
    #[arg(long, value_name = "FILE")]
    profile: Option<PathBuf>,
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
    /// Where measured rates are remembered [default: STATE_DIRECTORY, or tributary in XDG_STATE_HOME].
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
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
    profile: Option<PathBuf>,
    lan_bind: Option<SocketAddr>,
    wan_bind: Option<IpAddr>,
    wan_interface: Option<String>,
    weight_up: Option<u16>,
    weight_down: Option<u16>,
    share_up: Option<String>,
    share_down: Option<String>,
    state: Option<PathBuf>,
    admin: Option<SocketAddr>,
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
}

fn main() -> ExitCode {
    match Cli::try_parse() {
        Ok(cli) => conclude(execute(cli.command)),
        Err(error) => {
            let _ = error.print();
            ExitCode::from(if error.use_stderr() { Exit::Usage as u8 } else { 0 })
        }
    }
}

fn execute(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Run(settings) => {
            let (config, log_format) = settings.resolve()?;
            init_logging(log_format);
            raise_open_files_limit();
            runtime()?.block_on(async { peer_relay::run(config, shutdown_on_signals()).await })
        }
        Command::Status { admin } => {
            let status = runtime()?.block_on(admin::fetch(admin, "/status")).map_err(|error| Failure::unavailable(error.to_string()))?;
            print!("{status}");
            Ok(())
        }
        Command::Check(settings) => {
            let (config, _) = settings.resolve()?;
            config.check()?;
            let lines: Vec<String> = config.lines.iter().map(|line| line.wan.to_string()).collect();
            println!("ok: {} would lend {}", config.profile.identity, lines.join(", "));
            Ok(())
        }
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "peer-relay", &mut std::io::stdout());
            Ok(())
        }
    }
}

impl Settings {
    fn resolve(self) -> anyhow::Result<(Config, LogFormat)> {
        let file: SettingsFile = self.config.as_deref().map(read_config).transpose()?.unwrap_or_default();
        let profile = self.profile.or_else(|| file.profile.map(|path| beside(self.config.as_deref(), path)));
        let profile = profile.ok_or_else(|| Failure::usage("no profile: name the relay's with --profile FILE"))?;
        let mut config = Config::new(read_profile(&profile, Role::Relay, "peer-relay")?);

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
        };
        if file.line.is_empty() {
            let mut line = only.resolve(0)?;
            line.share.up = self.share_up.or(line.share.up);
            line.share.down = self.share_down.or(line.share.down);
            config.lines = vec![line];
        } else if only.is_empty() && self.share_up.is_none() && self.share_down.is_none() {
            config.lines = file.line.into_iter().enumerate().map(|(place, line)| line.resolve(place)).collect::<Result<_, _>>()?;
        } else {
            return Err(Failure::config("with several lines, say what each is like in its own [[line]] table, and nowhere else").into());
        }

        let of_file = file.state.map(|path| beside(self.config.as_deref(), path));
        config.state = self.state.or(of_file).or_else(default_folder);
        config.admin = self.admin.or(file.admin);
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
        Ok((config, log_format))
    }
}

impl LineFile {
    fn is_empty(&self) -> bool {
        let binds = self.lan_bind.is_some() || self.wan_bind.is_some() || self.wan_interface.is_some();
        let weighs = self.weight_up.is_some() || self.weight_down.is_some();
        !(binds || weighs || self.share_up.is_some() || self.share_down.is_some())
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
        Ok(line)
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

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().enable_all().build()?)
}

/// Each client takes a socket, and the usual limit of open files is as low as the usual limit of clients.
fn raise_open_files_limit() {
    use rustix::process::{Resource, getrlimit, setrlimit};

    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::debug!(%error, "the limit of open files stays as it is");
    }
}
