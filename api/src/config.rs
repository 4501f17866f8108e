//! The settings of a replica, read once at start. All faults are told together.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use kontena_schema::limits::{REPLICA_LOSS, REPLICA_TTL, TICK};

/// Bytes that a signing secret must have at least (HS256, RFC 7518 section 3.2).
const SECRET_BYTES_MIN: usize = 32;
/// Characters that an admin token must have at least.
const ADMIN_TOKEN_CHARS_MIN: usize = 16;

/// A value that does not show in logs.
#[derive(Clone)]
pub struct Secret(String);

impl Secret {
    /// The value itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl From<String> for Secret {
    fn from(value: String) -> Self {
        Self(value)
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("<secret>")
    }
}

/// Where the database is.
#[derive(Clone, Debug, clap::Args)]
pub struct DatabaseConfig {
    /// Postgres, as `postgres://user:password@host/database`.
    #[arg(long, env = "KONTENA_DATABASE_URL", hide_env_values = true)]
    pub database_url: Secret,
}

/// The settings of `kontena-api serve`.
#[derive(Clone, Debug, clap::Args)]
pub struct ServeConfig {
    /// The database.
    #[command(flatten)]
    pub database: DatabaseConfig,
    /// Most connections to the database.
    #[arg(long, env = "KONTENA_DATABASE_CONNECTIONS", default_value_t = 10)]
    pub database_connections: usize,
    /// Redis, as `redis://host:port`.
    #[arg(long, env = "KONTENA_REDIS_URL", hide_env_values = true)]
    pub redis_url: Secret,
    /// What the Redis channels of this Master begin with.
    #[arg(long, env = "KONTENA_REDIS_PREFIX", default_value = "kontena")]
    pub redis_prefix: String,
    /// Signs the tokens of grids and nodes; the same for all replicas.
    #[arg(long, env = "KONTENA_SECRET", hide_env_values = true)]
    pub secret: Secret,
    /// The token of the administrator.
    #[arg(long, env = "KONTENA_ADMIN_TOKEN", hide_env_values = true)]
    pub admin_token: Secret,
    /// Address and port of the HTTP API.
    #[arg(long, env = "KONTENA_LISTEN", default_value = "0.0.0.0:9292")]
    pub listen: SocketAddr,
    /// How long things last.
    #[command(flatten)]
    pub timers: Timers,
}

/// How long things last between the replicas. All replicas of a Master have the
/// same; nobody but a test has a reason to change them.
#[derive(Clone, Copy, Debug, clap::Args)]
pub struct Timers {
    /// How long an unrenewed replica's row counts as alive.
    #[arg(long = "replica-ttl-ms", env = "KONTENA_REPLICA_TTL_MS", hide = true, default_value = "10000", value_parser = milliseconds)]
    pub replica_ttl: Duration,
    /// How often a replica looks for what no bell told it.
    #[arg(long = "tick-ms", env = "KONTENA_TICK_MS", hide = true, default_value = "1000", value_parser = milliseconds)]
    pub tick: Duration,
    /// The least time that an agent has to find another replica when its own ends.
    #[arg(long = "replica-loss-ms", env = "KONTENA_REPLICA_LOSS_MS", hide = true, default_value = "5000", value_parser = milliseconds)]
    pub replica_loss: Duration,
}

impl Default for Timers {
    fn default() -> Self {
        Self {
            replica_ttl: REPLICA_TTL,
            tick: TICK,
            replica_loss: REPLICA_LOSS,
        }
    }
}

impl Timers {
    /// How often a replica renews its row: three renewals may be lost.
    pub fn renew_every(&self) -> Duration {
        self.replica_ttl / 5
    }

    /// [`Timers::replica_loss`] as the database counts it.
    pub fn replica_loss_ms(&self) -> i64 {
        i64::try_from(self.replica_loss.as_millis()).unwrap_or(i64::MAX)
    }

    fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if self.replica_ttl < Duration::from_millis(500) {
            faults.push("KONTENA_REPLICA_TTL_MS: must be at least 500".to_owned());
        }
        if self.tick < Duration::from_millis(10) || self.tick * 2 > self.replica_ttl {
            faults.push(
                "KONTENA_TICK_MS: must be at least 10 and at most half of KONTENA_REPLICA_TTL_MS"
                    .to_owned(),
            );
        }
        faults
    }
}

fn milliseconds(text: &str) -> Result<Duration, String> {
    let number = text
        .parse()
        .map_err(|_| "must be a number of milliseconds".to_owned());
    number.map(Duration::from_millis)
}

impl ServeConfig {
    /// Every fault that parsing alone does not find.
    pub fn faults(&self) -> Vec<String> {
        let mut faults = Vec::new();
        if self.secret.expose().len() < SECRET_BYTES_MIN {
            faults.push(format!(
                "KONTENA_SECRET: needs at least {SECRET_BYTES_MIN} characters"
            ));
        }
        if self.admin_token.expose().len() < ADMIN_TOKEN_CHARS_MIN {
            faults.push(format!(
                "KONTENA_ADMIN_TOKEN: needs at least {ADMIN_TOKEN_CHARS_MIN} characters"
            ));
        }
        if self.database_connections < 2 {
            faults.push("KONTENA_DATABASE_CONNECTIONS: needs at least 2".to_owned());
        }
        faults.extend(self.timers.faults());
        faults
    }
}

/// The settings of `kontena-api healthcheck`.
#[derive(Clone, Debug, clap::Args)]
pub struct HealthConfig {
    /// Address and port of the replica that is asked.
    #[arg(long, env = "KONTENA_LISTEN", default_value = "127.0.0.1:9292")]
    pub listen: SocketAddr,
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        timers: Timers,
    }

    #[test]
    fn timers_are_the_limits_unless_they_are_set() {
        let unset = Line::parse_from(["serve"]).timers;
        let limits = Timers::default();
        assert_eq!(unset.replica_ttl, limits.replica_ttl);
        assert_eq!(unset.tick, limits.tick);
        assert_eq!(unset.replica_loss, limits.replica_loss);
        assert!(limits.faults().is_empty());
    }

    #[test]
    fn timers_are_checked_against_each_other() {
        let timers = Line::parse_from(["serve", "--replica-ttl-ms=400", "--tick-ms=300"]).timers;
        let faults = timers.faults();
        assert_eq!(faults.len(), 2, "{faults:?}");
        assert!(Line::try_parse_from(["serve", "--tick-ms=soon"]).is_err());
    }
}
