//! The nodes: the servers that share the store, and which of them serves each LAN.
//!
//! Enters: a node's registration and its beats, an operator's changes. Leaves: a [`View`] of all nodes and placements at one moment, by the
//! store's own clock, so that the nodes' clocks need not agree. Always holds: a node whose registration was taken over or removed writes
//! nothing more; a LAN is moved only by who knew where it was. Deciding who serves what is left to [`nodes`](crate::nodes).

use std::time::Duration;

use serde::Serialize;
use shared::{community::member::Name, ids::LanId, target::Target};
use sqlx::{Any, AnyConnection, Transaction};

use super::{
    Accounts, AccountsError,
    book::{Book, LANS, USERS},
    changes::Touched,
    number, parsed,
    registry::now,
    schema::Backend,
    usage::stored,
};

/// A node's key in the store, never given to another.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(transparent)]
pub struct NodeKey(pub i64);

/// A node that has registered, in this run of its.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Registration {
    /// Which node.
    pub key: NodeKey,
    /// Which run of it.
    pub epoch: i64,
}

/// What a node says of itself with each beat.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Load {
    /// What it carries, in bits of payload per second.
    pub bits_per_second: u64,
    /// Its sessions.
    pub sessions: u64,
}

/// A node as the store has it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    /// Its key.
    pub key: NodeKey,
    /// Its name.
    pub name: Name,
    /// Where relays reach its login port.
    pub public: Target,
    /// How long ago it was heard; none if it was never, or has stopped in order.
    pub heard_ago: Option<Duration>,
    /// What it can carry, in bits per second.
    pub capacity_bits_per_second: u64,
    /// What it carries.
    pub load: Load,
    /// Whether it is to serve nothing new, and for how long what it serves may go on.
    pub drain: Option<Duration>,
}

/// Where a LAN is to be found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Placed {
    /// The LAN.
    pub lan: LanId,
    /// Its name.
    pub lan_name: Name,
    /// Its port, on whatever node.
    pub data_port: u16,
    /// The node that serves it, once one does.
    pub node: Option<NodeKey>,
    /// The node that did before.
    pub previous: Option<NodeKey>,
    /// The node that the operator wants it on.
    pub wanted: Option<NodeKey>,
}

/// All nodes and placements at one moment.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct View {
    /// The nodes, by name.
    pub nodes: Vec<Node>,
    /// The LANs, by number.
    pub placements: Vec<Placed>,
}

/// A node is dead once it has not been heard for this long: five beats, more than a database stalls for while it writes its log.
pub const DEAD_AFTER: Duration = Duration::from_millis(2500);

impl Node {
    /// Whether it was heard lately.
    pub fn is_alive(&self) -> bool {
        self.heard_ago.is_some_and(|ago| ago < DEAD_AFTER)
    }
}

impl Accounts {
    /// Whether several servers may share this store.
    pub fn takes_several_nodes(&self) -> bool {
        self.backend == Backend::Postgres
    }

    /// Adds a node that is yet to come, to be reached at `public`, where new profiles and invites lead as well.
    ///
    /// # Errors
    /// If there is one of that name, or the store is for one server alone.
    pub async fn add_node(&self, name: &Name, public: &Target) -> Result<(), AccountsError> {
        self.check_takes_several()?;
        let mut transaction = self.write().await?;
        self.touch(&mut transaction, Touched::Nobody).await?;
        let known = "SELECT count(*) FROM nodes WHERE name = $1 AND removed_at IS NULL";
        let known: i64 = sqlx::query_scalar(known).bind(name.as_str()).fetch_one(&mut *transaction).await?;
        if known > 0 {
            return Err(AccountsError::NodeExists(name.clone()));
        }
        sqlx::query(INSERT).bind(name.as_str()).bind(public.to_string()).execute(&mut *transaction).await?;
        let added = public.to_string();
        change_public(&mut transaction, |public| format!("{public} {added}")).await?;
        self.log(&mut transaction, "node.add", name.as_str(), &added).await?;
        Ok(transaction.commit().await?)
    }

    /// Begins a run of the node of that name, and claims it on `connection`; whether that is claimed already. A node that was never heard of is added.
    ///
    /// # Errors
    /// If it runs already or was removed, an earlier version has the store, or it does not answer.
    pub(crate) async fn register_node(
        &self,
        connection: &mut AnyConnection,
        name: &Name,
        public: &Target,
        capacity_bits_per_second: u64,
    ) -> Result<(Registration, bool), AccountsError> {
        let find = "SELECT node_key, removed_at FROM nodes WHERE name = $1 ORDER BY node_key DESC LIMIT 1";
        let known: Option<(i64, Option<i64>)> = sqlx::query_as(find).bind(name.as_str()).fetch_optional(&mut *connection).await?;
        let key = match known {
            Some((key, None)) => key,
            Some((_, Some(_))) => return Err(AccountsError::NodeRemoved(name.clone())),
            None => {
                let insert = format!("{INSERT} RETURNING node_key");
                sqlx::query_scalar(sqlx::AssertSqlSafe(insert))
                    .bind(name.as_str())
                    .bind(public.to_string())
                    .fetch_one(&mut *connection)
                    .await?
            }
        };
        let is_claimed = self.claim_node(connection, NodeKey(key)).await?;
        // Who has not been heard for a while holds its lock by a connection that nobody has closed.
        let is_alive = format!("SELECT {CLOCK_MS} - heard_ms < $1 FROM nodes WHERE node_key = $2");
        let is_alive: bool =
            sqlx::query_scalar(sqlx::AssertSqlSafe(is_alive)).bind(millis(DEAD_AFTER)).bind(key).fetch_one(&mut *connection).await?;
        if !is_claimed && is_alive {
            return Err(AccountsError::NodeClaimed(name.clone()));
        }
        let begin = format!(
            "UPDATE nodes SET epoch = epoch + 1, public = $1, capacity_bits_per_second = $2, load_bits_per_second = 0, sessions = 0,
             drain_until_ms = NULL, heard_ms = {CLOCK_MS} WHERE node_key = $3 RETURNING epoch"
        );
        let epoch: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(begin))
            .bind(public.to_string())
            .bind(stored(capacity_bits_per_second))
            .bind(key)
            .fetch_one(&mut *connection)
            .await?;
        sqlx::query(
            "WITH now AS (UPDATE revision SET number = number + 1 RETURNING number)
             INSERT INTO changes (number, kind, subject_key) SELECT number, 'nobody', 0 FROM now",
        )
        .execute(&mut *connection)
        .await?;
        // What a run before had leased, and would hold now that the node is heard again.
        for sql in [USERS, LANS].map(end_leases) {
            sqlx::query(sqlx::AssertSqlSafe(sql)).bind(key).execute(&mut *connection).await?;
        }
        Ok((Registration { key: NodeKey(key), epoch }, is_claimed))
    }

    /// Claims a node for as long as `connection` is open, so that no other server begins a run in its name; whether it could be, which it can't
    /// while another connection has it. With it goes the claim that only programs that count as nodes do keep counts in this store: the versions
    /// before, which served a store alone, would overwrite them.
    ///
    /// # Errors
    /// If such a version has the store, or it does not answer.
    pub(crate) async fn claim_node(&self, connection: &mut AnyConnection, node: NodeKey) -> Result<bool, AccountsError> {
        let is_ours: bool =
            sqlx::query_scalar("SELECT pg_try_advisory_lock_shared($1)").bind(STORE_CLAIM).fetch_one(&mut *connection).await?;
        if !is_ours {
            return Err(AccountsError::Claimed);
        }
        let claim = "SELECT pg_try_advisory_lock($1, $2)";
        let key = i32::try_from(node.0).unwrap_or(i32::MAX);
        Ok(sqlx::query_scalar(claim).bind(NODE_CLAIM_CLASS).bind(key).fetch_one(&mut *connection).await?)
    }

    /// Says that a node is there.
    ///
    /// # Errors
    /// If its run is over: it was removed, or another one has begun; or the store does not answer.
    pub(crate) async fn beat(&self, connection: &mut AnyConnection, node: Registration, load: Load) -> Result<(), AccountsError> {
        let beat = format!(
            "UPDATE nodes SET heard_ms = {CLOCK_MS}, load_bits_per_second = $1, sessions = $2
             WHERE node_key = $3 AND epoch = $4 AND removed_at IS NULL"
        );
        let done = sqlx::query(sqlx::AssertSqlSafe(beat))
            .bind(stored(load.bits_per_second))
            .bind(stored(load.sessions))
            .bind(node.key.0)
            .bind(node.epoch)
            .execute(connection)
            .await?;
        if done.rows_affected() == 0 { Err(AccountsError::NodeOver) } else { Ok(()) }
    }

    /// Says that a node has stopped in order: what it served is others' at once.
    ///
    /// # Errors
    /// If the store does not answer.
    pub(crate) async fn leave_node(&self, node: Registration) -> Result<(), AccountsError> {
        sqlx::query("UPDATE nodes SET heard_ms = 0, drain_until_ms = NULL WHERE node_key = $1 AND epoch = $2")
            .bind(node.key.0)
            .bind(node.epoch)
            .execute(&self.pool)
            .await?;
        Ok(())
    }

    /// The nodes and where the LANs are.
    ///
    /// # Errors
    /// If the store does not answer, or is for one server alone.
    pub async fn nodes(&self) -> Result<View, AccountsError> {
        self.check_takes_several()?;
        self.nodes_on(&mut *self.pool.acquire().await?).await
    }

    /// As [`Accounts::nodes`], on a connection of its own.
    pub(crate) async fn nodes_on(&self, connection: &mut AnyConnection) -> Result<View, AccountsError> {
        type NodeRow = (i64, String, String, i64, i64, i64, i64, Option<i64>, i64);
        let sql = format!(
            "SELECT node_key, name, public, heard_ms, capacity_bits_per_second, load_bits_per_second, sessions, drain_until_ms, {CLOCK_MS}
             FROM nodes WHERE removed_at IS NULL ORDER BY name"
        );
        let rows: Vec<NodeRow> = sqlx::query_as(sqlx::AssertSqlSafe(sql)).fetch_all(&mut *connection).await?;
        let between = |from: i64, to: i64| Duration::from_millis(u64::try_from(to - from).unwrap_or(0));
        let node = |(key, name, public, heard, capacity, load, sessions, drain, now): NodeRow| {
            Ok(Node {
                key: NodeKey(key),
                name: parsed(&name)?,
                public: parsed(&public)?,
                heard_ago: (heard > 0).then(|| between(heard, now)),
                capacity_bits_per_second: number(capacity)?,
                load: Load { bits_per_second: number(load)?, sessions: number(sessions)? },
                drain: drain.map(|until| between(now, until)),
            })
        };
        let nodes = rows.into_iter().map(node).collect::<Result<Vec<_>, AccountsError>>()?;
        type PlacedRow = (i64, String, i64, Option<i64>, Option<i64>, Option<i64>);
        let rows: Vec<PlacedRow> = sqlx::query_as(
            "SELECT l.lan_id, l.name, l.data_port, p.node_key, p.previous_node_key, l.wanted_node_key
             FROM lans l LEFT JOIN placements p ON p.lan_key = l.lan_key WHERE l.removed_at IS NULL ORDER BY l.lan_id",
        )
        .fetch_all(&mut *connection)
        .await?;
        let placed = |(lan, name, port, node, previous, wanted): PlacedRow| {
            Ok(Placed {
                lan: LanId(number(lan)?),
                lan_name: parsed(&name)?,
                data_port: number(port)?,
                node: node.map(NodeKey),
                previous: previous.map(NodeKey),
                wanted: wanted.map(NodeKey),
            })
        };
        let placements = rows.into_iter().map(placed).collect::<Result<Vec<_>, AccountsError>>()?;
        Ok(View { nodes, placements })
    }

    /// Places a LAN on a node, if it is still where `from` says; whether it was.
    ///
    /// # Errors
    /// If the store does not answer.
    pub(crate) async fn place(&self, lan: LanId, from: Option<NodeKey>, to: NodeKey) -> Result<bool, AccountsError> {
        let mut transaction = self.write().await?;
        self.touch(&mut transaction, Touched::Nobody).await?;
        let done = match from {
            None => {
                sqlx::query(
                    "INSERT INTO placements (lan_key, node_key) SELECT lan_key, $1 FROM lans WHERE lan_id = $2 AND removed_at IS NULL
                     ON CONFLICT DO NOTHING",
                )
                .bind(to.0)
                .bind(i64::from(lan.0))
                .execute(&mut *transaction)
                .await?
            }
            Some(from) => {
                sqlx::query(
                    "UPDATE placements SET node_key = $1, previous_node_key = node_key WHERE node_key = $2
                     AND lan_key IN (SELECT lan_key FROM lans WHERE lan_id = $3 AND removed_at IS NULL)",
                )
                .bind(to.0)
                .bind(from.0)
                .bind(i64::from(lan.0))
                .execute(&mut *transaction)
                .await?
            }
        };
        if done.rows_affected() == 0 {
            return Ok(false);
        }
        transaction.commit().await?;
        Ok(true)
    }

    /// Notes which node a LAN is wanted on, or that it may be on any.
    ///
    /// # Errors
    /// If there is no such LAN or node, or the store is for one server alone.
    pub async fn want_lan_on(&self, lan: &Name, node: Option<&Name>) -> Result<(), AccountsError> {
        self.check_takes_several()?;
        let key = match node {
            Some(node) => Some(self.node_key(node).await?.0),
            None => None,
        };
        let mut transaction = self.write().await?;
        self.touch(&mut transaction, Touched::Nobody).await?;
        let done = sqlx::query("UPDATE lans SET wanted_node_key = $1 WHERE name = $2 AND removed_at IS NULL")
            .bind(key)
            .bind(lan.as_str())
            .execute(&mut *transaction)
            .await?;
        if done.rows_affected() == 0 {
            return Err(AccountsError::NoLan(lan.clone()));
        }
        self.log(&mut transaction, "lan.place", lan.as_str(), node.map_or("any", Name::as_str)).await?;
        Ok(transaction.commit().await?)
    }

    /// Has a node serve nothing new, and end what it serves after `within`; without that, it may serve again.
    ///
    /// # Errors
    /// If there is no such node, or the store is for one server alone.
    pub async fn drain_node(&self, name: &Name, within: Option<Duration>) -> Result<(), AccountsError> {
        self.check_takes_several()?;
        let until = within.map(millis);
        let mut transaction = self.write().await?;
        self.touch(&mut transaction, Touched::Nobody).await?;
        let sql = format!("UPDATE nodes SET drain_until_ms = {CLOCK_MS} + $1 WHERE name = $2 AND removed_at IS NULL");
        let done = sqlx::query(sqlx::AssertSqlSafe(sql)).bind(until).bind(name.as_str()).execute(&mut *transaction).await?;
        if done.rows_affected() == 0 {
            return Err(AccountsError::NoNode(name.clone()));
        }
        let (action, detail) = match within {
            Some(within) => ("node.drain", format!("within {} s", within.as_secs())),
            None => ("node.resume", String::new()),
        };
        self.log(&mut transaction, action, name.as_str(), &detail).await?;
        Ok(transaction.commit().await?)
    }

    /// Removes a node for good: it ends if it runs, new profiles and invites don't name it any more, and what it has not spent of its leases is free.
    ///
    /// # Errors
    /// If there is no such node, or the store is for one server alone.
    pub async fn remove_node(&self, name: &Name) -> Result<(), AccountsError> {
        self.check_takes_several()?;
        let key = self.node_key(name).await?;
        let mut transaction = self.write().await?;
        self.touch(&mut transaction, Touched::Nobody).await?;
        let removed: String = sqlx::query_scalar("UPDATE nodes SET removed_at = $1 WHERE node_key = $2 RETURNING public")
            .bind(now())
            .bind(key.0)
            .fetch_one(&mut *transaction)
            .await?;
        let without = |public: &str| {
            let rest: Vec<&str> = public.split_whitespace().filter(|public| *public != removed).collect();
            if rest.is_empty() { public.to_owned() } else { rest.join(" ") }
        };
        change_public(&mut transaction, without).await?;
        sqlx::query("UPDATE lans SET wanted_node_key = NULL WHERE wanted_node_key = $1").bind(key.0).execute(&mut *transaction).await?;
        for sql in [USERS, LANS].map(end_leases) {
            sqlx::query(sqlx::AssertSqlSafe(sql)).bind(key.0).execute(&mut *transaction).await?;
        }
        self.log(&mut transaction, "node.remove", name.as_str(), "").await?;
        Ok(transaction.commit().await?)
    }

    async fn node_key(&self, name: &Name) -> Result<NodeKey, AccountsError> {
        let sql = "SELECT node_key FROM nodes WHERE name = $1 AND removed_at IS NULL";
        let key: Option<i64> = sqlx::query_scalar(sql).bind(name.as_str()).fetch_optional(&self.pool).await?;
        key.map(NodeKey).ok_or_else(|| AccountsError::NoNode(name.clone()))
    }

    fn check_takes_several(&self) -> Result<(), AccountsError> {
        if self.takes_several_nodes() { Ok(()) } else { Err(AccountsError::OneNode) }
    }
}

/// Changes where profiles lead, in the transaction that is the reason: no two are under way at once.
async fn change_public(transaction: &mut Transaction<'static, Any>, change: impl FnOnce(&str) -> String) -> Result<(), sqlx::Error> {
    let known: Option<String> =
        sqlx::query_scalar("SELECT value FROM settings WHERE name = $1").bind(PUBLIC).fetch_optional(&mut **transaction).await?;
    if let Some(known) = known {
        let set = "UPDATE settings SET value = $2 WHERE name = $1";
        sqlx::query(set).bind(PUBLIC).bind(change(&known)).execute(&mut **transaction).await?;
    }
    Ok(())
}

/// The setting that says where relays reach the login ports of all nodes, as profiles list them.
pub(crate) const PUBLIC: &str = "public";

fn end_leases(Book { node_usage, .. }: Book) -> String {
    format!("UPDATE {node_usage} SET leased_bytes = 0 WHERE node_key = $1 AND leased_bytes <> 0")
}

pub(super) fn millis(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

/// Milliseconds since 1970 by PostgreSQL's clock, which is the only one that all nodes share.
pub(super) const CLOCK_MS: &str = "CAST(EXTRACT(EPOCH FROM clock_timestamp()) * 1000 AS BIGINT)";

const INSERT: &str = "INSERT INTO nodes (name, public, epoch, heard_ms, capacity_bits_per_second, load_bits_per_second, sessions)
                      VALUES ($1, $2, 0, 0, 0, 0, 0)";

/// A number that no other program is likely to lock nodes by in the same database: `trib` in ASCII.
const NODE_CLAIM_CLASS: i32 = 0x7472_6962;

/// The same for the whole store, in which earlier versions lock it for themselves alone: `tributar`.
const STORE_CLAIM: i64 = 0x7472_6962_7574_6172;
