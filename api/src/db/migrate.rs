//! Brings the schema up to date.

use std::str::FromStr;
use std::time::Duration;

use tokio_postgres::NoTls;

use super::DbError;

mod embedded {
    refinery::embed_migrations!("../schema/migrations");
}

/// Applies the migrations that are missing. Several replicas may call this at
/// once: the first one works, the others wait for its lock.
pub async fn migrate(url: &str) -> Result<usize, DbError> {
    let mut config = tokio_postgres::Config::from_str(url)?;
    config
        .connect_timeout(Duration::from_secs(5))
        .application_name("kontena-migrate");
    let (mut client, connection) = config.connect(NoTls).await?;
    let driver = tokio::spawn(connection);
    // Held to the end of this connection; the number only has to be ours.
    client
        .execute("select pg_advisory_lock(7041776)", &[])
        .await?;
    let report = embedded::migrations::runner()
        .run_async(&mut client)
        .await?;
    driver.abort();
    Ok(report.applied_migrations().len())
}
