//! A PC becomes a member, or stays one: the request and reply of [`crate::community::enrol`] on a connection.
//!
//! Enters: a socket, an address that leads to `reconst`, an invite's fingerprint; or a connection that stands, for a renewal. Leaves: the
//! certificate for the key of this PC. Which way leads to `reconst` is left to whoever calls, who may be a member to `reconst`.

use std::{
    net::{SocketAddr, UdpSocket},
    sync::Arc,
    time::Duration,
};

use quinn::{ClientConfig, Connection, ConnectionError, Endpoint, EndpointConfig, RecvStream, SendStream, TransportConfig, VarInt};
use thiserror::Error;
use tokio::time::timeout;

use super::{
    key::{NewKey, holds_its_key, pem},
    pinned::{PinnedTls, Server},
    tls::{SERVER_NAME, TlsError},
};
use crate::{
    community::{
        enrol::{EXPORTER_LABEL, EnrolReply, EnrolRequest, Issued, KeyingMaterial, Title, message_len},
        invite::Fingerprint,
    },
    wire::WireError,
};

/// Why a PC got no certificate.
#[derive(Debug, Error)]
pub enum EnrolError {
    /// Nothing came back.
    #[error("reconst does not answer at {0}")]
    Silent(SocketAddr),
    /// Somebody else did.
    #[error("who answers at {0} is not the reconst that made the invite")]
    Foreign(SocketAddr),
    /// It did, with a certificate that can't be used now.
    #[error("reconst answers at {0}, but {1}")]
    Unusable(SocketAddr, String),
    /// `reconst` says no.
    #[error("reconst refuses: {0}")]
    Refused(String),
    /// `reconst` says not now.
    #[error("reconst is busy: {0}")]
    Busy(String),
    /// The connection ended first.
    #[error("the connection to reconst ended: {0}")]
    Connection(#[from] ConnectionError),
    /// The request or reply did not come whole.
    #[error("the connection to reconst broke: {0}")]
    Stream(String),
    /// The other end sent what can't be.
    #[error("the other end sent what is no enrolment ({0}): one of the two programs may be too old")]
    Malformed(#[from] WireError),
    /// The request was signed by another key, or for another connection.
    #[error("the request is not signed by its key")]
    Signature,
    /// This PC can't make a key or a connection.
    #[error("{0}")]
    Own(String),
}

/// A `reconst` that was reached and is the right one.
#[derive(Debug)]
pub struct Reached {
    /// The connection, on which [`request`] may be made.
    pub connection: Connection,
    /// The authority's certificate, PEM.
    pub authority_pem: String,
    endpoint: Endpoint,
}

/// Connects to the `reconst` whose authority has this fingerprint, at `address`: its own, or a relay's that passes on to it what `socket`
/// sends.
///
/// # Errors
/// If it does not answer within [`CONNECT_TIME`], or somebody else does.
pub async fn connect(socket: UdpSocket, address: SocketAddr, fingerprint: Fingerprint) -> Result<Reached, EnrolError> {
    let own = |error: &dyn std::fmt::Display| EnrolError::Own(format!("can't make a connection: {error}"));
    let tls = PinnedTls::new(fingerprint).map_err(|error: TlsError| own(&error))?;
    let mut endpoint_config = EndpointConfig::default();
    // On the way may be a relay, which tells QUIC by the fixed bit.
    endpoint_config.grease_quic_bit(false);
    let endpoint = Endpoint::new(endpoint_config, None, socket, Arc::new(quinn::TokioRuntime)).map_err(|error| own(&error))?;
    let mut config = ClientConfig::new(tls.crypto.clone());
    config.transport_config(Arc::new(transport()));
    let connecting = endpoint.connect_with(config, address, SERVER_NAME).map_err(|error| own(&error))?;
    let connected = timeout(CONNECT_TIME, connecting).await.map_err(|_| EnrolError::Silent(address))?;
    match (tls.server(), connected) {
        (Some(Server::Trusted(authority)), Ok(connection)) => {
            Ok(Reached { connection, authority_pem: pem("CERTIFICATE", &authority), endpoint })
        }
        (Some(Server::Foreign), _) => Err(EnrolError::Foreign(address)),
        (Some(Server::Unusable(why)), _) => Err(EnrolError::Unusable(address, why)),
        (_, Err(ConnectionError::TimedOut)) | (None, Ok(_)) => Err(EnrolError::Silent(address)),
        (_, Err(error)) => Err(error.into()),
    }
}

impl Reached {
    /// Closes the connection, and sees to it that the other end hears of it.
    pub async fn close(self) {
        self.connection.close(VarInt::from_u32(super::CLOSE_LEAVING), b"done");
        let _ = timeout(CLOSE_TIME, self.endpoint.wait_idle()).await;
    }
}

/// Asks over `connection` for a certificate of `key`, with `title` to it.
///
/// # Errors
/// What `reconst` says, or what broke on the way.
pub async fn request(connection: &Connection, title: Title, key: &NewKey) -> Result<Issued, EnrolError> {
    let exchange = async {
        let (mut send, mut receive) = connection.open_bi().await?;
        let request = key.request(title, &keying_material(connection)?);
        send.write_all(&request.encode()).await.map_err(|error| broken(connection, &error))?;
        let _ = send.finish();
        Ok::<_, EnrolError>(EnrolReply::decode(&read_message(connection, &mut receive).await?)?)
    };
    let reply = timeout(REPLY_TIME, exchange).await.map_err(|_| EnrolError::Silent(connection.remote_address()))??;
    match reply {
        EnrolReply::Issued(issued) => Ok(issued),
        EnrolReply::Refused(reason) => Err(EnrolError::Refused(reason)),
        EnrolReply::Busy(reason) => Err(EnrolError::Busy(reason)),
    }
}

/// Waits for the other end's next request, which is signed by its key; gives it and the stream for [`answer`].
///
/// # Errors
/// What broke on the way, or a malformed request.
pub async fn receive(connection: &Connection) -> Result<(EnrolRequest, SendStream), EnrolError> {
    let (send, mut receive) = connection.accept_bi().await?;
    let message = timeout(REPLY_TIME, read_message(connection, &mut receive)).await;
    let request = EnrolRequest::decode(&message.map_err(|_| EnrolError::Silent(connection.remote_address()))??)?;
    if holds_its_key(&request, &keying_material(connection)?) { Ok((request, send)) } else { Err(EnrolError::Signature) }
}

/// Answers a request that was received; an end that does not read it is not waited for long.
pub async fn answer(mut send: SendStream, reply: &EnrolReply) {
    if send.write_all(&reply.encode()).await.is_ok() && send.finish().is_ok() {
        let _ = timeout(REPLY_TIME, send.stopped()).await;
    }
}

fn keying_material(connection: &Connection) -> Result<KeyingMaterial, EnrolError> {
    let mut material = [0; 32];
    let exported = connection.export_keying_material(&mut material, EXPORTER_LABEL, b"");
    exported.map_err(|_| EnrolError::Own("the connection has no keying material".into()))?;
    Ok(material)
}

async fn read_message(connection: &Connection, receive: &mut RecvStream) -> Result<Vec<u8>, EnrolError> {
    let mut first = [0; 2];
    receive.read_exact(&mut first).await.map_err(|error| broken(connection, &error))?;
    let mut message = vec![0; message_len(first)?];
    receive.read_exact(&mut message).await.map_err(|error| broken(connection, &error))?;
    Ok(message)
}

/// What a close of the connection says tells more than what it did to a stream.
fn broken(connection: &Connection, error: &dyn std::fmt::Display) -> EnrolError {
    connection.close_reason().map_or_else(|| EnrolError::Stream(error.to_string()), EnrolError::Connection)
}

fn transport() -> TransportConfig {
    let mut transport = TransportConfig::default();
    transport
        .max_concurrent_bidi_streams(VarInt::from_u32(0))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(WINDOW_BYTES))
        .receive_window(VarInt::from_u32(WINDOW_BYTES))
        .send_window(WINDOW_BYTES.into())
        .datagram_receive_buffer_size(None)
        // A relay on the way passes on a few packets alone: none of them for larger ones.
        .mtu_discovery_config(None);
    transport
}

/// How long a handshake may take: several round trips of a modem line.
pub const CONNECT_TIME: Duration = Duration::from_secs(8);

/// How long a request or its reply may take on a connection that stands.
pub const REPLY_TIME: Duration = Duration::from_secs(8);

/// For the last packet to go out.
const CLOSE_TIME: Duration = Duration::from_millis(500);

/// One message, and room to spare.
const WINDOW_BYTES: u32 = 8192;
