//! One direction of a line at the rate that its owner shares, fair between users.
//!
//! Enters: packets, each with its user and its size on the line. Leaves: the same packets, not sooner than the rate allows; of the
//! users who have packets waiting each gets the same number of bytes (deficit round-robin, Shreedhar and Varghese 1995), and who has
//! just come, or sends less than that, goes first (RFC 8290 §4.2). Always holds: over any time no more leaves than the rate and a
//! burst; a user's packets keep their order; what waits is bounded per user and per line, and at the bound it is the user with the
//! most who loses. A user's queue grows and shrinks by nothing but that user's own packets and share of the rate, so congestion
//! control that watches delay sees its own queue and nobody else's.
//!
//! Mutate ([`Shaper::handle_packet`], [`Shaper::set_rate`]), then drain [`Shaper::poll_dropped`] and [`Shaper::poll_packet`] until `None`,
//! and come back at [`Shaper::poll_timeout`].

use std::{
    collections::{BTreeMap, VecDeque},
    time::{Duration, Instant},
};

use super::standing::Standing;
use crate::units::Rate;

/// The packets of users `U` on their way through one direction of a line.
#[derive(Debug)]
pub struct Shaper<U, P> {
    rate: Rate,
    /// When the line will have carried everything that has left so far.
    free_at: Instant,
    queue_by_user: BTreeMap<U, UserQueue<P>>,
    /// Those with packets who had none a moment ago; they go first, for one turn.
    newcomers: VecDeque<U>,
    /// All others, in turn.
    regulars: VecDeque<U>,
    queued_bytes: usize,
    dropped: VecDeque<P>,
}

#[derive(Debug)]
struct UserQueue<P> {
    packets: VecDeque<Waiting<P>>,
    bytes: usize,
    /// The bytes left of the user's turn.
    deficit: i64,
    standing: Standing,
}

#[derive(Debug)]
struct Waiting<P> {
    line_bytes: usize,
    since: Instant,
    packet: P,
}

impl<U: Ord + Clone, P> Shaper<U, P> {
    /// A direction without packets.
    pub fn new(rate: Rate, now: Instant) -> Self {
        Self {
            rate,
            free_at: now,
            queue_by_user: BTreeMap::new(),
            newcomers: VecDeque::new(),
            regulars: VecDeque::new(),
            queued_bytes: 0,
            dropped: VecDeque::new(),
        }
    }

    /// The rate now.
    pub fn rate(&self) -> Rate {
        self.rate
    }

    /// Lets packets leave at another rate from now on.
    pub fn set_rate(&mut self, now: Instant, rate: Rate) {
        // What has left has taken the line for as long as it would at the new rate.
        let ahead = self.free_at.saturating_duration_since(now).as_secs_f64();
        let scaled = ahead * self.rate.bits_per_second as f64 / rate.bits_per_second.max(1) as f64;
        self.free_at = self.free_at.min(now) + Duration::from_secs_f64(scaled.min(LONGEST));
        self.rate = rate;
    }

    /// Takes a packet of `user` of `line_bytes` with all headers.
    pub fn handle_packet(&mut self, now: Instant, user: &U, line_bytes: usize, packet: P) {
        if self.queued_bytes == 0 {
            // A line that was idle has saved up a little, and no more.
            self.free_at = self.free_at.max(now.checked_sub(BURST).unwrap_or(now));
        }
        let queue = match self.queue_by_user.get_mut(user) {
            Some(queue) => queue,
            None => {
                self.newcomers.push_back(user.clone());
                self.queue_by_user.entry(user.clone()).or_insert_with(UserQueue::new)
            }
        };
        queue.packets.push_back(Waiting { line_bytes, since: now, packet });
        queue.bytes += line_bytes;
        self.queued_bytes += line_bytes;
        if queue.bytes > user_limit(self.rate) {
            let user = user.clone();
            self.drop_newest(&user);
        }
        while self.queued_bytes > LINE_USERS * user_limit(self.rate) {
            let fattest = self.queue_by_user.iter().max_by_key(|(_, queue)| queue.bytes).map(|(user, _)| user.clone());
            let Some(fattest) = fattest else { return };
            self.drop_newest(&fattest);
        }
    }

    /// The next packet that found its queue too long or had waited in it for too long.
    pub fn poll_dropped(&mut self) -> Option<P> {
        self.dropped.pop_front()
    }

    /// The next packet that leaves by `now`.
    pub fn poll_packet(&mut self, now: Instant) -> Option<P> {
        if self.free_at > now {
            return None;
        }
        let Waiting { line_bytes, packet, .. } = self.next(now)?;
        // A driver that comes late finds what the rate has allowed meanwhile, within reason.
        self.free_at = self.free_at.max(now.checked_sub(LATE_MAX).unwrap_or(now)) + time_of(self.rate, line_bytes);
        Some(packet)
    }

    /// When [`Shaper::poll_packet`] will have something; `None` while nothing waits.
    pub fn poll_timeout(&self) -> Option<Instant> {
        (self.queued_bytes > 0).then_some(self.free_at)
    }

    /// The packets that wait, user by user.
    pub fn into_packets(self) -> impl Iterator<Item = P> {
        self.queue_by_user.into_values().flat_map(|queue| queue.packets).map(|waiting| waiting.packet)
    }

    /// The bytes that wait.
    pub fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    fn next(&mut self, now: Instant) -> Option<Waiting<P>> {
        loop {
            let is_newcomer = !self.newcomers.is_empty();
            let turns = if is_newcomer { &mut self.newcomers } else { &mut self.regulars };
            let user = turns.front()?.clone();
            let queue = self.queue_by_user.get_mut(&user).expect("users with a turn have a queue");
            if queue.deficit <= 0 {
                queue.deficit += QUANTUM_BYTES;
                turns.pop_front();
                self.regulars.push_back(user);
                continue;
            }
            let turns_bytes = TARGET_PACKETS * PACKET_BYTES * self.queue_by_user.len();
            let target = TARGET.max(time_of(self.rate, turns_bytes));
            let queue = self.queue_by_user.get_mut(&user).expect("as above");
            let before = queue.bytes;
            let waiting = queue.take(now, target, &mut self.dropped);
            self.queued_bytes -= before - queue.bytes;
            match waiting {
                Some(waiting) => {
                    queue.deficit -= waiting.line_bytes as i64;
                    return Some(waiting);
                }
                // One more turn at the end, lest who sends a packet at a time be a newcomer each time.
                None if is_newcomer && !self.regulars.is_empty() => {
                    self.newcomers.pop_front();
                    self.regulars.push_back(user);
                }
                None => {
                    if is_newcomer {
                        self.newcomers.pop_front()
                    } else {
                        self.regulars.pop_front()
                    };
                    self.queue_by_user.remove(&user);
                }
            }
        }
    }

    fn drop_newest(&mut self, user: &U) {
        let newest = self.queue_by_user.get_mut(user).and_then(|queue| {
            let newest = queue.packets.pop_back()?;
            queue.bytes -= newest.line_bytes;
            Some(newest)
        });
        if let Some(newest) = newest {
            self.queued_bytes -= newest.line_bytes;
            self.dropped.push_back(newest.packet);
        }
    }
}

impl<P> UserQueue<P> {
    fn new() -> Self {
        Self { packets: VecDeque::new(), bytes: 0, deficit: QUANTUM_BYTES, standing: Standing::default() }
    }

    /// The next packet to leave: the newest, if all that wait before it must go.
    fn take(&mut self, now: Instant, target: Duration, dropped: &mut VecDeque<P>) -> Option<Waiting<P>> {
        let first = self.packets.pop_front()?;
        self.bytes -= first.line_bytes;
        if !self.standing.must_empty(now, now.saturating_duration_since(first.since), target) {
            return Some(first);
        }
        let Some(newest) = self.packets.pop_back() else { return Some(first) };
        self.bytes = 0;
        dropped.push_back(first.packet);
        dropped.extend(self.packets.drain(..).map(|waiting| waiting.packet));
        Some(newest)
    }
}

/// The size on the line of a UDP packet with a payload of `payload_bytes`.
pub fn line_bytes(payload_bytes: usize, is_ipv4: bool) -> usize {
    payload_bytes + if is_ipv4 { 28 } else { 48 }
}

/// The time that a line of `rate` takes for `bytes`, rounded down to a nanosecond.
pub fn time_of(rate: Rate, bytes: usize) -> Duration {
    Duration::from_nanos((bytes as u64).saturating_mul(8_000_000_000) / rate.bits_per_second.max(1))
}

/// The most bytes that wait of one user.
fn user_limit(rate: Rate) -> usize {
    let bytes = rate.bits_per_second as u128 * QUEUE.as_millis() / 8_000;
    usize::try_from(bytes).unwrap_or(usize::MAX).clamp(QUEUE_BYTES.0, QUEUE_BYTES.1)
}

/// A full packet on the line.
const PACKET_BYTES: usize = 1500;

/// A turn: one full packet (RFC 8290 §5.2.2).
const QUANTUM_BYTES: i64 = PACKET_BYTES as i64;

/// What leaves at once after a pause, as time of the rate: a small answer goes through whole. Much less and it takes a round trip more.
const BURST: Duration = Duration::from_millis(20);

/// How late a driver may come without the rate suffering: a busy small PC is late by so much now and then.
const LATE_MAX: Duration = Duration::from_millis(20);

/// The waiting time above which a queue must not stand, and as many packets at the user's share on slow lines. The ends aim at 4 to
/// 24 ms, or two packets.
const TARGET: Duration = Duration::from_millis(30);
const TARGET_PACKETS: usize = 4;

/// The most that waits of one user, as time of the whole rate, and its bounds in bytes: a slow start's last round trip of a line
/// of 200 ms must find room, also ten packets of a modem's.
const QUEUE: Duration = Duration::from_millis(250);
const QUEUE_BYTES: (usize, usize) = (20 * PACKET_BYTES, 8 << 20);

/// The queues of so many users, all full, are the most that a line holds.
const LINE_USERS: usize = 4;

/// No wait is longer, in seconds.
const LONGEST: f64 = 3600.0;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn users_get_equal_bytes_whatever_their_packets_and_their_number() {
        let mut line = Line::new(8_000_000);
        let sizes = [1500, 300, 700];
        for millisecond in 0..2000 {
            for (user, bytes) in sizes.into_iter().enumerate() {
                (0..9000 / bytes).for_each(|_| line.enter(millisecond, user, bytes));
            }
            line.leave(millisecond);
        }
        let bytes = sizes.iter().enumerate().map(|(user, _)| line.bytes_of(user));
        for bytes in bytes {
            assert!(bytes.abs_diff(2_000_000 / 3) < 5_000, "{bytes}");
        }
    }

    #[test]
    fn a_call_passes_a_neighbours_upload() {
        let mut line = Line::new(1_000_000);
        for millisecond in 0..3000 {
            line.enter(millisecond, 0, 1500);
            if millisecond % 20 == 0 {
                line.enter(millisecond, 1, 220);
            }
            line.leave(millisecond);
        }
        let waits: Vec<_> = line.left.iter().filter(|left| left.user == 1).map(|left| left.waited_ms).collect();
        // The packet of the upload that is on the line takes 12 ms.
        assert!(waits.len() == 150 && waits.iter().all(|&waited| waited <= 13), "{waits:?}");
    }

    #[test]
    fn a_queue_that_its_sender_does_not_see_is_emptied() {
        let mut line = Line::new(1_200_000);
        for millisecond in 0..3000 {
            // As fast as the line from when a queue of 100 ms stands.
            if millisecond % 10 == 0 {
                (0..if millisecond == 0 { 11 } else { 1 }).for_each(|_| line.enter(millisecond, 0, 1500));
            }
            line.leave(millisecond);
        }
        let last = line.left.last().expect("packets left");
        assert!(last.waited_ms < 15, "{last:?}");
        assert!((1..=11).contains(&line.dropped), "{}", line.dropped);
    }

    #[test]
    fn a_new_rate_holds_at_once() {
        let mut line = Line::new(1_200_000);
        (0..60).for_each(|_| line.enter(0, 0, 1500));
        line.leave(100);
        let before = line.left.len();
        line.shaper.set_rate(line.at(100), Rate { bits_per_second: 12_000_000 });
        line.leave(120);
        assert!((19..=22).contains(&(line.left.len() - before)), "{}", line.left.len() - before);
    }

    proptest! {
        #[test]
        fn no_more_leaves_than_the_rate_and_nothing_is_lost_or_overtaken(
            kilobits in 50u64..100_000,
            steps in prop::collection::vec((0u64..40, 0usize..5, 30usize..1500, 1usize..30), 1..300),
        ) {
            let mut line = Line::new(kilobits * 1000);
            let (mut now, mut entered) = (0, 0);
            for (pause, user, bytes, count) in steps {
                now += pause;
                (0..count).for_each(|_| line.enter(now, user, bytes));
                entered += count;
                line.leave(now);
                prop_assert!(line.shaper.queued_bytes() <= LINE_USERS * user_limit(line.shaper.rate()));
            }
            let left_bits = line.left.iter().map(|left| left.bytes as u128 * 8).sum::<u128>();
            let span = u128::from(now) + (BURST.max(LATE_MAX)).as_millis();
            let most = u128::from(kilobits) * span + 1500 * 8;
            prop_assert!(left_bits <= most, "{left_bits} of {most}");
            line.leave_all();
            prop_assert_eq!(line.left.len() + line.dropped, entered);
            for user in 0..5 {
                let numbers: Vec<_> = line.left.iter().filter(|left| left.user == user).map(|left| left.number).collect();
                prop_assert!(numbers.is_sorted());
            }
        }
    }

    struct Line {
        shaper: Shaper<usize, Packet>,
        start: Instant,
        entered: usize,
        left: Vec<Left>,
        dropped: usize,
    }

    struct Packet {
        number: usize,
        user: usize,
        bytes: usize,
        entered_ms: u64,
    }

    #[derive(Debug)]
    struct Left {
        number: usize,
        user: usize,
        bytes: usize,
        waited_ms: u64,
    }

    impl Line {
        fn new(bits_per_second: u64) -> Self {
            let start = Instant::now();
            let shaper = Shaper::new(Rate { bits_per_second }, start);
            Self { shaper, start, entered: 0, left: Vec::new(), dropped: 0 }
        }

        fn at(&self, millisecond: u64) -> Instant {
            self.start + Duration::from_millis(millisecond)
        }

        fn enter(&mut self, millisecond: u64, user: usize, bytes: usize) {
            self.entered += 1;
            let packet = Packet { number: self.entered, user, bytes, entered_ms: millisecond };
            self.shaper.handle_packet(self.at(millisecond), &user, bytes, packet);
        }

        fn leave(&mut self, millisecond: u64) {
            self.leave_by(self.at(millisecond));
        }

        fn leave_all(&mut self) {
            while let Some(at) = self.shaper.poll_timeout() {
                self.leave_by(at);
            }
        }

        fn leave_by(&mut self, now: Instant) {
            let millisecond = now.duration_since(self.start).as_millis() as u64;
            while let Some(Packet { number, user, bytes, entered_ms }) = self.shaper.poll_packet(now) {
                self.left.push(Left { number, user, bytes, waited_ms: millisecond.saturating_sub(entered_ms) });
            }
            while self.shaper.poll_dropped().is_some() {
                self.dropped += 1;
            }
        }

        fn bytes_of(&self, user: usize) -> usize {
            self.left.iter().filter(|left| left.user == user).map(|left| left.bytes).sum()
        }
    }
}
