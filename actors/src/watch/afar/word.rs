//! What processes say to each other about watched tasks.
//!
//! A glimpse is a header in JSON behind its length (four bytes, big-endian), and after it the picture, if it is one. Progress and preview
//! of a task are notices of their own, so that neither is sent again for the other.

use std::{sync::Arc, time::Duration};

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::{
    domain::{
        id::{TaskId, WorkerId},
        interest::Interest,
        progress::Progress,
        task::Fence,
    },
    ports::wire::{Kind, Notice},
    watch::{Preview, Run, incoming::Seen},
};

/// Behind a task's id: its preview.
const PREVIEW: &str = "/preview";

/// What clients of a process watch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Watched {
    /// Grows with each word: whoever hears a new one answers.
    pub(super) number: u64,
    pub(super) interest: Interest,
}

impl Watched {
    pub(super) fn notice(&self, from: &WorkerId) -> Notice {
        // Names and numbers: it can be written.
        let body = serde_json::to_vec(self).unwrap_or_default().into();
        Notice { kind: Kind::Watched, name: from.as_str().to_owned(), body }
    }

    /// `None`: of another version.
    pub(super) fn read(notice: &Notice) -> Option<Self> {
        serde_json::from_slice(&notice.body).ok()
    }
}

/// Something that was seen of a task.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Glimpse {
    /// Where it runs.
    pub(super) from: WorkerId,
    /// Grows in that process.
    pub(super) number: u64,
    pub(super) run: Run,
    pub(super) seen: Seen,
}

#[derive(Debug, Serialize, Deserialize)]
struct Header {
    from: WorkerId,
    number: u64,
    fence: Fence,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    workflow: Option<Arc<str>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    progress: Option<Progress>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    eta_ms: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    content_type: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    node: Option<String>,
}

/// What a notice's name says it is about: the task, and whether it is its preview.
pub(super) fn about(notice: &Notice) -> Option<(TaskId, bool)> {
    let (task, is_preview) = match notice.name.strip_suffix(PREVIEW) {
        Some(task) => (task, true),
        None => (notice.name.as_str(), false),
    };
    Some((task.parse().ok()?, is_preview))
}

/// The names of the notices about a task.
pub(super) fn names(task: TaskId) -> [String; 2] {
    [task.to_string(), format!("{task}{PREVIEW}")]
}

impl Glimpse {
    pub(super) fn notice(self) -> Notice {
        let Self { from, number, run: Run { task, fence, workflow }, seen } = self;
        let [plain, preview] = names(task);
        let header =
            Header { from, number, fence, workflow, progress: None, eta_ms: None, content_type: None, node: None };
        let (name, header, image) = match seen {
            Seen::Progress(progress) => {
                let eta_ms = progress.eta.and_then(|eta| u64::try_from(eta.as_millis()).ok());
                (plain, Header { progress: Some(progress), eta_ms, ..header }, Bytes::new())
            }
            Seen::Preview(seen) => {
                let content_type = Some(seen.content_type.to_owned());
                (preview, Header { content_type, node: seen.node.clone(), ..header }, seen.image.clone())
            }
        };
        let header = serde_json::to_vec(&header).unwrap_or_default();
        let mut body = BytesMut::with_capacity(4 + header.len() + image.len());
        // A node's name and a few numbers.
        body.put_u32(u32::try_from(header.len()).unwrap_or_default());
        body.put_slice(&header);
        body.put_slice(&image);
        Notice { kind: Kind::Glimpse, name, body: body.freeze() }
    }

    /// `None`: of another version.
    pub(super) fn read(notice: &Notice) -> Option<Self> {
        let (task, is_preview) = about(notice)?;
        let (length, rest) = notice.body.split_first_chunk::<4>()?;
        let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
        let header: Header = serde_json::from_slice(rest.get(..length)?).ok()?;
        let Header { from, number, fence, workflow, progress, eta_ms, content_type, node } = header;
        let seen = if is_preview {
            let image = notice.body.slice(4 + length..);
            Seen::Preview(Arc::new(Preview { node, content_type: known(&content_type?)?, image }))
        } else {
            Seen::Progress(Progress { eta: eta_ms.map(Duration::from_millis), ..progress? })
        };
        Some(Self { from, number, run: Run { task, fence, workflow }, seen })
    }
}

/// The types that previews have.
fn known(content_type: &str) -> Option<&'static str> {
    ["image/jpeg", "image/png", "image/webp"].into_iter().find(|known| *known == content_type)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let run = Run { task: TaskId::new(), fence: Fence(3), workflow: Some("a".into()) };
        let progress = Progress { percent: 7, eta: Some(Duration::from_millis(1500)), ..Progress::default() };
        let image = Bytes::from_static(b"\0\xff{}");
        let preview = Arc::new(Preview { node: Some("3".to_owned()), content_type: "image/webp", image });
        for (seen, name) in [
            (Seen::Progress(progress), run.task.to_string()),
            (Seen::Preview(preview), format!("{}/preview", run.task)),
        ] {
            let glimpse = Glimpse { from: WorkerId::starting("n"), number: 9, run: run.clone(), seen };
            let notice = glimpse.clone().notice();
            assert_eq!((&notice.name, Glimpse::read(&notice)), (&name, Some(glimpse)));
        }
    }

    #[test]
    fn nonsense_is_passed_over() {
        let task = TaskId::new().to_string();
        let preview = format!("{task}/preview");
        let header = br#"{"from": "n", "number": 1, "fence": 1, "content_type": "text/html"}"#;
        let mut odd = u32::try_from(header.len()).unwrap().to_be_bytes().to_vec();
        odd.extend_from_slice(header);
        for (name, body) in [
            ("x", &b""[..]),
            (&task, b""),
            (&task, b"\0\0\0"),
            (&task, b"\xff\xff\xff\xff{}"),
            (&task, b"\0\0\0\x02{}"),
            (&task, &odd),
            (&preview, &odd),
        ] {
            let notice = Notice { kind: Kind::Glimpse, name: name.to_owned(), body: Bytes::copy_from_slice(body) };
            assert_eq!(Glimpse::read(&notice), None, "{notice:?}");
            assert_eq!(Watched::read(&notice), None, "{notice:?}");
        }
    }
}
