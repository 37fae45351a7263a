//! What a path has in flight: round-trip time, acknowledgements, loss.
//!
//! Tracked datagrams enter by [`Recovery::on_sent`]; acknowledgements turn them into delivered or lost pieces. A datagram is
//! lost when one sent three later has arrived, or one sent 9/8 of a round trip later (RFC 9002 §6.1). The path's timer fires
//! when nothing has been acknowledged for a probe timeout (RFC 9002 §6.2); what follows from that is the path's business.

use std::{
    collections::{BTreeMap, VecDeque},
    ops::Range,
    time::{Duration, Instant},
};

use super::{acks::HeldBack, packet::Ack, ranges::RangeSet, send_buffer::Piece};
use crate::ids::Seq;

/// What a path has in flight.
#[derive(Debug)]
pub struct Recovery {
    /// From the number `first` on without a gap; the front one is in flight, those behind it may be settled.
    sent: VecDeque<Sent>,
    first: u64,
    /// The numbers of those that are settled, so that an acknowledgement that comes again costs nothing, however many it covers.
    settled: RangeSet,
    /// What was given up or lost a short while ago: it may still be acknowledged.
    late_by_seq: BTreeMap<u64, Sent>,
    in_flight_bytes: u64,
    largest_acked: Option<u64>,
    /// The last time that something new was acknowledged, or something was sent into an empty path.
    progress_at: Option<Instant>,
    /// When the earliest datagram before the largest acknowledged one counts as lost.
    loss_at: Option<Instant>,
    /// Until when nothing is judged, since this end was away; acknowledgements that came meanwhile are read first.
    listens_until: Option<Instant>,
    reordering: Option<Reordering>,
    rtt: Rtt,
    /// How long the other end held acknowledgements back lately, at most. It goes by its own measure of the path, which may be another.
    held_back: HeldBack,
}

/// A tracked datagram.
#[derive(Clone, Debug)]
pub struct Sent {
    /// When.
    pub at: Instant,
    /// Its size with all headers, in bytes.
    pub bytes: u32,
    /// When its first byte is expected at the other end; see the scheduler.
    pub due: Instant,
    /// What it holds.
    pub pieces: Pieces,
    /// Whether that is in flight elsewhere as well.
    pub is_copy: bool,
    state: SentState,
}

/// The pieces of a datagram, most often one.
#[derive(Clone, Default, Debug)]
pub struct Pieces {
    first: Option<Piece>,
    more: Vec<Piece>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum SentState {
    InFlight,
    /// In flight, and its pieces went out again elsewhere.
    Reinjected,
    /// Declared lost; if it is acknowledged after all, the path reorders.
    Lost,
    /// Acknowledged, or given up and kept elsewhere.
    Settled,
}

/// The round-trip time of a path (RFC 9002 §5).
#[derive(Clone, Copy, Debug)]
pub struct Rtt {
    latest: Duration,
    smoothed: Duration,
    variation: Duration,
    is_measured: bool,
}

/// A path that delivers datagrams out of turn.
#[derive(Clone, Copy, Debug)]
struct Reordering {
    /// How long beyond a round trip a datagram may be overtaken without being lost.
    window: Duration,
    /// Until when that is believed.
    until: Instant,
}

/// What an acknowledgement changed.
#[derive(Debug, Default)]
pub struct AckOutcome {
    /// Pieces that arrived, of datagrams not acknowledged before.
    pub acked: Vec<Piece>,
    /// Pieces that were lost.
    pub lost: Vec<Piece>,
    /// Bytes of datagrams not acknowledged before, those included that had been given up.
    pub acked_bytes: u64,
    /// Datagrams and bytes lost.
    pub lost_datagrams: u64,
    /// Bytes lost.
    pub lost_bytes: u64,
    /// Bytes that had been declared lost and were not.
    pub spurious_bytes: u64,
    /// When the largest newly acknowledged datagram was sent, and its bytes, if the largest number is new.
    pub largest_sent: Option<(Instant, u64)>,
}

/// Datagrams that must arrive after one for it to count as lost (RFC 9002 §6.1.1).
const REORDER_DATAGRAMS: u64 = 3;

/// The least time that a timer tells apart: clocks tick in milliseconds.
const GRANULARITY: Duration = Duration::from_millis(1);

/// Datagrams in flight that a path remembers; beyond it nothing is sent. 1 Gbit/s × 800 ms in chunks of 1,430 bytes is 70,000.
pub const MAX_SENT: usize = 1 << 17;

impl Pieces {
    /// Adds a piece.
    pub fn push(&mut self, piece: Piece) {
        match self.first {
            None => self.first = Some(piece),
            Some(_) => self.more.push(piece),
        }
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.first.is_none()
    }

    /// The pieces.
    pub fn iter(&self) -> impl Iterator<Item = Piece> + '_ {
        self.first.iter().chain(&self.more).copied()
    }
}

impl Rtt {
    /// A path of which only a guess is known.
    pub fn new(guess: Duration) -> Self {
        Self { latest: guess, smoothed: guess, variation: guess / 2, is_measured: false }
    }

    /// The last round trip.
    pub fn latest(&self) -> Duration {
        self.latest
    }

    /// The smoothed round-trip time.
    pub fn smoothed(&self) -> Duration {
        self.smoothed
    }

    /// How far samples are from it (RFC 6298 §2).
    pub fn variation(&self) -> Duration {
        self.variation
    }

    fn update(&mut self, latest: Duration) {
        if latest > RTT_MAX {
            return;
        }
        self.latest = latest;
        if self.is_measured {
            self.variation = (self.variation * 3 + self.smoothed.abs_diff(latest)) / 4;
            self.smoothed = (self.smoothed * 7 + latest) / 8;
        } else {
            self.smoothed = latest;
            self.variation = latest / 2;
            self.is_measured = true;
        }
    }
}

impl Recovery {
    /// A path with nothing in flight; `rtt_guess` stands in until a round trip is measured.
    pub fn new(rtt_guess: Duration) -> Self {
        Self {
            sent: VecDeque::new(),
            first: 0,
            settled: RangeSet::default(),
            late_by_seq: BTreeMap::new(),
            in_flight_bytes: 0,
            largest_acked: None,
            progress_at: None,
            loss_at: None,
            listens_until: None,
            rtt: Rtt::new(rtt_guess),
            held_back: HeldBack::default(),
            reordering: None,
        }
    }

    /// The number that the next tracked datagram gets.
    pub fn next_seq(&self) -> Seq {
        Seq(self.first + self.sent.len() as u64)
    }

    /// Notes a tracked datagram under [`Recovery::next_seq`].
    pub fn on_sent(&mut self, now: Instant, bytes: u32, due: Instant, pieces: Pieces) {
        if self.in_flight_bytes == 0 {
            self.progress_at = Some(now);
        }
        self.in_flight_bytes += u64::from(bytes);
        self.sent.push_back(Sent { at: now, bytes, due, pieces, is_copy: false, state: SentState::InFlight });
    }

    /// Works an acknowledgement of this path's datagrams in. One for numbers never sent is ignored.
    pub fn on_ack(&mut self, now: Instant, ack: &Ack) -> AckOutcome {
        let mut outcome = AckOutcome::default();
        let largest = ack.largest();
        if largest >= self.next_seq() {
            return outcome;
        }
        // What was given up too early counts as well, or the measure that made it too early would never change.
        let sent = match largest.0.checked_sub(self.first) {
            Some(place) => self.sent.get(place as usize),
            None => self.late_by_seq.get(&largest.0),
        };
        if let Some(sent) = sent.filter(|_| self.largest_acked.is_none_or(|acked| acked < largest.0)) {
            outcome.largest_sent = Some((sent.at, u64::from(sent.bytes)));
            let elapsed = now.saturating_duration_since(sent.at);
            self.held_back.note(Duration::from_micros(ack.held_back_us));
            self.rtt.update(elapsed.checked_sub(Duration::from_micros(ack.delay_us)).unwrap_or(elapsed));
        }
        for range in &ack.ranges {
            self.settle_acked(now, range, &mut outcome);
        }
        if outcome.acked_bytes > 0 {
            self.largest_acked = self.largest_acked.max(Some(largest.0));
            self.progress_at = Some(now);
            self.listens_until = None;
            self.detect_losses(now, &mut outcome);
        }
        outcome
    }

    /// Puts off what is due, for as long as this end was away and at most [`LISTEN_MAX`]; `false` if that was done since the last
    /// acknowledgement: a machine that is always late must not trust a silent path for ever.
    pub fn listen_first(&mut self, now: Instant, away: Duration) -> bool {
        let is_first = self.listens_until.is_none();
        self.listens_until.get_or_insert(now + away.min(LISTEN_MAX));
        is_first
    }

    /// Whether acknowledgements may have arrived that are not worked in yet.
    pub fn is_listening(&self, now: Instant) -> bool {
        self.listens_until.is_some_and(|until| now < until)
    }

    /// Declares what is overdue by [`Recovery::loss_at`] lost.
    pub fn on_loss_timeout(&mut self, now: Instant) -> AckOutcome {
        let mut outcome = AckOutcome::default();
        self.detect_losses(now, &mut outcome);
        outcome
    }

    /// Gives all pieces in flight up, oldest first: the path is suspect. Late acknowledgements still count.
    pub fn give_up(&mut self) -> Vec<Piece> {
        let mut given_up = Vec::new();
        let next_seq = self.next_seq().0;
        for (place, sent) in self.sent.drain(..).enumerate() {
            if sent.state == SentState::InFlight {
                given_up.extend(sent.pieces.iter());
            }
            if sent.state != SentState::Settled {
                self.late_by_seq.insert(self.first + place as u64, sent);
            }
        }
        self.first = next_seq;
        self.settled.clear();
        self.in_flight_bytes = 0;
        self.progress_at = None;
        self.loss_at = None;
        self.listens_until = None;
        given_up
    }

    /// Notes that the pieces of what was sent last are in flight elsewhere as well.
    pub fn on_copy_sent(&mut self) {
        if let Some(sent) = self.sent.back_mut() {
            sent.is_copy = true;
        }
    }

    /// The oldest datagram in flight that went out once only and satisfies `is_worth`, marked as sent again.
    pub fn reinject(&mut self, mut is_worth: impl FnMut(&Sent) -> bool) -> Option<Pieces> {
        let sent = self.sent.iter_mut().take(REINJECT_LOOK_AHEAD).find(|sent| sent.state == SentState::InFlight && is_worth(sent))?;
        sent.state = SentState::Reinjected;
        Some(sent.pieces.clone())
    }

    /// Bytes in flight.
    pub fn in_flight_bytes(&self) -> u64 {
        self.in_flight_bytes
    }

    /// When the oldest datagram in flight was sent.
    pub fn oldest_sent_at(&self) -> Option<Instant> {
        self.sent.front().map(|sent| sent.at)
    }

    /// Whether no more datagrams can be remembered.
    pub fn is_full(&self) -> bool {
        self.sent.len() >= MAX_SENT
    }

    /// The round-trip time.
    pub fn rtt(&self) -> &Rtt {
        &self.rtt
    }

    /// When [`Recovery::on_loss_timeout`] is due.
    pub fn loss_at(&self) -> Option<Instant> {
        self.loss_at.max(self.loss_at.and(self.listens_until))
    }

    /// When the path has been without a sign for a probe timeout, if anything is in flight.
    pub fn probe_timeout_at(&self) -> Option<Instant> {
        if self.in_flight_bytes == 0 {
            return None;
        }
        let at = self.progress_at.map(|at| at + self.probe_timeout());
        at.max(at.and(self.listens_until))
    }

    /// The time without a sign after which a path is suspect.
    pub fn probe_timeout(&self) -> Duration {
        (self.rtt.smoothed + (self.rtt.variation * 4).max(PROBE_MARGIN) + self.ack_delay()).min(RTT_MAX)
    }

    /// How long the other end may hold an acknowledgement back.
    pub fn ack_delay(&self) -> Duration {
        self.held_back.longest(self.rtt.smoothed)
    }

    fn settle_acked(&mut self, now: Instant, range: &Range<u64>, outcome: &mut AckOutcome) {
        let remembered = range.start.max(self.first)..range.end;
        for seq in self.settled.gaps(remembered.clone()).into_iter().flatten() {
            let sent = &mut self.sent[(seq - self.first) as usize];
            self.in_flight_bytes -= u64::from(sent.bytes);
            sent.state = SentState::Settled;
            outcome.acked_bytes += u64::from(sent.bytes);
            outcome.acked.extend(std::mem::take(&mut sent.pieces).iter());
        }
        self.settled.insert(remembered);
        while let Some((&seq, _)) = self.late_by_seq.range(range.clone()).next() {
            let sent = self.late_by_seq.remove(&seq).expect("found above");
            if sent.state == SentState::Lost {
                outcome.spurious_bytes += u64::from(sent.bytes);
                self.learn_reordering(now, now.saturating_duration_since(sent.at));
            }
            outcome.acked_bytes += u64::from(sent.bytes);
            outcome.acked.extend(sent.pieces.iter());
        }
    }

    fn detect_losses(&mut self, now: Instant, outcome: &mut AckOutcome) {
        self.loss_at = None;
        let Some(largest) = self.largest_acked else { return };
        let round_trip = self.rtt.smoothed.max(self.rtt.latest);
        let reordering = self.reordering.filter(|reordering| now < reordering.until);
        let threshold = match reordering {
            Some(reordering) => round_trip + reordering.window,
            None => (round_trip * 9 / 8).max(GRANULARITY),
        };
        let before_largest = largest.saturating_sub(self.first) as usize;
        for place in 0..before_largest.min(self.sent.len()) {
            let sent = &mut self.sent[place];
            if sent.state == SentState::Settled {
                continue;
            }
            let seq = self.first + place as u64;
            let lost_at = sent.at + threshold;
            let is_overtaken = reordering.is_none() && seq + REORDER_DATAGRAMS <= largest;
            if !is_overtaken && lost_at > now {
                self.loss_at = Some(lost_at);
                break;
            }
            outcome.lost_datagrams += 1;
            outcome.lost_bytes += u64::from(sent.bytes);
            if sent.state == SentState::InFlight {
                outcome.lost.extend(sent.pieces.iter());
            }
            self.in_flight_bytes -= u64::from(sent.bytes);
            self.late_by_seq.insert(seq, Sent { state: SentState::Lost, ..sent.clone() });
            sent.state = SentState::Settled;
            self.settled.insert(seq..seq + 1);
        }
        self.forget_settled(now);
    }

    /// A datagram that was declared lost took `elapsed` to be acknowledged: from now on, being overtaken is no sign of loss and only time
    /// is (as in RACK, RFC 8985 §6.2).
    fn learn_reordering(&mut self, now: Instant, elapsed: Duration) {
        let beyond = elapsed.saturating_sub(self.rtt.smoothed).max(self.rtt.smoothed / 4);
        let known = self.reordering.map_or(Duration::ZERO, |reordering| reordering.window);
        let window = known.max(beyond).min(self.rtt.smoothed.max(GRANULARITY));
        self.reordering = Some(Reordering { window, until: now + REORDERING_BELIEVED });
    }

    fn forget_settled(&mut self, now: Instant) {
        while self.sent.front().is_some_and(|sent| sent.state == SentState::Settled) {
            self.sent.pop_front();
            self.first += 1;
        }
        self.settled.remove(0..self.first);
        while let Some(entry) = self.late_by_seq.first_entry()
            && entry.get().at + KEPT_FOR_LATE_ACKS < now
        {
            entry.remove();
        }
        if self.sent.is_empty() {
            self.sent.shrink_to(IDLE_CAPACITY);
        }
    }
}

/// A longer round trip is none of a line's: an end was stopped meanwhile, or the line. If one such measure counted, the path would be trusted
/// for minutes of silence.
const RTT_MAX: Duration = Duration::from_secs(10);

/// How long what has arrived may take to be read: more than a receive buffer takes, far below what a person notices.
const LISTEN_MAX: Duration = Duration::from_millis(20);

/// How long a path is taken to reorder after it was last seen to.
const REORDERING_BELIEVED: Duration = Duration::from_secs(30);

/// How long a datagram that was given up may still be acknowledged: long enough for the queue of a line that stalled and came back.
const KEPT_FOR_LATE_ACKS: Duration = Duration::from_secs(3);

/// Room that a path without traffic keeps.
const IDLE_CAPACITY: usize = 64;

/// Datagrams looked at for one that is worth sending again.
const REINJECT_LOOK_AHEAD: usize = 64;

/// The least that a probe timeout is above the round-trip time: what a busy machine's scheduling takes now and then, far below what
/// a person notices.
const PROBE_MARGIN: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::PathId;

    /// Ends in no time that anybody waits for if each looks at all that it covers.
    #[test]
    fn an_acknowledgement_that_comes_again_costs_and_changes_nothing() {
        let begin = Instant::now();
        let now = begin + Duration::from_secs(1);
        let mut recovery = Recovery::new(now - begin);
        let send = |recovery: &mut Recovery, now, datagrams| {
            (0..datagrams).for_each(|_| recovery.on_sent(now, 1000, now, Pieces::default()));
            recovery.next_seq().0
        };
        // On a path that reorders, what was overtaken is not lost at once.
        let end = send(&mut recovery, begin, 8);
        assert!(recovery.on_ack(now, &ack(4..end)).lost_datagrams > 0);
        assert_eq!(recovery.on_ack(now, &ack(0..1)).spurious_bytes, 1000);
        let first = end;
        let end = send(&mut recovery, now, MAX_SENT);
        let covered = ack(first + 1..end);
        assert_eq!(recovery.on_ack(now, &covered).acked_bytes, (end - first - 1) * 1000);
        for _ in 0..300_000 {
            assert_eq!(recovery.on_ack(now, &covered).acked_bytes, 0);
        }
        assert_eq!(recovery.in_flight_bytes(), 1000);
        assert_eq!(recovery.on_ack(now, &ack(first..end)).acked_bytes, 1000);
        assert_eq!((recovery.in_flight_bytes(), recovery.sent.len(), recovery.settled.len()), (0, 0, 0));
    }

    fn ack(range: Range<u64>) -> Ack {
        Ack { path: PathId(1), received_at_us: 0, delay_us: 0, held_back_us: 0, ranges: vec![range] }
    }
}
