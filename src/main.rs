//! The binary: reads the command line and the configuration, and hands over.

use std::{
    io::{self, Write},
    net::SocketAddr,
    process::ExitCode,
    sync::Arc,
};

use clap::Parser;
use comfyd::{
    app::{App, AppError},
    cli::{Cli, Command},
    clock::SystemClock,
    config::{self, Config, Faults},
    demo, doctor, healthcheck, lifecycle, telemetry,
};
use comfyd_actors::system::Role;
use fake_comfyui::FakeConfig;

/// The configuration is at fault, as `sysexits.h` has it.
const BAD_CONFIGURATION: u8 = 78;
/// The service gave up: an internal fault, worth a restart.
const GAVE_UP: u8 = 70;

fn main() -> ExitCode {
    match Cli::parse().command {
        Some(Command::CheckConfig) => match config::check(&mut io::stdout().lock()) {
            Ok(true) => ExitCode::SUCCESS,
            Ok(false) | Err(_) => ExitCode::FAILURE,
        },
        Some(Command::Doctor) => match config::load() {
            Ok((config, warnings)) => {
                let mut well = false;
                let examined = run(async {
                    well = doctor::run(&config, warnings, &mut io::stdout().lock()).await?;
                    Ok(())
                });
                if well { examined } else { ExitCode::FAILURE }
            }
            Err(faults) => misconfigured(&faults),
        },
        Some(Command::Openapi) => print(&format!("{:#}", comfyd::http::document(&[]))),
        Some(Command::MockComfyui { host, port, node_time, generation }) => {
            let addr = SocketAddr::new(host, port);
            let fake = FakeConfig { addr, node_time, generation, sampler_previews: true, ..FakeConfig::default() };
            run(async move { Ok(demo::mock(fake).await?) })
        }
        Some(Command::Demo { exit, port }) => with_config(|mut config| {
            // The bars are the demo's output; the log file has the rest.
            config.log.level = "warn".to_owned();
            (config.clone(), async move { demo::run(config, port, exit).await })
        }),
        Some(Command::Healthcheck) => {
            with_config(|config| (config.clone(), async move { healthcheck::run(&config).await }))
        }
        Some(Command::Api) => start(Role::Api),
        Some(Command::Consumer) => start(Role::Consumer),
        None => start(Role::Both),
    }
}

fn start(role: Role) -> ExitCode {
    with_config(|config| (config.clone(), async move { Ok(serve(role, config).await?) }))
}

async fn serve(role: Role, config: Config) -> Result<(), AppError> {
    let mut app = App::start_as(role, &config, Arc::new(SystemClock::start())).await?;
    lifecycle::until_stopped(&mut app, config.server.drain_delay).await
}

/// Reads the configuration, starts the logs and runs what `make` makes of it.
fn with_config<F>(make: impl FnOnce(Config) -> (Config, F)) -> ExitCode
where
    F: Future<Output = anyhow::Result<()>>,
{
    let (config, warnings) = match config::load() {
        Ok(loaded) => loaded,
        Err(faults) => return misconfigured(&faults),
    };
    let (config, work) = make(config);
    let _guard = match telemetry::init(&config.log) {
        Ok(guard) => guard,
        Err(error) => return fail(&anyhow::anyhow!("failed to start the logs: {error}")),
    };
    for warning in warnings {
        tracing::warn!("{warning}");
    }
    run(work)
}

fn run(work: impl Future<Output = anyhow::Result<()>>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return fail(&anyhow::Error::new(error).context("failed to start the runtime")),
    };
    match runtime.block_on(work) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

fn misconfigured(faults: &Faults) -> ExitCode {
    eprintln!("comfyd cannot start, the configuration is at fault:\n\n{faults}");
    ExitCode::from(BAD_CONFIGURATION)
}

fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("comfyd: {error:#}");
    match error.downcast_ref::<AppError>() {
        Some(AppError::GaveUp) => ExitCode::from(GAVE_UP),
        _ => ExitCode::FAILURE,
    }
}

fn print(text: &str) -> ExitCode {
    // A closed pipe is the reader's choice.
    _ = writeln!(io::stdout().lock(), "{text}");
    ExitCode::SUCCESS
}
