//! Error messages that a model can act on.

use registry_sdk::Error;

use super::text::cut;

/// Maximum length of an error's own message, in characters.
const MAX_MESSAGE: usize = 600;

/// Returns the error's message, and what the model or its user can do about it.
pub(super) fn explain(error: &Error) -> String {
    let message = cut(&error.full_message(), MAX_MESSAGE);
    let advice = match error {
        Error::Unavailable { retry_after: Some(after), .. } => {
            return format!("{message}. Try again in {} s.", after.as_secs_f64().ceil());
        }
        error if error.is_retryable() => {
            "Nothing is known about agents until the registry answers: try again later, and tell the user if the error persists."
        }
        Error::Invalid { .. } => "Correct the arguments and call the tool again.",
        Error::Denied { .. } => {
            "Retrying does not help. Tell the user that `registryctl mcp` needs a valid token (REGISTRY_TOKEN)."
        }
        _ => "Retrying does not help. Tell the user to check the settings of `registryctl mcp`.",
    };
    format!("{message}. {advice}")
}

/// Like [`explain`], for an operation on one agent.
pub(super) fn explain_agent(error: &Error, agent_id: &str) -> String {
    if error.is_not_found() {
        return format!(
            "no agent {:?} is registered. Call search_agents or list_agents to find its id.",
            cut(agent_id, 64)
        );
    }
    explain(error)
}
