//! What the server says about itself.

use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value as Json, json};

use super::{Shared, json};
use crate::server::Server;

/// The model folders of a fresh installation.
const FOLDERS: [&str; 27] = [
    "checkpoints",
    "configs",
    "loras",
    "vae",
    "text_encoders",
    "diffusion_models",
    "clip_vision",
    "style_models",
    "embeddings",
    "diffusers",
    "vae_approx",
    "controlnet",
    "gligen",
    "upscale_models",
    "latent_upscale_models",
    "custom_nodes",
    "datasets",
    "hypernetworks",
    "photomaker",
    "classifiers",
    "model_patches",
    "audio_encoders",
    "background_removal",
    "frame_interpolation",
    "geometry_estimation",
    "optical_flow",
    "detection",
];
const GIB: u64 = 1024 * 1024 * 1024;

pub(super) async fn system_stats(State(server): Shared) -> Response {
    let version = server.generation().version();
    let stats = json!({
        "system": {
            "os": "linux",
            "ram_total": 16 * GIB,
            "ram_free": 12 * GIB,
            "comfyui_version": version,
            "required_frontend_version": "1.0.0",
            "python_version": "3.12.1",
            "pytorch_version": "2.11.0+cpu",
            "embedded_python": false,
            "argv": ["main.py", "--fake"],
        },
        "devices": [{
            "name": "fake",
            "type": "cpu",
            "index": null,
            "vram_total": server.memory.total(),
            "vram_free": server.memory.free(),
            "torch_vram_total": server.memory.total(),
            "torch_vram_free": server.memory.free(),
        }],
    });
    json(StatusCode::OK, &stats)
}

pub(super) async fn features(State(server): Shared) -> Response {
    json(StatusCode::OK, &server.features())
}

pub(super) async fn object_info(State(server): Shared) -> Response {
    let lists = server.lists();
    let installed = server.installed();
    let all = installed.all().map(|(name, class)| {
        let info = lists.describe(&name, class);
        (name, info)
    });
    let info: Map<String, Json> = all.collect();
    json(StatusCode::OK, &info)
}

pub(super) async fn object_info_of(State(server): Shared, Path(name): Path<String>) -> Response {
    let lists = server.lists();
    let found = server.installed().find(&name).map(|class| lists.describe(&name, class));
    let info: Map<String, Json> = found.map(|info| (name, info)).into_iter().collect();
    json(StatusCode::OK, &info)
}

pub(super) async fn models() -> Response {
    json(StatusCode::OK, &FOLDERS)
}

pub(super) async fn models_in(State(server): Shared, Path(folder): Path<String>) -> Response {
    match names_in(&server, &folder) {
        Some(names) => json(StatusCode::OK, &names),
        None => StatusCode::NOT_FOUND.into_response(),
    }
}

fn names_in(server: &Server, folder: &str) -> Option<Vec<String>> {
    FOLDERS.contains(&folder).then(|| server.lists().models(folder))
}

pub(super) async fn embeddings() -> Response {
    json(StatusCode::OK, &Vec::<String>::new())
}

pub(super) async fn extensions() -> Response {
    json(StatusCode::OK, &Vec::<String>::new())
}
