//! The SQL of the Master, one statement a file in `queries/`.
//!
//! The first line of each file is its name, so that a statement can be told in
//! `pg_stat_activity` and in the server's log.

/// A named statement.
#[derive(Clone, Copy, Debug)]
pub struct Query {
    /// The name of its file.
    pub name: &'static str,
    /// The statement.
    pub sql: &'static str,
}

macro_rules! queries {
    ($($constant:ident = $file:literal,)*) => {
        $(
            #[doc = concat!("`queries/", $file, ".sql`")]
            pub const $constant: Query = Query {
                name: $file,
                sql: include_str!(concat!("../queries/", $file, ".sql")),
            };
        )*

        /// Every statement, for the test that prepares them all.
        pub const ALL: &[Query] = &[$($constant),*];
    };
}

queries! {
    ADDRESS_FREE = "address_free",
    ADDRESS_HISTORY = "address_history",
    ADDRESS_HISTORY_AT = "address_history_at",
    ADDRESS_HOLD = "address_hold",
    ADDRESS_LIST = "address_list",
    ADDRESS_NEXT_LEASE = "address_next_lease",
    ADDRESS_PICK = "address_pick",
    ADDRESS_ROWS = "address_rows",
    ADDRESS_SHOW = "address_show",
    ADDRESS_USAGE = "address_usage",
    COMMAND_EXPIRE = "command_expire",
    COMMAND_INSERT = "command_insert",
    COMMAND_REPORT = "command_report",
    CONTAINER_LIST = "container_list",
    DEPLOY_EXPIRE = "deploy_expire",
    DEPLOY_FAIL = "deploy_fail",
    DEPLOY_FINISH = "deploy_finish",
    DEPLOY_INSERT = "deploy_insert",
    DEPLOY_SHOW = "deploy_show",
    FEED_CHANGES = "feed_changes",
    GRID_ADDRESS_CLEAR = "grid_address_clear",
    GRID_DELETE = "grid_delete",
    GRID_HELD = "grid_held",
    GRID_INSERT = "grid_insert",
    GRID_AWAIT = "grid_await",
    GRID_KNOWN = "grid_known",
    GRID_LIST = "grid_list",
    GRID_LOCK = "grid_lock",
    GRID_LOCK_BY_ID = "grid_lock_by_id",
    GRID_REVISIONS = "grid_revisions",
    GRID_STAMP = "grid_stamp",
    GRID_UPDATE = "grid_update",
    IDEMPOTENCY_CLAIM = "idempotency_claim",
    IDEMPOTENCY_CLAIM_MANY = "idempotency_claim_many",
    IDEMPOTENCY_SHOW = "idempotency_show",
    IDEMPOTENCY_STORE = "idempotency_store",
    IDEMPOTENCY_STORE_MANY = "idempotency_store_many",
    IDEMPOTENCY_SWEEP = "idempotency_sweep",
    IDEMPOTENCY_UNCLAIM_MANY = "idempotency_unclaim_many",
    LEDGER_DROP = "ledger_drop",
    LEDGER_OPEN = "ledger_open",
    LEDGER_PARTITIONS = "ledger_partitions",
    LEDGER_UNOPENED = "ledger_unopened",
    LOSS_DUE = "loss_due",
    LOSS_TAKE = "loss_take",
    NODE_BY_ENGINE = "node_by_engine",
    NODE_BY_NAME = "node_by_name",
    NODE_CANDIDATES = "node_candidates",
    NODE_DELETE = "node_delete",
    NODE_INSERT = "node_insert",
    NODE_KEY_TAKEN = "node_key_taken",
    NODE_KEYS_DIFFER = "node_keys_differ",
    NODE_LIST = "node_list",
    NODE_LOCK = "node_lock",
    NODE_MEASURE = "node_measure",
    NODE_METRICS = "node_metrics",
    NODE_NAME_FIND = "node_name_find",
    NODE_NEXT_KEYS_AWAITED = "node_next_keys_awaited",
    NODE_NEXT_KEYS_KNOWN = "node_next_keys_known",
    NODE_NUMBER_ADDRESS = "node_number_address",
    NODE_NUMBER_FIND = "node_number_find",
    NODE_OVERLAPS = "node_overlaps",
    NODE_PEER_LIST = "node_peer_list",
    NODE_PING_EXPIRE = "node_ping_expire",
    NODE_PING_INSERT = "node_ping_insert",
    NODE_PING_REPORT = "node_ping_report",
    NODE_PING_SHOW = "node_ping_show",
    NODE_PING_SWEEP = "node_ping_sweep",
    NODE_PINGER = "node_pinger",
    NODE_PLACEMENTS = "node_placements",
    NODE_REPORT_PEERS = "node_report_peers",
    NODE_SITE_DIFFERS = "node_site_differs",
    NODE_TRUST_NEXT_KEYS = "node_trust_next_keys",
    NODE_TURN_KEY = "node_turn_key",
    NODE_UPDATE_FACTS = "node_update_facts",
    NODE_UPDATE_KEYS = "node_update_keys",
    NODE_UPDATE_SITE = "node_update_site",
    NOW = "now",
    PING = "ping",
    PLACEMENT_BY_ID = "placement_by_id",
    PLACEMENT_DELETE = "placement_delete",
    PLACEMENT_DISPOSSESS = "placement_dispossess",
    PLACEMENT_GIVE = "placement_give",
    PLACEMENT_INSERT = "placement_insert",
    PLACEMENT_KEEP = "placement_keep",
    PLACEMENT_LOCK = "placement_lock",
    PLACEMENT_LOSE = "placement_lose",
    PLACEMENT_ON_LOST = "placement_on_lost",
    PLACEMENT_REMOVE = "placement_remove",
    PLACEMENT_REPORT = "placement_report",
    PLACEMENT_RESTORE = "placement_restore",
    PLACEMENT_RETURNING = "placement_returning",
    PLACEMENT_ROWS = "placement_rows",
    PLACEMENT_SERVED = "placement_served",
    PLACEMENT_UNWAIT = "placement_unwait",
    PLACEMENT_WAIT = "placement_wait",
    PLACEMENT_WAITING = "placement_waiting",
    REPLICA_ALIVE = "replica_alive",
    REPLICA_REMOVE = "replica_remove",
    REPLICA_RENEW = "replica_renew",
    REPLICA_SWEEP = "replica_sweep",
    RESERVATION_BATCH = "reservation_batch",
    SERVICE_DELETE_EMPTY = "service_delete_empty",
    SERVICE_DEPLOYED = "service_deployed",
    SERVICE_INSERT = "service_insert",
    SERVICE_LABEL_CLASH = "service_label_clash",
    SERVICE_LIST = "service_list",
    SERVICE_REMOVING = "service_removing",
    SERVICE_ROW = "service_row",
    SERVICE_ROWS_DAEMON = "service_rows_daemon",
    SERVICE_ROWS_OF_STACK = "service_rows_of_stack",
    SERVICE_SCALE = "service_scale",
    SERVICE_UPDATE = "service_update",
    SESSION_CLOSE = "session_close",
    SESSION_CURRENT = "session_current",
    SESSION_EPOCH = "session_epoch",
    SESSION_FORGET = "session_forget",
    SESSION_OPEN = "session_open",
    SESSION_STANDING = "session_standing",
    SESSION_SUPERSEDED = "session_superseded",
    STACK_DELETE_EMPTY = "stack_delete_empty",
    STACK_ID = "stack_id",
    STACK_INSERT = "stack_insert",
    STACK_LIST = "stack_list",
    STACK_REMOVE = "stack_remove",
    STACK_UPDATE = "stack_update",
    TOKEN_INSERT = "token_insert",
    TOKEN_OF = "token_of",
    TOKEN_OF_GRID = "token_of_grid",
    TOKEN_SHOW = "token_show",
    TOKEN_USE = "token_use",
    TOMBSTONE_INSERT = "tombstone_insert",
    TOMBSTONE_INSERT_MANY = "tombstone_insert_many",
    TOMBSTONE_SWEEP = "tombstone_sweep",
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::ALL;

    #[test]
    fn every_file_is_a_query_that_begins_with_its_name() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/queries");
        let files: BTreeSet<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        let named: BTreeSet<String> = ALL.iter().map(|q| format!("{}.sql", q.name)).collect();
        assert_eq!(files, named);
        for query in ALL {
            assert!(
                query.sql.starts_with(&format!("-- {}\n", query.name)),
                "{}",
                query.name
            );
        }
    }
}
