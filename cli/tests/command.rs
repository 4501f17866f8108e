//! The command as a whole, against a Master that is made up.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail like the test")]

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::State;
use axum::http::{Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

mod fixtures;
mod ways;

use fixtures::{address, addresses, deploy, grid, nodes, refused, service, stack, trust, warned};

/// What the Master was asked to change, in order.
type Changes = Arc<Mutex<Vec<(String, Value)>>>;

#[derive(Clone, Default)]
struct Master {
    changes: Changes,
    asked: Arc<AtomicUsize>,
    /// How often a removed stack was looked at.
    looks: Arc<AtomicUsize>,
    fails: bool,
    /// How many nodes a new grid would hit.
    warns: u8,
}

impl Master {
    fn answer(&self, method: &Method, path: &str) -> (u16, Value) {
        match (method.as_str(), path) {
            ("GET", "/v1/ping") => (200, json!({"message": "pong"})),
            ("GET", "/v1/grids") => (200, json!({"grids": [grid()]})),
            ("GET", "/v1/grids/demo") => (200, grid()),
            ("POST", "/v1/grids") if self.warns > 0 => (201, warned(self.warns)),
            ("POST", "/v1/grids") if !self.fails => (201, grid()),
            ("POST", "/v1/grids") => refused(
                422,
                "invalid",
                json!({"name": "is taken", "subnet": "is too small"}),
            ),
            ("GET", "/v1/stacks/demo/testapp") if !self.changed("POST /v1/grids/demo/stacks") => {
                refused(404, "stack_not_found", "no such stack")
            }
            // Removed, it is there for one more look: its containers go first.
            ("GET", "/v1/stacks/demo/testapp")
                if self.changed("DELETE /v1/stacks/demo/testapp")
                    && self.looks.fetch_add(1, Ordering::Relaxed) > 0 =>
            {
                refused(404, "not_found", "no such stack")
            }
            ("GET" | "PUT", "/v1/stacks/demo/testapp") => (200, stack()),
            ("POST", "/v1/grids/demo/stacks") => (201, stack()),
            ("POST", "/v1/stacks/demo/testapp/deploy") => {
                let begun = ["db", "webservice"].map(|name| deploy(name, "ongoing", false, None));
                (
                    200,
                    json!({"stack_id": "demo/testapp", "service_deploys": begun}),
                )
            }
            ("GET", "/v1/services/demo/testapp/db/deploys/1") => {
                let finished = self.asked.fetch_add(1, Ordering::Relaxed) > 0;
                (
                    200,
                    deploy(
                        "db",
                        if finished { "success" } else { "ongoing" },
                        finished,
                        None,
                    ),
                )
            }
            ("GET", "/v1/services/demo/testapp/webservice/deploys/1") if self.fails => (
                200,
                deploy("webservice", "error", true, Some("no such image")),
            ),
            ("GET", "/v1/services/demo/testapp/webservice/deploys/1") => {
                (200, deploy("webservice", "success", true, None))
            }
            ("DELETE", "/v1/stacks/demo/testapp") => (200, json!({})),
            ("GET", "/v1/services/demo/testapp/db") => (200, service()),
            ("GET" | "POST", "/v1/grids/demo/trusted_subnets") => (200, trust()),
            _ if path.starts_with("/v1/nodes/demo/") => nodes(method, path, self.fails),
            _ if path.starts_with("/v1/grids/demo/addresses") => addresses(method, path),
            other => refused(404, "not_found", format!("{other:?}")),
        }
    }

    fn changed(&self, what: &str) -> bool {
        self.changes
            .lock()
            .unwrap()
            .iter()
            .any(|(change, _)| change == what)
    }

    async fn serve(self) -> String {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let router = Router::new().fallback(handle).with_state(self);
        tokio::spawn(async move { axum::serve(listener, router).await });
        url
    }
}

async fn handle(State(master): State<Master>, method: Method, uri: Uri, body: String) -> Response {
    let path = uri.path_and_query().unwrap().as_str();
    let (status, answer) = master.answer(&method, path);
    if method != Method::GET {
        let body = serde_json::from_str(&body).unwrap_or_default();
        let change = format!("{method} {path}");
        master.changes.lock().unwrap().push((change, body));
    }
    let status = StatusCode::from_u16(status).unwrap();
    (
        status,
        [("content-type", "application/json")],
        answer.to_string(),
    )
        .into_response()
}

/// A place for the files of one test.
struct Place(PathBuf);

impl Place {
    fn new(name: &str) -> Self {
        let dir =
            std::env::temp_dir().join(format!("kontena-command-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join("kontena.yml"), STACK).unwrap();
        Self(dir)
    }

    async fn run(&self, line: &str) -> Ran {
        let mut command = Command::new(env!("CARGO_BIN_EXE_kontena"));
        command
            .args(line.split_whitespace())
            .current_dir(&self.0)
            .env_clear();
        command
            .env("KONTENA_CONFIG", self.0.join("client.json"))
            .stdin(Stdio::null());
        let output = tokio::task::spawn_blocking(move || command.output())
            .await
            .unwrap()
            .unwrap();
        Ran::from(output)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

const STACK: &str = "stack: testapp\nversion: 0.1.0\nservices:\n  webservice:\n    image: web\n    \
    links: [db]\n  db:\n    image: redis\n";

#[derive(Debug, PartialEq)]
struct Ran {
    out: String,
    err: String,
    code: Option<i32>,
}

impl From<Output> for Ran {
    fn from(output: Output) -> Self {
        Self {
            out: String::from_utf8(output.stdout).unwrap(),
            err: String::from_utf8(output.stderr).unwrap(),
            code: output.status.code(),
        }
    }
}

fn well(out: &str) -> Ran {
    Ran {
        out: out.to_owned(),
        err: String::new(),
        code: Some(0),
    }
}

#[tokio::test]
async fn login_install_upgrade_and_remove() {
    let (place, master) = (Place::new("install"), Master::default());
    let url = master.clone().serve().await;
    let login = place
        .run(&format!("master login {url} --token t --name test"))
        .await;
    assert_eq!(login, well(&format!("* logging in to {url} .. done\n")));
    let ls = place.run("master ls").await;
    assert_eq!(
        ls,
        well(&format!(
            "NAME    URL{}GRID\ntest *  {url}  demo\n",
            " ".repeat(url.len() - 1)
        ))
    );

    let deployed = "* deploying testapp/db .. done\n  testapp/db-1 on node-1: running\n\
        * deploying testapp/webservice .. done\n  testapp/webservice-1 on node-1: running\n";
    let installed = place.run("stack install").await;
    assert_eq!(
        installed,
        well(&format!("* installing stack testapp .. done\n{deployed}"))
    );
    let upgraded = place.run("stack install kontena.yml").await;
    assert_eq!(
        upgraded,
        well(&format!("* upgrading stack testapp .. done\n{deployed}"))
    );
    let json = place.run("stack install kontena.yml -o json").await;
    assert_eq!(serde_json::from_str::<Value>(&json.out).unwrap(), stack());

    let refused = place.run("stack rm testapp").await;
    assert_eq!(
        (refused.code, refused.err.contains("--force")),
        (Some(1), true)
    );
    let refused = place.run("service rm testapp/db").await;
    let goes = "--force. 1 instance keeps 5.0 MiB (measured 12m ago) in volumes";
    assert!(refused.err.contains(goes), "{refused:?}");
    let removed = place.run("stack rm testapp --force").await;
    assert_eq!(removed, well("* removing stack testapp .. done\n"));

    let changes = master.changes.lock().unwrap();
    let names: Vec<_> = changes.iter().map(|(change, _)| change.as_str()).collect();
    let [install, upgrade, deploy] = [
        "POST /v1/grids/demo/stacks",
        "PUT /v1/stacks/demo/testapp",
        "POST /v1/stacks/demo/testapp/deploy",
    ];
    let remove = "DELETE /v1/stacks/demo/testapp";
    assert_eq!(
        names,
        [install, deploy, upgrade, deploy, upgrade, deploy, remove]
    );
    let services: Vec<_> = changes[0].1["services"]
        .as_array()
        .unwrap()
        .iter()
        .map(|s| &s["name"])
        .collect();
    assert_eq!(services, ["db", "webservice"]);
}

#[tokio::test]
async fn who_forces_a_removal_is_told_what_data_goes_with_it() {
    let place = Place::new("force");
    let url = Master::default().serve().await;
    place.run(&format!("master login {url} --token t")).await;
    place.run("grid use demo").await;
    let forced = place.run("service rm testapp/db --force").await;
    let goes = "1 instance keeps 5.0 MiB (measured 12m ago) in volumes";
    assert!(forced.err.contains(goes), "{forced:?}");
    let refused = place.run("node rm node-1").await;
    assert!(refused.err.contains("in volumes is removed"), "{refused:?}");
}

#[tokio::test]
async fn errors_go_to_standard_error_with_their_fields_and_exit_1() {
    let place = Place::new("errors");
    let url = Master {
        fails: true,
        ..Master::default()
    }
    .serve()
    .await;
    place.run(&format!("master login {url} --token t")).await;

    let create = place.run("grid create demo -o json").await;
    let want = " [error] 422 : invalid (POST /v1/grids)\n         name: is taken\n         \
        subnet: is too small\n         code: invalid\n         request: r-1\n";
    assert_eq!((create.out.as_str(), create.code), ("", Some(1)));
    assert_eq!(
        create.err,
        format!("* creating grid demo .. failed\n{want}")
    );

    let install = place.run("stack install kontena.yml --timeout 20").await;
    let want = " [error] the deploy of testapp/webservice failed: 1 of 1 instances does not run\n         \
        testapp/webservice-1 on node-1: failed: no such image\n";
    assert_eq!((install.err.as_str(), install.code), (want, Some(1)));
    assert!(
        install
            .out
            .ends_with("* deploying testapp/webservice .. failed\n"),
        "{}",
        install.out
    );

    std::fs::write(
        place.0.join("bad.yml"),
        "stack: a\nservices: {b: {colour: red}}\n",
    )
    .unwrap();
    let bad = place.run("stack validate bad.yml").await;
    let want = " [error] bad.yml has faults\n         services.b.colour: no service has such a key\n         \
        services.b.image: is required\n";
    assert_eq!(
        (bad.out.as_str(), bad.err.as_str(), bad.code),
        ("", want, Some(1))
    );
    assert_eq!(place.run("nonsense").await.code, Some(2));
}

#[tokio::test]
async fn a_grid_is_made_with_the_networks_that_are_named() {
    let place = Place::new("create");
    let master = Master::default();
    let url = master.clone().serve().await;
    place.run(&format!("master login {url} --token t")).await;
    let networks = "--subnet 10.1.0.0/19 --supernet 10.1.0.0/17 --inner-subnet 10.9.9.0/24";
    let create = place.run(&format!("grid create demo {networks}")).await;
    assert_eq!(create, well("* creating grid demo .. done\n"));
    let changes = master.changes.lock().unwrap();
    let [(change, body)] = &changes[..] else {
        panic!("{changes:?}")
    };
    assert_eq!(change, "POST /v1/grids");
    let named = ["subnet", "supernet", "inner_subnet"].map(|name| body[name].as_str());
    let wanted = ["10.1.0.0/19", "10.1.0.0/17", "10.9.9.0/24"];
    assert_eq!(named, wanted.map(Some));
}

#[tokio::test]
async fn a_grid_that_would_hit_nodes_is_made_with_a_warning() {
    let place = Place::new("warned");
    let warns = |warns| Master {
        warns,
        ..Master::default()
    };
    let url = warns(2).serve().await;
    place.run(&format!("master login {url} --token t")).await;
    let want = " [warn] node other/host-1: its network 10.81.1.0/24 on eth0 overlaps\n \
        [warn] node other/host-2: its network 10.81.2.0/24 on eth0 overlaps\n";
    let create = place.run("grid create demo").await;
    assert_eq!(create.out, "* creating grid demo .. done\n");
    assert_eq!((create.err.as_str(), create.code), (want, Some(0)));
    let json = place.run("grid create demo -o json").await;
    assert_eq!(serde_json::from_str::<Value>(&json.out).unwrap(), warned(2));
    assert!(json.err.ends_with(want), "{}", json.err);

    let url = warns(12).serve().await;
    let login = format!("master login {url} --token t --name many");
    place.run(&login).await;
    let many = place.run("grid create demo").await.err;
    assert_eq!(many.lines().count(), 11, "{many}");
    assert!(many.ends_with(" [warn] and 2 more nodes; `-o json` has them all\n"));
}

#[tokio::test]
async fn a_grid_and_its_token_are_shown() {
    let place = Place::new("show");
    let url = Master::default().serve().await;
    place.run(&format!("master login {url} --token t")).await;
    assert_eq!(place.run("grid show demo --token").await, well("join-me\n"));
    let json = place.run("grid show -o json").await;
    assert_eq!(serde_json::from_str::<Value>(&json.out).unwrap(), grid());
    let shown = place.run("grid show demo").await;
    assert!(
        shown.out.starts_with("demo:\n  id: demo\n  name: demo\n"),
        "{}",
        shown.out
    );
    assert!(!shown.out.contains("join-me"), "{}", shown.out);
    assert_eq!(place.run("version").await, well("kontena 0.1.0\n"));
}

#[tokio::test]
async fn trusted_subnets_are_listed_added_and_removed() {
    let (place, master) = (Place::new("trust"), Master::default());
    let url = master.clone().serve().await;
    place.run(&format!("master login {url} --token t")).await;

    let listed = place.run("grid trusted-subnet ls").await;
    assert_eq!(listed, well("SUBNET\n10.1.0.0/16\n10.2.0.0/16\n"));
    let told = "pairs of nodes that turned fast: 1, sealed: 2; then in all fast: 3, sealed: 7\n";
    let added = place
        .run("grid trusted-subnet add 10.1.0.0/16 10.2.0.0/16")
        .await;
    assert_eq!(added, well(told));
    let inside = place.run("grid trusted-subnet rm 10.2.7.0/24").await;
    let stays = "10.2.7.0/24 stays trusted: it lies in 10.2.0.0/16\n";
    assert_eq!(inside, well(&format!("{told}{stays}")));
    let removed = place
        .run("grid trusted-subnet rm 10.3.0.0/16 --dry-run")
        .await;
    assert_eq!(removed, well(&told.replace("turned", "would turn")));
    let json = place
        .run("grid trusted-subnet rm 10.3.0.0/16 -o json")
        .await;
    assert_eq!(serde_json::from_str::<Value>(&json.out).unwrap(), trust());
    let changes = master.changes.lock().unwrap();
    let bodies: Vec<_> = changes.iter().map(|(_, body)| body.clone()).collect();
    let asked = [
        json!({"add": ["10.1.0.0/16", "10.2.0.0/16"], "remove": [], "dry_run": false}),
        json!({"add": [], "remove": ["10.2.7.0/24"], "dry_run": false}),
        json!({"add": [], "remove": ["10.3.0.0/16"], "dry_run": true}),
        json!({"add": [], "remove": ["10.3.0.0/16"], "dry_run": false}),
    ];
    assert_eq!(bodies, asked);
}

#[tokio::test]
async fn addresses_are_reserved_listed_and_released() {
    let (place, master) = (Place::new("addresses"), Master::default());
    let url = master.clone().serve().await;
    place.run(&format!("master login {url} --token t")).await;

    let reserved = place.run("address reserve printer --count 2").await;
    let want = "* reserving 2 addresses for printer .. done\n  10.81.3.7\n  10.81.3.8\n";
    assert_eq!(reserved, well(want));
    let json = place.run("address reserve printer -o json").await;
    let both = json!({"addresses": [address(7), address(8)]});
    assert_eq!(serde_json::from_str::<Value>(&json.out).unwrap(), both);

    let ls = "address ls --kind reservation --holder a/b";
    let json = place.run(&format!("{ls} -o json")).await;
    assert_eq!(serde_json::from_str::<Value>(&json.out).unwrap(), both);
    assert_eq!(place.run(ls).await.out.lines().count(), 3);
    let shown = place.run("address show 10.81.3.7").await;
    let begin = "10.81.3.7:\n  address: 10.81.3.7\n  class: 1\n  kind: reservation\n";
    assert!(shown.out.starts_with(begin), "{}", shown.out);

    let released = place.run("address release 10.81.3.7 10.81.3.9").await;
    let want = "* releasing 10.81.3.7 .. done\n* releasing 10.81.3.9 .. failed\n";
    assert_eq!((released.out.as_str(), released.code), (want, Some(1)));
    assert!(released.err.contains("10.81.3.9"), "{}", released.err);
    let changes = master.changes.lock().unwrap();
    let bodies: Vec<_> = changes.iter().map(|(_, body)| &body["count"]).collect();
    assert_eq!(bodies[..2], [&json!(2), &json!(null)]);
}

#[tokio::test]
async fn the_history_of_an_address_is_shown_whole_or_at_a_moment() {
    let place = Place::new("history");
    let url = Master::default().serve().await;
    place.run(&format!("master login {url} --token t")).await;
    let events = |out: &str| {
        let lines = out.lines().skip(1);
        let events = lines.map(|line| line.split_whitespace().nth(1).unwrap().to_owned());
        events.collect::<Vec<_>>()
    };
    let all = place.run("address history 10.81.3.7").await;
    assert_eq!(events(&all.out), ["released", "leased"]);
    let then = "address history 10.81.3.7 --at 2026-01-31T12:01:00+01:00";
    assert_eq!(events(&place.run(then).await.out), ["leased"]);
}
