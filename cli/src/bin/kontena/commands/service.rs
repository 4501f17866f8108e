//! `kontena service`.

use clap::{Subcommand, ValueEnum};
use kontena::{Client, stackfile};
use kontena_schema::http::services::{Deploy, Link, Port, ServiceCreate, ServiceSpec, Strategy};

use super::deploy::{self, gone};
use crate::args::{Force, ServiceName, Wait};
use crate::failure::Failure;
use crate::output::{confirm_with_data, data, tables};
use crate::session::Session;

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Lists the services of the grid
    #[command(visible_alias = "list")]
    Ls,
    /// Shows a service
    Show {
        /// stack/service, or service
        name: ServiceName,
    },
    /// Makes a service without a stack; `service deploy` starts it
    Create(Box<Create>),
    /// Changes the number of instances and deploys them
    Scale {
        /// stack/service, or service
        name: ServiceName,
        /// How many
        instances: u32,
        #[command(flatten)]
        wait: Wait,
    },
    /// Deploys a service
    Deploy {
        /// stack/service, or service
        name: ServiceName,
        #[command(flatten)]
        wait: Wait,
    },
    /// Restarts the containers of a service
    Restart {
        /// stack/service, or service
        name: ServiceName,
    },
    /// Removes a service
    #[command(visible_alias = "remove")]
    Rm {
        /// stack/service, or service
        name: ServiceName,
        #[command(flatten)]
        force: Force,
        #[command(flatten)]
        wait: Wait,
    },
}

#[derive(Debug, clap::Args)]
pub(crate) struct Create {
    /// Its name
    name: String,
    /// The image
    image: String,
    /// A published port, [ip:]host:container[/udp]; repeatable
    #[arg(short, long = "ports", value_name = "PORT", value_parser = stackfile::port)]
    ports: Vec<Port>,
    /// NAME=value for the containers' environment; repeatable
    #[arg(short, long, value_name = "NAME=VALUE", value_parser = stackfile::environment)]
    env: Vec<String>,
    /// A service that it uses, [stack/]service[:alias]; repeatable
    #[arg(short, long = "link", value_name = "SERVICE", value_parser = stackfile::link)]
    links: Vec<Link>,
    /// Which nodes may run it, key==value or key!=value; repeatable
    #[arg(short, long, value_name = "RULE")]
    affinity: Vec<String>,
    /// The command line in place of the image's
    #[arg(long)]
    cmd: Option<String>,
    /// The entrypoint in place of the image's
    #[arg(long)]
    entrypoint: Option<String>,
    /// How many instances [default: 1]
    #[arg(long, value_name = "NUMBER")]
    instances: Option<u32>,
    /// How instances are spread over nodes
    #[arg(long, value_enum, default_value_t = Spread::Ha)]
    deploy_strategy: Spread,
    /// The user in the containers
    #[arg(short, long)]
    user: Option<String>,
    /// A capability to add; repeatable
    #[arg(long, value_name = "CAPABILITY")]
    cap_add: Vec<String>,
    /// A capability to take; repeatable
    #[arg(long, value_name = "CAPABILITY")]
    cap_drop: Vec<String>,
    /// Runs the containers privileged
    #[arg(long)]
    privileged: bool,
    /// How long a container may take to stop, such as 1m30s [default: 10s]
    #[arg(long, value_name = "DURATION", value_parser = stackfile::duration_s)]
    stop_timeout: Option<u32>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Spread {
    /// On nodes with the fewest first
    Ha,
    /// On every node
    Daemon,
    /// Anywhere
    Random,
}

impl From<Spread> for Strategy {
    fn from(spread: Spread) -> Self {
        match spread {
            Spread::Ha => Self::Ha,
            Spread::Daemon => Self::Daemon,
            Spread::Random => Self::Random,
        }
    }
}

pub(crate) async fn run(command: Command, session: &Session) -> Result<(), Failure> {
    let client = session.client()?;
    let grid = session.grid(&client).await?;
    match command {
        Command::Ls => session
            .out
            .list(&client.service_list(&grid).await?, tables::services),
        Command::Show { name } => {
            let service = client.service_show(&grid, name.stack(), &name.name).await?;
            session.out.show(&name.to_string(), &service)?;
        }
        Command::Create(create) => {
            let service = describe(*create).map_err(Failure::Usage)?;
            let step = session
                .out
                .step(format!("creating service {}", service.name));
            let created = client.service_create(&grid, &service).await?;
            step.done();
            session.out.changed(&created);
        }
        Command::Scale {
            name,
            instances,
            wait,
        } => {
            let begun = client
                .service_scale(&grid, name.stack(), &name.name, instances)
                .await?;
            watch(session, &client, begun, wait).await?;
        }
        Command::Deploy { name, wait } => {
            let begun = client
                .service_deploy(&grid, name.stack(), &name.name)
                .await?;
            watch(session, &client, begun, wait).await?;
        }
        Command::Restart { name } => {
            let step = session.out.step(format!("restarting {name}"));
            client
                .service_restart(&grid, name.stack(), &name.name)
                .await?;
            step.done();
            session.out.empty();
        }
        Command::Rm { name, force, wait } => {
            let shown = client.service_show(&grid, name.stack(), &name.name).await?;
            let data = data::removed(&[shown.data]);
            confirm_with_data(&name.to_string(), force.force, data.as_deref())?;
            let step = session.out.step(format!("removing service {name}"));
            client
                .service_remove(&grid, name.stack(), &name.name)
                .await?;
            let show = async || client.service_show(&grid, name.stack(), &name.name).await;
            gone(&format!("service {name}"), wait, show).await?;
            step.done();
            session.out.empty();
        }
    }
    Ok(())
}

async fn watch(
    session: &Session,
    client: &Client,
    begun: Deploy,
    wait: Wait,
) -> Result<(), Failure> {
    let ended = deploy::wait_all(session, client, vec![begun], wait).await?;
    ended.iter().for_each(|deploy| session.out.changed(deploy));
    Ok(())
}

fn describe(create: Create) -> Result<ServiceCreate, String> {
    let split = |line: Option<String>| line.as_deref().map(stackfile::command).transpose();
    let spec = ServiceSpec {
        image: create.image,
        cmd: split(create.cmd)?,
        entrypoint: split(create.entrypoint)?,
        env: create.env,
        ports: create.ports,
        links: create.links,
        affinity: create.affinity,
        strategy: create.deploy_strategy.into(),
        user: create.user,
        cap_add: create.cap_add,
        cap_drop: create.cap_drop,
        privileged: create.privileged,
        stop_grace_period_s: create.stop_timeout,
    };
    let (name, instances) = (create.name, create.instances);
    Ok(ServiceCreate {
        name,
        instances,
        spec,
        ..ServiceCreate::default()
    })
}
