//! What happens in a simulated session, drawn from a seed: lines, what becomes of them, flows, and what their applications do.
//!
//! A script says what happens and when; it decides nothing while it runs. At its end all lines work and every line has a path, so that
//! whatever is not done yet must get done.

use std::time::Duration;

use rand::{RngExt, SeedableRng, rngs::StdRng};
use shared::{
    transfer::{
        schedule::Policy,
        session::{Limits, Side},
    },
    units::Rate,
};

use super::{
    lines::log_uniform,
    parcels::{NUMBER_BYTES, ParcelPlan},
    world::SIDES,
};
use crate::line::{Conditions, Loss};

/// A session from its beginning to its end.
#[derive(Clone, Debug)]
pub struct Script {
    /// What it was drawn from.
    pub seed: u64,
    /// What the network may do to datagrams besides losing them.
    pub malice: Malice,
    /// How chunks are spread.
    pub policy: Policy,
    /// What each end takes up.
    pub proxy_limits: Limits,
    /// See `proxy_limits`.
    pub reconst_limits: Limits,
    /// What timers are rounded up to.
    pub timer_tick: Duration,
    /// The lines, with what they are like at first, up and down.
    pub lines: Vec<(Conditions, Conditions)>,
    /// The weight of each line's paths.
    pub weights: Vec<u32>,
    /// What happens, in order.
    pub acts: Vec<(Duration, Act)>,
    /// The flows, in the order in which they open.
    pub flows: Vec<FlowPlan>,
    /// When all lines work again.
    pub calm_from: Duration,
}

/// What the network may do to datagrams besides losing them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Malice {
    /// Nothing.
    None,
    /// Deliver genuine ones again, late, by their own path.
    Replay,
    /// Deliver anything: random bytes, genuine ones with bits flipped, by any path. Encryption rules it out; a broken peer does not.
    Forge,
}

/// Something that happens.
#[derive(Clone, Copy, Debug)]
pub enum Act {
    /// The way from this side becomes like that.
    Line(usize, Side, Conditions),
    /// An end finds out what its paths over a line take now.
    LearnSize(usize, Side),
    /// A line's newest path leaves this side.
    Leave(usize, Side),
    /// A line gets a new path; the proxy knows of it so much later than `reconst`.
    Join(usize, Duration),
    /// Something arrives that nobody sent now.
    Inject,
    /// All lines work, and each has a path that both sides know.
    Calm,
}

/// A flow.
#[derive(Clone, Copy, Debug)]
pub struct FlowPlan {
    /// When the proxy opens it.
    pub opens_at: Duration,
    /// What the proxy's application does.
    pub proxy: ApplicationPlan,
    /// What the application at `reconst` does.
    pub reconst: ApplicationPlan,
    /// The parcels that both send, if it is a UDP flow.
    pub parcels: Option<ParcelPlan>,
}

/// What one end of a flow does.
#[derive(Clone, Copy, Debug)]
pub struct ApplicationPlan {
    /// The bytes that it writes.
    pub bytes: u64,
    /// At once at most.
    pub write_bytes: usize,
    /// The time between two writes.
    pub write_pause: Duration,
    /// Whether it writes nothing until it has read the other end's last byte.
    pub answers: bool,
    /// The bytes that it reads at once at most.
    pub read_bytes: usize,
    /// The time between two reads.
    pub read_pause: Duration,
    /// The time after the flow's opening at which it lets go of the flow, done or not.
    pub resets_after: Option<Duration>,
}

impl ApplicationPlan {
    /// Reads what comes and writes nothing.
    pub const LISTENER: Self = Self {
        bytes: 0,
        write_bytes: 1,
        write_pause: Duration::ZERO,
        answers: false,
        read_bytes: 1 << 20,
        read_pause: Duration::ZERO,
        resets_after: None,
    };
}

impl Script {
    /// The script of a seed.
    pub fn drawn(seed: u64) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let malice = match random.random_range(0..10) {
            0..6 => Malice::None,
            6..8 => Malice::Replay,
            _ => Malice::Forge,
        };
        let policies = [Policy::Adaptive, Policy::WeightedRoundRobin, Policy::RoundRobin, Policy::Redundant];
        let policy = if random.random_bool(0.6) { Policy::Adaptive } else { policies[random.random_range(0..4)] };
        let limits = drawn_limits(&mut random);
        let lines: Vec<_> = (0..random.random_range(1..=6)).map(|_| drawn_line(&mut random)).collect();
        let calm_from = Duration::from_secs_f64(log_uniform(&mut random, 0.3, 8.0));
        let flows = drawn_flows(&mut random, limits, calm_from);
        let may_refuse = random.random_bool(0.1);
        let flow_limit = if may_refuse || malice == Malice::Forge { random.random_range(1..=4) } else { limits.flows };
        let timer_tick = if random.random_bool(0.3) { Duration::from_millis(1) } else { Duration::ZERO };
        let keep_alive = random.random_bool(0.2).then(|| Duration::from_secs_f64(random.random_range(0.5..20.0)));
        let mut script = Self {
            seed,
            malice,
            policy,
            proxy_limits: Limits { keep_alive, ..limits },
            timer_tick,
            reconst_limits: Limits { flows: flow_limit, ..limits },
            weights: lines.iter().map(|_| random.random_range(1..=4)).collect(),
            lines,
            acts: Vec::new(),
            flows,
            calm_from,
        };
        script.draw_acts(&mut random);
        // Of its own, so that all else stays what it was without parcels.
        let mut random = StdRng::seed_from_u64(seed ^ PARCELS_SEEDED);
        for flow in &mut script.flows {
            flow.parcels = random.random_bool(0.3).then(|| drawn_parcels(&mut random, calm_from));
        }
        script
    }

    fn draw_acts(&mut self, random: &mut StdRng) {
        for line in 0..self.lines.len() {
            let joins_at = if random.random_bool(0.8) { Duration::ZERO } else { moment(random, self.calm_from) };
            self.acts.push((joins_at, Act::Join(line, drawn_skew(random))));
        }
        for _ in 0..random.random_range(0..=2 * self.lines.len()) {
            let line = random.random_range(0..self.lines.len());
            self.draw_trouble(random, line);
        }
        if random.random_bool(0.2) {
            let began = moment(random, self.calm_from);
            let lasts = moment(random, self.calm_from);
            (0..self.lines.len()).for_each(|line| self.silence(line, &SIDES, began, lasts));
        }
        if random.random_bool(0.1) {
            let began = moment(random, self.calm_from);
            let back = began + moment(random, self.calm_from);
            for line in 0..self.lines.len() {
                self.replace_path(random, line, began, back);
            }
        }
        if self.malice != Malice::None {
            for _ in 0..random.random_range(1..60) {
                self.acts.push((moment(random, self.calm_from), Act::Inject));
            }
        }
        self.acts.push((self.calm_from, Act::Calm));
        self.acts.sort_by_key(|(at, act)| (*at, matches!(act, Act::Calm)));
        let end = self.acts.iter().position(|(_, act)| matches!(act, Act::Calm)).expect("pushed above") + 1;
        self.acts.truncate(end);
    }

    /// Something that befalls one line.
    fn draw_trouble(&mut self, random: &mut StdRng, line: usize) {
        let began = moment(random, self.calm_from);
        let lasts = moment(random, self.calm_from);
        let (up, down) = self.lines[line];
        match random.random_range(0..8) {
            0 => self.silence(line, &SIDES, began, lasts),
            1 => self.silence(line, &[SIDES[random.random_range(0..2)]], began, lasts),
            2 => {
                let delay = Duration::from_millis(random.random_range(50..2000));
                self.change(line, began, lasts, |way| Conditions { delay: way.delay + delay, ..way });
            }
            3 => {
                let factor = log_uniform(random, 0.1, 10.0);
                self.change(line, began, lasts, |way| {
                    let bits_per_second = (way.rate.bits_per_second as f64 * factor).max(LEAST_RATE) as u64;
                    Conditions { rate: Rate { bits_per_second }, ..way }
                });
            }
            4 => {
                let loss = Loss { fraction: random.random_range(0.05..0.9), burst_packets: random.random_range(1.0..20.0) };
                self.change(line, began, lasts, |way| Conditions { loss, ..way });
            }
            5 => {
                let mtu_bytes = random.random_range(LEAST_MTU_BYTES..=1500);
                for (side, way) in SIDES.into_iter().zip([up, down]) {
                    self.acts.push((began, Act::Line(line, side, Conditions { mtu_bytes, ..way })));
                    self.acts.push((began + Duration::from_millis(random.random_range(0..400)), Act::LearnSize(line, side)));
                }
                self.lines[line] = (Conditions { mtu_bytes, ..up }, Conditions { mtu_bytes, ..down });
            }
            _ => self.replace_path(random, line, began, began + lasts),
        }
    }

    fn silence(&mut self, line: usize, sides: &[Side], began: Duration, lasts: Duration) {
        let (up, down) = self.lines[line];
        for &side in sides {
            let way = if side == Side::Proxy { up } else { down };
            self.acts.push((began, Act::Line(line, side, Conditions { is_out: true, ..way })));
            self.acts.push((began + lasts, Act::Line(line, side, way)));
        }
    }

    fn change(&mut self, line: usize, began: Duration, lasts: Duration, change: impl Fn(Conditions) -> Conditions) {
        let (up, down) = self.lines[line];
        for (side, way) in SIDES.into_iter().zip([up, down]) {
            self.acts.push((began, Act::Line(line, side, change(way))));
            self.acts.push((began + lasts, Act::Line(line, side, way)));
        }
    }

    fn replace_path(&mut self, random: &mut StdRng, line: usize, gone: Duration, back: Duration) {
        let skew = drawn_skew(random);
        let (first, second) = if random.random_bool(0.5) { (gone, gone + skew) } else { (gone + skew, gone) };
        self.acts.push((first, Act::Leave(line, Side::Proxy)));
        self.acts.push((second, Act::Leave(line, Side::Reconst)));
        self.acts.push((back, Act::Join(line, drawn_skew(random))));
    }
}

fn drawn_limits(random: &mut StdRng) -> Limits {
    let initial_window = [4 << 10, 16 << 10, 64 << 10, 256 << 10, 256 << 10][random.random_range(0..5)];
    let max_window = if random.random_bool(0.3) { initial_window } else { initial_window * random.random_range(1..=16) };
    let window_growth = [0, 64 << 10, 128 << 20, 128 << 20][random.random_range(0..4)];
    let retained = if max_window == initial_window { initial_window } else { 64 << 20 };
    Limits { flows: 64, initial_window, max_window, window_growth, retained, keep_alive: None }
}

fn drawn_line(random: &mut StdRng) -> (Conditions, Conditions) {
    let delay = Duration::from_secs_f64(log_uniform(random, 0.001, 0.4));
    let jitter = if random.random_bool(0.3) { delay.mul_f64(random.random_range(0.0..2.0)) } else { Duration::ZERO };
    let may_reorder = random.random_bool(0.3);
    let loss = match random.random_range(0..4) {
        0 => Loss { fraction: random.random_range(0.0..0.2), burst_packets: 1.0 },
        1 => Loss { fraction: random.random_range(0.0..0.1), burst_packets: random.random_range(1.0..10.0) },
        _ => Loss::NONE,
    };
    let mtu_bytes = if random.random_bool(0.3) { random.random_range(LEAST_MTU_BYTES..=1500) } else { 1500 };
    let queue = Duration::from_secs_f64(log_uniform(random, 0.01, 2.0));
    let down = log_uniform(random, LEAST_RATE, 100e6);
    let up = (down / log_uniform(random, 1.0, 10.0)).max(LEAST_RATE);
    let way = |rate: f64| {
        let rate = Rate { bits_per_second: rate as u64 };
        let queue_bytes = Conditions::queue_bytes(rate, queue);
        Conditions { jitter, may_reorder, loss, mtu_bytes, queue_bytes, ..Conditions::steady(rate, delay) }
    };
    (way(up), way(down))
}

fn drawn_flows(random: &mut StdRng, limits: Limits, until: Duration) -> Vec<FlowPlan> {
    let mut flows: Vec<FlowPlan> = (0..random.random_range(1..=5))
        .map(|_| {
            let proxy = drawn_application(random, limits, until);
            let answers = !proxy.answers && random.random_bool(0.4);
            let reconst = ApplicationPlan { answers, ..drawn_application(random, limits, until) };
            FlowPlan { opens_at: moment(random, until).mul_f64(0.7), proxy, reconst, parcels: None }
        })
        .collect();
    flows.sort_by_key(|flow| flow.opens_at);
    flows
}

fn drawn_application(random: &mut StdRng, limits: Limits, until: Duration) -> ApplicationPlan {
    let bytes = match random.random_range(0..20) {
        0..3 => 0,
        3..9 => random.random_range(0..3_000),
        9..19 => log_uniform(random, 1e3, 1e5) as u64,
        _ => log_uniform(random, 1e5, 6e5) as u64,
    };
    let bytes = bytes.min(limits.initial_window * MOST_WINDOWS);
    let chunk = |random: &mut StdRng| (log_uniform(random, 1.0, 1e5) as usize).max((bytes / MOST_TURNS) as usize);
    let pause = |random: &mut StdRng| if random.random_bool(0.4) { moment(random, PAUSE_MAX) } else { Duration::ZERO };
    ApplicationPlan {
        bytes,
        write_bytes: chunk(random),
        write_pause: pause(random),
        answers: false,
        read_bytes: chunk(random).max(BIGGEST_FLOW / MOST_TURNS as usize),
        read_pause: pause(random),
        resets_after: random.random_bool(0.08).then(|| moment(random, until)),
    }
}

fn drawn_parcels(random: &mut StdRng, until: Duration) -> ParcelPlan {
    let policies = [Policy::Adaptive, Policy::WeightedRoundRobin, Policy::RoundRobin, Policy::Redundant];
    let most = log_uniform(random, 100.0, 65_000.0) as usize;
    ParcelPlan {
        count: random.random_range(1..=60),
        bytes: (random.random_range(NUMBER_BYTES..=most.min(1500)), most.max(1500)),
        every: if random.random_bool(0.2) { Duration::ZERO } else { moment(random, until / 20) },
        policy: policies[random.random_range(0..4)],
    }
}

/// How much later one end may know than the other.
fn drawn_skew(random: &mut StdRng) -> Duration {
    if random.random_bool(0.5) { Duration::ZERO } else { moment(random, Duration::from_millis(400)) }
}

fn moment(random: &mut StdRng, before: Duration) -> Duration {
    before.mul_f64(random.random::<f64>())
}

/// Sets what is drawn for parcels apart from what the seed gives otherwise.
const PARCELS_SEEDED: u64 = 0x7061_7263_656c_7300;

/// bit/s.
const LEAST_RATE: f64 = 50e3;

/// What leaves QUIC its least datagram.
const LEAST_MTU_BYTES: usize = 1200;

/// A flow takes at most so many windows, and an application so many turns, so that each script ends soon.
const MOST_WINDOWS: u64 = 40;
const MOST_TURNS: u64 = 60;
const PAUSE_MAX: Duration = Duration::from_millis(120);
const BIGGEST_FLOW: usize = 600_000;
