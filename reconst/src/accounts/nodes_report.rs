//! What an operator is shown of a node.

use serde::Serialize;

use super::{Accounts, AccountsError, nodes::View};

/// A node and what it does.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct NodeReport {
    /// Its name.
    pub name: String,
    /// Where relays reach its login port.
    pub public: String,
    /// `alive`, `draining`, `stopped` in order, or `dead`.
    pub state: &'static str,
    /// How long ago it was heard, in milliseconds; left out if it never was or has stopped in order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub heard_ms_ago: Option<u64>,
    /// What is left of its drain, in seconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain_seconds: Option<u64>,
    /// What it can carry.
    pub capacity_bits_per_second: u64,
    /// What it has carried in the last minute.
    pub load_bits_per_second: u64,
    /// Its sessions.
    pub sessions: u64,
    /// The LANs that it serves.
    pub lans: Vec<String>,
}

impl Accounts {
    /// The nodes, by name.
    ///
    /// # Errors
    /// If the store does not answer, or is for one server alone.
    pub async fn node_reports(&self) -> Result<Vec<NodeReport>, AccountsError> {
        let View { nodes, placements } = self.nodes().await?;
        let report = |node: super::nodes::Node| NodeReport {
            state: match (node.is_alive(), node.drain, node.heard_ago) {
                (true, Some(_), _) => "draining",
                (true, None, _) => "alive",
                (false, _, None) => "stopped",
                (false, _, Some(_)) => "dead",
            },
            name: node.name.to_string(),
            public: node.public.to_string(),
            heard_ms_ago: node.heard_ago.map(|ago| u64::try_from(ago.as_millis()).unwrap_or(u64::MAX)),
            drain_seconds: node.drain.map(|drain| drain.as_secs()),
            capacity_bits_per_second: node.capacity_bits_per_second,
            load_bits_per_second: node.load.bits_per_second,
            sessions: node.load.sessions,
            lans: placements.iter().filter(|placed| placed.node == Some(node.key)).map(|placed| placed.lan_name.to_string()).collect(),
        };
        Ok(nodes.into_iter().map(report).collect())
    }
}
