//! Plays a [`Script`] and judges it: every byte in order and once, or an abort that the script explains; an end in bounded time; memory
//! within bounds; and nothing left behind.

mod playing;

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    time::{Duration, Instant},
};

use rand::{SeedableRng, rngs::StdRng};
use shared::{
    ids::{FlowId, PathId},
    transfer::{
        control::AbortCode,
        parcel,
        path::PathState,
        session::{Event, Limits, SessionError, Side},
    },
};
use thiserror::Error;

use super::{
    application::{Application, State},
    parcels::Correspondent,
    script::{FlowPlan, Malice, Script},
    world::{Fault, Occurrence, SIDES, World},
};

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
