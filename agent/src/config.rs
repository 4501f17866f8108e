//! The agent's settings, from arguments or the environment.
//!
//! Everything is parsed at the start and all faults are told at once. The names
//! of the original stay (`KONTENA_URI` and so on). An empty variable counts as
//! absent, because that is what an environment file with nothing after the `=`
//! gives.

use std::fmt;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::str::FromStr;

use clap::Parser;
use clap::builder::FalseyValueParser;
use kontena_overlay::MulticastLimit;
use url::Url;

/// What is given, not yet checked.
#[derive(Parser)]
#[command(
    name = "kontena-agent",
    version,
    about = "Makes this host a node of a Kontena grid"
)]
pub struct Args {
    /// The Master: wss://host[:port] (https, ws and http work too)
    #[arg(long, env = "KONTENA_URI")]
    uri: Option<String>,
    /// The grid's join token
    #[arg(long, env = "KONTENA_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// PEM file of the CA certificates that the Master is verified with [default: the system's]
    #[arg(long, env = "KONTENA_CA")]
    ca: Option<String>,
    /// This host's public address [default: looked up at the public IP resolver]
    #[arg(long, env = "KONTENA_PUBLIC_IP")]
    public_ip: Option<String>,
    /// This host's address in its region [default: the peer interface's]
    #[arg(long, env = "KONTENA_PRIVATE_IP")]
    private_ip: Option<String>,
    /// The interface of the region's private network [default: eth1]
    #[arg(long, env = "KONTENA_PEER_INTERFACE")]
    peer_interface: Option<String>,
    /// URL that returns this host's public address as plain text [default: http://whatismyip.akamai.com]
    #[arg(long, env = "KONTENA_PUBLIC_IP_RESOLVER")]
    public_ip_resolver: Option<String>,
    /// The agent's state directory [default: /var/lib/kontena]
    #[arg(long, env = "KONTENA_STATE_DIR")]
    state_dir: Option<String>,
    /// The program that holds a container's command until its network is up [default: /usr/local/bin/weavewait]
    #[arg(long, env = "KONTENA_WEAVEWAIT")]
    weavewait: Option<String>,
    /// The Docker engine's socket [default: /var/run/docker.sock]
    #[arg(long, env = "KONTENA_DOCKER_SOCKET")]
    docker_socket: Option<String>,
    /// For tests and benchmarks of the mesh: no containers, no names
    #[arg(long, env = "KONTENA_NO_ENGINE", hide = true, value_parser = FalseyValueParser::new())]
    no_engine: bool,
    /// Broadcast and multicast packets a second that each container may send [default: 50]
    #[arg(long, env = "KONTENA_MULTICAST_RATE")]
    multicast_rate: Option<String>,
    /// Burst of the same, in packets [default: 200]
    #[arg(long, env = "KONTENA_MULTICAST_BURST")]
    multicast_burst: Option<String>,
    /// Log filter, such as `info` or `kontena_agent::link=debug,info` [default: info,boringtun=off]
    #[arg(long, env = "KONTENA_LOG")]
    log: Option<String>,
}

/// The settings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// The Master's WebSocket, `ws` or `wss`, with the path of the protocol.
    pub uri: Url,
    /// The grid's join token.
    pub token: Secret,
    /// PEM file of the authorities that may vouch for the Master; none means
    /// the system's.
    pub ca: Option<PathBuf>,
    /// Given public address; none means that it is asked for.
    pub public_ip: Option<Ipv4Addr>,
    /// Given private address; none means that it is read from an interface.
    pub private_ip: Option<Ipv4Addr>,
    /// The interface of the region's private network.
    pub peer_interface: String,
    /// Who tells the public address.
    pub public_ip_resolver: Url,
    /// Where the agent keeps what it knows; the same path inside and outside of
    /// its container, because containers mount from it.
    pub state_dir: PathBuf,
    /// What containers are run with; none means that there are none, and no names.
    pub engine: Option<EngineConfig>,
    /// How much broadcast and multicast each container may send.
    pub multicast: MulticastLimit,
    /// What is logged.
    pub log: String,
}

/// The settings of what has to do with containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineConfig {
    /// The Docker engine's socket.
    pub socket: String,
    /// The program put before every container's entrypoint.
    pub weavewait: PathBuf,
}

/// A text that must not show up in logs.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Hides a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself.
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// Everything that is wrong with the settings.
#[derive(Debug, thiserror::Error)]
#[error("the settings are wrong:\n  {}", .0.join("\n  "))]
pub struct ConfigError(Vec<String>);

/// WireGuard's core logs each handshake initiation that is not answered, which in a large
/// grid are thousands; what comes of them is told of each peer.
const LOG: &str = "info,boringtun=off";

/// The most packets of a rate or a burst: more than a host can send.
const PACKETS_MAX: u32 = 1_000_000;

/// Where the agents connect.
const AGENT_PATH: &str = "/v1/agent";

impl Args {
    /// Checks everything that was given.
    pub fn check(self) -> Result<Config, ConfigError> {
        let mut faults = Faults(Vec::new());
        let resolver = given(self.public_ip_resolver)
            .unwrap_or_else(|| "http://whatismyip.akamai.com".to_owned());
        let uri = faults.required("KONTENA_URI", given(self.uri), |text| master_uri(&text));
        let token = faults.required("KONTENA_TOKEN", given(self.token), |text| Ok(Secret(text)));
        let public_ip = faults.optional("KONTENA_PUBLIC_IP", given(self.public_ip));
        let private_ip = faults.optional("KONTENA_PRIVATE_IP", given(self.private_ip));
        let resolver = faults.optional("KONTENA_PUBLIC_IP_RESOLVER", Some(resolver));
        let state_dir = path(self.state_dir, "/var/lib/kontena");
        faults.absolute("KONTENA_STATE_DIR", &state_dir);
        let weavewait = path(self.weavewait, "/usr/local/bin/weavewait");
        faults.absolute("KONTENA_WEAVEWAIT", &weavewait);
        let socket = given(self.docker_socket).unwrap_or_else(|| "/var/run/docker.sock".to_owned());
        let engine = (!self.no_engine).then_some(EngineConfig { socket, weavewait });
        let ca = given(self.ca).map(PathBuf::from);
        if let Some(ca) = &ca {
            faults.absolute("KONTENA_CA", ca);
        }
        let default = MulticastLimit::default();
        let multicast = MulticastLimit {
            rate: faults.count("KONTENA_MULTICAST_RATE", self.multicast_rate, default.rate),
            burst: faults.count(
                "KONTENA_MULTICAST_BURST",
                self.multicast_burst,
                default.burst,
            ),
        };
        let log = given(self.log).unwrap_or_else(|| LOG.to_owned());
        if let Err(err) = log.parse::<tracing_subscriber::EnvFilter>() {
            faults.add("KONTENA_LOG", &err);
        }
        match (uri, token, resolver) {
            (Some(uri), Some(token), Some(public_ip_resolver)) if faults.0.is_empty() => {
                Ok(Config {
                    uri,
                    token,
                    ca,
                    public_ip,
                    private_ip,
                    peer_interface: given(self.peer_interface).unwrap_or_else(|| "eth1".to_owned()),
                    public_ip_resolver,
                    state_dir,
                    engine,
                    multicast,
                    log,
                })
            }
            _ => Err(ConfigError(faults.0)),
        }
    }
}

fn given(text: Option<String>) -> Option<String> {
    text.map(|text| text.trim().to_owned())
        .filter(|text| !text.is_empty())
}

fn path(text: Option<String>, default: &str) -> PathBuf {
    given(text).map_or_else(|| PathBuf::from(default), PathBuf::from)
}

/// The faults found so far.
struct Faults(Vec<String>);

impl Faults {
    fn add(&mut self, name: &str, fault: &dyn fmt::Display) {
        self.0.push(format!("{name}: {fault}"));
    }

    fn required<T>(
        &mut self,
        name: &str,
        text: Option<String>,
        parse: impl FnOnce(String) -> Result<T, String>,
    ) -> Option<T> {
        match text.ok_or_else(|| "is required".to_owned()).and_then(parse) {
            Ok(value) => Some(value),
            Err(fault) => {
                self.add(name, &fault);
                None
            }
        }
    }

    fn optional<T: FromStr<Err: fmt::Display>>(
        &mut self,
        name: &str,
        text: Option<String>,
    ) -> Option<T> {
        let text = text?;
        text.parse()
            .map_err(|err| self.add(name, &format!("{text:?}: {err}")))
            .ok()
    }

    /// A number of packets.
    fn count(&mut self, name: &str, text: Option<String>, default: u32) -> u32 {
        let Some(text) = given(text) else {
            return default;
        };
        match text.parse() {
            Ok(count) if (1..=PACKETS_MAX).contains(&count) => count,
            _ => {
                let fault = format!("{text:?} must be a number from 1 to {PACKETS_MAX}");
                self.add(name, &fault);
                default
            }
        }
    }

    fn absolute(&mut self, name: &str, path: &std::path::Path) {
        if !path.is_absolute() {
            self.add(name, &format!("{} is not an absolute path", path.display()));
        }
    }
}

/// The WebSocket of the protocol at the Master of the given address.
fn master_uri(text: &str) -> Result<Url, String> {
    let url = Url::parse(text).map_err(|err| format!("{text:?}: {err}"))?;
    let scheme = match url.scheme() {
        "ws" | "http" => "ws",
        "wss" | "https" => "wss",
        other => {
            return Err(format!(
                "{text:?}: the scheme must be wss, https, ws or http, not {other:?}"
            ));
        }
    };
    let host = url.host_str().filter(|host| !host.is_empty());
    let host = host.ok_or_else(|| format!("{text:?}: there is no host"))?;
    let port = url
        .port()
        .map(|port| format!(":{port}"))
        .unwrap_or_default();
    let prefix = url.path().trim_end_matches('/');
    let prefix = prefix.strip_suffix(AGENT_PATH).unwrap_or(prefix);
    Url::parse(&format!("{scheme}://{host}{port}{prefix}{AGENT_PATH}"))
        .map_err(|err| format!("{text:?}: {err}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(list: &[&str]) -> Args {
        Args::parse_from([&["kontena-agent"], list].concat())
    }

    #[test]
    fn the_addresses_of_a_master_lead_to_its_agents_socket() {
        for (given, url) in [
            ("wss://master.example", "wss://master.example/v1/agent"),
            (
                "https://master.example:8443/",
                "wss://master.example:8443/v1/agent",
            ),
            (
                "http://[2001:db8::1]:9292",
                "ws://[2001:db8::1]:9292/v1/agent",
            ),
            ("ws://192.0.2.1/kontena", "ws://192.0.2.1/kontena/v1/agent"),
            ("wss://m/v1/agent", "wss://m/v1/agent"),
        ] {
            assert_eq!(master_uri(given).unwrap().as_str(), url);
        }
        for bad in ["", "master.example", "ftp://m", "ws://"] {
            assert!(master_uri(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn all_faults_are_told_at_once() {
        let bad = [
            "--uri=ftp://m",
            "--token= ",
            "--public-ip=x",
            "--state-dir=here",
            "--log=a=b=c",
            "--multicast-rate=0",
            "--multicast-burst=1000001",
        ];
        let told = args(&bad).check().unwrap_err().to_string();
        for name in [
            "URI",
            "TOKEN",
            "PUBLIC_IP",
            "STATE_DIR",
            "LOG",
            "MULTICAST_RATE",
            "MULTICAST_BURST",
        ] {
            assert!(
                told.contains(&format!("KONTENA_{name}: ")),
                "{name} in {told}"
            );
        }
    }

    #[test]
    fn defaults_are_those_of_the_model_and_the_token_stays_hidden() {
        let config = args(&["--uri=wss://m", "--token=s3cret", "--ca="])
            .check()
            .unwrap();
        assert_eq!(config.peer_interface, "eth1");
        assert_eq!(
            config.public_ip_resolver.as_str(),
            "http://whatismyip.akamai.com/"
        );
        assert_eq!(config.ca, None);
        assert_eq!((config.multicast.rate, config.multicast.burst), (50, 200));
        let engine = config.engine.clone().unwrap();
        assert_eq!(engine.socket, "/var/run/docker.sock");
        assert!(!format!("{config:?}").contains("s3cret"));
        assert_eq!(config.token.reveal(), "s3cret");
    }

    #[test]
    fn the_rate_of_multicast_can_be_set() {
        let given = [
            "--uri=wss://m",
            "--token=t",
            "--multicast-rate=1000",
            "--multicast-burst=1",
        ];
        let multicast = args(&given).check().unwrap().multicast;
        assert_eq!((multicast.rate, multicast.burst), (1000, 1));
    }

    #[test]
    fn the_engine_can_be_left_out() {
        let given = ["--uri=wss://m", "--token=t", "--no-engine"];
        assert_eq!(args(&given).check().unwrap().engine, None);
    }
}
