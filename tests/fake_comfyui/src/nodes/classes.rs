//! The tables of node classes: names, inputs, outputs.

mod editing;

use super::Work;
use super::schema::{InputSpec, Kind, List, NodeClass};

/// Every class.
pub(crate) fn all() -> impl Iterator<Item = &'static NodeClass> {
    CLASSES.iter().chain(editing::CLASSES)
}

const fn required(name: &'static str, kind: Kind) -> InputSpec {
    InputSpec { name, kind, required: true }
}

const fn optional(name: &'static str, kind: Kind) -> InputSpec {
    InputSpec { name, kind, required: false }
}

const fn int(default: i64, min: i64, max: i64) -> Kind {
    Kind::Int { default, min, max, step: 1 }
}

const fn float(default: f64, min: f64, max: f64, step: f64) -> Kind {
    Kind::Float { default, min, max, step }
}

const fn text(default: &'static str) -> Kind {
    Kind::Text { default, multiline: false }
}

const IMAGE: Kind = Kind::Linked("IMAGE");
/// The largest integer a float of the web interface holds exactly.
const NONCE: Kind = Kind::Int { default: 0, min: 0, max: 9_007_199_254_740_992, step: 1 };
/// The largest side of a picture, as in ComfyUI.
const MAX_SIDE: i64 = 16384;

const SAMPLERS: &[&str] = &[
    "euler",
    "euler_cfg_pp",
    "euler_ancestral",
    "heun",
    "dpm_2",
    "dpm_2_ancestral",
    "lms",
    "dpmpp_2s_ancestral",
    "dpmpp_sde",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_3m_sde",
    "ddpm",
    "lcm",
    "ddim",
    "uni_pc",
    "uni_pc_bh2",
    "res_multistep",
];
const SCHEDULERS: &[&str] = &[
    "simple",
    "sgm_uniform",
    "karras",
    "exponential",
    "ddim_uniform",
    "beta",
    "normal",
    "linear_quadratic",
    "kl_optimal",
];
const UPSCALERS: &[&str] = &["nearest-exact", "bilinear", "area", "bicubic", "lanczos"];

/// The classes every graph has, and those of the lab.
static CLASSES: &[NodeClass] = &[
    NodeClass {
        name: "EmptyImage",
        display_name: "EmptyImage",
        category: "image",
        output_node: false,
        inputs: &[
            required("width", int(512, 1, MAX_SIDE)),
            required("height", int(512, 1, MAX_SIDE)),
            required("batch_size", int(1, 1, 4096)),
            required("color", int(0, 0, 0xFF_FFFF)),
        ],
        outputs: &[("IMAGE", "IMAGE")],
        work: Work::EmptyImage,
    },
    NodeClass {
        name: "LoadImage",
        display_name: "Load Image",
        category: "image",
        output_node: false,
        inputs: &[required("image", Kind::ImageFile)],
        outputs: &[("IMAGE", "IMAGE"), ("MASK", "MASK")],
        work: Work::LoadImage,
    },
    NodeClass {
        name: "LoadImageMask",
        display_name: "Load Image (as Mask)",
        category: "mask",
        output_node: false,
        inputs: &[
            required("image", Kind::ImageFile),
            required("channel", Kind::Choice(&["alpha", "red", "green", "blue"])),
        ],
        outputs: &[("MASK", "MASK")],
        work: Work::LoadImageMask,
    },
    NodeClass {
        name: "ImageScale",
        display_name: "Upscale Image",
        category: "image/upscaling",
        output_node: false,
        inputs: &[
            required("image", IMAGE),
            required("upscale_method", Kind::Choice(UPSCALERS)),
            required("width", int(512, 0, MAX_SIDE)),
            required("height", int(512, 0, MAX_SIDE)),
            required("crop", Kind::Choice(&["disabled", "center"])),
        ],
        outputs: &[("IMAGE", "IMAGE")],
        work: Work::ImageScale,
    },
    NodeClass {
        name: "ImageInvert",
        display_name: "Invert Image",
        category: "image",
        output_node: false,
        inputs: &[required("image", IMAGE)],
        outputs: &[("IMAGE", "IMAGE")],
        work: Work::ImageInvert,
    },
    NodeClass {
        name: "SaveImage",
        display_name: "Save Image",
        category: "image",
        output_node: true,
        inputs: &[required("images", IMAGE), required("filename_prefix", text("ComfyUI"))],
        outputs: &[],
        work: Work::SaveImage,
    },
    NodeClass {
        name: "PreviewImage",
        display_name: "Preview Image",
        category: "image",
        output_node: true,
        inputs: &[required("images", IMAGE)],
        outputs: &[],
        work: Work::PreviewImage,
    },
    NodeClass {
        name: "CheckpointLoaderSimple",
        display_name: "Load Checkpoint",
        category: "loaders",
        output_node: false,
        inputs: &[required("ckpt_name", Kind::List(List::Checkpoints))],
        outputs: &[("MODEL", "MODEL"), ("CLIP", "CLIP"), ("VAE", "VAE")],
        work: Work::LoadCheckpoint,
    },
    NodeClass {
        name: "LoraLoader",
        display_name: "Load LoRA (Model and CLIP)",
        category: "loaders",
        output_node: false,
        inputs: &[
            required("model", Kind::Linked("MODEL")),
            required("clip", Kind::Linked("CLIP")),
            required("lora_name", Kind::List(List::Loras)),
            required("strength_model", float(1.0, -100.0, 100.0, 0.01)),
            required("strength_clip", float(1.0, -100.0, 100.0, 0.01)),
        ],
        outputs: &[("MODEL", "MODEL"), ("CLIP", "CLIP")],
        work: Work::LoadLora,
    },
    NodeClass {
        name: "CLIPTextEncode",
        display_name: "CLIP Text Encode (Prompt)",
        category: "conditioning",
        output_node: false,
        inputs: &[
            required("text", Kind::Text { default: "", multiline: true }),
            required("clip", Kind::Linked("CLIP")),
        ],
        outputs: &[("CONDITIONING", "CONDITIONING")],
        work: Work::EncodeText,
    },
    NodeClass {
        name: "EmptyLatentImage",
        display_name: "Empty Latent Image",
        category: "latent",
        output_node: false,
        inputs: &[
            required("width", Kind::Int { default: 512, min: 16, max: MAX_SIDE, step: 8 }),
            required("height", Kind::Int { default: 512, min: 16, max: MAX_SIDE, step: 8 }),
            required("batch_size", int(1, 1, 4096)),
        ],
        outputs: &[("LATENT", "LATENT")],
        work: Work::EmptyLatent,
    },
    NodeClass {
        name: "KSampler",
        display_name: "KSampler",
        category: "sampling",
        output_node: false,
        inputs: &[
            required("model", Kind::Linked("MODEL")),
            required("seed", Kind::Seed),
            required("steps", int(20, 1, 10_000)),
            required("cfg", float(8.0, 0.0, 100.0, 0.1)),
            required("sampler_name", Kind::Choice(SAMPLERS)),
            required("scheduler", Kind::Choice(SCHEDULERS)),
            required("positive", Kind::Linked("CONDITIONING")),
            required("negative", Kind::Linked("CONDITIONING")),
            required("latent_image", Kind::Linked("LATENT")),
            required("denoise", float(1.0, 0.0, 1.0, 0.01)),
        ],
        outputs: &[("LATENT", "LATENT")],
        work: Work::Sample,
    },
    NodeClass {
        name: "VAEDecode",
        display_name: "VAE Decode",
        category: "latent",
        output_node: false,
        inputs: &[required("samples", Kind::Linked("LATENT")), required("vae", Kind::Linked("VAE"))],
        outputs: &[("IMAGE", "IMAGE")],
        work: Work::Decode,
    },
    NodeClass {
        name: "VAEEncode",
        display_name: "VAE Encode",
        category: "latent",
        output_node: false,
        inputs: &[required("pixels", IMAGE), required("vae", Kind::Linked("VAE"))],
        outputs: &[("LATENT", "LATENT")],
        work: Work::Encode,
    },
    NodeClass {
        name: "PreviewAny",
        display_name: "Preview as Text",
        category: "utils",
        output_node: true,
        inputs: &[required("source", Kind::Linked("*"))],
        outputs: &[],
        work: Work::PreviewAny,
    },
    NodeClass {
        name: "SaveText",
        display_name: "Save Text",
        category: "utils",
        output_node: true,
        inputs: &[
            required("text", Kind::Text { default: "", multiline: true }),
            required("filename_prefix", text("text/ComfyUI")),
            optional("format", Kind::Choice(&["txt", "md", "json"])),
        ],
        outputs: &[],
        work: Work::SaveText,
    },
    NodeClass {
        name: "SaveAnimatedWEBP",
        display_name: "SaveAnimatedWEBP",
        category: "image/animation",
        output_node: true,
        inputs: &[
            required("images", IMAGE),
            required("filename_prefix", text("ComfyUI")),
            required("fps", float(6.0, 0.01, 1000.0, 0.01)),
            required("lossless", Kind::Bool { default: true }),
            required("quality", int(80, 0, 100)),
            required("method", Kind::Choice(&["default", "fastest", "slowest"])),
        ],
        outputs: &[],
        work: Work::SaveAnimatedWebp,
    },
    NodeClass {
        name: "SaveAnimatedPNG",
        display_name: "SaveAnimatedPNG",
        category: "image/animation",
        output_node: true,
        inputs: &[
            required("images", IMAGE),
            required("filename_prefix", text("ComfyUI")),
            required("fps", float(6.0, 0.01, 1000.0, 0.01)),
            required("compress_level", int(4, 0, 9)),
        ],
        outputs: &[],
        work: Work::SaveAnimatedPng,
    },
    NodeClass {
        name: "EmptyAudio",
        display_name: "Empty Audio",
        category: "audio",
        output_node: false,
        inputs: &[
            required("duration", float(60.0, 0.0, 1_000_000.0, 0.01)),
            required("sample_rate", int(44_100, 1, 192_000)),
            required("channels", int(2, 1, 2)),
        ],
        outputs: &[("AUDIO", "AUDIO")],
        work: Work::EmptyAudio,
    },
    NodeClass {
        name: "SaveAudio",
        display_name: "Save Audio (FLAC)",
        category: "audio",
        output_node: true,
        inputs: &[required("audio", Kind::Linked("AUDIO")), required("filename_prefix", text("audio/ComfyUI"))],
        outputs: &[],
        work: Work::SaveAudio("flac"),
    },
    NodeClass {
        name: "SaveAudioMP3",
        display_name: "Save Audio (MP3)",
        category: "audio",
        output_node: true,
        inputs: &[
            required("audio", Kind::Linked("AUDIO")),
            required("filename_prefix", text("audio/ComfyUI")),
            required("quality", Kind::Choice(&["V0", "128k", "320k"])),
        ],
        outputs: &[],
        work: Work::SaveAudio("mp3"),
    },
    NodeClass {
        name: "SaveAudioOpus",
        display_name: "Save Audio (Opus)",
        category: "audio",
        output_node: true,
        inputs: &[
            required("audio", Kind::Linked("AUDIO")),
            required("filename_prefix", text("audio/ComfyUI")),
            required("quality", Kind::Choice(&["64k", "96k", "128k", "192k", "320k"])),
        ],
        outputs: &[],
        work: Work::SaveAudio("opus"),
    },
    NodeClass {
        name: "PreviewAudio",
        display_name: "Preview Audio",
        category: "audio",
        output_node: true,
        inputs: &[required("audio", Kind::Linked("AUDIO"))],
        outputs: &[],
        work: Work::PreviewAudio,
    },
    NodeClass {
        name: "CreateVideo",
        display_name: "Create Video",
        category: "image/video",
        output_node: false,
        inputs: &[
            required("images", IMAGE),
            required("fps", float(30.0, 1.0, 120.0, 1.0)),
            optional("audio", Kind::Linked("AUDIO")),
        ],
        outputs: &[("VIDEO", "VIDEO")],
        work: Work::CreateVideo,
    },
    NodeClass {
        name: "SaveVideo",
        display_name: "Save Video",
        category: "image/video",
        output_node: true,
        inputs: &[
            required("video", Kind::Linked("VIDEO")),
            required("filename_prefix", text("video/ComfyUI")),
            required("format", Kind::Choice(&["auto", "mp4"])),
            required("codec", Kind::Choice(&["auto", "h264"])),
        ],
        outputs: &[],
        work: Work::SaveVideo("mp4"),
    },
    NodeClass {
        name: "SaveWEBM",
        display_name: "SaveWEBM",
        category: "image/video",
        output_node: true,
        inputs: &[
            required("images", IMAGE),
            required("filename_prefix", text("ComfyUI")),
            required("codec", Kind::Choice(&["vp9", "av1"])),
            required("fps", float(24.0, 0.01, 1000.0, 0.01)),
            required("crf", float(32.0, 0.0, 63.0, 1.0)),
        ],
        outputs: &[],
        work: Work::SaveVideo("webm"),
    },
    NodeClass {
        name: "SaveLatent",
        display_name: "SaveLatent",
        category: "_for_testing",
        output_node: true,
        inputs: &[required("samples", Kind::Linked("LATENT")), required("filename_prefix", text("latents/ComfyUI"))],
        outputs: &[],
        work: Work::SaveLatent,
    },
    NodeClass {
        name: "SaveImageWebsocket",
        display_name: "SaveImageWebsocket",
        category: "api/image",
        output_node: true,
        inputs: &[required("images", IMAGE)],
        outputs: &[],
        work: Work::SendImages,
    },
    NodeClass {
        name: "LabExpand",
        display_name: "LabExpand",
        category: "lab",
        output_node: false,
        inputs: &[required("color", int(0, 0, 0xFF_FFFF))],
        outputs: &[("IMAGE", "IMAGE")],
        work: Work::Expand,
    },
    NodeClass {
        name: "LabSlowProgress",
        display_name: "LabSlowProgress",
        category: "lab",
        output_node: false,
        inputs: &[
            required("image", IMAGE),
            required("steps", int(5, 1, 10_000)),
            required("seconds_per_step", float(0.2, 0.0, 600.0, 0.01)),
            required("preview", Kind::Bool { default: true }),
            required("preview_format", Kind::Choice(&["JPEG", "PNG"])),
            required("nonce", NONCE),
        ],
        outputs: &[("IMAGE", "IMAGE")],
        work: Work::SlowProgress,
    },
    NodeClass {
        name: "LabFail",
        display_name: "LabFail",
        category: "lab",
        output_node: false,
        inputs: &[
            required("image", IMAGE),
            required("message", text("boom")),
            required("kind", Kind::Choice(&["ValueError", "RuntimeError", "KeyError", "MemoryError"])),
            required("nonce", NONCE),
        ],
        outputs: &[("IMAGE", "IMAGE")],
        work: Work::Fail,
    },
    NodeClass {
        name: "LabOOM",
        display_name: "LabOOM",
        category: "lab",
        output_node: false,
        inputs: &[
            required("image", IMAGE),
            required("kind", Kind::Choice(&["torch", "comfy"])),
            required("nonce", NONCE),
        ],
        outputs: &[("IMAGE", "IMAGE")],
        work: Work::OutOfMemory,
    },
    NodeClass {
        name: "LabHang",
        display_name: "LabHang",
        category: "lab",
        output_node: false,
        inputs: &[
            required("image", IMAGE),
            required("seconds", float(5.0, 0.0, 36_000.0, 0.1)),
            required("nonce", NONCE),
        ],
        outputs: &[("IMAGE", "IMAGE")],
        work: Work::Hang,
    },
    NodeClass {
        name: "LabTextOut",
        display_name: "LabTextOut",
        category: "lab",
        output_node: true,
        inputs: &[required("text", Kind::Text { default: "hello", multiline: true })],
        outputs: &[("STRING", "STRING")],
        work: Work::TextOut,
    },
    NodeClass {
        name: "LabGifs",
        display_name: "LabGifs",
        category: "lab",
        output_node: true,
        inputs: &[required("images", IMAGE)],
        outputs: &[],
        work: Work::Gifs,
    },
    NodeClass {
        name: "FakeBytes",
        display_name: "Fake Bytes",
        category: "fake",
        output_node: true,
        inputs: &[
            required("bytes", int(1_000_000, 0, 1 << 40)),
            required("count", int(1, 1, 10_000)),
            required("seed", NONCE),
            required("extension", text("bin")),
            optional("filename_prefix", text("fake")),
        ],
        outputs: &[],
        work: Work::Bytes,
    },
];
