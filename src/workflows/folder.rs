//! The folder of workflows: each `<name>.json` in it is one.

use std::{
    collections::BTreeMap,
    ffi::OsStr,
    fs::{self, DirEntry},
    io::{self, ErrorKind, Read},
    path::Path,
};

use comfyd_actors::domain::workflow::check_name;

use super::{MAX_FILE, catalogue::Loaded};

/// The files by name, each as far as it can be used.
pub type Files = BTreeMap<String, Result<Loaded, Vec<String>>>;

/// Reads the folder. One that is not there is empty.
///
/// # Errors
/// When it is there and cannot be read.
pub fn read(dir: &Path) -> io::Result<Files> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Files::new()),
        Err(error) => return Err(error),
    };
    let mut files = Files::new();
    for entry in entries {
        if let Some((name, file)) = read_entry(&entry?) {
            files.insert(name, file);
        }
    }
    Ok(files)
}

fn read_entry(entry: &DirEntry) -> Option<(String, Result<Loaded, Vec<String>>)> {
    let path = entry.path();
    if path.extension() != Some(OsStr::new("json")) {
        return None;
    }
    let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
    let file = match check_name(&name) {
        Err(detail) => Err(vec![format!("the file's name: {detail}")]),
        Ok(()) => match read_text(&path) {
            Ok(text) => Loaded::parse(&text),
            // Between the listing and the reading it went away.
            Err(error) if error.kind() == ErrorKind::NotFound => return None,
            Err(error) => Err(vec![error.to_string()]),
        },
    };
    Some((name, file))
}

fn read_text(path: &Path) -> io::Result<String> {
    let limit = MAX_FILE as u64;
    let mut text = String::new();
    fs::File::open(path)?.take(limit + 1).read_to_string(&mut text)?;
    if text.len() as u64 > limit {
        return Err(io::Error::other(format!("larger than {limit} bytes, the most a workflow may have")));
    }
    Ok(text)
}
