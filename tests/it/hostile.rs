//! Nobody we speak to means well: clients that hold on to what they get, and a ComfyUI server that says anything at all.

mod clients;
mod comfyui;
mod impostor;
