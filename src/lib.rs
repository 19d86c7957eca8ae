//! The shell around `comfyd-actors`: adapters of its ports and the process that runs them.

pub mod clock;
pub mod comfy;
pub mod storage;
pub mod tls;
