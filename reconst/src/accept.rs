//! The users' sessions: paths in at the data ports (`paths`), flows out to content servers (`flows`).
//!
//! Enters: QUIC connections through the LAN's relays. A connection is a path of a user's session once its certificate is that of a
//! member of this LAN and it has joined; until then it costs little, and never for longer than 15 s. Leaves: the bytes of
//! each flow to and from its content server. A session without paths is kept for [`KEPT_WITHOUT_PATHS`] so that its flows go on,
//! unless its proxy has ended it.

mod flows;
mod over_lines;
mod paths;
mod report;
mod seats;

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use rand::RngExt;
use shared::{
    community::{
        listed::{self, ListedLine},
        member::{Identity, Name},
        quota::told::{self, ToldQuota},
    },
    ids::{LanId, PathId, SessionId},
    link::{
        CLOSE_LEAVING,
        session::{KEPT_WITHOUT_PATHS, SessionHandle},
    },
    transfer::{
        control::{AbortCode, Leaving},
        join::{JoinReply, JoinRequest, SessionSecret},
        path::PathStatus,
        schedule::Policy,
        session::{Limits, Side},
    },
};

use self::seats::{Seat, Seats};
pub use self::{
    over_lines::{PathOverLine, SessionOverLines},
    paths::serve,
    report::{SessionPlace, SessionReport},
};
use crate::{
    accounts::Accounts,
    dedicated::DedicatedPorts,
    egress::Egress,
    enrol::Enroller,
    fair::FairRate,
    quota::{Keeper, Spending},
    roster::LineKey,
};

/// The sessions of all LANs served here, and what their flows need; clones share it.
#[derive(Clone)]
pub struct Sessions {
    inner: Arc<Inner>,
}

struct Inner {
    accounts: Accounts,
    keeper: Keeper,
    egress: Egress,
    enroller: Enroller,
    policy: Policy,
    udp_idle: Duration,
    sessions: Mutex<HashMap<SessionKey, Entry>>,
    open_flows: AtomicUsize,
    open_udp_flows: AtomicUsize,
    dedicated: DedicatedPorts,
}

/// A session's name counts only together with the member that it belongs to.
type SessionKey = (Identity, SessionId);

#[derive(Clone)]
struct Entry {
    handle: SessionHandle,
    secret: SessionSecret,
    incarnation: u64,
    lan_name: Name,
    lines: Arc<Mutex<BTreeMap<PathId, (LineKey, IpAddr)>>>,
    seats: Seats,
    /// From which the session's flows are spent.
    account: Arc<Mutex<Arc<Spending>>>,
    /// What its user was told of quotas last.
    told_quotas: Arc<Mutex<Vec<ToldQuota>>>,
}

/// Sessions of one user at once: a user's few PCs, each started anew a few times within [`KEPT_WITHOUT_PATHS`].
const SESSIONS_PER_USER: usize = 32;

impl Sessions {
    /// No sessions yet.
    pub(crate) fn new(
        accounts: Accounts,
        keeper: Keeper,
        egress: Egress,
        enroller: Enroller,
        dedicated: DedicatedPorts,
        policy: Policy,
        udp_idle: Duration,
    ) -> Self {
        let inner = Inner {
            accounts,
            keeper,
            egress,
            enroller,
            policy,
            udp_idle,
            sessions: Mutex::default(),
            open_flows: AtomicUsize::new(0),
            open_udp_flows: AtomicUsize::new(0),
            dedicated,
        };
        Self { inner: Arc::new(inner) }
    }

    /// Begins a session, as its first path does.
    #[cfg(test)]
    pub(crate) async fn begin(&self, member: &crate::accounts::Member, request: &JoinRequest) {
        let account = self.inner.keeper.spending(member).await.expect("the store answers");
        let key = (member.identity.clone(), request.session);
        assert!(self.inner.find_or_begin(&key, request, account).is_ok(), "one session more");
    }

    /// The figures of the paths of `user`, over all its sessions.
    pub fn paths_of(&self, user: &Identity) -> Vec<PathStatus> {
        let handles: Vec<_> = self.inner.lock().iter().filter(|(key, _)| key.0 == *user).map(|(_, entry)| entry.handle.clone()).collect();
        handles.iter().flat_map(SessionHandle::path_status).collect()
    }

    /// All sessions by incarnation, with their LANs.
    pub fn incarnations(&self) -> Vec<(u64, LanId)> {
        self.inner.lock().iter().map(|(key, entry)| (entry.incarnation, key.0.lan)).collect()
    }

    /// Tells a session its LAN's roster, and goes by the weights in it.
    pub fn tell_lines(&self, incarnation: u64, lan: LanId, lines: &[ListedLine]) {
        let entry = self.inner.lock().values().find(|entry| entry.incarnation == incarnation).cloned();
        let Some(entry) = entry else { return };
        for (path, (key, _)) in entry.lines() {
            let line = lines.iter().find(|line| (lan, &line.relay, line.line) == (key.0, &key.1, key.2));
            if let Some(line) = line {
                entry.handle.set_weight(path, line.weights.down);
            }
        }
        entry.handle.tell_roster(listed::encode(lines).into());
    }

    /// Has paths go by what is fair for them, by their sessions' incarnations, and tells it to their other ends.
    pub(crate) fn set_fair_rates(&self, rates_by_session: &HashMap<u64, Vec<FairRate>>) {
        if rates_by_session.is_empty() {
            return;
        }
        let entries: Vec<_> = self.inner.lock().values().cloned().collect();
        for entry in entries {
            for rate in rates_by_session.get(&entry.incarnation).into_iter().flatten() {
                entry.handle.set_fair_rates(rate.path, rate.down, rate.up);
            }
        }
    }

    /// Tells each session what its user may use and has, if that is news.
    pub fn tell_quotas(&self) {
        let entries: Vec<_> = self.inner.lock().values().cloned().collect();
        for entry in entries {
            let now = entry.account().told();
            let mut told = entry.told_quotas.lock().expect("nothing panics under the lock");
            if now.len() != told.len() || now.iter().zip(&*told).any(|(now, before)| now.is_news_after(before)) {
                entry.handle.tell_quotas(told::encode(&now).into());
                *told = now;
            }
        }
    }

    /// Has all paths over a line left in order.
    pub fn leave_line(&self, line: &LineKey) {
        let entries: Vec<_> = self.inner.lock().values().cloned().collect();
        for entry in entries {
            for (path, _) in entry.lines().into_iter().filter(|(_, (key, _))| key == line) {
                entry.handle.leave_path(path, Leaving::Ends);
            }
        }
    }

    /// The ports that the flows have.
    pub fn dedicated_ports(&self) -> &DedicatedPorts {
        &self.inner.dedicated
    }

    /// The number of flows that are open now.
    pub fn open_flows(&self) -> usize {
        self.inner.open_flows.load(Ordering::Relaxed)
    }

    /// Those of them that are UDP.
    pub fn open_udp_flows(&self) -> usize {
        self.inner.open_udp_flows.load(Ordering::Relaxed)
    }

    /// Those of them that may come to an end soon: a UDP flow has none of its own.
    pub fn finishing_flows(&self) -> usize {
        self.open_flows().saturating_sub(self.open_udp_flows())
    }

    /// Ends the sessions of a LAN at once.
    pub(crate) fn close_lan(&self, lan: LanId, reason: &str) {
        let entries: Vec<_> = self.inner.lock().extract_if(|key, _| key.0.lan == lan).collect();
        for (_, entry) in entries {
            entry.handle.close(AbortCode::SessionLost, CLOSE_LEAVING, reason.as_bytes());
        }
    }

    /// Ends every session at once.
    pub fn close(&self, reason: &str) {
        let entries: Vec<_> = self.inner.lock().drain().collect();
        for (_, entry) in entries {
            entry.handle.close(AbortCode::SessionLost, CLOSE_LEAVING, reason.as_bytes());
        }
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, HashMap<SessionKey, Entry>> {
        self.sessions.lock().expect("nothing panics under the lock")
    }

    /// The session that `request` names, begun if it may be; else the reply that turns the path away.
    fn find_or_begin(
        self: &Arc<Self>,
        key: &SessionKey,
        request: &JoinRequest,
        account: Arc<Spending>,
    ) -> Result<(Entry, Seat), JoinReply> {
        let refused = |reason: &str| JoinReply::Refused { reason: reason.into() };
        let mut sessions = self.lock();
        if let Some(entry) = sessions.get(key) {
            if entry.secret != request.secret || request.incarnation.is_some_and(|incarnation| incarnation != entry.incarnation) {
                return Err(JoinReply::Unknown);
            }
            let seat = entry.seats.take(request.path).map_err(refused)?;
            return Ok((entry.clone(), seat));
        }
        if request.incarnation.is_some() {
            return Err(JoinReply::Unknown);
        }
        if sessions.keys().filter(|(user, _)| *user == key.0).count() >= SESSIONS_PER_USER {
            return Err(refused("the user has as many sessions as one may have"));
        }
        let handle = SessionHandle::new(Side::Reconst, self.policy, Limits::default());
        account.add_session(&handle);
        let entry = Entry {
            handle: handle.clone(),
            secret: request.secret,
            incarnation: rand::rng().random_range(1..=u64::MAX),
            lan_name: account.lan_name().clone(),
            lines: Arc::default(),
            seats: Seats::default(),
            account: Arc::new(Mutex::new(account)),
            told_quotas: Arc::default(),
        };
        let seat = entry.seats.take(request.path).map_err(refused)?;
        sessions.insert(key.clone(), entry.clone());
        drop(sessions);
        tracing::info!(user = %key.0, "session begins");
        tokio::spawn(self.clone().serve_flows(entry.clone(), key.clone()));
        tokio::spawn(self.clone().end_when_abandoned(handle, key.clone()));
        Ok((entry, seat))
    }

    /// Ends a session once it has been without paths for [`KEPT_WITHOUT_PATHS`].
    async fn end_when_abandoned(self: Arc<Self>, session: SessionHandle, key: SessionKey) {
        let mut count = session.path_count();
        loop {
            // The first path joins right after the session begins.
            let returned =
                tokio::time::timeout(KEPT_WITHOUT_PATHS, count.wait_for(|count| count.joined > 0 || count.is_closed)).await.is_ok();
            if !returned || session.is_closed() {
                break;
            }
            let is_gone = count.wait_for(|count| count.joined == 0 || count.is_closed).await.is_err();
            if is_gone || session.is_closed() {
                break;
            }
        }
        self.lock().remove(&key);
        session.close(AbortCode::SessionLost, CLOSE_LEAVING, b"the session was without paths for too long");
        tracing::info!(user = %key.0, "session ends");
    }
}

impl Entry {
    fn lines(&self) -> BTreeMap<PathId, (LineKey, IpAddr)> {
        self.lines.lock().expect("nothing panics under the lock").clone()
    }

    fn account(&self) -> Arc<Spending> {
        self.account.lock().expect("nothing panics under the lock").clone()
    }

    fn set_account(&self, account: Arc<Spending>) {
        let mut known = self.account.lock().expect("nothing panics under the lock");
        if !account.is_of_the_accounts_of(&known) {
            account.add_session(&self.handle);
        }
        *known = account;
    }

    fn note_line(&self, path: PathId, line: Option<(LineKey, IpAddr)>) {
        let mut lines = self.lines.lock().expect("nothing panics under the lock");
        match line {
            Some(line) => lines.insert(path, line),
            None => lines.remove(&path),
        };
    }
}
