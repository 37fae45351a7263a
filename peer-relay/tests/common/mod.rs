//! A LAN without its programs: an authority, a `reconst` that only answers logins, content on its data port.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use peer_relay::{AnnounceConfig, Config, Running};
use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, PKCS_ED25519};
use shared::{
    community::{
        login::{DataAddress, FromReconst, Placement},
        member::{Identity, RECONST_NAME, Role},
        profile::Profile,
    },
    ids::LanId,
    link::tls::{LOGIN_ALPN, MemberVerifier, Signer, server_crypto},
    service::Shutdown,
};
use tokio::{net::UdpSocket, task::JoinHandle, time::timeout};

pub(crate) const LAN: LanId = LanId(15);
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

/// An authority that signs whatever it is asked to.
pub(crate) struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate_pem: String,
}

/// A `reconst` of which there is a login port, and a data port that the test speaks for.
pub(crate) struct Reconst {
    pub(crate) login: SocketAddr,
    pub(crate) data: UdpSocket,
    task: JoinHandle<()>,
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(vec![]).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        let key = KeyPair::generate_for(&PKCS_ED25519).expect("a key");
        let certificate_pem = params.self_signed(&key).expect("a certificate").pem();
        Self { issuer: Issuer::new(params, key), certificate_pem }
    }

    fn issue(&self, name: String, usage: ExtendedKeyUsagePurpose) -> (String, String) {
        let mut params = CertificateParams::new(vec![name]).expect("a name");
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate_for(&PKCS_ED25519).expect("a key");
        (params.signed_by(&key, &self.issuer).expect("a certificate").pem(), key.serialize_pem())
    }

    pub(crate) fn profile(&self, name: &str, role: Role, login: SocketAddr) -> Profile {
        let identity = Identity { name: name.parse().expect("a name"), role, lan: LAN };
        let (certificate_pem, key_pem) = self.issue(identity.dns_name(), ExtendedKeyUsagePurpose::ClientAuth);
        Profile {
            identity,
            lan_name: "elm".parse().expect("a name"),
            reconst: vec![login.to_string().parse().expect("a target")],
            certificate_pem,
            key_pem,
            authority_pem: self.certificate_pem.clone(),
        }
    }

    pub(crate) fn user(&self, name: &str) -> Signer {
        Signer::from_profile(&self.profile(name, Role::User, SocketAddr::from(([127, 0, 0, 1], 1)))).expect("usable")
    }

    pub(crate) fn verifier(&self) -> MemberVerifier {
        MemberVerifier::new(&self.certificate_pem).expect("usable")
    }

    pub(crate) async fn reconst(&self) -> Reconst {
        let (certificate, key) = self.issue(RECONST_NAME.into(), ExtendedKeyUsagePurpose::ServerAuth);
        let crypto = server_crypto(&self.certificate_pem, &certificate, &key, LOGIN_ALPN).expect("usable");
        let endpoint = quinn::Endpoint::server(quinn::ServerConfig::with_crypto(crypto), loopback()).expect("a port");
        let data = UdpSocket::bind(loopback()).await.expect("a port");
        let (login, port) = (endpoint.local_addr().expect("bound"), data.local_addr().expect("bound").port());
        let task = tokio::spawn(async move {
            let mut logins = Vec::new();
            while let Some(incoming) = endpoint.accept().await {
                let Ok(connection) = incoming.await else { continue };
                let Ok((mut send, receive)) = connection.accept_bi().await else { continue };
                let mut answer = Vec::new();
                FromReconst::Serving(vec![Placement { lan: LAN, data: DataAddress::Here(port) }]).encode(&mut answer);
                send.write_all(&answer).await.expect("the relay reads");
                logins.push((connection, send, receive));
            }
        });
        Reconst { login, data, task }
    }
}

impl Drop for Reconst {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// A relay's configuration for loopback: any port, no announcements.
pub(crate) fn config(profile: Profile) -> Config {
    let mut config = Config::new(profile);
    config.lines[0].lan_bind = Some(loopback());
    config.announce = AnnounceConfig { multicast: false, ..AnnounceConfig::default() };
    config
}

/// A relay that is logged in.
pub(crate) async fn ready(config: Config, shutdown: Shutdown) -> Running {
    let relay = peer_relay::start(config, shutdown).await.expect("started");
    let mut upstream = relay.upstreams().remove(0);
    timeout(DEADLINE, upstream.wait_for(|upstream| upstream.is_logged_in)).await.expect("in time").expect("the relay runs");
    relay
}

pub(crate) fn loopback() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

/// The socket of a proxy.
pub(crate) async fn socket() -> Arc<UdpSocket> {
    Arc::new(UdpSocket::bind(loopback()).await.expect("a port"))
}

/// The next packet, which must come.
pub(crate) async fn next(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut packet = vec![0; 2048];
    let (len, from) = timeout(DEADLINE, socket.recv_from(&mut packet)).await.expect("in time").expect("received");
    packet.truncate(len);
    (packet, from)
}

/// Waits for something that has no event of its own.
pub(crate) async fn until(mut holds: impl FnMut() -> bool) {
    let waits = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    timeout(DEADLINE, waits).await.expect("in time");
}
