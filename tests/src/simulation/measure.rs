//! What a set of lines gives, in virtual time: goodput, gaps, queues, requests, and how well each end knows its lines.
//!
//! A [`Trial`] is one session over the lines: a bulk flow, requests, or both, from a seed. Its [`Outcome`] is the same on every machine.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use shared::{
    community::weight::Weight,
    ids::{FlowId, PathId},
    transfer::{
        path::PathState,
        schedule::Policy,
        session::{Event, Limits, Read, Side},
    },
};

use super::world::{Fault, Occurrence, SIDES, World};
use crate::{
    line::Conditions,
    scene::{GOODPUT_PER_IP, SceneLine, Way},
};

/// One session over some lines, and what happens on it.
#[derive(Clone, Debug)]
pub struct Trial {
    /// The lines; one path over each.
    pub lines: Vec<SceneLine>,
    /// The direction of the bulk flow, if there is one.
    pub bulk: Option<Way>,
    /// When its sender writes no more, if that is before the end.
    pub bulk_until: Option<Duration>,
    /// The time between the end of a request and the start of the next, if there are any.
    pub requests_every: Option<Duration>,
    /// How chunks are spread.
    pub policy: Policy,
    /// What the lines' randomness follows from.
    pub seed: u64,
    /// When the figures begin to count.
    pub warm_up: Duration,
    /// How long they count.
    pub span: Duration,
    /// A line that falls silent both ways, and when.
    pub kill: Option<(usize, Duration)>,
    /// What the cores' timers are rounded up to; zero for exact ones.
    pub timer_tick: Duration,
}

/// What came of a [`Trial`].
#[derive(Clone, Debug)]
pub struct Outcome {
    /// In-order bytes that the application read, per second, ×8.
    pub goodput_bits: f64,
    /// The most that TCP in full packets would get out of all lines that were alive, bit/s.
    pub limit_bits: f64,
    /// The longest time in which the application read nothing.
    pub longest_gap: Duration,
    /// How long each request took.
    pub requests: Vec<Duration>,
    /// What was seen of each line.
    pub lines: Vec<LineOutcome>,
    /// Flow bytes sent twice because the first copy was late, as a fraction of all.
    pub reinjected: f64,
}

/// What was seen of one line in the direction of the bulk flow.
#[derive(Clone, Copy, Default, Debug)]
pub struct LineOutcome {
    /// Delivered packets, headers included, as a fraction of the rate.
    pub utilisation: f64,
    /// The time that the queue stood for, on average.
    pub queue_mean: Duration,
    /// The longest.
    pub queue_max: Duration,
    /// The sender's estimate of the rate as a fraction of the rate: least, mean and most; 0 if it had none.
    pub capacity: (f64, f64, f64),
    /// Packets that found the queue full.
    pub dropped: u64,
    /// Packets lost at random.
    pub lost: u64,
    /// The packets that the sender took for lost.
    pub declared_lost: u64,
    /// The fraction of packets that the sender thinks are lost at random.
    pub loss_estimate: f64,
    /// How often the path was out of service.
    pub suspicions: u64,
}

impl Outcome {
    /// The goodput as a fraction of the limit.
    pub fn efficiency(&self) -> f64 {
        self.goodput_bits / self.limit_bits
    }

    /// The median time of a request.
    pub fn request_median(&self) -> Option<Duration> {
        self.request_quantile(0.5)
    }

    /// The time that `quantile` (0 to 1) of all requests took at most.
    pub fn request_quantile(&self, quantile: f64) -> Option<Duration> {
        let mut sorted = self.requests.clone();
        sorted.sort();
        sorted.get((sorted.len().saturating_sub(1) as f64 * quantile).round() as usize).copied()
    }
}

impl Trial {
    /// A bulk flow of 12 s after 3 s that don't count, over `lines`.
    pub fn new(lines: Vec<SceneLine>, bulk: Option<Way>) -> Self {
        Self {
            lines,
            bulk,
            bulk_until: None,
            requests_every: None,
            policy: Policy::Adaptive,
            seed: 1,
            warm_up: Duration::from_secs(3),
            span: Duration::from_secs(12),
            kill: None,
            timer_tick: Duration::ZERO,
        }
    }

    /// Runs it.
    ///
    /// # Errors
    /// If a core broke its contract.
    pub fn run(&self) -> Result<Outcome, Fault> {
        let mut run = Run::new(self);
        let end = self.warm_up + self.span;
        let mut stops = vec![(self.warm_up, Stop::Begin), (end, Stop::End)];
        stops.extend(self.kill.map(|(line, at)| (at, Stop::Kill(line))));
        stops.sort_by_key(|(at, _)| *at);
        for (at, stop) in stops.into_iter().filter(|(at, _)| *at <= end) {
            run.go_on_until(at)?;
            match stop {
                Stop::Begin => run.begin_to_count(),
                Stop::Kill(line) => run.kill(line),
                Stop::End => {}
            }
        }
        Ok(run.outcome())
    }
}

/// How long a 16 KB request takes by plain TCP over `line` alone, on paper: a round trip to connect, one until the first of an answer
/// of twelve packets comes, ten at once (RFC 6928) and two more when the first is acknowledged.
pub fn request_by_tcp(line: &SceneLine) -> Duration {
    let rtt = line.up.delay + line.down.delay;
    let packet = Duration::from_secs_f64(1500.0 * 8.0 / line.down.rate.bits_per_second.max(1) as f64);
    2 * rtt + (packet * 12).max(rtt + 3 * packet)
}

enum Stop {
    Begin,
    Kill(usize),
    End,
}

struct Run<'a> {
    trial: &'a Trial,
    world: World,
    way: Way,
    /// The bulk flow, once it is open.
    bulk: Option<FlowId>,
    counts: bool,
    read_bytes: u64,
    last_read_at: Instant,
    longest_gap: Duration,
    next_look_at: Instant,
    next_request_at: Option<Instant>,
    request: Option<Request>,
    answers: BTreeMap<FlowId, u64>,
    requests: Vec<Duration>,
    /// When the lines that were killed died.
    killed_at: BTreeMap<usize, Duration>,
    lines: Vec<Watched>,
}

/// A line as looked at now and then.
#[derive(Clone, Copy, Default)]
struct Watched {
    looks: u32,
    queue_sum: Duration,
    queue_max: Duration,
    capacity_looks: u32,
    capacity_sum: f64,
    capacity_least: f64,
    capacity_most: f64,
    delivered_before: u64,
    dropped_before: u64,
    lost_before: u64,
    declared_before: u64,
}

/// A request under way at the proxy.
struct Request {
    flow: FlowId,
    began: Instant,
    /// The far end has confirmed the preamble, and the request itself is sent.
    is_confirmed: bool,
    answer_bytes: u64,
}

impl<'a> Run<'a> {
    fn new(trial: &'a Trial) -> Self {
        let limits = Limits::default();
        let mut world = World::new(trial.policy, Limits { keep_alive: Some(KEEP_ALIVE), ..limits }, limits);
        world.set_timer_tick(trial.timer_tick);
        for (place, line) in trial.lines.iter().enumerate() {
            let number = world.add_line(line.up, line.down, trial.seed.wrapping_mul(1_000_003).wrapping_add(place as u64));
            for side in SIDES {
                let weight = Weight::of_rate(world.conditions(number, side).rate);
                world.join(side, PathId(place as u32), number, weight.value().into());
            }
        }
        let now = world.now();
        let mut run = Self {
            trial,
            world,
            way: trial.bulk.unwrap_or(Way::Down),
            bulk: None,
            counts: false,
            read_bytes: 0,
            last_read_at: now,
            longest_gap: Duration::ZERO,
            next_look_at: now,
            next_request_at: trial.requests_every.map(|every| now + every),
            request: None,
            answers: BTreeMap::new(),
            requests: Vec::new(),
            killed_at: BTreeMap::new(),
            lines: vec![Watched::default(); trial.lines.len()],
        };
        if trial.bulk.is_some() {
            let flow = run.world.end(Side::Proxy).open().expect("the first flow");
            run.bulk = Some(flow);
            match run.way {
                Way::Up => run.fill(Side::Proxy, flow),
                Way::Down => {
                    let taken = run.world.end(Side::Proxy).write(flow, &PREAMBLE);
                    debug_assert_eq!(taken, Ok(PREAMBLE.len()));
                }
            }
        }
        run
    }

    fn go_on_until(&mut self, elapsed: Duration) -> Result<(), Fault> {
        let until = self.world.at(elapsed);
        loop {
            let stop = until.min(self.next_look_at).min(self.next_request_at.unwrap_or(until));
            match self.world.advance(stop)? {
                Occurrence::Event(side, event) => self.react(side, event),
                Occurrence::Reached => {
                    let now = self.world.now();
                    if now >= self.next_look_at {
                        self.look();
                    }
                    if self.next_request_at.is_some_and(|at| at <= now) {
                        self.ask();
                    }
                    if now >= until {
                        return Ok(());
                    }
                }
            }
        }
    }

    fn react(&mut self, side: Side, event: Event) {
        match event {
            Event::Opened(flow) if Some(flow) == self.bulk && self.way == Way::Down => self.fill(side, flow),
            Event::Writable(flow) if Some(flow) == self.bulk && side == self.sender() => self.fill(side, flow),
            Event::Readable(flow) if Some(flow) == self.bulk => self.drain(side, flow),
            Event::Opened(flow) => {
                self.answers.insert(flow, 0);
            }
            Event::Readable(flow) if side == Side::Reconst => self.serve(flow),
            Event::Readable(flow) => self.take_answer(flow),
            Event::Writable(_)
            | Event::Parcel(_)
            | Event::Aborted(_)
            | Event::Path(..)
            | Event::Leave(..)
            | Event::Roster
            | Event::Quotas => {}
        }
    }

    /// The end that sends the bulk flow.
    fn sender(&self) -> Side {
        match self.way {
            Way::Down => Side::Reconst,
            Way::Up => Side::Proxy,
        }
    }

    fn fill(&mut self, side: Side, flow: FlowId) {
        if self.trial.bulk_until.is_some_and(|until| self.world.now() >= self.world.at(until)) {
            return;
        }
        while self.world.end(side).write(flow, &BLOCK) == Ok(BLOCK.len()) {}
    }

    fn drain(&mut self, side: Side, flow: FlowId) {
        let now = self.world.now();
        while let Read::Bytes(bytes) = self.world.end(side).read(flow, usize::MAX) {
            if side == self.sender() {
                continue;
            }
            self.read_bytes += bytes.len() as u64;
            if self.counts {
                self.longest_gap = self.longest_gap.max(now - self.last_read_at);
            }
            self.last_read_at = now;
        }
    }

    /// Starts a request: a flow with its preamble.
    fn ask(&mut self) {
        self.next_request_at = None;
        let began = self.world.now();
        let end = self.world.end(Side::Proxy);
        let Some(flow) = end.open() else { return };
        let taken = end.write(flow, &PREAMBLE);
        debug_assert_eq!(taken, Ok(PREAMBLE.len()));
        self.request = Some(Request { flow, began, is_confirmed: false, answer_bytes: 0 });
    }

    /// The far end of a request: confirms the preamble, answers the request.
    fn serve(&mut self, flow: FlowId) {
        let end = self.world.end(Side::Reconst);
        let got = self.answers.entry(flow).or_default();
        let mut has_ended = false;
        loop {
            match end.read(flow, usize::MAX) {
                Read::Bytes(bytes) => {
                    let before = *got;
                    *got += bytes.len() as u64;
                    let passes = |mark: usize| before < mark as u64 && *got >= mark as u64;
                    if passes(PREAMBLE.len()) {
                        let taken = end.write(flow, &[0]);
                        debug_assert_eq!(taken, Ok(1));
                    }
                    if passes(PREAMBLE.len() + REQUEST.len()) {
                        let taken = end.write(flow, &ANSWER);
                        debug_assert_eq!(taken, Ok(ANSWER.len()));
                        end.finish(flow);
                    }
                }
                Read::Blocked => break,
                Read::End | Read::Aborted(_) => {
                    has_ended = true;
                    break;
                }
            }
        }
        if has_ended {
            end.release(flow);
            self.answers.remove(&flow);
        }
    }

    fn take_answer(&mut self, flow: FlowId) {
        let now = self.world.now();
        let Some(request) = self.request.as_mut().filter(|request| request.flow == flow) else { return };
        let end = self.world.end(Side::Proxy);
        while let Read::Bytes(bytes) = end.read(flow, usize::MAX) {
            request.answer_bytes += bytes.len() as u64;
        }
        if !request.is_confirmed && request.answer_bytes > 0 {
            request.is_confirmed = true;
            let taken = end.write(flow, &REQUEST);
            debug_assert_eq!(taken, Ok(REQUEST.len()));
            end.finish(flow);
        }
        if request.answer_bytes > ANSWER.len() as u64 && end.read(flow, 1) == Read::End {
            end.release(flow);
            if self.counts {
                self.requests.push(now - request.began);
            }
            self.request = None;
            self.next_request_at = self.trial.requests_every.map(|every| now + every);
        }
    }

    fn begin_to_count(&mut self) {
        self.counts = true;
        self.read_bytes = 0;
        self.last_read_at = self.world.now();
        let sender = self.sender();
        let declared: BTreeMap<PathId, u64> =
            self.world.session(sender).path_status().iter().map(|path| (path.path, path.counters.lost_datagrams)).collect();
        for (place, line) in self.lines.iter_mut().enumerate() {
            let counters = self.world.counters(place, sender);
            *line = Watched {
                delivered_before: counters.delivered_bytes,
                dropped_before: counters.dropped,
                lost_before: counters.lost,
                declared_before: declared.get(&PathId(place as u32)).copied().unwrap_or(0),
                ..Watched::default()
            };
        }
    }

    fn kill(&mut self, line: usize) {
        self.killed_at.insert(line, self.world.elapsed());
        for side in SIDES {
            let conditions = self.world.conditions(line, side);
            self.world.set_conditions(line, side, Conditions { is_out: true, ..conditions });
        }
    }

    /// Notes queues and estimates.
    fn look(&mut self) {
        self.next_look_at = self.world.now() + LOOK_EVERY;
        let sender = self.sender();
        let status = self.world.session(sender).path_status();
        for path in status.iter().filter(|path| path.state == PathState::Active) {
            let place = path.path.0 as usize;
            let rate = self.trial.lines[place].conditions(self.way).rate.bits_per_second as f64;
            let queue = Duration::from_secs_f64(self.world.queued_bytes(place, sender) as f64 * 8.0 / rate);
            let line = &mut self.lines[place];
            line.looks += 1;
            line.queue_sum += queue;
            line.queue_max = line.queue_max.max(queue);
            if let Some(capacity) = path.capacity {
                let fraction = capacity * 8.0 / rate;
                line.capacity_least = if line.capacity_looks == 0 { fraction } else { line.capacity_least.min(fraction) };
                line.capacity_most = line.capacity_most.max(fraction);
                line.capacity_sum += fraction;
                line.capacity_looks += 1;
            }
        }
    }

    fn outcome(mut self) -> Outcome {
        let now = self.world.now();
        if self.trial.bulk.is_some() {
            self.longest_gap = self.longest_gap.max(now - self.last_read_at);
        }
        let sender = self.sender();
        let span = self.trial.span;
        let alive = |place: usize| match self.killed_at.get(&place) {
            Some(at) => at.saturating_sub(self.trial.warm_up).as_secs_f64() / span.as_secs_f64(),
            None => 1.0,
        };
        let rate = |place: usize| self.trial.lines[place].conditions(self.way).rate.bits_per_second as f64;
        let limit_bits = (0..self.lines.len()).map(|place| rate(place) * GOODPUT_PER_IP * alive(place)).sum();
        let status = self.world.session(sender).path_status();
        let sent: u64 = status.iter().map(|path| path.counters.sent_bytes).sum();
        let reinjected: u64 = status.iter().map(|path| path.counters.reinjected_bytes).sum();
        let mut lines = Vec::new();
        for (place, watched) in self.lines.iter().enumerate() {
            let counters = self.world.counters(place, sender);
            let path = status.iter().find(|path| path.path == PathId(place as u32));
            let looks = watched.looks.max(1);
            lines.push(LineOutcome {
                utilisation: (counters.delivered_bytes - watched.delivered_before) as f64 * 8.0 / (rate(place) * span.as_secs_f64()),
                queue_mean: watched.queue_sum / looks,
                queue_max: watched.queue_max,
                capacity: (watched.capacity_least, watched.capacity_sum / f64::from(watched.capacity_looks.max(1)), watched.capacity_most),
                dropped: counters.dropped - watched.dropped_before,
                lost: counters.lost - watched.lost_before,
                declared_lost: path.map_or(0, |path| path.counters.lost_datagrams - watched.declared_before),
                loss_estimate: path.map_or(0.0, |path| path.loss),
                suspicions: path.map_or(0, |path| path.counters.suspicions),
            });
        }
        Outcome {
            goodput_bits: self.read_bytes as f64 * 8.0 / span.as_secs_f64(),
            limit_bits,
            longest_gap: self.longest_gap,
            requests: self.requests,
            lines,
            reinjected: reinjected as f64 / sent.max(1) as f64,
        }
    }
}

/// How often queues and estimates are looked at: often enough to see each round trip of a LAN's lines.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// How often the proxy pings an idle path.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// What the bulk sender writes at once.
static BLOCK: [u8; 64 << 10] = [0; 64 << 10];

/// A flow's destination, a request, and its answer.
static PREAMBLE: [u8; 24] = [0; 24];
static REQUEST: [u8; 120] = [0; 120];
static ANSWER: [u8; 16 << 10] = [0; 16 << 10];
