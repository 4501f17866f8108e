//! `kontena stack`.

use std::collections::BTreeMap;
use std::io::{Read, stdin};
use std::path::Path;

use clap::Subcommand;
use kontena::Client;
use kontena::stackfile::{self, StackFile};
use kontena_schema::http::services::ServiceData;
use kontena_schema::http::stacks::StackDeploy;

use super::deploy::{self, gone};
use crate::args::{Force, Wait, pair};
use crate::failure::Failure;
use crate::output::{confirm_with_data, data, tables};
use crate::session::{Session, read_file};

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Installs a stack, or upgrades it if it is there, and deploys it
    #[command(visible_alias = "upgrade")]
    Install {
        #[command(flatten)]
        file: StackArgs,
        /// Does not deploy it
        #[arg(long)]
        no_deploy: bool,
        #[command(flatten)]
        wait: Wait,
    },
    /// Lists the stacks of the grid
    #[command(visible_alias = "list")]
    Ls,
    /// Shows a stack with its services
    Show {
        /// Its name
        name: String,
    },
    /// Deploys the services of a stack
    Deploy {
        /// Its name
        name: String,
        #[command(flatten)]
        wait: Wait,
    },
    /// Removes a stack with its services
    #[command(visible_alias = "remove")]
    Rm {
        /// Its name
        name: String,
        #[command(flatten)]
        force: Force,
        #[command(flatten)]
        wait: Wait,
    },
    /// Checks a stack file; needs no Master
    Validate {
        #[command(flatten)]
        file: StackArgs,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct StackArgs {
    /// The stack file; `-` reads standard input
    #[arg(default_value = "kontena.yml")]
    file: String,
    /// The stack's name in place of the file's
    #[arg(short, long)]
    name: Option<String>,
    /// A variable of the file, NAME=value; repeatable
    #[arg(short = 'v', long = "value", value_name = "NAME=VALUE", value_parser = pair)]
    values: Vec<(String, String)>,
}

pub(crate) async fn run(command: Command, session: &Session) -> Result<(), Failure> {
    match command {
        Command::Validate { file } => validate(session, &file),
        Command::Install {
            file,
            no_deploy,
            wait,
        } => install(session, &file, no_deploy, wait).await,
        Command::Ls => {
            let (client, grid) = target(session).await?;
            session
                .out
                .list(&client.stack_list(&grid).await?, tables::stacks);
            Ok(())
        }
        Command::Show { name } => {
            let (client, grid) = target(session).await?;
            session
                .out
                .show(&name, &client.stack_show(&grid, &name).await?)
        }
        Command::Deploy { name, wait } => {
            let (client, grid) = target(session).await?;
            let deployed = deploy_stack(session, &client, &grid, &name, wait).await?;
            session.out.changed(&deployed);
            Ok(())
        }
        Command::Rm { name, force, wait } => {
            let (client, grid) = target(session).await?;
            let data = data::removed(&kept(&client, &grid, &name).await?);
            confirm_with_data(&name, force.force, data.as_deref())?;
            let step = session.out.step(format!("removing stack {name}"));
            client.stack_remove(&grid, &name).await?;
            let show = async || client.stack_show(&grid, &name).await;
            gone(&format!("stack {name}"), wait, show).await?;
            step.done();
            session.out.empty();
            Ok(())
        }
    }
}

/// What the instances of a stack's services keep.
async fn kept(
    client: &Client,
    grid: &str,
    name: &str,
) -> Result<Vec<Option<ServiceData>>, Failure> {
    let stack = client.stack_show(grid, name).await?;
    let mut kept = Vec::new();
    for service in &stack.services {
        let shown = client.service_show(grid, Some(name), &service.name).await;
        // One that is gone by now keeps nothing.
        match shown {
            Ok(service) => kept.push(service.data),
            Err(err) if err.is_not_found() => {}
            Err(err) => return Err(err.into()),
        }
    }
    Ok(kept)
}

async fn target(session: &Session) -> Result<(Client, String), Failure> {
    let client = session.client()?;
    let grid = session.grid(&client).await?;
    Ok((client, grid))
}

async fn install(
    session: &Session,
    args: &StackArgs,
    no_deploy: bool,
    wait: Wait,
) -> Result<(), Failure> {
    let (client, grid) = target(session).await?;
    let stack = load(args, &grid)?.stack;
    let there = match client.stack_show(&grid, &stack.name).await {
        Ok(_) => true,
        // No such grid is an error of its own, which the creation will tell.
        Err(err) if err.is_not_found() => false,
        Err(err) => return Err(err.into()),
    };
    let verb = if there { "upgrading" } else { "installing" };
    let step = session.out.step(format!("{verb} stack {}", stack.name));
    let installed = if there {
        client.stack_update(&grid, &stack.name, &stack).await?
    } else {
        client.stack_create(&grid, &stack).await?
    };
    step.done();
    if no_deploy {
        session.out.changed(&installed);
        return Ok(());
    }
    deploy_stack(session, &client, &grid, &stack.name, wait).await?;
    session
        .out
        .changed(&client.stack_show(&grid, &stack.name).await?);
    Ok(())
}

async fn deploy_stack(
    session: &Session,
    client: &Client,
    grid: &str,
    name: &str,
    wait: Wait,
) -> Result<StackDeploy, Failure> {
    let begun = client.stack_deploy(grid, name).await?;
    let service_deploys = deploy::wait_all(session, client, begun.service_deploys, wait).await?;
    Ok(StackDeploy {
        stack_id: begun.stack_id,
        service_deploys,
    })
}

fn validate(session: &Session, args: &StackArgs) -> Result<(), Failure> {
    let grid = session.grid_named().ok().flatten().unwrap_or_default();
    let file = load(args, &grid)?;
    let services = file.stack.services.len();
    let line = format!(
        "{} describes stack {} with {services} services",
        args.file, file.stack.name
    );
    session.out.list(&file.stack, |_| line);
    Ok(())
}

/// Reads the stack file; its warnings go to standard error.
fn load(args: &StackArgs, grid: &str) -> Result<StackFile, Failure> {
    let text = if args.file == "-" {
        let mut text = String::new();
        stdin().read_to_string(&mut text)?;
        text
    } else {
        read_file(&args.file)?
    };
    let beside = Path::new(&args.file).parent().unwrap_or(Path::new(""));
    let variables: BTreeMap<_, _> = args.values.iter().cloned().collect();
    let context = stackfile::Context {
        name: args.name.as_deref(),
        grid,
        variables: &variables,
        env: &|name| std::env::var(name).ok(),
        read: &|file| std::fs::read_to_string(beside.join(file)),
    };
    let read = stackfile::read(&text, &context);
    let file = read.map_err(|faults| Failure::StackFile {
        file: args.file.clone(),
        faults,
    })?;
    for warning in &file.warnings {
        eprintln!(" [warn] {}: {warning}", args.file);
    }
    Ok(file)
}
