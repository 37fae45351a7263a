//! Several servers, each a node, that serve the LANs of one database between them.
//!
//! Enters: a beat's answer from the store, twice a second: who is there, and who serves what. Leaves: the LANs to serve here, and for logins where
//! their LAN is served and in which order to try the nodes. Always holds: nodes know of each other through the store alone; while it does not
//! answer, all stays as it was. Who serves what is decided in [`placement`].

pub mod placement;

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use shared::{
    community::{
        login::{DataAddress, NODES_MAX, Nodes as ToldNodes},
        member::Name,
    },
    ids::LanId,
    service::Shutdown,
    target::Target,
};
use sqlx::AnyConnection;
use tokio::{sync::watch, time::timeout};

use crate::accounts::{
    Accounts, AccountsError,
    nodes::{DEAD_AFTER, Load, Node, NodeKey, Registration, View},
    registry::Lan,
};

/// What a server is among those that share its database.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeIdentity {
    /// Its name.
    pub name: Name,
    /// Where relays reach its login port.
    pub public: Target,
}

/// This server among the others; clones share it.
#[derive(Clone, Debug)]
pub struct Nodes {
    accounts: Accounts,
    registration: Registration,
    identity: NodeIdentity,
    view: watch::Sender<Arc<View>>,
}

/// Where a login is told to go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Direction {
    /// Where the LAN's paths are served.
    pub data: DataAddress,
    /// The nodes in the order in which to try them.
    pub nodes: ToldNodes,
}

/// What a beat and the look after it go over.
pub(crate) struct Beating {
    connection: AnyConnection,
    /// Whether that connection keeps others from running in this node's name.
    is_claimed: bool,
    /// Since when every beat has been answered.
    answered_since: Instant,
    /// Since when a LAN has waited for the node that it is due to.
    pending_since: BTreeMap<LanId, Instant>,
}

impl Nodes {
    /// Registers this server as a node.
    ///
    /// # Errors
    /// If another server runs by its name, or the store does not answer.
    pub(crate) async fn join(
        accounts: &Accounts,
        identity: NodeIdentity,
        capacity_bits_per_second: u64,
    ) -> Result<(Self, Beating), AccountsError> {
        let mut connection = accounts.connection().await?;
        let (registration, is_claimed) =
            accounts.register_node(&mut connection, &identity.name, &identity.public, capacity_bits_per_second).await?;
        let view = watch::Sender::default();
        let nodes = Self { accounts: accounts.clone(), registration, identity, view };
        let now = Instant::now();
        let mut beating = Beating { connection, is_claimed, answered_since: now, pending_since: BTreeMap::new() };
        nodes.beat(&mut beating, Load::default()).await?;
        tracing::info!(node = %nodes.identity.name, public = %nodes.identity.public, "one of {} nodes", nodes.view.borrow().nodes.len());
        Ok((nodes, beating))
    }

    /// Beats until the program stops. If this node was removed, or another runs in its name, it asks for that.
    pub(crate) async fn run(self, mut beating: Beating, mut load: impl FnMut() -> Load, shutdown: Shutdown) {
        let mut ticks = tokio::time::interval(BEAT_EVERY);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut is_answered = true;
        loop {
            ticks.tick().await;
            let beaten = match timeout(BEAT_TIME, self.beat(&mut beating, load())).await {
                Ok(beaten) => beaten,
                Err(_) => Err(AccountsError::Database(sqlx::Error::PoolTimedOut)),
            };
            match beaten {
                Ok(()) => is_answered = true,
                Err(error @ (AccountsError::NodeOver | AccountsError::Claimed)) => {
                    tracing::error!("{error}: stopping");
                    if !shutdown.is_draining() {
                        shutdown.request();
                    }
                    return;
                }
                Err(error) => {
                    if is_answered {
                        tracing::warn!(%error, "the other nodes are not known now: LANs stay where they are");
                    }
                    is_answered = false;
                    if let Ok(Ok(connection)) = timeout(BEAT_TIME, self.accounts.connection()).await {
                        (beating.connection, beating.is_claimed) = (connection, false);
                    }
                    beating.answered_since = Instant::now();
                }
            }
        }
    }

    /// Says that this node is there, looks at the others, and moves what is due.
    async fn beat(&self, beating: &mut Beating, load: Load) -> Result<(), AccountsError> {
        let accounts = &self.accounts;
        if !beating.is_claimed {
            beating.is_claimed = accounts.claim_node(&mut beating.connection, self.key()).await?;
        }
        accounts.beat(&mut beating.connection, self.registration, load).await?;
        let mut view = accounts.nodes_on(&mut beating.connection).await?;
        if self.move_what_is_due(beating, &view).await? {
            view = accounts.nodes_on(&mut beating.connection).await?;
        }
        self.view.send_if_modified(|known| {
            let is_news = !is_same(known, &view);
            *known = Arc::new(view);
            is_news
        });
        Ok(())
    }

    /// Takes what is due to this node, and sees to it that what is due to another one gets there; whether it did anything.
    async fn move_what_is_due(&self, beating: &mut Beating, view: &View) -> Result<bool, AccountsError> {
        let now = Instant::now();
        let moves = placement::moves(view);
        beating.pending_since.retain(|lan, _| moves.iter().any(|due| due.lan == *lan));
        let mut has_moved = false;
        for due in moves {
            let is_from_dead = due.from.is_some_and(|from| view.node(from).is_none_or(|node| !node.is_alive()));
            // After a time in which the store did not answer, nobody was heard.
            if is_from_dead && due.from != Some(self.key()) && now.duration_since(beating.answered_since) < DEAD_AFTER {
                continue;
            }
            let since = *beating.pending_since.entry(due.lan).or_insert(now);
            if due.to == self.key() || now.duration_since(since) > OTHERS_TAKE_WITHIN {
                let is_placed = self.accounts.place(due.lan, due.from, due.to).await?;
                if is_placed {
                    let name = |key| view.node(key).map_or("a node that was removed", |node: &Node| node.name.as_str());
                    tracing::info!(lan = %due.lan, from = due.from.map(name), to = name(due.to), "LAN placed");
                }
                has_moved = true;
            }
        }
        Ok(has_moved)
    }

    /// This node's key.
    pub fn key(&self) -> NodeKey {
        self.registration.key
    }

    /// This run of this node.
    pub(crate) fn registration(&self) -> Registration {
        self.registration
    }

    /// Whether no other node is alive.
    pub(crate) fn is_alone(&self) -> bool {
        self.view.borrow().nodes.iter().all(|node| node.key == self.key() || !node.is_alive())
    }

    /// The nodes and placements, as last heard.
    pub fn view(&self) -> watch::Receiver<Arc<View>> {
        self.view.subscribe()
    }

    /// The LANs that this node serves.
    pub(crate) fn lans_here(&self) -> Vec<Lan> {
        let view = self.view.borrow();
        let here = view.placements.iter().filter(|placed| placed.node == Some(self.key()));
        here.map(|placed| Lan { id: placed.lan, name: placed.lan_name.clone(), data_port: placed.data_port }).collect()
    }

    /// Whether another node serves a LAN, and for how long what goes on here may.
    pub(crate) fn moved_away(&self, lan: LanId) -> Option<Duration> {
        let view = self.view.borrow();
        let placed = view.placements.iter().find(|placed| placed.lan == lan)?;
        let is_elsewhere = placed.node.is_some_and(|node| node != self.key());
        is_elsewhere.then(|| view.node(self.key()).and_then(|node| node.drain).unwrap_or(LEFT_SERVED_FOR))
    }

    /// Where a relay of that LAN is to go; `here` is the LAN's port if this node serves it. None while that is not known.
    pub(crate) fn direction(&self, lan: LanId, here: Option<u16>) -> Option<Direction> {
        let view = self.view.borrow();
        let placed = view.placements.iter().find(|placed| placed.lan == lan)?;
        let serving = view.node(placed.node?)?;
        let data = if serving.key == self.key() {
            DataAddress::Here(here?)
        } else {
            DataAddress::Elsewhere(Target { host: serving.public.host.clone(), port: placed.data_port })
        };
        let others = placement::ranked(lan, &view.nodes).into_iter().filter(|node| node.key != serving.key);
        let logins = std::iter::once(serving).chain(others).map(|node| node.public.clone()).take(NODES_MAX).collect();
        let is_gone = |key| view.node(key).is_none_or(|node| !node.is_alive());
        Some(Direction { data, nodes: ToldNodes { logins, is_only_here: placed.previous.is_none_or(is_gone) } })
    }

    /// Has the others take over what this node serves, and waits until they have or there is no other.
    pub(crate) async fn hand_over(&self, within: Duration) {
        if let Err(error) = self.accounts.drain_node(&self.identity.name, Some(within)).await {
            tracing::warn!(%error, "no other node can be asked to take over");
            return;
        }
        let mut view = self.view();
        let is_handed_over = |view: &Arc<View>| {
            let others = view.nodes.iter().any(|node| node.key != self.key() && node.is_alive() && node.drain.is_none());
            !others || view.placements.iter().all(|placed| placed.node != Some(self.key()))
        };
        let _ = timeout(HANDED_OVER_WITHIN, view.wait_for(is_handed_over)).await;
    }

    /// Says that this node has stopped.
    pub(crate) async fn leave(&self) {
        if let Err(error) = self.accounts.leave_node(self.registration).await {
            tracing::debug!(%error, "the other nodes will notice by themselves");
        }
    }
}

impl View {
    /// The node of that key.
    pub fn node(&self, key: NodeKey) -> Option<&Node> {
        self.nodes.iter().find(|node| node.key == key)
    }
}

/// Whether two views differ in nothing but times and loads.
fn is_same(a: &View, b: &View) -> bool {
    let same_node =
        |(a, b): (&Node, &Node)| (a.key, &a.public, a.is_alive(), a.drain.is_some()) == (b.key, &b.public, b.is_alive(), b.drain.is_some());
    a.placements == b.placements && a.nodes.len() == b.nodes.len() && a.nodes.iter().zip(&b.nodes).all(same_node)
}

/// Five of them within [`DEAD_AFTER`]; three small statements each.
const BEAT_EVERY: Duration = Duration::from_millis(500);

/// A statement that takes longer gets no answer any more.
const BEAT_TIME: Duration = Duration::from_secs(2);

/// How long a node that a LAN is due to has to take it by itself before another puts it there: two beats.
const OTHERS_TAKE_WITHIN: Duration = Duration::from_secs(1);

/// The others take over within two beats.
const HANDED_OVER_WITHIN: Duration = Duration::from_secs(3);

/// How long flows may go on at a node whose LAN has moved without a deadline for them: most downloads are over by then.
const LEFT_SERVED_FOR: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use sqlx::{AnyConnection, AssertSqlSafe};

    use super::*;
    use crate::accounts::testing;

    #[tokio::test]
    async fn a_node_whose_claim_is_lost_with_its_connection_takes_it_again() {
        let Some((accounts, _scratch)) = accounts().await else { return };
        let (nodes, beating) = join(&accounts).await.expect("a node");
        let mut other = accounts.connection().await.expect("a connection");
        let lost = claimer(&mut other).await.expect("a claim");
        let shutdown = Shutdown::new();
        let running = tokio::spawn(nodes.run(beating, Load::default, shutdown.clone()));
        terminate(&mut other, lost).await;
        let claimed_again = async {
            while claimer(&mut other).await.is_none_or(|pid| pid == lost) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(DEADLINE, claimed_again).await.expect("claimed again");
        assert!(matches!(join(&accounts).await, Err(AccountsError::NodeClaimed(_))), "a second one in its name");
        assert!(!shutdown.is_draining());
        running.abort();
    }

    #[tokio::test]
    async fn a_node_stops_if_another_was_started_in_its_name_while_it_had_no_claim() {
        let Some((accounts, _scratch)) = accounts().await else { return };
        let (first, beating) = join(&accounts).await.expect("a node");
        let mut other = accounts.connection().await.expect("a connection");
        let lost = claimer(&mut other).await.expect("a claim");
        terminate(&mut other, lost).await;
        let (second, mut beating_second) = join(&accounts).await.expect("nobody has the claim");
        let shutdown = Shutdown::new();
        tokio::spawn(first.run(beating, Load::default, shutdown.clone()));
        timeout(DEADLINE, shutdown.draining()).await.expect("stopped");
        second.beat(&mut beating_second, Load::default()).await.expect("the one that has the claim goes on");
    }

    #[tokio::test]
    async fn a_node_stops_if_a_version_that_serves_alone_has_taken_the_store() {
        let Some((accounts, _scratch)) = accounts().await else { return };
        let (nodes, beating) = join(&accounts).await.expect("a node");
        let mut earlier = accounts.connection().await.expect("a connection");
        let lost = claimer(&mut earlier).await.expect("a claim");
        terminate(&mut earlier, lost).await;
        let lock = format!("SELECT CAST(pg_advisory_lock({}) AS TEXT)", 0x7472_6962_7574_6172_i64);
        let _: String = sqlx::query_scalar(AssertSqlSafe(lock)).fetch_one(&mut earlier).await.expect("the lock of the store");
        let shutdown = Shutdown::new();
        tokio::spawn(nodes.run(beating, Load::default, shutdown.clone()));
        timeout(DEADLINE, shutdown.draining()).await.expect("stopped");
    }

    async fn join(accounts: &Accounts) -> Result<(Nodes, Beating), AccountsError> {
        let identity = NodeIdentity { name: "main".parse().expect("a name"), public: "127.0.0.1:10000".parse().expect("an address") };
        Nodes::join(accounts, identity, 1).await
    }

    /// Who holds the claim of a node of this database.
    async fn claimer(connection: &mut AnyConnection) -> Option<i32> {
        let sql = "SELECT pid FROM pg_locks WHERE locktype = 'advisory' AND objsubid = 2
                   AND database = (SELECT oid FROM pg_database WHERE datname = current_database())";
        sqlx::query_scalar(sql).fetch_optional(connection).await.expect("locks")
    }

    /// Ends a connection as a network does, and waits until its locks are gone.
    async fn terminate(connection: &mut AnyConnection, pid: i32) {
        let done: bool =
            sqlx::query_scalar("SELECT pg_terminate_backend($1, 10000)").bind(pid).fetch_one(connection).await.expect("the right to");
        assert!(done, "it was there");
    }

    async fn accounts() -> Option<(Accounts, tempfile::TempDir)> {
        let (registrar, scratch) = testing::registrar().await;
        if !registrar.accounts().takes_several_nodes() {
            println!("skipped: nodes need PostgreSQL; run .ci/with-postgres cargo test -p reconst --lib");
            return None;
        }
        Some((registrar.accounts().clone(), scratch))
    }

    const DEADLINE: Duration = Duration::from_secs(20);
}
