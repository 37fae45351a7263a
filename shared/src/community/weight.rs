//! What a line is worth beside the others: the patent's weights.

use std::{fmt, num::NonZeroU16, str::FromStr};

use bytes::{Buf, BufMut};
use thiserror::Error;

use crate::wire::{self, WireError};

/// A line's worth in one direction, 1 to 65,535: a line of weight 2 is given twice what one of weight 1 is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Weight(NonZeroU16);

/// A line's worth in both directions, as seen from its LAN.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub struct Weights {
    /// From the LAN to `reconst`.
    pub up: Weight,
    /// From `reconst` to the LAN.
    pub down: Weight,
}

/// A text that is no weight.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[error("`{0}` is not a weight: write a whole number from 1 to 65535")]
pub struct WeightError(String);

impl Weight {
    /// The weight of a line of which nothing is known.
    pub const ONE: Self = Self(NonZeroU16::MIN);

    /// The weight of that value; `None` for 0, which would never be given a turn.
    pub const fn new(weight: u16) -> Option<Self> {
        match NonZeroU16::new(weight) {
            Some(weight) => Some(Self(weight)),
            None => None,
        }
    }

    /// The weight as a number.
    pub const fn value(self) -> u16 {
        self.0.get()
    }
}

impl Weights {
    /// Appends both weights, up first.
    pub fn encode(self, out: &mut impl BufMut) {
        out.put_u16(self.up.value());
        out.put_u16(self.down.value());
    }

    /// Takes both weights off the front of `input`.
    ///
    /// # Errors
    /// If `input` ends first or a weight is 0.
    pub fn decode(input: &mut impl Buf) -> Result<Self, WireError> {
        let mut weight = || Weight::new(wire::take_u16(input)?).ok_or(WireError::Value("weight"));
        Ok(Self { up: weight()?, down: weight()? })
    }
}

impl Default for Weight {
    fn default() -> Self {
        Self::ONE
    }
}

impl FromStr for Weight {
    type Err = WeightError;

    fn from_str(text: &str) -> Result<Self, WeightError> {
        text.parse().ok().and_then(Self::new).ok_or_else(|| WeightError(text.chars().take(20).collect()))
    }
}

impl fmt::Display for Weight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
