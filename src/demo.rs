//! `comfyd demo`: the whole service beside a pretended ComfyUI, and three tasks through the real REST path, before your eyes.

use std::{net::IpAddr, path::Path, time::Duration};

use anyhow::{Context, bail};
use comfyd_actors::domain::{id::TaskId, storage::LOCAL};
use fake_comfyui::{FakeComfy, FakeConfig};
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use reqwest::Client;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::{
    app::App,
    config::{Config, SecretUrl},
};

/// How long the pretended GPU works on one picture: long enough to watch, short enough to wait for.
const PICTURE_TIME: Duration = Duration::from_millis(2_500);
/// How often the progress bars are redrawn.
const REDRAW: Duration = Duration::from_millis(100);
/// Nobody waits longer for a demo.
const PATIENCE: Duration = Duration::from_secs(120);

/// What is drawn, in the order of submission.
const WISHES: [(&str, &str, u64); 3] = [
    ("low", "a lonely lighthouse by the sea at night, stars", 7),
    ("normal", "misty mountains at sunrise", 21),
    ("high", "a lake in a forest, golden sunset", 42),
];

/// Runs the demo. With `exit` it ends when the pictures are there, else when the user stops it.
///
/// # Errors
/// Whatever keeps the service from starting or a task from completing.
pub async fn run(mut config: Config, port: Option<u16>, exit: bool) -> anyhow::Result<()> {
    let fake = FakeConfig { node_time: PICTURE_TIME, sampler_previews: true, ..FakeConfig::default() };
    let fake = FakeComfy::start(fake).await.context("failed to start the built-in ComfyUI")?;
    config.comfyui.urls = vec![SecretUrl::new(fake.url())];
    config.comfyui.headers.clear();
    // It shows files, so they have to be here.
    config.storage.usual = LOCAL.to_owned();
    config.server.host = IpAddr::from([127, 0, 0, 1]);
    config.server.port = port.unwrap_or(0);
    // With three tasks, one prepared ahead would hide that the urgent one overtakes.
    config.queue.prepare_ahead = 0;
    let mut app = App::start(&config).await?;
    let base = format!("http://{}", app.address());
    println!("comfyd is running at {base}, with a built-in ComfyUI at {}\n", fake.url());

    draw_all(&app, &base, &config.storage.local_dir).await?;
    if exit {
        app.shut_down();
        return Ok(app.ended().await?);
    }
    invite(&base, &fake.url());
    crate::lifecycle::until_stopped(&mut app, Duration::ZERO).await?;
    Ok(())
}

/// Three tasks at once. The first runs at once, because nothing else is there; then the most urgent overtakes.
async fn draw_all(app: &App, base: &str, outputs: &Path) -> anyhow::Result<()> {
    println!(
        "Three tasks, the least urgent first: it starts because nothing else waits, then the urgent one overtakes.\n"
    );
    let client = Client::builder().no_proxy().timeout(PATIENCE).build()?;
    let bars = MultiProgress::new();
    let mut tasks = Vec::new();
    let mut watchers = JoinSet::new();
    for (priority, prompt, seed) in WISHES {
        let id = create(&client, base, priority, prompt, seed).await?;
        let bar = bars.add(ProgressBar::new(100).with_style(style()?).with_prefix(format!("{priority:>6}")));
        watchers.spawn(watch(client.clone(), format!("{base}/api/tasks/{id}"), bar));
        tasks.push((id, prompt));
    }
    while let Some(watched) = watchers.join_next().await {
        watched??;
    }
    println!("\nThe files they made:");
    for (id, prompt) in tasks {
        let (record, _) = app.bridge().context("the demo serves clients")?.get(id.parse::<TaskId>()?).await?;
        for object in record.artifacts.iter().filter_map(|artifact| artifact.object.as_ref()) {
            println!("  {}  ({prompt})", outputs.join(&object.key).display());
        }
    }
    Ok(())
}

async fn create(client: &Client, base: &str, priority: &str, prompt: &str, seed: u64) -> anyhow::Result<String> {
    let body = json!({
        "workflow": "text-to-image",
        "inputs": {"prompt": prompt, "seed": seed, "steps": 20, "width": 640, "height": 448},
        "priority": priority,
    });
    let response = client.post(format!("{base}/api/tasks/create")).json(&body).send().await?;
    let (status, answer) = (response.status(), response.json::<Value>().await?);
    match answer["task_id"].as_str() {
        Some(id) => Ok(id.to_owned()),
        None => bail!("the task was not accepted ({status}): {answer}"),
    }
}

/// Follows one task as any client would.
async fn watch(client: Client, url: String, bar: ProgressBar) -> anyhow::Result<()> {
    // Bars need a terminal; without one each stage is a line.
    let plain = bar.is_hidden();
    let mut shown = String::new();
    loop {
        let task: Value = client.get(&url).send().await?.json().await?;
        let stage = task["stage"].as_str().unwrap_or("?").to_owned();
        if plain && stage != shown {
            println!("  {:>6}  {stage}", bar.prefix());
            shown.clone_from(&stage);
        }
        bar.set_position(task["progress"]["percent"].as_u64().unwrap_or(0));
        match task["status"].as_str() {
            Some("completed") => {
                let total = task["timings"]["total_ms"].as_u64().unwrap_or(0);
                bar.set_position(100);
                bar.finish_with_message(format!("completed after {:.1} s", Duration::from_millis(total).as_secs_f32()));
                return Ok(());
            }
            Some("failed" | "cancelled") => {
                bar.abandon_with_message(stage);
                bail!("a task of the demo ended badly: {}", task["error"]);
            }
            _ => bar.set_message(stage),
        }
        tokio::time::sleep(REDRAW).await;
    }
}

fn style() -> anyhow::Result<ProgressStyle> {
    Ok(ProgressStyle::with_template("  {prefix}  [{bar:32}] {pos:>3} %  {msg}")?.progress_chars("=> "))
}

fn invite(base: &str, fake: &str) {
    println!(
        r#"
Try it yourself:

  curl {base}/api/tasks
  curl -X POST {base}/api/tasks/create -H 'content-type: application/json' \
       -d '{{"workflow": "text-to-image", "inputs": {{"prompt": "a castle in the snow", "seed": 1}}}}'
  curl {base}/api/status

  {base}/docs     every operation, in your browser
  {fake}     the built-in ComfyUI

Press Ctrl-C to stop. The tasks and their files stay in data/."#
    );
}

/// `comfyd mock-comfyui`: only the pretended ComfyUI, until the user stops it.
///
/// # Errors
/// The address is taken.
pub async fn mock(config: FakeConfig) -> std::io::Result<()> {
    let fake = FakeComfy::start(config).await?;
    let url = fake.url();
    println!(
        "a pretended ComfyUI listens at {url}\n\n  curl {url}/system_stats\n  curl -X POST {url}/fake/control -d '{{\"fault\": \
         \"drop_sockets\"}}'\n  curl {url}/fake/log\n\nPress Ctrl-C to stop."
    );
    tokio::signal::ctrl_c().await?;
    fake.shutdown().await;
    Ok(())
}
