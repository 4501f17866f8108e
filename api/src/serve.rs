//! A replica's life: start, serve, drain, stop.

use std::sync::Arc;
use std::time::Duration;

use kontena_schema::query;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use crate::agents::Hub;
use crate::app::App;
use crate::config::ServeConfig;
use crate::db::{Db, DbError, Param};
use crate::http;
use crate::notify::Bell;
use crate::tasks::{self, Tasks};
use crate::token::Signer;

/// How long a stopping replica answers "draining" before it stops accepting:
/// two health checks of the edge.
const DRAIN: Duration = Duration::from_secs(2);
/// How long requests under way may take once it stopped accepting.
const FINISH: Duration = Duration::from_secs(5);

/// Why a replica ended.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The database settings.
    #[error("KONTENA_DATABASE_URL: {0}")]
    Database(#[from] DbError),
    /// The Redis settings.
    #[error("KONTENA_REDIS_URL: {0}")]
    Redis(#[from] redis::RedisError),
    /// The port.
    #[error("KONTENA_LISTEN: {0}")]
    Listen(#[from] std::io::Error),
    /// A background task, none of which should end.
    #[error("{0}")]
    Task(String),
}

/// A replica that is ready to serve.
pub struct Replica {
    app: Arc<App>,
    listener: TcpListener,
    tasks: Tasks,
}

impl Replica {
    /// Connects the parts and starts the background tasks.
    pub async fn start(config: &ServeConfig) -> Result<Self, ServeError> {
        let db = Db::new(
            config.database.database_url.expose(),
            config.database_connections,
        )?;
        let hub = Arc::new(Hub::default());
        let redis = config.redis_url.expose();
        let (bell, exchange) = Bell::new(redis, &config.redis_prefix, Arc::clone(&hub))?;
        let signer = Signer::new(&config.secret, &config.admin_token);
        let app = Arc::new(App::new(db, Arc::clone(&hub), bell, signer, config.timers));
        let listener = TcpListener::bind(config.listen).await?;
        // Before the first agent: a session of a replica without a row counts as lost.
        if let Err(error) = app.db.execute(&query::REPLICA_RENEW, &[&app.replica]).await {
            tracing::warn!(%error, "starting without the database");
        }
        let mut tasks = Tasks::default();
        tasks.spawn("listen", exchange.listener(hub).listen());
        tasks.spawn("publish", exchange.publish());
        tasks.spawn("tick", tasks::tick(Arc::clone(&app)));
        tasks.spawn("renew", tasks::renew(Arc::clone(&app)));
        tasks.spawn("forget", tasks::forget(Arc::clone(&app)));
        tasks.spawn("lose", tasks::lose(Arc::clone(&app)));
        Ok(Self {
            app,
            listener,
            tasks,
        })
    }

    /// The address that it listens on.
    pub fn address(&self) -> Result<std::net::SocketAddr, ServeError> {
        Ok(self.listener.local_addr()?)
    }

    /// Serves until `stop`, then drains.
    pub async fn serve(self, stop: impl Future<Output = ()>) -> Result<(), ServeError> {
        let Self {
            app,
            listener,
            mut tasks,
        } = self;
        tracing::info!(address = %listener.local_addr()?, replica = %app.replica, "serving");
        let (stopped, stopping) = tokio::sync::oneshot::channel::<()>();
        let router = http::router(Arc::clone(&app));
        let server = axum::serve(listener, router).with_graceful_shutdown(async {
            let _ = stopping.await;
        });
        let server = std::future::IntoFuture::into_future(server);
        tokio::pin!(server);
        tokio::select! {
            ended = &mut server => return Ok(ended?),
            name = tasks.ended() => return Err(ServeError::Task(name)),
            () = stop => {}
        }
        tracing::info!("draining");
        app.drain();
        let _ = tokio::time::timeout(DRAIN, &mut server).await;
        app.hub.close_all();
        drop(stopped);
        // An upgraded connection is none of the server's any more.
        if tokio::time::timeout(FINISH, app.hub.emptied())
            .await
            .is_err()
        {
            tracing::warn!("agents were cut off");
        }
        if tokio::time::timeout(FINISH, &mut server).await.is_err() {
            tracing::warn!("requests under way were cut off");
        }
        let at_least_ms = app.timers.replica_loss_ms();
        let params: [Param; 2] = [&app.replica, &at_least_ms];
        if let Err(error) = app.db.execute(&query::REPLICA_REMOVE, &params).await {
            tracing::warn!(%error, "this replica's row stays until it is swept");
        }
        tracing::info!("stopped");
        Ok(())
    }
}

/// Waits for SIGTERM or SIGINT.
pub async fn terminated() -> std::io::Result<()> {
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    Ok(())
}
