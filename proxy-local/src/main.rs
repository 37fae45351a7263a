//! `proxy-local`: the command line.

use std::{net::SocketAddr, path::PathBuf, process::ExitCode};

use clap::{Args, CommandFactory, Parser, Subcommand};
use proxy_local::{Config, config::Options};
use shared::{
    community::member::Role,
    service::{
        Exit, Failure, admin, conclude, default_profile, init_logging,
        joining::{Joining, read_invite},
        reload_on_hangup, shutdown_on_signals,
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

#[derive(Args)]
struct Join {
    /// The invite, a link; `-` or nothing reads it from standard input, where no list of processes shows it
    link: Option<String>,
    /// Where to write the profile [default: user.toml below ~/.config/tributary]
    #[arg(long, value_name = "FILE")]
    profile: Option<PathBuf>,
    /// Let the new profile take the place of one that is there
    #[arg(long)]
    force: bool,
    /// Reach reconst through this relay, beside those that announce themselves
    #[arg(long, value_name = "IP:PORT")]
    relay: Vec<SocketAddr>,
}

impl Join {
    async fn execute(self) -> anyhow::Result<()> {
        let invite = read_invite(self.link.as_deref(), Role::User)?;
        let path = self.profile.map_or_else(|| default_profile(Role::User), Ok)?;
        let joining = Joining { may_replace: self.force, relays: self.relay, ..Joining::new(invite, path.clone()) };
        let profile = joining.run().await?;
        println!("this PC is {} now; its profile is {}: a secret, to stay here", profile.identity, path.display());
        println!("next: proxy-local run");
        Ok(())
    }
}

fn main() -> ExitCode {
    match Cli::try_parse() {
        Ok(cli) => conclude(execute(cli.command)),
        Err(error) => {
            let _ = error.print();
            if error.use_stderr() { ExitCode::from(Exit::Usage as u8) } else { ExitCode::SUCCESS }
        }
    }
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
        Command::Join(join) => runtime()?.block_on(join.execute()),
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
