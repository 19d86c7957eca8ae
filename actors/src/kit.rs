//! Small parts every actor here is built from. Nothing in this folder knows what a task is.

pub mod budget;
pub mod children;
pub mod deadline;
pub mod pulse;
pub mod service;
pub mod slot;
pub mod tasks;
