//! What the owner tells a running relay: to take a line back, to share it again, to say how it does.

use std::{io, path::PathBuf, sync::Arc, time::Duration};

use serde::{Deserialize, Serialize};
use shared::service::{
    Exit, Failure, Shutdown,
    control::{Answer, Command, Control},
};
use tokio::task::JoinSet;

use crate::{RunningLine, status_of};

/// What `pause` and `resume` are told.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Arguments {
    /// The line, all of them if none is named.
    pub line: Option<u8>,
    /// For how long, for good if not said.
    pub seconds: Option<u64>,
}

/// Takes commands at the first of `paths` at which a socket can be made, if there are any; gives that one.
pub(crate) fn serve(
    paths: &[PathBuf],
    lines: &[Arc<RunningLine>],
    tasks: &mut JoinSet<()>,
    shutdown: &Shutdown,
) -> Result<Option<PathBuf>, Failure> {
    let mut troubles = Vec::new();
    for path in paths {
        match Control::bind(path) {
            Ok(control) => {
                let lines = lines.to_vec();
                tasks.spawn(control.serve(move |command| answer(&lines, &command), shutdown.clone()));
                return Ok(Some(path.clone()));
            }
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                return Err(Failure::new(
                    Exit::Unavailable,
                    format!("this relay runs already: {} is in use; give a second one its own with --control FILE", path.display()),
                ));
            }
            Err(error) => troubles.push(format!("{}: {error}", path.display())),
        }
    }
    if !troubles.is_empty() {
        tracing::warn!("this relay can't be paused while it runs, no socket for commands can be made: {}", troubles.join("; "));
    }
    Ok(None)
}

/// Takes lines back.
pub(crate) fn pause(lines: &[Arc<RunningLine>], line: Option<u8>, span: Option<Duration>) -> Result<(), String> {
    named(lines, line)?.for_each(|line| line.owner.pause(span));
    Ok(())
}

/// Shares lines again.
pub(crate) fn resume(lines: &[Arc<RunningLine>], line: Option<u8>) -> Result<(), String> {
    named(lines, line)?.for_each(|line| line.owner.resume());
    Ok(())
}

fn answer(lines: &[Arc<RunningLine>], command: &Command) -> Answer {
    let arguments = || match command.arguments.as_str() {
        "" => Ok(Arguments::default()),
        arguments => serde_json::from_str::<Arguments>(arguments).map_err(|error| error.to_string()),
    };
    match (command.is_query, command.name.as_str()) {
        (true, "status") => (),
        (false, "pause") => {
            let Arguments { line, seconds } = arguments()?;
            pause(lines, line, seconds.map(Duration::from_secs))?;
        }
        (false, "resume") => resume(lines, arguments()?.line)?,
        (_, name) => return Err(format!("this relay knows no command {name}: is it of another version?")),
    }
    serde_json::to_value(status_of(lines)).map_err(|error| error.to_string())
}

fn named(lines: &[Arc<RunningLine>], wanted: Option<u8>) -> Result<impl Iterator<Item = &Arc<RunningLine>>, String> {
    let is_named = move |line: &&Arc<RunningLine>| wanted.is_none_or(|wanted| line.owner.number().0 == wanted);
    if !lines.iter().any(|line| is_named(&line)) {
        let known: Vec<_> = lines.iter().map(|line| line.number.0.to_string()).collect();
        return Err(format!("there is no line {}: this relay has {}", wanted.unwrap_or_default(), known.join(", ")));
    }
    Ok(lines.iter().filter(is_named))
}
