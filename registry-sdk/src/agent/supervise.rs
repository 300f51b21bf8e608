//! Starting, calling and stopping the loop.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::reconcile;
use super::shared::{Answer, Call, Inner, Shared, Stop, Wants};
use super::state::AgentState;
use crate::error::Error;
use crate::retry::{RetryPolicy, deadline_after};

/// How long after its own deadline the loop is aborted.
const ABORT_AFTER: Duration = Duration::from_millis(50);

impl Shared {
    /// Waits until the registry has acknowledged the desired state, or the policy gives up.
    ///
    /// Cancel safe: the loop makes no further attempt for a caller that gave up.
    pub(super) async fn call(self: &Arc<Self>, wants: Wants, policy: &RetryPolicy) -> Answer {
        let (reply, answer) = oneshot::channel();
        let (due, policy) = (Instant::now(), policy.clone());
        let call = Call { wants, due, is_concerned: false, policy, attempts: None, reply };
        self.change_and_wake(|inner| inner.calls.push(call))?;
        // The loop answers all calls, however it ends.
        answer.await.unwrap_or(Err(Error::ShutDown))
    }

    /// Changes the shared state, and starts the loop if it does not run. Fails after a shutdown.
    pub(super) fn change_and_wake(self: &Arc<Self>, change: impl FnOnce(&mut Inner)) -> Result<(), Error> {
        let mut inner = self.lock();
        if !matches!(inner.stop, Stop::No) {
            return Err(Error::ShutDown);
        }
        change(&mut inner);
        self.ensure_loop(&mut inner);
        drop(inner);
        self.wake();
        Ok(())
    }

    /// Starts the loop if it does not run. It may have ended with the runtime that it was started in.
    fn ensure_loop(self: &Arc<Self>, inner: &mut Inner) {
        if inner.task.as_ref().is_none_or(JoinHandle::is_finished) {
            inner.task = Some(tokio::spawn(reconcile::run(self.clone())));
        }
    }

    /// Asks the loop to shut down within a limit. The earliest deadline counts.
    pub(super) fn stop_within(self: &Arc<Self>, limit: Duration) {
        let now = Instant::now();
        let (mut cut_off, mut deadline) = (deadline_after(now, limit / 2), deadline_after(now, limit));
        let mut inner = self.lock();
        if let Stop::By { cut_off: other_cut_off, deadline: other_deadline } = inner.stop {
            (cut_off, deadline) = (cut_off.min(other_cut_off), deadline.min(other_deadline));
        }
        inner.stop = Stop::By { cut_off, deadline };
        if self.may_be_registered() {
            self.ensure_loop(&mut inner);
        }
        drop(inner);
        self.wake();
    }

    /// Waits until the loop has ended. Aborts it if it does not end in time, because the runtime is blocked.
    pub(super) async fn ended(&self, limit: Duration) {
        let is_running = self.lock().task.as_ref().is_some_and(|task| !task.is_finished());
        let mut state = self.state.subscribe();
        let stopped = state.wait_for(AgentState::is_stopped);
        if !is_running || tokio::time::timeout(limit.saturating_add(ABORT_AFTER), stopped).await.is_err() {
            let mut inner = self.lock();
            if let Some(task) = &inner.task {
                task.abort();
            }
            inner.answer_where(|_| true, &Err(Error::ShutDown));
            drop(inner);
            self.change_state(|_| AgentState::Stopped);
        }
    }
}
