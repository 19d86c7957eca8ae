//! The named workflows of this process: those built in, and over them those of a folder.

use std::{collections::BTreeMap, ffi::OsStr, fs, io::ErrorKind, path::Path};

use comfyd_actors::domain::workflow::Workflow;

/// Shipped in the binary, so that it runs from any folder.
const BUILT_IN: [(&str, &str); 1] = [("text-to-image", include_str!("../config/workflows/text-to-image.json"))];

/// Workflows by name. Read once at the start.
#[derive(Debug, Clone, Default)]
pub struct Workflows(BTreeMap<String, Workflow>);

impl Workflows {
    /// Those built in, and each `<name>.json` of the folder. A folder that is not there is no fault.
    ///
    /// # Errors
    /// Everything wrong with any file, each fault with the file's name.
    pub fn load(dir: &Path) -> Result<Self, Vec<String>> {
        let (mut all, mut faults) = (BTreeMap::new(), Vec::new());
        for (name, text) in BUILT_IN {
            add(&mut all, &mut faults, name, name, text);
        }
        let entries = match fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == ErrorKind::NotFound => return finish(all, faults),
            Err(error) => return Err(vec![format!("{}: {error}", dir.display())]),
        };
        for entry in entries {
            let path = match entry {
                Ok(entry) => entry.path(),
                Err(error) => {
                    faults.push(format!("{}: {error}", dir.display()));
                    continue;
                }
            };
            if path.extension() != Some(OsStr::new("json")) {
                continue;
            }
            let label = path.display().to_string();
            match (path.file_stem().and_then(OsStr::to_str), fs::read_to_string(&path)) {
                (Some(name), Ok(text)) => add(&mut all, &mut faults, name, &label, &text),
                (None, _) => faults.push(format!("{label}: the file's name is not text")),
                (_, Err(error)) => faults.push(format!("{label}: {error}")),
            }
        }
        finish(all, faults)
    }

    /// Those built in.
    ///
    /// # Errors
    /// Never, while the tests pass.
    pub fn built_in() -> Result<Self, Vec<String>> {
        Self::load(Path::new(""))
    }

    /// One of them.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Workflow> {
        self.0.get(name)
    }

    /// All names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}

fn add(all: &mut BTreeMap<String, Workflow>, faults: &mut Vec<String>, name: &str, label: &str, text: &str) {
    match Workflow::parse(text) {
        Ok(workflow) => {
            all.insert(name.to_owned(), workflow);
        }
        Err(found) => faults.extend(found.into_iter().map(|fault| format!("{label}: {fault}"))),
    }
}

fn finish(all: BTreeMap<String, Workflow>, faults: Vec<String>) -> Result<Workflows, Vec<String>> {
    if faults.is_empty() { Ok(Workflows(all)) } else { Err(faults) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_to_image_is_built_in_with_its_six_inputs() {
        let workflows = Workflows::built_in().unwrap();
        let inputs = workflows.get("text-to-image").unwrap().inputs();
        let names: Vec<&str> = inputs.iter().map(|input| input.name.as_str()).collect();
        assert_eq!(names, ["prompt", "negative_prompt", "seed", "steps", "width", "height"]);
    }

    #[test]
    fn a_folder_adds_and_replaces() {
        let dir = tempfile::tempdir().unwrap();
        let graph = r#"{"workflow": {"1": {"class_type": "A", "inputs": {"x": 1}}}, "inputs": ["x"]}"#;
        for name in ["mine.json", "text-to-image.json", "README.md"] {
            fs::write(dir.path().join(name), graph).unwrap();
        }
        let workflows = Workflows::load(dir.path()).unwrap();
        assert_eq!(workflows.names().collect::<Vec<_>>(), ["mine", "text-to-image"]);
        assert_eq!(workflows.get("text-to-image").unwrap().inputs().len(), 1);
        fs::write(dir.path().join("bad.json"), "{").unwrap();
        fs::write(dir.path().join("worse.json"), "{}").unwrap();
        assert_eq!(Workflows::load(dir.path()).unwrap_err().len(), 2);
    }
}
