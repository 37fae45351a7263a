//! The table of dedicated ports (the patent's table 2): which socket towards content servers is whose flow's.
//!
//! Enters: a flow that got its socket, and each use of it. Leaves: a row for whoever has to know, an operator who answers a complaint
//! first of all. A flow keeps its port, and its row, for as long as it lasts; a row goes with its flow.

use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    ops::Bound,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicU64, Ordering},
    },
    task::{Context, Poll},
    time::{SystemTime, UNIX_EPOCH},
};

use serde::Serialize;
use shared::{
    community::member::{Identity, Name},
    ids::{FlowId, LanId, SessionId},
    target::Target,
};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::{accounts::parts::Part, records::Records};

/// All dedicated ports of this `reconst`; clones share the table.
#[derive(Clone, Default, Debug)]
pub struct DedicatedPorts {
    table: Arc<Mutex<Table>>,
    records: Option<Records>,
}

#[derive(Default, Debug)]
struct Table {
    next_row: u64,
    rows: BTreeMap<u64, Arc<Row>>,
}

#[derive(Debug)]
struct Row {
    holder: Holder,
    protocol: Protocol,
    port: u16,
    opened_ms: u64,
    last_used_ms: AtomicU64,
    up_bytes: AtomicU64,
    down_bytes: AtomicU64,
    content_server: Mutex<Option<Target>>,
}

/// Whose flow it is.
#[derive(Clone, Debug)]
pub struct Holder {
    /// The user.
    pub user: Identity,
    /// The name of the user's LAN.
    pub lan_name: Name,
    /// The session and the flow in it.
    pub session: SessionId,
    /// See `session`.
    pub flow: FlowId,
    /// The originating terminal: the application's address and port as `proxy-local` sees them, if it tells.
    pub origin: Option<SocketAddr>,
}

/// How a dedicated port is used.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// One connection.
    Tcp,
    /// Datagrams.
    Udp,
}

/// A flow's port; dropping it takes the row out of the table.
#[derive(Debug)]
pub struct DedicatedPort {
    table: DedicatedPorts,
    number: u64,
    row: Arc<Row>,
}

/// A row of the table, as `reconst flows` shows it. Times are in milliseconds since 1970, UTC.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct FlowReport {
    /// The dedicated port.
    pub port: u16,
    /// How it is used.
    pub protocol: Protocol,
    /// The originating terminal, if it is known.
    pub origin: Option<SocketAddr>,
    /// The LAN's number.
    pub lan: LanId,
    /// The LAN's name.
    pub lan_name: String,
    /// The user.
    pub user: String,
    /// The beginning of the session's name.
    pub session: String,
    /// The flow's number in its session.
    pub flow: u64,
    /// The content server; of a UDP flow, the one last sent to.
    pub content_server: Option<String>,
    /// When the flow got the port.
    pub opened_ms: u64,
    /// When the port was last used, either way.
    pub last_used_ms: u64,
    /// Bytes to the content server.
    pub up_bytes: u64,
    /// Bytes from the content server.
    pub down_bytes: u64,
}

impl DedicatedPorts {
    /// A table whose rows are recorded when they go.
    pub fn recorded(records: Option<Records>) -> Self {
        Self { table: Arc::default(), records }
    }

    /// Notes that a flow has got `port`.
    pub fn hold(&self, holder: Holder, protocol: Protocol, port: u16, content_server: Option<Target>) -> DedicatedPort {
        let opened_ms = now_ms();
        let row = Arc::new(Row {
            holder,
            protocol,
            port,
            opened_ms,
            last_used_ms: AtomicU64::new(opened_ms),
            up_bytes: AtomicU64::new(0),
            down_bytes: AtomicU64::new(0),
            content_server: Mutex::new(content_server),
        });
        let mut table = self.lock();
        let number = table.next_row;
        table.next_row += 1;
        table.rows.insert(number, Arc::clone(&row));
        DedicatedPort { table: self.clone(), number, row }
    }

    /// Records of rows that were dropped since the start.
    pub fn dropped_records(&self) -> u64 {
        self.records.as_ref().map_or(0, Records::dropped)
    }

    /// The table, in the order in which the flows got their ports.
    pub fn report(&self) -> Vec<FlowReport> {
        let rows: Vec<Arc<Row>> = self.lock().rows.values().cloned().collect();
        rows.iter().map(|row| row.report()).collect()
    }

    /// A part of the table, of the rows of `lan` if it is given: at most `limit` after the one of that number.
    pub fn part(&self, lan: Option<&Name>, after: Option<u64>, limit: u32) -> Part<FlowReport, u64> {
        let begin = after.map_or(Bound::Unbounded, Bound::Excluded);
        let table = self.lock();
        let of_lan = |row: &Row| lan.is_none_or(|lan| row.holder.lan_name == *lan);
        let found = table.rows.range((begin, Bound::Unbounded)).filter(|(_, row)| of_lan(row));
        let found: Vec<(u64, Arc<Row>)> = found.take(limit as usize + 1).map(|(number, row)| (*number, Arc::clone(row))).collect();
        drop(table);
        Part::cut(found, limit, |(number, _)| *number).map(|(_, row)| row.report())
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().expect("nothing panics under the lock")
    }
}

impl DedicatedPort {
    /// Notes bytes to the content server.
    pub fn on_up(&self, bytes: usize) {
        self.row.up_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.row.last_used_ms.store(now_ms(), Ordering::Relaxed);
    }

    /// Notes bytes from the content server.
    pub fn on_down(&self, bytes: usize) {
        self.row.down_bytes.fetch_add(bytes as u64, Ordering::Relaxed);
        self.row.last_used_ms.store(now_ms(), Ordering::Relaxed);
    }

    /// Notes whom a UDP flow speaks to now.
    pub fn set_content_server(&self, target: &Target) {
        let mut known = self.row.content_server.lock().expect("nothing panics under the lock");
        if known.as_ref() != Some(target) {
            *known = Some(target.clone());
        }
    }
}

impl Drop for DedicatedPort {
    fn drop(&mut self) {
        self.table.lock().rows.remove(&self.number);
        if let Some(records) = &self.table.records {
            records.note(self.row.report(), now_ms());
        }
    }
}

impl Row {
    fn report(&self) -> FlowReport {
        let content_server = self.content_server.lock().expect("nothing panics under the lock");
        FlowReport {
            port: self.port,
            protocol: self.protocol,
            origin: self.holder.origin,
            lan: self.holder.user.lan,
            lan_name: self.holder.lan_name.to_string(),
            user: self.holder.user.name.to_string(),
            session: self.holder.session.0[..4].iter().map(|byte| format!("{byte:02x}")).collect(),
            flow: self.holder.flow.0,
            content_server: content_server.as_ref().map(Target::to_string),
            opened_ms: self.opened_ms,
            last_used_ms: self.last_used_ms.load(Ordering::Relaxed),
            up_bytes: self.up_bytes.load(Ordering::Relaxed),
            down_bytes: self.down_bytes.load(Ordering::Relaxed),
        }
    }
}

/// A flow's stream whose bytes are noted in its row.
#[derive(Debug)]
pub struct Noted<S> {
    stream: S,
    port: DedicatedPort,
}

impl<S> Noted<S> {
    /// Notes what is read from `stream` as bytes to the content server, and what is written to it as bytes from there.
    pub fn new(stream: S, port: DedicatedPort) -> Self {
        Self { stream, port }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Noted<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let polled = Pin::new(&mut self.stream).poll_read(context, buffer);
        let read = buffer.filled().len() - before;
        if read > 0 {
            self.port.on_up(read);
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Noted<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.stream).poll_write(context, bytes);
        if let Poll::Ready(Ok(written)) = polled {
            self.port.on_down(written);
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use shared::community::member::Role;

    use super::*;

    #[test]
    fn a_row_lasts_as_long_as_its_flow_and_counts_its_bytes() {
        let ports = DedicatedPorts::default();
        let user = Identity { name: "ann".parse().expect("a name"), role: Role::User, lan: LanId(15) };
        let origin = Some("10.0.1.1:8111".parse().expect("an address"));
        let name = |text: &str| text.parse::<Name>().expect("a name");
        let holder = Holder { user, lan_name: name("elm"), session: SessionId([0xab; 16]), flow: FlowId(3), origin };
        let port = ports.hold(holder.clone(), Protocol::Udp, 20_001, None);
        let other = ports.hold(Holder { flow: FlowId(4), lan_name: name("oak"), ..holder }, Protocol::Tcp, 20_002, None);
        port.on_up(44);
        port.on_down(67);
        port.set_content_server(&"132.146.15.101:7111".parse().expect("a target"));
        let rows = ports.report();
        assert_eq!(rows.iter().map(|row| row.port).collect::<Vec<_>>(), [20_001, 20_002]);
        let (first, second) = (ports.part(None, None, 1), ports.part(None, Some(0), 1));
        assert_eq!((&first.items[0], first.next, &second.items[0], second.next), (&rows[0], Some(0), &rows[1], None));
        let (elm, oak) = (ports.part(Some(&name("elm")), None, 1), ports.part(Some(&name("oak")), None, 1));
        assert_eq!((&elm.items[..], elm.next, &oak.items[..], oak.next), (&rows[..1], None, &rows[1..], None));
        assert_eq!(ports.part(Some(&name("elm")), Some(0), 9), Part::empty());
        let row = &rows[0];
        assert_eq!((row.up_bytes, row.down_bytes, row.origin, row.lan, row.flow), (44, 67, origin, LanId(15), 3));
        assert_eq!((row.session.as_str(), row.content_server.as_deref()), ("abababab", Some("132.146.15.101:7111")));
        assert!(row.last_used_ms >= row.opened_ms);
        drop(port);
        assert_eq!(ports.report().iter().map(|row| row.port).collect::<Vec<_>>(), [20_002]);
        drop(other);
        assert_eq!(ports.report(), []);
    }
}
