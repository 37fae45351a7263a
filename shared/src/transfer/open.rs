//! What the first bytes of a flow say: where it goes, and whether it got there.
//!
//! ```text
//! request (proxy-local, before the application's bytes) = length (u16), 0x01 (TCP), target
//! answer  (reconst, before the content server's bytes)  = 0x00 | refusal kind (1 byte), length (1 byte), reason (UTF-8)
//! ```
//! They are bytes of the flow itself, so that a flow needs no round trip of its own to be opened and no other flow waits for its request.

use bytes::{Buf, BufMut};

use crate::{
    target::{Refusal, RefusalKind, Target},
    wire::{self, WireError},
};

/// The longest request behind its length, in bytes.
pub const REQUEST_MAX: usize = 300;

const TCP: u8 = 0x01;

/// The request for a TCP connection to `target`, with its length.
pub fn encode_request(target: &Target) -> Vec<u8> {
    let mut out = vec![0, 0, TCP];
    target.encode(&mut out);
    let len = out.len() as u16 - 2;
    out[..2].copy_from_slice(&len.to_be_bytes());
    out
}

/// The target of a request without its length.
///
/// # Errors
/// If it is cut short or holds what can't be.
pub fn decode_request(mut input: &[u8]) -> Result<Target, WireError> {
    match wire::take_u8(&mut input)? {
        TCP => Target::decode(&mut input),
        _ => Err(WireError::Value("flow kind")),
    }
}

/// The length that a request's first two bytes tell.
///
/// # Errors
/// If it is longer than [`REQUEST_MAX`].
pub fn request_len(mut first: &[u8]) -> Result<usize, WireError> {
    let len = usize::from(first.get_u16());
    if len > REQUEST_MAX { Err(WireError::Value("request length")) } else { Ok(len) }
}

/// The answer to a request that was carried out, or the refusal.
pub fn encode_answer(answer: &Result<(), Refusal>) -> Vec<u8> {
    let mut out = Vec::new();
    match answer {
        Ok(()) => out.put_u8(0),
        Err(refusal) => {
            let reason = &refusal.reason.as_bytes()[..refusal.reason.floor_char_boundary(Refusal::REASON_MAX)];
            out.put_u8(refusal.kind as u8);
            out.put_u8(reason.len() as u8);
            out.put_slice(reason);
        }
    }
    out
}

/// The refusal of an answer's kind and reason.
pub fn decode_refusal(kind: u8, reason: &[u8]) -> Refusal {
    let kind = RefusalKind::try_from(kind).unwrap_or(RefusalKind::General);
    Refusal::new(kind, String::from_utf8_lossy(reason))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_request_comes_back_as_it_was() {
        for text in ["example.org:443", "192.0.2.1:80", "[2001:db8::1]:8080"] {
            let target: Target = text.parse().expect("a target");
            let bytes = encode_request(&target);
            assert_eq!(request_len(&bytes), Ok(bytes.len() - 2));
            assert_eq!(decode_request(&bytes[2..]), Ok(target));
        }
    }

    #[test]
    fn a_refusal_keeps_its_kind_and_reason() {
        let refusal = Refusal::new(RefusalKind::TimedOut, "no answer in 10 s");
        let bytes = encode_answer(&Err(refusal.clone()));
        assert_eq!(decode_refusal(bytes[0], &bytes[2..]), refusal);
        assert_eq!(encode_answer(&Ok(())), [0]);
    }

    proptest! {
        #[test]
        fn random_bytes_never_panic(input: Vec<u8>) {
            let _ = decode_request(&input);
        }
    }
}
