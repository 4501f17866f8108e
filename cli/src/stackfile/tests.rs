use kontena_schema::http::services::{Link, Strategy};
use proptest::prelude::*;

use super::*;

fn read_with(text: &str, user: &[(&str, &str)]) -> Result<StackFile, Faults> {
    let variables = user
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect();
    read(
        text,
        &Context {
            name: None,
            grid: "demo",
            variables: &variables,
            env: &|name| (name == "HOME_PORT").then(|| "8080".to_owned()),
            read: &|file| match file {
                "app.env" => Ok("# settings\nA=file\n\nB=file\n".to_owned()),
                _ => Err(io::ErrorKind::NotFound.into()),
            },
        },
    )
}

fn read_ok(text: &str) -> StackFile {
    read_with(text, &[]).unwrap()
}

fn faults(text: &str) -> String {
    read_with(text, &[]).unwrap_err().to_string()
}

#[test]
fn the_models_example() {
    let file = read_ok(
        "stack: kontena/testapp\nversion: 0.1.0\ndescription: two tiers\n\
         services:\n  webservice:\n    image: web\n    instances: 2\n    links: [db]\n  \
         db:\n    image: redis\n",
    );
    let stack = file.stack;
    assert_eq!(
        (stack.name.as_str(), stack.stack.as_deref()),
        ("testapp", Some("kontena/testapp"))
    );
    assert_eq!(
        (stack.version.as_deref(), file.description.as_deref()),
        (Some("0.1.0"), Some("two tiers"))
    );
    let names: Vec<_> = stack
        .services
        .iter()
        .map(|s| (s.name.as_str(), s.instances))
        .collect();
    assert_eq!(names, [("db", None), ("webservice", Some(2))]);
    assert_eq!(
        stack.services[1].spec.links,
        [Link {
            name: "db".to_owned(),
            alias: None
        }]
    );
    assert_eq!(file.warnings, [""; 0]);
}

#[test]
fn every_key_of_a_service() {
    let file = read_ok(
        r#"
stack: app
services:
  web:
    image: web:1
    instances: "3"
    command: sh -c "exec web"
    entrypoint: [/init, --]
    ports: ["80:8080", "127.0.0.1:53:53/udp"]
    environment: [A=inline, C=x=y]
    env_file: app.env
    affinity: [node!=node-1]
    deploy: { strategy: daemon }
    cap_add: [NET_ADMIN]
    cap_drop: [ALL]
    privileged: true
    user: 1000
    stop_grace_period: 1m30s
    stateful: false
    net: bridge
    volumes:
"#,
    );
    let web = &file.stack.services[0];
    assert_eq!(web.instances, Some(3));
    let spec = &web.spec;
    assert_eq!(spec.cmd.as_deref().unwrap(), ["sh", "-c", "exec web"]);
    assert_eq!(spec.entrypoint.as_deref().unwrap(), ["/init", "--"]);
    assert_eq!(spec.ports.len(), 2);
    assert_eq!(spec.env, ["A=inline", "B=file", "C=x=y"]);
    assert_eq!(spec.affinity, ["node!=node-1"]);
    assert_eq!(spec.strategy, Strategy::Daemon);
    assert_eq!(
        (spec.cap_add.as_slice(), spec.cap_drop.as_slice()),
        (
            ["NET_ADMIN".to_owned()].as_slice(),
            ["ALL".to_owned()].as_slice()
        )
    );
    assert_eq!(
        (spec.privileged, spec.user.as_deref()),
        (true, Some("1000"))
    );
    assert_eq!(spec.stop_grace_period_s, Some(90));
}

#[test]
fn an_environment_can_be_a_mapping() {
    let file = read_ok(
        "stack: app\nservices:\n  a:\n    image: x\n    environment: {S: text, I: 5, B: true, N: }\n",
    );
    assert_eq!(
        file.stack.services[0].spec.env,
        ["S=text", "I=5", "B=true", "N="]
    );
}

#[test]
fn variables_come_from_the_user_the_file_and_the_environment() {
    let text = r#"
stack: app
variables:
  TAG: { type: string, default: "1.0" }
  COUNT: { type: integer, default: 2 }
  PORT: { type: integer, from: { env: HOME_PORT }, default: 1 }
  EMPTY: { type: string, required: false }
services:
  web:
    image: web:$TAG
    instances: $COUNT
    ports: ["${PORT}:80"]
    environment: ["WHERE=$GRID/$STACK", "PRICE=5$$", "HOME=$HOME_PORT", "E=${EMPTY}"]
"#;
    let web = |user| read_with(text, user).unwrap().stack.services.remove(0);
    let plain = web(&[]);
    assert_eq!(
        (plain.spec.image.as_str(), plain.instances),
        ("web:1.0", Some(2))
    );
    assert_eq!(plain.spec.ports[0].node_port, 8080);
    assert_eq!(
        plain.spec.env,
        ["WHERE=demo/app", "PRICE=5$", "HOME=8080", "E="]
    );
    let given = web(&[("TAG", "2.0: {x}"), ("COUNT", "9")]);
    assert_eq!(
        (given.spec.image.as_str(), given.instances),
        ("web:2.0: {x}", Some(9))
    );
}

#[test]
fn all_faults_are_told_at_once() {
    let got = faults(
        r"
stack: app
volumes: { data: {} }
services:
  web:
    instances: many
    ports: [80]
    links: [gone]
    colour: red
    volumes: [/data]
    environment: [$UNSET]
    deploy: { strategy: best, wait_for_port: 80 }
    env_file: missing.env
  Bad_Name: { image: x, health_check: { port: 80 } }
  none:
",
    );
    let want = "volumes: not supported yet
services.web.instances: must be a whole number, not \"many\"
services.web.ports: \"80\" is no port: [ip:]host:container[/tcp|udp]
services.web.colour: no service has such a key
services.web.volumes: not supported yet
services.web.environment: variable UNSET has no value
services.web.deploy: strategy is \"best\", must be ha, daemon or random
services.web.env_file: missing.env: entity not found
services.web.image: is required
services.Bad_Name: \"Bad_Name\" may only hold a-z, 0-9 and '-'
services.Bad_Name.health_check: not supported yet
services.none: must be a mapping of keys to values
services.none.image: is required
services.web.links: there is no service \"gone\" in this stack";
    assert_eq!(got, want);
}

#[test]
fn unknown_top_level_keys_are_warnings() {
    let file = read_ok(
        "stack: app\nx-common: 1\nnetworks: {}\nname: old\nservices: {a: {image: x, x-note: 1}}\n",
    );
    assert_eq!(
        file.warnings,
        [
            "networks: is not supported and ignored",
            "unknown key \"name\" is ignored"
        ]
    );
}

#[test]
fn files_that_are_no_stack() {
    for (text, reason) in [
        ("", "it is empty"),
        ("- a", "it is no mapping"),
        ("a: [", "did not find"),
        ("a: 1\na: 2", "duplicate"),
        ("{% if x %}\n", "Liquid"),
        ("services: {a: {image: x}}", "stack: is missing"),
        ("stack: app", "services: there must be at least one"),
        (
            "stack: app\nservices: {}",
            "services: there must be at least one",
        ),
        ("stack: app\nservices: [a]", "services: must be a mapping"),
        (
            "stack: Upper\nservices: {a: {image: x}}",
            "stack: \"Upper\" may only hold",
        ),
    ] {
        let got = faults(text);
        assert!(got.contains(reason), "{text:?}: {got}");
    }
}

#[test]
fn anchors_and_merges_are_yaml_too() {
    let file = read_ok(
        "stack: app\nx-base: &base {image: x, user: me}\nservices: {a: {<<: *base, user: you}}\n",
    );
    let spec = &file.stack.services[0].spec;
    assert_eq!(
        (spec.image.as_str(), spec.user.as_deref()),
        ("x", Some("you"))
    );
}

#[test]
fn the_body_survives_the_wire() {
    let file = read_ok("stack: app\nservices: {a: {image: x, ports: ['80:80'], instances: 2}}\n");
    let json = serde_json::to_string(&file.stack).unwrap();
    assert_eq!(
        serde_json::from_str::<StackCreate>(&json).unwrap(),
        file.stack
    );
}

proptest! {
    #[test]
    fn no_text_upsets_the_reader(text in "(stack: a\n|services:\n| {0,4}[a-z]{1,8}:|[ \\[\\]{}&*$<!|>'\"#,%@-]|\\PC{0,6}|\n){0,20}") {
        let _ = read_with(&text, &[]);
    }

    #[test]
    fn no_value_of_a_variable_changes_the_structure(value in "\\PC*") {
        let text = "stack: app\nservices: {a: {image: x, user: $V}}\n";
        let file = read_with(text, &[("V", &value)]).unwrap();
        let user = &file.stack.services[0].spec.user;
        prop_assert_eq!(user.as_deref(), Some(value.as_str()));
    }
}
