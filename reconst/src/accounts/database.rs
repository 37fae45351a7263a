//! Where the accounts are kept.

use std::{fmt, path::PathBuf, str::FromStr};

use thiserror::Error;

/// Where the accounts are kept.
#[derive(Clone, PartialEq, Eq)]
pub enum Database {
    /// In a file of SQLite.
    File(PathBuf),
    /// In a database of PostgreSQL, by its URL, which may hold a password.
    Postgres(String),
}

/// A text that names no database. It does not quote the text, which may hold a password.
#[derive(Debug, Error, Clone, Copy, PartialEq, Eq)]
#[error("that is no database: write it as in postgres://user:password@host/database")]
pub struct DatabaseError;

impl FromStr for Database {
    type Err = DatabaseError;

    fn from_str(text: &str) -> Result<Self, DatabaseError> {
        let text = text.trim();
        let is_postgres = text.starts_with("postgres://") || text.starts_with("postgresql://");
        if is_postgres && text.parse::<sqlx::any::AnyConnectOptions>().is_ok() {
            Ok(Self::Postgres(text.into()))
        } else {
            Err(DatabaseError)
        }
    }
}

impl fmt::Display for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::File(path) => path.display().fmt(f),
            Self::Postgres(url) => {
                let after_secret =
                    url.rsplit_once('@').map_or_else(|| url.split_once("://").map_or("", |(_, rest)| rest), |(_, rest)| rest);
                let without_options = after_secret.split('?').next().unwrap_or_default();
                write!(f, "postgres://***@{without_options}")
            }
        }
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_never_shown() {
        for url in ["postgres://isp:hunter2@db.example/accounts?sslmode=require", "postgresql://isp:hun@ter2@db.example/accounts"] {
            let database: Database = url.parse().unwrap_or_else(|_| Database::Postgres(url.into()));
            assert_eq!(format!("{database} {database:?}").matches("***@db.example/accounts").count(), 2);
            assert!(!format!("{database:?}").contains("hun"));
        }
        for text in ["", "mysql://isp@db.example/accounts", "/var/lib/members.db", "db.example"] {
            assert_eq!(text.parse::<Database>(), Err(DatabaseError), "{text}");
        }
    }
}
