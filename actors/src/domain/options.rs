//! What a client wants done differently for one task. Stored with its payload as JSON; a field that is missing there has its default, so
//! rows of older versions stay readable.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use super::{input::InputId, webhook::Webhook, workflow::Kind};

/// The options of a task.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct TaskOptions {
    /// A graph that the server takes only in part is run in part, instead of failing the task.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub allow_partial: bool,
    /// The server is asked for pictures of unfinished work.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub previews: bool,
    /// The version of the named workflow it was made from. Not asked for but found: the newest, unless the client named one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub workflow_version: Option<u32>,
    /// Which outputs are kept, and what is done to them on their way into the storage.
    #[serde(skip_serializing_if = "OutputOptions::is_default")]
    pub output: OutputOptions,
    /// Where they are kept.
    #[serde(skip_serializing_if = "StorageChoice::is_default")]
    pub storage: StorageChoice,
    /// How long a run may show no sign of progress; `None` = as long as the service allows.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub no_progress_timeout: Option<Duration>,
    /// The files its graph refers to.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub files: BTreeSet<InputId>,
    /// The URLs its graph refers to.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub urls: BTreeMap<String, UrlInput>,
    /// Who is told of it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub webhook: Option<Webhook>,
}

/// What is to be found at a URL.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UrlInput {
    /// What the client calls the input that it is for: its name, or `<node id>.<field>`.
    pub name: String,
    /// The kind of file that is wanted there; `None` = any.
    pub kind: Option<Kind>,
}

/// Which outputs of a task are kept, and as what.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct OutputOptions {
    /// Outputs of these nodes only, by the ids the client knows; `None` = of all.
    pub nodes: Option<Vec<String>>,
    /// Still pictures become this; the original is not kept. `None` = as they are.
    pub format: Option<ImageFormat>,
    /// 1 to 100, for formats that lose something.
    pub quality: Option<u8>,
    /// The prompt and workflow that ComfyUI embeds are taken out, where the file's format is one we can do that for.
    pub strip_metadata: bool,
    /// Outputs of at most this many bytes come with the task, in base64. `None` = none do.
    pub inline: Option<u64>,
}

/// Where a client wants the outputs of a task kept.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct StorageChoice {
    /// One of the configured targets; `None` = the usual one.
    pub target: Option<String>,
    /// What their keys begin with, after the target's own prefix: as `domain::storage::prefix` reads it.
    pub prefix: Option<String>,
}

impl StorageChoice {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// What a picture can be turned into.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ImageFormat {
    /// Loses detail and any transparency, which becomes white.
    Jpeg,
    /// Loses detail, keeps transparency.
    Webp,
    /// Loses nothing.
    Png,
}

impl OutputOptions {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Whether a node's outputs are kept.
    #[must_use]
    pub fn takes(&self, node: &str) -> bool {
        self.nodes.as_ref().is_none_or(|nodes| nodes.iter().any(|wanted| wanted == node))
    }
}

impl ImageFormat {
    /// Every one of them.
    pub const ALL: [Self; 3] = [Self::Jpeg, Self::Webp, Self::Png];

    /// The word in the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Jpeg => "jpeg",
            Self::Webp => "webp",
            Self::Png => "png",
        }
    }

    /// Of a file's name.
    #[must_use]
    pub fn extension(self) -> &'static str {
        match self {
            Self::Jpeg => "jpg",
            other => other.as_str(),
        }
    }

    /// What HTTP calls it.
    #[must_use]
    pub fn media_type(self) -> &'static str {
        match self {
            Self::Jpeg => "image/jpeg",
            Self::Webp => "image/webp",
            Self::Png => "image/png",
        }
    }
}
