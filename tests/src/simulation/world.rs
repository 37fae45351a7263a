//! Two session cores and the lines between them, in virtual time.
//!
//! The driver calls [`World::advance`] and reacts to each [`Occurrence`] by way of [`World::end`] and the methods that change
//! lines and paths. The world carries datagrams, calls timers when they are due and holds both cores to their contract: within one
//! instant they come to rest, and no timer that was served stays due. What is sent, by whom and why is left to the driver.

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use bytes::Bytes;
use shared::{
    community::weight::LineWeight,
    ids::PathId,
    transfer::{
        path::{OVERHEAD_BYTES, PathInfo},
        schedule::Policy,
        session::{Event, Limits, Session, SessionError, Side},
    },
};
use thiserror::Error;

use crate::line::{Conditions, Counters, Direction, HEADER_BYTES};

/// Two ends, the lines between them, and the time.
#[derive(Debug)]
pub struct World {
    now: Instant,
    /// When the world began.
    start: Instant,
    proxy: End,
    reconst: End,
    lines: Vec<Line>,
    /// Whole ticks after which timers fire; zero for exact ones.
    timer_tick: Duration,
    steps_at_now: u32,
    /// The last datagrams sent, by whom, if they are kept.
    recent: VecDeque<(Side, Packet)>,
    recent_kept: usize,
    sent_datagrams: u64,
}

/// One end of the session.
#[derive(Debug)]
struct End {
    session: Session,
    /// The lines of the paths that this end knows.
    line_by_path: BTreeMap<PathId, usize>,
    /// Whether the session may have something to send.
    is_touched: bool,
}

/// A line and both its directions.
#[derive(Debug)]
struct Line {
    up: Direction<Packet>,
    down: Direction<Packet>,
}

/// A datagram on its way.
#[derive(Clone, Debug)]
pub struct Packet {
    /// The path that it belongs to.
    pub path: PathId,
    /// What the core made.
    pub datagram: Bytes,
}

/// What [`World::advance`] came upon.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Occurrence {
    /// A core has something to tell its application.
    Event(Side, Event),
    /// The time asked for has come, and both ends are at rest.
    Reached,
}

/// A core that broke its contract.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum Fault {
    /// A session ended although both ends are honest.
    #[error("{0:?} ended the session: {1}")]
    Session(Side, SessionError),
    /// Work without end in one instant.
    #[error("no rest after {MAX_STEPS} steps in one instant: {0}")]
    Livelock(String),
}

/// The bytes that quinn puts around a core's datagram, within UDP.
const WRAPPING_BYTES: usize = OVERHEAD_BYTES as usize - HEADER_BYTES;

/// Datagrams and timers served in one instant before it counts as without end: more than any burst that the pacers allow, summed
/// over all paths.
const MAX_STEPS: u32 = 100_000;

/// The two ends' clocks differ by this much.
const CLOCK_DIFFERENCE: Duration = Duration::from_secs(1_000_000);

impl World {
    /// Two sessions without paths, and no line.
    pub fn new(policy: Policy, proxy_limits: Limits, reconst_limits: Limits) -> Self {
        let start = Instant::now() + 2 * CLOCK_DIFFERENCE;
        let end = |began, side, limits| End {
            session: Session::new(began, side, policy, limits),
            line_by_path: BTreeMap::new(),
            is_touched: false,
        };
        Self {
            now: start,
            start,
            proxy: end(start, Side::Proxy, proxy_limits),
            reconst: end(start - CLOCK_DIFFERENCE, Side::Reconst, reconst_limits),
            lines: Vec::new(),
            timer_tick: Duration::ZERO,
            steps_at_now: 0,
            recent: VecDeque::new(),
            recent_kept: 0,
            sent_datagrams: 0,
        }
    }

    /// Keeps the last `count` datagrams to be looked at by [`World::recent`].
    pub fn keep_recent(&mut self, count: usize) {
        self.recent_kept = count;
    }

    /// The last datagrams sent and who sent them, oldest first.
    pub fn recent(&self) -> &VecDeque<(Side, Packet)> {
        &self.recent
    }

    /// The datagrams that both ends have sent.
    pub fn sent_datagrams(&self) -> u64 {
        self.sent_datagrams
    }

    /// Lets timers fire only at whole multiples of `tick`, as those of an operating system do.
    pub fn set_timer_tick(&mut self, tick: Duration) {
        self.timer_tick = tick;
    }

    /// The time.
    pub fn now(&self) -> Instant {
        self.now
    }

    /// The time since the world began.
    pub fn elapsed(&self) -> Duration {
        self.now - self.start
    }

    /// The instant `elapsed` after the world began.
    pub fn at(&self, elapsed: Duration) -> Instant {
        self.start + elapsed
    }

    /// The session of one end, to be called by its application.
    pub fn end(&mut self, side: Side) -> &mut Session {
        let end = self.end_mut(side);
        end.is_touched = true;
        &mut end.session
    }

    /// The session of one end, to be looked at.
    pub fn session(&self, side: Side) -> &Session {
        match side {
            Side::Proxy => &self.proxy.session,
            Side::Reconst => &self.reconst.session,
        }
    }

    /// Adds a line; gives its number.
    pub fn add_line(&mut self, up: Conditions, down: Conditions, seed: u64) -> usize {
        let now = self.now;
        let way = |conditions, seed| Direction::new(conditions, seed, now);
        self.lines.push(Line { up: way(up, seed), down: way(down, seed ^ u64::MAX) });
        self.lines.len() - 1
    }

    /// What the way from `from` on line `line` is like.
    pub fn conditions(&self, line: usize, from: Side) -> Conditions {
        self.lines[line].way(from).conditions()
    }

    /// Changes the way from `from` on line `line`.
    pub fn set_conditions(&mut self, line: usize, from: Side, conditions: Conditions) {
        let now = self.now;
        self.lines[line].way_mut(from).set_conditions(now, conditions);
    }

    /// What became of the packets on the way from `from` of line `line`.
    pub fn counters(&self, line: usize, from: Side) -> Counters {
        self.lines[line].way(from).counters()
    }

    /// The bytes that wait at the way from `from` into line `line`.
    pub fn queued_bytes(&self, line: usize, from: Side) -> u64 {
        self.lines[line].way(from).queued_bytes()
    }

    /// Lets `side` know of a path over line `line`, as its handshake ends there.
    pub fn join(&mut self, side: Side, path: PathId, line: usize, weight: u32) {
        let now = self.now;
        let weight = LineWeight::set(u16::try_from(weight).unwrap_or(u16::MAX));
        let info = PathInfo { weight, max_datagram_bytes: self.max_datagram(line, side), rtt: self.handshake_rtt(line) };
        let end = self.end_mut(side);
        end.line_by_path.insert(path, line);
        end.is_touched = true;
        end.session.add_path(now, path, info);
    }

    /// Takes a path away from `side`; what is under way by it no longer arrives there.
    pub fn leave(&mut self, side: Side, path: PathId) {
        let end = self.end_mut(side);
        end.line_by_path.remove(&path);
        end.is_touched = true;
        end.session.remove_path(path);
    }

    /// The paths that `side` knows, with their lines.
    pub fn paths(&self, side: Side) -> &BTreeMap<PathId, usize> {
        match side {
            Side::Proxy => &self.proxy.line_by_path,
            Side::Reconst => &self.reconst.line_by_path,
        }
    }

    /// The largest datagram that `from` may put on line `line`.
    pub fn max_datagram(&self, line: usize, from: Side) -> usize {
        self.conditions(line, from).mtu_bytes.saturating_sub(OVERHEAD_BYTES as usize)
    }

    /// Lets `side` find out what its paths over line `line` take now.
    pub fn learn_max_datagram(&mut self, side: Side, line: usize) {
        let bytes = self.max_datagram(line, side);
        let end = self.end_mut(side);
        end.is_touched = true;
        for (&path, _) in end.line_by_path.iter().filter(|(_, of)| **of == line) {
            end.session.set_max_datagram(path, bytes);
        }
    }

    /// Goes on until a core has something to tell or, at the latest, until `until`.
    ///
    /// # Errors
    /// If a core broke its contract.
    pub fn advance(&mut self, until: Instant) -> Result<Occurrence, Fault> {
        loop {
            self.work()?;
            for side in SIDES {
                if let Some(event) = self.end_mut(side).session.poll_event() {
                    self.end_mut(side).is_touched = true;
                    self.count_step()?;
                    return Ok(Occurrence::Event(side, event));
                }
            }
            match self.next_at() {
                Some(at) if at <= until => {
                    if at > self.now {
                        self.now = at;
                        self.steps_at_now = 0;
                    }
                    self.count_step()?;
                }
                _ => {
                    if until > self.now {
                        self.now = until;
                        self.steps_at_now = 0;
                    }
                    return Ok(Occurrence::Reached);
                }
            }
        }
    }

    /// Gives `datagram` to `side` as if it had arrived by `path`, whoever made it.
    ///
    /// # Errors
    /// What the session says to it.
    pub fn inject(&mut self, side: Side, path: PathId, datagram: Bytes) -> Result<(), SessionError> {
        let now = self.now;
        self.end(side).handle_datagram(now, path, datagram)
    }

    /// Does what is due now: timers, arrivals, and what is to be sent because of them.
    fn work(&mut self) -> Result<(), Fault> {
        let now = self.now;
        for side in SIDES {
            let due = self.timer_at(side).is_some_and(|at| at <= now);
            let end = self.end_mut(side);
            if due {
                end.session.handle_timeout(now);
                end.is_touched = true;
            }
        }
        for line in 0..self.lines.len() {
            for from in SIDES {
                self.deliver(line, from)?;
            }
        }
        for side in SIDES {
            if std::mem::take(&mut self.end_mut(side).is_touched) {
                self.transmit(side)?;
            }
        }
        Ok(())
    }

    fn deliver(&mut self, line: usize, from: Side) -> Result<(), Fault> {
        let now = self.now;
        let to = other(from);
        if self.lines[line].way(from).poll_timeout().is_none_or(|at| at > now) {
            return Ok(());
        }
        while let Some(Packet { path, datagram }) = self.lines[line].way_mut(from).poll_packet(now) {
            let end = self.end_mut(to);
            if end.line_by_path.contains_key(&path) {
                end.is_touched = true;
                end.session.handle_datagram(now, path, datagram).map_err(|error| Fault::Session(to, error))?;
            }
        }
        Ok(())
    }

    fn transmit(&mut self, side: Side) -> Result<(), Fault> {
        let now = self.now;
        while let Some(transmit) = self.end_mut(side).session.poll_transmit(now) {
            self.count_step()?;
            let Some(&line) = self.end_mut(side).line_by_path.get(&transmit.path) else { continue };
            let bytes = transmit.datagram.len();
            let packet = Packet { path: transmit.path, datagram: transmit.datagram };
            self.sent_datagrams += 1;
            if self.recent_kept > 0 {
                if self.recent.len() == self.recent_kept {
                    self.recent.pop_front();
                }
                self.recent.push_back((side, packet.clone()));
            }
            self.lines[line].way_mut(side).handle_packet(now, bytes + WRAPPING_BYTES, packet);
        }
        Ok(())
    }

    /// When something happens next.
    fn next_at(&self) -> Option<Instant> {
        let of_lines = self.lines.iter().flat_map(|line| [line.up.poll_timeout(), line.down.poll_timeout()]);
        let of_timers = SIDES.into_iter().map(|side| self.timer_at(side));
        of_lines.chain(of_timers).flatten().min()
    }

    /// When the timer of `side` fires.
    fn timer_at(&self, side: Side) -> Option<Instant> {
        let at = self.session(side).poll_timeout()?;
        let tick_nanos = self.timer_tick.as_nanos() as u64;
        if tick_nanos == 0 {
            return Some(at);
        }
        let nanos = at.saturating_duration_since(self.start).as_nanos() as u64;
        Some(self.start + Duration::from_nanos(nanos.next_multiple_of(tick_nanos)))
    }

    fn count_step(&mut self) -> Result<(), Fault> {
        self.steps_at_now += 1;
        if self.steps_at_now < MAX_STEPS {
            return Ok(());
        }
        let timers = SIDES.map(|side| self.session(side).poll_timeout().map(|at| at.saturating_duration_since(self.start)));
        Err(Fault::Livelock(format!("at {:?}, timers at {timers:?}", self.elapsed())))
    }

    fn handshake_rtt(&self, line: usize) -> Duration {
        SIDES.into_iter().map(|from| self.conditions(line, from)).map(|way| way.delay + sending_time(&way, HANDSHAKE_BYTES)).sum()
    }

    fn end_mut(&mut self, side: Side) -> &mut End {
        match side {
            Side::Proxy => &mut self.proxy,
            Side::Reconst => &mut self.reconst,
        }
    }
}

impl Line {
    fn way(&self, from: Side) -> &Direction<Packet> {
        match from {
            Side::Proxy => &self.up,
            Side::Reconst => &self.down,
        }
    }

    fn way_mut(&mut self, from: Side) -> &mut Direction<Packet> {
        match from {
            Side::Proxy => &mut self.up,
            Side::Reconst => &mut self.down,
        }
    }
}

/// How long the line takes to send `bytes`.
fn sending_time(way: &Conditions, bytes: usize) -> Duration {
    Duration::from_secs_f64(bytes as f64 * 8.0 / way.rate.bits_per_second.max(1) as f64)
}

/// Both sides.
pub const SIDES: [Side; 2] = [Side::Proxy, Side::Reconst];

/// The side across.
pub fn other(side: Side) -> Side {
    match side {
        Side::Proxy => Side::Reconst,
        Side::Reconst => Side::Proxy,
    }
}

/// The packets of a handshake that its round trip is measured by, in bytes.
const HANDSHAKE_BYTES: usize = 1200;
