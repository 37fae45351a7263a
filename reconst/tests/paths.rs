//! Paths as `reconst` takes them, over loopback and without a relay between.

mod common;

use std::net::SocketAddr;

use common::{DEADLINE, Isp, LOOPBACK, name, until};
use reconst::accounts::Limits;
use shared::{
    community::{login::CloseCode, member::Role, profile::Profile, weight::LineWeight},
    ids::{LanId, PathId, SessionId},
    link::{
        CLOSE_LEAVING, CLOSE_OVER,
        join::{self, JoinError},
        tls::{PATH_ALPN, SERVER_NAME, client_crypto},
    },
    transfer::join::{JoinRequest, SessionSecret},
};
use tokio::time::timeout;

#[tokio::test]
async fn a_path_through_a_relay_that_is_removed_is_closed_and_another_refused() {
    let isp = Isp::start().await;
    isp.registrar.add_relay(&name("elm"), &name("bob-pc")).await.expect("a new relay");
    let ann = isp.registrar.add_user(&name("elm"), &name("ann"), &Limits::default()).await.expect("a new user");
    let (endpoint, connection) = isp.connect(&ann).await;
    join::request(&connection, &through("bob-pc", 0)).await.expect("joined");

    isp.registrar.accounts().remove_member(&name("elm"), Role::Relay, &name("bob-pc")).await.expect("a relay to remove");
    let ended = timeout(DEADLINE, connection.closed()).await.expect("closed in time");
    let quinn::ConnectionError::ApplicationClosed(close) = ended else { panic!("{ended}") };
    // The session goes on: that code ends a path alone.
    assert_eq!(CloseCode::from_code(close.error_code.into_inner()), Some(CloseCode::Moved));

    let (_endpoint, again) = isp.connect(&ann).await;
    let refused = join::request(&again, &through("bob-pc", 1)).await.expect_err("no relay");
    assert!(matches!(&refused, JoinError::Refused(reason) if reason.starts_with("bob-pc is no relay of LAN 15")), "{refused}");
    drop(endpoint);
    isp.stop().await;
}

#[tokio::test]
async fn a_session_that_its_proxy_ends_is_over_and_one_that_has_lost_its_paths_is_not() {
    let isp = Isp::start().await;
    isp.registrar.add_relay(&name("elm"), &name("bob-pc")).await.expect("a new relay");
    let ann = isp.registrar.add_user(&name("elm"), &name("ann"), &Limits::default()).await.expect("a new user");
    let paths = || isp.running.sessions().report().iter().map(|session| session.paths).collect::<Vec<_>>();

    let (_first, connection) = isp.connect(&ann).await;
    join::request(&connection, &through("bob-pc", 0)).await.expect("joined");
    connection.close(CLOSE_LEAVING.into(), b"");
    until(|| paths() == [0]).await;

    let (_second, connection) = isp.connect(&ann).await;
    join::request(&connection, &through("bob-pc", 1)).await.expect("joined");
    connection.close(CLOSE_OVER.into(), b"");
    until(|| paths().is_empty()).await;
    isp.stop().await;
}

#[tokio::test]
async fn a_path_that_is_about_to_join_has_its_number_and_its_place_already() {
    let isp = Isp::start().await;
    isp.registrar.add_relay(&name("elm"), &name("bob-pc")).await.expect("a new relay");
    let ann = isp.registrar.add_user(&name("elm"), &name("ann"), &Limits::default()).await.expect("a new user");
    let mut takes_no_answer = quinn::TransportConfig::default();
    takes_no_answer.stream_receive_window(0u32.into());
    let (_endpoint, connection) = isp.connect_with(&ann, takes_no_answer).await;
    let joining = tokio::spawn(async move { join::request(&connection, &through("bob-pc", 0)).await });
    until(|| !isp.running.sessions().report().is_empty()).await;

    let (_endpoint, other) = isp.connect(&ann).await;
    let refused = join::request(&other, &through("bob-pc", 0)).await.expect_err("the number is taken");
    assert!(matches!(&refused, JoinError::Refused(reason) if reason == "the session has a path of that number"), "{refused}");
    let (_endpoint, other) = isp.connect(&ann).await;
    join::request(&other, &through("bob-pc", 1)).await.expect("joined");

    joining.abort();
    assert!(joining.await.is_err_and(|error| error.is_cancelled()));
    isp.stop().await;
}

#[tokio::test]
async fn those_who_connect_and_say_nothing_keep_nobody_out() {
    let isp = Isp::start().await;
    isp.registrar.add_relay(&name("elm"), &name("bob-pc")).await.expect("a new relay");
    let ann = isp.registrar.add_user(&name("elm"), &name("ann"), &Limits::default()).await.expect("a new user");
    let mut silent = Vec::new();
    for address in [[127, 0, 0, 2], [127, 0, 0, 3]] {
        let endpoint = quinn::Endpoint::client((address, 0).into()).expect("a loopback port");
        // Until they are refused: all places are taken.
        for _ in 0..1024 {
            match isp.try_connect(&endpoint, &ann, quinn::TransportConfig::default()).await {
                Ok(connection) => silent.push(connection),
                Err(_) => break,
            }
        }
    }
    assert!(silent.len() > 512, "{}", silent.len());

    let (_endpoint, connection) = isp.connect(&ann).await;
    join::request(&connection, &through("bob-pc", 0)).await.expect("joined");
    isp.stop().await;
}

fn through(relay: &str, path: u32) -> JoinRequest {
    JoinRequest {
        session: SessionId([7; 16]),
        secret: SessionSecret([8; 32]),
        path: PathId(path),
        incarnation: None,
        weight_down: LineWeight::default(),
        line: 1,
        relay: relay.into(),
    }
}

impl Isp {
    async fn connect(&self, profile: &Profile) -> (quinn::Endpoint, quinn::Connection) {
        self.connect_with(profile, quinn::TransportConfig::default()).await
    }

    async fn connect_with(&self, profile: &Profile, transport: quinn::TransportConfig) -> (quinn::Endpoint, quinn::Connection) {
        let endpoint = quinn::Endpoint::client(SocketAddr::new(LOOPBACK, 0)).expect("a loopback port");
        let connection = self.try_connect(&endpoint, profile, transport).await.expect("reconst answers");
        (endpoint, connection)
    }

    async fn try_connect(
        &self,
        endpoint: &quinn::Endpoint,
        profile: &Profile,
        transport: quinn::TransportConfig,
    ) -> Result<quinn::Connection, quinn::ConnectionError> {
        let mut config = quinn::ClientConfig::new(client_crypto(profile, PATH_ALPN).expect("a usable profile"));
        config.transport_config(transport.into());
        let data_port = self.running.data_addr(LanId(15)).expect("a LAN that is served");
        let connecting = endpoint.connect_with(config, data_port, SERVER_NAME).expect("a valid configuration");
        timeout(DEADLINE, connecting).await.expect("in time")
    }
}
