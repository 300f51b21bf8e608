//! The replies of agents to messages.

use serde_json::Value;

use super::a2a_error::A2aError;
use super::task_state::TaskState;

/// The reply of an A2A agent: the task in its last state, or a message if the agent made no task.
#[derive(Clone, Debug, PartialEq)]
pub struct Reply {
    state: TaskState,
    is_task: bool,
    json: Value,
}

impl Reply {
    /// Reads a task.
    ///
    /// # Errors
    /// If it has no id or no state.
    pub(super) fn task(json: Value) -> Result<Self, String> {
        let text = |pointer| json.pointer(pointer).and_then(Value::as_str).filter(|text| !text.is_empty());
        if text("/id").is_none() {
            return Err("the task has no `id`".to_owned());
        }
        let Some(state) = text("/status/state") else {
            return Err("the task has no `status.state`".to_owned());
        };
        let Ok(state) = state.parse::<TaskState>();
        Ok(Self { state, is_task: true, json })
    }

    /// Reads a message.
    ///
    /// # Errors
    /// If it has no parts.
    pub(super) fn message(json: Value) -> Result<Self, String> {
        if !json["parts"].is_array() {
            return Err("the message has no `parts`".to_owned());
        }
        Ok(Self { state: TaskState::Completed, is_task: false, json })
    }

    /// Returns the reply if the agent has done the task or waits for the caller.
    ///
    /// # Errors
    /// [`A2aError::Ended`] in any other state.
    pub(crate) fn outcome(self) -> Result<Self, A2aError> {
        if self.is_completed() || self.state.is_interrupted() {
            return Ok(self);
        }
        let message = self.text();
        Err(A2aError::Ended { state: self.state, message })
    }

    /// Returns the state of the task: [`TaskState::Completed`], [`TaskState::InputRequired`] or [`TaskState::AuthRequired`]. A message
    /// without a task counts as completed.
    #[must_use]
    pub fn state(&self) -> &TaskState {
        &self.state
    }

    /// Whether the agent has done the task. Otherwise it waits for the caller: see [`state`](Self::state).
    #[must_use]
    pub fn is_completed(&self) -> bool {
        self.state == TaskState::Completed
    }

    /// Returns the agent's id of the task, or `None` if the agent made no task.
    #[must_use]
    pub fn task_id(&self) -> Option<&str> {
        self.json["id"].as_str().filter(|_| self.is_task)
    }

    /// Returns the agent's id of the conversation, if there is one.
    #[must_use]
    pub fn context_id(&self) -> Option<&str> {
        self.json["contextId"].as_str()
    }

    /// Returns the text parts of the reply, joined by line breaks. See [`parts`](Self::parts).
    #[must_use]
    pub fn text(&self) -> String {
        self.parts().iter().filter_map(|part| part["text"].as_str()).collect::<Vec<_>>().join("\n")
    }

    /// Returns the data parts of the reply. See [`parts`](Self::parts).
    #[must_use]
    pub fn data(&self) -> Vec<&Value> {
        self.parts().into_iter().filter_map(|part| part.get("data")).collect()
    }

    /// Returns the parts of the reply as the agent sent them.
    ///
    /// These are the parts of the task's artifacts, or, if it has none, of its status message; without a task, those of the message. If
    /// the agent waits for the caller, they are those of the status message, which says what the agent needs.
    #[must_use]
    pub fn parts(&self) -> Vec<&Value> {
        if !self.is_task {
            return items(&self.json["parts"]).collect();
        }
        let artifacts = items(&self.json["artifacts"]).flat_map(|artifact| items(&artifact["parts"]));
        let status = items(&self.json["status"]["message"]["parts"]);
        let (artifacts, status): (Vec<_>, Vec<_>) = (artifacts.collect(), status.collect());
        let (first, second) =
            if self.state == TaskState::Completed { (artifacts, status) } else { (status, artifacts) };
        if first.is_empty() { second } else { first }
    }

    /// Returns the task or the message as the agent sent it.
    #[must_use]
    pub fn json(&self) -> &Value {
        &self.json
    }
}

fn items(list: &Value) -> impl Iterator<Item = &Value> {
    list.as_array().into_iter().flatten()
}
