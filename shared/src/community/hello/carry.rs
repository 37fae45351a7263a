//! Carrying strangers to `reconst`'s login port: how a PC without a line, which is no member yet, becomes one through a relay.
//!
//! Enters: `ENROL` packets, and the packets of those that were granted. Leaves: answers, and whether a packet may pass. Always holds: a
//! stranger has shown that it receives at its address; it gets [`PACKETS_MAX`] packets and [`BYTES_MAX`] bytes each way within
//! [`LIFETIME`], to the login port alone; so few get that at a time, and so rarely, that a LAN full of strangers gains a trickle of about
//! 20 kbit/s. What they say is between them and `reconst`.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use bytes::BufMut;
use ring::hmac;

use super::{CHALLENGE, Cookie, HelloRefusal, Nonce, REFUSAL, VERSION, put_address, take_answer, take_header};
use crate::{
    community::gate::Gate,
    wire::{self, WireError},
};

/// A stranger's request to be carried.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EnrolAsk {
    /// Repeated by every answer.
    pub nonce: Nonce,
    /// The relay's cookie; a first request has none.
    pub cookie: Option<Cookie>,
}

/// A relay's answer to an [`EnrolAsk`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CarryReply {
    /// Ask again with this cookie.
    Challenge(Cookie),
    /// The address may send, for [`LIFETIME`].
    Carrying,
    /// It may not.
    Refused(HelloRefusal),
}

/// Which strangers are carried on one line.
#[derive(Debug)]
pub struct Carriage {
    key: hmac::Key,
    started: Instant,
    grants: Gate,
    strangers: BTreeMap<SocketAddr, Stranger>,
}

/// What to do about an `ENROL`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum CarryAnswer {
    /// Nothing.
    Nothing,
    /// Send this back.
    Send(Vec<u8>),
    /// Make a way to the login port for the sender and send this back; call [`Carriage::release`] if there is none to be had.
    Open(Vec<u8>),
}

/// What is left to one stranger in one direction.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Allowance {
    packets: u32,
    bytes: usize,
}

#[derive(Debug)]
struct Stranger {
    nonce: Nonce,
    until: Instant,
    up: Allowance,
}

impl EnrolAsk {
    /// The request's packet, padded to [`ENROL_BYTES`].
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![ENROL, VERSION];
        out.put_slice(&self.nonce.0);
        wire::put_bytes(&mut out, self.cookie.as_ref().map_or(&[], |cookie| &cookie.0));
        out.resize(ENROL_BYTES, 0);
        out
    }

    /// Reads a request.
    ///
    /// # Errors
    /// If it is shorter than [`ENROL_BYTES`], of another version, or has a field that can't be.
    pub fn decode(packet: &[u8]) -> Result<Self, WireError> {
        if packet.len() < ENROL_BYTES {
            return Err(WireError::Short);
        }
        let mut input = packet;
        take_header(&mut input, ENROL)?;
        let nonce = Nonce(wire::take_array(&mut input)?);
        let cookie = wire::take_bytes(&mut input, 16, "cookie")?;
        let cookie = match cookie.len() {
            0 => None,
            _ => Some(Cookie(cookie.try_into().map_err(|_| WireError::Value("cookie"))?)),
        };
        Ok(Self { nonce, cookie })
    }
}

impl CarryReply {
    /// The answer's packet.
    pub fn encode(&self, nonce: Nonce) -> Vec<u8> {
        let kind = match self {
            Self::Challenge(_) => CHALLENGE,
            Self::Carrying => CARRYING,
            Self::Refused(_) => REFUSAL,
        };
        let mut out = vec![kind, VERSION];
        out.put_slice(&nonce.0);
        match self {
            Self::Challenge(cookie) => out.put_slice(&cookie.0),
            Self::Carrying => (),
            Self::Refused(refusal) => out.put_u8(*refusal as u8),
        }
        out
    }

    /// Reads a relay's answer to the request with `nonce`.
    ///
    /// # Errors
    /// If it is no answer, answers another request, or has a field that can't be.
    pub fn decode(packet: &[u8], nonce: Nonce) -> Result<Self, WireError> {
        let mut input = packet;
        match take_answer(&mut input, nonce)? {
            CHALLENGE => Ok(Self::Challenge(Cookie(wire::take_array(&mut input)?))),
            CARRYING => Ok(Self::Carrying),
            REFUSAL => HelloRefusal::try_from(wire::take_u8(&mut input)?).map(Self::Refused),
            _ => Err(WireError::Value("message type")),
        }
    }
}

/// Whether a packet on a relay's port begins as an `ENROL` does.
pub fn is_enrol(first_byte: u8) -> bool {
    first_byte == ENROL
}

impl Carriage {
    /// Nobody carried yet; `secret` is 32 random bytes that stay in this process.
    pub fn new(secret: &[u8; 32], now: Instant) -> Self {
        Self { key: hmac::Key::new(hmac::HMAC_SHA256, secret), started: now, grants: Gate::default(), strangers: BTreeMap::new() }
    }

    /// Takes an `ENROL` sent `from` there; `obstacle` is why nobody is carried right now, if so.
    pub fn handle_enrol(&mut self, now: Instant, from: SocketAddr, packet: &[u8], obstacle: Option<HelloRefusal>) -> CarryAnswer {
        let Ok(EnrolAsk { nonce, cookie }) = EnrolAsk::decode(packet) else { return CarryAnswer::Nothing };
        let refuse = |refusal| CarryAnswer::Send(CarryReply::Refused(refusal).encode(nonce));
        if let Some(obstacle) = obstacle {
            return refuse(obstacle);
        }
        let window = now.saturating_duration_since(self.started).as_secs() / COOKIE_WINDOW_SECS;
        let fits = |cookie| [window, window.wrapping_sub(1)].iter().any(|&window| is_same(self.cookie(window, from, nonce), cookie));
        if !cookie.is_some_and(fits) {
            return CarryAnswer::Send(CarryReply::Challenge(self.cookie(window, from, nonce)).encode(nonce));
        }
        let carrying = CarryReply::Carrying.encode(nonce);
        if self.strangers.get(&from).is_some_and(|stranger| stranger.nonce == nonce) {
            return CarryAnswer::Send(carrying);
        }
        if self.strangers.contains_key(&from) || self.strangers.len() >= STRANGERS_MAX {
            return refuse(HelloRefusal::Full);
        }
        if !self.grants.take(now, GRANT_INTERVAL, GRANT_BURST) {
            return refuse(HelloRefusal::Busy);
        }
        self.strangers.insert(from, Stranger { nonce, until: now + LIFETIME, up: Allowance::default() });
        CarryAnswer::Open(carrying)
    }

    /// Whether a packet of `bytes` from there may pass on to the login port, which then counts.
    pub fn may_pass(&mut self, now: Instant, from: SocketAddr, bytes: usize) -> bool {
        self.strangers.get_mut(&from).is_some_and(|stranger| now < stranger.until && stranger.up.take(bytes))
    }

    /// Lets go of the stranger at this address.
    pub fn release(&mut self, from: SocketAddr) {
        self.strangers.remove(&from);
    }

    /// Removes the strangers whose time is over, and gives them.
    pub fn expire(&mut self, now: Instant) -> Vec<SocketAddr> {
        let over: Vec<_> = self.strangers.iter().filter(|(_, stranger)| now >= stranger.until).map(|(from, _)| *from).collect();
        over.iter().for_each(|from| self.release(*from));
        over
    }

    fn cookie(&self, window: u64, from: SocketAddr, nonce: Nonce) -> Cookie {
        let mut input = COOKIE_CONTEXT.to_vec();
        input.extend(window.to_be_bytes());
        put_address(&mut input, from);
        input.extend(nonce.0);
        Cookie(hmac::sign(&self.key, &input).as_ref()[..16].try_into().expect("SHA-256 gives 32 bytes"))
    }
}

impl Default for Allowance {
    fn default() -> Self {
        Self { packets: PACKETS_MAX, bytes: BYTES_MAX }
    }
}

impl Allowance {
    /// Whether a packet of `bytes` may pass, which then counts.
    pub fn take(&mut self, bytes: usize) -> bool {
        if self.packets == 0 || self.bytes < bytes {
            return false;
        }
        self.packets -= 1;
        self.bytes -= bytes;
        true
    }
}

fn is_same(a: Cookie, b: Cookie) -> bool {
    a.0.iter().zip(b.0).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

/// A request's least length: no answer is longer.
pub const ENROL_BYTES: usize = 64;

/// How long a stranger is carried: a handshake, a request and a reply over a modem line with some lost.
pub const LIFETIME: Duration = Duration::from_secs(20);

/// An enrolment takes about 8 packets and 5 KB each way; the rest is for those that get lost.
pub const PACKETS_MAX: u32 = 40;
/// See [`PACKETS_MAX`].
pub const BYTES_MAX: usize = 24 * 1024;

/// Strangers carried at once: a household that is set up in one go.
pub const STRANGERS_MAX: usize = 4;

/// [`BYTES_MAX`] each 10 s is 20 kbit/s at most, and an attempt that failed is soon made again.
const GRANT_INTERVAL: Duration = Duration::from_secs(10);
const GRANT_BURST: u32 = 4;

/// As for a `HELLO`.
const COOKIE_WINDOW_SECS: u64 = 8;
const COOKIE_CONTEXT: &[u8] = b"enrol cookie";

const ENROL: u8 = 0x05;
const CARRYING: u8 = 0x06;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_stranger_is_challenged_then_carried_for_a_while() {
        let now = Instant::now();
        let mut carriage = Carriage::new(&[1; 32], now);
        assert!(!carriage.may_pass(now, FROM, 100));
        assert!(matches!(ask(&mut carriage, now, FROM, 1), CarryAnswer::Open(_)));
        assert!(carriage.may_pass(now, FROM, 100));
        assert!(!carriage.may_pass(now, OTHER, 100), "another's address");
        assert!(!carriage.may_pass(now + LIFETIME, FROM, 100));
        assert_eq!(carriage.expire(now + LIFETIME), [FROM]);
    }

    #[test]
    fn a_cookie_is_for_one_address_and_a_short_while() {
        let now = Instant::now();
        let mut carriage = Carriage::new(&[1; 32], now);
        let cookie = cookie(&mut carriage, now, FROM, 1);
        let asked = |carriage: &mut Carriage, now, from| carriage.handle_enrol(now, from, &packet(1, Some(cookie)), None);
        assert!(matches!(reply(asked(&mut carriage, now, OTHER), 1), CarryReply::Challenge(_)));
        let late = now + Duration::from_secs(2 * COOKIE_WINDOW_SECS);
        assert!(matches!(reply(asked(&mut carriage, late, FROM), 1), CarryReply::Challenge(_)));
        assert!(matches!(asked(&mut carriage, now, FROM), CarryAnswer::Open(_)));
        assert_eq!(reply(asked(&mut carriage, now, FROM), 1), CarryReply::Carrying, "a retransmission");
    }

    #[test]
    fn strangers_gain_a_trickle_however_many_they_are() {
        let start = Instant::now();
        let mut carriage = Carriage::new(&[1; 32], start);
        let mut passed_bytes = 0;
        let seconds = 600;
        for second in 0..seconds {
            let now = start + Duration::from_secs(second);
            carriage.expire(now);
            for port in 1..20 {
                let from = SocketAddr::from(([10, 0, 1, 66], port));
                ask(&mut carriage, now, from, second as u8);
                for _ in 0..100 {
                    passed_bytes += if carriage.may_pass(now, from, 1200) { 1200 } else { 0 };
                }
            }
            assert!(carriage.strangers.len() <= STRANGERS_MAX);
        }
        let bits_per_second = passed_bytes as u64 * 8 / seconds;
        assert!((5_000..22_000).contains(&bits_per_second), "{bits_per_second}");
    }

    #[test]
    fn an_obstacle_is_said_at_once_and_no_answer_is_longer_than_the_question() {
        let now = Instant::now();
        let mut carriage = Carriage::new(&[1; 32], now);
        let answer = carriage.handle_enrol(now, FROM, &packet(1, None), Some(HelloRefusal::NotCarried));
        assert_eq!(reply(answer, 1), CarryReply::Refused(HelloRefusal::NotCarried));
        for reply in [CarryReply::Challenge(Cookie([1; 16])), CarryReply::Carrying, CarryReply::Refused(HelloRefusal::Full)] {
            assert!(reply.encode(Nonce([1; 16])).len() <= ENROL_BYTES);
        }
    }

    proptest! {
        #[test]
        fn random_packets_never_panic(kind in 0u8..8, rest in proptest::collection::vec(any::<u8>(), 0..200)) {
            let packet = [&[kind, VERSION], &rest[..]].concat();
            let _ = EnrolAsk::decode(&packet);
            let _ = CarryReply::decode(&packet, Nonce([0; 16]));
        }
    }

    const FROM: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 1, 9)), 4000);
    const OTHER: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 1, 10)), 4000);

    /// Asks, answers the challenge, gives what comes of it.
    fn ask(carriage: &mut Carriage, now: Instant, from: SocketAddr, nonce: u8) -> CarryAnswer {
        let cookie = cookie(carriage, now, from, nonce);
        carriage.handle_enrol(now, from, &packet(nonce, Some(cookie)), None)
    }

    fn cookie(carriage: &mut Carriage, now: Instant, from: SocketAddr, nonce: u8) -> Cookie {
        match reply(carriage.handle_enrol(now, from, &packet(nonce, None), None), nonce) {
            CarryReply::Challenge(cookie) => cookie,
            other => panic!("{other:?}"),
        }
    }

    fn packet(nonce: u8, cookie: Option<Cookie>) -> Vec<u8> {
        EnrolAsk { nonce: Nonce([nonce; 16]), cookie }.encode()
    }

    fn reply(answer: CarryAnswer, nonce: u8) -> CarryReply {
        let (CarryAnswer::Send(packet) | CarryAnswer::Open(packet)) = answer else { panic!("no answer") };
        CarryReply::decode(&packet, Nonce([nonce; 16])).expect("an answer")
    }
}
