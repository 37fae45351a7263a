//! Carries UDP of this machine's loopback over emulated lines, in one thread of its own.
//!
//! A line has an address of its own, 127.0.N.1, and opens there the ports that a server has on 127.0.0.1: whoever is told
//! that the server is at the line's address reaches it over the line. Like a home router, the line gives each client
//! address a socket of its own towards the server, so that answers find their way back. ECN bits pass through.
//!
//! The thread waits with the kernel's fine timers, which tokio's of a millisecond are not: at 25 Mbit/s a packet takes half
//! of one.

use std::{
    collections::BTreeMap,
    io::{self, IoSliceMut, Read, Write},
    net::{IpAddr, SocketAddr, UdpSocket},
    os::unix::net::UnixStream,
    sync::{Arc, Mutex, MutexGuard},
    thread::JoinHandle,
    time::{Duration, Instant},
};

use bytes::Bytes;
use quinn_udp::{BATCH_SIZE, EcnCodepoint, RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use rustix::event::{PollFd, PollFlags, Timespec};

use super::{Conditions, Counters, Direction};

/// A set of emulated lines and the thread that drives them; dropping it closes all.
#[derive(Debug)]
pub struct Lines {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<()>>,
}

/// One line of a set, to open ports on, to watch and to change while it runs. Clones are the same line.
#[derive(Clone, Debug)]
pub struct LineHandle {
    shared: Arc<Shared>,
    index: usize,
    ip: IpAddr,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    wake: UnixStream,
}

#[derive(Debug, Default)]
struct State {
    lines: Vec<Line>,
    doors: Vec<Arc<Door>>,
    /// The sockets towards servers, by line, door and client.
    outs: BTreeMap<(usize, u16, SocketAddr), Arc<Out>>,
    /// Grows when a socket is opened or closed.
    generation: u64,
    is_closed: bool,
}

#[derive(Debug)]
struct Line {
    up: Direction<Packet>,
    down: Direction<Packet>,
}

/// A port that clients of a line send to.
#[derive(Debug)]
struct Door {
    line: usize,
    socket: Socket,
    server: SocketAddr,
}

/// A client's own socket towards the server.
#[derive(Debug)]
struct Out {
    door: Arc<Door>,
    client: SocketAddr,
    socket: Socket,
    last_used: Mutex<Instant>,
}

#[derive(Debug)]
struct Packet {
    exit: Exit,
    ecn: Option<EcnCodepoint>,
    payload: Bytes,
}

#[derive(Clone, Debug)]
enum Exit {
    ToServer(Arc<Out>),
    ToClient(Arc<Out>),
}

#[derive(Debug)]
struct Socket {
    io: UdpSocket,
    state: UdpSocketState,
}

#[derive(Clone)]
enum Source {
    Door(Arc<Door>),
    Out(Arc<Out>),
}

impl Lines {
    /// A set without lines, its thread running.
    ///
    /// # Errors
    /// If the system gives no more threads or descriptors.
    pub fn start() -> io::Result<Self> {
        let (wake, woken) = UnixStream::pair()?;
        wake.set_nonblocking(true)?;
        woken.set_nonblocking(true)?;
        let shared = Arc::new(Shared { state: Mutex::default(), wake });
        let of_thread = shared.clone();
        let thread = std::thread::Builder::new().name("lines".into()).spawn(move || drive(&of_thread, &woken))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    /// Adds a line that answers at `ip`, its randomness following from `seed`. No port is open on it yet.
    pub fn add(&self, ip: IpAddr, up: Conditions, down: Conditions, seed: u64) -> LineHandle {
        let now = Instant::now();
        let mut state = self.shared.lock();
        let index = state.lines.len();
        state.lines.push(Line { up: Direction::new(up, seed, now), down: Direction::new(down, !seed, now) });
        LineHandle { shared: self.shared.clone(), index, ip }
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.shared.lock().is_closed = true;
        self.shared.wake();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl LineHandle {
    /// The line's address.
    pub fn ip(&self) -> IpAddr {
        self.ip
    }

    /// Opens the port of `server` on the line's address: what is sent there goes over the line to `server`. Returns the
    /// address; does nothing if it is open already.
    ///
    /// # Errors
    /// If the port is taken on the line's address.
    pub fn open(&self, server: SocketAddr) -> io::Result<SocketAddr> {
        let address = SocketAddr::new(self.ip, server.port());
        if self.shared.lock().doors.iter().any(|door| door.line == self.index && door.server == server) {
            return Ok(address);
        }
        let door = Door { line: self.index, socket: Socket::bind(address)?, server };
        let mut state = self.shared.lock();
        state.doors.push(Arc::new(door));
        state.generation += 1;
        drop(state);
        self.shared.wake();
        Ok(address)
    }

    /// What the line is like towards the server and back.
    pub fn conditions(&self) -> (Conditions, Conditions) {
        let state = self.shared.lock();
        let line = &state.lines[self.index];
        (line.up.conditions(), line.down.conditions())
    }

    /// Changes what the line is like towards the server (first) and back (second), from now on.
    pub fn change(&self, change: impl FnOnce(&mut Conditions, &mut Conditions)) {
        let (mut up, mut down) = self.conditions();
        change(&mut up, &mut down);
        let now = Instant::now();
        let mut state = self.shared.lock();
        let line = &mut state.lines[self.index];
        line.up.set_conditions(now, up);
        line.down.set_conditions(now, down);
        drop(state);
        self.shared.wake();
    }

    /// Makes the line silent, or brings it back.
    pub fn set_out(&self, is_out: bool) {
        self.change(|up, down| (up.is_out, down.is_out) = (is_out, is_out));
    }

    /// What became of the packets towards the server and back.
    pub fn counters(&self) -> (Counters, Counters) {
        let state = self.shared.lock();
        let line = &state.lines[self.index];
        (line.up.counters(), line.down.counters())
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Ends the thread's wait. A full pipe means that it is being woken already.
    fn wake(&self) {
        let _ = (&self.wake).write(&[0]);
    }
}

/// Runs until the set is closed.
fn drive(shared: &Shared, woken: &UnixStream) {
    let mut receive = ReceiveBuffers::new();
    let mut sources = Vec::new();
    let mut known_generation = u64::MAX;
    let mut next_sweep = Instant::now() + SWEEP_EVERY;
    let mut ready = Vec::new();
    loop {
        let timeout = {
            let mut state = shared.lock();
            if state.is_closed {
                return;
            }
            for source in ready.drain(..) {
                state.receive_from(&source, &mut receive);
            }
            let now = Instant::now();
            if now >= next_sweep {
                state.forget_idle_clients(now);
                next_sweep = now + SWEEP_EVERY;
            }
            state.deliver();
            if state.generation != known_generation {
                known_generation = state.generation;
                sources = state.sources();
            }
            state.poll_timeout().map_or(next_sweep, |timeout| timeout.min(next_sweep))
        };
        wait(&sources, woken, timeout, &mut ready);
    }
}

/// Waits until a socket has packets or `until` has come; fills `ready` with the sockets that have.
fn wait(sources: &[Source], woken: &UnixStream, until: Instant, ready: &mut Vec<Source>) {
    let mut polled: Vec<PollFd<'_>> = sources.iter().map(|source| PollFd::new(&source.socket().io, PollFlags::IN)).collect();
    polled.push(PollFd::new(woken, PollFlags::IN));
    let wait = until.saturating_duration_since(Instant::now()).max(GRANULARITY);
    let timeout = Timespec { tv_sec: wait.as_secs().try_into().unwrap_or(i64::MAX), tv_nsec: wait.subsec_nanos().into() };
    if rustix::event::poll(&mut polled, Some(&timeout)).is_err() {
        return;
    }
    ready.extend(sources.iter().zip(&polled).filter(|(_, polled)| !polled.revents().is_empty()).map(|(source, _)| source.clone()));
    if polled.last().is_some_and(|polled| !polled.revents().is_empty()) {
        let _ = (&*woken).read(&mut [0; 64]);
    }
}

impl State {
    /// Puts what a socket has received into its line.
    fn receive_from(&mut self, source: &Source, buffers: &mut ReceiveBuffers) {
        for _ in 0..BATCHES_A_TURN {
            let Some(count) = buffers.receive(source.socket()) else { return };
            let now = Instant::now();
            for (meta, data) in buffers.received(count) {
                let (exit, line) = match source {
                    Source::Door(door) => match self.out_for(door, meta.addr, now) {
                        Some(out) => (Exit::ToServer(out), door.line),
                        None => continue,
                    },
                    Source::Out(out) => (Exit::ToClient(out.clone()), out.door.line),
                };
                let line = &mut self.lines[line];
                let direction = if matches!(exit, Exit::ToServer(_)) { &mut line.up } else { &mut line.down };
                let stride = meta.stride.max(1);
                let all = Bytes::copy_from_slice(data);
                for start in (0..all.len()).step_by(stride) {
                    let payload = all.slice(start..all.len().min(start + stride));
                    direction.handle_packet(now, payload.len(), Packet { exit: exit.clone(), ecn: meta.ecn, payload });
                }
            }
        }
    }

    /// The client's socket towards the door's server, made when the client is new; `None` when there can be no more.
    fn out_for(&mut self, door: &Arc<Door>, client: SocketAddr, now: Instant) -> Option<Arc<Out>> {
        let key = (door.line, door.server.port(), client);
        if let Some(out) = self.outs.get(&key) {
            *out.last_used.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = now;
            return Some(out.clone());
        }
        if self.outs.len() >= CLIENTS_MAX {
            return None;
        }
        let from = door.socket.io.local_addr().ok()?.ip();
        let socket = Socket::bind(SocketAddr::new(from, 0)).ok()?;
        socket.io.connect(door.server).ok()?;
        let out = Arc::new(Out { door: door.clone(), client, socket, last_used: Mutex::new(now) });
        self.outs.insert(key, out.clone());
        self.generation += 1;
        Some(out)
    }

    fn deliver(&mut self) {
        let now = Instant::now();
        for line in &mut self.lines {
            for direction in [&mut line.up, &mut line.down] {
                while let Some(packet) = direction.poll_packet(now) {
                    packet.send();
                }
            }
        }
    }

    fn poll_timeout(&self) -> Option<Instant> {
        self.lines.iter().flat_map(|line| [line.up.poll_timeout(), line.down.poll_timeout()]).flatten().min()
    }

    fn forget_idle_clients(&mut self, now: Instant) {
        let count = self.outs.len();
        self.outs.retain(|_, out| {
            let last_used = *out.last_used.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
            now.saturating_duration_since(last_used) < CLIENT_IDLE
        });
        self.generation += u64::from(self.outs.len() != count);
    }

    fn sources(&self) -> Vec<Source> {
        let doors = self.doors.iter().cloned().map(Source::Door);
        doors.chain(self.outs.values().cloned().map(Source::Out)).collect()
    }
}

impl Source {
    fn socket(&self) -> &Socket {
        match self {
            Self::Door(door) => &door.socket,
            Self::Out(out) => &out.socket,
        }
    }
}

impl Packet {
    /// Sends the packet on; what the far end's socket buffer has no room for is lost, as on any last hop.
    fn send(&self) {
        let (socket, destination) = match &self.exit {
            Exit::ToServer(out) => (&out.socket, out.door.server),
            Exit::ToClient(out) => (&out.door.socket, out.client),
        };
        let transmit = Transmit { destination, ecn: self.ecn, contents: &self.payload, segment_size: None, src_ip: None };
        let _ = socket.state.send(UdpSockRef::from(&socket.io), &transmit);
    }
}

impl Socket {
    fn bind(address: SocketAddr) -> io::Result<Self> {
        let io = UdpSocket::bind(address)?;
        let state = UdpSocketState::new(UdpSockRef::from(&io))?;
        let _ = state.set_recv_buffer_size(UdpSockRef::from(&io), SOCKET_BUFFER_BYTES);
        let _ = state.set_send_buffer_size(UdpSockRef::from(&io), SOCKET_BUFFER_BYTES);
        Ok(Self { io, state })
    }
}

struct ReceiveBuffers {
    buffers: Vec<Vec<u8>>,
    metas: [RecvMeta; BATCH_SIZE],
}

impl ReceiveBuffers {
    fn new() -> Self {
        Self { buffers: vec![vec![0; GRO_BYTES]; BATCH_SIZE], metas: [RecvMeta::default(); BATCH_SIZE] }
    }

    /// Receives a batch; the number of buffers filled, `None` when there is nothing.
    fn receive(&mut self, socket: &Socket) -> Option<usize> {
        let mut slices: Vec<IoSliceMut<'_>> = self.buffers.iter_mut().map(|buffer| IoSliceMut::new(buffer)).collect();
        socket.state.recv(UdpSockRef::from(&socket.io), &mut slices, &mut self.metas).ok()
    }

    fn received(&self, count: usize) -> impl Iterator<Item = (RecvMeta, &[u8])> {
        self.metas[..count].iter().zip(&self.buffers).map(|(meta, buffer)| (*meta, &buffer[..meta.len]))
    }
}

/// Packets due within so short a time leave together: at most so late, at no more than 10,000 wake-ups a second.
const GRANULARITY: Duration = Duration::from_micros(100);
/// The largest batch that the kernel hands over as one.
const GRO_BYTES: usize = 65_536;
/// So many batches are taken from one socket before the others get their turn.
const BATCHES_A_TURN: usize = 4;
/// Asked of the kernel for each socket, so that a burst of a whole window waits in the line's queue and not here.
const SOCKET_BUFFER_BYTES: usize = 4 << 20;
/// Clients of all lines together: each costs a descriptor.
const CLIENTS_MAX: usize = 512;
/// A client silent for so long is forgotten: twice the least that RFC 4787 asks of a NAT.
const CLIENT_IDLE: Duration = Duration::from_secs(240);
const SWEEP_EVERY: Duration = Duration::from_secs(10);

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn what_is_sent_to_the_line_reaches_the_server_and_the_answer_the_client() {
        let server = socket(Ipv4Addr::LOCALHOST);
        let lines = Lines::start().unwrap();
        let line = lines.add(Ipv4Addr::new(127, 0, 77, 1).into(), conditions(), conditions(), 1);
        let door = line.open(server.local_addr().unwrap()).unwrap();
        let clients = [socket(Ipv4Addr::LOCALHOST), socket(Ipv4Addr::LOCALHOST)];
        for (number, client) in clients.iter().enumerate() {
            client.send_to(&[number as u8; 1_000], door).unwrap();
            let mut buffer = [0; 2_000];
            let (len, from) = server.recv_from(&mut buffer).unwrap();
            assert_eq!((&buffer[..len], from.ip()), (&[number as u8; 1_000][..], line.ip()));
            server.send_to(b"answer", from).unwrap();
            let (len, from) = client.recv_from(&mut buffer).unwrap();
            assert_eq!((&buffer[..len], from), (&b"answer"[..], door));
        }
        assert_eq!(line.counters().0.delivered_bytes, 2 * 1_028);
        assert_eq!(line.counters().1.delivered, 2);
    }

    #[test]
    fn a_line_that_is_out_is_silent_and_comes_back() {
        let server = socket(Ipv4Addr::LOCALHOST);
        let lines = Lines::start().unwrap();
        let line = lines.add(Ipv4Addr::new(127, 0, 78, 1).into(), conditions(), conditions(), 1);
        let door = line.open(server.local_addr().unwrap()).unwrap();
        let client = socket(Ipv4Addr::LOCALHOST);
        line.set_out(true);
        client.send_to(b"lost", door).unwrap();
        while line.counters().0.silenced == 0 {
            std::thread::yield_now();
        }
        line.set_out(false);
        client.send_to(b"kept", door).unwrap();
        let mut buffer = [0; 10];
        assert_eq!(server.recv(&mut buffer).unwrap(), 4);
        assert_eq!(&buffer[..4], b"kept");
    }

    fn conditions() -> Conditions {
        Conditions::steady(shared::units::Rate { bits_per_second: 10_000_000 }, Duration::from_millis(1))
    }

    fn socket(ip: Ipv4Addr) -> UdpSocket {
        let socket = UdpSocket::bind((ip, 0)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        socket
    }
}
