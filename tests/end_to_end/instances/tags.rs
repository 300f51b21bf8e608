//! The tag of a registration.

use registry_sdk::ListQuery;
use registry_sdk::contract::{AgentStatus, Capability, Heartbeat};

use super::process;
use crate::support::{Database, client, on_every_registry};

on_every_registry!(tag_is_in_every_response_and_changes_with_the_registration,);

async fn tag_is_in_every_response_and_changes_with_the_registration(database: Database) {
    let server = database.start().await;
    let client = client(&server);
    let registered = client.register(&process("one", 10)).await.unwrap();
    let tag = registered.registration_tag.clone();
    assert!(tag.as_ref().is_some_and(|tag| (1..=64).contains(&tag.len())), "{tag:?}");
    let everywhere = async || {
        let beat = Heartbeat::default().instance_id("one");
        let mut seen = vec![
            client.get_agent("a").await.unwrap().registration_tag,
            client.list_agents(ListQuery::all()).await.unwrap().agents[0].registration_tag.clone(),
            client.update_status("a", AgentStatus::Busy).await.unwrap().registration_tag,
            // A heartbeat without changes, and one that changes the status.
            client.heartbeat_with("a", &beat).await.unwrap().registration_tag,
            client.heartbeat_with("a", &beat.status(AgentStatus::Active)).await.unwrap().registration_tag,
        ];
        seen.dedup();
        assert_eq!(seen.len(), 1, "{seen:?}");
        seen.remove(0)
    };
    assert_eq!(everywhere().await, tag);
    let again = client.register(&process("one", 11)).await.unwrap();
    assert_eq!(again.registration_tag, tag, "the registration is unchanged");
    let changed = client.register(&process("one", 12).capability(Capability::new("more"))).await.unwrap();
    assert_ne!(changed.registration_tag, tag);
    assert_eq!(everywhere().await, changed.registration_tag);
    let back = client.register(&process("one", 13)).await.unwrap();
    assert_eq!(back.registration_tag, tag);
    server.shutdown().await;
}
