//! A line's sockets: those towards the LAN and those that leave over this line and no other.

use std::{
    fmt, io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
};

use shared::service::{Exit, Failure, bind_failure};
use socket2::{Domain, Protocol, Socket, Type};

/// Which way a line's packets leave this PC.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub enum WanBinding {
    /// Wherever the PC's default route leads.
    #[default]
    Default,
    /// From this address of the PC, wherever its routes for that address lead.
    Address(IpAddr),
    /// Through this network interface, whatever its address is at the time.
    Interface(String),
}

impl WanBinding {
    /// A socket that sends over this line to addresses of the family of `towards`.
    ///
    /// # Errors
    /// If there is no such address or interface, or this user may not use it.
    pub fn open(&self, towards: IpAddr) -> io::Result<UdpSocket> {
        let local = match (self, towards) {
            (Self::Address(local), _) => *local,
            (_, IpAddr::V4(_)) => Ipv4Addr::UNSPECIFIED.into(),
            (_, IpAddr::V6(_)) => Ipv6Addr::UNSPECIFIED.into(),
        };
        if local.is_ipv4() != towards.is_ipv4() {
            return Err(io::Error::new(
                io::ErrorKind::Unsupported,
                format!("{local} can't send to {towards}: one is IPv4, the other IPv6"),
            ));
        }
        let socket = udp_socket(local)?;
        if let Self::Interface(name) = self {
            bind_to_interface(&socket, name)?;
        }
        socket.bind(&SocketAddr::new(local, 0).into())?;
        Ok(socket.into())
    }

    /// Whether the line can be used right now.
    ///
    /// # Errors
    /// What to do about it, if it can't.
    pub fn check(&self) -> Result<(), Failure> {
        let towards = match self {
            Self::Address(local) => *local,
            Self::Default | Self::Interface(_) => Ipv4Addr::LOCALHOST.into(),
        };
        self.open(towards).map(|_| ()).map_err(|error| match self {
            Self::Default => Failure::unavailable(format!("can't open a UDP socket: {error}")),
            Self::Address(local) => bind_failure(SocketAddr::new(*local, 0), "--wan-bind", &error),
            Self::Interface(name) if error.kind() == io::ErrorKind::PermissionDenied => Failure::new(
                Exit::Permission,
                format!(
                    "this user may not bind to the interface {name}: use --wan-bind with the interface's address, or grant the program CAP_NET_RAW"
                ),
            ),
            Self::Interface(name) => Failure::config(format!(
                "can't use the interface {name} ({error}): `ip link` lists the interfaces, choose the line's with --wan-interface"
            )),
        })
    }
}

impl fmt::Display for WanBinding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("the default route"),
            Self::Address(local) => local.fmt(f),
            Self::Interface(name) => f.write_str(name),
        }
    }
}

/// The socket that a line's users send to: `bind`, or `default_port` on every address of the PC, IPv6 included where there is any.
///
/// # Errors
/// What to do about it, if the address can't be had.
pub(crate) fn open_lan(bind: Option<SocketAddr>, default_port: u16) -> Result<UdpSocket, Failure> {
    if let Some(address) = bind {
        return try_open_lan(address).map_err(|error| bind_failure(address, "--lan-bind", &error));
    }
    let any = |ip: IpAddr| SocketAddr::new(ip, default_port);
    try_open_lan(any(Ipv6Addr::UNSPECIFIED.into())).or_else(|error| match error.kind() {
        io::ErrorKind::AddrInUse => Err(bind_failure(any(Ipv6Addr::UNSPECIFIED.into()), "--lan-bind", &error)),
        _ => {
            let address = any(Ipv4Addr::UNSPECIFIED.into());
            try_open_lan(address).map_err(|error| bind_failure(address, "--lan-bind", &error))
        }
    })
}

fn try_open_lan(address: SocketAddr) -> io::Result<UdpSocket> {
    let socket = udp_socket(address.ip())?;
    if address.ip() == Ipv6Addr::UNSPECIFIED {
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    Ok(socket.into())
}

fn udp_socket(local: IpAddr) -> io::Result<Socket> {
    let domain = if local.is_ipv4() { Domain::IPV4 } else { Domain::IPV6 };
    let socket = Socket::new(domain, Type::DGRAM, Some(Protocol::UDP))?;
    socket.set_nonblocking(true)?;
    // The system grants less where its limit (net.core.rmem_max, wmem_max) is lower.
    let _ = socket.set_recv_buffer_size(BUFFER_BYTES);
    let _ = socket.set_send_buffer_size(BUFFER_BYTES);
    Ok(socket)
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn bind_to_interface(socket: &Socket, name: &str) -> io::Result<()> {
    socket.bind_device(Some(name.as_bytes()))
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn bind_to_interface(_socket: &Socket, _name: &str) -> io::Result<()> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "this system can't bind to an interface by name: use --wan-bind with its address"))
}

/// The usual port of a relay's first line on the LAN.
pub const DEFAULT_PORT: u16 = 7654;

/// Each socket's buffers: 30 ms of a gigabit line, the longest that a busy PC leaves a program waiting.
const BUFFER_BYTES: usize = 4 * 1024 * 1024;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_sends_from_its_own_address() {
        let socket = WanBinding::Address([127, 0, 0, 9].into()).open([127, 0, 0, 1].into()).expect("loopback");
        assert_eq!(socket.local_addr().expect("bound").ip(), IpAddr::from([127, 0, 0, 9]));
    }

    #[test]
    fn what_is_no_line_of_this_pc_is_refused_with_the_setting_to_change() {
        let error = WanBinding::Interface("no-such-if0".into()).check().expect_err("no such interface");
        assert!(error.message.contains("--wan-interface") || error.message.contains("--wan-bind"), "{error}");
        let error = WanBinding::Address([203, 0, 113, 77].into()).check().expect_err("not ours");
        assert!(error.message.contains("--wan-bind"), "{error}");
        assert!(WanBinding::Address([127, 0, 0, 1].into()).open(Ipv6Addr::LOCALHOST.into()).is_err());
    }
}
