//! What the core needs of the outside, as traits named for the role. Adapters in the `comfyd` package implement them, and
//! `testing` has fakes and conformance suites.

pub mod clock;
pub mod comfy;
pub mod edge;
pub mod fetcher;
pub mod hook_sender;
pub mod hook_store;
pub mod input_files;
pub mod input_store;
pub mod media;
pub mod object_store;
pub mod outputs;
pub mod passthrough;
pub mod store;
pub mod wire;
pub mod workflow_store;

/// Bytes on their way through us, chunk by chunk: never a whole file in memory.
pub type ByteStream = futures_util::stream::BoxStream<'static, std::io::Result<bytes::Bytes>>;
