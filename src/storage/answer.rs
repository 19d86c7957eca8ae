//! What a bucket's refusal means for us. Amazon, Cloudflare and Google speak of the same things with the same words.

use comfyd_actors::ports::object_store::ObjectError;

/// Reads a status and the service's own code and words for it. Says what to do where somebody can do something; `place` names the bucket.
#[must_use]
pub fn fault(status: u16, code: &str, words: &str, place: &str) -> ObjectError {
    let said = if code.is_empty() { format!("{status} {words}") } else { format!("{code}: {words}") };
    let said = said.trim_end_matches([' ', ':']);
    match (status, code) {
        (_, "NoSuchBucket") => ObjectError::Misconfigured(format!(
            "there is no {place}: create it, or correct its name, account or endpoint ({said})"
        )),
        (_, "RequestTimeTooSkewed") => ObjectError::Misconfigured(format!(
            "this machine's clock is wrong, so that {place} refuses its signatures: set it ({said})"
        )),
        (301 | 307 | 308, _)
        | (_, "AuthorizationHeaderMalformed" | "PermanentRedirect" | "IllegalLocationConstraintException") => {
            ObjectError::Misconfigured(format!(
                "{place} is in another region or at another address: correct them ({said})"
            ))
        }
        (401 | 403, _) | (_, "ExpiredToken" | "InvalidToken" | "TokenRefreshRequired" | "InvalidAccessKeyId") => {
            ObjectError::Misconfigured(format!(
                "the credentials for {place} are refused: renew them, and see that they may write, read and delete there ({said})"
            ))
        }
        (501, _) | (_, "NotImplemented") => ObjectError::Misconfigured(format!(
            "{place} does not know a request that is needed; if that is `If-None-Match`, set if_none_match to false ({said})"
        )),
        (404, _) => ObjectError::NotFound,
        (409 | 412, _) => ObjectError::Taken,
        // Something happened on the way, whatever class the service files it under.
        (_, "BadDigest" | "IncompleteBody" | "RequestTimeout" | "XAmzContentSHA256Mismatch") => {
            ObjectError::Unavailable(format!("{place}: {said}"))
        }
        (408 | 425 | 429 | 500.., _) => ObjectError::Unavailable(format!("{place}: {said}")),
        _ => ObjectError::Refused(format!("{place} does not take it ({said})")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_can_be_mended_is_told_from_what_passes_and_what_stays() {
        for (status, code, kind) in [
            (404, "NoSuchBucket", "create it"),
            (404, "NoSuchKey", "no such object"),
            (403, "RequestTimeTooSkewed", "clock"),
            (400, "ExpiredToken", "renew"),
            (403, "SignatureDoesNotMatch", "renew"),
            (401, "", "renew"),
            (301, "PermanentRedirect", "region"),
            (501, "NotImplemented", "if_none_match"),
            (400, "BadDigest", "unavailable"),
            (503, "SlowDown", "unavailable"),
            (500, "InternalError", "unavailable"),
            (429, "", "unavailable"),
            (412, "PreconditionFailed", "other bytes"),
            (400, "EntityTooLarge", "does not take it"),
        ] {
            let said = fault(status, code, "words", "the bucket b").to_string();
            assert!(said.contains(kind), "{status} {code}: {said}");
        }
    }
}
