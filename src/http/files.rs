//! What a client gives for a file: a reference, a data URI, base64 in an object, or the name of a file the server has. Whatever it is, a
//! reference or a name is left of it; the bytes leave the request here and never reach a row.

use std::{borrow::Cow, collections::BTreeMap};

use base64::{
    Engine, alphabet,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
};
use bytes::Bytes;
use comfyd_actors::domain::{
    graph::escape,
    input::{InputId, SCHEME},
    workflow::{Kind, type_of},
};
use futures_util::{StreamExt, stream};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use super::{
    Service,
    inputs::refused,
    problem::{FieldFault, Problem},
};
use crate::inputs::{sniff, suits, take_in};

/// Takes base64 with and without its padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &alphabet::STANDARD,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// The files a request refers to or brings.
#[derive(Debug, Default)]
pub struct Files(BTreeMap<InputId, File>);

#[derive(Debug)]
struct File {
    /// Where it was first met.
    pointer: String,
    /// What is wanted there.
    kind: Option<Kind>,
    /// Its bytes and its name, when the request brings them.
    brought: Option<(Bytes, String)>,
}

impl Files {
    /// All of them.
    pub fn ids(&self) -> impl Iterator<Item = &InputId> {
        self.0.keys()
    }

    /// Reads a value that may stand for a file; tells whether it was changed. `loads` is the kind of file that is wanted there, if one is:
    /// elsewhere only what cannot be anything else is a file.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn take(&mut self, value: &mut Value, pointer: &str, loads: Option<Kind>) -> Result<bool, FieldFault> {
        let read = match value {
            Value::String(text) => self.text(text, pointer, loads),
            Value::Object(fields) if loads.is_some() || fields.contains_key("base64") => {
                self.object(fields, pointer, loads)
            }
            _ => return Ok(false),
        };
        let Some(id) = read.map_err(|detail| FieldFault::at(pointer, detail))? else { return Ok(false) };
        let reference = Value::from(id.uri());
        let changed = *value != reference;
        *value = reference;
        Ok(changed)
    }

    /// Reads every field of a graph that may stand for a file; tells whether anything was changed.
    ///
    /// # Errors
    /// Everything that is wrong with any.
    pub fn take_graph(&mut self, graph: &mut Value) -> Result<bool, Vec<FieldFault>> {
        let (mut changed, mut faults) = (false, Vec::new());
        for (id, node) in graph.as_object_mut().into_iter().flatten() {
            let loads: Vec<_> = node.get("inputs").and_then(Value::as_object).into_iter().flatten().collect();
            let loads: Vec<_> = loads
                .into_iter()
                .filter(|(_, value)| value.is_string() || value.is_object())
                .map(|(field, _)| (field.clone(), Kind::of_field(node, field).filter(|kind| kind.is_file())))
                .collect();
            let Some(inputs) = node.get_mut("inputs").and_then(Value::as_object_mut) else { continue };
            for (field, loads) in loads {
                let pointer = format!("/workflow/{}/inputs/{}", escape(id), escape(&field));
                match inputs.get_mut(&field).map(|value| self.take(value, &pointer, loads)) {
                    Some(Ok(now)) => changed |= now,
                    Some(Err(fault)) => faults.push(fault),
                    None => {}
                }
            }
        }
        if faults.is_empty() { Ok(changed) } else { Err(faults) }
    }

    fn text(&mut self, text: &str, pointer: &str, loads: Option<Kind>) -> Result<Option<InputId>, String> {
        let scheme = text.split_once(':').map(|(scheme, _)| scheme.to_ascii_lowercase());
        match (scheme.as_deref(), loads) {
            _ if text.starts_with(SCHEME) => self.refer(text, pointer, loads).map(Some),
            (Some("data"), Some(_)) => self.bring(data_uri(text)?, "", pointer, loads).map(Some),
            (Some("http" | "https"), Some(_)) => Err(
                "URLs are not fetched yet: download the file, send it to POST /api/inputs and give the `ref` it answers".to_owned(),
            ),
            _ => Ok(None),
        }
    }

    fn object(
        &mut self,
        fields: &Map<String, Value>,
        pointer: &str,
        loads: Option<Kind>,
    ) -> Result<Option<InputId>, String> {
        let text = |name: &str| match fields.get(name) {
            Some(Value::String(text)) => Ok(Some(text.as_str())),
            None => Ok(None),
            Some(other) => Err(format!("`{name}` must be text, found {}", type_of(other))),
        };
        if let Some(reference) = text("ref")? {
            return self.refer(reference, pointer, loads).map(Some);
        }
        if let Some(unknown) = fields.keys().find(|name| !matches!(name.as_str(), "base64" | "filename")) {
            return Err(format!("there is no field `{unknown}`: write {{\"base64\": \"...\", \"filename\": \"...\"}}"));
        }
        let Some(encoded) = text("base64")? else {
            return Err("a file is a reference, a data URI, or {\"base64\": \"...\", \"filename\": \"...\"}".to_owned());
        };
        let bytes = if encoded.starts_with("data:") { data_uri(encoded)? } else { decode(encoded)? };
        self.bring(bytes, text("filename")?.unwrap_or_default(), pointer, loads).map(Some)
    }

    fn refer(&mut self, text: &str, pointer: &str, loads: Option<Kind>) -> Result<InputId, String> {
        let id = InputId::from_uri(text).ok_or_else(|| {
            format!("not a reference: expected {SCHEME} and 64 hexadecimal digits, as POST /api/inputs answers it")
        })?;
        let file = File { pointer: pointer.to_owned(), kind: loads, brought: None };
        self.0.entry(id.clone()).or_insert(file);
        Ok(id)
    }

    fn bring(&mut self, bytes: Vec<u8>, name: &str, pointer: &str, loads: Option<Kind>) -> Result<InputId, String> {
        if bytes.is_empty() {
            return Err("the file is empty".to_owned());
        }
        if let Some(kind) = loads {
            suits(kind, &sniff(&bytes, name).0)?;
        }
        let digits: String = Sha256::digest(&bytes).iter().map(|byte| format!("{byte:02x}")).collect();
        let id = InputId::parse(&digits).ok_or("the file cannot be hashed")?;
        let brought = Some((Bytes::from(bytes), name.to_owned()));
        self.0.insert(id.clone(), File { pointer: pointer.to_owned(), kind: loads, brought });
        Ok(id)
    }

    /// Stores what the request brings, and sees to it that what it refers to is there and stays.
    ///
    /// # Errors
    /// 422 with every reference that leads nowhere or to another kind of file, before anything is stored; 503.
    pub async fn settle(self, service: &Service) -> Result<(), Problem> {
        if self.0.is_empty() {
            return Ok(());
        }
        let keep = service.config.input_keep;
        let referred: Vec<InputId> =
            self.0.iter().filter(|(_, file)| file.brought.is_none()).map(|(id, _)| id.clone()).collect();
        let found =
            if referred.is_empty() { Vec::new() } else { service.bridge.inputs().refresh(&referred, keep).await? };
        let mut faults = Vec::new();
        for (id, file) in self.0.iter().filter(|(_, file)| file.brought.is_none()) {
            let detail = match found.iter().find(|input| input.id == *id) {
                Some(input) => file.kind.and_then(|kind| suits(kind, &input.about.content_type).err()),
                None => Some(format!("{} is not stored (any more): send the file to POST /api/inputs again", id.uri())),
            };
            faults.extend(detail.map(|detail| FieldFault::at(&file.pointer, detail)));
        }
        if !faults.is_empty() {
            return Err(Problem::invalid(faults));
        }
        for File { pointer, brought, .. } in self.0.into_values() {
            let Some((bytes, name)) = brought else { continue };
            let body = stream::once(std::future::ready(Ok(bytes))).boxed();
            take_in(&service.bridge, keep, &name, body).await.map_err(|error| refused(error, &pointer))?;
        }
        Ok(())
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
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const PNG: &str = "iVBORw0KGgoAAAANSUhEUg";

    fn take(mut value: Value, loads: Option<Kind>) -> Result<(Value, Files), String> {
        let mut files = Files::default();
        files.take(&mut value, "/x", loads).map_err(|fault| fault.detail)?;
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
            assert!(files.0.values().all(|file| file.brought.is_some()));
            references.push(left);
        }
        references.dedup();
        assert_eq!(references.len(), 1);
        let reference = references.remove(0);
        for given in [reference.clone(), json!({"ref": reference, "name": "a.png", "bytes": 3})] {
            let (left, files) = take(given, Some(Kind::Image)).unwrap();
            assert_eq!((&left, files.0.len()), (&reference, 1));
        }
        // A reference means the same anywhere; a name stays one; a data URI that a node itself reads is its own.
        assert_eq!(take(reference.clone(), None).unwrap().1.0.len(), 1);
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
            (json!("https://example.org/a.png"), "POST /api/inputs"),
            (json!("comfyd://inputs/abc"), "64"),
            (json!("data:image/png,abc"), "base64"),
            (json!("data:image/png;base64,@@"), "not base64"),
            (json!("data:image/png;base64,"), "empty"),
            (json!({"base64": 5}), "text"),
            (json!({"base64": PNG, "fileName": "x"}), "fileName"),
            (json!({"filename": "x"}), "reference"),
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
            "2": {"class_type": "LoadAudio", "inputs": {"audio": "https://x"}},
            "3": {"class_type": "LoadVideo", "inputs": {"file": {"base64": "@"}}},
        });
        let mut files = Files::default();
        let faults = files.take_graph(&mut graph).unwrap_err();
        let pointers: Vec<_> = faults.iter().map(|fault| fault.pointer.clone().unwrap()).collect();
        assert_eq!(pointers, ["/workflow/2/inputs/audio", "/workflow/3/inputs/file"]);
        assert!(graph["1"]["inputs"]["image"].as_str().unwrap().starts_with(SCHEME));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "(data:|comfyd://inputs/|image/png|;base64|,|=|[A-Za-z0-9+/]{0,9}|é|\\s){0,8}") {
            let _ = take(json!(text), Some(Kind::Image));
            let _ = take(json!({"base64": text}), None);
        }
    }
}
