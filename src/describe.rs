//! Errors of the HTTP client in words.

use std::error::Error;

/// An error with its causes, without the address, which may hold secrets.
#[must_use]
pub fn describe(error: reqwest::Error) -> String {
    let timed_out = error.is_timeout();
    let error = error.without_url();
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let words = inner.to_string();
        if !text.contains(&words) {
            text.push_str(": ");
            text.push_str(&words);
        }
        cause = inner.source();
    }
    if timed_out { format!("no answer in time ({text})") } else { text }
}
