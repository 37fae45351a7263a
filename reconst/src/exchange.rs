//! The commands that write LANs and members as TOML, and read them.

use std::{
    io::{Read, Write},
    path::{Path, PathBuf},
};

use clap::Args;
use reconst::accounts::exchange::{Document, ImportError};
use shared::service::{Exit, Failure};

use crate::register::State;

#[derive(Args)]
pub(crate) struct Export {
    /// Where to write it; must not exist yet [default: to standard output]
    file: Option<PathBuf>,
    #[command(flatten)]
    state: State,
}

#[derive(Args)]
pub(crate) struct Import {
    /// What `export` wrote, `-` for standard input
    file: PathBuf,
    #[command(flatten)]
    state: State,
    /// Only say what would change
    #[arg(long)]
    dry_run: bool,
}

impl Export {
    pub(crate) async fn execute(self) -> anyhow::Result<()> {
        let registrar = self.state.open().await?;
        let text = registrar.accounts().export().await.map_err(Failure::from)?.to_toml();
        let Some(path) = self.file else { return Ok(std::io::stdout().write_all(text.as_bytes())?) };
        let failure = |error| Failure::unavailable(format!("can't write {}: {error}", path.display()));
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).open(&path).map_err(failure)?;
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failure)?;
        println!("wrote {}", path.display());
        Ok(())
    }
}

impl Import {
    pub(crate) async fn execute(self) -> anyhow::Result<()> {
        let text = read(&self.file)?;
        let document: Document = text.parse().map_err(|error| Failure::config(format!("{}: {error}", self.file.display())))?;
        let registrar = self.state.open().await?;
        let imported = registrar.import(&document, self.dry_run).await.map_err(|error| failure(&self.file, error))?;
        registrar.accounts().close().await;
        for change in &imported.changes {
            println!("{}\t{}\t{}", change.action, change.subject, change.detail);
        }
        let done = if self.dry_run { "would be made" } else { "made" };
        println!("{} changes {done}", imported.changes.len());
        if imported.certificates_left_out > 0 {
            let left_out = imported.certificates_left_out;
            println!("{left_out} certificates left out: of another authority, ended or withdrawn here; invite their holders with --again");
        }
        Ok(())
    }
}

fn read(path: &Path) -> Result<String, Failure> {
    let mut text = String::new();
    let read = if path == Path::new("-") {
        std::io::stdin().read_to_string(&mut text)
    } else {
        std::fs::File::open(path).and_then(|mut file| file.read_to_string(&mut text))
    };
    read.map_err(|error| Failure::config(format!("can't read {}: {error}", path.display())))?;
    Ok(text)
}

fn failure(path: &Path, error: ImportError) -> Failure {
    match error {
        ImportError::Document(reason) => Failure::config(format!("{}: {reason}", path.display())),
        ImportError::Conflict(reason) => Failure::new(Exit::Config, reason),
        ImportError::Accounts(error) => error.into(),
    }
}
