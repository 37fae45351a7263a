//! One flow of a session: a send buffer, a reorder buffer and the credit between them.

use std::time::{Duration, Instant};

use super::{control::AbortCode, parcel::Parcels, reorder::Reorder, schedule::Class, send_buffer::SendBuffer};
use crate::ids::PathId;

/// One flow.
#[derive(Debug)]
pub(super) struct Flow {
    pub(super) send: SendBuffer,
    pub(super) receive: Reorder,
    /// The credit given beyond what the application has read.
    pub(super) window: u64,
    credit_given_at: Option<Instant>,
    /// The queue that the flow waits in for a path, if any, and its place among all that wait.
    pub(super) queued: Option<Class>,
    pub(super) ticket: u64,
    /// Bytes sent since the flow's turn among those that wait began, the path that carries the turn, and until when it is left to it.
    turn_bytes: u64,
    turn: Option<(PathId, Instant)>,
    /// What a UDP flow carries besides.
    pub(super) parcels: Option<Box<Parcels>>,
    /// Bytes sent since the flow last paused.
    burst_bytes: u64,
    /// When everything had been sent and no writer waited.
    idle_since: Option<Instant>,
    /// The application wants to write more than there was room for.
    pub(super) writer_waits: bool,
    /// It stands in line to be asked.
    pub(super) is_in_line: bool,
    /// Credit that the other end has not been told of.
    pub(super) owes_credit: bool,
    pub(super) aborted: Option<AbortCode>,
    /// Bytes written that the other end had not acknowledged when the flow was aborted.
    lost_bytes: u64,
    /// The application has let go of the flow.
    pub(super) is_released: bool,
}

/// What a flow takes from its application.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Intake {
    /// So many bytes ahead of what is sent.
    Unsent(u64),
    /// So many bytes ahead of what is acknowledged: all flows together keep as much as they may.
    Retained(u64),
}

/// A flow is interactive until it has sent so many bytes without a pause: most requests and answers of a page fit.
const INTERACTIVE_BYTES: u64 = 128 * 1024;

/// What counts as a pause: longer than the round trip of all but satellite lines.
const PAUSE: Duration = Duration::from_millis(300);

/// How long a flow whose turn has begun is left to the path that carries it: two turns, as long as that path is not the slowest of many.
const TURN_LEFT_TO_PATH: Duration = Duration::from_millis(2);

/// Bytes that are taken ahead of the other end's credit, to be sent at once when that comes. A flow that nobody reads keeps no more: what many
/// keep is what the others may not.
const BEYOND_CREDIT: u64 = 32 * 1024;

impl Flow {
    pub(super) fn new(window: u64) -> Self {
        Self {
            send: SendBuffer::new(window),
            receive: Reorder::new(window),
            window,
            credit_given_at: None,
            queued: None,
            ticket: 0,
            turn_bytes: 0,
            turn: None,
            parcels: None,
            burst_bytes: 0,
            idle_since: None,
            writer_waits: false,
            is_in_line: false,
            owes_credit: false,
            aborted: None,
            lost_bytes: 0,
            is_released: false,
        }
    }

    pub(super) fn class(&self) -> Class {
        if self.burst_bytes < INTERACTIVE_BYTES { Class::Interactive } else { Class::Bulk }
    }

    /// Notes that `bytes` were sent, the next time after a pause or not. Waiting for others is no pause.
    pub(super) fn on_sent(&mut self, now: Instant, bytes: u64) {
        if self.idle_since.is_some_and(|since| now.saturating_duration_since(since) > PAUSE) {
            self.burst_bytes = 0;
        }
        self.burst_bytes += bytes;
        self.idle_since = (self.send.unsent() == 0 && !self.writer_waits).then_some(now);
    }

    /// Notes that path `path` took `bytes` in turn; gives whether the turn, of `turn_max` bytes, goes on.
    pub(super) fn keeps_turn(&mut self, now: Instant, path: PathId, bytes: u64, turn_max: u64) -> bool {
        self.turn_bytes += bytes;
        let goes_on = self.turn_bytes < turn_max && self.send.has_piece();
        if !goes_on {
            self.turn_bytes = 0;
            self.turn = None;
        } else if self.turn.is_none_or(|(carrier, _)| carrier != path) {
            self.turn = Some((path, now + TURN_LEFT_TO_PATH));
        }
        goes_on
    }

    /// Whether another path than `path` carries the flow's turn, and may be expected to go on with it soon.
    pub(super) fn is_in_turn_elsewhere(&self, now: Instant, path: PathId) -> bool {
        self.turn.is_some_and(|(carrier, until)| carrier != path && now < until)
    }

    /// Whether the application has more to send than the session has room for.
    pub(super) fn is_backlogged(&self, unsent_limit: u64) -> bool {
        self.writer_waits || self.send.unsent() >= unsent_limit / 2
    }

    /// Bytes that the flow takes from its application now, and how many it would take if it kept none.
    fn intake(&self, intake: Intake) -> (u64, u64) {
        let (limit, kept) = match intake {
            Intake::Unsent(limit) => (limit.min(self.send.sendable() + BEYOND_CREDIT), self.send.unsent()),
            Intake::Retained(limit) => (limit, self.send.retained()),
        };
        (limit.saturating_sub(kept), limit)
    }

    /// Bytes that the flow takes from its application now.
    pub(super) fn room(&self, intake: Intake) -> u64 {
        self.intake(intake).0
    }

    /// Whether there is as much room as an application that waits to write is told of: half of what it may write, or each
    /// acknowledgement would wake it for a few bytes.
    pub(super) fn has_good_room(&self, intake: Intake) -> bool {
        let (room, limit) = self.intake(intake);
        room > limit / 2
    }

    /// Whether both directions have come to their end.
    pub(super) fn is_over(&self) -> bool {
        self.aborted.is_some() || (self.send.is_delivered() && self.receive.is_consumed())
    }

    /// Bytes written that the other end has not acknowledged, or never will.
    pub(super) fn undelivered(&self) -> u64 {
        self.send.retained() + self.lost_bytes
    }

    pub(super) fn abort(&mut self, code: AbortCode) {
        self.aborted = Some(code);
        self.lost_bytes += self.send.retained();
        self.send.clear();
        self.receive.give_up_holes();
        self.owes_credit = false;
        self.writer_waits = false;
    }

    /// Gives the sender credit for what the application has read, in steps of a quarter window. If a quarter lasts less than
    /// `longest_rtt` and the application keeps up, the window doubles within `growth` (bytes left to give), so that it never holds less than
    /// some round trips of the flow; tells by how much it grew.
    pub(super) fn give_credit(&mut self, now: Instant, longest_rtt: Duration, max_window: u64, growth: u64) -> u64 {
        let step = self.window / 4;
        let consumed = self.receive.consumed();
        if consumed + self.window < self.receive.limit() + step {
            return 0;
        }
        let is_short = self.credit_given_at.is_some_and(|at| now.saturating_duration_since(at) < longest_rtt);
        let application_keeps_up = self.receive.ready_bytes() < step;
        let mut grown = 0;
        if is_short && application_keeps_up && self.window < max_window {
            grown = self.window.min(max_window - self.window).min(growth);
            self.window += grown;
        }
        self.receive.raise_limit(consumed + self.window);
        self.credit_given_at = Some(now);
        self.owes_credit = true;
        grown
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::FlowId;

    #[test]
    fn a_turn_ends_after_its_bytes_or_with_the_last_of_them() {
        let now = Instant::now();
        let mut flow = Flow::new(1 << 20);
        flow.send.write(&[0; 10_000]);
        let turns: Vec<bool> = (0..10)
            .map(|_| {
                let piece = flow.send.cut(FlowId(1), 1000).expect("a piece");
                flow.keeps_turn(now, PathId(1), u64::from(piece.len), 4000)
            })
            .collect();
        assert_eq!(turns, [true, true, true, false, true, true, true, false, true, false]);
    }

    #[test]
    fn a_turn_is_left_to_the_path_that_carries_it_but_not_for_long() {
        let (now, near, other) = (Instant::now(), PathId(1), PathId(2));
        let mut flow = Flow::new(1 << 20);
        flow.send.write(&[0; 10_000]);
        flow.send.cut(FlowId(1), 1000);
        assert!(!flow.is_in_turn_elsewhere(now, other), "no turn has begun");
        assert!(flow.keeps_turn(now, near, 1000, 4000));
        assert!(flow.is_in_turn_elsewhere(now, other) && !flow.is_in_turn_elsewhere(now, near));
        assert!(!flow.is_in_turn_elsewhere(now + TURN_LEFT_TO_PATH, other));
        assert!(!flow.keeps_turn(now, near, 3000, 4000));
        assert!(!flow.is_in_turn_elsewhere(now, other), "the turn is over");
    }

    #[test]
    fn a_writer_is_told_of_room_once_half_of_it_is_free_and_not_by_each_acknowledgement() {
        let mut flow = Flow::new(1 << 20);
        flow.send.write(&[0; 32 << 10]);
        let intake = Intake::Retained(32 << 10);
        let mut acknowledged = 0;
        while !flow.has_good_room(intake) {
            let piece = flow.send.cut(FlowId(1), 1 << 10).expect("bytes that are not acknowledged");
            assert!(!flow.has_good_room(intake), "sending frees nothing");
            acknowledged += flow.send.on_acked(&piece);
        }
        assert_eq!(acknowledged, 17 << 10);
    }
}
