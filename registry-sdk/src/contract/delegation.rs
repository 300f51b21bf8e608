//! The headers of a delegated task.

/// A request header: the same key in all attempts of one task, so that an agent can tell a repetition
/// (draft-ietf-httpapi-idempotency-key-header).
pub const IDEMPOTENCY_KEY_HEADER: &str = "idempotency-key";

/// A request header: the number of the attempt, from 1.
pub const ATTEMPT_HEADER: &str = "delegation-attempt";

/// A request header: after how many seconds nobody waits for the response any more.
pub const TIME_LEFT_HEADER: &str = "delegation-time-left-seconds";

/// Writes an idempotency key as the header's value: a string of structured fields (RFC 9651, section 3.3.3). `None` if
/// it has other characters than visible ASCII and spaces, or is empty.
#[must_use]
pub fn idempotency_key_value(key: &str) -> Option<String> {
    let is_valid = !key.is_empty() && key.bytes().all(|byte| matches!(byte, b' '..=b'~'));
    is_valid.then(|| format!("\"{}\"", key.replace('\\', "\\\\").replace('"', "\\\"")))
}

/// Reads an idempotency key from the header's value. A key without quotes is taken as it is, because many clients send one.
/// `None` if the value is neither.
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
            // Parameters, which mean nothing here, may follow.
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
