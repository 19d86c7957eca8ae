//! Arrows point one way: `domain` <- `ports` <- actors <- shell.
//!
//! The compiler keeps the outermost one, because this package does not list the crates that do I/O. The inner ones are kept here,
//! by reading the source: every path a file names is held against what its folder may name.

#![expect(
    clippy::disallowed_methods,
    clippy::expect_used,
    reason = "a test reads source files, and ends when it cannot"
)]

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

/// All this package may depend on. None of it opens a socket or a file by being there. A crate that does belongs to the shell,
/// behind a port.
const DEPENDENCIES: &[&str] = &[
    "async-trait",
    "bytes",
    "futures-util",
    // Names, headers and statuses; no protocol.
    "http",
    "humantime",
    "prometheus",
    "proptest",
    "ractor",
    "rand",
    "serde",
    "serde_json",
    "thiserror",
    "time",
    "tokio",
    "tokio-util",
    "tracing",
    "uuid",
];

/// Of these, what the domain may use: plain data. No runtime, no actor, no log, no dice.
const DOMAIN_CRATES: &[&str] = &["bytes", "humantime", "proptest", "serde", "serde_json", "thiserror", "time", "uuid"];

/// What reads or alters the world, or waits for it.
const OUTSIDE: &[&str] = &[
    "std::env",
    "std::fs",
    "std::net",
    "std::os",
    "std::process",
    "std::thread",
    "tokio::fs",
    "tokio::net",
    "tokio::process",
    "tokio::signal",
];

/// Reading a clock. `std::time` as a whole would hide it, so the domain names `Duration` alone.
const CLOCKS: &[&str] = &["std::time", "std::time::Instant", "std::time::SystemTime"];

#[test]
fn the_package_lists_no_io() {
    let manifest = read(&package().join("Cargo.toml"));
    let unexpected: Vec<_> =
        dependencies(&manifest).into_iter().filter(|name| !DEPENDENCIES.contains(&name.as_str())).collect();
    assert!(
        unexpected.is_empty(),
        "actors/Cargo.toml lists {unexpected:?}: does that do I/O? Then it belongs to the shell"
    );
}

#[test]
fn nobody_here_touches_the_outside() {
    check("", |path| (starts(path, OUTSIDE) || path == "std").then_some("I/O belongs to an adapter behind a port"));
}

#[test]
fn the_domain_is_plain_data_and_plain_functions() {
    let beyond = modules_beside("domain");
    let foreign = foreign_crates(DOMAIN_CRATES);
    check("domain", |path| {
        let last = path.rsplit("::").next().unwrap_or(path);
        if foreign.contains(segment(path, 0)) {
            Some("the domain uses no runtime, no actor, no log")
        } else if names_another_layer(path, &["domain"], &beyond, &foreign) {
            Some("the domain knows nobody but itself")
        } else if CLOCKS.contains(&path) || starts(path, &CLOCKS[1..]) || matches!(last, "now_utc" | "now_local") {
            Some("the domain is told the time")
        } else {
            starts(path, &["std::io"]).then_some("the domain does no I/O")
        }
    });
}

#[test]
fn ports_name_the_domain_and_no_actor() {
    let beyond = modules_beside("ports");
    let actors = BTreeSet::from(["ractor".to_owned()]);
    check_files("ports", |file, path| {
        // The one exception: what the HTTP server is handed is a bridge into the tree, which the core provides.
        if file.ends_with("ports/edge.rs") && path == "crate::bridge::Bridge" {
            return None;
        }
        names_another_layer(path, &["domain", "ports"], &beyond, &actors)
            .then_some("ports know the domain and each other, never an actor")
    });
}

#[test]
fn the_kit_names_the_domain_and_itself() {
    let beyond = modules_beside("kit");
    check("kit", |path| {
        names_another_layer(path, &["domain", "kit"], &beyond, &BTreeSet::new())
            .then_some("the kit serves all actors, so it knows none")
    });
}

/// Whether a path leads to a module of this package other than `allowed`, or into a crate of `foreign`.
fn names_another_layer(path: &str, allowed: &[&str], beyond: &BTreeSet<String>, foreign: &BTreeSet<String>) -> bool {
    match segment(path, 0) {
        "crate" => !allowed.contains(&segment(path, 1)),
        "super" => beyond.contains(after_supers(path)) && !allowed.contains(&after_supers(path)),
        first => foreign.contains(first),
    }
}

/// Holds every path named under `src/<folder>` (and `src/<folder>.rs`) against a rule, which gives the reason when it is broken.
fn check(folder: &str, rule: impl Fn(&str) -> Option<&'static str>) {
    check_files(folder, |_, path| rule(path));
}

fn check_files(folder: &str, rule: impl Fn(&Path, &str) -> Option<&'static str>) {
    let files = sources(folder);
    assert!(!files.is_empty(), "nothing found under src/{folder}: the layout changed, change this test with it");
    let mut broken = String::new();
    for file in files {
        for path in paths(&read(&file)) {
            if let Some(reason) = rule(&file, &path) {
                broken += &format!("{} names `{path}`: {reason}\n", file.display());
            }
        }
    }
    assert!(broken.is_empty(), "\n{broken}");
}

/// Every path of two segments or more that a source file names, with the trees of `use` written out: `use a::{b, c::{self, d}}` is
/// `a::b`, `a::c`, `a::d`. Comments and strings name nothing.
fn paths(source: &str) -> BTreeSet<String> {
    let tokens = tokens(source);
    let mut found = BTreeSet::new();
    let mut at = 0;
    while at < tokens.len() {
        if is_name(&tokens[at]) {
            at = path_from(&tokens, at, "", &mut found);
        } else {
            at += 1;
        }
    }
    found.retain(|path| path.contains("::"));
    found
}

/// Reads the path that begins at `at`, adds it to `found`, and returns where it ends.
fn path_from(tokens: &[String], mut at: usize, prefix: &str, found: &mut BTreeSet<String>) -> usize {
    let token = |at: usize| tokens.get(at).map_or("", String::as_str);
    let mut path = prefix.to_owned();
    loop {
        match token(at) {
            "{" => {
                at += 1;
                while !matches!(token(at), "}" | "") {
                    at = match token(at) {
                        "," => at + 1,
                        "as" => at + 2,
                        _ => path_from(tokens, at, &path, found).max(at + 1),
                    };
                }
                return at + 1;
            }
            // Everything below, or the module itself: its own path stands for both.
            "*" | "self" if !path.is_empty() => at += 1,
            name if is_name(name) => {
                path = if path.is_empty() { name.to_owned() } else { format!("{path}::{name}") };
                at += 1;
            }
            // A turbofish.
            _ => break,
        }
        if token(at) != "::" {
            break;
        }
        at += 1;
    }
    found.insert(path);
    at
}

fn is_name(token: &str) -> bool {
    token.starts_with(|first: char| first.is_alphabetic() || first == '_')
}

/// Names, `::`, and single characters; without comments and literals.
fn tokens(source: &str) -> Vec<String> {
    let mut tokens = Vec::new();
    let mut rest = source;
    while let Some(first) = rest.chars().next() {
        if rest.starts_with("//") {
            rest = rest.split_once('\n').map_or("", |(_, after)| after);
        } else if rest.starts_with("/*") {
            rest = rest.split_once("*/").map_or("", |(_, after)| after);
        } else if rest.starts_with("r\"") || rest.starts_with("r#\"") {
            let end = if rest.starts_with("r#") { "\"#" } else { "\"" };
            rest = rest.split_once('"').and_then(|(_, body)| body.split_once(end)).map_or("", |(_, after)| after);
        } else if first == '"' {
            rest = after_string(&rest[1..]);
        } else if rest.starts_with("'\"'") {
            rest = &rest[3..];
        } else if rest.starts_with("::") {
            tokens.push("::".to_owned());
            rest = &rest[2..];
        } else if is_name(&rest[..first.len_utf8()]) {
            let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            tokens.push(rest[..end].to_owned());
            rest = &rest[end..];
        } else {
            if !first.is_whitespace() {
                tokens.push(first.to_string());
            }
            rest = &rest[first.len_utf8()..];
        }
    }
    tokens
}

/// What follows the closing quote of a string whose opening quote is gone.
fn after_string(body: &str) -> &str {
    let mut escaped = false;
    for (at, c) in body.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => return &body[at + 1..],
            _ => {}
        }
    }
    ""
}

fn starts(path: &str, prefixes: &[&str]) -> bool {
    prefixes.iter().any(|prefix| path == *prefix || path.starts_with(&format!("{prefix}::")))
}

fn segment(path: &str, index: usize) -> &str {
    path.split("::").nth(index).unwrap_or("")
}

fn after_supers(path: &str) -> &str {
    path.split("::").find(|segment| *segment != "super").unwrap_or("")
}

/// The names of all dependencies of any kind.
fn dependencies(manifest: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let mut listing = false;
    for line in manifest.lines().map(str::trim) {
        if let Some(section) = line.strip_prefix('[') {
            let section = section.trim_end_matches(']');
            listing = section.ends_with("dependencies");
            names.extend(section.split_once("dependencies.").map(|(_, name)| name.to_owned()));
        } else if listing && !line.starts_with('#') {
            names.extend(line.split_once(['.', '=', ' ']).map(|(name, _)| name.trim_matches('"').to_owned()));
        }
    }
    names
}

/// The dependencies that are not in `allowed`, by the names code uses.
fn foreign_crates(allowed: &[&str]) -> BTreeSet<String> {
    DEPENDENCIES.iter().filter(|name| !allowed.contains(name)).map(|name| name.replace('-', "_")).collect()
}

/// The top-level modules beside `module`, without those whose name also occurs inside it.
fn modules_beside(module: &str) -> BTreeSet<String> {
    let stem = |path: &Path| path.file_stem().and_then(|stem| stem.to_str()).map(ToOwned::to_owned);
    let inside: BTreeSet<_> = sources(module).iter().filter_map(|path| stem(path)).collect();
    let top = fs::read_dir(package().join("src")).expect("src can be listed");
    let top = top.map(|entry| entry.expect("src can be listed").path());
    top.filter_map(|path| stem(&path)).filter(|name| !inside.contains(name)).collect()
}

/// All source files of a module, or of the package when it is empty.
fn sources(module: &str) -> Vec<PathBuf> {
    let src = package().join("src");
    let mut found: Vec<_> = [src.join(format!("{module}.rs"))].into_iter().filter(|file| file.is_file()).collect();
    let mut folders = vec![src.join(module)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten() {
            let path = entry.expect("the folder can be listed").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(path);
            }
        }
    }
    found
}

fn package() -> &'static Path {
    // Tests run in their package's folder. Its path is not compiled in: one built in a clone may be run in another.
    Path::new(".")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn paths_are_found_wherever_they_hide() {
    let source = r##"
        //! std::fs in a comment
        use std::{fmt, fs as files, time::{self, Duration}, collections::*};
        pub(crate) use super::super::bridge::{Bridge, Parts as P};
        fn f(x: Vec<tokio::time::Instant>) -> u8 { let s = "std::net \" std::net"; r#"std::env"#; g::<std::io::Error>('"') }
        /* std::process */ struct S<'a> { a: &'a crate::kit::Slot<()>, b: f::Turbo::<u8> }
    "##;
    let found: Vec<_> = paths(source).into_iter().collect();
    assert_eq!(
        found,
        [
            "crate::kit::Slot",
            "f::Turbo",
            "std::collections",
            "std::fmt",
            "std::fs",
            "std::io::Error",
            "std::time",
            "std::time::Duration",
            "super::super::bridge::Bridge",
            "super::super::bridge::Parts",
            "tokio::time::Instant",
        ]
    );
}

#[test]
fn dependencies_are_found_in_every_spelling() {
    let manifest = "[package]\nname = \"x\"\n[dependencies]\na.workspace = true\n# no = 1\n\"b\" = \"1\"\nc = { path = \"\" }\n\
                    [dev-dependencies.d]\nversion = \"1\"\n[target.'cfg(unix)'.build-dependencies]\ne-f=\"1\"\n[lints]\nworkspace = true\n";
    let found: Vec<_> = dependencies(manifest).into_iter().collect();
    assert_eq!(found, ["a", "b", "c", "d", "e-f"]);
}
