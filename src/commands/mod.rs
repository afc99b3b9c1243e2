//! The commands, one file each: a command's arguments in, its exit code out.

pub mod check;
pub mod container;
pub mod demo;
mod failure;
pub mod probe;
pub mod run;
