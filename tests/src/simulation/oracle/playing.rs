//! What a [`Script`](super::Script) has happen: flows open, applications act, lines change, and somebody forges.

use std::{
    cmp::Reverse,
    time::{Duration, Instant},
};

use rand::RngExt;
use shared::{
    ids::{FlowId, PathId},
    transfer::{
        control::Leaving,
        session::{Event, Side},
    },
};

use super::{Play, Violation};
use crate::{
    line::{Conditions, Loss},
    simulation::{
        application::{Application, State},
        forgery::forged,
        parcels::Correspondent,
        script::{Act, ApplicationPlan, FlowPlan, Malice},
        world::{SIDES, other},
    },
};

impl Play<'_> {
    /// Does what the script and the applications do now.
    pub(super) fn act(&mut self) -> Result<(), Violation> {
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

    pub(super) fn react(&mut self, side: Side, event: Event) -> Result<(), Violation> {
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
}

/// The loss that stays when all lines work.
const CALM_LOSS: f64 = 0.2;
const CALM_BURST: f64 = 2.0;
