//! The classes of the graphs that change a picture, enlarge it or make it move.

use super::{IMAGE, MAX_SIDE, UPSCALERS, float, int, optional, required};
use crate::nodes::Work;
use crate::nodes::schema::{Kind, List, NodeClass};

const MASK: Kind = Kind::Linked("MASK");
const SAMPLES: Kind = Kind::Linked("LATENT");

pub(super) static CLASSES: &[NodeClass] = &[
    NodeClass {
        name: "ImageScaleBy",
        display_name: "Upscale Image By",
        category: "image/upscaling",
        output_node: false,
        inputs: &[
            required("image", IMAGE),
            required("upscale_method", Kind::Choice(UPSCALERS)),
            required("scale_by", float(1.0, 0.01, 8.0, 0.01)),
        ],
        outputs: &[("IMAGE", "IMAGE")],
        work: Work::ImageScaleBy,
    },
    NodeClass {
        name: "ImageBlur",
        display_name: "Image Blur",
        category: "image/postprocessing",
        output_node: false,
        inputs: &[
            required("image", IMAGE),
            required("blur_radius", int(1, 1, 31)),
            required("sigma", float(1.0, 0.1, 10.0, 0.1)),
        ],
        outputs: &[("IMAGE", "IMAGE")],
        work: Work::ImageBlur,
    },
    NodeClass {
        name: "UpscaleModelLoader",
        display_name: "Load Upscale Model",
        category: "loaders",
        output_node: false,
        inputs: &[required("model_name", Kind::List(List::UpscaleModels))],
        outputs: &[("UPSCALE_MODEL", "UPSCALE_MODEL")],
        work: Work::LoadUpscaleModel,
    },
    NodeClass {
        name: "ImageUpscaleWithModel",
        display_name: "Upscale Image (using Model)",
        category: "image/upscaling",
        output_node: false,
        inputs: &[required("upscale_model", Kind::Linked("UPSCALE_MODEL")), required("image", IMAGE)],
        outputs: &[("IMAGE", "IMAGE")],
        work: Work::UpscaleWithModel,
    },
    NodeClass {
        name: "GrowMask",
        display_name: "Grow Mask",
        category: "mask",
        output_node: false,
        inputs: &[
            required("mask", MASK),
            required("expand", int(0, -MAX_SIDE, MAX_SIDE)),
            required("tapered_corners", Kind::Bool { default: true }),
        ],
        outputs: &[("MASK", "MASK")],
        work: Work::GrowMask,
    },
    NodeClass {
        name: "SetLatentNoiseMask",
        display_name: "Set Latent Noise Mask",
        category: "latent/inpaint",
        output_node: false,
        inputs: &[required("samples", SAMPLES), required("mask", MASK)],
        outputs: &[("LATENT", "LATENT")],
        work: Work::SetNoiseMask,
    },
    NodeClass {
        name: "VAEEncodeForInpaint",
        display_name: "VAE Encode (for Inpainting)",
        category: "latent/inpaint",
        output_node: false,
        inputs: &[
            required("pixels", IMAGE),
            required("vae", Kind::Linked("VAE")),
            required("mask", MASK),
            required("grow_mask_by", int(6, 0, 64)),
        ],
        outputs: &[("LATENT", "LATENT")],
        work: Work::EncodeForInpaint,
    },
    NodeClass {
        name: "UNETLoader",
        display_name: "Load Diffusion Model",
        category: "advanced/loaders",
        output_node: false,
        inputs: &[
            required("unet_name", Kind::List(List::DiffusionModels)),
            required("weight_dtype", Kind::Choice(&["default", "fp8_e4m3fn", "fp8_e4m3fn_fast", "fp8_e5m2"])),
        ],
        outputs: &[("MODEL", "MODEL")],
        work: Work::LoadDiffusionModel,
    },
    NodeClass {
        name: "CLIPLoader",
        display_name: "Load CLIP",
        category: "advanced/loaders",
        output_node: false,
        inputs: &[
            required("clip_name", Kind::List(List::TextEncoders)),
            required(
                "type",
                Kind::Choice(&["stable_diffusion", "sd3", "stable_audio", "mochi", "ltxv", "cosmos", "wan", "flux2"]),
            ),
            optional("device", Kind::Choice(&["default", "cpu"])),
        ],
        outputs: &[("CLIP", "CLIP")],
        work: Work::LoadTextEncoder,
    },
    NodeClass {
        name: "VAELoader",
        display_name: "Load VAE",
        category: "loaders",
        output_node: false,
        inputs: &[required("vae_name", Kind::List(List::Vaes))],
        outputs: &[("VAE", "VAE")],
        work: Work::LoadVae,
    },
    NodeClass {
        name: "ModelSamplingSD3",
        display_name: "ModelSamplingSD3",
        category: "advanced/model",
        output_node: false,
        inputs: &[required("model", Kind::Linked("MODEL")), required("shift", float(3.0, 0.0, 100.0, 0.01))],
        outputs: &[("MODEL", "MODEL")],
        work: Work::ShiftSampling,
    },
    NodeClass {
        name: "EmptyHunyuanLatentVideo",
        display_name: "EmptyHunyuanLatentVideo",
        category: "latent/video",
        output_node: false,
        inputs: &[
            required("width", Kind::Int { default: 848, min: 16, max: MAX_SIDE, step: 16 }),
            required("height", Kind::Int { default: 480, min: 16, max: MAX_SIDE, step: 16 }),
            required("length", Kind::Int { default: 25, min: 1, max: MAX_SIDE, step: 4 }),
            required("batch_size", int(1, 1, 4096)),
        ],
        outputs: &[("LATENT", "LATENT")],
        work: Work::EmptyVideoLatent,
    },
];
