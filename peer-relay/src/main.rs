//! The command line of `peer-relay`.

use std::{
    net::{IpAddr, SocketAddr},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::{Args, CommandFactory, Parser, Subcommand};
use peer_relay::{Config, WanBinding};
use serde::Deserialize;
use shared::{
    community::{member::Role, weight::Weight},
    service::{Exit, Failure, LogFormat, admin, conclude, init_logging, read_config, read_profile, shutdown_on_signals},
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
    /// The line's weight from the LAN to the internet, from 1 [default: 1].
    #[arg(long, value_name = "N")]
    weight_up: Option<Weight>,
    /// The line's weight from the internet to the LAN, from 1 [default: 1].
    #[arg(long, value_name = "N")]
    weight_down: Option<Weight>,
    /// The most that is shared from the LAN to the internet, in bits per second [default: all].
    #[arg(long, value_name = "RATE")]
    share_up: Option<Rate>,
    /// The most that is shared from the internet to the LAN, in bits per second [default: all].
    #[arg(long, value_name = "RATE")]
    share_down: Option<Rate>,
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
    admin: Option<SocketAddr>,
    log_format: Option<String>,
    announce: Option<bool>,
    announce_to: Vec<SocketAddr>,
    announce_interval_ms: Option<u64>,
    also_reached_as: Vec<SocketAddr>,
    clients_max: Option<usize>,
    client_idle_seconds: Option<u64>,
    drain_seconds: Option<u64>,
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
            println!("ok: {} would lend {}", config.profile.identity, config.lines[0].wan);
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

        let line = &mut config.lines[0];
        line.lan_bind = self.lan_bind.or(file.lan_bind);
        let is_by_flag = self.wan_bind.is_some() || self.wan_interface.is_some();
        let (wan_bind, wan_interface) = if is_by_flag { (self.wan_bind, self.wan_interface) } else { (file.wan_bind, file.wan_interface) };
        line.wan = match (wan_bind, wan_interface) {
            (None, None) => WanBinding::Default,
            (Some(address), None) => WanBinding::Address(address),
            (None, Some(name)) => WanBinding::Interface(name),
            (Some(_), Some(_)) => return Err(Failure::config("wan-bind and wan-interface exclude each other: keep one").into()),
        };
        line.weights.up = self.weight_up.map_or_else(|| weight("weight-up", file.weight_up), Ok)?;
        line.weights.down = self.weight_down.map_or_else(|| weight("weight-down", file.weight_down), Ok)?;
        line.share.up = self.share_up.map_or_else(|| rate("share-up", file.share_up.as_deref()), |rate| Ok(Some(rate)))?;
        line.share.down = self.share_down.map_or_else(|| rate("share-down", file.share_down.as_deref()), |rate| Ok(Some(rate)))?;

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

/// A path in a configuration file is relative to the file.
fn beside(config: Option<&Path>, path: PathBuf) -> PathBuf {
    config.and_then(Path::parent).map_or(path.clone(), |folder| folder.join(path))
}

fn weight(name: &str, value: Option<u16>) -> Result<Weight, Failure> {
    let Some(value) = value else { return Ok(Weight::ONE) };
    Weight::new(value).ok_or_else(|| Failure::config(format!("{name} is a whole number from 1 to 65535")))
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
