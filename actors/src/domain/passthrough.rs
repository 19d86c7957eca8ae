//! Which requests of ComfyUI's own API go through us as they are.
//!
//! A ComfyUI server has no users: whoever speaks to it may end everybody's prompts. So what reads or adds goes through, and what ends,
//! changes or deletes something does not, unless the operator allows it. A request is judged by the path that will be sent, after
//! decoding, so that no spelling of it gets around the list; what is not on the list does not go through.

use std::{fmt, str::FromStr};

/// What goes through: everything of ComfyUI 0.33 that reads or adds, without the `/api` that may stand before it. Not the web page,
/// its settings and its users' files, nor the server's log and folders.
const OPEN: &[&str] = &[
    "GET /embeddings",
    "GET /experiment/models",
    "GET /experiment/models/*",
    "GET /extensions",
    "GET /features",
    "GET /global_subgraphs",
    "GET /global_subgraphs/*",
    "GET /history",
    "GET /history/*",
    "GET /i18n",
    "GET /jobs",
    "GET /jobs/*",
    "GET /models",
    "GET /models/*",
    "GET /node_replacements",
    "GET /object_info",
    "GET /object_info/*",
    "GET /prompt",
    "POST /prompt",
    "GET /queue",
    "GET /system_stats",
    "POST /upload/image",
    "POST /upload/mask",
    "GET /view",
    "GET /view_metadata/*",
    "GET /workflow_templates",
    "GET /ws",
    "GET /assets",
    "POST /assets",
    "POST /assets/from-hash",
    "GET /assets/*",
    "GET /tags",
];

/// Longest path taken, in bytes: above every file name, below what servers refuse.
const MAX_PATH: usize = 4_096;

/// A path below ComfyUI's root, decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Target(Vec<String>);

/// Why a path is not passed on, whoever asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum BadPath {
    /// Servers and proxies read such paths in different ways, so what is judged might not be what is served.
    #[error("the path has an empty part, a `.` or a `..`")]
    Unclean,
    /// The same.
    #[error("the path is percent-encoded in a way that cannot be read for sure")]
    Encoding,
    /// No server takes it.
    #[error("the path is longer than {MAX_PATH} bytes")]
    TooLong,
}

impl Target {
    /// Reads a path as a client sent it, without the leading slash.
    ///
    /// # Errors
    /// [`BadPath`]: nothing is repaired, because a client that means well never sends such a thing.
    pub fn parse(raw: &str) -> Result<Self, BadPath> {
        if raw.len() > MAX_PATH {
            return Err(BadPath::TooLong);
        }
        let parts = raw.split('/').map(|part| {
            let part = decode(part)?;
            // An encoded slash is part of a name for ComfyUI, and a separator for some proxies on the way.
            let unclean = part.split(['/', '\\']).any(|piece| matches!(piece, "" | "." | ".."));
            if unclean { Err(BadPath::Unclean) } else { Ok(part) }
        });
        parts.collect::<Result<_, _>>().map(Self)
    }

    /// The path's parts, decoded.
    #[must_use]
    pub fn parts(&self) -> &[String] {
        &self.0
    }

    /// What rules are about: ComfyUI serves each route under `/api` as well, some under `/api/api`.
    fn route(&self) -> &[String] {
        let prefix = self.0.iter().take_while(|part| *part == "api").count();
        self.0.get(prefix..).unwrap_or_default()
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|part| write!(f, "/{part}"))
    }
}

/// Undoes percent-encoding, once.
fn decode(part: &str) -> Result<String, BadPath> {
    let mut bytes = Vec::with_capacity(part.len());
    let mut rest = part.bytes();
    while let Some(byte) = rest.next() {
        if byte == b'%' {
            let digit = |byte: Option<u8>| char::from(byte?).to_digit(16);
            let (Some(high), Some(low)) = (digit(rest.next()), digit(rest.next())) else {
                return Err(BadPath::Encoding);
            };
            bytes.push(u8::try_from(high * 16 + low).map_err(|_| BadPath::Encoding)?);
        } else {
            bytes.push(byte);
        }
    }
    let text = String::from_utf8(bytes).map_err(|_| BadPath::Encoding)?;
    // What looks encoded still would be decoded by whoever decodes twice.
    let twice =
        text.as_bytes().windows(3).any(|w| matches!(w, [b'%', a, b] if [a, b].iter().all(|c| c.is_ascii_hexdigit())));
    if twice || text.chars().any(char::is_control) { Err(BadPath::Encoding) } else { Ok(text) }
}

/// Routes, written as `POST /queue`, `/userdata/*` (any method, everything below) or `*` (everything).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    method: Option<String>,
    parts: Vec<String>,
    below: bool,
}

impl FromStr for Rule {
    type Err = String;

    /// The error says what would be right.
    fn from_str(text: &str) -> Result<Self, String> {
        const METHODS: [&str; 5] = ["GET", "POST", "PUT", "PATCH", "DELETE"];
        let (method, path) = match text.trim().split_once(char::is_whitespace) {
            Some((method, path)) => (Some(method.to_ascii_uppercase()), path.trim()),
            None => (None, text.trim()),
        };
        if method.as_ref().is_some_and(|method| !METHODS.contains(&method.as_str())) {
            return Err(format!("a method is one of {}", METHODS.join(", ")));
        }
        if matches!(path, "*" | "/*") {
            return Ok(Self { method, parts: Vec::new(), below: true });
        }
        let Some(path) = path.strip_prefix('/') else {
            return Err("a route is written like `POST /queue`, `/userdata/*` or `*`".to_owned());
        };
        let (path, below) = path.strip_suffix("/*").map_or((path, false), |path| (path, true));
        let target = Target::parse(path).map_err(|error| error.to_string())?;
        if target.0.iter().any(|part| part.contains('*')) {
            return Err("`*` stands for everything below a path and comes last: `/userdata/*`".to_owned());
        }
        Ok(Self { method, parts: target.route().to_vec(), below })
    }
}

impl Rule {
    fn covers(&self, method: &str, route: &[String]) -> bool {
        // HEAD is a GET without the body. OPTIONS asks what may be asked and does nothing.
        let method = if method == "HEAD" { "GET" } else { method };
        let same = method == "OPTIONS" || self.method.as_deref().is_none_or(|own| own == method);
        let below = route.len() > self.parts.len() && route.starts_with(&self.parts);
        same && if self.below { below } else { route == self.parts }
    }
}

/// Decides what goes through.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gate {
    open: Vec<Rule>,
    allow: Vec<Rule>,
    deny: Vec<Rule>,
}

impl Default for Gate {
    fn default() -> Self {
        Self::new(Vec::new(), Vec::new())
    }
}

/// What becomes of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// Goes through: it reads or adds.
    Open,
    /// Goes through because the operator says so.
    Allowed,
    /// Does not go through because the operator says so.
    Denied,
    /// Does not go through because nobody says that it may.
    Closed,
}

impl Gate {
    /// `allow` goes through on top of what is open, `deny` in no case.
    #[must_use]
    pub fn new(allow: Vec<Rule>, deny: Vec<Rule>) -> Self {
        Self { open: OPEN.iter().filter_map(|rule| rule.parse().ok()).collect(), allow, deny }
    }

    /// Judges a request.
    #[must_use]
    pub fn judge(&self, method: &str, target: &Target) -> Verdict {
        let covered = |rules: &[Rule]| rules.iter().any(|rule| rule.covers(method, target.route()));
        if covered(&self.deny) {
            Verdict::Denied
        } else if covered(&self.open) {
            Verdict::Open
        } else if covered(&self.allow) {
            Verdict::Allowed
        } else {
            Verdict::Closed
        }
    }
}

#[cfg(test)]
mod tests;
