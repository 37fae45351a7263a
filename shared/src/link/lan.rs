//! A proxy asks a relay for service.
//!
//! Enters: a socket and the relay's address. Leaves: the relay's verified consent for exactly that socket's address, or the reason why
//! not, within [`DEADLINE`]. What the socket carries afterwards is left to the path.

use std::{io, net::SocketAddr};

use rustls::pki_types::UnixTime;
use thiserror::Error;
use tokio::{
    net::UdpSocket,
    time::{Duration, Instant, sleep_until, timeout_at},
};

use super::tls::{MemberVerifier, Signer, VerifyError};
use crate::{
    community::{
        hello::{Cookie, HelloRefusal, LineNumber, Nonce, Reply, Request, Welcome, WelcomeMessage, signed_welcome},
        member::Role,
    },
    ids::LanId,
};

/// Why a relay does not serve.
#[derive(Debug, Error)]
pub enum HelloError {
    /// It says why.
    #[error("relay {relay} refuses: {refusal}")]
    Refused {
        /// The relay.
        relay: SocketAddr,
        /// Its reason.
        refusal: HelloRefusal,
    },
    /// It did not answer.
    #[error("relay {0} does not answer: check that peer-relay runs there and that its firewall lets UDP port {port} through", port = .0.port())]
    Silent(SocketAddr),
    /// Who answered is no relay of this LAN.
    #[error("who answers at {relay} is not a relay of this LAN: {reason}")]
    NotARelay {
        /// The address asked.
        relay: SocketAddr,
        /// What does not hold.
        reason: String,
    },
    /// Nothing can be sent there from this socket.
    #[error("can't send to relay {relay}: {source}")]
    Socket {
        /// The relay.
        relay: SocketAddr,
        /// The system's reason.
        source: io::Error,
    },
}

impl HelloError {
    /// Whether asking the same relay again soon is worth while.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Refused { refusal, .. } => refusal.is_temporary(),
            Self::Silent(_) | Self::Socket { .. } => true,
            Self::NotARelay { .. } => false,
        }
    }
}

/// Asks `relay` to serve the address of `socket` on one of its lines, as the member of `signer`, until it consents.
///
/// `relay` must be the address that the packets reach it at: the request is signed for it alone. Requests that a relay can't serve yet
/// are repeated until [`DEADLINE`]. Afterwards nothing of the exchange is left in the socket. Dropping the future abandons the request.
///
/// # Errors
/// If the relay refuses, does not answer in time or is none of this LAN.
pub async fn request_service(
    socket: &UdpSocket,
    relay: SocketAddr,
    line: LineNumber,
    signer: &Signer,
    verifier: &MemberVerifier,
    lan: LanId,
) -> Result<Welcome, HelloError> {
    let mut asking = Asking::new(Request { nonce: Nonce(rand::random()), lan, line, relay });
    let mut deadline = Instant::now() + DEADLINE;
    let mut pause = FIRST_PAUSE;
    loop {
        if let Err(source) = socket.send_to(&asking.packet, relay).await {
            asking.problem = HelloError::Socket { relay, source };
        }
        let resend_at = (Instant::now() + pause).min(deadline);
        let is_answered = loop {
            let Ok(reply) = timeout_at(resend_at.min(deadline), receive(socket, &asking.request)).await else { break false };
            match reply {
                Reply::Challenge(cookie) if asking.take_challenge(cookie, signer) => break true,
                Reply::Challenge(_) => (),
                Reply::Welcome(message) => match verified(message, &asking.request, verifier) {
                    Ok(welcome) => {
                        drain(socket);
                        return Ok(welcome);
                    }
                    // The relay itself may yet answer too.
                    Err(problem) => {
                        asking.problem = problem;
                        deadline = deadline.min(Instant::now() + IMPOSTOR_TIME);
                    }
                },
                Reply::Refused(refusal) if refusal.is_temporary() => {
                    asking.start_over(HelloError::Refused { relay, refusal });
                    sleep_until((Instant::now() + REFUSED_PAUSE).min(deadline)).await;
                    break true;
                }
                Reply::Refused(refusal) => return Err(HelloError::Refused { relay, refusal }),
            }
        };
        if Instant::now() >= deadline {
            return Err(asking.problem);
        }
        pause = if is_answered { FIRST_PAUSE } else { (pause * 2).min(LAST_PAUSE) };
    }
}

/// A request under way.
struct Asking {
    request: Request,
    packet: Vec<u8>,
    cookie: Option<Cookie>,
    challenges: u32,
    /// What to say if it comes to nothing.
    problem: HelloError,
}

impl Asking {
    fn new(request: Request) -> Self {
        Self { packet: request.encode_first(), cookie: None, challenges: 0, problem: HelloError::Silent(request.relay), request }
    }

    fn start_over(&mut self, problem: HelloError) {
        self.problem = problem;
        self.cookie = None;
        self.packet = self.request.encode_first();
    }

    /// Whether the next packet is a new one.
    fn take_challenge(&mut self, cookie: Cookie, signer: &Signer) -> bool {
        if self.cookie == Some(cookie) || self.challenges == CHALLENGES_MAX {
            return false;
        }
        self.challenges += 1;
        self.cookie = Some(cookie);
        self.packet = self.request.encode_signed(cookie, signer.certificate_der(), |message| signer.sign(message));
        true
    }
}

async fn receive(socket: &UdpSocket, request: &Request) -> Reply {
    let mut packet = [0; PACKET_MAX_BYTES];
    loop {
        match socket.recv_from(&mut packet).await {
            Ok((len, from)) if is_same(from, request.relay) => match Reply::decode(&packet[..len], request.nonce) {
                Ok(reply) => return reply,
                Err(error) => tracing::debug!(%from, %error, "no answer to the request for service"),
            },
            Ok((_, from)) => tracing::debug!(%from, "packet from elsewhere while asking for service"),
            Err(error) => {
                tracing::debug!(%error, "receiving while asking for service");
                tokio::time::sleep(ERROR_PAUSE).await;
            }
        }
    }
}

fn verified(message: WelcomeMessage, request: &Request, verifier: &MemberVerifier) -> Result<Welcome, HelloError> {
    let WelcomeMessage { line, weights, certificate, signature } = message;
    let not_a_relay = |reason: String| HelloError::NotARelay { relay: request.relay, reason };
    let signed = signed_welcome(request.nonce, request.lan, line, weights);
    let relay =
        verifier.verify(&certificate, &signed, &signature, UnixTime::now()).map_err(|error: VerifyError| not_a_relay(error.to_string()))?;
    if relay.role != Role::Relay || relay.lan != request.lan {
        return Err(not_a_relay(format!("it is {relay}")));
    }
    Ok(Welcome { relay, line, weights })
}

fn drain(socket: &UdpSocket) {
    let mut packet = [0; PACKET_MAX_BYTES];
    while socket.try_recv_from(&mut packet).is_ok() {}
}

fn is_same(from: SocketAddr, relay: SocketAddr) -> bool {
    from.ip().to_canonical() == relay.ip().to_canonical() && from.port() == relay.port()
}

/// How long a relay is asked: several retransmissions over a bad Wi-Fi, and the relay's own login if it has only just started.
pub const DEADLINE: Duration = Duration::from_secs(5);

/// The first wait for an answer, doubled with each that does not come; a LAN answers in a few milliseconds.
const FIRST_PAUSE: Duration = Duration::from_millis(100);

/// The longest wait: a relay that was started again is asked within it.
const LAST_PAUSE: Duration = Duration::from_millis(500);

/// The wait after a refusal that will not last.
const REFUSED_PAUSE: Duration = Duration::from_millis(250);

/// How long a relay is waited for after somebody else has answered in its stead.
const IMPOSTOR_TIME: Duration = Duration::from_secs(1);

/// The wait after an error of the socket, so that a lasting one does not spin.
const ERROR_PAUSE: Duration = Duration::from_millis(20);

/// The most challenges that are signed for one request: a relay whose cookie has grown old sends a second.
const CHALLENGES_MAX: u32 = 8;

/// Longer than any answer.
const PACKET_MAX_BYTES: usize = 2048;
