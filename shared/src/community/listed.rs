//! The roster of a LAN as `reconst` hands it to the LAN's members: what it hears of the relays over their logins.
//!
//! ```text
//! lines = number (varint), then for each: relay (length, name), line (1 byte), port (u16), weights (5 bytes), state (1 byte),
//!         number of addresses (1 byte), addresses
//! ```
//! A hint like an announcement: it makes a proxy ask at these addresses, and only an authenticated path carries traffic.

use std::net::{IpAddr, SocketAddr};

use bytes::BufMut;

use super::{
    announce::LineState,
    hello::{LineNumber, put_ip, take_ip},
    login::ADDRESSES_MAX,
    member::Name,
    weight::Weights,
};
use crate::wire::{self, WireError};

/// A line of a relay, as `reconst` knows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ListedLine {
    /// The relay.
    pub relay: Name,
    /// The line's number with it.
    pub line: LineNumber,
    /// The relay's addresses on its LAN, at most [`ADDRESSES_MAX`].
    pub addresses: Vec<IpAddr>,
    /// The line's port there.
    pub port: u16,
    /// Its weights.
    pub weights: Weights,
    /// Whether it serves.
    pub state: LineState,
}

impl ListedLine {
    /// Where on the LAN the line may be asked for service.
    pub fn socket_addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.addresses.iter().map(|&ip| SocketAddr::new(ip, self.port))
    }
}

/// The lines' bytes, at most [`LISTED_BYTES_MAX`]: those that don't fit are left out.
pub fn encode(lines: &[ListedLine]) -> Vec<u8> {
    let mut body = Vec::new();
    let mut count = 0;
    for line in lines {
        let before = body.len();
        wire::put_bytes(&mut body, line.relay.as_str().as_bytes());
        body.put_u8(line.line.0);
        body.put_u16(line.port);
        line.weights.encode(&mut body);
        body.put_u8(line.state as u8);
        let addresses = &line.addresses[..line.addresses.len().min(ADDRESSES_MAX)];
        body.put_u8(addresses.len() as u8);
        addresses.iter().for_each(|address| put_ip(&mut body, *address));
        if body.len() + COUNT_BYTES_MAX > LISTED_BYTES_MAX {
            body.truncate(before);
            break;
        }
        count += 1;
    }
    let mut out = Vec::with_capacity(body.len() + COUNT_BYTES_MAX);
    wire::put_varint(&mut out, count);
    out.extend(body);
    out
}

/// The lines in `input`, which ends behind them.
///
/// # Errors
/// If it is longer than [`LISTED_BYTES_MAX`], ends early or holds what can't be.
pub fn decode(mut input: &[u8]) -> Result<Vec<ListedLine>, WireError> {
    if input.len() > LISTED_BYTES_MAX {
        return Err(WireError::Value("length of a roster"));
    }
    let count = wire::take_varint(&mut input)?;
    let mut lines = Vec::new();
    for _ in 0..count {
        lines.push(decode_line(&mut input)?);
    }
    if input.is_empty() { Ok(lines) } else { Err(WireError::Value("end")) }
}

fn decode_line(input: &mut &[u8]) -> Result<ListedLine, WireError> {
    let relay = String::from_utf8(wire::take_bytes(input, NAME_BYTES_MAX, "relay")?).map_err(|_| WireError::Value("relay"))?;
    let relay = relay.parse().map_err(|_| WireError::Value("relay"))?;
    let line = LineNumber(wire::take_u8(input)?);
    let port = match wire::take_u16(input)? {
        0 => return Err(WireError::Value("port")),
        port => port,
    };
    let weights = Weights::decode(input)?;
    let state = LineState::decode(input)?;
    let count = usize::from(wire::take_u8(input)?);
    if count > ADDRESSES_MAX {
        return Err(WireError::Value("number of addresses"));
    }
    let addresses = (0..count).map(|_| take_ip(input)).collect::<Result<_, _>>()?;
    Ok(ListedLine { relay, line, addresses, port, weights, state })
}

/// The longest roster in bytes: some 200 lines of relays with one address.
pub const LISTED_BYTES_MAX: usize = 8 * 1024;

/// A label of the domain name system (RFC 1035 §2.3.4).
const NAME_BYTES_MAX: usize = 63;

/// More lines than fit need no longer number.
const COUNT_BYTES_MAX: usize = 4;

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::community::weight::LineWeight;

    #[test]
    fn a_roster_comes_back_as_it_was_and_a_huge_one_as_far_as_it_fits() {
        let lines: Vec<_> = (0..=250u8).map(line).collect();
        assert_eq!(decode(&encode(&lines[..20])), Ok(lines[..20].to_vec()));
        assert_eq!(decode(&encode(&[])), Ok(vec![]));
        let encoded = encode(&lines);
        let decoded = decode(&encoded).expect("whole");
        assert!(encoded.len() <= LISTED_BYTES_MAX && decoded.len() > 150, "{} of {} bytes", decoded.len(), encoded.len());
        assert_eq!(decoded, lines[..decoded.len()]);
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let _ = decode(&bytes);
        }
    }

    fn line(number: u8) -> ListedLine {
        ListedLine {
            relay: format!("relay{number}").parse().expect("a name"),
            line: LineNumber(1),
            addresses: vec![[10, 0, 1, number].into()],
            port: 7654,
            weights: Weights { up: LineWeight::set(3), ..Weights::default() },
            state: LineState::Serving,
        }
    }
}
