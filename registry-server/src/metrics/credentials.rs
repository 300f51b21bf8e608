//! Metrics of the tokens file and the certificates. Each is absent if no such file is configured.

use prometheus::{Error, IntGaugeVec, Opts, Registry};
use registry_sdk::contract::Timestamp;

/// The certificate's expiration, and whether the files could be loaded.
#[derive(Clone, Debug)]
pub(crate) struct CredentialMetrics {
    expiration: IntGaugeVec,
    last_reload_successful: IntGaugeVec,
}

impl CredentialMetrics {
    pub(super) fn new(registry: &Registry) -> Result<Self, Error> {
        // Vectors without labels, since plain gauges cannot be absent.
        let gauge = |name, help| IntGaugeVec::new(Opts::new(name, help), &[]);
        let metrics = Self {
            expiration: gauge(
                "agent_registry_certificate_expiration_timestamp_seconds",
                "Time at which the TLS certificate of this server expires, in Unix seconds",
            )?,
            last_reload_successful: gauge(
                "agent_registry_credentials_last_reload_successful",
                "Whether the tokens file and the TLS files could be used when they were last loaded",
            )?,
        };
        for gauges in [&metrics.expiration, &metrics.last_reload_successful] {
            registry.register(Box::new(gauges.clone()))?;
        }
        Ok(metrics)
    }

    /// Records when the certificate expires, if known.
    pub(crate) fn set_expiration(&self, expiration: Option<Timestamp>) {
        self.expiration.reset();
        if let Some(expiration) = expiration {
            self.expiration.with_label_values::<&str>(&[]).set(expiration.unix_millis() / 1_000);
        }
    }

    /// Records whether the files could be used.
    pub(crate) fn set_last_reload(&self, is_successful: bool) {
        self.last_reload_successful.with_label_values::<&str>(&[]).set(is_successful.into());
    }
}
