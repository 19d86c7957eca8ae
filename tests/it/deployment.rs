//! What is in `docker/`: that its files are well formed, name settings there are and addresses that are served, and keep to the rules of
//! the image. Whether they run is for engines to say, see `docker/smoke`; the root file system of the image is run here.

use std::{collections::BTreeMap, fs, path::Path, time::Duration};

use comfyd::config::{self, Config, Sources};
use serde_json::{Map, Value};

use crate::tools;

/// What the names of the files are relative to.
const ROOT: &str = env!("CARGO_MANIFEST_DIR");
/// Each file as the list of its documents, in JSON.
const READ: &str = r#"
import json, sys, yaml
class Loader(yaml.SafeLoader): pass
Loader.add_constructor("!reset", lambda loader, node: None)
print(json.dumps({name: [it for it in yaml.load_all(open(name), Loader) if it] for name in sys.argv[1:]}))
"#;

const COMPOSE: [&str; 5] = [
    "compose.yaml",
    "docker/compose.one-box.yaml",
    "docker/compose.cpu.yaml",
    "docker/compose.cluster.yaml",
    "docker/compose.remote.yaml",
];

fn read(name: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

fn documents(names: &[&str]) -> BTreeMap<String, Vec<Value>> {
    let output = tools::python().current_dir(ROOT).args(["-c", READ]).args(names).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A text as Compose reads it when nothing is set: `${NAME:-default}`, `${NAME:?why}`.
fn interpolated(text: &str) -> String {
    let Some((before, rest)) = text.split_once("${") else { return text.to_owned() };
    let (inside, after) = rest.split_once('}').unwrap();
    let value = match inside.split_once(':') {
        Some((_, default)) if default.starts_with('-') => &default[1..],
        _ => "something-long-and-random",
    };
    format!("{before}{value}{}", interpolated(after))
}

fn text(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// The configuration of a service with this environment, every name of which has to be a setting of ours, and every value a good one.
fn configured(place: &str, environment: &[(String, String)]) -> Config {
    let sources = |pairs: Vec<(String, String)>| Sources { env: pairs, ..Sources::default() };
    for (name, _) in environment {
        let read = config::read(sources(vec![(name.clone(), "x".to_owned())]));
        let source = format!("environment: {name}");
        let is_known = read.layers.settings.values().any(|given| given.source == source);
        assert!(is_known || name == "PATH" || name == "COMFYD_CONFIG", "{place}: there is no setting {name}");
    }
    let loaded = config::read(sources(environment.to_vec()));
    assert!(loaded.faults.is_empty(), "{place}: {:?}", loaded.faults);
    loaded.config
}

/// How long a service takes to end in its own time, at most.
fn ending(config: &Config) -> Duration {
    config.server.drain_delay + config.server.drain_grace * 2
}

/// Whether something is served under this path: in the document of the API, of which consumers serve these, too.
fn demand_served(place: &str, path: &str) {
    let document = serde_json::to_value(comfyd::http::document(&[])).unwrap();
    assert!(document["paths"].get(path).is_some(), "{place}: nothing is served at {path}");
}

fn compose_environment(service: &Value) -> Vec<(String, String)> {
    let pairs = service["environment"].as_object().into_iter().flatten();
    pairs.map(|(name, value)| (name.clone(), interpolated(&text(value)))).collect()
}

fn has(list: &Value, wanted: &str) -> bool {
    list.as_array().is_some_and(|list| list.iter().any(|item| text(item).contains(wanted)))
}

#[test]
fn compose_files_name_settings_and_keep_to_the_rules() {
    let image = read("docker/Dockerfile");
    for (file, documents) in documents(&COMPOSE) {
        let services = documents[0]["services"].as_object().unwrap();
        // What is laid over another file says only what differs.
        for (name, service) in services.iter().filter(|(_, service)| service["image"] != "comfyui-cpu") {
            let place = format!("{file}, {name}");
            assert_eq!(service["read_only"], true, "{place}");
            assert!(has(&service["cap_drop"], "ALL") && has(&service["tmpfs"], "/tmp"), "{place}");
            assert!(service["privileged"].is_null() && service["user"].is_null(), "{place}");
            assert_eq!(service["restart"], "unless-stopped", "{place}");
            for (name, value) in service["environment"].as_object().into_iter().flatten() {
                let is_secret = ["PASSWORD", "TOKEN", "SECRET"].iter().any(|word| name.contains(word));
                assert!(!is_secret || text(value).starts_with("${"), "{place}: {name} belongs into .env");
            }
            if service["image"] == "comfyd" {
                demand_sound(&place, service);
            } else {
                let inside = service["image"] == "comfyui";
                assert!(inside || service["healthcheck"]["test"].is_array(), "{place}: nobody sees whether it is well");
            }
            for other in service["depends_on"].as_object().into_iter().flat_map(Map::keys) {
                assert!(services.contains_key(other), "{place}: there is no {other}");
            }
        }
    }
    // Those of comfyd and ComfyUI come with their images.
    for image in [&image, &read("docker/comfyui.Dockerfile")] {
        assert!(image.contains("\nHEALTHCHECK ") && image.contains("\nUSER 65532"), "{image}");
    }
}

fn demand_sound(place: &str, service: &Value) {
    let config = configured(place, &compose_environment(service));
    assert!(!config.server.host.is_loopback(), "{place}: nobody reaches it in its container");
    let grace = humantime::parse_duration(&text(&service["stop_grace_period"])).unwrap();
    assert!(grace > ending(&config), "{place}: it is killed before it has ended");
    assert!(has(&service["security_opt"], "no-new-privileges:true"), "{place}");
    let role = service["command"][0].as_str().unwrap_or_default();
    assert!(["", "api", "consumer"].contains(&role), "{place}: {role}");
    let named = service["hostname"].is_string();
    assert!(role == "api" || named, "{place}: under another name after each update it does not find what is its own");
    assert_eq!(service["build"]["dockerfile"], "docker/Dockerfile", "{place}");
}

#[test]
fn no_two_consumers_of_a_compose_file_have_one_name() {
    for (file, documents) in documents(&COMPOSE) {
        let services = documents[0]["services"].as_object().unwrap().values();
        let mut names: Vec<String> =
            services.filter_map(|service| service["hostname"].as_str()).map(str::to_owned).collect();
        let all = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all, "{file}");
    }
}

#[test]
fn proxies_reach_what_is_there() {
    let files = documents(&COMPOSE);
    for (proxy, compose) in [("cluster", "docker/compose.cluster.yaml"), ("remote", "docker/compose.remote.yaml")] {
        let place = format!("docker/caddy/Caddyfile.{proxy}");
        let rules = read(&place);
        let services = files[compose][0]["services"].as_object().unwrap();
        let mut upstreams = 0;
        for line in rules.lines().map(str::trim) {
            if let Some(targets) = line.strip_prefix("reverse_proxy ") {
                for (host, port) in targets.split(' ').filter_map(|target| target.split_once(':')) {
                    let service = services.get(host).unwrap_or_else(|| panic!("{place}: there is no {host}"));
                    let config = configured(compose, &compose_environment(service));
                    assert_eq!(config.server.port.to_string(), port, "{place}");
                    upstreams += 1;
                }
            }
            if let Some(path) = line.strip_prefix("health_uri ") {
                demand_served(&place, path);
            }
        }
        assert!(upstreams > 0 && rules.contains("flush_interval -1"), "{place}: events have to go out as they come");
        let open = rules.lines().find_map(|line| line.trim().strip_prefix("@people not path "));
        if let Some(path) = open {
            demand_served(&place, &path.replace('*', "{verb}"));
        }
    }
}

/// All of the folder, by kind and name.
fn manifests() -> BTreeMap<(String, String), Value> {
    let folder = Path::new(ROOT).join("docker/kubernetes");
    let entries = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let names: Vec<String> = entries.map(|name| format!("docker/kubernetes/{name}")).collect();
    let files = documents(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let of = |it: &Value| (text(&it["kind"]), text(&it["metadata"]["name"]));
    files.into_values().flatten().map(|document| (of(&document), document)).collect()
}

/// The environment of a container: what it says, over what it takes from elsewhere.
fn pod_environment(place: &str, container: &Value, all: &BTreeMap<(String, String), Value>) -> Vec<(String, String)> {
    let mut pairs = BTreeMap::new();
    for source in container["envFrom"].as_array().into_iter().flatten() {
        let (kind, key, reference) = match source["configMapRef"].is_object() {
            true => ("ConfigMap", "data", &source["configMapRef"]),
            false => ("Secret", "stringData", &source["secretRef"]),
        };
        let named = (kind.to_owned(), text(&reference["name"]));
        let found = all.get(&named).unwrap_or_else(|| panic!("{place}: there is no {named:?}"));
        pairs.extend(found[key].as_object().unwrap().iter().map(|(name, value)| (name.clone(), text(value))));
    }
    for item in container["env"].as_array().into_iter().flatten() {
        pairs.insert(text(&item["name"]), text(&item["value"]));
    }
    // What the example of a secret leaves for you to fill in.
    pairs.values_mut().filter(|value| value.is_empty()).for_each(|value| "something-long-and-random".clone_into(value));
    pairs.into_iter().collect()
}

#[test]
fn manifests_name_settings_and_served_paths_and_keep_to_the_rules() {
    let all = manifests();
    let workloads: Vec<_> = all.iter().filter(|(_, it)| it["spec"]["template"].is_object()).collect();
    assert_eq!(workloads.len(), 2);
    for ((kind, name), workload) in workloads {
        let place = format!("{kind} {name}");
        let (spec, pod) = (&workload["spec"], &workload["spec"]["template"]["spec"]);
        assert_eq!(spec["selector"]["matchLabels"], spec["template"]["metadata"]["labels"], "{place}");
        assert_eq!(pod["enableServiceLinks"], false, "{place}: variables of services look like settings of ours");
        let user = &pod["securityContext"];
        assert_eq!((&user["runAsNonRoot"], &user["runAsUser"]), (&true.into(), &65532.into()), "{place}");
        assert_eq!(user["seccompProfile"]["type"], "RuntimeDefault", "{place}");
        for volume in pod["volumes"].as_array().unwrap() {
            if let Some(claim) = volume["persistentVolumeClaim"]["claimName"].as_str() {
                assert!(all.contains_key(&("PersistentVolumeClaim".to_owned(), claim.to_owned())), "{place}: {claim}");
            }
        }
        let containers = pod["containers"].as_array().unwrap();
        for container in containers.iter().chain(pod["initContainers"].as_array().into_iter().flatten()) {
            let limits = &container["securityContext"];
            assert_eq!(limits["readOnlyRootFilesystem"], true, "{place}");
            assert_eq!(limits["allowPrivilegeEscalation"], false, "{place}");
            assert!(has(&limits["capabilities"]["drop"], "ALL"), "{place}");
        }
        assert_eq!(containers.len(), 1);
        demand_probed(&place, &containers[0], pod, &all);
    }
}

fn demand_probed(place: &str, container: &Value, pod: &Value, all: &BTreeMap<(String, String), Value>) {
    let config = configured(place, &pod_environment(place, container, all));
    let role = text(&container["args"][0]);
    let port = if role == "api" { config.server.port } else { config.consumer.port };
    assert_eq!(container["ports"][0]["containerPort"], port, "{place}");
    assert_eq!(config.consumer.remote, role == "consumer", "{place}: consumers come over HTTP, APIs have a store");
    for (probe, path) in [("startupProbe", "/livez"), ("livenessProbe", "/livez"), ("readinessProbe", "/readyz")] {
        let asks = &container[probe]["httpGet"];
        // What is not ready is left alone; what does not live is killed. So the two must not be exchanged.
        assert_eq!((&asks["path"], &asks["port"]), (&path.into(), &container["ports"][0]["name"]), "{place}, {probe}");
        demand_served(place, path);
    }
    let grace = Duration::from_secs(pod["terminationGracePeriodSeconds"].as_u64().unwrap());
    assert!(grace > ending(&config), "{place}: it is killed before it has ended");
}

#[test]
fn manifests_refer_to_each_other() {
    let all = manifests();
    let exists = |kind: &str, name: &Value| all.contains_key(&(kind.to_owned(), text(name)));
    for ((kind, name), it) in &all {
        let place = format!("{kind} {name}");
        match kind.as_str() {
            "HorizontalPodAutoscaler" => {
                let target = &it["spec"]["scaleTargetRef"];
                assert!(exists(&text(&target["kind"]), &target["name"]), "{place}");
            }
            "Ingress" => {
                for path in it["spec"]["rules"][0]["http"]["paths"].as_array().unwrap() {
                    assert!(exists("Service", &path["backend"]["service"]["name"]), "{place}");
                }
            }
            "Service" | "PodDisruptionBudget" => {
                let selector = &it["spec"]["selector"];
                let wanted = if kind == "Service" { selector } else { &selector["matchLabels"] };
                let selects = |other: &Value| other["spec"]["template"]["metadata"]["labels"] == *wanted;
                assert!(all.values().any(selects), "{place}: it selects nothing");
            }
            "Kustomization" => {
                for file in it["resources"].as_array().unwrap() {
                    read(&format!("docker/kubernetes/{}", text(file)));
                }
            }
            _ => {}
        }
    }
}

/// `docker/smoke` puts a binary into the last stage of the Dockerfile; so its lines have to be what they are taken for.
#[test]
fn the_image_is_a_binary_on_an_empty_base() {
    let file = read("docker/Dockerfile");
    let (builder, last) = file.split_once("\nFROM scratch\n").unwrap();
    assert!(builder.contains(" AS builder\n") && builder.contains("docker/rootfs target/release/comfyd /out"));
    let copies: Vec<&str> = last.lines().filter(|line| line.starts_with("COPY ")).collect();
    assert_eq!(copies, ["COPY --from=builder /out/root/ /", "COPY --from=builder --chown=65532:65532 /out/owned/ /"]);
    assert!(!last.contains("\nRUN ") && last.contains("\nUSER 65532:65532\n"), "there is nothing in it to run");
    assert!(last.contains(r#"CMD ["/usr/local/bin/comfyd", "healthcheck"]"#));
    let (_, environment) = last.split_once("\nENV ").unwrap();
    let environment: Vec<(String, String)> = environment
        .split("\n\n")
        .next()
        .unwrap()
        .split(" \\\n")
        .map(|pair| pair.trim().split_once('=').map(|(name, value)| (name.to_owned(), value.to_owned())).unwrap())
        .collect();
    let config = configured("docker/Dockerfile", &environment);
    assert!(!config.server.host.is_loopback());
    // With one of its own, a consumer would not come to its tasks by TASK_API_URL.
    assert!(!environment.iter().any(|(name, _)| name == "DATABASE_URL"));
}
