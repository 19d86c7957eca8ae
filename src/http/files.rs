//! What a client gives for a file: a reference, a URL, a data URI, base64 in an object, or the name of a file the server has. Whatever it
//! is, a reference or a name is left of it; the bytes leave the request here and never reach a row. Nothing is fetched here: a URL whose
//! form can never be allowed is refused, the others wait until their task is about to run.

use std::{borrow::Cow, collections::BTreeMap, sync::Arc};

use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use bytes::Bytes;
use comfyd_actors::{
    domain::{
        fleet::Fleet,
        graph::escape,
        input::{InputId, SCHEME, Source, URL_SCHEME},
        options::UrlInput,
        workflow::{Kind, type_of},
    },
    targets::Targets,
};
use futures_util::{StreamExt, stream};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::{
    Service,
    inputs::refused,
    problem::{FieldFault, Problem},
};
use crate::{
    inputs::{sniff, suits, take_in},
    outbound::Policy,
};

/// Takes base64 with and without its padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Files of URLs in one task: more are mostly a mistake.
const MAX_URLS: usize = 64;

/// What decides about files and where outputs go, besides the request.
#[derive(Debug, Clone, Default)]
pub struct Terms {
    /// Which URLs may be asked for.
    pub policy: Arc<Policy>,
    /// What the servers say of their nodes: which of their fields name a file, for one.
    pub fleet: Option<Arc<Fleet>>,
    /// Where outputs can go; `None` = whatever is named is there.
    pub targets: Option<Targets>,
}

impl Terms {
    /// The kind of file a node's field names: as we know it, or as a server says.
    pub fn kind_of(&self, node: &Value, field: &str) -> Option<Kind> {
        let told = || {
            let class = node.get("class_type")?.as_str()?;
            let known = self.fleet.iter().flat_map(|fleet| fleet.known());
            known.filter_map(|(_, catalogue)| catalogue.class(class)?.input(field)?.uploads).next()
        };
        Kind::of_field(node, field).filter(|kind| kind.is_file()).or_else(told)
    }
}

/// The files a request refers to or brings.
#[derive(Debug, Default)]
pub struct Files {
    /// What decides about them.
    pub terms: Terms,
    stored: BTreeMap<InputId, File>,
    urls: BTreeMap<String, UrlInput>,
}

#[derive(Debug)]
struct File {
    /// Where it was first met.
    pointer: String,
    /// What is wanted there.
    kind: Option<Kind>,
    /// Its bytes and its name, when the request brings them.
    brought: Option<(Bytes, String)>,
}

/// Where a value stands that may stand for a file.
struct Spot<'a> {
    pointer: &'a str,
    /// What the client calls it.
    name: &'a str,
    /// The kind of file that is wanted there, if one is: elsewhere only what cannot be anything else is a file.
    loads: Option<Kind>,
}

impl Files {
    /// None yet.
    pub fn new(terms: Terms) -> Self {
        Self { terms, ..Self::default() }
    }

    /// Those that are stored, or will be before the task is.
    pub fn ids(&self) -> impl Iterator<Item = &InputId> {
        self.stored.keys()
    }

    /// Those that are fetched when the task is about to run.
    pub fn urls(&self) -> &BTreeMap<String, UrlInput> {
        &self.urls
    }

    /// Reads an input that may stand for a file. A URL stays as it is here, and becomes a reference in the graph.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn take_input(&mut self, name: &str, value: &mut Value, loads: Option<Kind>) -> Result<(), FieldFault> {
        let pointer = format!("/inputs/{}", escape(name));
        if let Some(stored @ Source::Stored(_)) = self.read(value, &Spot { pointer: &pointer, name, loads })? {
            *value = Value::from(stored.uri());
        }
        Ok(())
    }

    /// Reads every field of a graph that may stand for a file; tells whether anything was changed. `takes` knows more fields that do.
    ///
    /// # Errors
    /// Everything that is wrong with any.
    pub fn take_graph(
        &mut self,
        graph: &mut Value,
        takes: impl Fn(&str, &str) -> Option<Kind>,
    ) -> Result<bool, Vec<FieldFault>> {
        let (mut changed, mut faults) = (false, Vec::new());
        for (id, node) in graph.as_object_mut().into_iter().flatten() {
            let fields = node.get("inputs").and_then(Value::as_object).into_iter().flatten();
            let fields: Vec<_> = fields
                .filter(|(_, value)| may_be_file(value))
                .map(|(field, _)| (field.clone(), takes(id, field).or_else(|| self.terms.kind_of(node, field))))
                .collect();
            let Some(inputs) = node.get_mut("inputs").and_then(Value::as_object_mut) else { continue };
            for (field, loads) in fields {
                let Some(value) = inputs.get_mut(&field) else { continue };
                let pointer = format!("/workflow/{}/inputs/{}", escape(id), escape(&field));
                let spot = Spot { pointer: &pointer, name: &format!("{id}.{field}"), loads };
                match self.read(value, &spot) {
                    Ok(None) => {}
                    Ok(Some(source)) => {
                        let reference = Value::from(source.uri());
                        changed |= *value != reference;
                        *value = reference;
                    }
                    Err(fault) => faults.push(fault),
                }
            }
        }
        if faults.is_empty() { Ok(changed) } else { Err(faults) }
    }

    fn read(&mut self, value: &Value, spot: &Spot<'_>) -> Result<Option<Source>, FieldFault> {
        let read = match value {
            Value::String(text) => self.text(text, spot),
            Value::Object(fields) if spot.loads.is_some() || fields.contains_key("base64") => {
                self.object(fields, spot).map(Some)
            }
            _ => Ok(None),
        };
        read.map_err(|detail| FieldFault::at(spot.pointer, detail))
    }

    fn text(&mut self, text: &str, spot: &Spot<'_>) -> Result<Option<Source>, String> {
        let scheme = text.split_once(':').map(|(scheme, _)| scheme.to_ascii_lowercase());
        match (scheme.as_deref(), spot.loads) {
            _ if text.starts_with(SCHEME) => self.refer(text, spot).map(Some),
            (Some("data"), Some(_)) => self.bring(data_uri(text)?, "", spot).map(Some),
            (Some("http" | "https"), Some(_)) => self.point(text, spot).map(Some),
            _ => text.strip_prefix(URL_SCHEME).map(|url| self.point(url, spot)).transpose(),
        }
    }

    fn object(&mut self, fields: &Map<String, Value>, spot: &Spot<'_>) -> Result<Source, String> {
        let text = |name: &str| match fields.get(name) {
            Some(Value::String(text)) => Ok(Some(text.as_str())),
            None => Ok(None),
            Some(other) => Err(format!("`{name}` must be text, found {}", type_of(other))),
        };
        if let Some(reference) = text("ref")? {
            return self.refer(reference, spot);
        }
        let is_url = fields.contains_key("url");
        let known = |name: &str| if is_url { name == "url" } else { matches!(name, "base64" | "filename") };
        if let Some(unknown) = fields.keys().find(|name| !known(name)) {
            return Err(format!(
                "there is no field `{unknown}`: write {{\"base64\": \"...\", \"filename\": \"...\"}} or {{\"url\": \"...\"}}"
            ));
        }
        if let Some(url) = text("url")? {
            return self.point(url, spot);
        }
        let Some(encoded) = text("base64")? else {
            return Err(
                "a file is a reference, a URL, a data URI, or {\"base64\": \"...\", \"filename\": \"...\"}".to_owned()
            );
        };
        let bytes = if encoded.starts_with("data:") { data_uri(encoded)? } else { decode(encoded)? };
        self.bring(bytes, text("filename")?.unwrap_or_default(), spot)
    }

    fn point(&mut self, url: &str, spot: &Spot<'_>) -> Result<Source, String> {
        // As the policy wrote it, so that different spellings are fetched once.
        let url = self.terms.policy.read(url).map_err(|refusal| refusal.to_string())?.url().to_string();
        if self.urls.len() == MAX_URLS && !self.urls.contains_key(&url) {
            return Err(format!("more than {MAX_URLS} URLs in one task"));
        }
        let wanted = UrlInput { name: spot.name.to_owned(), kind: spot.loads };
        self.urls.entry(url.clone()).or_insert(wanted);
        Ok(Source::Url(url))
    }

    fn refer(&mut self, text: &str, spot: &Spot<'_>) -> Result<Source, String> {
        let id = InputId::from_uri(text).ok_or_else(|| {
            format!("not a reference: expected {SCHEME} and 64 hexadecimal digits, as POST /api/inputs answers it")
        })?;
        let file = File { pointer: spot.pointer.to_owned(), kind: spot.loads, brought: None };
        self.stored.entry(id.clone()).or_insert(file);
        Ok(Source::Stored(id))
    }

    fn bring(&mut self, bytes: Vec<u8>, name: &str, spot: &Spot<'_>) -> Result<Source, String> {
        if bytes.is_empty() {
            return Err("the file is empty".to_owned());
        }
        if let Some(kind) = spot.loads {
            suits(kind, &sniff(&bytes, name).0)?;
        }
        let digits: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        let id = InputId::parse(&digits).ok_or("the file cannot be hashed")?;
        let brought = Some((Bytes::from(bytes), name.to_owned()));
        self.stored.insert(id.clone(), File { pointer: spot.pointer.to_owned(), kind: spot.loads, brought });
        Ok(Source::Stored(id))
    }

    /// Stores what the request brings, and sees to it that what it refers to is there and stays.
    ///
    /// # Errors
    /// 422 with every reference that leads nowhere or to another kind of file, before anything is stored; 503.
    pub async fn settle(self, service: &Service) -> Result<(), Problem> {
        if self.stored.is_empty() {
            return Ok(());
        }
        let referred: Vec<InputId> =
            self.stored.iter().filter(|(_, file)| file.brought.is_none()).map(|(id, _)| id.clone()).collect();
        let found = if referred.is_empty() {
            Vec::new()
        } else {
            service.bridge.inputs().refresh(&referred, service.config.input_keep).await?
        };
        let mut faults = Vec::new();
        for (id, file) in self.stored.iter().filter(|(_, file)| file.brought.is_none()) {
            let detail = match found.iter().find(|input| input.id == *id) {
                Some(input) => file.kind.and_then(|kind| suits(kind, &input.about.content_type).err()),
                None => Some(format!("{} is not stored (any more): send the file to POST /api/inputs again", id.uri())),
            };
            faults.extend(detail.map(|detail| FieldFault::at(&file.pointer, detail)));
        }
        if !faults.is_empty() {
            return Err(Problem::invalid(faults));
        }
        for File { pointer, brought, .. } in self.stored.into_values() {
            let Some((bytes, name)) = brought else { continue };
            let body = stream::once(std::future::ready(Ok(bytes))).boxed();
            take_in(service.shelves(), &name, body).await.map_err(|error| refused(error, &pointer))?;
        }
        Ok(())
    }
}

/// Whether a value can stand for a file at all: most do not, and are not looked at.
fn may_be_file(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains(':'),
        value => value.is_object(),
    }
}

/// The bytes of `data:[<type>][;...];base64,<data>`. What it says of its type is not asked for: the bytes tell.
fn data_uri(text: &str) -> Result<Vec<u8>, String> {
    let (head, data) = text.split_once(',').ok_or("not a data URI: expected data:<type>;base64,<data>")?;
    if !head.to_ascii_lowercase().ends_with(";base64") {
        return Err("only data URIs in base64 are taken: data:<type>;base64,<data>".to_owned());
    }
    decode(data)
}

/// Encoders break lines, and their white space means nothing.
fn decode(encoded: &str) -> Result<Vec<u8>, String> {
    let plain: Cow<'_, str> = if encoded.bytes().any(|byte| byte.is_ascii_whitespace()) {
        encoded.split_ascii_whitespace().collect::<String>().into()
    } else {
        encoded.into()
    };
    BASE64.decode(plain.as_bytes()).map_err(|error| format!("not base64: {error}"))
}

#[cfg(test)]
mod tests {
    use comfyd_actors::domain::{catalogue::Catalogue, id::BackendId};
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const PNG: &str = "iVBORw0KGgoAAAANSUhEUg";

    fn take(mut value: Value, loads: Option<Kind>) -> Result<(Value, Files), String> {
        let mut files = Files::default();
        files.take_input("x", &mut value, loads).map_err(|fault| fault.detail)?;
        Ok((value, files))
    }

    #[test]
    fn each_way_of_giving_a_file_leaves_the_same_reference() {
        let mut references = Vec::new();
        for given in [
            json!(format!("data:image/png;base64,{PNG}")),
            json!(format!("DATA:;charset=x;BASE64,{PNG}==")),
            json!({"base64": PNG, "filename": "a.png"}),
            json!({"base64": format!("{}\r\n{}", &PNG[..8], &PNG[8..])}),
            json!({"base64": format!("data:image/png;base64,{PNG}")}),
        ] {
            let (left, files) = take(given, Some(Kind::Image)).unwrap();
            assert!(files.stored.values().all(|file| file.brought.is_some()));
            references.push(left);
        }
        references.dedup();
        assert_eq!(references.len(), 1);
        let reference = references.remove(0);
        for given in [reference.clone(), json!({"ref": reference, "name": "a.png", "bytes": 3})] {
            let (left, files) = take(given, Some(Kind::Image)).unwrap();
            assert_eq!((&left, files.stored.len()), (&reference, 1));
        }
        // A reference means the same anywhere; a name stays one; a data URI that a node itself reads is its own.
        assert_eq!(take(reference.clone(), None).unwrap().1.stored.len(), 1);
        assert_eq!(take(json!({"base64": PNG}), None).unwrap().0, reference);
        for plain in [json!("example.png"), json!("sub/a b.png [output]"), json!("")] {
            assert_eq!(take(plain.clone(), Some(Kind::Image)).unwrap().0, plain);
        }
        for theirs in
            [json!("data:image/png;base64,AA"), json!("https://x"), json!({"a": 1}), json!(["1", 0]), json!(5)]
        {
            assert_eq!(take(theirs.clone(), None).unwrap().0, theirs);
        }
    }

    #[test]
    fn what_is_no_file_says_why() {
        for (given, word) in [
            (json!("http://example.org/a.png"), "only https"),
            (json!("https://127.0.0.1/a.png"), "not a public address"),
            (json!("https://u:p@example.org/a.png"), "user or password"),
            (json!("comfyd://url/file:///etc/passwd"), "the scheme `file`"),
            (json!({"url": "https://[::1]/"}), "not a public address"),
            (json!({"url": "https://example.org", "filename": "x"}), "filename"),
            (json!({"url": 5}), "text"),
            (json!("comfyd://inputs/abc"), "64"),
            (json!("data:image/png,abc"), "base64"),
            (json!("data:image/png;base64,@@"), "not base64"),
            (json!("data:image/png;base64,"), "empty"),
            (json!({"base64": 5}), "text"),
            (json!({"base64": PNG, "fileName": "x"}), "fileName"),
            (json!({"filename": "x"}), "a reference, a URL"),
            (json!({"base64": "UklGRiQAAABXQVZFZm10IA=="}), "expected an image"),
        ] {
            let detail = take(given.clone(), Some(Kind::Image)).err().unwrap();
            assert!(detail.contains(word), "{given}: {detail}");
        }
    }

    #[test]
    fn a_graph_is_read_field_by_field() {
        let mut graph = json!({
            "1": {"class_type": "LoadImage", "inputs": {"image": format!("data:;base64,{PNG}"), "upload": "image"}},
            "2": {"class_type": "LoadAudio", "inputs": {"audio": "https://localhost"}},
            "3": {"class_type": "LoadVideo", "inputs": {"file": {"base64": "@"}}},
        });
        let mut files = Files::default();
        let faults = files.take_graph(&mut graph, |_, _| None).unwrap_err();
        let pointers: Vec<_> = faults.iter().map(|fault| fault.pointer.clone().unwrap()).collect();
        assert_eq!(pointers, ["/workflow/2/inputs/audio", "/workflow/3/inputs/file"]);
        assert!(graph["1"]["inputs"]["image"].as_str().unwrap().starts_with(SCHEME));
    }

    #[test]
    fn a_url_is_a_file_where_one_is_loaded() {
        let url = "HTTPS://Example.org/a b.png?x#y".replace(' ', "%20");
        let (left, files) = take(json!(url), Some(Kind::Image)).unwrap();
        assert_eq!(left, json!(url), "an input is shown as it was given");
        assert_eq!(files.urls.keys().collect::<Vec<_>>(), ["https://example.org/a%20b.png?x"]);
        assert!(take(json!(url), None).unwrap().1.urls.is_empty(), "a text that is a URL is a text");
        let mut graph = json!({
            "1": {"class_type": "LoadImage", "inputs": {"image": url}},
            "2": {"class_type": "LoadImage", "inputs": {"image": {"url": "https://example.org/a%20b.png?x"}}},
            "3": {"class_type": "CLIPTextEncode", "inputs": {"text": url}},
            "4": {"class_type": "Anybody's", "inputs": {"a": "comfyd://url/https://a.example", "b": url, "c": url}},
            "5": {"class_type": "Sharpen", "inputs": {"picture": url, "text": url}},
        });
        let mut fleet = Fleet::of([BackendId::new("here")]);
        let told = r#"{"Sharpen": {"input": {"required": {"picture": [["a.png"], {"image_upload": true}], "text": ["STRING"]}}}}"#;
        fleet.learn(&BackendId::new("here"), Catalogue::parse(told).unwrap());
        let mut files = Files::new(Terms { fleet: Some(fleet.into()), ..Terms::default() });
        assert!(
            files.take_graph(&mut graph, |node, field| (node == "4" && field == "b").then_some(Kind::Video)).unwrap()
        );
        let reference = json!("comfyd://url/https://example.org/a%20b.png?x");
        for (node, field, left) in [
            ("1", "image", &reference),
            ("2", "image", &reference),
            ("3", "text", &json!(url)),
            ("4", "a", &json!("comfyd://url/https://a.example/")),
            ("4", "b", &reference),
            ("4", "c", &json!(url)),
            ("5", "picture", &reference),
            ("5", "text", &json!(url)),
        ] {
            assert_eq!(graph[node]["inputs"][field], *left, "{node}.{field}");
        }
        let wanted = files.urls.values().map(|wanted| (wanted.name.as_str(), wanted.kind)).collect::<Vec<_>>();
        assert_eq!(wanted, [("4.a", None), ("1.image", Some(Kind::Image))]);
        // Read again, as it is stored, it says the same.
        assert!(!Files::default().take_graph(&mut graph.clone(), |_, _| None).unwrap());
    }

    #[test]
    fn there_are_only_so_many() {
        let mut files = Files::default();
        let mut give = |number: usize| {
            let mut value = json!(format!("https://example.org/{number}"));
            files.take_input("x", &mut value, Some(Kind::Image)).map_err(|fault| fault.detail)
        };
        assert!((0..MAX_URLS).chain([0]).all(|number| give(number).is_ok()));
        assert!(give(MAX_URLS).unwrap_err().contains("more than 64"));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(data:|comfyd://inputs/|image/png|;base64|,|=|[A-Za-z0-9+/]{0,9}|é|\\s){0,8}") {
            let _ = take(json!(text), Some(Kind::Image));
            let _ = take(json!({"base64": text}), None);
        }
    }
}
