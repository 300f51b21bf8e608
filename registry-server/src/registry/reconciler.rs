//! Compares the agents' rows with the view, and turns each difference into a change.
//!
//! Any program may change rows in the database. Such changes become visible and are announced to watchers
//! like all others.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep};

use super::Registry;
use super::change_log::EDIT;
use super::rules::Change;
use super::sweeper::submit_all;
use crate::store::{AgentPage, AgentRow, Result, StoredAgent};

/// Interval between comparisons of all rows.
const INTERVAL: Duration = Duration::from_secs(60);

/// Number of rows read at a time, and the pause in between, so that other reads are not delayed.
const PAGE_ROWS: usize = 500;
const PAGE_PAUSE: Duration = Duration::from_millis(20);

/// Compares all rows at every interval, and single rows as soon as they are suspect. Never returns.
///
/// # Cancel safety
/// Cancel safe: every change is made completely or not at all.
pub(super) async fn run(registry: Arc<Registry>) {
    let mut ticks = interval_at(Instant::now() + INTERVAL, INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let mut suspects = tokio::select! {
            _ = ticks.tick() => match find_differences(&registry).await {
                Ok(suspects) => suspects,
                Err(error) => {
                    tracing::warn!(%error, "cannot compare the agents' rows with memory, trying again in a minute");
                    Vec::new()
                }
            },
            () = registry.shared.has_suspects.notified() => Vec::new(),
        };
        suspects.extend(std::mem::take(&mut *registry.shared.suspects.lock()));
        submit_all(&registry, suspects, || Change::Reconcile, EDIT).await;
    }
}

/// Returns the ids of all agents whose rows seem to differ from the view.
async fn find_differences(registry: &Registry) -> Result<Vec<String>> {
    let shared = &registry.shared;
    let (mut suspects, mut after, mut unreadable) = (Vec::new(), String::new(), 0);
    loop {
        let page = shared.read(|session| session.read_agents(&after, PAGE_ROWS)).await?;
        let last =
            page.rows.last().filter(|_| page.rows.len() == PAGE_ROWS).map(|row| row.agent_id().to_owned());
        unreadable += page.rows.iter().filter(|row| matches!(row, AgentRow::Unreadable(_))).count();
        suspects.extend(differences(registry, page, &after, last.as_deref()));
        match last {
            Some(last) => {
                after = last;
                sleep(PAGE_PAUSE).await;
            }
            None => break,
        }
    }
    shared.metrics.set_unreadable_rows(unreadable);
    Ok(suspects)
}

/// Returns the ids of the agents in a page whose rows seem to differ from the view.
///
/// Skips agents that changed between the view's revision and the page's.
fn differences(registry: &Registry, page: AgentPage, after: &str, last: Option<&str>) -> Vec<String> {
    let view_revision = registry.shared.view.position().position.revision;
    let known = registry.shared.view.entries_between(after, last);
    let mut known =
        known.iter().map(|entry| &entry.agent).filter(|agent| agent.revision <= page.revision).peekable();
    let is_late = |row: &StoredAgent| row.revision > view_revision && row.revision <= page.revision;
    let mut differences = Vec::new();
    for row in page.rows {
        while let Some(gone) = known.next_if(|known| known.agent_id.as_str() < row.agent_id()) {
            differences.push(gone.agent_id.clone());
        }
        let known = known.next_if(|known| known.agent_id == row.agent_id());
        if let AgentRow::Readable(row) = row
            && !is_late(&row)
            && known.is_none_or(|known| !known.is_same_but_for_heartbeat(&row))
        {
            differences.push(row.agent_id);
        }
    }
    differences.extend(known.map(|gone| gone.agent_id.clone()));
    differences
}
