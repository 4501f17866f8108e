//! What can be typed. Each group of commands describes its own in `commands`.

use std::str::FromStr;

use clap::{Parser, Subcommand, ValueEnum};

use crate::commands::{address, container, grid, master, node, service, stack};

/// Manages the grids of a Kontena Master.
#[derive(Debug, Parser)]
#[command(name = "kontena", version, after_help = AFTER_HELP)]
pub(crate) struct Args {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const AFTER_HELP: &str = "Environment:
  KONTENA_URL, KONTENA_TOKEN  a Master to use in place of a stored one
  KONTENA_CA                  file with the certificates to trust for it
  KONTENA_CONFIG              file of the stored Masters (~/.kontena_client.json)";

/// Options of every command.
#[derive(Clone, Debug, clap::Args)]
pub(crate) struct Global {
    /// The grid, in place of the current one
    #[arg(long, global = true, env = "KONTENA_GRID", value_name = "NAME")]
    pub(crate) grid: Option<String>,
    /// The stored Master, in place of the current one
    #[arg(long, global = true, env = "KONTENA_MASTER", value_name = "NAME")]
    pub(crate) master: Option<String>,
    /// How to print
    #[arg(short, long, global = true, value_enum, default_value_t = Format::Table)]
    pub(crate) output: Format,
}

/// How to print.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// The API's answer as it is
    Json,
    /// For reading
    Table,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Masters that this machine knows
    #[command(subcommand)]
    Master(master::Command),
    /// Grids
    #[command(subcommand)]
    Grid(grid::Command),
    /// Nodes of a grid
    #[command(subcommand)]
    Node(node::Command),
    /// Stacks of services, described by a kontena.yml
    #[command(subcommand)]
    Stack(stack::Command),
    /// Services
    #[command(subcommand)]
    Service(service::Command),
    /// Containers of services
    #[command(subcommand)]
    Container(container::Command),
    /// Overlay addresses: who holds which, and who did
    #[command(subcommand)]
    Address(address::Command),
    /// Prints the version of this command
    Version,
}

/// Whether to ask before something is destroyed.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Force {
    /// Does not ask for the name again
    #[arg(short, long)]
    pub(crate) force: bool,
}

/// How to wait for a deploy.
#[derive(Clone, Copy, Debug, clap::Args)]
pub(crate) struct Wait {
    /// Does not wait until it is done
    #[arg(long)]
    pub(crate) no_wait: bool,
    /// How long to wait, in seconds
    #[arg(long, default_value_t = 300, value_name = "SECONDS")]
    pub(crate) timeout: u64,
}

/// `stack/service`, or `service` for one without a stack.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServiceName {
    pub(crate) stack: Option<String>,
    pub(crate) name: String,
}

impl ServiceName {
    pub(crate) fn stack(&self) -> Option<&str> {
        self.stack.as_deref()
    }
}

impl FromStr for ServiceName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (stack, name) = match text.split_once('/') {
            // What the API calls the stack of a service that has none.
            None | Some(("null", _)) => (None, text.trim_start_matches("null/")),
            Some((stack, name)) => (Some(stack.to_owned()), name),
        };
        if name.is_empty() || name.contains('/') || stack.as_deref() == Some("") {
            return Err("a service is named stack/service, or service alone".to_owned());
        }
        Ok(Self {
            stack,
            name: name.to_owned(),
        })
    }
}

impl std::fmt::Display for ServiceName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.stack {
            Some(stack) => write!(f, "{stack}/{}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

/// `NAME=value`.
pub(crate) fn pair(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("must be NAME=value".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    fn parse(line: &str) -> Result<Args, clap::Error> {
        Args::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_description_of_the_commands_is_sound() {
        Args::command().debug_assert();
    }

    #[test]
    fn what_the_demo_types_is_understood() {
        for line in [
            "kontena master login https://localhost:9292 --token t --ca ca.pem --name kontena",
            "kontena master login https://localhost:9292 --token=t",
            "kontena master ls",
            "kontena master use kontena",
            "kontena master current",
            "kontena master logout",
            "kontena grid create demo --trusted-subnet 10.0.0.0/8 --trusted-subnet 172.16.0.0/12",
            "kontena grid create g --initial-size 3 --subnet 10.1.0.0/19 --supernet 10.1.0.0/17",
            "kontena grid create g --inner-subnet 10.9.9.0/24",
            "kontena grid ls",
            "kontena grid show demo --token",
            "kontena grid show",
            "kontena grid use demo",
            "kontena grid trusted-subnet ls --grid demo",
            "kontena grid trusted-subnet add 10.0.0.0/8 172.16.0.0/12 --dry-run",
            "kontena grid trusted-subnet rm 10.0.0.0/8",
            "kontena grid rm demo --force",
            "kontena node ls -o json",
            "kontena node show node-1 --grid demo",
            "kontena node rm node-1 --force",
            "kontena stack install kontena.yml -n app -v A=1 -v B=2=3 --no-deploy",
            "kontena stack install -",
            "kontena stack ls",
            "kontena stack show testapp",
            "kontena stack deploy testapp --timeout 10",
            "kontena stack rm testapp --force",
            "kontena stack validate kontena.yml",
            "kontena service ls",
            "kontena service show testapp/db",
            "kontena service create web nginx -p 80:80 -e A=b -l app/db:db --instances 2 -u root",
            "kontena service scale testapp/webservice 5",
            "kontena service deploy web --no-wait",
            "kontena service restart testapp/db",
            "kontena service rm testapp/db --force",
            "kontena container ls --master other",
            "kontena address ls",
            "kontena address ls --kind reservation --holder printer",
            "kontena address ls --kind placement --holder testapp/db --node node-1",
            "kontena address show 10.81.1.1",
            "kontena address reserve printer",
            "kontena address reserve printers --count 3",
            "kontena address reserve printer --address 10.81.3.7",
            "kontena address release 10.81.3.7 10.81.3.8",
            "kontena address history 10.81.3.7 --at 2026-01-31T12:01:00Z",
            "kontena version",
        ] {
            if let Err(err) = parse(line) {
                panic!("{line}: {err}");
            }
        }
    }

    #[test]
    fn what_is_wrong_is_refused() {
        for line in [
            "kontena",
            "kontena grid",
            "kontena grid create",
            "kontena service scale web many",
            "kontena service scale a/b/c 2",
            "kontena service create web nginx -p 80",
            "kontena stack install kontena.yml -v A",
            "kontena node ls -o xml",
            "kontena address ls --kind container",
            "kontena address show node-1",
            "kontena address reserve printer --count 2 --address 10.81.3.7",
            "kontena address release",
        ] {
            assert!(parse(line).is_err(), "{line}");
        }
    }

    #[test]
    fn services_are_named_with_their_stack_or_alone() {
        let parse = |text: &str| text.parse::<ServiceName>();
        let name = parse("testapp/db").unwrap();
        assert_eq!((name.stack(), name.name.as_str()), (Some("testapp"), "db"));
        assert_eq!(parse("db").unwrap(), parse("null/db").unwrap());
        assert_eq!(parse("db").unwrap().to_string(), "db");
        for bad in ["", "/db", "app/", "a/b/c", "null/"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
