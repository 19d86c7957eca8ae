//! The files a finished prompt left on its ComfyUI server, and the objects they become in storage.

use serde::{Deserialize, Serialize};

use super::{id::TaskId, time::Timestamp};

/// A file on a ComfyUI server, as `/view` wants it named. The server's words: never used to build a path or a key of ours.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct FileRef {
    /// Name within its folder.
    pub filename: String,
    /// Folder below the type's root, often empty.
    pub subfolder: String,
    /// `output`, `temp` or `input`.
    #[serde(rename = "type")]
    pub folder_type: String,
}

/// One file to be stored: planned when its prompt ended, stored when `object` is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    /// Position in the task's outputs: by node, then in the node's own order.
    pub index: u32,
    /// The node that made it.
    pub node_id: String,
    /// What it is to a person.
    pub kind: Kind,
    /// Where it lies on the server.
    pub source: FileRef,
    /// What became of it in storage.
    pub object: Option<StoredObject>,
}

/// An object that storage holds for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredObject {
    /// Our key, never built from ComfyUI's names.
    pub key: String,
    /// By the file's extension, else what `/view` said.
    pub content_type: String,
    /// Size.
    pub bytes: u64,
    /// SHA-256 of the bytes, lowercase hex.
    pub sha256: String,
}

/// What a file is to a person, by its extension.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// png, jpg, webp, gif ...
    Image,
    /// mp4, webm ...
    Video,
    /// flac, mp3, opus, wav ...
    Audio,
    /// txt, json, csv ...
    Text,
    /// Anything else: latents, meshes, archives.
    File,
}

impl Kind {
    /// The kind as a word in the API.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Image => "image",
            Self::Video => "video",
            Self::Audio => "audio",
            Self::Text => "text",
            Self::File => "file",
        }
    }
}

/// Extensions we name, with kind and media type. Everything else is `application/octet-stream`, so that nothing a node wrote
/// is ever served as a page a browser would run.
const KNOWN: &[(&str, Kind, &str)] = &[
    ("png", Kind::Image, "image/png"),
    ("jpg", Kind::Image, "image/jpeg"),
    ("jpeg", Kind::Image, "image/jpeg"),
    ("webp", Kind::Image, "image/webp"),
    ("gif", Kind::Image, "image/gif"),
    ("avif", Kind::Image, "image/avif"),
    ("bmp", Kind::Image, "image/bmp"),
    ("tiff", Kind::Image, "image/tiff"),
    ("exr", Kind::Image, "image/x-exr"),
    ("mp4", Kind::Video, "video/mp4"),
    ("webm", Kind::Video, "video/webm"),
    ("mov", Kind::Video, "video/quicktime"),
    ("mkv", Kind::Video, "video/x-matroska"),
    ("flac", Kind::Audio, "audio/flac"),
    ("mp3", Kind::Audio, "audio/mpeg"),
    ("opus", Kind::Audio, "audio/ogg"),
    ("ogg", Kind::Audio, "audio/ogg"),
    ("wav", Kind::Audio, "audio/wav"),
    ("m4a", Kind::Audio, "audio/mp4"),
    ("txt", Kind::Text, "text/plain; charset=utf-8"),
    ("json", Kind::Text, "application/json"),
    ("csv", Kind::Text, "text/csv; charset=utf-8"),
    ("glb", Kind::File, "model/gltf-binary"),
    ("obj", Kind::File, "model/obj"),
];

/// Longest extension we carry over into a key.
const MAX_EXTENSION: usize = 12;

impl FileRef {
    /// The extension in lowercase, if it is short and plain enough to appear in a key of ours.
    #[must_use]
    pub fn extension(&self) -> Option<String> {
        let (stem, extension) = self.filename.rsplit_once('.')?;
        let plain = !stem.is_empty()
            && !extension.is_empty()
            && extension.len() <= MAX_EXTENSION
            && extension.bytes().all(|b| b.is_ascii_alphanumeric());
        plain.then(|| extension.to_ascii_lowercase())
    }

    /// Kind and media type by the extension.
    #[must_use]
    pub fn media(&self) -> (Kind, &'static str) {
        self.extension()
            .and_then(|ext| KNOWN.iter().find(|(known, ..)| *known == ext))
            .map_or((Kind::File, "application/octet-stream"), |(_, kind, media)| (*kind, media))
    }

    /// Whether the server's own words may be sent back to it: no way out of its folders, no control characters.
    #[must_use]
    pub fn is_safe(&self) -> bool {
        let plain = |text: &str| text.len() <= 1024 && !text.chars().any(char::is_control) && !text.contains('\\');
        let inside = |text: &str| !text.starts_with('/') && !text.split('/').any(|part| part == "..");
        !self.filename.is_empty()
            && self.filename.len() <= 255
            && !self.filename.contains('/')
            && self.filename != ".."
            && plain(&self.filename)
            && plain(&self.subfolder)
            && inside(&self.subfolder)
            && matches!(self.folder_type.as_str(), "output" | "temp" | "input")
    }
}

/// The key of an output: `{tenant}/{date}/{task}/{dispatch}/{node}-{index}.{ext}`. The dispatch in it fences storage: a run
/// that lost can never overwrite the bytes of the one that won.
#[must_use]
pub fn object_key(tenant: i64, created_at: Timestamp, task: TaskId, dispatch: i64, artifact: &Artifact) -> String {
    let date = created_at.rfc3339();
    let date = date.get(..10).unwrap_or("undated");
    let node: String = artifact
        .node_id
        .chars()
        .take(64)
        .map(|c| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_') { c } else { '_' })
        .collect();
    let extension = artifact.source.extension().map_or_else(String::new, |ext| format!(".{ext}"));
    format!("{tenant}/{date}/{task}/{dispatch}/{node}-{}{extension}", artifact.index)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(filename: &str, subfolder: &str, folder_type: &str) -> FileRef {
        FileRef { filename: filename.into(), subfolder: subfolder.into(), folder_type: folder_type.into() }
    }

    #[test]
    fn hostile_names_are_told_apart() {
        for good in [file("a.png", "", "output"), file("ä b (1).png", "x/y", "temp")] {
            assert!(good.is_safe(), "{good:?}");
        }
        for bad in [
            file("", "", "output"),
            file("..", "", "output"),
            file("a/b.png", "", "output"),
            file("a\\b.png", "", "output"),
            file("a\0.png", "", "output"),
            file("a\r\nb", "", "output"),
            file("a.png", "../x", "output"),
            file("a.png", "/etc", "output"),
            file("a.png", "", "models"),
            file(&"a".repeat(256), "", "output"),
        ] {
            assert!(!bad.is_safe(), "{bad:?}");
        }
    }

    #[test]
    fn keys_are_ours() {
        let task = TaskId::new();
        let artifact = Artifact {
            index: 3,
            node_id: "1.0/../é".into(),
            kind: Kind::Image,
            source: file("../../evil.PNG", "", "output"),
            object: None,
        };
        let key = object_key(0, Timestamp(1_700_000_000_000), task, 2, &artifact);
        assert_eq!(key, format!("0/2023-11-14/{task}/2/1.0_..__-3.png"));
    }

    #[test]
    fn only_short_plain_extensions_survive() {
        assert_eq!(file("a.PNG", "", "output").extension().as_deref(), Some("png"));
        for none in ["a", ".png", "a.", "a.p/g", "a.averyveryverylong", "a.p\u{e9}g"] {
            assert_eq!(file(none, "", "output").extension(), None, "{none}");
        }
        assert_eq!(file("x.html", "", "output").media().1, "application/octet-stream");
    }
}
