//! The commands for several servers.

use std::{path::PathBuf, time::Duration};

use clap::Subcommand;
use reconst::{accounts::nodes_report::NodeReport, nodes::NodeIdentity, provision::DEFAULT_LOGIN_PORT, state::StateDir};
use shared::{
    community::member::Name,
    service::Failure,
    target::{Host, Target},
    units::Rate,
};

use crate::register::State;

#[derive(Subcommand)]
pub(crate) enum NodeCommand {
    /// Make the state of another server that shares the members' database
    Add {
        /// The node's name: letters a-z, digits and hyphens
        name: Name,
        #[command(flatten)]
        state: State,
        /// The host name or address that relays reach it at
        #[arg(long, value_name = "HOST", value_parser = Host::parse)]
        public: Host,
        /// The UDP port on which relays log in
        #[arg(long, value_name = "PORT", default_value_t = DEFAULT_LOGIN_PORT, value_parser = clap::value_parser!(u16).range(1..))]
        login_port: u16,
        /// The state directory to make, for the other server alone
        #[arg(long, value_name = "DIR")]
        to: PathBuf,
    },
    /// List the servers
    List {
        #[command(flatten)]
        state: State,
        /// Print JSON, for programs
        #[arg(long)]
        json: bool,
    },
    /// Have a server take nothing new; its LANs go to others at once, what is open goes on until the deadline
    Drain {
        /// The node's name
        name: Name,
        #[command(flatten)]
        state: State,
        /// How long open flows may go on, in seconds
        #[arg(long, value_name = "SECONDS", default_value_t = DEADLINE_SECONDS, value_parser = clap::value_parser!(u64).range(..=DEADLINE_SECONDS_MAX))]
        deadline: u64,
        /// Print JSON, for programs
        #[arg(long)]
        json: bool,
    },
    /// Have a server that was drained take LANs again
    Resume {
        /// The node's name
        name: Name,
        #[command(flatten)]
        state: State,
    },
    /// Remove a server for good: if it runs it ends
    Remove {
        /// The node's name
        name: Name,
        #[command(flatten)]
        state: State,
        /// Print JSON, for programs
        #[arg(long)]
        json: bool,
    },
}

impl NodeCommand {
    pub(crate) async fn execute(self) -> anyhow::Result<()> {
        match self {
            Self::Add { name, state, public, login_port, to } => {
                let registrar = state.open().await?;
                let directory = StateDir::open(&state.state)?;
                let database = state.database()?.map_or_else(|| directory.database(), Ok)?;
                let node = NodeIdentity { name, public: Target { host: public, port: login_port } };
                registrar.add_node(&directory, &database, &node, &to).await?;
                println!("made {} for node {}: a secret, it holds the authority's key; move it to that server", to.display(), node.name);
                println!("next, there: reconst run --state DIR");
            }
            Self::List { state, json } => {
                let reports = state.open().await?.accounts().node_reports().await.map_err(Failure::from)?;
                if json {
                    println!("{}", serde_json::to_string_pretty(&reports)?);
                } else {
                    reports.iter().for_each(|report| println!("{}", text(report)));
                }
            }
            Self::Drain { name, state, deadline, json } => {
                let registrar = state.open().await?;
                registrar.accounts().drain_node(&name, Some(Duration::from_secs(deadline))).await.map_err(Failure::from)?;
                let done = format!("node {name} takes nothing new; what is open there ends within {deadline} s");
                print_done(json, "draining", &name, &done)?;
            }
            Self::Resume { name, state } => {
                state.open().await?.accounts().drain_node(&name, None).await.map_err(Failure::from)?;
                println!("node {name} may serve again; LANs that are elsewhere stay there until they have to move or are placed");
            }
            Self::Remove { name, state, json } => {
                state.open().await?.remove_node(&name).await?;
                print_done(
                    json,
                    "removed",
                    &name,
                    &format!("removed node {name}; its state directory is of no use any more, and still a secret"),
                )?;
            }
        }
        Ok(())
    }
}

fn print_done(json: bool, state: &str, name: &Name, text: &str) -> anyhow::Result<()> {
    if json {
        println!("{}", serde_json::to_string_pretty(&serde_json::json!({ "name": name.as_str(), "state": state }))?);
    } else {
        println!("{text}");
    }
    Ok(())
}

fn text(node: &NodeReport) -> String {
    let (load, capacity) = (Rate { bits_per_second: node.load_bits_per_second }, Rate { bits_per_second: node.capacity_bits_per_second });
    let state = match (node.state, node.heard_ms_ago, node.drain_seconds) {
        ("draining", _, Some(seconds)) => format!("draining, {seconds} s left"),
        ("dead", Some(ago), _) => format!("dead for {} s", ago / 1000),
        (state, _, _) => state.to_owned(),
    };
    let lans = if node.lans.is_empty() { "no LAN".into() } else { node.lans.join(" ") };
    format!("{}\t{}\t{state}\t{} sessions, {load} of {capacity}\t{lans}", node.name, node.public, node.sessions)
}

/// Most downloads are over by then.
const DEADLINE_SECONDS: u64 = 300;

/// A week: a server that is to go some day is not drained yet.
const DEADLINE_SECONDS_MAX: u64 = 7 * 86_400;
