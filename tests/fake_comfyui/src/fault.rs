//! The faults a test or a demo can ask for, and the set that is in force.
//!
//! A fault either acts once, at the moment it is injected (sockets dropped, server restarted), or stays in force until its `times`
//! are used up or everything is cleared.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::config::Generation;

/// One thing that goes wrong. As JSON: `{"fault": "post_delayed", "delay_ms": 200}`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "fault", rename_all = "snake_case")]
pub enum Fault {
    // At once: the sockets that are open now.
    /// Every WebSocket's TCP connection is closed without a close frame (code 1006 at the client).
    DropSockets,
    /// As `DropSockets`, with a TCP reset.
    ResetSockets,
    /// Every open socket is forgotten by the server: it answers pings and never carries another frame.
    Deafen,
    /// The server stops reading from and writing to every open socket and does not close it: not even pings are answered.
    HalfOpen,

    // At once: the whole server.
    /// The process dies and comes back: queue, history, counter, cache and temp files are gone, outputs stay. Connections are
    /// refused for `down_ms`.
    Restart {
        #[serde(default, rename = "down_ms", with = "millis")]
        down: Duration,
    },
    /// As `Restart`, but the server stays down until `Revive`, which only the in-process control can ask for.
    Kill,
    /// Brings a killed server back.
    Revive,
    /// Every output and temp file is deleted; cached results go on naming them.
    FilesGone,
    /// Changes the API generation.
    Generation { generation: Generation },

    // In force for a time: the sockets.
    /// Sockets stay open and answer pings, but every frame is thrown away.
    Silence,

    /// After so many more frames, on whichever sockets, the next one is not sent: its socket breaks instead, once.
    BreakSocket {
        #[serde(default)]
        after: u64,
        how: Breakage,
    },

    // In force for a time: POST /prompt.
    /// The prompt is taken, the answer is 500.
    PostFailsAfterAccept,
    /// The prompt is taken, the answer comes after `delay_ms`.
    PostDelayed {
        #[serde(rename = "delay_ms", with = "millis")]
        delay: Duration,
    },
    /// The prompt is taken, the connection is cut before the answer.
    PostLost,
    /// The prompt is taken only after `delay_ms`, even when the client has gone by then: the late arrival of a doubtful POST.
    PostHeld {
        #[serde(rename = "delay_ms", with = "millis")]
        delay: Duration,
    },
    /// 500, and the prompt is not taken.
    PostFails,
    /// 400 with a validation error, and the prompt is not taken.
    PostRefused,
    /// 200 with `node_errors` that blame the last output node, which does not run.
    PartialAcceptance,

    // In force for a time: execution.
    /// The first node that runs raises an exception.
    NodeError {
        #[serde(default = "default_exception")]
        exception_type: String,
        #[serde(default = "default_message")]
        message: String,
    },
    /// The first node that runs has no memory left on the device.
    OutOfMemory,
    /// The first node that runs never ends and cannot be interrupted; clearing the faults lets it go on.
    Hang,
    /// The worker thread dies: the prompt it runs, or the next one, stays running for ever. POST goes on working. Only a restart
    /// helps.
    DeadWorker,
    /// The worker thread dies between two prompts: what is sent waits for ever while nothing runs. POST goes on working. Only a restart
    /// helps.
    WorkerGone,

    // In force for a time: POST /free.
    /// What it asks for is done only `delay_ms` later, though the worker is idle.
    SlowFree {
        #[serde(rename = "delay_ms", with = "millis")]
        delay: Duration,
    },

    // In force for a time: history.
    /// History is written `delay_ms` after `execution_success`, before `executing null`.
    SlowHistory {
        #[serde(rename = "delay_ms", with = "millis")]
        delay: Duration,
    },
    /// History is written `delay_ms` after `executing null`: until then the prompt is nowhere.
    LateHistory {
        #[serde(rename = "delay_ms", with = "millis")]
        delay: Duration,
    },

    // In force for a time: GET /view.
    /// Bodies trickle.
    SlowView { bytes_per_second: u64 },
    /// The connection breaks after `bytes` of the body.
    CutView { bytes: u64 },
    /// `/view` answers this status.
    ViewStatus { status: u16 },

    // In force for a time: POST /upload.
    /// Bodies of uploads are read at this pace.
    SlowUpload { bytes_per_second: u64 },
    /// The connection breaks after `bytes` of an upload's body, and nothing is stored.
    CutUpload { bytes: u64 },
    /// An upload is read, not stored, and answered with this status.
    UploadStatus { status: u16 },
    /// An upload is stored under a name of the server's own, and the answer tells it.
    RenameUpload,

    // In force for a time: everything.
    /// Every route but the control endpoint answers 500.
    Unhealthy,
}

/// What happens to a socket instead of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Breakage {
    /// Its TCP connection is closed without a close frame.
    Close,
    /// Its TCP connection is reset.
    Reset,
    /// Neither read from nor written to any more, and not closed.
    HalfOpen,
    /// Forgotten by the server: it answers pings and never carries another frame.
    Deaf,
    /// Half of the frame's bytes are sent, then the connection is closed.
    Truncated,
    /// Bytes without meaning are sent as a binary frame; the connection goes on, the frame never comes.
    Garbage,
    /// A frame of more bytes than any reader takes is sent; the connection goes on, the frame never comes.
    Huge,
}

impl Breakage {
    /// All of them.
    pub const ALL: [Self; 7] =
        [Self::Close, Self::Reset, Self::HalfOpen, Self::Deaf, Self::Truncated, Self::Garbage, Self::Huge];
}

fn default_exception() -> String {
    "RuntimeError".to_owned()
}

fn default_message() -> String {
    "scripted failure".to_owned()
}

impl Fault {
    /// A node failure with the usual exception type.
    pub fn node_error(message: impl Into<String>) -> Self {
        Self::NodeError { exception_type: default_exception(), message: message.into() }
    }

    /// Whether the fault acts at the moment it is injected and leaves nothing in force.
    pub fn is_immediate(&self) -> bool {
        matches!(
            self,
            Self::DropSockets
                | Self::ResetSockets
                | Self::Deafen
                | Self::HalfOpen
                | Self::Restart { .. }
                | Self::Kill
                | Self::Revive
                | Self::FilesGone
                | Self::Generation { .. }
        )
    }
}

/// A fault and how often it strikes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Injection {
    /// What goes wrong.
    #[serde(flatten)]
    pub fault: Fault,
    /// How many times it strikes; until cleared when absent. Faults that act at once ignore it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub times: Option<u32>,
}

/// The faults in force.
#[derive(Debug)]
pub(crate) struct Faults {
    active: Mutex<Vec<Injection>>,
    /// Counts the clearings; what hangs waits for it to move.
    cleared: watch::Sender<u64>,
}

impl Faults {
    pub fn new() -> Self {
        Self { active: Mutex::new(Vec::new()), cleared: watch::Sender::new(0) }
    }

    pub fn add(&self, injection: Injection) {
        if injection.times != Some(0) {
            self.lock().push(injection);
        }
    }

    /// Ends every fault in force and lets hanging nodes go on.
    pub fn clear(&self) {
        self.lock().clear();
        self.cleared.send_modify(|count| *count += 1);
    }

    pub fn active(&self) -> Vec<Injection> {
        self.lock().clone()
    }

    /// Uses the oldest fault that `pick` recognises, once.
    pub fn strike<T>(&self, pick: impl Fn(&Fault) -> Option<T>) -> Option<T> {
        let mut active = self.lock();
        let (index, found) =
            active.iter().enumerate().find_map(|(index, injection)| Some((index, pick(&injection.fault)?)))?;
        if let Some(times) = &mut active[index].times {
            *times = times.saturating_sub(1);
            if *times == 0 {
                active.remove(index);
            }
        }
        Some(found)
    }

    /// Counts a frame that is about to be sent; what is to happen instead.
    pub fn breakage(&self) -> Option<Breakage> {
        let mut active = self.lock();
        let is_it = |injection: &Injection| matches!(injection.fault, Fault::BreakSocket { .. });
        let index = active.iter().position(is_it)?;
        let Fault::BreakSocket { after, how } = &mut active[index].fault else { return None };
        let how = *how;
        match after.checked_sub(1) {
            Some(rest) => {
                *after = rest;
                None
            }
            None => {
                active.remove(index);
                Some(how)
            }
        }
    }

    /// Uses this fault once if it is in force.
    pub fn strikes(&self, fault: &Fault) -> bool {
        self.strike(|active| (active == fault).then_some(())).is_some()
    }

    /// Whether the fault is in force; uses nothing up.
    pub fn holds(&self, fault: &Fault) -> bool {
        self.lock().iter().any(|injection| injection.fault == *fault)
    }

    /// A point to wait for the next clearing from.
    pub fn watch_cleared(&self) -> watch::Receiver<u64> {
        self.cleared.subscribe()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Injection>> {
        self.active.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Durations as a number of milliseconds.
mod millis {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
        Ok(Duration::from_millis(u64::deserialize(deserializer)?))
    }
}
