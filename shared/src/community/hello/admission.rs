//! Whom a relay serves on one line.
//!
//! Enters: `HELLO` packets with their addresses, and what a verifier made of those worth verifying. Leaves: answers, and the
//! clients admitted, each with something of the driver's (`T`: its socket). Always holds: an address is looked up, challenged
//! and refused without memory or costly work; at most [`AdmissionConfig::clients_max`] clients, of which
//! [`AdmissionConfig::clients_per_member_max`] belong to one member. Signatures, sockets and clocks are left to the driver.

use std::{
    collections::{BTreeSet, HashMap},
    net::SocketAddr,
    time::{Duration, Instant},
};

use ring::hmac;

use super::{Cookie, Hello, HelloRefusal, LineNumber, Nonce, Reply, Request, WelcomeMessage, put_address, signed_hello, signed_welcome};
use crate::{
    community::{
        gate::Gate,
        member::{CertificateMark, Identity, Role},
        weight::Weights,
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

/// What a client was admitted by: the same again is a retransmission, which is answered without looking at it a second time.
#[derive(Debug)]
struct AdmittedProof {
    certificate: CertificateMark,
    nonce: Nonce,
    signature: Vec<u8>,
    welcome: Vec<u8>,
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

/// A `HELLO` whose sender receives at its address: worth two signature verifications.
#[derive(Debug)]
pub struct PendingHello {
    from: SocketAddr,
    to: SocketAddr,
    request: Request,
    line: LineNumber,
    cookie: Cookie,
    certificate: Vec<u8>,
    signature: Vec<u8>,
}

/// What became of a [`PendingHello`].
#[derive(Debug)]
pub struct Judged {
    from: SocketAddr,
    to: SocketAddr,
    nonce: Nonce,
    outcome: Result<(Identity, AdmittedProof), HelloRefusal>,
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

impl PendingHello {
    /// Judges the `HELLO`: `verify` is given certificate, message and signature and says whose they are; `sign` signs the `WELCOME`
    /// with the key of `certificate`, the relay's.
    pub fn judge(
        self,
        weights: Weights,
        certificate: &[u8],
        verify: impl FnOnce(&[u8], &[u8], &[u8]) -> Option<Identity>,
        sign: impl FnOnce(&[u8]) -> Vec<u8>,
    ) -> Judged {
        let Self { from, to, request, line, cookie, certificate: own_certificate, signature } = self;
        let message = signed_hello(&request, cookie, &own_certificate);
        let member = verify(&own_certificate, &message, &signature).filter(|member| member.role == Role::User && member.lan == request.lan);
        let outcome = member.ok_or(HelloRefusal::NotAMember).map(|member| {
            let welcome_signature = sign(&signed_welcome(request.nonce, request.lan, line, weights));
            let welcome = WelcomeMessage { line, weights, certificate: certificate.to_vec(), signature: welcome_signature };
            let welcome = Reply::Welcome(welcome).encode(request.nonce);
            (member, AdmittedProof { certificate: CertificateMark::of(&own_certificate), nonce: request.nonce, signature, welcome })
        });
        Judged { from, to, nonce: request.nonce, outcome }
    }

    /// What tells the certificate that it bears from others.
    pub fn certificate_mark(&self) -> CertificateMark {
        CertificateMark::of(&self.certificate)
    }

    /// Judges the `HELLO` without a look at its signature.
    pub fn refuse(self, refusal: HelloRefusal) -> Judged {
        Judged { from: self.from, to: self.to, nonce: self.request.nonce, outcome: Err(refusal) }
    }
}

impl Judged {
    /// The address that asked.
    pub fn from(&self) -> SocketAddr {
        self.from
    }

    /// The address of the relay's that was asked.
    pub fn to(&self) -> SocketAddr {
        self.to
    }

    /// The member to be admitted, if it is to be.
    pub fn member(&self) -> Option<&Identity> {
        self.outcome.as_ref().ok().map(|(member, _)| member)
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
mod tests {
    use super::*;
    use crate::community::hello::{HELLO_BYTES, Reply};

    #[test]
    fn a_member_is_challenged_then_admitted_until_it_is_silent() {
        let mut relay = Relay::new(AdmissionConfig::new(LAN, LINE));
        let request = request(1);
        let cookie = relay.cookie(CLIENT, &request);
        let reply = relay.ask(CLIENT, &signed(&request, cookie, "ann"));
        assert!(matches!(reply, Some(Reply::Welcome(_))), "{reply:?}");
        assert!(relay.admission.client(relay.now + IDLE / 2, CLIENT).is_some());
        assert!(relay.admission.expire(relay.now + IDLE).is_empty(), "it was heard half-way");
        assert_eq!(relay.admission.expire(relay.now + IDLE * 3 / 2).len(), 1);
        assert!(relay.admission.client(relay.now + IDLE * 3 / 2, CLIENT).is_none());
    }

    #[test]
    fn a_hello_from_another_address_than_its_cookie_s_admits_nobody() {
        let mut relay = Relay::new(AdmissionConfig::new(LAN, LINE));
        let request = request(1);
        let cookie = relay.cookie(CLIENT, &request);
        let captured = signed(&request, cookie, "ann");
        assert!(matches!(relay.ask(THIEF, &captured), Some(Reply::Challenge(_))));
        assert!(relay.admission.client(relay.now, THIEF).is_none());
    }

    #[test]
    fn a_hello_meant_for_another_relay_admits_nobody() {
        let mut relay = Relay::new(AdmissionConfig::new(LAN, LINE));
        let elsewhere = Request { relay: "10.0.1.66:7654".parse().unwrap(), ..request(1) };
        let cookie = relay.cookie(THIEF, &elsewhere);
        let passed_on = signed(&elsewhere, cookie, "ann");
        assert_eq!(relay.ask(THIEF, &passed_on), Some(Reply::Refused(HelloRefusal::WrongAddress)));
    }

    #[test]
    fn a_listed_address_is_the_relay_s_own() {
        let outside = "192.0.2.9:1234".parse().unwrap();
        let mut relay = Relay::new(AdmissionConfig { also_reached_as: vec![outside], ..AdmissionConfig::new(LAN, LINE) });
        let request = Request { relay: outside, ..request(1) };
        let cookie = relay.cookie(CLIENT, &request);
        assert!(matches!(relay.ask(CLIENT, &signed(&request, cookie, "ann")), Some(Reply::Welcome(_))));
    }

    #[test]
    fn an_old_cookie_is_challenged_anew() {
        let mut relay = Relay::new(AdmissionConfig::new(LAN, LINE));
        let request = request(1);
        let cookie = relay.cookie(CLIENT, &request);
        relay.now += Duration::from_secs(2 * COOKIE_WINDOW_SECS);
        assert!(matches!(relay.ask(CLIENT, &signed(&request, cookie, "ann")), Some(Reply::Challenge(_))));
    }

    #[test]
    fn a_certificate_of_no_user_of_the_lan_is_refused() {
        let mut relay = Relay::new(AdmissionConfig::new(LAN, LINE));
        for name in ["stranger", "relay", "foreigner"] {
            let request = request(1);
            let cookie = relay.cookie(CLIENT, &request);
            assert_eq!(relay.ask(CLIENT, &signed(&request, cookie, name)), Some(Reply::Refused(HelloRefusal::NotAMember)), "{name}");
        }
        assert_eq!(relay.verified, 3);
    }

    #[test]
    fn a_retransmission_is_answered_without_verifying_it_again() {
        let mut relay = Relay::new(AdmissionConfig::new(LAN, LINE));
        let request = request(1);
        let cookie = relay.cookie(CLIENT, &request);
        let hello = signed(&request, cookie, "ann");
        let first = relay.ask(CLIENT, &hello);
        assert_eq!(relay.ask(CLIENT, &hello), first);
        assert_eq!(relay.verified, 1);
    }

    #[test]
    fn one_source_can_t_have_more_verified_than_its_share() {
        let mut relay = Relay::new(AdmissionConfig::new(LAN, LINE));
        let mut busy = 0;
        for nonce in 0..100 {
            let request = request(nonce);
            let cookie = relay.cookie(THIEF, &request);
            busy += u32::from(relay.ask(THIEF, &signed(&request, cookie, "stranger")) == Some(Reply::Refused(HelloRefusal::Busy)));
        }
        assert_eq!((relay.verified, busy), (SOURCE_BURST, 100 - SOURCE_BURST));
        let request = request(1);
        let cookie = relay.cookie(CLIENT, &request);
        assert!(matches!(relay.ask(CLIENT, &signed(&request, cookie, "ann")), Some(Reply::Welcome(_))), "others are still served");
    }

    #[test]
    fn what_is_no_hello_is_not_answered_and_what_is_refused_gets_a_reason() {
        let mut relay = Relay::new(AdmissionConfig::new(LAN, LINE));
        let short = &request(1).encode_first()[..HELLO_BYTES - 1];
        assert!(matches!(relay.admission.handle_hello(relay.now, CLIENT, RELAY, short, None), Answer::Nothing));
        let ask = |relay: &mut Relay, request: Request| relay.ask(CLIENT, &request.encode_first());
        assert_eq!(ask(&mut relay, Request { lan: LanId(16), ..request(1) }), Some(Reply::Refused(HelloRefusal::WrongLan)));
        assert_eq!(ask(&mut relay, Request { line: LineNumber(2), ..request(1) }), Some(Reply::Refused(HelloRefusal::WrongLine)));
        assert!(matches!(ask(&mut relay, Request { line: LineNumber::ANY, ..request(1) }), Some(Reply::Challenge(_))));
        relay.obstacle = Some(HelloRefusal::NotReady);
        assert_eq!(ask(&mut relay, request(1)), Some(Reply::Refused(HelloRefusal::NotReady)));
    }

    #[test]
    fn who_is_removed_is_served_no_more_and_the_others_are() {
        let mut relay = Relay::new(AdmissionConfig::new(LAN, LINE));
        let other = SocketAddr::new(CLIENT.ip(), 8112);
        for (address, name) in [(CLIENT, "ann"), (other, "bob")] {
            assert!(matches!(relay.admit(address, name), Some(Reply::Welcome(_))));
        }
        assert_eq!(relay.admission.remove(&BTreeSet::from([CertificateMark::of(b"ann")])).len(), 1);
        assert!(relay.admission.client(relay.now, CLIENT).is_none() && relay.admission.client(relay.now, other).is_some());
        assert_eq!((relay.admission.clear().len(), relay.admission.clients().count()), (1, 0));
    }

    #[test]
    fn a_full_relay_refuses_newcomers_and_a_member_s_own_oldest_address_makes_room() {
        let config = AdmissionConfig { clients_max: 3, clients_per_member_max: 2, ..AdmissionConfig::new(LAN, LINE) };
        let mut relay = Relay::new(config);
        for port in 1..=3 {
            relay.now += Duration::from_millis(1);
            relay.admit(SocketAddr::new(CLIENT.ip(), port), "ann");
        }
        assert!(relay.admission.client(relay.now, SocketAddr::new(CLIENT.ip(), 1)).is_none());
        assert_eq!(relay.admission.clients().count(), 2);
        assert!(matches!(relay.admit(SocketAddr::new(CLIENT.ip(), 4), "bob"), Some(Reply::Welcome(_))));
        assert_eq!(relay.admit(SocketAddr::new(CLIENT.ip(), 5), "bob"), Some(Reply::Refused(HelloRefusal::Full)));
    }

    const LAN: LanId = LanId(15);
    const LINE: LineNumber = LineNumber(1);
    const IDLE: Duration = AdmissionConfig::IDLE;
    const RELAY: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 1, 3)), 7654);
    const CLIENT: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 1, 1)), 8111);
    const THIEF: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 1, 66)), 8111);

    /// An admission and its driver, in which a certificate is its member's name and a signature repeats the message.
    struct Relay {
        admission: Admission<()>,
        now: Instant,
        verified: u32,
        obstacle: Option<HelloRefusal>,
    }

    impl Relay {
        fn new(config: AdmissionConfig) -> Self {
            let now = Instant::now();
            Self { admission: Admission::new(config, &[7; 32], now), now, verified: 0, obstacle: None }
        }

        fn ask(&mut self, from: SocketAddr, hello: &[u8]) -> Option<Reply> {
            let nonce = Nonce(hello[2..18].try_into().expect("16 bytes"));
            let packet = match self.admission.handle_hello(self.now, from, RELAY, hello, self.obstacle) {
                Answer::Nothing => return None,
                Answer::Send(packet) => packet,
                Answer::Judge(pending) => {
                    let verified = &mut self.verified;
                    let verify = |certificate: &[u8], message: &[u8], signature: &[u8]| {
                        *verified += 1;
                        (digest(message) == signature).then(|| member(certificate)).flatten()
                    };
                    let judged = pending.judge(Weights::default(), b"relay", verify, digest);
                    self.admission.admit(self.now, judged, || Ok(())).0
                }
            };
            Some(Reply::decode(&packet, nonce).expect("an answer"))
        }

        fn cookie(&mut self, from: SocketAddr, request: &Request) -> Cookie {
            match self.ask(from, &request.encode_first()) {
                Some(Reply::Challenge(cookie)) => cookie,
                reply => panic!("{reply:?}"),
            }
        }

        fn admit(&mut self, from: SocketAddr, name: &str) -> Option<Reply> {
            let request = request(1);
            let cookie = self.cookie(from, &request);
            self.ask(from, &signed(&request, cookie, name))
        }
    }

    fn request(nonce: u8) -> Request {
        Request { nonce: Nonce([nonce; 16]), lan: LAN, line: LINE, relay: RELAY }
    }

    fn signed(request: &Request, cookie: Cookie, name: &str) -> Vec<u8> {
        request.encode_signed(cookie, name.as_bytes(), digest)
    }

    fn digest(message: &[u8]) -> Vec<u8> {
        ring::digest::digest(&ring::digest::SHA256, message).as_ref().to_vec()
    }

    fn member(certificate: &[u8]) -> Option<Identity> {
        let name = std::str::from_utf8(certificate).ok()?;
        let (role, lan) = match name {
            "stranger" => return None,
            "relay" => (Role::Relay, LAN),
            "foreigner" => (Role::User, LanId(16)),
            _ => (Role::User, LAN),
        };
        Some(Identity { name: name.parse().ok()?, role, lan })
    }
}
