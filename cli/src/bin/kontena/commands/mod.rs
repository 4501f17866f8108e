//! One module per group of commands: what can be typed, and what it does.

pub(crate) mod address;
pub(crate) mod container;
mod deploy;
pub(crate) mod grid;
pub(crate) mod master;
pub(crate) mod node;
pub(crate) mod ping;
pub(crate) mod service;
pub(crate) mod stack;
mod trust;

use crate::args::Command;
use crate::failure::Failure;
use crate::output::print;
use crate::session::Session;

pub(crate) async fn run(command: Command, session: &Session) -> Result<(), Failure> {
    match command {
        Command::Master(command) => master::run(command, session).await,
        Command::Grid(command) => grid::run(command, session).await,
        Command::Node(command) => node::run(command, session).await,
        Command::Stack(command) => stack::run(command, session).await,
        Command::Service(command) => service::run(command, session).await,
        Command::Address(command) => address::run(command, session).await,
        Command::Container(command) => container::run(command, session).await,
        Command::Version => {
            print(concat!("kontena ", env!("CARGO_PKG_VERSION")));
            Ok(())
        }
    }
}
