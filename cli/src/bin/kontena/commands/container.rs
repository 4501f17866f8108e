//! `kontena container`.

use clap::Subcommand;

use crate::failure::Failure;
use crate::output::tables;
use crate::session::Session;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Lists the containers of the grid's services
    #[command(visible_alias = "list")]
    Ls,
}

pub(crate) async fn run(command: Command, session: &Session) -> Result<(), Failure> {
    let Command::Ls = command;
    let client = session.client()?;
    let grid = session.grid(&client).await?;
    session
        .out
        .list(&client.container_list(&grid).await?, tables::containers);
    Ok(())
}
