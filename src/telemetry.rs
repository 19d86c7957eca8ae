//! Logs: to stdout, and to one file a day in `logs/`, of which `app.log` is always the newest.
//!
//! A folder that cannot be written is told and lived with: a full disk must not stop the service that could say so.

use std::io;

use tracing_appender::{
    non_blocking::WorkerGuard,
    rolling::{RollingFileAppender, Rotation},
};
use tracing_subscriber::{EnvFilter, Layer, Registry, fmt, layer::SubscriberExt, util::SubscriberInitExt};

use crate::config::{Format, Log};

/// Days of logs kept.
const DAYS: usize = 7;

type BoxedLayer = Box<dyn Layer<Registry> + Send + Sync>;

/// Writes out what is still buffered when dropped: keep it until the end of `main`.
#[must_use = "lines still buffered are lost when this is dropped early"]
pub struct Guard(#[expect(dead_code, reason = "held for its drop")] Option<WorkerGuard>);

/// Starts logging for the whole process.
///
/// # Errors
/// When the filter cannot be read or logging was started before.
pub fn init(config: &Log) -> Result<Guard, Box<dyn std::error::Error + Send + Sync>> {
    let (file, warning) = match open(config) {
        Ok(file) => (Some(file), None),
        Err(error) => (None, Some(error)),
    };
    let (writer, guard) = file.map(tracing_appender::non_blocking).unzip();
    let mut layers: Vec<BoxedLayer> = vec![layer(config, true, io::stdout)?];
    if let Some(writer) = writer {
        layers.push(layer(config, false, writer)?);
    }
    tracing_subscriber::registry().with(layers).try_init()?;
    if let Some(error) = warning {
        tracing::warn!(dir = %config.dir.display(), %error, "no log file: the folder cannot be written, logs go to stdout only");
    }
    Ok(Guard(guard))
}

fn open(config: &Log) -> Result<RollingFileAppender, Box<dyn std::error::Error + Send + Sync>> {
    std::fs::create_dir_all(&config.dir)?;
    // Absolute, because the link's text is taken relative to the folder it lies in.
    let dir = config.dir.canonicalize()?;
    // A file left by other means under the name of the link would keep the link from being made.
    let link = dir.join("app.log");
    if link.symlink_metadata().is_ok_and(|meta| meta.is_file()) {
        std::fs::rename(&link, dir.join("app.previous.log"))?;
    }
    let appender = RollingFileAppender::builder()
        .rotation(Rotation::DAILY)
        .filename_prefix("app")
        .filename_suffix("log")
        .latest_symlink("app.log")
        .max_log_files(DAYS)
        .build(&dir)?;
    Ok(appender)
}

fn layer<W>(config: &Log, colours: bool, writer: W) -> Result<BoxedLayer, String>
where
    W: for<'a> fmt::MakeWriter<'a> + Send + Sync + 'static,
{
    let filter = filter(&config.level)?;
    Ok(match config.format {
        Format::Json => fmt::layer()
            .json()
            .flatten_event(true)
            .with_current_span(true)
            .with_span_list(false)
            .with_writer(writer)
            .with_filter(filter)
            .boxed(),
        Format::Text => fmt::layer()
            .with_ansi(colours && io::IsTerminal::is_terminal(&io::stdout()))
            .with_writer(writer)
            .with_filter(filter)
            .boxed(),
    })
}

/// Reads `LOG_LEVEL`: a word in any case, or filter directives.
///
/// # Errors
/// What is wrong with it, in words.
pub fn filter(text: &str) -> Result<EnvFilter, String> {
    let word = text.trim().to_ascii_lowercase();
    let directives = match word.as_str() {
        "warning" => "warn",
        "critical" | "fatal" => "error",
        "error" | "warn" | "info" | "debug" | "trace" | "off" => &word,
        _ if !word.contains(['=', ',']) => {
            return Err("expected error, warn, info, debug or trace, or directives such as info,comfyd=debug".into());
        }
        _ => text.trim(),
    };
    EnvFilter::builder().parse(directives).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_words_or_directives() {
        for good in ["INFO", "Warning", "debug", "info,comfyd=debug", "comfyd_actors=trace"] {
            assert!(filter(good).is_ok(), "{good}");
        }
        for bad in ["", "loud", "info;debug", "a=b=c,,"] {
            assert!(filter(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn the_newest_file_has_a_stable_name() {
        // A relative folder, as the default is.
        let dir = tempfile::tempdir_in(".").unwrap();
        std::fs::write(dir.path().join("app.log"), "old").unwrap();
        let config = Log { level: "info".into(), dir: dir.path().into(), format: Format::Text };
        let mut file = open(&config).unwrap();
        io::Write::write_all(&mut file, b"line\n").unwrap();
        assert_eq!(std::fs::read_to_string(dir.path().join("app.log")).unwrap(), "line\n");
        assert_eq!(std::fs::read_to_string(dir.path().join("app.previous.log")).unwrap(), "old");
        let blocked = Log { dir: dir.path().join("app.log").join("x"), ..config };
        assert!(open(&blocked).is_err());
    }

    #[test]
    fn a_task_is_on_every_line_about_it() {
        let dir = tempfile::tempdir().unwrap();
        // Only our own lines, so that the other tests of this process stay silent.
        let level = "comfyd::telemetry=info".to_owned();
        let guard = init(&Log { level, dir: dir.path().into(), format: Format::Json }).unwrap();
        tracing::info_span!("request", task.id = "t-1").in_scope(|| tracing::info!(answer = 42, "told"));
        drop(guard);
        let line = std::fs::read_to_string(dir.path().join("app.log")).unwrap();
        let line: serde_json::Value = serde_json::from_str(line.lines().next().unwrap()).unwrap();
        assert_eq!(
            (&line["message"], &line["answer"], &line["span"]["task.id"]),
            (&"told".into(), &42.into(), &"t-1".into())
        );
    }
}
