//! The commands that change and list LANs.

use clap::Subcommand;
use reconst::accounts::{
    lan_accounts::LanReport,
    parts::{LARGE_PART, whole},
};
use shared::{community::member::Name, ids::LanId, service::Failure};

use crate::{
    limits::{self, LimitOptions},
    register::{State, time_now},
};

#[derive(Subcommand)]
pub(crate) enum LanCommand {
    /// Add a LAN: a community of users and relays
    Add {
        /// The LAN's name: letters a-z, digits and hyphens
        name: Name,
        #[command(flatten)]
        state: State,
        /// The LAN's number [default: the next free one]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
        id: Option<u16>,
        /// The UDP port on which its paths are served [default: 10000 + the number]
        #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
        data_port: Option<u16>,
    },
    /// List the LANs, with what their users may spend together and have
    List {
        #[command(flatten)]
        state: State,
        /// Print JSON, for programs
        #[arg(long)]
        json: bool,
    },
    /// Change what all users of a LAN may spend together, also while reconst runs: it holds within a second
    Set {
        /// The LAN's name
        name: Name,
        #[command(flatten)]
        state: State,
        #[command(flatten)]
        limits: LimitOptions,
    },
    /// Show what all users of a LAN may spend together and have
    Show {
        /// The LAN's name
        name: Name,
        #[command(flatten)]
        state: State,
        /// Print JSON, for programs
        #[arg(long)]
        json: bool,
    },
    /// Move a LAN to another data port, also while reconst runs: relays and paths follow, no flow breaks
    Move {
        /// The LAN's name
        name: Name,
        #[command(flatten)]
        state: State,
        /// The UDP port on which its paths are served from now on
        #[arg(long, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
        data_port: u16,
    },
    /// Say which of several servers is to serve a LAN, also while they run; what is open goes on where it is
    Place {
        /// The LAN's name
        name: Name,
        #[command(flatten)]
        state: State,
        /// The node, as in `reconst node list`; `any` leaves it to them
        #[arg(long, value_name = "NAME", value_parser = node)]
        node: NodeName,
    },
    /// Remove a LAN and all its members
    Remove {
        /// The LAN's name
        name: Name,
        #[command(flatten)]
        state: State,
    },
}

impl LanCommand {
    pub(crate) async fn execute(self) -> anyhow::Result<()> {
        match self {
            Self::Add { name, state, id, data_port } => {
                let lan = state.open().await?.add_lan(&name, id.map(LanId), data_port).await?;
                println!("added LAN {} ({}); its paths are served on UDP port {}", lan.name, lan.id, lan.data_port);
            }
            Self::List { state, json } => {
                let (registrar, time) = (state.open().await?, time_now());
                let read = async |after| registrar.accounts().lan_reports(after, LARGE_PART, time).await;
                let lans: Vec<LanReport> = whole(read).await.map_err(Failure::from)?;
                if json {
                    println!("{}", serde_json::to_string_pretty(&lans)?);
                    return Ok(());
                }
                lans.iter().for_each(|lan| println!("{}", limits::lan_text(lan)));
            }
            Self::Set { name, state, limits } => {
                if limits.is_empty() {
                    return Err(Failure::usage("say what to change: --quota, --rate-down and so on; `none` takes a limit away").into());
                }
                let registrar = state.open().await?;
                let accounts = registrar.accounts();
                let lan = accounts.lan(&name).await.map_err(Failure::from)?;
                let before = accounts.lan_account(lan.id).await.map_err(Failure::from)?.limits;
                accounts.set_lan_limits(&name, &limits.applied_to(before)?).await.map_err(Failure::from)?;
                println!("{}", limits::lan_text(&accounts.lan_report(&name, time_now()).await.map_err(Failure::from)?));
            }
            Self::Show { name, state, json } => {
                let lan = state.open().await?.accounts().lan_report(&name, time_now()).await.map_err(Failure::from)?;
                if json { println!("{}", serde_json::to_string_pretty(&lan)?) } else { println!("{}", limits::lan_text(&lan)) }
            }
            Self::Move { name, state, data_port } => {
                let before = state.open().await?.move_lan(&name, data_port).await?;
                println!("moved LAN {name} ({}) from UDP port {} to {data_port}; let UDP in there", before.id, before.data_port);
            }
            Self::Place { name, state, node: NodeName(node) } => {
                state.open().await?.accounts().want_lan_on(&name, node.as_ref()).await.map_err(Failure::from)?;
                match node {
                    Some(node) => println!("LAN {name} is served by node {node} while that is there"),
                    None => println!("LAN {name} may be served by any node"),
                }
            }
            Self::Remove { name, state } => {
                state.open().await?.accounts().remove_lan(&name).await.map_err(Failure::from)?;
                println!("removed LAN {name} and its members");
            }
        }
        Ok(())
    }
}

/// A node, or any.
#[derive(Clone, Debug)]
pub(crate) struct NodeName(Option<Name>);

fn node(text: &str) -> Result<NodeName, String> {
    if text == "any" { Ok(NodeName(None)) } else { text.parse().map(|name| NodeName(Some(name))).map_err(|error| format!("{error}")) }
}
