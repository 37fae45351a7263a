//! SOCKS5 (RFC 1928), without authentication or with user and password (RFC 1929).
//!
//! CONNECT and UDP ASSOCIATE: BIND has no meaning behind shared lines. Names are passed on unresolved. The greeting and the addresses
//! are read by `fast-socks5`; its own user/password step is not used, since it logs the password.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
};

use fast_socks5::{
    ReplyError, SocksError, consts,
    server::{AuthMethod, NoAuthentication, Socks5ServerProtocol, SocksServerError},
    util::target_addr::{AddrError, TargetAddr, read_address},
};
use shared::{
    link::pipe::pipe,
    target::{Host, RefusalKind, Target},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{Front, associate, auth::Credentials, mixed::close_after_answer};
use crate::outbound::Outbound;

/// Serves one connection from its greeting to the end of its flow.
pub(super) async fn serve<O: Outbound>(mut tcp: TcpStream, front: &Front<O>) {
    let Ok(application) = tcp.peer_addr() else { return };
    let credentials = front.rules().credentials;
    let request = match tokio::time::timeout(front.limits.handshake, handshake(&mut tcp, credentials.as_deref())).await {
        Ok(Ok(request)) => request,
        Ok(Err(error)) => {
            tracing::debug!(%application, %error, "SOCKS5 handshake");
            return close_after_answer(tcp).await;
        }
        Err(_) => return tracing::debug!(%application, "the SOCKS5 handshake took too long"),
    };
    let answer = match request {
        Request::Connect(target) => match front.open(target, application).await {
            Ok(stream) => {
                if reply(&mut tcp, consts::SOCKS5_REPLY_SUCCEEDED).await.is_ok()
                    && let Err(error) = pipe(tcp, stream).await
                {
                    tracing::debug!(%application, %error, "flow aborted");
                }
                return;
            }
            Err(refusal) => reply_for(refusal.kind),
        },
        Request::UdpAssociate { port } => match associate::begin(&tcp, port, front) {
            Ok(association) => {
                if reply_from(&mut tcp, consts::SOCKS5_REPLY_SUCCEEDED, association.address()).await.is_ok() {
                    association.serve(tcp, front).await;
                }
                return;
            }
            Err(refusal) => reply_for(refusal.kind),
        },
        Request::Unknown => ReplyError::CommandNotSupported,
        Request::BadAddressType => ReplyError::AddressTypeNotSupported,
        Request::BadName => ReplyError::HostUnreachable,
        Request::BadPort => ReplyError::GeneralFailure,
    };
    if reply(&mut tcp, answer.as_u8()).await.is_ok() {
        close_after_answer(tcp).await;
    }
}

enum Request {
    Connect(Target),
    UdpAssociate {
        /// Where the application says its datagrams come from; 0 if it does not say.
        port: u16,
    },
    Unknown,
    BadAddressType,
    BadName,
    BadPort,
}

async fn handshake(tcp: &mut TcpStream, credentials: Option<&Credentials>) -> Result<Request, SocksError> {
    match credentials {
        None => {
            Socks5ServerProtocol::start(&mut *tcp).negotiate_auth(&[NoAuthentication]).await?;
        }
        Some(credentials) => {
            Socks5ServerProtocol::start(&mut *tcp).negotiate_auth(&[UserAndPassword]).await?;
            authenticate(tcp, credentials).await?;
        }
    }
    let [version, command, _reserved, address_type] = read_array(tcp).await?;
    if version != consts::SOCKS5_VERSION {
        return Err(SocksError::UnsupportedSocksVersion(version));
    }
    let address = match read_address(tcp, address_type).await {
        Ok(address) => address,
        Err(AddrError::IncorrectAddressType) => return Ok(Request::BadAddressType),
        Err(AddrError::Utf8(_)) => return Ok(Request::BadName),
        Err(error) => return Err(error.into()),
    };
    Ok(match command {
        consts::SOCKS5_CMD_TCP_CONNECT => connect_request(address),
        consts::SOCKS5_CMD_UDP_ASSOCIATE => Request::UdpAssociate {
            port: match address {
                TargetAddr::Ip(address) => address.port(),
                TargetAddr::Domain(_, port) => port,
            },
        },
        _ => Request::Unknown,
    })
}

/// The user/password method's identifier alone, for the negotiation.
#[derive(Clone, Copy)]
struct UserAndPassword;

impl<T> AuthMethod<T> for UserAndPassword {
    type StartingState = ();

    fn method_id(self) -> u8 {
        consts::SOCKS5_AUTH_METHOD_PASSWORD
    }

    fn new(self, _inner: T) {}
}

async fn authenticate(tcp: &mut TcpStream, credentials: &Credentials) -> Result<(), SocksError> {
    let [version, user_len] = read_array(tcp).await?;
    let user = read_bytes(tcp, user_len).await?;
    let [password_len] = read_array(tcp).await?;
    let password = read_bytes(tcp, password_len).await?;
    let is_admitted = version == SUBNEGOTIATION_VERSION && credentials.admit(&user, &password);
    tcp.write_all(&[SUBNEGOTIATION_VERSION, u8::from(!is_admitted)]).await?;
    if !is_admitted {
        return Err(SocksServerError::AuthenticationRejected.into());
    }
    Ok(())
}

fn connect_request(address: TargetAddr) -> Request {
    let (host, port) = match address {
        TargetAddr::Ip(address) => (Host::Ip(address.ip().to_canonical()), address.port()),
        TargetAddr::Domain(name, port) => match Host::parse(&name) {
            Ok(host) => (host, port),
            Err(_) => return Request::BadName,
        },
    };
    if port == 0 { Request::BadPort } else { Request::Connect(Target { host, port }) }
}

fn reply_for(kind: RefusalKind) -> ReplyError {
    match kind {
        RefusalKind::General | RefusalKind::NoPath => ReplyError::GeneralFailure,
        RefusalKind::Denied | RefusalKind::OverQuota => ReplyError::ConnectionNotAllowed,
        RefusalKind::NetworkUnreachable => ReplyError::NetworkUnreachable,
        RefusalKind::HostUnreachable | RefusalKind::NameNotFound => ReplyError::HostUnreachable,
        RefusalKind::ConnectionRefused => ReplyError::ConnectionRefused,
        RefusalKind::TimedOut => ReplyError::TtlExpired,
    }
}

/// The bound address that the reply to CONNECT carries is 0.0.0.0:0: the dedicated port is `reconst`'s, and no client needs it.
async fn reply(tcp: &mut TcpStream, code: u8) -> io::Result<()> {
    reply_from(tcp, code, SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0))).await
}

async fn reply_from(tcp: &mut TcpStream, code: u8, bound: SocketAddr) -> io::Result<()> {
    let mut reply = vec![consts::SOCKS5_VERSION, code, 0];
    match bound.ip() {
        IpAddr::V4(ip) => {
            reply.push(consts::SOCKS5_ADDR_TYPE_IPV4);
            reply.extend(ip.octets());
        }
        IpAddr::V6(ip) => {
            reply.push(consts::SOCKS5_ADDR_TYPE_IPV6);
            reply.extend(ip.octets());
        }
    }
    reply.extend(bound.port().to_be_bytes());
    tcp.write_all(&reply).await
}

async fn read_array<const N: usize>(tcp: &mut TcpStream) -> io::Result<[u8; N]> {
    let mut array = [0; N];
    tcp.read_exact(&mut array).await?;
    Ok(array)
}

async fn read_bytes(tcp: &mut TcpStream, len: u8) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; usize::from(len)];
    tcp.read_exact(&mut bytes).await?;
    Ok(bytes)
}

/// The version of the user/password subnegotiation (RFC 1929 §2).
const SUBNEGOTIATION_VERSION: u8 = 1;
