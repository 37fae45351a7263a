//! A line at work: packets of admitted clients to `reconst` and back.
//!
//! Enters: packets on the line's LAN port. Leaves: QUIC packets, opaque, to `reconst` and nowhere else; answers to `HELLO`s. Always
//! holds: what a stranger sends costs a look into a table; certificates are judged away from the packets' way ([`Judge`]), a bounded
//! number at a time. One task takes everything that comes from the LAN, so that the table of clients needs no lock; each client has a
//! task of its own for the way back, which sleeps while nothing comes: a thousand idle clients cost memory alone.

use std::{
    collections::BTreeMap,
    io,
    net::{IpAddr, SocketAddr},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use rustls::pki_types::UnixTime;
use shared::{
    community::{
        hello::{Admission, AdmissionConfig, AdmissionCounters, Answer, HelloRefusal, Judged, PendingHello, carry::is_enrol, is_quic},
        member::Identity,
        weight::Weights,
    },
    link::{credentials::Credentials, tls::MemberVerifier},
    service::Shutdown,
    share::allowance::Hold,
};
use tokio::{
    sync::{mpsc, watch},
    time::MissedTickBehavior,
};

use crate::{
    batch::{Errors, Packets},
    client::{Carried, Client, ClientAddress, Common},
    login::Upstream,
    strangers::Strangers,
};

/// Forwards for the clients of one line.
pub(crate) struct Forwarder {
    common: Arc<Common>,
    lan_address: SocketAddr,
    admission: Admission<Client>,
    strangers: Strangers,
    /// Where the LAN's paths are served, once `reconst` has said so.
    upstream: watch::Receiver<Upstream>,
    /// Why the owner holds the line back, if so.
    hold: watch::Receiver<Option<Hold>>,
    judge: mpsc::Sender<PendingHello>,
    judged: mpsc::Receiver<Judged>,
    register: Arc<Register>,
    shutdown: Shutdown,
    /// Since when there is nowhere to forward to: from the start, or because `reconst` has ended the relay's membership.
    nowhere_since: Option<Instant>,
}

/// What a line's status is read from.
#[derive(Debug, Default)]
pub(crate) struct Register {
    pub(crate) clients: Mutex<BTreeMap<SocketAddr, (Identity, Arc<Carried>)>>,
    pub(crate) counters: Mutex<LineCounters>,
}

/// What a line did not forward, each counted since the start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(crate) struct LineCounters {
    /// Packets of addresses that are not served.
    pub(crate) strangers: u64,
    /// Those who wanted to become members and were carried.
    pub(crate) strangers_carried: u64,
    /// `HELLO`s left unjudged because too many were waiting.
    pub(crate) unjudged: u64,
    /// What became of the others.
    pub(crate) admission: AdmissionCounters,
}

/// Judges certificates, for which a packet's way is too narrow.
pub(crate) struct Judge {
    pub(crate) credentials: Credentials,
    pub(crate) verifier: MemberVerifier,
    pub(crate) weights: watch::Receiver<Weights>,
    pub(crate) upstream: watch::Receiver<Upstream>,
}

impl Forwarder {
    /// A forwarder on the LAN socket of `common`.
    #[expect(clippy::too_many_arguments, reason = "the parts of one line")]
    pub(crate) fn new(
        common: Arc<Common>,
        admission: AdmissionConfig,
        strangers: Strangers,
        upstream: watch::Receiver<Upstream>,
        hold: watch::Receiver<Option<Hold>>,
        judge: Judge,
        register: Arc<Register>,
        shutdown: Shutdown,
    ) -> io::Result<Self> {
        let lan_address = common.lan.local_addr()?;
        let (pending_sender, pending) = mpsc::channel(PENDING_MAX);
        let (judged_sender, judged) = mpsc::channel(PENDING_MAX);
        tokio::spawn(judge.run(pending, judged_sender));
        let admission = Admission::new(admission, &rand::random(), Instant::now());
        Ok(Self {
            common,
            lan_address,
            admission,
            strangers,
            upstream,
            hold,
            judge: pending_sender,
            judged,
            register,
            shutdown,
            nowhere_since: None,
        })
    }

    /// Forwards until the future is dropped.
    pub(crate) async fn run(mut self) {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut errors = Errors::default();
        loop {
            let common = Arc::clone(&self.common);
            tokio::select! {
                readable = common.lan.readable() => {
                    let received = readable.and_then(|()| self.receive());
                    errors.pause_after(&received).await;
                }
                Some(judged) = self.judged.recv() => self.admit(judged),
                Ok(()) = self.upstream.changed() => {
                    self.remove_the_removed();
                    self.lead_the_lost();
                }
                _ = tick.tick() => self.tick(),
            }
        }
    }

    fn receive(&mut self) -> io::Result<()> {
        let (now, common) = (Instant::now(), Arc::clone(&self.common));
        for _ in 0..BATCHES_IN_A_ROW {
            common.lan.receive(|from, to, packets| self.handle_packets(now, from, to, packets))?;
        }
        Ok(())
    }

    fn handle_packets(&mut self, now: Instant, from: SocketAddr, to: Option<IpAddr>, packets: Packets<'_>) {
        let mut firsts = packets.contents.iter().step_by(packets.stride);
        if firsts.all(|&first| is_quic(first)) {
            return self.carry_up(now, from, packets);
        }
        for packet in packets.contents.chunks(packets.stride) {
            if is_quic(packet[0]) {
                self.carry_up(now, from, Packets { contents: packet, ..packets });
            } else {
                self.handle_hello(now, from, to, packet);
            }
        }
    }

    fn carry_up(&mut self, now: Instant, from: SocketAddr, packets: Packets<'_>) {
        match self.admission.client(now, from) {
            Some(client) => client.carry_up(now, packets),
            None => self.register.counters().strangers += self.strangers.carry_up(now, from, packets),
        }
    }

    fn handle_hello(&mut self, now: Instant, from: SocketAddr, to: Option<IpAddr>, packet: &[u8]) {
        let to = SocketAddr::new(to.unwrap_or(self.lan_address.ip()), self.lan_address.port());
        if is_enrol(packet[0]) {
            let login = if self.shutdown.is_draining() { Err(HelloRefusal::Draining) } else { self.login() };
            self.register.counters().strangers_carried += u64::from(self.strangers.handle_enrol(now, from, to.ip(), packet, login));
            return;
        }
        match self.admission.handle_hello(now, from, to, packet, self.obstacle()) {
            Answer::Nothing => (),
            Answer::Send(answer) => {
                self.common.lan.send(from, Some(to.ip()), Packets::one(&answer));
            }
            Answer::Judge(pending) => {
                if self.judge.try_send(pending).is_err() {
                    self.register.counters().unjudged += 1;
                }
            }
        }
    }

    fn login(&self) -> Result<SocketAddr, HelloRefusal> {
        self.upstream.borrow().login.ok_or(HelloRefusal::NotReady)
    }

    fn obstacle(&self) -> Option<HelloRefusal> {
        match (*self.hold.borrow(), self.upstream.borrow().data) {
            _ if self.shutdown.is_draining() => Some(HelloRefusal::Draining),
            (Some(Hold::Paused(_)), _) => Some(HelloRefusal::Paused),
            (Some(Hold::OutsideHours), _) => Some(HelloRefusal::OutsideHours),
            (Some(Hold::CapReached(_)), _) => Some(HelloRefusal::CapReached),
            (None, None) => Some(HelloRefusal::NotReady),
            (None, Some(_)) => None,
        }
    }

    fn admit(&mut self, judged: Judged) {
        let now = Instant::now();
        let (from, to, member) = (judged.from(), judged.to(), judged.member().cloned());
        let (common, reconst) = (&self.common, self.upstream.borrow().data);
        let open = || {
            let reconst = reconst.ok_or(HelloRefusal::NotReady)?;
            let (address, user) = (ClientAddress { client: from, relay: to.ip() }, member.clone().ok_or(HelloRefusal::NotAMember)?);
            Client::open(Arc::clone(common), address, user, reconst, now).map_err(|error| {
                tracing::warn!(client = %from, %error, "no socket over the line for another client");
                HelloRefusal::Full
            })
        };
        let (answer, _gone) = self.admission.admit(now, judged, open);
        self.common.lan.send(from, Some(to.ip()), Packets::one(&answer));
        match member {
            Some(member) => tracing::debug!(client = %from, %member, "admitted"),
            None => tracing::info!(client = %from, "refused: not a user of this LAN, or removed, or its certificate is not valid now"),
        }
        self.show();
    }

    fn mend(&mut self) {
        let now = Instant::now();
        self.admission.clients_mut().for_each(|client| client.mend(now));
    }

    /// Ends the service of users who are none any more.
    fn remove_the_removed(&mut self) {
        let removed = Arc::clone(&self.upstream.borrow_and_update().removed);
        let gone = self.admission.remove(&removed);
        if !gone.is_empty() {
            tracing::info!(clients = gone.len(), "served no more: reconst has removed their user");
            self.show();
        }
    }

    /// Leads clients whose paths are lost to the server that serves their LAN now: it does not know those paths, and tells their other ends so
    /// (RFC 9000 §10.3), which make new ones.
    fn lead_the_lost(&mut self) {
        let upstream = self.upstream.borrow();
        let Some(data) = upstream.data.filter(|_| upstream.is_data_all && upstream.is_logged_in) else { return };
        drop(upstream);
        let now = Instant::now();
        self.admission.clients_mut().for_each(|client| client.lead_to(now, data));
    }

    /// Ends all service a while after `reconst` has ended the relay's membership: until then what is under way arrives.
    fn end_if_nowhere(&mut self, now: Instant) {
        let is_nowhere = self.upstream.borrow().data.is_none();
        self.nowhere_since = is_nowhere.then(|| self.nowhere_since.unwrap_or(now));
        if self.nowhere_since.is_some_and(|since| now.saturating_duration_since(since) >= ENDS_AFTER) {
            self.admission.clear();
        }
    }

    fn tick(&mut self) {
        self.remove_the_removed();
        self.end_if_nowhere(Instant::now());
        self.strangers.expire(Instant::now());
        for (client, _) in self.admission.expire(Instant::now()) {
            tracing::debug!(%client, "silent for too long");
        }
        self.mend();
        self.show();
    }

    fn show(&self) {
        let shown = |(from, member, client): (SocketAddr, &Identity, &Client)| (from, (member.clone(), Arc::clone(client.carried())));
        *self.register.clients.lock().expect("nothing panics while it is held") = self.admission.clients().map(shown).collect();
        self.register.counters().admission = self.admission.counters();
    }
}

impl Register {
    fn counters(&self) -> std::sync::MutexGuard<'_, LineCounters> {
        self.counters.lock().expect("nothing panics while it is held")
    }
}

impl Judge {
    async fn run(self, mut pending: mpsc::Receiver<PendingHello>, judged: mpsc::Sender<Judged>) {
        while let Some(hello) = pending.recv().await {
            let verify = |certificate: &[u8], message: &[u8], signature: &[u8]| {
                let verified = self.verifier.verify(certificate, message, signature, UnixTime::now());
                verified.inspect_err(|error| tracing::debug!(%error, "request for service")).ok()
            };
            let weights = *self.weights.borrow();
            let is_removed = self.upstream.borrow().removed.contains(&hello.certificate_mark());
            let verdict = match is_removed {
                true => hello.refuse(HelloRefusal::Removed),
                false => {
                    let signer = self.credentials.signer();
                    hello.judge(weights, signer.certificate_der(), verify, |message| signer.sign(message))
                }
            };
            if judged.send(verdict).await.is_err() {
                return;
            }
        }
    }
}

/// The `HELLO`s that wait for their judgement: 64 take about 20 ms, within a proxy's first wait for an answer.
const PENDING_MAX: usize = 64;

/// Batches taken before timers and other tasks have their turn.
const BATCHES_IN_A_ROW: usize = 4;

/// How long paths through a relay that is none any more are carried: `reconst` closes them after as long.
const ENDS_AFTER: Duration = Duration::from_secs(3);

/// How often silent clients are looked for and broken sockets mended.
const TICK: Duration = Duration::from_secs(1);
