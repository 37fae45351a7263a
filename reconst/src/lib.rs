//! The ISP's reconstitution server: the far end of every session.
//!
//! A relay logs in ([`directory`]) and learns on which of the data ports its LAN is served, the LAN's [`roster`] holds its lines; a user's paths come in there ([`accept`]),
//! authenticated against the [`accounts`]; the flows on them go out to content servers ([`egress`]), each by a port of its own ([`dedicated`]), as far as the user's [`quota`]
//! goes. [`provision`] makes the state, the members' profiles and the invites that all this starts from; `enrol` makes members of those who were invited.

pub mod accept;
pub mod accounts;
mod api;
pub mod authority;
mod backlog;
pub mod backup;
mod data_ports;
pub mod dedicated;
pub mod directory;
pub mod egress;
mod enrol;
mod fair;
mod lending;
pub mod lines;
mod metrics;
pub mod nodes;
pub mod provision;
pub mod quota;
pub mod records;
pub mod roster;
mod running;
mod sockets;
pub mod state;

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use ipnet::IpNet;
use shared::{community::roster::RosterConfig, transfer::schedule::Policy, units::Rate};

pub use self::{
    accounts::Database,
    records::RecordsConfig,
    running::{Running, start},
    sockets::any_address,
};

/// All that `reconst` needs to know to start.
#[derive(Clone, Debug)]
pub struct Config {
    /// The directory that `reconst init` made.
    pub state_dir: PathBuf,
    /// Where the members are kept, in place of what the state directory says.
    pub database: Option<Database>,
    /// The address of the login port and of all data ports; relays must reach it. [`any_address`] for all of this host's.
    pub bind: IpAddr,
    /// What this server can carry, in bits per second, beside the other nodes: with twice as much it gets twice as many LANs.
    pub capacity_bits_per_second: u64,
    /// The login port, in place of the one in the profiles; 0 lets the system choose, which only a test can use.
    pub login_port_override: Option<u16>,
    /// Whether the system chooses the data ports in place of the LANs' own: for tests, since firewalls don't know them.
    pub has_ephemeral_data_ports: bool,
    /// Networks that flows may go to beside what is globally reachable.
    pub egress_allow: Vec<IpNet>,
    /// How the bytes to users are spread over their paths.
    pub scheduler: Policy,
    /// What this server's own line carries towards the internet, shared evenly between users; none if other lines are what is short. Above what
    /// it carries, its queue decides who gets how much; far below, rate is lost.
    pub rate_up: Option<Rate>,
    /// The same from the internet.
    pub rate_down: Option<Rate>,
    /// How long a UDP flow may carry nothing before its dedicated port is released. With little a call that is on hold loses its port, with
    /// much ports are held for nobody.
    pub udp_idle: Duration,
    /// `ACTIVE`s in a row after which a relay's line is off the roster. With 1 a lost one takes it off, with many a dead one is told to users
    /// for long.
    pub missed_max: u32,
    /// Where `status` is answered; loopback only.
    pub admin: Option<SocketAddr>,
    /// Where the admin API is.
    pub api: Option<SocketAddr>,
    /// Where a record of each flow that is over is kept, and for how long; nowhere unless that is said.
    pub records: Option<RecordsConfig>,
    /// How long open flows may go on once it is time to drain. Too short breaks downloads at every restart, too long delays the restart.
    pub drain_time: Duration,
}

impl Config {
    /// The default settings for the state in `state_dir`, on `bind`.
    pub fn new(state_dir: impl Into<PathBuf>, bind: IpAddr) -> Self {
        Self {
            state_dir: state_dir.into(),
            database: None,
            bind,
            capacity_bits_per_second: DEFAULT_CAPACITY,
            login_port_override: None,
            has_ephemeral_data_ports: false,
            egress_allow: Vec::new(),
            scheduler: Policy::default(),
            rate_up: None,
            rate_down: None,
            udp_idle: egress::udp::IDLE_TIME,
            missed_max: RosterConfig::default().missed_max,
            admin: None,
            api: None,
            records: None,
            drain_time: DEFAULT_DRAIN_TIME,
        }
    }
}

/// Most responses are over by then; service managers kill after 90 s.
pub const DEFAULT_DRAIN_TIME: Duration = Duration::from_secs(20);

/// An Ethernet interface's.
pub const DEFAULT_CAPACITY: u64 = 1_000_000_000;
