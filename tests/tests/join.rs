//! What `kontena-join` asks of a host's engine. In the engine's place is a program
//! that writes its arguments down; `/etc` and `/run` are a mount namespace's own.
//! Root is needed, no stack is.
#![allow(clippy::unwrap_used, missing_docs)]

use std::fs;
use std::path::PathBuf;
use std::process::{Command, Output};

/// The first call of each kind goes into a file of its name, an argument a line.
const ENGINE: &str = r#"#!/bin/sh
printf '%s\n' "$@" >"$CALLS/$1"
case "$1 $2" in
  "image inspect") echo sha256:0 ;;
  inspect*) exit 1 ;;
esac
"#;

/// Starts the script on a host whose `/etc/kontena` is this test's.
const HOST: &str = r#"set -e
mount -t tmpfs none "$SCRATCH/mounts"
mkdir "$SCRATCH/mounts/upper" "$SCRATCH/mounts/work"
mount -t overlay -o "lowerdir=/etc,upperdir=$SCRATCH/mounts/upper,workdir=$SCRATCH/mounts/work" none /etc
mount -t tmpfs none /run
rm -rf /etc/kontena
if [ -e "$SCRATCH/ca.pem" ]; then mkdir /etc/kontena; cp "$SCRATCH/ca.pem" /etc/kontena/; fi
exec "$SCRIPT"
"#;

/// A host on which a test joins.
struct Host(PathBuf);

impl Drop for Host {
    fn drop(&mut self) {
        // What is left of it is only litter.
        let _ = fs::remove_dir_all(&self.0);
    }
}

impl Host {
    fn new(test: &str) -> Self {
        let name = format!("kontena-join-{test}-{}", std::process::id());
        let host = Self(std::env::temp_dir().join(name));
        for directory in ["bin", "calls", "mounts"] {
            fs::create_dir_all(host.0.join(directory)).unwrap();
        }
        let engine = host.0.join("bin/docker");
        fs::write(&engine, ENGINE).unwrap();
        let made = Command::new("chmod").arg("+x").arg(&engine).status();
        assert!(made.unwrap().success());
        host
    }

    fn join(&self, settings: &[(&str, &str)]) -> Output {
        let script = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../infra/images/node/kontena-join"
        );
        let path = format!("{}/bin:/usr/sbin:/usr/bin:/sbin:/bin", self.0.display());
        Command::new("unshare")
            .args(["--mount", "sh", "-c", HOST])
            .env_clear()
            .env("PATH", path)
            .env("SCRATCH", &self.0)
            .env("CALLS", self.0.join("calls"))
            .env("SCRIPT", script)
            .envs([("KONTENA_URI", "wss://master"), ("KONTENA_TOKEN", "token")])
            .envs(settings.iter().copied())
            .output()
            .unwrap()
    }

    /// The arguments with which the agent's container is made.
    fn run_arguments(&self, settings: &[(&str, &str)]) -> Vec<String> {
        let output = self.join(settings);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{errors}");
        let calls = fs::read_to_string(self.0.join("calls/run")).unwrap();
        calls.lines().map(str::to_owned).collect()
    }
}

/// The values of an option that may be given several times.
fn values<'a>(arguments: &'a [String], option: &str) -> Vec<&'a str> {
    let pairs = arguments.windows(2);
    pairs
        .filter(|pair| pair[0] == option)
        .map(|pair| pair[1].as_str())
        .collect()
}

#[test]
fn without_a_ca_the_agent_goes_by_the_public_authorities() {
    let arguments = Host::new("public").run_arguments(&[("KONTENA_CA", "")]);
    assert!(values(&arguments, "--volume").contains(&"/var/lib/kontena:/var/lib/kontena"));
    let about_ca =
        |argument: &&String| argument.contains("KONTENA_CA") || argument.contains(".pem");
    assert_eq!(arguments.iter().find(about_ca), None);
}

#[test]
fn a_ca_is_mounted_where_one_is_given() {
    let host = Host::new("given");
    let given = host.0.join("given.pem").display().to_string();
    fs::write(&given, "a certificate").unwrap();
    for with_default in [false, true] {
        if with_default {
            fs::write(host.0.join("ca.pem"), "another certificate").unwrap();
        }
        let arguments = host.run_arguments(&[("KONTENA_CA", &given)]);
        let mount = format!("{given}:{given}:ro");
        assert!(values(&arguments, "--volume").contains(&mount.as_str()));
        let setting = format!("KONTENA_CA={given}");
        assert!(values(&arguments, "--env").contains(&setting.as_str()));
    }
    let arguments = host.run_arguments(&[]);
    let mount = "/etc/kontena/ca.pem:/etc/kontena/ca.pem:ro";
    assert!(values(&arguments, "--volume").contains(&mount));
    assert!(values(&arguments, "--env").contains(&"KONTENA_CA=/etc/kontena/ca.pem"));
}

#[test]
fn a_ca_that_is_not_there_is_refused() {
    let host = Host::new("missing");
    for ca in ["/no/such/ca.pem", "ca.pem", "/etc"] {
        let output = host.join(&[("KONTENA_CA", ca)]);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success());
        assert!(
            errors.contains("KONTENA_CA") && errors.contains(ca),
            "{errors}"
        );
        assert!(!host.0.join("calls/run").exists());
    }
}

#[test]
fn the_log_of_the_agent_is_capped_whatever_the_engines_own_driver_is() {
    let arguments = Host::new("log").run_arguments(&[]);
    assert_eq!(values(&arguments, "--log-driver"), ["json-file"]);
    assert_eq!(
        values(&arguments, "--log-opt"),
        ["max-size=10m", "max-file=3"]
    );
}

#[test]
fn the_state_directory_is_mounted_at_its_own_path() {
    let arguments = Host::new("state").run_arguments(&[("KONTENA_STATE_DIR", "/srv/kontena")]);
    assert!(values(&arguments, "--volume").contains(&"/srv/kontena:/srv/kontena"));
    assert!(values(&arguments, "--env").contains(&"KONTENA_STATE_DIR=/srv/kontena"));
}

#[test]
fn selinux_lets_the_agent_use_the_engines_socket() {
    let arguments = Host::new("selinux").run_arguments(&[]);
    assert!(values(&arguments, "--security-opt").contains(&"label=disable"));
}
