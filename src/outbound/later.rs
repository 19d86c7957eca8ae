//! How long who was asked wants to be left alone.

use std::time::Duration;

use comfyd_actors::domain::time::Timestamp;
use reqwest::header::{HeaderMap, RETRY_AFTER};
use time::{OffsetDateTime, format_description::well_known::Rfc2822};

/// What `Retry-After` says: seconds, or a date.
#[must_use]
pub fn retry_after(headers: &HeaderMap, now: Timestamp) -> Option<Duration> {
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    if let Ok(seconds) = text.parse() {
        return Some(Duration::from_secs(seconds));
    }
    let date = OffsetDateTime::parse(text, &Rfc2822).ok()?;
    Some(Timestamp(date.unix_timestamp().saturating_mul(1_000)).since(now))
}

#[cfg(test)]
mod tests {
    use reqwest::header::HeaderValue;

    use super::*;

    #[test]
    fn a_host_says_when_in_seconds_or_by_a_date() {
        let now = Timestamp(1_445_412_420_000);
        let after = |text: &str| {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, HeaderValue::from_str(text).unwrap())]);
            retry_after(&headers, now)
        };
        assert_eq!(after("120"), Some(Duration::from_secs(120)));
        assert_eq!(after("Wed, 21 Oct 2015 07:28:00 GMT"), Some(Duration::from_secs(60)));
        assert_eq!(after("Wed, 21 Oct 2015 07:26:00 GMT"), Some(Duration::ZERO));
        for nonsense in ["", "soon", "-1", "1e9", "99999999999999999999"] {
            assert_eq!(after(nonsense), None, "{nonsense}");
        }
    }
}
