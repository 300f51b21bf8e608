//! Records the name behind an agent's last change in `changed_by`.

use super::*;

const BEFORE: &str = "before";

/// An agent of instance "one" whose last change was made by another token.
fn changed(status: AgentStatus) -> StoredAgent {
    StoredAgent { changed_by: Some(BEFORE.to_owned()), ..owned(status) }
}

fn name_after(change: &Change, agent: StoredAgent, now: Timestamp) -> String {
    let (_, writes) = decide(change, agent, now);
    let [event] = &*writes.events else { panic!("{change:?}: {:?}", writes.events) };
    event.agent.changed_by.clone().unwrap()
}

fn repeated() -> Registration {
    Registration::new("a", "Agent", "http://agent:8000")
        .capability(Capability::new("work"))
        .instance_id("one")
}

#[test]
fn requested_change_records_the_caller() {
    let offline = || changed(AgentStatus::Offline);
    let taken_out = || StoredAgent {
        maintenance: Some(MaintenanceRequest::new("repair").begin(at(101))),
        ..changed(AgentStatus::Active)
    };
    for (change, agent) in [
        (register(repeated().metadata("new", true)), changed(AgentStatus::Active)),
        (register(repeated()), offline()),
        (heartbeat(), offline()),
        (shut_down("one"), changed(AgentStatus::Active)),
        (Change::SetMaintenance(MaintenanceRequest::new("repair")), changed(AgentStatus::Active)),
        (Change::EndMaintenance, taken_out()),
        (Change::Remove, changed(AgentStatus::Active)),
        (Change::Probed { failed: true }, changed(AgentStatus::Active)),
    ] {
        assert_eq!(name_after(&change, agent, at(110)), CALLER, "{change:?}");
    }
    // The agent had missed its deadline.
    assert_eq!(name_after(&register(repeated()), changed(AgentStatus::Active), at(200)), CALLER);
}

#[test]
fn internal_event_keeps_the_name() {
    // The heartbeat and the registration come just before the deadline.
    let late = at(160);
    assert_eq!(name_after(&heartbeat(), changed(AgentStatus::Active), late), BEFORE);
    assert_eq!(name_after(&register(repeated()), changed(AgentStatus::Active), late), BEFORE);
    // An older process registers, and another one is shut down.
    assert_eq!(name_after(&started("two", 80, 110), changed(AgentStatus::Active), at(110)), BEFORE);
    let mut with_another = changed(AgentStatus::Active);
    assert!(!with_another.instances.claim("two", Some(Duration::from_secs(30)), Some("one"), at(105)));
    assert_eq!(name_after(&shut_down("two"), with_another, at(110)), BEFORE);
}

#[test]
fn edit_by_another_program_records_the_registry() {
    let known = changed(AgentStatus::Active);
    let edited = StoredAgent { agent_name: "Edited".to_owned(), ..known.clone() };
    let forged = StoredAgent { changed_by: Some("forged".to_owned()), ..known.clone() };
    let name = |change: &Change, row: Option<StoredAgent>, known: &StoredAgent| {
        let (_, writes) = decide_edited(change, row, Some(known.clone()));
        writes.events[0].agent.changed_by.clone()
    };
    let registry = Some(CHANGED_BY_REGISTRY.to_owned());
    for change in [Change::Reconcile, heartbeat(), Change::Expire, Change::EndMaintenance] {
        for row in [Some(edited.clone()), Some(forged.clone()), None] {
            assert_eq!(name(&change, row, &known), registry, "{change:?}");
        }
    }
    // The same if the last change was already an edit.
    let known = StoredAgent { changed_by: registry.clone(), ..known };
    assert_eq!(name(&Change::Reconcile, Some(forged), &known), registry);
    // A requested change comes after the edit.
    assert_eq!(name(&Change::Remove, Some(edited.clone()), &known).as_deref(), Some(CALLER));
    assert_eq!(name(&Change::Remove, None, &known).as_deref(), Some(CALLER));
    let moved = register(repeated().metadata("new", true));
    assert_eq!(name(&moved, Some(edited), &known).as_deref(), Some(CALLER));
}

#[test]
fn heartbeat_just_before_the_deadline_announces_an_edit_by_another_program() {
    let known = StoredAgent { last_heartbeat: at(50), ..changed(AgentStatus::Active) };
    let edited = StoredAgent { agent_name: "Edited".to_owned(), ..known.clone() };
    let (_, writes) = decide_edited(&heartbeat(), Some(edited), Some(known));
    assert_eq!(kinds(&writes), [(8, EventKind::Registered)]);
    assert_eq!(writes.events[0].agent.last_heartbeat, at(110));
}
