//! The commands, one file each: each takes arguments and returns an exit code.

pub mod check;
pub mod container;
pub mod demo;
mod failure;
pub mod probe;
pub mod run;
