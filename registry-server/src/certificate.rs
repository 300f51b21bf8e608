//! Information read from a certificate.

use registry_sdk::contract::Timestamp;
use rustls::pki_types::CertificateDer;
use x509_parser::parse_x509_certificate;
use x509_parser::time::ASN1Time;

/// The subject and validity period of a certificate.
#[derive(Debug)]
pub(crate) struct CertificateInfo {
    /// The subject, or the serial number if the subject is empty.
    pub(crate) subject: String,
    valid_from: Timestamp,
    pub(crate) valid_until: Timestamp,
}

impl CertificateInfo {
    /// Reads a certificate. `None` if it cannot be parsed.
    pub(crate) fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = parse_x509_certificate(certificate).ok()?;
        let subject = match parsed.subject().to_string() {
            subject if subject.is_empty() => format!("serial number {}", parsed.raw_serial_as_string()),
            subject => subject,
        };
        let [valid_from, valid_until] =
            [parsed.validity().not_before, parsed.validity().not_after].map(timestamp);
        Some(Self { subject, valid_from, valid_until })
    }

    /// Logs a warning if clients reject the certificate at `now`.
    pub(crate) fn warn_if_invalid(&self, file: &str, now: Timestamp) {
        let Self { subject, valid_from, valid_until } = self;
        if now < *valid_from {
            tracing::warn!(
                file,
                subject,
                %valid_from,
                "the TLS certificate is not valid yet, so clients reject it: replace it, or check the clock of this host"
            );
        } else if *valid_until < now {
            tracing::warn!(
                file,
                subject,
                %valid_until,
                "the TLS certificate has expired, so clients reject it: replace it with a valid one"
            );
        }
    }
}

fn timestamp(time: ASN1Time) -> Timestamp {
    Timestamp::from_unix_millis(time.timestamp().saturating_mul(1_000))
}
