//! Datagrams that nobody honest sends.

use bytes::Bytes;
use rand::{RngExt, rngs::StdRng};
use shared::{
    ids::{FlowId, PathId, Seq},
    transfer::packet::{DatagramWriter, Fragment, PARCEL_BYTES_MAX},
    wire::VARINT_MAX,
};

/// `genuine` with bits flipped or cut short, noise, or a datagram that a broken peer could make.
pub(super) fn forged(random: &mut StdRng, genuine: &Bytes) -> Bytes {
    let mut bytes = genuine.to_vec();
    match random.random_range(0..6) {
        4..6 => return well_formed(random),
        0 => {
            bytes.resize(random.random_range(0..1500), 0);
            random.fill(&mut bytes[..]);
        }
        1 => bytes.truncate(random.random_range(0..=bytes.len())),
        _ => {
            // Most flips hit what decides: the headers in front.
            for _ in 0..random.random_range(1..=4) {
                let reach = if random.random_bool(0.8) { bytes.len().min(16) } else { bytes.len() };
                if reach > 0 {
                    let place = random.random_range(0..reach);
                    bytes[place] ^= 1 << random.random_range(0..8);
                }
            }
        }
    }
    bytes.into()
}

/// A datagram with every field within its range, no field right.
fn well_formed(random: &mut StdRng) -> Bytes {
    let number = |random: &mut StdRng| match random.random_range(0..4) {
        0 => random.random_range(0..8),
        1 => random.random_range(0..600_000),
        2 => random.random_range(0..1 << 32),
        _ => random.random_range(0..1 << 62),
    };
    let seq = random.random_bool(0.7).then(|| Seq(number(random)));
    let mut writer = DatagramWriter::new(1400, seq);
    for _ in 0..random.random_range(1..40) {
        match random.random_range(0..5) {
            0 => writer.put_ping(),
            4 => {
                let (flow, number) = (FlowId(number(random)), number(random));
                let total = random.random_range(0..=PARCEL_BYTES_MAX) as u32;
                let offset = random.random_range(0..=total);
                let Some(room) = writer.fragment_room(flow, number, Some((total, offset))) else { break };
                let len = room.min((total - offset) as usize).min(40);
                let (total, offset) = if len == 0 { (0, 0) } else { (total, offset) };
                writer.put_fragment(&Fragment { flow, number, total, offset, bytes: vec![0x66; len].into() });
            }
            1 if writer.remaining() > 300 => {
                let mut end = number(random).max(1);
                let mut ranges = Vec::new();
                while end > 0 && ranges.len() < 30 {
                    let longest = 1 << random.random_range(0..40);
                    let start = end - random.random_range(1..=end.min(longest));
                    ranges.push(start..end);
                    end = start.saturating_sub(random.random_range(1..100));
                }
                let path = PathId(random.random_range(0..8));
                writer.put_ack(path, number(random), number(random), number(random), ranges.into_iter());
            }
            _ => {
                let flow = FlowId(number(random));
                let offset = number(random);
                let Some(room) = writer.chunk_room(flow, offset, true) else { break };
                let len = random.random_range(0..=room.min(40)).min((VARINT_MAX - offset) as usize);
                let fin = random.random_bool(0.1);
                writer.put_chunk(flow, offset, fin, len, true, |out| out.resize(out.len() + len, 0x55));
            }
        }
        if writer.remaining() < 40 {
            break;
        }
    }
    writer.finish()
}
