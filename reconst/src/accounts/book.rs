//! Where the limits and the usage of users and of LANs are kept: tables of the same columns, by two kinds of key.

use super::{MemberId, lan_accounts::LanKey, usage::LIMIT_COLUMNS};

/// Who spends from an account.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Spender {
    /// A user.
    User(MemberId),
    /// All users of a LAN.
    Lan(LanKey),
}

/// The tables of one kind of account.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Book {
    /// The column that says whose row it is.
    pub(super) key: &'static str,
    pub(super) limits: &'static str,
    /// What a server alone has counted.
    pub(super) usage: &'static str,
    /// What each node has.
    pub(super) node_usage: &'static str,
    /// The columns of what is earned: LANs earn nothing.
    earning: &'static str,
}

pub(super) const USERS: Book =
    Book { key: "member_id", limits: "limits", usage: "usage", node_usage: "node_usage", earning: "earn_percent, earn_at_most_bytes" };

pub(super) const LANS: Book = Book {
    key: "lan_key",
    limits: "lan_limits",
    usage: "lan_usage",
    node_usage: "lan_node_usage",
    earning: "CAST(NULL AS BIGINT), CAST(NULL AS BIGINT)",
};

impl Spender {
    pub(super) fn book(self) -> Book {
        match self {
            Self::User(_) => USERS,
            Self::Lan(_) => LANS,
        }
    }

    pub(super) fn key(self) -> i64 {
        match self {
            Self::User(user) => user.0,
            Self::Lan(lan) => lan.0,
        }
    }
}

impl Book {
    /// Who has that key.
    pub(super) fn spender(self, key: i64) -> Spender {
        if self == LANS { Spender::Lan(LanKey(key)) } else { Spender::User(MemberId(key)) }
    }

    /// All limits: key, and what [`LIMIT_COLUMNS`] names, and what is earned.
    pub(super) fn all_limits(self) -> String {
        let Self { key, limits, earning, .. } = self;
        format!("SELECT {key}, {LIMIT_COLUMNS}, {earning} FROM {limits}")
    }

    /// What was counted by a server alone, and by each node: key, period, up, down.
    pub(super) fn all_usage(self) -> String {
        let Self { key, usage, node_usage, .. } = self;
        let columns = format!("{key}, period_start, up_bytes, down_bytes");
        format!("SELECT {columns} FROM {usage} UNION ALL SELECT {columns} FROM {node_usage}")
    }
}
