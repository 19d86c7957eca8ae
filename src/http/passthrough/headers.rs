//! Which headers go through.
//!
//! Not those of one connection (RFC 9110, 7.6.1), not those that are between the client and us, and not those a browser adds about our
//! pages: ComfyUI refuses requests with a foreign `Origin` (PROTOCOL.md 2).

use axum::http::{HeaderMap, HeaderName, HeaderValue, header};

/// Of one connection.
const HOP_BY_HOP: [&str; 9] = [
    "connection",
    "keep-alive",
    "proxy-authenticate",
    "proxy-authorization",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];
/// Between the client and us: where we are, who the client is to us, what led it here.
const OURS: [&str; 12] = [
    "authorization",
    "comfyd-backend",
    "cookie",
    "expect",
    "forwarded",
    "host",
    "origin",
    "referer",
    "via",
    "x-api-key",
    "x-real-ip",
    "x-request-id",
];
const OUR_FAMILIES: [&str; 4] = ["access-control-", "sec-fetch-", "sec-websocket-", "x-forwarded-"];
/// Between the server, or a proxy before it, and us. Who may call us from a browser is our own setting.
const THEIRS: [&str; 6] =
    ["alt-svc", "set-cookie", "strict-transport-security", "www-authenticate", "x-request-id", "x-powered-by"];
const THEIR_FAMILIES: [&str; 1] = ["access-control-"];

/// The headers of a client that the server may see.
pub fn of_request(headers: &HeaderMap) -> HeaderMap {
    filtered(headers, &OURS, &OUR_FAMILIES)
}

/// The headers of the server that the client may see; `root` is what leads to the server's root through us.
pub fn of_response(headers: &HeaderMap, root: &str) -> HeaderMap {
    let mut passed = filtered(headers, &THEIRS, &THEIR_FAMILIES);
    let place = passed.get(header::LOCATION).and_then(|place| place.to_str().ok());
    // One that is a path is on the same server; all others are left as they are.
    let place = place.filter(|place| place.starts_with('/') && !place.starts_with("//"));
    if let Some(Ok(place)) = place.map(|place| HeaderValue::try_from(format!("{root}{place}"))) {
        passed.insert(header::LOCATION, place);
    }
    passed
}

fn filtered(headers: &HeaderMap, names: &[&str], families: &[&str]) -> HeaderMap {
    let of_connection = named_by_connection(headers);
    let passes = |name: &HeaderName| {
        let text = name.as_str();
        !HOP_BY_HOP.contains(&text)
            && !names.contains(&text)
            && !families.iter().any(|family| text.starts_with(family))
            && !of_connection.contains(name)
    };
    headers.iter().filter(|(name, _)| passes(name)).map(|(name, value)| (name.clone(), value.clone())).collect()
}

/// `Connection` lists more headers that are for this connection only.
fn named_by_connection(headers: &HeaderMap) -> Vec<HeaderName> {
    let values = headers.get_all(header::CONNECTION).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).filter_map(|name| name.trim().parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn a_request_keeps_what_is_about_the_request() {
        let kept = [
            ("accept", "*/*"),
            ("accept-encoding", "gzip"),
            ("comfy-user", "me"),
            ("content-length", "5"),
            ("content-type", "multipart/form-data; boundary=x"),
            ("if-none-match", "\"a\""),
            ("range", "bytes=0-"),
            ("user-agent", "x"),
        ];
        let dropped = [
            ("authorization", "Bearer ours"),
            ("comfyd-backend", "http://a"),
            ("connection", "keep-alive, X-Mine"),
            ("cookie", "a=b"),
            ("expect", "100-continue"),
            ("host", "ours"),
            ("keep-alive", "5"),
            ("origin", "http://ours"),
            ("proxy-authorization", "x"),
            ("referer", "http://ours/page"),
            ("sec-fetch-site", "cross-site"),
            ("sec-websocket-key", "x"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "websocket"),
            ("x-forwarded-for", "1.2.3.4"),
            ("x-mine", "x"),
        ];
        let mut all = map(&kept);
        all.extend(map(&dropped));
        assert_eq!(of_request(&all), map(&kept));
    }

    #[test]
    fn an_answer_keeps_what_is_about_the_answer() {
        let kept = [("content-type", "image/png"), ("content-length", "5"), ("etag", "\"a\""), ("content-range", "x")];
        let dropped = [
            ("access-control-allow-origin", "*"),
            ("connection", "close"),
            ("set-cookie", "login=x"),
            ("transfer-encoding", "chunked"),
            ("www-authenticate", "Basic"),
        ];
        let mut all = map(&kept);
        all.extend(map(&dropped));
        assert_eq!(of_response(&all, "/x"), map(&kept));
    }

    #[test]
    fn a_place_on_the_server_is_a_place_below_us() {
        for (told, passed) in [
            ("/view?a=b", "/api/comfyui/view?a=b"),
            ("https://else.where/x", "https://else.where/x"),
            ("//else/x", "//else/x"),
        ] {
            let answer = of_response(&map(&[("location", told)]), "/api/comfyui");
            assert_eq!(answer[header::LOCATION], passed);
        }
    }
}
