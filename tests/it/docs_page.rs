//! `/docs` in a real browser that can reach nothing but this machine.

use std::{
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use crate::support::world;

/// The browser, with nothing to resolve names with: whatever the page fetches from the internet fails.
pub fn browser(profile: &Path) -> Command {
    let program = std::env::var("CHROMIUM").unwrap_or_else(|_| "chromium".to_owned());
    let mut command = Command::new(program);
    command
        .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"])
        .args(["--no-first-run", "--disable-dev-shm-usage", "--virtual-time-budget=10000"])
        .arg("--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1")
        .arg(format!("--user-data-dir={}", profile.display()))
        .env_remove("http_proxy")
        .env_remove("https_proxy")
        .arg("--no-proxy-server")
        .stdin(Stdio::null());
    command
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_every_operation_without_the_internet() {
    let world = world().start().await;
    let profile = tempfile::tempdir().unwrap();
    let mut browser = browser(profile.path());
    browser.arg("--dump-dom").arg(world.url("/docs/"));
    let shown = tokio::task::spawn_blocking(move || browser.output());
    // The browser, a whole one, is slow to start on a busy machine.
    let shown = tokio::time::timeout(Duration::from_secs(120), shown).await.unwrap();
    let shown = shown.unwrap().expect("needs Chromium: set CHROMIUM to its program, or have it in PATH");
    let page = String::from_utf8_lossy(&shown.stdout);

    let document = world.get("/openapi.json").await;
    let paths = document["paths"].as_object().unwrap();
    assert!(paths.contains_key("/api/tasks/create"));
    for path in paths.keys() {
        assert!(page.contains(&format!("data-path=\"{path}\"")), "{path} is not shown: {page}");
    }
    assert!(page.contains("comfyd"), "the title is not shown");
}
