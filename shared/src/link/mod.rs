//! The thin drivers over tokio, quinn and rustls.
//!
//! [`session`] drives the core, [`stream`] is a flow as `AsyncRead` and `AsyncWrite`, [`parcels`] a UDP flow's datagrams, [`open`] says where it goes, [`pipe`] joins it to
//! a socket ([`tcp`]); [`udp_port`] is a UDP flow's socket. [`transport`] and [`tls`] say what a path's connection is, [`path_socket`] sends and receives its packets, [`join`] brings it into its session. [`lan`] asks a relay for service; [`attempts`] takes
//! the first of several ways that works.
//! [`enrol`] makes a member of a PC, with a [`key`] of its own, at a `reconst` that it knows by its authority's fingerprint ([`pinned`]),
//! through a relay if need be ([`carry`]); [`renew`] keeps it one, by replacing its [`credentials`].

pub mod attempts;
pub mod carry;
pub mod credentials;
pub mod enrol;
pub mod join;
pub mod key;
pub mod lan;
pub mod open;
pub mod parcels;
pub mod path_socket;
pub mod pinned;
pub mod pipe;
pub mod renew;
mod send_queue;
pub mod session;
pub mod stream;
pub mod tcp;
pub mod tls;
pub mod transport;
pub mod udp_port;

/// The close code of a session or path that ends in order.
pub const CLOSE_LEAVING: u32 = crate::community::login::CloseCode::Leaving as u32;

/// The close code for a member that may not.
pub const CLOSE_DENIED: u32 = crate::community::login::CloseCode::Denied as u32;

/// The close code of a path whose LAN is served elsewhere: the session goes on, on a new path.
pub const CLOSE_MOVED: u32 = crate::community::login::CloseCode::Moved as u32;

/// The close code of a session that its proxy has ended.
pub const CLOSE_OVER: u32 = crate::community::login::CloseCode::Over as u32;

/// The close code for an end that broke the protocol.
pub const CLOSE_PROTOCOL: u32 = crate::community::login::CloseCode::Protocol as u32;
