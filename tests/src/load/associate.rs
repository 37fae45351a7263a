//! A client of SOCKS5's UDP ASSOCIATE.

use std::{io, net::SocketAddr};

use bytes::{Buf, BufMut};
use shared::target::{Host, Target};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UdpSocket},
};

use super::connect::ConnectError;

/// An association with a proxy; dropping it ends it.
#[derive(Debug)]
pub struct Association {
    tcp: TcpStream,
    socket: UdpSocket,
}

impl Association {
    /// Asks the proxy for an association.
    ///
    /// # Errors
    /// If there is none, with the proxy's code.
    pub async fn begin(proxy: SocketAddr) -> Result<Self, ConnectError> {
        let tcp = TcpStream::connect(proxy).await?;
        let socket = UdpSocket::bind(SocketAddr::new(tcp.local_addr()?.ip(), 0)).await?;
        Self::begin_with(tcp, socket).await
    }

    /// As [`Association::begin`], with a connection to the proxy and a socket that were made elsewhere.
    ///
    /// # Errors
    /// If there is none, with the proxy's code.
    pub async fn begin_with(mut tcp: TcpStream, socket: UdpSocket) -> Result<Self, ConnectError> {
        let [high, low] = socket.local_addr()?.port().to_be_bytes();
        tcp.write_all(&[5, 1, 0, 5, 3, 0, 1, 0, 0, 0, 0, high, low]).await?;
        let mut reply = [0; 12];
        tcp.read_exact(&mut reply).await?;
        let [5, 0, 5, code, 0, 1, a, b, c, d, high, low] = reply else { return Err(io::Error::from(io::ErrorKind::InvalidData).into()) };
        if code != 0 {
            return Err(ConnectError::Socks(code));
        }
        socket.connect(SocketAddr::from(([a, b, c, d], u16::from_be_bytes([high, low])))).await?;
        Ok(Self { tcp, socket })
    }

    /// Sends a datagram to `target`.
    ///
    /// # Errors
    /// If the socket does not take it.
    pub async fn send(&self, target: &Target, payload: &[u8]) -> io::Result<()> {
        let mut datagram = vec![0, 0, 0];
        match &target.host {
            Host::Ip(std::net::IpAddr::V4(ip)) => {
                datagram.put_u8(1);
                datagram.put_slice(&ip.octets());
            }
            Host::Ip(std::net::IpAddr::V6(ip)) => {
                datagram.put_u8(4);
                datagram.put_slice(&ip.octets());
            }
            Host::Name(name) => {
                datagram.put_u8(3);
                datagram.put_u8(name.len() as u8);
                datagram.put_slice(name.as_bytes());
            }
        }
        datagram.put_u16(target.port);
        datagram.put_slice(payload);
        self.socket.send(&datagram).await.map(|_| ())
    }

    /// Waits for the next datagram and where it comes from.
    ///
    /// # Errors
    /// If it is none of SOCKS5.
    pub async fn receive(&self) -> io::Result<(SocketAddr, Vec<u8>)> {
        let mut datagram = vec![0; 65_536];
        let len = self.socket.recv(&mut datagram).await?;
        let mut rest = &datagram[..len];
        let address = match rest {
            [0, 0, 0, 1, a, b, c, d, ..] if len >= 10 => [*a, *b, *c, *d],
            _ => return Err(io::ErrorKind::InvalidData.into()),
        };
        rest.advance(8);
        let port = rest.get_u16();
        Ok((SocketAddr::from((address, port)), rest.to_vec()))
    }

    /// Waits until the proxy ends the association.
    pub async fn ended(&mut self) {
        let _ = self.tcp.read(&mut [0]).await;
    }
}
