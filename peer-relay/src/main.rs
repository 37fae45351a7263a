//! The command line of `peer-relay`.

mod settings;

use std::{net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};

use clap::{Args, CommandFactory, Parser, Subcommand};
use peer_relay::Arguments;
use shared::{
    community::member::Role,
    service::{
        Exit, Failure, admin,
        commands::{self, Install, Join},
        control::{self, ControlError},
        init_logging, shutdown_on_signals,
    },
};

use self::settings::Settings;

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
        /// The address that it was given with --admin [default: ask through its control socket].
        #[arg(long, value_name = "IP:PORT", conflicts_with = "control")]
        admin: Option<SocketAddr>,
        #[command(flatten)]
        which: Which,
    },
    /// Take a line back at once: its users go on over other lines.
    Pause {
        /// The line's number [default: all lines].
        line: Option<u8>,
        /// For how long, as in 90s, 30m, 2h [default: until it is resumed].
        #[arg(long = "for", value_name = "TIME", value_parser = parse_span)]
        span: Option<Duration>,
        #[command(flatten)]
        which: Which,
    },
    /// Lend a line again that was paused.
    Resume {
        /// The line's number [default: all lines].
        line: Option<u8>,
        #[command(flatten)]
        which: Which,
    },
    /// Become a relay with an invite: make a key here, have it certified, write the profile.
    Join(Join),
    /// Have systemd run it from now on, also after each start of this PC.
    Install(Install),
    /// Say whether `run` would accept the same settings, without starting.
    Check(Box<Settings>),
    /// Print completions for a shell.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
}

/// Which of the relays that run on this PC.
#[derive(Args)]
struct Which {
    /// The relay's control socket [default: that of the only relay that runs here].
    #[arg(long, value_name = "FILE")]
    control: Option<PathBuf>,
}

fn main() -> ExitCode {
    commands::run(|cli: Cli| execute(cli.command))
}

fn execute(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Run(settings) => {
            let (configs, log_format) = settings.resolve()?;
            init_logging(log_format);
            raise_open_files_limit();
            runtime()?.block_on(async { peer_relay::run_all(configs, shutdown_on_signals()).await })
        }
        Command::Status { admin: Some(admin), .. } => {
            let status = runtime()?.block_on(admin::fetch(admin, "/status")).map_err(|error| Failure::unavailable(error.to_string()))?;
            print!("{status}");
            Ok(())
        }
        Command::Status { admin: None, which } => {
            print!("{}", which.ask(true, "status", Arguments::default())?);
            Ok(())
        }
        Command::Pause { line, span, which } => {
            let seconds = span.map(|span| span.as_secs());
            print_held(&which.ask(false, "pause", Arguments { line, seconds })?)
        }
        Command::Resume { line, which } => print_held(&which.ask(false, "resume", Arguments { line, seconds: None })?),
        Command::Join(join) => runtime()?.block_on(join.execute(Role::Relay)),
        Command::Install(install) => install.execute(Role::Relay),
        Command::Check(settings) => {
            let (configs, _) = settings.resolve()?;
            for config in configs {
                config.check()?;
                let lines: Vec<String> = config.lines.iter().map(|line| line.wan.to_string()).collect();
                println!("ok: {} would lend {}", config.profile.identity, lines.join(", "));
            }
            Ok(())
        }
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "peer-relay", &mut std::io::stdout());
            Ok(())
        }
    }
}

impl Which {
    fn ask(&self, is_query: bool, name: &str, arguments: Arguments) -> anyhow::Result<String> {
        let path = match &self.control {
            Some(path) => path.clone(),
            None => only(control::sockets(PROGRAM))?,
        };
        let arguments = if is_query { String::new() } else { serde_json::to_string(&arguments)? };
        let command = control::Command { is_query, name: name.into(), arguments };
        let answer = runtime()?.block_on(control::command(&path, &command));
        answer.map_err(|error| match error {
            ControlError::Permission { .. } => Failure::new(Exit::Permission, error.to_string()).into(),
            ControlError::Refused(_) => Failure::usage(error.to_string()).into(),
            error => Failure::unavailable(error.to_string()).into(),
        })
    }
}

/// The socket of the one relay that runs.
fn only(mut sockets: Vec<PathBuf>) -> Result<PathBuf, Failure> {
    match (sockets.pop(), sockets.is_empty()) {
        (Some(socket), true) => Ok(socket),
        (None, _) => Err(Failure::unavailable("no relay of this user's runs here: if it runs as a service, run this as root")),
        (Some(last), false) => {
            sockets.push(last);
            let names: Vec<_> = sockets.iter().map(|socket| format!("--control {}", socket.display())).collect();
            Err(Failure::usage(format!("several relays run here, say which: {}", names.join(" or "))))
        }
    }
}

/// Says in a line for each line of an answer whether it is lent.
fn print_held(status: &str) -> anyhow::Result<()> {
    let status: serde_json::Value = serde_json::from_str(status)?;
    for line in status["lines"].as_array().into_iter().flatten() {
        println!("line {}: {}", line["line"], line["held"].as_str().unwrap_or("lent"));
    }
    Ok(())
}

/// A span of time as people write it.
fn parse_span(text: &str) -> Result<Duration, String> {
    let complaint = || format!("`{text}` is no span of time: write 90s, 30m, 2h or 1d");
    let digits = text.find(|character: char| !character.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 60 * 60,
        "d" => 24 * 60 * 60,
        _ => return Err(complaint()),
    };
    let number: u32 = number.parse().map_err(|_| complaint())?;
    if number == 0 {
        return Err(complaint());
    }
    Ok(Duration::from_secs(u64::from(number) * seconds))
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

const PROGRAM: &str = "peer-relay";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_can_be_parsed() {
        Cli::command().debug_assert();
    }
}
