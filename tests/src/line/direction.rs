//! One direction of an emulated line: packets enter, wait in a drop-tail queue, are sent at the line's rate, travel, and
//! come out.
//!
//! Feed it with [`Direction::handle_packet`], then drain [`Direction::poll_packet`] until `None` and come back no later than
//! [`Direction::poll_timeout`]. Times of departure follow from the rate alone, in whole bits and nanoseconds with the
//! remainder carried, so a driver that polls late delays a packet and never changes the rate. Equal seeds and equal calls
//! give equal packets.

use std::{
    cmp::Ordering,
    collections::{BinaryHeap, VecDeque},
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};

use super::{Conditions, HEADER_BYTES, Loss};

/// One direction of a line that carries packets of type `P`.
#[derive(Debug)]
pub struct Direction<P> {
    conditions: Conditions,
    random: StdRng,
    loses_this_burst: bool,
    /// Packets that wait; the first is being sent.
    queue: VecDeque<Queued<P>>,
    queued_bytes: u64,
    /// How much of the first packet was unsent at `sending_since`.
    unsent: NanoBits,
    sending_since: Instant,
    flight: BinaryHeap<InFlight<P>>,
    latest_arrival: Instant,
    departures: u64,
    counters: Counters,
}

/// What became of the packets that entered a direction, in packets unless said otherwise.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Counters {
    /// Came out at the far end.
    pub delivered: u64,
    /// The bytes of those, IP and UDP headers included.
    pub delivered_bytes: u64,
    /// Found the queue full.
    pub dropped: u64,
    /// Lost at random.
    pub lost: u64,
    /// Lost because the line was out.
    pub silenced: u64,
    /// Larger than the line's MTU.
    pub too_big: u64,
    /// The most bytes that waited at once.
    pub queue_high_bytes: u64,
}

#[derive(Debug)]
struct Queued<P> {
    ip_bytes: usize,
    packet: P,
}

#[derive(Debug)]
struct InFlight<P> {
    arrival: Instant,
    departure: u64,
    ip_bytes: usize,
    packet: P,
}

/// Billionths of a bit: what a line of 1 bit/s sends in a nanosecond.
type NanoBits = u128;

impl<P> Direction<P> {
    /// An idle direction whose randomness follows from `seed`.
    pub fn new(conditions: Conditions, seed: u64, now: Instant) -> Self {
        Self {
            conditions,
            random: StdRng::seed_from_u64(seed),
            loses_this_burst: false,
            queue: VecDeque::new(),
            queued_bytes: 0,
            unsent: 0,
            sending_since: now,
            flight: BinaryHeap::new(),
            latest_arrival: now,
            departures: 0,
            counters: Counters::default(),
        }
    }

    /// Takes a packet with a UDP payload of `payload_bytes` into the line, unless the line drops or loses it.
    pub fn handle_packet(&mut self, now: Instant, payload_bytes: usize, packet: P) {
        self.send_until(now);
        let ip_bytes = payload_bytes + HEADER_BYTES;
        if self.conditions.is_out {
            self.counters.silenced += 1;
        } else if ip_bytes > self.conditions.mtu_bytes {
            self.counters.too_big += 1;
        } else if self.loses_next() {
            self.counters.lost += 1;
        } else if self.queued_bytes + ip_bytes as u64 > self.conditions.queue_bytes {
            self.counters.dropped += 1;
        } else {
            if self.queue.is_empty() {
                self.sending_since = now;
                self.unsent = nano_bits(ip_bytes);
            }
            self.queued_bytes += ip_bytes as u64;
            self.counters.queue_high_bytes = self.counters.queue_high_bytes.max(self.queued_bytes);
            self.queue.push_back(Queued { ip_bytes, packet });
        }
    }

    /// The next packet that has come out by `now`.
    pub fn poll_packet(&mut self, now: Instant) -> Option<P> {
        self.send_until(now);
        if self.flight.peek()?.arrival > now {
            return None;
        }
        let arrived = self.flight.pop()?;
        self.counters.delivered += 1;
        self.counters.delivered_bytes += arrived.ip_bytes as u64;
        Some(arrived.packet)
    }

    /// No packet comes out before this time; `None` while the line is empty.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let from_queue = (!self.queue.is_empty()).then(|| self.first_sent_at() + self.conditions.delay);
        let from_flight = self.flight.peek().map(|packet| packet.arrival);
        from_queue.into_iter().chain(from_flight).min()
    }

    /// What the direction is like now.
    pub fn conditions(&self) -> Conditions {
        self.conditions
    }

    /// Makes the direction different from `now` on. Packets already sent keep their arrival; an outage loses all that are
    /// under way; a queue that shrinks keeps what it holds.
    pub fn set_conditions(&mut self, now: Instant, conditions: Conditions) {
        self.send_until(now);
        let sent = elapsed_nanos(self.sending_since, now) * u128::from(self.conditions.rate.bits_per_second);
        self.unsent = self.unsent.saturating_sub(sent);
        self.sending_since = self.sending_since.max(now);
        self.conditions = conditions;
        if conditions.is_out {
            self.counters.silenced += (self.queue.len() + self.flight.len()) as u64;
            self.queue.clear();
            self.flight.clear();
            self.queued_bytes = 0;
        }
    }

    /// What became of the packets so far.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// The bytes that wait or are being sent as of the last call that took a time.
    pub fn queued_bytes(&self) -> u64 {
        self.queued_bytes
    }

    /// Moves every packet whose last bit is sent by `now` from the queue into flight.
    fn send_until(&mut self, now: Instant) {
        while !self.queue.is_empty() {
            let sent_at = self.first_sent_at();
            if sent_at > now {
                return;
            }
            let ahead = elapsed_nanos(self.sending_since, sent_at) * u128::from(self.conditions.rate.bits_per_second) - self.unsent;
            let Some(Queued { ip_bytes, packet }) = self.queue.pop_front() else { return };
            self.queued_bytes -= ip_bytes as u64;
            self.sending_since = sent_at;
            self.unsent = self.queue.front().map_or(0, |next| nano_bits(next.ip_bytes).saturating_sub(ahead));
            let arrival = self.arrival(sent_at);
            self.departures += 1;
            self.flight.push(InFlight { arrival, departure: self.departures, ip_bytes, packet });
        }
    }

    /// When the last bit of the queue's first packet is sent, rounded up to a nanosecond.
    fn first_sent_at(&self) -> Instant {
        let nanos = self.unsent.div_ceil(u128::from(self.conditions.rate.bits_per_second.max(1)));
        self.sending_since + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX / 2))
    }

    fn arrival(&mut self, sent_at: Instant) -> Instant {
        let late = self.conditions.jitter.mul_f64(self.random.random::<f64>());
        let arrival = sent_at + self.conditions.delay + late;
        if self.conditions.may_reorder {
            return arrival;
        }
        self.latest_arrival = self.latest_arrival.max(arrival);
        self.latest_arrival
    }

    /// Gilbert's two states: in the bad one every packet is lost, and the chances of entering and leaving it give the
    /// fraction lost and the mean length of a burst.
    fn loses_next(&mut self) -> bool {
        let Loss { fraction, burst_packets } = self.conditions.loss;
        if fraction <= 0.0 {
            return false;
        }
        let dice: f64 = self.random.random();
        if burst_packets <= 1.0 {
            return dice < fraction;
        }
        let leaves = 1.0 / burst_packets;
        let enters = fraction * leaves / (1.0 - fraction).max(f64::EPSILON);
        self.loses_this_burst = if self.loses_this_burst { dice >= leaves } else { dice < enters };
        self.loses_this_burst
    }
}

fn nano_bits(ip_bytes: usize) -> NanoBits {
    ip_bytes as u128 * 8 * 1_000_000_000
}

fn elapsed_nanos(from: Instant, to: Instant) -> u128 {
    to.saturating_duration_since(from).as_nanos()
}

/// The heap's largest is the packet that arrives first; of two that arrive together, the one that left first.
impl<P> Ord for InFlight<P> {
    fn cmp(&self, other: &Self) -> Ordering {
        (other.arrival, other.departure).cmp(&(self.arrival, self.departure))
    }
}

impl<P> PartialOrd for InFlight<P> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl<P> PartialEq for InFlight<P> {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl<P> Eq for InFlight<P> {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_packet_takes_its_sending_time_and_the_delay() {
        let mut line = Line::new(conditions(8_000_000, 10), 1);
        line.enter(at_ms(0), 972, 7);
        assert_eq!(line.direction.poll_timeout(), Some(line.start + at_ms(11)));
        assert_eq!(line.direction.poll_packet(line.start + at_ms(11) - Duration::from_nanos(1)), None);
        assert_eq!(line.direction.poll_packet(line.start + at_ms(11)), Some(7));
        assert_eq!(line.direction.poll_timeout(), None);
    }

    #[test]
    fn the_rate_is_exact_even_where_a_packet_takes_no_whole_nanosecond() {
        let rate = 7_000_003;
        let mut line = Line::new(Conditions { queue_bytes: u64::MAX, ..conditions(rate, 0) }, 1);
        let count = 10_000;
        (0..count).for_each(|number| line.enter(at_ms(0), 1_433, number));
        let last = line.out().last().expect("all came out").0;
        let exact_nanos = (u128::from(count) * 1_461 * 8 * 1_000_000_000).div_ceil(u128::from(rate));
        assert_eq!(last.as_nanos(), exact_nanos);
    }

    #[test]
    fn a_driver_that_polls_late_changes_no_departure() {
        let mut line = Line::new(Conditions { queue_bytes: u64::MAX, ..conditions(8_000_000, 5) }, 1);
        (0..100).for_each(|number| line.enter(at_ms(0), 972, number));
        let by_55_5_ms = line.start + Duration::from_micros(55_500);
        assert_eq!(std::iter::from_fn(|| line.direction.poll_packet(by_55_5_ms)).count(), 50);
        assert_eq!(line.direction.poll_timeout(), Some(line.start + at_ms(56)));
    }

    #[test]
    fn the_queue_never_holds_more_than_its_bytes_and_drops_the_newest() {
        let mut line = Line::new(Conditions { queue_bytes: 10_000, ..conditions(8_000_000, 0) }, 1);
        (0..12).for_each(|number| line.enter(at_ms(0), 972, number));
        assert_eq!(line.direction.counters().queue_high_bytes, 10_000);
        assert_eq!(line.direction.counters().dropped, 2);
        line.enter(at_ms(1), 972, 12);
        assert_eq!(line.numbers(), (0..10).chain([12]).collect::<Vec<_>>());
    }

    #[test]
    fn jitter_keeps_order_unless_the_line_reorders() {
        let jittery = Conditions { jitter: at_ms(30), queue_bytes: u64::MAX, ..conditions(100_000_000, 10) };
        let numbers = |conditions| {
            let mut line = Line::new(conditions, 3);
            (0..1_000).for_each(|number| line.enter(at_ms(number), 1_000, number));
            line.numbers()
        };
        assert_eq!(numbers(jittery), (0..1_000).collect::<Vec<_>>());
        let mut reordered = numbers(Conditions { may_reorder: true, ..jittery });
        assert!(!reordered.is_sorted());
        reordered.sort_unstable();
        assert_eq!(reordered, (0..1_000).collect::<Vec<_>>());
    }

    #[test]
    fn loss_has_its_fraction_and_its_bursts() {
        let count = 200_000;
        for (fraction, burst_packets) in [(0.02, 1.0), (0.02, 5.0), (0.3, 10.0)] {
            let loss = Loss { fraction, burst_packets };
            let mut line = Line::new(Conditions { loss, queue_bytes: u64::MAX, ..conditions(1_000_000_000, 0) }, 11);
            (0..count).for_each(|number| line.enter(at_ms(0), 100, number));
            let came = line.numbers();
            let lost = count - came.len() as u64;
            let bursts = came.windows(2).filter(|pair| pair[1] - pair[0] > 1).count() as f64;
            let measured_burst = lost as f64 / bursts;
            let expected_burst = if burst_packets > 1.0 { burst_packets } else { 1.0 / (1.0 - fraction) };
            assert_eq!(line.direction.counters().lost, lost);
            assert!((lost as f64 / count as f64 / fraction - 1.0).abs() < 0.1, "{lost} lost of {count} at {fraction}");
            assert!((measured_burst / expected_burst - 1.0).abs() < 0.1, "bursts of {measured_burst}, not {expected_burst}");
        }
    }

    #[test]
    fn a_new_rate_holds_from_the_middle_of_a_packet() {
        let mut line = Line::new(conditions(8_000, 0), 1);
        line.enter(at_ms(0), 972, 0);
        line.direction.set_conditions(line.start + at_ms(500), conditions(16_000, 0));
        assert_eq!(line.direction.poll_timeout(), Some(line.start + at_ms(750)));
    }

    #[test]
    fn an_outage_loses_what_is_under_way_and_the_line_comes_back_empty() {
        let mut line = Line::new(conditions(8_000_000, 10), 1);
        (0..5).for_each(|number| line.enter(at_ms(0), 972, number));
        let out = Conditions { is_out: true, ..line.direction.conditions() };
        line.direction.set_conditions(line.start + at_ms(3), out);
        line.enter(at_ms(4), 972, 5);
        line.direction.set_conditions(line.start + at_ms(5), conditions(8_000_000, 10));
        line.enter(at_ms(6), 972, 6);
        assert_eq!(line.out(), [(at_ms(17), 6)]);
        assert_eq!(line.direction.counters().silenced, 6);
    }

    #[test]
    fn a_packet_above_the_mtu_vanishes() {
        let mut line = Line::new(conditions(8_000_000, 10), 1);
        line.enter(at_ms(0), 1_472, 0);
        line.enter(at_ms(0), 1_473, 1);
        assert_eq!(line.numbers(), [0]);
        assert_eq!(line.direction.counters().too_big, 1);
    }

    #[test]
    fn equal_seeds_give_equal_lines() {
        let loss = Loss { fraction: 0.1, burst_packets: 3.0 };
        let rough = Conditions { loss, jitter: at_ms(5), may_reorder: true, ..conditions(10_000_000, 10) };
        let run = |seed| {
            let mut line = Line::new(rough, seed);
            (0..500).for_each(|number| line.enter(at_ms(number), 1_000, number));
            line.out()
        };
        assert_eq!(run(5), run(5));
        assert_ne!(run(5), run(6));
    }

    struct Line {
        direction: Direction<u64>,
        start: Instant,
    }

    impl Line {
        fn new(conditions: Conditions, seed: u64) -> Self {
            let start = Instant::now();
            Self { direction: Direction::new(conditions, seed, start), start }
        }

        fn enter(&mut self, at: Duration, payload_bytes: usize, number: u64) {
            self.direction.handle_packet(self.start + at, payload_bytes, number);
        }

        fn out(&mut self) -> Vec<(Duration, u64)> {
            let mut out = Vec::new();
            while let Some(timeout) = self.direction.poll_timeout() {
                while let Some(number) = self.direction.poll_packet(timeout) {
                    out.push((timeout - self.start, number));
                }
            }
            out
        }

        fn numbers(&mut self) -> Vec<u64> {
            self.out().into_iter().map(|(_, number)| number).collect()
        }
    }

    fn conditions(bits_per_second: u64, delay_ms: u64) -> Conditions {
        Conditions::steady(shared::units::Rate { bits_per_second }, at_ms(delay_ms))
    }

    fn at_ms(milliseconds: u64) -> Duration {
        Duration::from_millis(milliseconds)
    }
}
