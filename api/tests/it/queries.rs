//! Every statement against the migrated schema.

use std::collections::BTreeSet;

use kontena_api::control::constraint_fault;
use kontena_schema::query;

use crate::support::{Database, connect};

#[tokio::test]
async fn every_query_prepares() {
    let database = Database::create().await;
    let client = connect(&database.url).await;
    let mut faults = Vec::new();
    for query in query::ALL {
        if let Err(error) = client.prepare(query.sql).await {
            faults.push(format!(
                "{}: {:?}",
                query.name,
                error.as_db_error().map(|e| e.message().to_owned())
            ));
        }
    }
    assert!(faults.is_empty(), "{faults:#?}");
}

/// Constraints that only a bug of ours can violate: a violation is answered with
/// 500 and logged.
const GUARDED: &[&str] = &[
    "addresses_pkey",
    "commands_grid_fkey",
    "commands_kind_check",
    "commands_node_fkey",
    "commands_pkey",
    "commands_placement_fkey",
    "commands_state_check",
    "deploys_pkey",
    "deploys_service_fkey",
    "deploys_state_check",
    "grids_inner_subnet_check",
    "grids_pkey",
    "grids_vni_key",
    "idempotency_keys_pkey",
    "nodes_engine_key",
    "nodes_grid_fkey",
    "nodes_name_key",
    "nodes_next_key_check",
    "nodes_number_check",
    "nodes_number_key",
    "nodes_pkey",
    "pings_count_check",
    "pings_finished_check",
    "pings_grid_fkey",
    "pings_node_fkey",
    "pings_peer_check",
    "pings_peer_fkey",
    "pings_pkey",
    "pings_result_check",
    "pings_state_check",
    "placements_desired_check",
    "placements_grid_fkey",
    "placements_lease_check",
    "placements_lease_state_check",
    "placements_node_fkey",
    "placements_pkey",
    "placements_service_fkey",
    "pools_grid_fkey",
    "pools_pkey",
    "releases_pkey",
    "replicas_pkey",
    "services_grid_fkey",
    "services_pkey",
    "services_stack_fkey",
    "sessions_lose_check",
    "sessions_lost_check",
    "sessions_node_fkey",
    "sessions_pkey",
    "stacks_grid_fkey",
    "stacks_pkey",
    "tokens_grid_fkey",
    "tokens_holder_key",
    "tokens_kind_check",
    "tokens_node_check",
    "tokens_node_fkey",
    "tokens_pkey",
    "tombstones_grid_fkey",
    "tombstones_kind_check",
    "tombstones_pkey",
];

#[tokio::test]
async fn every_constraint_is_a_clients_fault_or_guarded() {
    let database = Database::create().await;
    let client = connect(&database.url).await;
    let rows = client
        .query(
            "select conname::text from pg_constraint c join pg_namespace n on n.oid = c.connamespace
             where n.nspname = 'public' and conrelid <> 'refinery_schema_history'::regclass
               and contype in ('c', 'f', 'p', 'u')",
            &[],
        )
        .await
        .unwrap();
    let all: BTreeSet<String> = rows.iter().map(|row| row.get(0)).collect();
    let unmapped: Vec<&String> = all
        .iter()
        .filter(|name| constraint_fault(name).is_none() && !GUARDED.contains(&name.as_str()))
        .collect();
    assert!(unmapped.is_empty(), "{unmapped:?}");
    let vanished: Vec<_> = GUARDED
        .iter()
        .filter(|name| !all.contains(**name))
        .collect();
    assert!(vanished.is_empty(), "{vanished:?}");
}
