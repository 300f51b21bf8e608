//! Fields of the text log format.

use std::fmt::{self, Debug};

use tracing::field::Field;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::{Writer, debug_fn};

/// Formats each field as `name=value`.
///
/// Values with blanks or control characters are quoted, so that a line can be split into fields, and no value
/// can pass for another field or line.
pub(crate) fn fields() -> impl for<'writer> FormatFields<'writer> + Send + Sync + 'static {
    debug_fn(write_field).delimited(" ")
}

fn write_field(writer: &mut Writer<'_>, field: &Field, value: &dyn Debug) -> fmt::Result {
    let value = format!("{value:?}");
    if field.name() == "message" {
        return value.chars().try_for_each(|character| match character {
            character if character.is_control() => write!(writer, "{}", character.escape_default()),
            character => writer.write_char(character),
        });
    }
    let is_quoted = value.len() > 1 && value.starts_with('"') && value.ends_with('"');
    if !is_quoted && value.contains(|character: char| character.is_whitespace() || character.is_control()) {
        write!(writer, "{field}={value:?}")
    } else {
        write!(writer, "{field}={value}")
    }
}
