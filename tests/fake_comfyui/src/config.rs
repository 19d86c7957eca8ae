//! How a fake server is set up before it starts. Everything that can change while it runs is a [`crate::Fault`] or an operation
//! of [`crate::Control`].

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// Which API generation the server speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum Generation {
    /// ComfyUI v0.33: `/api/jobs*`, prompt ids must be canonical UUIDs.
    #[default]
    #[serde(rename = "current")]
    Current,
    /// ComfyUI v0.3.64: no `/api/jobs*`, any prompt id is taken and turned into a string.
    #[serde(rename = "v0.3.64")]
    V0_3_64,
    /// Older still: the client's prompt id is ignored, another one is answered and used everywhere, and an interrupt hits whatever
    /// runs, whatever id it names. `extra_data` is echoed as usual. No recording of such a server exists; this is how it is told.
    #[serde(rename = "ignores-prompt-id")]
    IgnoresPromptId,
}

impl Generation {
    /// Whether `/api/jobs*` and the other routes of the current generation exist.
    pub fn has_jobs_api(self) -> bool {
        self == Self::Current
    }

    /// What `/system_stats` calls it.
    pub fn version(self) -> &'static str {
        match self {
            Self::Current => "0.33.0",
            Self::V0_3_64 => "0.3.64",
            Self::IgnoresPromptId => "0.3.43",
        }
    }
}

/// The text is not the name of a generation.
#[derive(Debug, thiserror::Error)]
#[error("unknown generation {0:?}: expected current, v0.3.64 or ignores-prompt-id")]
pub struct UnknownGeneration(String);

impl FromStr for Generation {
    type Err = UnknownGeneration;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "current" => Ok(Self::Current),
            "v0.3.64" => Ok(Self::V0_3_64),
            "ignores-prompt-id" => Ok(Self::IgnoresPromptId),
            other => Err(UnknownGeneration(other.to_owned())),
        }
    }
}

/// The set-up of one fake server.
#[derive(Debug, Clone)]
pub struct FakeConfig {
    /// Where to listen; port 0 takes a free one.
    pub addr: SocketAddr,
    /// How long one prompt "samples". A prompt with a sampler spends it there, split evenly over the steps; any other prompt spends
    /// it in the first node it really runs. A prompt whose every node comes from the cache takes no time at all, and the lab nodes
    /// add the seconds their own inputs ask for. Zero means no timer is ever set.
    pub node_time: Duration,
    /// The API generation.
    pub generation: Generation,
    /// Whether samplers send previews to prompts that say nothing about it, like ComfyUI started with `--preview-method auto`.
    /// A prompt's own `extra_data.preview_method` wins.
    pub sampler_previews: bool,
    /// The time between `execution_success` and the history entry: the window in which a client that trusts the success event reads
    /// an empty history.
    pub history_window: Duration,
    /// The names `CheckpointLoaderSimple` offers at first; see [`crate::Control::set_checkpoints`].
    pub checkpoints: Vec<String>,
    /// The names `LoraLoader` offers.
    pub loras: Vec<String>,
    /// Classes that are not installed here, of those there are.
    pub missing_classes: Vec<String>,
    /// Every class is there this many times more, as `SaveImage.1` and so on: a server with a full shelf of custom nodes.
    pub copies: usize,
    /// Bytes of memory its device has. A prompt that ends leaves a quarter of them taken, as a server keeps models and results.
    pub vram: u64,
    /// Largest request body in bytes; above it the answer is 413.
    pub max_body: usize,
    /// Bytes of stored files kept in memory; what comes after goes to a temporary folder that is removed with the server.
    pub memory_cap: u64,
    /// Number of log events kept; older ones are forgotten.
    pub log_capacity: usize,
    /// Number of history entries kept, as in ComfyUI.
    pub history_capacity: usize,
}

impl Default for FakeConfig {
    fn default() -> Self {
        Self {
            addr: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0),
            node_time: Duration::ZERO,
            generation: Generation::Current,
            sampler_previews: false,
            history_window: Duration::ZERO,
            checkpoints: DEFAULT_CHECKPOINTS.iter().map(|name| (*name).to_owned()).collect(),
            loras: vec!["lcm_lora.safetensors".to_owned()],
            missing_classes: Vec::new(),
            copies: 0,
            vram: 16 << 30,
            max_body: 100 * 1024 * 1024,
            memory_cap: 256 * 1024 * 1024,
            log_capacity: 200_000,
            history_capacity: 10_000,
        }
    }
}

/// The names example workflows ask for, so that they run unchanged.
const DEFAULT_CHECKPOINTS: [&str; 5] = [
    "lab_tiny_sd15.safetensors",
    "sd_xl_base_1.0.safetensors",
    "v1-5-pruned-emaonly-fp16.safetensors",
    "v1-5-pruned-emaonly.ckpt",
    "v1-5-pruned-emaonly.safetensors",
];
