//! `proxy-local`: the command line.

use std::process::ExitCode;

use clap::{CommandFactory, Parser, Subcommand};
use proxy_local::{Config, config::Options};
use shared::{
    community::member::Role,
    service::{
        Failure, admin,
        commands::{self, Install, Join},
        init_logging, reload_on_hangup, shutdown_on_signals,
    },
};

/// Your proxy: loads over all the lines that your neighbours share
#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the proxy until SIGTERM or Ctrl-C
    Run(#[command(flatten)] Options),
    /// Become a member with an invite: make a key here, have it certified, write the profile
    Join(Join),
    /// Have systemd run it from now on, also after each start of this PC
    Install(Install),
    /// Show what the running proxy does
    Status {
        /// Print JSON
        #[arg(long)]
        json: bool,
        #[command(flatten)]
        options: Options,
    },
    /// Check a configuration without starting
    Check(#[command(flatten)] Options),
    /// Print the completions for a shell
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
}

fn main() -> ExitCode {
    commands::run(|cli: Cli| execute(cli.command))
}

fn execute(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Run(options) => {
            let merged = options.clone().with_file()?;
            init_logging(merged.log_format()?);
            let config = merged.into_config()?;
            runtime()?.block_on(run(config, options))
        }
        Command::Status { json, options } => {
            let address = options.with_file()?.admin_address()?;
            let answer = runtime()?.block_on(admin::fetch(address, "/status"));
            let answer = answer.map_err(|error| Failure::unavailable(error.to_string()))?;
            print!("{}", if json { answer } else { proxy_local::status::text(&serde_json::from_str(&answer)?) });
            Ok(())
        }
        Command::Join(join) => runtime()?.block_on(join.execute(Role::User)),
        Command::Install(install) => install.execute(Role::User),
        Command::Check(options) => {
            let options = options.with_file()?;
            options.log_format()?;
            let config = options.into_config()?;
            for profile in &config.profiles {
                println!("profile: {}, LAN {} ({})", profile.identity.name, profile.lan_name, profile.identity.lan);
            }
            println!("the configuration is valid");
            Ok(())
        }
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "proxy-local", &mut std::io::stdout());
            Ok(())
        }
    }
}

/// Runs the proxy, and reads `options` and their file again on each hang-up.
async fn run(config: Config, options: Options) -> anyhow::Result<()> {
    let mut reloads = reload_on_hangup();
    let running = proxy_local::start(config, shutdown_on_signals()).await?;
    let reloader = running.reloader();
    let reload_on_each_hangup = async {
        loop {
            reloads.next().await;
            let reloaded = options.clone().with_file().and_then(Options::into_config).and_then(|config| Ok(reloader.apply(config)?));
            match reloaded {
                Ok(()) => tracing::info!("the configuration was read again"),
                Err(error) => tracing::error!("the configuration stays as it was: {error:#}"),
            }
        }
    };
    tokio::select! {
        ended = running.wait() => ended,
        () = reload_on_each_hangup => unreachable!("it never ends"),
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Runtime::new()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_can_be_parsed() {
        Cli::command().debug_assert();
    }
}
