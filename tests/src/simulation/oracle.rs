//! Plays a [`Script`] and judges it: every byte in order and once, or an abort that the script explains; an end in bounded time; memory
//! within bounds; and nothing left behind.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    time::{Duration, Instant},
};

use rand::{RngExt, SeedableRng, rngs::StdRng};
use shared::{
    ids::{FlowId, PathId},
    transfer::{
        control::{AbortCode, Leaving},
        parcel,
        path::PathState,
        session::{Event, Limits, SessionError, Side},
    },
};
use thiserror::Error;

use super::{
    application::{Application, State},
    forgery::forged,
    parcels::Correspondent,
    script::{Act, ApplicationPlan, FlowPlan, Malice, Script},
    world::{Fault, Occurrence, SIDES, World, other},
};
use crate::line::{Conditions, Loss};

/// What a script came to.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Verdict {
    /// Ends of flows that came to their end, were let go of as planned, and were aborted.
    pub complete: u32,
    /// See `complete`.
    pub reset: u32,
    /// See `complete`.
    pub aborted: u32,
    /// Datagrams sent.
    pub datagrams: u64,
    /// Parcels sent, and parcels that arrived.
    pub parcels_sent: u32,
    /// See `parcels_sent`.
    pub parcels_arrived: u32,
    /// Whether forged datagrams ended the session.
    pub was_broken: bool,
    /// The virtual time that it took.
    pub took: Duration,
}

/// What is wrong.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum Violation {
    /// A core broke its contract.
    #[error(transparent)]
    Fault(#[from] Fault),
    /// Genuine datagrams, delivered again, ended the session.
    #[error("{0:?} ended the session at a replayed datagram: {1}")]
    Replay(Side, SessionError),
    /// Wrong bytes.
    #[error("{0}")]
    Bytes(String),
    /// A flow that ended for no reason of the script's.
    #[error("{0} at {1:?} is {2:?} for no reason")]
    Unjustified(FlowId, Side, State),
    /// Not done in time.
    #[error("not done in time: {0}")]
    Hang(String),
    /// More memory than the limits allow.
    #[error("{0:?} takes {1} bytes where {2} are the bound")]
    Memory(Side, u64, u64),
    /// Flows or memory that stay when all is over.
    #[error("{0:?} keeps {1} flows and {2} bytes when all is over")]
    Left(Side, usize, u64),
    /// Paths that don't come back, or datagrams without end.
    #[error("no rest when all is over: {0}")]
    Unrest(String),
}

/// Plays `script`; tells what happens on standard error if `is_traced`.
///
/// # Errors
/// The first thing that is wrong.
pub fn play(script: &Script, is_traced: bool) -> Result<Verdict, Violation> {
    Play::new(script, is_traced).run()
}

struct Play<'a> {
    script: &'a Script,
    is_traced: bool,
    world: World,
    random: StdRng,
    applications: BTreeMap<(FlowId, Side), Application>,
    correspondents: BTreeMap<(FlowId, Side), Correspondent>,
    wakes: BinaryHeap<Reverse<(Instant, FlowId, Side)>>,
    /// The flows of the script by number, in the order in which they opened.
    plan_by_flow: BTreeMap<FlowId, usize>,
    next_flow: usize,
    next_act: usize,
    next_path: u32,
    /// Paths that one side has yet to learn of: when, which, over which line.
    joining: Vec<(Instant, PathId, usize)>,
    was_broken: bool,
    looks: u32,
}

impl<'a> Play<'a> {
    fn new(script: &'a Script, is_traced: bool) -> Self {
        let mut world = World::new(script.policy, script.proxy_limits, script.reconst_limits);
        for (place, (up, down)) in script.lines.iter().enumerate() {
            world.add_line(*up, *down, script.seed.wrapping_mul(31).wrapping_add(place as u64));
        }
        world.set_timer_tick(script.timer_tick);
        if script.malice != Malice::None {
            world.keep_recent(RECENT_KEPT);
        }
        Self {
            script,
            is_traced,
            world,
            random: StdRng::seed_from_u64(!script.seed),
            applications: BTreeMap::new(),
            correspondents: BTreeMap::new(),
            wakes: BinaryHeap::new(),
            plan_by_flow: BTreeMap::new(),
            next_flow: 0,
            next_act: 0,
            next_path: 0,
            joining: Vec::new(),
            was_broken: false,
            looks: 0,
        }
    }

    fn run(mut self) -> Result<Verdict, Violation> {
        let end = self.script.calm_from + self.patience();
        loop {
            self.act()?;
            if self.was_broken || self.is_over() {
                break;
            }
            let until = self.next_stop(self.world.at(end));
            match self.world.advance(until) {
                Ok(Occurrence::Event(side, event)) => self.react(side, event)?,
                Ok(Occurrence::Reached) if self.world.elapsed() >= end => {
                    if self.script.malice == Malice::Forge {
                        break;
                    }
                    return Err(Violation::Hang(self.describe()));
                }
                Ok(Occurrence::Reached) => {}
                // What was forged may have reached a control flow and broken it later.
                Err(Fault::Session(..)) if self.script.malice == Malice::Forge => self.was_broken = true,
                Err(fault) => return Err(fault.into()),
            }
            self.check_memory()?;
        }
        let verdict = self.verdict();
        match self.script.malice {
            Malice::Forge => self.end_by_force()?,
            Malice::None | Malice::Replay => self.check_aftermath()?,
        }
        Ok(verdict)
    }

    /// Does what the script and the applications do now.
    fn act(&mut self) -> Result<(), Violation> {
        let now = self.world.now();
        while let Some(place) = self.joining.iter().position(|(at, ..)| *at <= now) {
            let (_, path, line) = self.joining.swap_remove(place);
            self.trace(|| format!("Proxy learns of {path} over line {line}"));
            self.world.join(Side::Proxy, path, line, self.script.weights[line]);
        }
        while let Some((at, act)) = self.script.acts.get(self.next_act)
            && self.world.at(*at) <= now
        {
            self.next_act += 1;
            self.perform(*act)?;
        }
        while let Some(plan) = self.script.flows.get(self.next_flow)
            && self.world.at(plan.opens_at) <= now
        {
            let Some(flow) = self.world.end(Side::Proxy).open() else { break };
            self.trace(|| format!("{flow} opens: {plan:?}"));
            self.plan_by_flow.insert(flow, self.next_flow);
            self.next_flow += 1;
            self.begin(now, flow, Side::Proxy)?;
        }
        while let Some(Reverse((at, flow, side))) = self.wakes.peek().copied()
            && at <= now
        {
            self.wakes.pop();
            self.wake(flow, side)?;
        }
        for ((_, side), correspondent) in &mut self.correspondents {
            if correspondent.acts_at().is_some_and(|at| at <= now) {
                correspondent.act(now, self.world.end(*side));
            }
        }
        Ok(())
    }

    fn perform(&mut self, act: Act) -> Result<(), Violation> {
        self.trace(|| format!("{act:?}"));
        match act {
            Act::Line(line, side, conditions) => self.world.set_conditions(line, side, conditions),
            Act::LearnSize(line, side) => self.world.learn_max_datagram(side, line),
            Act::Leave(line, side) => {
                if let Some(path) = self.newest_path(line, side) {
                    // Every other one in order: it stays, for what is under way and as the last resort.
                    match self.next_act % 2 {
                        0 => self.world.end(side).leave_path(path, Leaving::Ends),
                        _ => self.world.leave(side, path),
                    }
                }
            }
            Act::Join(line, skew) => self.join(line, skew),
            Act::Inject => self.inject()?,
            Act::Calm => self.calm(),
        }
        Ok(())
    }

    fn join(&mut self, line: usize, skew: Duration) {
        let path = PathId(self.next_path);
        self.next_path += 1;
        self.world.join(Side::Reconst, path, line, self.script.weights[line]);
        self.joining.push((self.world.now() + skew, path, line));
        if skew.is_zero() {
            let (_, path, line) = self.joining.pop().expect("pushed above");
            self.world.join(Side::Proxy, path, line, self.script.weights[line]);
        }
    }

    /// Repairs all lines, lets the ends know of their sizes, and gives each line a path that both know.
    fn calm(&mut self) {
        for (path, line) in self.joining.drain(..).map(|(_, path, line)| (path, line)).collect::<Vec<_>>() {
            self.world.join(Side::Proxy, path, line, self.script.weights[line]);
        }
        for line in 0..self.script.lines.len() {
            for side in SIDES {
                let conditions = self.world.conditions(line, side);
                // A burst is counted in packets: on a path that only gets probes, a long one lasts for minutes.
                let Loss { fraction, burst_packets } = conditions.loss;
                let loss = Loss { fraction: fraction.min(CALM_LOSS), burst_packets: burst_packets.min(CALM_BURST) };
                self.world.set_conditions(line, side, Conditions { is_out: false, loss, ..conditions });
                self.world.learn_max_datagram(side, line);
            }
            for side in SIDES {
                let across = self.world.paths(other(side));
                let known_here_alone = |(path, of): (&PathId, &usize)| (*of == line && !across.contains_key(path)).then_some(*path);
                let alone: Vec<PathId> = self.world.paths(side).iter().filter_map(known_here_alone).collect();
                alone.into_iter().for_each(|path| self.world.leave(side, path));
            }
            if self.newest_path(line, Side::Proxy).is_none() {
                self.join(line, Duration::ZERO);
            }
        }
    }

    fn newest_path(&self, line: usize, side: Side) -> Option<PathId> {
        self.world.paths(side).iter().filter(|(_, of)| **of == line).map(|(path, _)| *path).next_back()
    }

    /// Lets something arrive that nobody sent now.
    fn inject(&mut self) -> Result<(), Violation> {
        let recent = self.world.recent();
        if recent.is_empty() {
            return Ok(());
        }
        let (from, packet) = recent[self.random.random_range(0..recent.len())].clone();
        let mut side = other(from);
        let mut path = packet.path;
        let mut datagram = packet.datagram;
        if self.script.malice == Malice::Forge {
            if self.random.random_bool(0.2) {
                side = from;
            }
            if self.random.random_bool(0.2) {
                path = PathId(self.random.random_range(0..8));
            }
            datagram = forged(&mut self.random, &datagram);
        } else if !self.world.paths(side).contains_key(&path) {
            return Ok(());
        }
        match self.world.inject(side, path, datagram) {
            Ok(()) => Ok(()),
            Err(error) if self.script.malice == Malice::Forge => {
                self.trace(|| format!("{side:?} ends the session: {error}"));
                self.was_broken |= self.random.random_bool(0.5);
                Ok(())
            }
            Err(error) => Err(Violation::Replay(side, error)),
        }
    }

    fn react(&mut self, side: Side, event: Event) -> Result<(), Violation> {
        if !matches!(event, Event::Readable(_) | Event::Writable(_) | Event::Parcel(_)) {
            self.trace(|| format!("{side:?}: {event:?}"));
        }
        match event {
            Event::Opened(flow) => {
                let now = self.world.now();
                self.begin(now, flow, side)
            }
            Event::Readable(flow) => {
                if let Some(application) = self.applications.get_mut(&(flow, side)) {
                    application.on_readable();
                }
                self.wake(flow, side)
            }
            Event::Writable(flow) => {
                if let Some(application) = self.applications.get_mut(&(flow, side)) {
                    application.on_writable();
                }
                self.wake(flow, side)
            }
            Event::Parcel(flow) => match self.correspondents.get_mut(&(flow, side)) {
                Some(correspondent) => correspondent.receive(self.world.end(side)).map_err(Violation::Bytes),
                None => Ok(()),
            },
            Event::Aborted(_) | Event::Path(..) | Event::Leave(..) | Event::Roster | Event::Quotas => Ok(()),
        }
    }

    fn begin(&mut self, now: Instant, flow: FlowId, side: Side) -> Result<(), Violation> {
        let plan = self.plan_by_flow.get(&flow).map(|&place| &self.script.flows[place]);
        let own = |plan: &FlowPlan, side| if side == Side::Proxy { plan.proxy } else { plan.reconst };
        let application_plan = plan.map_or(ApplicationPlan::LISTENER, |plan| own(plan, side));
        let is_checked = self.script.malice != Malice::Forge;
        let expected = plan.filter(|_| is_checked).map(|plan| own(plan, other(side)).bytes);
        if plan.is_none() && is_checked {
            return Err(Violation::Bytes(format!("{flow} opened at {side:?} though nobody opened it")));
        }
        let application = Application::new(now, flow, side, application_plan, expected);
        if self.applications.insert((flow, side), application).is_some() {
            return Err(Violation::Bytes(format!("{flow} opened twice at {side:?}")));
        }
        if let Some(plan) = plan.and_then(|plan| plan.parcels) {
            self.world.end(side).carry_parcels(flow, plan.policy);
            self.correspondents.insert((flow, side), Correspondent::new(now, flow, side, plan, is_checked));
        }
        self.wake(flow, side)
    }

    fn wake(&mut self, flow: FlowId, side: Side) -> Result<(), Violation> {
        let now = self.world.now();
        let Some(application) = self.applications.get_mut(&(flow, side)) else { return Ok(()) };
        if application.state() != State::Open {
            return Ok(());
        }
        let next = application.act(now, self.world.end(side)).map_err(Violation::Bytes)?;
        self.wakes.extend(next.map(|at| Reverse((at, flow, side))));
        let state = application.state();
        if state == State::Open {
            return Ok(());
        }
        self.trace(|| format!("{flow} at {side:?} is {state:?}"));
        if matches!(state, State::Aborted(code) if !self.is_justified(flow, code)) {
            return Err(Violation::Unjustified(flow, side, state));
        }
        Ok(())
    }

    fn is_justified(&self, flow: FlowId, code: AbortCode) -> bool {
        let was_reset = SIDES.into_iter().any(|side| self.state(flow, side) == Some(State::Reset));
        match code {
            _ if self.script.malice == Malice::Forge => true,
            AbortCode::Reset => was_reset,
            AbortCode::TooManyFlows => self.script.reconst_limits.flows < self.script.flows.len(),
            AbortCode::Protocol | AbortCode::SessionLost => false,
        }
    }

    fn state(&self, flow: FlowId, side: Side) -> Option<State> {
        self.applications.get(&(flow, side)).map(Application::state)
    }

    /// Whether all that the script wants is done, and both ends have forgotten it.
    fn is_over(&self) -> bool {
        self.next_act == self.script.acts.len()
            && self.next_flow == self.script.flows.len()
            && self.applications.values().all(|application| application.state() != State::Open)
            && SIDES.into_iter().all(|side| self.world.session(side).open_flows() == 0)
    }

    fn next_stop(&self, end: Instant) -> Instant {
        let act = self.script.acts.get(self.next_act).map(|(at, _)| self.world.at(*at));
        let now = self.world.now();
        // A flow that could not be opened yet tries again.
        let flow = self.script.flows.get(self.next_flow).map(|plan| self.world.at(plan.opens_at).max(now + OPEN_AGAIN_AFTER));
        let wake = self.wakes.peek().map(|Reverse((at, ..))| *at);
        let parcel = self.correspondents.values().filter_map(Correspondent::acts_at).min();
        let joining = self.joining.iter().map(|(at, ..)| *at).min();
        // No event tells that an end has forgotten its last flow.
        let is_done = self.applications.values().all(|application| application.state() != State::Open);
        let look = is_done.then_some(now + LOOK_EVERY);
        [act, flow, wake, parcel, joining, look].into_iter().flatten().fold(end, Instant::min)
    }

    /// How long after all lines work everything must be done.
    fn patience(&self) -> Duration {
        let of_parcels = |flow: &FlowPlan| flow.parcels.map_or(0, |plan| 2 * u64::from(plan.count) * plan.bytes.1 as u64);
        let bytes: u64 = self.script.flows.iter().map(|flow| flow.proxy.bytes + flow.reconst.bytes + of_parcels(flow)).sum();
        let ways = || self.script.lines.iter().flat_map(|(up, down)| [up, down]);
        let slowest = ways().map(|way| way.rate.bits_per_second).min().unwrap_or(1);
        PATIENCE + Duration::from_secs_f64(bytes as f64 * 8.0 / slowest as f64) * 10
    }

    fn check_memory(&mut self) -> Result<(), Violation> {
        self.looks += 1;
        if !self.looks.is_multiple_of(MEMORY_LOOK_EVERY) {
            return Ok(());
        }
        for side in SIDES {
            let session = self.world.session(side);
            let bound = self.memory_bound(side);
            if session.memory_bytes() > bound {
                return Err(Violation::Memory(side, session.memory_bytes(), bound));
            }
        }
        Ok(())
    }

    /// What the limits allow: each flow its window, and what the application may write ahead.
    fn memory_bound(&self, side: Side) -> u64 {
        let limits: &Limits = if side == Side::Proxy { &self.script.proxy_limits } else { &self.script.reconst_limits };
        let flows = self.world.session(side).open_flows() as u64;
        let windows = flows * limits.initial_window + limits.window_growth.min(flows * (limits.max_window - limits.initial_window));
        let received = windows + windows / 2 + flows * PIECES_BYTES;
        let own = self.applications.iter().filter(|((_, of), _)| *of == side);
        let sent: u64 = own.map(|(_, application)| application.written().min(limits.max_window + self.written_ahead())).sum();
        let parcels = flows * (2 * parcel::FLOW_QUEUE_BYTES + parcel::FLOW_ASSEMBLY_BYTES) as u64;
        received + sent + parcels + CONTROL_BYTES
    }

    /// What a flow takes from its application ahead of what is sent: more on long fast lines.
    fn written_ahead(&self) -> u64 {
        let rates = self.script.lines.iter().map(|(_, down)| down.rate.bits_per_second / 8).sum::<u64>();
        (rates * 4).clamp(256 << 10, 4 << 20)
    }

    fn verdict(&self) -> Verdict {
        let count = |wanted: fn(State) -> bool| self.applications.values().filter(|application| wanted(application.state())).count() as u32;
        Verdict {
            complete: count(|state| state == State::Complete),
            reset: count(|state| state == State::Reset),
            aborted: count(|state| matches!(state, State::Aborted(_))),
            datagrams: self.world.sent_datagrams(),
            parcels_sent: self.correspondents.values().map(|end| end.counts().0).sum(),
            parcels_arrived: self.correspondents.values().map(|end| end.counts().1).sum(),
            was_broken: self.was_broken,
            took: self.world.elapsed(),
        }
    }

    /// After the last flow: nothing is left, all paths are back, and nobody sends any more.
    fn check_aftermath(&mut self) -> Result<(), Violation> {
        self.rest_for(LINGERS_FOR)?;
        let until = self.world.now() + SETTLES_IN;
        // What a path that came back just now has to tell may be under way.
        while let Some(left) = self.left() {
            if self.world.now() >= until {
                return Err(left);
            }
            self.rest_for(LOOK_EVERY)?;
        }
        while let Some(path) = self.path_out_of_service() {
            if self.world.now() >= until {
                return Err(Violation::Unrest(path));
            }
            self.rest_for(LOOK_EVERY)?;
        }
        if self.script.proxy_limits.keep_alive.is_some() {
            return Ok(());
        }
        let mut sent = 0;
        for _ in 0..QUIET_WITHIN {
            let before = self.world.sent_datagrams();
            self.rest_for(QUIET_FOR)?;
            sent = self.world.sent_datagrams() - before;
            if sent == 0 {
                return Ok(());
            }
        }
        Err(Violation::Unrest(format!("{sent} datagrams in {QUIET_FOR:?}")))
    }

    fn left(&self) -> Option<Violation> {
        SIDES.into_iter().find_map(|side| {
            let session = self.world.session(side);
            let (flows, bytes) = (session.open_flows(), session.memory_bytes());
            (flows > 0 || bytes > 0).then_some(Violation::Left(side, flows, bytes))
        })
    }

    fn path_out_of_service(&self) -> Option<String> {
        SIDES.into_iter().find_map(|side| {
            let status = self.world.session(side).path_status();
            let path = status.iter().find(|path| path.state != PathState::Active)?;
            Some(format!("{} is {:?} at {side:?}", path.path, path.state))
        })
    }

    fn rest_for(&mut self, time: Duration) -> Result<(), Violation> {
        let until = self.world.now() + time;
        loop {
            self.act()?;
            match self.world.advance(self.next_stop(until))? {
                Occurrence::Event(side, event) => self.react(side, event)?,
                Occurrence::Reached if self.world.now() >= until => return Ok(()),
                Occurrence::Reached => {}
            }
        }
    }

    /// Ends a session that anything may have been done to, as a driver does.
    fn end_by_force(&mut self) -> Result<(), Violation> {
        for side in SIDES {
            self.world.end(side).abort_all(AbortCode::SessionLost);
            let mut flows: Vec<FlowId> = self.applications.keys().filter(|(_, of)| *of == side).map(|(flow, _)| *flow).collect();
            while let Some(event) = self.world.end(side).poll_event() {
                flows.extend(if let Event::Opened(flow) = event { Some(flow) } else { None });
            }
            flows.into_iter().for_each(|flow| self.world.end(side).release(flow));
            let session = self.world.session(side);
            if session.open_flows() > 0 {
                return Err(Violation::Left(side, session.open_flows(), session.memory_bytes()));
            }
        }
        Ok(())
    }

    fn describe(&self) -> String {
        let open = self.applications.iter().filter(|(_, application)| application.state() == State::Open);
        let mut lines: Vec<String> = open.map(|(_, application)| format!("{application:?}")).collect();
        for side in SIDES {
            let session = self.world.session(side);
            lines.push(format!("{side:?}: {} flows, {} bytes", session.open_flows(), session.memory_bytes()));
            lines.extend(session.path_status().iter().map(|path| format!("{side:?}: {path:?}")));
        }
        lines.join("\n")
    }

    fn trace(&self, text: impl FnOnce() -> String) {
        if self.is_traced {
            eprintln!("{:>12.6} {}", self.world.elapsed().as_secs_f64(), text());
        }
    }
}

/// How long after all lines work everything is done, besides what the bytes take.
const PATIENCE: Duration = Duration::from_secs(120);

/// The loss that stays when all lines work.
const CALM_LOSS: f64 = 0.2;
const CALM_BURST: f64 = 2.0;

/// How long what is still under way may take to arrive: the deepest queue and the longest delay, and its answer.
const LINGERS_FOR: Duration = Duration::from_secs(10);

/// How long after that all paths are back: a dead path is probed every other second, and probes get lost too.
const SETTLES_IN: Duration = Duration::from_secs(90);

/// How long nothing is sent after that, and within so many such spans: a probe that got lost makes its path suspect once more.
const QUIET_FOR: Duration = Duration::from_secs(10);
const QUIET_WITHIN: u32 = 9;

/// The time after which a flow that could not be opened tries again.
const OPEN_AGAIN_AFTER: Duration = Duration::from_millis(50);

/// How often it is looked whether all is over when the applications are done.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// Datagrams kept to be replayed or forged.
const RECENT_KEPT: usize = 64;

/// Looking at the memory costs a walk over all flows.
const MEMORY_LOOK_EVERY: u32 = 8;

/// What the pieces that wait behind a hole cost a flow at least.
const PIECES_BYTES: u64 = 64 << 10;

/// The control flow's share.
const CONTROL_BYTES: u64 = 600 << 10;
