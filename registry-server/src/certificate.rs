//! What a certificate says about itself.

use registry_sdk::contract::Timestamp;
use rustls::pki_types::CertificateDer;
use x509_parser::parse_x509_certificate;
use x509_parser::time::ASN1Time;

/// Subject and validity of a certificate.
#[derive(Debug)]
pub(crate) struct CertificateInfo {
    /// Subject, or the serial number if the subject is empty.
    pub(crate) subject: String,
    valid_from: Timestamp,
    pub(crate) valid_until: Timestamp,
}

impl CertificateInfo {
    /// Reads a certificate; `None` if it cannot be parsed.
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

    /// Warns if clients reject the certificate at this time.
    pub(crate) fn warn_if_invalid(&self, file: &str, now: Timestamp) {
        let Self { subject, valid_from, valid_until } = self;
        if now < *valid_from {
            tracing::warn!(
                file,
                subject,
                %valid_from,
                "the TLS certificate is not valid yet, and clients reject it: put a valid one into the file, or check the clock"
            );
        } else if *valid_until < now {
            tracing::warn!(
                file,
                subject,
                %valid_until,
                "the TLS certificate has expired, and clients reject it: put a valid one into the file"
            );
        }
    }
}

fn timestamp(time: ASN1Time) -> Timestamp {
    Timestamp::from_unix_millis(time.timestamp().saturating_mul(1_000))
}
