//! The binary: reads the command line and hands over.

use std::{
    io::{self, Write},
    process::ExitCode,
};

use clap::Parser;
use comfyd::{
    cli::{Cli, Command},
    config, http,
};

fn main() -> ExitCode {
    let outcome = match Cli::parse().command {
        Some(Command::CheckConfig) => config::check(&mut io::stdout().lock()),
        Some(Command::Openapi) => print_openapi(),
        _ => Err(io::Error::other("this command is not there yet")),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("comfyd: {error}");
            ExitCode::FAILURE
        }
    }
}

fn print_openapi() -> io::Result<bool> {
    let text = http::document().to_pretty_json()?;
    writeln!(io::stdout().lock(), "{text}")?;
    Ok(true)
}
