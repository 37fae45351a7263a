//! SOCKS4 and SOCKS4a: CONNECT to an IPv4 address, or to a name that is passed on unresolved.
//!
//! The protocol has a user without a password, so it is refused when a password is set.

use std::{io, net::Ipv4Addr};

use shared::{
    link::pipe::pipe,
    target::{Host, Target},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::{Front, mixed::close_after_answer};
use crate::outbound::Outbound;

/// Serves one connection from its request to the end of its flow.
pub(super) async fn serve<O: Outbound>(mut tcp: TcpStream, front: &Front<O>) {
    let Ok(application) = tcp.peer_addr() else { return };
    let target = match tokio::time::timeout(front.limits.handshake, read_request(&mut tcp)).await {
        Ok(Ok(target)) => target,
        Ok(Err(error)) => return tracing::debug!(%application, %error, "SOCKS4 request"),
        Err(_) => return tracing::debug!(%application, "the SOCKS4 request took too long"),
    };
    let Some(target) = target.filter(|_| front.rules().credentials.is_none()) else {
        return refuse(tcp).await;
    };
    let Ok(stream) = front.open(target, application).await else {
        return refuse(tcp).await;
    };
    if reply(&mut tcp, GRANTED).await.is_ok()
        && let Err(error) = pipe(tcp, stream).await
    {
        tracing::debug!(%application, %error, "flow aborted");
    }
}

/// Reads the whole request; `None` if it asks for what is not done here.
async fn read_request(tcp: &mut TcpStream) -> io::Result<Option<Target>> {
    let mut fixed = [0; 8];
    tcp.read_exact(&mut fixed).await?;
    let [_version, command, port_high, port_low, a, b, c, d] = fixed;
    let port = u16::from_be_bytes([port_high, port_low]);
    read_field(tcp).await?;
    let host = match [a, b, c, d] {
        // An address 0.0.0.x says that a name follows (SOCKS4a).
        [0, 0, 0, 1..=255] => match String::from_utf8(read_field(tcp).await?).ok().and_then(|name| Host::parse(&name).ok()) {
            Some(host) => host,
            None => return Ok(None),
        },
        octets => Host::Ip(Ipv4Addr::from(octets).into()),
    };
    Ok((command == CONNECT && port != 0).then_some(Target { host, port }))
}

/// Reads up to the zero byte that ends the user and the name. Byte by byte, since what follows belongs to the flow.
async fn read_field(tcp: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut field = Vec::new();
    loop {
        match tcp.read_u8().await? {
            0 => return Ok(field),
            _ if field.len() == FIELD_BYTES_MAX => return Err(io::Error::new(io::ErrorKind::InvalidData, "a field without an end")),
            byte => field.push(byte),
        }
    }
}

async fn refuse(mut tcp: TcpStream) {
    if reply(&mut tcp, REFUSED).await.is_ok() {
        close_after_answer(tcp).await;
    }
}

async fn reply(tcp: &mut TcpStream, code: u8) -> io::Result<()> {
    tcp.write_all(&[0, code, 0, 0, 0, 0, 0, 0]).await
}

const CONNECT: u8 = 1;
const GRANTED: u8 = 90;
const REFUSED: u8 = 91;

/// The longest host name; a user's name is not longer.
const FIELD_BYTES_MAX: usize = 255;
