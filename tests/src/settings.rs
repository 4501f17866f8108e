//! Where the stack is, from the environment that `make test` sets.

use std::path::PathBuf;

use ipnetwork::Ipv4Network;

/// The stack under test.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The Master's URL.
    pub url: String,
    /// The certificate that vouches for it.
    pub ca: PathBuf,
    /// The administrator's token.
    pub admin_token: String,
    /// The compose project.
    pub project: String,
    /// The grid of node-1 to node-3.
    pub grid: String,
    /// The network that the hosts share.
    pub wan: Ipv4Network,
}

impl Settings {
    /// Reads the environment.
    ///
    /// # Panics
    /// Where a setting is missing or wrong.
    pub fn read() -> Self {
        Self {
            url: setting("URL"),
            ca: setting("CA").into(),
            admin_token: setting("ADMIN_TOKEN"),
            project: setting("PROJECT"),
            grid: setting("GRID"),
            wan: setting("WAN_SUBNET")
                .parse()
                .expect("KONTENA_TEST_WAN_SUBNET is a subnet"),
        }
    }
}

fn setting(name: &str) -> String {
    let name = format!("KONTENA_TEST_{name}");
    std::env::var(&name).unwrap_or_else(|_| {
        panic!(
            "{name} is not set: `make test` sets it; after `make test KEEP=1` it is in .kontena/kontena-test/test.env"
        )
    })
}
