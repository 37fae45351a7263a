//! One path of a session: what is in flight on it, what arrived by it, how much it may send, and whether it can be relied upon.
//!
//! A path is *active* until a probe timeout passes without a sign; then it is *suspect*: what it holds goes out elsewhere and it
//! gets nothing but probes until one is acknowledged. Suspect for [`DEAD_AFTER`], it is *dead*: the same, probed more rarely.

use std::time::{Duration, Instant};

use super::{
    acks::Acks,
    congestion::{Congestion, Rounds},
    packet::DatagramWriter,
    recovery::{Pieces, Recovery},
    schedule::Candidate,
    send_buffer::Piece,
};
use crate::{community::weight::LineWeight, ids::PathId};

/// What is known of a path when it joins its session.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PathInfo {
    /// Its line's weight towards the other end, for `wrr`.
    pub weight: LineWeight,
    /// The largest datagram that the path takes, in bytes; less than [`DATAGRAM_BYTES_MIN`] is not believed.
    pub max_datagram_bytes: usize,
    /// The round trip that the path's handshake took.
    pub rtt: Duration,
}

/// Whether a path can be relied upon.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum PathState {
    /// In service.
    Active,
    /// Silent for a probe timeout.
    Suspect,
    /// Silent for [`DEAD_AFTER`].
    Dead,
}

/// A path's figures, for people and for tests.
#[derive(Clone, Copy, Debug)]
pub struct PathStatus {
    /// The path.
    pub path: PathId,
    /// Whether it can be relied upon.
    pub state: PathState,
    /// Whether it is being left: nothing new goes out on it while there is another.
    pub is_leaving: bool,
    /// Its line's weight towards the other end, for `wrr`.
    pub weight: LineWeight,
    /// The smoothed round-trip time.
    pub rtt: Duration,
    /// The least round-trip time seen lately.
    pub min_rtt: Duration,
    /// The queue on the way to the other end.
    pub queue: Duration,
    /// The line's rate towards the other end in bytes per second, headers included, once measured.
    pub capacity: Option<f64>,
    /// What of that is fair for this end while others fill the line as well, likewise, if that is known.
    pub fair_rate: Option<f64>,
    /// The fraction of bytes lost lately on the way to the other end.
    pub loss: f64,
    /// Bytes in flight, headers included.
    pub in_flight_bytes: u64,
    /// What held this end back.
    pub rounds: Rounds,
    /// What the path carried.
    pub counters: PathCounters,
}

/// What a path carried since it joined.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct PathCounters {
    /// Datagrams and bytes sent, without headers below the datagram.
    pub sent_datagrams: u64,
    /// Bytes sent.
    pub sent_bytes: u64,
    /// Datagrams received.
    pub received_datagrams: u64,
    /// Bytes received.
    pub received_bytes: u64,
    /// Flow bytes that arrived by this path for the first time or again.
    pub received_flow_bytes: u64,
    /// Bytes acknowledged by the other end, headers included.
    pub acked_bytes: u64,
    /// Times that the other end said that the line has held it back lately.
    pub told_full: u64,
    /// Parcels that arrived by this path, whole or in part, for the first time or again.
    pub received_parcels: u64,
    /// Datagrams declared lost.
    pub lost_datagrams: u64,
    /// Flow bytes that went out on this path though another path had them already.
    pub reinjected_bytes: u64,
    /// Times that the path became suspect.
    pub suspicions: u64,
}

/// How long a suspect path is silent until it counts as dead.
pub const DEAD_AFTER: Duration = Duration::from_secs(3);

/// What any path takes, in bytes: QUIC's least packet less headers. The other end of a connection has a say in what it takes, and in less no
/// chunk may fit behind an acknowledgement.
pub const DATAGRAM_BYTES_MIN: usize = 1100;

/// What a datagram costs on the line besides its own bytes: IPv4, UDP, a short QUIC header with a connection id of 4 to 8 bytes, the
/// tag, the frame header.
pub const OVERHEAD_BYTES: u64 = 28 + 11 + 16 + 3;

/// How long a path that has brought something may bring nothing more before it is asked. What goes missing meanwhile its sender finds out
/// much sooner; this end only has to know when to make another path. Shorter costs a packet for each pause of a content server.
pub(super) const UNHEARD_MAX: Duration = Duration::from_secs(1);

/// The longest time between two probes of a suspect and of a dead path.
const SUSPECT_PROBE_EVERY: Duration = Duration::from_millis(500);
const DEAD_PROBE_EVERY: Duration = Duration::from_secs(2);

#[derive(Debug)]
pub(super) struct Path {
    pub(super) id: PathId,
    pub(super) weight: LineWeight,
    pub(super) max_datagram_bytes: usize,
    pub(super) recovery: Recovery,
    pub(super) acks: Acks,
    pub(super) congestion: Congestion,
    pub(super) counters: PathCounters,
    pub(super) is_leaving: bool,
    /// Bytes of datagrams that the carrier takes now.
    pub(super) carrier_room: usize,
    trust: Trust,
    last_tracked_at: Instant,
    /// When the last tracked datagram arrived, if none was sent since.
    heard_at: Option<Instant>,
}

#[derive(Clone, Copy, Debug)]
enum Trust {
    Active,
    Silent { since: Instant, probe_at: Instant, interval: Duration, is_dead: bool },
}

impl Path {
    pub(super) fn new(now: Instant, id: PathId, info: PathInfo) -> Self {
        Self {
            id,
            weight: info.weight,
            max_datagram_bytes: info.max_datagram_bytes.max(DATAGRAM_BYTES_MIN),
            recovery: Recovery::new(info.rtt),
            acks: Acks::default(),
            congestion: Congestion::new(info.rtt),
            counters: PathCounters::default(),
            is_leaving: false,
            carrier_room: usize::MAX,
            trust: Trust::Active,
            last_tracked_at: now,
            heard_at: None,
        }
    }

    pub(super) fn state(&self) -> PathState {
        match self.trust {
            Trust::Active => PathState::Active,
            Trust::Silent { is_dead: false, .. } => PathState::Suspect,
            Trust::Silent { is_dead: true, .. } => PathState::Dead,
        }
    }

    pub(super) fn is_active(&self) -> bool {
        matches!(self.trust, Trust::Active)
    }

    /// Whether it is in service and stays.
    pub(super) fn is_staying(&self) -> bool {
        self.is_active() && !self.is_leaving
    }

    /// The path as the scheduler sees it, and when the pace lets it send if only that holds it back.
    pub(super) fn candidate(&mut self, now: Instant) -> (Candidate, Option<Instant>) {
        let bytes = self.max_datagram_bytes as u64 + OVERHEAD_BYTES;
        let (may_send, paced_until) = match self.congestion.may_send(now, bytes, self.recovery.in_flight_bytes()) {
            Ok(()) if self.carrier_room < self.max_datagram_bytes => (false, Some(now + CARRIER_WAIT)),
            Ok(()) => (!self.recovery.is_full(), None),
            Err(paced_until) => (false, paced_until),
        };
        let candidate = Candidate {
            path: self.id,
            weight: self.weight,
            may_send,
            first_byte: self.first_byte(now),
            rate: self.congestion.capacity().max(1.0),
            datagram_bytes: bytes,
        };
        (candidate, paced_until)
    }

    /// How long from `now` until the first byte of a datagram that is sent now arrives.
    ///
    /// Where the path has been in use for a while, what is in flight fills the way there and back: the line takes so long for all of it, less
    /// half the least round trip. Where it was idle, what is in flight waits before the line, less what that has carried since: half the
    /// least round trip comes on top, and never a queue that it had in the past. As long as the line's rate is only guessed, that
    /// makes no difference, nor does a datagram's size.
    fn first_byte(&self, now: Instant) -> Duration {
        let one_way = self.congestion.min_rtt() / 2;
        let in_flight = self.recovery.in_flight_bytes();
        let of_line_in_use = self.line_takes(in_flight).saturating_sub(one_way);
        if !self.congestion.is_measured() {
            return of_line_in_use.max(one_way.saturating_sub(self.datagram_time()));
        }
        let carried_for = self.recovery.oldest_sent_at().map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        of_line_in_use.max(self.line_takes(in_flight).saturating_sub(carried_for) + one_way)
    }

    /// How long a datagram of `bytes` that is sent now takes to arrive.
    pub(super) fn arrival(&self, now: Instant, bytes: u64) -> Duration {
        self.first_byte(now) + self.line_takes(bytes)
    }

    /// How long the acknowledgement of a datagram that arrives now is held back: while the path sends full datagrams itself, long enough
    /// for the next of them to take it along.
    pub(super) fn ack_delay(&self) -> Duration {
        let alone = super::acks::max_delay(self.recovery.rtt().smoothed());
        if self.recovery.in_flight_bytes() < self.max_datagram_bytes as u64 {
            return alone;
        }
        alone.max((self.datagram_time() * 5 / 4).min(self.acks.ride_delay()))
    }

    /// Whether a datagram that leaves now is to take an acknowledgement along: the next one would be too late for it.
    pub(super) fn ack_rides(&self, now: Instant) -> bool {
        self.acks.due().is_some_and(|due| due <= now + self.datagram_time())
    }

    /// Appends what has arrived by this path; times are told from `epoch` on.
    pub(super) fn put_ack(&mut self, now: Instant, epoch: Instant, writer: &mut DatagramWriter) {
        let Some(saying) = self.acks.take(now) else { return };
        let us = |time: Duration| time.as_micros() as u64;
        let received_at_us = us(saying.largest_at.saturating_duration_since(epoch));
        writer.put_ack(self.id, received_at_us, us(saying.delay), us(saying.held_back), saying.ranges);
    }

    /// The time that the line takes for a full datagram.
    fn datagram_time(&self) -> Duration {
        self.line_takes(self.max_datagram_bytes as u64 + OVERHEAD_BYTES)
    }

    fn line_takes(&self, bytes: u64) -> Duration {
        super::congestion::duration(bytes as f64 / self.congestion.capacity().max(1.0))
    }

    /// The oldest datagram in flight with pieces that should have been acknowledged by now, or that is not expected to arrive within `ahead`,
    /// for another path to carry as well. Each is given once.
    pub(super) fn take_late(&mut self, now: Instant, ahead: Duration) -> Option<Pieces> {
        if self.recovery.is_listening(now) {
            return None;
        }
        let rtt = self.recovery.rtt().smoothed();
        let margin = (rtt / 4).max(self.recovery.rtt().variation() * 2).max(LATE_MARGIN);
        let acknowledged_after = rtt / 2 + self.recovery.ack_delay() + margin;
        let is_late = |due: Instant| now > due + acknowledged_after || due > now + ahead + margin;
        let copy_is_late = |due: Instant| now > due + acknowledged_after * LATE_COPY;
        self.recovery.reinject(|sent| !sent.pieces.is_empty() && if sent.is_copy { copy_is_late(sent.due) } else { is_late(sent.due) })
    }

    pub(super) fn on_tracked_sent(&mut self, now: Instant) {
        self.last_tracked_at = now;
        self.heard_at = None;
    }

    /// Gives up what is in flight and begins to probe; gives the pieces to send elsewhere.
    pub(super) fn become_suspect(&mut self, now: Instant) -> Vec<Piece> {
        let interval = self.recovery.probe_timeout().min(SUSPECT_PROBE_EVERY);
        self.trust = Trust::Silent { since: now, probe_at: now, interval, is_dead: false };
        self.counters.suspicions += 1;
        self.recovery.give_up()
    }

    /// Takes the path back into service; gives whether it had been out of it.
    pub(super) fn on_sign_of_life(&mut self, now: Instant) -> bool {
        let Trust::Silent { since, .. } = self.trust else { return false };
        if now.saturating_duration_since(since) > REVIVAL_AFTER {
            self.congestion.on_revival();
        }
        self.trust = Trust::Active;
        true
    }

    /// A datagram arrived. If the path is out of service it may work again, so ask at once.
    pub(super) fn on_heard(&mut self, now: Instant, is_tracked: bool) {
        if is_tracked {
            self.heard_at = Some(now);
        }
        if let Trust::Silent { probe_at, interval, .. } = &mut self.trust {
            *probe_at = (*probe_at).min(now + (*interval).min(HEARD_PROBE_AFTER));
        }
    }

    /// When the next probe of a silent path is due, or the next ping of one that is kept alive.
    ///
    /// A path that only receives has nothing in flight that could go without an answer. So one that has brought something, and then
    /// nothing for [`UNHEARD_MAX`] although a flow is open, is asked whether it is still there: once, or a flow that idles would cost traffic.
    pub(super) fn ping_at(&self, keep_alive: Option<Duration>, has_flows: bool) -> Option<Instant> {
        if let Trust::Silent { probe_at, .. } = self.trust {
            return Some(probe_at);
        }
        let idle = self.last_tracked_at + keep_alive?;
        let unheard = self.heard_at.filter(|_| has_flows).map(|at| at + UNHEARD_MAX);
        Some(unheard.map_or(idle, |unheard| unheard.min(idle)))
    }

    /// Notes that a ping left; gives whether the path has just been found dead.
    pub(super) fn on_ping_sent(&mut self, now: Instant) -> bool {
        self.last_tracked_at = now;
        let Trust::Silent { since, probe_at, interval, is_dead } = &mut self.trust else { return false };
        *probe_at = now + *interval;
        let longest = if *is_dead { DEAD_PROBE_EVERY } else { SUSPECT_PROBE_EVERY };
        *interval = (*interval * 2).min(longest);
        let has_died = !*is_dead && now.saturating_duration_since(*since) >= DEAD_AFTER;
        *is_dead |= has_died;
        has_died
    }

    pub(super) fn status(&self) -> PathStatus {
        PathStatus {
            path: self.id,
            state: self.state(),
            is_leaving: self.is_leaving,
            weight: self.weight,
            rtt: self.recovery.rtt().smoothed(),
            min_rtt: self.congestion.min_rtt(),
            queue: self.congestion.queue(),
            capacity: self.congestion.is_measured().then(|| self.congestion.capacity()),
            fair_rate: self.congestion.fair_rate(),
            loss: self.congestion.loss(),
            in_flight_bytes: self.recovery.in_flight_bytes(),
            rounds: self.congestion.rounds(),
            counters: self.counters,
        }
    }
}

/// When to look again at a carrier that has taken all it can: what the driver's timer tells apart.
const CARRIER_WAIT: Duration = Duration::from_millis(1);

/// Estimates of arrivals are no better than this: below it nothing counts as late.
const LATE_MARGIN: Duration = Duration::from_millis(8);

/// A copy has to be late by this multiple to be copied again: where acknowledgements wait in a deep queue, everything seems late, and each
/// copy of a copy costs another acknowledgement.
const LATE_COPY: u32 = 4;

/// A path that was silent for longer starts as if new; a shorter silence was a hiccup of the line or of a machine.
const REVIVAL_AFTER: Duration = Duration::from_millis(600);

/// The wait before a probe of a silent path by which something arrived.
const HEARD_PROBE_AFTER: Duration = Duration::from_millis(20);
