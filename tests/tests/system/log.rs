//! What an error says can be found in a log.

use kontena_tests::{Grid, docker};

#[tokio::test]
async fn a_refused_request_is_found_in_the_log_of_a_replica_by_its_id() {
    let grid = Grid::first().await;
    let error = grid.client.grid_show("no-such-grid").await.unwrap_err();
    let refusal = error.api().unwrap();
    assert_eq!(refusal.status, 404);
    let id = &refusal.body.request_id;
    assert!(!id.is_empty());
    let mut found = Vec::new();
    for replica in ["api-1", "api-2"] {
        let name = format!("{}-{replica}", grid.settings.project);
        let log = docker(&["logs", "--tail", "2000", &name]).await;
        let lines = log.stderr.lines().filter(|line| line.contains(id.as_str()));
        found.extend(lines.map(str::to_owned));
    }
    assert!(
        found
            .iter()
            .any(|line| line.contains("404") && line.contains("/v1/grids/{grid}")),
        "{id}: {found:?}"
    );
}
