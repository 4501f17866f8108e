//! The client's patience, against a server that plays a script of answers.

#![allow(clippy::unwrap_used, reason = "a test's helpers fail like the test")]

use std::time::{Duration, Instant};

use kontena::client::{Client, Error, Retry};
use kontena_schema::http::grids::GridCreate;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// What the server does with one connection.
enum Play {
    /// Reads the request and closes.
    HangUp,
    /// Answers: status, further headers, body.
    Answer(u16, &'static str, &'static str),
}

/// Plays the script, one connection a line, and answers the requests' texts.
async fn serve(script: Vec<Play>) -> (String, JoinHandle<Vec<String>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let served = tokio::spawn(async move {
        let mut requests = Vec::new();
        for play in script {
            let (mut stream, _) = listener.accept().await.unwrap();
            requests.push(request(&mut stream).await);
            if let Play::Answer(status, headers, body) = play {
                let answer = format!(
                    "HTTP/1.1 {status} x\r\nconnection: close\r\ncontent-length: {}\r\n{headers}\r\n{body}",
                    body.len()
                );
                stream.write_all(answer.as_bytes()).await.unwrap();
            }
        }
        requests
    });
    (url, served)
}

async fn request(stream: &mut TcpStream) -> String {
    let mut bytes = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&bytes).to_ascii_lowercase();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let length = head
                .lines()
                .find_map(|line| line.strip_prefix("content-length: "));
            if body.len() >= length.map_or(0, |length| length.parse().unwrap()) {
                return text;
            }
        }
        assert!(
            stream.read_buf(&mut bytes).await.unwrap() > 0,
            "the request ends early: {text}"
        );
    }
}

fn client(url: &str) -> Client {
    let retry = Retry {
        within: Duration::from_secs(5),
        pause_first: Duration::from_millis(1),
        pause_max: Duration::from_millis(5),
    };
    Client::new(url, "the-token", None)
        .unwrap()
        .with_retry(retry)
}

fn keys(requests: &[String]) -> Vec<&str> {
    let key = |line| str::strip_prefix(line, "idempotency-key: ");
    requests
        .iter()
        .filter_map(|request| request.lines().find_map(key))
        .collect()
}

const GRID: &str = r#"{"id":"g","name":"g","initial_size":1,"subnet":"10.81.0.0/19",
    "supernet":"10.81.0.0/17","trusted_subnets":[],"grace_s":10,"revision":1,"node_count":0,
    "service_count":0,"container_count":0}"#;

fn grid() -> GridCreate {
    GridCreate {
        name: "g".to_owned(),
        ..GridCreate::default()
    }
}

#[tokio::test]
async fn a_change_is_tried_again_with_the_same_key_until_it_is_answered() {
    let (url, served) = serve(vec![
        Play::HangUp,
        Play::Answer(502, "", ""),
        Play::Answer(503, "", "<html>"),
        Play::Answer(504, "", ""),
        Play::Answer(201, "", GRID),
    ])
    .await;
    assert_eq!(client(&url).grid_create(&grid()).await.unwrap().name, "g");
    let requests = served.await.unwrap();
    let keys = keys(&requests);
    assert_eq!(keys.len(), 5);
    assert!(
        keys.iter().all(|key| *key == keys[0] && key.len() == 36),
        "{keys:?}"
    );
    assert!(requests.iter().all(|request| {
        request.starts_with("post /v1/grids http/1.1")
            && request.contains("authorization: bearer the-token")
            && request.contains(r#""name":"g""#)
    }));
}

#[tokio::test]
async fn two_changes_have_two_keys_unless_one_is_given() {
    let script = || (0..2).map(|_| Play::Answer(200, "", "{}")).collect();
    let (url, served) = serve(script()).await;
    let client = client(&url);
    client.grid_remove("g").await.unwrap();
    client.grid_remove("g").await.unwrap();
    let requests = served.await.unwrap();
    let different = keys(&requests);
    assert_ne!(different[0], different[1]);

    let (url, served) = serve(script()).await;
    let key = uuid::Uuid::new_v4();
    let client = self::client(&url).with_idempotency_key(key);
    client.grid_remove("g").await.unwrap();
    client.grid_remove("g").await.unwrap();
    let requests = served.await.unwrap();
    assert_eq!(keys(&requests), [key.to_string(), key.to_string()]);
}

#[tokio::test]
async fn a_question_is_tried_again_and_carries_no_key() {
    let (url, served) = serve(vec![Play::HangUp, Play::Answer(200, "", r#"{"grids":[]}"#)]).await;
    assert!(client(&url).grid_list().await.unwrap().grids.is_empty());
    let requests = served.await.unwrap();
    assert_eq!((requests.len(), keys(&requests).len()), (2, 0));
}

#[tokio::test]
async fn a_refusal_comes_back_at_once_with_all_that_it_says() {
    let body = r#"{"error":{"name":"is taken"},"code":"grid_exists","status":422,
        "request_id":"r-1","details":{"size":8190}}"#;
    let (url, served) = serve(vec![Play::Answer(422, "", body)]).await;
    let err = client(&url).grid_create(&grid()).await.unwrap_err();
    assert_eq!(served.await.unwrap().len(), 1);
    assert_eq!(
        (err.code(), err.is_not_found()),
        (Some("grid_exists"), false)
    );
    let api = err.api().unwrap();
    assert_eq!(
        (api.status, api.fields()),
        (422, vec![("name", "is taken")])
    );
    assert_eq!(api.body.request_id, "r-1");
    assert_eq!(api.body.details.as_ref().unwrap()["size"], 8190);
}

#[tokio::test]
async fn the_masters_wish_to_wait_is_honoured() {
    let (url, served) = serve(vec![
        Play::Answer(503, "retry-after: 1\r\n", ""),
        Play::Answer(200, "", "{}"),
    ])
    .await;
    let begun = Instant::now();
    client(&url).ping().await.unwrap();
    assert!(begun.elapsed() >= Duration::from_secs(1));
    assert_eq!(served.await.unwrap().len(), 2);
}

#[tokio::test]
async fn a_wish_beyond_the_patience_ends_the_call() {
    let headers = "retry-after: 60\r\nx-request-id: r-9\r\n";
    let (url, _served) = serve(vec![Play::Answer(503, headers, "")]).await;
    let begun = Instant::now();
    let err = client(&url).ping().await.unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(5));
    assert_eq!(
        (err.code(), err.api().unwrap().body.request_id.as_str()),
        (Some("http_503"), "r-9")
    );
}

#[tokio::test]
async fn patience_has_an_end() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let err = client(&url)
        .with_retry(Retry {
            within: Duration::from_millis(50),
            ..Retry::default()
        })
        .ping()
        .await
        .unwrap_err();
    let Error::Transport { tries, .. } = &err else {
        panic!("{err}")
    };
    assert!(*tries >= 1, "{tries}");
    let text = err.to_string();
    assert!(
        text.contains("GET /v1/ping") && text.contains("onnection refused"),
        "{text}"
    );
    let err = client(&url)
        .with_retry(Retry::NONE)
        .ping()
        .await
        .unwrap_err();
    assert!(matches!(err, Error::Transport { tries: 1, .. }), "{err}");
}

#[tokio::test]
async fn an_answer_that_is_no_masters_is_said_so() {
    let (url, _served) = serve(vec![Play::Answer(200, "", "<html>hello</html>")]).await;
    let err = client(&url).grid_list().await.unwrap_err();
    assert!(err.to_string().contains("web page"), "{err}");
}
