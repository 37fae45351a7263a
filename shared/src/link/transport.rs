//! What a path's QUIC connection is: an encrypted carrier of datagrams.
//!
//! QUIC authenticates, encrypts, probes the MTU and notices that a connection is over. How much is sent, and what becomes of what is
//! lost, is the session's decision: quinn's own congestion control and pacing are switched off by a window that nothing fills, and its
//! acknowledgements, which only its bookkeeping needs, are asked for rarely. Every window, buffer and count is set here: quinn's
//! defaults are made for streams, and some are unbounded.

use std::{
    any::Any,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket},
    sync::Arc,
    time::{Duration, Instant},
};

use quinn::{
    AckFrequencyConfig, EndpointConfig, IdleTimeout, MtuDiscoveryConfig, TransportConfig, VarInt,
    congestion::{Controller, ControllerFactory},
};

/// How long a connection over a silent line is kept. The line is probed meanwhile and back in service with its first answer; beyond
/// it, connecting anew costs little.
pub const IDLE_TIMEOUT: Duration = Duration::from_secs(90);

/// Datagrams that wait to be sent, in bytes, per path: 1 Gbit/s for 8 ms and some. The session paces what it hands over, so that little
/// waits, and hands over no more than this takes.
const SEND_BUFFER_BYTES: usize = 1 << 20;

/// Datagrams that wait to be read, in bytes, per path: what a socket's buffer holds arrives at once when the process has been away.
const RECEIVE_BUFFER_BYTES: usize = 4 << 20;

/// A path's one stream carries a request and a reply of a few hundred bytes.
const STREAM_WINDOW_BYTES: u32 = 4096;

/// The headers of IPv4 and IPv6, each with UDP's.
const HEADER_BYTES: (u16, u16) = (28, 48);

/// What is probed for where the own interface takes no more, or does not say what it takes.
const ETHERNET_MTU: u16 = 1500;

/// The longest packet that is probed for, on interfaces that take it: jumbo frames. A connection's cost goes by packets, not by bytes;
/// beyond this the bytes are most of it.
const JUMBO_MTU: u16 = 9000;

/// The longest UDP payload that is probed for, and so received.
pub const UDP_PAYLOAD_MAX: u16 = JUMBO_MTU - HEADER_BYTES.0;

/// The finest step of MTU probing, in bytes: 4 of 1,472 is a quarter of a per cent of the line.
const MTU_STEP: u16 = 4;

/// Packets that QUIC itself acknowledges at once at the latest, and the delay that it is asked to hold acknowledgements back; it keeps to a
/// round trip if that is less. Nothing waits for them, and on a modem line each takes 15 ms of the uplink.
const ACK_THRESHOLD: u32 = 256;
const ACK_DELAY: Duration = Duration::from_secs(1);

/// The settings of an endpoint of paths.
pub fn path_endpoint() -> EndpointConfig {
    let mut config = EndpointConfig::default();
    // Relays tell QUIC from the LAN's own messages by the fixed bit (RFC 9000 §17), so it must not be greased (RFC 9287).
    config.grease_quic_bit(false);
    config.max_udp_payload_size(UDP_PAYLOAD_MAX).expect("is more than QUIC's least");
    config
}

/// As [`path_endpoint`], for a server that knows connections of other servers which share the `secret`, or of its own from before it was
/// started, and tells their other ends that they are over (stateless reset, RFC 9000 §10.3).
pub fn server_endpoint(secret: &[u8]) -> EndpointConfig {
    let derived = |purpose: &[u8]| ring::hmac::sign(&ring::hmac::Key::new(ring::hmac::HMAC_SHA256, secret), purpose);
    let mut config = path_endpoint();
    config.reset_key(Arc::new(ring::hmac::Key::new(ring::hmac::HMAC_SHA256, derived(b"tributary stateless reset 1").as_ref())));
    let ids = derived(b"tributary connection ids 1");
    let key = u64::from_be_bytes(ids.as_ref()[..8].try_into().expect("a hash is longer than 8 bytes"));
    config.cid_generator(move || Box::new(quinn_proto::HashedConnectionIdGenerator::from_key(key)));
    config
}

/// The transport settings of a path whose other end, or relay, is at `remote`. Packets are probed for up to what the interface towards it
/// takes.
pub fn path_transport(remote: SocketAddr) -> Arc<TransportConfig> {
    let headers = if remote.ip().to_canonical().is_ipv4() { HEADER_BYTES.0 } else { HEADER_BYTES.1 };
    let mtu = interface_mtu(remote).unwrap_or(ETHERNET_MTU);
    let mut mtu_discovery = MtuDiscoveryConfig::default();
    mtu_discovery.upper_bound(mtu - headers).minimum_change(MTU_STEP);
    let mut acks = AckFrequencyConfig::default();
    acks.ack_eliciting_threshold(VarInt::from_u32(ACK_THRESHOLD)).max_ack_delay(Some(ACK_DELAY)).reordering_threshold(VarInt::from_u32(0));
    let mut config = TransportConfig::default();
    config
        .max_idle_timeout(Some(IdleTimeout::try_from(IDLE_TIMEOUT).expect("90 s fit a varint of milliseconds")))
        .max_concurrent_bidi_streams(VarInt::from_u32(1))
        .max_concurrent_uni_streams(VarInt::from_u32(0))
        .stream_receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .receive_window(VarInt::from_u32(STREAM_WINDOW_BYTES))
        .send_window(u64::from(STREAM_WINDOW_BYTES))
        .datagram_receive_buffer_size(Some(RECEIVE_BUFFER_BYTES))
        .datagram_send_buffer_size(SEND_BUFFER_BYTES)
        .crypto_buffer_size(16 * 1024)
        .mtu_discovery_config(Some(mtu_discovery))
        .ack_frequency_config(Some(acks))
        .congestion_controller_factory(Arc::new(Unlimited));
    Arc::new(config)
}

/// What the interface towards `remote` takes, in bytes with the headers, from [`ETHERNET_MTU`] to [`JUMBO_MTU`]; `None` where the system
/// does not say.
fn interface_mtu(remote: SocketAddr) -> Option<u16> {
    let remote = SocketAddr::new(remote.ip().to_canonical(), remote.port());
    let any: IpAddr = if remote.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
    let towards = UdpSocket::bind((any, 0)).ok()?;
    // Sends nothing, but has the system choose a way.
    towards.connect(remote).ok()?;
    let local = towards.local_addr().ok()?.ip();
    let name = if_addrs::get_if_addrs().ok()?.into_iter().find(|interface| interface.ip() == local)?.name;
    let mtu: u32 = std::fs::read_to_string(format!("/sys/class/net/{name}/mtu")).ok()?.trim().parse().ok()?;
    Some(mtu.clamp(ETHERNET_MTU.into(), JUMBO_MTU.into()) as u16)
}

/// A window that nothing fills: the session decides what is sent. Above 2³² bytes quinn does not pace either.
#[derive(Clone, Debug)]
struct Unlimited;

const UNLIMITED_BYTES: u64 = 1 << 40;

impl Controller for Unlimited {
    fn on_congestion_event(&mut self, _now: Instant, _sent: Instant, _is_persistent_congestion: bool, _lost_bytes: u64) {}

    fn on_mtu_update(&mut self, _new_mtu: u16) {}

    fn window(&self) -> u64 {
        UNLIMITED_BYTES
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(self.clone())
    }

    fn initial_window(&self) -> u64 {
        UNLIMITED_BYTES
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

impl ControllerFactory for Unlimited {
    fn build(self: Arc<Self>, _now: Instant, _current_mtu: u16) -> Box<dyn Controller> {
        Box::new(Self)
    }
}
