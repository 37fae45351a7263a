//! Several users, each with a session of one path, over one line of which its owner shares a part.
//!
//! Each packet waits at the relay (a [`Discipline`]) and travels the line: on the way up in that order, on the way down in the other. The
//! line itself carries whatever comes; what is measured is what the relay makes of it.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use bytes::Bytes;
use shared::{
    community::weight::LineWeight,
    ids::{FlowId, PathId},
    share::shaper::{Shaper, line_bytes},
    transfer::{
        path::{OVERHEAD_BYTES, PathInfo},
        schedule::Policy,
        session::{Event, Limits, Read, Session, Side},
    },
    units::Rate,
};

use super::world::SIDES;
use crate::{
    line::{Conditions, Direction, HEADER_BYTES},
    scene::Way,
};

/// What a user does all the time.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Use {
    /// Sends without end.
    Bulk(Way),
    /// Says 200 bytes every 20 ms, both ways, as a call does.
    Call,
}

/// A user: what for, and from when on.
#[derive(Clone, Copy, Debug)]
pub struct User {
    /// What it does.
    pub does: Use,
    /// When it begins.
    pub from: Duration,
}

/// Some users at one line.
#[derive(Clone, Debug)]
pub struct SharedLine {
    /// The line, both ways.
    pub line: Conditions,
    /// The rate that is shared, each way.
    pub share: Rate,
    /// The users.
    pub users: Vec<User>,
    /// When the figures begin to count.
    pub warm_up: Duration,
    /// How long they count.
    pub span: Duration,
    /// What the relay's timers are rounded up to.
    pub relay_tick: Duration,
}

/// What one user got.
#[derive(Clone, Debug, Default)]
pub struct Got {
    /// In-order bytes that came out, per second, ×8.
    pub goodput_bits: f64,
    /// How long each packet took from one end to the other in the user's busier direction, in order of size.
    pub delays: Vec<Duration>,
    /// Packets that the relay dropped.
    pub dropped: u64,
    /// Packets that came to the relay.
    pub packets: u64,
}

/// Where packets wait at the relay, in one direction.
pub trait Discipline {
    /// Takes a packet.
    fn enter(&mut self, now: Instant, user: usize, line_bytes: usize, packet: Packet);
    /// The next that leaves.
    fn leave(&mut self, now: Instant) -> Option<Packet>;
    /// The next that does not.
    fn dropped(&mut self) -> Option<Packet>;
    /// When something leaves.
    fn timeout(&self) -> Option<Instant>;
}

/// A packet under way.
#[derive(Debug)]
pub struct Packet {
    user: usize,
    datagram: Bytes,
    sent: Instant,
}

impl Discipline for Shaper<usize, Packet> {
    fn enter(&mut self, now: Instant, user: usize, line_bytes: usize, packet: Packet) {
        self.handle_packet(now, &user, line_bytes, packet);
    }

    fn leave(&mut self, now: Instant) -> Option<Packet> {
        self.poll_packet(now)
    }

    fn dropped(&mut self) -> Option<Packet> {
        self.poll_dropped()
    }

    fn timeout(&self) -> Option<Instant> {
        self.poll_timeout()
    }
}

impl Got {
    /// What this part (0 to 1) of the packets took at most.
    pub fn delay_quantile(&self, quantile: f64) -> Duration {
        let index = (self.delays.len().saturating_sub(1) as f64 * quantile).round() as usize;
        self.delays.get(index).copied().unwrap_or_default()
    }
}

impl SharedLine {
    /// Runs it with shapers.
    pub fn run(&self) -> Vec<Got> {
        self.run_with(|rate, now| Box::new(Shaper::new(rate, now)))
    }

    /// Runs it with another discipline.
    pub fn run_with(&self, discipline: impl Fn(Rate, Instant) -> Box<dyn Discipline>) -> Vec<Got> {
        let start = Instant::now() + Duration::from_secs(10);
        let way = |seed| Relayed {
            relay: discipline(self.share, start),
            line: Direction::new(self.line, seed, start),
            tick: self.relay_tick,
            start,
        };
        let mut run = Run { plan: self, start, now: start, up: way(1), down: way(2), users: Vec::new() };
        run.users = self.users.iter().map(|user| At::new(*user, start)).collect();
        run.go_on();
        let span = self.span.as_secs_f64();
        let got = |user: At| Got {
            goodput_bits: user.read_bytes as f64 * 8.0 / span,
            delays: {
                let mut delays = user.delays;
                delays.sort();
                delays
            },
            dropped: user.dropped,
            packets: user.packets,
        };
        run.users.into_iter().map(got).collect()
    }
}

struct Run<'a> {
    plan: &'a SharedLine,
    start: Instant,
    now: Instant,
    up: Relayed,
    down: Relayed,
    users: Vec<At>,
}

struct Relayed {
    relay: Box<dyn Discipline>,
    line: Direction<Packet>,
    tick: Duration,
    start: Instant,
}

/// A user at work.
struct At {
    user: User,
    ends: BTreeMap<bool, Session>,
    began: bool,
    flow: Option<FlowId>,
    read_bytes: u64,
    said_at: Option<Instant>,
    delays: Vec<Duration>,
    dropped: u64,
    packets: u64,
}

impl At {
    fn new(user: User, start: Instant) -> Self {
        let session = |side| Session::new(start, side, Policy::Adaptive, Limits::default());
        let ends = SIDES.into_iter().map(|side| (is_proxy(side), session(side))).collect();
        Self { user, ends, began: false, flow: None, read_bytes: 0, said_at: None, delays: Vec::new(), dropped: 0, packets: 0 }
    }

    fn end(&mut self, side: Side) -> &mut Session {
        self.ends.get_mut(&is_proxy(side)).expect("there are both")
    }

    /// The way that counts.
    fn way(&self) -> Way {
        match self.user.does {
            Use::Bulk(way) => way,
            Use::Call => Way::Up,
        }
    }

    fn begin(&mut self, now: Instant, rtt: Duration) {
        self.began = true;
        let info = PathInfo { weight: LineWeight::default(), max_datagram_bytes: 1500 - OVERHEAD_BYTES as usize, rtt };
        SIDES.into_iter().for_each(|side| self.end(side).add_path(now, PathId(0), info));
        let flow = self.end(Side::Proxy).open().expect("the first flow");
        self.flow = Some(flow);
        let _ = self.end(Side::Proxy).write(flow, &[0; 24]);
        self.said_at = Some(now);
    }

    fn speak(&mut self, now: Instant) {
        let (Use::Call, Some(flow), Some(said_at)) = (self.user.does, self.flow, self.said_at) else { return };
        if now >= said_at + CALL_EVERY {
            self.said_at = Some(said_at + CALL_EVERY);
            SIDES.into_iter().for_each(|side| {
                let _ = self.end(side).write(flow, &[0; CALL_BYTES]);
            });
        }
    }

    fn next_word(&self) -> Option<Instant> {
        (self.user.does == Use::Call).then(|| self.said_at.map(|at| at + CALL_EVERY)).flatten()
    }

    fn react(&mut self, counts: bool) -> bool {
        let mut any = false;
        for side in SIDES {
            while let Some(event) = self.end(side).poll_event() {
                any = true;
                match event {
                    Event::Opened(flow) | Event::Writable(flow) if self.sends(side) => {
                        while self.end(side).write(flow, &BLOCK) == Ok(BLOCK.len()) {}
                    }
                    Event::Readable(flow) => {
                        while let Read::Bytes(bytes) = self.end(side).read(flow, usize::MAX) {
                            if counts && !self.sends(side) {
                                self.read_bytes += bytes.len() as u64;
                            }
                        }
                    }
                    _ => {}
                }
            }
        }
        if let (Some(flow), Use::Bulk(Way::Up)) = (self.flow, self.user.does)
            && self.read_bytes == 0
        {
            while self.end(Side::Proxy).write(flow, &BLOCK) == Ok(BLOCK.len()) {}
        }
        any
    }

    fn sends(&self, side: Side) -> bool {
        self.user.does == Use::Bulk(if side == Side::Proxy { Way::Up } else { Way::Down })
    }
}

impl Run<'_> {
    fn go_on(&mut self) {
        let end = self.start + self.plan.warm_up + self.plan.span;
        while self.now < end {
            self.work();
            let users = self.users.iter().flat_map(|at| {
                let begins = (!at.began).then(|| self.start + at.user.from);
                let timers = at.ends.values().filter_map(Session::poll_timeout);
                timers.chain(begins).chain(at.next_word())
            });
            let ways = [&self.up, &self.down].into_iter().flat_map(|way| [way.line.poll_timeout(), way.relay_timeout()]).flatten();
            self.now = users.chain(ways).min().unwrap_or(end).max(self.now);
        }
    }

    fn work(&mut self) {
        let now = self.now;
        let counts = now >= self.start + self.plan.warm_up;
        let rtt = self.plan.line.delay * 2;
        loop {
            let mut any = false;
            for at in &mut self.users {
                if !at.began && now >= self.start + at.user.from {
                    at.begin(now, rtt);
                }
                at.speak(now);
                for side in SIDES {
                    if at.end(side).poll_timeout().is_some_and(|due| due <= now) {
                        at.end(side).handle_timeout(now);
                    }
                }
                any |= at.react(counts);
            }
            for user in 0..self.users.len() {
                for side in SIDES {
                    while let Some(transmit) = self.users[user].end(side).poll_transmit(now) {
                        any = true;
                        let packet = Packet { user, datagram: transmit.datagram, sent: now };
                        self.users[user].packets += 1;
                        match side {
                            Side::Proxy => self.up.relay_enter(now, packet),
                            Side::Reconst => self.down.line_enter(now, packet),
                        }
                    }
                }
            }
            any |= self.carry(counts);
            if !any {
                return;
            }
        }
    }

    fn carry(&mut self, counts: bool) -> bool {
        let now = self.now;
        let mut any = false;
        while let Some(packet) = self.up.relay_leave(now) {
            self.up.line_enter(now, packet);
        }
        while let Some(packet) = self.down.line.poll_packet(now) {
            self.down.relay_enter(now, packet);
        }
        let arrived = std::iter::from_fn(|| self.up.line.poll_packet(now)).map(|packet| (Way::Up, packet)).collect::<Vec<_>>();
        let left = std::iter::from_fn(|| self.down.relay_leave(now)).map(|packet| (Way::Down, packet)).collect::<Vec<_>>();
        for (way, packet) in arrived.into_iter().chain(left) {
            any = true;
            let at = &mut self.users[packet.user];
            if counts && at.way() == way {
                at.delays.push(now - packet.sent);
            }
            let side = if way == Way::Up { Side::Reconst } else { Side::Proxy };
            let _ = at.end(side).handle_datagram(now, PathId(0), packet.datagram);
        }
        for way in [&mut self.up, &mut self.down] {
            while let Some(packet) = way.relay.dropped() {
                self.users[packet.user].dropped += u64::from(counts);
            }
        }
        any
    }
}

impl Relayed {
    fn relay_enter(&mut self, now: Instant, packet: Packet) {
        let bytes = line_bytes(payload(&packet), true);
        self.relay.enter(now, packet.user, bytes, packet);
    }

    fn line_enter(&mut self, now: Instant, packet: Packet) {
        let bytes = payload(&packet);
        self.line.handle_packet(now, bytes, packet);
    }

    /// What leaves the relay, when its timer has fired or something else woke it.
    fn relay_leave(&mut self, now: Instant) -> Option<Packet> {
        self.relay.leave(now)
    }

    fn relay_timeout(&self) -> Option<Instant> {
        let at = self.relay.timeout()?;
        let tick = self.tick.as_nanos() as u64;
        if tick == 0 {
            return Some(at);
        }
        let nanos = at.saturating_duration_since(self.start).as_nanos() as u64;
        Some(self.start + Duration::from_nanos(nanos.next_multiple_of(tick)))
    }
}

/// The UDP payload that quinn makes of a core's datagram.
fn payload(packet: &Packet) -> usize {
    packet.datagram.len() + OVERHEAD_BYTES as usize - HEADER_BYTES
}

fn is_proxy(side: Side) -> bool {
    side == Side::Proxy
}

const CALL_EVERY: Duration = Duration::from_millis(20);
const CALL_BYTES: usize = 200;

/// What the bulk sender writes at once.
static BLOCK: [u8; 64 << 10] = [0; 64 << 10];
