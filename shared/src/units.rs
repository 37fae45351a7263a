//! Rates and sizes as people write them: rates in bits per second with decimal suffixes (`20M`, `512k`), sizes in bytes
//! with decimal or binary suffixes (`100GB`, `64KiB`).

use std::{fmt, str::FromStr};

use thiserror::Error;

/// A rate in bits per second.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Rate {
    /// Bits per second.
    pub bits_per_second: u64,
}

/// A size in bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Size {
    /// Bytes.
    pub bytes: u64,
}

/// A text that is no rate or size.
#[derive(Debug, Error, Clone, PartialEq, Eq)]
pub enum UnitError {
    /// Not a rate.
    #[error("`{0}` is not a rate: write bits per second, as in 512k, 20M or 1.5G")]
    Rate(String),
    /// Not a size.
    #[error("`{0}` is not a size: write bytes, as in 64KiB, 500MB or 100GB")]
    Size(String),
}

impl FromStr for Rate {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        scaled(text, &[("", 1.0), ("k", 1e3), ("K", 1e3), ("M", 1e6), ("G", 1e9)])
            .map(|bits_per_second| Self { bits_per_second })
            .ok_or_else(|| UnitError::Rate(text.into()))
    }
}

impl FromStr for Size {
    type Err = UnitError;

    fn from_str(text: &str) -> Result<Self, UnitError> {
        const KIB: f64 = 1024.0;
        let suffixes = [
            ("", 1.0),
            ("B", 1.0),
            ("kB", 1e3),
            ("KB", 1e3),
            ("MB", 1e6),
            ("GB", 1e9),
            ("TB", 1e12),
            ("KiB", KIB),
            ("MiB", KIB * KIB),
            ("GiB", KIB * KIB * KIB),
            ("TiB", KIB * KIB * KIB * KIB),
        ];
        scaled(text, &suffixes).map(|bytes| Self { bytes }).ok_or_else(|| UnitError::Size(text.into()))
    }
}

impl fmt::Display for Rate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let rate = self.bits_per_second as f64;
        match self.bits_per_second {
            0..1_000 => write!(f, "{rate} bit/s"),
            1_000..1_000_000 => write!(f, "{:.1} kbit/s", rate / 1e3),
            1_000_000..1_000_000_000 => write!(f, "{:.1} Mbit/s", rate / 1e6),
            _ => write!(f, "{:.2} Gbit/s", rate / 1e9),
        }
    }
}

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.bytes as f64;
        match self.bytes {
            0..1_000 => write!(f, "{bytes} B"),
            1_000..1_000_000 => write!(f, "{:.1} kB", bytes / 1e3),
            1_000_000..1_000_000_000 => write!(f, "{:.1} MB", bytes / 1e6),
            _ => write!(f, "{:.2} GB", bytes / 1e9),
        }
    }
}

/// The number in front of one of `suffixes`, times its factor; `None` unless the whole text is that and fits 63 bits.
fn scaled(text: &str, suffixes: &[(&str, f64)]) -> Option<u64> {
    let digits = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, suffix) = text.split_at(digits);
    let factor = suffixes.iter().find(|(name, _)| *name == suffix)?.1;
    let value = number.parse::<f64>().ok()? * factor;
    (value >= 1.0 && value < i64::MAX as f64).then_some(value.round() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_decimal_bits_per_second() {
        for (text, bits_per_second) in [("1", 1), ("512k", 512_000), ("512K", 512_000), ("20M", 20_000_000), ("1.5G", 1_500_000_000)] {
            assert_eq!(text.parse(), Ok(Rate { bits_per_second }), "{text}");
        }
    }

    #[test]
    fn sizes_are_bytes_decimal_or_binary() {
        for (text, bytes) in [("7", 7), ("7B", 7), ("64KiB", 65_536), ("500MB", 500_000_000), ("100GB", 100_000_000_000), ("1TiB", 1 << 40)]
        {
            assert_eq!(text.parse(), Ok(Size { bytes }), "{text}");
        }
    }

    #[test]
    fn what_is_neither_is_refused() {
        for text in ["", "0", "-1", ".", "k", "1 M", "1e3", "1.2.3k", "20Mbit", "99999999999G", "inf", "NaN"] {
            assert!(text.parse::<Rate>().is_err(), "{text}");
            assert!(text.parse::<Size>().is_err(), "{text}");
        }
        assert!("64KiB".parse::<Rate>().is_err());
        assert!("20M".parse::<Size>().is_err());
    }
}
