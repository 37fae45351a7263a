//! How much of a line its owner shares.

use std::time::Instant;

use serde::{Deserialize, Serialize};
use shared::{share::allowance::Terms, units::Rate};

use crate::lane::Lane;

/// What the owner of a line shares of it.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct ShareConfig {
    /// The most from the LAN to `reconst`. Default all there is.
    pub up: Option<Rate>,
    /// The most from `reconst` to the LAN. Default all there is; above what the line carries the queue is the line's, and not fair.
    pub down: Option<Rate>,
    /// How much a month, and when. Default without limit.
    pub terms: Terms,
    /// How far the rates fall while the line shows a queue that is not the relay's. Default in part.
    pub give_way: GiveWay,
}

/// How much room the owner's own transfers get where they fill the line.
#[derive(Clone, Copy, PartialEq, Eq, Default, Deserialize, clap::ValueEnum, Debug)]
#[serde(rename_all = "kebab-case")]
pub enum GiveWay {
    /// The line is shared as between any two transfers.
    Off,
    /// The owner gets half of the line, however many users there are.
    #[default]
    Part,
    /// The owner gets nearly all: a twentieth is lent.
    Full,
}

impl GiveWay {
    /// The part of the line that is lent in any case; none if it is never less than all.
    pub(crate) fn least(self) -> Option<f64> {
        match self {
            Self::Off => None,
            Self::Part => Some(0.5),
            Self::Full => Some(0.05),
        }
    }
}

/// The owner's limits of one line at work.
#[derive(Debug)]
pub(crate) struct Share {
    /// From the LAN to `reconst`.
    pub(crate) up: Lane,
    /// From `reconst` to the LAN.
    pub(crate) down: Lane,
}

/// One direction's limit, as `status` shows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct LaneStatus {
    /// The rate shared now, in bits per second, if there is a limit.
    pub rate: Option<u64>,
    /// The bytes that wait.
    pub queued_bytes: usize,
    /// Whether that rate is lower than the owner's limit for now, so that the owner's own traffic has room.
    pub gives_way: bool,
}

/// Both directions' limits.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
pub struct ShareStatus {
    /// From the LAN to `reconst`.
    pub up: LaneStatus,
    /// From `reconst` to the LAN.
    pub down: LaneStatus,
}

impl Share {
    pub(crate) fn new(config: &ShareConfig, now: Instant) -> Self {
        Self { up: Lane::new(config.up, now), down: Lane::new(config.down, now) }
    }

    /// Sends what waits when its time comes, until the future is dropped.
    pub(crate) async fn pump(&self) {
        tokio::join!(self.up.pump(), self.down.pump());
    }

    /// Whether either rate is lower for now, so that the owner's own traffic has room.
    pub(crate) fn gives_way(&self) -> bool {
        self.up.gives_way() || self.down.gives_way()
    }

    pub(crate) fn status(&self) -> ShareStatus {
        let of = |lane: &Lane| LaneStatus {
            rate: lane.rate().map(|rate| rate.bits_per_second),
            queued_bytes: lane.queued_bytes(),
            gives_way: lane.gives_way(),
        };
        ShareStatus { up: of(&self.up), down: of(&self.down) }
    }
}
