//! A property-based client that knows nothing of us but the OpenAPI document: whatever it makes up, no answer is a fault of ours, and
//! every answer is as the document says.

use std::time::Duration;

use crate::{
    support::world,
    tools::{python, root, run},
};

/// The client's own time; it goes on looking until it is spent. `COMFYD_PROPERTY_SECONDS` sets another.
const SECONDS: u64 = 90;

#[tokio::test(flavor = "multi_thread")]
async fn the_service_does_what_its_document_says() {
    let world = world().start().await;
    let seconds = std::env::var("COMFYD_PROPERTY_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(SECONDS);
    let folder = tempfile::tempdir().unwrap();
    let mut client = python();
    client
        .args(["-m", "schemathesis.cli", "--config-file"])
        .arg(root().join("tests/schemathesis.toml"))
        .args(["run", &world.url("/openapi.json"), "--no-color", "--max-time", &seconds.to_string()])
        .current_dir(folder.path());
    let output = run(client, Duration::from_secs(seconds + 300)).await;
    let report = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{report}\n{}", String::from_utf8_lossy(&output.stderr));
    // A run that found nothing to test would pass as well.
    assert!(report.contains("Tested"), "{report}");
}
