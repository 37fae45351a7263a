//! What a line is worth beside the others: the patent's weights.
//!
//! A weight of 1 is a line of [`Weight::UNIT`], the patent's modem of 28.8 kbit/s; its table (a modem of 56 kbit/s is worth 2, an ISDN line of two
//! channels 4, a DSL line of 500 kbit/s 18) follows from the lines' rates. A weight is *set* by the relay's owner, *measured* from the
//! traffic that the line carried ([`super::line_rate`]), or as yet a *guess*.

use std::{fmt, num::NonZeroU16, str::FromStr};

use bytes::{Buf, BufMut};
use serde::Serialize;
use thiserror::Error;

use crate::{
    units::Rate,
    wire::{self, WireError},
};

/// A line's worth in one direction, 1 to 65,535: a line of weight 2 is given twice what one of weight 1 is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize)]
#[serde(transparent)]
pub struct Weight(NonZeroU16);

/// Where a weight comes from.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize)]
#[serde(rename_all = "lowercase")]
#[repr(u8)]
pub enum Origin {
    /// Nothing is known of the line.
    #[default]
    Guessed = 0,
    /// From what the line carried.
    Measured = 1,
    /// By the relay's owner.
    Set = 2,
}

/// A weight and where it comes from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize)]
pub struct LineWeight {
    /// The weight.
    pub weight: Weight,
    /// Where it comes from.
    pub origin: Origin,
}

/// A line's worth in both directions, as seen from its LAN.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, Serialize)]
pub struct Weights {
    /// From the LAN to `reconst`.
    pub up: LineWeight,
    /// From `reconst` to the LAN.
    pub down: LineWeight,
}

/// A text that is no weight.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
#[error("`{0}` is not a weight: write a whole number from 1 to 65535")]
pub struct WeightError(String);

impl Weight {
    /// The weight of a line of which nothing is known.
    pub const ONE: Self = Self(NonZeroU16::MIN);

    /// The rate of a line of weight 1. The patent's table leaves 28.44 to 28.57 kbit/s.
    pub const UNIT: Rate = Rate { bits_per_second: 28_500 };

    /// The weight of that value; `None` for 0, which would never be given a turn.
    pub const fn new(weight: u16) -> Option<Self> {
        match NonZeroU16::new(weight) {
            Some(weight) => Some(Self(weight)),
            None => None,
        }
    }

    /// The weight of a line of that rate: at least 1, and at most 65,535, which is a line of 1.87 Gbit/s.
    pub fn of_rate(rate: Rate) -> Self {
        let units = rate.bits_per_second.saturating_add(Self::UNIT.bits_per_second / 2) / Self::UNIT.bits_per_second;
        Self::new(u16::try_from(units).unwrap_or(u16::MAX)).unwrap_or(Self::ONE)
    }

    /// The weight as a number.
    pub const fn value(self) -> u16 {
        self.0.get()
    }
}

impl LineWeight {
    /// The weight of that number as a relay's owner has set it; 0 counts as 1.
    pub fn set(weight: u16) -> Self {
        Self { weight: Weight::new(weight).unwrap_or(Weight::ONE), origin: Origin::Set }
    }

    /// The weight of a line whose rate was measured.
    pub fn measured(rate: Rate) -> Self {
        Self { weight: Weight::of_rate(rate), origin: Origin::Measured }
    }

    /// Appends the weight.
    pub fn encode(self, out: &mut impl BufMut) {
        out.put_u16(self.weight.value());
        out.put_u8(self.origin as u8);
    }

    /// Takes a weight off the front of `input`.
    ///
    /// # Errors
    /// If `input` ends first, the weight is 0 or its origin none that there is.
    pub fn decode(input: &mut impl Buf) -> Result<Self, WireError> {
        Ok(Self { weight: take_weight(input)?, origin: Origin::decode(wire::take_u8(input)?)? })
    }
}

impl Origin {
    fn decode(origin: u8) -> Result<Self, WireError> {
        Ok(match origin {
            0 => Self::Guessed,
            1 => Self::Measured,
            2 => Self::Set,
            _ => return Err(WireError::Value("origin of a weight")),
        })
    }
}

fn take_weight(input: &mut impl Buf) -> Result<Weight, WireError> {
    Weight::new(wire::take_u16(input)?).ok_or(WireError::Value("weight"))
}

impl Weights {
    /// Appends both weights in five bytes, up first.
    pub fn encode(self, out: &mut impl BufMut) {
        out.put_u16(self.up.weight.value());
        out.put_u16(self.down.weight.value());
        out.put_u8((self.up.origin as u8) << 4 | self.down.origin as u8);
    }

    /// Takes both weights off the front of `input`.
    ///
    /// # Errors
    /// As [`LineWeight::decode`].
    pub fn decode(input: &mut impl Buf) -> Result<Self, WireError> {
        let (up, down) = (take_weight(input)?, take_weight(input)?);
        let origins = wire::take_u8(input)?;
        let up = LineWeight { weight: up, origin: Origin::decode(origins >> 4)? };
        Ok(Self { up, down: LineWeight { weight: down, origin: Origin::decode(origins & 0xf)? } })
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

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Guessed => "guessed",
            Self::Measured => "measured",
            Self::Set => "set",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_patent_s_table_follows_from_its_lines_rates() {
        for (bits_per_second, weight) in [(28_800, 1), (56_000, 2), (128_000, 4), (500_000, 18)] {
            assert_eq!(Weight::of_rate(Rate { bits_per_second }).value(), weight, "{bits_per_second} bit/s");
        }
    }

    #[test]
    fn every_rate_has_a_weight() {
        for (bits_per_second, weight) in [(0, 1), (1, 1), (1_000_000_000, 35_088), (u64::MAX, u16::MAX)] {
            assert_eq!(Weight::of_rate(Rate { bits_per_second }).value(), weight, "{bits_per_second} bit/s");
        }
    }

    #[test]
    fn weights_come_back_as_they_were() {
        let weights = Weights { up: LineWeight::set(7), down: LineWeight::measured(Rate { bits_per_second: 36_000_000 }) };
        let mut out = Vec::new();
        weights.encode(&mut out);
        assert_eq!(Weights::decode(&mut &out[..]), Ok(weights));
        out[4] = 0x30;
        assert!(Weights::decode(&mut &out[..]).is_err());
    }
}
