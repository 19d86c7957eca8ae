//! Values as people write them: sizes, headers, URLs with secrets inside.

use std::fmt;

use url::Url;

/// Text that must never be printed: `Debug` hides it, and there is no `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Hides the text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text, for the one place that sends it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// A URL that may hold a password. Prints without it.
#[derive(Clone, PartialEq, Eq)]
pub struct SecretUrl(String);

impl SecretUrl {
    /// Hides the password of the URL, if it has one.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The whole URL, for the one place that connects to it.
    #[must_use]
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&redact(&self.0))
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text with everything between `://` and `@` hidden, and everything after a `?`: tokens like to sit there. Works on
/// text that is no URL too, because faulty values are printed as well.
#[must_use]
pub fn redact(text: &str) -> String {
    let (body, query) = text.split_once('?').map_or((text, ""), |(body, _)| (body, "?***"));
    let shown = match (body.find("://"), body.rfind('@')) {
        (Some(scheme), Some(at)) if scheme < at => format!("{}***{}", &body[..scheme + 3], &body[at..]),
        (None, Some(at)) => format!("***{}", &body[at..]),
        _ => body.to_owned(),
    };
    shown + query
}

/// The base URL of a ComfyUI server: http or https, no query, no trailing slash.
///
/// # Errors
/// What is wrong with it, in words, without the text itself.
pub fn backend_url(text: &str) -> Result<SecretUrl, String> {
    let url =
        Url::parse(text).map_err(|error| format!("{error}; a ComfyUI server is written like http://127.0.0.1:8188"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!("the scheme must be http or https, not {}", url.scheme()));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("a server's address has no `?` or `#` part".to_owned());
    }
    Ok(SecretUrl::new(url.as_str().trim_end_matches('/')))
}

/// A web origin as browsers send it: scheme, host, port and nothing else.
///
/// # Errors
/// What is wrong with it, in words.
pub fn origin(text: &str) -> Result<String, String> {
    if text == "*" {
        return Err("`*` would let every web page in the world use this service; list exact origins".to_owned());
    }
    let url =
        Url::parse(text).map_err(|error| format!("{error}; an origin is written like https://app.example.org"))?;
    let exact = url.origin().ascii_serialization();
    if !matches!(url.scheme(), "http" | "https") || exact != text.trim_end_matches('/') {
        return Err(format!("an origin is scheme, host and port only, for example {exact}"));
    }
    Ok(exact)
}

/// The address a client reaches us by: http or https, no query, no trailing slash.
///
/// # Errors
/// What is wrong with it, in words.
pub fn public_url(text: &str) -> Result<String, String> {
    backend_url(text)
        .map(|url| url.expose().to_owned())
        .map_err(|error| error.replace("a ComfyUI server", "an address"))
}

/// Bytes, from "32MiB", "64 KB", "1024" or a plain number.
///
/// # Errors
/// What is wrong with it, in words.
pub fn size(text: &str) -> Result<u64, String> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    let factor: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "kb" => 1_000,
        "kib" | "k" => 1 << 10,
        "mb" => 1_000_000,
        "mib" | "m" => 1 << 20,
        "gb" => 1_000_000_000,
        "gib" | "g" => 1 << 30,
        _ => return Err("a size is a whole number with B, KB, KiB, MB, MiB, GB or GiB, for example 32MiB".to_owned()),
    };
    let number: u64 = number.parse().map_err(|_| "a size starts with a whole number, for example 32MiB".to_owned())?;
    number.checked_mul(factor).ok_or_else(|| "that is more bytes than can be counted".to_owned())
}

/// Headers written as `Name: value; Other: value` or as a JSON object.
///
/// # Errors
/// What is wrong, in words, never with a value.
pub fn headers(text: &str) -> Result<Vec<(String, Secret)>, String> {
    let pairs: Vec<(String, String)> = if text.trim_start().starts_with('{') {
        let object: std::collections::BTreeMap<String, String> = serde_json::from_str(text)
            .map_err(|error| format!("not a JSON object of texts (column {})", error.column()))?;
        object.into_iter().collect()
    } else {
        text.split(';').map(str::trim).filter(|pair| !pair.is_empty()).map(header_pair).collect::<Result<_, _>>()?
    };
    pairs.into_iter().map(|(name, value)| header(&name, &value)).collect()
}

fn header_pair(pair: &str) -> Result<(String, String), String> {
    let (name, value) = pair.split_once(':').ok_or("each header is written `Name: value`, several separated by `;`")?;
    Ok((name.trim().to_owned(), value.trim().to_owned()))
}

/// One header, checked to be sendable.
///
/// # Errors
/// What is wrong, in words, never with the value.
pub fn header(name: &str, value: &str) -> Result<(String, Secret), String> {
    axum::http::HeaderName::try_from(name).map_err(|_| format!("`{name}` is no header name"))?;
    axum::http::HeaderValue::try_from(value)
        .map_err(|_| format!("the value of header {name} has characters that cannot be sent"))?;
    Ok((name.to_owned(), Secret::new(value)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in
            [("0", 0), ("1024", 1024), ("32MiB", 32 << 20), ("64 kib", 64 << 10), ("10GB", 10_000_000_000), ("5 B", 5)]
        {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for bad in ["", "MiB", "-1", "1.5MiB", "3 apples", "99999999999999GiB"] {
            assert!(size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn secrets_do_not_print() {
        for (text, shown) in [
            ("http://u:pw@h:1/x", "http://***@h:1/x"),
            ("http://u:p@w@h", "http://***@h"),
            ("u:pw@h", "***@h"),
            ("http://h/x?token=pw", "http://h/x?***"),
            ("http://h", "http://h"),
        ] {
            assert_eq!(redact(text), shown);
            assert_eq!(format!("{:?}", SecretUrl::new(text)), shown);
        }
        assert_eq!(format!("{:?}", Secret::new("pw")), "***");
    }

    #[test]
    fn origins_are_exact() {
        assert_eq!(origin("https://a.example").unwrap(), "https://a.example");
        assert_eq!(origin("http://localhost:3000/").unwrap(), "http://localhost:3000");
        for bad in ["*", "a.example", "https://a.example/path", "ftp://a", "https://u@a.example", ""] {
            assert!(origin(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn headers_come_as_pairs_or_json() {
        let names = |text: &str| headers(text).unwrap().into_iter().map(|(n, v)| (n, v.0)).collect::<Vec<_>>();
        let two = vec![("A".to_owned(), "b c".to_owned()), ("X-Y".to_owned(), "z:1".to_owned())];
        assert_eq!(names("A: b c; X-Y: z:1;"), two);
        assert_eq!(names(r#"{"A": "b c", "X-Y": "z:1"}"#), two);
        for bad in ["nonsense-pw", "a b: pw", "A: p\nw", r#"{"A": 1}"#, "{pw"] {
            let fault = headers(bad).unwrap_err();
            assert!(!fault.contains("pw"), "{fault}");
        }
    }
}
