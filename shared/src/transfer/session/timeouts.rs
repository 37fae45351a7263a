//! What a session does when time has passed: it judges what has not been acknowledged.
//!
//! A process that gets no processor for a while finds its timers expired and acknowledgements unread in its sockets. So a session that is
//! called late reads first and judges afterwards: [`Recovery::listen_first`](crate::transfer::recovery::Recovery::listen_first).

use std::time::{Duration, Instant};

use super::{Event, Session};
use crate::{
    ids::PathId,
    transfer::path::{Path, PathState},
};

impl Session {
    /// When [`Session::handle_timeout`] is to be called at the latest.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let of_path = |path: &Path| {
            let probe_timeout = if path.is_active() { path.recovery.probe_timeout_at() } else { None };
            [path.acks.due(), path.recovery.loss_at(), probe_timeout, self.ping_at(path)].into_iter().flatten().min()
        };
        let others = [self.paced_until, self.credit_told_at(), self.next_call_at(), self.parcels.expires_at()];
        self.paths.values().filter_map(|path| of_path(path)).chain(others.into_iter().flatten()).min()
    }

    /// When a path is pinged next.
    pub(super) fn ping_at(&self, path: &Path) -> Option<Instant> {
        path.ping_at(self.limits.keep_alive, self.flows.len() > 1)
    }

    /// Does what is due at `now`. What it leads to comes out of [`Session::poll_transmit`].
    pub fn handle_timeout(&mut self, now: Instant) {
        let late_by = self.poll_timeout().map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.parcels.expire(now);
        let due: Vec<PathId> = self.paths.keys().copied().collect();
        for id in due {
            let Some(path) = self.paths.get_mut(&id) else { continue };
            let is_lossy = path.recovery.loss_at().is_some_and(|at| at <= now);
            let is_silent = path.is_active() && path.recovery.probe_timeout_at().is_some_and(|at| at <= now);
            if (is_lossy || is_silent) && late_by >= LATE && path.recovery.listen_first(now, late_by) {
                continue;
            }
            if is_lossy {
                let outcome = path.recovery.on_loss_timeout(now);
                self.settle(now, id, outcome, None);
            }
            let Some(path) = self.paths.get_mut(&id) else { continue };
            if path.is_active() && path.recovery.probe_timeout_at().is_some_and(|at| at <= now) {
                let pieces = path.become_suspect(now);
                self.events.push_back(Event::Path(id, PathState::Suspect));
                self.requeue(&pieces);
            }
        }
    }
}

/// A timer that is so late says that this end was away. Timers of a machine that is not busy are late by up to 2 ms.
const LATE: Duration = Duration::from_millis(5);

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        ids::FlowId,
        transfer::{
            control::AbortCode,
            path::{PathInfo, UNHEARD_MAX},
            schedule::Policy,
            session::{Limits, Read, Side, Transmit, transmit::CREDIT_DELAY},
        },
    };

    const PATH: PathId = PathId(1);
    const RTT: Duration = Duration::from_millis(2);
    const AWAY: Duration = Duration::from_millis(60);

    #[test]
    fn a_path_whose_acknowledgements_wait_unread_is_not_taken_for_silent() {
        let start = Instant::now();
        let (mut near, mut far) = ends(start);
        let sent = write(&mut near, start);
        let answers = exchange(&mut far, start + RTT / 2, sent);
        assert!(!answers.is_empty());
        let due = near.poll_timeout().expect("a probe timeout");
        let back = due + AWAY;
        near.handle_timeout(back);
        assert!(drain(&mut near, back).is_empty(), "nothing goes out again before what has arrived is read");
        for answer in answers {
            near.handle_datagram(back, PATH, answer.datagram).expect("an acknowledgement");
        }
        drain(&mut near, back);
        near.handle_timeout(back + LISTEN_AT_MOST);
        let status = near.path_status()[0];
        assert_eq!((status.state, status.counters.suspicions, status.counters.lost_datagrams), (PathState::Active, 0, 0));
    }

    #[test]
    fn a_path_that_is_silent_is_suspected_soon_after_its_own_end_was_away_however_late_that_is_again() {
        let start = Instant::now();
        let (mut near, _) = ends(start);
        write(&mut near, start);
        let back = near.poll_timeout().expect("a probe timeout") + AWAY;
        near.handle_timeout(back);
        let judged_at = near.poll_timeout().expect("a time to judge it");
        assert!(judged_at <= back + LISTEN_AT_MOST);
        near.handle_timeout(judged_at + AWAY);
        assert_eq!(near.path_status()[0].state, PathState::Suspect);
    }

    #[test]
    fn a_timer_that_is_on_time_judges_at_once() {
        let start = Instant::now();
        let (mut near, _) = ends(start);
        write(&mut near, start);
        near.handle_timeout(near.poll_timeout().expect("a probe timeout"));
        assert_eq!(near.path_status()[0].state, PathState::Suspect);
    }

    #[test]
    fn a_path_that_died_while_its_end_was_away_for_long_is_suspected_soon() {
        let start = Instant::now();
        let (mut near, mut far) = ends(start);
        let sent = write(&mut near, start);
        let answers = exchange(&mut far, start + RTT / 2, sent);
        let back = start + Duration::from_secs(100);
        near.handle_timeout(back);
        for answer in answers {
            near.handle_datagram(back, PATH, answer.datagram).expect("an acknowledgement");
        }
        assert_eq!(near.write(FlowId(1), &[7; 5000]), Ok(5000));
        assert!(!drain(&mut near, back).is_empty());
        serve(&mut near, back + Duration::from_secs(1), |_| {});
        assert_eq!(near.path_status()[0].state, PathState::Suspect);
    }

    #[test]
    fn what_is_in_flight_on_a_path_whose_number_is_used_again_goes_out_again() {
        let start = Instant::now();
        let (mut near, mut far) = ends(start);
        write(&mut near, start);
        near.add_path(start, PATH, PathInfo { weight: Default::default(), max_datagram_bytes: 1400, rtt: RTT });
        let again = drain(&mut near, start);
        exchange(&mut far, start, again);
        let mut came = 0;
        while let Read::Bytes(bytes) = far.read(FlowId(1), usize::MAX) {
            came += bytes.len();
        }
        assert_eq!(came, 5000);
    }

    #[test]
    fn credit_is_owed_for_a_while_so_that_what_many_flows_owe_is_told_at_once() {
        let start = Instant::now();
        let (mut near, mut far) = ends(start);
        for _ in 0..2 {
            let flow = near.open().expect("a flow");
            near.write(flow, &vec![7; Limits::default().initial_window as usize / 2]).expect("an open flow");
        }
        let mut now = start;
        while near.counters().delivered_bytes < Limits::default().initial_window {
            now += RTT / 2;
            for Transmit { datagram, .. } in drain(&mut near, now) {
                far.handle_datagram(now, PATH, datagram).expect("a datagram of the other end");
            }
            for Transmit { datagram, .. } in drain(&mut far, now + RTT) {
                near.handle_datagram(now + RTT, PATH, datagram).expect("an acknowledgement");
            }
            now += RTT;
        }
        for flow in [FlowId(1), FlowId(2)] {
            while let Read::Bytes(_) = far.read(flow, usize::MAX) {}
        }
        assert!(drain(&mut far, now).is_empty());
        let told_at = far.poll_timeout().expect("a time to tell of credit");
        assert!(told_at <= now + CREDIT_DELAY);
        assert_eq!(drain(&mut far, told_at).len(), 1);
    }

    #[test]
    fn a_path_that_falls_silent_in_a_download_is_asked_and_suspected_soon() {
        let (mut near, _, heard_at) = downloading();
        let asked_at = heard_at + UNHEARD_MAX;
        serve(&mut near, asked_at - Duration::from_millis(1), |sent| assert!(sent.is_empty(), "{sent:?}"));
        let judged_at = asked_at + near.paths[&PATH].recovery.probe_timeout();
        serve(&mut near, judged_at, |_| {});
        assert_eq!(near.path_status()[0].state, PathState::Suspect);
    }

    #[test]
    fn a_path_that_answers_is_asked_once_for_what_it_brought() {
        let (mut near, mut far, heard_at) = downloading();
        let asked_at = heard_at + UNHEARD_MAX;
        near.handle_timeout(asked_at);
        let pings = drain(&mut near, asked_at);
        let mut asked = pings.len();
        for answer in exchange(&mut far, asked_at + RTT / 2, pings) {
            near.handle_datagram(asked_at + RTT, PATH, answer.datagram).expect("an acknowledgement");
        }
        serve(&mut near, asked_at + KEEP_ALIVE - Duration::from_millis(1), |sent| asked += sent.len());
        assert_eq!((asked, near.path_status()[0].state), (1, PathState::Active));
    }

    #[test]
    fn nobody_is_asked_when_no_flow_is_open() {
        let (mut near, _, heard_at) = downloading();
        near.abort_all(AbortCode::Reset);
        near.release(FlowId(1));
        serve(&mut near, heard_at + KEEP_ALIVE / 2, |sent| assert!(sent.is_empty(), "{sent:?}"));
    }

    const LISTEN_AT_MOST: Duration = Duration::from_millis(20);
    const KEEP_ALIVE: Duration = Duration::from_secs(60);

    /// A proxy's end that has got, and acknowledged, the first bytes of a download, `reconst`'s, and when the last of them arrived.
    fn downloading() -> (Session, Session, Instant) {
        let start = Instant::now();
        let (mut near, mut far) = ends(start);
        near.limits.keep_alive = Some(KEEP_ALIVE);
        let request = write(&mut near, start);
        let mut answers = exchange(&mut far, start + RTT / 2, request);
        assert_eq!(far.write(FlowId(1), &[7; 5000]), Ok(5000));
        answers.extend(drain(&mut far, start + RTT));
        let heard_at = start + RTT * 2;
        for answer in answers {
            near.handle_datagram(heard_at, PATH, answer.datagram).expect("a datagram of the other end");
        }
        serve(&mut near, heard_at + RTT * 20, |sent| {
            for Transmit { datagram, .. } in sent {
                far.handle_datagram(heard_at + RTT * 20, PATH, datagram).expect("an acknowledgement");
            }
        });
        (near, far, heard_at)
    }

    /// Calls the timer whenever it is due, up to `until`, and shows what goes out.
    fn serve(session: &mut Session, until: Instant, mut look: impl FnMut(Vec<Transmit>)) {
        while let Some(due) = session.poll_timeout().filter(|due| *due <= until) {
            session.handle_timeout(due);
            look(drain(session, due));
        }
    }

    fn ends(now: Instant) -> (Session, Session) {
        let end = |side| {
            let mut session = Session::new(now, side, Policy::Adaptive, Limits::default());
            session.add_path(now, PATH, PathInfo { weight: Default::default(), max_datagram_bytes: 1400, rtt: RTT });
            session
        };
        (end(Side::Proxy), end(Side::Reconst))
    }

    fn write(session: &mut Session, now: Instant) -> Vec<Transmit> {
        let flow = session.open().expect("a flow");
        assert_eq!(session.write(flow, &[7; 5000]), Ok(5000));
        drain(session, now)
    }

    /// What `session` answers to `datagrams` once it is due.
    fn exchange(session: &mut Session, now: Instant, datagrams: Vec<Transmit>) -> Vec<Transmit> {
        for Transmit { datagram, .. } in datagrams {
            session.handle_datagram(now, PATH, datagram).expect("a datagram of the other end");
        }
        drain(session, session.poll_timeout().expect("an acknowledgement"))
    }

    fn drain(session: &mut Session, now: Instant) -> Vec<Transmit> {
        std::iter::from_fn(|| session.poll_transmit(now)).collect()
    }
}
