//! `join`: an invite's link becomes a profile on this PC.
//!
//! Enters: the link, as an argument, on standard input or typed. Leaves: a key that was made here, and the profile with the certificate for
//! it. Always holds: the profile has its place before the invite, which serves once, is shown. `reconst` is reached directly, and through
//! relays that announce themselves or are named: whichever answers first.

use std::{
    io::{self, BufRead, IsTerminal, Write},
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use tokio::{
    net::UdpSocket,
    task::JoinSet,
    time::{Instant, sleep_until, timeout},
};

use super::{Exit, Failure, ProfilePlace};
use crate::{
    community::{
        enrol::{Issued, Title},
        invite::{Fingerprint, Invite},
        member::Role,
        profile::Profile,
    },
    link::{
        carry::{Ear, ask_to_carry},
        enrol::{self, EnrolError, Reached},
        key::{NewKey, pem},
    },
    target::{Host, Target},
};

/// What `join` is told.
#[derive(Clone, Debug)]
pub struct Joining {
    /// The invite.
    pub invite: Invite,
    /// Where the profile goes.
    pub profile: PathBuf,
    /// Whether it may take another's place.
    pub may_replace: bool,
    /// Relays to try beside those that announce themselves.
    pub relays: Vec<SocketAddr>,
    /// Whether relays that announce themselves are tried. Default true.
    pub listens: bool,
}

/// The invite that a person gave: `link` itself, or, if that is `-` or missing, the first line of standard input.
///
/// # Errors
/// If it is no invite, or one for the other program.
pub fn read_invite(link: Option<&str>, role: Role) -> Result<Invite, Failure> {
    let typed;
    let text = match link {
        Some(link) if link != "-" => link,
        _ => {
            typed = read_line().map_err(|error| Failure::usage(format!("can't read the invite from standard input: {error}")))?;
            &typed
        }
    };
    let invite: Invite = text.parse().map_err(|error| Failure::usage(format!("{error}")))?;
    if invite.role != role {
        return Err(Failure::usage(format!("this invite is for a {}: run `{} join` with it", invite.role, invite.role.program())));
    }
    Ok(invite)
}

fn read_line() -> io::Result<String> {
    if io::stdin().is_terminal() {
        eprint!("Invite: ");
        io::stderr().flush()?;
    }
    let mut line = String::new();
    io::Read::take(io::stdin().lock(), LINE_BYTES_MAX).read_line(&mut line)?;
    Ok(line)
}

impl Joining {
    /// Joins by `invite` with the usual settings.
    pub fn new(invite: Invite, profile: PathBuf) -> Self {
        Self { invite, profile, may_replace: false, relays: Vec::new(), listens: true }
    }

    /// Makes the key, has it certified and writes the profile, which is also returned.
    ///
    /// # Errors
    /// A [`Failure`] that says what to do.
    pub async fn run(self) -> Result<Profile, Failure> {
        let place = ProfilePlace::reserve(&self.profile, self.may_replace)?;
        let key = NewKey::generate().map_err(|_| Failure::new(Exit::Software, "the system gives no randomness for a key"))?;
        let (issued, authority_pem) = self.enrol(&key).await?;
        let profile = Profile {
            identity: issued.identity,
            lan_name: issued.lan_name,
            reconst: if issued.reconst.is_empty() { self.invite.reconst.clone() } else { issued.reconst },
            certificate_pem: pem("CERTIFICATE", &issued.certificate),
            key_pem: key.to_pem(),
            authority_pem,
        };
        place.fill(&profile)?;
        Ok(profile)
    }

    async fn enrol(&self, key: &NewKey) -> Result<(Issued, String), Failure> {
        let title = Title::Invite { number: self.invite.number, secret: self.invite.secret };
        let mut attempts = 0;
        loop {
            attempts += 1;
            let reached = self.reach().await?;
            let answered = enrol::request(&reached.connection, title.clone(), key).await;
            let authority_pem = reached.authority_pem.clone();
            reached.close().await;
            match answered {
                Ok(issued) => return Ok((issued, authority_pem)),
                // Whether the request arrived is not known; the same key may ask again.
                Err(EnrolError::Connection(_) | EnrolError::Stream(_) | EnrolError::Silent(_)) if attempts < ATTEMPTS_MAX => (),
                Err(error) => return Err(self.explain(&error)),
            }
        }
    }

    /// The first way to `reconst` that works.
    async fn reach(&self) -> Result<Reached, Failure> {
        let fingerprint = self.invite.fingerprint;
        let mut ways: JoinSet<Result<Reached, EnrolError>> = JoinSet::new();
        for target in &self.invite.reconst {
            ways.spawn(reach_directly(target.clone(), fingerprint));
        }
        for &relay in &self.relays {
            ways.spawn(reach_through(relay, fingerprint));
        }
        let mut tried = self.relays.clone();
        let mut ear = if self.listens { Ear::open(self.invite.lan).ok() } else { None };
        let (begun, mut problem) = (Instant::now(), None);
        loop {
            let may_listen = ear.is_some() && begun.elapsed() < LISTEN_TIME;
            tokio::select! {
                Some(ended) = ways.join_next() => match ended {
                    Ok(Ok(reached)) => return Ok(reached),
                    Ok(Err(error)) => problem = Some(worse(problem.take(), error)),
                    Err(_) => (),
                },
                found = next_relays(&mut ear, begun + HEAD_START), if may_listen => {
                    for relay in found {
                        if !tried.contains(&relay) && tried.len() < RELAYS_MAX {
                            tried.push(relay);
                            ways.spawn(reach_through(relay, fingerprint));
                        }
                    }
                }
                () = sleep_until(begun + LISTEN_TIME), if may_listen => (),
                else => break,
            }
        }
        Err(problem.map_or_else(|| self.unreachable(), |problem| self.explain(&problem)))
    }

    fn explain(&self, error: &EnrolError) -> Failure {
        match error {
            EnrolError::Foreign(at) => Failure::new(
                Exit::Data,
                format!(
                    "who answers at {at} is not the reconst that made this invite: somebody stands in between, or the server was set up \
                     anew. Nothing was sent to it; try from another network, or ask for a new invite"
                ),
            ),
            EnrolError::Refused(reason) => Failure::new(Exit::Permission, reason.clone()),
            EnrolError::Busy(reason) => Failure::unavailable(reason.clone()),
            EnrolError::Unusable(..) | EnrolError::Malformed(_) => Failure::new(Exit::Data, error.to_string()),
            EnrolError::Own(_) | EnrolError::Signature => Failure::new(Exit::Software, error.to_string()),
            EnrolError::Silent(_) | EnrolError::Connection(_) | EnrolError::Stream(_) => self.unreachable(),
        }
    }

    fn unreachable(&self) -> Failure {
        let at = self.invite.reconst.iter().map(Target::to_string).collect::<Vec<_>>().join(" or ");
        Failure::unavailable(format!(
            "reconst does not answer at {at}, directly or through a relay: check that this PC is online, that `reconst run` runs there and \
             that its firewall lets UDP in on that port; a PC without a line of its own needs a relay that runs on its LAN, named with \
             --relay IP:PORT where the LAN filters multicast"
        ))
    }
}

/// Relays as they are heard, but not before the direct way has had its `head_start`.
async fn next_relays(ear: &mut Option<Ear>, head_start: Instant) -> Vec<SocketAddr> {
    let Some(ear) = ear else { return std::future::pending().await };
    let found = ear.next().await;
    sleep_until(head_start).await;
    found
}

/// Of two problems the one that tells a person more.
fn worse(known: Option<EnrolError>, new: EnrolError) -> EnrolError {
    let rank = |error: &EnrolError| match error {
        EnrolError::Foreign(_) => 3,
        EnrolError::Unusable(..) => 2,
        EnrolError::Own(_) => 1,
        _ => 0,
    };
    match known {
        Some(known) if rank(&known) >= rank(&new) => known,
        _ => new,
    }
}

async fn reach_directly(target: Target, fingerprint: Fingerprint) -> Result<Reached, EnrolError> {
    let unresolved = |error: &dyn std::fmt::Display| EnrolError::Stream(format!("can't resolve {target}: {error}"));
    let addresses: Vec<SocketAddr> = match &target.host {
        Host::Ip(ip) => vec![SocketAddr::new(*ip, target.port)],
        Host::Name(name) => {
            let found = timeout(RESOLVE_TIME, tokio::net::lookup_host((name.as_str(), target.port))).await;
            found.map_err(|error| unresolved(&error))?.map_err(|error| unresolved(&error))?.take(ADDRESSES_MAX).collect()
        }
    };
    let mut attempts: JoinSet<_> = JoinSet::new();
    for address in addresses {
        attempts.spawn(async move { enrol::connect(socket_towards(address.ip())?, address, fingerprint).await });
    }
    let mut problem = None;
    while let Some(ended) = attempts.join_next().await {
        match ended {
            Ok(Ok(reached)) => return Ok(reached),
            Ok(Err(error)) => problem = Some(worse(problem.take(), error)),
            Err(_) => (),
        }
    }
    Err(problem.unwrap_or_else(|| unresolved(&"it has no address")))
}

async fn reach_through(relay: SocketAddr, fingerprint: Fingerprint) -> Result<Reached, EnrolError> {
    let socket = UdpSocket::from_std(socket_towards(relay.ip())?).map_err(|error| EnrolError::Own(error.to_string()))?;
    ask_to_carry(&socket, relay).await.map_err(|error| EnrolError::Stream(error.to_string()))?;
    let socket = socket.into_std().map_err(|error| EnrolError::Own(error.to_string()))?;
    enrol::connect(socket, relay, fingerprint).await
}

fn socket_towards(ip: IpAddr) -> Result<std::net::UdpSocket, EnrolError> {
    let any: IpAddr = if ip.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let bound = std::net::UdpSocket::bind(SocketAddr::new(any, 0)).and_then(|socket| {
        socket.set_nonblocking(true)?;
        Ok(socket)
    });
    bound.map_err(|error| EnrolError::Own(format!("can't open a UDP socket: {error}")))
}

/// A link and its newline.
const LINE_BYTES_MAX: u64 = 4096;

/// How long relays are listened for: a few of their announcements.
const LISTEN_TIME: Duration = Duration::from_secs(5);

/// How long only the direct way is tried, which spends no neighbour's line.
const HEAD_START: Duration = Duration::from_millis(1500);

/// The longest that a name server is waited for.
const RESOLVE_TIME: Duration = Duration::from_secs(5);

/// Addresses of one name that are tried.
const ADDRESSES_MAX: usize = 4;

/// Relays tried, named ones included: whoever shouts on the LAN can't keep the PC busy for long.
const RELAYS_MAX: usize = 8;

/// Requests made: another after a connection that broke.
const ATTEMPTS_MAX: u32 = 2;
