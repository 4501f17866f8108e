//! Opens a WebSocket to the Master: name, TCP, TLS, upgrade.
//!
//! The CA certificates are read for every attempt: a new file is used without a
//! restart, and an agent started before its file existed gets through later.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use kontena_schema::limits::MASTER_FRAME_BYTES_MAX;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::http::HeaderValue;
use tokio_tungstenite::tungstenite::protocol::WebSocketConfig;
use tokio_tungstenite::tungstenite::{Error as WsError, http};
use tokio_tungstenite::{WebSocketStream, client_async_with_config};
use url::Url;

use super::machine::End;
use crate::config::{Config, Secret};
use crate::dns::lookup::Lookup;

/// One address of the Master gets this long; another of its addresses may work.
const TCP_WITHIN: Duration = Duration::from_secs(3);

/// What TLS and plain TCP have in common.
pub trait Transport: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Transport for T {}

/// An open WebSocket.
pub type Socket = WebSocketStream<Box<dyn Transport>>;

/// Connects to the Master with a token.
pub async fn connect(config: &Config, lookup: &Lookup, token: &Secret) -> Result<Socket, End> {
    let request = request(&config.uri, token)?;
    let host = config
        .uri
        .host_str()
        .ok_or_else(|| failed("the address has no host"))?;
    let port = config.uri.port_or_known_default().unwrap_or(443);
    let tcp = connect_tcp(lookup, host, port).await?;
    let transport: Box<dyn Transport> = match config.uri.scheme() {
        "wss" => Box::new(connect_tls(host, tcp, config.ca.as_deref()).await?),
        _ => Box::new(tcp),
    };
    let limits = WebSocketConfig::default()
        .max_message_size(Some(MASTER_FRAME_BYTES_MAX))
        .max_frame_size(Some(MASTER_FRAME_BYTES_MAX));
    match client_async_with_config(request, transport, Some(limits)).await {
        Ok((socket, _)) => Ok(socket),
        Err(WsError::Http(response)) => Err(End::Status(response.status().as_u16())),
        Err(err) => Err(failed(format!("the WebSocket was not opened: {err}"))),
    }
}

fn failed(reason: impl Into<String>) -> End {
    End::Failed(reason.into())
}

fn request(uri: &Url, token: &Secret) -> Result<http::Request<()>, End> {
    let mut request = uri
        .as_str()
        .into_client_request()
        .map_err(|err| failed(err.to_string()))?;
    let mut value = HeaderValue::try_from(format!("Bearer {}", token.reveal()))
        .map_err(|_| failed("the token has characters that are not allowed in an HTTP header"))?;
    value.set_sensitive(true);
    request
        .headers_mut()
        .insert(http::header::AUTHORIZATION, value);
    Ok(request)
}

async fn connect_tcp(lookup: &Lookup, host: &str, port: u16) -> Result<TcpStream, End> {
    let found = lookup.addresses(host, port).await;
    let addresses = found.map_err(|err| failed(format!("{host} was not resolved: {err}")))?;
    let mut last = failed(format!("{host} has no address"));
    for address in addresses {
        match timeout(TCP_WITHIN, TcpStream::connect(address)).await {
            Ok(Ok(tcp)) => {
                // Reports are small and must not wait.
                tcp.set_nodelay(true)
                    .map_err(|err| failed(err.to_string()))?;
                return Ok(tcp);
            }
            Ok(Err(err)) => last = failed(format!("{address}: {err}")),
            Err(_) => last = failed(format!("{address}: no answer")),
        }
    }
    Err(last)
}

async fn connect_tls(
    host: &str,
    tcp: TcpStream,
    ca: Option<&Path>,
) -> Result<tokio_rustls::client::TlsStream<TcpStream>, End> {
    let name = ServerName::try_from(host.trim_matches(['[', ']']).to_owned())
        .map_err(|err| failed(format!("{host}: {err}")))?;
    let connector = TlsConnector::from(Arc::new(tls_config(ca)?));
    let tls = connector.connect(name, tcp).await;
    tls.map_err(|err| failed(format!("TLS handshake with {host} failed: {err}")))
}

fn tls_config(ca: Option<&Path>) -> Result<ClientConfig, End> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|err| failed(err.to_string()))?;
    Ok(builder
        .with_root_certificates(authorities(ca)?)
        .with_no_client_auth())
}

fn authorities(ca: Option<&Path>) -> Result<RootCertStore, End> {
    let mut roots = RootCertStore::empty();
    let (certificates, from) = match ca {
        None => (
            rustls_native_certs::load_native_certs().certs,
            "the system".to_owned(),
        ),
        Some(path) => {
            let from = path.display().to_string();
            let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect);
            (read.map_err(|err| failed(format!("{from}: {err}")))?, from)
        }
    };
    let (added, _) = roots.add_parsable_certificates(certificates);
    if added == 0 {
        return Err(failed(format!("{from}: no CA certificate found")));
    }
    Ok(roots)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use clap::Parser;
    use tokio::net::TcpListener;

    use super::*;
    use crate::config::Args;
    use crate::dns::testing::{BOUND, Says, resolvers, root, upstreams};

    #[tokio::test]
    async fn the_master_is_found_by_its_name_beside_a_dead_resolver() {
        let here = Says::Address(Ipv4Addr::LOCALHOST);
        let (port, resolvers) = resolvers([Says::Nothing, here]).await;
        let root = root(&resolvers);
        let lookup = Lookup::new(upstreams(&[&root], port));
        let master = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let uri = format!(
            "ws://master.example:{}",
            master.local_addr().unwrap().port()
        );
        let args = ["kontena-agent", "--uri", &uri, "--token", "join"];
        let config = Args::parse_from(args).check().unwrap();
        let accepted = async {
            let (stream, _) = master.accept().await.unwrap();
            tokio_tungstenite::accept_async(stream).await.unwrap()
        };
        let connected = async { tokio::join!(connect(&config, &lookup, &config.token), accepted) };
        let (socket, _) = timeout(BOUND, connected).await.expect("it is not found");
        assert!(socket.is_ok(), "{:?}", socket.err());
    }
}
