//! The command line. Settings are not here: they come from files and the environment, see [`config`](crate::config).

use std::net::IpAddr;

use clap::{Parser, Subcommand};

/// A durable queue and a REST API in front of ComfyUI. Without a command: the API and the consumer in one process.
#[derive(Debug, Parser)]
#[command(name = "comfyd", version)]
pub struct Cli {
    /// What to do instead.
    #[command(subcommand)]
    pub command: Option<Command>,
}

/// What else the binary can do.
#[derive(Debug, PartialEq, Subcommand)]
pub enum Command {
    /// Takes tasks in and shows them; consumers run them. What the service does without a command, without ComfyUI servers.
    Api,
    /// Runs tasks that an API takes in: it shares the API's store (DATABASE_URL), or comes to its tasks over HTTP (TASK_API_URL).
    Consumer,
    /// Starts everything with a pretended ComfyUI, makes a picture and shows where it is.
    Demo {
        /// Stop when the picture is there.
        #[arg(long)]
        exit: bool,
        /// Port of the API; any free one by default.
        #[arg(long)]
        port: Option<u16>,
    },
    /// Pretends to be a ComfyUI server: for trying things out and for tests.
    MockComfyui {
        /// Address to listen on.
        #[arg(long, default_value = "127.0.0.1")]
        host: IpAddr,
        /// Port to listen on.
        #[arg(long, default_value_t = 8188)]
        port: u16,
        /// How long one prompt runs.
        #[arg(long, default_value = "50ms", value_parser = humantime::parse_duration)]
        node_time: std::time::Duration,
        /// Which ComfyUI it pretends to be: current, v0.3.64 or ignores-prompt-id.
        #[arg(long, default_value = "current")]
        generation: fake_comfyui::Generation,
    },
    /// Prints every setting, its source and its environment name, and all faults at once.
    CheckConfig,
    /// Looks at everything the service needs (ComfyUI servers, workflows, store, storage, clocks) and says what to do about each fault;
    /// status 1 when there is one.
    Doctor,
    /// Prints the OpenAPI document.
    Openapi,
    /// Asks a running service on this machine whether it lives; status 0 when it does.
    Healthcheck,
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_commands_are_well_formed() {
        Cli::command().debug_assert();
        let parsed = Cli::parse_from(["comfyd", "mock-comfyui", "--port", "1", "--node-time", "1s"]);
        assert!(matches!(parsed.command, Some(Command::MockComfyui { port: 1, .. })));
        assert!(Cli::parse_from(["comfyd"]).command.is_none());
    }
}
