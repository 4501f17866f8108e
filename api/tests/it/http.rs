//! The rim: every route asks for a token, errors have one shape, keys make
//! requests safe to repeat.

use kontena_api::http::routes;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::support::{Master, answer, http_client};

/// Routes that need no token.
const OPEN: [&str; 2] = ["/", "/v1/ping"];

#[tokio::test]
async fn every_route_asks_for_a_token() {
    let master = Master::start().await;
    let client = http_client();
    let mut asked = 0;
    for (path, _) in routes() {
        let url = path.replace("{deploy}", "1").replace(['{', '}'], "");
        for method in [Method::GET, Method::POST, Method::PUT, Method::DELETE] {
            for token in [None, Some("wrong")] {
                let at = format!("http://{}{url}", master.replicas[0].address);
                let mut request = client.request(method.clone(), at).json(&json!({}));
                if path == "/v1/agent" {
                    request = request
                        .header("connection", "upgrade")
                        .header("upgrade", "websocket")
                        .header("sec-websocket-version", "13")
                        .header("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ==");
                }
                if let Some(token) = token {
                    request = request.bearer_auth(token);
                }
                let (status, body) = answer(request).await;
                if OPEN.contains(&path) || status == StatusCode::METHOD_NOT_ALLOWED {
                    continue;
                }
                if status == StatusCode::SWITCHING_PROTOCOLS {
                    // A wrong token on the agents' socket is told by a close code.
                    assert_eq!((path, token), ("/v1/agent", Some("wrong")));
                    continue;
                }
                asked += 1;
                assert_eq!(status, StatusCode::FORBIDDEN, "{method} {path}: {body}");
                assert!(body["request_id"].is_string(), "{method} {path}: {body}");
            }
        }
    }
    assert!(asked > 40, "only {asked} requests were refused");
}

#[tokio::test]
async fn errors_have_one_shape() {
    let master = Master::start().await;
    for (method, path, body, status, code) in [
        (Method::GET, "/v1/nothing", None, 404, "no_route"),
        (Method::PATCH, "/v1/grids", None, 405, "no_method"),
        (
            Method::GET,
            "/v1/grids/none/addresses?kind=dog",
            None,
            422,
            "invalid",
        ),
        (Method::GET, "/v1/grids/none", None, 404, "not_found"),
        (Method::GET, "/v1/nodes/none/none", None, 404, "not_found"),
        (
            Method::GET,
            "/v1/services/none/null/none/deploys/x",
            None,
            404,
            "not_found",
        ),
        (Method::POST, "/v1/grids", Some("{"), 400, "bad_json"),
        (
            Method::POST,
            "/v1/grids",
            Some(r#"{"name":"a","colour":1}"#),
            422,
            "invalid",
        ),
        (Method::POST, "/v1/grids", Some("{}"), 422, "invalid"),
    ] {
        let mut request = master.request(method.clone(), path);
        if let Some(body) = body {
            request = request
                .header("content-type", "application/json")
                .body(body);
        }
        let response = request.send().await.unwrap();
        let id = response.headers()["x-request-id"]
            .to_str()
            .unwrap()
            .to_owned();
        assert_eq!(response.status().as_u16(), status, "{method} {path}");
        let answer: Value = response.json().await.unwrap();
        assert_eq!(answer["code"], code, "{method} {path}: {answer}");
        assert_eq!(answer["status"], status);
        assert_eq!(answer["request_id"], id, "{answer}");
        assert!(answer["error"].is_string() || answer["error"].is_object());
    }
}

#[tokio::test]
async fn a_request_id_of_the_client_is_kept() {
    let master = Master::start().await;
    let request = master
        .request(Method::GET, "/v1/grids/none")
        .header("x-request-id", "mine-7");
    assert_eq!(answer(request).await.1["request_id"], "mine-7");
}

#[tokio::test]
async fn a_body_that_is_too_large_is_refused() {
    let master = Master::start().await;
    let name = "a".repeat(2 << 20);
    let (status, answer) = master
        .call(Method::POST, "/v1/grids", Some(json!({ "name": name })))
        .await;
    assert_eq!(status, StatusCode::PAYLOAD_TOO_LARGE, "{answer}");
}

#[tokio::test]
async fn a_repeated_key_gets_the_first_answer_and_changes_nothing() {
    let master = Master::start().await;
    let create = |name: &str, key: &str| {
        let body = json!({ "name": name });
        answer(
            master
                .request(Method::POST, "/v1/grids")
                .header("idempotency-key", key)
                .json(&body),
        )
    };
    let (first, second) = (create("demo", "k1").await, create("demo", "k1").await);
    assert_eq!(first.0, StatusCode::CREATED);
    assert_eq!(first, second);
    let (status, reused) = create("another", "k1").await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(reused["code"], "idempotency_key_reused");
    // A refusal is not kept: the same key may try again.
    let (status, _) = create("Bad", "k2").await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert_eq!(create("good", "k2").await.0, StatusCode::CREATED);
    assert_eq!(
        create("x", &"k".repeat(200)).await.0,
        StatusCode::BAD_REQUEST
    );
    assert_eq!(
        master.get("/v1/grids").await["grids"]
            .as_array()
            .unwrap()
            .len(),
        2
    );
}

#[tokio::test]
async fn concurrent_requests_with_one_key_happen_once() {
    let master = Master::start().await;
    let create = || {
        let body = json!({ "name": "demo" });
        answer(
            master
                .request(Method::POST, "/v1/grids")
                .header("idempotency-key", "k")
                .json(&body),
        )
    };
    let answers = futures_util::future::join_all((0..8).map(|_| create())).await;
    for (status, grid) in &answers {
        assert_eq!(*status, StatusCode::CREATED, "{grid}");
        assert_eq!(grid, &answers[0].1);
    }
}

#[tokio::test]
async fn without_a_database_the_replica_says_so_and_comes_back() {
    let master = Master::start().await;
    let admin = crate::support::connect(&std::env::var("KONTENA_TEST_DATABASE_URL").unwrap()).await;
    let name = master.database.url.rsplit('/').next().unwrap().to_owned();
    let allow = async |yes: bool| {
        admin
            .batch_execute(&format!("alter database {name} allow_connections {yes}"))
            .await
            .unwrap();
    };
    allow(false).await;
    // Each is waited for, so that none dies later under a request that must go through.
    let end = "select pg_terminate_backend(pid, 10000) from pg_stat_activity where datname = $1";
    admin.query(end, &[&name]).await.unwrap();
    let response = master
        .request(Method::GET, "/v1/grids")
        .send()
        .await
        .unwrap();
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(response.headers()["retry-after"], "1");
    let (status, _) = master.call(Method::GET, "/v1/ping", None).await;
    assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
    allow(true).await;
    assert_eq!(master.get("/v1/ping").await["message"], "pong");
}

#[tokio::test]
async fn what_cannot_be_stored_is_the_clients_fault() {
    let master = Master::start().await;
    master.grid("demo").await;
    let nul = json!({ "name": "web", "image": "i", "env": ["A=\0"] });
    let (status, answer) = master
        .call(Method::POST, "/v1/grids/demo/services", Some(nul))
        .await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY, "{answer}");
    let (status, _) = master.call(Method::GET, "/v1/grids/%00", None).await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    let large =
        json!({ "name": "web", "image": "i", "env": [format!("A={}", "x".repeat(70_000))] });
    let (status, answer) = master
        .call(Method::POST, "/v1/grids/demo/services", Some(large))
        .await;
    assert_eq!(status, StatusCode::UNPROCESSABLE_ENTITY);
    assert!(
        answer["error"]["spec"].as_str().unwrap().contains("65536"),
        "{answer}"
    );
}
