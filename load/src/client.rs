//! An HTTP/1.1 connection that costs little: it shares the processors with what it
//! measures.
//!
//! One request after another on one connection, written and read with one system
//! call each, at about two thirds of the processor time of a whole HTTP library.
//! Absent on purpose: pools, redirects, retries, chunked bodies. What is not
//! understood is an error.

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use kontena_schema::http::error::ErrorBody;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

/// More than the Master and the edge send together.
const HEADERS_MAX: usize = 32;

/// Room for the answers of a cycle without growing.
const INBOX_BYTES: usize = 8 << 10;

/// Why there is no answer, or not the one that is wanted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClientError {
    /// The connection.
    #[error("{0}: {1}")]
    Connection(SocketAddr, io::Error),
    /// Certificates that cannot be used.
    #[error("TLS: {0}")]
    Tls(String),
    /// What is no answer that this client understands.
    #[error("{request}: {reason}")]
    Answer {
        /// The request's first line.
        request: String,
        /// What is wrong.
        reason: String,
    },
    /// A refusal.
    #[error("{request}: {status} {body}")]
    Refused {
        /// The request's first line.
        request: String,
        /// The status.
        status: u16,
        /// What came with it.
        body: String,
    },
}

impl ClientError {
    /// The stable word of a refusal.
    pub(crate) fn code(&self) -> Option<String> {
        match self {
            Self::Refused { body, .. } => Some(serde_json::from_str::<ErrorBody>(body).ok()?.code),
            _ => None,
        }
    }
}

/// Where to connect to, and as whom.
#[derive(Clone)]
pub(crate) struct Target {
    pub(crate) address: SocketAddr,
    /// With it, TLS under this name.
    pub(crate) tls: Option<(TlsConnector, ServerName<'static>)>,
    /// The administrator's token.
    pub(crate) token: String,
}

/// TLS that trusts one authority.
pub(crate) fn tls(ca: &Path) -> Result<TlsConnector, ClientError> {
    let fail = |reason: String| ClientError::Tls(format!("{}: {reason}", ca.display()));
    let mut roots = RootCertStore::empty();
    let certificates = CertificateDer::pem_file_iter(ca).map_err(|err| fail(err.to_string()))?;
    for certificate in certificates {
        let certificate = certificate.map_err(|err| fail(err.to_string()))?;
        let added = roots.add(certificate);
        added.map_err(|err| fail(err.to_string()))?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|err| fail(err.to_string()))?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok(TlsConnector::from(Arc::new(config)))
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// An answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Answer<'a> {
    pub(crate) status: u16,
    pub(crate) body: &'a [u8],
}

/// A connection that is kept.
pub(crate) struct Connection {
    stream: Box<dyn Stream>,
    address: SocketAddr,
    /// The header lines of every request.
    common: String,
    outbox: Vec<u8>,
    inbox: Vec<u8>,
}

impl Connection {
    pub(crate) async fn open(target: &Target) -> Result<Self, ClientError> {
        let fail = |err| ClientError::Connection(target.address, err);
        let tcp = TcpStream::connect(target.address).await.map_err(fail)?;
        tcp.set_nodelay(true).map_err(fail)?;
        let stream: Box<dyn Stream> = match &target.tls {
            None => Box::new(tcp),
            Some((connector, name)) => {
                let tls = connector.connect(name.clone(), tcp).await;
                Box::new(tls.map_err(fail)?)
            }
        };
        Ok(Self {
            stream,
            address: target.address,
            common: format!(
                "host: {}\r\nauthorization: Bearer {}\r\n",
                target.address, target.token
            ),
            outbox: Vec::new(),
            inbox: Vec::with_capacity(INBOX_BYTES),
        })
    }

    /// Sends a request and reads its answer, whatever it says.
    pub(crate) async fn send(
        &mut self,
        method: &str,
        path: &str,
        body: &[u8],
    ) -> Result<Answer<'_>, ClientError> {
        self.outbox.clear();
        for part in [method, " ", path, " HTTP/1.1\r\n", &self.common] {
            self.outbox.extend_from_slice(part.as_bytes());
        }
        if !body.is_empty() {
            let length = format!(
                "content-type: application/json\r\ncontent-length: {}\r\n",
                body.len()
            );
            self.outbox.extend_from_slice(length.as_bytes());
        }
        self.outbox.extend_from_slice(b"\r\n");
        self.outbox.extend_from_slice(body);
        match self.exchange().await {
            Err(err) => Err(ClientError::Connection(self.address, err)),
            Ok(Err(reason)) => Err(ClientError::Answer {
                request: format!("{method} {path}"),
                reason,
            }),
            Ok(Ok((status, at))) => Ok(Answer {
                status,
                body: &self.inbox[at..],
            }),
        }
    }

    /// The answer's status, and where its body begins.
    async fn exchange(&mut self) -> io::Result<Result<(u16, usize), String>> {
        self.stream.write_all(&self.outbox).await?;
        self.stream.flush().await?;
        self.inbox.clear();
        let mut want = 0;
        loop {
            if self.stream.read_buf(&mut self.inbox).await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            // The head of a long answer is not parsed again for each piece of it.
            if self.inbox.len() < want {
                continue;
            }
            match head(&self.inbox) {
                Err(reason) => return Ok(Err(reason)),
                Ok(None) => {}
                Ok(Some((status, at, length))) => {
                    want = at + length;
                    match self.inbox.len() {
                        len if len < want => {}
                        len if len > want => return Ok(Err("there is more than one".to_owned())),
                        _ => return Ok(Ok((status, at))),
                    }
                }
            }
        }
    }

    /// Sends a request that must succeed; what it answers, of a type.
    pub(crate) async fn call<A: DeserializeOwned>(
        &mut self,
        method: &str,
        path: &str,
        body: Option<&(impl Serialize + Sync)>,
    ) -> Result<A, ClientError> {
        let request = format!("{method} {path}");
        let bad = |reason: serde_json::Error| ClientError::Answer {
            request: request.clone(),
            reason: reason.to_string(),
        };
        let body = body.map_or(Ok(Vec::new()), serde_json::to_vec);
        let answer = self.send(method, path, &body.map_err(bad)?).await?;
        if !(200..300).contains(&answer.status) {
            return Err(refused(request, answer));
        }
        serde_json::from_slice(answer.body).map_err(bad)
    }
}

/// The error of an answer that is not the one that is wanted.
pub(crate) fn refused(request: String, answer: Answer<'_>) -> ClientError {
    ClientError::Refused {
        request,
        status: answer.status,
        body: String::from_utf8_lossy(answer.body).into_owned(),
    }
}

/// Status, length of the head and length of the body, once the head is there.
fn head(bytes: &[u8]) -> Result<Option<(u16, usize, usize)>, String> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let parsed = response.parse(bytes).map_err(|err| err.to_string())?;
    let httparse::Status::Complete(at) = parsed else {
        return Ok(None);
    };
    let status = response.code.ok_or("no status")?;
    let length = response
        .headers
        .iter()
        .find(|header| header.name.eq_ignore_ascii_case("content-length"))
        .and_then(|header| str::from_utf8(header.value).ok()?.parse().ok())
        .ok_or("no content-length")?;
    Ok(Some((status, at, length)))
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    #[test]
    fn heads() {
        let full = b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\n{}";
        assert_eq!(head(full), Ok(Some((201, 43, 2))));
        assert_eq!(head(&full[..30]), Ok(None));
        assert!(head(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").is_err());
        assert!(head(b"nonsense\r\n\r\n").is_err());
    }

    /// Answers each request of one connection with the next of these.
    async fn serve(listener: TcpListener, answers: Vec<Vec<&'static str>>) -> Vec<String> {
        let (mut stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        let mut requests = Vec::new();
        for answer in answers {
            let mut request = vec![0; 4096];
            let length = stream.read(&mut request).await.unwrap();
            requests.push(String::from_utf8_lossy(&request[..length]).into_owned());
            for piece in answer {
                stream.write_all(piece.as_bytes()).await.unwrap();
                tokio::task::yield_now().await;
            }
        }
        requests
    }

    #[tokio::test]
    async fn requests_follow_each_other_on_one_connection() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target = Target {
            address: listener.local_addr().unwrap(),
            tls: None,
            token: "t".to_owned(),
        };
        let answers = vec![
            vec![
                "HTTP/1.1 201 Created\r\ncontent-",
                "length: 7\r\n\r\n[1,",
                "2,3]",
            ],
            vec!["HTTP/1.1 422 No\r\ncontent-length: 4\r\n\r\nfull"],
        ];
        let server = tokio::spawn(serve(listener, answers));
        let mut connection = Connection::open(&target).await.unwrap();
        let list: Vec<u8> = connection.call("POST", "/a", Some(&[7])).await.unwrap();
        assert_eq!(list, [1, 2, 3]);
        let refused = connection.call::<u8>("DELETE", "/a", None::<&()>).await;
        assert_eq!(refused.unwrap_err().to_string(), "DELETE /a: 422 full");
        let requests = server.await.unwrap();
        let common = format!("host: {}\r\nauthorization: Bearer t\r\n", target.address);
        let body = "content-type: application/json\r\ncontent-length: 3\r\n\r\n[7]";
        assert_eq!(requests[0], format!("POST /a HTTP/1.1\r\n{common}{body}"));
        assert_eq!(requests[1], format!("DELETE /a HTTP/1.1\r\n{common}\r\n"));
    }
}
