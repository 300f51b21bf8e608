//! The guarantees of the types.

use registry_sdk::TaskError;

/// Errors of many types in one task. Boxed errors do not implement `Error`, so they need a conversion.
#[test]
fn errors_become_task_errors_with_a_question_mark() {
    fn task(text: &str) -> Result<u32, TaskError> {
        let boxed: Result<(), Box<dyn std::error::Error + Send + Sync>> = Ok(());
        boxed.map_err(TaskError::transient)?;
        let number: u32 = std::str::from_utf8(text.as_bytes())?.parse()?;
        std::io::Error::other("")
            .to_string()
            .is_empty()
            .then_some(())
            .ok_or_else(|| std::io::Error::other("odd"))?;
        Ok(number)
    }
    assert_eq!(task("7").unwrap(), 7);
    assert_eq!(task("seven").unwrap_err().to_string(), "invalid digit found in string");
}

/// A delegation's error can be used like any error.
#[test]
fn errors_of_delegation_are_errors_like_any_other() {
    fn is_error<T: std::error::Error + Send + Sync + Clone + 'static>() {}
    is_error::<registry_sdk::discovery::DelegateError>();
    is_error::<registry_sdk::discovery::SelectError>();
    is_error::<registry_sdk::discovery::HttpTaskError>();
    is_error::<registry_sdk::discovery::AttemptTimeout>();
}
