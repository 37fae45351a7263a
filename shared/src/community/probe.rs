//! A relay's probe of its line's queues, and `reconst`'s echo: datagrams on a login.
//!
//! The relay says when it sent, `reconst` when it received, each in microseconds on its own clock. Neither is answered but by an
//! echo, none is repeated. What the times tell is for the relay.

use bytes::{BufMut, Bytes, BytesMut};

use crate::wire::{self, WireError};

/// The relay's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Probe {
    /// When it was sent, microseconds on the relay's clock.
    pub sent_us: u64,
}

/// `reconst`'s.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Echo {
    /// What the probe said.
    pub sent_us: u64,
    /// When it was received, microseconds on `reconst`'s clock.
    pub received_us: u64,
}

impl Probe {
    /// The datagram.
    pub fn encode(self) -> Bytes {
        let mut out = BytesMut::with_capacity(9);
        out.put_u8(PROBE);
        out.put_u64(self.sent_us);
        out.freeze()
    }

    /// Reads a datagram.
    ///
    /// # Errors
    /// If it is no probe.
    pub fn decode(mut datagram: &[u8]) -> Result<Self, WireError> {
        take_kind(&mut datagram, PROBE)?;
        Ok(Self { sent_us: take_u64(&mut datagram)? })
    }
}

impl Echo {
    /// The datagram.
    pub fn encode(self) -> Bytes {
        let mut out = BytesMut::with_capacity(17);
        out.put_u8(ECHO);
        out.put_u64(self.sent_us);
        out.put_u64(self.received_us);
        out.freeze()
    }

    /// Reads a datagram.
    ///
    /// # Errors
    /// If it is no echo.
    pub fn decode(mut datagram: &[u8]) -> Result<Self, WireError> {
        take_kind(&mut datagram, ECHO)?;
        Ok(Self { sent_us: take_u64(&mut datagram)?, received_us: take_u64(&mut datagram)? })
    }
}

fn take_kind(input: &mut &[u8], kind: u8) -> Result<(), WireError> {
    if wire::take_u8(input)? == kind { Ok(()) } else { Err(WireError::Value("datagram type")) }
}

fn take_u64(input: &mut &[u8]) -> Result<u64, WireError> {
    wire::take_array(input).map(u64::from_be_bytes)
}

/// The datagrams of a login that wait to be read, bytes: some probes.
pub const DATAGRAMS_BYTES: usize = 2048;

const PROBE: u8 = 1;
const ECHO: u8 = 2;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probe_and_echo_come_back_as_they_were_and_are_told_apart() {
        let (probe, echo) = (Probe { sent_us: 7 }, Echo { sent_us: 7, received_us: u64::MAX });
        assert_eq!(Probe::decode(&probe.encode()), Ok(probe));
        assert_eq!(Echo::decode(&echo.encode()), Ok(echo));
        assert!(Probe::decode(&echo.encode()).is_err() && Echo::decode(&probe.encode()).is_err());
        assert!((0..17).all(|len| Echo::decode(&echo.encode()[..len]).is_err()));
    }
}
