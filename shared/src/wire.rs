//! Reading and writing the protocol's fields.
//!
//! Integers are QUIC varints (RFC 9000 §16) or big-endian of fixed size. Reading never panics and never allocates more
//! than the input holds.

use bytes::{Buf, BufMut};
use thiserror::Error;

/// A message that can't be read.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum WireError {
    /// The message ends in the middle of a field.
    #[error("the message is cut short")]
    Short,
    /// A field holds a value that the protocol does not know.
    #[error("the {0} field holds a value that is not in the protocol")]
    Value(&'static str),
}

/// The largest value that a varint holds.
pub const VARINT_MAX: u64 = (1 << 62) - 1;

/// The bytes that `value` takes as a varint.
pub const fn varint_len(value: u64) -> usize {
    match value {
        0..=0x3f => 1,
        0x40..=0x3fff => 2,
        0x4000..=0x3fff_ffff => 4,
        _ => 8,
    }
}

/// Appends `value` as a varint.
///
/// # Panics
/// If `value` is above [`VARINT_MAX`]: our own counters never get there.
pub fn put_varint(out: &mut impl BufMut, value: u64) {
    match varint_len(value) {
        1 => out.put_u8(value as u8),
        2 => out.put_u16(0x4000 | value as u16),
        4 => out.put_u32(0x8000_0000 | value as u32),
        _ => {
            assert!(value <= VARINT_MAX, "a varint holds 62 bits");
            out.put_u64(0xc000_0000_0000_0000 | value);
        }
    }
}

/// Takes a varint off the front of `input`.
///
/// # Errors
/// [`WireError::Short`] if `input` ends first.
pub fn take_varint(input: &mut impl Buf) -> Result<u64, WireError> {
    if !input.has_remaining() {
        return Err(WireError::Short);
    }
    let first = input.chunk()[0];
    let len = 1usize << (first >> 6);
    if input.remaining() < len {
        return Err(WireError::Short);
    }
    Ok(match len {
        1 => u64::from(input.get_u8()),
        2 => u64::from(input.get_u16() & 0x3fff),
        4 => u64::from(input.get_u32() & 0x3fff_ffff),
        _ => input.get_u64() & VARINT_MAX,
    })
}

/// Takes one byte off the front of `input`.
///
/// # Errors
/// [`WireError::Short`] if `input` is empty.
pub fn take_u8(input: &mut impl Buf) -> Result<u8, WireError> {
    if !input.has_remaining() {
        return Err(WireError::Short);
    }
    Ok(input.get_u8())
}

/// Takes a big-endian `u16` off the front of `input`.
///
/// # Errors
/// [`WireError::Short`] if fewer than 2 bytes are left.
pub fn take_u16(input: &mut impl Buf) -> Result<u16, WireError> {
    if input.remaining() < 2 {
        return Err(WireError::Short);
    }
    Ok(input.get_u16())
}

/// Takes `N` bytes off the front of `input`.
///
/// # Errors
/// [`WireError::Short`] if fewer are left.
pub fn take_array<const N: usize>(input: &mut impl Buf) -> Result<[u8; N], WireError> {
    if input.remaining() < N {
        return Err(WireError::Short);
    }
    let mut array = [0; N];
    input.copy_to_slice(&mut array);
    Ok(array)
}

/// Appends `bytes` behind their length as a varint.
pub fn put_bytes(out: &mut impl BufMut, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.put_slice(bytes);
}

/// Takes length-prefixed bytes of at most `limit` off the front of `input`.
///
/// # Errors
/// [`WireError::Short`] if `input` ends first; [`WireError::Value`] naming `field` if the length is above `limit`.
pub fn take_bytes(input: &mut impl Buf, limit: usize, field: &'static str) -> Result<Vec<u8>, WireError> {
    let len = take_varint(input)?;
    if len > limit as u64 {
        return Err(WireError::Value(field));
    }
    let len = len as usize;
    if input.remaining() < len {
        return Err(WireError::Short);
    }
    let mut bytes = vec![0; len];
    input.copy_to_slice(&mut bytes);
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_varint_comes_back_as_it_was(value in 0..=VARINT_MAX) {
            let mut out = Vec::new();
            put_varint(&mut out, value);
            prop_assert_eq!(out.len(), varint_len(value));
            prop_assert_eq!(take_varint(&mut &out[..]), Ok(value));
            prop_assert_eq!(take_varint(&mut &out[..out.len() - 1]), Err(WireError::Short));
        }
    }

    #[test]
    fn a_length_above_the_limit_is_refused_before_it_is_read() {
        let mut out = Vec::new();
        put_bytes(&mut out, &[7; 100]);
        assert_eq!(take_bytes(&mut &out[..], 99, "name"), Err(WireError::Value("name")));
        assert_eq!(take_bytes(&mut &out[..50], 100, "name"), Err(WireError::Short));
        assert_eq!(take_bytes(&mut &out[..], 100, "name").map(|bytes| bytes.len()), Ok(100));
    }
}
