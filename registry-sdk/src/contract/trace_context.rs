//! The header that names the trace of a request (W3C Trace Context).

use std::ops::Range;

/// Request header with the trace of the request and the span in which it was sent (<https://www.w3.org/TR/trace-context/>).
pub const TRACEPARENT_HEADER: &str = "traceparent";

/// Returns the trace id of a `traceparent`: 32 lower-case hexadecimal digits.
///
/// Returns `None` if the value is invalid. Of later versions, the fields of version 00 are read, as the specification requires.
#[must_use]
pub fn trace_id(traceparent: &str) -> Option<&str> {
    let value = traceparent.trim_matches([' ', '\t']);
    let (version, trace_id) = (hex(value, 0..2)?, hex(value, 3..35)?);
    let (parent_id, _flags) = (hex(value, 36..52)?, hex(value, 53..55)?);
    let has_dashes = [2, 35, 52].iter().all(|index| value.as_bytes()[*index] == b'-');
    let rest = &value[55..];
    let may_follow = match version {
        "ff" => false,
        "00" => rest.is_empty(),
        _ => rest.is_empty() || rest.starts_with('-'),
    };
    (has_dashes && may_follow && !is_zero(trace_id) && !is_zero(parent_id)).then_some(trace_id)
}

fn hex(value: &str, range: Range<usize>) -> Option<&str> {
    value.get(range).filter(|field| field.bytes().all(|digit| matches!(digit, b'0'..=b'9' | b'a'..=b'f')))
}

fn is_zero(id: &str) -> bool {
    id.bytes().all(|digit| digit == b'0')
}

#[cfg(test)]
mod tests {
    use super::*;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
    const SPAN: &str = "b7ad6b7169203331";

    #[test]
    fn valid_headers_have_a_trace_id() {
        for value in [
            format!("00-{TRACE}-{SPAN}-01"),
            format!("00-{TRACE}-{SPAN}-ff"),
            format!(" \t00-{TRACE}-{SPAN}-00 "),
            format!("01-{TRACE}-{SPAN}-01"),
            format!("cc-{TRACE}-{SPAN}-01-what-comes"),
            format!("fe-{TRACE}-{SPAN}-01-"),
        ] {
            assert_eq!(trace_id(&value), Some(TRACE), "{value:?}");
        }
    }

    #[test]
    fn invalid_headers_have_no_trace_id() {
        let (no_trace, no_span) = ("0".repeat(32), "0".repeat(16));
        for value in [
            String::new(),
            "00".to_owned(),
            TRACE.to_owned(),
            format!("00-{TRACE}-{SPAN}"),
            format!("00-{TRACE}-{SPAN}-"),
            format!("00-{TRACE}-{SPAN}-1"),
            format!("00-{TRACE}-{SPAN}-01-"),
            format!("00-{TRACE}-{SPAN}-01-more"),
            format!("00-{TRACE}-{SPAN}-01."),
            format!("cc-{TRACE}-{SPAN}-01.more"),
            format!("cc-{TRACE}-{SPAN}-011"),
            format!("ff-{TRACE}-{SPAN}-01"),
            format!("0-{TRACE}-{SPAN}-01"),
            format!("000-{TRACE}-{SPAN}-01"),
            format!("0A-{TRACE}-{SPAN}-01"),
            format!("00_{TRACE}-{SPAN}-01"),
            format!("00-{}-{SPAN}-01", &TRACE[1..]),
            format!("00-{TRACE}0-{SPAN}-01"),
            format!("00-{TRACE}-{}-01", &SPAN[1..]),
            format!("00-{}-{SPAN}-01", TRACE.to_uppercase()),
            format!("00-{TRACE}-{}-01", SPAN.to_uppercase()),
            format!("00-{TRACE}-{SPAN}-0A"),
            format!("00-{no_trace}-{SPAN}-01"),
            format!("00-{TRACE}-{no_span}-01"),
            format!("00-{TRACE}-{SPAN}-01,00-{TRACE}-{SPAN}-01"),
            format!("00-{}-{SPAN}-01", "ä".repeat(16)),
        ] {
            assert_eq!(trace_id(&value), None, "{value:?}");
        }
    }
}
