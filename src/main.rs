//! The binary: reads the command line and hands over.

use std::{io, process::ExitCode};

use clap::Parser;
use comfyd::{
    cli::{Cli, Command},
    config,
};

fn main() -> ExitCode {
    match Cli::parse().command {
        Some(Command::CheckConfig) => match config::check(&mut io::stdout().lock()) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) | Err(_) => ExitCode::FAILURE,
        },
        _ => {
            eprintln!("comfyd: this command is not there yet");
            ExitCode::FAILURE
        }
    }
}
