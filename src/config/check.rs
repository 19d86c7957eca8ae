//! `comfyd check-config`: what is in force, where it came from, and all that is wrong with it.

use std::io::{self, Write};

use super::{Loaded, Sources, public_address_warning, read, reader::shown, sources};
use crate::workflows::Workflows;

/// Prints the configuration of this process and all its faults; false when there is any.
///
/// # Errors
/// When `out` cannot be written.
pub fn check(out: &mut impl Write) -> io::Result<bool> {
    let loaded = read(Sources::gather());
    let workflows = Workflows::faults(&loaded.config.workflows.dir);
    print(out, &loaded)?;
    let faults = loaded.faults.iter().map(ToString::to_string);
    let faults: Vec<String> = faults.chain(workflows).collect();
    let warnings = loaded
        .warnings
        .iter()
        .cloned()
        .chain(public_address_warning(&loaded.config.server))
        .chain(loaded.config.storage.warnings());
    report(out, &faults, &warnings.collect::<Vec<_>>())?;
    Ok(faults.is_empty())
}

/// One line per setting: key, value, source, and the names it has in the environment.
pub(super) fn print(out: &mut impl Write, loaded: &Loaded) -> io::Result<()> {
    let mut section = "";
    for (key, given) in &loaded.layers.settings {
        let (this, name) = key.split_once('.').unwrap_or(("", key));
        if this != section {
            writeln!(out, "{}[{this}]", if section.is_empty() { "" } else { "\n" })?;
            section = this;
        }
        let value = format!("{name} = {}", shown(key, &given.value));
        let short = sources::short_name_of(key).map(|name| format!("{name}, ")).unwrap_or_default();
        writeln!(out, "  {value:<46} {:<26} {short}{}", given.source, sources::variable_of(key))?;
    }
    Ok(())
}

fn report(out: &mut impl Write, faults: &[String], warnings: &[String]) -> io::Result<()> {
    writeln!(out)?;
    for warning in warnings {
        writeln!(out, "warning: {warning}")?;
    }
    for fault in faults {
        writeln!(out, "fault: {fault}")?;
    }
    match faults.len() {
        0 => writeln!(out, "The configuration is sound."),
        n => writeln!(out, "The configuration has {n} fault(s); comfyd would not start."),
    }
}
