//! The headers of a delegated task.

/// Request header with the key that all attempts of one task share, so that an agent can recognize a repetition
/// (draft-ietf-httpapi-idempotency-key-header).
pub const IDEMPOTENCY_KEY_HEADER: &str = "idempotency-key";

/// Request header with the number of the attempt, starting at 1.
pub const ATTEMPT_HEADER: &str = "delegation-attempt";

/// Request header with the number of seconds after which the caller stops waiting for the response.
pub const TIME_LEFT_HEADER: &str = "delegation-time-left-seconds";

/// Formats an idempotency key as the value of its header, a string as in RFC 9651, section 3.3.3.
///
/// Returns `None` if the key is empty or has characters other than visible ASCII and spaces.
///
/// ```
/// use registry_sdk::contract::{idempotency_key_value, parse_idempotency_key};
///
/// let value = idempotency_key_value("task-42").unwrap();
/// assert_eq!(value, "\"task-42\"");
/// assert_eq!(parse_idempotency_key(&value).as_deref(), Some("task-42"));
/// ```
#[must_use]
pub fn idempotency_key_value(key: &str) -> Option<String> {
    let is_valid = !key.is_empty() && key.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    is_valid.then(|| format!("\"{}\"", key.replace('\\', "\\\\").replace('"', "\\\"")))
}

/// Parses an idempotency key from the value of its header.
///
/// Also accepts a key without quotes, because many clients send one. Returns `None` if the value is invalid.
#[must_use]
pub fn parse_idempotency_key(value: &str) -> Option<String> {
    let value = value.trim_matches(' ');
    let Some(rest) = value.strip_prefix('"') else {
        let is_bare = !value.is_empty() && value.bytes().all(|byte| byte.is_ascii_graphic());
        return (is_bare && !value.contains('"')).then(|| value.to_owned());
    };
    let (mut key, mut bytes) = (String::new(), rest.chars());
    loop {
        match bytes.next()? {
            // Parameters may follow. They have no meaning here.
            '"' => {
                let rest = bytes.as_str().trim_start_matches(' ');
                return (!key.is_empty() && (rest.is_empty() || rest.starts_with(';'))).then_some(key);
            }
            '\\' => match bytes.next()? {
                escaped @ ('"' | '\\') => key.push(escaped),
                _ => return None,
            },
            letter @ ' '..='~' => key.push(letter),
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn idempotency_keys_survive_the_header() {
        for key in ["8e03978e-40d5-43dd-bc93-6894a57f9324", "a b", r#"say "hi""#, r"back\slash", "~"] {
            let value = idempotency_key_value(key).unwrap();
            assert_eq!(parse_idempotency_key(&value).as_deref(), Some(key), "{value}");
        }
        for key in ["", "zwölf", "line\nbreak", "tab\t", "\u{7f}"] {
            assert_eq!(idempotency_key_value(key), None, "{key:?}");
        }
    }

    #[test]
    fn idempotency_keys_of_other_clients_are_read() {
        let read = |value| parse_idempotency_key(value);
        assert_eq!(read("8e03978e").as_deref(), Some("8e03978e"));
        assert_eq!(read(r#" "a"  "#).as_deref(), Some("a"));
        assert_eq!(read(r#""a";version=1"#).as_deref(), Some("a"));
        for value in ["", "\"", "\"\"", "\"a", "a\"b", r#""a" b"#, r#""a\b""#, "two words", "\"zwölf\""] {
            assert_eq!(read(value), None, "{value:?}");
        }
    }
}
