//! What it costs a client that its graph is held against what the server has.
//!
//! Two services by turns, one with validation and one without, on the same fake with 600 node classes; the difference of their medians
//! is the price. The graph is text-to-image: seven nodes, two of them with long lists. ComfyUI is busy with its first task, so
//! what is measured is taking tasks in.

mod common;

use common::{Fake, ROUNDS, Report, Service, folder, median, millis, timed};
use serde_json::{Value, json};

const CREATES: usize = 400;
/// The fake's own classes, this many times over and once more.
const COPIES: usize = 26;

fn main() {
    common::run(validation());
}

async fn validation() -> Report {
    let fake = Fake::with_copies(COPIES);
    fake.order(json!({"pause": true})).await;
    let (folder_with, folder_without) = (folder(), folder());
    let with = Service::start(folder_with.path(), &fake.url).await;
    let without = Service::start_with(folder_without.path(), &fake.url, &[("COMFYD_COMFYUI__VALIDATE", "off")]).await;
    let nodes = with.surveyed().await;
    without.online().await;
    let mut report = Report::default();
    report.note(format!("the server has {nodes} node classes"));
    let mut added = Vec::new();
    // The first round warms up connections, caches and allocators.
    for round in 0..=ROUNDS {
        let (mut validated, mut plain) = (Vec::new(), Vec::new());
        for number in 0..CREATES {
            let graph = text_to_image(round * CREATES + number);
            validated.push(timed(with.create(&graph)).await.0);
            plain.push(timed(without.create(&graph)).await.0);
        }
        if round == 0 {
            continue;
        }
        let (validated, plain) = (millis(median(&validated)), millis(median(&plain)));
        report.note(format!("p50 {validated:.3} ms with, {plain:.3} ms without"));
        added.push(validated - plain);
    }
    assert!(nodes >= 600, "a full shelf");
    report.at_most("validation, added to the p50 of a create", "ms", &added, 1.0);
    report
}

fn text_to_image(seed: usize) -> Value {
    json!({
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "v1-5-pruned-emaonly.safetensors"}},
        "2": {"class_type": "CLIPTextEncode", "inputs": {"text": "a lighthouse at dawn, waves, gulls", "clip": ["1", 1]}},
        "3": {"class_type": "CLIPTextEncode", "inputs": {"text": "blurry", "clip": ["1", 1]}},
        "4": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 512, "batch_size": 1}},
        "5": {"class_type": "KSampler", "inputs": {"model": ["1", 0], "seed": seed, "steps": 20, "cfg": 7.5,
            "sampler_name": "uni_pc_bh2", "scheduler": "kl_optimal", "positive": ["2", 0], "negative": ["3", 0],
            "latent_image": ["4", 0], "denoise": 1.0}},
        "6": {"class_type": "VAEDecode", "inputs": {"samples": ["5", 0], "vae": ["1", 2]}},
        "7": {"class_type": "SaveImage", "inputs": {"images": ["6", 0], "filename_prefix": "bench"}},
    })
}
