//! Relays log in at a running `reconst`, over loopback.

mod common;

use common::{DEADLINE, Isp, LOOPBACK, name};
use reconst::accounts::Limits;
use shared::{
    community::{
        login::{CloseCode, DataAddress, Frames, FromReconst, FromRelay, Placement, VERSION},
        member::Role,
        profile::Profile,
    },
    ids::LanId,
    link::tls::{LOGIN_ALPN, SERVER_NAME, client_crypto},
};
use tokio::time::timeout;

#[tokio::test]
async fn a_relay_learns_its_lans_data_port_and_is_listed() {
    let isp = Isp::start().await;
    let relay = isp.registrar.add_relay(&name("elm"), &name("bob")).await.expect("a new relay");
    let mut login = isp.log_in(&relay, 3).await;
    let port = isp.running.data_addr(LanId(15)).expect("a LAN that is served").port();
    assert_eq!(login.next().await, Ok(FromReconst::Serving(vec![Placement { lan: LanId(15), data: DataAddress::Here(port) }])));
    let report = isp.running.directory().report();
    assert_eq!(report.iter().map(|login| (login.relay.as_str(), login.line)).collect::<Vec<_>>(), [("bob", 3)]);
    isp.stop().await;
    assert_eq!(login.next().await.expect_err("reconst is gone").0, Some(CloseCode::Leaving));
}

#[tokio::test]
async fn a_lan_added_while_running_is_served() {
    let isp = Isp::start().await;
    isp.registrar.add_lan(&name("oak"), Some(LanId(16)), None).await.expect("a new LAN");
    let relay = isp.registrar.add_relay(&name("oak"), &name("bob")).await.expect("a new relay");
    let mut login = isp.log_in(&relay, 0).await;
    let Ok(FromReconst::Serving(placements)) = login.next().await else { panic!("not served") };
    assert_eq!(placements[0].lan, LanId(16));
    isp.stop().await;
}

#[tokio::test]
async fn a_relay_that_is_removed_loses_its_login_and_hears_why() {
    let isp = Isp::start().await;
    let relay = isp.registrar.add_relay(&name("elm"), &name("bob")).await.expect("a new relay");
    let mut login = isp.log_in(&relay, 0).await;
    login.next().await.expect("logged in");
    isp.registrar.accounts().remove_member(&name("elm"), Role::Relay, &name("bob")).await.expect("a relay to remove");
    let (code, reason) = login.next().await.expect_err("removed");
    assert_eq!(code, Some(CloseCode::Denied));
    assert!(reason.starts_with("relay bob of LAN 15 was removed on 20"), "{reason}");

    let (code, again) = isp.log_in(&relay, 0).await.next().await.expect_err("removed");
    assert_eq!((code, again), (Some(CloseCode::Denied), reason));
    isp.stop().await;
}

#[tokio::test]
async fn a_user_is_no_relay() {
    let isp = Isp::start().await;
    let user = isp.registrar.add_user(&name("elm"), &name("ann"), &Limits::default()).await.expect("a new user");
    let (code, reason) = isp.log_in(&user, 0).await.next().await.expect_err("no relay");
    assert_eq!(code, Some(CloseCode::Denied));
    assert!(reason.contains("profile of a relay"), "{reason}");
    isp.stop().await;
}

#[tokio::test]
async fn what_is_no_login_is_cut_off() {
    let isp = Isp::start().await;
    let relay = isp.registrar.add_relay(&name("elm"), &name("bob")).await.expect("a new relay");
    let mut login = isp.log_in_saying(&relay, &[0xff; 64]).await;
    assert_eq!(login.next().await.expect_err("garbage").0, Some(CloseCode::Protocol));
    assert_eq!(isp.running.directory().report().len(), 0);
    isp.stop().await;
}

impl Isp {
    async fn log_in(&self, profile: &Profile, line: u8) -> Login {
        let mut message = Vec::new();
        FromRelay::Login { version: VERSION, line }.encode(&mut message);
        self.log_in_saying(profile, &message).await
    }

    async fn log_in_saying(&self, profile: &Profile, message: &[u8]) -> Login {
        let endpoint = quinn::Endpoint::client((LOOPBACK, 0).into()).expect("a loopback port");
        let config = quinn::ClientConfig::new(client_crypto(profile, LOGIN_ALPN).expect("a usable profile"));
        let connecting = endpoint.connect_with(config, self.running.login_addr(), SERVER_NAME).expect("a valid configuration");
        let connection = connecting.await.expect("reconst answers");
        let streams = async {
            let (mut send, receive) = connection.open_bi().await?;
            send.write_all(message).await.map_err(|_| quinn::ConnectionError::LocallyClosed)?;
            Ok::<_, quinn::ConnectionError>((send, receive))
        };
        let streams = streams.await.ok();
        Login { connection, streams, frames: Frames::default(), _endpoint: endpoint }
    }
}

struct Login {
    connection: quinn::Connection,
    streams: Option<(quinn::SendStream, quinn::RecvStream)>,
    frames: Frames,
    _endpoint: quinn::Endpoint,
}

impl Login {
    /// The next message, or why the connection was closed.
    async fn next(&mut self) -> Result<FromReconst, (Option<CloseCode>, String)> {
        timeout(DEADLINE, async {
            loop {
                if let Some(frame) = self.frames.poll_frame().expect("frames within the limit") {
                    return Ok(FromReconst::decode(&frame).expect("a message").expect("of this version"));
                }
                let mut bytes = [0; 1024];
                let read = match &mut self.streams {
                    Some((_, receive)) => receive.read(&mut bytes).await.ok().flatten(),
                    None => None,
                };
                let Some(len) = read else { return Err(self.closed().await) };
                self.frames.handle_bytes(&bytes[..len]);
            }
        })
        .await
        .expect("an answer in time")
    }

    async fn closed(&self) -> (Option<CloseCode>, String) {
        match self.connection.closed().await {
            quinn::ConnectionError::ApplicationClosed(close) => {
                (CloseCode::from_code(close.error_code.into_inner()), String::from_utf8_lossy(&close.reason).into_owned())
            }
            error => (None, error.to_string()),
        }
    }
}
