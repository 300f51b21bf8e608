//! Ownership and tags across restarts of the server.

use std::time::Duration;

use registry_sdk::contract::{Capability, StatusUpdate};
use serde_json::json;

use super::{accepts_requests_of, is_accepted, process};
use crate::support::{Database, client, on_both_databases};

on_both_databases!(
    ownership_survives_a_restart,
    tag_survives_a_restart,
    process_of_an_older_version_is_recorded_at_its_next_registration,
);

async fn ownership_survives_a_restart(database: Database) {
    let server = database.start().await;
    let before = client(&server);
    before.register(&process("ended", 90)).await.unwrap();
    before.update_status_with("a", &StatusUpdate::shut_down("ended")).await.unwrap();
    before.register(&process("young", 5_000)).await.unwrap();
    assert!(!is_accepted(&before, &process("refused", 7_000)).await);
    server.shutdown().await;

    let server = database.start().await;
    let after = client(&server);
    assert!(
        !is_accepted(&after, &process("refused", 0)).await,
        "its start was recorded with a different age"
    );
    assert!(!is_accepted(&after, &process("old", 9_000)).await);
    assert!(!is_accepted(&after, &process("ended", 90)).await, "it was shut down");
    assert!(accepts_requests_of(&after, "young").await);
    after.update_status_with("a", &StatusUpdate::shut_down("young")).await.unwrap();
    server.shutdown().await;

    let server = database.start().await;
    let after = client(&server);
    assert!(!accepts_requests_of(&after, "young").await);
    assert!(!is_accepted(&after, &process("young", 5_000)).await);
    assert!(is_accepted(&after, &process("refused", 7_000)).await);
    server.shutdown().await;
}

async fn tag_survives_a_restart(database: Database) {
    // Floats that an inexact parser would round differently, and text that a database might normalize.
    let metadata = json!({
        "z": [2.003_039_774_426_776_2e-253, 7.101_215_824_554_616e260, 51.248_178_375_505_404, -0.0, 1e21],
        "a": {"ünïcödé 🦀": "\u{7f}é\n\"\\/", "deep": {"b": null, "a": [true, {"": 18_446_744_073_709_551_615_u64}]}},
    });
    let full = process("one", 10)
        .capability(Capability::new("two").description("ünïcödé 🦀 \\ \"\n").tag("b").tag("a"))
        .metadata("nested", metadata)
        .heartbeat_interval(Duration::from_nanos(33_333_333_333));
    let server = database.start().await;
    let before = client(&server).register(&full).await.unwrap();
    assert!(before.registration_tag.is_some());
    server.shutdown().await;

    let server = database.start().await;
    let after = client(&server);
    assert_eq!(after.get_agent("a").await.unwrap().registration_tag, before.registration_tag);
    assert_eq!(after.heartbeat("a").await.unwrap().registration_tag, before.registration_tag);
    let again = after.register(&full).await.unwrap();
    assert_eq!(again.registration_tag, before.registration_tag);
    assert_eq!(again.revision, before.revision, "the registration is unchanged");
    server.shutdown().await;
}

async fn process_of_an_older_version_is_recorded_at_its_next_registration(database: Database) {
    let server = database.start().await;
    client(&server).register(&process("young", 10)).await.unwrap();
    server.shutdown().await;
    database.execute("UPDATE agent_registry SET instances = '[]'").await;

    let server = database.start().await;
    let client = client(&server);
    assert!(accepts_requests_of(&client, "young").await);
    // The registration is unchanged, but the start of the process was unknown.
    assert!(is_accepted(&client, &process("young", 10)).await);
    assert!(!is_accepted(&client, &process("old", 60)).await);
    server.shutdown().await;
}
