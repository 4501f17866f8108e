//! Whatever is restarted, the service answers again by itself, and addresses and
//! node numbers are what they were. Each of these tests runs alone.

use std::time::Duration;

use kontena_schema::http::containers::Container;
use kontena_tests::{Grid, Host, Snapshot, service, until};

/// A container that is started again.
const CONTAINER_WITHIN: Duration = Duration::from_secs(10);
/// A host whose engine starts all its containers, or a whole Master.
const HOST_WITHIN: Duration = Duration::from_secs(60);

/// What is known before something is broken, and asked of afterwards. Knows the
/// toolboxes, because the Master that knows them may be away.
struct Watch {
    grid: Grid,
    before: Snapshot,
    toolboxes: Vec<(Host, String)>,
}

impl Watch {
    async fn begin() -> Self {
        let grid = Grid::first().await;
        let mut toolboxes = Vec::new();
        for host in &grid.hosts {
            toolboxes.push((host.clone(), grid.toolbox(host).await.name));
        }
        let before = grid.snapshot().await;
        let watch = Self {
            grid,
            before,
            toolboxes,
        };
        watch.answers(CONTAINER_WITHIN).await;
        watch
    }

    /// Waits until the page is answered on every host, by name.
    async fn answers(&self, within: Duration) {
        for (host, toolbox) in &self.toolboxes {
            let what = format!("the page answers on {}", host.name);
            until(within, &what, async || self.grid.page(host, toolbox).await).await;
        }
    }

    /// Waits until the Master shows everything as it was.
    async fn all_as_before(&self, within: Duration) {
        until(
            within,
            "nodes, numbers and addresses are as before",
            async || {
                let now = self.grid.snapshot().await;
                if now == self.before {
                    Ok(())
                } else {
                    Err(format!("{now:#?}\nbefore: {:#?}", self.before))
                }
            },
        )
        .await;
        for host in &self.grid.hosts {
            self.grid.node_online(&host.name).await;
        }
        for (stack, service, count) in [
            (Some("testapp"), "db", 1),
            (Some("testapp"), "webservice", 2),
            (None, "toolbox", 3),
        ] {
            for container in self.grid.running(stack, service, count).await {
                let host = self.grid.host(container.node.as_deref().unwrap());
                self.has_ethwe(host, &container).await;
            }
        }
        self.answers(within).await;
    }

    /// Waits until a change that is asked for takes effect.
    async fn changes_still_work(&self, name: &str) {
        self.grid.service_clear(name).await;
        self.grid
            .service_make(&service(name, "exec sleep infinity"))
            .await;
        self.grid.service_clear(name).await;
    }

    async fn container(&self, service: &str) -> (Host, Container) {
        let container = self
            .grid
            .containers(Some((Some("testapp"), service)))
            .await
            .remove(0);
        (
            self.grid.host(container.node.as_deref().unwrap()).clone(),
            container,
        )
    }

    async fn connected_at(&self, host: &Host) -> Option<String> {
        let node = self
            .grid
            .client
            .node_show(&self.grid.name, &host.name)
            .await
            .unwrap();
        node.connected_at
    }

    /// Waits until a node has a session that it had not before.
    async fn reconnected(&self, host: &Host, before: Option<&String>) {
        until(
            HOST_WITHIN,
            &format!("{} is connected anew", host.name),
            async || {
                let now = self.connected_at(host).await;
                if now.is_some() && now.as_ref() != before {
                    Ok(())
                } else {
                    Err(format!("{now:?}"))
                }
            },
        )
        .await;
    }

    /// Waits until a container has its address on `ethwe`, by the host alone.
    async fn has_ethwe(&self, host: &Host, container: &Container) {
        let expected = format!("inet {}/17 ", container.ip_address.unwrap());
        let what = format!("{} has {expected}", container.name);
        until(CONTAINER_WITHIN, &what, async || {
            let shown = host
                .beside(&container.name, "ip -4 -o addr show dev ethwe")
                .await
                .ok()?;
            if shown.contains(&expected) {
                Ok(())
            } else {
                Err(shown)
            }
        })
        .await;
    }
}

/// Kills the first process of a container, and waits until Docker has started
/// another one.
async fn kill(host: &Host, container: &str) {
    let pid = format!("docker inspect -f '{{{{.State.Pid}}}}' {container}");
    let before = host.run(&pid).await.must();
    host.run(&format!("kill -KILL {before}")).await.must();
    until(CONTAINER_WITHIN, "Docker starts it again", async || {
        let now = host.run(&pid).await.must();
        if now != before && now != "0" {
            Ok(())
        } else {
            Err(now)
        }
    })
    .await;
}

#[tokio::test]
async fn of_a_container_by_docker() {
    let watch = Watch::begin().await;
    for service in ["db", "webservice"] {
        let (host, container) = watch.container(service).await;
        host.run(&format!("docker restart -t 5 {}", container.name))
            .await
            .must();
        watch.has_ethwe(&host, &container).await;
        watch.answers(CONTAINER_WITHIN).await;
    }
    watch.all_as_before(CONTAINER_WITHIN).await;
}

#[tokio::test]
async fn of_a_container_whose_process_was_killed() {
    let watch = Watch::begin().await;
    for service in ["db", "webservice"] {
        let (host, container) = watch.container(service).await;
        kill(&host, &container.name).await;
        watch.has_ethwe(&host, &container).await;
        watch.answers(CONTAINER_WITHIN).await;
    }
    watch.all_as_before(CONTAINER_WITHIN).await;
}

#[tokio::test]
async fn of_a_service_by_the_master() {
    let watch = Watch::begin().await;
    let (host, container) = watch.container("webservice").await;
    let started = format!(
        "docker inspect -f '{{{{.State.StartedAt}}}}' {}",
        container.name
    );
    let before = host.run(&started).await.must();
    watch
        .grid
        .client
        .service_restart(&watch.grid.name, Some("testapp"), "webservice")
        .await
        .unwrap();
    until(HOST_WITHIN, "the container was started again", async || {
        let now = host.run(&started).await.must();
        if now == before { Err(now) } else { Ok(()) }
    })
    .await;
    watch.all_as_before(CONTAINER_WITHIN).await;
}

#[tokio::test]
async fn of_an_agent() {
    let watch = Watch::begin().await;
    let (host, container) = watch.container("db").await;
    let before = watch.connected_at(&host).await;
    host.run("docker kill --signal KILL kontena-agent && docker start kontena-agent")
        .await
        .must();
    // Traffic does not wait for the agent.
    watch.answers(CONTAINER_WITHIN).await;
    watch.reconnected(&host, before.as_ref()).await;
    watch.all_as_before(CONTAINER_WITHIN).await;
    let (_, after) = watch.container("db").await;
    assert_eq!(after.container_id, container.container_id);
    watch.changes_still_work("after-agent").await;
}

#[tokio::test]
async fn of_a_hosts_docker_engine() {
    let watch = Watch::begin().await;
    let (host, _) = watch.container("db").await;
    let before = watch.connected_at(&host).await;
    let pid = host.run("cat /var/run/docker.pid").await.must();
    host.run(&format!("kill -TERM {pid}")).await.must();
    until(HOST_WITHIN, "another engine answers", async || {
        let now = host
            .run("cat /var/run/docker.pid && docker version")
            .await
            .ok()?;
        if now.lines().next() == Some(&pid) {
            Err(now)
        } else {
            Ok(())
        }
    })
    .await;
    watch.reconnected(&host, before.as_ref()).await;
    watch.answers(HOST_WITHIN).await;
    watch.all_as_before(HOST_WITHIN).await;
    watch.changes_still_work("after-engine").await;
}

#[tokio::test]
async fn of_one_replica() {
    let watch = Watch::begin().await;
    let master = &watch.grid.master;
    for part in ["api-1", "api-2"] {
        master.docker(&["kill", "--signal", "KILL"], &[part]).await;
        watch.answers(CONTAINER_WITHIN).await;
        watch.changes_still_work("one-replica").await;
        master.docker(&["start"], &[part]).await;
        master.is_back().await;
    }
    watch.all_as_before(HOST_WITHIN).await;
}

#[tokio::test]
async fn of_redis() {
    let watch = Watch::begin().await;
    let master = &watch.grid.master;
    master
        .docker(&["kill", "--signal", "KILL"], &["redis"])
        .await;
    watch.answers(CONTAINER_WITHIN).await;
    watch.changes_still_work("without-redis").await;
    master.docker(&["start"], &["redis"]).await;
    master.is_back().await;
    watch.all_as_before(HOST_WITHIN).await;
}

#[tokio::test]
async fn of_postgres() {
    let watch = Watch::begin().await;
    watch.grid.master.kill_and_start("postgres").await;
    watch.answers(CONTAINER_WITHIN).await;
    watch.grid.master.is_back().await;
    watch.all_as_before(HOST_WITHIN).await;
    watch.changes_still_work("after-postgres").await;
}

#[tokio::test]
async fn of_anything_on_a_host_while_the_whole_master_is_away() {
    let watch = Watch::begin().await;
    let untouched = watch.grid.containers(Some((None, "toolbox"))).await;
    let (db_host, db) = watch.container("db").await;
    let (web_host, web) = watch.container("webservice").await;
    let master = &watch.grid.master;
    let parts = ["edge", "api-1", "api-2", "redis", "postgres"];
    master.docker(&["kill", "--signal", "KILL"], &parts).await;

    db_host
        .run(&format!("docker restart -t 5 {}", db.name))
        .await
        .must();
    watch.has_ethwe(&db_host, &db).await;
    kill(&web_host, &web.name).await;
    watch.has_ethwe(&web_host, &web).await;
    watch.answers(CONTAINER_WITHIN).await;
    web_host
        .run("docker restart -t 5 kontena-agent")
        .await
        .must();
    watch.answers(CONTAINER_WITHIN).await;
    web_host
        .run(&format!("docker restart -t 5 {}", web.name))
        .await
        .must();
    watch.has_ethwe(&web_host, &web).await;
    watch.answers(CONTAINER_WITHIN).await;

    master.docker(&["start"], &["postgres", "redis"]).await;
    master.docker(&["start"], &["api-1", "api-2", "edge"]).await;
    master.is_back().await;
    watch.all_as_before(HOST_WITHIN).await;
    assert_eq!(
        watch.grid.containers(Some((None, "toolbox"))).await,
        untouched
    );
    assert_eq!(watch.container("db").await.1.container_id, db.container_id);
    watch.changes_still_work("after-master").await;
}
