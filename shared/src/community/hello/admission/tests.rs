//! A relay's door, knocked at by members and others.

use super::*;
use crate::community::{
    hello::{HELLO_BYTES, Nonce},
    member::Role,
    weight::Weights,
};

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
