//! `reconst`: the command line.

mod database;
mod exchange;
mod flows;
mod inviting;
mod lan;
mod limits;
mod member;
mod node;
mod options;
mod register;

use std::{
    io::Write,
    process::ExitCode,
    time::{SystemTime, UNIX_EPOCH},
};

use clap::{Args, CommandFactory, Parser, Subcommand};
use reconst::backup::{self, Members};
use shared::{
    community::member::{Name, Role},
    service::{Failure, Notice, admin, commands, init_logging, notify, shutdown_on_signals},
};

use self::options::RunOptions;

/// The ISP's end of Tributary: joins what comes over the neighbours' lines and fetches for them
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make the state of a new reconst: its authority, its certificate, its member database
    Init(register::Init),
    /// Add, list and remove LANs
    #[command(subcommand)]
    Lan(lan::LanCommand),
    /// Add, list and remove users
    #[command(subcommand)]
    User(member::UserCommand),
    /// Add, list and remove relays
    #[command(subcommand)]
    Relay(member::RelayCommand),
    /// List and withdraw invites
    #[command(subcommand)]
    Invite(inviting::InviteCommand),
    /// Add, list, drain and remove servers that share one database
    #[command(subcommand)]
    Node(node::NodeCommand),
    /// List who changed what: LANs, members, limits
    Audit(register::Audit),
    /// Write LANs, members and what they may spend as TOML; no keys, nothing of what was used
    Export(exchange::Export),
    /// Add and change LANs and members as a file of `export` says; what it does not name stays
    Import(exchange::Import),
    /// Serve until SIGTERM or Ctrl-C
    Run(#[command(flatten)] RunOptions),
    /// Show what the running reconst does, as JSON
    Status(Status),
    /// List the open flows: dedicated port, whose it is, content server, use
    Flows(Flows),
    /// Copy the state to a new directory, also while reconst runs
    Backup {
        #[command(flatten)]
        state: register::State,
        /// The directory to make
        #[arg(long, value_name = "DIR")]
        to: std::path::PathBuf,
    },
    /// Make a state directory of a backup
    Restore {
        /// The directory that `backup` made
        #[arg(long, value_name = "DIR")]
        from: std::path::PathBuf,
        /// The state directory to make
        #[arg(long, value_name = "DIR")]
        state: std::path::PathBuf,
    },
    /// Check the configuration and the state without starting
    Check(#[command(flatten)] RunOptions),
    /// Print the completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

#[derive(Args)]
struct Status {
    /// The address that `reconst run` was given with --admin
    #[arg(long, value_name = "IP:PORT")]
    admin: std::net::SocketAddr,
}

#[derive(Args)]
struct Flows {
    /// The address that `reconst run` was given with --admin
    #[arg(long, value_name = "IP:PORT")]
    admin: std::net::SocketAddr,
    /// Only those of this LAN
    #[arg(long, value_name = "NAME")]
    lan: Option<Name>,
    /// Print JSON, for programs; times in milliseconds since 1970, UTC
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    commands::run(|cli: Cli| execute(cli.command))
}

fn execute(command: Command) -> anyhow::Result<()> {
    if let Command::Completions { shell } = command {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), "reconst", &mut script);
        return Ok(std::io::stdout().write_all(&script)?);
    }
    tokio::runtime::Runtime::new()?.block_on(async {
        match command {
            Command::Init(init) => init.execute().await,
            Command::Lan(command) => command.execute().await,
            Command::User(command) => command.execute().await,
            Command::Relay(command) => command.execute().await,
            Command::Invite(command) => command.execute().await,
            Command::Node(command) => command.execute().await,
            Command::Audit(audit) => audit.execute().await,
            Command::Export(export) => export.execute().await,
            Command::Import(import) => import.execute().await,
            Command::Run(options) => {
                let options = options.with_file()?;
                init_logging(options.log_format()?);
                let running = reconst::start(options.into_config()?, shutdown_on_signals()).await?;
                notify(Notice::Ready);
                running.wait().await
            }
            Command::Status(status) => {
                let answer = admin::fetch(status.admin, "/status").await.map_err(|error| Failure::unavailable(error.to_string()))?;
                print!("{answer}");
                Ok(())
            }
            Command::Flows(flows) => {
                let answer = admin::fetch(flows.admin, "/flows").await.map_err(|error| Failure::unavailable(error.to_string()))?;
                let rows = flows::rows(&answer, flows.lan.as_ref())?;
                if flows.json {
                    println!("{}", serde_json::to_string_pretty(&rows)?);
                } else {
                    let now_ms = SystemTime::now().duration_since(UNIX_EPOCH)?.as_millis() as u64;
                    print!("{}", flows::text(&rows, now_ms));
                }
                Ok(())
            }
            Command::Backup { state, to } => {
                let members = backup::backup(&state.state, &to).await?;
                println!("copied {} to {}, with the keys: keep it as secret", state.state.display(), to.display());
                if let Members::Elsewhere(database) = members {
                    println!("the members are in {database}: back that up with pg_dump");
                }
                Ok(())
            }
            Command::Restore { from, state } => {
                let members = backup::restore(&from, &state).await?;
                println!("made {} of {}", state.display(), from.display());
                if let Members::Elsewhere(database) = members {
                    println!("the members are in {database}: restore that with psql or pg_restore if it is lost as well");
                }
                Ok(())
            }
            Command::Check(options) => check(options.with_file()?).await,
            Command::Completions { .. } => Ok(()),
        }
    })
}

async fn check(options: RunOptions) -> anyhow::Result<()> {
    options.log_format()?;
    let config = options.into_config()?;
    let registrar = reconst::provision::Registrar::open_with(&config.state_dir, config.database.as_ref()).await?;
    let accounts = registrar.accounts();
    for lan in accounts.lans().await.map_err(Failure::from)? {
        println!("LAN {} ({}), data port {}", lan.name, lan.id, lan.data_port);
    }
    for role in [Role::User, Role::Relay] {
        println!("{role}s: {}", accounts.member_count(role).await.map_err(Failure::from)?);
    }
    println!("the configuration and the state are valid");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_can_be_parsed() {
        Cli::command().debug_assert();
    }
}
