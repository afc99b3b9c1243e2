//! The commands, one file each: a command's arguments in, its exit code out.

pub mod check;
pub mod container;
pub mod demo;
pub mod probe;
pub mod run;
