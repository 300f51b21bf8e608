//! Lists: reading all pages while the stream continues, and combining both.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use tokio::time::{Instant, sleep_until};

use crate::client::{Aged, RegistryClient};
use crate::contract::AgentRecord;
use crate::contract::event::EventKind;
use crate::error::Error;
use crate::query::{ListQuery, Page};

/// Number of agents on a page. A page of the largest records has 128 MiB.
const PAGE: usize = 500;

/// After this time every server shows a change, and every stream has reported it. The contract allows one second; a server that
/// is about to lose its database takes a few seconds to notice.
const LONGEST_LAG: Duration = Duration::from_secs(5);

/// A change from the stream.
#[derive(Clone, Debug)]
pub(super) struct Change {
    pub(super) kind: EventKind,
    pub(super) agent: Arc<AgentRecord>,
}

/// Reads lists until one is certain to include everything that happened before the stream began.
///
/// The server of the list may lag behind the server of the stream, and then both lack the changes in between. So a list counts
/// as complete only if it was begun [`LONGEST_LAG`] after the stream. A list that is read at once, to avoid a delay, is
/// therefore read a second time. Its revisions cannot show that it is complete: a removal leaves none, pages may come from
/// different servers, and a server that still shows another history has equally great revisions.
pub(super) struct List {
    /// When the stream began or skipped an event. The list has to include everything before that.
    required_at: Instant,
    /// The last change of each agent that the stream has reported since the list was begun, and when.
    changes: HashMap<String, (Instant, Change)>,
    /// The greatest revision of these changes.
    revision: Option<u64>,
    /// When the last change came, or a stream was opened that may have more.
    last_change: Instant,
    pass: Pass,
    request: Option<BoxFuture<'static, Result<Aged<Page>, Error>>>,
    /// Whether a page could not be read, or was an old one from memory.
    pub(super) is_failing: bool,
}

/// One pass over all pages.
struct Pass {
    due: Instant,
    agents: Vec<Arc<AgentRecord>>,
    /// The cursor of the next page. `None` for the first.
    cursor: Option<String>,
    /// The age of the oldest page.
    age: Duration,
    /// The greatest revision of an agent.
    revision: Option<u64>,
    /// When the last page was read.
    read_at: Option<Instant>,
}

/// The next step of a list.
pub(super) enum Progress {
    Page(Result<Aged<Page>, Error>),
    /// All pages were read, and the stream has caught up with them.
    CaughtUp,
}

impl Pass {
    fn due_at(due: Instant) -> Self {
        Self { due, agents: Vec::new(), cursor: None, age: Duration::ZERO, revision: None, read_at: None }
    }
}

impl List {
    /// Begins a list that has to include everything until now.
    pub(super) fn begin() -> Self {
        let now = Instant::now();
        Self {
            required_at: now,
            changes: HashMap::new(),
            revision: None,
            last_change: now,
            pass: Pass::due_at(now),
            request: None,
            is_failing: false,
        }
    }

    /// Adds a change from the stream.
    pub(super) fn add(&mut self, change: Change) {
        let now = Instant::now();
        (self.revision, self.last_change) = (self.revision.max(change.agent.revision), now);
        match self.changes.get_mut(&change.agent.agent_id) {
            Some(last) => *last = (now, change),
            None => drop(self.changes.insert(change.agent.agent_id.clone(), (now, change))),
        }
    }

    /// Records that another stream was opened.
    pub(super) fn stream_opened(&mut self) {
        self.last_change = Instant::now();
    }

    /// Records that the stream had an unreadable change.
    pub(super) fn skipped_event(&mut self) {
        self.required_at = Instant::now();
    }

    /// Waits for the next page, for the time when the first one is due, or, after the last one, until the stream has caught up
    /// with the list. Cancel safe.
    pub(super) async fn next(&mut self, client: &RegistryClient) -> Progress {
        if let Some(read_at) = self.pass.read_at {
            if !self.is_caught_up() {
                sleep_until(self.last_change.max(read_at) + LONGEST_LAG).await;
            }
            return Progress::CaughtUp;
        }
        let request = self.request.get_or_insert_with(|| {
            let query = ListQuery { cursor: self.pass.cursor.clone(), ..ListQuery::all().limit(PAGE) };
            let (client, due) = (client.clone(), self.pass.due);
            async move {
                sleep_until(due).await;
                client.list_with_age(query).await
            }
            .boxed()
        });
        let page = request.await;
        self.request = None;
        Progress::Page(page)
    }

    /// Returns whether the stream has reported a change as late as the list's latest.
    fn is_caught_up(&self) -> bool {
        self.revision >= self.pass.revision
    }

    /// Returns whether a page has been requested.
    pub(super) fn is_reading(&self) -> bool {
        self.request.is_some() && self.pass.due <= Instant::now()
    }

    /// Drops a requested page, which is requested again later.
    pub(super) fn pause(&mut self) {
        self.request = None;
    }

    /// Handles a page. Returns whether it was the last one.
    pub(super) fn take(&mut self, page: Result<Aged<Page>, Error>) -> Result<bool, Error> {
        let Aged { value: page, age } = page.inspect_err(|error| {
            self.is_failing = true;
            // The cursor may be the reason for the refusal.
            if !error.is_retryable() {
                self.restart();
            }
        })?;
        let pass = &mut self.pass;
        pass.age = pass.age.max(age);
        let is_last = page.next_cursor.is_none();
        if !is_last && (page.agents.is_empty() || page.next_cursor == pass.cursor) {
            self.is_failing = true;
            self.restart();
            let detail = "the pages of the list do not end".to_owned();
            return Err(Error::InvalidResponse { status: 200, detail });
        }
        pass.cursor = page.next_cursor;
        pass.revision = pass.revision.max(page.agents.iter().filter_map(|agent| agent.revision).max());
        pass.agents.extend(page.agents.into_iter().map(Arc::new));
        pass.read_at = is_last.then(Instant::now);
        Ok(is_last)
    }

    /// Returns the age of the data: zero, unless the registry answered from memory.
    pub(super) fn age(&self) -> Duration {
        self.pass.age
    }

    /// Returns whether the list is complete.
    pub(super) fn is_complete(&self) -> bool {
        self.pass.due >= self.required_at + LONGEST_LAG
    }

    /// Ends the pass and returns its result. The next one may begin at once.
    pub(super) fn restart(&mut self) -> Vec<Arc<AgentRecord>> {
        self.request = None;
        std::mem::replace(&mut self.pass, Pass::due_at(Instant::now())).agents
    }

    /// Schedules the next pass for when every server shows everything. The time is random, because all watchers began at once
    /// if a database failed over.
    pub(super) fn postpone(&mut self) {
        let due = self.required_at + LONGEST_LAG.mul_f64(1.0 + fastrand::f64() / 2.0);
        self.pass.due = due.max(Instant::now());
    }

    /// Combines the list with the changes that the stream has reported since: for each agent, the greater revision wins. A
    /// complete list takes precedence over changes before an event that the stream skipped, which may have removed the agent.
    pub(super) fn merge(&self, agents: Vec<Arc<AgentRecord>>, is_complete: bool) -> Vec<Arc<AgentRecord>> {
        let changes = self.changes.iter().filter(|(_, (at, _))| !is_complete || *at >= self.required_at);
        let mut changes: HashMap<&str, &Change> =
            changes.map(|(agent_id, (_, change))| (agent_id.as_str(), change)).collect();
        let mut merged = Vec::with_capacity(agents.len());
        for listed in agents {
            match changes.remove(listed.agent_id.as_str()) {
                Some(change) if change.agent.revision >= listed.revision => merged.extend(change.left()),
                _ => merged.push(listed),
            }
        }
        merged.extend(changes.into_values().filter_map(Change::left));
        merged.sort_unstable_by(|one, other| one.agent_id.cmp(&other.agent_id));
        merged
    }
}

impl Change {
    /// Returns the agent after the change, or `None` if it was removed.
    fn left(&self) -> Option<Arc<AgentRecord>> {
        (self.kind != EventKind::Deregistered).then(|| self.agent.clone())
    }
}

/// The revisions of all reported agents. They show whether a list differs, and whether a change was in the list before the
/// stream reported it.
pub(super) struct Reported(HashMap<String, Option<u64>>);

impl Reported {
    pub(super) fn of(agents: &[Arc<AgentRecord>]) -> Self {
        Self(agents.iter().map(|agent| (agent.agent_id.clone(), agent.revision)).collect())
    }

    /// Records a change. Returns whether it is new: a list may have included it, or a later one of the same agent.
    pub(super) fn note(&mut self, Change { kind, agent }: &Change) -> bool {
        let is_removal = *kind == EventKind::Deregistered;
        let Some(known) = self.0.get_mut(&agent.agent_id) else {
            if !is_removal {
                self.0.insert(agent.agent_id.clone(), agent.revision);
            }
            return true;
        };
        let is_old = known
            .zip(agent.revision)
            .is_some_and(|(known, revision)| known > revision || known == revision && !is_removal);
        if is_old {
            return false;
        }
        if is_removal {
            self.0.remove(&agent.agent_id);
        } else {
            *known = agent.revision;
        }
        true
    }

    /// Returns whether a list has the same agents with the same revisions. Without revisions, this is unknown.
    pub(super) fn has_same_agents(&self, other: &Self) -> bool {
        self.0 == other.0 && self.0.values().all(Option::is_some)
    }
}
