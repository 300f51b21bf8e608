//! Times and durations on the wire.

use std::fmt;
use std::str::FromStr;
use std::time::{Duration, SystemTime};

use chrono::{DateTime, Datelike, NaiveDateTime, SecondsFormat, Timelike, Utc};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// A moment in UTC, to the millisecond, written as RFC 3339 (`2026-11-24T09:30:00.123Z`).
///
/// Reading accepts more: any offset, and a time without an offset, which counts as UTC because Python services often send such
/// times.
///
/// ```
/// use registry_sdk::contract::Timestamp;
/// let time: Timestamp = "2026-11-24T10:30:00.123456+01:00".parse()?;
/// assert_eq!(time.to_string(), "2026-11-24T09:30:00.123Z");
/// # Ok::<(), registry_sdk::contract::ParseTimestampError>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp {
    /// Milliseconds since the Unix epoch, within chrono's range. A number, because most timestamps are compared and never
    /// written.
    millis: i64,
}

impl Timestamp {
    /// Creates a timestamp from milliseconds since the Unix epoch.
    ///
    /// A value beyond chrono's range (about 262,000 years) becomes the nearest end of that range.
    #[must_use]
    pub fn from_unix_millis(millis: i64) -> Self {
        const FIRST: i64 = DateTime::<Utc>::MIN_UTC.timestamp_millis();
        const LAST: i64 = DateTime::<Utc>::MAX_UTC.timestamp_millis();
        Self { millis: millis.clamp(FIRST, LAST) }
    }

    /// Returns the milliseconds since the Unix epoch.
    #[must_use]
    pub fn unix_millis(self) -> i64 {
        self.millis
    }

    fn date_time(self) -> DateTime<Utc> {
        DateTime::from_timestamp_millis(self.millis).unwrap_or_default()
    }

    /// Adds a duration. A result beyond the range becomes the last timestamp.
    ///
    /// ```
    /// use std::time::Duration;
    /// use registry_sdk::contract::Timestamp;
    /// let time = Timestamp::from_unix_millis(5_000);
    /// assert_eq!(time.saturating_add(Duration::from_secs(2)), Timestamp::from_unix_millis(7_000));
    /// assert_eq!(time.saturating_sub(Duration::from_secs(2)), Timestamp::from_unix_millis(3_000));
    /// ```
    #[must_use]
    pub fn saturating_add(self, duration: Duration) -> Self {
        let millis = i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        Self::from_unix_millis(self.unix_millis().saturating_add(millis))
    }

    /// Subtracts a duration. A result beyond the range becomes the first timestamp.
    #[must_use]
    pub fn saturating_sub(self, duration: Duration) -> Self {
        let millis = i64::try_from(duration.as_millis()).unwrap_or(i64::MAX);
        Self::from_unix_millis(self.unix_millis().saturating_sub(millis))
    }

    /// Returns the time since `earlier`; zero if this is not after it.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(u64::try_from(self.unix_millis() - earlier.unix_millis()).unwrap_or(0))
    }
}

#[cfg(feature = "openapi")]
impl utoipa::PartialSchema for Timestamp {
    fn schema() -> utoipa::openapi::RefOr<utoipa::openapi::schema::Schema> {
        use utoipa::openapi::schema::{KnownFormat, ObjectBuilder, SchemaFormat, Type};
        let date_time = SchemaFormat::KnownFormat(KnownFormat::DateTime);
        ObjectBuilder::new().schema_type(Type::String).format(Some(date_time)).into()
    }
}

#[cfg(feature = "openapi")]
impl utoipa::ToSchema for Timestamp {}

impl From<SystemTime> for Timestamp {
    fn from(time: SystemTime) -> Self {
        Self::from_unix_millis(DateTime::<Utc>::from(time).timestamp_millis())
    }
}

impl From<Timestamp> for SystemTime {
    fn from(time: Timestamp) -> Self {
        time.date_time().into()
    }
}

impl Timestamp {
    /// Formats the time for the wire. Every response has several times, and formatting one with chrono takes as long as the
    /// rest of the response to a heartbeat. Returns `None` unless the year has four digits.
    fn to_ascii(self) -> Option<[u8; 24]> {
        let mut text = *b"0000-00-00T00:00:00.000Z";
        let mut put = |from: usize, to: usize, mut number: u32| {
            for digit in text.get_mut(from..to).unwrap_or_default().iter_mut().rev() {
                // A single digit fits.
                *digit += (number % 10) as u8;
                number /= 10;
            }
        };
        let date_time = self.date_time();
        let (date, time) = (date_time.date_naive(), date_time.time());
        put(0, 4, u32::try_from(date.year()).ok().filter(|year| *year <= 9_999)?);
        put(5, 7, date.month());
        put(8, 10, date.day());
        put(11, 13, time.hour());
        put(14, 16, time.minute());
        put(17, 19, time.second());
        put(20, 23, date_time.timestamp_subsec_millis());
        Some(text)
    }
}

impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.to_ascii() {
            Some(text) => f.write_str(str::from_utf8(&text).unwrap_or_default()),
            None => f.write_str(&self.date_time().to_rfc3339_opts(SecondsFormat::Millis, true)),
        }
    }
}

/// Shows the text and not the number of milliseconds, which people cannot read.
impl fmt::Debug for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Timestamp({self})")
    }
}

/// A text that is not a [`Timestamp`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not an RFC 3339 time: {why}")]
pub struct ParseTimestampError {
    text: String,
    why: String,
}

impl FromStr for Timestamp {
    type Err = ParseTimestampError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let with_offset = DateTime::parse_from_rfc3339(text).map(|time| time.timestamp_millis());
        let millis = with_offset.or_else(|error| {
            let naive = text
                .parse::<NaiveDateTime>()
                .map_err(|_| ParseTimestampError { text: text.to_owned(), why: error.to_string() })?;
            Ok(naive.and_utc().timestamp_millis())
        })?;
        Ok(Self::from_unix_millis(millis))
    }
}

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.to_ascii().as_ref().and_then(|text| str::from_utf8(text).ok()) {
            Some(text) => serializer.serialize_str(text),
            None => serializer.collect_str(self),
        }
    }
}

impl<'de> Deserialize<'de> for Timestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

/// A duration as a number of seconds, for `#[serde(with = …)]`. Whole seconds are written without a fraction.
pub(crate) mod seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(crate) fn serialize<S: Serializer>(value: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        if value.subsec_nanos() == 0 {
            serializer.serialize_u64(value.as_secs())
        } else {
            serializer.serialize_f64(value.as_secs_f64())
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        let seconds = f64::deserialize(deserializer)?;
        let wrong = |_| {
            de::Error::custom(format_args!(
                "{seconds} is not a valid number of seconds: it must be 0 or more, and not too large"
            ))
        };
        let read = Duration::try_from_secs_f64(seconds).map_err(wrong)?;
        // A positive duration stays positive.
        Ok(if seconds > 0.0 { read.max(Duration::from_nanos(1)) } else { read })
    }
}

/// The same for a field that may be missing or `null`.
pub(crate) mod optional_seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    #[derive(Deserialize)]
    struct Seconds(#[serde(with = "crate::contract::time::seconds")] Duration);

    #[expect(clippy::ref_option, reason = "serde passes the field by reference")]
    pub(crate) fn serialize<S: Serializer>(
        value: &Option<Duration>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        match value {
            Some(duration) => crate::contract::time::seconds::serialize(duration, serializer),
            None => serializer.serialize_none(),
        }
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Duration>, D::Error> {
        Ok(Option::<Seconds>::deserialize(deserializer)?.map(|Seconds(duration)| duration))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_of_other_services_are_read() {
        for text in [
            "2026-11-24T09:30:00.123Z",
            "2026-11-24T09:30:00.123456+00:00",
            "2026-11-24T10:30:00.123+01:00",
            "2026-11-24T09:30:00.123456",
        ] {
            let time: Timestamp = text.parse().unwrap();
            assert_eq!(time.to_string(), "2026-11-24T09:30:00.123Z", "{text}");
            assert_eq!(format!("{time:?}"), "Timestamp(2026-11-24T09:30:00.123Z)", "{text}");
        }
        assert!("yesterday".parse::<Timestamp>().is_err());
    }

    #[test]
    fn all_times_are_formatted_like_chrono_formats_them() {
        let far =
            [i64::MIN, -62_167_219_200_001, -62_167_219_200_000, 253_402_300_799_999, 253_402_300_800_000];
        let near = (0..2_000).map(|number| number * 97_654_321_987 - 90_000_000_000_000);
        for millis in far.into_iter().chain(near).chain([0, 951_782_400_000, i64::MAX]) {
            let time = Timestamp::from_unix_millis(millis);
            assert_eq!(time.to_string(), time.date_time().to_rfc3339_opts(SecondsFormat::Millis, true));
            assert_eq!(serde_json::to_string(&time).unwrap(), format!("\"{time}\""));
        }
    }

    #[test]
    fn whole_seconds_are_written_without_a_fraction() {
        #[derive(Serialize)]
        struct Probe(#[serde(with = "seconds")] Duration);
        let text = |millis| serde_json::to_string(&Probe(Duration::from_millis(millis))).unwrap();
        assert_eq!(text(60_000), "60");
        assert_eq!(text(2_500), "2.5");
    }

    #[test]
    fn timestamp_beyond_the_range_becomes_the_nearest_end() {
        assert!(Timestamp::from_unix_millis(i64::MAX) > Timestamp::from_unix_millis(0));
        assert!(Timestamp::from_unix_millis(i64::MIN) < Timestamp::from_unix_millis(0));
    }
}
