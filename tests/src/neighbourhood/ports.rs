//! Ports for programs that are told theirs beforehand.

use std::{
    collections::BTreeSet,
    net::{IpAddr, UdpSocket},
    sync::Mutex,
};

use rand::RngExt;

/// A UDP port that is free on all of `ips` and was never given before in this process: below those that systems give out of
/// themselves, so that no other socket takes it before it is bound.
pub(crate) fn take_port(ips: &[IpAddr]) -> Option<u16> {
    let mut taken = TAKEN_PORTS.lock().unwrap_or_else(|poisoned| poisoned.into_inner());
    let mut random = rand::rng();
    let mut candidates = (0..PORT_TRIES).map(|_| random.random_range(PORTS));
    candidates.find(|&port| ips.iter().all(|&ip| UdpSocket::bind((ip, port)).is_ok()) && taken.insert(port))
}

static TAKEN_PORTS: Mutex<BTreeSet<u16>> = Mutex::new(BTreeSet::new());

/// Below Linux's range of ephemeral ports, which begins at 32768.
const PORTS: std::ops::Range<u16> = 20_000..32_000;
const PORT_TRIES: usize = 200;
