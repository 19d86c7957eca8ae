//! The fake server as a program.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use clap::Parser;
use fake_comfyui::{FakeConfig, Generation};

/// A scriptable ComfyUI server for tests and demos.
#[derive(Debug, Parser)]
#[command(name = "fake_comfyui", version)]
struct Arguments {
    /// Address to listen on.
    #[arg(long, default_value = "127.0.0.1")]
    host: IpAddr,
    /// Port to listen on; 0 takes a free one.
    #[arg(long, default_value_t = 8188)]
    port: u16,
    /// How long one prompt samples, like 250ms or 2s.
    #[arg(long, default_value = "0ms", value_parser = humantime::parse_duration)]
    node_time: Duration,
    /// API generation: current, v0.3.64 or ignores-prompt-id.
    #[arg(long, default_value = "current")]
    generation: Generation,
    /// Send sampler previews to prompts that do not ask for them.
    #[arg(long)]
    previews: bool,
}

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let arguments = Arguments::parse();
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let config = FakeConfig {
        addr: SocketAddr::new(arguments.host, arguments.port),
        node_time: arguments.node_time,
        generation: arguments.generation,
        sampler_previews: arguments.previews,
        ..FakeConfig::default()
    };
    tokio::select! {
        result = fake_comfyui::serve(config) => result,
        result = tokio::signal::ctrl_c() => result,
    }
}
