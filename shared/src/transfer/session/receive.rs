//! What arrives at a session: chunks, acknowledgements, the other end's messages.

use std::time::Instant;

use super::{CONTROL_WINDOW, Event, Session, SessionError, Side};
use crate::{
    ids::{FlowId, PathId},
    transfer::{
        congestion::{AckSample, LargestSent},
        control::{AbortCode, Message},
        flow::Flow,
        packet::{Ack, Chunk},
        path::PathState,
        recovery::AckOutcome,
        reorder::ReorderError,
        send_buffer::Piece,
    },
};

impl Session {
    pub(super) fn handle_chunk(&mut self, chunk: Chunk) -> Result<bool, SessionError> {
        let id = chunk.flow;
        if !self.flows.contains_key(&id) && !self.accept(id)? {
            return Ok(true);
        }
        let flow = self.flows.get_mut(&id).expect("is there or was accepted");
        if flow.aborted.is_some() {
            return Ok(true);
        }
        match flow.receive.insert(chunk.offset, chunk.bytes, chunk.fin) {
            Ok(is_readable) => {
                if id == FlowId::CONTROL {
                    self.read_control()?;
                } else if is_readable {
                    self.events.push_back(Event::Readable(id));
                }
                Ok(true)
            }
            Err(ReorderError::TooManyPieces) => Ok(false),
            Err(error) if id == FlowId::CONTROL => Err(SessionError::Control(error)),
            Err(_) => {
                self.abort_flow(id, AbortCode::Protocol);
                self.aborts_owed.push_back((id, AbortCode::Protocol));
                Ok(true)
            }
        }
    }

    /// Opens a flow that the other end speaks of for the first time; `false` if it is over already or can't be opened.
    pub(super) fn accept(&mut self, id: FlowId) -> Result<bool, SessionError> {
        if self.side == Side::Proxy || self.closed.contains(id.0) {
            return Ok(false);
        }
        if self.closed.len() > self.closed_gaps_limit() {
            return Err(SessionError::FlowNumbers);
        }
        if self.aborts_owed.len() >= REFUSALS_MAX {
            return Err(SessionError::Refusals);
        }
        if self.flows.len() > self.limits.flows {
            self.closed.insert(id.0..id.0 + 1);
            self.aborts_owed.push_back((id, AbortCode::TooManyFlows));
            return Ok(false);
        }
        self.flows.insert(id, Flow::new(self.limits.initial_window));
        self.counters.flows += 1;
        self.events.push_back(Event::Opened(id));
        Ok(true)
    }

    pub(super) fn closed_gaps_limit(&self) -> usize {
        (self.limits.flows * CLOSED_GAPS_PER_FLOW).max(CLOSED_GAPS_MIN)
    }

    pub(super) fn read_control(&mut self) -> Result<(), SessionError> {
        let control = self.flows.get_mut(&FlowId::CONTROL).expect("flow 0 is always there");
        if control.receive.is_complete() {
            return Err(SessionError::Control(ReorderError::EndMoved));
        }
        while let Some(bytes) = control.receive.read(usize::MAX) {
            self.control_in.push(&bytes);
        }
        let consumed = control.receive.consumed();
        control.receive.raise_limit(consumed + CONTROL_WINDOW);
        while let Some(message) = self.control_in.next_message()? {
            match message {
                Message::Credit { flow: id, limit } => {
                    if let Some(flow) = self.flows.get_mut(&id) {
                        flow.send.on_credit(limit);
                        self.enqueue(id);
                    }
                }
                Message::Leave { path: id, why } => {
                    if let Some(path) = self.paths.get_mut(&id)
                        && !path.is_leaving
                    {
                        path.is_leaving = true;
                        self.events.push_back(Event::Leave(id, why));
                    }
                }
                Message::Full { path } => {
                    if let Some(path) = self.paths.get_mut(&path) {
                        path.counters.told_full += 1;
                    }
                }
                Message::Policy { policy } => {
                    if self.side == Side::Reconst {
                        self.scheduler.set_policy(policy);
                    }
                }
                Message::Roster { lines } if self.side == Side::Proxy => {
                    self.roster = lines;
                    self.events.push_back(Event::Roster);
                }
                Message::Quotas { quotas } if self.side == Side::Proxy => {
                    self.quotas = quotas;
                    self.events.push_back(Event::Quotas);
                }
                Message::FairRate { path, rate } if self.side == Side::Proxy => {
                    self.set_fair_rate(path, Some(rate).filter(|rate| *rate > 0));
                }
                // A proxy has none to tell.
                Message::Roster { .. } | Message::Quotas { .. } | Message::FairRate { .. } => {}
                Message::Abort { flow, code } => {
                    if self.flows.contains_key(&flow) {
                        self.abort_flow(flow, code);
                    } else if self.side == Side::Reconst && self.closed.len() <= self.closed_gaps_limit() {
                        self.closed.insert(flow.0..flow.0 + 1);
                    }
                }
            }
        }
        Ok(())
    }

    /// Ends a flow on this end and tells the application.
    pub(super) fn abort_flow(&mut self, id: FlowId, code: AbortCode) {
        let Some(flow) = self.flows.get_mut(&id) else { return };
        if id == FlowId::CONTROL || flow.aborted.is_some() {
            return;
        }
        self.retained -= flow.send.retained();
        flow.abort(code);
        self.drop_parcels(id);
        self.events.push_back(Event::Readable(id));
        self.events.push_back(Event::Writable(id));
        self.events.push_back(Event::Parcel(id));
        self.events.push_back(Event::Aborted(id));
        self.forget_if_over(id);
    }

    pub(super) fn forget_if_over(&mut self, id: FlowId) {
        let Some(flow) = self.flows.get(&id) else { return };
        if !flow.is_released || !flow.is_over() {
            return;
        }
        self.grown -= flow.window - self.limits.initial_window;
        if flow.is_in_line {
            self.line.leave(id);
        }
        self.drop_parcels(id);
        self.flows.remove(&id);
        self.credit_owed.remove(&id);
        if self.side == Side::Reconst {
            self.closed.insert(id.0..id.0 + 1);
        }
    }

    pub(super) fn handle_ack(&mut self, now: Instant, ack: &Ack) {
        let Some(path) = self.paths.get_mut(&ack.path) else { return };
        let outcome = path.recovery.on_ack(now, ack);
        if outcome.acked_bytes > 0 && path.on_sign_of_life(now) {
            self.events.push_back(Event::Path(ack.path, PathState::Active));
        }
        self.settle(now, ack.path, outcome, Some(ack));
    }

    /// Works in what an acknowledgement or a timer decided about a path's datagrams.
    pub(super) fn settle(&mut self, now: Instant, id: PathId, outcome: AckOutcome, ack: Option<&Ack>) {
        let Some(path) = self.paths.get_mut(&id) else { return };
        path.counters.lost_datagrams += outcome.lost_datagrams;
        path.counters.acked_bytes += outcome.acked_bytes;
        let rtt = path.recovery.rtt();
        let sample = AckSample {
            acked_bytes: outcome.acked_bytes,
            lost_bytes: outcome.lost_bytes,
            spurious_bytes: outcome.spurious_bytes,
            largest_sent: outcome.largest_sent.map(|(at, bytes)| LargestSent {
                at,
                at_us: at.saturating_duration_since(self.epoch).as_micros() as u64,
                bytes,
            }),
            received_at_us: ack.map_or(0, |ack| ack.received_at_us),
            rtt: rtt.latest(),
            smoothed_rtt: rtt.smoothed(),
            ack_delay: path.recovery.ack_delay(),
            in_flight: path.recovery.in_flight_bytes(),
        };
        path.congestion.on_ack(now, &sample);
        for piece in &outcome.acked {
            self.on_piece_acked(piece);
        }
        self.requeue(&outcome.lost);
    }

    pub(super) fn on_piece_acked(&mut self, piece: &Piece) {
        let Some(flow) = self.flows.get_mut(&piece.flow) else { return };
        let freed = flow.send.on_acked(piece);
        if piece.flow == FlowId::CONTROL {
            return;
        }
        self.counters.delivered_bytes += freed;
        self.retained -= freed;
        if freed > 0 {
            self.offer_room(piece.flow);
        }
        self.forget_if_over(piece.flow);
    }

    pub(super) fn requeue(&mut self, pieces: &[Piece]) {
        for piece in pieces {
            if let Some(flow) = self.flows.get_mut(&piece.flow)
                && flow.aborted.is_none()
            {
                flow.send.on_lost(piece);
                self.enqueue(piece.flow);
            }
        }
    }
}

/// Aborts that wait for the other end to take them, when it opens another flow: more than an honest one has flows.
const REFUSALS_MAX: usize = 8192;

/// Gaps in the numbers of closed flows, per flow that may be open: honest numbers have one a flow. And at least, since the other end may
/// open more flows than this one takes.
const CLOSED_GAPS_PER_FLOW: usize = 2;
const CLOSED_GAPS_MIN: usize = 8192;

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::transfer::{
        packet::DatagramWriter,
        path::PathInfo,
        schedule::Policy,
        session::{Limits, Side},
    };

    #[test]
    fn a_peer_that_opens_flows_without_end_and_takes_no_refusal_ends_its_session() {
        let now = Instant::now();
        let mut session = Session::new(now, Side::Reconst, Policy::Adaptive, Limits { flows: 4, ..Limits::default() });
        session.add_path(now, PathId(1), PathInfo { weight: Default::default(), max_datagram_bytes: 1400, rtt: Duration::from_millis(10) });
        let ended = (1..200_000).find_map(|flow| {
            let mut writer = DatagramWriter::new(1400, None);
            writer.put_chunk(FlowId(flow), 0, false, 1, false, |out| out.extend_from_slice(b"x"));
            let ended = session.handle_datagram(now, PathId(1), writer.finish()).err();
            while session.poll_transmit(now).is_some() {}
            ended
        });
        assert_eq!(ended, Some(SessionError::Refusals));
        assert!(session.aborts_owed.len() <= REFUSALS_MAX);
    }
}
