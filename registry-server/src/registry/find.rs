//! Finds agents for protocols that describe agents in their own terms.

use super::view::{Find, FoundAgent, FoundAgents, Read};
use super::{Error, Registry};

impl Registry {
    /// Returns a registered agent, whatever its status.
    pub(crate) fn find_agent(&self, agent_id: &str) -> Result<FoundAgent, Error> {
        self.shared.view.find_one(agent_id).ok_or_else(|| Error::NotFound(agent_id.to_owned()))
    }

    /// Finds agents that `accepts` returns true for, up to a limit, and converts them with `finish`.
    ///
    /// Both closures run off the request threads, like long searches.
    pub(crate) async fn find_agents<T: Send + 'static>(
        &self,
        which: Find,
        limit: usize,
        accepts: impl Fn(&FoundAgent) -> bool + Send + Sync + 'static,
        finish: impl Fn(FoundAgents) -> T + Send + Sync + 'static,
    ) -> Result<T, Error> {
        self.read_expensive(move |view, context| {
            let Read { value, unconfirmed } = view.find(&which, limit, &accepts, context);
            Read { value: finish(value), unconfirmed }
        })
        .await
    }
}
