//! The settings of a replica, read once at start. All faults are told together.

use std::fmt;
use std::net::SocketAddr;

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
