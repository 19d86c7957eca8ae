//! What a node class says about itself, as `/object_info` shows it and validation checks it.

use serde_json::{Value as Json, json};

use super::Work;
use crate::files::{Files, Folder};

/// What kind of value an input takes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Kind {
    Int {
        default: i64,
        min: i64,
        max: i64,
        step: i64,
    },
    /// An integer over the whole unsigned 64-bit range.
    Seed,
    Float {
        default: f64,
        min: f64,
        max: f64,
        step: f64,
    },
    Text {
        default: &'static str,
        multiline: bool,
    },
    Bool {
        default: bool,
    },
    /// One of a fixed list.
    Choice(&'static [&'static str]),
    /// One of a list that depends on the server.
    List(List),
    /// A file in the input folder; whether it exists is checked by the node itself.
    ImageFile,
    /// Only a link carries this type.
    Linked(&'static str),
}

/// The lists that depend on the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum List {
    Checkpoints,
    Loras,
    UpscaleModels,
    DiffusionModels,
    TextEncoders,
    Vaes,
}

impl List {
    /// The folder whose files it lists.
    fn folder(self) -> &'static str {
        match self {
            Self::Checkpoints => "checkpoints",
            Self::Loras => "loras",
            Self::UpscaleModels => "upscale_models",
            Self::DiffusionModels => "diffusion_models",
            Self::TextEncoders => "text_encoders",
            Self::Vaes => "vae",
        }
    }
}

/// An input of a node class.
#[derive(Debug, Clone, Copy)]
pub(crate) struct InputSpec {
    pub name: &'static str,
    pub kind: Kind,
    pub required: bool,
}

/// A node class.
#[derive(Debug)]
pub(crate) struct NodeClass {
    pub name: &'static str,
    pub display_name: &'static str,
    pub category: &'static str,
    pub output_node: bool,
    pub inputs: &'static [InputSpec],
    /// Type and name of each output slot.
    pub outputs: &'static [(&'static str, &'static str)],
    pub work: Work,
}

/// The server's lists, for validation and `/object_info`.
pub(crate) struct Lists<'a> {
    pub checkpoints: Vec<String>,
    pub loras: &'a [String],
    pub files: &'a Files,
}

/// The models example workflows ask for beside checkpoints and LoRAs, by folder.
const MODELS: [(&str, &[&str]); 4] = [
    ("upscale_models", &["4x-UltraSharp.pth", "RealESRGAN_x2plus.pth", "RealESRGAN_x4plus.pth"]),
    ("diffusion_models", &["wan2.1_t2v_1.3B_fp16.safetensors"]),
    ("text_encoders", &["umt5_xxl_fp8_e4m3fn_scaled.safetensors"]),
    ("vae", &["wan_2.1_vae.safetensors"]),
];

impl Lists<'_> {
    /// The models in a folder.
    pub fn models(&self, folder: &str) -> Vec<String> {
        match folder {
            "checkpoints" => self.checkpoints.clone(),
            "loras" => self.loras.to_vec(),
            folder => {
                let names = MODELS.iter().filter(|(of, _)| *of == folder).flat_map(|(_, names)| names.iter());
                names.map(|name| (*name).to_owned()).collect()
            }
        }
    }

    /// The options of a combo input; `None` for inputs that are not combos.
    pub fn options(&self, kind: Kind) -> Option<Vec<String>> {
        match kind {
            Kind::Choice(choices) => Some(choices.iter().map(|choice| (*choice).to_owned()).collect()),
            Kind::List(list) => Some(self.models(list.folder())),
            Kind::ImageFile => Some(self.files.names(Folder::Input)),
            _ => None,
        }
    }

    /// The input as `/object_info` and error messages show it: `[type, options]`.
    pub fn config(&self, kind: Kind) -> Json {
        match kind {
            Kind::Int { default, min, max, step } => {
                json!(["INT", {"default": default, "min": min, "max": max, "step": step}])
            }
            Kind::Seed => json!(["INT", {"default": 0, "min": 0, "max": u64::MAX, "control_after_generate": true}]),
            Kind::Float { default, min, max, step } => {
                json!(["FLOAT", {"default": default, "min": min, "max": max, "step": step}])
            }
            Kind::Text { default, multiline: true } => json!(["STRING", {"default": default, "multiline": true}]),
            Kind::Text { default, multiline: false } => json!(["STRING", {"default": default}]),
            Kind::Bool { default } => json!(["BOOLEAN", {"default": default}]),
            Kind::ImageFile => json!([self.options(kind), {"image_upload": true}]),
            Kind::Choice(_) | Kind::List(_) => json!([self.options(kind), {}]),
            Kind::Linked(name) => json!([name, {}]),
        }
    }

    /// The `/object_info` entry of a class under a name.
    pub fn describe(&self, name: &str, class: &NodeClass) -> Json {
        let section = |required: bool| -> (Json, Vec<&str>) {
            let specs: Vec<_> = class.inputs.iter().filter(|spec| spec.required == required).collect();
            let object = specs.iter().map(|spec| (spec.name.to_owned(), self.config(spec.kind))).collect();
            (Json::Object(object), specs.iter().map(|spec| spec.name).collect())
        };
        let (required, required_order) = section(true);
        let (optional, optional_order) = section(false);
        let mut input = json!({"required": required});
        let mut input_order = json!({"required": required_order});
        if !optional_order.is_empty() {
            input["optional"] = optional;
            input_order["optional"] = json!(optional_order);
        }
        json!({
            "input": input,
            "input_order": input_order,
            "is_input_list": false,
            "output": class.outputs.iter().map(|(kind, _)| *kind).collect::<Vec<_>>(),
            "output_is_list": vec![false; class.outputs.len()],
            "output_name": class.outputs.iter().map(|(_, name)| *name).collect::<Vec<_>>(),
            "name": name,
            "display_name": class.display_name,
            "description": "",
            "python_module": if class.category == "lab" { "custom_nodes.lab_nodes" } else { "nodes" },
            "category": class.category,
            "output_node": class.output_node,
            "has_intermediate_output": false,
            "search_aliases": [],
        })
    }
}

impl Kind {
    /// The type name links are compared with.
    pub fn type_name(self) -> &'static str {
        match self {
            Self::Int { .. } | Self::Seed => "INT",
            Self::Float { .. } => "FLOAT",
            Self::Text { .. } => "STRING",
            Self::Bool { .. } => "BOOLEAN",
            Self::Choice(_) | Self::List(_) | Self::ImageFile => "COMBO",
            Self::Linked(name) => name,
        }
    }
}
