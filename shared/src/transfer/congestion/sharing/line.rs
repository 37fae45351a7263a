//! A line in virtual time that several senders share: a queue that drops its tail.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    time::{Duration, Instant},
};

use super::cubic::Cubic;
use crate::transfer::congestion::{AckSample, Congestion, LargestSent, PACKET_BYTES};

/// What came of a run.
#[derive(Debug)]
pub(super) struct Report {
    /// Each sender's part of what the line could have carried.
    pub(super) shares: Vec<f64>,
    /// The queue, on average.
    pub(super) queue: Duration,
    /// Whether a path has taken the queue for somebody else's.
    pub(super) competed: bool,
}

impl Report {
    pub(super) fn sum(&self) -> f64 {
        self.shares.iter().sum()
    }

    pub(super) fn least(&self) -> f64 {
        self.shares.iter().copied().fold(f64::MAX, f64::min) / self.sum()
    }
}

pub(super) struct Line {
    /// Bytes per second, now and at first.
    pub(super) rate: f64,
    first_rate: f64,
    /// One way, seconds.
    delay: f64,
    queue_bytes: f64,
    /// By how many seconds packets come later at most, each by another part of it, in their order all the same.
    pub(super) jitter: f64,
    random: u64,
    last_arrival: f64,
    /// When the way becomes longer, and by how many seconds.
    pub(super) longer_at: Option<(f64, f64)>,
    /// What paths are told of their fair rate each second: the mean of what they had in the last, times this.
    pub(super) told: Option<f64>,
    /// When the rate changes, and its factor.
    pub(super) slower_at: Option<(f64, f64)>,
    start: Instant,
    now: f64,
    /// When the queue will be empty.
    busy_until: f64,
    events: BinaryHeap<Reverse<(u64, u64, Event)>>,
    events_made: u64,
    senders: Vec<Sender>,
    delivered: Vec<f64>,
    counts: bool,
    queue_sum: f64,
    queue_looks: u32,
    competed: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Event {
    /// A sender may go on.
    Wake(usize),
    /// Packet `1` of sender `0` reaches the receiver.
    Arrival(usize, u64),
    /// The receiver acknowledges what has come.
    AckDue(usize),
    /// All up to packet `1` of sender `0`, which came at `2` nanoseconds, are acknowledged.
    Acked(usize, u64, u64),
    Look,
    /// Paths are told their fair rate.
    Tell,
}

struct Sender {
    kind: Kind,
    starts_at: f64,
    stops_at: f64,
    next: u64,
    in_flight: BTreeMap<u64, f64>,
    srtt: f64,
    /// Packets that arrived and are not acknowledged; the last, and when it came.
    unacknowledged: u32,
    last_arrival: (u64, f64),
    ack_is_due: bool,
    will_wake: bool,
    arrived: Vec<u64>,
    /// Bytes that have arrived since paths were told, and its full rounds then.
    of_second: f64,
    full_before: u64,
}

enum Kind {
    Path(Box<Congestion>),
    Cubic(Cubic),
}

const PING_BYTES: u64 = 70;

impl Line {
    pub(super) fn new(megabits: f64, rtt_ms: u64, queue_ms: u64) -> Self {
        let rate = megabits * 1e6 / 8.0;
        Self {
            rate,
            first_rate: rate,
            delay: rtt_ms as f64 / 2e3,
            queue_bytes: (rate * queue_ms as f64 / 1e3).max(16.0 * PACKET_BYTES),
            jitter: 0.0,
            random: 1,
            last_arrival: 0.0,
            longer_at: None,
            told: None,
            slower_at: None,
            start: Instant::now(),
            now: 0.0,
            busy_until: 0.0,
            events: BinaryHeap::new(),
            events_made: 0,
            senders: Vec::new(),
            delivered: Vec::new(),
            counts: false,
            queue_sum: 0.0,
            queue_looks: 0,
            competed: false,
        }
    }

    pub(super) fn add_path(&mut self, starts_at: f64) -> usize {
        let rtt = Duration::from_secs_f64(2.0 * self.delay);
        self.add(Kind::Path(Box::new(Congestion::new(rtt))), starts_at)
    }

    /// A path that has been idle since the line was, and knows its delay by a ping.
    pub(super) fn add_warm_path(&mut self, starts_at: f64) -> usize {
        let rtt = Duration::from_secs_f64(2.0 * self.delay);
        let mut congestion = Congestion::new(rtt);
        let ping = AckSample {
            acked_bytes: PING_BYTES,
            lost_bytes: 0,
            spurious_bytes: 0,
            largest_sent: Some(LargestSent { at: self.start, at_us: 0, bytes: PING_BYTES }),
            received_at_us: (self.delay * 1e6) as u64,
            rtt,
            smoothed_rtt: rtt,
            ack_delay: crate::transfer::acks::max_delay(rtt),
            in_flight: 0,
        };
        congestion.on_ack(self.start + rtt, &ping);
        self.add(Kind::Path(Box::new(congestion)), starts_at)
    }

    pub(super) fn add_cubic(&mut self, starts_at: f64) -> usize {
        self.add(Kind::Cubic(Cubic::new()), starts_at)
    }

    fn add(&mut self, kind: Kind, starts_at: f64) -> usize {
        let place = self.senders.len();
        self.senders.push(Sender {
            kind,
            starts_at,
            stops_at: f64::MAX,
            next: 1,
            in_flight: BTreeMap::new(),
            srtt: 2.0 * self.delay,
            unacknowledged: 0,
            last_arrival: (0, 0.0),
            ack_is_due: false,
            will_wake: false,
            arrived: Vec::new(),
            of_second: 0.0,
            full_before: 0,
        });
        self.delivered.push(0.0);
        self.schedule(starts_at, Event::Wake(place));
        place
    }

    pub(super) fn stop(&mut self, sender: usize, at: f64) {
        self.senders[sender].stops_at = at;
    }

    pub(super) fn run(&mut self, counts_from: f64, until: f64) -> Report {
        self.schedule(0.0, Event::Look);
        self.schedule(0.3, Event::Tell);
        while let Some(Reverse((at, _, event))) = self.events.pop() {
            self.now = at as f64 / 1e9;
            if self.now > until {
                break;
            }
            if !self.counts && self.now >= counts_from {
                self.counts = true;
                self.delivered.fill(0.0);
            }
            if let Some((_, by)) = self.longer_at.take_if(|(at, _)| *at <= self.now) {
                self.delay += by / 2.0;
            }
            if let Some((_, factor)) = self.slower_at.take_if(|(at, _)| *at <= self.now) {
                self.busy_until = self.now + (self.busy_until - self.now).max(0.0) / factor;
                self.rate *= factor;
            }
            self.handle(event);
        }
        let capacity = self.first_rate * (until - counts_from);
        Report {
            shares: self.delivered.iter().map(|bytes| bytes / capacity).collect(),
            queue: Duration::from_secs_f64(self.queue_sum / f64::from(self.queue_looks.max(1))),
            competed: self.competed,
        }
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Look => {
                if self.counts {
                    self.queue_sum += (self.busy_until - self.now).max(0.0);
                    self.queue_looks += 1;
                }
                self.schedule(self.now + 0.005, Event::Look);
            }
            Event::Tell => {
                self.tell();
                self.schedule(self.now + 1.0, Event::Tell);
            }
            Event::Wake(place) => {
                self.senders[place].will_wake = false;
                self.send(place);
            }
            Event::Arrival(place, number) => self.arrive(place, number),
            Event::AckDue(place) => self.acknowledge(place),
            Event::Acked(place, number, arrived_ns) => self.acked(place, number, arrived_ns as f64 / 1e9),
        }
    }

    fn tell(&mut self) {
        let of_second = |sender: &mut Sender| {
            let Kind::Path(congestion) = &sender.kind else { return None };
            let (full, bytes) = (congestion.rounds().full, std::mem::take(&mut sender.of_second));
            let was_full = full > std::mem::replace(&mut sender.full_before, full);
            Some(if was_full { bytes } else { 0.0 })
        };
        let rates: Vec<Option<f64>> = self.senders.iter_mut().map(of_second).collect();
        let used: Vec<f64> = rates.iter().flatten().copied().filter(|rate| *rate > 0.0).collect();
        let fair = self.told.map(|factor| factor * used.iter().sum::<f64>() / used.len().max(1) as f64);
        for (sender, rate) in self.senders.iter_mut().zip(rates) {
            if let Kind::Path(congestion) = &mut sender.kind {
                congestion.set_fair_rate(fair.filter(|_| rate.is_some_and(|rate| rate > 0.0)));
            }
        }
    }

    fn send(&mut self, place: usize) {
        loop {
            let now = self.instant();
            let sender = &mut self.senders[place];
            if self.now < sender.starts_at || self.now >= sender.stops_at {
                return;
            }
            let in_flight = sender.in_flight.len() as f64;
            match &mut sender.kind {
                Kind::Path(congestion) => match congestion.may_send(now, PACKET_BYTES as u64, (in_flight * PACKET_BYTES) as u64) {
                    Ok(()) => congestion.on_sent(now, PACKET_BYTES as u64, (in_flight * PACKET_BYTES) as u64),
                    Err(Some(at)) => {
                        // Timers tick in milliseconds, on each host out of step with the others'.
                        let out_of_step = place as f64 * 0.618;
                        let ticks = (at.duration_since(self.start).as_secs_f64() * 1e3 - out_of_step).ceil();
                        if !std::mem::replace(&mut sender.will_wake, true) {
                            self.schedule(((ticks + out_of_step) / 1e3).max(self.now + 1e-4), Event::Wake(place));
                        }
                        return;
                    }
                    Err(None) => return,
                },
                Kind::Cubic(cubic) if in_flight + 1.0 > cubic.window => return,
                Kind::Cubic(_) => {}
            }
            let number = sender.next;
            sender.next += 1;
            sender.in_flight.insert(number, self.now);
            let backlog = (self.busy_until - self.now).max(0.0) * self.rate;
            if backlog + PACKET_BYTES <= self.queue_bytes {
                self.busy_until = self.busy_until.max(self.now) + PACKET_BYTES / self.rate;
                self.last_arrival = self.last_arrival.max(self.busy_until + self.delay + self.jitter * self.part());
                self.schedule(self.last_arrival, Event::Arrival(place, number));
            }
        }
    }

    fn arrive(&mut self, place: usize, number: u64) {
        self.delivered[place] += PACKET_BYTES;
        let now = self.now;
        let sender = &mut self.senders[place];
        sender.of_second += PACKET_BYTES;
        sender.unacknowledged += 1;
        sender.last_arrival = (number, now);
        sender.arrived.push(number);
        let is_path = matches!(sender.kind, Kind::Path(_));
        let every = if is_path { 16 } else { 2 };
        if sender.unacknowledged >= every {
            self.acknowledge(place);
        } else if !std::mem::replace(&mut sender.ack_is_due, true) {
            let delay = if is_path { (sender.srtt / 4.0).clamp(0.001, 0.025) } else { 0.040 };
            self.schedule(now + delay, Event::AckDue(place));
        }
    }

    fn acknowledge(&mut self, place: usize) {
        let sender = &mut self.senders[place];
        sender.ack_is_due = false;
        if sender.unacknowledged == 0 {
            return;
        }
        sender.unacknowledged = 0;
        let (number, at) = sender.last_arrival;
        self.schedule(self.now + self.delay, Event::Acked(place, number, (at * 1e9) as u64));
    }

    fn acked(&mut self, place: usize, number: u64, arrived_at: f64) {
        let (instant, start, now, delay) = (self.instant(), self.start, self.now, self.delay);
        let sender = &mut self.senders[place];
        let arrived: Vec<u64> = sender.arrived.extract_if(.., |arrived| *arrived <= number).collect();
        let Some(&sent_at) = sender.in_flight.get(&number) else { return };
        let (mut acked, mut lost) = (0, 0);
        while let Some(entry) = sender.in_flight.first_entry().filter(|entry| *entry.key() <= number) {
            if arrived.contains(entry.key()) {
                acked += 1
            } else {
                lost += 1
            }
            entry.remove();
        }
        let rtt = arrived_at - sent_at + delay;
        sender.srtt += (rtt - sender.srtt) / 8.0;
        let next = sender.next;
        match &mut sender.kind {
            Kind::Path(congestion) => {
                congestion.on_ack(
                    instant,
                    &AckSample {
                        acked_bytes: acked * PACKET_BYTES as u64,
                        lost_bytes: lost * PACKET_BYTES as u64,
                        spurious_bytes: 0,
                        largest_sent: Some(LargestSent {
                            at: start + Duration::from_secs_f64(sent_at),
                            at_us: (sent_at * 1e6) as u64,
                            bytes: PACKET_BYTES as u64,
                        }),
                        received_at_us: (arrived_at * 1e6) as u64,
                        rtt: Duration::from_secs_f64(rtt),
                        smoothed_rtt: Duration::from_secs_f64(sender.srtt),
                        ack_delay: crate::transfer::acks::max_delay(Duration::from_secs_f64(sender.srtt)),
                        in_flight: sender.in_flight.len() as u64 * PACKET_BYTES as u64,
                    },
                );
                self.competed |= congestion.competition.is_some();
            }
            Kind::Cubic(cubic) => cubic.on_ack(now, (acked, lost), number, next, (now - sent_at, sender.srtt)),
        }
        self.send(place);
    }

    fn schedule(&mut self, at: f64, event: Event) {
        self.events_made += 1;
        self.events.push(Reverse(((at.max(self.now) * 1e9).ceil() as u64, self.events_made, event)));
    }

    /// A number from 0 to 1 (xorshift64, Marsaglia 2003).
    fn part(&mut self) -> f64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        self.random as f64 / u64::MAX as f64
    }

    fn instant(&self) -> Instant {
        self.start + Duration::from_secs_f64(self.now)
    }
}
