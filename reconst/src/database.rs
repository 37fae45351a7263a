//! Which database has the members, as flags, a file or the environment say.

use std::path::Path;

use reconst::Database;
use shared::service::{Failure, read_secret};

/// The database that was chosen: by its URL, by a file with it, or by `RECONST_DATABASE`; `None` leaves it to the state directory.
///
/// # Errors
/// If it is named badly, or the file is not its owner's alone.
pub(crate) fn chosen(url: Option<&str>, file: Option<&Path>) -> Result<Option<Database>, Failure> {
    let named = match (url, file) {
        (Some(url), _) => Some(("--database", url.to_owned())),
        (None, Some(file)) => {
            let url =
                read_secret(file, "; it holds the URL of the database").map_err(|error| Failure::new(error.exit(), error.to_string()))?;
            Some(("--database-file", url))
        }
        (None, None) => std::env::var(VARIABLE).ok().map(|url| (VARIABLE, url)),
    };
    named.map(|(from, url)| url.parse().map_err(|error| Failure::config(format!("{from}: {error}")))).transpose()
}

const VARIABLE: &str = "RECONST_DATABASE";
