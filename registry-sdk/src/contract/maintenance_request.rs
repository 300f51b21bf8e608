//! The request that takes an agent out of service for a while.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::maintenance::Maintenance;
use super::problem::ValidationError;
use super::request_body::{Fields, RequestBody};
use super::time::{Timestamp, optional_seconds};
use super::validate::{limits, text_error};

/// The body of `PUT /agents/{id}/maintenance`.
///
/// ```
/// use std::time::Duration;
/// use registry_sdk::contract::MaintenanceRequest;
/// let request = MaintenanceRequest::new("disk upgrade").duration(Duration::from_secs(3_600));
/// assert_eq!(
///     serde_json::to_string(&request).unwrap(),
///     r#"{"reason":"disk upgrade","duration_seconds":3600}"#
/// );
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
#[non_exhaustive]
pub struct MaintenanceRequest {
    /// The reason, for people: 1 to 256 characters.
    #[cfg_attr(feature = "openapi", schema(min_length = 1, max_length = 256, pattern = "^[^\\u0000]*$"))]
    pub reason: String,
    /// How long the maintenance lasts. Without it, it lasts until it is ended.
    #[serde(
        default,
        rename = "duration_seconds",
        with = "optional_seconds",
        skip_serializing_if = "Option::is_none"
    )]
    #[cfg_attr(
        feature = "openapi",
        schema(value_type = Option<f64>, exclusive_minimum = 0, maximum = 31_536_000)
    )]
    pub duration: Option<Duration>,
    /// The process that takes itself out of service. The maintenance then ends when that process is shut down, or when another
    /// process registers. If another process owns the id, the request is refused with 409.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(
        feature = "openapi",
        schema(min_length = 1, max_length = 64, pattern = "^[A-Za-z0-9][A-Za-z0-9._-]*$")
    )]
    pub instance_id: Option<String>,
}

impl MaintenanceRequest {
    /// Requests maintenance of an agent until it is ended, whichever process the agent runs in.
    #[must_use]
    pub fn new(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), duration: None, instance_id: None }
    }

    /// Sets how long the maintenance lasts. The registry rounds it to milliseconds.
    #[must_use]
    pub fn duration(mut self, duration: Duration) -> Self {
        self.duration = Some(duration);
        self
    }

    /// Makes the maintenance belong to one process, which has to own the agent's id.
    #[must_use]
    pub fn instance_id(mut self, instance_id: impl Into<String>) -> Self {
        self.instance_id = Some(instance_id.into());
        self
    }

    /// Returns the maintenance that begins with this request at a time. For tests: the registry answers with it.
    #[must_use]
    pub fn begin(&self, now: Timestamp) -> Maintenance {
        Maintenance {
            reason: self.reason.clone(),
            since: now,
            until: self.duration.map(|duration| now.saturating_add(duration)),
            instance_id: self.instance_id.clone(),
        }
    }
}

impl RequestBody for MaintenanceRequest {
    fn from_json(body: &[u8]) -> Result<Result<Self, ValidationError>, serde_json::Error> {
        let mut fields = Fields::read(body)?;
        let reason = fields.get("reason", REASON, |value| value.as_str().map(str::to_owned));
        match &reason {
            None => fields.is_missing("reason", REASON),
            Some(reason) => {
                if let Some(error) = text_error(reason, 1, limits::MAINTENANCE_REASON) {
                    fields.fail("reason", error);
                }
            }
        }
        let duration = fields.get("duration_seconds", "a number above 0, up to 31536000", |value| {
            let seconds = value.as_f64().filter(|seconds| *seconds > 0.0)?;
            let duration = Duration::try_from_secs_f64(seconds).ok()?;
            // A positive duration stays positive.
            Some(duration.max(Duration::from_millis(1))).filter(|duration| *duration <= limits::MAINTENANCE)
        });
        let instance_id = fields.instance_id();
        let request = Self { reason: reason.unwrap_or_default(), duration, instance_id };
        Ok(fields.check().map(|()| request))
    }
}

/// The valid values of a reason.
const REASON: &str = "a text of 1 to 256 characters";
