//! The relays of the LAN, as they announce themselves.
//!
//! Enters: announcements by multicast on every interface of this PC, loopback included, and by unicast. Leaves: the lines that serve
//! right now, watched with [`Discovery::lines`]. Always holds: nothing that is not signed by a relay of the LAN changes them
//! ([`Listener`]); interfaces that come are listened on within [`JOIN_INTERVAL`]; several programs of one PC may listen at once. What follows
//! is left to [`crate::known`].

use std::{
    io,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard},
    time::{Duration, Instant, SystemTime},
};

use rustls::pki_types::UnixTime;
use shared::{
    community::{
        announce::{ANNOUNCE_PORT, GROUP_V4, GROUP_V6, Listener, ListenerCounters},
        member::Identity,
        roster::{RelayLine, Roster, RosterConfig, RosterEntry},
    },
    ids::LanId,
    link::tls::MemberVerifier,
};
use socket2::{Domain, InterfaceIndexOrAddress, Protocol, Socket, Type};
use tokio::{net::UdpSocket, sync::watch, task::JoinSet};

/// Where announcements are listened for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct DiscoveryConfig {
    /// The LAN whose relays are wanted.
    pub lan: LanId,
    /// The IPv4 address to listen on; with an unspecified one, also by multicast and on IPv6. Default port 7653 on every address.
    pub listen: SocketAddr,
    /// How long relays stay that are not heard.
    pub roster: RosterConfig,
}

/// Listens for the relays of one LAN until it is dropped.
#[derive(Debug)]
pub struct Discovery {
    state: Arc<Mutex<State>>,
    lines: watch::Receiver<Vec<RelayLine>>,
    listen: SocketAddr,
    /// They end with it.
    _tasks: JoinSet<()>,
}

#[derive(Debug)]
struct State {
    listener: Listener,
    roster: Roster,
    lines: watch::Sender<Vec<RelayLine>>,
}

impl DiscoveryConfig {
    /// The usual configuration for the relays of `lan`.
    pub fn new(lan: LanId) -> Self {
        Self { lan, listen: SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), ANNOUNCE_PORT), roster: RosterConfig::default() }
    }
}

impl Discovery {
    /// Begins to listen; announcements are verified with `verifier`. Call it inside a tokio runtime.
    ///
    /// # Errors
    /// If the address can't be listened on: a program that does not share the port has it.
    pub fn start(config: DiscoveryConfig, verifier: MemberVerifier) -> io::Result<Self> {
        let (sender, lines) = watch::channel(Vec::new());
        let roster = Roster::new(config.roster);
        let state = Arc::new(Mutex::new(State { listener: Listener::new(config.lan), roster, lines: sender }));
        let mut tasks = JoinSet::new();
        let ipv4 = Arc::new(open(config.listen)?);
        let listen = ipv4.local_addr()?;
        let mut sockets = vec![ipv4];
        if listen.ip().is_unspecified() {
            // Without IPv6 the relays are heard on IPv4 alone.
            sockets.extend(open(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), listen.port())).map(Arc::new));
            tasks.spawn(join_groups(sockets.clone()));
        }
        for socket in sockets {
            tasks.spawn(hear(socket, Arc::clone(&state), verifier.clone()));
        }
        tasks.spawn(expire(Arc::clone(&state)));
        Ok(Self { state, lines, listen, _tasks: tasks })
    }

    /// The lines that serve, in the order of their relays and numbers; [`shared::community::roster::changes`] tells two states apart.
    pub fn lines(&self) -> watch::Receiver<Vec<RelayLine>> {
        self.lines.clone()
    }

    /// The IPv4 address listened on.
    pub fn local_addr(&self) -> SocketAddr {
        self.listen
    }

    /// Takes the news that traffic came from `relay`, which counts as an announcement.
    pub fn on_traffic(&self, relay: &Identity) {
        lock(&self.state).roster.on_traffic(Instant::now(), relay);
    }

    /// The relays on the roster, for people.
    pub fn entries(&self) -> Vec<RosterEntry> {
        lock(&self.state).roster.entries(Instant::now())
    }

    /// What has become of the packets heard.
    pub fn counters(&self) -> ListenerCounters {
        lock(&self.state).listener.counters()
    }
}

impl State {
    fn show(&mut self) {
        let current = self.roster.lines();
        self.lines.send_if_modified(|lines| {
            let is_modified = *lines != current;
            *lines = current;
            is_modified
        });
    }
}

async fn hear(socket: Arc<UdpSocket>, state: Arc<Mutex<State>>, verifier: MemberVerifier) {
    let mut packet = [0; PACKET_MAX_BYTES];
    loop {
        let (len, from) = match socket.recv_from(&mut packet).await {
            Ok(received) => received,
            Err(error) => {
                tracing::debug!(%error, "listening for relays");
                tokio::time::sleep(ERROR_PAUSE).await;
                continue;
            }
        };
        let verify = |certificate: &[u8], message: &[u8], signature: &[u8]| {
            let verified = verifier.verify(certificate, message, signature, UnixTime::now());
            verified.inspect_err(|error| tracing::debug!(%from, %error, "announcement")).ok()
        };
        let now = Instant::now();
        let mut state = lock(&state);
        if let Some(heard) = state.listener.handle_packet(now, SystemTime::now(), from, &packet[..len], verify) {
            state.roster.handle_heard(now, heard);
            state.show();
        }
    }
}

async fn expire(state: Arc<Mutex<State>>) {
    let mut tick = tokio::time::interval(EXPIRE_INTERVAL);
    loop {
        tick.tick().await;
        let mut state = lock(&state);
        state.roster.handle_timeout(Instant::now());
        state.show();
    }
}

async fn join_groups(sockets: Vec<Arc<UdpSocket>>) {
    let mut tick = tokio::time::interval(JOIN_INTERVAL);
    loop {
        tick.tick().await;
        for index in interface_indices() {
            for socket in &sockets {
                let socket = socket2::SockRef::from(&**socket);
                let is_ipv4 = socket.local_addr().is_ok_and(|address| address.is_ipv4());
                // Joined already is an error too, and an interface without multicast is heard by unicast.
                let _ = match is_ipv4 {
                    true => socket.join_multicast_v4_n(&GROUP_V4, &InterfaceIndexOrAddress::Index(index)),
                    false => socket.join_multicast_v6(&GROUP_V6, index),
                };
            }
        }
    }
}

fn interface_indices() -> Vec<u32> {
    let interfaces = if_addrs::get_if_addrs().unwrap_or_default();
    let mut indices: Vec<_> = interfaces.iter().filter_map(|interface| interface.index).collect();
    indices.sort_unstable();
    indices.dedup();
    indices
}

fn open(address: SocketAddr) -> io::Result<UdpSocket> {
    let domain = if address.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // On Linux this alone shares multicast, also between users; elsewhere ports are shared by the other option.
    socket.set_reuse_address(true)?;
    #[cfg(all(unix, not(target_os = "linux")))]
    socket.set_reuse_port(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    UdpSocket::from_std(socket.into())
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().expect("nothing panics while it is held")
}

/// How often interfaces are looked for: less than a relay takes to be noticed.
pub const JOIN_INTERVAL: Duration = Duration::from_secs(2);

/// How often silent relays are looked for: a part of the usual interval of announcements.
const EXPIRE_INTERVAL: Duration = Duration::from_millis(250);

/// Longer than any announcement.
const PACKET_MAX_BYTES: usize = 2048;

/// How long to leave a socket alone that gives an error.
const ERROR_PAUSE: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, PKCS_ED25519};
    use shared::{
        community::{
            announce::{AnnouncedLine, Announcement, AnnouncementKind, LineState, Stamp, unix_secs},
            hello::LineNumber,
            member::Role,
            profile::Profile,
            weight::Weights,
        },
        link::tls::Signer,
    };
    use tokio::time::timeout;

    use super::*;

    #[tokio::test]
    async fn a_relay_is_found_when_it_announces_itself_and_gone_when_it_says_so() {
        let authority = Authority::new();
        let (discovery, mut lines) = listening(&authority);
        let mut relay = Announcing::new(&authority, "ann").await;
        relay.announce(&discovery, AnnouncementKind::Active).await;
        let found = timeout(DEADLINE, lines.wait_for(|lines| !lines.is_empty())).await.expect("in time").expect("listening").clone();
        assert_eq!(found[0].address, SocketAddr::from(([127, 0, 0, 1], 7654)));
        assert_eq!((found[0].relay.name.as_str(), found[0].line), ("ann", LineNumber(1)));
        relay.announce(&discovery, AnnouncementKind::ShutDown).await;
        timeout(DEADLINE, lines.wait_for(Vec::is_empty)).await.expect("in time").expect("listening");
    }

    #[tokio::test]
    async fn a_relay_that_falls_silent_is_gone_by_itself() {
        let authority = Authority::new();
        let (discovery, mut lines) = listening(&authority);
        let mut relay = Announcing::new(&authority, "ann").await;
        relay.announce(&discovery, AnnouncementKind::Active).await;
        timeout(DEADLINE, lines.wait_for(|lines| !lines.is_empty())).await.expect("in time").expect("listening");
        timeout(DEADLINE, lines.wait_for(Vec::is_empty)).await.expect("in time").expect("listening");
    }

    #[tokio::test]
    async fn a_relay_of_another_authority_is_not_believed() {
        let (authority, other) = (Authority::new(), Authority::new());
        let (discovery, mut lines) = listening(&authority);
        Announcing::new(&other, "mallory").await.announce(&discovery, AnnouncementKind::Active).await;
        Announcing::new(&authority, "ann").await.announce(&discovery, AnnouncementKind::Active).await;
        let found = timeout(DEADLINE, lines.wait_for(|lines| !lines.is_empty())).await.expect("in time").expect("listening").clone();
        assert_eq!(found.iter().map(|line| line.relay.name.as_str()).collect::<Vec<_>>(), ["ann"]);
        assert_eq!((discovery.counters().forged, discovery.counters().accepted), (1, 1));
    }

    const LAN: LanId = LanId(15);
    const DEADLINE: Duration = Duration::from_secs(20);

    fn listening(authority: &Authority) -> (Discovery, watch::Receiver<Vec<RelayLine>>) {
        let config = DiscoveryConfig { listen: ([127, 0, 0, 1], 0).into(), ..DiscoveryConfig::new(LAN) };
        let discovery = Discovery::start(config, MemberVerifier::new(&authority.certificate_pem).expect("usable")).expect("a port");
        let lines = discovery.lines();
        (discovery, lines)
    }

    /// A relay of which there is nothing but its announcements.
    struct Announcing {
        signer: Signer,
        socket: UdpSocket,
        sequence: u64,
    }

    impl Announcing {
        async fn new(authority: &Authority, name: &str) -> Self {
            let signer = Signer::from_profile(&authority.relay(name)).expect("usable");
            let socket = UdpSocket::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.expect("a port");
            Self { signer, socket, sequence: 0 }
        }

        async fn announce(&mut self, discovery: &Discovery, kind: AnnouncementKind) {
            self.sequence += 1;
            let line = AnnouncedLine { number: LineNumber(1), port: 7654, weights: Weights::default(), state: LineState::Serving };
            let announcement = Announcement {
                kind,
                lan: LAN,
                address: Ipv4Addr::LOCALHOST.into(),
                stamp: Stamp { epoch: 1, sequence: self.sequence },
                sent_unix_secs: unix_secs(SystemTime::now()),
                interval_ms: 1000,
                lines: vec![line],
            };
            let packet = announcement.encode(self.signer.certificate_der(), |message| self.signer.sign(message));
            self.socket.send_to(&packet, discovery.local_addr()).await.expect("sent");
        }
    }

    struct Authority {
        issuer: Issuer<'static, KeyPair>,
        certificate_pem: String,
    }

    impl Authority {
        fn new() -> Self {
            let mut params = CertificateParams::new(vec![]).expect("no names");
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            let key = KeyPair::generate_for(&PKCS_ED25519).expect("a key");
            let certificate_pem = params.self_signed(&key).expect("a certificate").pem();
            Self { issuer: Issuer::new(params, key), certificate_pem }
        }

        fn relay(&self, name: &str) -> Profile {
            let identity = Identity { name: name.parse().expect("a name"), role: Role::Relay, lan: LAN };
            let mut params = CertificateParams::new(vec![identity.dns_name()]).expect("a name");
            params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
            let key = KeyPair::generate_for(&PKCS_ED25519).expect("a key");
            let certificate_pem = params.signed_by(&key, &self.issuer).expect("a certificate").pem();
            Profile {
                identity,
                lan_name: "elm".parse().expect("a name"),
                reconst: vec!["127.0.0.1:10000".parse().expect("a target")],
                certificate_pem,
                key_pem: key.serialize_pem(),
                authority_pem: self.certificate_pem.clone(),
            }
        }
    }
}
