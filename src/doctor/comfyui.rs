//! A `ComfyUI` server: whether it answers in every way the service uses it, what it is, and which workflows it can run.

use std::{collections::BTreeMap, sync::Arc};

use axum::http::{HeaderMap, Method, header};
use comfyd_actors::{
    domain::{
        catalogue::Catalogue,
        check::{self, Lack, Terms},
        id::{ClientId, WorkerId},
        memory,
        passthrough::Target,
        prompt::Abilities,
        workflow::Workflow,
    },
    ports::{clock::Clock, comfy::ComfyTransport, passthrough::Relay},
};
use serde_json::Value;

use super::{clock, report::Section, store::Kept};
use crate::{clock::SystemClock, config::Config, http::is_placeholder, workflows::Workflows};

/// Faults of one workflow that are told.
const MAX_TOLD: usize = 5;

/// What is to run there.
pub(super) struct Wanted {
    name: String,
    workflow: Arc<Workflow>,
    /// Shipped with the program, so that nobody may care for it.
    built_in: bool,
}

/// What each name means, as far as it can be read; what cannot is a fault of the configuration.
pub(super) fn workflows(config: &Config, kept: Vec<Kept>) -> Vec<Wanted> {
    let shipped = Workflows::built_in().into_iter().map(|(name, workflow)| (name, (workflow, true)));
    let filed =
        Workflows::in_folder(&config.workflows.dir).into_iter().map(|(name, workflow)| (name, (workflow, false)));
    let published =
        kept.into_iter().filter_map(|(name, text)| Some((name, (Arc::new(Workflow::parse(&text).ok()?), false))));
    // Later wins, as in the service.
    let all: BTreeMap<String, (Arc<Workflow>, bool)> = shipped.chain(filed).chain(published).collect();
    all.into_iter().map(|(name, (workflow, built_in))| Wanted { name, workflow, built_in }).collect()
}

pub(super) async fn examine(comfy: &dyn ComfyTransport, config: &Config, workflows: &[Wanted]) -> Section {
    let mut section = Section::new(format!("ComfyUI  {}", comfy.id()));
    let abilities = match comfy.check().await {
        Ok(abilities) => abilities,
        Err(error) => {
            section.bad(
                format!("it does not answer: {error}"),
                "start it (`python main.py --listen`), or correct COMFYUI_URL; behind a login, set COMFYUI_HEADERS",
            );
            return section;
        }
    };
    describe(&mut section, comfy, abilities).await;
    compare_clocks(&mut section, comfy).await;
    let client = ClientId::fresh(&config.comfyui.client_id, &WorkerId::starting("doctor"));
    match comfy.connect(&client).await {
        Ok(_) => section.good("its WebSocket opens"),
        Err(error) => section.bad(
            format!("its WebSocket does not open: {error}"),
            "let whatever stands between pass WebSockets on to /ws: without them the service gives it no work",
        ),
    }
    match comfy.object_info().await {
        Ok(catalogue) => judge(&mut section, &catalogue, workflows),
        Err(error) => section.bad(
            format!("it does not tell what it has (/object_info): {error}"),
            "look into its log; a custom node that fails to list its models is the usual cause",
        ),
    }
    section
}

async fn describe(section: &mut Section, comfy: &dyn ComfyTransport, abilities: Abilities) {
    let stats = match comfy.system_stats().await {
        Ok(stats) => stats,
        Err(error) => return section.odd(format!("it does not tell what it is (/system_stats): {error}"), ""),
    };
    section.good(nature(&stats));
    if !abilities.jobs {
        section.odd(
            "it is of an older generation, without /api/jobs: everything works, with more questions to it",
            "update it when you can",
        );
    }
}

/// What a server is, in a line.
fn nature(stats: &Value) -> String {
    let word = |pointer: &str| stats.pointer(pointer).and_then(Value::as_str);
    let mut parts = vec![format!("ComfyUI {}", word("/system/comfyui_version").unwrap_or("of unknown version"))];
    parts.extend(word("/system/pytorch_version").map(|version| format!("PyTorch {version}")));
    let names = stats.get("devices").and_then(Value::as_array).into_iter().flatten();
    let names = names.map(|device| device.get("name").and_then(Value::as_str).unwrap_or("a device"));
    parts.extend(names.zip(memory::of_devices(stats)).map(|(name, memory)| match memory {
        Some(memory) => format!("{name} with {} of {} free", gibibytes(memory.free), gibibytes(memory.total)),
        None => name.to_owned(),
    }));
    parts.join(", ")
}

#[expect(clippy::cast_precision_loss, reason = "one digit is shown")]
fn gibibytes(bytes: u64) -> String {
    format!("{:.1} GiB", bytes as f64 / f64::from(1 << 30))
}

async fn compare_clocks(section: &mut Section, comfy: &dyn ComfyTransport) {
    let Ok(target) = Target::parse("prompt") else { return };
    let question = Relay { method: Method::GET, target, query: None, headers: HeaderMap::new(), body: None };
    let ours = SystemClock::start();
    let asked = ours.now();
    if let Ok(answer) = comfy.relay(question).await {
        let date = answer.headers().get(header::DATE).and_then(|date| date.to_str().ok());
        clock::compare(section, date, (asked, ours.now()));
    }
}

fn judge(section: &mut Section, catalogue: &Catalogue, workflows: &[Wanted]) {
    let (mut can, mut cannot) = (Vec::new(), Vec::new());
    for wanted in workflows {
        let faults = faults(catalogue, &wanted.workflow);
        if faults.is_empty() { can.push(wanted.name.as_str()) } else { cannot.push((wanted, faults)) }
    }
    section.good(format!("it has {} node classes", catalogue.len()));
    if !can.is_empty() {
        section.good(format!("it can run {}", can.join(", ")));
    }
    for (Wanted { name, built_in, .. }, faults) in cannot {
        let what = format!("it cannot run {name}: {}", told(&faults));
        if *built_in {
            section.odd(
                what,
                format!("{} if you want this workflow; it is shipped with comfyd as an example", remedy(&faults)),
            );
        } else {
            section.bad(what, remedy(&faults));
        }
    }
}

fn faults(catalogue: &Catalogue, workflow: &Workflow) -> Vec<check::Fault> {
    let Some(nodes) = workflow.graph().as_object() else { return Vec::new() };
    // A file that whoever runs it gives. Its name in the workflow is an example.
    let given = |node: &str, field: &str| {
        workflow.inputs().iter().any(|input| input.kind.is_file() && input.node == node && input.field == field)
    };
    let is_placeholder =
        |node: &str, field: &str, value: &Value| given(node, field) || is_placeholder(node, field, value);
    check::check(nodes, catalogue, Terms { allow_partial: false, is_placeholder: &is_placeholder })
}

fn told(faults: &[check::Fault]) -> String {
    let place = |fault: &check::Fault| match (&fault.node, &fault.input) {
        (Some(node), Some(input)) => format!("node {node}, {input}: "),
        (Some(node), None) => format!("node {node}: "),
        _ => String::new(),
    };
    let mut told: Vec<_> =
        faults.iter().take(MAX_TOLD).map(|fault| format!("{}{}", place(fault), fault.detail)).collect();
    if faults.len() > MAX_TOLD {
        told.push(format!("and {} more", faults.len() - MAX_TOLD));
    }
    told.join("; ")
}

fn remedy(faults: &[check::Fault]) -> &'static str {
    let lacks = |wanted: fn(&Lack) -> bool| faults.iter().filter_map(|fault| fault.lack.as_ref()).any(wanted);
    match (lacks(|lack| matches!(lack, Lack::Class(_))), lacks(|lack| matches!(lack, Lack::Value(_)))) {
        (true, true) => "install the custom nodes and the models that it needs on that server",
        (true, false) => "install the custom nodes that it needs on that server, and restart it",
        (false, true) => "put the models that it needs into that server's folders, or name those that are there",
        (false, false) => "correct the workflow",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_server_is_told_in_a_line() {
        let stats = json!({
            "system": {"comfyui_version": "0.3.64", "pytorch_version": "2.8.0+cu128"},
            "devices": [{"name": "cuda:0 NVIDIA", "vram_total": 25_769_803_776_u64, "vram_free": 1_073_741_824}, {}],
        });
        let line = "ComfyUI 0.3.64, PyTorch 2.8.0+cu128, cuda:0 NVIDIA with 1.0 GiB of 24.0 GiB free, a device";
        assert_eq!(nature(&stats), line);
        assert_eq!(nature(&json!({})), "ComfyUI of unknown version");
    }
}
