//! Asking before something is destroyed.

use std::io::{IsTerminal, Write, stderr, stdin};

use crate::failure::Failure;

/// Asks for the name of what is to be removed. Without a terminal there is nobody
/// to ask, and nothing is removed.
pub(crate) fn confirm(name: &str, force: bool) -> Result<(), Failure> {
    confirm_with_data(name, force, None)
}

/// The same, where data goes with it: how much is said in any case.
pub(crate) fn confirm_with_data(
    name: &str,
    force: bool,
    data: Option<&str>,
) -> Result<(), Failure> {
    if !force && !stdin().is_terminal() {
        let data = data.map_or(String::new(), |data| format!(". {data}"));
        return Err(Failure::Usage(format!(
            "{name} is not removed: say --force{data}"
        )));
    }
    if let Some(data) = data {
        eprintln!("{data}.");
    }
    if force {
        return Ok(());
    }
    eprint!("Destructive command. To proceed, type {name:?}: ");
    stderr().flush()?;
    let mut answer = String::new();
    stdin().read_line(&mut answer)?;
    if answer.trim() == name {
        return Ok(());
    }
    Err(Failure::Usage(format!(
        "{name} is not removed: {:?} is another name",
        answer.trim()
    )))
}
