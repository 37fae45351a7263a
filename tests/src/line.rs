//! Emulated lines: what stands between a relay and `reconst` in place of a neighbour's DSL, 4G or modem.
//!
//! [`Conditions`] say what one direction of a line is like; [`direction`] is the line itself, sans-IO and replayable from a
//! seed; [`forwarder`] carries real UDP packets of this machine's loopback over it, [`device`] all IP packets between network
//! namespaces. A line knows nothing of Tributary: it
//! takes and gives opaque packets.

pub mod device;
pub mod direction;
pub mod forwarder;

use std::time::Duration;

use shared::units::Rate;

pub use device::{DeviceLine, DeviceLines};
pub use direction::{Counters, Direction};
pub use forwarder::{LineHandle, Lines};

/// The bytes of IPv4 and UDP headers that each packet costs beside its payload.
pub const HEADER_BYTES: usize = 28;

/// What one direction of a line is like.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Conditions {
    /// The rate of IP packets, headers included.
    pub rate: Rate,
    /// The time from a packet's last bit sent to its arrival.
    pub delay: Duration,
    /// Each packet is late by a random part of this.
    pub jitter: Duration,
    /// Whether jitter lets a later packet overtake; otherwise it waits for those ahead of it.
    pub may_reorder: bool,
    /// Packets that vanish at random.
    pub loss: Loss,
    /// The bytes of IP packets that wait or are being sent; a packet that does not fit is dropped.
    pub queue_bytes: u64,
    /// The largest IP packet in bytes; a larger one vanishes, as with the don't-fragment bit and no ICMP.
    pub mtu_bytes: usize,
    /// Whether the line is silent: nothing enters, and what was under way is lost.
    pub is_out: bool,
}

/// Random loss after Gilbert: packets are lost in bursts of random length.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct Loss {
    /// The part of all packets that is lost, 0 to 1.
    pub fraction: f64,
    /// The mean number of packets lost in a row; 1 loses each packet independently of the others.
    pub burst_packets: f64,
}

impl Loss {
    /// No random loss.
    pub const NONE: Self = Self { fraction: 0.0, burst_packets: 1.0 };
}

impl Conditions {
    /// A line without jitter or loss, of 1,500-byte packets, whose queue holds [`Self::QUEUE`] of its rate.
    pub fn steady(rate: Rate, delay: Duration) -> Self {
        Self {
            rate,
            delay,
            jitter: Duration::ZERO,
            may_reorder: false,
            loss: Loss::NONE,
            queue_bytes: Self::queue_bytes(rate, Self::QUEUE),
            mtu_bytes: Self::MTU_BYTES,
            is_out: false,
        }
    }

    /// The bytes that pass in `time` at `rate`, and no less than [`Self::QUEUE_MIN_BYTES`].
    pub fn queue_bytes(rate: Rate, time: Duration) -> u64 {
        ((rate.bits_per_second as f64 / 8.0 * time.as_secs_f64()) as u64).max(Self::QUEUE_MIN_BYTES)
    }

    /// The queue of a line that says nothing of it: a common size in home routers.
    pub const QUEUE: Duration = Duration::from_millis(100);
    /// The largest packet of a line that says nothing of it: Ethernet's.
    pub const MTU_BYTES: usize = 1500;
    /// Sixteen full packets: no router has less, however slow its line.
    pub const QUEUE_MIN_BYTES: u64 = 16 * 1500;
}
