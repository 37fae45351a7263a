//! UDP sockets and the QUIC endpoints on them.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    sync::Arc,
};

use quinn::{Endpoint, TokioRuntime};
use shared::link::{path_socket::PathSocket, transport::server_endpoint};
use socket2::{Domain, Protocol, Socket, Type};

/// A QUIC server on a new socket at `address`; at `::` it takes IPv4 too. Servers with the same `secret` know each other's connections.
///
/// # Errors
/// If the address can't be bound.
pub(crate) fn serve_at(address: SocketAddr, config: quinn::ServerConfig, secret: &[u8]) -> io::Result<Endpoint> {
    let socket = PathSocket::new(udp_socket(address)?)?;
    Endpoint::new_with_abstract_socket(server_endpoint(secret), Some(config), socket, Arc::new(TokioRuntime))
}

fn udp_socket(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
    if address.ip().is_unspecified() && address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_recv_buffer_size(BUFFER_BYTES)?;
    socket.set_send_buffer_size(BUFFER_BYTES)?;
    let granted = socket.recv_buffer_size()?;
    if granted < BUFFER_BYTES {
        tracing::debug!(granted, wanted = BUFFER_BYTES, "small socket buffers: raise net.core.rmem_max and net.core.wmem_max");
    }
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    Ok(socket.into())
}

/// The address to listen on unless one is set: both families where the system has them.
pub fn any_address() -> IpAddr {
    let both = SocketAddr::from(([0u16; 8], 0));
    if udp_socket(both).is_ok() { both.ip() } else { Ipv4Addr::UNSPECIFIED.into() }
}

/// All paths of a LAN share a socket: at 1 Gbit/s this holds 32 ms, which is how long its reader may be away.
const BUFFER_BYTES: usize = 4 << 20;
