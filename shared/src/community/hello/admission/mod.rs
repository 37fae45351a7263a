//! Whom a relay serves on one line.
//!
//! Enters: `HELLO` packets with their addresses, and what a verifier made of those worth verifying. Leaves: answers, and the
//! clients admitted, each with something of the driver's (`T`: its socket). Always holds: an address is looked up, challenged
//! and refused without memory or costly work; at most [`AdmissionConfig::clients_max`] clients, of which
//! [`AdmissionConfig::clients_per_member_max`] belong to one member. Signatures, sockets and clocks are left to the driver.

mod judging;

use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
    time::{Duration, Instant},
};

use ring::hmac;

use self::judging::AdmittedProof;
pub use self::judging::{Judged, PendingHello};
use super::{Cookie, Hello, HelloRefusal, LineNumber, Reply, Request, put_address};
use crate::{
    community::{
        gate::Gate,
        member::{CertificateMark, Identity},
    },
    ids::LanId,
};

/// What a relay admits on one line.
#[derive(Clone, Debug)]
pub struct AdmissionConfig {
    /// The LAN whose users are served.
    pub lan: LanId,
    /// The line that the port serves.
    pub line: LineNumber,
    /// Addresses under which proxies reach the port beside its own: those of a port forwarding in between. Default none; without
    /// them proxies behind it are refused, with one that is not the relay's own a signed `HELLO` can be passed on from there.
    pub also_reached_as: Vec<SocketAddr>,
    /// The most addresses served at once. Default [`AdmissionConfig::CLIENTS_MAX`]; each takes a socket.
    pub clients_max: usize,
    /// The most addresses served at once for one member. Default [`AdmissionConfig::CLIENTS_PER_MEMBER_MAX`].
    pub clients_per_member_max: usize,
    /// How long a client may be silent. Default [`AdmissionConfig::IDLE`]; shorter than a path's keep-alive and paths die idle, much
    /// longer and those who left keep their places.
    pub idle: Duration,
}

/// The clients of one line, each with the driver's `T`, and the way to become one.
#[derive(Debug)]
pub struct Admission<T> {
    config: AdmissionConfig,
    clients: HashMap<SocketAddr, Client<T>>,
    key: hmac::Key,
    started: Instant,
    verifications: Gate,
    verifications_by_source: Box<[Gate; SOURCE_SLOTS]>,
    counters: AdmissionCounters,
}

/// What has become of the `HELLO`s, each counted since the start.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct AdmissionCounters {
    /// Led to a client's admission.
    pub admitted: u64,
    /// Were no `HELLO`.
    pub malformed: u64,
    /// Bore no cookie, or one that is too old or another address's.
    pub challenged: u64,
    /// Were refused, for whatever reason.
    pub refused: u64,
}

#[derive(Debug)]
struct Client<T> {
    member: Identity,
    proof: AdmittedProof,
    last_heard: Instant,
    inner: T,
}

/// What to do about a `HELLO`.
#[derive(Debug)]
pub enum Answer {
    /// Nothing.
    Nothing,
    /// Send this back.
    Send(Vec<u8>),
    /// Have it judged, away from the packets' way, and pass the outcome to [`Admission::admit`].
    Judge(PendingHello),
}

impl AdmissionConfig {
    /// The usual [`AdmissionConfig::clients_max`]: more than the paths of a large LAN.
    pub const CLIENTS_MAX: usize = 1024;
    /// The usual [`AdmissionConfig::clients_per_member_max`]: a proxy holds one address a path, and leaves some behind when it restarts.
    pub const CLIENTS_PER_MEMBER_MAX: usize = 64;
    /// The usual [`AdmissionConfig::idle`].
    pub const IDLE: Duration = Duration::from_secs(60);

    /// The usual limits for `line` of a relay of `lan`.
    pub fn new(lan: LanId, line: LineNumber) -> Self {
        Self {
            lan,
            line,
            also_reached_as: Vec::new(),
            clients_max: Self::CLIENTS_MAX,
            clients_per_member_max: Self::CLIENTS_PER_MEMBER_MAX,
            idle: Self::IDLE,
        }
    }
}

impl<T> Admission<T> {
    /// An admission without clients; `secret` is 32 random bytes that stay in this process.
    pub fn new(config: AdmissionConfig, secret: &[u8; 32], now: Instant) -> Self {
        Self {
            config,
            clients: HashMap::new(),
            key: hmac::Key::new(hmac::HMAC_SHA256, secret),
            started: now,
            verifications: Gate::default(),
            verifications_by_source: Box::new([Gate::default(); SOURCE_SLOTS]),
            counters: AdmissionCounters::default(),
        }
    }

    /// The client at `from`, if one was admitted there, which counts as hearing from it.
    pub fn client(&mut self, now: Instant, from: SocketAddr) -> Option<&mut T> {
        let client = self.clients.get_mut(&from)?;
        client.last_heard = now;
        Some(&mut client.inner)
    }

    /// Takes a packet that is not QUIC's, sent `from` there `to` the relay's address; `obstacle` is why the line serves nobody new
    /// right now, if it doesn't.
    pub fn handle_hello(
        &mut self,
        now: Instant,
        from: SocketAddr,
        to: SocketAddr,
        packet: &[u8],
        obstacle: Option<HelloRefusal>,
    ) -> Answer {
        let Ok(Hello { request, proof }) = Hello::decode(packet) else {
            self.counters.malformed += 1;
            return Answer::Nothing;
        };
        if request.lan != self.config.lan {
            return self.refuse(&request, HelloRefusal::WrongLan);
        }
        if request.line != LineNumber::ANY && request.line != self.config.line {
            return self.refuse(&request, HelloRefusal::WrongLine);
        }
        if let Some(obstacle) = obstacle {
            return self.refuse(&request, obstacle);
        }
        let window = self.window(now);
        let Some(proof) =
            proof.filter(|proof| [window, window.wrapping_sub(1)].iter().any(|&w| self.cookie_fits(w, from, &request, proof.cookie)))
        else {
            self.counters.challenged += 1;
            return Answer::Send(Reply::Challenge(self.cookie(window, from, &request)).encode(request.nonce));
        };
        if !self.is_own_address(to, request.relay) {
            return self.refuse(&request, HelloRefusal::WrongAddress);
        }
        match self.clients.get(&from) {
            Some(client) if client.proof.nonce == request.nonce && client.proof.signature == proof.signature => {
                return Answer::Send(client.proof.welcome.clone());
            }
            None if self.clients.len() >= self.config.clients_max => return self.refuse(&request, HelloRefusal::Full),
            _ => (),
        }
        if !self.may_verify(now, from) {
            return self.refuse(&request, HelloRefusal::Busy);
        }
        Answer::Judge(PendingHello {
            from,
            to,
            request,
            line: self.config.line,
            cookie: proof.cookie,
            certificate: proof.certificate,
            signature: proof.signature,
        })
    }

    /// Takes a judged `HELLO`, gives the packet to answer it with and the clients that had to go for it; `open` makes a new client's
    /// `T`.
    pub fn admit(&mut self, now: Instant, judged: Judged, open: impl FnOnce() -> Result<T, HelloRefusal>) -> (Vec<u8>, Vec<T>) {
        let Judged { from, nonce, outcome, .. } = judged;
        match outcome.and_then(|(member, proof)| self.place(now, from, member, proof, open)) {
            Ok(gone) => {
                self.counters.admitted += 1;
                (self.clients[&from].proof.welcome.clone(), gone)
            }
            Err(refusal) => {
                self.counters.refused += 1;
                (Reply::Refused(refusal).encode(nonce), Vec::new())
            }
        }
    }

    /// Removes the clients that have been silent for too long, and gives them in the order of their addresses.
    pub fn expire(&mut self, now: Instant) -> Vec<(SocketAddr, T)> {
        let idle = self.config.idle;
        let mut gone: Vec<_> = self
            .clients
            .extract_if(|_, client| now.saturating_duration_since(client.last_heard) >= idle)
            .map(|(from, client)| (from, client.inner))
            .collect();
        gone.sort_by_key(|(from, _)| *from);
        gone
    }

    /// Removes the clients that were admitted by one of these certificates, and gives them in no order.
    pub fn remove(&mut self, certificates: &BTreeSet<CertificateMark>) -> Vec<T> {
        self.clients.extract_if(|_, client| certificates.contains(&client.proof.certificate)).map(|(_, client)| client.inner).collect()
    }

    /// Removes all clients, and gives them in no order.
    pub fn clear(&mut self) -> Vec<T> {
        self.clients.drain().map(|(_, client)| client.inner).collect()
    }

    /// All clients: their addresses, members and `T`, in no order.
    pub fn clients(&self) -> impl Iterator<Item = (SocketAddr, &Identity, &T)> {
        self.clients.iter().map(|(from, client)| (*from, &client.member, &client.inner))
    }

    /// Every client's `T`, in no order.
    pub fn clients_mut(&mut self) -> impl Iterator<Item = &mut T> {
        self.clients.values_mut().map(|client| &mut client.inner)
    }

    /// What has become of the `HELLO`s.
    pub fn counters(&self) -> AdmissionCounters {
        self.counters
    }

    fn place(
        &mut self,
        now: Instant,
        from: SocketAddr,
        member: Identity,
        proof: AdmittedProof,
        open: impl FnOnce() -> Result<T, HelloRefusal>,
    ) -> Result<Vec<T>, HelloRefusal> {
        let mut gone = Vec::new();
        if let Some(client) = self.clients.get_mut(&from)
            && client.member == member
        {
            client.proof = proof;
            client.last_heard = now;
            return Ok(gone);
        }
        if !self.clients.contains_key(&from) && self.clients.len() >= self.config.clients_max {
            return Err(HelloRefusal::Full);
        }
        let own = self.clients.iter().filter(|(_, client)| client.member == member);
        if own.clone().count() >= self.config.clients_per_member_max
            && let Some(oldest) = own.min_by_key(|(address, client)| (client.last_heard, **address)).map(|(address, _)| *address)
        {
            gone.extend(self.clients.remove(&oldest).map(|client| client.inner));
        }
        let inner = open()?;
        gone.extend(self.clients.insert(from, Client { member, proof, last_heard: now, inner }).map(|client| client.inner));
        Ok(gone)
    }

    fn refuse(&mut self, request: &Request, refusal: HelloRefusal) -> Answer {
        self.counters.refused += 1;
        Answer::Send(Reply::Refused(refusal).encode(request.nonce))
    }

    fn is_own_address(&self, to: SocketAddr, signed: SocketAddr) -> bool {
        let is_same = |address: &SocketAddr| address.ip().to_canonical() == signed.ip().to_canonical() && address.port() == signed.port();
        is_same(&to) || self.config.also_reached_as.iter().any(is_same)
    }

    fn may_verify(&mut self, now: Instant, from: SocketAddr) -> bool {
        let mut source = SOURCE_CONTEXT.to_vec();
        super::put_ip(&mut source, from.ip());
        let slot = usize::from(hmac::sign(&self.key, &source).as_ref()[0]) % SOURCE_SLOTS;
        self.verifications_by_source[slot].take(now, SOURCE_INTERVAL, SOURCE_BURST)
            && self.verifications.take(now, VERIFICATION_INTERVAL, VERIFICATION_BURST)
    }

    fn window(&self, now: Instant) -> u64 {
        now.saturating_duration_since(self.started).as_secs() / COOKIE_WINDOW_SECS
    }

    fn cookie(&self, window: u64, from: SocketAddr, request: &Request) -> Cookie {
        let tag = hmac::sign(&self.key, &cookie_input(window, from, request));
        Cookie(tag.as_ref()[..16].try_into().expect("SHA-256 gives 32 bytes"))
    }

    fn cookie_fits(&self, window: u64, from: SocketAddr, request: &Request, cookie: Cookie) -> bool {
        let own = self.cookie(window, from, request);
        own.0.iter().zip(cookie.0).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
    }
}

fn cookie_input(window: u64, from: SocketAddr, request: &Request) -> Vec<u8> {
    let mut input = COOKIE_CONTEXT.to_vec();
    input.extend(window.to_be_bytes());
    put_address(&mut input, from);
    input.extend(request.nonce.0);
    input
}

const COOKIE_CONTEXT: &[u8] = b"cookie";
const SOURCE_CONTEXT: &[u8] = b"source";

/// A cookie serves for this long and once more: enough for any retransmission, short enough that an address that has changed hands
/// soon bears nobody's.
const COOKIE_WINDOW_SECS: u64 = 8;

/// Two verifications of Ed25519 take about 0.2 ms on a small PC: at most 10 % of it.
const VERIFICATION_INTERVAL: Duration = Duration::from_millis(2);

/// A LAN of 200 proxies that come back after a power cut.
const VERIFICATION_BURST: u32 = 200;

/// A household behind one address, or a host with a thousand proxies, is served within the minute; an address that only floods has a
/// fifth of the verifications, and of a burst of them a sixth.
const SOURCE_INTERVAL: Duration = Duration::from_millis(10);
const SOURCE_BURST: u32 = 32;

/// Addresses share this many gates by hash: memory stays the same whoever asks.
const SOURCE_SLOTS: usize = 256;

#[cfg(test)]
mod tests;
