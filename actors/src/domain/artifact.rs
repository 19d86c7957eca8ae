//! What a finished prompt made (files on its ComfyUI server, texts, pictures sent over the WebSocket), and the objects they become
//! in storage.

use serde::{Deserialize, Serialize};

use super::{storage::LOCAL, task::Task};

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

/// Where an output's bytes come from. As JSON it is flat: a file's own words, or `text` or `frame` in the place of its folder's type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "FlatSource", into = "FlatSource")]
pub enum Source {
    /// A file on the server.
    File(FileRef),
    /// A text the run reported. There is no file: it is kept with the task until it is stored.
    Text {
        /// The name we gave it.
        filename: String,
        /// The whole of it.
        text: String,
    },
    /// A picture sent over the WebSocket and kept by nobody but us: stored the moment it came.
    Frame {
        /// The name we gave it.
        filename: String,
    },
}

#[derive(Serialize, Deserialize)]
struct FlatSource {
    filename: String,
    subfolder: String,
    #[serde(rename = "type")]
    folder_type: String,
    #[serde(default)]
    text: Option<String>,
}

impl From<FlatSource> for Source {
    fn from(flat: FlatSource) -> Self {
        let FlatSource { filename, subfolder, folder_type, text } = flat;
        match (folder_type.as_str(), text) {
            (TEXT, text) => Self::Text { filename, text: text.unwrap_or_default() },
            (FRAME, _) => Self::Frame { filename },
            _ => Self::File(FileRef { filename, subfolder, folder_type }),
        }
    }
}

impl From<Source> for FlatSource {
    fn from(source: Source) -> Self {
        let ours =
            |filename, kind: &str, text| Self { filename, subfolder: String::new(), folder_type: kind.into(), text };
        match source {
            Source::File(FileRef { filename, subfolder, folder_type }) => {
                Self { filename, subfolder, folder_type, text: None }
            }
            Source::Text { filename, text } => ours(filename, TEXT, Some(text)),
            Source::Frame { filename } => ours(filename, FRAME, None),
        }
    }
}

/// In the place of a folder's type.
const TEXT: &str = "text";
const FRAME: &str = "frame";

impl Source {
    /// What it is called: the server's word for a file, ours for the rest. For people, never for a path.
    #[must_use]
    pub fn filename(&self) -> &str {
        match self {
            Self::File(FileRef { filename, .. }) | Self::Text { filename, .. } | Self::Frame { filename } => filename,
        }
    }
}

/// One output of a task: planned when its prompt ended, stored when `object` is there.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Artifact {
    /// Position in the task's outputs: by node, then in the node's own order.
    pub index: u32,
    /// The node that made it.
    pub node_id: String,
    /// What it is to a person.
    pub kind: Kind,
    /// Where its bytes come from.
    pub source: Source,
    /// What became of it in storage.
    pub object: Option<StoredObject>,
}

/// An object that storage holds for good.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredObject {
    /// The target that holds it, by its name in the configuration. Rows of before there were several lie in the local folder.
    #[serde(default = "local")]
    pub target: String,
    /// Our key, never built from ComfyUI's names. The whole of it: what the configuration calls a prefix today is part of it.
    pub key: String,
    /// Of the bytes that are stored.
    pub content_type: String,
    /// Size.
    pub bytes: u64,
    /// SHA-256 of the bytes, lowercase hex.
    pub sha256: String,
    /// What the bytes say about themselves.
    #[serde(default)]
    pub facts: Facts,
}

fn local() -> String {
    LOCAL.to_owned()
}

/// What an output's own header says, read while it streams by. Unknown is `None`: never guessed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Facts {
    /// Pixels from left to right.
    pub width: Option<u32>,
    /// Pixels from top to bottom.
    pub height: Option<u32>,
    /// How long it plays, in milliseconds.
    pub duration_ms: Option<u64>,
    /// Pictures in a video or an animation; 1 for a still.
    pub frames: Option<u64>,
    /// The whole of a short text.
    pub text: Option<String>,
    /// Whether the embedded prompt and workflow were taken out; `None` when nobody asked for it.
    pub stripped: Option<bool>,
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

/// The extension of a name in lowercase, if it is short and plain enough to appear in a key of ours.
#[must_use]
pub fn extension(filename: &str) -> Option<String> {
    let (stem, extension) = filename.rsplit_once('.')?;
    let plain = !stem.is_empty()
        && !extension.is_empty()
        && extension.len() <= MAX_EXTENSION
        && extension.bytes().all(|b| b.is_ascii_alphanumeric());
    plain.then(|| extension.to_ascii_lowercase())
}

/// Kind and media type of a file by its extension.
#[must_use]
pub fn media_of(filename: &str) -> (Kind, &'static str) {
    extension(filename)
        .and_then(|ext| KNOWN.iter().find(|(known, ..)| *known == ext))
        .map_or((Kind::File, "application/octet-stream"), |(_, kind, media)| (*kind, media))
}

impl Artifact {
    /// What to call the stored bytes: as its source, with the extension of what it was made into.
    #[must_use]
    pub fn filename(&self) -> String {
        let name = self.source.filename();
        let stored = self.object.as_ref().and_then(|object| extension(&object.key));
        match (stored, name.rsplit_once('.')) {
            (Some(ours), Some((stem, _))) if extension(name).as_ref() != Some(&ours) => format!("{stem}.{ours}"),
            _ => name.to_owned(),
        }
    }
}

impl FileRef {
    /// Whether the server's own words may be sent back to it: no way out of its folders, no control characters.
    #[must_use]
    pub fn is_safe(&self) -> bool {
        let plain = |text: &str| text.len() <= 1024 && !text.chars().any(char::is_control) && !text.contains('\\');
        let inside = |text: &str| !text.starts_with('/') && !text.split('/').any(|part| part == "..");
        // What Windows would take for another drive.
        let drive = |text: &str| matches!(text.as_bytes(), [letter, b':', ..] if letter.is_ascii_alphabetic());
        !self.filename.is_empty()
            && self.filename.len() <= 255
            && !self.filename.contains('/')
            && !matches!(self.filename.as_str(), "." | "..")
            && plain(&self.filename)
            && plain(&self.subfolder)
            && !drive(&self.filename)
            && !drive(&self.subfolder)
            && inside(&self.subfolder)
            && matches!(self.folder_type.as_str(), "output" | "temp" | "input")
    }
}

/// What all keys of a task begin with: `{tenant}/{date}/{task}_`. One folder a day, because each new folder costs local storage a flush
/// (decision 024).
#[must_use]
pub fn task_prefix(task: &Task) -> String {
    let date = task.created_at.rfc3339();
    let date = date.get(..10).unwrap_or("undated");
    format!("{}/{date}/{}_", task.tenant, task.id)
}

/// What the keys of one dispatch of a task begin with: `{tenant}/{date}/{task}_{dispatch}_`. The dispatch in it fences storage: a run that
/// lost can never overwrite the bytes of the one that won.
#[must_use]
pub fn object_prefix(task: &Task) -> String {
    format!("{}{}_", task_prefix(task), task.dispatch)
}

/// The key of an output, without its extension: what it is made into decides on that.
#[must_use]
pub fn object_stem(task: &Task, artifact: &Artifact) -> String {
    key_stem(&object_prefix(task), artifact)
}

/// The same below any prefix.
#[must_use]
pub fn key_stem(prefix: &str, artifact: &Artifact) -> String {
    format!("{prefix}{}-{}", plain_node(&artifact.node_id), artifact.index)
}

/// The same for the `number`-th picture that `node` sent over the WebSocket, whose index among all outputs is not known yet. No index
/// looks like `f0`.
#[must_use]
pub fn frame_stem(task: &Task, node: &str, number: usize) -> String {
    format!("{}{}-f{number}", object_prefix(task), plain_node(node))
}

fn plain_node(node: &str) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_') { c } else { '_' };
    node.chars().take(64).map(plain).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::{task::tests::new_task, time::Timestamp};

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
            file(".", "", "output"),
            file("C:a.png", "", "output"),
            file("a.png", "c:", "output"),
            file("a/b.png", "", "output"),
            file("a\\b.png", "", "output"),
            file("a\0.png", "", "output"),
            file("a\r\nb", "", "output"),
            file("a.png", "../x", "output"),
            file("a.png", "/etc", "output"),
            file("a.png", "x\\y", "output"),
            file("a.png", "x\r\ny", "output"),
            file("a.png", &"x/".repeat(600), "output"),
            file("a.png", "", "models"),
            file(&"a".repeat(256), "", "output"),
        ] {
            assert!(!bad.is_safe(), "{bad:?}");
        }
    }

    #[test]
    fn keys_are_ours() {
        let task = Task { dispatch: 2, created_at: Timestamp(1_700_000_000_000), ..new_task() };
        let artifact = Artifact {
            index: 3,
            node_id: "1.0/../é".into(),
            kind: Kind::Image,
            source: Source::File(file("../../evil.PNG", "", "output")),
            object: None,
        };
        assert_eq!(object_stem(&task, &artifact), format!("0/2023-11-14/{}_2_1.0_..__-3", task.id));
        assert_eq!(frame_stem(&task, "1:2", 0), format!("0/2023-11-14/{}_2_1_2-f0", task.id));
    }

    #[test]
    fn a_name_follows_what_is_stored() {
        let named = |name: &str, key: &str| {
            let object = StoredObject {
                target: LOCAL.into(),
                key: key.into(),
                content_type: String::new(),
                bytes: 0,
                sha256: String::new(),
                facts: Facts::default(),
            };
            let source = Source::File(file(name, "", "output"));
            Artifact { index: 0, node_id: String::new(), kind: Kind::Image, source, object: Some(object) }.filename()
        };
        assert_eq!(named("a.b.png", "k/1-0.jpg"), "a.b.jpg");
        assert_eq!(named("a.PNG", "k/1-0.png"), "a.PNG");
        assert_eq!(named("a", "k/1-0"), "a");
    }

    #[test]
    fn a_source_is_flat_in_json() {
        for (source, json) in [
            (
                Source::File(file("a.png", "x", "temp")),
                r#"{"filename":"a.png","subfolder":"x","type":"temp","text":null}"#,
            ),
            (
                Source::Text { filename: "t.txt".into(), text: "x".into() },
                r#"{"filename":"t.txt","subfolder":"","type":"text","text":"x"}"#,
            ),
            (
                Source::Frame { filename: "f.png".into() },
                r#"{"filename":"f.png","subfolder":"","type":"frame","text":null}"#,
            ),
        ] {
            assert_eq!(serde_json::to_string(&source).unwrap(), json);
            assert_eq!(serde_json::from_str::<Source>(json).unwrap(), source);
        }
    }

    #[test]
    fn only_short_plain_extensions_survive() {
        assert_eq!(extension("a.PNG").as_deref(), Some("png"));
        for none in ["a", ".png", "a.", "a.p/g", "a.averyveryverylong", "a.p\u{e9}g"] {
            assert_eq!(extension(none), None, "{none}");
        }
        assert_eq!(media_of("x.html").1, "application/octet-stream");
    }
}
