//! Bytes in, bytes out: the sans-IO core of both ends of a session.
//!
//! In the order of a byte's way: a [`flow`] takes it into its [`send_buffer`]; when a [`path`] may send ([`congestion`]),
//! [`schedule`] decides which takes the next chunk, and [`packet`] writes it into a datagram; [`recovery`] keeps it until it is
//! acknowledged or lost. A UDP flow's datagrams wait as [`parcel`]s instead, and none is sent again. At the other end [`acks`] notes the datagram and [`reorder`] puts the chunk into its place. [`control`] is
//! what the two ends tell each other besides; [`join`] is how a path comes in and [`open`] what the first
//! bytes of a flow say. [`session`] holds it all together.

pub mod acks;
pub mod congestion;
pub mod control;
mod flow;
pub mod join;
pub mod open;
pub mod packet;
pub mod parcel;
pub mod path;
pub mod ranges;
pub mod recovery;
pub mod reorder;
pub mod schedule;
pub mod send_buffer;
pub mod session;
